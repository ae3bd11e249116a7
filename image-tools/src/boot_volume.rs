//! Step 1, image: whether a file is a boot image that the loader (step 11) starts a slot from. What it must hold is read
//! and checked by the loader's own code; here is what only the one who makes a disk or a release can be told.

use crate::content;
use crate::fat::Reader;
use ::disk::{Access, DiskFile, Medium as _, SlotWindow};
use anyhow::{Context as _, anyhow, ensure};
use boot_select::{BootFiles, ROOT_TYPE, SlotPartitions, kernel};
use protocol::gpt::{Entry, Guid};
use protocol::id::Arch;
use protocol::slot::{Attributes, Slot};
use std::path::Path;
use std::sync::Arc;

/// Checks a boot image. `sector_size` is that of the disk it goes to, if that is known; `machines` are the types of PE
/// files that can be started there.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(crate) fn check(path: &Path, sector_size: Option<u32>, machines: &[u16]) -> anyhow::Result<()> {
    let shown = path.display();
    let head = content::head(path)?;
    ensure!(
        content::of(&head) == content::Content::FileSystem("FAT"),
        "{shown} is no boot image: expected a FAT volume with \\vmlinuz or \\boot.efi, found {}; \
         make one with `image-tools boot-image build`",
        content::name(&head)
    );
    let (volume_sector, volume_len) = geometry(&head);
    let medium = DiskFile::open(path, Access::Read)?;
    ensure!(
        volume_len <= medium.len(),
        "the boot image {shown} is cut off: its volume has {volume_len} bytes, the file {}; make it again",
        medium.len()
    );
    if let Some(disk_sector) = sector_size.filter(|disk_sector| *disk_sector > volume_sector) {
        // EDK2 reads it, and the kernel starts.
        tracing::warn!(
            "the boot image {shown} is made for sectors of {volume_sector} bytes, the disk has {disk_sector}: some firmware, \
             and Linux's vfat, do not read it; make it again with `boot-image build --sector-size {disk_sector}`"
        );
    }
    let window = SlotWindow::read_only(Arc::new(medium), 0, volume_len)
        .with_context(|| format!("cannot read {shown}"))?;
    let mut volume = Reader::open(window)
        .with_context(|| format!("{shown} is no boot image: its FAT volume cannot be read"))?;
    BootFiles::read(&mut volume, &longest_slot(), machines).map(drop).map_err(|why| {
        anyhow!(
            "the loader would not start from the boot image {shown}: {why}; make it with `image-tools boot-image build`"
        )
    })
}

/// Bytes in a sector, and the length of the volume in bytes, as a FAT boot sector has them.
fn geometry(head: &[u8]) -> (u32, u64) {
    let byte = |at: usize| head.get(at).copied().unwrap_or_default();
    let sector = u32::from(u16::from_le_bytes([byte(11), byte(12)]));
    let short = u32::from(u16::from_le_bytes([byte(19), byte(20)]));
    let long = u32::from_le_bytes([byte(32), byte(33), byte(34), byte(35)]);
    let sectors = if short == 0 { long } else { short };
    (sector, u64::from(sector) * u64::from(sectors))
}

/// A slot for which the loader adds to the command line all that it ever adds.
fn longest_slot() -> SlotPartitions {
    let root = Entry {
        number: 1,
        type_guid: ROOT_TYPE,
        unique_guid: Guid::ZERO,
        first_lba: 0,
        last_lba: 0,
        attributes: Attributes::default(),
        name: String::new(),
    };
    SlotPartitions { slot: Slot::A, root, boot: Err(String::new()), by_backup: true }
}

/// The machine types of an architecture; every type that a loader can be built for where its name says nothing.
pub(crate) fn machines(arch: &Arch) -> Vec<u16> {
    match arch.as_str() {
        "x86-64" | "x86_64" | "amd64" => vec![kernel::X86_64],
        "arm64" | "aarch64" => vec![kernel::AARCH64],
        _ => kernel::MACHINES.into(),
    }
}
