//! The backends, as they run, and how a node is made a client of one.

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use protocol::id::{Group, NodeId};
use protocol::lock::{Command, Policy, Reply};
use protocol::wire::NodeCredential;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tests::etcd::{Cluster, Setup};
use tests::lock_server::LockServer;
use tests::postgres;
use tests::programs::Programs;
use update_engine::config::fragment::Fragment;
use update_engine::config::{Merged, Settings};
use update_engine::lock::LockClient;
use update_engine::network;

/// What keeps the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An update server with its own SQLite database
    Sqlite,
    /// An update server on a PostgreSQL of its own
    Postgres,
    /// One etcd member
    Etcd1,
    /// Three etcd members
    Etcd3,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Sqlite, Self::Postgres, Self::Etcd1, Self::Etcd3];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Etcd1 => "etcd1",
            Self::Etcd3 => "etcd3",
        })
    }
}

/// A backend that runs.
pub(crate) enum Backend {
    Server(&'static str, LockServer),
    Etcd(&'static str, Cluster),
}

/// All that run.
pub(crate) struct Stage {
    pub(crate) backends: Vec<Backend>,
    // The servers go before their databases.
    _databases: Vec<postgres::Cluster>,
}

impl Stage {
    pub(crate) async fn set(kinds: &[Kind], other_server: Option<&Path>) -> Result<Self> {
        let programs = Programs::find()?;
        let cluster = |members| Setup { members, election: Duration::from_secs(1), tls: None, wires: false };
        let (mut backends, mut databases) = (Vec::new(), Vec::new());
        for kind in kinds {
            backends.push(match kind {
                Kind::Sqlite => Backend::Server("update-server, SQLite", LockServer::start(&programs, &[])?),
                Kind::Postgres => {
                    let database = postgres::Cluster::start_durable()?;
                    let url = database.url(&database.create()?);
                    databases.push(database);
                    let server = LockServer::start(&programs, &["--database-url", &url])?;
                    Backend::Server("update-server, PostgreSQL", server)
                }
                Kind::Etcd1 => Backend::Etcd("etcd, one member", Cluster::start(cluster(1)).await?),
                Kind::Etcd3 => Backend::Etcd("etcd, three members", Cluster::start(cluster(3)).await?),
            });
        }
        if let Some(other) = other_server {
            let programs = Programs { update_server: other.canonicalize()?, ..programs };
            backends
                .push(Backend::Server("the other update-server, SQLite", LockServer::start(&programs, &[])?));
        }
        Ok(Self { backends, _databases: databases })
    }
}

impl Backend {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Server(name, _) | Self::Etcd(name, _) => name,
        }
    }

    /// A node's client, as its engine makes it from a configuration. Each node begins with another etcd member.
    pub(crate) fn client(&self, group: &Group, node: &NodeId, number: usize) -> Result<LockClient> {
        let (server, lock) = match self {
            Self::Server(_, server) => (server.address().to_owned(), String::new()),
            Self::Etcd(_, cluster) => {
                let mut endpoints = cluster.endpoints();
                let members = endpoints.len();
                endpoints.rotate_left(number % members);
                let lock = format!("[lock]\nbackend = \"etcd\"\n[lock.etcd]\nendpoints = {endpoints:?}\n");
                ("http://127.0.0.1:1".to_owned(), lock)
            }
        };
        let text = format!(
            "[server]\nurl = \"{server}/\"\n[identity]\nchannel = \"stable\"\ngroup = \"{group}\"\n{lock}"
        );
        let fragment = Fragment::parse(Path::new("node.toml"), &text)?;
        let settings = Settings::from_merged(&Merged::from_fragments([fragment]))?;
        let mut secret = [0; 32];
        hex::decode_to_slice(node.as_str(), &mut secret[..16])?;
        let client = network::Client::new(&settings.server, settings.download.clone())?
            .with_credential(NodeCredential::from_random(secret));
        Ok(LockClient::new(&settings.lock, &client, node)?)
    }

    /// Makes the group.
    pub(crate) async fn set_policy(&self, group: &Group, policy: Policy) -> Result<()> {
        match self {
            Self::Server(_, server) => server.set_policy(group, policy, "bench").await,
            Self::Etcd(..) => {
                let policy = Box::new(policy);
                let set = Command::SetPolicy { policy, who: "bench".to_owned(), why: "bench".to_owned() };
                let reply = self
                    .client(group, &node_id(group, 0)?, 0)?
                    .perform(&set)
                    .await
                    .context("the policy was not set")?;
                ensure!(reply == Reply::Done, "the policy was not set: {reply:?}");
                Ok(())
            }
        }
    }
}

/// The id of a node, which belongs to one group: a server counts it where it asked last.
pub(crate) fn node_id(group: &Group, number: usize) -> Result<NodeId> {
    let digest = protocol::digest::Sha256::of(format!("{group} {number}").as_bytes()).to_string();
    Ok(digest[..32].parse()?)
}
