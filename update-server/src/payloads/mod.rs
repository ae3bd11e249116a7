//! Step 5, download: where payloads are kept. They enter it whole, checked and durable, and leave it by range.
//!
//! A payload is never in memory as a whole: an upload passes through a bounded queue to whoever hashes and stores it, a
//! download is read piece by piece as the client takes it.

mod folder;
pub mod range;
mod s3;

use axum::body::{Body, Bytes};
use folder::Folder;
use futures::StreamExt as _;
use protocol::digest::Sha256;
use s3::Bucket;
use std::io;
use std::ops::Range;
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

pub use s3::{AddressError, BucketError, BucketPlace, Problem};

/// Pieces of an upload that wait to be stored. A piece is what one read of the connection gave, at most about 400 KiB.
const QUEUE: usize = 4;

/// Why an upload was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The bytes are not those that the name promises.
    #[error(
        "the payload's sha256 is {found}: expected {expected}, as its name says; nothing was stored, upload it again"
    )]
    Mismatch {
        /// The name.
        expected: Sha256,
        /// What came.
        found: Sha256,
    },
    /// The connection ended early.
    #[error("the upload of {expected} broke off after {received} bytes; nothing was stored, upload it again")]
    BrokenOff {
        /// The name.
        expected: Sha256,
        /// How much came.
        received: u64,
    },
    /// It is longer than the store takes.
    #[error(
        "the payload has more than {limit} bytes: expected at most that, which is what S3 takes; nothing was stored"
    )]
    TooLarge {
        /// What it takes, in bytes.
        limit: u64,
    },
    /// It cannot be stored.
    #[error("the payload cannot be stored")]
    Store(#[from] PayloadError),
}

impl From<BucketError> for UploadError {
    fn from(error: BucketError) -> Self {
        Self::Store(error.into())
    }
}

impl From<io::Error> for UploadError {
    fn from(error: io::Error) -> Self {
        Self::Store(PayloadError::Io(error))
    }
}

/// Why payloads cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The folder, or its disk: it failed or is full.
    #[error("the payload folder cannot be used")]
    Io(#[from] io::Error),
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Where the payloads are, each named by its digest.
#[derive(Clone, Debug)]
pub struct Payloads {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Folder(Folder),
    Bucket(Bucket),
}

/// A payload that is there.
#[derive(Debug)]
pub struct Payload {
    /// Its length in bytes.
    pub len: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(tokio::fs::File),
    Object(Bucket, Sha256),
}

impl Payloads {
    /// Payloads as files of a folder, which is made if it is not there. What uploads left that a crash interrupted is
    /// removed.
    ///
    /// # Errors
    /// Where the folder cannot be made or read.
    pub fn in_folder(path: &Path) -> io::Result<Self> {
        Ok(Self { kind: Kind::Folder(Folder::open(path)?) })
    }

    /// Payloads as objects of a bucket, once it was seen to be usable.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn in_bucket(place: &BucketPlace) -> Result<Self, BucketError> {
        Ok(Self { kind: Kind::Bucket(Bucket::open(place).await?) })
    }

    /// Whether payloads can be served now. A bucket is asked every few seconds at most.
    ///
    /// # Errors
    /// [`PayloadError`], if not.
    pub async fn ready(&self) -> Result<(), PayloadError> {
        match &self.kind {
            Kind::Folder(folder) => Ok(folder.ready().await?),
            Kind::Bucket(bucket) => Ok(bucket.ready().await?),
        }
    }

    /// Stores a body as the payload `digest`. When this returns the length, in bytes, the payload is durable under its
    /// name; on any error there is nothing under that name that was not there before.
    ///
    /// # Errors
    /// [`UploadError`].
    pub async fn receive(&self, digest: Sha256, body: Body) -> Result<u64, UploadError> {
        let (sender, queue) = mpsc::channel::<Bytes>(QUEUE);
        let (finish, finished) = oneshot::channel::<()>();
        // Not here: when the client goes away, this is dropped at once, and the writer still has to clean up.
        let writer = match self.kind.clone() {
            Kind::Folder(folder) => {
                tokio::task::spawn_blocking(move || folder.write(digest, queue, finished))
            }
            Kind::Bucket(bucket) => tokio::spawn(bucket.write(digest, queue, finished)),
        };
        let mut stream = body.into_data_stream();
        let whole = loop {
            match stream.next().await {
                None => break true,
                Some(Err(_)) => break false,
                // The writer stops taking pieces only when it failed, and says why below. The rest is read and
                // dropped, because a client that is still sending does not see an answer.
                Some(Ok(piece)) => drop(sender.send(piece).await),
            }
        };
        if whole {
            // The receiver is gone only if the writer failed, which it says itself.
            let _ = finish.send(());
        }
        drop(sender);
        writer.await.map_err(io::Error::other)?
    }

    /// Finds a payload to read it.
    ///
    /// # Errors
    /// [`PayloadError`] where it is there and cannot be read, or that is not known.
    pub async fn read(&self, digest: &Sha256) -> Result<Option<Payload>, PayloadError> {
        match &self.kind {
            Kind::Folder(folder) => {
                let found = folder.read(digest).await?;
                Ok(found.map(|(file, len)| Payload { len, source: Source::File(file) }))
            }
            Kind::Bucket(bucket) => {
                let source = Source::Object(bucket.clone(), *digest);
                Ok(bucket.len(digest).await?.map(|len| Payload { len, source }))
            }
        }
    }

    /// Whether the payload is there with `size` bytes.
    ///
    /// # Errors
    /// [`PayloadError`] where that is not known.
    pub async fn holds(&self, digest: &Sha256, size: u64) -> Result<bool, PayloadError> {
        match &self.kind {
            Kind::Folder(folder) => Ok(folder.holds(digest, size).await?),
            Kind::Bucket(bucket) => Ok(bucket.holds(digest, size).await?),
        }
    }
}

impl Payload {
    /// A part of it as a body that is read while it is sent.
    ///
    /// # Errors
    /// [`PayloadError`] where it cannot be read.
    pub async fn body(self, part: Range<u64>) -> Result<Body, PayloadError> {
        match self.source {
            Source::File(file) => Ok(folder::body(file, &part).await?),
            Source::Object(bucket, digest) => Ok(bucket.body(digest, part)),
        }
    }
}
