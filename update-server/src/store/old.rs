//! Steps 4 and 12: what is old: events, counts of versions, grants of rollouts long past, nodes that are not heard of any more. It
//! is found by reading, and deleted in pieces, so that no change of the database is long.

use super::{Connection, StoreError, from_number, to_micros, to_number};
use jiff::Timestamp;
use protocol::id::Channel;

/// A page of the events from before a time, by their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last id.
    pub last: u64,
    /// How many of them are not among the newest of their node.
    pub old: u64,
}

/// What the statements about old events have in common: those of the newest `$4` of a node are none.
macro_rules! old_events {
    ($head:literal) => {
        concat!(
            $head,
            " WHERE id > $1 AND id <= $2 AND received_at < $3 AND id <= (SELECT newer.id FROM event AS newer
             WHERE newer.node = event.node ORDER BY newer.id DESC LIMIT 1 OFFSET $4)"
        )
    };
}

/// The next page of up to `limit` events after id `after` from before `before`, of each node's newest `keep` none; none where
/// there are no more.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn old_events(
    conn: &mut Connection,
    after: u64,
    before: Timestamp,
    keep: u32,
    limit: u32,
) -> Result<Option<Page>, StoreError> {
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT MAX(id) FROM (SELECT id FROM event WHERE id > $1 AND received_at < $2 ORDER BY id LIMIT $3) AS page",
    )
    .bind(to_number(after))
    .bind(to_micros(before))
    .bind(i64::from(limit))
    .fetch_one(&mut *conn)
    .await?;
    let Some(last) = last else { return Ok(None) };
    let old: i64 = sqlx::query_scalar(old_events!("SELECT COUNT(*) FROM event"))
        .bind(to_number(after))
        .bind(last)
        .bind(to_micros(before))
        .bind(i64::from(keep))
        .fetch_one(conn)
        .await?;
    Ok(Some(Page { last: from_number(last)?, old: from_number(old)? }))
}

/// Deletes those of a page: how many there were.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn delete_events(
    conn: &mut Connection,
    after: u64,
    page: Page,
    before: Timestamp,
    keep: u32,
) -> Result<u64, StoreError> {
    let done = sqlx::query(old_events!("DELETE FROM event"))
        .bind(to_number(after))
        .bind(to_number(page.last))
        .bind(to_micros(before))
        .bind(i64::from(keep))
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

/// The ids of which nothing was heard since `$1`.
macro_rules! silent {
    ($rest:literal) => {
        concat!(
            "SELECT node FROM (
               SELECT node FROM node WHERE last_seen < $1
               UNION SELECT node FROM lock_node WHERE last_seen < $1
               UNION SELECT node FROM node_credential WHERE bound_at < $1
             ) AS old
             WHERE NOT EXISTS (SELECT 1 FROM node WHERE node.node = old.node AND node.last_seen >= $1)
             AND NOT EXISTS (SELECT 1 FROM lock_node AS place
               WHERE place.node = old.node AND place.last_seen >= $1)
             AND NOT EXISTS (SELECT 1 FROM node_credential AS own
               WHERE own.node = old.node AND own.bound_at >= $1)
             AND NOT EXISTS (SELECT 1 FROM event WHERE event.node = old.node AND event.received_at >= $1) ",
            $rest
        )
    };
}

/// Up to `limit` node ids after `after` of which nothing was heard since `before`, by id: no check, no event, no question to a
/// lock, no first credential.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn silent(
    conn: &mut Connection,
    after: &str,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as(silent!("AND node > $2 ORDER BY node LIMIT $3"))
        .bind(to_micros(before))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(conn)
        .await?;
    Ok(rows.into_iter().map(|(node,)| node).collect())
}

/// Whether a node is one of those.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn is_silent(conn: &mut Connection, node: &str, before: Timestamp) -> Result<bool, StoreError> {
    let row: Option<(String,)> = sqlx::query_as(silent!("AND node = $2"))
        .bind(to_micros(before))
        .bind(node)
        .fetch_optional(conn)
        .await?;
    Ok(row.is_some())
}

/// Deletes up to `limit` events of a node, oldest first: how many there were.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn delete_events_of(conn: &mut Connection, node: &str, limit: u64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE node = $1 ORDER BY id LIMIT $2)",
    )
    .bind(node)
    .bind(to_number(limit))
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Forgets the counts of the oldest hour, if it was before `before`: how many there were.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn forget_oldest_hour(conn: &mut Connection, before: Timestamp) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "DELETE FROM version_count WHERE hour < $1 AND hour = (SELECT MIN(hour) FROM version_count)",
    )
    .bind(to_micros(before))
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Whether there are counts from before `before`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn has_hours(conn: &mut Connection, before: Timestamp) -> Result<bool, StoreError> {
    let first: Option<i64> =
        sqlx::query_scalar("SELECT MIN(hour) FROM version_count").fetch_one(conn).await?;
    Ok(first.is_some_and(|first| first < to_micros(before)))
}

/// Whether there are grants of a channel's rollouts before number `first`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn has_grants(conn: &mut Connection, channel: &Channel, first: u64) -> Result<bool, StoreError> {
    let oldest: Option<i64> = sqlx::query_scalar("SELECT MIN(number) FROM rollout_grant WHERE channel = $1")
        .bind(channel.as_str())
        .fetch_one(conn)
        .await?;
    Ok(oldest.is_some_and(|oldest| oldest < to_number(first)))
}

/// Deletes up to `limit` of those: how many there were.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn delete_grants(
    conn: &mut Connection,
    channel: &Channel,
    first: u64,
    limit: u32,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "DELETE FROM rollout_grant WHERE channel = $1 AND (number, node, version) IN (
           SELECT number, node, version FROM rollout_grant WHERE channel = $1 AND number < $2 LIMIT $3)",
    )
    .bind(channel.as_str())
    .bind(to_number(first))
    .bind(i64::from(limit))
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
