//! Step 9, permit: FleetLock v1, for clients that are not ours (Zincati and others). It is what their protocol says, no
//! more: no attempt, no boot, no credential, so that any client can speak for any other. Weaker by declaration. It cannot
//! enrol either, so it is heard whatever the server asks of nodes; an id that is revoked gets no permit.

use crate::error::{cause, chain, one_line};
use crate::listen::TooSlow;
use crate::locks::{self, LockFailure};
use crate::server::App;
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use protocol::id::Group;
use protocol::lock::{ClientId, Command, Reply, Wait};
use protocol::wire::{FleetLockBody, FleetLockError, LOCK_BODY_MAX};

/// The header that keeps browsers and wrong addresses out.
const HEADER: &str = "fleet-lock-protocol";

/// One of the protocol's two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// `pre-reboot`: a permit, please.
    PreReboot,
    /// `steady-state`: it is not needed any more.
    SteadyState,
}

impl Asked {
    /// What a path asks for. Clients put `v1/…` behind whatever base they are configured with, with one slash or two.
    pub(super) fn of(path: &str) -> Option<Self> {
        let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
        match (segments.next(), segments.next()) {
            (Some("pre-reboot"), Some("v1")) => Some(Self::PreReboot),
            (Some("steady-state"), Some("v1")) => Some(Self::SteadyState),
            _ => None,
        }
    }
}

/// Why a request failed. The kinds are few and fixed: clients make labels of their metrics of them.
struct Failure {
    status: StatusCode,
    kind: &'static str,
    value: String,
    retry_after_s: Option<u32>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, value: impl Into<String>) -> Self {
        Self { status, kind, value: value.into(), retry_after_s: None }
    }

    fn bad(kind: &'static str, value: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, value)
    }

    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "a FleetLock request failed");
        let value = "the server failed; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", value)
    }
}

/// Whether a path asks for something of the protocol.
pub(crate) fn is_asked(path: &str) -> bool {
    Asked::of(path).is_some()
}

/// Answers a request.
pub(super) async fn serve(
    app: &App,
    asked: Asked,
    method: &Method,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    match answer(app, asked, method, headers, body).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(Failure { status, kind, value, retry_after_s }) => {
            let body = FleetLockError { kind: kind.to_owned(), value: one_line(&value) };
            let mut response = (status, Json(body)).into_response();
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            if let Some(seconds) = retry_after_s {
                headers.insert(header::RETRY_AFTER, seconds.into());
            }
            if status == StatusCode::METHOD_NOT_ALLOWED {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
            }
            response
        }
    }
}

async fn answer(
    app: &App,
    asked: Asked,
    method: &Method,
    headers: &HeaderMap,
    body: Body,
) -> Result<(), Failure> {
    if method != Method::POST {
        let value = format!("the method is {method}: expected POST");
        return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", value));
    }
    if headers.get(HEADER).is_none_or(|value| value != "true") {
        return Err(Failure::bad("missing_header", format!("expected the header {HEADER}: true")));
    }
    let (node, group) = client(body).await?;
    let command = match asked {
        Asked::PreReboot => Command::FleetLockRequest { node },
        Asked::SteadyState => Command::FleetLockSteady { node },
    };
    let reply = locks::perform(app, &group, &command).await.map_err(|error| match error {
        LockFailure::Revoked { .. } => Failure::new(StatusCode::FORBIDDEN, "revoked", error.to_string()),
        error => Failure::internal(&error),
    });
    match reply? {
        None => Err(Failure::bad(
            "unknown_group",
            format!("there is no group {group}: an operator sets a policy for it first"),
        )),
        Some(Reply::Wait { because, retry_after_s }) => {
            let value = because.first().map_or_else(String::new, ToString::to_string);
            let failure = Failure::new(StatusCode::CONFLICT, kind(&because), value);
            Err(Failure { retry_after_s: Some(retry_after_s), ..failure })
        }
        Some(Reply::Refused { because }) => {
            Err(Failure::new(StatusCode::CONFLICT, "failed_lock_refused", because.to_string()))
        }
        Some(_) => Ok(()),
    }
}

/// Who asks. The body is JSON, whatever `Content-Type` says: Zincati sends none, and curl says that it is a form.
async fn client(body: Body) -> Result<(ClientId, Group), Failure> {
    let bytes = axum::body::to_bytes(body, LOCK_BODY_MAX).await;
    if let Some(slow) = bytes.as_ref().err().and_then(|error| cause::<TooSlow>(error)) {
        return Err(Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "too_slow",
            format!("{slow}: send it in one go"),
        ));
    }
    let Ok(bytes) = bytes else {
        return Err(Failure::bad(
            "invalid_body",
            format!("the body broke off or has more than {LOCK_BODY_MAX} bytes"),
        ));
    };
    let FleetLockBody { client_params } = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::bad("invalid_body", format!("the body is not valid: {error}")))?;
    let id = client_params.id.parse().map_err(|error: protocol::lock::InvalidLockId| {
        Failure::bad("invalid_client_identity", error.to_string())
    })?;
    let group = client_params.group.parse().map_err(|error: protocol::id::InvalidId| {
        Failure::bad("invalid_client_identity", error.to_string())
    })?;
    Ok((id, group))
}

/// The kind of a wait, by the reason that is shown.
fn kind(because: &[Wait]) -> &'static str {
    match because.first() {
        Some(Wait::Halted { .. }) => "failed_lock_halted",
        Some(Wait::Window { .. }) => "failed_lock_window",
        Some(Wait::Quorum { .. } | Wait::QuorumUnknown) => "failed_lock_quorum",
        Some(Wait::NoZone | Wait::SizeUnknown { .. } | Wait::TimeZone { .. }) => "failed_lock_policy",
        _ => "failed_lock_semaphore_full",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_as_clients_make_them() {
        for path in ["/v1/pre-reboot", "//v1/pre-reboot", "/fleetlock/v1//pre-reboot", "/a/b//v1/pre-reboot/"]
        {
            assert_eq!(Asked::of(path), Some(Asked::PreReboot), "{path}");
        }
        assert_eq!(Asked::of("//v1/steady-state"), Some(Asked::SteadyState));
        for path in [
            "/",
            "",
            "/v2/pre-reboot",
            "/pre-reboot",
            "/v1/pre-reboot/x",
            "/v1/Pre-Reboot",
            "/xv1/steady-state",
        ] {
            assert_eq!(Asked::of(path), None, "{path}");
        }
    }
}
