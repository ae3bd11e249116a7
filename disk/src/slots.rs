//! Steps 7 and 8, slot and flip: the evidence that a slot may be written, and that it may be activated.
//!
//! [`TargetSlot`] (not running, not mounted) -> [`InvalidatedSlot`] (cannot be booted; the only writable windows) ->
//! [`StagedSlot`] (written, flushed, read back and equal). Each comes only from the one before it, and
//! [`Disk::activate`] takes the last one.

use crate::error::DiskError;
use crate::fit;
use crate::medium::{AlignedBuf, Medium, ReadBack};
use crate::mounts::MountTable;
use crate::table::Disk;
use crate::window::{SlotWindow, WriteAccess};
use protocol::digest::{Hasher, Sha256};
use protocol::id::PartitionRole;
use protocol::manifest::{PartitionImage, release_digest};
use protocol::slot::Slot;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};

/// How much is read back and hashed at a time, in bytes.
const PIECE: usize = 4 << 20;
/// How many threads read: one alone leaves a fast disk idle between two requests.
const READERS: u64 = 2;
/// How many pieces each of them has on the way.
const PIECES: usize = 2;

/// Evidence that a slot is not the running one and that none of its partitions is in use.
#[derive(Debug)]
pub struct TargetSlot {
    medium: Arc<dyn Medium>,
    slot: Slot,
    running: Slot,
}

impl TargetSlot {
    /// Looks whether `slot` may be written while `running` runs.
    ///
    /// # Errors
    /// [`DiskError::Running`], [`DiskError::InUse`], or where the mounts cannot be examined.
    pub fn new(disk: &Disk, slot: Slot, running: Slot, mounts: &dyn MountTable) -> Result<Self, DiskError> {
        if slot == running {
            return Err(DiskError::Running(slot));
        }
        for (_, view) in disk.slot_partitions(slot) {
            // A medium without a place in the file system cannot be mounted from there.
            let used = mounts.is_in_use(disk.path().unwrap_or(Path::new("")), view);
            match used {
                Ok(None) => {}
                Ok(Some(by)) => return Err(DiskError::InUse { slot, name: view.name.clone(), by }),
                Err(source) => return Err(DiskError::Mounts { name: view.name.clone(), source }),
            }
        }
        Ok(Self { medium: disk.medium().clone(), slot, running })
    }

    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn running(&self) -> Slot {
        self.running
    }

    pub(crate) fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }
}

/// Evidence that boot selection cannot choose the slot, durably: it may be written.
#[derive(Debug)]
pub struct InvalidatedSlot {
    medium: Arc<dyn Medium>,
    slot: Slot,
    running: Slot,
    windows: Vec<(PartitionRole, SlotWindow)>,
    access: WriteAccess,
}

/// Why a slot that was written cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The slot does not hold what the manifest says.
    #[error("the {role} partition reads back as sha256 {found}: expected {expected}")]
    Mismatch {
        /// Which partition.
        role: PartitionRole,
        /// The digest in the manifest.
        expected: Sha256,
        /// The digest of what the medium holds.
        found: Sha256,
    },
    /// The slot has no such partition.
    #[error("the release has an image for the partition {0}, which the slot layout does not have")]
    NoSuchPartition(PartitionRole),
    /// The image does not fit.
    #[error("the {role} image has {size} bytes: the partition holds {len}")]
    TooLong {
        /// Which partition.
        role: PartitionRole,
        /// Length of the image in bytes.
        size: u64,
        /// Length of the partition in bytes.
        len: u64,
    },
    /// Something of another release is left in the slot.
    #[error(
        "the release has no image for the {0} partition, which is not empty: the slot would start what it holds"
    )]
    NotEmpty(PartitionRole),
    /// Without a root image there is nothing to boot.
    #[error("the release has no root image")]
    NoRoot,
    /// The medium failed.
    #[error("cannot read back the {role} partition at byte {offset}")]
    Read {
        /// Which partition.
        role: PartitionRole,
        /// Where in the partition.
        offset: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was written cannot be made durable.
    #[error("cannot flush slot {slot}")]
    Flush {
        /// Which slot.
        slot: Slot,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl InvalidatedSlot {
    pub(crate) fn new(
        medium: Arc<dyn Medium>,
        slot: Slot,
        running: Slot,
        windows: Vec<(PartitionRole, SlotWindow)>,
        access: WriteAccess,
    ) -> Self {
        Self { medium, slot, running, windows, access }
    }

    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The window of one of its partitions, writable until the slot is verified or dropped.
    #[must_use]
    pub fn window(&self, role: &PartitionRole) -> Option<SlotWindow> {
        self.windows.iter().find(|(r, _)| r == role).map(|(_, window)| window.clone())
    }

    pub(crate) fn windows(&self) -> impl Iterator<Item = (&PartitionRole, &SlotWindow)> {
        self.windows.iter().map(|(role, window)| (role, window))
    }

    /// Flushes, reads every image back from the medium and compares its digest; partitions without an image must be
    /// empty. `progress` is told how many bytes were compared so far, all images together.
    ///
    /// Threads read while this one hashes; the memory taken is 16 MiB, whatever the images.
    ///
    /// # Errors
    /// [`VerifyError`]. The slot stays invalid; it can be taken up again by invalidating it again.
    pub fn verify(
        self,
        partitions: &[PartitionImage],
        progress: &dyn Fn(u64),
    ) -> Result<StagedSlot, VerifyError> {
        if !partitions.iter().any(|image| image.role == PartitionRole::root()) {
            return Err(VerifyError::NoRoot);
        }
        // Whoever kept a window must not change what is proved here.
        self.access.revoke();
        self.medium.flush().map_err(|source| VerifyError::Flush { slot: self.slot, source })?;
        let mut evidence = ReadBack::Direct;
        let mut done = 0;
        for image in partitions {
            let window =
                self.window(&image.role).ok_or_else(|| VerifyError::NoSuchPartition(image.role.clone()))?;
            if image.size > window.len() {
                let (role, size, len) = (image.role.clone(), image.size, window.len());
                return Err(VerifyError::TooLong { role, size, len });
            }
            let (found, how) = digest_of(&window, image.size, &mut |bytes| {
                done += bytes;
                progress(done);
            })
            .map_err(|(offset, source)| VerifyError::Read {
                role: image.role.clone(),
                offset,
                source,
            })?;
            if found != image.sha256 {
                return Err(VerifyError::Mismatch {
                    role: image.role.clone(),
                    expected: image.sha256,
                    found,
                });
            }
            evidence = evidence.and(how);
        }
        for (role, window) in self.windows().filter(|(role, _)| !fit::fills(partitions, role)) {
            let failed = |source| VerifyError::Read { role: role.clone(), offset: 0, source };
            if !fit::is_empty(window).map_err(failed)? {
                return Err(VerifyError::NotEmpty(role.clone()));
            }
        }
        let Self { medium, slot, running, .. } = self;
        Ok(StagedSlot { medium, slot, running, evidence, release: release_digest(partitions) })
    }
}

/// Evidence that a slot holds a release: written, flushed, read back from the medium and equal to the manifest.
#[derive(Debug)]
pub struct StagedSlot {
    medium: Arc<dyn Medium>,
    slot: Slot,
    running: Slot,
    evidence: ReadBack,
    release: Sha256,
}

impl StagedSlot {
    /// Which slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// How it was read back.
    #[must_use]
    pub fn read_back(&self) -> ReadBack {
        self.evidence
    }

    /// The digest of the release it holds, as [`release_digest`] gives it.
    #[must_use]
    pub fn release(&self) -> Sha256 {
        self.release
    }

    pub(crate) fn running(&self) -> Slot {
        self.running
    }

    pub(crate) fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }
}

type Piece = Result<(AlignedBuf, usize, ReadBack), (u64, io::Error)>;

/// The digest of the first `len` bytes of a window as the medium holds them, and how they were read back. `progress`
/// is told the length of every piece. Several threads read, this one hashes.
///
/// # Errors
/// That of the medium, with its offset in the window.
pub fn digest_of(
    window: &SlotWindow,
    len: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(Sha256, ReadBack), (u64, io::Error)> {
    std::thread::scope(|scope| {
        // Reader n reads every READERS-th piece from the n-th on, so taking turns gives them in order. Everything of
        // these channels lives in this closure: when it ends early, the readers find nobody there and end as well.
        let readers: Vec<(Receiver<Piece>, SyncSender<AlignedBuf>)> = (0..READERS)
            .map(|first| {
                let (full, pieces) = mpsc::sync_channel(PIECES);
                let (used, empty) = mpsc::sync_channel(PIECES);
                scope.spawn(move || read_pieces(window, len, first, &full, &empty));
                (pieces, used)
            })
            .collect();
        let mut hasher = Hasher::new();
        let mut evidence = ReadBack::Direct;
        for (pieces, used) in readers.iter().cycle() {
            // A reader ends after its last piece, and the one whose turn it is then has none: that was all.
            let Ok(piece) = pieces.recv() else { break };
            let (buf, count, how) = piece?;
            hasher.update(&buf[..count]);
            evidence = evidence.and(how);
            progress(count as u64);
            // The reader may have read everything already.
            let _ = used.send(buf);
        }
        Ok((hasher.finish(), evidence))
    })
}

/// Reads ahead, piece number `first` and every [`READERS`]th after it, until the end, an error, or nobody listens.
fn read_pieces(
    window: &SlotWindow,
    len: u64,
    first: u64,
    full: &SyncSender<Piece>,
    empty: &Receiver<AlignedBuf>,
) {
    let size = usize::try_from(len).unwrap_or(PIECE).min(PIECE);
    let mut spare = PIECES;
    let mut offset = first * PIECE as u64;
    while offset < len {
        let mut buf = if spare > 0 {
            spare -= 1;
            AlignedBuf::zeroed(size)
        } else {
            let Ok(buf) = empty.recv() else { return };
            buf
        };
        let count = usize::try_from(len - offset).unwrap_or(size).min(size);
        let result = window.read_back(offset, &mut buf[..count]);
        let failed = result.is_err();
        let piece = result.map(|how| (buf, count, how)).map_err(|error| (offset, error));
        if full.send(piece).is_err() || failed {
            return;
        }
        offset += READERS * PIECE as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::RecordingMedium;

    fn window(len: usize) -> (Vec<u8>, SlotWindow) {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 4099 + i).to_le_bytes()[0]).collect();
        let medium = Arc::new(RecordingMedium::new(bytes.clone(), 512));
        (bytes, SlotWindow::read_only(medium, 0, len as u64).unwrap())
    }

    #[test]
    fn pieces_come_in_order_whatever_their_number() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 4 * PIECE + 5, 9 * PIECE] {
            let (bytes, window) = window(len);
            let mut told = 0;
            let (digest, how) = digest_of(&window, len as u64, &mut |bytes| told += bytes).unwrap();
            assert_eq!((digest, how, told), (Sha256::of(&bytes), ReadBack::Direct, len as u64));
        }
    }

    #[test]
    fn an_error_ends_all_readers_and_tells_its_place() {
        let (_, window) = window(9 * PIECE);
        // The window is shorter than what is asked for: the last piece fails, the others are read ahead.
        let (offset, error) = digest_of(&window, 9 * PIECE as u64 + 1, &mut |_| ()).unwrap_err();
        assert_eq!((offset, error.kind()), (9 * PIECE as u64, io::ErrorKind::InvalidInput));
        let (offset, _) = digest_of(&window, 20 * PIECE as u64, &mut |_| ()).unwrap_err();
        assert_eq!(offset, 9 * PIECE as u64);
    }
}
