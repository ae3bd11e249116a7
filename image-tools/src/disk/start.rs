//! Step 11, boot: what the loader would start from the BOOT partition of the slot that it chose. What the loader
//! checks before it starts a kernel is checked here by the same code.

use crate::fat;
use ::disk::{Disk, SlotWindow};
use boot_select::SlotPartitions;
use protocol::id::PartitionRole;
use protocol::slot::Slot;
use serde::Serialize;

/// What stands on a BOOT partition.
#[derive(Debug, Serialize)]
pub(super) struct Start {
    /// The partition's name.
    partition: String,
    /// The kernel's file, `\vmlinuz` or `\boot.efi`.
    program: &'static str,
    program_bytes: usize,
    /// Length of `\initrd`; null where there is none.
    initrd_bytes: Option<u64>,
    /// The whole command line, with what the loader adds.
    cmdline: String,
}

/// What would be started from a slot: nothing where its BOOT partition is empty, as on a disk whose boots are only
/// simulated.
///
/// # Errors
/// Why the loader would leave the slot out.
pub(super) fn find(disk: &Disk, slot: Slot) -> Result<Option<Start>, String> {
    let role = PartitionRole::boot();
    let Some(view) = disk.partition(slot, &role) else { return Ok(None) };
    let said = |why: String| format!("{}: {why}", view.name);
    let window = disk.open_slot(&role, slot).map_err(|error| said(format!("{error}")))?;
    if ::disk::fit::is_empty(&window).map_err(|error| said(format!("cannot be read: {error}")))? {
        return Ok(None);
    }
    look(disk, slot, &view.name, &window).map(Some).map_err(said)
}

fn look(disk: &Disk, slot: Slot, name: &str, window: &SlotWindow) -> Result<Start, String> {
    let mut volume = fat::Reader::open(window.clone())
        .map_err(|error| format!("it holds no FAT volume that can be read: {error}"))?;
    let mut read = |name: &str| volume.read(name).map_err(|error| format!("{name}: {error}"));
    let entry = disk
        .partition(slot, &PartitionRole::root())
        .and_then(|root| disk.table().entry(root.entry))
        .ok_or("the slot has no root partition")?;
    let by_backup = matches!(disk.health(), ::disk::TableHealth::PrimaryDamaged(_));
    let partitions = SlotPartitions { slot, root: entry, boot: Err(String::new()), by_backup };
    let text = read("cmdline")?.unwrap_or_default();
    let cmdline = boot_select::cmdline::compose(&text, &partitions)?;
    let (program, bytes) = match (read("vmlinuz")?, read("boot.efi")?) {
        (Some(kernel), _) => ("\\vmlinuz", kernel),
        (None, Some(unified)) => ("\\boot.efi", unified),
        (None, None) => return Err("\\vmlinuz: not found".to_owned()),
    };
    boot_select::kernel::check(&bytes).map_err(|why| format!("{program}: {why}"))?;
    let initrd = if program == "\\vmlinuz" { read("initrd")? } else { None };
    Ok(Start {
        partition: name.to_owned(),
        program,
        program_bytes: bytes.len(),
        initrd_bytes: initrd.map(|bytes| bytes.len() as u64),
        cmdline,
    })
}

/// For people.
pub(super) fn print(found: &Result<Option<Start>, String>, slot: Slot) {
    match found {
        Ok(Some(start)) => {
            let initrd =
                start.initrd_bytes.map_or("no initrd".to_owned(), |len| format!("\\initrd {len} bytes"));
            println!("starts {}: {} {} bytes, {initrd}", start.partition, start.program, start.program_bytes);
            println!("command line: {}", start.cmdline);
        }
        Ok(None) => {
            println!("starts nothing: the slot has no boot image, this boot is simulated");
        }
        Err(why) => {
            println!("cannot be started ({why}): the loader would leave slot {slot} out of this boot");
        }
    }
}
