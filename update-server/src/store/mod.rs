//! Step 4, channel: what the server keeps, in SQLite or in PostgreSQL. All SQL of the server is below this module.
//!
//! Functions take a connection, so that a change of several tables is one transaction of the caller. Statements are the
//! same for both databases (docs/adr/0015-postgresql.md); what differs is in `place` and in the migrations.

pub mod audit;
mod catalogue;
pub mod channels;
pub mod credentials;
pub mod documents;
pub mod enrolment;
pub mod figures;
pub mod let_go;
pub mod locks;
pub mod nodes;
pub mod old;
mod place;
pub mod releases;
pub mod rollouts;
pub mod standing;
pub mod stats;
pub mod tokens;
mod transfer;
pub mod webhooks;

pub use place::{DatabaseUrl, Place};
pub use transfer::{Content, MovedTable, TransferError};

use jiff::Timestamp;
use sqlx::AnyPool;
use std::borrow::Cow;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// A connection to the database, whichever it is.
pub type Connection = sqlx::AnyConnection;

/// What a change of PostgreSQL holds until it ends, so that changes of all servers take turns. Its number must be the
/// same in all of them: the bytes of "flipside".
const TURN: i64 = i64::from_be_bytes(*b"flipside");
/// How long a change waits for its turn, within this server and then for other servers.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long PostgreSQL has for a connection while nobody else gets one either.
const SOON: Duration = Duration::from_secs(3);

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A statement failed.
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
    /// The tables could not be brought to this version's form.
    #[error("the database could not be migrated")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A newer server has changed the tables.
    #[error(
        "the database was written by a newer server: its tables have form {found}, expected at most {known}; run that \
         server's version, or a newer one"
    )]
    Newer {
        /// The form of its tables.
        found: i64,
        /// The newest one that this server knows.
        known: i64,
    },
    /// What was given as its address is none. The address is not shown: it may hold a password.
    #[error(
        "the address of the database is not valid: expected postgres://USER@HOST/DATABASE as PostgreSQL has it, or none for \
         SQLite in the data directory"
    )]
    Address,
    /// It does not let us in.
    #[error("{problem}")]
    Connect {
        /// What is wrong, and what to do.
        problem: &'static str,
        /// What was said.
        #[source]
        source: sqlx::Error,
    },
    /// There is no data in it.
    #[error("it holds no data of a server: expected a database that update-server init --database-url made")]
    Empty,
    /// There is data in it already.
    #[error(
        "it holds a server's data already: expected an empty database; for another server on the same data copy the first \
         one's data directory"
    )]
    Taken,
    /// It does not answer.
    #[error("the database does not answer: no connection for {} s", .0.as_secs())]
    Away(Duration),
    /// There is something of somebody else's in it.
    #[error("it is not empty: it has a table {0}, which is none of a server's; expected an empty database")]
    NotEmpty(String),
    /// Another change does not end.
    #[error("the database is busy: another change of it has not ended for {} s", PATIENCE.as_secs())]
    Busy,
    /// A change failed that was made together with this one.
    #[error(transparent)]
    Together(std::sync::Arc<Self>),
    /// Who was to make the change is gone.
    #[error("a change was given up half-way: the server ends")]
    Abandoned,
    /// What was asked for can be done with SQLite only.
    #[error("only SQLite is copied like that: with PostgreSQL use its own pg_dump")]
    NotSqlite,
    /// A copy of SQLite's file is not what it should be.
    #[error("{0}")]
    Damaged(String),
    /// It holds something that no version of this server writes.
    #[error("the database holds {what} that cannot be read: {found:?}; restore a backup")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// The value.
        found: String,
    },
}

impl StoreError {
    /// Whether PostgreSQL has ended this change in favour of another one: the same change may be made again.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        // serialization_failure, deadlock_detected
        matches!(self, Self::Sql(error) if matches!(code(error).as_deref(), Some("40001" | "40P01")))
    }

    /// Whether the database is away or busy, which nobody's request can help: the same one may succeed a little later.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Sql(error) => is_away(error),
            Self::Together(error) => error.is_away(),
            Self::Away(_) | Self::Busy | Self::Connect { .. } => true,
            _ => false,
        }
    }
}

/// See [`StoreError::is_away`].
#[must_use]
pub fn is_away(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => true,
        E::Database(_) => code(error).is_some_and(|code| {
            // SQLITE_BUSY and its kinds; of PostgreSQL connection_exception, too_many_connections, and that it ends, has crashed
            // or begins.
            matches!(&*code, "5" | "261" | "517" | "53300" | "57P01" | "57P02" | "57P03" | "25P03")
                || code.starts_with("08")
        }),
        _ => false,
    }
}

/// The SQLSTATE that PostgreSQL gave, or SQLite's own number.
fn code(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

/// The database.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    kind: Kind,
    /// Held by the one change of this process that is under way: the others wait here and need no connection for it.
    turn: Arc<Mutex<()>>,
    /// Counts the connections that were taken: whether others get one while somebody waits.
    taken: Arc<AtomicU64>,
}

/// What tells the databases apart, where something must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

/// A change of the database that is made whole or not at all. Dropped before it is committed, it never was.
#[derive(Debug)]
pub struct Transaction {
    // First, so that it has ended when the next one begins.
    change: sqlx::Transaction<'static, sqlx::Any>,
    _turn: OwnedMutexGuard<()>,
}

impl Transaction {
    /// Makes the change durable.
    ///
    /// # Errors
    /// Where the database fails; whether the change was made is then not known.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.change.commit().await
    }
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.change
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.change
    }
}

impl Store {
    /// Opens the database and brings its tables to this version's form. With `create` it is made.
    ///
    /// # Errors
    /// [`StoreError`] where it cannot be opened, or was written by a newer server; without `create`, also where nobody has
    /// made it; with it, also where PostgreSQL holds a server's data already.
    pub async fn open(place: &Place, create: bool) -> Result<Self, StoreError> {
        let (pool, kind) = place::open(place, create).await?;
        let store = Self { pool, kind, turn: Arc::default(), taken: Arc::default() };
        audit::begin_chain(&store).await?;
        Ok(store)
    }

    /// A connection for reading: each statement sees what is committed when it begins.
    ///
    /// # Errors
    /// [`StoreError`] where the database is gone.
    pub async fn read(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Any>, StoreError> {
        self.patiently(self.pool.acquire()).await
    }

    /// A connection for reading several things as they were at one moment.
    ///
    /// # Errors
    /// [`StoreError`] where the database is gone.
    pub async fn read_at_once(&self) -> Result<sqlx::Transaction<'static, sqlx::Any>, StoreError> {
        self.patiently(self.pool.begin_with(self.kind.begin_reading())).await
    }

    /// Begins a change. Changes take turns, those of other servers on the same database too: the next one begins when
    /// this one is committed or dropped, so what one reads stays true until it is committed.
    ///
    /// # Errors
    /// [`StoreError`] where the database is gone or stays locked by another process.
    pub async fn write(&self) -> Result<Transaction, StoreError> {
        let turn = Arc::clone(&self.turn).lock_owned();
        let turn = tokio::time::timeout(PATIENCE, turn).await.map_err(|_| StoreError::Busy)?;
        let mut change = self.patiently(self.pool.begin_with(self.kind.begin_writing())).await?;
        if self.kind == Kind::Postgres {
            // Not together with the begin: sqlx does not roll back a transaction whose first words have failed.
            let turn = sqlx::query("SELECT 1 FROM pg_advisory_xact_lock($1)").bind(TURN);
            turn.execute(&mut *change).await.map_err(|error| match code(&error).as_deref() {
                // lock_not_available: after the time that place::PREPARE_POSTGRES sets.
                Some("55P03") => StoreError::Busy,
                _ => error.into(),
            })?;
        }
        Ok(Transaction { change, _turn: turn })
    }

    /// Waits for a connection as long as others get one: a server that is busy keeps its turns. Where nobody gets one, PostgreSQL is
    /// away, and who asked is told so soon. (SQLite is a file: it has nothing but its own locks to wait for.)
    async fn patiently<T>(
        &self,
        connection: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let mut connection = std::pin::pin!(connection);
        let mut seen = self.taken.load(Ordering::Relaxed);
        loop {
            match tokio::time::timeout(SOON, &mut connection).await {
                Ok(Ok(connection)) => {
                    self.taken.fetch_add(1, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let now = self.taken.load(Ordering::Relaxed);
                    if self.kind == Kind::Postgres && now == seen {
                        return Err(StoreError::Away(SOON));
                    }
                    seen = now;
                }
            }
        }
    }

    /// Whether other servers may change the database while this one runs.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.kind == Kind::Postgres
    }

    /// How many connections are in use, and how many may be.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        let open = usize::try_from(self.pool.size()).unwrap_or(usize::MAX);
        let max = usize::try_from(self.pool.options().get_max_connections()).unwrap_or(usize::MAX);
        (open.saturating_sub(self.pool.num_idle()), max)
    }

    /// Writes a consistent copy of the whole database to `path`, which must not exist, while the server may run.
    ///
    /// # Errors
    /// [`StoreError`] where the copy cannot be written, or the database is not SQLite.
    pub async fn copy_to(&self, path: &str) -> Result<(), StoreError> {
        if self.kind != Kind::Sqlite {
            return Err(StoreError::NotSqlite);
        }
        sqlx::query("VACUUM INTO $1").bind(path).execute(&mut *self.read().await?).await?;
        Ok(())
    }

    /// Writes what SQLite keeps beside its file into the file, so that it is whole by itself, unless another process reads it.
    ///
    /// # Errors
    /// [`StoreError`] where the database fails, or is not SQLite.
    pub async fn settle(&self) -> Result<(), StoreError> {
        if self.kind != Kind::Sqlite {
            return Err(StoreError::NotSqlite);
        }
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *self.read().await?).await?;
        Ok(())
    }

    /// Looks at a copy of a SQLite database as a whole, before it is used: its pages, and what refers to what.
    ///
    /// # Errors
    /// [`StoreError`] where it is none, is damaged, or is not a server's.
    pub async fn check_copy(path: &Path) -> Result<(), StoreError> {
        place::check_sqlite(path).await
    }

    /// Ends all connections; what is committed is on the disk already.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

impl Kind {
    fn begin_reading(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN",
            Self::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }

    fn begin_writing(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            // Said, because an administrator may have set another default.
            Self::Postgres => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }
}

/// Text as both databases take it: PostgreSQL has no NUL in text. (JSON escapes it.)
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
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
