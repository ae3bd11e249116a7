//! Step 11, boot: the kernel command line.

use crate::SlotPartitions;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The longest command line that an x86 kernel takes whole, in bytes. A longer one would be cut, and what the loader
/// adds stands at its end.
pub const MAX_BYTES: usize = 2047;

/// The word that says that the slot which starts is not successful: whatever guards it has to act in this boot.
pub const TRYING: &str = "flipside.trying";

/// The word that makes Linux look for the backup table (`block/partitions/efi.c`, `force_gpt`): without it a disk whose
/// primary table is damaged has no partitions, and the root is not found.
pub const BELIEVE_BACKUP: &str = "gpt";

/// The command line of a slot: the text of its `\cmdline` file, then the root partition, the slot and, where the slot is
/// not successful, [`TRYING`]; where the primary table is damaged, `gpt`.
///
/// # Errors
/// What is wrong with the file: not one line of printable ASCII text, or too long.
pub fn compose(file: &[u8], slot: &SlotPartitions) -> Result<String, String> {
    let text = core::str::from_utf8(file).map_err(|_| String::from("\\cmdline: not text"))?.trim();
    if let Some(bad) = text.chars().find(|c| !(' '..='~').contains(c)) {
        return Err(match bad {
            '\n' | '\r' => String::from("\\cmdline: more than one line"),
            other => format!("\\cmdline: holds the character {other:?}: expected printable ASCII"),
        });
    }
    let gap = if text.is_empty() { "" } else { " " };
    let trying = if slot.root.attributes.successful() { String::new() } else { format!(" {TRYING}") };
    let backup = if slot.by_backup { format!(" {BELIEVE_BACKUP}") } else { String::new() };
    let (root, name) = (slot.root.unique_guid, slot.slot);
    let line = format!("{text}{gap}root=PARTUUID={root} flipside.slot={name}{trying}{backup}");
    if line.len() > MAX_BYTES {
        return Err(format!(
            "\\cmdline: {} bytes with what the loader adds: at most {MAX_BYTES}",
            line.len()
        ));
    }
    Ok(line)
}

/// The command line as load options: UCS-2, with the terminating zero.
#[must_use]
pub fn load_options(line: &str) -> Vec<u16> {
    line.encode_utf16().chain([0]).collect()
}
