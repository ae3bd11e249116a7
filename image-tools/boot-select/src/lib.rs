//! Step 11, boot: the boot loader's decisions and their order, apart from the firmware.
//!
//! [`boot`] reads both copies of the partition table, applies [`protocol::slot::select`], spends the try in the commit
//! order of [`protocol::gpt`], and hands the slot over to be started; a slot that cannot be started is left out and the
//! next one is tried at once. What touches the machine is behind four narrow traits: [`Disk`], [`Loader`],
//! [`Console`] and [`Facts`]. `main.rs` puts UEFI behind them, the tests a recording disk.
//!
//! [`BootFiles`] reads what a slot starts from; [`kernel`] and [`cmdline`] check what can be checked before a kernel gets
//! the machine.
#![no_std]

extern crate alloc;

pub mod cmdline;
mod files;
pub mod kernel;
mod sequence;
mod slots;

pub use files::{BootFiles, Files};
pub use sequence::{Console, Disk, Facts, Loader, NoSlot, boot};
pub use slots::{ROOT_TYPE, SlotPartitions};
