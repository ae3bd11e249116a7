//! Step 4, channel: what the server keeps, in one SQLite database. All SQL of the server is below this module.
//!
//! Functions take a connection, so that a change of several tables is one transaction of the caller. The connection
//! type has one name here, and statements keep to SQL that PostgreSQL understands too: that is the preparation for a
//! second database, and all of it.

pub mod audit;
pub mod channels;
pub mod credentials;
pub mod documents;
pub mod locks;
pub mod nodes;
pub mod releases;
pub mod tokens;

use jiff::Timestamp;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use std::path::Path;
use std::time::Duration;

/// A connection to the database.
pub type Connection = sqlx::SqliteConnection;
/// A change of the database that is made whole or not at all.
pub type Transaction = sqlx::Transaction<'static, sqlx::Sqlite>;

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A statement failed.
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
    /// The tables could not be brought to this version's form.
    #[error("the database could not be migrated")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// It holds something that no version of this server writes.
    #[error("the database holds {what} that cannot be read: {found:?}; restore a backup")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// The value.
        found: String,
    },
}

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the database at `path` and brings its tables to this version's form.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be opened, or was written by a newer server. Without `create`, also where it
    /// does not exist.
    pub async fn open(path: &Path, create: bool) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            // Nothing is acknowledged that a power cut could still take back.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// [`StoreError`] where the database is gone.
    pub async fn read(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Begins a change. Changes take turns: the next one begins when this one is committed or dropped, so what one
    /// reads stays true until it is committed.
    ///
    /// # Errors
    /// [`StoreError`] where the database is gone or stays locked by another process.
    pub async fn write(&self) -> Result<Transaction, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Writes a consistent copy of the whole database to `path`, which must not exist, while the server may run.
    ///
    /// # Errors
    /// [`StoreError`] where the copy cannot be written.
    pub async fn copy_to(&self, path: &str) -> Result<(), StoreError> {
        sqlx::query("VACUUM INTO $1").bind(path).execute(&mut *self.read().await?).await?;
        Ok(())
    }

    /// Ends all connections; what is committed is on the disk already.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// Microseconds since 1970, as times are kept.
fn to_micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

fn from_micros(micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros)
        .map_err(|_| StoreError::Corrupt { what: "a time", found: micros.to_string() })
}

/// Numbers are 64 bits signed in the database. Larger ones are refused where they enter.
fn to_number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_number(number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::Corrupt { what: "a number", found: number.to_string() })
}

/// Reads back text that was written from a valid value.
fn parse<T: std::str::FromStr>(what: &'static str, text: String) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt { what, found: text })
}
