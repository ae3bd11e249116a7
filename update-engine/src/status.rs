//! Steps 5 to 12 as others see them: the status document, written by the engine and read by `updatectl`.

use crate::state::StateFolder;
use protocol::status::{SCHEMA, StateName, Status};
use std::io;
use std::path::{Path, PathBuf};

/// Where `updatectl` learns what the engine is doing. The state folder serves today; the bus can take its place.
pub trait StatusSource {
    /// The present status.
    ///
    /// # Errors
    /// [`StatusError`]
    fn status(&self) -> Result<Status, StatusError>;
}

/// A status that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// There is none.
    #[error("no status in {}: no engine has run with this state folder yet (--state-dir)", dir.display())]
    Missing {
        /// The state folder.
        dir: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a status that this program knows.
    #[error("{} is not a status of schema {SCHEMA}: it is written anew when the engine runs", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the parser found.
        #[source]
        source: Option<serde_json::Error>,
    },
}

impl StatusSource for StateFolder {
    fn status(&self) -> Result<Status, StatusError> {
        let path = self.status_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StatusError::Missing { dir: self.path().to_owned() });
            }
            Err(source) => return Err(StatusError::Read { path, source }),
        };
        let mut status: Status = match serde_json::from_slice(&bytes) {
            Ok(status) => status,
            Err(source) => return Err(StatusError::Invalid { path, source: Some(source) }),
        };
        if status.schema != SCHEMA {
            return Err(StatusError::Invalid { path, source: None });
        }
        if at_work(status.state) && !self.has_engine() {
            status.reason = format!("{} (when the engine last ran; it is not running now)", status.reason);
        }
        Ok(status)
    }
}

const fn at_work(state: StateName) -> bool {
    matches!(
        state,
        StateName::Checking
            | StateName::Available
            | StateName::Downloading
            | StateName::Verifying
            | StateName::Confirming
    )
}

/// Replaces the status file. It is not made durable: after a power cut it is written anew, and a sync a second would
/// cost the workload next door more than it is worth.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(path: &Path, status: &Status) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut bytes = serde_json::to_vec_pretty(status)?;
    bytes.push(b'\n');
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}
