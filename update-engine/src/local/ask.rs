//! All steps: requests of a person to the engine that runs, over the bus, and what comes of them.

use super::follow::{Change, Follow};
use super::show::print;
use super::watch::{Screen, state_line};
use super::{LocalError, NodeOptions, SCHEMA};
use crate::bus::RequestError;
use crate::bus::client::{Request, Seen};
use protocol::status::{Exit, StateName, Status};
use rustix::process::{Pid, Signal as UnixSignal, kill_process};
use serde_json::json;
use std::io::IsTerminal as _;
use std::time::Duration;

/// How long a check may take to end, from the request: the server's answer and the metadata each have their own
/// time-outs and retries below this.
const CHECK_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a change of slots may take.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What a running engine was asked and answered.
struct Asked {
    follow: Follow,
    /// The status before the request.
    before: Status,
    reply: String,
}

/// Puts a request to the engine on the bus; `None` where there is none.
async fn over_the_bus(options: &NodeOptions, request: &Request) -> Result<Option<Asked>, LocalError> {
    let mut follow = Follow::begin(options).await?;
    if follow.remote().is_none() {
        return Ok(None);
    }
    // Before the request, so that nothing that follows from it is missed.
    let Change::Seen(seen) = follow.next().await? else { return Ok(None) };
    let before = seen.status;
    let Some(remote) = follow.remote() else { return Ok(None) };
    let interactive = std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
    let reply = remote.ask(request, interactive).await.map_err(refusal)?;
    // The engine answers after the status that the request leads to.
    follow.afresh();
    Ok(Some(Asked { follow, before, reply }))
}

fn refusal(error: RequestError) -> LocalError {
    match error {
        RequestError::Declined(text) => LocalError::Declined(text),
        RequestError::NothingToDo(text) => LocalError::NothingToDo(text),
        RequestError::NotAuthorized(text) | RequestError::InteractiveAuthorizationRequired(text) => {
            LocalError::NotAuthorized(text)
        }
        RequestError::InvalidArgument(text) | RequestError::Unavailable(text) => LocalError::Engine(text),
        RequestError::Bus(error) => LocalError::Bus(error),
    }
}

fn print_reply(reply: &str, status: Option<&Status>, json: bool) -> Result<(), LocalError> {
    if json {
        print(&json!({ "schema": SCHEMA, "reply": reply, "status": status }).to_string())
    } else {
        print(reply)
    }
}

/// `updatectl check`
pub(super) async fn check(options: &NodeOptions, wait: bool, json: bool) -> Result<Exit, LocalError> {
    let asked = match over_the_bus(options, &Request::Check).await? {
        Some(asked) => asked,
        None => by_signal(options).await?,
    };
    if !wait {
        print_reply(&asked.reply, None, json)?;
        return Ok(Exit::Done);
    }
    let checked = tokio::time::timeout(CHECK_TIMEOUT, checked(asked));
    let (status, exit, text) =
        checked.await.unwrap_or(Err(LocalError::Unanswered(CHECK_TIMEOUT.as_secs())))?;
    print_reply(&text, Some(&status), json)?;
    Ok(exit)
}

/// Waits for the end of a check; the last status, the exit code and what to say.
async fn checked(asked: Asked) -> Result<(Status, Exit, String), LocalError> {
    let Asked { mut follow, before, reply } = asked;
    loop {
        let Change::Seen(seen) = follow.next().await? else { return Err(LocalError::Gone) };
        let status = seen.status;
        if status.last_check != before.last_check {
            let result = status.last_check.as_ref().map_or("", |check| check.result.as_str());
            let exit = exit_of_check(result);
            let text = format!("{result}: {}", status.error.as_ref().unwrap_or(&status.reason));
            return Ok((status, exit, text));
        }
        if after_something_else(&status) {
            return Ok((status, Exit::Deferred, reply));
        }
    }
}

/// The exit code for a check's result, as the status names it.
fn exit_of_check(result: &str) -> Exit {
    match result {
        "update" => Exit::Done,
        "no-update" => Exit::NothingToDo,
        "deferred" => Exit::Deferred,
        "refused" => Exit::Refused,
        _ => Exit::Failed,
    }
}

/// A check asked for now comes only after what is under way: an installation, a reboot, or a judgement that may lead
/// back to the other slot.
fn after_something_else(status: &Status) -> bool {
    let judged = || status.booted.as_ref().is_none_or(|booted| booted.confirmed);
    match status.state {
        StateName::Rebooting => true,
        StateName::Confirming => !judged(),
        state => installs(state),
    }
}

const fn installs(state: StateName) -> bool {
    matches!(state, StateName::Available | StateName::Downloading | StateName::Verifying)
}

/// Has the engine that runs without a bus check now.
async fn by_signal(options: &NodeOptions) -> Result<Asked, LocalError> {
    let mut follow = Follow::begin(options).await?;
    let dir = follow.dir().to_owned();
    let Some(pid) = follow.engine() else { return Err(LocalError::NotRunning { dir }) };
    let Change::Seen(seen) = follow.next().await? else { return Err(LocalError::NotRunning { dir }) };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(process) = process else { return Err(LocalError::NotRunning { dir }) };
    kill_process(process, UnixSignal::HUP)
        .map_err(|error| LocalError::Signal { pid, source: error.into() })?;
    let reply = format!("asked the engine (process {pid}) to check now");
    Ok(Asked { follow, before: seen.status, reply })
}

/// `updatectl update` where an engine runs; `None` where none does.
pub(super) async fn update(
    options: &NodeOptions,
    force_retry: bool,
    wait: bool,
    json: bool,
) -> Result<Option<Exit>, LocalError> {
    let asked = match over_the_bus(options, &Request::Update { force_retry }).await? {
        Some(asked) => asked,
        None if force_retry => return Ok(None),
        None => match by_signal(options).await {
            Ok(asked) => asked,
            Err(LocalError::NotRunning { .. } | LocalError::Status(_)) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    if !wait {
        print_reply(&asked.reply, None, json)?;
        return Ok(Some(Exit::Done));
    }
    let (status, exit, text) = installed(asked, Screen::bar_only(json)).await?;
    print_reply(&text, Some(&status), json)?;
    Ok(Some(exit))
}

/// Waits until an update is staged, activated, waiting or has failed, or there is none.
async fn installed(asked: Asked, mut screen: Option<Screen>) -> Result<(Status, Exit, String), LocalError> {
    let Asked { mut follow, before, reply } = asked;
    let mut installing = installs(before.state);
    let ended = loop {
        let Change::Seen(seen) = follow.next().await? else { return Err(LocalError::Gone) };
        let Seen { status, busy } = *seen;
        if let Some(screen) = &mut screen {
            screen.show(&status)?;
        }
        installing |= installs(status.state);
        if !installing {
            if status.last_check != before.last_check {
                let result = status.last_check.as_ref().map_or("", |check| check.result.as_str());
                if result == "update" {
                    installing = true;
                } else {
                    let (exit, text) =
                        (exit_of_check(result), status.error.as_ref().unwrap_or(&status.reason));
                    let text = text.clone();
                    break (status, exit, text);
                }
            } else if after_something_else(&status) {
                break (status, Exit::Deferred, reply);
            }
        }
        if installing && let Some(exit) = end_of_install(&status, busy) {
            let text = state_line(&status);
            break (status, exit, text);
        }
    };
    if let Some(screen) = &screen {
        screen.clear();
    }
    Ok(ended)
}

/// The exit code of an installation that has ended, or goes on by itself later.
fn end_of_install(status: &Status, busy: bool) -> Option<Exit> {
    match status.state {
        StateName::Rebooting => Some(Exit::Done),
        _ if busy => None,
        StateName::Staged => Some(Exit::Done),
        StateName::Waiting => Some(Exit::Deferred),
        StateName::Idle | StateName::RolledBack | StateName::Error => Some(Exit::Failed),
        _ => None,
    }
}

/// A request that changes slots or what is remembered of them, where an engine runs on the bus; `None` elsewhere.
/// Waits until the engine is through with it, so that a script may go on from there.
pub(super) async fn request(
    options: &NodeOptions,
    request: Request,
    json: bool,
) -> Result<Option<Exit>, LocalError> {
    let Some(Asked { mut follow, before, reply }) = over_the_bus(options, &request).await? else {
        return Ok(None);
    };
    let mut now = before;
    let settled = match request {
        Request::QuarantineClear(_) => true,
        _ => {
            let settling = settle(&mut follow, &request, &mut now);
            tokio::time::timeout(SETTLE_TIMEOUT, settling).await.unwrap_or(Ok(false))?
        }
    };
    if !settled {
        return Err(LocalError::Unsettled { reply, state: state_line(&now) });
    }
    print_reply(&reply, Some(&now), json)?;
    Ok(Some(Exit::Done))
}

/// Follows until the engine is through with a request; false where it went away before.
async fn settle(follow: &mut Follow, request: &Request, now: &mut Status) -> Result<bool, LocalError> {
    loop {
        match follow.next().await? {
            Change::Seen(seen) => {
                *now = seen.status;
                if settled(request, now, seen.busy) {
                    return Ok(true);
                }
            }
            // Asked for a reboot, it is about to be stopped.
            Change::Gone => return Ok(matches!(request, Request::Reboot)),
        }
    }
}

/// Whether the engine is through with a request.
fn settled(request: &Request, status: &Status, busy: bool) -> bool {
    match (request, status.state) {
        (_, StateName::Rebooting | StateName::Waiting) => true,
        (Request::Reboot, _) => status.state == StateName::Error && !busy,
        (Request::MarkGood, StateName::Error) => !busy,
        (Request::MarkGood, _) => status.booted.as_ref().is_some_and(|booted| booted.confirmed),
        _ => !busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checks_result_has_its_exit_code() {
        for (result, exit) in [
            ("update", Exit::Done),
            ("no-update", Exit::NothingToDo),
            ("deferred", Exit::Deferred),
            ("refused", Exit::Refused),
            ("failed", Exit::Failed),
            ("", Exit::Failed),
        ] {
            assert_eq!(exit_of_check(result), exit, "{result}");
        }
    }
}
