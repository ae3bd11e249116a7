//! Step 4, channel: what operators do to rollouts, and what they are shown of them.

use super::{Ask, Told};
use crate::decision;
use crate::policies::{PolicyFailure, as_seen, changed};
use crate::repository::paths::LIVE;
use crate::server::App;
use crate::store::audit::{self, Change};
use crate::store::{Connection, StoreError, let_go, nodes, rollouts as stored};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::{Channel, Group, NodeId};
use protocol::rollout::{
    Counts, Reason, Rollout, RolloutFile, RolloutPolicy, Share, Stop, advance, holds_all, place,
};
use protocol::wire::{Decision, NodeExplain, RolloutAct, RolloutCounts, RolloutInfo, SCHEMA, UpdateAnswer};

/// What an operator does to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nobody is let go any more.
    Pause,
    /// It goes on, after a pause or a halt.
    Resume,
    /// The next stage opens, whatever it waits for but a halt and a pause.
    Approve,
}

/// Why an act was not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ActFailure {
    /// The channel has no rollout.
    #[error("the channel {0} has no rollout: point it at a release first: updatectl channel set {0} VERSION")]
    NoRollout(Channel),
    /// There is nothing to do.
    #[error("{0}")]
    Nothing(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Pauses, resumes or approves.
///
/// # Errors
/// [`ActFailure`].
pub async fn act(
    app: &App,
    channel: &Channel,
    act: Act,
    wish: &RolloutAct,
    who: &str,
) -> Result<RolloutInfo, ActFailure> {
    let now = app.now();
    let mut change = app.store().write().await?;
    let Some(mut rollout) = stored::find(&mut change, channel).await? else {
        return Err(ActFailure::NoRollout(channel.clone()));
    };
    is_meant(&rollout, act, wish)?;
    let stop = Stop { at: now, by: who.to_owned(), why: wish.why.clone() };
    let (action, done) = match act {
        Act::Pause => ("rollout.pause", pause(&mut rollout, wish.group.as_ref(), stop)),
        Act::Resume => ("rollout.resume", resume(&mut rollout, wish.group.as_ref(), now)),
        Act::Approve => ("rollout.approve", approve(&mut rollout)),
    };
    let done = done.map_err(|what| ActFailure::Nothing(format!("the rollout of {channel} {what}")))?;
    // An approval is good at once.
    let next = advance(&rollout, &Counts::default(), now).filter(|_| act == Act::Approve);
    if let Some(next) = &next {
        crate::webhooks::rollout(&mut change, &rollout, next, now).await?;
    }
    let rollout = next.unwrap_or(rollout);
    stored::put(&mut change, &rollout).await?;
    let detail = format!("{done}{}", wish.why);
    let entry = Change { actor: who, action, subject: channel.as_str(), detail: &detail };
    audit::record(&mut change, now, entry).await?;
    change.commit().await.map_err(StoreError::from)?;
    Ok(info(app, &mut *app.store().read().await?, rollout).await?)
}

/// Whether the rollout is the one that the operator looked at. Where somebody else, or the server, was faster, what was meant is
/// not what would be done.
fn is_meant(rollout: &Rollout, act: Act, wish: &RolloutAct) -> Result<(), ActFailure> {
    let gone_on = |what: String| {
        let channel = &rollout.channel;
        ActFailure::Nothing(format!("the rollout of {channel} has gone on: {what}; look at it again"))
    };
    if let Some(number) = wish.number.filter(|number| *number != rollout.number) {
        return Err(gone_on(format!("number {} runs, and {number} was meant", rollout.number)));
    }
    if let Some(stage) = wish.stage.filter(|stage| act == Act::Approve && *stage != rollout.stage) {
        let (open, meant) = (rollout.stage + 1, u64::from(stage) + 1);
        return Err(gone_on(format!("stage {open} is open, and {meant} was meant")));
    }
    Ok(())
}

/// What an act has done, as it begins its entry in the audit log; or why there is nothing to do, after the rollout's name.
type Acted = Result<String, String>;

fn pause(rollout: &mut Rollout, group: Option<&Group>, stop: Stop) -> Acted {
    match group {
        None if rollout.paused.is_some() => Err("is paused already".to_owned()),
        None => {
            rollout.paused = Some(stop);
            Ok(String::new())
        }
        Some(group) if rollout.paused_groups.contains_key(group) => {
            Err(format!("is paused for group {group} already"))
        }
        Some(group) => {
            rollout.paused_groups.insert(group.clone(), stop);
            Ok(format!("group {group}: "))
        }
    }
}

fn resume(rollout: &mut Rollout, group: Option<&Group>, now: Timestamp) -> Acted {
    if let Some(group) = group {
        return match rollout.paused_groups.remove(group) {
            Some(_) => Ok(format!("group {group}: ")),
            None => Err(format!("is not paused for group {group}")),
        };
    }
    if rollout.paused.take().is_none() && rollout.halted.is_none() {
        return Err("is neither paused nor halted".to_owned());
    }
    let Some(halted) = rollout.halted.take() else { return Ok(String::new()) };
    rollout.resumes += 1;
    rollout.counted_from = now;
    Ok(format!("halted for {}: ", halted.why))
}

fn approve(rollout: &mut Rollout) -> Acted {
    if rollout.is_last_stage() {
        return Err("has no further stage: all its nodes may go".to_owned());
    }
    if rollout.approved {
        return Err("is approved already, and paused or halted".to_owned());
    }
    rollout.approved = true;
    Ok(format!("{} after stage {} of {}: ", rollout.version, rollout.stage + 1, rollout.stages()))
}

/// One rollout for an operator.
///
/// # Errors
/// [`StoreError`].
pub async fn info(app: &App, conn: &mut Connection, rollout: Rollout) -> Result<RolloutInfo, StoreError> {
    let now = app.now();
    let (since, view) = (now.saturating_sub(LIVE).unwrap_or(Timestamp::MIN), app.repository().view());
    let mut counts = RolloutCounts::default();
    for (arch, version, nodes) in nodes::versions(conn, &rollout.channel, since).await? {
        counts.nodes = counts.nodes.saturating_add(nodes);
        if version.ranks_like(&rollout.version) {
            counts.at_version = counts.at_version.saturating_add(nodes);
        } else if view.published.dead_end(&version, &arch).is_some() {
            counts.dead_ends = counts.dead_ends.saturating_add(nodes);
        }
    }
    counts.in_flight = stored::used(conn, &rollout.channel, None, Some(None), None).await?.in_flight;
    (counts.all, counts.lost) = stored::ended(conn, &rollout, false).await?;
    counts.in_flight_before = let_go::in_flight_before(conn, &rollout).await?;
    counts.forgiven = let_go::forgiven(conn, &rollout).await?;
    let (known, next_stage) = super::waits_for(app, conn, &rollout, now).await?;
    counts.stage = if rollout.is_last_stage() { super::stage(conn, &rollout).await? } else { known.stage };
    counts.since = stored::since(conn, &rollout).await?;
    let used = super::used(conn, &rollout, None, None, now).await?;
    let (holds_all, warnings) =
        (holds_all(&rollout, &used, now), super::warnings::of_rollout(conn, &rollout).await?);
    Ok(RolloutInfo { schema: SCHEMA, rollout, counts, next_stage, holds_all, warnings })
}

/// All policies as they are.
///
/// # Errors
/// [`StoreError`].
pub async fn current(conn: &mut Connection) -> Result<RolloutFile, StoreError> {
    let mut channels: std::collections::BTreeMap<_, _> =
        stored::list(conn).await?.into_iter().map(|rollout| (rollout.channel, rollout.policy)).collect();
    channels.extend(stored::policies(conn).await?);
    Ok(RolloutFile { channels })
}

/// Sets the policies that a file names, for the rollouts that run and those to come. Channels that the file leaves out keep
/// theirs.
///
/// # Errors
/// [`PolicyFailure`].
pub async fn set_policies(
    app: &App,
    text: &str,
    replaces: &Sha256,
    who: &str,
    why: &str,
) -> Result<RolloutFile, PolicyFailure> {
    let wanted = RolloutFile::parse("the policy file", text).map_err(PolicyFailure::from)?;
    let now = app.now();
    let mut change = app.store().write().await?;
    let before = current(&mut change).await?;
    as_seen(&before, replaces)?;
    for (channel, policy) in &wanted.channels {
        let old = before.channels.get(channel);
        if old == Some(policy) {
            continue;
        }
        stored::set_policy(&mut change, channel, policy).await?;
        hold(&mut change, channel, policy, now).await?;
        let detail = changed(&one(channel, old).difference(&one(channel, Some(policy))), why);
        let entry =
            Change { actor: who, action: "rollout.policy", subject: channel.as_str(), detail: &detail };
        audit::record(&mut change, now, entry).await?;
    }
    let after = current(&mut change).await?;
    change.commit().await.map_err(StoreError::from)?;
    Ok(after)
}

/// Lets a policy hold for the rollout that runs, if one does.
async fn hold(
    conn: &mut Connection,
    channel: &Channel,
    policy: &RolloutPolicy,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(rollout) = stored::find(conn, channel).await? else { return Ok(()) };
    let next = rollout.with_policy(policy.clone(), now);
    if !next.has_stages_of(&rollout) {
        stored::renumber(conn, &rollout, &next).await?;
    }
    stored::put(conn, &next).await
}

/// A channel's policy alone.
fn one(channel: &Channel, policy: Option<&RolloutPolicy>) -> RolloutFile {
    RolloutFile { channels: policy.map(|policy| (channel.clone(), policy.clone())).into_iter().collect() }
}

/// Removes a channel's policy. For its rollouts, that which runs too, it is as if an empty one were set: the default holds.
///
/// # Errors
/// [`PolicyFailure`].
pub async fn remove_policy(
    app: &App,
    channel: &Channel,
    replaces: &Sha256,
    who: &str,
    why: &str,
) -> Result<RolloutFile, PolicyFailure> {
    let now = app.now();
    let mut change = app.store().write().await?;
    let before = current(&mut change).await?;
    as_seen(&before, replaces)?;
    if !stored::remove_policy(&mut change, channel).await? {
        return Err(PolicyFailure::Missing(channel.clone()));
    }
    let default = RolloutPolicy::default();
    hold(&mut change, channel, &default, now).await?;
    let mut lines = vec!["back to the default".to_owned()];
    let old = before.channels.get(channel);
    lines.extend(one(channel, old).difference(&one(channel, Some(&default))));
    let detail = changed(&lines, why);
    let (action, subject) = ("rollout.policy-remove", channel.as_str());
    audit::record(&mut change, now, Change { actor: who, action, subject, detail: &detail }).await?;
    let after = current(&mut change).await?;
    change.commit().await.map_err(StoreError::from)?;
    Ok(after)
}

/// Why a node is or is not let go now, as it was last heard of; none where it never was.
///
/// # Errors
/// [`StoreError`].
pub async fn explain(app: &App, node: &NodeId) -> Result<Option<NodeExplain>, StoreError> {
    app.checkins().flush(app.store()).await?;
    let (now, view) = (app.now(), app.repository().view());
    let mut conn = app.store().read().await?;
    let Some(info) = nodes::find(&mut conn, node).await? else { return Ok(None) };
    let mut answer = decision::decide(&view.published, &info.channel, &info.arch, &info.version);
    let rollout = stored::find(&mut conn, &info.channel).await?;
    let (mut because, mut grant, mut next_stage) = (Vec::new(), None, Vec::new());
    let place = rollout.as_ref().map(|rollout| Share::at(place(&rollout.version, node)));
    if let (Decision::Update, Some(version), Some(rollout)) =
        (answer.decision, answer.version.clone(), &rollout)
    {
        let ask = Ask {
            channel: info.channel.clone(),
            target: rollout.version.clone(),
            node: node.clone(),
            group: info.group.clone(),
            version: version.clone(),
            quarantined: info.quarantined(&version),
        };
        let (told, _) = super::standing(&mut conn, rollout, &ask, now).await?;
        let told = if info.revoked.is_some() { Told::Revoked } else { told };
        grant = stored::grant_of(&mut conn, rollout, node, &version).await?;
        if let Told::Held(reasons) = &told {
            because.clone_from(reasons);
        }
        if because.iter().any(|reason| matches!(reason, Reason::Canary { .. } | Reason::Wave { .. })) {
            next_stage = super::waits_for(app, &mut conn, rollout, now).await?.1;
        }
        answer = answer_of(answer, told, node, now);
    }
    let UpdateAnswer { decision, reason, version, .. } = answer;
    let explained = NodeExplain {
        schema: SCHEMA,
        node: info,
        decision,
        version,
        reason,
        because,
        grant,
        place,
        next_stage,
    };
    Ok(Some(explained))
}

/// When a node asks again that was told while its channel changed, in seconds.
const CHANGING_RETRY_S: u64 = 10;

/// Nodes that wait for the same moment ask again spread over so long after it, in seconds.
const SPREAD_S: u64 = 30 * 60;

/// What a node that has a way to a release is told in the end.
#[must_use]
pub fn answer_of(way: UpdateAnswer, told: Told, node: &NodeId, now: Timestamp) -> UpdateAnswer {
    match told {
        Told::Go | Told::Declines => way,
        Told::Changing => UpdateAnswer {
            decision: Decision::Hold,
            reason: "the channel is pointed at another release at this moment; ask again".to_owned(),
            retry_after_s: Some(CHANGING_RETRY_S),
            ..way
        },
        Told::Revoked => UpdateAnswer {
            decision: Decision::Hold,
            reason: format!("the node is revoked: updatectl node reinstate {node} lets it be heard again"),
            ..way
        },
        Told::Held(reasons) => {
            let lines: Vec<String> = reasons.iter().map(ToString::to_string).collect();
            // All of them must be over; where one has no end that is known, the node asks by its own interval.
            let until: Option<Vec<Timestamp>> = reasons.iter().map(Reason::until).collect();
            let last = until.and_then(|until| until.into_iter().max());
            // By their places, so that no window opens with all of them at the door.
            let spread = way.version.as_ref().map_or(0, |version| {
                let scaled = (u128::from(place(version, node)) * u128::from(SPREAD_S)) >> 64;
                u64::try_from(scaled).unwrap_or(0)
            });
            let wait = last.map(|last| last.duration_since(now).as_secs().max(0).unsigned_abs() + 1 + spread);
            UpdateAnswer {
                decision: Decision::Hold,
                reason: format!("{} waits: {}", version_of(&way), lines.join("; ")),
                retry_after_s: wait,
                ..way
            }
        }
    }
}

fn version_of(answer: &UpdateAnswer) -> String {
    answer.version.as_ref().map_or_else(|| "the release".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> UpdateAnswer {
        UpdateAnswer {
            schema: SCHEMA,
            decision: Decision::Update,
            version: Some("1.1.0".parse().unwrap()),
            reason: "the channel stable points at 1.1.0".to_owned(),
            retry_after_s: None,
        }
    }

    #[test]
    fn a_held_node_is_told_why_and_when_to_ask_where_that_is_known() {
        let now: Timestamp = "2026-11-30T00:00:00Z".parse().unwrap();
        let node: NodeId = "00000000000000000000000000000001".parse().unwrap();
        let opens = Some("2026-11-30T03:00:00Z".parse().unwrap());
        let window = Reason::Window { group: None, opens };
        let held = answer_of(way(), Told::Held(vec![window.clone()]), &node, now);
        assert_eq!(held.decision, Decision::Hold);
        assert_eq!(held.reason, "1.1.0 waits: outside the windows; the next opens at 2026-11-30T03:00:00Z");
        let wait = held.retry_after_s.unwrap();
        assert!((3 * 3600 + 1..3 * 3600 + 1 + SPREAD_S).contains(&wait), "{wait}");
        let other = "00000000000000000000000000000002".parse().unwrap();
        let held = answer_of(way(), Told::Held(vec![window.clone()]), &other, now);
        assert_ne!(held.retry_after_s, Some(wait), "not all at once");
        let full = Reason::InFlight { group: None, now: 2, max: 2 };
        let held = answer_of(way(), Told::Held(vec![window, full]), &node, now);
        assert_eq!(held.retry_after_s, None, "it is not known when a place is free");
        assert_eq!(answer_of(way(), Told::Go, &node, now), way());
    }
}
