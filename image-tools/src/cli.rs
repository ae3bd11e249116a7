//! The commands of `image-tools`. Data goes to stdout, logs and progress to stderr.

use crate::{apply, boot_image, disk, keys, release};
use clap::{CommandFactory as _, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The schema number of what `--json` prints where a command failed.
const SCHEMA: u32 = 1;

/// Builds, inspects and installs Flipside releases, their keys and disks
#[derive(Debug, Parser)]
#[command(name = "image-tools", version)]
struct Cli {
    /// Print JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    /// What to log on stderr, as in RUST_LOG
    #[arg(long, global = true, env = "RUST_LOG", default_value = "warn")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Offline keys, and what they sign first
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Releases: payload and manifest
    #[command(subcommand)]
    Release(release::ReleaseCommand),
    /// Payloads: install offline
    #[command(subcommand)]
    Payload(apply::PayloadCommand),
    /// Images of BOOT partitions: kernel, initrd and command line
    #[command(subcommand)]
    BootImage(boot_image::BootImageCommand),
    /// GPT disks with two slots
    #[command(subcommand)]
    Disk(disk::DiskCommand),
}

/// The command line as clap sees it, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let done = match &cli.command {
        Command::Keys(command) => keys::run(command, cli.json),
        Command::Release(command) => release::run(command, cli.json),
        Command::Payload(command) => apply::run(command, cli.json),
        Command::BootImage(command) => boot_image::run(command, cli.json),
        Command::Disk(command) => disk::run(command, cli.json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if cli.json {
                println!("{}", failure_document(&error));
            }
            eprintln!("image-tools: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What clap says of a command line that it does not take, or of a help text that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    // The command line was not understood, so whether it asks for JSON shows in its words only.
    let mut options = std::env::args_os().skip(1).take_while(|word| word != "--");
    if error.use_stderr() && options.any(|word| word == "--json") {
        let text = error.to_string();
        // What is wrong; after an empty line follow usage and hints.
        let words: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let line = words.join(" ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        println!("{}", json!({ "schema": SCHEMA, "error": line }));
    }
    error.exit()
}

/// The document of a command that failed: what it found out, if that is a document of its own, and the error.
fn failure_document(error: &anyhow::Error) -> Value {
    let found = error.downcast_ref::<Failure>().map(|failure| failure.document.clone());
    let mut document = found.unwrap_or_else(|| json!({ "schema": SCHEMA }));
    document["error"] = format!("{error:#}").into();
    document
}

/// A command that failed, with what it found out: for people it is on stdout already, as a document it is printed with
/// the error.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Failure {
    document: Value,
    reason: String,
}

impl Failure {
    /// `document` is an object with a `schema`.
    pub(crate) fn new(document: Value, reason: String) -> Self {
        Self { document, reason }
    }
}

/// A progress bar over bytes on a terminal; nothing where stderr is none.
pub(crate) fn progress_bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    // indicatif draws nothing by itself where stderr is not a terminal.
    ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_style(style)
        .with_message(what)
}
