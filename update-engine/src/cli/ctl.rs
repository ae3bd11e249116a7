//! All steps: the command line of `updatectl`.

use super::node::NodeOptions;
use super::{Output, Program};
use crate::local::{LockStatus, NodeCommand};
use crate::operator::{LockCommand, OperatorCommand, ServerOptions};
use clap::{Parser, Subcommand};

/// Releases and channels on a server; status and repair on a node.
#[derive(Debug, Parser)]
#[command(name = "updatectl", version)]
pub struct Cli {
    /// What to say.
    #[command(flatten)]
    pub output: Output,
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
    /// The reboot lock.
    #[command(subcommand)]
    Lock(LockVerb),
    /// Against a server.
    #[command(flatten)]
    Server(OperatorCommand),
}

/// What can be asked about the reboot lock.
#[derive(Debug, Subcommand)]
pub enum LockVerb {
    /// Whether this node holds a permit or waits for one, and who else does. Asks the lock of this node's configuration.
    Status(LockStatus),
    /// Of a server, or of the etcd of this machine's configuration.
    #[command(flatten)]
    Server(LockCommand),
}

impl Program for Cli {
    const LOG: &'static str = "warn";

    fn output(&self) -> &Output {
        &self.output
    }
}
