//! Steps 3 and 4: HTTP to a server, for operators. Every answer is bounded before it is read.

use super::OperatorError;
use crate::network::tls::Tls;
use clap::Args;
use protocol::digest::Sha256;
use protocol::wire::{ErrorBody, PUSH_MAX};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long to wait for the next byte of an answer. The answer to an upload comes once it is on the server's disk.
const SILENCE: Duration = Duration::from_secs(300);

/// Which server to speak to, and as whom.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerOptions {
    /// The server's address, such as http://127.0.0.1:8400.
    #[arg(long, global = true, env = "UPDATECTL_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// The token to show to it.
    #[arg(long, global = true, env = "UPDATECTL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// A PEM file with the authorities that may sign its certificate; those of the system, if not given.
    #[arg(long, global = true, env = "UPDATECTL_CA", value_name = "FILE")]
    pub ca: Option<OsString>,
    /// A PEM file with a certificate to show to it, if it asks for one.
    #[arg(long, global = true, env = "UPDATECTL_CLIENT_CERT", value_name = "FILE")]
    pub client_cert: Option<OsString>,
    /// A PEM file with that certificate's private key, not encrypted.
    #[arg(long, global = true, env = "UPDATECTL_CLIENT_KEY", value_name = "FILE")]
    pub client_key: Option<OsString>,
}

impl ServerOptions {
    /// The files of a connection; an empty variable is none.
    fn tls(&self) -> Result<Tls, OperatorError> {
        let path = |text: &Option<OsString>| text.clone().filter(|text| !text.is_empty()).map(PathBuf::from);
        let identity = match (path(&self.client_cert), path(&self.client_key)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(OperatorError::HalfAnIdentity),
        };
        Ok(Tls { ca: path(&self.ca), identity })
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    server: Url,
    token: String,
}

impl Client {
    /// A client for the server and token of `options`. Nothing is sent yet.
    ///
    /// # Errors
    /// [`OperatorError`] where either is missing or not valid.
    pub fn new(options: &ServerOptions) -> Result<Self, OperatorError> {
        let text =
            options.server.as_deref().filter(|text| !text.is_empty()).ok_or(OperatorError::NoServer)?;
        let mut server = Url::parse(text).map_err(|_| OperatorError::Address(text.to_owned()))?;
        if !matches!(server.scheme(), "http" | "https") || server.cannot_be_a_base() {
            return Err(OperatorError::Address(text.to_owned()));
        }
        if !server.path().ends_with('/') {
            server.set_path(&format!("{}/", server.path()));
        }
        let token = options.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        let token = token.ok_or(OperatorError::NoToken)?.to_owned();
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            // A token is not carried to wherever an answer points.
            .redirect(reqwest::redirect::Policy::none());
        let tls = options.tls()?;
        let http = tls.apply(builder)?.build();
        let http = http.map_err(|error| match tls.blamed(&error) {
            Some(file) => OperatorError::Tls(file),
            None => OperatorError::Http(error),
        })?;
        Ok(Self { http, server, token })
    }

    /// The server's address.
    #[must_use]
    pub fn server(&self) -> &str {
        self.server.as_str()
    }

    fn request(&self, method: Method, path: &str) -> Result<reqwest::RequestBuilder, OperatorError> {
        let url = self.server.join(path).map_err(|_| OperatorError::Address(path.to_owned()))?;
        Ok(self.http.request(method, url).bearer_auth(&self.token))
    }

    fn unreachable(&self, source: reqwest::Error) -> OperatorError {
        // The address is in our own message already.
        OperatorError::Unreachable { server: self.server.to_string(), source: source.without_url() }
    }

    async fn body(&self, mut response: Response, what: &str, limit: usize) -> Result<Vec<u8>, OperatorError> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|source| self.unreachable(source))? {
            if bytes.len() + piece.len() > limit {
                return Err(OperatorError::TooLong { what: what.to_owned(), limit });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Sends a request and turns every status that is not a success into an error.
    async fn send(&self, request: reqwest::RequestBuilder, what: &str) -> Result<Response, OperatorError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = self.body(response, what, PUSH_MAX).await?;
        let message = serde_json::from_slice::<ErrorBody>(&bytes).map_or_else(
            |_| format!("no explanation, to {what}; is {} an update-server?", self.server),
            |body| body.message,
        );
        Err(OperatorError::Server { status: status.as_u16(), message })
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
        what: &str,
    ) -> Result<T, OperatorError> {
        let response = self.send(request, what).await?;
        let bytes = self.body(response, what, PUSH_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|source| OperatorError::Answer {
            what: what.to_owned(),
            server: self.server.to_string(),
            source,
        })
    }

    /// Reads a document of the admin API.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, OperatorError> {
        self.answer(self.request(Method::GET, path)?, path).await
    }

    /// Sends a document to the admin API and reads its answer.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn change<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, OperatorError> {
        self.answer(self.request(method, path)?.json(body), path).await
    }

    /// Sends a document to the admin API that it answers with nothing but success.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn post<B: Serialize>(&self, path: &str, body: &B) -> Result<(), OperatorError> {
        self.send(self.request(Method::POST, path)?.json(body), path).await.map(drop)
    }

    /// Puts a document in the admin API that it answers with nothing but success.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn put<B: Serialize>(&self, path: &str, body: &B) -> Result<(), OperatorError> {
        self.send(self.request(Method::PUT, path)?.json(body), path).await.map(drop)
    }

    /// Deletes something of the admin API.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn delete(&self, path: &str) -> Result<(), OperatorError> {
        self.send(self.request(Method::DELETE, path)?, path).await.map(drop)
    }

    /// A metadata file as nodes get it; `None` where the server has none of that name.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn metadata(&self, name: &str) -> Result<Option<Vec<u8>>, OperatorError> {
        let path = format!("v1/metadata/{name}");
        match self.send(self.request(Method::GET, &path)?, name).await {
            Ok(response) => Ok(Some(self.body(response, name, PUSH_MAX).await?)),
            Err(OperatorError::Server { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the server holds a payload with this digest and length.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn has_payload(&self, digest: &Sha256, size: u64) -> Result<bool, OperatorError> {
        let request = self.request(Method::HEAD, &format!("v1/payloads/{digest}"))?;
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => {
                let length = response.headers().get(reqwest::header::CONTENT_LENGTH);
                Ok(length.and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()) == Some(size))
            }
            status => Err(OperatorError::Server {
                status: status.as_u16(),
                message: format!("no explanation, asked for the payload {digest}"),
            }),
        }
    }

    /// Uploads a payload from a stream of exactly `size` bytes.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn put_payload(
        &self,
        digest: &Sha256,
        size: u64,
        body: reqwest::Body,
    ) -> Result<(), OperatorError> {
        let path = format!("api/v1/payloads/{digest}");
        let request =
            self.request(Method::PUT, &path)?.header(reqwest::header::CONTENT_LENGTH, size).body(body);
        self.send(request, &path).await.map(drop)
    }
}
