//! Steps 5 to 12 on machines that boot: QEMU with UEFI firmware, the real loader, a real kernel.
//!
//! - [`machine`] starts, kills and restarts a virtual machine on a disk; [`lines`] keeps what it says, with times;
//!   [`qmp`] is QEMU's own voice: resets, the watchdog; [`agent`] runs commands in the guest over its second serial port.
//! - [`guest`] makes the small guest: kernel, initrd ([`cpio`]), a root file system with the engine on busybox.
//! - [`site`] is a world with a machine of that kind in it.
//! - [`debian`] is a world with a full Debian instead.
//!
//! A guest of another kind needs a disk, a console on `ttyS0` and, for commands, something that speaks [`agent`]'s
//! protocol on `ttyS1`.

pub mod agent;
pub mod cpio;
pub mod debian;
pub mod guest;
pub mod lines;
pub mod machine;
pub mod qmp;
pub mod site;
