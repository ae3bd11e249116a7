//! Steps 5 to 7, download to slot: a view of one partition that cannot be left.

use crate::medium::{Medium, ReadBack};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stretch of a medium: a partition of a slot, or a whole image file. Offsets count from its start, and nothing
/// outside of it can be read or written.
///
/// A window on a slot's partition is writable only if an [`InvalidatedSlot`](crate::slots::InvalidatedSlot) gave it
/// out: that is the evidence that the slot does not run, is not mounted and cannot be booted. It can be written for as
/// long as that evidence is there, and no more once it is read back.
#[derive(Clone)]
pub struct SlotWindow {
    medium: Arc<dyn Medium>,
    offset: u64,
    len: u64,
    access: WindowAccess,
}

#[derive(Clone)]
enum WindowAccess {
    Read,
    Write,
    /// Writing for as long as this is set.
    Revocable(Arc<AtomicBool>),
}

/// The right to write a slot, shared by all windows that were given out for it. It ends with this.
#[derive(Debug)]
pub(crate) struct WriteAccess(Arc<AtomicBool>);

impl WriteAccess {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// From now on every write through those windows fails.
    pub(crate) fn revoke(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Drop for WriteAccess {
    fn drop(&mut self) {
        self.revoke();
    }
}

impl SlotWindow {
    /// A read-only view of `[offset, offset + len)`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where the medium ends before it.
    pub fn read_only(medium: Arc<dyn Medium>, offset: u64, len: u64) -> io::Result<Self> {
        Self::new(medium, offset, len, WindowAccess::Read)
    }

    /// A writable view of a whole medium that is not a disk with slots: an image file, or a device that an operator
    /// named to be overwritten. Never for a partition of a slot.
    #[must_use]
    pub fn whole_image(medium: Arc<dyn Medium>) -> Self {
        let len = medium.len();
        Self { medium, offset: 0, len, access: WindowAccess::Write }
    }

    /// Only an invalidated slot may be written.
    pub(crate) fn writable(
        medium: Arc<dyn Medium>,
        offset: u64,
        len: u64,
        access: &WriteAccess,
    ) -> io::Result<Self> {
        Self::new(medium, offset, len, WindowAccess::Revocable(access.0.clone()))
    }

    fn new(medium: Arc<dyn Medium>, offset: u64, len: u64, access: WindowAccess) -> io::Result<Self> {
        if offset.checked_add(len).is_none_or(|end| end > medium.len()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} lie outside of a disk of {} bytes", medium.len()),
            ));
        }
        Ok(Self { medium, offset, len, access })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it starts on the medium, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it may be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        match &self.access {
            WindowAccess::Read => false,
            WindowAccess::Write => true,
            WindowAccess::Revocable(valid) => valid.load(Ordering::SeqCst),
        }
    }

    /// The medium's logical sector size in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.medium.block_size()
    }

    fn place(&self, offset: u64, len: u64, write: bool) -> io::Result<u64> {
        if write && !self.is_writable() {
            let why = match self.access {
                WindowAccess::Revocable(_) => {
                    "this slot was read back or given up: invalidate it again to write to it"
                }
                _ => "this slot was opened for reading: only an invalidated slot may be written",
            };
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} lie outside of a partition of {} bytes", self.len),
            ));
        }
        Ok(self.offset + offset)
    }

    /// Fills `buf` from `offset`, possibly from the page cache.
    ///
    /// # Errors
    /// Where it would leave the window or the medium fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let place = self.place(offset, buf.len() as u64, false)?;
        self.medium.read_at(place, buf)
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// Where it would leave the window, the window is read-only, or the medium fails.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let place = self.place(offset, bytes.len() as u64, true)?;
        self.medium.write_at(place, bytes)
    }

    /// Makes `len` bytes at `offset` read as zero.
    ///
    /// # Errors
    /// Where it would leave the window, the window is read-only, or the medium fails.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let place = self.place(offset, len, true)?;
        self.medium.write_zeroes(place, len)
    }

    /// Returns when all earlier writes are on the medium.
    ///
    /// # Errors
    /// Where the medium reports that something was not written.
    pub fn flush(&self) -> io::Result<()> {
        self.medium.flush()
    }

    /// Fills `buf` from `offset`, from the medium and not from the page cache, and says how.
    ///
    /// # Errors
    /// Where it would leave the window or the medium fails.
    pub fn read_back(&self, offset: u64, buf: &mut [u8]) -> io::Result<ReadBack> {
        let place = self.place(offset, buf.len() as u64, false)?;
        self.medium.read_back(place, buf)
    }
}

impl fmt::Debug for SlotWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotWindow")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .field("writable", &self.is_writable())
            .finish_non_exhaustive()
    }
}
