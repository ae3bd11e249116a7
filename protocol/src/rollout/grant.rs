//! Step 4, channel: a node's leave to go to a release, and what became of it.

use super::policy::RolloutPolicy;
use crate::status::StateName;
use crate::version::Version;
use crate::wire::EventKind;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A node that asks again so long after it was let go, and does nothing, does not take the release. (The SQL that looks for such
/// nodes has the same number, in microseconds.)
const TAKES_UP_WITHIN: SignedDuration = SignedDuration::from_mins(15);

/// One node's leave to go to one version in one rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Grant {
    /// Which version: the rollout's, or one to pass through on the way.
    pub version: Version,
    /// When it was given, the last time.
    pub granted_at: Timestamp,
    /// What became of it.
    pub phase: GrantPhase,
    /// Since when.
    pub phase_at: Timestamp,
}

/// What became of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum GrantPhase {
    /// Given: the node downloads, writes, verifies, or waits for its window.
    Granted,
    /// The node's next boot is switched to the release.
    Activated,
    /// The node is about to reboot, or does.
    Rebooting,
    /// The node runs it and has proved its health.
    Confirmed,
    /// It could not be installed. The node may be let go again.
    Failed,
    /// The node came back without it and does not take it again.
    RolledBack,
    /// Nothing was heard of the node since it was about to reboot.
    Silent,
    /// Nothing was heard of the node for long, before it began to reboot.
    Lost,
}

/// What was last heard of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard<'a> {
    /// Whether it still follows the channel that let it go.
    pub follows: bool,
    /// It was told since then not to go on: the rollout is halted or paused, or the release has become a dead end.
    pub told_to_wait: bool,
    /// The version it ran.
    pub version: &'a Version,
    /// What it was doing.
    pub state: StateName,
    /// When.
    pub at: Timestamp,
}

impl GrantPhase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Granted,
        Self::Activated,
        Self::Rebooting,
        Self::Confirmed,
        Self::Failed,
        Self::RolledBack,
        Self::Silent,
        Self::Lost,
    ];

    /// The name as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Activated => "activated",
            Self::Rebooting => "rebooting",
            Self::Confirmed => "confirmed",
            Self::Failed => "failed",
            Self::RolledBack => "rolled-back",
            Self::Silent => "silent",
            Self::Lost => "lost",
        }
    }

    /// Whether the node is under way, so that its grant counts for limits.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Granted | Self::Activated | Self::Rebooting)
    }

    /// Whether it ended badly, so that it counts for a halt.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::RolledBack | Self::Silent)
    }

    /// What an event of the node about the grant's version makes of it; none where it changes nothing.
    #[must_use]
    pub fn after(self, event: EventKind) -> Option<Self> {
        let next = match event {
            EventKind::Confirmed => Self::Confirmed,
            // What arrives late about an earlier try does not take back that it runs.
            _ if self == Self::Confirmed => return None,
            EventKind::RolledBack => Self::RolledBack,
            EventKind::Failed | EventKind::Refused if self != Self::RolledBack => Self::Failed,
            // One that was thought lost and goes on by itself is under way again: it does not ask before it reboots.
            EventKind::Activated if matches!(self, Self::Granted | Self::Lost) => Self::Activated,
            EventKind::Rebooting if self.is_open() || self == Self::Lost => Self::Rebooting,
            _ => return None,
        };
        (next != self).then_some(next)
    }
}

impl Grant {
    /// What the last word of the node, and the time since then, make of the grant; none where they change nothing. Silence counts
    /// from `watched` on, when whoever asks began to listen: what could not be heard is no silence.
    #[must_use]
    pub fn seen(
        &self,
        heard: Option<&Heard<'_>>,
        policy: &RolloutPolicy,
        watched: Timestamp,
        now: Timestamp,
    ) -> Option<GrantPhase> {
        let later = heard.filter(|heard| heard.at > self.granted_at);
        if let Some(phase) = later.and_then(|heard| self.said(heard)) {
            return Some(phase);
        }
        if !self.phase.is_open() {
            return None;
        }
        let last_word = later.map_or(self.phase_at, |heard| heard.at.max(self.phase_at)).max(watched);
        let quiet = now.duration_since(last_word);
        let patience = |seconds: u32| SignedDuration::from_secs(seconds.into());
        match self.phase {
            GrantPhase::Rebooting => (quiet >= patience(policy.silent_after_s)).then_some(GrantPhase::Silent),
            // Any reboot of it would have begun the release.
            GrantPhase::Activated => (quiet >= patience(policy.lost_after_s)).then_some(GrantPhase::Silent),
            _ => (quiet >= patience(policy.lost_after_s)).then_some(GrantPhase::Lost),
        }
    }

    /// What a word of the node that came after the grant makes of it.
    fn said(&self, heard: &Heard<'_>) -> Option<GrantPhase> {
        let unproved =
            matches!(heard.state, StateName::Confirming | StateName::RolledBack | StateName::Error);
        if *heard.version == self.version && !unproved {
            return (self.phase != GrantPhase::Confirmed && self.phase != GrantPhase::RolledBack)
                .then_some(GrantPhase::Confirmed);
        }
        let in_boot = matches!(self.phase, GrantPhase::Activated | GrantPhase::Rebooting);
        if in_boot && heard.state == StateName::RolledBack && *heard.version != self.version {
            return Some(GrantPhase::RolledBack);
        }
        if self.phase.is_open() && !heard.follows {
            return Some(GrantPhase::Lost);
        }
        let settled = heard.at.duration_since(self.phase_at.max(self.granted_at)) > TAKES_UP_WITHIN;
        match (self.phase, heard.state) {
            // It was let go, asked again a good while later, and has nothing in hand: it does not take the release, or has given up
            // what it was told to wait with.
            (GrantPhase::Granted, StateName::Idle | StateName::Error) if settled => {
                Some(if heard.told_to_wait { GrantPhase::Lost } else { GrantPhase::Failed })
            }
            // What it had activated was undone: withdrawn, or cancelled by somebody there.
            (GrantPhase::Activated, StateName::Idle) if settled => Some(GrantPhase::Lost),
            _ => None,
        }
    }
}

impl fmt::Display for GrantPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Some phases, as a list is asked for: `failed,rolled-back`; none named means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phases(Vec<GrantPhase>);

impl Phases {
    /// Those that count for a halt.
    #[must_use]
    pub fn failures() -> Self {
        Self(GrantPhase::ALL.into_iter().filter(|phase| phase.is_failure()).collect())
    }

    /// Each of them, all where none was named.
    pub fn iter(&self) -> impl Iterator<Item = GrantPhase> + '_ {
        GrantPhase::ALL.into_iter().filter(|phase| self.0.is_empty() || self.0.contains(phase))
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|phase| phase.as_str()).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Phases {
    type Err = InvalidPhase;

    fn from_str(text: &str) -> Result<Self, InvalidPhase> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Text that names no phase.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a phase of a grant: expected granted, activated, rebooting, confirmed, failed, rolled-back, silent or lost, found {0:?}"
)]
pub struct InvalidPhase(String);

impl FromStr for GrantPhase {
    type Err = InvalidPhase;

    fn from_str(text: &str) -> Result<Self, InvalidPhase> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.as_str() == text)
            .ok_or_else(|| InvalidPhase(text.chars().take(80).collect()))
    }
}
