//! Step 5, download: how long to wait before asking again.

use super::NetworkError;
use crate::config::settings::Download;
use crate::error::chain;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::time::Duration;

/// Pauses that double, each halved at random so that nodes that failed together do not return together.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Nothing has failed yet.
    #[must_use]
    pub const fn new(limits: &Download) -> Self {
        Self { initial: limits.backoff_initial, max: limits.backoff_max, failures: 0 }
    }

    /// How often in a row it failed.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Something got through: the next pause is the first one again.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and waits: what the server asks for, or the next pause.
    pub async fn pause(&mut self, error: &NetworkError) {
        self.failures += 1;
        let pause = error.retry_after().unwrap_or_else(|| self.next());
        tracing::warn!(
            failures = self.failures,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "trying again after: {}",
            chain(error)
        );
        tokio::time::sleep(pause).await;
    }

    fn next(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(20);
        let full = self.initial.saturating_mul(1 << doublings).min(self.max);
        full / 2 + (full / 2).mul_f64(random_fraction())
    }
}

/// A number from 0 to 1. Where the system has no randomness, the middle: pauses need no secrets.
#[must_use]
pub fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

/// What a Retry-After header asks for: seconds, or a date.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO))
}
