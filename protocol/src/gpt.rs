//! Steps 8 and 11, flip and boot: the GUID partition table as bytes.
//!
//! [`Table::read`] takes both copies apart and says which one is to be believed; [`Table::commit`] and
//! [`Table::repair`] answer with the writes and flushes to do, in the order in which a power cut at any point, torn
//! sectors included, leaves a valid copy on the disk. Nothing here does the writing. Every byte that is not meant to
//! change is kept: other entries, unknown attribute bits, the rest of the header's sector.
//!
//! The boot loader and the engine share this module, so it builds without `std` and believes nothing that it reads:
//! lengths are checked before memory is taken, places before they are read or written.

mod guid;
mod header;
mod table;

pub use guid::{Guid, InvalidGuid};
pub use header::{Damage, ENTRIES_BYTES_MAX, Header};
pub use table::{
    Change, Commit, Entry, Health, Step, Table, TableError, detect_sector_size, protected_first_sector,
};

#[cfg(test)]
#[cfg(feature = "std")]
mod tests;

/// Reads a little-endian number out of a sector that is known to be long enough; absent bytes count as zero.
fn le<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        out.copy_from_slice(found);
    }
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(le(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(le(bytes, at))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}
