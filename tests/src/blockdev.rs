//! Steps 7 and 8 on a real block device: a disk file behind a loop device.

use crate::process::run;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Whether this process may make loop devices.
    #[must_use]
    pub fn available() -> bool {
        rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists()
    }

    /// Puts `file` behind a loop device with sectors of `sector_size` bytes, with direct I/O to the file, so that
    /// what is read from the device's own cache is not what the file holds by luck.
    ///
    /// # Errors
    /// Where `losetup` fails.
    pub fn attach(file: &Path, sector_size: u32) -> Result<Self> {
        let size = sector_size.to_string();
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--direct-io=on", "--sector-size", &size]).arg(file);
        let said = run(&mut command)?.ok()?;
        let path = PathBuf::from(said.stdout.trim());
        Ok(Self { path })
    }

    /// The device, as `/dev/loop7`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches it and says so if that fails.
    ///
    /// # Errors
    /// Where `losetup` fails.
    pub fn detach(self) -> Result<()> {
        let path = self.path.clone();
        std::mem::forget(self);
        let said = run(Command::new("losetup").arg("--detach").arg(&path))?;
        said.ok().map(drop).with_context(|| format!("{} stays attached", path.display()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // In a failing test there is nobody to tell.
        let _ = run(Command::new("losetup").arg("--detach").arg(&self.path));
    }
}
