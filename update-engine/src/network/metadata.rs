//! Step 5, download: the server's TUF repository, as the trust module asks for it.

use super::Client;
use crate::network::NetworkError;
use std::pin::Pin;
use trust::Repository;

type FetchFuture<'a> = Pin<Box<dyn Future<Output = sigstore_tuf::Result<Option<Vec<u8>>>> + Send + 'a>>;

/// The server's metadata and target files.
#[derive(Debug)]
pub struct MetadataSource(Client);

impl MetadataSource {
    /// The repository of a client's server.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self(client)
    }
}

fn transport(name: &str, error: NetworkError) -> sigstore_tuf::Error {
    match error {
        NetworkError::TooLong { limit, .. } => trust::oversize(name, limit),
        error => sigstore_tuf::Error::transport_with_source("no answer from the update server", error),
    }
}

impl Repository for MetadataSource {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move {
            self.0.get(&format!("v1/metadata/{name}"), max_length).await.map_err(|e| transport(name, e))
        })
    }

    fn fetch_target<'a>(&'a self, path: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move {
            self.0.get(&format!("v1/targets/{path}"), max_length).await.map_err(|e| transport(path, e))
        })
    }
}
