//! Tiny disks with two slots, laid out by the `gpt` crate in memory.

use disk::testing::{NotMounted, RecordingMedium};
use disk::{Disk, InvalidatedSlot, SlotLayout, TargetSlot};
use gpt::disk::LogicalBlockSize;
use gpt::partition_types::{EFI, LINUX_FS, OperatingSystem, Type};
use protocol::digest::Sha256;
use protocol::id::PartitionRole;
use protocol::manifest::PartitionImage;
use protocol::slot::{Attributes, Slot};
use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

const ROOT: usize = 16 << 10;
const BOOT: usize = 8 << 10;
const OTHER: usize = 4 << 10;
/// Room for a table, with sectors of 4096 bytes as well.
const TABLE: usize = 24 << 10;
/// Images are written in pieces of this size.
const PIECE: usize = 5 << 10;

/// Attributes by priority, tries and successful.
pub(crate) fn bits(priority: u8, tries: u8, successful: bool) -> Attributes {
    Attributes::default().with_priority(priority).with_tries_left(tries).with_successful(successful)
}

/// The images of one release: bytes that differ between releases everywhere.
#[derive(Clone)]
pub(crate) struct Release {
    /// Empty where the release has none.
    pub(crate) boot: Vec<u8>,
    pub(crate) root: Vec<u8>,
}

impl Release {
    pub(crate) fn new(seed: u8) -> Self {
        let bytes = |len: usize, salt: usize| {
            (0..len).map(|i| seed ^ (i * 7 + (i >> 8) + salt).to_le_bytes()[0]).collect()
        };
        Self { boot: bytes(BOOT - 512, 3), root: bytes(ROOT - 4096 - 512 - 7, 0) }
    }

    /// The same without a boot image.
    pub(crate) fn without_boot(self) -> Self {
        Self { boot: Vec::new(), ..self }
    }

    pub(crate) fn images(&self) -> Vec<PartitionImage> {
        let image =
            |role, bytes: &[u8]| PartitionImage { role, size: bytes.len() as u64, sha256: Sha256::of(bytes) };
        let mut images =
            vec![image(PartitionRole::root(), &self.root), image(PartitionRole::boot(), &self.boot)];
        images.retain(|image| image.size > 0);
        images
    }

    pub(crate) fn digest(&self) -> Sha256 {
        protocol::manifest::release_digest(&self.images())
    }

    /// Whether a slot holds it, whole, and nothing of another release where it has no image.
    pub(crate) fn is_on(&self, disk: &Disk, slot: Slot) -> bool {
        [(PartitionRole::root(), &self.root), (PartitionRole::boot(), &self.boot)].iter().all(
            |(role, bytes)| {
                let window = disk.open_slot(role, slot).unwrap();
                let len = if bytes.is_empty() { usize::try_from(window.len()).unwrap() } else { bytes.len() };
                let mut found = vec![0; len];
                window.read_at(0, &mut found).unwrap();
                if bytes.is_empty() { found.iter().all(|byte| *byte == 0) } else { found == **bytes }
            },
        )
    }

    /// The bytes of a slot's partitions behind its images.
    pub(crate) fn behind(&self, disk: &Disk, slot: Slot) -> Vec<Range<usize>> {
        let behind = |role, bytes: &[u8]| {
            let view = disk.partition(slot, &role).unwrap();
            let start = usize::try_from(view.offset).unwrap();
            start + bytes.len()..start + usize::try_from(view.len).unwrap()
        };
        let mut behind =
            vec![behind(PartitionRole::root(), &self.root), behind(PartitionRole::boot(), &self.boot)];
        // A partition without an image is cleared.
        behind.truncate(self.images().len());
        behind
    }

    /// Writes it in several pieces, as the engine does.
    pub(crate) fn write_to(&self, slot: &InvalidatedSlot) -> std::io::Result<()> {
        for (role, bytes) in [(PartitionRole::root(), &self.root), (PartitionRole::boot(), &self.boot)] {
            let window = slot.window(&role).unwrap();
            for (i, piece) in bytes.chunks(PIECE).enumerate() {
                window.write_at((i * PIECE) as u64, piece)?;
            }
        }
        Ok(())
    }
}

/// A disk image: release `a` on slot A with attributes `a_bits`, `b` on slot B, something else everywhere else.
pub(crate) fn image(
    block_size: u32,
    (a, a_bits): (&Release, Attributes),
    (b, b_bits): (&Release, Attributes),
) -> Vec<u8> {
    let sector = u64::from(block_size);
    let root_type = Type { guid: disk::layout::ROOT_TYPE.parse().unwrap(), os: OperatingSystem::Linux };
    let other = Attributes::from_bits(1 << 60 | 4);
    let with_other = |bits: Attributes| bits.bits() | other.bits();
    let esp = vec![0x11; OTHER];
    let parts: [(&str, Type, u64, usize, &[u8]); 6] = [
        ("ESP", EFI, 1, OTHER, &esp),
        ("BOOT-A", LINUX_FS, 0, BOOT, &a.boot),
        ("ROOT-A", root_type.clone(), with_other(a_bits), ROOT, &a.root),
        ("BOOT-B", LINUX_FS, 0, BOOT, &b.boot),
        ("ROOT-B", root_type, with_other(b_bits), ROOT, &b.root),
        ("STATE", LINUX_FS, 0, OTHER, &[0x22; OTHER]),
    ];
    let mut offset = TABLE;
    let len = offset + parts.iter().map(|p| p.3).sum::<usize>() + TABLE;
    let mut image = vec![0; len];
    let size = if block_size == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let sectors = u32::try_from(len as u64 / sector - 1).unwrap();
    let mut cursor = Cursor::new(&mut image);
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut cursor).unwrap();
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(size)
        .create_from_device(cursor, Some("11111111-2222-3333-4444-555555555555".parse().unwrap()))
        .unwrap();
    let mut places = Vec::new();
    for (number, (name, kind, attributes, len, bytes)) in (1..).zip(parts) {
        let (first, count) = (offset as u64 / sector, len as u64 / sector);
        table.add_partition_at(name, number, first, count, kind, attributes).unwrap();
        places.push((offset, bytes));
        offset += len;
    }
    table.write().unwrap();
    for (offset, bytes) in places {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    image
}

/// Moves the first and the last sector of a partition.
pub(crate) fn resize(image: &mut [u8], name: &str, first: i64, last: i64) {
    let mut table = gpt::GptConfig::new().writable(true).open_from_device(Cursor::new(image)).unwrap();
    let mut partitions = table.partitions().clone();
    let partition = partitions.values_mut().find(|partition| partition.name == name).unwrap();
    partition.first_lba = partition.first_lba.checked_add_signed(first).unwrap();
    partition.last_lba = partition.last_lba.checked_add_signed(last).unwrap();
    table.update_partitions(partitions).unwrap();
    table.write().unwrap();
}

/// A recording medium with this image, and the disk on it.
pub(crate) fn open(image: Vec<u8>, block_size: u32) -> (Arc<RecordingMedium>, Disk) {
    let medium = Arc::new(RecordingMedium::new(image, block_size));
    let disk = Disk::open(medium.clone(), &SlotLayout::default()).unwrap();
    (medium, disk)
}

/// The whole of an update, from the slot's invalidation to its activation.
pub(crate) fn update(disk: &mut Disk, release: &Release, running: Slot) -> Result<(), String> {
    let target = TargetSlot::new(disk, running.other(), running, &NotMounted).map_err(|e| e.to_string())?;
    disk.check_fit(&release.images(), running.other(), running).map_err(|e| e.to_string())?;
    let invalidated = disk.invalidate(target).map_err(|e| e.to_string())?;
    invalidated.clear_unfilled(&release.images()).map_err(|e| e.to_string())?;
    release.write_to(&invalidated).map_err(|e| e.to_string())?;
    let staged = invalidated.verify(&release.images(), &|_| ()).map_err(|e| e.to_string())?;
    disk.activate(staged, release.digest(), running, 3).map_err(|e| e.to_string())
}
