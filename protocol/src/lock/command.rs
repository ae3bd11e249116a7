//! Step 9, permit: what is asked of a lock, and what it answers.

use super::document::{AttemptId, ClientId, Holder, Zone};
use super::policy::Policy;
use crate::id::{BootId, Group};
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is asked of a lock. [`super::apply`] carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// A node wants to reboot into a release.
    Request(Request),
    /// A node is about to reboot: is its grant still current? Nothing but this allows the reboot (I6).
    Verify {
        /// Who.
        node: ClientId,
        /// The attempt that was granted.
        attempt: AttemptId,
        /// The boot it is in.
        boot: BootId,
    },
    /// A node gives up before it rebooted.
    Abandon {
        /// Who.
        node: ClientId,
        /// Which attempt.
        attempt: AttemptId,
        /// The boot it is in.
        boot: BootId,
    },
    /// A node is up in a new boot and begins to prove its health.
    Booted {
        /// Who.
        node: ClientId,
        /// Which attempt.
        attempt: AttemptId,
        /// The new boot.
        boot: BootId,
        /// The version that runs.
        version: Version,
    },
    /// A node confirmed the release: the permit is free (I5).
    Confirm {
        /// Who.
        node: ClientId,
        /// Which attempt.
        attempt: AttemptId,
        /// The boot that was confirmed.
        boot: BootId,
        /// The version that was confirmed.
        version: Version,
    },
    /// A node came back without the release.
    Fail {
        /// Who.
        node: ClientId,
        /// Which attempt.
        attempt: AttemptId,
        /// The boot it is in.
        boot: BootId,
        /// What failed, for a person.
        reason: String,
    },
    /// FleetLock v1's `pre-reboot`: no attempt, no boot. Weaker by declaration.
    FleetLockRequest {
        /// Who.
        node: ClientId,
    },
    /// FleetLock v1's `steady-state`.
    FleetLockSteady {
        /// Who.
        node: ClientId,
    },
    /// An operator takes a permit away: only the grant that they saw (compare and delete).
    ForceRelease {
        /// From whom.
        node: ClientId,
        /// [`Holder::grant`] as the operator saw it.
        grant: u64,
        /// Who does it.
        who: String,
        /// Why.
        why: String,
    },
    /// A node is gone for good: its permit and its place in the queue go with it.
    RemoveNode {
        /// Which.
        node: ClientId,
        /// Who does it.
        who: String,
        /// Why.
        why: String,
    },
    /// An operator sets the policy.
    SetPolicy {
        /// The whole new one.
        policy: Box<Policy>,
        /// Who does it.
        who: String,
        /// Why.
        why: String,
    },
    /// Nothing but the passing of time: overdue holders become stuck, waiters that left lose their place.
    Tick,
}

impl Command {
    /// Whether it grants or confirms a permit. Only such a command looks at anything beside the document and the time: a
    /// confirmation frees a permit whatever the caps are.
    #[must_use]
    pub const fn decides(&self) -> bool {
        matches!(self, Self::Request(_) | Self::Verify { .. } | Self::FleetLockRequest { .. })
    }
}

/// A node's wish for a permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Request {
    /// Who.
    pub node: ClientId,
    /// For which attempt.
    pub attempt: AttemptId,
    /// The boot it is in.
    pub boot: BootId,
    /// The version that runs.
    pub from: Version,
    /// The version to reboot into.
    pub to: Version,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// The member of the guarded etcd cluster that runs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_member: Option<String>,
    /// Higher goes first; the policy's word counts more.
    #[serde(default)]
    pub priority: i32,
    /// Why, for a person.
    pub reason: String,
}

/// What a decision needs to know beside the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The time, by the backend's clock.
    pub now: Timestamp,
    /// How many nodes the group has, where the backend can count them.
    pub population: Option<Population>,
    /// The caps over several groups that count this one.
    pub caps: Vec<Usage>,
    /// What the guarded etcd cluster says of itself; none where it cannot be asked.
    pub quorum: Option<QuorumHealth>,
}

/// How many nodes a group has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Population {
    /// In all.
    pub total: u32,
    /// By zone; nodes without one are in `total` only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<Zone, u32>,
}

/// How far a cap over several groups is used up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Usage {
    /// The cap's name.
    pub cap: String,
    /// Its limit.
    pub max: u32,
    /// Permits held in its other groups.
    pub held_elsewhere: u32,
}

/// An etcd cluster's word on its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumHealth {
    /// Voting members by name, and whether each one answers.
    pub members: BTreeMap<String, bool>,
}

/// What a lock answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The permit is held, for this attempt. Before the reboot it is verified.
    Granted {
        /// As it is held now.
        holder: Box<Holder>,
    },
    /// The grant is current: reboot now.
    Current {
        /// When it counts as overdue.
        deadline: Timestamp,
    },
    /// Not now. The first reason is the one to show.
    Wait {
        /// All that stands against it.
        because: Vec<Wait>,
        /// Ask again after so many seconds.
        retry_after_s: u32,
    },
    /// Noted, and the permit stays held.
    Noted,
    /// The permit is free, or was not held.
    Released {
        /// Whether it was held until now.
        was_held: bool,
    },
    /// Nothing is changed, and asking again does not help.
    Refused {
        /// Why.
        because: Refusal,
    },
    /// An operator's command is carried out.
    Done,
}

/// Why a node waits for its permit. `Display` is for operators: what, who, and what ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "wait", rename_all = "kebab-case")]
pub enum Wait {
    /// As many hold a permit as may.
    Full {
        /// How many may.
        max: u32,
        /// Who does.
        holders: Vec<ClientId>,
    },
    /// As many hold a permit in this zone as may.
    ZoneFull {
        /// The zone.
        zone: Zone,
        /// How many may.
        max: u32,
        /// Who does.
        holders: Vec<ClientId>,
    },
    /// The policy has limits per zone, and the node has none.
    NoZone,
    /// A cap over several groups is used up.
    CapFull {
        /// The cap's name.
        cap: String,
        /// Its limit.
        max: u32,
        /// Permits held in all its groups.
        held: u32,
    },
    /// No window is open, or what is left of it is too short for a reboot.
    Window {
        /// When the next one opens; none if never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opens: Option<Timestamp>,
    },
    /// The policy has windows in a time zone that this program does not know.
    TimeZone {
        /// Its name, as the policy has it.
        name: String,
    },
    /// A holder failed or is stuck, and the policy halts the group.
    Halted {
        /// Which.
        node: ClientId,
        /// Stuck, not failed.
        stuck: bool,
        /// Since when.
        since: Timestamp,
        /// What it said.
        reason: String,
    },
    /// The etcd cluster would lose its quorum, or has too few members that answer.
    Quorum {
        /// Members that would be left.
        left: u32,
        /// Members that must be.
        needed: u32,
    },
    /// It cannot be told how many members the etcd cluster has or which of them answer.
    QuorumUnknown,
    /// No canary has confirmed the release yet.
    Canary {
        /// The release.
        version: Version,
    },
    /// Others are ahead.
    Queue {
        /// How many.
        ahead: u32,
    },
    /// The queue has no place left.
    QueueFull,
    /// The limit is a percentage, and it is not known of how many.
    SizeUnknown {
        /// Whose limit: a zone's, or the group's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<Zone>,
    },
    /// A FleetLock server said no, in its own words: v1 tells neither who holds nor how many may.
    FleetLock {
        /// What kind of no.
        kind: String,
        /// For a person.
        value: String,
    },
}

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "refusal", rename_all = "kebab-case")]
pub enum Refusal {
    /// The attempt ended before: a message that was late, or a node that lost its record.
    #[error("this attempt ended before; begin another one")]
    AttemptOver,
    /// No such grant is held: it was given back, or an operator took it away.
    #[error("no permit is held for this attempt{}", holder_note(.holder.as_ref()))]
    NotHeld {
        /// The attempt for which the node does hold one.
        holder: Option<AttemptId>,
    },
    /// The node is in the boot in which the permit was granted.
    #[error("the node has not rebooted: it is still in the boot in which the permit was granted")]
    SameBoot,
    /// The node is not in the boot that the permit is for.
    #[error("the permit belongs to another boot: expected {expected}, found {found}")]
    OtherBoot {
        /// The boot on record.
        expected: BootId,
        /// The boot named.
        found: BootId,
    },
    /// Another version runs than the permit is for.
    #[error("the permit is for version {expected}, and {found} runs")]
    OtherVersion {
        /// The version on record.
        expected: Version,
        /// The version named.
        found: Version,
    },
    /// The attempt is past the phase in which this can be asked.
    #[error("the permit is held already for a reboot that was made; confirm or fail it first")]
    Rebooted,
    /// A failed release is tried again: the permit is exchanged only for another one.
    #[error("version {version} failed here; the permit is exchanged only for another version")]
    SameRelease {
        /// The version.
        version: Version,
    },
    /// A FleetLock v1 client asks for what belongs to an attempt.
    #[error("the permit is held for an attempt, which FleetLock v1 cannot name")]
    HeldByAttempt,
    /// What an operator saw is no longer so.
    #[error("the grant is another one now: expected {expected}, found {found}; look again")]
    GrantChanged {
        /// As the operator saw it.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// No such group.
    #[error("there is no group {group}: set a policy for it first")]
    UnknownGroup {
        /// The name.
        group: Group,
    },
}

fn holder_note(attempt: Option<&AttemptId>) -> String {
    attempt.map_or_else(String::new, |attempt| format!("; it is held for attempt {attempt}"))
}
