//! Steps 4 and 9: what operators have said about nodes, which stands over what nodes say of themselves: the group that one is
//! placed in, and that one is not heard any more.

use super::{Connection, StoreError, from_micros, parse, to_micros};
use protocol::id::{Group, NodeId};
use protocol::lock::ClientId;
use protocol::wire::Revocation;

/// The group that a node was placed in; none where its own word counts.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn group(conn: &mut Connection, node: &NodeId) -> Result<Option<Group>, StoreError> {
    group_of(conn, &ClientId::from(node)).await
}

/// The same for any client's id.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn group_of(conn: &mut Connection, node: &ClientId) -> Result<Option<Group>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT grp FROM node_group WHERE node = $1")
        .bind(node.as_str())
        .fetch_optional(conn)
        .await?;
    row.map(|(group,)| parse("a group", group)).transpose()
}

/// Places a node in a group.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn set_group(conn: &mut Connection, node: &ClientId, group: &Group) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO node_group (node, grp) VALUES ($1, $2) ON CONFLICT (node) DO UPDATE SET grp = excluded.grp",
    )
    .bind(node.as_str())
    .bind(group.as_str())
    .execute(conn)
    .await?;
    Ok(())
}

/// Lets a node's own word count again. False where it did.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn clear_group(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let done =
        sqlx::query("DELETE FROM node_group WHERE node = $1").bind(node.as_str()).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Whether anything is known of a node: a check, a place at a lock, or a credential.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn is_known(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT node FROM node WHERE node = $1 UNION SELECT node FROM lock_node WHERE node = $1
         UNION SELECT node FROM node_credential WHERE node = $1",
    )
    .bind(node.as_str())
    .fetch_optional(conn)
    .await?;
    Ok(row.is_some())
}

/// Whether a node is revoked, since when, and why.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn revocation(conn: &mut Connection, node: &ClientId) -> Result<Option<Revocation>, StoreError> {
    let row: Option<(String, i64, String)> =
        sqlx::query_as("SELECT reason, revoked_at, revoked_by FROM node_revocation WHERE node = $1")
            .bind(node.as_str())
            .fetch_optional(conn)
            .await?;
    row.map(|(reason, at, by)| Ok(Revocation { at: from_micros(at)?, by, reason })).transpose()
}

/// Revokes a node, unless it is revoked already. False if it is.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn revoke(conn: &mut Connection, node: &ClientId, of: &Revocation) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO node_revocation (node, reason, revoked_at, revoked_by) VALUES ($1, $2, $3, $4)
         ON CONFLICT (node) DO NOTHING",
    )
    .bind(node.as_str())
    .bind(&of.reason)
    .bind(to_micros(of.at))
    .bind(&of.by)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets a node be heard again. False where it was not revoked.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn reinstate(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let done =
        sqlx::query("DELETE FROM node_revocation WHERE node = $1").bind(node.as_str()).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}
