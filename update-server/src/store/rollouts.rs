//! Step 4, channel: rollouts, their policies, and the nodes that were let go.
//!
//! A rollout's document is read and written within one change of the database (changes take turns), so it needs no revision.

use super::{Connection, StoreError, from_micros, from_number, parse, to_micros, to_number};
use jiff::Timestamp;
use protocol::id::{Channel, Group, NodeId};
use protocol::lock::ClientId;
use protocol::rollout::{Ended, Grant, GrantPhase, Rollout, RolloutPolicy, Used};
use protocol::status::StateName;
use protocol::version::Version;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(what: &'static str, text: String) -> Result<T, StoreError> {
    serde_json::from_str(&text).map_err(|_| StoreError::Corrupt { what, found: text })
}

fn text<T: serde::Serialize>(document: &T) -> Result<String, StoreError> {
    serde_json::to_string(document)
        .map_err(|error| StoreError::Corrupt { what: "a rollout", found: error.to_string() })
}

/// A channel's rollout, if it has one.
///
/// # Errors
/// [`StoreError`] where the database fails or the document cannot be read.
pub async fn find(conn: &mut Connection, channel: &Channel) -> Result<Option<Rollout>, StoreError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT document FROM rollout WHERE channel = $1")
        .bind(channel.as_str())
        .fetch_optional(conn)
        .await?;
    row.map(|(document,)| read("a rollout", document)).transpose()
}

/// All rollouts, by channel.
///
/// # Errors
/// [`StoreError`] where the database fails or a document cannot be read.
pub async fn list(conn: &mut Connection) -> Result<Vec<Rollout>, StoreError> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT document FROM rollout ORDER BY channel").fetch_all(conn).await?;
    rows.into_iter().map(|(document,)| read("a rollout", document)).collect()
}

/// Writes a channel's rollout.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn put(conn: &mut Connection, rollout: &Rollout) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rollout (channel, document) VALUES ($1, $2)
         ON CONFLICT (channel) DO UPDATE SET document = excluded.document",
    )
    .bind(rollout.channel.as_str())
    .bind(text(rollout)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// All policies that were set, by channel.
///
/// # Errors
/// [`StoreError`] where the database fails or a document cannot be read.
pub async fn policies(conn: &mut Connection) -> Result<Vec<(Channel, RolloutPolicy)>, StoreError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT channel, document FROM rollout_policy ORDER BY channel")
            .fetch_all(conn)
            .await?;
    rows.into_iter()
        .map(|(channel, document)| Ok((parse("a channel", channel)?, read("a rollout policy", document)?)))
        .collect()
}

/// A channel's policy: the default one where none was set.
///
/// # Errors
/// [`StoreError`] where the database fails or the document cannot be read.
pub async fn policy(conn: &mut Connection, channel: &Channel) -> Result<RolloutPolicy, StoreError> {
    let row: Option<(String,)> = sqlx::query_as("SELECT document FROM rollout_policy WHERE channel = $1")
        .bind(channel.as_str())
        .fetch_optional(conn)
        .await?;
    Ok(row.map(|(document,)| read("a rollout policy", document)).transpose()?.unwrap_or_default())
}

/// Sets a channel's policy for rollouts to come.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn set_policy(
    conn: &mut Connection,
    channel: &Channel,
    policy: &RolloutPolicy,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rollout_policy (channel, document) VALUES ($1, $2)
         ON CONFLICT (channel) DO UPDATE SET document = excluded.document",
    )
    .bind(channel.as_str())
    .bind(text(policy)?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Removes a channel's policy: the default one holds for rollouts to come. False where none was set.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn remove_policy(conn: &mut Connection, channel: &Channel) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM rollout_policy WHERE channel = $1")
        .bind(channel.as_str())
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Where a grant belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantKey {
    /// The channel.
    pub channel: Channel,
    /// Which of its rollouts.
    pub number: u64,
    /// The node.
    pub node: NodeId,
}

#[derive(sqlx::FromRow)]
struct Row {
    channel: String,
    number: i64,
    node: String,
    version: String,
    granted_at: i64,
    phase: String,
    phase_at: i64,
}

fn grant(row: Row) -> Result<(GrantKey, Grant), StoreError> {
    let key = GrantKey {
        channel: parse("a channel", row.channel)?,
        number: from_number(row.number)?,
        node: parse("a node id", row.node)?,
    };
    let grant = Grant {
        version: parse("a version", row.version)?,
        granted_at: from_micros(row.granted_at)?,
        phase: parse("a grant's phase", row.phase)?,
        phase_at: from_micros(row.phase_at)?,
    };
    Ok((key, grant))
}

/// A node's grant in a rollout for a version, if it has one.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn grant_of(
    conn: &mut Connection,
    rollout: &Rollout,
    node: &NodeId,
    version: &Version,
) -> Result<Option<Grant>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT channel, number, node, version, granted_at, phase, phase_at FROM rollout_grant
         WHERE channel = $1 AND number = $2 AND node = $3 AND version = $4",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(node.as_str())
    .bind(version.as_str())
    .fetch_optional(conn)
    .await?;
    Ok(row.map(grant).transpose()?.map(|(_, grant)| grant))
}

/// A node's grants for a version, in whichever rollouts: the one that was given last comes first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn grants_for(
    conn: &mut Connection,
    node: &NodeId,
    version: &Version,
) -> Result<Vec<(GrantKey, Grant)>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT channel, number, node, version, granted_at, phase, phase_at FROM rollout_grant
         WHERE node = $1 AND version = $2 ORDER BY given DESC",
    )
    .bind(node.as_str())
    .bind(version.as_str())
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(grant).collect()
}

/// The grants of a node that are open: the one that was given last comes first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn open_grants(conn: &mut Connection, node: &NodeId) -> Result<Vec<(GrantKey, Grant)>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT channel, number, node, version, granted_at, phase, phase_at FROM rollout_grant
         WHERE node = $1 AND phase IN ('granted', 'activated', 'rebooting') ORDER BY given DESC",
    )
    .bind(node.as_str())
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(grant).collect()
}

/// Gives a grant, in place of the one that the node had for that version in that rollout. Others that it has and that are open
/// are given up: a node goes to one version at a time, and takes up one place.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn give(
    conn: &mut Connection,
    rollout: &Rollout,
    node: &NodeId,
    group: &Group,
    grant: &Grant,
) -> Result<(), StoreError> {
    give_up(conn, &ClientId::from(node), grant.granted_at).await?;
    // That it failed before stays on record until it confirms. Its grants are numbered in the order in which they are given.
    sqlx::query(
        "INSERT INTO rollout_grant (channel, number, node, version, grp, stage, granted_at, phase, phase_at, given)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,
           (SELECT COALESCE(MAX(given), 0) + 1 FROM rollout_grant WHERE node = $3))
         ON CONFLICT (channel, number, node, version) DO UPDATE SET grp = excluded.grp, stage = excluded.stage,
         granted_at = excluded.granted_at, phase = excluded.phase, phase_at = excluded.phase_at, given = excluded.given",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(node.as_str())
    .bind(grant.version.as_str())
    .bind(group.as_str())
    .bind(i64::from(rollout.stage))
    .bind(to_micros(grant.granted_at))
    .bind(grant.phase.as_str())
    .bind(to_micros(grant.phase_at))
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives up a node's grants that are open: it takes up no place, and what it would do next is not counted against a release.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn give_up(conn: &mut Connection, node: &ClientId, at: Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollout_grant SET phase = 'lost', phase_at = $1
         WHERE node = $2 AND phase IN ('granted', 'activated', 'rebooting')",
    )
    .bind(to_micros(at))
    .bind(node.as_str())
    .execute(conn)
    .await?;
    Ok(())
}

/// Names the stages of a rollout's grants anew, after a change of its policy: those of the stage that was open are of the one
/// that is open now, all others of none.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn renumber(conn: &mut Connection, before: &Rollout, after: &Rollout) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollout_grant SET stage = CASE WHEN stage = $1 THEN $2 ELSE -2 END WHERE channel = $3 AND number = $4",
    )
    .bind(i64::from(before.stage))
    .bind(i64::from(after.stage))
    .bind(after.channel.as_str())
    .bind(to_number(after.number))
    .execute(conn)
    .await?;
    Ok(())
}

/// Records what became of a grant, unless it is in another phase by now. False if it is. `current` is its rollout if that still
/// runs: only then it counts.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn set_phase(
    conn: &mut Connection,
    key: &GrantKey,
    grant: &Grant,
    phase: GrantPhase,
    current: Option<&Rollout>,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE rollout_grant SET phase = $1, phase_at = $2,
         failed_in = CASE WHEN $1 IN ('failed', 'rolled-back', 'silent') THEN $9
           WHEN $1 = 'confirmed' THEN NULL ELSE failed_in END,
         confirmed_in = CASE WHEN $1 = 'confirmed' THEN $9 ELSE confirmed_in END
         WHERE channel = $3 AND number = $4 AND node = $5 AND version = $6 AND phase = $7 AND granted_at = $8",
    )
    .bind(phase.as_str())
    .bind(to_micros(at))
    .bind(key.channel.as_str())
    .bind(to_number(key.number))
    .bind(key.node.as_str())
    .bind(grant.version.as_str())
    .bind(grant.phase.as_str())
    .bind(to_micros(grant.granted_at))
    .bind(current.map(|rollout| to_number(rollout.resumes)))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What was last heard of the node of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastHeard {
    /// Its channel.
    pub channel: Channel,
    /// What it ran.
    pub version: Version,
    /// What it was doing.
    pub state: StateName,
    /// When.
    pub at: Timestamp,
    /// The group in which it was let go.
    pub group: Group,
    /// It has not taken the grant up and cannot any more, because what it runs is a dead end.
    pub is_stuck: bool,
    /// What it was let go to is a dead end.
    pub to_dead_end: bool,
}

/// How many grants are looked at once.
const LOOKED_AT: i64 = 2000;

/// A channel's grants that may have ended unseen, those of earlier rollouts too, with what was last heard of each node: the node
/// runs the version by now, does something that does not go with it, has gone to another channel, is on a dead end, or was not
/// heard of since before `silent` (in its reboot) or `lost`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn to_look_at(
    conn: &mut Connection,
    channel: &Channel,
    silent: Timestamp,
    lost: Timestamp,
) -> Result<Vec<(GrantKey, Grant, Option<LastHeard>)>, StoreError> {
    #[derive(sqlx::FromRow)]
    struct Looked {
        #[sqlx(flatten)]
        row: Row,
        heard_channel: Option<String>,
        heard_version: Option<String>,
        state: Option<String>,
        last_seen: Option<i64>,
        grp: String,
        stuck: Option<String>,
        to_dead_end: Option<String>,
    }
    let rows: Vec<Looked> = sqlx::query_as(
        "SELECT g.channel, g.number, g.node, g.version, g.granted_at, g.phase, g.phase_at,
         node.channel AS heard_channel, node.version AS heard_version, node.state, node.last_seen,
         g.grp, runs.dead_end AS stuck, goes_to.dead_end AS to_dead_end
         FROM rollout_grant AS g LEFT JOIN node ON node.node = g.node
         LEFT JOIN release AS runs ON runs.version = node.version AND runs.arch = node.arch
           AND g.phase = 'granted' AND node.version <> g.version
         LEFT JOIN release AS goes_to ON goes_to.version = g.version AND goes_to.arch = node.arch
         WHERE g.channel = $1 AND (
           g.phase IN ('granted', 'activated', 'rebooting', 'silent', 'lost', 'failed')
             AND node.version = g.version AND node.last_seen > g.granted_at
             AND node.state NOT IN ('confirming', 'rolled-back', 'error')
           OR g.phase IN ('granted', 'activated', 'rebooting') AND node.last_seen > g.granted_at
             AND (node.channel <> g.channel OR node.state = 'rolled-back' OR runs.dead_end IS NOT NULL)
           OR g.phase = 'granted' AND node.state IN ('idle', 'error') AND node.last_seen > g.granted_at + 900000000
           OR g.phase = 'activated' AND node.state = 'idle' AND node.last_seen > g.phase_at + 900000000
           OR g.phase = 'rebooting' AND g.phase_at <= $2 AND (node.last_seen IS NULL OR node.last_seen <= $2)
           OR g.phase IN ('granted', 'activated') AND g.phase_at <= $3
             AND (node.last_seen IS NULL OR node.last_seen <= $3))
         LIMIT $4",
    )
    .bind(channel.as_str())
    .bind(to_micros(silent))
    .bind(to_micros(lost))
    .bind(LOOKED_AT)
    .fetch_all(conn)
    .await?;
    let looked = |looked: Looked| {
        let (key, grant) = grant(looked.row)?;
        let heard = match (looked.heard_channel, looked.heard_version, looked.state, looked.last_seen) {
            (Some(channel), Some(version), Some(state), Some(at)) => Some(LastHeard {
                channel: parse("a channel", channel)?,
                version: parse("a version", version)?,
                state: super::nodes::state_name(state)?,
                at: from_micros(at)?,
                group: parse("a group", looked.grp)?,
                is_stuck: looked.stuck.is_some(),
                to_dead_end: looked.to_dead_end.is_some(),
            }),
            _ => None,
        };
        Ok((key, grant, heard))
    };
    rows.into_iter().map(looked).collect()
}

/// How far the limits of a channel, or of one group in it, are used up: nodes under way, if `in_flight` asks for them, but for one
/// that takes up no place beside its own, and those let go since a time, with when there is room again where they are as many as may
/// be. Nodes that were let go in an earlier rollout of the channel take up their places until they have ended.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn used(
    conn: &mut Connection,
    channel: &Channel,
    group: Option<&Group>,
    in_flight: Option<Option<&NodeId>>,
    rate: Option<(Timestamp, u32)>,
) -> Result<Used, StoreError> {
    // An empty name is no group's.
    let group = group.map_or("", Group::as_str);
    let mut used = Used::default();
    if let Some(but) = in_flight {
        let open: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM rollout_grant WHERE channel = $1
             AND phase IN ('granted', 'activated', 'rebooting') AND ($2 = '' OR grp = $2) AND node <> $3",
        )
        .bind(channel.as_str())
        .bind(group)
        .bind(but.map_or("", NodeId::as_str))
        .fetch_one(&mut *conn)
        .await?;
        used.in_flight = count(open);
    }
    if let Some((since, max)) = rate {
        let recent: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM rollout_grant WHERE channel = $1 AND granted_at > $2 AND ($3 = '' OR grp = $3)",
        )
        .bind(channel.as_str())
        .bind(to_micros(since))
        .bind(group)
        .fetch_one(&mut *conn)
        .await?;
        used.recent = count(recent);
        if let Some(over) = used.recent.checked_sub(max) {
            let last: Option<(i64,)> = sqlx::query_as(
                "SELECT granted_at FROM rollout_grant WHERE channel = $1 AND granted_at > $2 AND ($3 = '' OR grp = $3)
                 ORDER BY granted_at LIMIT 1 OFFSET $4",
            )
            .bind(channel.as_str())
            .bind(to_micros(since))
            .bind(group)
            .bind(i64::from(over))
            .fetch_optional(conn)
            .await?;
            used.makes_room = last.map(|(at,)| from_micros(at)).transpose()?;
        }
    }
    Ok(used)
}

/// What came of the nodes that were let go to a rollout's release: of all, or, with `open_stage`, of those of the stage that is
/// open, without those that failed before the rollout was resumed. Nodes that only pass through another release on the way prove
/// nothing about this one. Says how many were lost, too.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn ended(
    conn: &mut Connection,
    rollout: &Rollout,
    open_stage: bool,
) -> Result<(Ended, u32), StoreError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT phase, COUNT(*) FROM rollout_grant WHERE channel = $1 AND number = $2 AND version = $3
         AND ($4 < 0 OR stage = $4 AND (phase NOT IN ('failed', 'rolled-back', 'silent') OR failed_in >= $5)) GROUP BY phase",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(rollout.version.as_str())
    .bind(if open_stage { i64::from(rollout.stage) } else { -1 })
    .bind(to_number(rollout.resumes))
    .fetch_all(conn)
    .await?;
    let (mut ended, mut lost) = (Ended::default(), 0);
    for (phase, number) in rows {
        let number = count(number);
        ended.granted = ended.granted.saturating_add(number);
        match parse::<GrantPhase>("a grant's phase", phase)? {
            GrantPhase::Confirmed => ended.confirmed = number,
            GrantPhase::Failed | GrantPhase::RolledBack => ended.failed = ended.failed.saturating_add(number),
            GrantPhase::Silent => ended.silent = number,
            GrantPhase::Lost => lost = number,
            GrantPhase::Granted | GrantPhase::Activated | GrantPhase::Rebooting => {}
        }
    }
    Ok((ended, lost))
}

/// How many nodes of a rollout are in each phase on the way to its release; phases without a node are left out.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn by_phase(
    conn: &mut Connection,
    rollout: &Rollout,
) -> Result<Vec<(GrantPhase, i64)>, StoreError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT phase, COUNT(*) FROM rollout_grant WHERE channel = $1 AND number = $2 AND version = $3 GROUP BY phase",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(rollout.version.as_str())
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|(phase, nodes)| Ok((parse("a grant's phase", phase)?, nodes))).collect()
}

/// How many nodes of a rollout have failed since it was resumed last and not confirmed it after that, and how many of them by
/// silence. A node counts once, whatever it was let go to and however often.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn failures(conn: &mut Connection, rollout: &Rollout) -> Result<(u32, u32), StoreError> {
    let (failures, silent): (i64, i64) = sqlx::query_as(
        "SELECT COUNT(DISTINCT node), COUNT(DISTINCT CASE WHEN phase = 'silent' THEN node END) FROM rollout_grant
         WHERE channel = $1 AND number = $2 AND failed_in >= $3",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(to_number(rollout.resumes))
    .fetch_one(conn)
    .await?;
    Ok((count(failures), count(silent)))
}

/// How many nodes have confirmed a rollout's release, or one on the way to it, since it was resumed last, without those that
/// have failed since then: a node that confirmed a step on the way and failed at the next one counts as failed.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn confirmed_since(conn: &mut Connection, rollout: &Rollout) -> Result<u32, StoreError> {
    let confirmed: i64 = sqlx::query_scalar(
        "SELECT COUNT(DISTINCT node) FROM rollout_grant AS g
         WHERE channel = $1 AND number = $2 AND phase = 'confirmed' AND confirmed_in >= $3
         AND NOT EXISTS (SELECT 1 FROM rollout_grant AS other WHERE other.channel = g.channel
           AND other.number = g.number AND other.node = g.node AND other.failed_in >= $3)",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(to_number(rollout.resumes))
    .fetch_one(conn)
    .await?;
    Ok(count(confirmed))
}

/// What has come of a rollout's nodes since it was resumed last, of those under way, too: each node counts once.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn since(conn: &mut Connection, rollout: &Rollout) -> Result<Ended, StoreError> {
    let granted: i64 = sqlx::query_scalar(
        "SELECT COUNT(DISTINCT node) FROM rollout_grant WHERE channel = $1 AND number = $2
         AND (failed_in >= $3 OR phase = 'confirmed' AND confirmed_in >= $3
           OR phase IN ('granted', 'activated', 'rebooting'))",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(to_number(rollout.resumes))
    .fetch_one(&mut *conn)
    .await?;
    let (failures, silent) = failures(conn, rollout).await?;
    let confirmed = confirmed_since(conn, rollout).await?;
    Ok(Ended { granted: count(granted), confirmed, failed: failures.saturating_sub(silent), silent })
}

fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
