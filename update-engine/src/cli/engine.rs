//! All steps: the command line of `update-engine`.

use super::node::{BootedOptions, NodeOptions};
use super::{Output, Program};
use crate::confirm::ConfirmArgs;
use crate::pause::Point;
use clap::{Args, Parser, Subcommand};

/// Keeps this node on the release its channel holds.
#[derive(Debug, Parser)]
#[command(name = "update-engine", version)]
pub struct Cli {
    /// What to say.
    #[command(flatten)]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Verb,
}

/// What the engine can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Check, install, activate, confirm: once, or until it is stopped. With --json, the last status is printed.
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
    /// Which node.
    #[command(flatten)]
    pub node: NodeOptions,
    /// What runs.
    #[command(flatten)]
    pub booted: BootedOptions,
    /// Be on the bus also with --disk, where the engine is not unless asked; DBUS_SYSTEM_BUS_ADDRESS says which bus.
    #[arg(long, requires = "disk", conflicts_with = "once")]
    pub bus: bool,
    /// For tests: stop dead at a point, print `paused POINT`, and wait to be killed. docs/operating.md lists the points.
    #[arg(long, hide = true, value_name = "POINT")]
    pub pause_at: Option<Point>,
}

impl Program for Cli {
    const LOG: &'static str = "info";

    fn output(&self) -> &Output {
        &self.output
    }
}
