//! Step 5, download: payloads as files of a folder. Files enter it whole, checked and durable.

use super::UploadError;
use axum::body::{Body, Bytes};
use protocol::digest::{Hasher, Sha256};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{mpsc, oneshot};

/// What an upload is called until it is whole.
const UNFINISHED: &str = ".upload-";
/// How much of a file is read for a download at once, in bytes.
const PIECE: usize = 128 << 10;

/// The payload folder: each file is named by its digest.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder, makes it if it is not there, and removes what uploads left that a crash interrupted.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The name is a digest and nothing else, so it cannot lead out of the folder.
    fn file(&self, digest: &Sha256) -> PathBuf {
        self.path.join(digest.to_string())
    }

    /// Stores what comes through the queue, on a thread of its own. `finished` is resolved before the queue ends if the
    /// body came whole.
    pub(super) fn write(
        &self,
        expected: Sha256,
        mut queue: mpsc::Receiver<Bytes>,
        mut finished: oneshot::Receiver<()>,
    ) -> Result<u64, UploadError> {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.path)?;
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
        file.persist(self.file(&expected)).map_err(|error| error.error)?;
        disk::durable::sync_dir(&self.path)?;
        Ok(received)
    }

    /// Opens a payload for reading and says its length in bytes.
    pub(super) async fn read(&self, digest: &Sha256) -> io::Result<Option<(File, u64)>> {
        match File::open(self.file(digest)).await {
            Ok(file) => {
                let len = file.metadata().await?.len();
                Ok(Some((file, len)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the folder is there.
    pub(super) async fn ready(&self) -> io::Result<()> {
        let found = tokio::fs::metadata(&self.path).await?;
        if found.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
    }

    /// Whether the payload is there with `size` bytes.
    pub(super) async fn holds(&self, digest: &Sha256, size: u64) -> io::Result<bool> {
        match tokio::fs::metadata(self.file(digest)).await {
            Ok(found) => Ok(found.is_file() && found.len() == size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A part of a file as a body that is read while it is sent.
pub(super) async fn body(mut file: File, part: &Range<u64>) -> io::Result<Body> {
    file.seek(io::SeekFrom::Start(part.start)).await?;
    file.set_max_buf_size(PIECE);
    let reader = file.take(part.end - part.start);
    Ok(Body::from_stream(tokio_util::io::ReaderStream::with_capacity(reader, PIECE)))
}
