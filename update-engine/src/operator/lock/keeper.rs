//! Step 9, permit, from the operator's side: where the locks are kept, a server or etcd, and what is done to them there.

use super::etcd::EtcdKeeper;
use crate::cli::node::NodeOptions;
use crate::config::settings::{self, LockBackend};
use crate::operator::policies::unreadable;
use crate::operator::{Client, OperatorError, ServerOptions};
use protocol::digest::Sha256;
use protocol::id::Group;
use protocol::lock::{ClientId, Document, PolicyFile};
use protocol::wire::{LockImport, LockInfo, LockList, LockRelease, Policies, PolicySet, SCHEMA};
use reqwest::Method;

/// Who keeps the locks.
#[derive(Debug)]
pub(super) enum Keeper {
    Server(Client),
    Etcd(EtcdKeeper),
}

/// The locks of a keeper.
#[derive(Debug)]
pub(super) struct Locks {
    pub(super) locks: Vec<LockInfo>,
    /// Groups whose lock is there and cannot be read, each with the reason. A server has none.
    pub(super) unreadable: Vec<(Group, String)>,
}

/// All policies and caps, and what names them where the keeper has a name for them.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) file: PolicyFile,
    digest: Option<Sha256>,
}

/// Policies to be set.
#[derive(Debug)]
pub(super) struct Change<'a> {
    /// As the operator saw them.
    pub(super) before: &'a Seen,
    /// The groups that are set, and all caps.
    pub(super) wanted: &'a PolicyFile,
    pub(super) why: &'a str,
}

/// A lock of another system.
#[derive(Debug)]
pub(super) struct Import<'a> {
    pub(super) document: &'a Document,
    pub(super) max: u32,
    /// Whose it was.
    pub(super) system: &'a str,
    pub(super) why: &'a str,
}

impl Keeper {
    /// The server that is named; else the etcd that this machine's configuration, or the one that is named, has for the
    /// lock. The rest of the configuration does not matter.
    pub(super) fn new(server: &ServerOptions, node: &NodeOptions) -> Result<Self, OperatorError> {
        if server.server.as_deref().is_some_and(|text| !text.is_empty()) {
            return Ok(Self::Server(Client::new(server)?));
        }
        let merged = node.merged()?;
        let lock = settings::Lock::from_merged(&merged)?;
        let found = match &lock.backend {
            LockBackend::Etcd(etcd) => return Ok(Self::Etcd(EtcdKeeper::new(etcd, &lock)?)),
            LockBackend::Server => "server",
            LockBackend::FleetLock { .. } => "fleetlock",
        };
        Err(OperatorError::NoLock { found, searched: merged.searched() })
    }

    /// A name for it, for messages.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Server(_) => "the server",
            Self::Etcd(_) => "etcd",
        }
    }

    pub(super) async fn lock(&self, group: &Group) -> Result<LockInfo, OperatorError> {
        match self {
            Self::Server(client) => client.get(&format!("api/v1/locks/{group}")).await,
            Self::Etcd(etcd) => etcd.lock(group).await,
        }
    }

    pub(super) async fn locks(&self) -> Result<Locks, OperatorError> {
        match self {
            Self::Server(client) => {
                let LockList { locks, .. } = client.get("api/v1/locks").await?;
                Ok(Locks { locks, unreadable: Vec::new() })
            }
            Self::Etcd(etcd) => etcd.locks().await,
        }
    }

    /// Takes a permit away, if it is still this grant.
    pub(super) async fn release(
        &self,
        group: &Group,
        node: &ClientId,
        grant: u64,
        why: &str,
    ) -> Result<(), OperatorError> {
        match self {
            Self::Server(client) => {
                let body = LockRelease { schema: SCHEMA, node: node.clone(), grant, why: why.to_owned() };
                let path = format!("api/v1/locks/{group}/release");
                client.change::<_, LockInfo>(Method::POST, &path, &body).await.map(drop)
            }
            Self::Etcd(etcd) => etcd.release(group, node, grant, why).await,
        }
    }

    pub(super) async fn policies(&self) -> Result<Seen, OperatorError> {
        match self {
            Self::Server(client) => {
                let Policies { digest, file, .. } = client.get("api/v1/lock-policy").await?;
                let file = PolicyFile::parse(client.server(), &file).map_err(|errors| unreadable(&errors))?;
                Ok(Seen { file, digest: Some(digest) })
            }
            Self::Etcd(etcd) => Ok(Seen { file: etcd.policies().await?, digest: None }),
        }
    }

    /// Sets policies, if they are still what the operator saw.
    pub(super) async fn set_policies(&self, change: &Change<'_>) -> Result<(), OperatorError> {
        let Change { before, wanted, why } = change;
        match (self, &before.digest) {
            (Self::Server(client), Some(digest)) => {
                let body = PolicySet {
                    schema: SCHEMA,
                    replaces: *digest,
                    file: wanted.to_string(),
                    why: (*why).to_owned(),
                };
                client.change::<_, Policies>(Method::PUT, "api/v1/lock-policy", &body).await.map(drop)
            }
            (Self::Server(client), None) => {
                let server = client.server();
                Err(OperatorError::Wrong(format!("the policies that were seen are not those of {server}")))
            }
            (Self::Etcd(etcd), _) => etcd.set_policies(&before.file, wanted, why).await,
        }
    }

    /// Takes over the lock of another system; how many hold a permit then.
    pub(super) async fn import(&self, import: &Import<'_>) -> Result<usize, OperatorError> {
        let Import { document, max, system, why } = import;
        match self {
            Self::Server(client) => {
                let body = LockImport {
                    schema: SCHEMA,
                    system: (*system).to_owned(),
                    max: *max,
                    holders: document.holders.iter().map(|holder| holder.node.clone()).collect(),
                    why: (*why).to_owned(),
                };
                let path = format!("api/v1/locks/{}/import", document.group);
                let info: LockInfo = client.change(Method::POST, &path, &body).await?;
                Ok(info.view.document.holders.len())
            }
            Self::Etcd(etcd) => etcd.import(document, system, why).await,
        }
    }
}
