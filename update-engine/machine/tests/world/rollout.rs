//! What the server holds: an update that waits for its boot and whose rollout was halted or paused.

use super::check::deny;
use super::{Outcome, World};
use machine::{Answer, Checked, Record, State};
use protocol::digest::Sha256;

/// What the node was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The release that this process was told to wait with, or one before it that put it on record.
    now: Option<Sha256>,
    /// The one that the machine has had saved.
    durable: Option<Sha256>,
}

impl World {
    /// The machine hears a server's answer that it did not give up on.
    pub(super) fn hear(&mut self, checked: &Checked) {
        let pending = self.state().and_then(State::pending).map(|(release, _)| release.digest);
        let held = &mut self.ledger.held.now;
        match &checked.answer {
            Answer::Hold(_) if pending.is_some() => *held = pending,
            // Only this lets it go.
            Answer::Offer(offer) if *held == Some(offer.release.digest) => *held = None,
            _ => {}
        }
    }
}

impl Held {
    /// The machine saves this record.
    pub(super) fn saved(&mut self, record: &Record) {
        self.durable = record.held.as_ref().map(|held| held.release);
    }

    /// A new process begins with what is on record.
    pub(super) fn restarted(&mut self) {
        self.now = self.now.filter(|held| self.durable == Some(*held));
    }
}

/// Nobody reboots by himself into what the server holds, and under the lock it is not activated.
pub(super) fn not_held(world: &World, release: Option<Sha256>) -> Outcome {
    if release.is_some() && world.ledger.held.now == release && !world.ledger.reboot_asked {
        return deny("an update goes on that the server holds");
    }
    Ok(())
}
