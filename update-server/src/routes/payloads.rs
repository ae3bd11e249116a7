//! Step 5, download: payloads by range for nodes, and their upload by operators.

use super::Segment;
use super::node::{IMMUTABLE, not_modified};
use crate::auth::{Actor, Role};
use crate::error::{ApiError, chain};
use crate::payloads::range::{Wanted, wanted};
use crate::payloads::{PayloadError, UploadError};
use crate::server::App;
use crate::store::StoreError;
use crate::store::audit::{self, Change};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use protocol::digest::Sha256;
use std::io;

/// `GET` and `HEAD /v1/payloads/<sha256>`.
pub(super) async fn download(
    State(app): State<App>,
    segment: Segment,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let digest: Sha256 = segment.parse()?;
    let Some(payload) = app.payloads().read(&digest).await? else {
        return Err(ApiError::NotFound(format!("there is no payload {digest}")));
    };
    let len = payload.len;
    let etag = format!("\"{digest}\"");
    let common = [
        (header::ETAG, etag.clone()),
        (header::CACHE_CONTROL, IMMUTABLE.to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if not_modified(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    // A range of another file than this one is no use to the client (RFC 9110, 13.1.5).
    let same = text(header::IF_RANGE).is_none_or(|tag| tag == etag);
    let wanted = wanted(text(header::RANGE).filter(|_| same), len);
    let (status, part) = match wanted {
        Wanted::Unsatisfiable => {
            let message = format!("the payload is {len} bytes long: expected a range inside it");
            let mut response = ApiError::Invalid(message).into_response();
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            let value = format!("bytes */{len}").parse().map_err(ApiError::internal)?;
            response.headers_mut().insert(header::CONTENT_RANGE, value);
            return Ok(response);
        }
        Wanted::Whole => (StatusCode::OK, 0..len),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
    };
    let length = [
        (header::CONTENT_LENGTH, (part.end - part.start).to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    let body = payload.body(part.clone()).await?;
    let mut response = (status, common, length, body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{len}", part.start, part.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, value.parse().map_err(ApiError::internal)?);
    }
    Ok(response)
}

/// `PUT /api/v1/payloads/<sha256>`: 204 says that it is durable.
pub(super) async fn upload(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Publisher)?;
    let digest: Sha256 = segment.parse()?;
    let size = app.payloads().receive(digest, body).await.map_err(|error| match error {
        UploadError::Store(PayloadError::Io(source)) if source.kind() == io::ErrorKind::StorageFull => {
            let line = "the server's disk is full: nothing was stored; make room and upload it again";
            ApiError::Full(line.to_owned())
        }
        UploadError::Store(error) => error.into(),
        UploadError::TooLarge { .. } => ApiError::TooLarge(chain(&error)),
        UploadError::Mismatch { .. } | UploadError::BrokenOff { .. } => ApiError::Invalid(chain(&error)),
    })?;
    let mut change = app.store().write().await?;
    let (subject, detail) = (digest.to_string(), format!("{size} bytes"));
    let entry = Change { actor: &actor.name, action: "payload.upload", subject: &subject, detail: &detail };
    audit::record(&mut change, app.now(), entry).await?;
    change.commit().await.map_err(StoreError::from)?;
    Ok(StatusCode::NO_CONTENT)
}
