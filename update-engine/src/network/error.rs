//! Step 5, download: what can go wrong with a server, each with what was expected and found.

use super::backoff::retry_after;
use super::body::Body;
use crate::config::settings::Download;
use protocol::wire::{ErrorBody, NOT_ENROLLED};
use reqwest::header::LOCATION;
use reqwest::{Response, StatusCode, Url};
use std::time::Duration;

/// The longest body of an error answer that is read, in bytes.
const ERROR_BODY_MAX: u64 = 16 << 10;

/// A request that did not bring what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The client cannot be made.
    #[error("cannot set up the HTTP client")]
    Client {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A file of `[server]` cannot be used.
    #[error("[server] in the configuration cannot be used")]
    Tls(#[from] super::tls::TlsError),
    /// A path that does not make an address.
    #[error("not a path on the server: {path:?}")]
    Address {
        /// The path.
        path: String,
    },
    /// No answer.
    #[error("no answer from {url}")]
    Request {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that ends in the middle.
    #[error("the answer of {url} broke off after {bytes} bytes")]
    Broken {
        /// What was asked.
        url: String,
        /// How much of the body came.
        bytes: u64,
        /// Why.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// Too few bytes for too long.
    #[error("{url} stalled: {bytes} bytes in {} s", after.as_secs())]
    Stalled {
        /// What was asked.
        url: String,
        /// How much came in that time.
        bytes: u64,
        /// How long was waited.
        after: Duration,
    },
    /// A redirect.
    #[error(
        "{url} answered {status} to {location}: redirects are not followed; set server.url to the server itself"
    )]
    Redirect {
        /// What was asked.
        url: String,
        /// 3xx.
        status: StatusCode,
        /// Where it points.
        location: String,
    },
    /// Another status than asked for.
    #[error("{url} answered {status}{}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// What was asked.
        url: String,
        /// 4xx or 5xx.
        status: StatusCode,
        /// What the server says about it.
        message: String,
        /// How long it asks to be left alone, within bounds.
        retry_after: Option<Duration>,
    },
    /// The server hears this node only with an enrolment token.
    #[error("{url} asks for an enrolment token: {problem}")]
    NotEnrolled {
        /// What was asked.
        url: String,
        /// What is missing, and what to do.
        problem: String,
        /// Why the file cannot be read, if that is it.
        #[source]
        source: Option<std::io::Error>,
    },
    /// Another part of the file than asked for.
    #[error("{url} sent the wrong range: expected {expected}, found {found}")]
    WrongRange {
        /// What was asked.
        url: String,
        /// `bytes first-last/size`
        expected: String,
        /// What the answer says.
        found: String,
    },
    /// The whole file instead of a part of it, and the part is too far in.
    #[error(
        "{url} ignores Range and would have to send {skip} bytes in vain: at most {limit} are taken (download.skip_max_bytes)"
    )]
    RangeIgnored {
        /// What was asked.
        url: String,
        /// Bytes before the part.
        skip: u64,
        /// The bound.
        limit: u64,
    },
    /// More bytes than are taken.
    #[error("{url} sent more than the {limit} bytes that are accepted")]
    TooLong {
        /// What was asked.
        url: String,
        /// The bound.
        limit: u64,
    },
    /// Not the JSON expected.
    #[error("the answer of {url} is not what was expected")]
    Json {
        /// What was asked.
        url: String,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// JSON of another schema.
    #[error("the answer of {url} has schema {found}: expected {expected}; a newer engine is needed")]
    Schema {
        /// What was asked.
        url: String,
        /// The number this engine reads.
        expected: u32,
        /// The number found.
        found: u32,
    },
}

impl NetworkError {
    /// Whether the same request may well succeed a little later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Request { source, .. } => !source.is_builder(),
            Self::Broken { .. } | Self::Stalled { .. } | Self::WrongRange { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    && *status != StatusCode::NOT_IMPLEMENTED
                    && *status != StatusCode::HTTP_VERSION_NOT_SUPPORTED
                    || matches!(status.as_u16(), 408 | 425 | 429)
            }
            _ => false,
        }
    }

    /// How long the server asks to be left alone.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Makes the error of an answer that is no success.
pub(super) async fn from_response(url: &Url, response: Response, limits: &Download) -> NetworkError {
    let status = response.status();
    let header = |name| {
        response.headers().get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok())
    };
    if status.is_redirection() {
        let location = header(LOCATION).unwrap_or("nowhere").chars().take(200).collect();
        return NetworkError::Redirect { url: url.to_string(), status, location };
    }
    let retry_after = retry_after(response.headers()).map(|pause| pause.min(limits.retry_after_max));
    let body = Body::new(url, response, limits).collect(ERROR_BODY_MAX).await.unwrap_or_default();
    let ErrorBody { kind, message } = serde_json::from_slice(&body)
        .unwrap_or_else(|_| ErrorBody { kind: String::new(), message: String::new() });
    if status == StatusCode::UNAUTHORIZED && kind == NOT_ENROLLED {
        let problem = "none was sent".to_owned();
        return NetworkError::NotEnrolled { url: url.to_string(), problem, source: None };
    }
    let message = message.chars().filter(|c| !c.is_control()).take(300).collect();
    NetworkError::Status { url: url.to_string(), status, message, retry_after }
}
