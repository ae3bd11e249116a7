//! Step 4, channel: signs of life, gathered. A check does not wait for the database: what nodes said is written once
//! a second in one transaction. What a crash loses is said again at the next poll.

use crate::store::{Store, StoreError, nodes};
use jiff::Timestamp;
use protocol::id::NodeId;
use protocol::wire::{QUARANTINE_MAX, UpdateCheck};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many nodes may wait to be written: above it a check does wait. It bounds the memory.
const WAITING_MAX: usize = 20_000;

/// What nodes said and the database does not know yet.
#[derive(Debug, Default)]
pub struct CheckIns {
    waiting: Mutex<HashMap<NodeId, (UpdateCheck, Timestamp)>>,
    /// Held while writing, so that who flushes before reading finds what another one has taken and not yet written.
    writing: tokio::sync::Mutex<()>,
}

impl CheckIns {
    fn waiting(&self) -> MutexGuard<'_, HashMap<NodeId, (UpdateCheck, Timestamp)>> {
        // Nothing panics while holding the lock; and a map is whole at every point.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a node said. True if so much waits that it should be written now.
    #[must_use]
    pub fn add(&self, mut check: UpdateCheck, at: Timestamp) -> bool {
        if let Some(quarantine) = check.quarantine.as_mut().filter(|all| all.len() > QUARANTINE_MAX) {
            // What waits is bounded, whatever a node says.
            *quarantine = quarantine.split_off(quarantine.len() - QUARANTINE_MAX);
        }
        let mut waiting = self.waiting();
        waiting.insert(check.node.clone(), (check, at));
        waiting.len() >= WAITING_MAX
    }

    /// How many nodes' words wait to be written.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.waiting().len()
    }

    /// Writes what waits. When it returns, everything that was said before is in the database.
    ///
    /// # Errors
    /// [`StoreError`]; what was not written waits again.
    pub async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let _turn = self.writing.lock().await;
        let taken = std::mem::take(&mut *self.waiting());
        if taken.is_empty() {
            return Ok(());
        }
        let written = write(store, &taken).await;
        if written.is_err() {
            let mut waiting = self.waiting();
            for (node, said) in taken {
                waiting.entry(node).or_insert(said);
            }
        }
        written
    }
}

async fn write(store: &Store, taken: &HashMap<NodeId, (UpdateCheck, Timestamp)>) -> Result<(), StoreError> {
    let mut change = store.write().await?;
    let mut checks: Vec<(&UpdateCheck, Timestamp)> = taken.values().map(|(check, at)| (check, *at)).collect();
    // In the order of the table, so that neighbours are written together.
    checks.sort_by(|(a, _), (b, _)| a.node.cmp(&b.node));
    nodes::seen(&mut change, &checks).await?;
    Ok(change.commit().await?)
}
