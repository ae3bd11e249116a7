//! Step 4, channel: a data directory from a backup of its database.
//!
//! What is copied is looked at as a whole before it gets its name: a backup that was damaged since is found now and not in a
//! year. Payloads are not in it; which of them lack is said.

use crate::auth::{self, Role};
use crate::data_dir::{self, ADMIN_TOKEN, DATABASE, DataDirError, KEYS, PAYLOADS, PUBLIC_KEYS, io_error};
use crate::store::{Place, Store, StoreError, releases};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::version::Version;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use trust::OnlineKeys;

/// What the database is called until it was looked at.
const UNCHECKED: &str = ".restoring.db";
/// What SQLite adds to its file's name.
const BESIDE: [&str; 3] = ["", "-wal", "-shm"];

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The backup is not what it should be.
    #[error("{} is not a backup to restore", .path.display())]
    Backup {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The backup is a part of a database only.
    #[error(
        "{} has changes in {} beside it: expected a file that update-server backup wrote",
        .path.display(), .beside.display()
    )]
    Incomplete {
        /// Which file.
        path: PathBuf,
        /// What is beside it.
        beside: PathBuf,
    },
}

/// A payload that a release names and the folder does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name in `payloads/`.
    pub payload: Sha256,
    /// Its length, in bytes.
    pub bytes: u64,
    /// The release.
    pub version: Version,
}

/// What was made.
#[derive(Debug)]
pub struct Restored {
    /// The name of the operator's token in `admin-token`.
    pub token: String,
    /// Whether the online keys are there.
    pub has_keys: bool,
    /// The payloads that are not.
    pub missing: Vec<Missing>,
}

/// Makes a data directory from a backup, with the keys of another folder where that is given, and a new token of role
/// operator. Keys and payloads may be in the folder before.
///
/// # Errors
/// [`RestoreError`]; then the folder is no data directory.
pub async fn restore(
    folder: &Path,
    from: &Path,
    keys: Option<&Path>,
    now: Timestamp,
) -> Result<Restored, RestoreError> {
    let taken = |found| DataDirError::Initialised { path: folder.to_owned(), found };
    for found in [DATABASE, ADMIN_TOKEN] {
        if folder.join(found).exists() {
            return Err(taken(found).into());
        }
    }
    if keys.is_some() && folder.join(KEYS).exists() {
        return Err(taken(KEYS).into());
    }
    let keys = keys.map(OnlineKeys::load).transpose().map_err(DataDirError::from)?;
    for suffix in BESIDE.into_iter().skip(1) {
        let beside = with_suffix(from, suffix);
        if std::fs::metadata(&beside).is_ok_and(|file| file.len() > 0) {
            return Err(RestoreError::Incomplete { path: from.to_owned(), beside });
        }
    }
    let is_new = !folder.exists();
    data_dir::make_private_folder(folder)?;
    let unchecked = folder.join(UNCHECKED);
    let made = bring(from, &unchecked, &folder.join(PAYLOADS), now).await;
    let (token, text, missing) = match made {
        Ok(made) => made,
        Err(error) => {
            // What is left is of no use; that it cannot be removed is no worse than what is said.
            BESIDE.iter().for_each(|suffix| drop(std::fs::remove_file(with_suffix(&unchecked, suffix))));
            if is_new {
                drop(std::fs::remove_dir(folder));
            }
            return Err(error);
        }
    };
    if let Some(keys) = keys {
        data_dir::make_private_folder(&folder.join(KEYS))?;
        keys.save(&folder.join(KEYS)).map_err(DataDirError::from)?;
        keys.public().save(&folder.join(PUBLIC_KEYS)).map_err(DataDirError::from)?;
    }
    let database = folder.join(DATABASE);
    std::fs::rename(&unchecked, &database).map_err(io_error(&database))?;
    let path = folder.join(ADMIN_TOKEN);
    disk::durable::write_with_mode(&path, format!("{text}\n").as_bytes(), 0o600).map_err(io_error(&path))?;
    Ok(Restored { token, has_keys: folder.join(KEYS).exists(), missing })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Copies the backup to `to`, looks at it, brings it to this version's form, and adds a token: its name and its text.
async fn bring(
    from: &Path,
    to: &Path,
    payloads: &Path,
    now: Timestamp,
) -> Result<(String, String, Vec<Missing>), RestoreError> {
    copy(from, to)?;
    let failed = |source| RestoreError::Backup { path: from.to_owned(), source };
    Store::check_copy(to).await.map_err(failed)?;
    let store = Store::open(&Place::Sqlite(to.to_owned()), false).await.map_err(failed)?;
    let missing = missing(&store, payloads).await.map_err(failed)?;
    let text = auth::generate().map_err(DataDirError::Randomness)?;
    let name = format!("restored-{}", now.strftime("%Y%m%dT%H%M%S%fZ"));
    let created = data_dir::create_token(&store, &name, Role::Operator, None, &text, now).await;
    if !created.map_err(failed)? {
        return Err(failed(StoreError::Corrupt { what: "a token of the future", found: name }));
    }
    // With this the last change leaves the file beside it.
    store.close().await;
    File::open(to).and_then(|file| file.sync_all()).map_err(io_error(to))?;
    Ok((name, text, missing))
}

fn copy(from: &Path, to: &Path) -> Result<(), DataDirError> {
    let mut source = File::open(from).map_err(io_error(from))?;
    // Of an interrupted run.
    drop(std::fs::remove_file(to));
    let mut target =
        File::options().write(true).create_new(true).mode(0o600).open(to).map_err(io_error(to))?;
    io::copy(&mut source, &mut target).map_err(io_error(to))?;
    target.sync_all().map_err(io_error(to))
}

async fn missing(store: &Store, folder: &Path) -> Result<Vec<Missing>, StoreError> {
    let mut missing = Vec::new();
    for release in releases::list(&mut *store.read().await?).await? {
        for payload in &release.manifest.payloads {
            let file = std::fs::metadata(folder.join(payload.sha256.to_string()));
            if !file.is_ok_and(|file| file.is_file() && file.len() == payload.size) {
                let version = release.manifest.version.clone();
                missing.push(Missing { payload: payload.sha256, bytes: payload.size, version });
            }
        }
    }
    Ok(missing)
}
