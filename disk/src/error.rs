//! Steps 7, 8, 11 and 12, slot to confirm: why a disk cannot be used, or why a change of it is refused.

use crate::medium::ALIGN;
use protocol::digest::Sha256;
use protocol::gpt::TableError;
use protocol::slot::{Attributes, Slot};
use std::io;

/// Why a disk cannot be used, or why a change of it is refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The table is unusable.
    #[error("cannot use the partition table")]
    Table(#[source] TableError),
    /// The medium failed.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was written is not what reads back.
    #[error(
        "the partition table reads back from the disk differently than it was written: do not trust this disk"
    )]
    NotReadBack,
    /// A partition of the configured layout is missing.
    #[error("the disk has no partition named {0}, which the slot layout asks for")]
    NoPartition(String),
    /// Two partitions of one name.
    #[error("the disk has two partitions named {0}: names of slot partitions must be unique")]
    DuplicatePartition(String),
    /// A partition that the boot loader would not find.
    #[error(
        "the partition {name} has the GPT type {found}: expected {expected}, by which boot loaders find it"
    )]
    WrongType {
        /// The partition.
        name: String,
        /// The configured type.
        expected: String,
        /// Its type.
        found: String,
    },
    /// A partition that the disk does not hold.
    #[error(
        "the partition {name} ends behind the disk's end at {len} bytes: the disk was cut or is misreported"
    )]
    OutsideDisk {
        /// The partition.
        name: String,
        /// The disk's length in bytes.
        len: u64,
    },
    /// A partition that shares a page with its neighbour.
    #[error(
        "the partition {name} has {len} bytes at byte {offset}: expected multiples of {ALIGN}, as its ends are written in \
         whole pages; lay the disk out anew"
    )]
    Misaligned {
        /// The partition.
        name: String,
        /// Where it starts on the disk, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The layout itself is of no use.
    #[error("the slot layout {0}")]
    Layout(String),
    /// The active slot is never written.
    #[error("slot {0} is the running one: only the other slot may be changed")]
    Running(Slot),
    /// A mounted partition is never written.
    #[error("the partition {name} of slot {slot} is in use ({by}): unmount it first")]
    InUse {
        /// The slot that was to be written.
        slot: Slot,
        /// The partition.
        name: String,
        /// Who uses it.
        by: String,
    },
    /// Nobody knows whether it is mounted.
    #[error("cannot find out whether the partition {name} is mounted")]
    Mounts {
        /// The partition.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The slot to fall back to must be a confirmed one.
    #[error(
        "slot {running}, which runs, could not be fallen back to ({attributes:?}): confirm it before an update"
    )]
    NoFallback {
        /// The running slot.
        running: Slot,
        /// Its attributes.
        attributes: Attributes,
    },
    /// The change would leave a disk that does not boot.
    #[error("without slot {0} no slot could be booted: it is left as it is")]
    LastBootable(Slot),
    /// Only a slot that was confirmed once may be gone back to.
    #[error("slot {slot} cannot be gone back to ({attributes:?}): it does not hold a confirmed release")]
    NotConfirmed {
        /// The slot.
        slot: Slot,
        /// Its attributes.
        attributes: Attributes,
    },
    /// Evidence about another release.
    #[error(
        "slot {slot} was read back as the release {found}: expected {expected}; install that release first"
    )]
    OtherRelease {
        /// The slot.
        slot: Slot,
        /// The digest of the release to be activated.
        expected: Sha256,
        /// The digest of the release that was read back.
        found: Sha256,
    },
    /// Evidence about another disk.
    #[error("slot {0} was prepared on another disk or for another running slot")]
    ForeignEvidence(Slot),
}

impl DiskError {
    pub(crate) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
