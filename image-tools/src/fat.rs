//! Step 11, boot: FAT volumes, as the firmware reads them: the EFI system partition and the BOOT partitions.
//!
//! The same files give the same bytes: files lie one behind the other in the order given, all times are the same, and
//! the volume id comes from what the volume holds. Names have at most eight letters and three, without long names: readers
//! take upper and lower case for the same.

use anyhow::{Context as _, ensure};
use disk::SlotWindow;
use fatfs::{
    Date, DateTime, DirEntry, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};
use protocol::digest::Hasher;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The largest cluster: a block of most disks, and few enough of them in a volume of some 100 MiB.
const CLUSTER_MAX: u32 = 4096;
/// From this many clusters on a volume is FAT16, and FAT32. Readers disagree about the exact borders (4085, 65525).
const FAT16_LEAST: u64 = 4085 + 64;
const FAT32_LEAST: u64 = 65525 + 64;
/// Entries of the root directory, where it has a fixed size. A whole sector of 4096 bytes.
const ROOT_ENTRIES: u16 = 128;
/// No file is longer: the firmware and the loader read files whole.
const FILE_MAX: u64 = 1 << 30;

/// A file of the volume.
pub(crate) struct FatFile {
    /// Its path, such as `EFI/BOOT/BOOTX64.EFI`.
    pub(crate) path: &'static str,
    /// What it holds.
    pub(crate) bytes: Vec<u8>,
}

/// Which kind of FAT is wanted where the size leaves a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preference {
    /// FAT32, which the UEFI specification asks for on the system partition.
    Fat32,
    /// Large clusters: a short table, read in few pieces.
    LargeClusters,
}

/// A volume to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volume {
    /// Its length in bytes.
    pub(crate) size: u64,
    /// Bytes in a sector of it, 512 or 4096.
    pub(crate) sector_size: u32,
    /// Its label, of eleven characters.
    pub(crate) label: [u8; 11],
    /// Which kind of FAT.
    pub(crate) preference: Preference,
}

/// What was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// `FAT12`, `FAT16` or `FAT32`.
    pub(crate) kind: &'static str,
    /// The volume id, which tools show as the UUID.
    pub(crate) volume_id: u32,
}

/// 1980-01-01 00:00, the first moment that FAT knows.
#[derive(Debug)]
struct FixedTime;

static FIXED_TIME: FixedTime = FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime { date: self.get_current_date(), time: Time { hour: 0, min: 0, sec: 0, millis: 0 } }
    }
}

/// Reads a file of the operator's that is to go into a volume.
pub(crate) fn read_input(path: &Path) -> anyhow::Result<Vec<u8>> {
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes)).with_context(what)?;
    ensure!(!bytes.is_empty(), "{} is empty", path.display());
    ensure!(
        bytes.len() as u64 <= FILE_MAX,
        "{} is longer than {FILE_MAX} bytes, which is more than a loader reads",
        path.display()
    );
    Ok(bytes)
}

/// The least length of a volume that holds these files, with some room, on whole MiB.
pub(crate) fn default_size(files: &[FatFile]) -> u64 {
    let content: u64 = files.iter().map(|file| file.bytes.len() as u64).sum();
    // The table takes up to a hundredth, directories a few clusters; the rest lets a kernel grow a little before the
    // volume has another size.
    let size = content + content / 32 + (2 << 20);
    size.max(4 << 20).next_multiple_of(1 << 20)
}

/// Clusters are as large as the kind of FAT that is wanted allows, since the kind depends on nothing but their number.
fn cluster_size(volume: &Volume) -> u32 {
    let largest = |least: u64| {
        let mut size = CLUSTER_MAX;
        while size > volume.sector_size && volume.size / u64::from(size) < least {
            size /= 2;
        }
        (volume.size / u64::from(size) >= least).then_some(size)
    };
    // Of the clusters, some are lost to two tables of four bytes for each.
    let fat32 = || largest(FAT32_LEAST + FAT32_LEAST / 50);
    let fat16 = || largest(FAT16_LEAST + FAT16_LEAST / 50);
    match volume.preference {
        Preference::Fat32 => fat32().or_else(fat16),
        Preference::LargeClusters => fat16(),
    }
    .unwrap_or(volume.sector_size)
}

/// Makes the volume in `file`, which is empty.
///
/// # Errors
/// Where the files do not fit or cannot be written.
pub(crate) fn write(file: &File, volume: &Volume, files: &[FatFile]) -> anyhow::Result<Made> {
    let volume_id = volume_id(files);
    file.set_len(volume.size)?;
    let (mut target, sector) = (file, u16::try_from(volume.sector_size)?);
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(sector)
        .total_sectors(
            u32::try_from(volume.size / u64::from(sector)).context("FAT has no volumes of that size")?,
        )
        .bytes_per_cluster(cluster_size(volume))
        .max_root_dir_entries(ROOT_ENTRIES)
        .volume_id(volume_id)
        .volume_label(volume.label);
    // The number of the first hard disk: without it FAT12 would be made to look like a floppy disk.
    let options = options.drive_num(0x80);
    fatfs::format_volume(target, options).context("cannot make a FAT volume of that size")?;
    target.rewind()?;
    let system = FileSystem::new(target, FsOptions::new().time_provider(&FIXED_TIME))
        .context("the new FAT volume is not found again")?;
    let stats = system.stats()?;
    check_room(files, u64::from(stats.free_clusters()), u64::from(stats.cluster_size()), volume.size)?;
    for file in files {
        put(&system, file).with_context(|| format!("cannot write {} to the FAT volume", file.path))?;
    }
    let fat_type = system.fat_type();
    let kind = match fat_type {
        FatType::Fat12 => "FAT12",
        FatType::Fat16 => "FAT16",
        FatType::Fat32 => "FAT32",
    };
    // Writes the count of free clusters, and that the volume is in order.
    system.unmount()?;
    if fat_type == FatType::Fat32 && files.iter().any(|file| file.path.contains('/')) {
        mend_parent(target, volume.sector_size, stats.cluster_size())?;
    }
    Ok(Made { kind, volume_id })
}

/// In a folder of the root folder, the entry `..` has the cluster 0, also on FAT32, where the root folder is in
/// cluster 2; fatfs 0.3.6 writes 2. There is one such folder at most, and it is what comes first after the root folder.
fn mend_parent(file: &File, sector_size: u32, cluster_size: u32) -> anyhow::Result<()> {
    let mut boot_sector = [0; 512];
    file.read_exact_at(&mut boot_sector, 0)?;
    let [reserved_low, reserved_high, tables] = [14, 15, 16].map(|at: usize| boot_sector[at]);
    let table = u32::from_le_bytes([36, 37, 38, 39].map(|at: usize| boot_sector[at]));
    let sectors =
        u64::from(u16::from_le_bytes([reserved_low, reserved_high])) + u64::from(tables) * u64::from(table);
    // The root folder's cluster, then the folder's own entry.
    let entry = sectors * u64::from(sector_size) + u64::from(cluster_size) + 32;
    let mut name = [0; 11];
    file.read_exact_at(&mut name, entry)?;
    ensure!(name == *b"..         ", "the FAT volume does not have its folder where it is expected");
    file.write_all_at(&[0; 2], entry + 20)?;
    Ok(file.write_all_at(&[0; 2], entry + 26)?)
}

fn check_room(files: &[FatFile], free: u64, cluster: u64, size: u64) -> anyhow::Result<()> {
    let folders = files.iter().map(|file| file.path.matches('/').count() as u64).sum::<u64>();
    let clusters = |file: &FatFile| (file.bytes.len() as u64).div_ceil(cluster);
    let needed = folders + files.iter().map(clusters).sum::<u64>();
    ensure!(
        needed <= free,
        "the files take {} bytes: a FAT volume of {size} bytes holds {}; give it a larger size",
        needed * cluster,
        free * cluster
    );
    Ok(())
}

fn put(system: &FileSystem<&File>, file: &FatFile) -> io::Result<()> {
    let mut folder = system.root_dir();
    let mut names = file.path.split('/').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_some() {
            folder = folder.create_dir(name)?;
        } else {
            let mut out = folder.create_file(name)?;
            out.write_all(&file.bytes)?;
            out.flush()?;
        }
    }
    Ok(())
}

/// Two volumes with different files have different ids, so that a machine has no two volumes with one id.
fn volume_id(files: &[FatFile]) -> u32 {
    let mut hasher = Hasher::new();
    for file in files {
        hasher.update(file.path.as_bytes());
        hasher.update(&(file.bytes.len() as u64).to_le_bytes());
        hasher.update(&file.bytes);
    }
    let digest = hasher.finish();
    u32::from_le_bytes(digest.as_bytes()[..4].try_into().unwrap_or_default())
}

/// A FAT volume on a partition, to read from.
pub(crate) struct Reader(FileSystem<WindowBytes>);

impl Reader {
    /// Reads the volume's headers.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn open(window: SlotWindow) -> io::Result<Self> {
        FileSystem::new(WindowBytes { window, at: 0 }, FsOptions::new()).map(Self)
    }

    /// The whole of a file, which is at most `max_bytes` long; `None` where there is none. `path` is separated by `/`.
    ///
    /// # Errors
    /// Where it is longer, or cannot be read whole.
    pub(crate) fn contents(&self, path: &str, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(entry) = none_if_missing(self.entry(path))?.flatten() else { return Ok(None) };
        if entry.is_dir() {
            return Err(io::Error::other("a folder: expected a file"));
        }
        // Reading ends without a word where the chain of clusters ends, and seeking to the end does so as well: only
        // the folder knows how long the file is.
        let len = entry.len();
        if len > max_bytes {
            return Err(io::Error::other(format!("longer than {max_bytes} bytes")));
        }
        let mut bytes = Vec::new();
        entry.to_file().read_to_end(&mut bytes)?;
        if bytes.len() as u64 != len {
            return Err(io::Error::other(format!("cut off: {} of {len} bytes", bytes.len())));
        }
        Ok(Some(bytes))
    }

    /// What the folders say of a file.
    fn entry(&self, path: &str) -> io::Result<Option<DirEntry<'_, WindowBytes>>> {
        let root = self.0.root_dir();
        let (folder, name) = match path.rsplit_once('/') {
            Some((folder, name)) => (root.open_dir(folder)?, name),
            None => (root, path),
        };
        for entry in folder.iter() {
            let entry = entry?;
            if entry.short_file_name_as_bytes().eq_ignore_ascii_case(name.as_bytes()) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

impl boot_select::Files for Reader {
    fn read(&mut self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
        self.contents(name.trim_start_matches('\\'), max_bytes).map_err(|error| format!("{name}: {error}"))
    }
}

fn none_if_missing<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A partition as a stream of bytes that nobody writes.
struct WindowBytes {
    window: SlotWindow,
    at: u64,
}

impl Read for WindowBytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.window.len().saturating_sub(self.at);
        let count = usize::try_from(left).map_or(buf.len(), |left| buf.len().min(left));
        self.window.read_at(self.at, &mut buf[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for WindowBytes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.window.len().checked_add_signed(by),
        };
        self.at = place.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

impl Write for WindowBytes {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
