//! Step 3, metadata: the server's folder. `init` makes it, `serve` opens it.
//!
//! ```text
//! server.db               SQLite: metadata, releases, channels, nodes, events, tokens, audit log; not there where they are
//!                         in PostgreSQL
//! payloads/<sha256>       the payload files; not used where they are in a bucket
//! online-keys/            the keys that the server signs with (0600)
//! online-keys.pub.json    their public halves, for image-tools keys init
//! admin-token             a token of role operator (0600)
//! lock                    held by the server that runs on this folder
//! ```

use crate::auth::{self, Role};
use crate::payloads::{BucketError, BucketPlace, Payloads};
use crate::store::audit::{self, Change};
use crate::store::tokens::{self, Token};
use crate::store::{DatabaseUrl, Place, Store, StoreError};
use jiff::Timestamp;
use protocol::digest::Sha256;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use trust::OnlineKeys;
use trust::key::KeyError;

/// Why a data directory cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It was made before.
    #[error("{} is a data directory already ({found} is there): expected an empty or new folder; nothing was changed", .path.display())]
    Initialised {
        /// The folder.
        path: PathBuf,
        /// What tells.
        found: &'static str,
    },
    /// It was not made yet.
    #[error(
        "{} is not a data directory: expected {missing} in it; make it with update-server init{}",
        .path.display(),
        if *.missing == DATABASE { ", or give --database-url if its data is in PostgreSQL" } else { "" }
    )]
    NotInitialised {
        /// The folder.
        path: PathBuf,
        /// What lacks.
        missing: &'static str,
    },
    /// Another server runs on it.
    #[error("another update-server runs on {}: expected to be the only one; stop it first", .0.display())]
    InUse(PathBuf),
    /// A file cannot be made or read.
    #[error("cannot use {}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its data is in SQLite, and PostgreSQL is asked for.
    #[error(
        "the data of {} is in {DATABASE} there: expected no --database-url; take another folder for data in PostgreSQL",
        .0.display()
    )]
    TwoDatabases(PathBuf),
    /// The database.
    #[error("cannot use the database {place}")]
    Store {
        /// Which.
        place: Place,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The bucket with the payloads.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The online keys.
    #[error("cannot use the server's own keys")]
    Keys(#[from] KeyError),
    /// There is no randomness for a token.
    #[error("the system gives no random bytes")]
    Randomness(#[source] getrandom::Error),
}

/// A data directory that this process alone serves from.
#[derive(Debug)]
pub struct DataDir {
    /// The database.
    pub store: Store,
    /// Where the payloads are.
    pub payloads: Payloads,
    /// The keys that the server signs with.
    pub keys: OnlineKeys,
    /// Released by the system when the process ends, however it ends.
    _lock: File,
}

pub(crate) const DATABASE: &str = "server.db";
pub(crate) const KEYS: &str = "online-keys";
pub(crate) const PUBLIC_KEYS: &str = "online-keys.pub.json";
pub(crate) const ADMIN_TOKEN: &str = "admin-token";
pub(crate) const PAYLOADS: &str = "payloads";

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    |source| DataDirError::Io { path, source }
}

pub(crate) fn make_private_folder(path: &Path) -> Result<(), DataDirError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))
}

/// Where the data of a folder is.
fn place(folder: &Path, database: Option<&DatabaseUrl>) -> Place {
    database.map_or_else(|| Place::Sqlite(folder.join(DATABASE)), |url| Place::Postgres(url.clone()))
}

pub(crate) async fn open_place(place: Place, create: bool) -> Result<Store, DataDirError> {
    match Store::open(&place, create).await {
        Ok(store) => Ok(store),
        Err(source) => Err(DataDirError::Store { place, source }),
    }
}

/// Makes a data directory: folder, database, online keys, and a first token of role operator. The database is a file in
/// the folder, or the empty one of PostgreSQL that `database` names.
///
/// # Errors
/// [`DataDirError`]; a folder that was made before is left as it is.
pub async fn init(folder: &Path, database: Option<&DatabaseUrl>, now: Timestamp) -> Result<(), DataDirError> {
    for found in [DATABASE, KEYS, PUBLIC_KEYS, ADMIN_TOKEN] {
        if folder.join(found).exists() {
            return Err(DataDirError::Initialised { path: folder.to_owned(), found });
        }
    }
    // What is most likely to fail comes before anything is made here.
    let postgres = match database {
        Some(_) => Some(open_place(place(folder, database), true).await?),
        None => None,
    };
    make_private_folder(folder)?;
    make_private_folder(&folder.join(KEYS))?;
    let keys = OnlineKeys::generate()?;
    keys.save(&folder.join(KEYS))?;
    keys.public().save(&folder.join(PUBLIC_KEYS))?;
    Payloads::in_folder(&folder.join(PAYLOADS)).map_err(io_error(&folder.join(PAYLOADS)))?;
    let store = match postgres {
        Some(store) => store,
        None => open_place(place(folder, database), true).await?,
    };
    let store_error = |source| DataDirError::Store { place: place(folder, database), source };
    let text = auth::generate().map_err(DataDirError::Randomness)?;
    create_token(&store, "admin", Role::Operator, None, &text, now).await.map_err(store_error)?;
    store.close().await;
    // Last, so that where it is, everything is.
    let path = folder.join(ADMIN_TOKEN);
    disk::durable::write_with_mode(&path, format!("{text}\n").as_bytes(), 0o600).map_err(io_error(&path))
}

/// Stores the token `text` under a name. False where the name is taken.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn create_token(
    store: &Store,
    name: &str,
    role: Role,
    expires_at: Option<Timestamp>,
    text: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let mut change = store.write().await?;
    let token = Token { name: name.to_owned(), role, created_at: now, expires_at, revoked_at: None };
    if !tokens::create(&mut change, &token, &Sha256::of(text.as_bytes())).await? {
        return Ok(false);
    }
    let entry = Change { actor: "server", action: "token.create", subject: name, detail: role.as_str() };
    audit::record(&mut change, now, entry).await?;
    change.commit().await?;
    Ok(true)
}

/// Opens the database of a data directory, beside a server that may be running on it.
///
/// # Errors
/// [`DataDirError`].
pub async fn open_store(folder: &Path, database: Option<&DatabaseUrl>) -> Result<Store, DataDirError> {
    check_made(folder, database)?;
    if !folder.join(ADMIN_TOKEN).exists() {
        return Err(DataDirError::NotInitialised { path: folder.to_owned(), missing: ADMIN_TOKEN });
    }
    open_place(place(folder, database), false).await
}

/// Whether the folder was made for this kind of database.
pub(crate) fn check_made(folder: &Path, database: Option<&DatabaseUrl>) -> Result<(), DataDirError> {
    match (database, folder.join(DATABASE).exists()) {
        (None, true) => Ok(()),
        (None, false) => Err(DataDirError::NotInitialised { path: folder.to_owned(), missing: DATABASE }),
        (Some(_), true) => Err(DataDirError::TwoDatabases(folder.to_owned())),
        (Some(_), false) if folder.join(KEYS).exists() => Ok(()),
        (Some(_), false) => Err(DataDirError::NotInitialised { path: folder.to_owned(), missing: KEYS }),
    }
}

/// A server that is moved to a bucket serves what is there, and releases may name what is not.
fn warn_of_files(folder: &Path, place: &BucketPlace) {
    let files = std::fs::read_dir(folder).map_or(0, |entries| entries.count());
    if files > 0 {
        tracing::warn!(
            "{} holds files ({files}), which are not served: copy them to {place} if releases need them, and remove them",
            folder.display()
        );
    }
}

/// What makes this process the only one that serves from a folder, until it is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, DataDirError> {
    let path = folder.join("lock");
    let lock = File::options().create(true).append(true).open(&path).map_err(io_error(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(DataDirError::Io { path, source }),
    }
}

impl DataDir {
    /// Opens a data directory to serve from it, with its payloads in `bucket` if that is given.
    ///
    /// # Errors
    /// [`DataDirError`], also where another server runs on it.
    pub async fn open(
        folder: &Path,
        database: Option<&DatabaseUrl>,
        bucket: Option<&BucketPlace>,
    ) -> Result<Self, DataDirError> {
        check_made(folder, database)?;
        let lock = lock(folder)?;
        let store = open_store(folder, database).await?;
        let path = folder.join(PAYLOADS);
        let payloads = match bucket {
            Some(place) => {
                warn_of_files(&path, place);
                Payloads::in_bucket(place).await?
            }
            None => Payloads::in_folder(&path).map_err(io_error(&path))?,
        };
        let keys = OnlineKeys::load(&folder.join(KEYS))?;
        Ok(Self { store, payloads, keys, _lock: lock })
    }
}
