//! All steps, from outside: what the tests, the benches and the demo share. Real programs on real files, no mocks.
//!
//! - [`programs`] builds and finds the real binaries, [`process`] runs them and keeps what they said.
//! - [`images`] makes OS images, real ext4 where `mke2fs` is there.
//! - [`world`] is an operator with a server; [`node`] is a machine with a disk, an engine and a loader.
//! - [`small`] is a world with a small release, for tests.
//! - [`hostile`] stands between node and server and misbehaves.
//! - [`bus`] is a private system bus, with a polkit that says what a test wants.
//! - [`etcd`] is an etcd cluster that can be frozen and killed.
//! - [`lock_server`] is an update server whose reboot locks are in use.
//! - [`postgres`] is a PostgreSQL with fresh databases.
//! - `s3` is an S3 server with an empty bucket (feature `s3`).
//! - [`blockdev`] puts a disk file behind a loop device.
//! - [`vm`] boots: firmware, loader, kernel and engine in virtual machines.

pub mod blockdev;
pub mod bus;
pub mod etcd;
pub mod hostile;
pub mod images;
pub mod lock_server;
pub mod node;
pub mod postgres;
pub mod process;
pub mod programs;
#[cfg(feature = "s3")]
pub mod s3;
pub mod small;
pub mod vm;
pub mod world;
