//! Step 9, permit, from the operator's side: the locks in an etcd cluster, as the configuration names it.

use super::keeper::Locks;
use crate::config::settings;
use crate::error::chain;
use crate::lock::Operator;
use crate::lock::etcd::{DEFAULT_GROUP, Entry, EtcdLock, Release};
use crate::operator::OperatorError;
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{Act, ActKind, Cap, Caps, ClientId, Document, PolicyFile, Reply};
use protocol::wire::LockInfo;
use std::collections::BTreeMap;

/// The longest reason that is taken, in bytes: what is longer the document would cut.
const WHY_MAX: usize = 256;

/// Locks in etcd.
#[derive(Debug)]
pub(super) struct EtcdKeeper {
    lock: EtcdLock,
    /// Who acts, for the record in the document.
    who: String,
}

impl EtcdKeeper {
    /// The cluster of the settings; asks nothing yet.
    pub(super) fn new(etcd: &settings::Etcd, lock: &settings::Lock) -> Result<Self, OperatorError> {
        let login = etcd.login.as_ref().map(|login| login.user.as_str());
        Ok(Self { lock: EtcdLock::new(etcd, lock.timeout, lock.deadline)?, who: who(login) })
    }

    fn by(&self, why: &str) -> Result<Operator, OperatorError> {
        if why.trim().is_empty() || why.len() > WHY_MAX || why.contains(char::is_control) {
            let expected = format!("expected a line of 1 to {WHY_MAX} bytes");
            return Err(OperatorError::Wrong(format!(
                "--why is not valid: {expected}, found {:?}",
                short(why)
            )));
        }
        Ok(Operator { who: self.who.clone(), why: why.to_owned() })
    }

    pub(super) async fn lock(&self, group: &Group) -> Result<LockInfo, OperatorError> {
        Ok(self.lock.view(group).await?.info())
    }

    /// All groups: those that have a lock, and the one that exists from the start, stored or not.
    async fn entries(&self) -> Result<Vec<Entry>, OperatorError> {
        let mut entries = self.lock.groups().await?;
        if !entries.iter().any(|entry| entry.group.as_str() == DEFAULT_GROUP)
            && let Ok(group) = DEFAULT_GROUP.parse::<Group>()
        {
            let view = self.lock.view(&group).await;
            entries.push(Entry { group, view });
            entries.sort_by(|one, other| one.group.cmp(&other.group));
        }
        Ok(entries)
    }

    pub(super) async fn locks(&self) -> Result<Locks, OperatorError> {
        let mut all = Locks { locks: Vec::new(), unreadable: Vec::new() };
        for entry in self.entries().await? {
            match entry.view {
                Ok(view) => all.locks.push(view.info()),
                // One that does not answer has not told anything about its documents.
                Err(error) if error.is_passing() => return Err(error.into()),
                Err(error) => all.unreadable.push((entry.group, chain(&error))),
            }
        }
        Ok(all)
    }

    pub(super) async fn release(
        &self,
        group: &Group,
        node: &ClientId,
        grant: u64,
        why: &str,
    ) -> Result<(), OperatorError> {
        let release = Release { node: node.clone(), grant };
        done(self.lock.release(group, release, self.by(why)?).await?)
    }

    /// All policies and caps. One lock that cannot be read hides its policy, so that nothing is said of any.
    pub(super) async fn policies(&self) -> Result<PolicyFile, OperatorError> {
        let mut groups = BTreeMap::new();
        for entry in self.entries().await? {
            groups.insert(entry.group, entry.view?.document.policy);
        }
        let (caps, _) = self.lock.caps().await?;
        Ok(PolicyFile { groups, caps })
    }

    /// Sets the policies of the groups that `wanted` names, and its caps. etcd has one document for each, so that they are
    /// set one after the other; while that goes on no limit is wider than before or after, whichever is narrower.
    pub(super) async fn set_policies(
        &self,
        before: &PolicyFile,
        wanted: &PolicyFile,
        why: &str,
    ) -> Result<(), OperatorError> {
        let by = self.by(why)?;
        if self.policies().await? != *before {
            return Err(changed());
        }
        self.set_caps(&before.caps, &narrower(&before.caps, &wanted.caps)).await?;
        for (group, policy) in &wanted.groups {
            if before.groups.get(group) != Some(policy) {
                let set = self.lock.set_policy(group, policy.clone(), by.clone()).await;
                let set = set.map_err(OperatorError::from).and_then(done);
                set.map_err(|error| self.half_done(group, &error))?;
            }
        }
        self.set_caps(&narrower(&before.caps, &wanted.caps), &wanted.caps).await
    }

    fn half_done(&self, group: &Group, error: &OperatorError) -> OperatorError {
        let cause = chain(error);
        OperatorError::Wrong(format!(
            "the policy of group {group} is not set: {cause}; those of groups whose names come before it are; set the file again"
        ))
    }

    async fn set_caps(&self, before: &Caps, wanted: &Caps) -> Result<(), OperatorError> {
        if before == wanted {
            return Ok(());
        }
        let (found, revision) = self.lock.caps().await?;
        if found != *before || !self.lock.set_caps(wanted, revision).await? {
            return Err(changed());
        }
        Ok(())
    }

    /// Takes over a lock into a group that has none, with an entry in its acts: import replaces nothing.
    pub(super) async fn import(
        &self,
        document: &Document,
        system: &str,
        why: &str,
    ) -> Result<usize, OperatorError> {
        let Operator { who, why } = self.by(why)?;
        let why = format!("taken over from {system}: {why}").chars().take(WHY_MAX).collect();
        let mut document = document.clone();
        document.acts.push(Act { at: Timestamp::now(), who, kind: ActKind::SetPolicy, why });
        self.lock.import(&document).await?;
        Ok(document.holders.len())
    }
}

/// Who sits at this machine: the user of etcd where there is one, which etcd has checked; else what the system says, which
/// is no proof.
fn who(login: Option<&str>) -> String {
    if let Some(user) = login {
        return user.to_owned();
    }
    let name = |key: &str| std::env::var(key).ok().filter(|name| !name.is_empty());
    let user = name("SUDO_USER").or_else(|| name("USER"));
    let user = user.unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()));
    let host = rustix::system::uname();
    short(&format!("{user}@{}", host.nodename().to_string_lossy()))
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

fn changed() -> OperatorError {
    OperatorError::Wrong(
        "the policy was changed by somebody else in the meantime: look at it again".to_owned(),
    )
}

/// An answer that is not "done" is why not.
fn done(reply: Reply) -> Result<(), OperatorError> {
    match reply {
        Reply::Refused { because } => Err(OperatorError::Wrong(because.to_string())),
        _ => Ok(()),
    }
}

/// Caps of which each is met only where both `before` and `after` are met: all of them, and of two with one name the lesser
/// number over the groups of both.
fn narrower(before: &Caps, after: &Caps) -> Caps {
    let mut caps = before.caps.clone();
    for (name, cap) in &after.caps {
        let both = caps.entry(name.clone()).or_insert_with(|| cap.clone());
        let more: Vec<Group> =
            cap.groups.iter().filter(|group| !both.groups.contains(group)).cloned().collect();
        both.groups.extend(more);
        both.max = both.max.min(cap.max);
    }
    // Where the two say the same in another order, nothing is to be narrowed.
    let same = |(name, cap): (&String, &mut Cap)| {
        if let Some(wanted) = after.caps.get(name)
            && wanted.max == cap.max
            && wanted.groups.len() == cap.groups.len()
        {
            cap.clone_from(wanted);
        }
    };
    caps.iter_mut().for_each(same);
    Caps { caps }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(all: &[(&str, &[&str], u32)]) -> Caps {
        let cap = |(name, groups, max): &(&str, &[&str], u32)| {
            let groups = groups.iter().map(|group| group.parse().unwrap()).collect();
            ((*name).to_owned(), Cap { groups, max: *max })
        };
        Caps { caps: all.iter().map(cap).collect() }
    }

    #[test]
    fn on_the_way_from_caps_to_caps_both_are_kept() {
        let before = caps(&[("gone", &["a"], 1), ("wider", &["a", "b"], 1), ("other", &["a"], 3)]);
        let after = caps(&[("new", &["c"], 1), ("wider", &["a", "b"], 4), ("other", &["b"], 2)]);
        assert_eq!(
            narrower(&before, &after),
            caps(&[
                ("gone", &["a"], 1),
                ("new", &["c"], 1),
                ("other", &["a", "b"], 2),
                ("wider", &["a", "b"], 1)
            ])
        );
        assert_eq!(narrower(&after, &after), after, "one step where nothing changes");
        assert_eq!(narrower(&caps(&[]), &after), after, "and where nothing is given up");
    }

    #[test]
    fn who_acts_is_told_by_etcd_where_it_knows() {
        assert_eq!(who(Some("root")), "root");
        let told = who(None);
        assert!(told.contains('@') && !told.ends_with('@'), "{told}");
    }
}
