//! Steps 4 and 5: HTTP. Which path leads where, and how bodies are read.

pub mod admin;
pub mod enrolment;
pub mod fleetlock;
pub mod lock;
pub mod node;
pub mod openapi;
pub mod payloads;
pub mod rollouts;
pub mod stats;

use crate::auth::{Actor, Role};
use crate::error::{ApiError, cause};
use crate::listen::{Limits, TooSlow, within};
use crate::metrics;
use crate::payloads::PayloadError;
use crate::rates;
use crate::server::App;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use protocol::wire::SCHEMA;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use tower_http::trace::TraceLayer;

/// All routes of the server.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/v1/update-check", post(node::update_check))
        .route("/v1/events", post(node::events))
        .route("/v1/metadata/{file}", get(node::metadata))
        .route("/v1/targets/{*path}", get(node::target))
        .route("/v1/payloads/{digest}", get(payloads::download))
        .route("/api/v1/root", put(admin::push_root))
        .route("/api/v1/releases", get(admin::releases).post(admin::push_release))
        .route("/api/v1/channels", get(admin::channels))
        .route("/api/v1/channels/{channel}", put(admin::set_channel))
        .route("/api/v1/channels/{channel}/promote", post(admin::promote))
        .route("/api/v1/rollouts", get(rollouts::list))
        .route("/api/v1/rollouts/{channel}", get(rollouts::show))
        .route("/api/v1/rollouts/{channel}/nodes", get(rollouts::nodes))
        .route("/api/v1/rollouts/{channel}/pause", post(rollouts::pause))
        .route("/api/v1/rollouts/{channel}/resume", post(rollouts::resume))
        .route("/api/v1/rollouts/{channel}/approve", post(rollouts::approve))
        .route("/api/v1/rollouts/{channel}/simulate", post(rollouts::simulate))
        .route("/api/v1/rollout-policy", get(rollouts::policy).put(rollouts::set_policy))
        .route("/api/v1/rollout-policy/{channel}/remove", post(rollouts::remove_policy))
        .route("/api/v1/nodes", get(admin::nodes))
        .route("/api/v1/nodes/{node}/explain", get(rollouts::explain))
        .route("/api/v1/nodes/{node}", get(admin::node))
        .route("/api/v1/nodes/{node}/remove", post(lock::remove_node))
        .route("/api/v1/nodes/{node}/credential", delete(lock::reset_credential))
        .route("/api/v1/nodes/{node}/group", put(enrolment::set_group).delete(enrolment::clear_group))
        .route("/api/v1/nodes/{node}/revocation", put(enrolment::revoke).delete(enrolment::reinstate))
        .route("/api/v1/enrolment-tokens", get(enrolment::list).post(enrolment::create))
        .route("/api/v1/enrolment-tokens/{id}", delete(enrolment::revoke_token))
        .route("/api/v1/stats/events", get(stats::events))
        .route("/api/v1/stats/versions", get(stats::versions))
        .route("/api/v1/audit", get(admin::audit))
        .route("/v2/lock/{group}", get(lock::view).post(lock::command))
        .route("/api/v1/locks", get(lock::list))
        .route("/api/v1/locks/{group}", get(lock::show))
        .route("/api/v1/locks/{group}/release", post(lock::release))
        .route("/api/v1/locks/{group}/import", post(lock::import))
        .route("/api/v1/lock-policy", get(lock::policy).put(lock::set_policy))
        .route("/metrics", get(figures))
        .route("/openapi.json", get(openapi::show))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .fallback(elsewhere)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(whole_body_in_time))
        // An upload may take its time, as long as it moves.
        .route("/api/v1/payloads/{digest}", put(payloads::upload))
        .method_not_allowed_fallback(wrong_method)
        // Every handler bounds its own body, and payloads have no bound.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(rates::gate))
        .layer(middleware::from_fn_with_state(app.clone(), metrics::count))
        .layer(TraceLayer::new_for_http())
        .with_state(app)
}

/// What an address says to a method that it does not take.
async fn wrong_method() -> Response {
    let mut response = ApiError::Invalid("this address does not take that method".to_owned()).into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

/// What a listener of its own serves to Prometheus, without a token.
pub fn metrics_router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(async |State(app): State<App>| metrics::show(&app).await))
        .with_state(app)
}

/// `GET /metrics`, where everyone can ask: versions, groups and load are for operators.
async fn figures(State(app): State<App>, actor: Actor) -> Result<Response, ApiError> {
    actor.require(Role::Viewer)?;
    Ok(metrics::show(&app).await)
}

/// Bodies are small, so each must be there soon.
async fn whole_body_in_time(request: Request, next: Next) -> Response {
    let limits = request.extensions().get::<Limits>().copied().unwrap_or_default();
    next.run(request.map(|body| within(body, limits.body))).await
}

/// Every other address. FleetLock v1 is here and not among the routes, because its clients add a slash or a prefix.
async fn elsewhere(State(app): State<App>, request: Request) -> Response {
    match fleetlock::Asked::of(request.uri().path()) {
        Some(asked) => {
            let (parts, body) = request.into_parts();
            fleetlock::serve(&app, asked, &parts.method, &parts.headers, body).await
        }
        None => ApiError::NotFound("there is nothing at this address".to_owned()).into_response(),
    }
}

/// The longest reason that an operator may give, in bytes.
const WHY_MAX: usize = 256;

/// Checks why an operator does something.
fn reason(why: &str) -> Result<(), ApiError> {
    reason_named("why", why)
}

/// As [`reason`], of a field with another name.
fn reason_named(field: &str, why: &str) -> Result<(), ApiError> {
    let valid = !why.trim().is_empty() && why.len() <= WHY_MAX && !why.contains(char::is_control);
    if valid {
        return Ok(());
    }
    let expected = format!("expected a line of 1 to {WHY_MAX} bytes that says why");
    Err(ApiError::Invalid(format!("{field} is not valid: {expected}")))
}

/// A number or name of the query string, such as `limit` in `?limit=10`.
fn query<T: std::str::FromStr>(uri: &Uri, name: &str) -> Result<Option<T>, ApiError> {
    let mut pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .map(|(_, value)| {
            let value = plain(value);
            value.parse().map_err(|_| {
                let found: String = value.chars().take(80).collect();
                ApiError::Invalid(format!("{name} is not valid: found {found:?}"))
            })
        })
        .transpose()
}

/// The text of a query's value without its `%XX`; what they are not the text of stays as it is.
fn plain(value: &str) -> Cow<'_, str> {
    let Some((first, rest)) = value.split_once('%') else { return value.into() };
    let mut bytes = first.as_bytes().to_vec();
    for part in rest.split('%') {
        match part.get(..2).map(|digits| u8::from_str_radix(digits, 16)) {
            Some(Ok(byte)) if !part.starts_with('+') => {
                bytes.push(byte);
                bytes.extend(part.bytes().skip(2));
            }
            _ => return value.into(),
        }
    }
    String::from_utf8(bytes).map_or_else(|_| value.into(), Cow::Owned)
}

/// Whether nodes can be served: the database and the payload store answer and the metadata is fresh. A server without a root is ready to
/// be set up.
async fn ready(State(app): State<App>) -> Response {
    let not = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response();
    if app.store().read().await.is_err() {
        return not("the database does not answer");
    }
    match app.payloads().ready().await {
        Ok(()) => {}
        Err(PayloadError::Bucket(error)) => return not(&format!("the payload store {}", error.problem)),
        Err(PayloadError::Io(_)) => return not("the payload folder cannot be used"),
    }
    match app.repository().view().fresh_until {
        Some(until) if until <= app.now() => not("the timestamp metadata has expired"),
        _ => "ready\n".into_response(),
    }
}

/// The one variable part of a path, as text; a handler makes a name or a digest of it.
#[derive(Debug)]
pub struct Segment(String);

impl Segment {
    /// What the segment names.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] where it is no name of that kind.
    pub fn parse<T>(&self) -> Result<T, ApiError>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        self.0.parse().map_err(|error: T::Err| ApiError::Invalid(error.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error: PathRejection| ApiError::Invalid(error.body_text()))?;
        Ok(Self(text))
    }
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

/// Reads a JSON document of at most `limit` bytes and of our schema.
async fn read_json<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, ApiError> {
    let invalid = |error: serde_json::Error| ApiError::Invalid(format!("the body is not valid: {error}"));
    let bytes = axum::body::to_bytes(body, limit).await.map_err(|error| {
        if let Some(slow) = cause::<TooSlow>(&error) {
            ApiError::TooSlow(format!("{slow}: send it in one go"))
        } else if cause::<http_body_util::LengthLimitError>(&error).is_some() {
            ApiError::TooLarge(format!("the body is too long: expected at most {limit} bytes"))
        } else {
            ApiError::Invalid("the body broke off".to_owned())
        }
    })?;
    let SchemaOnly { schema } = serde_json::from_slice(&bytes).map_err(invalid)?;
    if schema != SCHEMA {
        return Err(ApiError::Invalid(format!(
            "the body has schema {schema}: expected {SCHEMA}; use programs of the server's version"
        )));
    }
    serde_json::from_slice(&bytes).map_err(invalid)
}
