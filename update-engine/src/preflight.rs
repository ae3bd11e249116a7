//! Step 5, download: what can be known before the first byte beside the disk (see [`crate::slots`]): whether the
//! state folder survives a slot change, and has room for what an update writes there.

use disk::Disk;
use machine::{Failure, FailureKind};
use protocol::manifest::Manifest;
use protocol::slot::Slot;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Room for the record, the metadata and the status, in bytes.
const SPARE: u64 = 8 << 20;

/// Whether the file system of the state folder has room for the payload's head and the engine's own files.
///
/// # Errors
/// A [`Failure`] of the node.
pub fn state_space(state_dir: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let head = manifest.full_payload().map_or(0, |payload| payload.head_size);
    let needed = SPARE + head;
    let stat = rustix::fs::statvfs(state_dir).map_err(|error| {
        Failure::new(FailureKind::Node, format!("cannot examine {}: {error}", state_dir.display()))
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        let detail = format!(
            "the state folder {} has {free} bytes free: expected at least {needed}; make room there",
            state_dir.display()
        );
        return Err(Failure::new(FailureKind::Node, detail));
    }
    Ok(())
}

/// Where the state folder lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name of its file system, where that is one which ends with the boot.
    pub memory: Option<&'static str>,
    /// It is on the file system of `/`.
    pub with_root: bool,
    /// The partition under it.
    pub partition: Partition,
}

/// A partition, as seen from the disk with the slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partition {
    /// It belongs to a slot, and this is its name.
    OfSlot(String),
    /// It is on that disk and in no slot.
    BesideSlots,
    /// It is elsewhere, or cannot be told.
    Elsewhere,
}

/// Whether a state folder at this place is still the same after a boot into the other slot.
///
/// # Errors
/// Why it is not.
pub fn survives(place: &Place) -> Result<(), String> {
    match place {
        Place { memory: Some(name), .. } => Err(format!("it is on {name}, which ends with this boot")),
        Place { partition: Partition::OfSlot(name), .. } => {
            Err(format!("it is on {name}, which belongs to a slot"))
        }
        // A root file system that is no slot's stays the same.
        Place { with_root: true, partition: Partition::Elsewhere, .. } => {
            Err("it is on the file system of /, which another slot does not have".to_owned())
        }
        Place { .. } => Ok(()),
    }
}

/// Finds out where the state folder lies; `device` is the disk with the slots.
///
/// # Errors
/// A [`Failure`] of the node where the folder or the disk cannot be examined.
pub fn place_of(state_dir: &Path, disk: &Disk, device: &Path) -> Result<Place, Failure> {
    let failed = |path: &Path, error: io::Error| {
        Failure::new(FailureKind::Node, format!("cannot examine {}: {error}", path.display()))
    };
    let metadata = |path: &Path| std::fs::metadata(path).map_err(|error| failed(path, error));
    let file_system = rustix::fs::statfs(state_dir).map_err(|error| failed(state_dir, error.into()))?;
    let memory = match file_system.f_type {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        0x794c_7630 => Some("overlayfs"),
        _ => None,
    };
    let state = metadata(state_dir)?.dev();
    let with_root = metadata(Path::new("/"))?.dev() == state;
    let device = metadata(device)?;
    let partition = if device.file_type().is_block_device() {
        let slots = Slot::ALL.into_iter().flat_map(|slot| disk.slot_partitions(slot));
        let slots: Vec<_> = slots
            .map(|(_, view)| (view.name.clone(), view.offset..view.offset.saturating_add(view.len)))
            .collect();
        partition_under(Path::new("/sys"), state, device.rdev(), &slots)
    } else {
        Partition::Elsewhere
    };
    Ok(Place { memory, with_root, partition })
}

/// The partition that is the device `state`, by the kernel's tables; `disk` is the device with the slots.
fn partition_under(sys: &Path, state: u64, disk: u64, slots: &[(String, Range<u64>)]) -> Partition {
    let number = |device| format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let entry = sys.join("dev/block").join(number(state));
    // Sysfs counts in units of 512 bytes whatever the sector size.
    let bytes = |name: &str| {
        let text = std::fs::read_to_string(entry.join(name)).ok()?;
        text.trim().parse::<u64>().ok()?.checked_mul(512)
    };
    let whole = std::fs::canonicalize(&entry).ok().and_then(|path| {
        let text = std::fs::read_to_string(path.parent()?.join("dev")).ok()?;
        Some(text.trim().to_owned())
    });
    let (Some(start), Some(len)) = (bytes("start"), bytes("size")) else { return Partition::Elsewhere };
    if whole != Some(number(disk)) {
        return Partition::Elsewhere;
    }
    let end = start.saturating_add(len);
    let slot = slots.iter().find(|(_, range)| range.start < end && start < range.end);
    slot.map_or(Partition::BesideSlots, |(name, _)| Partition::OfSlot(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_survives_only_outside_of_both_slots() {
        let of_slot = || Partition::OfSlot("ROOT-A".to_owned());
        for (memory, with_root, partition, reason) in [
            (None, false, Partition::BesideSlots, None),
            (None, false, Partition::Elsewhere, None),
            (None, true, Partition::BesideSlots, None),
            (None, true, Partition::Elsewhere, Some("file system of /")),
            (None, true, of_slot(), Some("ROOT-A")),
            (None, false, of_slot(), Some("ROOT-A")),
            (Some("tmpfs"), false, Partition::Elsewhere, Some("tmpfs")),
            (Some("overlayfs"), true, Partition::Elsewhere, Some("overlayfs")),
        ] {
            let place = Place { memory, with_root, partition };
            match (survives(&place), reason) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) => assert!(error.contains(part), "{error}"),
                (found, _) => panic!("{place:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn the_partition_under_the_state_folder_is_found() {
        let sys = tempfile::tempdir().unwrap();
        let by_number = sys.path().join("dev/block");
        std::fs::create_dir_all(&by_number).unwrap();
        let disk = sys.path().join("devices/sda");
        for (name, number, start) in [("sda2", "8:2", "2048"), ("sda3", "8:3", "4096")] {
            let partition = disk.join(name);
            std::fs::create_dir_all(&partition).unwrap();
            std::fs::write(partition.join("start"), format!("{start}\n")).unwrap();
            std::fs::write(partition.join("size"), "2048\n").unwrap();
            std::os::unix::fs::symlink(&partition, by_number.join(number)).unwrap();
        }
        std::fs::write(disk.join("dev"), "8:0\n").unwrap();
        std::os::unix::fs::symlink(&disk, by_number.join("8:0")).unwrap();
        let slots = [("ROOT-B".to_owned(), 2048 * 512..4096 * 512)];
        let under = |minor, disk_minor| {
            let device = |minor| rustix::fs::makedev(8, minor);
            partition_under(sys.path(), device(minor), device(disk_minor), &slots)
        };
        assert_eq!(under(2, 0), Partition::OfSlot("ROOT-B".to_owned()));
        assert_eq!(under(3, 0), Partition::BesideSlots);
        // Another disk's partition, a whole disk, and a device that the kernel does not list.
        assert_eq!(under(2, 16), Partition::Elsewhere);
        assert_eq!(under(0, 0), Partition::Elsewhere);
        assert_eq!(under(9, 0), Partition::Elsewhere);
    }
    use protocol::digest::Sha256;
    use protocol::id::PartitionRole;
    use protocol::manifest::{PartitionImage, PayloadFile};

    #[test]
    fn too_little_space_is_told_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |head_size| Manifest {
            schema: 1,
            os: "debian".to_owned(),
            version: "1.1.0".parse().unwrap(),
            arch: "x86-64".parse().unwrap(),
            partitions: vec![PartitionImage {
                role: PartitionRole::root(),
                size: 1,
                sha256: Sha256::of(b"x"),
            }],
            payloads: vec![PayloadFile {
                size: u64::MAX,
                sha256: Sha256::of(b"p"),
                head_size,
                head_sha256: Sha256::of(b"h"),
                source_sha256: None,
            }],
            min_source_version: None,
            notes: String::new(),
        };
        assert_eq!(state_space(dir.path(), &manifest(1000)), Ok(()));
        let failure = state_space(dir.path(), &manifest(1 << 60)).unwrap_err();
        assert!(failure.detail.contains("make room"), "{}", failure.detail);
        assert!(state_space(&dir.path().join("missing"), &manifest(1)).is_err());
    }
}
