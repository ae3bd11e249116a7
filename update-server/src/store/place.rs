//! Where the database is, and what it takes to open it: the part in which SQLite and PostgreSQL differ.

use super::{Kind, StoreError, code};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _};
use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// What each connection to SQLite begins with. Nothing is acknowledged that a power cut could still take back.
const PREPARE_SQLITE: &str = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON";
/// What each connection to PostgreSQL begins with. A commit is on the disk before it is acknowledged, whatever the
/// database's own setting; a server that is frozen in the middle of a change loses it, instead of keeping the others from
/// theirs.
const PREPARE_POSTGRES: &str = "SET client_min_messages = warning; SET application_name = 'update-server';
    SET lock_timeout = '30s'; SET idle_in_transaction_session_timeout = '10s';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";
/// The table in which sqlx notes which migrations were made.
const NOTED: &str = "_sqlx_migrations";
/// How long PostgreSQL has to answer at the start.
const CONNECT: Duration = Duration::from_secs(10);

/// The address of a PostgreSQL database. It may hold a password, so it is never printed: `Display` is what may be shown.
#[derive(Clone)]
pub struct DatabaseUrl {
    text: String,
    shown: Option<String>,
}

impl From<String> for DatabaseUrl {
    /// Any text is taken here, so that a command line is not refused with a message that shows it; it is checked where it
    /// is used.
    fn from(text: String) -> Self {
        let has_scheme = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        let options = PgConnectOptions::from_str(&text).ok().filter(|_| has_scheme);
        let shown = options.map(|options| {
            let database = options.get_database().unwrap_or(options.get_username());
            match options.get_socket() {
                Some(socket) => format!("PostgreSQL {database} at {}", socket.display()),
                None => format!("PostgreSQL {database} at {}:{}", options.get_host(), options.get_port()),
            }
        });
        Self { text, shown }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown.as_deref().unwrap_or("PostgreSQL"))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a server keeps its data.
#[derive(Clone, Debug)]
pub enum Place {
    /// In this file.
    Sqlite(PathBuf),
    /// In a database that several servers may share.
    Postgres(DatabaseUrl),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => fmt::Display::fmt(&path.display(), f),
            Self::Postgres(url) => fmt::Display::fmt(url, f),
        }
    }
}

/// Opens a database for the first time in a process: it is migrated, and what is wrong is said at once.
pub(super) async fn open(place: &Place, create: bool) -> Result<(AnyPool, Kind), StoreError> {
    install_default_drivers();
    match place {
        Place::Sqlite(path) => {
            let pool = pool(PREPARE_SQLITE).max_connections(4).connect_with(sqlite(path, create)?).await?;
            migrate(&mut *pool.acquire().await?, &SQLITE).await?;
            Ok((pool, Kind::Sqlite))
        }
        Place::Postgres(url) => {
            if url.shown.is_none() {
                return Err(StoreError::Address);
            }
            let options = AnyConnectOptions::from_str(&url.text).map_err(|_| StoreError::Address)?;
            // Not through the pool, which would try again where nobody listens, and say only that time is up.
            let mut first = connect(&options).await?;
            sqlx::raw_sql(PREPARE_POSTGRES).execute(&mut first).await?;
            let found = is_made(&mut first).await?;
            if create && found {
                return Err(StoreError::Taken);
            }
            if !create && !found {
                return Err(StoreError::Empty);
            }
            if let Some(table) = strange(&mut first).await?.filter(|_| create) {
                return Err(StoreError::NotEmpty(table));
            }
            migrate(&mut first, &POSTGRES).await?;
            first.close().await?;
            let pool = pool(PREPARE_POSTGRES).max_connections(16).acquire_timeout(CONNECT);
            Ok((pool.connect_with(options).await?, Kind::Postgres))
        }
    }
}

fn pool(prepare: &'static str) -> AnyPoolOptions {
    AnyPoolOptions::new().after_connect(move |conn, _| {
        Box::pin(async move {
            sqlx::raw_sql(prepare).execute(conn).await?;
            Ok(())
        })
    })
}

/// Looks at the whole of a SQLite database that nobody uses.
pub(super) async fn check_sqlite(path: &Path) -> Result<(), StoreError> {
    install_default_drivers();
    let damaged = |found: String| StoreError::Damaged(format!("it is damaged: {found}; take another backup"));
    let mut conn = AnyConnection::connect_with(&sqlite(path, false)?).await?;
    let done = async {
        // A file that is none is found here too, with SQLite's own words.
        let found = sqlx::query_as("PRAGMA integrity_check(3)").fetch_all(&mut conn).await;
        let found: Vec<(String,)> = found.map_err(|error| match code(&error).as_deref() {
            // SQLITE_CORRUPT: so damaged that it cannot even be looked at.
            Some("11") => damaged(error.to_string()),
            _ => error.into(),
        })?;
        if let Some((line,)) = found.into_iter().find(|(line,)| line != "ok") {
            return Err(damaged(line.lines().collect::<Vec<_>>().join(" ")));
        }
        let found: Vec<(String, String)> =
            sqlx::query_as("SELECT \"table\", parent FROM pragma_foreign_key_check").fetch_all(&mut conn).await?;
        if let Some((table, parent)) = found.first() {
            return Err(damaged(format!("{table} names what is not in {parent}")));
        }
        let ours: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('_sqlx_migrations', 'token')",
        )
        .fetch_one(&mut conn)
        .await?;
        if ours < 2 {
            return Err(StoreError::Damaged(
                "it is not a server's database: expected a file that update-server backup wrote".to_owned(),
            ));
        }
        Ok(())
    }
    .await;
    conn.close().await?;
    done
}

fn sqlite(path: &Path, create: bool) -> Result<AnyConnectOptions, sqlx::Error> {
    // Without links and `..`, which an address resolves by its own rules.
    let folder = path.parent().unwrap_or(Path::new("/")).canonicalize().map_err(sqlx::Error::Io)?;
    let path = folder.join(path.file_name().unwrap_or_default());
    // As the text of an address, in which some characters mean something.
    let mut url = "sqlite:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                url.push(char::from(*byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
    url.push_str(if create { "?mode=rwc" } else { "?mode=rw" });
    AnyConnectOptions::from_str(&url)
}

async fn connect(options: &AnyConnectOptions) -> Result<AnyConnection, StoreError> {
    let failed = |source: sqlx::Error| {
        let problem = match code(&source).as_deref() {
            // invalid_password, invalid_authorization_specification
            Some("28P01" | "28000") => {
                "it does not let this user in: correct user or password, or its pg_hba.conf"
            }
            // invalid_catalog_name
            Some("3D000") => "there is no such database: make one with createdb",
            Some(_) => "it refuses the connection",
            None => "it cannot be reached: start it, or correct the address",
        };
        StoreError::Connect { problem, source }
    };
    match tokio::time::timeout(CONNECT, AnyConnection::connect_with(options)).await {
        Ok(connection) => connection.map_err(failed),
        Err(_) => Err(failed(sqlx::Error::Io(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer for {} s", CONNECT.as_secs()),
        )))),
    }
}

/// Whether an `init` came to its end here: it makes a token last.
async fn is_made(conn: &mut AnyConnection) -> Result<bool, StoreError> {
    let tables: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM pg_class WHERE oid = to_regclass('token')")
        .fetch_one(&mut *conn)
        .await?;
    if tables == 0 {
        return Ok(false);
    }
    let tokens: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM token").fetch_one(conn).await?;
    Ok(tokens > 0)
}

/// A table of somebody else's, if there is one. What an `init` that was interrupted has left is a server's own: its migrations are
/// noted with their digests.
async fn strange(conn: &mut AnyConnection) -> Result<Option<String>, StoreError> {
    let tables: Vec<(String,)> = sqlx::query_as(
        "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
         AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) ORDER BY relname",
    )
    .fetch_all(&mut *conn)
    .await?;
    let noted = tables.iter().any(|(table,)| table == NOTED);
    let Some((other,)) = tables.into_iter().find(|(table,)| table != NOTED) else { return Ok(None) };
    if !noted {
        return Ok(Some(other));
    }
    let first = POSTGRES.iter().min_by_key(|migration| migration.version);
    let ours: Result<Vec<(i64, Vec<u8>)>, sqlx::Error> =
        sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations").fetch_all(conn).await;
    let ours = match ours {
        // We may not read it, or it has other columns: somebody else's.
        Err(sqlx::Error::Database(_)) => Vec::new(),
        ours => ours?,
    };
    let is_ours = first.is_some_and(|first| {
        ours.iter().any(|(version, sum)| *version == first.version && **sum == *first.checksum)
    });
    Ok(Some(other).filter(|_| !is_ours))
}

async fn migrate(conn: &mut AnyConnection, to: &Migrator) -> Result<(), StoreError> {
    match to.run(conn).await {
        Err(MigrateError::VersionMissing(found)) => {
            let known = to.iter().map(|migration| migration.version).max().unwrap_or(0);
            Err(StoreError::Newer { found, known })
        }
        done => Ok(done?),
    }
}
