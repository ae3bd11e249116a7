//! The commands of `image-tools`. Data goes to stdout, logs and progress to stderr.

use crate::{apply, boot_image, disk, keys, release};
use clap::{CommandFactory as _, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

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
    let cli = Cli::parse();
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
            eprintln!("image-tools: {error:#}");
            ExitCode::FAILURE
        }
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
