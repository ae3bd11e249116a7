//! Step 9, permit: what operators do with the locks in an etcd cluster.

use super::{EtcdLock, parse};
use crate::lock::Operator;
use crate::lock::error::LockError;
use protocol::id::Group;
use protocol::lock::{Caps, ClientId, Command, Document, Policy, Problem, Reply};

/// One group's lock as operators list it.
#[derive(Debug)]
pub struct Entry {
    /// Whose lock.
    pub group: Group,
    /// What is stored, or why it cannot be read.
    pub view: Result<crate::lock::View, LockError>,
}

/// A permit to take away.
#[derive(Clone, Debug)]
pub struct Release {
    /// From whom.
    pub node: ClientId,
    /// The grant that the operator saw; another one is not touched.
    pub grant: u64,
}

impl EtcdLock {
    /// All groups that have a lock, by name. One that is damaged is an entry too.
    ///
    /// # Errors
    /// [`LockError`] where the store does not answer.
    pub async fn groups(&self) -> Result<Vec<Entry>, LockError> {
        let keys = self.gateway.list(&self.keys.groups(), true).await?;
        let mut entries = Vec::new();
        for group in keys.iter().filter_map(|value| self.keys.group_of(&value.key)) {
            let view = self.view(&group).await;
            entries.push(Entry { group, view });
        }
        Ok(entries)
    }

    /// Takes a permit away, with an entry in the document's acts.
    ///
    /// # Errors
    /// [`LockError`]; [`Reply::Refused`] is an answer.
    pub async fn release(&self, group: &Group, release: Release, by: Operator) -> Result<Reply, LockError> {
        let Release { node, grant } = release;
        let Operator { who, why } = by;
        self.perform(group, &Command::ForceRelease { node, grant, who, why }).await
    }

    /// Takes a node out of its group for good: its permit, its place, and its count.
    ///
    /// # Errors
    /// [`LockError`]
    pub async fn remove_node(&self, group: &Group, node: ClientId, by: Operator) -> Result<Reply, LockError> {
        let Operator { who, why } = by;
        self.perform(group, &Command::RemoveNode { node, who, why }).await
    }

    /// Sets a group's policy; makes the group where there is none. Holders stay.
    ///
    /// # Errors
    /// [`LockError::Policy`] where it cannot be kept, and any other.
    pub async fn set_policy(&self, group: &Group, policy: Policy, by: Operator) -> Result<Reply, LockError> {
        good(format!("the policy of group {group}"), &policy.problems())?;
        let Operator { who, why } = by;
        self.perform(group, &Command::SetPolicy { policy: Box::new(policy), who, why }).await
    }

    /// The caps over several groups, with their revision; 0 where none were ever set.
    ///
    /// # Errors
    /// [`LockError`]
    pub async fn caps(&self) -> Result<(Caps, u64), LockError> {
        let key = self.keys.caps();
        let read = self.gateway.get(&[&key]).await?.answer;
        let Some(value) = read.into_iter().next() else { return Ok((Caps::default(), 0)) };
        let caps = value.bytes.map_or_else(|| Ok(Caps::default()), |bytes| parse(&key, "caps", &bytes))?;
        Ok((caps, value.revision))
    }

    /// Sets the caps if they are still at `revision`; whether they were.
    ///
    /// # Errors
    /// [`LockError::Policy`] where they cannot be kept, [`LockError::Unresolved`] where it is not known whether they are
    /// set: look again.
    pub async fn set_caps(&self, caps: &Caps, revision: u64) -> Result<bool, LockError> {
        good("the caps".to_owned(), &caps.problems())?;
        let key = self.keys.caps();
        let bytes = serde_json::to_vec(caps).map_err(|source| LockError::Corrupt {
            key: key.clone(),
            expected: "caps",
            source,
        })?;
        self.put_once(&key, revision, bytes).await
    }

    /// Stores a document of another system for a group that has no lock yet.
    ///
    /// # Errors
    /// [`LockError::GroupExists`] where it has one, [`LockError::Unresolved`] where it is not known whether it was stored.
    pub async fn import(&self, document: &Document) -> Result<(), LockError> {
        let key = self.keys.lock(&document.group);
        let bytes = serde_json::to_vec(document).map_err(|source| LockError::Corrupt {
            key: key.clone(),
            expected: "lock document",
            source,
        })?;
        if self.put_once(&key, 0, bytes).await? {
            return Ok(());
        }
        let holders = self.view(&document.group).await?.document.holders.len();
        Err(LockError::GroupExists { group: document.group.clone(), holders })
    }

    async fn put_once(&self, key: &str, revision: u64, bytes: Vec<u8>) -> Result<bool, LockError> {
        let done = self.gateway.put_if(&[(key.to_owned(), revision)], key, bytes).await;
        done.map_err(|unanswered| match unanswered.maybe_done {
            true => LockError::Unresolved { source: Box::new(unanswered.error) },
            false => unanswered.error,
        })
    }
}

fn good(what: String, problems: &[Problem]) -> Result<(), LockError> {
    if problems.is_empty() {
        return Ok(());
    }
    let problems = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Err(LockError::Policy { what, problems })
}
