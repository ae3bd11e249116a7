//! Steps 4, 5 and 12: what nodes ask and report. What a node gets is signed and public;
//! what it says of itself carries its own credential, once it has one.

use super::{Segment, read_json};
use crate::changes::{self, Change, Done};
use crate::credentials::Need;
use crate::decision;
use crate::error::ApiError;
use crate::rollouts::{self, Ask, acts};
use crate::server::App;
use crate::store::documents::{self, ServedFile};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use protocol::id::NodeId;
use protocol::lock::ClientId;
use protocol::wire::{BODY_MAX, Decision, EVIDENCE_MAX, Events, UpdateAnswer, UpdateCheck};

/// Metadata and target files with a version or digest in their name never change.
pub(super) const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The most events taken in one report.
const EVENTS_MAX: usize = 256;
/// The longest detail of an event, in bytes.
const DETAIL_MAX: usize = 16 << 10;

/// Goes on only if a node speaks for itself. One without a credential, of an older engine, is heard until its id is bound.
async fn itself(app: &App, node: &NodeId, headers: &HeaderMap) -> Result<(), ApiError> {
    app.credentials().check(app, &ClientId::from(node), headers, Need::IfBound).await
}

/// `POST /v1/update-check`.
pub(super) async fn update_check(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<UpdateAnswer>, ApiError> {
    let check: UpdateCheck = read_json(body, BODY_MAX).await?;
    itself(&app, &check.node, &headers).await?;
    let view = app.repository().view();
    let mut answer = decision::decide(&view.published, &check.channel, &check.arch, &check.version);
    if let (Decision::Update, Some(version), Some(target)) =
        (answer.decision, answer.version.clone(), view.published.channels.get(&check.channel))
    {
        let told = rollouts::ask(&app, Ask::new(&check, &version, target)).await?;
        answer = acts::answer_of(answer, told, &check.node, app.now());
    }
    app.metrics().decided(answer.decision);
    if app.checkins().add(check, app.now()) {
        app.checkins().flush(app.store()).await?;
    }
    Ok(Json(answer))
}

/// `POST /v1/events`: 204 says that they are on the disk.
pub(super) async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let Events { node, events, .. } = read_json(body, BODY_MAX).await?;
    if let Some(event) = events.iter().find(|event| i64::try_from(event.seq).is_err()) {
        return Err(ApiError::Invalid(format!(
            "the event number {} is too large: expected at most {}",
            event.seq,
            i64::MAX
        )));
    }
    // Anybody may send events, so what one request can store is bounded; the engine keeps to less.
    if events.len() > EVENTS_MAX {
        return Err(ApiError::Invalid(format!(
            "{} events in one report: expected at most {EVENTS_MAX}; send the rest in another",
            events.len()
        )));
    }
    if let Some(event) = events.iter().find(|event| event.detail.len() > DETAIL_MAX) {
        return Err(ApiError::Invalid(format!(
            "the detail of event {} has {} bytes: expected at most {DETAIL_MAX}",
            event.seq,
            event.detail.len()
        )));
    }
    if let Some(event) = events.iter().find(|event| event.evidence.len() > EVIDENCE_MAX) {
        return Err(ApiError::Invalid(format!(
            "the evidence of event {} has {} bytes: expected at most {EVIDENCE_MAX}",
            event.seq,
            event.evidence.len()
        )));
    }
    itself(&app, &node, &headers).await?;
    if let Done::Stored(new) = changes::make(&app, Change::Events(node, events)).await? {
        app.metrics().happened(&new);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/metadata/<file>`.
pub(super) async fn metadata(
    State(app): State<App>,
    Segment(name): Segment,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let file = documents::served(&mut *app.store().read().await?, &name).await?;
    let caching = if name == "timestamp.json" { "no-cache" } else { IMMUTABLE };
    Ok(serve(file.ok_or_else(|| missing(&name))?, caching, &headers))
}

/// `GET /v1/targets/<path>`.
pub(super) async fn target(
    State(app): State<App>,
    Segment(name): Segment,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let file = documents::served_target(&mut *app.store().read().await?, &name).await?;
    Ok(serve(file.ok_or_else(|| missing(&name))?, IMMUTABLE, &headers))
}

fn missing(name: &str) -> ApiError {
    ApiError::NotFound(format!("there is no file {:?}", name.chars().take(200).collect::<String>()))
}

/// Whether the client has this very file already.
pub(super) fn not_modified(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value == "*" || value.split(',').any(|tag| tag.trim() == etag))
}

fn serve(file: ServedFile, caching: &'static str, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", file.sha256);
    let common = [(header::ETAG, etag.clone()), (header::CACHE_CONTROL, caching.to_owned())];
    if not_modified(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    (common, [(header::CONTENT_TYPE, "application/json")], file.bytes).into_response()
}
