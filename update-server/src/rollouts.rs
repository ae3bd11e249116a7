//! Step 4, channel: the rollouts of this server: nodes are let go, what becomes of them is counted, time passes.
//!
//! Nothing is decided here: [`protocol::rollout`] decides. A grant is counted and written in one change of the database, and
//! changes take turns, those of other servers on the same database too; so no limit is ever exceeded. A failure that a node
//! reports is acknowledged only once the rollout is halted, if it is the one too many.

pub mod acts;
mod heard;
mod simulate;
mod waiting;
mod warnings;

pub use heard::heard;
pub use simulate::{SimulationFailure, simulate};
pub use waiting::Waiters;
pub use warnings::of_policies;

use crate::changes::{self, Change, Done};
use crate::server::App;
use crate::store::rollouts::{self as stored, GrantKey};
use crate::store::{Connection, StoreError, channels, standing as operators};
use crate::webhooks;
use jiff::{SignedDuration, Timestamp};
use protocol::id::{Channel, Group, NodeId};
use protocol::rollout::{
    Asked, Counts, Ended, Grant, GrantPhase, Heard, Reason, Rollout, Used, advance, decide, decide_granted,
    is_stuck, next_stage, wants_waiting,
};
use protocol::version::Version;
use protocol::wire::UpdateCheck;

/// What a node that could update is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Go.
    Go,
    /// Not now.
    Held(Vec<Reason>),
    /// It has that version in quarantine and will not take it: it is offered so that the node itself says so, and takes up no place.
    Declines,
    /// The channel is being pointed at another release at this moment.
    Changing,
    /// It is not heard any more.
    Revoked,
}

/// A node that asks to be let go.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its channel.
    pub channel: Channel,
    /// What that was seen to point at.
    pub target: Version,
    /// The node.
    pub node: NodeId,
    /// Its group: its own word, until it is looked up whether it was placed in one.
    pub group: Group,
    /// The version it could go to.
    pub version: Version,
    /// Whether it says that it does not take that version.
    pub quarantined: Option<bool>,
}

impl Ask {
    /// A node's check, the version that it could go to, and what its channel points at.
    #[must_use]
    pub fn new(check: &UpdateCheck, version: &Version, target: &Version) -> Self {
        Self {
            channel: check.channel.clone(),
            target: target.clone(),
            node: check.node.clone(),
            group: check.group.clone(),
            version: version.clone(),
            quarantined: check.quarantine.as_ref().map(|quarantine| quarantine.contains(version)),
        }
    }
}

/// Begins the rollout of a release that a channel is pointed at, and says its number.
///
/// # Errors
/// [`StoreError`].
pub async fn begin(
    conn: &mut Connection,
    channel: &Channel,
    version: &Version,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let before = stored::find(conn, channel).await?;
    let policy = stored::policy(conn, channel).await?;
    let rollout = Rollout::begin(channel.clone(), version.clone(), policy, before.as_ref(), now);
    stored::put(conn, &rollout).await?;
    Ok(rollout.number)
}

/// Makes a rollout for each channel that was pointed at a release before there were any.
///
/// # Errors
/// [`StoreError`].
pub async fn ensure(app: &App) -> Result<(), StoreError> {
    let mut change = app.store().write().await?;
    let mut made = false;
    for info in channels::list(&mut change).await? {
        if stored::find(&mut change, &info.channel).await?.is_none() {
            begin(&mut change, &info.channel, &info.version, app.now()).await?;
            made = true;
        }
    }
    if made {
        change.commit().await?;
    }
    Ok(())
}

/// Lets a node go to a version if nothing stands against it.
///
/// # Errors
/// [`StoreError`]; whether the node was let go is then not known, and it may ask again.
pub async fn ask(app: &App, ask: Ask) -> Result<Told, StoreError> {
    if ask.quarantined == Some(true) {
        return Ok(Told::Declines);
    }
    {
        // Most are held, or were let go before. They do not wait for those that write.
        let mut conn = app.store().read().await?;
        let Some(rollout) = asked_for(&mut conn, &ask).await? else { return Ok(Told::Changing) };
        let asks = placed(&mut conn, ask.clone()).await?;
        let (told, granted) = standing(&mut conn, &rollout, &asks, app.now()).await?;
        if granted || told != Told::Go {
            return Ok(told);
        }
    }
    match changes::make(app, Change::Ask(ask)).await? {
        Done::Told(told) => Ok(told),
        _ => Err(StoreError::Abandoned),
    }
}

/// The same node in the group that it was placed in, if it was.
async fn placed(conn: &mut Connection, ask: Ask) -> Result<Ask, StoreError> {
    let group = operators::group(conn, &ask.node).await?;
    Ok(Ask { group: group.unwrap_or(ask.group), ..ask })
}

/// Counts and grants, in the change that the caller commits.
///
/// # Errors
/// [`StoreError`].
pub async fn grant(conn: &mut Connection, ask: &Ask, now: Timestamp) -> Result<Told, StoreError> {
    let Some(rollout) = asked_for(conn, ask).await? else { return Ok(Told::Changing) };
    let ask = placed(conn, ask.clone()).await?;
    let (told, granted) = standing(conn, &rollout, &ask, now).await?;
    if granted || told != Told::Go {
        return Ok(told);
    }
    let grant =
        Grant { version: ask.version.clone(), granted_at: now, phase: GrantPhase::Granted, phase_at: now };
    stored::give(conn, &rollout, &ask.node, &ask.group, &grant).await?;
    tracing::info!(channel = %ask.channel, node = %ask.node, version = %ask.version, rollout = rollout.number, "let go");
    Ok(Told::Go)
}

/// The rollout of what the node's channel was seen to point at; none where it points elsewhere by now.
async fn asked_for(conn: &mut Connection, ask: &Ask) -> Result<Option<Rollout>, StoreError> {
    Ok(stored::find(conn, &ask.channel).await?.filter(|rollout| rollout.version == ask.target))
}

/// What stands against a node, and whether it has an open grant.
async fn standing(
    conn: &mut Connection,
    rollout: &Rollout,
    ask: &Ask,
    now: Timestamp,
) -> Result<(Told, bool), StoreError> {
    let grant = stored::grant_of(conn, rollout, &ask.node, &ask.version).await?;
    let asked = Asked {
        node: &ask.node,
        group: &ask.group,
        version: &ask.version,
        grant: grant.as_ref(),
        quarantined: ask.quarantined,
    };
    let told = |result: Result<(), Vec<Reason>>| result.map_or_else(Told::Held, |()| Told::Go);
    if grant.as_ref().is_some_and(|grant| grant.phase.is_open()) {
        return Ok((told(decide_granted(rollout, &asked)), true));
    }
    let (used, own) = usage(conn, rollout, ask, now).await?;
    let counts = Counts { used, ..Counts::default() };
    Ok((told(decide(rollout, &asked, &counts, &own, now)), false))
}

/// How far the limits of the rollout and of a node's group in it are used up by others; what no limit asks for is not counted.
async fn usage(
    conn: &mut Connection,
    rollout: &Rollout,
    ask: &Ask,
    now: Timestamp,
) -> Result<(Used, Used), StoreError> {
    let all = used(conn, rollout, None, Some(&ask.node), now).await?;
    Ok((all, used(conn, rollout, Some(&ask.group), Some(&ask.node), now).await?))
}

/// How far the limits of all, or of a group, are used up, by others than one node; what they do not ask for is not counted.
async fn used(
    conn: &mut Connection,
    rollout: &Rollout,
    group: Option<&Group>,
    but: Option<&NodeId>,
    now: Timestamp,
) -> Result<Used, StoreError> {
    let policy = &rollout.policy;
    let limits = group.map_or(Some(&policy.limits), |group| policy.groups.get(group));
    let Some(limits) = limits.filter(|limits| limits.in_flight.is_some() || limits.rate.is_some()) else {
        return Ok(Used::default());
    };
    let since = |seconds: u32| now.saturating_sub(SignedDuration::from_secs(seconds.into())).ok();
    let recent = limits.rate.and_then(|rate| Some((since(rate.per_s)?, rate.max)));
    stored::used(conn, &rollout.channel, group, limits.in_flight.map(|_| but), recent).await
}

/// What is known of the open stage, and what the next one waits for, for people.
async fn waits_for(
    app: &App,
    conn: &mut Connection,
    rollout: &Rollout,
    now: Timestamp,
) -> Result<(Counts, Vec<String>), StoreError> {
    let mut counts = counts(conn, rollout).await?;
    counts.waiting = waits(app, conn, rollout, &counts, now).await?;
    if counts.waiting.is_none() && is_stuck(rollout, &counts) {
        counts.waiting = Some(waiting::anybody_still(app, conn, rollout, now).await?);
    }
    let lines = next_stage(rollout, &counts, now);
    Ok((counts, lines))
}

/// Writes a rollout that has gone on, and says so in the log.
async fn write(
    conn: &mut Connection,
    before: &Rollout,
    next: &Rollout,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (channel, version) = (&next.channel, &next.version);
    match (&before.halted, &next.halted) {
        (None, Some(halted)) => tracing::warn!(%channel, %version, why = halted.why, "the rollout is halted"),
        _ => {
            tracing::info!(%channel, %version, stage = next.stage + 1, share = %next.share(), "the next stage is open");
        }
    }
    webhooks::rollout(conn, before, next, now).await?;
    stored::put(conn, next).await
}

/// What counts for a halt. Those that are well are counted only where enough have failed for it to matter.
async fn failed_since(conn: &mut Connection, rollout: &Rollout) -> Result<Ended, StoreError> {
    let (failures, silent) = stored::failures(conn, rollout).await?;
    let halt = &rollout.policy.halt;
    let mut since = Ended { failed: failures.saturating_sub(silent), silent, ..Ended::default() };
    if failures >= halt.least_failures.min(halt.failures.unwrap_or(u32::MAX)) {
        since.confirmed = stored::confirmed_since(conn, rollout).await?;
    }
    Ok(since)
}

/// What came of the nodes that were let go in the stage that is open. Those that are lost prove nothing either way, and what
/// failed before an operator resumed the rollout is forgiven.
async fn stage(conn: &mut Connection, rollout: &Rollout) -> Result<Ended, StoreError> {
    let (ended, lost) = stored::ended(conn, rollout, true).await?;
    Ok(Ended { granted: ended.granted.saturating_sub(lost), ..ended })
}

/// All that [`advance`] needs to know, but for whether nodes wait.
async fn counts(conn: &mut Connection, rollout: &Rollout) -> Result<Counts, StoreError> {
    let mut counts = Counts { since: failed_since(conn, rollout).await?, ..Counts::default() };
    if !rollout.is_last_stage() {
        counts.stage = stage(conn, rollout).await?;
    }
    Ok(counts)
}

/// Looks for nodes that wait, if that is all that [`advance`] needs to know beside `counts`.
async fn waits(
    app: &App,
    conn: &mut Connection,
    rollout: &Rollout,
    counts: &Counts,
    now: Timestamp,
) -> Result<Option<bool>, StoreError> {
    if !wants_waiting(rollout, counts, now) {
        return Ok(None);
    }
    waiting::anybody(app, conn, rollout, now).await.map(Some)
}

/// Lets time pass in all rollouts: nodes that fell silent are counted, those that were heard to run the release too, and
/// stages open.
///
/// # Errors
/// [`StoreError`].
pub async fn tick(app: &App) -> Result<(), StoreError> {
    let all = stored::list(&mut *app.store().read().await?).await?;
    for rollout in all {
        // What is wrong with one channel's rows is no reason to leave the others alone.
        if let Err(error) = tick_one(app, &rollout).await {
            let error = crate::error::chain(&error);
            tracing::error!(channel = %rollout.channel, error, "the rollout was not looked at");
        }
    }
    Ok(())
}

async fn tick_one(app: &App, seen: &Rollout) -> Result<(), StoreError> {
    let now = app.now();
    let (changes, waiting) = {
        let mut conn = app.store().read().await?;
        let changes = unseen(&mut conn, seen, app.began(), now).await?;
        let mut counts = counts(&mut conn, seen).await?;
        counts.waiting = waits(app, &mut conn, seen, &counts, now).await?;
        if changes.is_empty() && advance(seen, &counts, now).is_none() {
            return Ok(());
        }
        (changes, counts.waiting)
    };
    let mut change = app.store().write().await?;
    // It may have been changed, or be another one by now.
    let Some(rollout) = stored::find(&mut change, &seen.channel).await? else { return Ok(()) };
    for (key, grant, phase) in &changes {
        let current = Some(&rollout).filter(|rollout| rollout.number == key.number);
        if stored::set_phase(&mut change, key, grant, *phase, current, now).await? {
            tracing::info!(channel = %key.channel, node = %key.node, version = %grant.version, %phase, "a node was let go, and this came of it");
            if *phase == GrantPhase::Silent {
                let about = serde_json::json!({ "node": key.node, "version": grant.version });
                webhooks::tell(&mut change, "node.silent", &about, now).await?;
            }
        }
    }
    let mut counts = counts(&mut change, &rollout).await?;
    // Not looked for again: that may take seconds, in which nobody is let go. Who came since then goes in the next stage.
    counts.waiting = waiting.filter(|_| rollout == *seen);
    if let Some(next) = advance(&rollout, &counts, now) {
        write(&mut change, &rollout, &next, now).await?;
    }
    Ok(change.commit().await?)
}

/// What has become of a channel's grants without an event of the node. What could not be heard, because this server did not run,
/// is no silence.
async fn unseen(
    conn: &mut Connection,
    rollout: &Rollout,
    watched: Timestamp,
    now: Timestamp,
) -> Result<Vec<(GrantKey, Grant, GrantPhase)>, StoreError> {
    let policy = &rollout.policy;
    let before = |seconds: u32| {
        now.saturating_sub(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MIN)
    };
    let (silent, lost) = (before(policy.silent_after_s), before(policy.lost_after_s));
    let found = stored::to_look_at(conn, &rollout.channel, silent, lost).await?;
    let phase = |(key, grant, heard): (GrantKey, Grant, Option<stored::LastHeard>)| {
        let heard = heard.as_ref().map(|heard| Heard {
            // What is stuck on a dead end is not waited for, like what has gone elsewhere: it has not failed.
            follows: heard.channel == key.channel && !heard.is_stuck,
            told_to_wait: heard.to_dead_end
                || rollout.number == key.number && rollout.is_stopped_for(&heard.group),
            version: &heard.version,
            state: heard.state,
            at: heard.at,
        });
        let phase = grant.seen(heard.as_ref(), policy, watched, now)?;
        Some((key, grant, phase))
    };
    Ok(found.into_iter().filter_map(phase).collect())
}
