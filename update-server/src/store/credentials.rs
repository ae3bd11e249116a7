//! Steps 4 and 9: the hashes of nodes' own secrets.

use super::{Connection, StoreError, parse, to_micros};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::lock::ClientId;

/// The hash that a node id is bound to.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn find(conn: &mut Connection, node: &ClientId) -> Result<Option<Sha256>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT hash FROM node_credential WHERE node = $1")
        .bind(node.as_str())
        .fetch_optional(conn)
        .await?;
    row.map(|(hash,)| parse("a credential's hash", hash)).transpose()
}

/// Binds a node id, unless it is bound already. False if it is. `with` is the id of the enrolment token that it came with.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn bind(
    conn: &mut Connection,
    node: &ClientId,
    hash: &Sha256,
    at: Timestamp,
    with: Option<&str>,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO node_credential (node, hash, bound_at, enrolled_with) VALUES ($1, $2, $3, $4)
         ON CONFLICT (node) DO NOTHING",
    )
    .bind(node.as_str())
    .bind(hash.to_string())
    .bind(to_micros(at))
    .bind(with)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets what a node id is bound to. False where it was bound to nothing.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn forget(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let done =
        sqlx::query("DELETE FROM node_credential WHERE node = $1").bind(node.as_str()).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}
