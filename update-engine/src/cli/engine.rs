//! All steps: the command line of `update-engine`.

use crate::confirm::ConfirmArgs;
use crate::pause::Point;
use clap::{Args, CommandFactory, Parser, Subcommand};
use protocol::id::BootId;
use protocol::slot::Slot;
use protocol::version::Version;
use std::path::PathBuf;

/// Keeps this node on the release its channel holds.
#[derive(Debug, Parser)]
#[command(name = "update-engine", version)]
pub struct Cli {
    /// What to log, as in `info` or `update_engine=debug`; RUST_LOG does the same.
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Verb,
}

/// What the engine can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Check, install, activate, confirm: once, or until it is stopped.
    Run(Run),
    /// Wait for the running slot to be confirmed, and exit 1 where it is not in time and there is another one to go
    /// back to. For update-engine-confirm.service, which reboots then; it changes nothing itself.
    Confirm(ConfirmArgs),
}

/// `update-engine run`
#[derive(Debug, Args)]
pub struct Run {
    /// Do one pass and end; the exit code says what came of it: 0 something was done, 1 failed, 3 nothing to do,
    /// 4 deferred, 5 refused.
    #[arg(long)]
    pub once: bool,
    /// The only configuration file to read, instead of the config.d folders.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A disk with slots, a device or a regular file, instead of this machine's own. Nothing is rebooted then.
    #[arg(long, value_name = "DISK")]
    pub disk: Option<PathBuf>,
    /// The state folder; overrides the configuration.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The slot that was booted; needed the first time with --disk.
    #[arg(long, value_name = "SLOT")]
    pub booted: Option<Slot>,
    /// The version that runs; needed the first time with --disk.
    #[arg(long, value_name = "VERSION")]
    pub version: Option<Version>,
    /// The boot that this is; with --disk it is told from --booted and the tries left if not given.
    #[arg(long, value_name = "ID")]
    pub boot_id: Option<BootId>,
    /// Be on the bus also with --disk, where the engine is not unless asked; DBUS_SYSTEM_BUS_ADDRESS says which bus.
    #[arg(long, requires = "disk", conflicts_with = "once")]
    pub bus: bool,
    /// Print the last status as one JSON document.
    #[arg(long)]
    pub json: bool,
    /// For tests: stop dead at a point, print `paused POINT`, and wait to be killed. docs/operating.md lists the points.
    #[arg(long, hide = true, value_name = "POINT")]
    pub pause_at: Option<Point>,
}

/// The command line as a value, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_consistent() {
        super::command().debug_assert();
    }
}
