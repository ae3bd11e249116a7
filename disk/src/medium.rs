//! Steps 5 to 8, download to flip: the narrow trait that everything written to a disk goes through.
//!
//! The engine puts a [`DiskFile`](crate::device::DiskFile) behind it; tests put a recording medium that replays power
//! cuts, or one that fails.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;

/// Alignment, in bytes, of memory, offsets and lengths for direct I/O. Every logical sector size divides it.
pub const ALIGN: usize = 4096;

/// How bytes were read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadBack {
    /// By direct I/O: the page cache had no part in it.
    Direct,
    /// The cached pages were written out and dropped first, because the file system refuses direct I/O. A weaker
    /// proof, accepted for regular files only.
    CacheDropped,
}

impl ReadBack {
    /// The weaker of the two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Direct { other } else { self }
    }
}

impl fmt::Display for ReadBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::CacheDropped => "cache-dropped",
        })
    }
}

/// A disk: sectors that can be read, written and flushed.
///
/// Offsets and lengths are in bytes. Reads and writes are exact: they do all of it or fail. Writes of one medium may
/// come from several threads, as long as they do not overlap.
pub trait Medium: Send + Sync + fmt::Debug {
    /// The logical sector size in bytes: 512 or 4096.
    fn block_size(&self) -> u32;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no sectors at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it is, if it has a place in the file system.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Fills `buf` from `offset`, possibly from the page cache.
    ///
    /// # Errors
    /// Where not all of it could be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `offset`. They may be lost in a power cut until [`Self::flush`] returned.
    ///
    /// # Errors
    /// Where not all of it could be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zero, by the cheapest way the medium has.
    ///
    /// # Errors
    /// Where not all of it could be zeroed.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns when all earlier writes are on the medium, its own volatile cache included.
    ///
    /// # Errors
    /// Where the medium reports that something was not written. What was written since the last flush is then of
    /// unknown content.
    fn flush(&self) -> io::Result<()>;

    /// Fills `buf` from `offset`, from the medium and not from the page cache, and says how. [`Self::flush`] comes
    /// first.
    ///
    /// # Errors
    /// Where not all of it could be read.
    fn read_back(&self, offset: u64, buf: &mut [u8]) -> io::Result<ReadBack>;
}

/// Memory whose start is aligned to [`ALIGN`], of any length, for direct I/O.
///
/// It takes more from the allocator than it shows and starts at the first aligned byte, so no unsafe code is needed.
pub struct AlignedBuf {
    // Never grows, so it never moves and `start` stays right.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` bytes of zero.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().addr().wrapping_neg() % ALIGN;
        Self { memory, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// Whether `slice` starts at an aligned address.
pub(crate) fn is_aligned(slice: &[u8]) -> bool {
    slice.as_ptr().addr().is_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_whatever_the_length() {
        for len in [0, 1, 511, 512, 4095, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(is_aligned(&buf));
            buf.fill(7);
            assert!(buf.iter().all(|b| *b == 7));
        }
    }

    #[test]
    fn the_weaker_evidence_counts() {
        use ReadBack::{CacheDropped, Direct};
        assert_eq!(Direct.and(Direct), Direct);
        assert_eq!(Direct.and(CacheDropped), CacheDropped);
        assert_eq!(CacheDropped.and(Direct), CacheDropped);
    }
}
