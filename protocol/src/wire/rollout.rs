//! Step 4, channel: what operators and servers say to each other about rollouts.

use super::{Decision, Event, NodeInfo};
use crate::id::{Channel, Group, NodeId};
use crate::rollout::{Ended, Grant, Reason, Rollout, Share};
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The rollouts of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutList {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// By channel.
    pub rollouts: Vec<RolloutInfo>,
}

/// One channel's rollout, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutInfo {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The rollout.
    pub rollout: Rollout,
    /// Its nodes, counted.
    pub counts: RolloutCounts,
    /// What the next stage waits for, each in one line; nothing where the last one is open.
    pub next_stage: Vec<String>,
    /// What lets no node go now, whichever it is; nothing where none of it does. What holds single groups or nodes is not here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds_all: Vec<Reason>,
    /// What looks like a mistake: groups in the policy or paused that no node of the channel is in. Each in one line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Nodes that were let go in a channel's rollout, or in one before and are still under way: a page of them, by node id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutNodes {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The channel.
    pub channel: Channel,
    /// [`Rollout::number`] of the one that runs.
    pub number: u64,
    /// What it leads to.
    pub version: Version,
    /// Each node once, with the leave that it was given last.
    pub nodes: Vec<RolloutNode>,
    /// There are more: ask for those after this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NodeId>,
}

/// A node that was let go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutNode {
    /// Its id.
    pub node: NodeId,
    /// The group that it was let go in.
    pub group: Group,
    /// In which rollout of the channel: that which runs, or one before.
    pub rollout: u64,
    /// In which stage of it, from 0; none where the policy has none of these stages any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<u32>,
    /// Its leave, and what became of it.
    pub grant: Grant,
    /// It failed before an operator resumed the rollout, so that it counts for a halt no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgiven: bool,
    /// The last event that it reported, if any; without its evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<Event>,
}

/// A rollout's nodes, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutCounts {
    /// Nodes of the channel that were heard of in the last 30 days.
    pub nodes: u32,
    /// Those of them that run the release.
    pub at_version: u32,
    /// Those of them that run another release which is a dead end: they are not waited for.
    #[serde(default)]
    pub dead_ends: u32,
    /// Under way.
    pub in_flight: u32,
    /// Those of them that were let go in a rollout before.
    #[serde(default)]
    pub in_flight_before: u32,
    /// No longer waited for.
    pub lost: u32,
    /// Of those that failed or fell silent, those that did before an operator resumed the rollout: they count for a halt no more.
    #[serde(default)]
    pub forgiven: u32,
    /// All that were let go in this rollout, by what came of it.
    pub all: Ended,
    /// Those let go in the stage that is open.
    pub stage: Ended,
    /// Those that count for a halt.
    pub since: Ended,
}

/// Pauses or resumes a rollout, or approves its next stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RolloutAct {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Only for this group, with pause and resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Why.
    pub why: String,
    /// [`Rollout::number`] as the operator saw it: the server refuses (409) if it is another rollout by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// [`Rollout::stage`] as the operator saw it, for an approval: the server refuses (409) if another one is open by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<u32>,
}

/// Why a node is or is not let go now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeExplain {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The node, as it was last heard of.
    pub node: NodeInfo,
    /// What it would be told; to wait, too, where it would be offered what it has in quarantine, so that it refuses by itself.
    pub decision: Decision,
    /// Where it could go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// For people, in one line: the whole answer.
    pub reason: String,
    /// All that stands against it, what an operator must act on first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<Reason>,
    /// Its leave to go there, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// Where it stands in the order of its channel's rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Share>,
    /// Where its stage is not open: what the next one waits for, each in one line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next_stage: Vec<String>,
}

/// Asks how a rollout would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SimulationRequest {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The release; none is the one that the channel points at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// A policy file (TOML) with the channel's policy, instead of the one that is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What share of the nodes fails.
    pub failing: Share,
    /// What share of the nodes falls silent in its reboot.
    pub silent: Share,
    /// Chooses which nodes fail and when nodes ask.
    pub seed: u64,
    /// How often nodes ask, in seconds.
    pub poll_interval_s: u32,
    /// How long a node takes from its leave to its confirmation, in seconds.
    pub update_takes_s: u32,
    /// How long after a stage waits for nothing else an operator approves the next one, in seconds; none is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve_after_s: Option<u32>,
    /// How long to go on, in seconds.
    pub span_s: u64,
}

/// How a rollout would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SimulationReport {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The channel.
    pub channel: Channel,
    /// The release.
    pub version: Version,
    /// When it would begin.
    pub began_at: Timestamp,
    /// Nodes that it is for: those that do not run the release and have a way to it.
    pub nodes: u32,
    /// Nodes of the channel that have no way to it, those on dead ends aside.
    pub left_behind: u32,
    /// Nodes of the channel that run another release which is a dead end.
    #[serde(default)]
    pub dead_ends: u32,
    /// How far it was, where something happened; the last one at its end.
    pub points: Vec<SimulationPoint>,
    /// What happened when, each in one line.
    pub events: Vec<String>,
    /// When all had ended, if they had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_at: Option<Timestamp>,
    /// Since when it waited, at its end, for nothing but an operator's approval, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for_approval: Option<Timestamp>,
    /// Why it halted, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halted: Option<String>,
}

/// How far a simulated rollout was at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SimulationPoint {
    /// When.
    pub at: Timestamp,
    /// The stage that was open, from 0.
    pub stage: u32,
    /// Under way.
    pub in_flight: u32,
    /// What had come of those let go.
    pub ended: Ended,
    /// All that held back the nodes that had asked last, for people, what held most of them first; nothing where none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub held_by: String,
}
