//! GPT disks with two slots, as devices or regular files: slots written, flushed, read back, flipped.
//!
//! | module | step of the flow (DESIGN section 1) |
//! |---|---|
//! | [`medium`], [`device`] | 5 to 8: what everything written to a disk goes through |
//! | [`window`] | 5 to 7: a view of one partition that cannot be left |
//! | [`seeds`], [`plan`] | 5: what the node holds already, and what it fetches |
//! | [`assemble`] | 5 to 7: chunks checked and written |
//! | [`fit`] | 5, 7: whether a release fits the slots |
//! | [`layout`] | 7, 8: which partitions make up a slot |
//! | [`mounts`], [`slots`] | 7: evidence that a slot may be written, and that it holds what it should |
//! | [`table`] | 8, 11, 12: the partition table, its repair, the flip, confirming |
//! | `whole` (feature `loader`) | 11: the disk as the loader's sequence sees it |
//! | [`durable`] | all: files that survive a power cut |

pub mod assemble;
pub mod device;
pub mod durable;
pub mod error;
pub mod fit;
pub mod layout;
pub mod medium;
pub mod mounts;
pub mod plan;
pub mod seeds;
pub mod slots;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "loader")]
pub mod whole;
pub mod window;

pub use device::{Access, DiskFile, OpenError};
pub use error::DiskError;
pub use fit::FitError;
pub use layout::{RoleLayout, SlotLayout};
pub use medium::{AlignedBuf, Medium, ReadBack};
pub use mounts::{MountTable, SystemMounts};
pub use slots::{InvalidatedSlot, StagedSlot, TargetSlot, VerifyError};
pub use table::{Disk, PartitionView, TableHealth};
pub use window::SlotWindow;
