//! `update-engine`: the node's engine, once or for ever (DESIGN section 7).

use clap::Parser;
use machine::{Command, Mode};
use protocol::status::{Exit, Status};
use std::error::Error;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use update_engine::boot::Given;
use update_engine::cli::engine::{Cli, Run, Verb};
use update_engine::config::Settings;
use update_engine::driver::Signal;
use update_engine::error::chain;
use update_engine::node::{Engine, Options};
use update_engine::pause::Pause;
use update_engine::{bus, confirm, local, logging, manners};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log.as_deref(), "info");
    let run = match cli.command {
        Verb::Run(run) => run,
        Verb::Confirm(args) => return confirm::run(&args).into(),
    };
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
    // The driver's loop has a thread of its own, this one; one more for the operation that runs and one for the bus.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (exit, status) = runtime.block_on(async {
        let engine = Engine::new(settings, &options)?;
        let (signals, inbox) = mpsc::channel(4);
        let mode = if run.once { Mode::Once } else { Mode::Daemon };
        if mode == Mode::Daemon && (options.disk.is_none() || run.bus) {
            tokio::spawn(bus::serve(signals.clone(), engine.watch()));
        }
        tokio::spawn(listen(signals));
        let ended = engine.run(mode, inbox).await;
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
