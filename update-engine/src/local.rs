//! All steps: `updatectl` on the node itself.
//!
//! What it shows comes from the state folder. What it changes, it changes by running the state machine on that folder
//! and disk, which needs the engine to be stopped meanwhile.

mod act;
pub mod import;
mod show;

use crate::config::{ConfigError, FOLDERS, Merged, Settings};
use crate::node::StartError;
use crate::slots::SlotsError;
use crate::state::StateError;
use crate::status::StatusError;
use clap::{Args, Subcommand};
use protocol::digest::Sha256;
use protocol::id::BootId;
use protocol::slot::Slot;
use protocol::status::Exit;
use protocol::version::Version;
use std::path::{Path, PathBuf};

/// The schema number of the documents that these commands print, the status aside.
const SCHEMA: u32 = 1;

/// Where the node is.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    /// The state folder; state.dir of the configuration if not given, else /var/lib/update-engine.
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The only configuration file to read, instead of the config.d folders.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A disk with slots: a device or a regular file. Nothing is rebooted then.
    #[arg(long, global = true, value_name = "DISK")]
    pub disk: Option<PathBuf>,
}

/// What is said about the running system in its place.
#[derive(Clone, Debug, Args)]
pub struct BootedOptions {
    /// The slot that runs.
    #[arg(long, value_name = "SLOT")]
    pub booted: Option<Slot>,
    /// The version that runs.
    #[arg(long, value_name = "VERSION")]
    pub version: Option<Version>,
    /// The boot that this is.
    #[arg(long, value_name = "ID")]
    pub boot_id: Option<BootId>,
}

/// The commands of `updatectl` on a node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// What the engine is doing.
    Status {
        /// Show it again whenever it changes, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Ask the running engine to check for an update now.
    Check,
    /// Both slots: what they hold, and what boot selection makes of them.
    Slots,
    /// What happened on this node.
    History {
        /// How many events to show, the newest ones.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// The releases that this node never retries.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Go back to the other slot; the engine must be stopped.
    Rollback(BootedOptions),
    /// Give up an update and undo its activation; the engine must be stopped.
    Cancel(BootedOptions),
    /// Confirm the running release without health checks; the engine must be stopped.
    MarkGood(BootedOptions),
    /// Why this node is or is not updating now.
    Explain,
    /// The configuration, and where each value comes from.
    Config(import::ConfigOptions),
}

/// The commands about quarantined releases.
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Show them.
    List,
    /// Forget one or all of them, so that they are tried again; the engine must be stopped.
    Clear {
        /// The release to forget, by its digest; all of them if not given.
        #[arg(long, value_name = "SHA256")]
        release: Option<Sha256>,
        /// What runs.
        #[command(flatten)]
        booted: BootedOptions,
    },
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another engine's configuration.
    #[error(transparent)]
    Translate(#[from] import::TranslateError),
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The status.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The disk.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// The engine cannot be started for this.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The history cannot be read.
    #[error("cannot read the history in {}", dir.display())]
    History {
        /// The state folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no engine to ask.
    #[error("no engine is running on {}: start it, or do one pass with `update-engine run --once`", dir.display())]
    NotRunning {
        /// The state folder.
        dir: PathBuf,
    },
    /// The engine cannot be told.
    #[error("cannot signal the engine (process {pid})")]
    Signal {
        /// Its process id.
        pid: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine says no.
    #[error("refused: {0}")]
    Declined(String),
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

/// Reads the configuration that the options name.
///
/// # Errors
/// [`ConfigError`]
pub fn merged(config: Option<&Path>) -> Result<Merged, ConfigError> {
    match config {
        Some(path) => Merged::from_file(path),
        None => Merged::from_folders(&FOLDERS),
    }
}

impl NodeOptions {
    /// The validated configuration.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        Settings::from_merged(&merged(self.config.as_deref())?)
    }

    /// The state folder, which can be had without a configuration.
    fn folder(&self) -> Result<PathBuf, ConfigError> {
        if let Some(dir) = &self.state_dir {
            return Ok(dir.clone());
        }
        let merged = merged(self.config.as_deref())?;
        match merged.get("state.dir") {
            Some(_) => Settings::from_merged(&merged).map(|settings| settings.state_dir),
            None => Ok(PathBuf::from("/var/lib/update-engine")),
        }
    }
}

/// Runs a command; data goes to stdout, as one JSON document where `json` says so.
///
/// # Errors
/// [`LocalError`]
pub fn run(command: NodeCommand, options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    use machine::{Clear, Command};
    let after = act::After::Finish;
    match command {
        NodeCommand::Status { watch } => show::status(&options.folder()?, watch, json),
        NodeCommand::Check => act::check(&options.folder()?, json),
        NodeCommand::Slots => show::slots(options, json),
        NodeCommand::History { limit } => show::history(&options.folder()?, limit, json),
        NodeCommand::Quarantine(QuarantineCommand::List) => show::quarantine(&options.folder()?, json),
        NodeCommand::Quarantine(QuarantineCommand::Clear { release, booted }) => {
            let which = release.map_or(Clear::All, Clear::Release);
            act::ask(Command::QuarantineClear(which), act::After::Stop, options, booted, json)
        }
        NodeCommand::Rollback(booted) => act::ask(Command::Rollback, after, options, booted, json),
        NodeCommand::Cancel(booted) => act::ask(Command::Cancel, after, options, booted, json),
        NodeCommand::MarkGood(booted) => act::ask(Command::MarkGood, after, options, booted, json),
        NodeCommand::Explain => show::explain(&options.folder()?, json),
        NodeCommand::Config(import::ConfigOptions { command: None }) => show::config(options, json),
        NodeCommand::Config(import::ConfigOptions { command: Some(import::ConfigCommand::Import(what)) }) => {
            import::run(&what, json)
        }
    }
}
