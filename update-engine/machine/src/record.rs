//! Steps 5 to 12: the durable part of the state, which the driver saves before anything that depends on it.

use crate::queue::EventQueue;
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::BootId;
use protocol::lock::AttemptId;
use protocol::slot::Slot;
use protocol::status::{LastCheck, QuarantineEntry};
use protocol::version::Version;
use serde::{Deserialize, Serialize};

/// The schema number of [`Record`].
const SCHEMA: u32 = 1;

/// What the machine must not forget. Serialised by the driver; unreadable records are its business (set aside and
/// reported, never silently taken as empty).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 1; [`Record::is_known`] tells.
    pub schema: u32,
    /// The newest version that this node confirmed: what a downgrade is measured against.
    pub newest_confirmed: Option<Version>,
    /// Releases that are never tried again. Never trimmed.
    pub quarantine: Vec<QuarantineEntry>,
    /// Attempts per release, oldest first.
    pub attempts: Vec<Attempt>,
    /// The flip that is under way or waits for its boot.
    pub intent: Option<Intent>,
    /// What each slot holds, as far as is known.
    pub slots: PerSlot<Option<Content>>,
    /// The boot in which the engine last ran.
    pub last_boot: Option<LastBoot>,
    /// What the server has not yet been told.
    pub events: EventQueue,
    /// The last check.
    pub last_check: Option<LastCheck>,
    /// The last refusal that was reported, so that each is reported once.
    pub refusal: Option<Refusal>,
    /// The release that this node came back from, until another one is staged or the quarantine is cleared.
    pub rolled_back: Option<RolledBack>,
    /// The attempt to reboot with a permit of the lock that is under way, or not yet brought to its end there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<Permit>,
    /// The reboot that is being prepared, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preparation: Option<Preparation>,
    /// The post-confirm hooks that are still to be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_confirm: Option<PostConfirm>,
    /// What waited for its boot when the server last held this node: its rollout is halted or paused. Kept, or an engine that
    /// starts again would reboot into it before it hears anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldRelease>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            newest_confirmed: None,
            quarantine: Vec::new(),
            attempts: Vec::new(),
            intent: None,
            slots: PerSlot { a: None, b: None },
            last_boot: None,
            events: EventQueue::default(),
            last_check: None,
            refusal: None,
            rolled_back: None,
            permit: None,
            preparation: None,
            post_confirm: None,
            held: None,
        }
    }
}

impl Record {
    /// Whether this program knows the record's schema.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.schema == SCHEMA
    }

    /// The quarantine entry of a release, if it has one.
    #[must_use]
    pub fn quarantined(&self, release: &Sha256) -> Option<&QuarantineEntry> {
        self.quarantine.iter().find(|entry| entry.release == *release)
    }

    /// The attempts at a release, if there were any.
    #[must_use]
    pub fn attempt(&self, release: &Sha256) -> Option<&Attempt> {
        self.attempts.iter().find(|attempt| attempt.release.digest == *release)
    }

    /// Whether what this slot holds must not boot again: it failed here, or its release is quarantined.
    #[must_use]
    pub fn condemned(&self, slot: Slot) -> bool {
        self.slots.get(slot).as_ref().is_some_and(|content| {
            content.condemned || content.digest.is_some_and(|digest| self.quarantined(&digest).is_some())
        })
    }
}

/// A release that this node is not to start by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRelease {
    /// Which.
    pub release: Sha256,
    /// Why, in the server's words.
    pub reason: String,
}

/// One of something for each slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerSlot<T> {
    /// For slot A.
    pub a: T,
    /// For slot B.
    pub b: T,
}

impl<T> PerSlot<T> {
    /// That of this slot.
    pub const fn get(&self, slot: Slot) -> &T {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }

    /// That of this slot, to change.
    pub const fn get_mut(&mut self, slot: Slot) -> &mut T {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }
}

/// A release, by what identifies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its version.
    pub version: Version,
    /// Its digest: [`protocol::manifest::Manifest::release_digest`].
    pub digest: Sha256,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The version: of the manifest where the engine installed it, else what the running system said.
    pub version: Version,
    /// The release's digest, where the engine installed it.
    pub digest: Option<Sha256>,
    /// What the system in this slot called itself when it last ran. When it calls itself something else, the slot
    /// was written by somebody else.
    pub reported: Option<Version>,
    /// It failed here and must not boot again.
    pub condemned: bool,
}

/// The attempts at a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub release: Release,
    /// One is under way. Found set at a start, it was cut off.
    pub open: bool,
    /// Attempts that failed by the release's or the node's fault.
    pub failed: u32,
    /// Attempts that were cut off.
    pub interrupted: u32,
    /// Why the last one failed.
    pub last_error: String,
}

/// A flip: recorded durably before it is made, cleared when its outcome is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What the target holds.
    pub content: Content,
    /// The slot that boots next.
    pub target: Slot,
    /// The boot in which the flip was made.
    pub boot_id: BootId,
    /// The tries that the target got.
    pub tries: u8,
    /// Why.
    pub purpose: Purpose,
    /// How far the flip got.
    pub flip: Flip,
}

/// Why a flip is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To a release that was installed.
    Update,
    /// Back, because a person asked. The release gone back from is quarantined when the target is confirmed.
    Rollback {
        /// What ran when the person asked.
        from: Content,
    },
}

/// How far a flip got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flip {
    /// About to be made: it may or may not be on the disk.
    Activating,
    /// Made.
    Activated,
    /// About to be undone: it may or may not be on the disk.
    Undoing,
}

/// A boot in which the engine ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBoot {
    /// Its id.
    pub boot_id: BootId,
    /// The slot it ran from.
    pub slot: Slot,
}

/// A refusal that was reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The release, where it is known.
    pub release: Option<Release>,
    /// Why.
    pub reason: String,
}

/// A release that this node came back from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Its version.
    pub version: Version,
    /// Its digest, where it is known.
    pub digest: Option<Sha256>,
    /// Why.
    pub reason: String,
    /// When that was found.
    pub at: Timestamp,
}

/// One attempt to reboot into one version with a permit: recorded durably before the lock is first asked for it, and kept
/// until the lock heard how it ended. Its id is never used again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// Names it at the lock.
    pub attempt: AttemptId,
    /// The version to reboot into.
    pub version: Version,
    /// The boot in which it was begun.
    pub boot_id: BootId,
    /// How far it got.
    pub stage: PermitStage,
    /// The attempt that this one is to take the place of, until the lock said that it did: what the lock may have given
    /// that one, or keeps of its failure, must not be forgotten if this one ends before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<Permit>>,
}

/// How far an attempt at the lock got, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PermitStage {
    /// The lock is asked. It may have granted the permit already.
    Asked,
    /// It is held.
    Held,
    /// The attempt is given up, and never goes on; the lock is to be told. Recorded before the first word of it goes out,
    /// which may arrive much later.
    GivenUp,
    /// The version was confirmed in another boot; the lock is to be told, which frees the permit.
    Confirmed,
    /// The version failed here; the lock is to be told.
    Failed {
        /// Why, for whoever looks at the lock.
        reason: String,
    },
    /// The lock knows that the version failed. The permit stays held, so that the group halts, until an attempt with
    /// another version takes it over or an operator frees it.
    Halting,
    /// The lock holds a permit of this node from before another boot, for an attempt that is not on record.
    Unknown,
}

impl Permit {
    /// Whether the attempt may still lead to a reboot.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.stage, PermitStage::Asked | PermitStage::Held)
    }
}

/// A reboot that is being prepared: void in another boot, and for another version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// The version to reboot into.
    pub version: Version,
    /// The boot in which it is prepared.
    pub boot_id: BootId,
    /// The pre-reboot hooks ran and did not fail.
    pub hooks_done: bool,
    /// Seconds for which inhibitors and sessions were respected so far.
    pub held_s: u32,
    /// When one of them was last found to hold the reboot.
    pub held_at: Option<Timestamp>,
}

/// Post-confirm hooks that are still to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostConfirm {
    /// The version that was confirmed.
    pub version: Version,
    /// How often they were started.
    pub started: u32,
}
