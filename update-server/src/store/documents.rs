//! Step 3, metadata: signed documents and target files, byte for byte, by the name under which they are served.
//!
//! A name that a client asks for is looked up here and never becomes a path.

use super::{Connection, StoreError, from_micros, from_number, plain, to_micros, to_number};
use jiff::Timestamp;
use protocol::digest::Sha256;

/// A signed document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its version.
    pub version: u64,
    /// Until when it is valid.
    pub expires: Timestamp,
    /// When the server stored it.
    pub stored_at: Timestamp,
    /// Its bytes, as signed.
    pub bytes: Vec<u8>,
}

/// The name under which a role's version is served: with the version in front, but for `timestamp`, which a client
/// asks for without knowing one.
#[must_use]
pub fn name(role: &str, version: u64) -> String {
    if role == "timestamp" { "timestamp.json".to_owned() } else { format!("{version}.{role}.json") }
}

/// Stores a document. An earlier timestamp is replaced; of every other role each version is kept under its name.
///
/// # Errors
/// [`StoreError`] where the database fails, or the name is taken by another role's document.
pub async fn put(conn: &mut Connection, role: &str, document: &Document) -> Result<(), StoreError> {
    let statement = if role == "timestamp" {
        "INSERT INTO document (name, role, version, expires, sha256, bytes, stored_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (name) DO UPDATE SET role = excluded.role, version = excluded.version,
         expires = excluded.expires, sha256 = excluded.sha256, bytes = excluded.bytes,
         stored_at = excluded.stored_at"
    } else {
        "INSERT INTO document (name, role, version, expires, sha256, bytes, stored_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)"
    };
    sqlx::query(statement)
        .bind(name(role, document.version))
        .bind(role)
        .bind(to_number(document.version))
        .bind(to_micros(document.expires))
        .bind(Sha256::of(&document.bytes).to_string())
        .bind(document.bytes.as_slice())
        .bind(to_micros(document.stored_at))
        .execute(conn)
        .await?;
    Ok(())
}

/// The newest document of a role.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn newest(conn: &mut Connection, role: &str) -> Result<Option<Document>, StoreError> {
    Ok(all(conn, role, 1).await?.pop())
}

/// Every version of `root`, oldest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn roots(conn: &mut Connection) -> Result<Vec<Document>, StoreError> {
    let mut roots = all(conn, "root", u32::MAX).await?;
    roots.reverse();
    Ok(roots)
}

async fn all(conn: &mut Connection, role: &str, limit: u32) -> Result<Vec<Document>, StoreError> {
    let rows: Vec<(i64, i64, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT version, expires, stored_at, bytes FROM document WHERE role = $1 ORDER BY version DESC LIMIT $2",
    )
    .bind(role)
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(version, expires, stored_at, bytes)| {
            Ok(Document {
                version: from_number(version)?,
                expires: from_micros(expires)?,
                stored_at: from_micros(stored_at)?,
                bytes,
            })
        })
        .collect()
}

/// Drops versions of `role` that were stored before `before`, but never the newest one.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn prune(conn: &mut Connection, role: &str, before: Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM document WHERE role = $1 AND stored_at < $2
         AND version < (SELECT MAX(version) FROM document WHERE role = $1)",
    )
    .bind(role)
    .bind(to_micros(before))
    .execute(conn)
    .await?;
    Ok(())
}

/// A file as it is served: its bytes and their digest.
#[derive(Clone, Debug)]
pub struct ServedFile {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes, in hexadecimal.
    pub sha256: String,
}

/// The document served under `name`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn served(conn: &mut Connection, name: &str) -> Result<Option<ServedFile>, StoreError> {
    let row: Option<(Vec<u8>, String)> = sqlx::query_as("SELECT bytes, sha256 FROM document WHERE name = $1")
        .bind(plain(name))
        .fetch_optional(conn)
        .await?;
    Ok(row.map(|(bytes, sha256)| ServedFile { bytes, sha256 }))
}

/// The target file served under `name`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn served_target(conn: &mut Connection, name: &str) -> Result<Option<ServedFile>, StoreError> {
    let row: Option<(Vec<u8>, String)> = sqlx::query_as("SELECT bytes, sha256 FROM target WHERE name = $1")
        .bind(plain(name))
        .fetch_optional(conn)
        .await?;
    Ok(row.map(|(bytes, sha256)| ServedFile { bytes, sha256 }))
}

/// The name of a target file in a repository with consistent snapshots: its digest before the last part of its path.
#[must_use]
pub fn target_name(path: &str, digest: &Sha256) -> String {
    match path.rsplit_once('/') {
        Some((folder, file)) => format!("{folder}/{digest}.{file}"),
        None => format!("{digest}.{path}"),
    }
}

/// Stores a target file under its consistent-snapshot name, which it returns. The same bytes may be stored again.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn put_target(
    conn: &mut Connection,
    path: &str,
    bytes: &[u8],
    at: Timestamp,
) -> Result<String, StoreError> {
    let digest = Sha256::of(bytes);
    let name = target_name(path, &digest);
    sqlx::query(
        "INSERT INTO target (name, sha256, bytes, stored_at) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING",
    )
    .bind(&name)
    .bind(digest.to_string())
    .bind(bytes)
    .bind(to_micros(at))
    .execute(conn)
    .await?;
    Ok(name)
}
