//! Step 9, permit: the reboot locks of this server. Each command is applied to the group's document by
//! [`protocol::lock::apply`] and written by compare-and-swap, durable before the answer. Nothing is decided here.

use crate::server::App;
use crate::store::audit::{self, Change};
use crate::store::{Connection, StoreError, locks, standing};
use crate::webhooks;
use jiff::{SignedDuration, Timestamp};
use protocol::id::Group;
use protocol::lock::{Caps, ClientId, Command, Context, Document, Phase, Reply, Request, Usage, apply};
use std::collections::BTreeSet;

/// How often a command is applied again because another server was faster.
const TRIES: u32 = 32;
/// Nodes not heard of for so long are not counted for limits in percent.
const COUNTED: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How often it is noted that a node still asks.
const NOTED_EVERY: SignedDuration = SignedDuration::from_hours(24);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum LockFailure {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Other servers changed the document each time.
    #[error("the lock of group {group} was changed by others {TRIES} times in a row")]
    Contended {
        /// Which.
        group: Group,
    },
    /// Who asks for a permit is not heard any more.
    #[error(
        "{node} is revoked and gets no permit: an operator's updatectl node reinstate {node} lets it be heard again"
    )]
    Revoked {
        /// Who.
        node: ClientId,
    },
}

/// Who asks for a permit, if a command does.
const fn asks(command: &Command) -> Option<&ClientId> {
    match command {
        Command::Request(request) => Some(&request.node),
        Command::FleetLockRequest { node } => Some(node),
        _ => None,
    }
}

/// A group's lock as it was read, with what a decision about it needs to know.
#[derive(Debug)]
pub struct Found {
    /// Counts its changes.
    pub revision: u64,
    /// The document.
    pub document: Document,
    /// What else counts.
    pub context: Context,
    /// The revision of the caps, where a cap counts this group.
    caps: Option<(u64, Caps)>,
}

/// Reads a group's lock; none where the group is not known.
///
/// # Errors
/// [`StoreError`].
pub async fn find(conn: &mut Connection, group: &Group, now: Timestamp) -> Result<Option<Found>, StoreError> {
    match locks::find(conn, group).await? {
        Some((revision, document)) => Ok(Some(with_context(conn, revision, document, now, true).await?)),
        None => Ok(None),
    }
}

/// Reads a group's lock for a command. The nodes are counted only where it matters how many there are: a fleet of
/// thousands would be counted with each word of each node.
async fn find_for(
    conn: &mut Connection,
    group: &Group,
    command: &Command,
    now: Timestamp,
) -> Result<Option<Found>, StoreError> {
    let Some((revision, document)) = locks::find(conn, group).await? else { return Ok(None) };
    let counts = command.decides() && document.policy.counts_nodes();
    Ok(Some(with_context(conn, revision, document, now, counts).await?))
}

/// Reads all locks, by group.
///
/// # Errors
/// [`StoreError`].
pub async fn list(conn: &mut Connection, now: Timestamp) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    for (revision, document) in locks::list(conn).await? {
        found.push(with_context(conn, revision, document, now, true).await?);
    }
    Ok(found)
}

async fn with_context(
    conn: &mut Connection,
    revision: u64,
    document: Document,
    now: Timestamp,
    counts: bool,
) -> Result<Found, StoreError> {
    let since = now.saturating_sub(COUNTED).unwrap_or(Timestamp::MIN);
    let population = if counts { locks::population(conn, &document.group, since).await? } else { None };
    let (caps_revision, caps) = locks::caps(conn).await?;
    let usages = usages(conn, &caps, &document.group).await?;
    let caps = (!usages.is_empty()).then_some((caps_revision, caps));
    // The server does not know any etcd cluster: its size is in the policy where its quorum is guarded.
    let context = Context { now, population, caps: usages, quorum: None };
    Ok(Found { revision, document, context, caps })
}

/// How far the caps that count a group are used up by the others.
async fn usages(conn: &mut Connection, caps: &Caps, group: &Group) -> Result<Vec<Usage>, StoreError> {
    let mut usages = Vec::new();
    for (name, cap) in caps.caps.iter().filter(|(_, cap)| cap.groups.contains(group)) {
        let mut held_elsewhere = 0;
        for other in cap.groups.iter().filter(|other| *other != group).collect::<BTreeSet<_>>() {
            let held = locks::find(conn, other).await?.map_or(0, |(_, other)| other.holders.len());
            held_elsewhere = u32::saturating_add(held_elsewhere, u32::try_from(held).unwrap_or(u32::MAX));
        }
        usages.push(Usage { cap: name.clone(), max: cap.max, held_elsewhere });
    }
    Ok(usages)
}

impl Found {
    /// The document as it is at this time: whoever is overdue is stuck, though nobody has written it yet.
    #[must_use]
    pub fn as_of_now(&self) -> Document {
        apply(&self.document, &Command::Tick, &self.context).document.unwrap_or_else(|| self.document.clone())
    }
}

/// Makes the group `default` where there is none: it is there from the start, with the default policy.
///
/// # Errors
/// [`StoreError`].
pub async fn ensure_default(app: &App) -> Result<(), StoreError> {
    let Ok(group) = "default".parse::<Group>() else { return Ok(()) };
    if locks::find(&mut *app.store().read().await?, &group).await?.is_some() {
        return Ok(());
    }
    let mut change = app.store().write().await?;
    locks::swap_document(&mut change, 0, &Document::new(group, Default::default())).await?;
    Ok(change.commit().await?)
}

/// Carries a command out on a group's lock; none where the group is not known.
///
/// # Errors
/// [`LockFailure`]. The outcome is then unknown: the same command may be given again, and does what it did or would
/// have done.
pub async fn perform(app: &App, group: &Group, command: &Command) -> Result<Option<Reply>, LockFailure> {
    {
        let mut conn = app.store().read().await?;
        if let Some(node) = asks(command)
            && standing::revocation(&mut conn, node).await?.is_some()
        {
            return Err(LockFailure::Revoked { node: node.clone() });
        }
        // Most commands change nothing: a poll, the v1 client that says after every boot that it holds nothing. They do
        // not wait for those that write.
        let Some(found) = find_for(&mut conn, group, command, app.now()).await? else { return Ok(None) };
        let applied = apply(&found.document, command, &found.context);
        let noted = match command {
            Command::Request(request) => is_noted(&mut conn, group, request, app.now()).await?,
            _ => true,
        };
        if applied.document.is_none() && noted {
            return Ok(Some(applied.reply));
        }
    }
    // One after the other, so that they do not fight over the database.
    let _turn = app.lock_turn().await;
    for _ in 0..TRIES {
        match carry_out(app, group, command).await {
            Ok(Outcome::Done(reply)) => return Ok(reply),
            Ok(Outcome::Lost) => {}
            Ok(Outcome::Revoked(node)) => return Err(LockFailure::Revoked { node }),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(LockFailure::Contended { group: group.clone() })
}

/// What came of one try.
enum Outcome {
    /// It is done, durable where it changed anything; none where the group is not known.
    Done(Option<Reply>),
    /// Another server was faster, and nothing was written.
    Lost,
    /// Who asks was revoked meanwhile.
    Revoked(ClientId),
}

/// Tries once to carry a command out. The revision decides: the document is written only if it still is the one that the
/// command was applied to, whatever else is going on in the database.
async fn carry_out(app: &App, group: &Group, command: &Command) -> Result<Outcome, StoreError> {
    let now = app.now();
    let mut change = app.store().write().await?;
    if let Some(node) = asks(command)
        && standing::revocation(&mut change, node).await?.is_some()
    {
        return Ok(Outcome::Revoked(node.clone()));
    }
    if let Command::Request(request) = command {
        locks::set_place(&mut change, &request.node, group, request.zone.as_ref(), now).await?;
    }
    let Some(found) = find_for(&mut change, group, command, now).await? else {
        return Ok(Outcome::Done(None));
    };
    let applied = apply(&found.document, command, &found.context);
    if let Some(next) = &applied.document {
        if !write(&mut change, &found, next).await? {
            return Ok(Outcome::Lost);
        }
        record(&mut change, group, command, &found.document, now).await?;
        webhooks::lock(&mut change, &found.document, next, now).await?;
    }
    change.commit().await?;
    if let Some(next) = &applied.document {
        log(group, &found.document, next);
    }
    Ok(Outcome::Done(Some(applied.reply)))
}

/// Writes the next document. Where a cap counts the group, permits of other groups were counted too: the caps' row is
/// changed with each new permit, so that two groups cannot both take the last one.
async fn write(conn: &mut Connection, found: &Found, next: &Document) -> Result<bool, StoreError> {
    if let Some((revision, caps)) = &found.caps
        && next.holders.len() > found.document.holders.len()
        && !locks::swap_caps(conn, *revision, caps).await?
    {
        return Ok(false);
    }
    locks::swap_document(conn, found.revision, next).await
}

async fn is_noted(
    conn: &mut Connection,
    group: &Group,
    request: &Request,
    now: Timestamp,
) -> Result<bool, StoreError> {
    Ok(locks::place(conn, &request.node).await?.is_some_and(|(at, zone, noted)| {
        at == *group && zone == request.zone && now.duration_since(noted) < NOTED_EVERY
    }))
}

/// The row of the audit log, in the transaction of the act itself.
async fn record(
    conn: &mut Connection,
    group: &Group,
    command: &Command,
    before: &Document,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (actor, action, detail) = match command {
        Command::ForceRelease { node, grant, who, why } => {
            let held = before.holder(node).map_or_else(String::new, described);
            (who, "lock.release", format!("took grant {grant} from {node}{held}: {why}"))
        }
        Command::RemoveNode { node, who, why } => (who, "lock.remove", format!("{node}: {why}")),
        Command::SetPolicy { who, why, .. } => (who, "lock.policy", why.clone()),
        _ => return Ok(()),
    };
    audit::record(conn, now, Change { actor, action, subject: group.as_str(), detail: &detail }).await
}

fn described(holder: &protocol::lock::Holder) -> String {
    let to = holder.to.as_ref().map_or_else(String::new, |to| format!(" for {to}"));
    let stuck = if holder.stuck_since.is_some() { ", stuck" } else { "" };
    format!(" ({:?}{to}{stuck})", holder.phase).to_lowercase()
}

/// What changed among the holders, for the log.
fn log(group: &Group, before: &Document, after: &Document) {
    let known = |document: &Document, node: &ClientId| document.holder(node).cloned();
    for holder in &after.holders {
        let (node, old) = (&holder.node, known(before, &holder.node));
        match &old {
            Some(old) if old == holder => {}
            _ if holder.stuck_since.is_some() => {
                tracing::warn!(%group, %node, "a holder is stuck: silent past its deadline");
            }
            _ if holder.phase == Phase::Failed => {
                tracing::warn!(%group, %node, reason = holder.reason, "a holder failed");
            }
            _ => tracing::info!(%group, %node, phase = ?holder.phase, grant = holder.grant, "permit"),
        }
    }
    for holder in before.holders.iter().filter(|holder| known(after, &holder.node).is_none()) {
        tracing::info!(%group, node = %holder.node, grant = holder.grant, "permit is free");
    }
}

/// Lets time pass in all locks, so that a stuck holder is on record and in the log though nobody asks.
///
/// # Errors
/// [`LockFailure`].
pub async fn tick(app: &App) -> Result<(), LockFailure> {
    let all = locks::list(&mut *app.store().read().await?).await?;
    for (_, document) in all {
        perform(app, &document.group, &Command::Tick).await?;
    }
    Ok(())
}
