//! Step 4, channel: whether nodes wait in a stage of which nobody has proved anything yet.
//!
//! While they do, the question comes up every few seconds, and the answer needs each node's place and its way to the release, which
//! the database does not know. So nodes are looked at a page at a time, from the one that was found to wait the last time: mostly
//! it still does, and one row says so. All nodes of a channel are read only to find that nobody waits, and then the stage is over.

use crate::decision;
use crate::server::App;
use crate::store::{Connection, StoreError, nodes};
use jiff::{SignedDuration, Timestamp};
use protocol::id::{Channel, NodeId};
use protocol::rollout::{Rollout, place};
use protocol::wire::Decision;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A node not heard of for so long is not waited for before the next stage opens.
const WAITED_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How many nodes are read at once.
const PAGE: u32 = 1000;

/// The node of each channel that was found to wait last.
#[derive(Debug, Default)]
pub struct Waiters(Mutex<BTreeMap<Channel, NodeId>>);

impl Waiters {
    fn get(&self, channel: &Channel) -> Option<NodeId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(channel).cloned()
    }

    fn set(&self, channel: &Channel, node: NodeId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(channel.clone(), node);
    }
}

/// Whether a node could still be let go in the stage that is open, for the first time or again. Asked for people only, where
/// nothing else can open the next stage.
pub(super) async fn anybody_still(
    app: &App,
    conn: &mut Connection,
    rollout: &Rollout,
    now: Timestamp,
) -> Result<bool, StoreError> {
    Ok(first(app, conn, rollout, true, None, now).await?.is_some())
}

/// Whether a node could go in the stage that is open and was not let go yet.
pub(super) async fn anybody(
    app: &App,
    conn: &mut Connection,
    rollout: &Rollout,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let last = app.waiters().get(&rollout.channel);
    let mut found = None;
    if last.is_some() {
        found = first(app, conn, rollout, false, last.clone(), now).await?;
    }
    if found.is_none() {
        found = first(app, conn, rollout, false, None, now).await?;
    }
    let Some(found) = found else { return Ok(false) };
    if last.as_ref() != Some(&found) {
        app.waiters().set(&rollout.channel, found);
    }
    Ok(true)
}

/// The first node that waits, from `from` on, by id; with `again`, of those too that were let go before and may be again. What a
/// node has in quarantine it does not wait for.
async fn first(
    app: &App,
    conn: &mut Connection,
    rollout: &Rollout,
    again: bool,
    mut from: Option<NodeId>,
    now: Timestamp,
) -> Result<Option<NodeId>, StoreError> {
    let since = now.saturating_sub(WAITED_FOR).unwrap_or(Timestamp::MIN);
    let view = app.repository().view();
    let mut limit = if from.is_some() { 1 } else { PAGE };
    loop {
        let page = nodes::not_let_go(conn, rollout, again, since, from.as_ref(), limit).await?;
        let is_last = u32::try_from(page.len()).is_ok_and(|read| read < limit);
        let next = page.last().map(|member| member.node.clone());
        let waits = page.into_iter().find(|member| {
            let goes = || {
                let way = decision::decide(&view.published, &rollout.channel, &member.arch, &member.version);
                let takes = !way.version.is_some_and(|version| member.quarantine.contains(&version));
                way.decision == Decision::Update && takes
            };
            rollout.reaches(&member.group, place(&rollout.version, &member.node)) && goes()
        });
        if let Some(member) = waits {
            return Ok(Some(member.node));
        }
        if is_last || next.is_none() {
            return Ok(None);
        }
        // Read again as the first one of the next page.
        (from, limit) = (next, PAGE);
    }
}
