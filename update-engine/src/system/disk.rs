//! Step 11, boot: the disk that holds the running slot, where `disk.device` does not name it.
//!
//! The kernel command line says which partition is the root. The partition tables are read by the engine itself: small
//! systems have no udev, so no `/dev/disk/by-partuuid`.

use crate::error::chain;
use crate::slots::{Slots, SlotsError};
use disk::{Disk, PartitionView, SlotLayout};
use protocol::id::PartitionRole;
use protocol::slot::Slot;
use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The root file system, as the kernel command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// `root=PARTUUID=…`, without regard to case.
    PartUuid(String),
    /// `root=/dev/vda3`: the kernel's name of the device.
    Device(String),
}

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PartUuid(id) => write!(f, "root=PARTUUID={id}"),
            Self::Device(name) => write!(f, "root=/dev/{name}"),
        }
    }
}

impl Root {
    /// What the last `root=` of a kernel command line says, where it is one of these. `dev` is `/dev`.
    #[must_use]
    pub fn of(command_line: &str, dev: &Path) -> Option<Self> {
        let value = command_line.split_whitespace().rev().find_map(|word| word.strip_prefix("root="))?;
        if let Some(id) = value.strip_prefix("PARTUUID=") {
            return Some(Self::PartUuid(id.to_ascii_lowercase()));
        }
        let device = value.strip_prefix("/dev/")?;
        if let Some(id) = device.strip_prefix("disk/by-partuuid/") {
            return Some(Self::PartUuid(id.to_ascii_lowercase()));
        }
        // A link of udev's, if it is one; else the kernel's own name.
        let real = std::fs::canonicalize(dev.join(device)).ok();
        let name = real.as_deref().and_then(Path::file_name).map_or(device.into(), OsStr::to_string_lossy);
        Some(Self::Device(name.into_owned()))
    }

    /// Where this is, as seen from a disk. `sys` is `/sys`.
    #[must_use]
    pub fn place(&self, disk: &Disk, sys: &Path) -> Place {
        let slot_where = |is_it: &dyn Fn(&PartitionView) -> bool| {
            let slot = Slot::ALL
                .into_iter()
                .find(|slot| disk.partition(*slot, &PartitionRole::root()).is_some_and(is_it));
            slot.map_or(Place::NoSlot, Place::Slot)
        };
        match self {
            Self::PartUuid(id) => slot_where(&|view| view.unique_guid.to_string().eq_ignore_ascii_case(id)),
            Self::Device(name) => {
                let Some((parent, number)) = parent(sys, name) else { return Place::NoPartition };
                // The disk may be named by a link of udev's.
                let real =
                    disk.path().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.into()));
                let is_here = real.is_some_and(|real| real.file_name().is_some_and(|file| *file == *parent));
                slot_where(&|view| is_here && number == view.entry)
            }
        }
    }
}

/// Where the root of the running system is, as seen from a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The root partition of a slot of this disk.
    Slot(Slot),
    /// A partition of another disk, or one of this disk that is in no slot.
    NoSlot,
    /// No partition that could be told: a mapped device, which may be on top of one.
    NoPartition,
}

/// The disk of a partition by the kernel's names, and the partition's number.
fn parent(sys: &Path, partition: &str) -> Option<(String, u32)> {
    let entry = std::fs::canonicalize(sys.join("class/block").join(partition)).ok()?;
    let number = std::fs::read_to_string(entry.join("partition")).ok()?.trim().parse().ok()?;
    Some((entry.parent()?.file_name()?.to_str()?.to_owned(), number))
}

/// A disk that cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// No disk has it.
    #[error("no disk found that {wanted}: {looked_at}; set disk.device in the configuration, or give --disk")]
    None {
        /// What was looked for.
        wanted: String,
        /// What was found instead.
        looked_at: String,
    },
    /// More than one has it: a clone of the disk is attached, or a second system.
    #[error(
        "{} and {} both {wanted}: detach one, or set disk.device in the configuration",
        first.display(),
        second.display()
    )]
    Two {
        /// What was looked for.
        wanted: String,
        /// One disk.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// The kernel command line cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Finds the disk of the running slot.
///
/// # Errors
/// [`DiscoveryError`]
pub fn find(layout: &SlotLayout) -> Result<PathBuf, DiscoveryError> {
    let path = Path::new("/proc/cmdline");
    let command_line = std::fs::read_to_string(path)
        .map_err(|source| DiscoveryError::Read { path: path.to_owned(), source })?;
    let (sys, dev) = (Path::new("/sys"), Path::new("/dev"));
    let is_node = |node: &Path, number: &str| {
        std::fs::metadata(node).is_ok_and(|m| {
            let found = format!("{}:{}", rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev()));
            m.file_type().is_block_device() && found == number
        })
    };
    let found = find_among(disks(sys, dev, is_node), Root::of(&command_line, dev).as_ref(), layout, sys)?;
    tracing::info!("the slots are on {}", found.display());
    Ok(found)
}

/// The node's own disks: block devices that are no partitions and stand on nothing else. `is_node` tells whether a path
/// is the device of a number.
fn disks(sys: &Path, dev: &Path, is_node: impl Fn(&Path, &str) -> bool) -> Vec<PathBuf> {
    /// Devices that stand on others or on memory, and drives that are no place for slots.
    const OTHERS: [&str; 8] = ["loop", "ram", "zram", "dm-", "sr", "fd", "nbd", "mtdblock"];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sys.join("block")).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if OTHERS.iter().any(|other| name.starts_with(other)) {
            continue;
        }
        let attribute = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        // A card reader without a card has no length.
        if attribute("size").trim() == "0" {
            continue;
        }
        // A slash in a device's name is an exclamation mark in sysfs.
        let node = dev.join(name.replace('!', "/"));
        if is_node(&node, attribute("dev").trim()) {
            found.push(node);
        }
    }
    found.sort();
    found
}

fn find_among(
    disks: Vec<PathBuf>,
    root: Option<&Root>,
    layout: &SlotLayout,
    sys: &Path,
) -> Result<PathBuf, DiscoveryError> {
    let wanted = match root {
        Some(root @ Root::PartUuid(_)) => format!("holds both slots and {root}"),
        Some(root @ Root::Device(name)) if parent(sys, name).is_some() => {
            format!("holds both slots and {root}")
        }
        _ => "holds both slots".to_owned(),
    };
    let mut looked_at = Vec::new();
    let mut first = None;
    for path in disks {
        match holds(&path, root, layout, sys) {
            Ok(true) => match first.take() {
                None => first = Some(path),
                Some(first) => return Err(DiscoveryError::Two { wanted, first, second: path }),
            },
            Ok(false) => looked_at.push(format!("{} has no such partition", path.display())),
            Err(error) => looked_at.push(format!("{}: {}", path.display(), chain(&error))),
        }
    }
    first.ok_or_else(|| {
        let nothing = || "there is no disk at all".to_owned();
        let looked_at = if looked_at.is_empty() { nothing() } else { looked_at.join("; ") };
        DiscoveryError::None { wanted, looked_at }
    })
}

/// Whether a disk has both slots and the root.
fn holds(path: &Path, root: Option<&Root>, layout: &SlotLayout, sys: &Path) -> Result<bool, SlotsError> {
    let disk = Slots::new(Arc::new(path.to_owned()), layout.clone()).look()?;
    Ok(match root {
        Some(Root::PartUuid(id)) => {
            disk.table().entries().any(|entry| entry.unique_guid.to_string().eq_ignore_ascii_case(id))
        }
        Some(Root::Device(name)) => match parent(sys, name) {
            Some((parent, _)) => path.file_name().is_some_and(|file| *file == *parent),
            // No partition: a mapped device, say. The layout tells.
            None => true,
        },
        None => true,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn root(command_line: &str) -> Option<Root> {
        Root::of(command_line, Path::new("/no/such/dev"))
    }

    #[test]
    fn the_root_is_read_from_the_command_line() {
        let id = |id: &str| Some(Root::PartUuid(id.to_owned()));
        let device = |name: &str| Some(Root::Device(name.to_owned()));
        for (line, expected) in [
            ("quiet root=PARTUUID=ABCD-12 ro", id("abcd-12")),
            ("root=/dev/sda1 root=PARTUUID=22", id("22")),
            ("root=/dev/disk/by-partuuid/AB-1", id("ab-1")),
            ("root=/dev/vda3 console=ttyS0", device("vda3")),
            ("root=UUID=1234", None),
            ("root=LABEL=ROOT-A", None),
            ("rootwait quiet", None),
            ("", None),
        ] {
            assert_eq!(root(line), expected, "{line}");
        }
        let dev = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dev.path().join("disk/by-label")).unwrap();
        std::fs::write(dev.path().join("nvme0n1p3"), "").unwrap();
        std::os::unix::fs::symlink("../../nvme0n1p3", dev.path().join("disk/by-label/ROOT")).unwrap();
        assert_eq!(Root::of("root=/dev/disk/by-label/ROOT", dev.path()), device("nvme0n1p3"));
    }

    /// A sysfs with disks of these names and partitions `1` to `3` of each.
    fn sysfs(names: &[&str]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(sys.path().join("class/block")).unwrap();
        std::fs::create_dir_all(sys.path().join("block")).unwrap();
        for name in names {
            let disk = sys.path().join("devices").join(name);
            std::fs::create_dir_all(&disk).unwrap();
            let size = if *name == "mmcblk7" { "0\n" } else { "2048\n" };
            std::fs::write(disk.join("size"), size).unwrap();
            std::fs::write(disk.join("dev"), "8:0\n").unwrap();
            std::os::unix::fs::symlink(&disk, sys.path().join("block").join(name)).unwrap();
            std::os::unix::fs::symlink(&disk, sys.path().join("class/block").join(name)).unwrap();
            for number in 1..=3 {
                let partition = disk.join(format!("{name}{number}"));
                std::fs::create_dir_all(&partition).unwrap();
                std::fs::write(partition.join("partition"), format!("{number}\n")).unwrap();
                let link = sys.path().join("class/block").join(format!("{name}{number}"));
                std::os::unix::fs::symlink(&partition, link).unwrap();
            }
        }
        sys
    }

    #[test]
    fn only_whole_disks_with_a_node_are_looked_at() {
        let sys = sysfs(&["vda", "vdb", "loop0", "zram0", "dm-0", "sr0", "mmcblk7", "cciss!c0d0", "gone"]);
        let dev = Path::new("/dev");
        let found = disks(sys.path(), dev, |node, number| number == "8:0" && !node.ends_with("gone"));
        assert_eq!(found, ["/dev/cciss/c0d0", "/dev/vda", "/dev/vdb"].map(PathBuf::from));
        assert_eq!(disks(Path::new("/no/such/sys"), dev, |_, _| true), Vec::<PathBuf>::new());
    }

    /// A disk image of two slots: BOOT-A, BOOT-B, ROOT-A, ROOT-B. `seed` makes the ids of the partitions.
    pub(crate) fn image(path: &Path, seed: u8, layout: &SlotLayout) {
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(16 << 20).unwrap();
        gpt::mbr::ProtectiveMBR::with_lb_size((16 << 11) - 1).overwrite_lba0(&mut file).unwrap();
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
            .create_from_device(file, None)
            .unwrap();
        let guid = layout.root_type.parse().unwrap();
        let kind = gpt::partition_types::Type { guid, os: gpt::partition_types::OperatingSystem::None };
        let names = layout.roles.iter().flat_map(|role| Slot::ALL.map(|slot| role.name(slot).to_owned()));
        for (number, name) in (1..).zip(names) {
            table.add_partition_at(&name, number, u64::from(number) * 4096, 4096, kind.clone(), 0).unwrap();
        }
        let mut partitions = table.partitions().clone();
        for (number, partition) in &mut partitions {
            let id = format!("{seed:02x}{number:02x}0000-0000-4000-8000-000000000000");
            partition.part_guid = id.parse().unwrap();
        }
        table.update_partitions(partitions).unwrap();
        table.write().unwrap();
    }

    #[test]
    fn one_disk_must_match() {
        let dir = tempfile::tempdir().unwrap();
        let layout = SlotLayout::default();
        let paths = ["vda", "vdb", "vdc"].map(|name| dir.path().join(name));
        image(&paths[0], 1, &layout);
        image(&paths[1], 2, &layout);
        std::fs::write(&paths[2], vec![0; 1 << 20]).unwrap();
        let sys = sysfs(&["vda", "vdb", "vdc"]);
        let found = |disks: &[PathBuf], root: Option<Root>| {
            find_among(disks.to_vec(), root.as_ref(), &layout, sys.path()).map_err(|error| error.to_string())
        };
        let id = |seed: u8| Some(Root::PartUuid(format!("{seed:02x}030000-0000-4000-8000-000000000000")));
        assert_eq!(found(&paths, id(2)), Ok(paths[1].clone()));
        assert_eq!(found(&paths, id(1)), Ok(paths[0].clone()));
        assert_eq!(found(&paths, Some(Root::Device("vdb3".to_owned()))), Ok(paths[1].clone()));
        assert_eq!(found(&[paths[0].clone(), paths[2].clone()], None), Ok(paths[0].clone()));
        let two = found(&paths, None).unwrap_err();
        assert!(two.contains("vda and ") && two.contains("vdb both holds"), "{two}");
        // A clone has the same ids.
        std::fs::copy(&paths[0], &paths[2]).unwrap();
        let clone = found(&paths, id(1)).unwrap_err();
        assert!(clone.contains("vda and ") && clone.contains("vdc both"), "{clone}");
        let none = found(&paths, id(9)).unwrap_err();
        assert!(none.contains("root=PARTUUID=0903") && none.contains("vda has no such partition"), "{none}");
        assert!(found(&[], None).unwrap_err().contains("no disk at all"));
        // The root is on a disk that is no partitioned one: the layout tells.
        let mapped = Some(Root::Device("dm-0".to_owned()));
        assert_eq!(found(&paths[..1], mapped), Ok(paths[0].clone()));
    }

    #[test]
    fn the_slot_of_a_root_is_found_by_id_and_by_device() {
        let dir = tempfile::tempdir().unwrap();
        let layout = SlotLayout::default();
        let path = dir.path().join("vda");
        image(&path, 1, &layout);
        let sys = sysfs(&["vda", "vdb"]);
        let disk = Slots::new(Arc::new(path.clone()), layout).look().unwrap();
        // BOOT-A, BOOT-B, ROOT-A, ROOT-B.
        let slot = |root: Root| match root.place(&disk, sys.path()) {
            Place::Slot(slot) => Some(slot),
            Place::NoSlot => None,
            Place::NoPartition => panic!("{root} is a partition"),
        };
        assert_eq!(slot(Root::PartUuid("01040000-0000-4000-8000-000000000000".to_owned())), Some(Slot::B));
        assert_eq!(slot(Root::PartUuid("01010000-0000-4000-8000-000000000000".to_owned())), None);
        assert_eq!(slot(Root::Device("vda3".to_owned())), Some(Slot::A));
        assert_eq!(slot(Root::Device("vda2".to_owned())), None);
        assert_eq!(slot(Root::Device("vdb3".to_owned())), None);
        assert_eq!(Root::Device("dm-0".to_owned()).place(&disk, sys.path()), Place::NoPartition);
        // The disk by a link of udev's.
        let link = dir.path().join("by-id");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let linked = Slots::new(Arc::new(link), SlotLayout::default()).look().unwrap();
        let third = Root::Device("vda3".to_owned());
        assert_eq!(third.place(&linked, sys.path()), Place::Slot(Slot::A));
        // The same slot of another disk is not the running one, whatever the loader called it.
        let other = dir.path().join("vdb");
        image(&other, 2, &SlotLayout::default());
        let other = Slots::new(Arc::new(other), SlotLayout::default()).look().unwrap();
        let running = |command_line: &str, disk: &Disk| {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("proc")).unwrap();
            std::fs::write(root.path().join("proc/cmdline"), command_line).unwrap();
            crate::boot::slot(root.path(), |name| name.place(disk, sys.path()))
                .map_err(|error| error.to_string())
        };
        let command_line = "root=PARTUUID=01040000-0000-4000-8000-000000000000 flipside.slot=B";
        assert_eq!(running(command_line, &disk), Ok(Slot::B));
        assert_eq!(running("root=/dev/mapper/root flipside.slot=B", &other), Ok(Slot::B));
        for elsewhere in [command_line, "root=/dev/vda3 flipside.slot=A", "root=/dev/vdb1 flipside.slot=A"] {
            let error = running(elsewhere, &other).unwrap_err();
            assert!(
                error.contains("in neither slot of the disk") && error.contains("disk.device"),
                "{error}"
            );
        }
    }
}
