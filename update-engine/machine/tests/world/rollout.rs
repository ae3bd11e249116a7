//! What the server holds: an update that waits for its boot and whose rollout was halted or paused.

use super::check::deny;
use super::{Outcome, World};
use machine::{Answer, Checked, Purpose, Record};

/// What the node was last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// By this process, or by one before it that put it on record.
    now: bool,
    /// The machine has had it saved.
    durable: bool,
}

impl World {
    /// The machine hears a server's answer that it did not give up on.
    pub(super) fn hear(&mut self, checked: &Checked) {
        let pending = self.state().is_some_and(|state| state.pending().is_some());
        match checked.answer {
            Answer::Hold(_) if pending => self.ledger.held.now = true,
            Answer::Refused(_) => {}
            _ => self.ledger.held.now = false,
        }
    }
}

impl Held {
    /// The machine saves this record.
    pub(super) fn saved(&mut self, record: &Record) {
        self.durable = record.held.is_some();
    }

    /// A new process begins with what is on record.
    pub(super) fn restarted(&mut self) {
        self.now &= self.durable;
    }
}

/// Nobody reboots by himself into what the server holds, and under the lock nothing is activated.
pub(super) fn not_held(world: &World) -> Outcome {
    let intent = world.record().intent;
    let is_update = intent.is_none_or(|intent| intent.purpose == Purpose::Update);
    if world.ledger.held.now && is_update && !world.ledger.reboot_asked {
        return deny("an update goes on that the server holds");
    }
    Ok(())
}
