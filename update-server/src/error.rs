//! What a request can fail with, and how it is told: a status and an [`ErrorBody`].

use crate::payloads::{BucketError, PayloadError};
use crate::repository::PublishError;
use crate::store::{self, StoreError};
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::wire::{ErrorBody, NOT_ENROLLED};
use std::error::Error;
use std::net::IpAddr;

/// Why a request failed. `Display` is the line that the client gets.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 400: the request is wrong and stays so.
    #[error("{0}")]
    Invalid(String),
    /// 401.
    #[error("{0}")]
    Unauthorized(String),
    /// 401: a node shows no enrolment token where it needs one.
    #[error("{0}")]
    NotEnrolled(String),
    /// 403.
    #[error("{0}")]
    Forbidden(String),
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 409: the server's state is another one than the request assumes.
    #[error("{0}")]
    Conflict(String),
    /// 408: the body came too slowly.
    #[error("{0}")]
    TooSlow(String),
    /// 413.
    #[error("{0}")]
    TooLarge(String),
    /// 429: this address asks too often.
    #[error(
        "too many requests from {address}: expected none for {seconds} s; --requests-per-second, --failures-per-minute \
             and --trusted-proxy of update-server say how many are taken"
    )]
    TooMany {
        /// Whose they are taken for.
        address: IpAddr,
        /// How long to wait.
        seconds: u64,
    },
    /// 503: not now; the same request may well succeed a little later.
    #[error("{0}")]
    Unavailable(String),
    /// 503: the database. The client is told no more than that; the log has the cause.
    #[error(
        "the database does not answer or is busy: try again in {AWAY_RETRY_S} s; /readyz and the server's log say more"
    )]
    Away(#[source] Box<dyn Error + Send + Sync>),
    /// 503: the payload store. The client is told no more than that; the log has the cause.
    #[error("the payload store {}: try again later; the server's log says why", .0.problem)]
    Payloads(#[source] BucketError),
    /// 507: the disk is full.
    #[error("{0}")]
    Full(String),
    /// 500: the server's own fault. The client is told nothing of the cause; the log has it.
    #[error("the server failed; its log says why")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl ApiError {
    /// The server's own fault, with its cause, or its database's, which is another matter.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let source = source.into();
        if is_away(source.as_ref()) { Self::Away(source) } else { Self::Internal(source) }
    }

    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::NotEnrolled(_) => (StatusCode::UNAUTHORIZED, NOT_ENROLLED),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Self::TooSlow(_) => (StatusCode::REQUEST_TIMEOUT, "too-slow"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Self::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too-many-requests"),
            Self::Unavailable(_) | Self::Payloads(_) | Self::Away(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            Self::Full(_) => (StatusCode::INSUFFICIENT_STORAGE, "full"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl From<PayloadError> for ApiError {
    fn from(error: PayloadError) -> Self {
        match error {
            PayloadError::Io(_) => Self::internal(error),
            PayloadError::Bucket(error) => Self::Payloads(error),
        }
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Refused(_) | PublishError::Untrusted(_) => Self::Invalid(chain(&error)),
            PublishError::Conflict(message) => Self::Conflict(message),
            PublishError::Missing(message) => Self::NotFound(message),
            PublishError::Payloads(error) => error.into(),
            PublishError::Store(error) => Self::internal(error),
            PublishError::Signing(error) => Self::internal(error),
        }
    }
}

/// When to ask again after the database was away, in seconds.
const AWAY_RETRY_S: u64 = 30;

/// Whether the database is away or busy, as far as an error tells.
pub fn is_away(error: &(dyn Error + 'static)) -> bool {
    match cause::<StoreError>(error) {
        Some(error) => error.is_away(),
        // An error that shows another one as its own leaves it out of its chain.
        None => cause::<sqlx::Error>(error).is_some_and(store::is_away),
    }
}

/// The cause of a certain kind in an error's chain.
#[must_use]
pub fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some libraries say their cause in their own words too.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

/// The longest line that a client is told, in characters: it may quote what the client sent.
const LINE_MAX: usize = 1500;

/// A message as one line of bounded length. Parsers quote what they found as it is, control characters and all.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut rest = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = rest.by_ref().take(LINE_MAX).collect();
    if rest.next().is_some() {
        line.push('…');
    }
    line
}

/// Of an answer to somebody who showed no secret: nobody was guessing.
#[derive(Clone, Copy, Debug)]
pub struct NothingShown;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, kind) = self.kind();
        if status.is_server_error() {
            tracing::error!(error = chain(&self), "a request failed");
        }
        let body = ErrorBody { kind: kind.to_owned(), message: one_line(&self.to_string()) };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        // A file that is not there may be there in a minute: no cache in between may remember the answer.
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
        if let Self::TooMany { seconds, .. } = self {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if matches!(self, Self::Away(_)) {
            headers.insert(header::RETRY_AFTER, AWAY_RETRY_S.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::NotEnrolled(_)) {
            response.extensions_mut().insert(NothingShown);
        }
        response
    }
}
