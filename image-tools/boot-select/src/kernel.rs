//! Step 11, boot: what can be said of a kernel image before the firmware is asked to load it.
//!
//! A kernel with an EFI stub and a unified kernel image are PE files. The firmware checks them as well, but not whether
//! the file is whole: a section that is cut off would be loaded as whatever stands in memory behind it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The largest kernel or unified kernel image that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 30;

/// The machine type of PE files for x86-64.
pub const X86_64: u16 = 0x8664;
/// The machine type of PE files for arm64.
pub const AARCH64: u16 = 0xaa64;
/// The machine types for which this loader can be built.
pub const MACHINES: [u16; 2] = [X86_64, AARCH64];

/// The machine type of PE files that this loader can start.
pub const MACHINE: u16 = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };

/// Whether this is a whole PE file for one of these machine types.
///
/// # Errors
/// What is wrong with it.
pub fn check(image: &[u8], machines: &[u16]) -> Result<(), String> {
    if !image.starts_with(b"MZ") {
        return Err(String::from("not an EFI program: it does not begin with MZ"));
    }
    let pe = at(image, 0x3c, u32_at).ok_or_else(cut)?;
    if image.get(pe..pe.saturating_add(4)).ok_or_else(cut)? != b"PE\0\0" {
        return Err(String::from("not an EFI program: it has no PE header"));
    }
    let machine = u16_at(image, pe + 4).ok_or_else(cut)?;
    if !machines.contains(&machine) {
        let expected: Vec<String> = machines.iter().map(|machine| machine_name(*machine)).collect();
        let (found, expected) = (machine_name(machine), expected.join(" or "));
        return Err(format!("for another machine: it is for {found}, expected {expected}"));
    }
    let sections = u16_at(image, pe + 6).ok_or_else(cut)?;
    let optional_len = usize::from(u16_at(image, pe + 20).ok_or_else(cut)?);
    let table = pe + 24 + optional_len;
    for section in 0..usize::from(sections) {
        let header = table + section * 40;
        let len = at(image, header + 16, u32_at).ok_or_else(cut)?;
        let start = at(image, header + 20, u32_at).ok_or_else(cut)?;
        if len > 0 && start.checked_add(len).is_none_or(|end| end > image.len()) {
            return Err(cut());
        }
    }
    if sections == 0 { Err(String::from("not an EFI program: it has no sections")) } else { Ok(()) }
}

/// A machine type as manifests name architectures; others as the number that stands in the file.
#[must_use]
pub fn machine_name(machine: u16) -> String {
    match machine {
        X86_64 => String::from("x86-64"),
        AARCH64 => String::from("arm64"),
        other => format!("the PE machine type {other:#06x}"),
    }
}

fn cut() -> String {
    String::from("the file is cut off")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// A number that is a place or a length in the file.
fn at(bytes: &[u8], place: usize, read: fn(&[u8], usize) -> Option<u32>) -> Option<usize> {
    read(bytes, place).and_then(|number| usize::try_from(number).ok())
}
