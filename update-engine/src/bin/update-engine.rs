//! `update-engine`: the node's engine, once or for ever (DESIGN section 7).

use machine::{Command, Mode};
use protocol::status::{Exit, Status};
use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use update_engine::cli::engine::{Cli, Run, Verb};
use update_engine::cli::{self, Failure};
use update_engine::driver::Signal;
use update_engine::node::{Engine, Options, StartError};
use update_engine::pause::Pause;
use update_engine::{bus, confirm, manners};

fn main() -> ExitCode {
    cli::main(|Cli { output, command }| match command {
        Verb::Run(run) => serve(run, output.json).map_err(|error| Failure::new(&*error, exit_of(&*error))),
        Verb::Confirm(args) => Ok(confirm::run(&args, output.json)),
    })
}

/// How it ends where the engine could not run.
fn exit_of(error: &(dyn Error + 'static)) -> Exit {
    error.downcast_ref::<StartError>().map_or(Exit::Failed, StartError::exit)
}

fn serve(run: Run, json: bool) -> Result<Exit, Box<dyn Error>> {
    let settings = run.node.settings()?;
    let options = Options {
        disk: run.node.disk,
        state_dir: run.node.state_dir,
        booted: run.booted.into(),
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
            tokio::spawn(bus::serve(signals.clone(), engine.watch(), engine.state_dir().to_owned()));
        }
        tokio::spawn(listen(signals));
        let ended = engine.run(mode, inbox).await;
        Ok::<_, Box<dyn Error>>(ended)
    })?;
    // Looking up a server's name may still block a thread: nobody waits for it.
    runtime.shutdown_background();
    report(exit, &status, json)?;
    Ok(exit)
}

/// Says what came of it: data on stdout, what is wrong on stderr.
fn report(exit: Exit, status: &Status, json: bool) -> Result<(), Box<dyn Error>> {
    let bad = matches!(exit, Exit::Failed | Exit::Refused);
    if json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(status)?)?;
    } else if !bad {
        writeln!(std::io::stdout(), "{}: {}", status.state, status.reason)?;
    }
    if bad {
        let problem = status.error.as_ref().unwrap_or(&status.reason);
        let _ = writeln!(std::io::stderr(), "update-engine: {problem}");
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
