//! Step 7, slot: whether a partition is mounted, swapped on or part of something else, so that it is never written.

use crate::table::PartitionView;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Knows which partitions are in use.
pub trait MountTable {
    /// Who uses this partition of this disk: `Ok(None)` where nobody does.
    ///
    /// # Errors
    /// Where that cannot be found out. The partition must then not be written.
    fn is_in_use(&self, disk: &Path, partition: &PartitionView) -> io::Result<Option<String>>;
}

/// The running system's mounts, swaps and stacked devices.
///
/// A partition counts as in use if it, its whole disk, or a loop device over any of its bytes is mounted or swapped
/// on, if a device mapper or RAID device holds it, or if the kernel refuses to open it exclusively (which also finds
/// mounts in other mount namespaces).
#[derive(Clone, Debug)]
pub struct SystemMounts {
    proc: PathBuf,
    sys: PathBuf,
    dev: PathBuf,
}

impl Default for SystemMounts {
    fn default() -> Self {
        Self::new()
    }
}

impl SystemMounts {
    /// The system's own tables.
    #[must_use]
    pub fn new() -> Self {
        Self::at("/proc".into(), "/sys".into(), "/dev".into())
    }

    /// Tables found elsewhere: for tests and other roots.
    #[must_use]
    pub fn at(proc: PathBuf, sys: PathBuf, dev: PathBuf) -> Self {
        Self { proc, sys, dev }
    }
}

impl MountTable for SystemMounts {
    fn is_in_use(&self, disk: &Path, partition: &PartitionView) -> io::Result<Option<String>> {
        let range = Range { start: partition.offset, end: partition.offset.saturating_add(partition.len) };
        let metadata = fs::metadata(disk)?;
        let mut devices = Vec::new();
        if metadata.file_type().is_block_device() {
            let device = Number::of(metadata.rdev());
            // Mounted as a whole, it uses every byte.
            devices.push(device);
            self.partitions_within(device, range, &mut devices)?;
            for device in devices.clone() {
                self.loops_over(Backing::Device(device), Range::ALL, &mut devices)?;
            }
            self.loops_over(Backing::Device(device), range, &mut devices)?;
        } else {
            let file = Backing::File(metadata.dev(), metadata.ino());
            self.loops_over(file, range, &mut devices)?;
        }
        self.used(&devices)
    }
}

/// A device's major and minor number, as sysfs and mountinfo write them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Number(u32, u32);

impl Number {
    fn of(device: u64) -> Self {
        Self(rustix::fs::major(device), rustix::fs::minor(device))
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// Bytes from `start` up to but not including `end`.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    const ALL: Self = Self { start: 0, end: u64::MAX };

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What a loop device stands on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    Device(Number),
    File(u64, u64),
}

impl Backing {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(if metadata.file_type().is_block_device() {
            Self::Device(Number::of(metadata.rdev()))
        } else {
            Self::File(metadata.dev(), metadata.ino())
        })
    }
}

impl SystemMounts {
    fn sysfs(&self, device: Number) -> PathBuf {
        self.sys.join(format!("dev/block/{}:{}", device.0, device.1))
    }

    /// The kernel's partition devices that share bytes with `range` of a disk.
    fn partitions_within(&self, disk: Number, range: Range, devices: &mut Vec<Number>) -> io::Result<()> {
        for entry in list(&self.sysfs(disk))? {
            if !entry.join("partition").exists() {
                continue;
            }
            // Sysfs counts in units of 512 bytes whatever the sector size.
            let (start, len) = (number(&entry.join("start"))? * 512, number(&entry.join("size"))? * 512);
            if range.overlaps(Range { start, end: start.saturating_add(len) }) {
                devices.extend(Number::parse(&fs::read_to_string(entry.join("dev"))?));
            }
        }
        Ok(())
    }

    /// Loop devices over bytes of `range`, and their partitions there.
    fn loops_over(&self, backing: Backing, range: Range, devices: &mut Vec<Number>) -> io::Result<()> {
        for device in list(&self.sys.join("block"))? {
            let Ok(path) = fs::read_to_string(device.join("loop/backing_file")) else { continue };
            if Backing::of(Path::new(path.trim_end_matches('\n'))) != Some(backing) {
                continue;
            }
            let offset = number(&device.join("loop/offset"))?;
            let len = number(&device.join("size"))? * 512;
            if !range.overlaps(Range { start: offset, end: offset.saturating_add(len) }) {
                continue;
            }
            let Some(loop_device) = Number::parse(&fs::read_to_string(device.join("dev"))?) else { continue };
            devices.push(loop_device);
            let inner =
                Range { start: range.start.saturating_sub(offset), end: range.end.saturating_sub(offset) };
            self.partitions_within(loop_device, inner, devices)?;
        }
        Ok(())
    }

    /// The first use of any of these devices.
    fn used(&self, devices: &[Number]) -> io::Result<Option<String>> {
        if devices.is_empty() {
            return Ok(None);
        }
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo"))?;
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let (Some(device), Some(point)) = (fields.get(2), fields.get(4)) else { continue };
            // A file system over several devices has a number of its own; its source names one of them.
            let source = fields.iter().position(|f| *f == "-").and_then(|dash| fields.get(dash + 2));
            let source = source.filter(|s| s.starts_with("/dev/")).and_then(|s| Backing::of(Path::new(s)));
            let by_number = Number::parse(device).is_some_and(|number| devices.contains(&number));
            let by_source = matches!(source, Some(Backing::Device(number)) if devices.contains(&number));
            if by_number || by_source {
                return Ok(Some(format!("mounted at {}", unescape(point))));
            }
        }
        // Kernels without swap have no such file.
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        for swap in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            if matches!(Backing::of(Path::new(&unescape(swap))), Some(Backing::Device(n)) if devices.contains(&n))
            {
                return Ok(Some(format!("swap on {swap}")));
            }
        }
        devices.iter().find_map(|device| self.held(*device).transpose()).transpose()
    }

    /// Whether something is stacked on the device, or the kernel refuses to open it exclusively.
    fn held(&self, device: Number) -> io::Result<Option<String>> {
        let sysfs = self.sysfs(device);
        if let Some(holder) = list(&sysfs.join("holders"))?.first() {
            return Ok(Some(format!("held by {}", name_of(holder))));
        }
        let Ok(sysfs) = fs::canonicalize(&sysfs) else { return Ok(None) };
        // Exclusive opening of a whole disk fails as soon as one of its partitions is mounted, so ask for partitions.
        if !sysfs.join("partition").exists() {
            return Ok(None);
        }
        let node = self.dev.join(name_of(&sysfs));
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(&node, flags, Mode::empty()) {
            Err(Errno::BUSY) => Ok(Some(format!("{} is open exclusively", node.display()))),
            // No node or no right to open it: the tables above have the say.
            _ => Ok(None),
        }
    }
}

/// The paths in a folder; none where there is no such folder.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} holds no number: {text:?}", path.display()))
    })
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Undoes the octal escapes of `/proc`: `\040` is a space.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let octal = rest.get(1..4).and_then(|d| std::str::from_utf8(d).ok()).filter(|_| *byte == b'\\');
        if let Some(value) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(value);
            rest = &rest[4..];
        } else {
            out.push(*byte);
            rest = after;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::gpt::Guid;

    /// A system made of files: `/proc`, `/sys` and `/dev` in one temporary folder, with a disk image.
    struct System {
        folder: tempfile::TempDir,
    }

    impl System {
        fn new() -> Self {
            let system = Self { folder: tempfile::tempdir().unwrap() };
            system.put("disk.img", "");
            system.put("proc/self/mountinfo", "22 1 8:2 / / rw - ext4 /dev/root rw\n");
            system.put("proc/swaps", "Filename Type Size Used Priority\n");
            fs::create_dir_all(system.path("sys/block")).unwrap();
            system
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn put(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A loop device over the image from `offset` on, with a partition from `start` (both in bytes) to its end.
        fn attach(&self, offset: u64, start: u64) {
            let image = self.path("disk.img").display().to_string();
            for folder in ["sys/block/loop0", "sys/dev/block/7:0"] {
                self.put(&format!("{folder}/loop/backing_file"), &format!("{image}\n"));
                self.put(&format!("{folder}/loop/offset"), &format!("{offset}\n"));
                self.put(&format!("{folder}/size"), "2048\n");
                self.put(&format!("{folder}/dev"), "7:0\n");
                let part = format!("{folder}/loop0p1");
                self.put(&format!("{part}/partition"), "1\n");
                self.put(&format!("{part}/start"), &format!("{}\n", start / 512));
                self.put(&format!("{part}/size"), &format!("{}\n", 2048 - start / 512));
                self.put(&format!("{part}/dev"), "259:7\n");
            }
        }

        fn mount(&self, device: &str, source: &str) {
            self.put(
                "proc/self/mountinfo",
                &format!("22 1 8:2 / / rw - ext4 /dev/root rw\n40 22 {device} / /mnt/a\\040b rw shared:1 - ext4 {source} rw\n"),
            );
        }

        /// Who uses the 1000 sectors from `offset` on.
        fn used(&self, offset: u64) -> Option<String> {
            let mounts = SystemMounts::at(self.path("proc"), self.path("sys"), self.path("dev"));
            let view = PartitionView {
                entry: 1,
                offset,
                len: 512_000,
                unique_guid: Guid::ZERO,
                name: "ROOT-B".to_owned(),
            };
            mounts.is_in_use(&self.path("disk.img"), &view).unwrap()
        }
    }

    #[test]
    fn a_file_without_loop_devices_is_free() {
        let system = System::new();
        system.mount("7:0", "/dev/loop0");
        assert_eq!(system.used(0), None);
    }

    #[test]
    fn mounted_loop_partitions_are_found_by_their_bytes() {
        let system = System::new();
        system.attach(0, 600_064);
        assert_eq!(system.used(0), None, "attached, and nothing is mounted");
        system.mount("259:7", "/dev/loop0p1");
        assert_eq!(system.used(600_064).unwrap(), "mounted at /mnt/a b");
        assert_eq!(system.used(512_000).unwrap(), "mounted at /mnt/a b", "a partition that overlaps");
        assert_eq!(system.used(0), None, "another partition of the same disk");
    }

    #[test]
    fn a_loop_device_with_an_offset_is_over_its_bytes_only() {
        let system = System::new();
        system.attach(1 << 20, 0);
        system.mount("7:0", "none");
        assert_eq!(system.used(0), None);
        assert!(system.used(1 << 20).is_some());
        assert!(system.used((1 << 20) - 512).is_some());
        assert_eq!(system.used(4 << 20), None, "behind its end");
    }

    #[test]
    fn holders_count() {
        let system = System::new();
        system.attach(0, 0);
        system.put("sys/dev/block/259:7/holders/dm-3/dev", "253:3");
        assert_eq!(system.used(0).unwrap(), "held by dm-3");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let system = System::new();
        system.attach(0, 0);
        fs::remove_file(system.path("proc/self/mountinfo")).unwrap();
        let mounts = SystemMounts::at(system.path("proc"), system.path("sys"), system.path("dev"));
        let view =
            PartitionView { entry: 1, offset: 0, len: 512, unique_guid: Guid::ZERO, name: "x".to_owned() };
        assert!(mounts.is_in_use(&system.path("disk.img"), &view).is_err());
        assert!(mounts.is_in_use(&system.path("missing"), &view).is_err());
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("/mnt/a\\040b\\134"), "/mnt/a b\\");
        assert_eq!(unescape("/plain\\x"), "/plain\\x");
    }
}
