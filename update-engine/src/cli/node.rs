//! All steps: the options that say which node is meant and what runs on it, the same in every command that has them.

use crate::boot::Given;
use crate::config::{ConfigError, FOLDERS, Merged, Settings, settings};
use clap::Args;
use protocol::id::BootId;
use protocol::slot::Slot;
use protocol::version::Version;
use std::path::PathBuf;

/// Where the node is.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeOptions {
    /// The state folder; state.dir of the configuration if not given, else /var/lib/update-engine.
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The only configuration file to read, instead of the config.d folders.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A disk with slots, a device or a regular file, instead of this machine's own. The engine reboots nothing then.
    #[arg(long, global = true, value_name = "DISK")]
    pub disk: Option<PathBuf>,
}

impl NodeOptions {
    /// Reads the configuration: the file that is named, or the folders.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn merged(&self) -> Result<Merged, ConfigError> {
        match &self.config {
            Some(path) => Merged::from_file(path),
            None => Merged::from_folders(&FOLDERS),
        }
    }

    /// The whole configuration, validated.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        Settings::from_merged(&self.merged()?)
    }

    /// The state folder that is named or configured. The rest of the configuration does not matter.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn folder(&self) -> Result<PathBuf, ConfigError> {
        match &self.state_dir {
            Some(dir) => Ok(dir.clone()),
            None => settings::state_dir(&self.merged()?),
        }
    }

    /// The state folder that the one configuration file names which is to be read. Where it names none, an engine's own
    /// command line may.
    #[must_use]
    pub fn folder_of_config(&self) -> Option<PathBuf> {
        self.config.as_ref()?;
        let merged = self.merged().ok()?;
        merged.get("state.dir")?;
        settings::state_dir(&merged).ok()
    }

    /// Whether the engine on the bus can be the one that is meant: no option names another state folder or disk. See
    /// also [`Self::folder_of_config`].
    #[must_use]
    pub const fn by_bus(&self) -> bool {
        self.state_dir.is_none() && self.disk.is_none()
    }
}

/// Which slot runs.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct BootedSlot {
    /// The slot that runs; told by the kernel command line if not given. Needed the first time with --disk.
    #[arg(long, value_name = "SLOT")]
    pub booted: Option<Slot>,
}

/// What is said about the running system in its place.
#[derive(Clone, Debug, Default, Args)]
pub struct BootedOptions {
    /// The slot.
    #[command(flatten)]
    pub slot: BootedSlot,
    /// The version that runs; told by os-release if not given. Needed the first time with --disk.
    #[arg(long, value_name = "VERSION")]
    pub version: Option<Version>,
    /// The boot that this is; with --disk it is told from --booted and the tries left if not given.
    #[arg(long, value_name = "ID")]
    pub boot_id: Option<BootId>,
}

impl BootedOptions {
    /// Nothing is said in the running system's place.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.slot.booted.is_none() && self.version.is_none() && self.boot_id.is_none()
    }
}

impl From<BootedOptions> for Given {
    fn from(options: BootedOptions) -> Self {
        Self { slot: options.slot.booted, version: options.version, boot_id: options.boot_id }
    }
}
