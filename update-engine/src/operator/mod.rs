//! Steps 3 and 4, metadata and channel, from the operator's side: `updatectl` against a server.
//!
//! What decides what nodes may install is signed here, on the operator's machine; the server only ever gets
//! signatures.

mod channel;
mod client;
mod enrolment;
mod error;
mod lock;
mod node;
mod policies;
mod release;
mod rollout;
mod root;
mod targets;
mod upload;

pub use client::{Client, ServerOptions};
pub use error::OperatorError;
pub use lock::{LockCommand, PolicyCommand};

use crate::cli::node::NodeOptions;
use clap::Subcommand;
use protocol::status::Exit;
use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

/// The commands of `updatectl` that speak to a server.
#[derive(Debug, Subcommand)]
pub enum OperatorCommand {
    /// The root of trust.
    #[command(subcommand)]
    Root(root::RootCommand),
    /// Releases: push, list, withdraw, dead-end, renew.
    #[command(subcommand)]
    Release(release::ReleaseCommand),
    /// Channels: which release the nodes of a channel go to.
    #[command(subcommand)]
    Channel(channel::ChannelCommand),
    /// Rollouts: how a channel's release reaches its nodes.
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// The nodes that a server has heard of.
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Tokens that let nodes enrol, at a server that asks for them.
    #[command(subcommand)]
    Enrolment(enrolment::EnrolmentCommand),
    /// The server's record of changes, newest first.
    Audit {
        /// How many entries to show.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Only entries below this number, to go on where the last list ended.
        #[arg(long, value_name = "SEQ")]
        before: Option<u64>,
    },
}

/// Runs a command; data goes to stdout, as one JSON document where `json` says so.
///
/// # Errors
/// [`OperatorError`]; see [`OperatorError::exit`] for the exit code.
pub async fn run(
    command: OperatorCommand,
    options: &ServerOptions,
    json: bool,
) -> Result<Exit, OperatorError> {
    let client = Client::new(options)?;
    match command {
        OperatorCommand::Root(command) => root::run(command, &client, json).await,
        OperatorCommand::Release(command) => release::run(command, &client, json).await,
        OperatorCommand::Channel(command) => channel::run(command, &client, json).await,
        OperatorCommand::Rollout(command) => rollout::run(command, &client, json).await,
        OperatorCommand::Node(command) => node::run(command, &client, json).await,
        OperatorCommand::Enrolment(command) => enrolment::run(command, &client, json).await,
        OperatorCommand::Audit { limit, before } => node::audit(&client, limit, before, json).await,
    }
}

/// Runs a command about reboot locks, as [`run`] does the others: those of the server that is named; where none is, those in
/// the etcd of the configuration that `node` names.
///
/// # Errors
/// [`OperatorError`]; see [`OperatorError::exit`] for the exit code.
pub async fn lock(
    command: LockCommand,
    server: &ServerOptions,
    node: &NodeOptions,
    json: bool,
) -> Result<Exit, OperatorError> {
    // Boxed: three keepers' futures are in it.
    Box::pin(lock::run(command, server, node, json)).await
}

/// Asks on a terminal before something that is not undone by the next command.
fn ask(question: &str, yes: bool) -> Result<(), OperatorError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(OperatorError::NobodyToAsk);
    }
    let failed = |source| OperatorError::File { path: "the terminal".into(), source };
    write!(io::stderr(), "{question} [y/N] ").map_err(failed)?;
    io::stderr().flush().map_err(failed)?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed)?;
    if matches!(line.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(OperatorError::Declined) }
}

/// Prints a document as one line of JSON.
fn print_json<T: Serialize>(document: &T) -> Result<(), OperatorError> {
    let line = serde_json::to_string(document).map_err(OperatorError::Output)?;
    say(format_args!("{line}"))
}

/// Prints a line of data. It may be that nobody takes it, as behind `| head`.
fn say(line: fmt::Arguments<'_>) -> Result<(), OperatorError> {
    writeln!(io::stdout(), "{line}").map_err(OperatorError::Print)
}

/// Says on stderr what a person should know beside the data. Where nobody listens, the work goes on.
fn tell(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// A number of bytes for people.
fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
