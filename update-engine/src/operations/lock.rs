//! Step 9, permit: what the state machine asks of the reboot lock, put into the words of `protocol::lock` and sent.

use super::Operations;
use crate::config::settings::Lock;
use crate::error::chain;
use crate::lock::{LockClient, LockError};
use crate::network::Client;
use machine::{Ask, Failure, FailureKind, Question};
use protocol::id::NodeId;
use protocol::lock::{ClientId, Command, Reply, Request};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long the lock is given to hear that a release is up: its health check comes after that, and waits no longer.
const BOOTED_WAIT: Duration = Duration::from_secs(5);

/// The reboot lock of this node.
#[derive(Debug)]
pub struct Locking {
    settings: Lock,
    server: Client,
    node: NodeId,
    /// Made when it is first needed, and then kept: a file that the settings name may come, or be mended, while the engine
    /// runs, and must not keep it from confirming a release.
    client: OnceCell<LockClient>,
}

impl Locking {
    /// The lock that the settings name; asks nothing yet.
    #[must_use]
    pub fn new(settings: Lock, server: Client, node: NodeId) -> Self {
        Self { settings, server, node, client: OnceCell::new() }
    }

    async fn client(&self) -> Result<&LockClient, LockError> {
        let make = async || LockClient::new(&self.settings, &self.server, &self.node);
        self.client.get_or_try_init(make).await
    }

    fn command(&self, question: Question) -> Command {
        let Question { attempt, boot_id: boot, running, version, ask } = question;
        let node = ClientId::from(&self.node);
        match ask {
            Ask::Request => Command::Request(Request {
                node,
                attempt,
                boot,
                reason: format!("update from {running} to {version}"),
                from: running,
                to: version,
                zone: self.settings.zone.clone(),
                etcd_member: self.settings.etcd_member.clone(),
                priority: self.settings.priority,
            }),
            Ask::Verify => Command::Verify { node, attempt, boot },
            Ask::Abandon => Command::Abandon { node, attempt, boot },
            Ask::Booted => Command::Booted { node, attempt, boot, version },
            Ask::Confirm => Command::Confirm { node, attempt, boot, version },
            Ask::Fail { reason } => Command::Fail { node, attempt, boot, reason },
        }
    }

    async fn ask(&self, question: Question) -> Result<Reply, LockError> {
        self.client().await?.perform(&self.command(question)).await
    }
}

fn failure(error: &LockError) -> Failure {
    let kind = if error.is_passing() { FailureKind::Network } else { FailureKind::Node };
    let retry_after_s = match error {
        LockError::Server(error) => error.retry_after().map(|pause| pause.as_secs()),
        _ => None,
    };
    Failure { kind, detail: chain(error), retry_after_s }
}

impl Operations {
    pub(super) async fn ask_lock(&self, question: Question) -> Result<Reply, Failure> {
        let wait = (question.ask == Ask::Booted).then_some(BOOTED_WAIT);
        let asked = async { self.lock.ask(question).await.map_err(|error| failure(&error)) };
        let asked = self.unless_stopped(asked);
        match wait {
            None => asked.await,
            Some(wait) => tokio::time::timeout(wait, asked).await.unwrap_or_else(|_| {
                Err(Failure::new(
                    FailureKind::Network,
                    format!("no answer in {} s: updatectl lock status asks for longer", wait.as_secs()),
                ))
            }),
        }
    }
}
