//! Step 11, boot, in tests: the loader's own sequence on a medium whose slots hold no kernels.

use crate::medium::Medium;
use crate::whole::WholeDisk;
use boot_select::{Console, Facts, Loader, NoSlot, SlotPartitions};
use protocol::slot::Slot;
use std::sync::Arc;

/// Boots as the loader does: chooses a slot, and records the try it spends. Whatever is chosen starts: what it holds is
/// the test's business.
///
/// A [`crate::Disk`] that is open on the medium does not know of it before its next change.
///
/// # Errors
/// What the loader says where no slot can be booted.
pub fn boot(medium: Arc<dyn Medium>) -> Result<Slot, NoSlot> {
    boot_select::boot(&mut WholeDisk::new(medium), &mut StartsAll, &mut Nobody)
}

struct StartsAll;

impl Loader for StartsAll {
    type Started = Slot;

    fn start(&mut self, slot: &SlotPartitions) -> Result<Slot, String> {
        Ok(slot.slot)
    }
}

/// Who watches the machine.
struct Nobody;

impl Console for Nobody {
    fn say(&mut self, _message: &str) {}
}

impl Facts for Nobody {
    fn publish(&mut self, _facts: &str) {}
}
