//! Steps 5 to 12: one copy of the record on the disk.
//!
//! `{"schema": 1, "saved": N, "sha256": "…", "record": {…}}`: `saved` counts up, so that the newer of two copies is
//! known; `sha256` is over the record as compact JSON, so that a flipped bit is noticed even where it leaves valid
//! JSON behind. Files that a power cut could tear do not arise: each is written beside its place and renamed.

use super::StateError;
use machine::Record;
use protocol::digest::Sha256;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};

/// The copies, in the order in which they are written.
pub const COPIES: [&str; 2] = ["state.json", "state.backup.json"];
/// The schema number of the envelope.
const SCHEMA: u32 = 1;

/// A copy of the record, as found.
#[derive(Debug)]
pub enum Copy {
    /// There is none.
    Missing,
    /// It can be used.
    Good {
        /// Which save it is from.
        saved: u64,
        /// The record.
        record: Box<Record>,
    },
    /// It is there and cannot be used. With the reason.
    Damaged(String),
}

/// Reads one copy.
///
/// # Errors
/// [`StateError::Newer`] for one that a newer engine wrote; [`StateError::Io`] where the file cannot be read though it
/// is there, because then nothing is known about it.
pub fn read_copy(path: &Path) -> Result<Copy, StateError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Missing),
        // A medium error loses this copy, not the other one.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            return Ok(Copy::Damaged(error.to_string()));
        }
        Err(source) => return Err(StateError::Io { action: "read", path: path.to_owned(), source }),
    };
    let Ok(mut envelope) = serde_json::from_slice::<Value>(&bytes) else {
        return Ok(Copy::Damaged(format!("not JSON ({} bytes)", bytes.len())));
    };
    let record = envelope["record"].take();
    let saved = envelope["saved"].as_u64();
    let digest = Sha256::of(record.to_string().as_bytes()).to_string();
    let (Some(saved), Some(schema), true) =
        (saved, envelope["schema"].as_u64(), envelope["sha256"].as_str() == Some(&digest))
    else {
        return Ok(Copy::Damaged("its checksum does not match".to_owned()));
    };
    let found =
        if schema == u64::from(SCHEMA) { record["schema"].as_u64().unwrap_or_default() } else { schema };
    match serde_json::from_value::<Record>(record) {
        Ok(record) if record.is_known() && schema == u64::from(SCHEMA) => {
            Ok(Copy::Good { saved, record: Box::new(record) })
        }
        _ if found != u64::from(SCHEMA) => {
            Err(StateError::Newer { path: path.to_owned(), expected: SCHEMA, found })
        }
        Ok(_) => Ok(Copy::Damaged("its schema is unknown".to_owned())),
        Err(error) => Ok(Copy::Damaged(error.to_string())),
    }
}

/// Writes one copy durably.
///
/// # Errors
/// As [`disk::durable::write`].
pub fn write_copy(path: &Path, saved: u64, record: &Record) -> io::Result<()> {
    let record = serde_json::to_value(record)?;
    let sha256 = Sha256::of(record.to_string().as_bytes());
    let envelope = json!({ "schema": SCHEMA, "saved": saved, "sha256": sha256, "record": record });
    let mut bytes = serde_json::to_vec_pretty(&envelope)?;
    bytes.push(b'\n');
    disk::durable::write_with_mode(path, &bytes, 0o644)
}

/// Moves a file that cannot be used to a name that no earlier one has.
///
/// # Errors
/// [`StateError::Io`]
pub fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside =
        (1_u32..).map(|n| path.with_file_name(format!("{name}.unreadable-{n}"))).find(|p| !p.exists());
    let aside = aside.unwrap_or_else(|| path.with_file_name(format!("{name}.unreadable")));
    std::fs::rename(path, &aside)
        .and_then(|()| disk::durable::sync_dir(path.parent().unwrap_or(Path::new("."))))
        .map_err(|source| StateError::Io { action: "set aside", path: path.to_owned(), source })?;
    Ok(aside)
}
