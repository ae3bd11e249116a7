//! Step 5, download: the payload folder. Files enter it whole, checked and durable, and leave it by range.
//!
//! A payload is never in memory as a whole: an upload passes through a bounded queue to a thread that hashes and
//! writes, a download is read piece by piece as the client takes it.

use axum::body::{Body, Bytes};
use futures::StreamExt as _;
use protocol::digest::{Hasher, Sha256};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

/// What an upload is called until it is whole.
const UNFINISHED: &str = ".upload-";
/// Pieces of an upload that wait for the disk. A piece is what one read of the connection gave, at most about 400 KiB.
const QUEUE: usize = 4;
/// How much of a file is read for a download at once, in bytes.
const PIECE: usize = 128 << 10;

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
    /// The disk failed or is full.
    #[error("the payload cannot be stored")]
    Io(#[from] io::Error),
}

/// The payload folder: each file is named by its digest.
#[derive(Clone, Debug)]
pub struct PayloadFolder {
    folder: PathBuf,
}

impl PayloadFolder {
    /// Opens the folder, makes it if it is not there, and removes what uploads left that a crash interrupted.
    ///
    /// # Errors
    /// Where the folder cannot be made or read.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// The name is a digest and nothing else, so it cannot lead out of the folder.
    fn path(&self, digest: &Sha256) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    /// Stores a body as the payload `digest`. When this returns the length, in bytes, the file is on the disk under
    /// its name; on any error there is nothing under that name that was not there before.
    ///
    /// # Errors
    /// [`UploadError`].
    pub async fn receive(&self, digest: Sha256, body: Body) -> Result<u64, UploadError> {
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let folder = self.clone();
        let writer = tokio::task::spawn_blocking(move || folder.write(digest, receiver, finished));
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

    /// Runs on a thread of its own. `finished` is resolved before the queue ends if the body came whole.
    fn write(
        &self,
        expected: Sha256,
        mut queue: mpsc::Receiver<Bytes>,
        mut finished: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<u64, UploadError> {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
        let mut hasher = Hasher::new();
        let mut received = 0;
        while let Some(piece) = queue.blocking_recv() {
            hasher.update(&piece);
            file.write_all(&piece)?;
            received += piece.len() as u64;
        }
        if finished.try_recv().is_err() {
            return Err(UploadError::BrokenOff { expected, received });
        }
        let found = hasher.finish();
        if found != expected {
            return Err(UploadError::Mismatch { expected, found });
        }
        file.as_file().sync_all()?;
        file.persist(self.path(&expected)).map_err(|error| error.error)?;
        disk::durable::sync_dir(&self.folder)?;
        Ok(received)
    }

    /// Opens a payload for reading and says its length in bytes.
    ///
    /// # Errors
    /// Where it is there and cannot be read.
    pub async fn read(&self, digest: &Sha256) -> io::Result<Option<(tokio::fs::File, u64)>> {
        match tokio::fs::File::open(self.path(digest)).await {
            Ok(file) => {
                let len = file.metadata().await?.len();
                Ok(Some((file, len)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the payload is there with `size` bytes.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub async fn holds(&self, digest: &Sha256, size: u64) -> io::Result<bool> {
        match tokio::fs::metadata(self.path(digest)).await {
            Ok(found) => Ok(found.is_file() && found.len() == size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A part of a file as a body that is read while it is sent.
///
/// # Errors
/// Where the file cannot be positioned.
pub async fn body(mut file: tokio::fs::File, part: &Range<u64>) -> io::Result<Body> {
    file.seek(io::SeekFrom::Start(part.start)).await?;
    file.set_max_buf_size(PIECE);
    let reader = file.take(part.end - part.start);
    Ok(Body::from_stream(tokio_util::io::ReaderStream::with_capacity(reader, PIECE)))
}

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The whole file: no range, several ranges, or one that is not written as RFC 9110 section 14 says, which is to
    /// be ignored.
    Whole,
    /// One part.
    Part(Range<u64>),
    /// A part that the file does not have.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `len` bytes.
#[must_use]
pub fn wanted(header: Option<&str>, len: u64) -> Wanted {
    fn number(text: &str) -> Option<u64> {
        // A number too large to hold is still a valid position, beyond every file.
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().unwrap_or(u64::MAX))
    }
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let part = match (first, last) {
        ("", last) => match number(last) {
            Some(suffix) => len.saturating_sub(suffix)..len,
            None => return Wanted::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => first..len,
            None => return Wanted::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(len),
            _ => return Wanted::Whole,
        },
    };
    if part.start < part.end { Wanted::Part(part) } else { Wanted::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |range| Wanted::Part(range);
        let cases = [
            (None, Wanted::Whole),
            (Some("bytes=0-"), part(0..100)),
            (Some("bytes=0-0"), part(0..1)),
            (Some("bytes=10-19"), part(10..20)),
            (Some("bytes=90-200"), part(90..100)),
            (Some("bytes=-10"), part(90..100)),
            (Some("bytes=-200"), part(0..100)),
            (Some("bytes=99-"), part(99..100)),
            (Some("bytes=100-"), Wanted::Unsatisfiable),
            (Some("bytes=100-200"), Wanted::Unsatisfiable),
            (Some("bytes=-0"), Wanted::Unsatisfiable),
            (Some("bytes=18446744073709551615-18446744073709551615"), Wanted::Unsatisfiable),
            (Some("bytes=99999999999999999999999-"), Wanted::Unsatisfiable),
            (Some("bytes=5-99999999999999999999999"), part(5..100)),
            (Some("bytes=20-10"), Wanted::Whole),
            (Some("bytes=0-1,5-6"), Wanted::Whole),
            (Some("bytes=+1-2"), Wanted::Whole),
            (Some("bytes="), Wanted::Whole),
            (Some("bytes=-"), Wanted::Whole),
            (Some("chunks=0-1"), Wanted::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(wanted(header, 100), expected, "{header:?}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }
}
