//! Step 9, permit: what operators do to the locks as a whole: policies, and nodes that are gone for good.

use crate::server::App;
use crate::store::audit::{self, Change};
use crate::store::{Connection, StoreError, credentials, locks, nodes, standing};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::Group;
use protocol::lock::{
    ClientId, Command, Context, Document, Limit, Policy, PolicyFile, PolicyFileErrors, Problem, apply,
};
use protocol::wire::Policies;
use std::fmt::Display;

/// Why policies were not set. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFailure {
    /// The file cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// A channel has no policy that could be removed.
    #[error("the channel {0} has no policy of its own: the default one holds")]
    Missing(protocol::id::Channel),
    /// The policy is another one by now.
    #[error("the policy was changed by somebody else in the meantime: look at it again")]
    Changed,
    /// A lock cannot be taken over into a group that is in use.
    #[error(
        "the group {group} has {holders} holders and {waiters} waiters: a lock is taken over before any node asks; take it \
         over into another group"
    )]
    InUse {
        /// Which.
        group: Group,
        /// How many hold a permit.
        holders: usize,
        /// How many wait.
        waiters: usize,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<PolicyFileErrors> for PolicyFailure {
    /// The first thing that is wrong, and how many more there are, in one line.
    fn from(errors: PolicyFileErrors) -> Self {
        let line = errors.0.first().map_or_else(String::new, ToString::to_string);
        let more = errors.0.len().saturating_sub(1);
        Self::Invalid(if more == 0 { line } else { format!("{line} (and {more} more errors)") })
    }
}

/// Goes on only if the policies are still those that the operator saw.
///
/// # Errors
/// [`PolicyFailure::Changed`].
pub fn as_seen(file: &impl Display, replaces: &Sha256) -> Result<(), PolicyFailure> {
    if Policies::of(file).digest == *replaces { Ok(()) } else { Err(PolicyFailure::Changed) }
}

/// All policies and caps as they are.
///
/// # Errors
/// [`StoreError`].
pub async fn current(conn: &mut Connection) -> Result<PolicyFile, StoreError> {
    let groups = locks::list(conn).await?.into_iter().map(|(_, lock)| (lock.group, lock.policy)).collect();
    Ok(PolicyFile { groups, caps: locks::caps(conn).await?.1 })
}

/// Sets the policies that a file names, and the caps, in one transaction: groups that are new are made, those that the
/// file leaves out stay as they are. Holders stay, whatever the new policy says.
///
/// # Errors
/// [`PolicyFailure`].
pub async fn set(
    app: &App,
    text: &str,
    replaces: &Sha256,
    who: &str,
    why: &str,
) -> Result<PolicyFile, PolicyFailure> {
    let wanted = PolicyFile::parse("the policy file", text).map_err(PolicyFailure::from)?;
    check(&wanted)?;
    let _turn = app.lock_turn().await;
    let now = app.now();
    let mut change = app.store().write().await?;
    as_seen(&current(&mut change).await?, replaces)?;
    for (group, policy) in &wanted.groups {
        let command =
            Command::SetPolicy { policy: Box::new(policy.clone()), who: who.to_owned(), why: why.to_owned() };
        // A policy asks for nothing but the time.
        let context = Context { now, population: None, caps: Vec::new(), quorum: None };
        let found = locks::find(&mut change, group).await?;
        let before = found.as_ref().map(|(_, document)| document.policy.clone());
        // A new group begins with the default policy, so that its first one is an act on record like any later one.
        let (revision, document) =
            found.unwrap_or_else(|| (0, Document::new(group.clone(), Policy::default())));
        let next = apply(&document, &command, &context).document;
        let next = next.or_else(|| (revision == 0).then_some(document));
        let Some(next) = next else { continue };
        if !locks::swap_document(&mut change, revision, &next).await? {
            return Err(PolicyFailure::Changed);
        }
        // Time may have passed in the document without a change of the policy.
        if before.as_ref() != Some(policy) {
            let detail = changed(&one(group, before.as_ref()).difference(&one(group, Some(policy))), why);
            let entry =
                Change { actor: who, action: "lock.policy", subject: group.as_str(), detail: &detail };
            audit::record(&mut change, now, entry).await?;
        }
    }
    set_caps(&mut change, &wanted, who, why, now).await?;
    let after = current(&mut change).await?;
    change.commit().await.map_err(StoreError::from)?;
    Ok(after)
}

/// The longest account of a change in the audit log, in bytes; the policies themselves are in the database.
const CHANGE_MAX: usize = 2000;

/// What changed in a policy file, as its `difference` says it, in one line, and why.
pub(crate) fn changed(difference: &[String], why: &str) -> String {
    let mut line = difference.iter().map(|line| line.trim()).collect::<Vec<_>>().join("; ");
    if line.len() > CHANGE_MAX {
        line.truncate(line.floor_char_boundary(CHANGE_MAX));
        line.push_str(" ...");
    }
    format!("{line}: {why}")
}

/// A group's policy alone.
fn one(group: &Group, policy: Option<&Policy>) -> PolicyFile {
    let groups = policy.map(|policy| (group.clone(), policy.clone())).into_iter().collect();
    PolicyFile { groups, ..PolicyFile::default() }
}

async fn set_caps(
    conn: &mut Connection,
    wanted: &PolicyFile,
    who: &str,
    why: &str,
    now: Timestamp,
) -> Result<(), PolicyFailure> {
    let (revision, caps) = locks::caps(conn).await?;
    if caps == wanted.caps {
        return Ok(());
    }
    if !locks::swap_caps(conn, revision, &wanted.caps).await? {
        return Err(PolicyFailure::Changed);
    }
    let only = |caps| PolicyFile { caps, ..PolicyFile::default() };
    let detail = changed(&only(caps).difference(&only(wanted.caps.clone())), why);
    let entry = Change { actor: who, action: "lock.caps", subject: "caps", detail: &detail };
    Ok(audit::record(conn, now, entry).await?)
}

/// A file that was read has been checked; this names what the rules for documents refuse all the same.
fn check(file: &PolicyFile) -> Result<(), PolicyFailure> {
    let groups = file.groups.iter().flat_map(|(group, policy)| {
        policy.problems().into_iter().map(move |problem| (format!("group.{group}"), problem))
    });
    let caps = file.caps.problems().into_iter().map(|problem| ("cap".to_owned(), problem));
    match groups.chain(caps).next() {
        Some((of, Problem { key, message })) => Err(PolicyFailure::Invalid(format!("{of}.{key}: {message}"))),
        None => Ok(()),
    }
}

/// A lock of another system.
#[derive(Clone, Copy, Debug)]
pub struct Imported<'a> {
    /// Whose it was.
    pub system: &'a str,
    /// How many may hold a permit.
    pub max: u32,
    /// Who holds one.
    pub holders: &'a [ClientId],
}

/// Takes over a lock into a group that nobody holds or waits in: its number, and its holders as FleetLock v1 clients. All
/// of the group's policy but the number stays.
///
/// # Errors
/// [`PolicyFailure`].
pub async fn import(
    app: &App,
    group: &Group,
    lock: Imported<'_>,
    who: &str,
    why: &str,
) -> Result<(), PolicyFailure> {
    let _turn = app.lock_turn().await;
    let now = app.now();
    let mut change = app.store().write().await?;
    let (revision, mut document) = locks::find(&mut change, group)
        .await?
        .unwrap_or((0, Document::new(group.clone(), Policy::default())));
    if !document.holders.is_empty() || !document.queue.is_empty() {
        return Err(PolicyFailure::InUse {
            group: group.clone(),
            holders: document.holders.len(),
            waiters: document.queue.len(),
        });
    }
    let policy = Policy { max: Limit::Count(lock.max), ..document.policy.clone() };
    // They hold already: nothing is decided about them.
    document.policy = Policy { max: Limit::Count(u32::MAX), ..Policy::default() };
    let hold = lock.holders.iter().map(|node| Command::FleetLockRequest { node: node.clone() });
    let set = Command::SetPolicy { policy: Box::new(policy), who: who.to_owned(), why: why.to_owned() };
    let context = Context { now, population: None, caps: Vec::new(), quorum: None };
    for command in hold.chain([set]) {
        document = apply(&document, &command, &context).document.unwrap_or(document);
    }
    if !locks::swap_document(&mut change, revision, &document).await? {
        return Err(PolicyFailure::Changed);
    }
    let detail = format!("from {}: max {}, {} holders: {why}", lock.system, lock.max, document.holders.len());
    let entry = Change { actor: who, action: "lock.import", subject: group.as_str(), detail: &detail };
    audit::record(&mut change, now, entry).await?;
    Ok(change.commit().await.map_err(StoreError::from)?)
}

/// What a node had at a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// A permit.
    Permit,
    /// A place in the queue.
    Place,
}

/// Takes a node's permits and places in queues from all locks, each with an entry in the audit log, in the change that the
/// caller commits while it has the turn at locks.
///
/// # Errors
/// [`StoreError`].
pub async fn take_from_locks(
    conn: &mut Connection,
    node: &ClientId,
    who: &str,
    why: &str,
    now: Timestamp,
) -> Result<Vec<(Group, Took)>, StoreError> {
    let command = Command::RemoveNode { node: node.clone(), who: who.to_owned(), why: why.to_owned() };
    let mut taken = Vec::new();
    for (revision, document) in locks::list(conn).await? {
        let held = document.holder(node).is_some();
        let waits = document.queue.iter().any(|waiter| waiter.node == *node);
        if !held && !waits {
            continue;
        }
        let context = Context { now, population: None, caps: Vec::new(), quorum: None };
        let Some(next) = apply(&document, &command, &context).document else { continue };
        if !locks::swap_document(conn, revision, &next).await? {
            return Err(StoreError::Corrupt { what: "a lock's revision", found: revision.to_string() });
        }
        let (took, what) = if held { (Took::Permit, "permit") } else { (Took::Place, "place") };
        let detail = format!("the {what} of {node} went with it: {why}");
        let entry =
            Change { actor: who, action: "lock.remove", subject: document.group.as_str(), detail: &detail };
        audit::record(conn, now, entry).await?;
        taken.push((document.group, took));
    }
    Ok(taken)
}

/// Takes a node out of all locks, and forgets it, its credential and its group. That it is revoked stays. False where nothing was
/// known of it.
///
/// # Errors
/// [`StoreError`]; then nothing has changed.
pub async fn remove_node(app: &App, node: &ClientId, who: &str, why: &str) -> Result<bool, StoreError> {
    let _turn = app.lock_turn().await;
    let now = app.now();
    app.checkins().flush(app.store()).await?;
    let mut change = app.store().write().await?;
    let mut known = nodes::remove(&mut change, node).await?;
    known |= locks::forget_place(&mut change, node).await?;
    known |= credentials::forget(&mut change, node).await?;
    standing::clear_group(&mut change, node).await?;
    known |= !take_from_locks(&mut change, node, who, why, now).await?.is_empty();
    if known {
        let entry = Change { actor: who, action: "node.remove", subject: node.as_str(), detail: why };
        audit::record(&mut change, now, entry).await?;
    }
    change.commit().await.map_err(StoreError::from)?;
    app.credentials().forget(node);
    Ok(known)
}
