//! Step 4, channel: one rollout as a server keeps it, and what is counted about it.

use super::policy::RolloutPolicy;
use super::share::Share;
use crate::id::{Channel, Group};
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The rollout of a channel's release, and the policy for it and those that follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rollout {
    /// The channel.
    pub channel: Channel,
    /// Counts the rollouts of this channel, from 1.
    pub number: u64,
    /// What it leads to.
    pub version: Version,
    /// When it began.
    pub began_at: Timestamp,
    /// How it goes.
    pub policy: RolloutPolicy,
    /// Which stage is open, from 0: the canary group if there is one, then the waves.
    pub stage: u32,
    /// Since when.
    pub stage_at: Timestamp,
    /// An operator approved that the stage after this one opens.
    #[serde(default)]
    pub approved: bool,
    /// An operator paused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Stop>,
    /// An operator paused it for single groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub paused_groups: BTreeMap<Group, Stop>,
    /// Too many nodes failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<Stop>,
    /// How often an operator resumed it after a halt. A node that failed when it was less does not count for a halt any more. (A
    /// number and no time: a clock may be set back.)
    #[serde(default)]
    pub resumes: u64,
    /// When it began or was resumed last, for people.
    pub counted_from: Timestamp,
}

/// Why nobody is let go any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stop {
    /// Since when.
    pub at: Timestamp,
    /// The name of the token, or `server`.
    pub by: String,
    /// For people.
    pub why: String,
}

/// What is open in a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage<'a> {
    /// The canary group alone.
    Canary(&'a super::policy::Canary),
    /// The nodes up to the wave's share, and the canary group.
    Wave(super::policy::Wave),
}

/// Nodes of one rollout, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Under way, and let go lately.
    pub used: Used,
    /// Let go in the stage that is open.
    pub stage: Ended,
    /// Those that ended since the rollout was resumed last ([`Rollout::resumes`]).
    pub since: Ended,
    /// Whether nodes could go in this stage that were not let go yet, where [`super::wants_waiting`] asked for it; or could still,
    /// where [`super::is_stuck`] did.
    pub waiting: Option<bool>,
}

/// How far limits are used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Under way.
    pub in_flight: u32,
    /// Let go in the rate's interval that ends now.
    pub recent: u32,
    /// Where those are as many as may be, or more: when the one was let go with whose leaving the interval there is room again.
    pub makes_room: Option<Timestamp>,
}

/// Nodes that were let go, by what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ended {
    /// Let go, in all.
    pub granted: u32,
    /// Confirmed the release.
    pub confirmed: u32,
    /// Came back without it, or could not install it.
    pub failed: u32,
    /// Fell silent in the reboot.
    pub silent: u32,
}

impl Ended {
    /// Failed or silent.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failed.saturating_add(self.silent)
    }

    /// Whose update has ended, one way or another.
    #[must_use]
    pub const fn ended(&self) -> u32 {
        self.confirmed.saturating_add(self.failures())
    }
}

impl Rollout {
    /// The rollout that begins when a channel is pointed at a release. Pauses of groups stay.
    #[must_use]
    pub fn begin(
        channel: Channel,
        version: Version,
        policy: RolloutPolicy,
        before: Option<&Self>,
        now: Timestamp,
    ) -> Self {
        Self {
            channel,
            number: before.map_or(0, |before| before.number) + 1,
            version,
            began_at: now,
            policy,
            stage: 0,
            stage_at: now,
            approved: false,
            paused: None,
            paused_groups: before.map(|before| before.paused_groups.clone()).unwrap_or_default(),
            halted: None,
            resumes: 0,
            counted_from: now,
        }
    }

    /// How many stages there are, at least one.
    #[must_use]
    pub fn stages(&self) -> u32 {
        let waves = u32::try_from(self.policy.waves.len()).unwrap_or(u32::MAX).max(1);
        waves.saturating_add(u32::from(self.policy.canary.is_some()))
    }

    /// The stage that is open. A policy that has become shorter leaves the last one open.
    #[must_use]
    pub fn open(&self) -> Stage<'_> {
        let stage = self.stage.min(self.stages() - 1);
        let wave = match &self.policy.canary {
            Some(canary) if stage == 0 => return Stage::Canary(canary),
            Some(_) => stage - 1,
            None => stage,
        };
        let wave = usize::try_from(wave).ok().and_then(|wave| self.policy.waves.get(wave));
        Stage::Wave(wave.copied().unwrap_or(super::policy::Wave::DEFAULT))
    }

    /// Whether the last stage is open: nobody waits for another one.
    #[must_use]
    pub fn is_last_stage(&self) -> bool {
        self.stage + 1 >= self.stages()
    }

    /// The share of nodes that may go as far as stages are concerned.
    #[must_use]
    pub fn share(&self) -> Share {
        match self.open() {
            Stage::Canary(_) => Share::NONE,
            Stage::Wave(wave) => wave.share,
        }
    }

    /// Whether the stage that is open reaches a node of `group` at `place` (see [`super::place`]): the canary group in any stage,
    /// the others by the wave's share.
    #[must_use]
    pub fn reaches(&self, group: &Group, place: u64) -> bool {
        let is_canary = self.policy.canary.as_ref().is_some_and(|canary| canary.group == *group);
        is_canary || self.share().covers(place)
    }

    /// Whether a halt or a pause holds the nodes of a group.
    #[must_use]
    pub fn is_stopped_for(&self, group: &Group) -> bool {
        self.halted.is_some() || self.paused.is_some() || self.paused_groups.contains_key(group)
    }

    /// Whether two policies have the same stages, so that a stage's number means the same in both.
    #[must_use]
    pub fn has_stages_of(&self, other: &Self) -> bool {
        self.policy.canary == other.policy.canary && self.policy.waves == other.policy.waves
    }

    /// Sets the policy. It opens nothing that was closed, but for a canary group that it names, and takes nothing back from nodes
    /// that have been let go. Where the new policy has a stage that reaches as far as the one that is open, or less far, that one is
    /// open now, and its hold begins anew. Else the stage that is open stays, with its own hold and approval, in front of those of
    /// the new policy: for this rollout only, the next one begins with what the operator wrote.
    #[must_use]
    pub fn with_policy(&self, policy: RolloutPolicy, now: Timestamp) -> Self {
        let mut next = Self { policy, approved: false, ..self.clone() };
        if next.has_stages_of(self) {
            return next;
        }
        next.stage_at = now;
        match self.open() {
            Stage::Canary(canary) => {
                next.stage = 0;
                if next.policy.canary.is_none() {
                    next.policy.canary = Some(canary.clone());
                    next.stage_at = self.stage_at;
                }
            }
            Stage::Wave(wave) => {
                let first = u32::from(next.policy.canary.is_some());
                let reached = next.policy.waves.iter().filter(|new| new.share <= wave.share).count();
                let all_at_once = next.policy.waves.is_empty();
                next.stage = first + u32::try_from(reached).unwrap_or(u32::MAX).saturating_sub(1);
                if reached == 0 && !(all_at_once && wave.share == Share::ALL) {
                    if all_at_once {
                        next.policy.waves.push(super::policy::Wave::DEFAULT);
                    }
                    next.policy.waves.insert(0, wave);
                    next.stage_at = self.stage_at;
                }
            }
        }
        next
    }
}
