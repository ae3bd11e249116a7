//! Step 5, download, and all else that the node says and hears over HTTP: one client, one set of bounds.
//!
//! Redirects are never followed: a server that redirects is a server that says something else than what was asked,
//! and the address it names is in the error. Nothing here is believed: metadata is checked by `trust`, payload bytes
//! by `disk::assemble`.

pub mod backoff;
pub mod body;
mod enrolment;
pub mod error;
pub mod metadata;
pub mod payload;
pub mod source;
pub mod tls;
// Its server serves the tests of other modules too.
#[cfg(test)]
pub(crate) mod tests;

use crate::config::settings::{Download, Server};
use backoff::Backoff;
use body::Body;
pub use error::NetworkError;
use protocol::id::Group;
use protocol::lock::ClientId;
use protocol::wire;
use reqwest::Url;
use reqwest::header::{ACCEPT_ENCODING, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;

/// How often a small request is repeated when its failure looks passing. What the engine does about a server that
/// stays away is the state machine's business.
const SMALL_REQUEST_RETRIES: u32 = 2;

/// The longest lock that is read, in bytes: a full queue and a fleet of holders are some hundred KiB.
const LOCK_VIEW_MAX: u64 = 8 << 20;

/// The node's one HTTP client. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    limits: Arc<Download>,
    credential: Option<Arc<wire::NodeCredential>>,
    enrolment_token_file: Option<Arc<Path>>,
    /// How often a small request is repeated.
    small_retries: u32,
}

impl Client {
    /// A client for a server.
    ///
    /// # Errors
    /// [`NetworkError::Client`] or [`NetworkError::Tls`] where TLS cannot be set up.
    pub fn new(server: &Server, limits: Download) -> Result<Self, NetworkError> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("flipside/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(limits.connect_timeout);
        let http = server.tls.apply(builder)?.build().map_err(|source| match server.tls.blamed(&source) {
            Some(file) => NetworkError::Tls(file),
            None => NetworkError::Client { source },
        })?;
        Ok(Self {
            http,
            base: server.url.clone(),
            limits: Arc::new(limits),
            credential: None,
            enrolment_token_file: server.enrolment_token_file.as_deref().map(Arc::from),
            small_retries: SMALL_REQUEST_RETRIES,
        })
    }

    /// The same client with the node's own credential, which goes with all that the node says of itself, and with
    /// nothing else: metadata and payloads are public, and caches do not keep answers to requests that show a secret.
    #[must_use]
    pub fn with_credential(mut self, credential: wire::NodeCredential) -> Self {
        self.credential = Some(Arc::new(credential));
        self
    }

    /// The same client for a person who waits: small requests are sent once, and they see why at once.
    #[must_use]
    pub fn asking_once(mut self) -> Self {
        self.small_retries = 0;
        self
    }

    fn as_node(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.credential {
            Some(credential) => request.bearer_auth(credential.reveal()),
            None => request,
        }
    }

    /// The bounds it keeps to.
    #[must_use]
    pub fn limits(&self) -> &Download {
        &self.limits
    }

    /// The address of a path under the server's.
    fn url(&self, path: &str) -> Result<Url, NetworkError> {
        self.base.join(path).map_err(|_| NetworkError::Address { path: path.to_owned() })
    }

    /// Asks whether to update.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn update_check(&self, check: &wire::UpdateCheck) -> Result<wire::UpdateAnswer, NetworkError> {
        let url = self.url("v1/update-check")?;
        let bytes = self.post(&url, check).await?;
        let answer: wire::UpdateAnswer = parse(&url, &bytes)?;
        known_schema(&url, answer.schema)?;
        Ok(answer)
    }

    /// Reports events; returns once the server has them on its disk.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn send_events(&self, events: &wire::Events) -> Result<(), NetworkError> {
        let url = self.url("v1/events")?;
        self.post(&url, events).await.map(drop)
    }

    /// Gives a node's command to the lock of a group. It may be sent more than once, which does no harm: every command is
    /// idempotent on node and attempt.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn lock_command(
        &self,
        group: &Group,
        command: &wire::LockCommand,
    ) -> Result<wire::LockAnswer, NetworkError> {
        let url = self.url(&format!("v2/lock/{group}"))?;
        let bytes = self.post(&url, command).await?;
        let answer: wire::LockAnswer = parse(&url, &bytes)?;
        known_schema(&url, answer.schema)?;
        Ok(answer)
    }

    /// The lock of a group as it stands; `None` where there is no such group.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn lock_view(
        &self,
        group: &Group,
        node: &ClientId,
    ) -> Result<Option<wire::LockView>, NetworkError> {
        let path = format!("v2/lock/{group}?node={node}");
        let Some(bytes) = self.get_as_node(&path, LOCK_VIEW_MAX).await? else { return Ok(None) };
        let url = self.url(&path)?;
        let view: wire::LockView = parse(&url, &bytes)?;
        known_schema(&url, view.schema)?;
        Ok(Some(view))
    }

    async fn post<T: Serialize>(&self, url: &Url, document: &T) -> Result<Vec<u8>, NetworkError> {
        self.enrolling(url, |token| async move {
            let request = token.shown_in(self.as_node(self.http.post(url.clone()).json(document)));
            let body = self.send(url, request).await?;
            body.collect(wire::BODY_MAX as u64).await
        })
        .await
    }

    /// Fetches a small document; `None` where there is none.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn get(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, NetworkError> {
        let url = self.url(path)?;
        let answer = self.small(|| async {
            let body = self.send(&url, self.http.get(url.clone())).await?;
            body.collect(max_bytes).await
        });
        if_there(answer.await)
    }

    /// As [`Self::get`], of a document that is for this node only.
    ///
    /// # Errors
    /// [`NetworkError`]
    pub async fn get_as_node(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, NetworkError> {
        let url = self.url(path)?;
        let address = &url;
        let answer = self.enrolling(address, |token| async move {
            let request = token.shown_in(self.as_node(self.http.get(address.clone())));
            let body = self.send(address, request).await?;
            body.collect(max_bytes).await
        });
        if_there(answer.await)
    }

    /// Repeats a small request a few times when its failure looks passing.
    async fn small<F>(&self, request: impl Fn() -> F) -> Result<Vec<u8>, NetworkError>
    where
        F: Future<Output = Result<Vec<u8>, NetworkError>>,
    {
        let mut backoff = Backoff::new(&self.limits);
        loop {
            match request().await {
                Err(error) if error.is_passing() && backoff.failures() < self.small_retries => {
                    backoff.pause(&error).await;
                }
                other => return other,
            }
        }
    }

    /// Sends a request and judges the status line.
    async fn send(&self, url: &Url, request: reqwest::RequestBuilder) -> Result<Body, NetworkError> {
        let request = request.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let wait = self.limits.connect_timeout + self.limits.stall_timeout;
        let response = match tokio::time::timeout(wait, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(source)) => {
                return Err(NetworkError::Request { url: url.to_string(), source: source.without_url() });
            }
            Err(_) => return Err(NetworkError::Stalled { url: url.to_string(), bytes: 0, after: wait }),
        };
        if response.status().is_success() {
            Ok(Body::new(url, response, &self.limits))
        } else {
            Err(error::from_response(url, response, &self.limits).await)
        }
    }
}

/// A document, or none where there is none.
fn if_there(answer: Result<Vec<u8>, NetworkError>) -> Result<Option<Vec<u8>>, NetworkError> {
    match answer {
        Ok(bytes) => Ok(Some(bytes)),
        Err(NetworkError::Status { status, .. }) if status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

fn known_schema(url: &Url, found: u32) -> Result<(), NetworkError> {
    if found == wire::SCHEMA {
        return Ok(());
    }
    Err(NetworkError::Schema { url: url.to_string(), expected: wire::SCHEMA, found })
}

fn parse<T: DeserializeOwned>(url: &Url, bytes: &[u8]) -> Result<T, NetworkError> {
    serde_json::from_slice(bytes).map_err(|source| NetworkError::Json { url: url.to_string(), source })
}
