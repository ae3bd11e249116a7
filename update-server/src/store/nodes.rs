//! Steps 4 and 12: what nodes said: their last check, and their events.

use super::{Connection, StoreError, from_micros, parse, plain, to_micros, to_number};
use jiff::Timestamp;
use protocol::id::{Arch, Channel, Group, NodeId};
use protocol::lock::ClientId;
use protocol::rollout::Rollout;
use protocol::status::StateName;
use protocol::version::Version;
use protocol::wire::{Event, NodeInfo, QUARANTINE_MAX, Revocation, UpdateCheck};
use std::collections::BTreeSet;

/// The most nodes in one statement: a database takes so many values and no more.
const ROWS: usize = 200;
/// How many values a check has.
const VALUES: usize = 10;

/// What a node has in quarantine, the newest [`QUARANTINE_MAX`]: a version has no spaces.
fn quarantine_text(versions: &[Version]) -> String {
    let kept = versions.get(versions.len().saturating_sub(QUARANTINE_MAX)..).unwrap_or_default();
    kept.iter().map(Version::as_str).collect::<Vec<_>>().join(" ")
}

/// Records what nodes said at their checks, each node once. An older saying never replaces a newer one.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn seen(conn: &mut Connection, checks: &[(&UpdateCheck, Timestamp)]) -> Result<(), StoreError> {
    for checks in checks.chunks(ROWS) {
        // The same text for all but the last of them, so that it is understood once.
        let row = |at: usize| {
            let places =
                (1..=VALUES).map(|place| format!("${}", at * VALUES + place)).collect::<Vec<_>>().join(", ");
            format!("({places})")
        };
        let rows = (0..checks.len()).map(row).collect::<Vec<_>>().join(", ");
        let statement = format!(
            "INSERT INTO node (node, channel, grp, arch, version, slot, state, boot_id, last_seen, quarantine) VALUES {rows}
             ON CONFLICT (node) DO UPDATE SET channel = excluded.channel, grp = excluded.grp, arch = excluded.arch,
             version = excluded.version, slot = excluded.slot, state = excluded.state, boot_id = excluded.boot_id,
             last_seen = excluded.last_seen, quarantine = excluded.quarantine
             WHERE excluded.last_seen >= node.last_seen"
        );
        // Nothing in it but numbers of places.
        let mut query = sqlx::query(sqlx::AssertSqlSafe(statement));
        for (check, at) in checks {
            query = query
                .bind(check.node.as_str())
                .bind(check.channel.as_str())
                .bind(check.group.as_str())
                .bind(check.arch.as_str())
                .bind(check.version.as_str())
                .bind(check.slot.as_str())
                .bind(check.state.as_str())
                .bind(check.boot_id.as_str())
                .bind(to_micros(*at))
                .bind(check.quarantine.as_deref().map(quarantine_text));
        }
        query.execute(&mut *conn).await?;
    }
    Ok(())
}

/// How many events are kept of each node.
pub const EVENTS_KEPT: u32 = 1000;
/// How many of them keep their evidence.
pub const EVIDENCE_KEPT: u32 = 32;

/// Stores events that are not stored yet, says which these were, and forgets the oldest above [`EVENTS_KEPT`], and the oldest evidence above
/// [`EVIDENCE_KEPT`].
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn add_events(
    conn: &mut Connection,
    node: &NodeId,
    events: &[Event],
    at: Timestamp,
) -> Result<Vec<Event>, StoreError> {
    let mut new = Vec::new();
    for event in events {
        let document = serde_json::to_string(&Event { evidence: String::new(), ..event.clone() })
            .map_err(|error| StoreError::Corrupt { what: "an event", found: error.to_string() })?;
        let done = sqlx::query(
            "INSERT INTO event (node, seq, at, document, evidence, received_at) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (node, seq, at) DO NOTHING",
        )
        .bind(node.as_str())
        .bind(to_number(event.seq))
        .bind(event.at.to_string())
        .bind(document)
        .bind(plain(&event.evidence))
        .bind(to_micros(at))
        .execute(&mut *conn)
        .await?;
        if done.rows_affected() == 1 {
            super::stats::count_event(conn, node, event, at).await?;
            new.push(event.clone());
        }
    }
    // What a node said long ago makes room, so that no node fills the disk.
    sqlx::query(
        "DELETE FROM event WHERE node = $1 AND id <=
           (SELECT id FROM event WHERE node = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(node.as_str())
    .bind(i64::from(EVENTS_KEPT))
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE event SET evidence = '' WHERE node = $1 AND evidence <> '' AND id <=
           (SELECT id FROM event WHERE node = $1 AND evidence <> '' ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(node.as_str())
    .bind(i64::from(EVIDENCE_KEPT))
    .execute(&mut *conn)
    .await?;
    Ok(new)
}

/// The last `limit` events of a node with their evidence, newest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn events(conn: &mut Connection, node: &NodeId, limit: u32) -> Result<Vec<Event>, StoreError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT document, evidence FROM event WHERE node = $1 ORDER BY id DESC LIMIT $2")
            .bind(node.as_str())
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await?;
    let whole = |(document, evidence)| Ok(Event { evidence, ..event(document)? });
    rows.into_iter().map(whole).collect()
}

pub(super) fn event(document: String) -> Result<Event, StoreError> {
    serde_json::from_str(&document).map_err(|_| StoreError::Corrupt { what: "an event", found: document })
}

#[derive(sqlx::FromRow)]
struct Row {
    node: String,
    channel: String,
    grp: String,
    placed: Option<String>,
    arch: String,
    version: String,
    slot: String,
    state: String,
    last_seen: i64,
    last_event: Option<String>,
    enrolled_with: Option<String>,
    reason: Option<String>,
    revoked_at: Option<i64>,
    revoked_by: Option<String>,
    quarantine: Option<String>,
    dead_end: Option<String>,
}

/// What is read of a node, with what operators have said about it and about the release that it runs.
macro_rules! select_info {
    ($rest:literal) => {
        concat!(
            "SELECT node.node, channel, node.grp, node_group.grp AS placed, arch, version, slot, state, last_seen,
             quarantine,
             (SELECT document FROM event WHERE event.node = node.node ORDER BY id DESC LIMIT 1) AS last_event,
             (SELECT dead_end FROM release WHERE release.version = node.version AND release.arch = node.arch) AS dead_end,
             enrolled_with, reason, revoked_at, revoked_by FROM node
             LEFT JOIN node_group ON node_group.node = node.node
             LEFT JOIN node_credential ON node_credential.node = node.node
             LEFT JOIN node_revocation ON node_revocation.node = node.node ",
            $rest
        )
    };
}

/// A state as it is spelled in JSON and in the database.
pub(super) fn state_name(text: String) -> Result<StateName, StoreError> {
    serde_json::from_value(text.clone().into())
        .map_err(|_| StoreError::Corrupt { what: "a state", found: text })
}

/// As [`quarantine_text`] wrote them.
fn versions_in(text: &str) -> Result<Vec<Version>, StoreError> {
    text.split_whitespace().map(|version| parse("a version", version.to_owned())).collect()
}

fn info(row: Row) -> Result<NodeInfo, StoreError> {
    let own: Group = parse("a group", row.grp)?;
    let placed: Option<Group> = row.placed.map(|group| parse("a group", group)).transpose()?;
    let revoked = match (row.reason, row.revoked_at, row.revoked_by) {
        (Some(reason), Some(at), Some(by)) => Some(Revocation { at: from_micros(at)?, by, reason }),
        _ => None,
    };
    let own_group = placed.is_some().then(|| own.clone());
    Ok(NodeInfo {
        node: parse("a node id", row.node)?,
        channel: parse("a channel", row.channel)?,
        group: placed.unwrap_or(own),
        own_group,
        arch: parse("an architecture", row.arch)?,
        version: parse("a version", row.version)?,
        slot: parse("a slot", row.slot)?,
        state: state_name(row.state)?,
        last_seen: from_micros(row.last_seen)?,
        last_event: row.last_event.map(event).transpose()?,
        enrolled_with: row.enrolled_with,
        revoked,
        quarantine: row.quarantine.as_deref().map(versions_in).transpose()?,
        dead_end: row.dead_end,
    })
}

/// Which nodes are asked for: all where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Those that follow this channel.
    pub channel: Option<Channel>,
    /// Those in this group: the one that they were placed in, or else their own word.
    pub group: Option<Group>,
    /// Those that run this version, as it is spelled.
    pub version: Option<Version>,
}

/// Up to `limit` of the wanted nodes after the first `skip`, by last contact, newest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(
    conn: &mut Connection,
    wanted: &Wanted,
    skip: u32,
    limit: u32,
) -> Result<Vec<NodeInfo>, StoreError> {
    // No name is empty.
    let rows: Vec<Row> = sqlx::query_as(select_info!(
        "WHERE ($1 = '' OR channel = $1) AND ($2 = '' OR COALESCE(node_group.grp, node.grp) = $2)
         AND ($3 = '' OR version = $3) ORDER BY last_seen DESC, node.node LIMIT $4 OFFSET $5"
    ))
    .bind(wanted.channel.as_ref().map_or("", Channel::as_str))
    .bind(wanted.group.as_ref().map_or("", Group::as_str))
    .bind(wanted.version.as_ref().map_or("", Version::as_str))
    .bind(i64::from(limit))
    .bind(i64::from(skip))
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(info).collect()
}

/// The groups that the nodes of a channel are in; none where no node follows it.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn groups(conn: &mut Connection, channel: &Channel) -> Result<BTreeSet<Group>, StoreError> {
    let rows: Vec<(String,)> = sqlx::query_as(
        "SELECT DISTINCT COALESCE(node_group.grp, node.grp) FROM node
         LEFT JOIN node_group ON node_group.node = node.node WHERE channel = $1",
    )
    .bind(channel.as_str())
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|(group,)| parse("a group", group)).collect()
}

/// Forgets a node's last check; its events stay. False where there was none.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn remove(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM node WHERE node = $1").bind(node.as_str()).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// One node.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn find(conn: &mut Connection, node: &NodeId) -> Result<Option<NodeInfo>, StoreError> {
    let row: Option<Row> =
        sqlx::query_as(select_info!("WHERE node.node = $1")).bind(node.as_str()).fetch_optional(conn).await?;
    row.map(info).transpose()
}

/// The nodes of a channel that were heard of since a time and are not revoked, counted by architecture and version.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn versions(
    conn: &mut Connection,
    channel: &Channel,
    since: Timestamp,
) -> Result<Vec<(Arch, Version, u32)>, StoreError> {
    let rows: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT arch, version, COUNT(*) FROM node WHERE channel = $1 AND last_seen >= $2
         AND NOT EXISTS (SELECT 1 FROM node_revocation AS r WHERE r.node = node.node)
         GROUP BY arch, version ORDER BY arch, version",
    )
    .bind(channel.as_str())
    .bind(to_micros(since))
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(arch, version, nodes)| {
            let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
            Ok((parse("an architecture", arch)?, parse("a version", version)?, nodes))
        })
        .collect()
}

/// A node as far as a rollout is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Its group: the one that it was placed in, or else its own word.
    pub group: Group,
    /// Its architecture.
    pub arch: Arch,
    /// The version it ran when last heard of.
    pub version: Version,
    /// What it has in quarantine, as far as it says so.
    pub quarantine: Vec<Version>,
}

/// The nodes of a channel that were heard of since a time and are not revoked, by id.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn members(
    conn: &mut Connection,
    channel: &Channel,
    since: Timestamp,
) -> Result<Vec<Member>, StoreError> {
    let rows: Vec<MemberRow> = sqlx::query_as(
        "SELECT node.node, COALESCE(node_group.grp, node.grp), arch, version, quarantine FROM node
         LEFT JOIN node_group ON node_group.node = node.node WHERE channel = $1 AND last_seen >= $2
         AND NOT EXISTS (SELECT 1 FROM node_revocation AS r WHERE r.node = node.node) ORDER BY node.node",
    )
    .bind(channel.as_str())
    .bind(to_micros(since))
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(member).collect()
}

/// Up to `limit` of those of a rollout's channel that were not let go to its release in it, from id `from` on; with `again`, those
/// too that were and may be again: it could not be installed there, they are not heard of any more, or they came back without it and
/// do not have it in quarantine any more.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn not_let_go(
    conn: &mut Connection,
    rollout: &Rollout,
    again: bool,
    since: Timestamp,
    from: Option<&NodeId>,
    limit: u32,
) -> Result<Vec<Member>, StoreError> {
    let rows: Vec<MemberRow> = sqlx::query_as(
        "SELECT node.node, COALESCE(node_group.grp, node.grp), arch, version, quarantine FROM node
         LEFT JOIN node_group ON node_group.node = node.node
         WHERE channel = $1 AND last_seen >= $2 AND node.node >= $3
         AND NOT EXISTS (SELECT 1 FROM node_revocation AS r WHERE r.node = node.node)
         AND NOT EXISTS (SELECT 1 FROM rollout_grant AS g
           WHERE g.channel = $1 AND g.number = $4 AND g.version = $5 AND g.node = node.node
           AND ($6 = 0 OR g.phase NOT IN ('failed', 'silent', 'lost')
             AND (g.phase <> 'rolled-back' OR node.quarantine IS NULL)))
         ORDER BY node.node LIMIT $7",
    )
    .bind(rollout.channel.as_str())
    .bind(to_micros(since))
    .bind(from.map_or("", NodeId::as_str))
    .bind(to_number(rollout.number))
    .bind(rollout.version.as_str())
    .bind(i64::from(again))
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(member).collect()
}

type MemberRow = (String, String, String, String, Option<String>);

fn member((node, group, arch, version, quarantine): MemberRow) -> Result<Member, StoreError> {
    Ok(Member {
        quarantine: quarantine.as_deref().map(versions_in).transpose()?.unwrap_or_default(),
        node: parse("a node id", node)?,
        group: parse("a group", group)?,
        arch: parse("an architecture", arch)?,
        version: parse("a version", version)?,
    })
}
