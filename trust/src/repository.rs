//! Step 5, download: what stands between the library and a transport: bounds on length, and a memory of which file
//! was asked for last, so that an error can name it.

use crate::TrustError;
use sigstore_tuf::Repository;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

type FetchFuture<'a> = Pin<Box<dyn Future<Output = sigstore_tuf::Result<Option<Vec<u8>>>> + Send + 'a>>;

/// A file that is longer than asked for.
#[derive(Debug, thiserror::Error)]
#[error("{name} is longer than {limit} bytes")]
struct Oversize {
    name: String,
    limit: u64,
}

/// The error that a transport returns when a file is longer than the `max_length` it was given: it stops reading
/// there. The client turns it into [`TrustError::Oversize`].
#[must_use]
pub fn oversize(name: &str, limit: u64) -> sigstore_tuf::Error {
    let source = Oversize { name: name.to_owned(), limit };
    sigstore_tuf::Error::transport_with_source("the file is too long", source)
}

/// What was asked for last, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    name: String,
    missing: bool,
}

/// A transport with its bounds checked again here: a transport that forgets them is not trusted with it.
pub(crate) struct Bounded {
    inner: Arc<dyn Repository>,
    asked: Arc<Mutex<Asked>>,
}

impl Bounded {
    pub(crate) fn new(inner: Arc<dyn Repository>) -> (Self, Arc<Mutex<Asked>>) {
        let asked = Arc::new(Mutex::new(Asked::default()));
        (Self { inner, asked: Arc::clone(&asked) }, asked)
    }

    async fn check(
        &self,
        name: &str,
        limit: u64,
        fetch: FetchFuture<'_>,
    ) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) =
            Asked { name: name.to_owned(), missing: false };
        let answer = fetch.await?;
        match &answer {
            Some(bytes) if bytes.len() as u64 > limit => return Err(oversize(name, limit)),
            Some(_) => {}
            None => self.asked.lock().unwrap_or_else(PoisonError::into_inner).missing = true,
        }
        Ok(answer)
    }
}

impl Repository for Bounded {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(self.check(name, max_length, self.inner.fetch_metadata(name, max_length)))
    }

    fn fetch_target<'a>(&'a self, path: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(self.check(path, max_length, self.inner.fetch_target(path, max_length)))
    }
}

/// Translates an error of the library that came up while `asked` was the last file.
pub(crate) fn translate(
    error: sigstore_tuf::Error,
    asked: &Mutex<Asked>,
    now: jiff::Timestamp,
) -> TrustError {
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    if let sigstore_tuf::Error::Transport { source, .. } = &error {
        if let Some(oversize) = source.as_ref().and_then(|source| source.downcast_ref::<Oversize>()) {
            return TrustError::Oversize { name: oversize.name.clone(), limit: oversize.limit };
        }
        if source.is_none() && asked.missing {
            return TrustError::Missing { name: asked.name.clone() };
        }
    }
    let name = if asked.name.is_empty() { "the trusted metadata" } else { &asked.name };
    TrustError::from_library(error, name, now)
}
