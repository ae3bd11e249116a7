//! Step 9, permit: the lock's document, as it is stored.

use super::policy::Policy;
use crate::id::{BootId, Group};
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// The schema number of [`Document`].
pub(super) const SCHEMA: u32 = 1;
/// Waiters that have a place in the queue; who comes later asks again until there is one.
pub(super) const QUEUE_MAX: usize = 1024;
/// Finished attempts remembered, so that a request that was delayed on its way does not acquire for ever.
pub(super) const FINISHED_MAX: usize = 512;
/// Acts of operators kept; the oldest is dropped first.
pub(super) const ACTS_MAX: usize = 64;
/// Versions remembered as proved by a canary; the oldest is dropped first.
pub(super) const PROVED_MAX: usize = 16;
/// The longest reason or name of a person kept, in bytes.
pub(super) const TEXT_MAX: usize = 256;

/// Text that is not a valid id of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: expected up to {max} visible ASCII characters, found {found:?}")]
pub struct InvalidLockId {
    kind: &'static str,
    max: usize,
    found: String,
}

macro_rules! visible {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidLockId;

            fn from_str(text: &str) -> Result<Self, InvalidLockId> {
                if !text.is_empty() && text.len() <= $max && text.bytes().all(|b| b.is_ascii_graphic()) {
                    Ok(Self(text.to_owned()))
                } else {
                    let found = text.chars().take(80).collect();
                    Err(InvalidLockId { kind: $kind, max: $max, found })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

visible!(
    /// Who holds or waits: a Flipside node's id, or whatever a FleetLock v1 client calls itself.
    ClientId, "client id", 256
);
visible!(
    /// One attempt of one node to reboot into one release. The node makes it up and records it durably before it asks.
    AttemptId, "attempt id", 128
);
visible!(
    /// Where a node stands, for limits per zone: a rack, a data centre.
    Zone, "zone", 64
);

impl From<&crate::id::NodeId> for ClientId {
    fn from(node: &crate::id::NodeId) -> Self {
        Self(node.as_str().to_owned())
    }
}

/// One group's lock. Changed only by [`super::apply`], and written only by compare-and-swap on its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Document {
    /// 1; [`Document::is_known`] tells.
    pub schema: u32,
    /// Whose lock this is.
    pub group: Group,
    /// Who may hold, how many, when.
    pub policy: Policy,
    /// Who holds a permit, oldest grant first. Their number is the count: there is no separate counter.
    pub holders: Vec<Holder>,
    /// Who waits, by priority and then by arrival.
    pub queue: Vec<Waiter>,
    /// Attempts that ended, newest last.
    pub finished: Vec<Finished>,
    /// Releases that a canary of this group confirmed, newest last.
    pub proved: Vec<Proved>,
    /// What operators did here, newest last.
    pub acts: Vec<Act>,
    /// Counts grants, so that two grants to the same node differ.
    pub grants: u64,
}

/// A held permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Holder {
    /// Who.
    pub node: ClientId,
    /// For which attempt; none for a FleetLock v1 client, which has no such thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptId>,
    /// The boot in which it was granted; none for a FleetLock v1 client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_before: Option<BootId>,
    /// The boot that came of it, once it is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_after: Option<BootId>,
    /// The version that ran when it was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Version>,
    /// The version to reboot into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Whether it is a member of the etcd cluster that the policy guards, by its member's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_member: Option<String>,
    /// Why it reboots, or why it failed: for a person.
    pub reason: String,
    /// [`Document::grants`] at its grant.
    pub grant: u64,
    /// How far it is.
    pub phase: Phase,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// When it came into its phase.
    pub phase_at: Timestamp,
    /// When it counts as overdue.
    pub deadline: Timestamp,
    /// Since when it is stuck: the deadline passed in silence. The permit stays held; the phase tells where it went
    /// silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck_since: Option<Timestamp>,
    /// The failed permit that this one was exchanged for: until this one is confirmed the group halts as it did, and if it
    /// is given up, that one is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(no_recursion))]
    pub instead_of: Option<Box<Holder>>,
}

/// How far a holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Holds the permit and makes ready: hooks, inhibitors. It may not reboot yet.
    Granted,
    /// The grant was verified: it reboots.
    Rebooting,
    /// It is up in a new boot and proves its health.
    Booted,
    /// It came back without the release. It may exchange the permit for an attempt with another release.
    Failed,
}

/// A node that waits for a permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Waiter {
    /// Who.
    pub node: ClientId,
    /// For which attempt; none for a FleetLock v1 client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptId>,
    /// The version it wants to reboot into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Version>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// The member of the guarded etcd cluster that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_member: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// Since when it waits.
    pub since: Timestamp,
    /// When it last asked, to within a few minutes. One that stopped asking loses its place.
    pub seen: Timestamp,
}

/// An attempt that ended, by confirmation, by giving up, or by force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finished {
    /// Whose.
    pub node: ClientId,
    /// Which.
    pub attempt: AttemptId,
    /// When.
    pub at: Timestamp,
}

/// A release that a canary confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Proved {
    /// The release's version.
    pub version: Version,
    /// By which node.
    pub node: ClientId,
    /// When.
    pub at: Timestamp,
}

/// What an operator did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Act {
    /// When.
    pub at: Timestamp,
    /// Who, as the backend knows them.
    pub who: String,
    /// What.
    #[serde(flatten)]
    pub kind: ActKind,
    /// Why, in their words.
    pub why: String,
}

/// The acts of operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "act", rename_all = "kebab-case")]
pub enum ActKind {
    /// A permit was taken away.
    ForceRelease {
        /// From whom.
        node: ClientId,
        /// For which attempt.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<AttemptId>,
        /// Which grant: the same command that comes again finds itself carried out.
        grant: u64,
        /// In which phase it was.
        phase: Phase,
    },
    /// A node was removed.
    RemoveNode {
        /// Which.
        node: ClientId,
        /// For which attempt it held or waited.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<AttemptId>,
        /// In which phase it was, if it held a permit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        phase: Option<Phase>,
    },
    /// The policy was set.
    SetPolicy,
}

impl Document {
    /// A lock that nobody holds.
    #[must_use]
    pub const fn new(group: Group, policy: Policy) -> Self {
        Self {
            schema: SCHEMA,
            group,
            policy,
            holders: Vec::new(),
            queue: Vec::new(),
            finished: Vec::new(),
            proved: Vec::new(),
            acts: Vec::new(),
            grants: 0,
        }
    }

    /// The permit of a node, if it holds one.
    #[must_use]
    pub fn holder(&self, node: &ClientId) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.node == *node)
    }

    /// Whether this program knows the document's schema.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.schema == SCHEMA
    }
}
