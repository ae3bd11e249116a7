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
    let rows: Vec<(String, String, i64, String)> =
        sqlx::query_as("SELECT channel, version, changed_at, changed_by FROM channel ORDER BY channel")
            .fetch_all(conn)
            .await?;
    rows.into_iter()
        .map(|(channel, version, changed_at, changed_by)| {
            Ok(ChannelInfo {
                schema: SCHEMA,
                channel: parse("a channel", channel)?,
                version: parse("a version", version)?,
                changed_at: from_micros(changed_at)?,
                changed_by,
            })
        })
        .collect()
}

/// Points a channel at a release.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn set(
    conn: &mut Connection,
    channel: &Channel,
    version: &Version,
    at: Timestamp,
    by: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO channel (channel, version, changed_at, changed_by) VALUES ($1, $2, $3, $4)
         ON CONFLICT (channel) DO UPDATE SET version = excluded.version, changed_at = excluded.changed_at,
         changed_by = excluded.changed_by",
    )
    .bind(channel.as_str())
    .bind(version.as_str())
    .bind(to_micros(at))
    .bind(by)
    .execute(conn)
    .await?;
    Ok(())
}
