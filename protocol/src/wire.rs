//! Steps 4, 5 and 12: what node, operator and server say to each other, as JSON over HTTP.
//!
//! Every document carries `schema`. A receiver takes documents of its own schema with fields it does not know, so
//! that a server may be newer than its nodes; another schema number is refused with a clear error.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | `POST /v1/update-check` | [`UpdateCheck`] | [`UpdateAnswer`] |
//! | `POST /v1/events` | [`Events`] | 204 once they are durable |
//! | `GET /v1/metadata/<file>` | | TUF metadata: `timestamp.json`, `<n>.<role>.json` |
//! | `GET /v1/targets/<path>` | | target files by their consistent-snapshot names |
//! | `GET /v1/payloads/<sha256>` | | the payload, with ranges |
//! | `PUT /api/v1/root` | [`RootPush`] | [`Published`] |
//! | `PUT /api/v1/payloads/<sha256>` | the payload's bytes | 204 |
//! | `POST /api/v1/releases` | [`ReleasePush`] | [`Published`] |
//! | `GET /api/v1/releases` | | [`ReleaseList`] |
//! | `GET /api/v1/channels` | | [`ChannelList`] |
//! | `PUT /api/v1/channels/<channel>` | [`ChannelSet`] | [`ChannelInfo`] |
//! | `POST /api/v1/channels/<channel>/promote` | [`ChannelPromote`] | [`ChannelInfo`] |
//! | `GET /api/v1/rollouts` | | [`RolloutList`] |
//! | `GET /api/v1/rollouts/<channel>` | | [`RolloutInfo`] |
//! | `GET /api/v1/rollouts/<channel>/nodes?phase=<phases>&limit=<number>&after=<node>` | | [`RolloutNodes`] |
//! | `POST /api/v1/rollouts/<channel>/pause`, `/resume`, `/approve` | [`RolloutAct`] | [`RolloutInfo`] |
//! | `POST /api/v1/rollouts/<channel>/simulate` | [`SimulationRequest`] | [`SimulationReport`] |
//! | `GET /api/v1/rollout-policy` | | [`Policies`] |
//! | `PUT /api/v1/rollout-policy` | [`PolicySet`] | [`Policies`] |
//! | `POST /api/v1/rollout-policy/<channel>/remove` | [`PolicyRemove`] | [`Policies`] |
//! | `GET /api/v1/nodes?channel=<channel>&group=<group>&version=<version>` | | [`NodeList`] |
//! | `GET /api/v1/nodes/<node>/explain` | | [`NodeExplain`] |
//! | `GET /api/v1/nodes/<node>` | | [`NodeShow`] |
//! | `GET /api/v1/stats/events?from=<day>&to=<day>` | | [`EventStats`] |
//! | `GET /api/v1/stats/versions?channel=<channel>&from=<day>&to=<day>` | | [`VersionStats`] |
//! | `GET /api/v1/audit` | | [`AuditLog`] |
//! | `POST /v2/lock/<group>` | [`LockCommand`] | [`LockAnswer`] |
//! | `GET /v2/lock/<group>?node=<id>` | | [`LockView`] |
//! | `GET /api/v1/locks` | | [`LockList`] |
//! | `GET /api/v1/locks/<group>` | | [`LockInfo`] |
//! | `POST /api/v1/locks/<group>/release` | [`LockRelease`] | [`LockInfo`] |
//! | `POST /api/v1/locks/<group>/import` | [`LockImport`] | [`LockInfo`] |
//! | `GET /api/v1/lock-policy` | | [`Policies`] |
//! | `PUT /api/v1/lock-policy` | [`PolicySet`] | [`Policies`] |
//! | `POST /api/v1/nodes/<node>/remove` | [`NodeRemove`] | 204 |
//! | `DELETE /api/v1/nodes/<node>/credential` | | 204 |
//! | `PUT /api/v1/nodes/<node>/group` | [`NodeGroup`] | 204 |
//! | `DELETE /api/v1/nodes/<node>/group` | | 204 |
//! | `PUT /api/v1/nodes/<node>/revocation` | [`NodeRevoke`] | [`NodeRevoked`] |
//! | `DELETE /api/v1/nodes/<node>/revocation` | | 204 |
//! | `GET /api/v1/enrolment-tokens` | | [`EnrolmentList`] |
//! | `POST /api/v1/enrolment-tokens` | [`EnrolmentCreate`] | [`EnrolmentCreated`] |
//! | `DELETE /api/v1/enrolment-tokens/<id>` | | 204 |
//! | `POST …/v1/pre-reboot`, `…/v1/steady-state` | [`FleetLockBody`] | 200, or [`FleetLockError`] |
//!
//! An error is a status of 4xx or 5xx with an [`ErrorBody`]. Requests under `/api/` carry `Authorization: Bearer` with an
//! operator's token; what a node says about itself (check, events, lock) carries its [`NodeCredential`] there, and an [`EnrolmentToken`] in
//! the header [`ENROLMENT_HEADER`] where the server asks for one (401, kind [`NOT_ENROLLED`]).

use crate::digest::Sha256;
use crate::id::{Arch, BootId, Channel, Group, NodeId};
use crate::slot::Slot;
use crate::status::StateName;
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod credential;
mod enrolment;
mod lock;
mod policy;
mod rollout;
mod secret;
mod stats;
#[cfg(test)]
mod tests;

pub use credential::{InvalidCredential, NodeCredential};
pub use enrolment::{
    ENROLMENT_HEADER, EnrolmentCreate, EnrolmentCreated, EnrolmentInfo, EnrolmentList, EnrolmentState,
    EnrolmentToken, InvalidEnrolmentToken, NOT_ENROLLED, NodeGroup, NodeRevoke, NodeRevoked, Revocation,
};
pub use lock::{
    FleetLockBody, FleetLockClient, FleetLockError, LOCK_BODY_MAX, LockAnswer, LockCommand, LockImport,
    LockInfo, LockList, LockReasons, LockRelease, LockView, NodeRemove,
};

pub use policy::{Policies, PolicyRemove, PolicySet};
pub use rollout::{
    NodeExplain, RolloutAct, RolloutCounts, RolloutInfo, RolloutList, RolloutNode, RolloutNodes,
    SimulationPoint, SimulationReport, SimulationRequest,
};
pub use stats::{EventCount, EventStats, VersionCount, VersionStats};

/// The schema number of the documents here.
pub const SCHEMA: u32 = 1;
/// The longest JSON body that either side reads, in bytes, payloads and metadata aside.
pub const BODY_MAX: usize = 1 << 20;
/// The longest [`ReleasePush`] or [`RootPush`], in bytes: it carries whole metadata files.
pub const PUSH_MAX: usize = 16 << 20;

/// How many versions in quarantine a server keeps of a node.
pub const QUARANTINE_MAX: usize = 32;

/// The longest evidence of an event, in bytes.
pub const EVIDENCE_MAX: usize = 16 << 10;

/// A node asks whether it should update. Also its sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateCheck {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who asks.
    pub node: NodeId,
    /// The line it follows.
    pub channel: Channel,
    /// The set it belongs to.
    pub group: Group,
    /// Its architecture.
    pub arch: Arch,
    /// The version it runs.
    pub version: Version,
    /// The slot it runs from.
    pub slot: Slot,
    /// The boot it is in.
    pub boot_id: BootId,
    /// What it was doing when it asked.
    pub state: StateName,
    /// Whether a person asked for this check.
    #[serde(default)]
    pub interactive: bool,
    /// The versions that the node does not take, because they failed there. An older engine does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Vec<Version>>,
}

/// The server's answer: it says when, the signed metadata says what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What to do.
    pub decision: Decision,
    /// The version to go to, with [`Decision::Update`]; the one that it waits for, with [`Decision::Hold`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// For a person: why.
    pub reason: String,
    /// Ask again after so many seconds, where the server has a wish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

/// What the server wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Install [`UpdateAnswer::version`].
    Update,
    /// Nothing newer for this node.
    None,
    /// There is something, but not for this node at this time.
    Hold,
}

/// What happened on a node, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Events {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where.
    pub node: NodeId,
    /// What, oldest first.
    pub events: Vec<Event>,
}

/// One thing that happened on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Counts up on each node, so that an event sent twice is stored once.
    pub seq: u64,
    /// When, by the node's clock.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// The release it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// The release's digest (see [`crate::manifest::Manifest::release_digest`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Sha256>,
    /// For a person: what it was about, in one line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// For a person: what was seen of a failure, in lines (states of units, a part of the journal, exit codes); at
    /// most [`EVIDENCE_MAX`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub evidence: String,
}

/// The kinds of [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The download of a release began.
    DownloadStarted,
    /// The inactive slot holds the release, verified.
    Staged,
    /// The next boot was switched to it.
    Activated,
    /// The node is about to reboot into it.
    Rebooting,
    /// It booted and proved its health.
    Confirmed,
    /// It did not; the node runs the old release again and will not try this one again.
    RolledBack,
    /// An attempt failed before anything was activated.
    Failed,
    /// An offer was refused: trust, downgrade, quarantine.
    Refused,
    /// What is to be done on the node after a confirmation failed; the release stays all the same.
    HookFailed,
}

impl EventKind {
    /// The name as it is written: in JSON, in webhooks and for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DownloadStarted => "download-started",
            Self::Staged => "staged",
            Self::Activated => "activated",
            Self::Rebooting => "rebooting",
            Self::Confirmed => "confirmed",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::HookFailed => "hook-failed",
        }
    }
}

/// The signed roles that an operator made offline, each file's bytes as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RootPush {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Every root the server may lack, oldest first.
    pub roots: Vec<String>,
    /// The targets metadata, where the server has none yet or a root changed its keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<String>,
}

/// A release: its manifest and the targets metadata that signs it. Payloads are uploaded before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleasePush {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The targets version this was made from: the server refuses (409) if it has another one by now.
    pub replaces: u64,
    /// The new targets metadata, signed, byte for byte.
    pub targets: String,
    /// The manifests that it names and the server lacks, byte for byte.
    pub manifests: Vec<String>,
}

/// What the server publishes after a change: the versions of the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Published {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of root.
    pub root: u64,
    /// Version of targets.
    pub targets: u64,
    /// Version of snapshot.
    pub snapshot: u64,
    /// Version of timestamp.
    pub timestamp: u64,
}

/// The releases a server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleaseList {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Newest version first.
    pub releases: Vec<ReleaseInfo>,
}

/// One release on a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReleaseInfo {
    /// Its version.
    pub version: Version,
    /// Its architecture.
    pub arch: Arch,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// Length of its images together, in bytes.
    pub image_bytes: u64,
    /// Length of its full payload, in bytes.
    pub payload_bytes: u64,
    /// The channels that hold it.
    pub channels: Vec<Channel>,
    /// Why it is a dead end, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_end: Option<String>,
}

/// Points a channel at a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelSet {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The release its nodes go to.
    pub version: Version,
    /// Do it although some of the channel's nodes have no way to that release.
    #[serde(default)]
    pub leave_behind: bool,
    /// Do it although that release is a dead end: its nodes go there and no further.
    #[serde(default)]
    pub to_dead_end: bool,
}

/// Points a channel at what another one points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelPromote {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The channel to take the release from.
    pub from: Channel,
    /// Do it although some of the channel's nodes have no way to that release.
    #[serde(default)]
    pub leave_behind: bool,
    /// Do it although that release is a dead end: its nodes go there and no further.
    #[serde(default)]
    pub to_dead_end: bool,
    /// Why it is done although the policy's gate is closed, if it is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub despite_gate: Option<String>,
}

/// The channels of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelList {
    /// [`SCHEMA`].
    pub schema: u32,
    /// By name.
    pub channels: Vec<ChannelInfo>,
}

/// One channel of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChannelInfo {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its name.
    pub channel: Channel,
    /// The release its nodes go to.
    pub version: Version,
    /// Since when.
    pub changed_at: Timestamp,
    /// The name of the token that changed it.
    pub changed_by: String,
    /// Whether its nodes go there although the release is a dead end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_dead_end: bool,
    /// Its nodes that are on dead ends and stay there, in the answer to a change of the channel; nothing in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_dead_ends: Vec<OnDeadEnd>,
}

/// Nodes of a channel on one dead end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OnDeadEnd {
    /// The version they run.
    pub version: Version,
    /// Their architecture.
    pub arch: Arch,
    /// How many were heard of in the last 30 days.
    pub nodes: u32,
    /// Why it is a dead end.
    pub why: String,
}

/// The nodes a server has heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeList {
    /// [`SCHEMA`].
    pub schema: u32,
    /// By last contact, newest first.
    pub nodes: Vec<NodeInfo>,
}

/// What a server knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// Its id.
    pub node: NodeId,
    /// The channel it follows.
    pub channel: Channel,
    /// The group it belongs to: the one that operators placed it in, or else the one that it names itself.
    pub group: Group,
    /// The group that it names itself, where operators have placed it in [`Self::group`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_group: Option<Group>,
    /// Its architecture.
    pub arch: Arch,
    /// The version it ran when last heard of.
    pub version: Version,
    /// The slot it ran from.
    pub slot: Slot,
    /// What it was doing.
    pub state: StateName,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// The last event it reported, if any; without its evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Event>,
    /// The enrolment token that it came with, by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_with: Option<String>,
    /// That it is not heard any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,
    /// The versions that it does not take, because they failed there, the newest [`QUARANTINE_MAX`] of them; none where its
    /// engine does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<Vec<Version>>,
    /// Why the release that it runs is a dead end, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_end: Option<String>,
}

impl NodeInfo {
    /// Whether it says that it does not take a version; none where that is not known.
    #[must_use]
    pub fn quarantined(&self, version: &Version) -> Option<bool> {
        let quarantine = self.quarantine.as_ref()?;
        let contains = quarantine.contains(version);
        // Of more than are kept the others are not known.
        (contains || quarantine.len() < QUARANTINE_MAX).then_some(contains)
    }
}

/// One node and what it reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeShow {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The node.
    pub node: NodeInfo,
    /// Its last events, newest first.
    pub events: Vec<Event>,
}

/// The server's record of changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditLog {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Newest first.
    pub entries: Vec<AuditEntry>,
}

/// One change on a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Its place in the log, from 1.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The name of the token, or `server`.
    pub actor: String,
    /// What was done: `channel.set`, `release.push`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// From what to what.
    pub detail: String,
    /// The hash of this entry and of the hash before it; none from a server that has no such hashes yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Sha256>,
}

/// The body of every error answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// For programs: `not-found`, `conflict`, `invalid`, `unauthorized`, `not-enrolled`, `forbidden`, `too-large`,
    /// `too-slow`, `too-many-requests`, `unavailable`, `full`, `internal`.
    pub kind: String,
    /// For people: one line saying what, expected, found, and what to do.
    pub message: String,
}
