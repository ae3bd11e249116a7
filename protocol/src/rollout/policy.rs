//! Step 4, channel: how a release reaches a channel's nodes: who first, how many at once, when, and what stops it.
//!
//! Written by operators as TOML (see [`super::RolloutFile`]), kept inside the rollout's document.

use super::share::Share;
use crate::id::Group;
use crate::window::Window;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One channel's policy. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutPolicy {
    /// A group that goes before all others, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// The waves, the smallest share first; none means all nodes at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
    /// How many at once, and when.
    #[serde(flatten)]
    pub limits: Limits,
    /// Days on which nobody is let go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freezes: Vec<Freeze>,
    /// The time zone of windows and freezes, an IANA name or `UTC`.
    pub time_zone: String,
    /// What stops it.
    pub halt: Halt,
    /// A node that was about to reboot and was not heard of for so long counts as failed.
    pub silent_after_s: u32,
    /// A node that was let go, has not begun its reboot, and was not heard of for so long is no longer waited for.
    pub lost_after_s: u32,
    /// What must hold before a release is promoted to this channel, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<Gate>,
    /// What holds for single groups, beside what holds for the channel.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<Group, GroupPolicy>,
}

/// The limits of a channel, or of one of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// How many may be under way at once; zero lets nobody go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// How many may be let go in an interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// When nodes are let go; none means always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
}

/// The limits of one group, in the channel's time zone.
pub type GroupPolicy = Limits;

/// How many nodes may be let go in an interval that moves with the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rate {
    /// So many.
    pub max: u32,
    /// In so many seconds.
    pub per_s: u32,
}

/// The group that goes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Canary {
    /// Which.
    pub group: Group,
    /// How long at least it goes alone.
    pub hold_s: u32,
    /// What share of those let go must have confirmed the release; one at least must have.
    pub confirmed: Share,
    /// Whether an operator must approve that the others follow.
    #[serde(default)]
    pub approve: bool,
}

/// A part of the channel's nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Wave {
    /// The nodes up to this share, those of the waves before included.
    pub share: Share,
    /// How long at least before the next wave opens.
    pub hold_s: u32,
    /// What share of those let go in this wave must have confirmed the release before the next one opens.
    pub confirmed: Share,
    /// Whether an operator must approve that the next wave opens.
    #[serde(default)]
    pub approve: bool,
}

/// Days on which nobody is let go, by the policy's time zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Freeze {
    /// The first day.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub from: Date,
    /// The last day.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Date))]
    pub to: Date,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// What stops a rollout by itself. Nodes that failed, and those that fell silent in their reboot, count alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Halt {
    /// So many failures, if any number does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// So many of those whose update has ended, one way or another.
    pub failure_rate: Share,
    /// The rate counts only from so many failures on.
    pub least_failures: u32,
}

/// What must hold on the channel that a release is promoted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gate {
    /// How long the channel must have had the release.
    pub soak_s: u32,
    /// What share of the nodes whose update has ended must have confirmed it.
    pub healthy: Share,
    /// How many nodes at least must have confirmed it.
    pub nodes: u32,
}

impl RolloutPolicy {
    /// The time zone of windows and freezes, from the tz database that this program was built with. None where that has no
    /// such zone.
    #[must_use]
    pub fn time_zone(&self) -> Option<TimeZone> {
        TimeZoneDatabase::bundled().get(&self.time_zone).ok()
    }

    /// The freeze that holds at a time, the longest of several, and the first moment after it at which none does.
    pub(super) fn frozen(&self, zone: &TimeZone, now: Timestamp) -> Option<(&Freeze, Option<Timestamp>)> {
        let on = |day: Date| {
            let holds = self.freezes.iter().filter(move |freeze| freeze.from <= day && day <= freeze.to);
            holds.max_by_key(|freeze| freeze.to)
        };
        let freeze = on(now.to_zoned(zone.clone()).date())?;
        let mut after = freeze.to.tomorrow().ok();
        while let Some(next) = after.and_then(on) {
            after = next.to.tomorrow().ok();
        }
        let after = after.and_then(|day| day.to_zoned(zone.clone()).ok());
        Some((freeze, after.map(|day| day.timestamp())))
    }

    /// The longest interval of a rate that counts for a group, in seconds.
    #[must_use]
    pub fn longest_rate_s(&self) -> u32 {
        let rates = self.groups.values().chain([&self.limits]).filter_map(|limits| limits.rate);
        rates.map(|rate| rate.per_s).max().unwrap_or(0)
    }
}

impl Default for RolloutPolicy {
    /// All at once and at any time; it halts where a tenth fails, from three failures on.
    fn default() -> Self {
        Self {
            canary: None,
            waves: Vec::new(),
            limits: Limits::default(),
            freezes: Vec::new(),
            time_zone: "UTC".to_owned(),
            halt: Halt::default(),
            silent_after_s: 90 * 60,
            lost_after_s: 24 * 60 * 60,
            promotion: None,
            groups: BTreeMap::new(),
        }
    }
}

impl Default for Halt {
    fn default() -> Self {
        Self { failures: None, failure_rate: Share::percent(10), least_failures: 3 }
    }
}

impl Wave {
    /// What a wave waits for where its table does not say.
    pub(super) const DEFAULT: Self =
        Self { share: Share::ALL, hold_s: 60 * 60, confirmed: Share::percent(90), approve: false };
}
