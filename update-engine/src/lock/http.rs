//! Step 9, permit: one bounded request to a lock's server. No redirects, a limit on every body, a limit on all time.

use super::error::LockError;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{StatusCode, Url};
use std::time::Duration;

/// The longest answer that is read, in bytes: etcd's own limit for a document is a tenth of it.
const BODY_MAX: usize = 16 << 20;

/// An answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A header as short plain text.
    pub(super) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<String> {
        let text = self.headers.get(name)?.to_str().ok()?;
        Some(text.chars().take(200).collect())
    }

    /// The error of an answer that points elsewhere; none for any other.
    pub(super) fn redirect(&self, url: &Url) -> Option<LockError> {
        self.status.is_redirection().then(|| LockError::Redirect {
            url: url.to_string(),
            status: self.status,
            location: self.header(LOCATION).unwrap_or_else(|| "nowhere".to_owned()),
        })
    }
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: LockError,
    /// Whether it may have reached the other side, and so may have been carried out.
    pub(super) sent: bool,
}

/// A client that asks once: what is repeated, and whether it may be, is for the callers to say.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    timeout: Duration,
}

/// What every client of a lock has in common.
pub(super) fn builder(timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("flipside/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeout)
        // One request, one connection: giving up on a request really ends it.
        .http1_only()
}

impl Http {
    /// A client of which no request takes longer than `timeout`.
    pub(super) fn new(builder: reqwest::ClientBuilder, timeout: Duration) -> Result<Self, LockError> {
        let client = builder.build().map_err(|source| LockError::Setup { source })?;
        Ok(Self { client, timeout })
    }

    /// Posts JSON once and returns whatever is answered.
    pub(super) async fn post(&self, url: &Url, headers: HeaderMap, body: Vec<u8>) -> Result<Answer, Failure> {
        let request = self
            .client
            .post(url.clone())
            .headers(headers)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body);
        let slow = || LockError::Slow { url: url.to_string(), after: self.timeout };
        match tokio::time::timeout(self.timeout, exchange(url, request)).await {
            Ok(done) => done,
            Err(_) => Err(Failure { error: slow(), sent: true }),
        }
    }
}

async fn exchange(url: &Url, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
    let failed = |source: reqwest::Error| Failure {
        sent: !source.is_connect() && !source.is_builder(),
        error: LockError::Request { url: url.to_string(), source: source.without_url() },
    };
    let mut response = request.send().await.map_err(failed)?;
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(failed)? {
        if body.len() + bytes.len() > BODY_MAX {
            let error = LockError::TooLong { url: url.to_string(), limit: BODY_MAX };
            return Err(Failure { error, sent: true });
        }
        body.extend_from_slice(&bytes);
    }
    Ok(Answer { status, headers, body })
}

/// Text of another program, short and on one line.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
