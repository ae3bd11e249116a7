//! What happened to the node, for the invariants.

use protocol::digest::Sha256;
use protocol::version::Version;
use std::collections::{BTreeMap, BTreeSet};

/// What happened, for the invariants.
#[derive(Default)]
pub struct Ledger {
    /// Releases that failed to boot or to be healthy here after they were activated, or that a person went back from.
    pub failed: BTreeSet<usize>,
    /// Releases that a person confirmed, whatever their health.
    pub forced: BTreeSet<usize>,
    /// Releases whose health was found good here, per boot slot.
    pub proven: BTreeSet<usize>,
    /// Of [`Self::failed`], those that no person cleared since.
    pub banned: BTreeSet<usize>,
    /// Installations begun, per release, less those that ended by nobody's fault; since a person last forgave them.
    pub begun: BTreeMap<usize, u32>,
    /// The release of the installation begun last.
    pub last_begun: Option<usize>,
    /// Every event the server stored.
    pub stored: BTreeMap<u64, protocol::wire::Event>,
    /// Events as they were queued on the disk.
    pub newest_confirmed: Option<Version>,
    /// The operator asked for a reboot, or the machine has to go back.
    pub reboot_asked: bool,
    /// Last quarantine made durable and not cleared since.
    pub quarantined: BTreeSet<Sha256>,
    /// Reboots for which the hooks ran and did not fail: the boot in which, and the version to reboot into.
    pub drained: BTreeSet<(u32, Version)>,
    /// Looks that found an inhibitor or a session since the node last booted or a person gave up.
    pub looks: u32,
    /// Confirmations on record, by the number of their event.
    pub confirmed: BTreeSet<u64>,
    /// How often the post-confirm hooks ran, at least in part, since the last confirmation.
    pub post_confirms: u32,
    /// How often the engine was ended since the last confirmation.
    pub deaths: u32,
    /// Versions whose post-confirm hooks ran to their end.
    pub post_confirmed: BTreeSet<Version>,
    /// The evidence that was on record with an event.
    pub evidence: BTreeMap<u64, String>,
    /// What the server said of an update that waits for its boot.
    pub held: super::rollout::Held,
}

impl Ledger {
    pub(super) fn fail(&mut self, index: usize) {
        self.failed.insert(index);
        self.banned.insert(index);
    }

    /// The installation under way, if any, costs nothing.
    pub(super) fn excuse(&mut self) {
        if let Some(begun) = self.last_begun.take().and_then(|index| self.begun.get_mut(&index)) {
            *begun = begun.saturating_sub(1);
        }
    }
}
