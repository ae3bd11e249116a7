//! Step 4, channel: a data directory's data, moved from SQLite to PostgreSQL.
//!
//! The SQLite file is locked against changes from before the first row is read until it has another name, so that nobody can
//! write what would be left behind. PostgreSQL gets everything in one change. Killed before that is committed, both are as they
//! were; killed after it and before the file has its new name, the same command compares the two and finishes.

use crate::data_dir::{self, DATABASE, DataDirError, io_error};
use crate::store::{DatabaseUrl, MovedTable, Place, Store, StoreError, TransferError};
use std::path::{Path, PathBuf};

/// What the SQLite file is called once its data is elsewhere.
const MOVED: &str = "server.db.migrated";
/// What SQLite adds to its file's name.
const BESIDE: [&str; 3] = ["", "-wal", "-shm"];

/// Why a data directory was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The folder or its database.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The rows.
    #[error("nothing was moved to {place}")]
    Transfer {
        /// Where to.
        place: Place,
        /// Why not.
        #[source]
        source: TransferError,
    },
    /// A file is in the way.
    #[error("{} is there already: expected that no data was moved from this folder before; move it away first", .0.display())]
    InTheWay(PathBuf),
}

/// What was moved.
#[derive(Debug)]
pub struct Migrated {
    /// The tables.
    pub tables: Vec<MovedTable>,
    /// Whether the rows were there already, from a run that was interrupted at its very end.
    pub before: bool,
    /// What the SQLite file is called now.
    pub kept: PathBuf,
}

/// Moves the data of a folder to an empty PostgreSQL database.
///
/// # Errors
/// [`MigrateError`]; then the server's data is where it was.
pub async fn to_postgres(folder: &Path, to: &DatabaseUrl) -> Result<Migrated, MigrateError> {
    data_dir::check_made(folder, None)?;
    let _lock = data_dir::lock(folder)?;
    let kept = folder.join(MOVED);
    if kept.exists() {
        return Err(MigrateError::InTheWay(kept));
    }
    let sqlite = data_dir::open_store(folder, None).await?;
    let place = Place::Postgres(to.clone());
    let (postgres, empty) = match Store::open(&place, true).await {
        Ok(store) => (store, true),
        Err(StoreError::Taken) => (data_dir::open_place(place.clone(), false).await?, false),
        Err(source) => return Err(DataDirError::Store { place, source }.into()),
    };
    let file_error =
        |source: StoreError| DataDirError::Store { place: Place::Sqlite(folder.join(DATABASE)), source };
    sqlite.settle().await.map_err(file_error)?;
    let mut from = sqlite.write().await.map_err(file_error)?;
    let done = if empty {
        Store::transfer(&mut from, &postgres).await
    } else {
        let taken = |error| match error {
            TransferError::Differs { .. } => TransferError::Store(StoreError::Taken),
            error => error,
        };
        Store::was_transferred(&mut from, &postgres).await.map_err(taken)
    };
    let tables = done.map_err(|source| MigrateError::Transfer { place, source })?;
    // Before anybody else may write to it.
    set_aside(folder)?;
    drop(from);
    sqlite.close().await;
    postgres.close().await;
    Ok(Migrated { tables, before: !empty, kept })
}

/// Gives the SQLite file a name that no server opens. What is beside it goes with it: it may hold the last changes.
fn set_aside(folder: &Path) -> Result<(), DataDirError> {
    // The main file first: from then on the data is in one place only, PostgreSQL. Beside it is nothing that it lacks,
    // unless somebody was reading it before.
    for suffix in BESIDE {
        let (from, to) =
            (folder.join(format!("{DATABASE}{suffix}")), folder.join(format!("{MOVED}{suffix}")));
        if from.exists() {
            std::fs::rename(&from, &to).map_err(io_error(&from))?;
        }
    }
    disk::durable::sync_dir(folder).map_err(io_error(folder))
}
