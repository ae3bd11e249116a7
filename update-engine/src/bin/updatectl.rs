//! `updatectl`: an operator's program, for a server and for the node it runs on (DESIGN section 8).

use protocol::status::Exit;
use std::process::ExitCode;
use update_engine::cli::ctl::{Cli, LockVerb, Verb};
use update_engine::cli::{self, Failure};
use update_engine::local;
use update_engine::operator::{self, OperatorError};

fn main() -> ExitCode {
    cli::main(|Cli { output, server, node, command }| match command {
        Verb::Node(command) => {
            local::run(command, &node, output.json).map_err(|error| Failure::new(&error, error.exit()))
        }
        Verb::Lock(LockVerb::Status(what)) => {
            local::lock_status(&what, &node, output.json).map_err(|error| Failure::new(&error, error.exit()))
        }
        Verb::Lock(LockVerb::Server(command)) => finish(operator::lock(command, &server, &node, output.json)),
        Verb::Server(command) => finish(operator::run(command, &server, output.json)),
    })
}

/// Waits for what a server is asked.
fn finish(asked: impl Future<Output = Result<Exit, OperatorError>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(&error, Exit::Failed))?;
    runtime.block_on(asked).map_err(|error| Failure::new(&error, error.exit()))
}
