//! Step 9, permit: who may hold a permit, how many, and when.
//!
//! Stored inside the lock's document, and written by operators as TOML.

use super::document::{ClientId, Zone};
use crate::id::Group;
use crate::window::Window;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One group's policy. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Policy {
    /// How many may hold a permit at once.
    pub max: Limit,
    /// How many nodes the group has, for [`Limit::Percent`]; where the backend counts them too, the lesser number
    /// counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Limits per zone, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Zones>,
    /// When permits are granted and reboots begin; none means always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// The time zone of the windows, an IANA name or `UTC`.
    pub time_zone: String,
    /// How long a node is down for a reboot: no reboot starts later than this before a window closes.
    pub reboot_takes_s: u32,
    /// How long a holder has from its grant until it reboots, before it is stuck.
    pub granted_max_s: u32,
    /// How long a holder has from its reboot until it is confirmed, before it is stuck.
    pub rebooting_max_s: u32,
    /// What a stuck holder does to its group.
    pub on_stuck: OnTrouble,
    /// What a failed holder does to its group.
    pub on_failed: OnTrouble,
    /// The etcd cluster whose quorum is guarded, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<Quorum>,
    /// Nodes that go first: others get a permit for a release only when one of these has confirmed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canaries: Vec<ClientId>,
    /// Priorities by node, over what the node asks for; higher goes first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub priorities: BTreeMap<ClientId, i32>,
}

/// A number of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// So many. Zero grants nothing.
    Count(u32),
    /// So many of a hundred, rounded down, but at least one.
    Percent(u8),
}

/// Limits per zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Zones {
    /// For each zone that has no limit of its own.
    pub max: Limit,
    /// For the zones that have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<Zone, Limit>,
    /// How many nodes a zone has, for [`Limit::Percent`]; where the backend counts them too, the lesser number
    /// counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<Zone, u32>,
}

/// What a holder that failed or is stuck does to its group. It frees its permit only with [`Self::Release`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OnTrouble {
    /// Nobody gets a permit, and no grant is verified, until an operator acts or the node is well again.
    #[default]
    Halt,
    /// The permit stays held and counts; the others go on with what is left.
    Hold,
    /// The permit is freed.
    Release,
}

/// An etcd cluster that must keep its quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quorum {
    /// How many voting members it has, where the backend cannot ask it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<u32>,
}

/// A limit over several groups together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cap {
    /// The groups it counts.
    pub groups: Vec<Group>,
    /// How many of them may hold a permit at once.
    pub max: u32,
}

/// All caps of one backend, by name: one more document under compare-and-swap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Caps {
    /// By name.
    pub caps: BTreeMap<String, Cap>,
}

impl Policy {
    /// Whether a limit is a percentage, so that it matters how many nodes there are.
    #[must_use]
    pub fn counts_nodes(&self) -> bool {
        let is_percent = |limit: &Limit| matches!(limit, Limit::Percent(_));
        let in_zones = |zones: &Zones| is_percent(&zones.max) || zones.limits.values().any(is_percent);
        is_percent(&self.max) || self.zones.as_ref().is_some_and(in_zones)
    }

    /// The time zone of the windows, from the tz database that this program was built with: so every backend and every
    /// node decides alike, whatever their system's files say. None where that has no such zone.
    #[must_use]
    pub fn time_zone(&self) -> Option<TimeZone> {
        TimeZoneDatabase::bundled().get(&self.time_zone).ok()
    }
}

impl Default for Policy {
    /// One at a time, at any time; trouble halts. What group `default` starts with.
    fn default() -> Self {
        Self {
            max: Limit::Count(1),
            size: None,
            zones: None,
            windows: Vec::new(),
            time_zone: "UTC".to_owned(),
            reboot_takes_s: 10 * 60,
            granted_max_s: 60 * 60,
            rebooting_max_s: 30 * 60,
            on_stuck: OnTrouble::Halt,
            on_failed: OnTrouble::Halt,
            quorum: None,
            canaries: Vec::new(),
            priorities: BTreeMap::new(),
        }
    }
}
