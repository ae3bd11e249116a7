//! All steps: the command line of `updatectl`.

use crate::local::{NodeCommand, NodeOptions};
use crate::operator::{OperatorCommand, ServerOptions};
use clap::{CommandFactory, Parser, Subcommand};

/// Releases and channels on a server; status and repair on a node.
#[derive(Debug, Parser)]
#[command(name = "updatectl", version)]
pub struct Cli {
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log, as in `info` or `update_engine=debug`; RUST_LOG does the same.
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Which server.
    #[command(flatten, next_help_heading = "Server")]
    pub server: ServerOptions,
    /// Which node.
    #[command(flatten, next_help_heading = "Node")]
    pub node: NodeOptions,
    /// What to do.
    #[command(subcommand)]
    pub command: Verb,
}

/// What `updatectl` can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// On this node.
    #[command(flatten)]
    Node(NodeCommand),
    /// Against a server.
    #[command(flatten)]
    Server(OperatorCommand),
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
