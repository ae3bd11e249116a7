//! Step 9, permit: the node's side of the reboot lock. Asks a lock; decides nothing.
//!
//! [`LockClient`] is one of three backends: the update server, an etcd cluster, or any FleetLock v1 server. The first two
//! hold the [`Document`] of `protocol::lock` and give the same answers; FleetLock v1 has neither attempts nor boots nor
//! deadlines, and is weaker by that.

mod error;
pub mod etcd;
pub mod fleet_lock;
mod http;
pub mod import;
mod server;
pub(crate) mod shown;
mod swap;
#[cfg(test)]
mod tests;

use crate::config::settings::{Lock, LockBackend};
use crate::network;
pub use error::LockError;
use etcd::EtcdLock;
use fleet_lock::FleetLock;
use protocol::id::{Group, NodeId};
use protocol::lock::{Command, Context, Document, Reply};
use protocol::wire::{LockInfo, LockView, SCHEMA};
use server::ServerLock;

/// The lock of this node's group.
#[derive(Debug)]
pub struct LockClient {
    group: Group,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Server(ServerLock),
    Etcd(Box<EtcdLock>),
    FleetLock(FleetLock),
}

/// A lock as it stands.
#[derive(Clone, Debug)]
pub struct View {
    /// The group's document.
    pub document: Document,
    /// Its revision in the store; 0 where it is not stored yet.
    pub revision: u64,
    /// What decisions are made with beside the document: `protocol::lock::admit` with both says why a node waits.
    pub context: Context,
}

impl View {
    /// The lock with what stands against each node.
    #[must_use]
    pub fn info(self) -> LockInfo {
        let Self { document, revision, context } = self;
        let (population, caps) = (context.population.clone(), context.caps.clone());
        LockInfo::new(LockView { schema: SCHEMA, revision, document, population, caps }, &context)
    }
}

/// Who acts on a lock, for its record.
#[derive(Clone, Debug)]
pub struct Operator {
    /// A name.
    pub who: String,
    /// Why, in their words.
    pub why: String,
}

impl LockClient {
    /// The lock that the settings name, for `node`; asks nothing yet. The update server is asked through `server`, which
    /// carries the node's credential.
    ///
    /// # Errors
    /// [`LockError`] where a file that the settings name cannot be used.
    pub fn new(settings: &Lock, server: &network::Client, node: &NodeId) -> Result<Self, LockError> {
        let backend = match &settings.backend {
            LockBackend::Etcd(etcd) => {
                Backend::Etcd(Box::new(EtcdLock::new(etcd, settings.timeout, settings.deadline)?))
            }
            LockBackend::FleetLock { base_url } => {
                Backend::FleetLock(FleetLock::new(base_url.clone(), settings.timeout)?)
            }
            LockBackend::Server => {
                Backend::Server(ServerLock::new(server.clone(), node.into(), settings.deadline))
            }
        };
        Ok(Self { group: settings.group.clone(), backend })
    }

    /// Carries out a command. It may be given again after any error, and the answer is that of the first time.
    ///
    /// # Errors
    /// [`LockError`]; [`Reply::Wait`] and [`Reply::Refused`] are answers.
    pub async fn perform(&self, command: &Command) -> Result<Reply, LockError> {
        match &self.backend {
            Backend::Server(server) => server.perform(&self.group, command).await,
            Backend::Etcd(etcd) => etcd.perform(&self.group, command).await,
            Backend::FleetLock(fleet_lock) => fleet_lock.perform(&self.group, command).await,
        }
    }

    /// The group's lock as it stands.
    ///
    /// # Errors
    /// [`LockError::Unsupported`] with FleetLock v1, which shows nothing; and any other.
    pub async fn view(&self) -> Result<View, LockError> {
        match &self.backend {
            Backend::Server(server) => server.view(&self.group).await,
            Backend::Etcd(etcd) => etcd.view(&self.group).await,
            Backend::FleetLock(_) => {
                Err(LockError::Unsupported { backend: "fleetlock", what: "show who holds or waits" })
            }
        }
    }
}
