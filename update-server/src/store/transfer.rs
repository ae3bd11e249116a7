//! Step 4, channel: all rows of a SQLite database, moved into an empty PostgreSQL one, in one change of that, and compared.
//!
//! Which tables and columns there are is asked of the databases ([`super::catalogue`]), so none is left out because a list
//! was not kept up. Rows are read one after the other and written in batches: memory holds one batch.

use super::catalogue::{self, ColumnKind, Table, quoted};
use super::{Connection, Kind, Store, StoreError, Transaction};
use futures::TryStreamExt as _;
use protocol::digest::{Hasher, Sha256};
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

/// How many rows are written by one statement at most.
const ROWS: usize = 500;
/// How many bytes are written by one statement at most, but for a single longer row.
const BYTES: usize = 4 << 20;
/// How many values one statement of PostgreSQL may have.
const VALUES: usize = 65_535;

/// Why nothing was moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// A database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is something in the way.
    #[error("it is not empty: {0}; expected an empty database")]
    NotEmpty(String),
    /// The two have other tables or columns; then one of their migrations is wrong.
    #[error(
        "the tables of the two databases differ: {0}; this is a mistake of this program, please report it"
    )]
    Shape(String),
    /// What was written is not what was read.
    #[error(
        "the table {table} does not hold what it should: expected {expected}, found {found}; nothing was kept"
    )]
    Differs {
        /// Which.
        table: String,
        /// Rows and digest of what was read.
        expected: Content,
        /// Rows and digest of what is there.
        found: Content,
    },
}

impl From<sqlx::Error> for TransferError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The rows of a table: how many, and a digest over all their values in the order of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// How many rows.
    pub rows: u64,
    /// Over their values.
    pub sha256: Sha256,
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows with digest {}", self.rows, self.sha256)
    }
}

/// What was moved of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedTable {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub content: Content,
    /// How many texts had a NUL, which PostgreSQL does not take: U+FFFD stands in its place, as in all that the server
    /// writes itself.
    pub replaced: u64,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Number(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

impl Value {
    fn read(row: &AnyRow, place: usize, kind: ColumnKind) -> Result<Self, sqlx::Error> {
        Ok(match kind {
            ColumnKind::Number => Self::Number(row.try_get(place)?),
            ColumnKind::Text => Self::Text(row.try_get(place)?),
            ColumnKind::Bytes => Self::Bytes(row.try_get(place)?),
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::Text(Some(text)) => text.len(),
            Self::Bytes(Some(bytes)) => bytes.len(),
            _ => size_of::<i64>(),
        }
    }

    /// Its bytes with what tells where they end, so that no two rows have the same.
    fn hash(&self, into: &mut Hasher) {
        let mut long = |tag: u8, bytes: &[u8]| {
            into.update(&[tag]);
            into.update(&(bytes.len() as u64).to_be_bytes());
            into.update(bytes);
        };
        match self {
            Self::Number(None) | Self::Text(None) | Self::Bytes(None) => into.update(&[0]),
            Self::Number(Some(number)) => {
                into.update(&[1]);
                into.update(&number.to_be_bytes());
            }
            Self::Text(Some(text)) => long(2, text.as_bytes()),
            Self::Bytes(Some(bytes)) => long(3, bytes),
        }
    }
}

impl Store {
    /// Moves all rows of this SQLite database, which `from` keeps others from changing, to `to`, and compares what is there
    /// then. Tables and columns that one of the two lacks are an error. On any error `to` is as it was.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn transfer(from: &mut Transaction, to: &Self) -> Result<Vec<MovedTable>, TransferError> {
        let mut change = to.postgres_change().await?;
        let tables = shape(from, &mut change).await?;
        for table in &tables {
            let rows = count(&mut change, table).await?;
            if rows > 0 {
                return Err(TransferError::NotEmpty(format!("the table {} has {rows} rows", table.name)));
            }
        }
        let mut moved = Vec::with_capacity(tables.len());
        for table in &tables {
            moved.push(copy(from, Some(&mut change), table).await?);
            go_on_counting(from, &mut change, table).await?;
        }
        compare(&mut change, &tables, &moved).await?;
        change.commit().await?;
        Ok(moved)
    }

    /// Whether `to` holds exactly what `from` does: then it was moved before.
    ///
    /// # Errors
    /// [`TransferError`]; [`TransferError::Differs`] where it does not.
    pub async fn was_transferred(
        from: &mut Transaction,
        to: &Self,
    ) -> Result<Vec<MovedTable>, TransferError> {
        let mut change = to.postgres_change().await?;
        let tables = shape(from, &mut change).await?;
        let mut moved = Vec::with_capacity(tables.len());
        for table in &tables {
            moved.push(copy(from, None, table).await?);
        }
        compare(&mut change, &tables, &moved).await?;
        Ok(moved)
    }

    /// A change that may wait for a slow disk of the other database.
    async fn postgres_change(&self) -> Result<Transaction, TransferError> {
        if self.kind != Kind::Postgres {
            return Err(TransferError::Store(StoreError::Address));
        }
        let mut change = self.write().await?;
        sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *change).await?;
        Ok(change)
    }
}

/// The tables that both have, those first that others refer to.
async fn shape(from: &mut Connection, to: &mut Connection) -> Result<Vec<Table>, TransferError> {
    let (tables, mut here) = (catalogue::postgres(to).await?, catalogue::sqlite(from).await?);
    for table in &tables {
        let Some(columns) = here.remove(&table.name) else {
            return Err(TransferError::NotEmpty(format!(
                "it has a table {}, which is none of a server's",
                table.name
            )));
        };
        let there = table.columns.iter().map(|column| column.name.clone()).collect();
        if columns != there || table.key.is_empty() {
            let line = format!("{} has the columns {columns:?} and {there:?}", table.name);
            return Err(TransferError::Shape(line));
        }
    }
    match here.pop_first() {
        Some((table, _)) => Err(TransferError::Shape(format!("PostgreSQL has no {table}"))),
        None => Ok(tables),
    }
}

async fn count(conn: &mut Connection, table: &Table) -> Result<u64, TransferError> {
    let text = format!("SELECT COUNT(*) FROM {}", quoted(&table.name));
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(text)).fetch_one(conn).await?;
    Ok(super::from_number(rows)?)
}

/// A table's rows in the order of its key.
fn select(table: &Table, collate: &str) -> AssertSqlSafe<String> {
    let (columns, name, order) = (table.column_list(), quoted(&table.name), table.order(collate));
    AssertSqlSafe(format!("SELECT {columns} FROM {name} ORDER BY {order}"))
}

fn values(row: &AnyRow, table: &Table) -> Result<Vec<Value>, sqlx::Error> {
    let of = |(place, column): (usize, &catalogue::Column)| Value::read(row, place, column.kind);
    table.columns.iter().enumerate().map(of).collect()
}

/// Reads a table, and writes what is read where that is asked for.
async fn copy(
    from: &mut Connection,
    mut to: Option<&mut Transaction>,
    table: &Table,
) -> Result<MovedTable, TransferError> {
    let expected = count(from, table).await?;
    let (mut hasher, mut rows, mut replaced) = (Hasher::new(), 0, 0);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let most = ROWS.min(VALUES / table.columns.len().max(1)).max(1);
    let mut found = sqlx::query(select(table, "")).fetch(from);
    while let Some(row) = found.try_next().await? {
        let mut values = values(&row, table)?;
        for value in &mut values {
            if let Value::Text(Some(text)) = value
                && text.contains('\0')
            {
                *text = super::plain(text);
                replaced += 1;
            }
            value.hash(&mut hasher);
            bytes += value.len();
        }
        rows += 1;
        if let Some(to) = &mut to {
            batch.push(values);
            if batch.len() >= most || bytes >= BYTES {
                insert(to, table, std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
    }
    if let Some(to) = to
        && !batch.is_empty()
    {
        insert(to, table, batch).await?;
    }
    let content = Content { rows, sha256: hasher.finish() };
    if rows != expected {
        let expected = Content { rows: expected, sha256: content.sha256 };
        return Err(TransferError::Differs { table: table.name.clone(), expected, found: content });
    }
    Ok(MovedTable { name: table.name.clone(), content, replaced })
}

async fn insert(conn: &mut Connection, table: &Table, rows: Vec<Vec<Value>>) -> Result<(), TransferError> {
    let width = table.columns.len();
    let row = |row: usize| {
        let values: Vec<_> = (1..=width).map(|column| format!("${}", row * width + column)).collect();
        format!("({})", values.join(", "))
    };
    let places: Vec<_> = (0..rows.len()).map(row).collect();
    // Ids are named by others, and by their order: they stay.
    let identity = table.columns.iter().any(|column| column.is_identity);
    let overriding = if identity { "OVERRIDING SYSTEM VALUE " } else { "" };
    let (name, columns) = (quoted(&table.name), table.column_list());
    let text = format!("INSERT INTO {name} ({columns}) {overriding}VALUES {}", places.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(text));
    for value in rows.into_iter().flatten() {
        query = match value {
            Value::Number(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
        };
    }
    query.execute(conn).await?;
    Ok(())
}

/// Lets PostgreSQL go on with the numbers after those that SQLite has ever given.
async fn go_on_counting(
    from: &mut Connection,
    to: &mut Connection,
    table: &Table,
) -> Result<(), TransferError> {
    for column in table.columns.iter().filter(|column| column.is_identity) {
        let (table_name, column) = (quoted(&table.name), quoted(&column.name));
        let given: Option<(i64,)> = sqlx::query_as("SELECT seq FROM sqlite_sequence WHERE name = $1")
            .bind(&table.name)
            .fetch_optional(&mut *from)
            .await?;
        let text = format!("SELECT COALESCE(MAX({column}), 0) FROM {table_name}");
        let last: i64 = sqlx::query_scalar(AssertSqlSafe(text)).fetch_one(&mut *to).await?;
        let next = given.map_or(0, |(given,)| given).max(last).saturating_add(1);
        // Unlike setval, this is a part of the change.
        let text = format!("ALTER TABLE {table_name} ALTER COLUMN {column} RESTART WITH {next}");
        sqlx::query(AssertSqlSafe(text)).execute(&mut *to).await?;
    }
    Ok(())
}

/// Reads what is there and compares it.
async fn compare(conn: &mut Connection, tables: &[Table], moved: &[MovedTable]) -> Result<(), TransferError> {
    for (table, moved) in tables.iter().zip(moved) {
        let (mut hasher, mut rows) = (Hasher::new(), 0);
        let mut found = sqlx::query(select(table, " COLLATE \"C\"")).fetch(&mut *conn);
        while let Some(row) = found.try_next().await? {
            rows += 1;
            values(&row, table)?.iter().for_each(|value| value.hash(&mut hasher));
        }
        let found = Content { rows, sha256: hasher.finish() };
        if found != moved.content {
            let expected = moved.content.clone();
            return Err(TransferError::Differs { table: table.name.clone(), expected, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_have_the_same_bytes() {
        let digest = |row: &[Value]| {
            let mut hasher = Hasher::new();
            row.iter().for_each(|value| value.hash(&mut hasher));
            hasher.finish()
        };
        let text = |text: &str| Value::Text(Some(text.to_owned()));
        let rows = [
            vec![text("ab"), text("c")],
            vec![text("a"), text("bc")],
            vec![text("abc"), text("")],
            vec![text("abc"), Value::Text(None)],
            vec![Value::Bytes(Some(b"ab".to_vec())), text("c")],
            vec![Value::Number(Some(1))],
            vec![Value::Number(None)],
        ];
        let digests: std::collections::HashSet<_> = rows.iter().map(|row| digest(row).to_string()).collect();
        assert_eq!(digests.len(), rows.len());
    }
}
