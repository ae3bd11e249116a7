//! `update-engine`: the node's engine, once or for ever (DESIGN section 7).

use clap::{Args, Parser, Subcommand};
use machine::{Command, Mode};
use protocol::id::BootId;
use protocol::slot::Slot;
use protocol::status::{Exit, Status};
use protocol::version::Version;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use update_engine::boot::Given;
use update_engine::config::Settings;
use update_engine::driver::Signal;
use update_engine::error::chain;
use update_engine::node::{Engine, Options};
use update_engine::pause::{Pause, Point};
use update_engine::{local, logging, manners};

/// Keeps this node on the release its channel holds.
#[derive(Debug, Parser)]
#[command(name = "update-engine", version)]
struct Cli {
    /// What to log, as in `info` or `update_engine=debug`; RUST_LOG does the same.
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check, install, activate, confirm: once, or until it is stopped.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// Do one pass and end; the exit code says what came of it: 0 something was done, 1 failed, 3 nothing to do,
    /// 4 deferred, 5 refused.
    #[arg(long)]
    once: bool,
    /// The only configuration file to read, instead of the config.d folders.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A disk with slots, a device or a regular file, instead of this machine's own. Nothing is rebooted then.
    #[arg(long, value_name = "DISK")]
    disk: Option<PathBuf>,
    /// The state folder; overrides the configuration.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The slot that was booted; needed the first time with --disk.
    #[arg(long, value_name = "SLOT")]
    booted: Option<Slot>,
    /// The version that runs; needed the first time with --disk.
    #[arg(long, value_name = "VERSION")]
    version: Option<Version>,
    /// The boot that this is; with --disk it is told from --booted and the tries left if not given.
    #[arg(long, value_name = "ID")]
    boot_id: Option<BootId>,
    /// Print the last status as one JSON document.
    #[arg(long)]
    json: bool,
    /// For tests: stop dead at a point, print `paused POINT`, and wait to be killed. docs/operating.md lists the points.
    #[arg(long, hide = true, value_name = "POINT")]
    pause_at: Option<Point>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log.as_deref(), "info");
    let Verb::Run(run) = cli.command;
    match serve(run) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("update-engine: {}", chain(&*error));
            Exit::Failed.into()
        }
    }
}

fn serve(run: Run) -> Result<Exit, Box<dyn Error>> {
    let settings = Settings::from_merged(&local::merged(run.config.as_deref())?)?;
    let options = Options {
        disk: run.disk,
        state_dir: run.state_dir,
        booted: Given { slot: run.booted, version: run.version, boot_id: run.boot_id },
        pause: Pause::new(run.pause_at),
    };
    manners::behave();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (exit, status) = runtime.block_on(async {
        let engine = Engine::new(settings, &options)?;
        let (signals, inbox) = mpsc::channel(4);
        let listener = tokio::spawn(listen(signals));
        let mode = if run.once { Mode::Once } else { Mode::Daemon };
        let ended = engine.run(mode, inbox).await;
        listener.abort();
        Ok::<_, Box<dyn Error>>(ended)
    })?;
    // Looking up a server's name may still block a thread: nobody waits for it.
    runtime.shutdown_background();
    report(exit, &status, run.json)?;
    Ok(exit)
}

/// Says what came of it: data on stdout, what is wrong on stderr.
fn report(exit: Exit, status: &Status, json: bool) -> Result<(), Box<dyn Error>> {
    let bad = matches!(exit, Exit::Failed | Exit::Refused);
    if json {
        println!("{}", serde_json::to_string(status)?);
    } else if !bad {
        println!("{}: {}", status.state, status.reason);
    }
    if bad {
        eprintln!("update-engine: {}", status.error.as_ref().unwrap_or(&status.reason));
    }
    Ok(())
}

/// SIGTERM and SIGINT end the engine, SIGHUP has it check now.
async fn listen(signals: mpsc::Sender<Signal>) {
    let streams =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hang_up)) = streams else {
        tracing::error!("cannot listen for signals");
        return std::future::pending().await;
    };
    loop {
        let next = tokio::select! {
            _ = terminate.recv() => Signal::Stop,
            _ = interrupt.recv() => Signal::Stop,
            _ = hang_up.recv() => {
                let (reply, _) = oneshot::channel();
                Signal::Request((Command::Check, reply))
            }
        };
        if signals.send(next).await.is_err() {
            return;
        }
    }
}
