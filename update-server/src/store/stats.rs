//! Steps 4 and 12: what is known of a fleet over time: events counted by day, and versions by hour.
//!
//! An event is counted in the change that stores it, and only if it was not stored before. So no server counts what another
//! one has counted, and deleting events loses no count.

use super::{Connection, StoreError, from_micros, from_number, parse, to_micros};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use protocol::id::{Channel, NodeId};
use protocol::version::Version;
use protocol::wire::{Event, EventCount, EventKind, VersionCount};
use std::collections::BTreeMap;

/// Microseconds of a day and of an hour.
const DAY: i64 = 24 * HOUR;
const HOUR: i64 = 3_600_000_000;
/// How many versions of a channel are counted by name in an hour. Nodes name their versions themselves; the others are one
/// count together.
const VERSIONS: usize = 64;
/// What stands for a channel or a version that is not named.
const OTHER: &str = "";

/// The begin of a day (UTC).
fn begin(day: Date) -> Result<Timestamp, StoreError> {
    let begin = day.to_zoned(TimeZone::UTC);
    Ok(begin.map_err(|_| StoreError::Corrupt { what: "a day", found: day.to_string() })?.timestamp())
}

fn named<T: std::str::FromStr>(what: &'static str, text: String) -> Result<Option<T>, StoreError> {
    if text == OTHER { Ok(None) } else { parse(what, text).map(Some) }
}

fn kind_name(kind: EventKind) -> Result<String, StoreError> {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(name)) => Ok(name),
        _ => Err(StoreError::Corrupt { what: "an event's kind", found: format!("{kind:?}") }),
    }
}

/// Counts an event that was stored at a time.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn count_event(
    conn: &mut Connection,
    node: &NodeId,
    event: &Event,
    at: Timestamp,
) -> Result<(), StoreError> {
    // Only names that the server has itself: a node must not be able to fill the table.
    sqlx::query(
        "INSERT INTO event_count (day, channel, version, kind, events) VALUES ($1,
           COALESCE((SELECT channel.channel FROM channel JOIN node ON node.channel = channel.channel
             WHERE node.node = $2), ''),
           COALESCE((SELECT MAX(version) FROM release WHERE version = $3), ''), $4, 1)
         ON CONFLICT (day, channel, version, kind) DO UPDATE SET events = event_count.events + 1",
    )
    .bind(to_micros(at).div_euclid(DAY) * DAY)
    .bind(node.as_str())
    .bind(event.version.as_ref().map_or(OTHER, Version::as_str))
    .bind(kind_name(event.kind)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Up to `limit` counts of the days from `from` to `to`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn events(
    conn: &mut Connection,
    from: Date,
    to: Date,
    limit: u32,
) -> Result<Vec<EventCount>, StoreError> {
    let rows: Vec<(i64, String, String, String, i64)> = sqlx::query_as(
        "SELECT day, channel, version, kind, events FROM event_count WHERE day >= $1 AND day <= $2
         ORDER BY day, channel, version, kind LIMIT $3",
    )
    .bind(to_micros(begin(from)?))
    .bind(to_micros(begin(to)?))
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(day, channel, version, kind, events)| {
            Ok(EventCount {
                day: TimeZone::UTC.to_datetime(from_micros(day)?).date(),
                channel: named("a channel", channel)?,
                version: named("a version", version)?,
                kind: serde_json::from_value(kind.clone().into())
                    .map_err(|_| StoreError::Corrupt { what: "an event's kind", found: kind })?,
                events: from_number(events)?,
            })
        })
        .collect()
}

/// Counts for the hour of `now` how many nodes of each channel run which version, as of those heard of since `since`; unless
/// that hour is counted already. False if it is.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn count_versions(
    conn: &mut Connection,
    now: Timestamp,
    since: Timestamp,
) -> Result<bool, StoreError> {
    let hour = to_micros(now).div_euclid(HOUR) * HOUR;
    if is_counted(conn, now).await? {
        return Ok(false);
    }
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT node.channel, node.version, COUNT(*) FROM node JOIN channel ON channel.channel = node.channel
         WHERE node.last_seen >= $1 GROUP BY node.channel, node.version
         ORDER BY node.channel, COUNT(*) DESC, node.version",
    )
    .bind(to_micros(since))
    .fetch_all(&mut *conn)
    .await?;
    let mut channels: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
    for (channel, version, nodes) in rows {
        let counts = channels.entry(channel).or_default();
        if let Some((_, others)) = counts.get_mut(VERSIONS) {
            *others += nodes;
        } else {
            let version = if counts.len() == VERSIONS { OTHER.to_owned() } else { version };
            counts.push((version, nodes));
        }
    }
    for (channel, counts) in channels {
        for (version, nodes) in counts {
            sqlx::query("INSERT INTO version_count (hour, channel, version, nodes) VALUES ($1, $2, $3, $4)")
                .bind(hour)
                .bind(&channel)
                .bind(version)
                .bind(nodes)
                .execute(&mut *conn)
                .await?;
        }
    }
    Ok(true)
}

/// Whether the hour of `now` is counted.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn is_counted(conn: &mut Connection, now: Timestamp) -> Result<bool, StoreError> {
    let hour = to_micros(now).div_euclid(HOUR) * HOUR;
    let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM version_count WHERE hour = $1")
        .bind(hour)
        .fetch_one(conn)
        .await?;
    Ok(rows > 0)
}

/// Up to `limit` counts of a channel's versions of the days from `from` to `to`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn versions(
    conn: &mut Connection,
    channel: &Channel,
    from: Date,
    to: Date,
    limit: u32,
) -> Result<Vec<VersionCount>, StoreError> {
    let rows: Vec<(i64, String, i64)> = sqlx::query_as(
        "SELECT hour, version, nodes FROM version_count WHERE channel = $1 AND hour >= $2 AND hour < $3
         ORDER BY hour, version LIMIT $4",
    )
    .bind(channel.as_str())
    .bind(to_micros(begin(from)?))
    .bind(to_micros(begin(to)?).saturating_add(DAY))
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(hour, version, nodes)| {
            let version = named("a version", version)?;
            Ok(VersionCount { hour: from_micros(hour)?, version, nodes: from_number(nodes)? })
        })
        .collect()
}
