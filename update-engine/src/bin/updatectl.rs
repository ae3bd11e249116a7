//! `updatectl`: an operator's program, for a server and for the node it runs on (DESIGN section 8).

use clap::Parser;
use protocol::status::Exit;
use std::process::ExitCode;
use update_engine::cli::ctl::{Cli, Verb};
use update_engine::error::chain;
use update_engine::local;
use update_engine::logging;
use update_engine::operator::{self, OperatorCommand, ServerOptions};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log.as_deref(), "warn");
    let done = match cli.command {
        Verb::Node(command) => {
            local::run(command, &cli.node, cli.json).map_err(|error| (chain(&error), error.exit()))
        }
        Verb::Server(command) => serve(command, &cli.server, cli.json),
    };
    match done {
        Ok(exit) => exit.into(),
        Err((line, exit)) => {
            if cli.json {
                println!("{}", serde_json::json!({ "schema": 1, "error": line }));
            }
            eprintln!("updatectl: {line}");
            exit.into()
        }
    }
}

fn serve(command: OperatorCommand, options: &ServerOptions, json: bool) -> Result<Exit, (String, Exit)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| (chain(&error), Exit::Failed))?;
    runtime.block_on(operator::run(command, options, json)).map_err(|error| (chain(&error), error.exit()))
}
