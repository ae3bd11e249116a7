//! Step 4, channel: whether a node may go to its rollout's release now, and what stands against it.

use super::document::{Counts, Rollout, Stage, Used};
use super::grant::{Grant, GrantPhase};
use super::policy::{Limits, RolloutPolicy};
use super::reason::Reason;
use super::share::{Share, place};
use crate::id::{Group, NodeId};
use crate::version::Version;
use crate::window::{Opening, Window, opening};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A node that could update.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its id.
    pub node: &'a NodeId,
    /// Its group.
    pub group: &'a Group,
    /// The version that it could go to: the rollout's, or one to pass through on the way.
    pub version: &'a Version,
    /// Its grant in this rollout for that version, if it has one.
    pub grant: Option<&'a Grant>,
    /// Whether it says that it does not take that version: none where it does not say.
    pub quarantined: Option<bool>,
}

/// Whether a node without an open grant may have one: `Ok`, or all that stands against it, what an operator must act on
/// first. `counts` are those of the whole rollout, `group` those of the node's group.
///
/// # Errors
/// The reasons, at least one.
pub fn decide(
    rollout: &Rollout,
    asked: &Asked<'_>,
    counts: &Counts,
    group: &Used,
    now: Timestamp,
) -> Result<(), Vec<Reason>> {
    let mut reasons = stopped(rollout, Some(asked.group));
    reasons.extend(unwilling(asked));
    reasons.extend(too_early(rollout, asked));
    reasons.extend(limited(rollout, &counts.used, Some((asked.group, group)), now));
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// What holds every node back now, whichever it is: a halt, a pause, a freeze, the channel's windows and limits; nothing where
/// none does. `used` are those of the whole rollout. Each of these stands in [`decide`]'s answer for any node, too.
#[must_use]
pub fn holds_all(rollout: &Rollout, used: &Used, now: Timestamp) -> Vec<Reason> {
    let mut reasons = stopped(rollout, None);
    reasons.extend(limited(rollout, used, None, now));
    reasons
}

/// Freezes, windows and limits: the channel's, and those of a group that is given with what it has used up.
fn limited(rollout: &Rollout, used: &Used, of: Option<(&Group, &Used)>, now: Timestamp) -> Vec<Reason> {
    let policy = &rollout.policy;
    let own = of.and_then(|(group, used)| Some((group, policy.groups.get(group)?, used)));
    let mut reasons = Vec::new();
    match policy.time_zone() {
        None => reasons.push(Reason::TimeZone { name: policy.time_zone.clone() }),
        Some(zone) => {
            let frozen = policy.frozen(&zone, now);
            reasons.extend(frozen.map(|(freeze, until)| Reason::Frozen { until, why: freeze.why.clone() }));
            reasons.extend(closed(policy, &policy.limits, None, &zone, now));
            reasons
                .extend(own.and_then(|(group, limits, _)| closed(policy, limits, Some(group), &zone, now)));
        }
    }
    reasons.extend(used_up(&policy.limits, None, used));
    reasons.extend(own.into_iter().flat_map(|(group, limits, used)| used_up(limits, Some(group), used)));
    reasons
}

/// Whether a node with an open grant may still go on. Limits, waves and windows let it go when it was granted; a halt or a
/// pause since then holds it, as long as it asks.
///
/// # Errors
/// The reasons, at least one.
pub fn decide_granted(rollout: &Rollout, asked: &Asked<'_>) -> Result<(), Vec<Reason>> {
    let mut reasons = stopped(rollout, Some(asked.group));
    reasons.extend(unwilling(asked));
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

fn stopped(rollout: &Rollout, group: Option<&Group>) -> Vec<Reason> {
    let halted = rollout.halted.as_ref();
    let halted = halted.map(|stop| Reason::Halted { since: stop.at, why: stop.why.clone() });
    let paused = |of: Option<&Group>, stop: &super::document::Stop| Reason::Paused {
        group: of.cloned(),
        since: stop.at,
        by: stop.by.clone(),
        why: stop.why.clone(),
    };
    let all = rollout.paused.as_ref().map(|stop| paused(None, stop));
    let own = group.and_then(|group| Some(paused(Some(group), rollout.paused_groups.get(group)?)));
    halted.into_iter().chain(all).chain(own).collect()
}

fn unwilling(asked: &Asked<'_>) -> Option<Reason> {
    let rolled_back = asked.grant.filter(|grant| grant.phase == GrantPhase::RolledBack);
    match (asked.quarantined, rolled_back) {
        // It was allowed there again.
        (Some(false), _) => None,
        (_, Some(grant)) => Some(Reason::RolledBack { version: grant.version.clone(), at: grant.phase_at }),
        (Some(true), None) => Some(Reason::Quarantined { version: asked.version.clone() }),
        (None, None) => None,
    }
}

fn too_early(rollout: &Rollout, asked: &Asked<'_>) -> Option<Reason> {
    let place = place(&rollout.version, asked.node);
    if rollout.reaches(asked.group, place) {
        return None;
    }
    Some(match rollout.open() {
        Stage::Canary(canary) => Reason::Canary { group: canary.group.clone() },
        Stage::Wave(wave) => {
            let first = u32::from(rollout.policy.canary.is_some());
            Reason::Wave {
                wave: (rollout.stage + 1).saturating_sub(first),
                of: rollout.stages() - first,
                share: wave.share,
                place: Share::at(place),
            }
        }
    })
}

fn closed(
    policy: &RolloutPolicy,
    limits: &Limits,
    group: Option<&Group>,
    zone: &TimeZone,
    now: Timestamp,
) -> Option<Reason> {
    if limits.windows.is_empty() {
        return None;
    }
    let opens = match opening(&limits.windows, zone, now, 0) {
        Opening::Open => return None,
        Opening::At(at) => unfrozen(policy, &limits.windows, zone, at),
        Opening::Never => None,
    };
    Some(Reason::Window { group: group.cloned(), opens })
}

/// The first moment from `at` on, at which a window opens, that is in a window and in no freeze.
fn unfrozen(policy: &RolloutPolicy, windows: &[Window], zone: &TimeZone, at: Timestamp) -> Option<Timestamp> {
    let mut at = at;
    // Each turn passes a freeze for good.
    for _ in 0..=policy.freezes.len() {
        let Some((_, until)) = policy.frozen(zone, at) else { return Some(at) };
        at = match opening(windows, zone, until?, 0) {
            Opening::Open => until?,
            Opening::At(at) => at,
            Opening::Never => return None,
        };
    }
    None
}

fn used_up(limits: &Limits, group: Option<&Group>, used: &Used) -> Vec<Reason> {
    let full = limits.in_flight.filter(|max| used.in_flight >= *max);
    let full = full.map(|max| Reason::InFlight { group: group.cloned(), now: used.in_flight, max });
    let spent = limits.rate.filter(|rate| used.recent >= rate.max).map(|rate| Reason::Rate {
        group: group.cloned(),
        now: used.recent,
        max: rate.max,
        per_s: rate.per_s,
        next: used
            .makes_room
            .and_then(|last| last.checked_add(SignedDuration::from_secs(rate.per_s.into())).ok()),
    });
    full.into_iter().chain(spent).collect()
}
