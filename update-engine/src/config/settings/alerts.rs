//! The last stage of configuration: the alerts that hold a reboot.

use super::{ConfigError, Reader};
use reqwest::Url;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// `[reboot.alerts]`
#[derive(Clone, Debug)]
pub struct Alerts {
    /// The base address of a Prometheus HTTP API, ending in a slash; no user or password in it.
    pub url: Url,
    /// What is asked (PromQL), never empty. Every sample of the answer holds the reboot.
    pub query: String,
    /// Names of alerts that hold nothing.
    pub ignore: BTreeSet<String>,
    /// For the whole question.
    pub timeout: Duration,
    /// The file with a bearer token; a line end at its end does not count.
    pub token_file: Option<PathBuf>,
    /// The authorities that may sign the server's certificate; those of the system where it is not set.
    pub ca: Option<PathBuf>,
}

impl Reader<'_> {
    /// The alerts, where their server is set. One that was forgotten must not look like alerts that never fire.
    pub(super) fn alerts(&self) -> Result<Option<Alerts>, ConfigError> {
        const URL: &str = "reboot.alerts.url";
        let query: String = self.required("reboot.alerts.query")?;
        if query.trim().is_empty() {
            return Err(self.bad("reboot.alerts.query", "expected a query in PromQL, found an empty text"));
        }
        let ignore: BTreeSet<String> = self.required("reboot.alerts.ignore")?;
        if ignore.contains("") {
            return Err(self.bad("reboot.alerts.ignore", "expected names of alerts, found an empty text"));
        }
        let timeout = self.seconds("reboot.alerts.timeout_s", 1..=300)?;
        let token_file = self.optional_path("reboot.alerts.token_file")?;
        let ca = self.optional_path("reboot.alerts.ca")?;
        if self.merged.get(URL).is_none() {
            let rest = ["query", "ignore", "timeout_s", "token_file", "ca"]
                .map(|key| format!("reboot.alerts.{key}"));
            return match rest.iter().find(|key| self.merged.get(key).is_some()) {
                Some(key) => Err(self.bad(key, format!("it needs {URL}, found nothing there"))),
                None => Ok(None),
            };
        }
        let url = self.url(URL)?;
        if !url.username().is_empty() || url.password().is_some() {
            let problem =
                "expected an address without user and password: reboot.alerts.token_file holds the token";
            return Err(self.bad(URL, problem));
        }
        Ok(Some(Alerts { url, query, ignore, timeout, token_file, ca }))
    }
}
