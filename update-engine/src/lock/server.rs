//! Step 9, permit: the update server as the lock: its v2 API, which takes commands and gives replies as they are.

use super::View;
use super::error::LockError;
use crate::network::Client;
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{ClientId, Command, Context, Reply};
use protocol::wire::{self, LockCommand, LockView};
use std::time::Duration;

/// The lock at the update server.
#[derive(Debug)]
pub(super) struct ServerLock {
    client: Client,
    node: ClientId,
    /// For a whole question.
    deadline: Duration,
}

impl ServerLock {
    pub(super) const fn new(client: Client, node: ClientId, deadline: Duration) -> Self {
        Self { client, node, deadline }
    }

    pub(super) async fn perform(&self, group: &Group, command: &Command) -> Result<Reply, LockError> {
        let command = LockCommand { schema: wire::SCHEMA, command: command.clone() };
        if command.node().is_none() {
            return Err(LockError::Unsupported {
                backend: "server",
                what: "take an operator's command from a node: use updatectl lock with --server",
            });
        }
        let answer = tokio::time::timeout(self.deadline, self.client.lock_command(group, &command));
        let answer = answer.await.map_err(|_| self.late())?;
        Ok(answer?.reply)
    }

    pub(super) async fn view(&self, group: &Group) -> Result<View, LockError> {
        let view = tokio::time::timeout(self.deadline, self.client.lock_view(group, &self.node));
        let view = view.await.map_err(|_| self.late())??;
        let Some(LockView { revision, document, population, caps, .. }) = view else {
            return Err(LockError::UnknownGroup { group: group.clone() });
        };
        let context = Context { now: Timestamp::now(), population, caps, quorum: None };
        Ok(View { document, revision, context })
    }

    fn late(&self) -> LockError {
        LockError::Deadline { after: self.deadline, source: None }
    }
}
