//! All steps, from outside: what /metrics tells of the database.

use super::{Connection, StoreError, from_micros, locks, rollouts};
use jiff::Timestamp;
use protocol::rollout::{GrantPhase, Rollout};

/// What is told.
#[derive(Debug)]
pub struct Figures {
    /// Channel, version, and how many nodes were there at their last check.
    pub nodes: Vec<(String, String, i64)>,
    /// Releases that are dead ends, and how many nodes ran them at their last check.
    pub dead_ends: Vec<(String, i64)>,
    /// When the newest metadata of each role expires.
    pub expiry: Vec<(String, Timestamp)>,
    /// All reboot locks.
    pub locks: Vec<LockFigures>,
    /// The rollout of each channel.
    pub rollouts: Vec<RolloutFigures>,
}

/// What is told of a rollout.
#[derive(Debug)]
pub struct RolloutFigures {
    /// The rollout.
    pub rollout: Rollout,
    /// How many of its nodes are in each phase on the way to its release: all phases, those without a node too.
    pub nodes: Vec<(GrantPhase, i64)>,
}

/// What is told of a reboot lock.
#[derive(Debug)]
pub struct LockFigures {
    /// Whose it is.
    pub group: String,
    /// Who holds.
    pub holders: i64,
    /// Who waits.
    pub waiters: i64,
    /// Holders whose time is up.
    pub stuck: i64,
}

/// Reads them. Of the pairs of channel and version the `pairs` with most nodes are told apart; anyone can make up more.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn read(conn: &mut Connection, pairs: u32) -> Result<Figures, StoreError> {
    let total: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM node").fetch_one(&mut *conn).await?;
    let mut nodes: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT channel, version, COUNT(*) AS nodes FROM node GROUP BY channel, version
         ORDER BY nodes DESC, channel, version LIMIT $1",
    )
    .bind(i64::from(pairs))
    .fetch_all(&mut *conn)
    .await?;
    let rest = total - nodes.iter().map(|(_, _, count)| count).sum::<i64>();
    if rest > 0 {
        nodes.push(("other".to_owned(), "other".to_owned(), rest));
    }
    // Those without a node too, so that an alert sees how it began.
    let dead_ends = sqlx::query_as(
        "SELECT release.version, COUNT(node.node) FROM release LEFT JOIN node
         ON node.version = release.version AND node.arch = release.arch
           AND NOT EXISTS (SELECT 1 FROM node_revocation AS r WHERE r.node = node.node)
         WHERE release.dead_end IS NOT NULL GROUP BY release.version ORDER BY release.version",
    )
    .fetch_all(&mut *conn)
    .await?;
    let expiry: Vec<(String, i64)> = sqlx::query_as(
        "SELECT role, expires FROM document
         WHERE version = (SELECT MAX(version) FROM document newer WHERE newer.role = document.role)",
    )
    .fetch_all(&mut *conn)
    .await?;
    let expiry = expiry.into_iter().map(|(role, at)| Ok((role, from_micros(at)?)));
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let lock = |(_, lock): (u64, protocol::lock::Document)| LockFigures {
        group: lock.group.to_string(),
        holders: count(lock.holders.len()),
        waiters: count(lock.queue.len()),
        stuck: count(lock.holders.iter().filter(|holder| holder.stuck_since.is_some()).count()),
    };
    Ok(Figures {
        nodes,
        dead_ends,
        expiry: expiry.collect::<Result<_, StoreError>>()?,
        locks: locks::list(conn).await?.into_iter().map(lock).collect(),
        rollouts: rollouts_now(conn).await?,
    })
}

/// The rollouts that run, with their nodes by phase.
async fn rollouts_now(conn: &mut Connection) -> Result<Vec<RolloutFigures>, StoreError> {
    let mut figures = Vec::new();
    for rollout in rollouts::list(conn).await? {
        let counted = rollouts::by_phase(conn, &rollout).await?;
        let of = |phase| counted.iter().find(|(other, _)| *other == phase).map_or(0, |(_, nodes)| *nodes);
        // Those without a node too, so that an alert sees how it began.
        let nodes = GrantPhase::ALL.into_iter().map(|phase| (phase, of(phase))).collect();
        figures.push(RolloutFigures { rollout, nodes });
    }
    Ok(figures)
}
