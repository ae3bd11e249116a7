//! Step 9, permit: a FleetLock v1 server as the lock: two calls, `pre-reboot` and `steady-state`, and a yes is 200.
//!
//! | command | what is asked |
//! |---|---|
//! | request | `pre-reboot` |
//! | verify | `pre-reboot` again, which a holder may repeat |
//! | abandon, confirm | `steady-state` |
//! | booted, fail | nothing: v1 has no words for it, and the permit stays held |
//!
//! v1 names neither attempts nor boots nor deadlines: what the replies say of them is this client's own.

use super::error::LockError;
use super::http::{self, Answer, Http, plain};
use crate::network::backoff::{random_fraction, retry_after};
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{ClientId, Command, Holder, Phase, Refusal, Reply, Request, Wait};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When to ask again where the server does not say, in seconds; up to half as much again is added at random.
const RETRY_S: f64 = 60.0;
/// The longest Retry-After that is obeyed.
const RETRY_MAX: Duration = Duration::from_secs(15 * 60);

/// A FleetLock v1 server.
#[derive(Debug)]
pub struct FleetLock {
    http: Http,
    base: Url,
}

#[derive(Serialize)]
struct Body<'a> {
    client_params: Params<'a>,
}

#[derive(Serialize)]
struct Params<'a> {
    id: &'a ClientId,
    group: &'a Group,
}

/// What a server says with a no.
#[derive(Debug, Default, Deserialize)]
struct Trouble {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    value: String,
}

impl FleetLock {
    /// The server at `base`, which ends in a slash; asks nothing yet.
    ///
    /// # Errors
    /// [`LockError::Setup`]
    pub fn new(base: Url, timeout: Duration) -> Result<Self, LockError> {
        Ok(Self { http: Http::new(http::builder(timeout), timeout)?, base })
    }

    /// Carries out a node's command as far as v1 has words for it.
    ///
    /// # Errors
    /// [`LockError`]; the same command may be given again whatever it is.
    pub async fn perform(&self, group: &Group, command: &Command) -> Result<Reply, LockError> {
        match command {
            Command::Request(request) => {
                self.pre_reboot(group, &request.node, || Reply::Granted { holder: Box::new(held(request)) })
                    .await
            }
            // v1 has no deadline: nobody counts the holder as overdue.
            Command::Verify { node, .. } => {
                self.pre_reboot(group, node, || Reply::Current { deadline: Timestamp::MAX }).await
            }
            Command::Abandon { node, .. } | Command::Confirm { node, .. } => {
                self.steady_state(group, node).await
            }
            Command::Booted { .. } | Command::Fail { .. } => Ok(Reply::Noted),
            Command::FleetLockRequest { .. }
            | Command::FleetLockSteady { .. }
            | Command::ForceRelease { .. }
            | Command::RemoveNode { .. }
            | Command::SetPolicy { .. }
            | Command::Tick => {
                Err(LockError::Unsupported { backend: "fleetlock", what: "carry out an operator's command" })
            }
        }
    }

    async fn pre_reboot(
        &self,
        group: &Group,
        node: &ClientId,
        yes: impl FnOnce() -> Reply + Send,
    ) -> Result<Reply, LockError> {
        let (url, answer) = self.call("v1/pre-reboot", group, node).await?;
        if answer.status == StatusCode::OK {
            return Ok(yes());
        }
        let Trouble { kind, value } = trouble(&answer);
        if kind == "unknown_group" {
            return Ok(Reply::Refused { because: Refusal::UnknownGroup { group: group.clone() } });
        }
        // airlock says "full" with status 500 and the kind of its own failures; the others with a status of their own.
        let is_no = matches!(answer.status, StatusCode::CONFLICT | StatusCode::LOCKED)
            || matches!(kind.as_str(), "failed_lock" | "failed_lock_semaphore_full" | "lock_held");
        if is_no {
            let retry_after_s = pause_s(&answer);
            return Ok(Reply::Wait { because: vec![Wait::FleetLock { kind, value }], retry_after_s });
        }
        Err(refusal(&url, &answer))
    }

    async fn steady_state(&self, group: &Group, node: &ClientId) -> Result<Reply, LockError> {
        let (url, answer) = self.call("v1/steady-state", group, node).await?;
        // poseidon says so to a node that holds nothing while another one does.
        let is_others = answer.status == StatusCode::LOCKED && trouble(&answer).kind == "lock_held";
        match answer.status {
            StatusCode::OK => Ok(Reply::Released { was_held: true }),
            _ if is_others => Ok(Reply::Released { was_held: false }),
            _ => Err(refusal(&url, &answer)),
        }
    }

    async fn call(&self, path: &str, group: &Group, node: &ClientId) -> Result<(Url, Answer), LockError> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        let body = serde_json::to_vec(&Body { client_params: Params { id: node, group } })
            .map_err(|source| LockError::Answer { url: url.to_string(), source })?;
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("fleet-lock-protocol"), HeaderValue::from_static("true"));
        let answer = self.http.post(&url, headers, body).await.map_err(|failure| failure.error)?;
        match answer.redirect(&url) {
            Some(redirect) => Err(redirect),
            None => Ok((url, answer)),
        }
    }
}

/// The permit as this node knows it.
fn held(request: &Request) -> Holder {
    let now = Timestamp::now();
    Holder {
        node: request.node.clone(),
        attempt: Some(request.attempt.clone()),
        boot_before: Some(request.boot.clone()),
        boot_after: None,
        from: Some(request.from.clone()),
        to: Some(request.to.clone()),
        zone: request.zone.clone(),
        etcd_member: request.etcd_member.clone(),
        reason: request.reason.clone(),
        grant: 0,
        phase: Phase::Granted,
        granted_at: now,
        phase_at: now,
        deadline: Timestamp::MAX,
        stuck_since: None,
        instead_of: None,
    }
}

fn trouble(answer: &Answer) -> Trouble {
    let Trouble { kind, value } = serde_json::from_slice(&answer.body).unwrap_or_default();
    Trouble { kind: plain(&kind), value: plain(&value) }
}

/// When to ask again, in seconds: what the server says, or a minute and some, so that a fleet does not ask at once.
fn pause_s(answer: &Answer) -> u32 {
    let own = || Duration::from_secs_f64(RETRY_S * (1.0 + random_fraction() / 2.0));
    let pause = retry_after(&answer.headers).unwrap_or_else(own).min(RETRY_MAX);
    u32::try_from(pause.as_secs()).unwrap_or(u32::MAX)
}

/// The error of an answer that is neither yes nor no.
fn refusal(url: &Url, answer: &Answer) -> LockError {
    let Trouble { kind, value } = trouble(answer);
    let message = match (kind.as_str(), value.as_str()) {
        ("", _) if answer.status.is_success() => "only 200 counts as a yes".to_owned(),
        ("", _) => plain(&String::from_utf8_lossy(&answer.body)),
        (kind, "") => kind.to_owned(),
        (kind, value) => format!("{kind}: {value}"),
    };
    let url = url.to_string();
    if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return LockError::Credentials { url, message };
    }
    let passing = answer.status.is_server_error() || matches!(answer.status.as_u16(), 408 | 425 | 429);
    LockError::Status { url, status: answer.status, message, passing }
}
