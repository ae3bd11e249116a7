//! Step 5, download: the body of one answer, read against the clock.

use super::NetworkError;
use crate::config::settings::Download;
use bytes::Bytes;
use reqwest::{Response, Url};
use std::time::Duration;
use tokio::time::Instant;

/// A body that stalls is an error. Only the time spent waiting for the network counts: a slow disk is not a slow
/// server.
#[derive(Debug)]
pub struct Body {
    url: String,
    response: Response,
    received: u64,
    window: Duration,
    window_bytes: u64,
    waited: Duration,
    got: u64,
}

impl Body {
    pub(super) fn new(url: &Url, response: Response, limits: &Download) -> Self {
        Self {
            url: url.to_string(),
            response,
            received: 0,
            window: limits.stall_timeout,
            window_bytes: least_bytes(limits),
            waited: Duration::ZERO,
            got: 0,
        }
    }

    /// The answer's status and headers.
    #[must_use]
    pub const fn response(&self) -> &Response {
        &self.response
    }

    /// The error for a body that ends before all of it came.
    #[must_use]
    pub fn ended_early(&self) -> NetworkError {
        NetworkError::Broken { url: self.url.clone(), bytes: self.received, source: None }
    }

    /// The next bytes, never empty; `None` at the end.
    ///
    /// # Errors
    /// [`NetworkError::Broken`] where the connection fails, [`NetworkError::Stalled`] where too little comes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, NetworkError> {
        loop {
            let before = Instant::now();
            let left = self.window.saturating_sub(self.waited);
            let Ok(chunk) = tokio::time::timeout(left, self.response.chunk()).await else {
                if self.got < self.window_bytes {
                    return Err(NetworkError::Stalled {
                        url: self.url.clone(),
                        bytes: self.got,
                        after: self.window,
                    });
                }
                (self.waited, self.got) = (Duration::ZERO, 0);
                continue;
            };
            self.waited += before.elapsed();
            match chunk {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => {
                    self.received += bytes.len() as u64;
                    self.got += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Ok(None) => return Ok(None),
                Err(source) => {
                    return Err(NetworkError::Broken {
                        url: self.url.clone(),
                        bytes: self.received,
                        source: Some(source.without_url()),
                    });
                }
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`NetworkError::TooLong`] as soon as it is longer than `max_bytes`, and as [`Self::next`].
    pub async fn collect(mut self, max_bytes: u64) -> Result<Vec<u8>, NetworkError> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            if self.received > max_bytes {
                return Err(NetworkError::TooLong { url: self.url, limit: max_bytes });
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

/// How much must come in one window of time.
fn least_bytes(limits: &Download) -> u64 {
    let millis = u64::try_from(limits.stall_timeout.as_millis()).unwrap_or(u64::MAX);
    (limits.low_speed.saturating_mul(millis) / 1000).max(1)
}
