//! Steps 5 to 7, download to slot: whether a release fits the slots of a disk, so that all that a slot starts from is
//! of one release.
//!
//! A slot is made of several partitions and is activated as a whole. So each of them either gets its image from the
//! release or holds nothing: a loader then finds what belongs together, or nothing that it could start.

use crate::error::DiskError;
use crate::medium::AlignedBuf;
use crate::slots::InvalidatedSlot;
use crate::table::Disk;
use crate::window::SlotWindow;
use protocol::id::PartitionRole;
use protocol::manifest::PartitionImage;
use protocol::slot::Slot;
use std::io;

/// How much of a partition's start tells whether it holds something, in bytes: every file system has its superblock
/// there. What is cleared is as long.
const HEAD: u64 = 1 << 20;

/// Why a release does not fit the slots of a disk.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// An image without a partition.
    #[error("it has an image for the partition {0}, which the slots of this disk do not have (disk.roles)")]
    NoSuchPartition(PartitionRole),
    /// An image longer than its partition.
    #[error("the image of the partition {role} has {size} bytes: {name} holds {len}")]
    TooLong {
        /// Which partition.
        role: PartitionRole,
        /// Length of the image in bytes.
        size: u64,
        /// The partition's name.
        name: String,
        /// Its length in bytes.
        len: u64,
    },
    /// A partition that the running slot has filled, and this release does not fill.
    #[error(
        "it has no image for the partition {role}, and the running slot has one ({name} is not empty): without, the other \
         slot cannot be started; build the release with it, or take the role out of disk.roles if releases do not fill it"
    )]
    Missing {
        /// Which partition.
        role: PartitionRole,
        /// The name of the running slot's partition.
        name: String,
    },
    /// It cannot be found out.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Disk {
    /// Whether a release with these images can be installed into `target` while `running` runs.
    ///
    /// # Errors
    /// [`FitError`] with the first thing that is in the way.
    pub fn check_fit(&self, images: &[PartitionImage], target: Slot, running: Slot) -> Result<(), FitError> {
        for image in images {
            let role = || image.role.clone();
            let Some(partition) = self.partition(target, &image.role) else {
                return Err(FitError::NoSuchPartition(role()));
            };
            let (size, len) = (image.size, partition.len);
            if len < size {
                return Err(FitError::TooLong { role: role(), size, name: partition.name.clone(), len });
            }
        }
        for (role, partition) in self.slot_partitions(running).filter(|(role, _)| !fills(images, role)) {
            let window = self.open_slot(role, running)?;
            if !is_empty(&window).map_err(DiskError::io("read a partition of the running slot"))? {
                return Err(FitError::Missing { role: role.clone(), name: partition.name.clone() });
            }
        }
        Ok(())
    }
}

impl InvalidatedSlot {
    /// Clears the partitions that a release with these images does not fill, so that nothing of another release is
    /// left to be started there. Writes nothing where they are empty.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn clear_unfilled(&self, images: &[PartitionImage]) -> Result<(), DiskError> {
        let mut windows = self.windows().filter(|(role, _)| !fills(images, role));
        windows
            .try_for_each(|(_, window)| {
                if is_empty(window)? { Ok(()) } else { window.write_zeroes(0, window.len().min(HEAD)) }
            })
            .map_err(DiskError::io("clear the partitions that the release does not fill"))
    }
}

/// Whether one of the images is for this partition.
pub(crate) fn fills(images: &[PartitionImage], role: &PartitionRole) -> bool {
    images.iter().any(|image| image.role == *role)
}

/// Whether a partition holds nothing: its start, as the medium holds it, is zero.
///
/// # Errors
/// Those of the medium.
pub fn is_empty(window: &SlotWindow) -> io::Result<bool> {
    let mut head = AlignedBuf::zeroed(usize::try_from(window.len().min(HEAD)).unwrap_or(0));
    window.read_back(0, &mut head)?;
    Ok(head.iter().all(|byte| *byte == 0))
}
