//! Step 4, channel: which tables and columns a database has, as it says itself.

use super::{Connection, StoreError};
use std::collections::{BTreeMap, BTreeSet};

/// A table as PostgreSQL describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name.
    pub name: String,
    /// Its columns, in their order there.
    pub columns: Vec<Column>,
    /// Its key: places in `columns`.
    pub key: Vec<usize>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
    /// Whether PostgreSQL gives its numbers itself.
    pub is_identity: bool,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnKind {
    /// 64 bits, signed.
    Number,
    /// UTF-8.
    Text,
    /// Bytes.
    Bytes,
}

/// A name within a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    /// Its columns, as a list in a statement.
    pub(super) fn column_list(&self) -> String {
        self.columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
    }

    /// What puts its rows in the order of the key, byte by byte, which is SQLite's own way and has to be asked for in
    /// PostgreSQL.
    pub(super) fn order(&self, collate: &str) -> String {
        let columns = self.key.iter().filter_map(|place| self.columns.get(*place));
        let by = columns.map(|column| match column.kind {
            ColumnKind::Text => format!("{}{collate}", quoted(&column.name)),
            _ => quoted(&column.name),
        });
        by.collect::<Vec<_>>().join(", ")
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    table_name: String,
    column_name: String,
    kind: String,
    is_identity: bool,
    key_place: i64,
}

/// The tables of a PostgreSQL database, those first that others refer to. What the migrations note is not among them.
///
/// # Errors
/// [`StoreError`] where the database fails, or has a column of a kind that no table of ours has.
pub(super) async fn postgres(conn: &mut Connection) -> Result<Vec<Table>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT c.relname::text AS table_name, a.attname::text AS column_name, t.typname::text AS kind,
         a.attidentity <> '' AS is_identity,
         COALESCE((SELECT array_position(i.indkey::int2[], a.attnum) FROM pg_index AS i
           WHERE i.indrelid = c.oid AND i.indisprimary), -1)::bigint AS key_place
         FROM pg_class AS c
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         JOIN pg_type AS t ON t.oid = a.atttypid
         WHERE c.relkind IN ('r', 'p') AND c.relname <> '_sqlx_migrations'
         AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
         ORDER BY c.relname, a.attnum",
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut tables: BTreeMap<String, (Table, Vec<(i64, usize)>)> = BTreeMap::new();
    for row in rows {
        let kind = match row.kind.as_str() {
            "int8" => ColumnKind::Number,
            "text" => ColumnKind::Text,
            "bytea" => ColumnKind::Bytes,
            _ => {
                let found = format!("{}.{} of type {}", row.table_name, row.column_name, row.kind);
                return Err(StoreError::Corrupt { what: "a column", found });
            }
        };
        let empty =
            || (Table { name: row.table_name.clone(), columns: Vec::new(), key: Vec::new() }, Vec::new());
        let (table, key) = tables.entry(row.table_name.clone()).or_insert_with(empty);
        if row.key_place >= 0 {
            key.push((row.key_place, table.columns.len()));
        }
        table.columns.push(Column { name: row.column_name, kind, is_identity: row.is_identity });
    }
    let whole = tables.into_values().map(|(mut table, mut key)| {
        key.sort_unstable();
        table.key = key.into_iter().map(|(_, place)| place).collect();
        table
    });
    Ok(in_order(whole.collect(), &references(conn).await?))
}

/// Which table refers to which.
async fn references(conn: &mut Connection) -> Result<Vec<(String, String)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT a.relname::text, b.relname::text FROM pg_constraint AS k
         JOIN pg_class AS a ON a.oid = k.conrelid JOIN pg_class AS b ON b.oid = k.confrelid
         WHERE k.contype = 'f' AND a.oid <> b.oid ORDER BY 1, 2",
    )
    .fetch_all(conn)
    .await?)
}

/// Those first that others refer to.
fn in_order(mut tables: Vec<Table>, references: &[(String, String)]) -> Vec<Table> {
    let mut ordered: Vec<Table> = Vec::with_capacity(tables.len());
    while !tables.is_empty() {
        let left: BTreeSet<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let waits = |table: &Table| {
            references.iter().any(|(from, to)| *from == table.name && left.contains(to.as_str()))
        };
        // In a circle, which ours are not, the first one goes; the database then says what it misses.
        let next = tables.iter().position(|table| !waits(table)).unwrap_or(0);
        ordered.push(tables.remove(next));
    }
    ordered
}

/// The tables of a SQLite database with the names of their columns.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub(super) async fn sqlite(conn: &mut Connection) -> Result<BTreeMap<String, BTreeSet<String>>, StoreError> {
    let names: Vec<(String,)> = sqlx::query_as(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
         AND name <> '_sqlx_migrations'",
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut tables = BTreeMap::new();
    for (table,) in names {
        let columns: Vec<(String,)> = sqlx::query_as("SELECT name FROM pragma_table_info($1)")
            .bind(&table)
            .fetch_all(&mut *conn)
            .await?;
        tables.insert(table, columns.into_iter().map(|(column,)| column).collect());
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_after_those_that_it_refers_to() {
        let table = |name: &str| Table { name: name.to_owned(), columns: Vec::new(), key: Vec::new() };
        let refers = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let tables = vec![table("a"), table("b"), table("c"), table("d")];
        let ordered = in_order(tables, &[refers("a", "c"), refers("c", "d"), refers("a", "d")]);
        let names: Vec<_> = ordered.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["b", "d", "c", "a"]);
        let circle = in_order(vec![table("a"), table("b")], &[refers("a", "b"), refers("b", "a")]);
        assert_eq!(circle.len(), 2);
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
