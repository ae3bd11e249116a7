//! Step 4, channel: which release each channel points at.

use super::{Connection, StoreError, from_micros, parse, to_micros};
use jiff::Timestamp;
use protocol::id::Channel;
use protocol::version::Version;
use protocol::wire::{ChannelInfo, SCHEMA};

/// All channels, by name.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(conn: &mut Connection) -> Result<Vec<ChannelInfo>, StoreError> {
    let rows: Vec<(String, String, i64, String, i64)> = sqlx::query_as(
        "SELECT channel, version, changed_at, changed_by, to_dead_end FROM channel ORDER BY channel",
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(channel, version, changed_at, changed_by, to_dead_end)| {
            Ok(ChannelInfo {
                schema: SCHEMA,
                channel: parse("a channel", channel)?,
                version: parse("a version", version)?,
                changed_at: from_micros(changed_at)?,
                changed_by,
                to_dead_end: to_dead_end != 0,
                on_dead_ends: Vec::new(),
            })
        })
        .collect()
}

/// Points a channel at a release, with `to_dead_end` although that is a dead end.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn set(
    conn: &mut Connection,
    channel: &Channel,
    version: &Version,
    to_dead_end: bool,
    at: Timestamp,
    by: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO channel (channel, version, changed_at, changed_by, to_dead_end) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (channel) DO UPDATE SET version = excluded.version, changed_at = excluded.changed_at,
         changed_by = excluded.changed_by, to_dead_end = excluded.to_dead_end",
    )
    .bind(channel.as_str())
    .bind(version.as_str())
    .bind(to_micros(at))
    .bind(by)
    .bind(i64::from(to_dead_end))
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets that somebody insisted on a dead end, where it is none any more: should it become one again, somebody must again.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn forget_insistence(conn: &mut Connection) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE channel SET to_dead_end = 0 WHERE to_dead_end <> 0 AND NOT EXISTS
         (SELECT 1 FROM release WHERE release.version = channel.version AND release.dead_end IS NOT NULL)",
    )
    .execute(conn)
    .await?;
    Ok(())
}
