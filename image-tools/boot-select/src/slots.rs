//! Step 11, boot: the slots' partitions, found by their names.

use alloc::format;
use alloc::string::String;
use protocol::gpt::{Entry, Guid, Table};
use protocol::slot::Slot;

/// The GPT type of root partitions, whose attribute bits carry priority, tries and successful:
/// `5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6`, as it stands on the disk.
pub const ROOT_TYPE: Guid = Guid::from_bytes([
    0xf4, 0xf5, 0xfb, 0x5d, 0x48, 0x28, 0xac, 0x4b, 0xaa, 0x5e, 0x0d, 0x9a, 0x20, 0xb7, 0x45, 0xa6,
]);

/// The partitions of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotPartitions {
    /// Which slot.
    pub slot: Slot,
    /// `ROOT-A` or `ROOT-B`: carries the attributes, and becomes the kernel's root.
    pub root: Entry,
    /// `BOOT-A` or `BOOT-B`: the FAT file system that holds kernel and initrd. Otherwise what is wrong with it.
    pub boot: Result<Entry, String>,
    /// Whether only the backup table says so: the primary is damaged when the slot starts, and stays so.
    pub by_backup: bool,
}

impl SlotPartitions {
    /// Finds a slot's partitions.
    ///
    /// # Errors
    /// What is wrong with the root partition, without which there is no slot.
    pub(crate) fn find(table: &Table, slot: Slot) -> Result<Self, String> {
        let root = named(table, &format!("ROOT-{slot}"))?;
        if root.type_guid != ROOT_TYPE {
            return Err(format!("{} has the type {}: expected {ROOT_TYPE}", root.name, root.type_guid));
        }
        Ok(Self { slot, root, boot: named(table, &format!("BOOT-{slot}")), by_backup: false })
    }
}

fn named(table: &Table, name: &str) -> Result<Entry, String> {
    let mut found = table.entries().filter(|entry| entry.name == name);
    let entry = found.next().ok_or_else(|| format!("there is no partition {name}"))?;
    match found.next() {
        None => Ok(entry),
        Some(_) => Err(format!("there are two partitions {name}")),
    }
}
