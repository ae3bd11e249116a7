//! Steps 4 and 12: how long is kept what nodes said, and what is counted of it before.
//!
//! What is to be deleted is found by reading and deleted in small changes, so that nodes and operators wait for none of them
//! for long. Several servers on one database may do this at once: what one has deleted or counted, the other does not find.

use crate::server::App;
use crate::store::audit::{self, Change};
use crate::store::{Connection, StoreError, credentials, locks, nodes, old, rollouts, standing, stats};
use jiff::{SignedDuration, Timestamp};
use protocol::lock::{ClientId, Document};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// How often is looked for what is old.
const EVERY: Duration = Duration::from_secs(600);
/// How many rows one change deletes at most.
pub const ROWS: u32 = 500;
/// How many rollouts of a channel keep their grants beside the newest one.
pub const ROLLOUTS_KEPT: u64 = 10;
/// The newest events of a node stay, however old they are.
pub const NEWEST_KEPT: u32 = 32;
/// How long counts of versions are kept.
const VERSIONS_KEPT: SignedDuration = SignedDuration::from_hours(366 * 24);
/// Nodes not heard of for so long are not counted.
const COUNTED: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How long is kept what nodes said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events, but for the newest of each node.
    pub events: SignedDuration,
    /// Nodes that are not heard of; none for good.
    pub nodes: Option<SignedDuration>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { events: SignedDuration::from_hours(90 * 24), nodes: None }
    }
}

/// Does so every few minutes, until the server ends.
pub async fn run(app: App, mut stopped: watch::Receiver<bool>) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        loop {
            every.tick().await;
            if let Err(error) = tick(&app).await {
                tracing::error!(error = crate::error::chain(&error), "what is old was not deleted");
            }
        }
    };
    // Ended between two awaits it leaves a change that never was.
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

/// Counts what is to be counted, and deletes what is old.
///
/// # Errors
/// [`StoreError`]; what was deleted before it stays deleted.
pub async fn tick(app: &App) -> Result<(), StoreError> {
    let keep = app.retention();
    count_versions(app).await?;
    forget_versions(app).await?;
    forget_events(app, keep.events).await?;
    forget_grants(app).await?;
    match keep.nodes {
        Some(silence) => forget_nodes(app, silence).await,
        None => Ok(()),
    }
}

fn before(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

async fn count_versions(app: &App) -> Result<(), StoreError> {
    let now = app.now();
    if stats::is_counted(&mut *app.store().read().await?, now).await? {
        return Ok(());
    }
    app.checkins().flush(app.store()).await?;
    let mut change = app.store().write().await?;
    if stats::count_versions(&mut change, now, before(now, COUNTED)).await? {
        change.commit().await?;
    }
    Ok(())
}

async fn forget_versions(app: &App) -> Result<(), StoreError> {
    let oldest = before(app.now(), VERSIONS_KEPT);
    while old::has_hours(&mut *app.store().read().await?, oldest).await? {
        let mut change = app.store().write().await?;
        old::forget_oldest_hour(&mut change, oldest).await?;
        change.commit().await?;
    }
    Ok(())
}

async fn forget_events(app: &App, keep: SignedDuration) -> Result<(), StoreError> {
    let oldest = before(app.now(), keep);
    let (mut after, mut deleted) = (0, 0);
    loop {
        let page = old::old_events(&mut *app.store().read().await?, after, oldest, NEWEST_KEPT, ROWS).await?;
        let Some(page) = page else { break };
        if page.old > 0 {
            let mut change = app.store().write().await?;
            deleted += old::delete_events(&mut change, after, page, oldest, NEWEST_KEPT).await?;
            change.commit().await?;
        }
        after = page.last;
    }
    if deleted > 0 {
        tracing::info!(deleted, %oldest, "old events are deleted");
    }
    Ok(())
}

/// Deletes the grants of rollouts long past. Of a large fleet's there are a million.
async fn forget_grants(app: &App) -> Result<(), StoreError> {
    let all = rollouts::list(&mut *app.store().read().await?).await?;
    for rollout in all {
        let first = rollout.number.saturating_sub(ROLLOUTS_KEPT);
        while old::has_grants(&mut *app.store().read().await?, &rollout.channel, first).await? {
            let mut change = app.store().write().await?;
            old::delete_grants(&mut change, &rollout.channel, first, ROWS).await?;
            change.commit().await?;
        }
    }
    Ok(())
}

async fn forget_nodes(app: &App, silence: SignedDuration) -> Result<(), StoreError> {
    let now = app.now();
    let oldest = before(now, silence);
    // What was said just now must be in the database.
    app.checkins().flush(app.store()).await?;
    let mut after = String::new();
    loop {
        let ids = old::silent(&mut *app.store().read().await?, &after, oldest, ROWS).await?;
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            if let Ok(node) = id.parse::<ClientId>() {
                while !forget_node(app, &node, silence, now).await? {}
            }
            after = id;
        }
    }
}

/// Deletes some of a silent node's events, or, once there are none, the node. True if there is nothing left to be done.
async fn forget_node(
    app: &App,
    node: &ClientId,
    silence: SignedDuration,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let oldest = before(now, silence);
    let _turn = app.lock_turn().await;
    let mut change = app.store().write().await?;
    // It may have been heard of since it was found, by another server too.
    if !old::is_silent(&mut change, node.as_str(), oldest).await?
        || has_to_do_with_a_lock(&mut change, node).await?
    {
        return Ok(true);
    }
    if old::delete_events_of(&mut change, node.as_str(), ROWS.into()).await? > 0 {
        change.commit().await?;
        return Ok(false);
    }
    nodes::remove(&mut change, node).await?;
    locks::forget_place(&mut change, node).await?;
    credentials::forget(&mut change, node).await?;
    standing::clear_group(&mut change, node).await?;
    let detail = format!("not heard of for {} days", silence.as_hours() / 24);
    let entry = Change { actor: "server", action: "node.forget", subject: node.as_str(), detail: &detail };
    audit::record(&mut change, now, entry).await?;
    change.commit().await?;
    app.credentials().forget(node);
    tracing::info!(%node, detail, "a node is forgotten");
    Ok(true)
}

/// Whether it holds a permit or waits for one.
async fn has_to_do_with_a_lock(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let has = |document: &Document| {
        document.holder(node).is_some() || document.queue.iter().any(|waiter| waiter.node == *node)
    };
    Ok(locks::list(conn).await?.iter().any(|(_, document)| has(document)))
}
