//! Step 4, channel: the program `update-server`.

use clap::Parser as _;
use protocol::status::Exit;
use std::io::Write as _;
use std::process::ExitCode;
use update_server::cli;
use update_server::error::chain;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            cli::print_usage_error(&error);
            error.exit()
        }
    };
    let json = cli.json;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&cli.log))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .log_internal_errors(false)
        .init();
    match cli::run(cli).await {
        Ok(exit) => exit.into(),
        Err(error) => {
            // The whole chain, once, here at the edge.
            let line = chain(error.as_ref());
            cli::print_failure(&line, json);
            let _ = writeln!(std::io::stderr(), "update-server: {line}");
            Exit::Failed.into()
        }
    }
}
