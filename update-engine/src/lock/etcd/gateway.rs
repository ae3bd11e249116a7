//! Step 9, permit: questions to an etcd cluster: several endpoints, one login, and what may be asked twice.

use super::wire::{Authenticate, Authenticated, Bytes, Compare, Operation, Range, Trouble, Txn, TxnDone};
use crate::config::settings::{Etcd, Login};
use crate::error::chain;
use crate::lock::error::LockError;
use crate::lock::http::{self, Answer, Http, plain};
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use reqwest::{Certificate, Identity, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// An etcd cluster.
#[derive(Debug)]
pub(super) struct Gateway {
    http: Http,
    endpoints: Vec<Url>,
    /// Which endpoint is asked first: the one that answered last.
    first: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<HeaderValue>>,
}

/// What an operation does, which says whether it may be sent twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Writes,
}

/// A question without the answer.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) error: LockError,
    /// Whether it may have been carried out all the same.
    pub(super) maybe_done: bool,
}

/// An answer, and the time at which it was given by the clock of the member that gave it.
#[derive(Debug)]
pub(super) struct Said<T> {
    pub(super) answer: T,
    pub(super) at: Timestamp,
}

/// A key as it was read.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) key: String,
    /// None where there is no such key.
    pub(super) bytes: Option<Vec<u8>>,
    /// 0 where there is no such key.
    pub(super) revision: u64,
}

impl Gateway {
    /// A client of the cluster.
    pub(super) fn new(settings: &Etcd, timeout: Duration) -> Result<Self, LockError> {
        let mut builder = http::builder(timeout);
        if let Some(ca) = &settings.ca {
            let (key, expected) = ("lock.etcd.ca", "certificates");
            let pem = |source| LockError::Pem { key, path: ca.clone(), expected, source };
            let authorities = Certificate::from_pem_bundle(&read(key, ca)?).map_err(|e| pem(Some(e)))?;
            if authorities.is_empty() {
                return Err(pem(None));
            }
            builder = builder.tls_certs_only(authorities);
        }
        if let Some((certificate, key)) = &settings.identity {
            let mut text = read("lock.etcd.cert", certificate)?;
            text.push(b'\n');
            text.extend(read("lock.etcd.key", key)?);
            let identity = Identity::from_pem(&text).map_err(|source| LockError::Pem {
                key: "lock.etcd.cert and lock.etcd.key",
                path: certificate.clone(),
                expected: "a certificate with its private key (PKCS #8, PKCS #1 or SEC 1, not encrypted)",
                source: Some(source),
            })?;
            builder = builder.identity(identity);
        }
        Ok(Self {
            http: Http::new(builder, timeout)?,
            endpoints: settings.endpoints.clone(),
            first: AtomicUsize::new(0),
            login: settings.login.clone(),
            token: Mutex::new(None),
        })
    }

    /// Several keys, all at one revision, linearizable.
    pub(super) async fn get(&self, keys: &[&str]) -> Result<Said<Vec<Value>>, LockError> {
        let range = |key: &&str| Operation::Range(Range { key: Bytes::of(key), ..Range::default() });
        let txn = Txn { compare: Vec::new(), success: keys.iter().map(range).collect() };
        let said: Said<TxnDone> = self.ask("v3/kv/txn", &txn, Effect::Reads).await.map_err(|u| u.error)?;
        if said.answer.responses.len() != keys.len() {
            let found = format!("{} of {} keys were answered", said.answer.responses.len(), keys.len());
            return Err(LockError::Incomplete { url: self.preferred().to_string(), found });
        }
        let values = keys.iter().zip(said.answer.responses).map(|(key, response)| {
            let pair = response.response_range.kvs.into_iter().next();
            Value {
                key: (*key).to_owned(),
                revision: pair.as_ref().map_or(0, |pair| pair.mod_revision.0),
                bytes: pair.map(|pair| pair.value.0),
            }
        });
        Ok(Said { answer: values.collect(), at: said.at })
    }

    /// All keys that begin with `prefix`, without their values where `keys_only`; linearizable.
    pub(super) async fn list(&self, prefix: &str, keys_only: bool) -> Result<Vec<Value>, LockError> {
        let range =
            Range { key: Bytes::of(prefix), range_end: Some(Bytes::end_of_prefix(prefix)), keys_only };
        let said: Said<super::wire::Ranged> =
            self.ask("v3/kv/range", &range, Effect::Reads).await.map_err(|u| u.error)?;
        let value = |pair: super::wire::Pair| Value {
            key: String::from_utf8_lossy(&pair.key.0).into_owned(),
            bytes: Some(pair.value.0),
            revision: pair.mod_revision.0,
        };
        Ok(said.answer.kvs.into_iter().map(value).collect())
    }

    /// Puts a value if all the keys are at these revisions; whether they were. Sent once.
    pub(super) async fn put_if(
        &self,
        revisions: &[(String, u64)],
        key: &str,
        value: Vec<u8>,
    ) -> Result<bool, Unanswered> {
        let compare = revisions.iter().map(|(key, revision)| Compare::revision(key, *revision)).collect();
        let put = Operation::Put { key: Bytes::of(key), value: Bytes(value) };
        self.write(&Txn { compare, success: vec![put] }).await
    }

    /// Deletes a key, if there is one.
    pub(super) async fn delete(&self, key: &str) -> Result<(), Unanswered> {
        let delete = Operation::Delete { key: Bytes::of(key) };
        self.write(&Txn { compare: Vec::new(), success: vec![delete] }).await.map(drop)
    }

    async fn write(&self, txn: &Txn) -> Result<bool, Unanswered> {
        let said: Said<TxnDone> = self.ask("v3/kv/txn", txn, Effect::Writes).await?;
        Ok(said.answer.succeeded)
    }

    /// Asks what changes nothing.
    pub(super) async fn query<T: DeserializeOwned>(&self, path: &str) -> Result<T, LockError> {
        let none = serde_json::Map::new();
        self.ask(path, &none, Effect::Reads).await.map(|said| said.answer).map_err(|u| u.error)
    }

    /// Asks one certain member what changes nothing, at any address it has.
    pub(super) async fn query_at<T: DeserializeOwned>(
        &self,
        endpoint: &Url,
        path: &str,
    ) -> Result<T, LockError> {
        let answer = self.logged_in(endpoint, path, b"{}").await.map_err(|u| u.error)?;
        parse(&address(endpoint, path), &answer)
    }

    /// Asks the endpoints in turn, beginning with the one that answered last. What writes goes to the next one only
    /// where it cannot have been carried out.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        question: &(impl Serialize + Sync),
        effect: Effect,
    ) -> Result<Said<T>, Unanswered> {
        let body = serde_json::to_vec(question).map_err(|source| Unanswered {
            error: LockError::Answer { url: path.to_owned(), source },
            maybe_done: false,
        })?;
        let mut failures = Vec::new();
        for _ in &self.endpoints {
            let at = self.first.load(Ordering::Relaxed);
            let endpoint = self.endpoint(at);
            match self.logged_in(endpoint, path, &body).await {
                Ok(answer) => {
                    let now = time_of(&answer);
                    // What cannot be read was carried out all the same.
                    let answer = parse(&address(endpoint, path), &answer)
                        .map_err(|error| Unanswered { error, maybe_done: true })?;
                    return Ok(Said { answer, at: now });
                }
                Err(unanswered) if !unanswered.error.is_passing() => return Err(unanswered),
                Err(unanswered) => {
                    // Another task may have moved on already.
                    let next = at.wrapping_add(1);
                    let _ = self.first.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
                    if effect == Effect::Writes && unanswered.maybe_done {
                        return Err(unanswered);
                    }
                    failures.push(chain(&unanswered.error));
                }
            }
        }
        Err(Unanswered { error: LockError::NoEndpoint { failures: failures.join("; ") }, maybe_done: false })
    }

    fn endpoint(&self, at: usize) -> &Url {
        &self.endpoints[at % self.endpoints.len()]
    }

    /// The endpoint that is asked first.
    fn preferred(&self) -> &Url {
        self.endpoint(self.first.load(Ordering::Relaxed))
    }

    /// Asks one endpoint, with a token where there is a login. A token that etcd does not know (it forgets them when it
    /// is restarted, and after some minutes) is renewed once; what it came with was not carried out.
    async fn logged_in(&self, endpoint: &Url, path: &str, body: &[u8]) -> Result<Answer, Unanswered> {
        let url = address(endpoint, path);
        for renewed in [false, true] {
            let token = match (&self.login, self.token()) {
                (Some(login), None) => Some(self.log_in(endpoint, login).await?),
                (_, token) => token,
            };
            let mut headers = HeaderMap::new();
            if let Some(token) = token {
                headers.insert(AUTHORIZATION, token);
            }
            let answer = self.http.post(&url, headers, body.to_vec()).await;
            let answer =
                answer.map_err(|failure| Unanswered { error: failure.error, maybe_done: failure.sent })?;
            match judge(&url, &answer) {
                Ok(()) => return Ok(answer),
                Err(Verdict::Token(_)) if self.login.is_some() && !renewed => {
                    tracing::debug!("etcd does not know our token any more: logging in again");
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(Verdict::Token(message)) => {
                    let error = LockError::Credentials { url: url.to_string(), message };
                    return Err(Unanswered { error, maybe_done: false });
                }
                Err(Verdict::Error(unanswered)) => return Err(unanswered),
            }
        }
        let message = "a new token is not accepted either".to_owned();
        Err(Unanswered { error: LockError::Credentials { url: url.to_string(), message }, maybe_done: false })
    }

    fn token(&self) -> Option<HeaderValue> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets a token for the login. The password is read each time: it may have been changed.
    async fn log_in(&self, endpoint: &Url, login: &Login) -> Result<HeaderValue, Unanswered> {
        let not_done = |error| Unanswered { error, maybe_done: false };
        let url = address(endpoint, "v3/auth/authenticate");
        let password = read("lock.etcd.password_file", &login.password_file).map_err(not_done)?;
        let password = String::from_utf8_lossy(&password);
        let question = Authenticate { name: &login.user, password: password.trim_end_matches(['\r', '\n']) };
        let body = serde_json::to_vec(&question)
            .map_err(|source| not_done(LockError::Answer { url: url.to_string(), source }))?;
        let answer = self.http.post(&url, HeaderMap::new(), body).await.map_err(|f| not_done(f.error))?;
        let refused = |message| not_done(LockError::Credentials { url: url.to_string(), message });
        match judge(&url, &answer) {
            Ok(()) => {}
            Err(Verdict::Token(message)) => return Err(refused(message)),
            Err(Verdict::Error(unanswered)) => return Err(not_done(unanswered.error)),
        }
        let Authenticated { token } = parse(&url, &answer).map_err(not_done)?;
        let mut token =
            HeaderValue::from_str(&token).map_err(|_| refused("the token is no text".to_owned()))?;
        token.set_sensitive(true);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
        Ok(token)
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, LockError> {
    std::fs::read(path).map_err(|source| LockError::File { key, path: path.to_owned(), source })
}

/// The endpoint's address for a path. Endpoints are plain origins, which any path can be put behind.
fn address(endpoint: &Url, path: &str) -> Url {
    let mut url = endpoint.clone();
    url.set_path(path);
    url
}

fn parse<T: DeserializeOwned>(url: &Url, answer: &Answer) -> Result<T, LockError> {
    serde_json::from_slice(&answer.body).map_err(|source| LockError::Answer { url: url.to_string(), source })
}

/// When the member answered. All nodes go by the clocks of the members, so that a node whose own clock is wrong neither
/// makes others overdue nor finds a window open that is not.
fn time_of(answer: &Answer) -> Timestamp {
    let date = answer.header(DATE);
    let parsed = date.as_deref().and_then(|text| jiff::fmt::rfc2822::parse(text).ok());
    parsed.map_or_else(Timestamp::now, |date| date.timestamp())
}

enum Verdict {
    /// Who we are is not known (any more).
    Token(String),
    Error(Unanswered),
}

/// The codes of gRPC that matter here.
mod code {
    pub(super) const CANCELLED: u32 = 1;
    pub(super) const UNKNOWN: u32 = 2;
    pub(super) const DEADLINE_EXCEEDED: u32 = 4;
    pub(super) const PERMISSION_DENIED: u32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(super) const ABORTED: u32 = 10;
    pub(super) const INTERNAL: u32 = 13;
    pub(super) const UNAVAILABLE: u32 = 14;
    pub(super) const UNAUTHENTICATED: u32 = 16;
}

/// What an answer's status and text say.
fn judge(url: &Url, answer: &Answer) -> Result<(), Verdict> {
    if answer.status == StatusCode::OK {
        return Ok(());
    }
    let error = |error, maybe_done| Err(Verdict::Error(Unanswered { error, maybe_done }));
    if let Some(redirect) = answer.redirect(url) {
        return error(redirect, false);
    }
    let trouble: Trouble = serde_json::from_slice(&answer.body).unwrap_or_default();
    let (code, message) = (trouble.code, plain(trouble.text()));
    let is_unknown = code == code::UNAUTHENTICATED || answer.status == StatusCode::UNAUTHORIZED;
    if is_unknown || message.contains("revision of auth store is old") {
        return Err(Verdict::Token(message));
    }
    let is_login = message.contains("user name is empty") || message.contains("authentication failed");
    if code == code::PERMISSION_DENIED || answer.status == StatusCode::FORBIDDEN || is_login {
        return error(LockError::Credentials { url: url.to_string(), message }, false);
    }
    // These say that etcd gave up waiting, not that nothing happened.
    let gave_up = matches!(
        code,
        code::CANCELLED
            | code::UNKNOWN
            | code::DEADLINE_EXCEEDED
            | code::ABORTED
            | code::INTERNAL
            | code::UNAVAILABLE
    );
    let maybe_done = gave_up || answer.status.is_server_error() || answer.status.is_success();
    let passing =
        maybe_done || code == code::RESOURCE_EXHAUSTED || answer.status == StatusCode::TOO_MANY_REQUESTS;
    let status = answer.status;
    error(LockError::Status { url: url.to_string(), status, message, passing }, maybe_done)
}
