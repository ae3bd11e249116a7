//! All steps: requests of a person on a node where no engine runs, carried out by the state machine here.

use super::{BootedOptions, LocalError, NodeOptions, SCHEMA};
use crate::config::Settings;
use crate::driver::Signal;
use crate::node::{Engine, Options};
use machine::{Command, Mode, Outcome};
use protocol::status::Exit;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

/// When the engine that carries out a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// When nothing is left to do.
    Finish,
    /// As soon as the request is answered.
    Stop,
}

/// Starts an engine, puts the request to it, and lets it do what follows from it.
pub(super) fn ask(
    command: Command,
    after: After,
    options: &NodeOptions,
    booted: BootedOptions,
    json: bool,
) -> Result<Exit, LocalError> {
    let mut merged = options.merged()?;
    if !matches!(command, Command::Update { .. }) {
        // A node is repaired without its server: what only a download needs may be missing.
        merged.stand_in();
    }
    let settings = Settings::from_merged(&merged)?;
    let options = Options {
        disk: options.disk.clone(),
        state_dir: options.state_dir.clone(),
        booted: booted.into(),
        ..Options::default()
    };
    let engine = Engine::new(settings, &options)?;
    let (signals, inbox) = mpsc::channel(2);
    let (reply_to, mut reply) = oneshot::channel();
    // Room for both: nobody has to receive first.
    let sent = signals.try_send(Signal::Request((command, reply_to))).is_ok()
        && (after == After::Finish || signals.try_send(Signal::Stop).is_ok());
    debug_assert!(sent, "the channel holds two signals");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(LocalError::Runtime)?;
    let (exit, status) = runtime.block_on(engine.run(Mode::Request, inbox));
    drop(signals);
    let reply = reply.try_recv().map_err(|_| {
        LocalError::Declined(
            status.error.clone().unwrap_or_else(|| "the engine ended without an answer".to_owned()),
        )
    })?;
    let text = match (reply.outcome, command) {
        (Outcome::Declined, _) => return Err(LocalError::Declined(reply.text)),
        (Outcome::NothingToDo, _) => return Err(LocalError::NothingToDo(reply.text)),
        (Outcome::Done, _) if matches!(exit, Exit::Failed | Exit::Refused) => {
            return Err(LocalError::Ended { exit, reason: status.error.unwrap_or(status.reason) });
        }
        // What came of it, rather than that it began.
        (Outcome::Done, Command::Update { .. }) => format!("{}: {}", status.state, status.reason),
        (Outcome::Done, _) => reply.text,
    };
    if json {
        let document = json!({ "schema": SCHEMA, "reply": text, "status": status });
        super::show::print(&document.to_string())?;
    } else {
        super::show::print(&text)?;
    }
    let nothing_is_fine = !matches!(command, Command::Update { .. });
    Ok(if after == After::Stop || exit == Exit::NothingToDo && nothing_is_fine { Exit::Done } else { exit })
}
