//! Step 11, boot: what a slot starts from, read from its BOOT partition and checked.
//!
//! The loader reads through the firmware's file system; `image-tools` reads an image or a disk, so that what it accepts,
//! and what it says the loader would do, is this code's word.

use crate::{SlotPartitions, cmdline, kernel};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The largest initrd that is read, in bytes: as long as files on FAT can be.
const INITRD_MAX_BYTES: u64 = u32::MAX as u64;
/// Much more than a command line may be; what is too long is said with its length.
const CMDLINE_MAX_BYTES: u64 = 64 << 10;

/// The root folder of a BOOT partition's file system.
pub trait Files {
    /// The whole of a file, which is at most `max_bytes` long; `None` where there is none. `name` begins with `\`.
    ///
    /// # Errors
    /// Why it cannot be read, beginning with its name.
    fn read(&mut self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String>;
}

/// What a slot's BOOT partition holds, read whole and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel's file name.
    pub name: &'static str,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// Its initial file system; none beside `\boot.efi`, which brings its own.
    pub initrd: Option<Vec<u8>>,
    /// The whole command line, with what the loader adds.
    pub cmdline: String,
}

impl BootFiles {
    /// Reads them. `machines` are the types of PE files that can be started.
    ///
    /// # Errors
    /// What is missing or wrong: the slot is left out.
    pub fn read(files: &mut impl Files, slot: &SlotPartitions, machines: &[u16]) -> Result<Self, String> {
        let cmdline = files.read("\\cmdline", CMDLINE_MAX_BYTES)?.unwrap_or_default();
        let cmdline = cmdline::compose(&cmdline, slot)?;
        let (name, kernel, initrd) = match files.read("\\vmlinuz", kernel::MAX_BYTES)? {
            Some(kernel) => ("\\vmlinuz", kernel, files.read("\\initrd", INITRD_MAX_BYTES)?),
            // It brings its own initrd along.
            None => match files.read("\\boot.efi", kernel::MAX_BYTES)? {
                Some(kernel) => ("\\boot.efi", kernel, None),
                None => return Err("\\vmlinuz: not found".into()),
            },
        };
        if initrd.as_ref().is_some_and(Vec::is_empty) {
            return Err("\\initrd: empty".into());
        }
        kernel::check(&kernel, machines).map_err(|why| format!("{name}: {why}"))?;
        Ok(Self { name, kernel, initrd, cmdline })
    }
}
