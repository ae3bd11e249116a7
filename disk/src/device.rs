//! Steps 5 to 8, download to flip: a disk as a block device or a regular file.
//!
//! Two descriptors are open on the same file: one goes through the page cache, one (`O_DIRECT`) past it. Bulk data
//! (whole pages of 4096 bytes) is written directly, so that an update neither evicts the node's page cache nor waits
//! for write-back; odd ends and GPT sectors go through the cache. The two do not disagree: Linux writes dirty pages
//! out before a direct read or write of their range, and drops cached pages of that range after a direct write
//! (`mm/filemap.c`, `generic_file_direct_write`). That holds as long as nobody writes the same page by both ways at
//! the same moment, which cannot happen here: the direct way takes whole pages only, and writers of one medium do not
//! overlap. What goes through the cache is written as whole pages with what stands around it, so it must not share a
//! page with what others write: [`Disk`](crate::table::Disk) refuses slot partitions that do not lie on whole pages.

use crate::medium::{ALIGN, AlignedBuf, Medium, ReadBack, is_aligned};
use rustix::fs::{Advice, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How much memory a direct transfer from or to unaligned memory takes, in bytes.
const BOUNCE: usize = 1 << 20;
const ZEROES: usize = 1 << 20;

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only; no lock is taken.
    Read,
    /// Writing as well. Takes an exclusive lock, so that two engines never write one disk; on a block device the same
    /// lock keeps udev from probing it meanwhile.
    Write,
}

/// Why a disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened or examined.
    #[error("cannot open the disk {path}")]
    Io {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("{0} is neither a block device nor a regular file")]
    NotADisk(PathBuf),
    /// Another process writes it.
    #[error("the disk {0} is being written by another process: wait for it to end")]
    Locked(PathBuf),
    /// A block device must be readable past the page cache.
    #[error("the block device {path} refuses direct I/O, so what is written to it cannot be proved")]
    NoDirectIo {
        /// The disk.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A sector size that GPT disks of this kind do not have.
    #[error("the disk {path} has sectors of {found} bytes: expected 512 or 4096")]
    SectorSize {
        /// The disk.
        path: PathBuf,
        /// The size found.
        found: u32,
    },
}

/// How long another lock on a block device is waited for. After each program that wrote to a disk has closed it, udev
/// looks at the disk again and holds a lock meanwhile: seconds on a slow machine, and between two steps of an update.
const UDEV_PATIENCE: Duration = Duration::from_secs(20);
/// The pause between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Takes the lock against other writers, waiting at most so long for who has it.
fn lock(file: &File, path: &Path, patience: Duration) -> Result<(), OpenError> {
    let limit = Instant::now() + patience;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < limit => std::thread::sleep(LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(OpenError::Locked(path.to_owned())),
            result => {
                return result.map_err(|e| OpenError::Io { path: path.to_owned(), source: e.into() });
            }
        }
    }
}

/// A disk as a block device or a regular file.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    cached: File,
    direct: Option<File>,
    block_device: bool,
    block_size: u32,
    len: u64,
}

impl DiskFile {
    /// Opens a disk. The sector size of a regular file is that at which a GPT header stands, else 512.
    ///
    /// # Errors
    /// [`OpenError`], which names the disk.
    pub fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        let io_error = |source| OpenError::Io { path: path.to_owned(), source };
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        let open = |extra: OFlags| {
            // NONBLOCK: opening a pipe by mistake must not wait for its other end.
            let flags = mode | OFlags::CLOEXEC | OFlags::NONBLOCK | extra;
            rustix::fs::open(path, flags, Mode::empty()).map(File::from)
        };
        let cached = open(OFlags::empty()).map_err(|e| io_error(e.into()))?;
        let stat = rustix::fs::fstat(&cached).map_err(|e| io_error(e.into()))?;
        let block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            _ => return Err(OpenError::NotADisk(path.to_owned())),
        };
        if access == Access::Write {
            lock(&cached, path, if block_device { UDEV_PATIENCE } else { Duration::ZERO })?;
        }
        let direct = match open(OFlags::DIRECT) {
            Ok(file) => Some(file),
            Err(error) if block_device => {
                return Err(OpenError::NoDirectIo { path: path.to_owned(), source: error.into() });
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP) => None,
            Err(error) => return Err(io_error(error.into())),
        };
        let len = rustix::fs::seek(&cached, rustix::fs::SeekFrom::End(0)).map_err(|e| io_error(e.into()))?;
        let block_size = if block_device {
            rustix::fs::ioctl_blksszget(&cached).map_err(|e| io_error(e.into()))?
        } else {
            sector_size_of_file(&cached).map_err(io_error)?
        };
        if !matches!(block_size, 512 | 4096) {
            return Err(OpenError::SectorSize { path: path.to_owned(), found: block_size });
        }
        Ok(Self { path: path.to_owned(), cached, direct, block_device, block_size, len })
    }

    /// Whether it is a block device, not a regular file.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        // A regular file would grow silently, and a read would end early without saying where.
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{len} bytes at {offset} lie outside of {}, which has {} bytes",
                    self.path.display(),
                    self.len
                ),
            ));
        }
        Ok(())
    }

    /// Writes whole pages past the page cache; `offset` and length are multiples of [`ALIGN`].
    fn write_direct(&self, direct: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if is_aligned(bytes) {
            return direct.write_all_at(bytes, offset);
        }
        let mut bounce = AlignedBuf::zeroed(bytes.len().min(BOUNCE));
        let mut at = offset;
        for piece in bytes.chunks(BOUNCE) {
            let aligned = &mut bounce[..piece.len()];
            aligned.copy_from_slice(piece);
            direct.write_all_at(aligned, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads past the page cache whatever the alignment: the range is widened to whole pages, which the end of the
    /// medium may cut short.
    fn read_direct(&self, direct: &File, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let align = ALIGN as u64;
        let whole = offset.is_multiple_of(align) && buf.len().is_multiple_of(ALIGN);
        if whole && is_aligned(buf) {
            return direct.read_exact_at(buf, offset);
        }
        let mut bounce = AlignedBuf::zeroed(BOUNCE.min(buf.len().next_multiple_of(ALIGN) + ALIGN));
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let start = at - at % align;
            let skip = page_offset(at);
            let take = (bounce.len() - skip).min(buf.len() - done);
            read_pages(direct, start, &mut bounce, skip + take)?;
            buf[done..done + take].copy_from_slice(&bounce[skip..skip + take]);
            done += take;
        }
        Ok(())
    }

    fn drop_cached_pages(&self, offset: u64, len: usize) -> io::Result<()> {
        // Only clean pages are dropped, and only whole ones: write out first, then widen to pages.
        self.cached.sync_data()?;
        let start = offset - offset % ALIGN as u64;
        let end = (offset + len as u64).next_multiple_of(ALIGN as u64);
        let range = NonZeroU64::new(end - start);
        Ok(rustix::fs::fadvise(&self.cached, start, range, Advice::DontNeed)?)
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = AlignedBuf::zeroed(ZEROES);
        let mut done = 0;
        while done < len {
            // The first piece ends at a page, so that all others are written directly.
            let room = ZEROES - page_offset(offset + done);
            let take = usize::try_from(len - done).unwrap_or(room).min(room);
            self.write_at(offset + done, &zeroes[..take])?;
            done += take as u64;
        }
        Ok(())
    }
}

impl Medium for DiskFile {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.cached.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        let Some(direct) = &self.direct else {
            return self.cached.write_all_at(bytes, offset);
        };
        // The odd bytes before the first whole page and after the last one go through the cache.
        let head = ((ALIGN - page_offset(offset)) % ALIGN).min(bytes.len());
        let (head, rest) = bytes.split_at(head);
        let (pages, tail) = rest.split_at(rest.len() - rest.len() % ALIGN);
        let pages_at = offset + head.len() as u64;
        if !head.is_empty() {
            self.cached.write_all_at(head, offset)?;
        }
        if !pages.is_empty() {
            match self.write_direct(direct, pages_at, pages) {
                // A file system that opens a file for direct I/O and then wants a coarser alignment.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput && !self.block_device => {
                    self.cached.write_all_at(pages, pages_at)?;
                }
                result => result?,
            }
        }
        if tail.is_empty() { Ok(()) } else { self.cached.write_all_at(tail, pages_at + pages.len() as u64) }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        // A hole in a regular file. On a block device ZERO_RANGE becomes the device's own way of writing zeroes,
        // which reads as zero for certain; a mere discard would not.
        let flags = if self.block_device {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        };
        match rustix::fs::fallocate(&self.cached, flags, offset, len) {
            Ok(()) => Ok(()),
            // Not offered here, not at this alignment, or not while a partition of the device is mounted.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::BUSY) => {
                self.write_zero_bytes(offset, len)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        // One descriptor's fsync covers the file, whichever descriptor wrote it; on a block device it also empties
        // the device's write cache.
        self.cached.sync_data()
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> io::Result<ReadBack> {
        self.check(offset, buf.len() as u64)?;
        if let Some(direct) = &self.direct {
            match self.read_direct(direct, offset, buf) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput && !self.block_device => {}
                result => return result.map(|()| ReadBack::Direct),
            }
        }
        if !buf.is_empty() {
            self.drop_cached_pages(offset, buf.len())?;
        }
        self.cached.read_exact_at(buf, offset)?;
        Ok(ReadBack::CacheDropped)
    }
}

/// How far `offset` lies behind the start of its page.
fn page_offset(offset: u64) -> usize {
    usize::try_from(offset % ALIGN as u64).unwrap_or(0)
}

/// Fills `buf` from the page at `start` on, and is content when `wanted` bytes are there: the last page of a file may
/// be cut short.
fn read_pages(direct: &File, start: u64, buf: &mut [u8], wanted: usize) -> io::Result<()> {
    let whole = wanted.next_multiple_of(ALIGN).min(buf.len());
    let mut filled = 0;
    while filled < wanted {
        match direct.read_at(&mut buf[filled..whole], start + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A regular file says nothing about sectors, so the place of its GPT header does.
fn sector_size_of_file(file: &File) -> io::Result<u32> {
    let len = file.metadata()?.len();
    let found = protocol::gpt::detect_sector_size(len, |offset, buf| file.read_exact_at(buf, offset))?;
    Ok(found.unwrap_or(512))
}
