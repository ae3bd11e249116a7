//! Step 9, permit: what stands against one node getting a permit now, or beginning its reboot now.
//!
//! All of the policy but the queue. Every reason is given, the most useful first: what only a person can end, then
//! what ends at a known time, then what ends when others are done. What is not known counts as a reason to wait.

use super::command::{Context, Request, Wait};
use super::document::{ClientId, Document, Holder, Phase, Waiter, Zone};
use super::policy::{Limit, OnTrouble, Policy, Zones};
use crate::version::Version;
use crate::window::{Opening, opening};
use std::collections::BTreeSet;

/// A node that would like a permit. It holds none in the document it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who.
    pub node: &'a ClientId,
    /// The version to reboot into; a FleetLock v1 client names none.
    pub to: Option<&'a Version>,
    /// Where it stands.
    pub zone: Option<&'a Zone>,
    /// The member of the guarded etcd cluster that it is.
    pub etcd_member: Option<&'a str>,
    /// Whether it asks by FleetLock v1, which can name neither version nor zone nor member.
    pub fleet_lock: bool,
}

impl<'a> From<&'a Request> for Candidate<'a> {
    fn from(request: &'a Request) -> Self {
        Self {
            node: &request.node,
            to: Some(&request.to),
            zone: request.zone.as_ref(),
            etcd_member: request.etcd_member.as_deref(),
            fleet_lock: false,
        }
    }
}

impl<'a> From<&'a Waiter> for Candidate<'a> {
    fn from(waiter: &'a Waiter) -> Self {
        Self {
            node: &waiter.node,
            to: waiter.to.as_ref(),
            zone: waiter.zone.as_ref(),
            etcd_member: waiter.etcd_member.as_deref(),
            fleet_lock: waiter.attempt.is_none(),
        }
    }
}

impl<'a> From<&'a Holder> for Candidate<'a> {
    fn from(holder: &'a Holder) -> Self {
        Self {
            node: &holder.node,
            to: holder.to.as_ref(),
            zone: holder.zone.as_ref(),
            etcd_member: holder.etcd_member.as_deref(),
            fleet_lock: holder.attempt.is_none(),
        }
    }
}

/// Whether a node that holds no permit could get one now, were it alone in the queue.
///
/// # Errors
/// All reasons why not, the most useful first; never an empty list.
pub fn admit(document: &Document, candidate: &Candidate<'_>, context: &Context) -> Result<(), Vec<Wait>> {
    let mut reasons = standing(document, candidate, context);
    reasons.extend(canary(document, candidate));
    reasons.extend(full(document, context));
    reasons.extend(zone_full(document, candidate, context));
    reasons.extend(caps_full(document, context));
    reasons.extend(quorum(document, candidate, context));
    sorted(reasons)
}

/// Whether a node that holds a permit may begin its reboot now. Its permit counts already, so limits are not asked,
/// except that a limit of zero pauses.
///
/// # Errors
/// All reasons why not, the most useful first; never an empty list.
pub fn in_force(document: &Document, holder: &Holder, context: &Context) -> Result<(), Vec<Wait>> {
    let candidate = Candidate::from(holder);
    let mut reasons = standing(document, &candidate, context);
    reasons.extend(full(document, context).filter(Wait::pauses));
    reasons.extend(zone_full(document, &candidate, context).filter(Wait::pauses));
    reasons.extend(caps_full(document, context).filter(Wait::pauses));
    reasons.extend(quorum(document, &candidate, context));
    sorted(reasons)
}

fn sorted(mut reasons: Vec<Wait>) -> Result<(), Vec<Wait>> {
    reasons.sort_by_key(Wait::rank);
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

impl Wait {
    /// Whether the policy says that nothing at all may happen: a limit of zero.
    const fn pauses(&self) -> bool {
        matches!(
            self,
            Self::Full { max: 0, .. } | Self::ZoneFull { max: 0, .. } | Self::CapFull { max: 0, .. }
        )
    }

    /// The lower, the more useful to whoever reads only one reason.
    const fn rank(&self) -> u8 {
        match self {
            _ if self.pauses() => 0,
            Self::Halted { .. } => 1,
            Self::NoZone | Self::SizeUnknown { .. } | Self::TimeZone { .. } | Self::QuorumUnknown => 2,
            Self::Window { opens: None } => 3,
            Self::Window { .. } => 4,
            Self::Canary { .. } => 5,
            Self::Full { .. } | Self::FleetLock { .. } => 6,
            Self::ZoneFull { .. } => 7,
            Self::CapFull { .. } => 8,
            Self::Quorum { .. } => 9,
            Self::Queue { .. } | Self::QueueFull => 10,
        }
    }
}

/// What holds up candidates and holders alike: troubled holders other than itself, and closed windows. Failed nodes do not
/// hold up each other: each of them is to try what repairs it.
fn standing(document: &Document, candidate: &Candidate<'_>, context: &Context) -> Vec<Wait> {
    let repairs = document.holder(candidate.node).is_some_and(|own| own.instead_of.is_some());
    let others = document.holders.iter().filter(|holder| holder.node != *candidate.node);
    let others =
        others.filter(|holder| !repairs || holder.phase != Phase::Failed && holder.instead_of.is_none());
    let mut reasons: Vec<Wait> = others.filter_map(|holder| halt(&document.policy, holder)).collect();
    reasons.extend(window(&document.policy, context));
    reasons
}

fn halt(policy: &Policy, holder: &Holder) -> Option<Wait> {
    let halted = |holder: &Holder, stuck, since| {
        Some(Wait::Halted { node: holder.node.clone(), stuck, since, reason: holder.reason.clone() })
    };
    // A failed permit halts also after it was exchanged, until that is confirmed.
    let failed = holder.instead_of.as_deref().unwrap_or(holder);
    match holder.stuck_since {
        _ if failed.phase == Phase::Failed && policy.on_failed == OnTrouble::Halt => {
            halted(failed, false, failed.phase_at)
        }
        Some(since) if policy.on_stuck == OnTrouble::Halt => halted(holder, true, since),
        _ => None,
    }
}

/// What the windows alone say.
pub(super) fn window(policy: &Policy, context: &Context) -> Option<Wait> {
    if policy.windows.is_empty() {
        return None;
    }
    let Some(zone) = policy.time_zone() else {
        return Some(Wait::TimeZone { name: policy.time_zone.clone() });
    };
    match opening(&policy.windows, &zone, context.now, policy.reboot_takes_s) {
        Opening::Open => None,
        Opening::At(at) => Some(Wait::Window { opens: Some(at) }),
        Opening::Never => Some(Wait::Window { opens: None }),
    }
}

fn canary(document: &Document, candidate: &Candidate<'_>) -> Option<Wait> {
    let canaries = &document.policy.canaries;
    if canaries.is_empty() || candidate.fleet_lock || canaries.contains(candidate.node) {
        return None;
    }
    let version = candidate.to?;
    let proved = document.proved.iter().any(|proved| proved.version == *version);
    (!proved).then(|| Wait::Canary { version: version.clone() })
}

/// A limit as a number; none where it is a percentage of nobody knows how many.
fn count(limit: Limit, size: Option<u32>) -> Option<u32> {
    match limit {
        Limit::Count(count) => Some(count),
        Limit::Percent(0) => Some(0),
        Limit::Percent(percent) => {
            let share = u64::from(size?) * u64::from(percent.min(100)) / 100;
            Some(u32::try_from(share).unwrap_or(u32::MAX).max(1))
        }
    }
}

/// How many nodes there are, as counted and as the policy says. Where both are known the lesser one counts: nodes that
/// somebody made up raise no percentage above what the operator said, nor do nodes that are gone.
fn lesser(counted: Option<u32>, said: Option<u32>) -> Option<u32> {
    counted.into_iter().chain(said).min()
}

fn full(document: &Document, context: &Context) -> impl Iterator<Item = Wait> {
    let counted = context.population.as_ref().map(|population| population.total);
    let size = lesser(counted, document.policy.size);
    let reason = match count(document.policy.max, size) {
        None => Some(Wait::SizeUnknown { zone: None }),
        Some(max) if held(document) >= max => Some(Wait::Full { max, holders: nodes(&document.holders) }),
        Some(_) => None,
    };
    reason.into_iter()
}

fn zone_full(
    document: &Document,
    candidate: &Candidate<'_>,
    context: &Context,
) -> impl Iterator<Item = Wait> {
    document.policy.zones.as_ref().and_then(|zones| in_zone(document, zones, candidate, context)).into_iter()
}

fn in_zone(document: &Document, zones: &Zones, candidate: &Candidate<'_>, context: &Context) -> Option<Wait> {
    let Some(zone) = candidate.zone else { return Some(Wait::NoZone) };
    let counted = context.population.as_ref().map(|known| known.zones.get(zone).copied().unwrap_or(0));
    let size = lesser(counted, zones.sizes.get(zone).copied());
    let Some(max) = count(zones.limits.get(zone).copied().unwrap_or(zones.max), size) else {
        return Some(Wait::SizeUnknown { zone: Some(zone.clone()) });
    };
    // A holder whose zone is not known may stand in this one.
    let here =
        document.holders.iter().filter(|holder| holder.zone.as_ref().is_none_or(|known| known == zone));
    let holders = nodes(here);
    (saturated(holders.len()) >= max).then(|| Wait::ZoneFull { zone: zone.clone(), max, holders })
}

fn caps_full(document: &Document, context: &Context) -> impl Iterator<Item = Wait> {
    let here = held(document);
    context.caps.iter().filter_map(move |usage| {
        let held = usage.held_elsewhere.saturating_add(here);
        (held >= usage.max).then(|| Wait::CapFull { cap: usage.cap.clone(), max: usage.max, held })
    })
}

/// Whether the guarded etcd cluster keeps its quorum with all holders and this node down. A FleetLock v1 client
/// cannot say whether it is a member, so it counts as one.
fn quorum(document: &Document, candidate: &Candidate<'_>, context: &Context) -> Option<Wait> {
    let guard = document.policy.quorum?;
    if candidate.etcd_member.is_none() && !candidate.fleet_lock {
        return None;
    }
    let mut named = BTreeSet::new();
    let mut nameless = BTreeSet::new();
    for down in document.holders.iter().map(Candidate::from).chain([*candidate]) {
        match down.etcd_member {
            Some(member) => _ = named.insert(member),
            None if down.fleet_lock => _ = nameless.insert(down.node),
            None => {}
        }
    }
    let (members, left) = match &context.quorum {
        Some(health) => {
            let answering = health.members.iter().filter(|(_, answers)| **answers);
            let left = answering.filter(|(name, _)| !named.contains(name.as_str())).count();
            // A name that the cluster does not know may be any member.
            let unknown = named.iter().filter(|name| !health.members.contains_key(**name)).count();
            (health.members.len(), left.saturating_sub(unknown + nameless.len()))
        }
        None => {
            let members = usize::try_from(guard.members.unwrap_or(0)).unwrap_or(usize::MAX);
            (members, members.saturating_sub(named.len() + nameless.len()))
        }
    };
    let needed = members / 2 + 1;
    if members == 0 {
        Some(Wait::QuorumUnknown)
    } else {
        (left < needed).then(|| Wait::Quorum { left: saturated(left), needed: saturated(needed) })
    }
}

fn nodes<'a>(holders: impl IntoIterator<Item = &'a Holder>) -> Vec<ClientId> {
    holders.into_iter().map(|holder| holder.node.clone()).collect()
}

fn held(document: &Document) -> u32 {
    saturated(document.holders.len())
}

fn saturated(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
