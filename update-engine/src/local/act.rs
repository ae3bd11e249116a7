//! All steps: requests of a person on the node, carried out by the state machine.

use super::{BootedOptions, LocalError, NodeOptions, SCHEMA};
use crate::boot::Given;
use crate::driver::Signal;
use crate::node::{Engine, Options};
use crate::state::StateFolder;
use machine::{Command, Mode, Outcome};
use protocol::status::Exit;
use rustix::process::{Pid, Signal as UnixSignal, kill_process};
use serde_json::json;
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

/// When the engine that carries out a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// When nothing is left to do.
    Finish,
    /// As soon as the request is answered.
    Stop,
}

/// Has the running engine check now.
pub(super) fn check(dir: &Path, json: bool) -> Result<Exit, LocalError> {
    let Some(pid) = StateFolder::view(dir).engine() else {
        return Err(LocalError::NotRunning { dir: dir.to_owned() });
    };
    let signalled =
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(|id| kill_process(id, UnixSignal::HUP));
    match signalled {
        Some(Ok(())) => {}
        Some(Err(error)) => return Err(LocalError::Signal { pid, source: error.into() }),
        None => return Err(LocalError::NotRunning { dir: dir.to_owned() }),
    }
    if json {
        super::show::print(&json!({ "schema": SCHEMA, "asked": true, "pid": pid }).to_string())?;
    } else {
        super::show::print(&format!("asked the engine (process {pid}) to check now"))?;
    }
    Ok(Exit::Done)
}

/// Starts an engine, puts the request to it, and lets it do what follows from it.
pub(super) fn ask(
    command: Command,
    after: After,
    options: &NodeOptions,
    booted: BootedOptions,
    json: bool,
) -> Result<Exit, LocalError> {
    let settings = options.settings()?;
    let given = Given { slot: booted.booted, version: booted.version, boot_id: booted.boot_id };
    let options = Options {
        disk: options.disk.clone(),
        state_dir: options.state_dir.clone(),
        booted: given,
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
    let runtime = runtime.map_err(LocalError::Output)?;
    let (exit, status) = runtime.block_on(engine.run(Mode::Once, inbox));
    drop(signals);
    let reply = reply.try_recv().map_err(|_| {
        LocalError::Declined(
            status.error.clone().unwrap_or_else(|| "the engine ended without an answer".to_owned()),
        )
    })?;
    if reply.outcome == Outcome::Declined {
        return Err(LocalError::Declined(reply.text));
    }
    if json {
        let document = json!({ "schema": SCHEMA, "reply": reply.text, "status": status });
        super::show::print(&document.to_string())?;
    } else {
        super::show::print(&reply.text)?;
    }
    if reply.outcome == Outcome::NothingToDo {
        return Ok(Exit::NothingToDo);
    }
    Ok(if after == After::Stop || exit == Exit::NothingToDo { Exit::Done } else { exit })
}
