//! Step 10, reboot: the alerts that hold one. A Prometheus is asked, and anything but its clear word that nothing fires
//! holds the reboot: whoever asks for alerts wants no reboot into an outage that they do not see.

use crate::config::settings;
use crate::error::chain;
use protocol::status::one_line;
use reqwest::header::{AUTHORIZATION, HeaderValue, LOCATION};
use reqwest::{Certificate, StatusCode, Url};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest answer that is read, in bytes: some ten thousand alerts.
const BODY_MAX: usize = 4 << 20;
/// How many alerts are named; the rest is counted.
const NAMED: usize = 3;
/// The longest name, in characters: labels are the work of others.
const NAME_MAX: usize = 64;

/// The alerts that hold this node's reboot.
#[derive(Clone, Debug)]
pub struct Alerts {
    settings: settings::Alerts,
}

/// Why it is not known whether alerts fire.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("{key}: cannot read {}", path.display())]
    File {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{key}: {} does not hold {expected}", path.display())]
    Content { key: &'static str, path: PathBuf, expected: &'static str },
    #[error("cannot set up the client")]
    Setup(#[source] reqwest::Error),
    #[error("{url} is no address")]
    Address { url: String },
    #[error("no answer from {url}")]
    Request {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("no whole answer from {url} in {} s", after.as_secs())]
    Slow { url: String, after: Duration },
    #[error("{url} answered {status} to {location}: redirects are not followed; name the server itself")]
    Redirect { url: String, status: StatusCode, location: String },
    #[error("{url} answered {status}{}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status { url: String, status: StatusCode, message: String },
    #[error("{url} sent more than the {BODY_MAX} bytes that are accepted: let the query find less")]
    TooLong { url: String },
    #[error("the answer of {url} is not that of a Prometheus")]
    Answer {
        url: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("{url} says {status} ({message})")]
    NoSuccess { url: String, status: String, message: String },
    #[error("{url} says that its answer may not be whole: {warning}")]
    Warning { url: String, warning: String },
    #[error(
        "the query of reboot.alerts gives a {found}: expected a vector, whose samples are what holds a reboot"
    )]
    Type { found: String },
}

/// An answer of `/api/v1/query`.
#[derive(Deserialize)]
struct Said {
    status: String,
    data: Option<Kind>,
    #[serde(rename = "errorType", default)]
    error_type: String,
    #[serde(default)]
    error: String,
    /// What may be missing or wrong: Thanos says so where a store did not answer.
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "resultType")]
    result_type: String,
}

/// The same answer once its kind is known: only then is it known what `result` looks like.
#[derive(Deserialize)]
struct Found {
    data: Vector,
}

#[derive(Deserialize)]
struct Vector {
    result: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    metric: Labels,
}

/// The labels that matter here.
#[derive(Deserialize)]
struct Labels {
    alertname: Option<String>,
    #[serde(rename = "__name__")]
    name: Option<String>,
}

impl Alerts {
    /// The alerts that the settings name; asks nothing yet.
    #[must_use]
    pub const fn new(settings: settings::Alerts) -> Self {
        Self { settings }
    }

    /// Asks once, within `reboot.alerts.timeout_s`, whether something holds a reboot at this moment. Dropped, it gives up
    /// the question.
    ///
    /// # Errors
    /// The reason in one line: the alerts that fire, or why that is not known.
    pub async fn blocking(&self) -> Result<(), String> {
        match self.firing().await {
            Ok(firing) if firing.is_empty() => Ok(()),
            Ok(firing) => Err(reason(&firing)),
            Err(unknown) => Err(format!("alerts cannot be checked: {}", one_line(&chain(&unknown)))),
        }
    }

    /// What fires, by name, and how often.
    async fn firing(&self) -> Result<BTreeMap<String, usize>, Unknown> {
        let timeout = self.settings.timeout;
        let url = self.url()?;
        let asked = tokio::time::timeout(timeout, self.ask(&url)).await;
        let bytes = asked.map_err(|_| Unknown::Slow { url: plain(&self.settings.url), after: timeout })??;
        let mut firing = BTreeMap::new();
        for Sample { metric: Labels { alertname, name } } in samples(&self.settings.url, &bytes)? {
            if alertname.as_ref().is_some_and(|name| self.settings.ignore.contains(name)) {
                continue;
            }
            let name = alertname.or(name).filter(|name| !name.is_empty());
            let name = name.unwrap_or_else(|| "a sample without alertname".to_owned());
            *firing.entry(name).or_default() += 1;
        }
        Ok(firing)
    }

    /// The question. The server is told when nobody listens any more, so that it does not go on.
    fn url(&self) -> Result<Url, Unknown> {
        let base = &self.settings.url;
        let mut url = base.join("api/v1/query").map_err(|_| Unknown::Address { url: plain(base) })?;
        let timeout = format!("{}s", self.settings.timeout.as_secs());
        url.query_pairs_mut().append_pair("query", &self.settings.query).append_pair("timeout", &timeout);
        Ok(url)
    }

    async fn ask(&self, url: &Url) -> Result<Vec<u8>, Unknown> {
        let shown = || plain(&self.settings.url);
        let broken = |source: reqwest::Error| Unknown::Request { url: shown(), source: source.without_url() };
        let mut request = self.client()?.get(url.clone());
        if let Some(token) = self.token()? {
            request = request.header(AUTHORIZATION, token);
        }
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let location = short(location.unwrap_or("nowhere"));
            return Err(Unknown::Redirect { url: shown(), status, location });
        }
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(broken)? {
            if body.len() + bytes.len() > BODY_MAX {
                return Err(Unknown::TooLong { url: shown() });
            }
            body.extend_from_slice(&bytes);
        }
        if status == StatusCode::OK {
            return Ok(body);
        }
        // What is wrong with a query comes with a status of its own.
        let message =
            serde_json::from_slice::<Said>(&body).map_or_else(|_| String::new(), |said| said.trouble());
        Err(Unknown::Status { url: shown(), status, message })
    }

    /// A client for one question: certificates and tokens that were renewed are used at once, and no connection is kept
    /// for the hours in between.
    fn client(&self) -> Result<reqwest::Client, Unknown> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("flipside/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none());
        if let Some(ca) = &self.settings.ca {
            let key = "reboot.alerts.ca";
            let wrong = || Unknown::Content { key, path: ca.clone(), expected: "certificates in PEM" };
            let authorities = Certificate::from_pem_bundle(&read(key, ca)?).map_err(|_| wrong())?;
            if authorities.is_empty() {
                return Err(wrong());
            }
            builder = builder.tls_certs_only(authorities);
        }
        builder.build().map_err(Unknown::Setup)
    }

    fn token(&self) -> Result<Option<HeaderValue>, Unknown> {
        let Some(path) = &self.settings.token_file else { return Ok(None) };
        let key = "reboot.alerts.token_file";
        let text = read(key, path)?;
        let wrong = || Unknown::Content { key, path: path.clone(), expected: "one line with a token" };
        let token = std::str::from_utf8(&text).map_err(|_| wrong())?.trim_end();
        if token.is_empty() {
            return Err(wrong());
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Said {
    /// What it says is wrong.
    fn trouble(&self) -> String {
        match (self.error_type.as_str(), self.error.as_str()) {
            ("", error) => short(error),
            (kind, error) => short(&format!("{kind}: {error}")),
        }
    }
}

/// The samples of an answer that can be relied on.
fn samples(url: &Url, bytes: &[u8]) -> Result<Vec<Sample>, Unknown> {
    let wrong = |source| Unknown::Answer { url: plain(url), source };
    let said: Said = serde_json::from_slice(bytes).map_err(wrong)?;
    if said.status != "success" {
        let (status, message) = (short(&said.status), said.trouble());
        return Err(Unknown::NoSuccess { url: plain(url), status, message });
    }
    if let Some(warning) = said.warnings.first() {
        return Err(Unknown::Warning { url: plain(url), warning: short(warning) });
    }
    match said.data {
        Some(Kind { result_type }) if result_type != "vector" => {
            Err(Unknown::Type { found: short(&result_type) })
        }
        _ => serde_json::from_slice(bytes).map(|found: Found| found.data.result).map_err(wrong),
    }
}

/// The names of those that fire, the first of them, and how many more there are.
fn reason(firing: &BTreeMap<String, usize>) -> String {
    let name = |(name, times): (&String, &usize)| match times {
        1 => shortened(name, NAME_MAX),
        times => format!("{} ({times})", shortened(name, NAME_MAX)),
    };
    let named: Vec<_> = firing.iter().take(NAMED).map(name).collect();
    let more = firing.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("alerts: {}{more}", named.join(", "))
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Unknown> {
    std::fs::read(path).map_err(|source| Unknown::File { key, path: path.to_owned(), source })
}

fn plain(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Text of another program, on one line and not long.
fn short(text: &str) -> String {
    shortened(text, 200)
}

fn shortened(text: &str, characters: usize) -> String {
    let mut line = one_line(text);
    if let Some((end, _)) = line.char_indices().nth(characters) {
        line.truncate(end);
        line.push('…');
    }
    line
}
