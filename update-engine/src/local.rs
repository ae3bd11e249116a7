//! All steps: `updatectl` on the node itself.
//!
//! A running engine is asked over the bus. Where none runs, the status comes from the state folder, and what is to be
//! changed is changed by running the state machine on that folder and disk. What the engine keeps, and what is on the
//! disk, is read from there in both cases.

mod act;
mod ask;
mod follow;
pub mod import;
mod lock;
mod show;
mod watch;

use crate::bus::client::Request;
use crate::cli::node::{BootedOptions, NodeOptions};
use crate::config::ConfigError;
use crate::node::StartError;
use crate::state::StateError;
use crate::status::StatusError;
use clap::{Args, Subcommand};
use protocol::digest::Sha256;
use protocol::status::Exit;
use std::io::Write as _;
use std::path::PathBuf;

/// The schema number of the documents that these commands print, the status aside.
const SCHEMA: u32 = 1;

/// The commands of `updatectl` on a node.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// What the engine is doing.
    Status {
        /// Show it again whenever it changes, until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Have the running engine check for an update now; the exit code says what came of it: 0 there is one, 1 it
    /// failed, 3 nothing to do, 4 deferred, 5 refused.
    Check {
        /// Do not wait for the outcome.
        #[arg(long)]
        no_wait: bool,
    },
    /// Check, and install what is offered. Ends when it is staged (0), waits for a window or permit (4), or has
    /// failed (1); 3 and 5 as for check.
    Update {
        /// Forget the attempts spent on releases, so that one which failed too often is tried again.
        #[arg(long)]
        force_retry: bool,
        /// Do not wait for the outcome.
        #[arg(long)]
        no_wait: bool,
        /// What runs.
        #[command(flatten)]
        booted: BootedOptions,
    },
    /// Reboot now, whatever the strategy says.
    Reboot(BootedOptions),
    /// Both slots: what they hold, and what boot selection makes of them.
    Slots,
    /// What happened on this node.
    History {
        /// How many events to show, the newest ones.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Show the evidence of failures as well.
        #[arg(long)]
        evidence: bool,
    },
    /// The releases that this node never retries.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Go back to the other slot at the next boot.
    Rollback(BootedOptions),
    /// Give up an update and undo its activation.
    Cancel(BootedOptions),
    /// Confirm the running release without health checks.
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
    /// Forget one or all of them, so that they are tried again.
    Clear {
        /// The release to forget, by its digest; all of them if not given.
        #[arg(long, value_name = "SHA256")]
        release: Option<Sha256>,
        /// What runs.
        #[command(flatten)]
        booted: BootedOptions,
    },
}

/// `updatectl lock status`
#[derive(Clone, Copy, Debug, Args)]
pub struct LockStatus {
    /// Show also what stands against each node that holds or waits, and against this one.
    #[arg(long)]
    pub why: bool,
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
    /// The bus.
    #[error("the engine cannot be asked over the bus")]
    Bus(#[source] zbus::Error),
    /// The engine that was asked is gone.
    #[error("the engine is gone before it was done: `updatectl status` shows how far it got")]
    Gone,
    /// The engine cannot answer.
    #[error("the engine cannot do that: {0}")]
    Engine(String),
    /// polkit, or the lack of it, says no.
    #[error("{0}")]
    NotAuthorized(String),
    /// There is no outcome.
    #[error("no outcome within {0} s: `updatectl status --watch` shows what the engine is doing")]
    Unanswered(u64),
    /// The engine accepted a request and is not through with it.
    #[error("the engine says: {reply}; it is not done yet, and is now {state}")]
    Unsettled {
        /// What the engine answered.
        reply: String,
        /// Its state.
        state: String,
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
    /// What was asked for was begun, and did not end well.
    #[error("{reason}")]
    Ended {
        /// How it ended.
        exit: Exit,
        /// Why.
        reason: String,
    },
    /// The machine says no.
    #[error("refused: {0}")]
    Declined(String),
    /// What was asked for is so already.
    #[error("nothing to do: {0}")]
    NothingToDo(String),
    /// No threads or timers.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

impl LocalError {
    /// The exit code (DESIGN section 8).
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::NothingToDo(_)
            | Self::Translate(import::TranslateError::Import {
                source: crate::config::import::ImportError::Empty,
                ..
            }) => Exit::NothingToDo,
            Self::Ended { exit, .. } => *exit,
            Self::Start(error) => error.exit(),
            Self::Declined(_) | Self::NotAuthorized(_) => Exit::Refused,
            Self::Unsettled { .. } => Exit::Deferred,
            _ => Exit::Failed,
        }
    }
}

/// Says on stderr what a person should know beside the data.
fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "updatectl: {}", protocol::status::one_line(text));
}

/// Runs a command; data goes to stdout, as one JSON document where `json` says so.
///
/// # Errors
/// [`LocalError`]; see [`LocalError::exit`] for the exit code.
pub fn run(command: NodeCommand, options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    use machine::{Clear, Command};
    let node = Node { options, json };
    match command {
        NodeCommand::Status { watch: true } => wait_for(watch::watch(options, json)),
        NodeCommand::Status { watch: false } => wait_for(show::status(options, json)),
        NodeCommand::Check { no_wait } => wait_for(ask::check(options, !no_wait, json)),
        NodeCommand::Update { force_retry, no_wait, booted } => {
            if booted.is_empty()
                && let Some(exit) = wait_for(ask::update(options, force_retry, !no_wait, json))?
            {
                return Ok(exit);
            }
            act::ask(Command::Update { force_retry }, act::After::Finish, options, booted, json)
        }
        NodeCommand::Slots => wait_for(show::slots(options, json)),
        NodeCommand::History { limit, evidence } => {
            let dir = wait_for(follow::folder(options))?;
            show::history(&dir, limit, evidence, json)
        }
        NodeCommand::Quarantine(QuarantineCommand::List) => {
            show::quarantine(&wait_for(follow::folder(options))?, json)
        }
        NodeCommand::Quarantine(QuarantineCommand::Clear { release, booted }) => {
            let which = release.map_or(Clear::All, Clear::Release);
            node.change(Request::QuarantineClear(release), Command::QuarantineClear(which), booted)
        }
        NodeCommand::Reboot(booted) => node.change(Request::Reboot, Command::Reboot, booted),
        NodeCommand::Rollback(booted) => node.change(Request::Rollback, Command::Rollback, booted),
        NodeCommand::Cancel(booted) => node.change(Request::Cancel, Command::Cancel, booted),
        NodeCommand::MarkGood(booted) => node.change(Request::MarkGood, Command::MarkGood, booted),
        NodeCommand::Explain => wait_for(show::explain(options, json)),
        NodeCommand::Config(import::ConfigOptions { command: None }) => show::config(options, json),
        NodeCommand::Config(import::ConfigOptions { command: Some(import::ConfigCommand::Import(what)) }) => {
            import::run(&what, json)
        }
    }
}

/// `updatectl lock status`, as [`run`] does the others.
///
/// # Errors
/// [`LocalError`]; see [`LocalError::exit`] for the exit code.
pub fn lock_status(what: &LockStatus, options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    wait_for(lock::status(options, what.why, json))
}

/// The node, as the options name it.
struct Node<'a> {
    options: &'a NodeOptions,
    json: bool,
}

impl Node<'_> {
    /// Asks the running engine, or does it here where none runs.
    fn change(
        &self,
        request: Request,
        command: machine::Command,
        booted: BootedOptions,
    ) -> Result<Exit, LocalError> {
        let after = match request {
            Request::QuarantineClear(_) => act::After::Stop,
            _ => act::After::Finish,
        };
        if self.options.by_bus()
            && booted.is_empty()
            && let Some(exit) = wait_for(ask::request(self.options, request, self.json))?
        {
            return Ok(exit);
        }
        act::ask(command, after, self.options, booted, self.json)
    }
}

fn wait_for<T>(work: impl Future<Output = Result<T, LocalError>>) -> Result<T, LocalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(LocalError::Runtime)?.block_on(work)
}
