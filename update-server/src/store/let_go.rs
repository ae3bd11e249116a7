//! Step 4, channel: the nodes that were let go, for people: which ones they are, and which of them count no more.

use super::nodes::event;
use super::{Connection, StoreError, from_micros, from_number, parse, to_number};
use protocol::id::NodeId;
use protocol::rollout::{Grant, GrantPhase, Phases, Rollout};
use protocol::wire::RolloutNode;

#[derive(sqlx::FromRow)]
struct Row {
    node: String,
    grp: String,
    number: i64,
    stage: i64,
    version: String,
    granted_at: i64,
    phase: String,
    phase_at: i64,
    failed_in: Option<i64>,
    last_event: Option<String>,
}

/// Up to `limit` nodes in one of some phases that were let go in a rollout, or in one of the same channel before it and are still under
/// way, after a node, by id: each once, with the grant that it was given last.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(
    conn: &mut Connection,
    rollout: &Rollout,
    phases: &Phases,
    after: Option<&NodeId>,
    limit: u32,
) -> Result<Vec<RolloutNode>, StoreError> {
    let mut query = sqlx::query_as::<_, Row>(
        "SELECT g.node, g.grp, g.number, g.stage, g.version, g.granted_at, g.phase, g.phase_at, g.failed_in,
         (SELECT document FROM event WHERE event.node = g.node ORDER BY id DESC LIMIT 1) AS last_event
         FROM rollout_grant AS g
         WHERE g.channel = $1 AND (g.number = $2 OR g.phase IN ('granted', 'activated', 'rebooting')) AND g.node > $3
         AND NOT EXISTS (SELECT 1 FROM rollout_grant AS later WHERE later.node = g.node AND later.given > g.given
           AND later.channel = $1 AND (later.number = $2 OR later.phase IN ('granted', 'activated', 'rebooting')))
         AND g.phase IN ($5, $6, $7, $8, $9, $10, $11, $12)
         ORDER BY g.node LIMIT $4",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(after.map_or("", NodeId::as_str))
    .bind(i64::from(limit));
    // As many as there are places: some are named more than once.
    let wanted: Vec<GrantPhase> = phases.iter().collect();
    for phase in wanted.iter().cycle().take(GrantPhase::ALL.len()) {
        query = query.bind(phase.as_str());
    }
    let rows = query.fetch_all(conn).await?;
    rows.into_iter().map(|row| node(row, rollout)).collect()
}

fn node(row: Row, rollout: &Rollout) -> Result<RolloutNode, StoreError> {
    let grant = Grant {
        version: parse("a version", row.version)?,
        granted_at: from_micros(row.granted_at)?,
        phase: parse("a grant's phase", row.phase)?,
        phase_at: from_micros(row.phase_at)?,
    };
    let number = from_number(row.number)?;
    let counts = row.failed_in.is_some_and(|failed_in| failed_in >= to_number(rollout.resumes));
    Ok(RolloutNode {
        node: parse("a node id", row.node)?,
        group: parse("a group", row.grp)?,
        rollout: number,
        // Those of a policy before have none.
        stage: u32::try_from(row.stage).ok(),
        forgiven: number == rollout.number && grant.phase.is_failure() && !counts,
        grant,
        last_event: row.last_event.map(event).transpose()?,
    })
}

/// How many nodes are under way that were let go in an earlier rollout of the same channel.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn in_flight_before(conn: &mut Connection, rollout: &Rollout) -> Result<u32, StoreError> {
    let open: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM rollout_grant WHERE channel = $1 AND number <> $2
         AND phase IN ('granted', 'activated', 'rebooting')",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .fetch_one(conn)
    .await?;
    Ok(u32::try_from(open).unwrap_or(u32::MAX))
}

/// How many of the nodes that were let go to a rollout's release failed or fell silent before it was resumed last, so that they count
/// no more.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn forgiven(conn: &mut Connection, rollout: &Rollout) -> Result<u32, StoreError> {
    let forgiven: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM rollout_grant WHERE channel = $1 AND number = $2 AND version = $3
         AND phase IN ('failed', 'rolled-back', 'silent') AND (failed_in IS NULL OR failed_in < $4)",
    )
    .bind(rollout.channel.as_str())
    .bind(to_number(rollout.number))
    .bind(rollout.version.as_str())
    .bind(to_number(rollout.resumes))
    .fetch_one(conn)
    .await?;
    Ok(u32::try_from(forgiven).unwrap_or(u32::MAX))
}
