//! An etcd cluster, by the engine's client: one for each node, as each node has its own.

use crate::backends::{Backend, timeless};
use crate::script::Step;
use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::id::Group;
use protocol::lock::{ClientId, Command, Document, Reply};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tests::etcd::Cluster;
use update_engine::config::settings::Etcd;
use update_engine::lock::Operator;
use update_engine::lock::etcd::{EtcdLock, Release};

pub(crate) struct EtcdBackend<'a> {
    cluster: &'a Cluster,
    nodes: BTreeMap<ClientId, EtcdLock>,
    operator: Option<EtcdLock>,
}

impl<'a> EtcdBackend<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, nodes: BTreeMap::new(), operator: None }
    }

    fn client(&self) -> Result<EtcdLock> {
        let endpoints = self.cluster.endpoints();
        let settings = Etcd {
            endpoints: endpoints.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            ca: None,
            identity: None,
            login: None,
            prefix: "/flipside".to_owned(),
        };
        Ok(EtcdLock::new(&settings, Duration::from_secs(20), Duration::from_secs(60))?)
    }

    fn operator(&mut self) -> Result<&EtcdLock> {
        if self.operator.is_none() {
            self.operator = Some(self.client()?);
        }
        self.operator.as_ref().context("no operator")
    }

    fn node(&mut self, id: &ClientId) -> Result<&EtcdLock> {
        if !self.nodes.contains_key(id) {
            let client = self.client()?;
            self.nodes.insert(id.clone(), client);
        }
        self.nodes.get(id).context("no such node")
    }

    async fn carry_out(&mut self, step: &Step) -> Result<Reply> {
        let (group, command) = match step {
            Step::Caps(caps) => {
                let operator = self.operator()?;
                let (_, revision) = operator.caps().await?;
                ensure!(operator.set_caps(caps, revision).await?, "the caps were changed by somebody else");
                return Ok(Reply::Done);
            }
            Step::Command(group, command) => (group, command),
        };
        let by = |who: &str, why: &str| Operator { who: who.to_owned(), why: why.to_owned() };
        match (**command).clone() {
            Command::ForceRelease { node, grant, who, why } => {
                Ok(self.operator()?.release(group, Release { node, grant }, by(&who, &why)).await?)
            }
            Command::RemoveNode { node, who, why } => {
                // One that comes back is a new machine: its engine enters it anew.
                self.nodes.remove(&node);
                Ok(self.operator()?.remove_node(group, node, by(&who, &why)).await?)
            }
            Command::SetPolicy { policy, who, why } => {
                Ok(self.operator()?.set_policy(group, *policy, by(&who, &why)).await?)
            }
            Command::Request(request) => {
                let node = self.node(&request.node)?;
                Ok(node.perform(group, &Command::Request(request)).await?)
            }
            // What counts nobody is any client's.
            command => Ok(self.operator()?.perform(group, &command).await?),
        }
    }
}

impl Backend for EtcdBackend<'_> {
    fn name(&self) -> &str {
        "etcd"
    }

    fn told(&self, _: &Step, reply: &Reply) -> String {
        timeless(reply).unwrap_or_default()
    }

    fn take<'a>(&'a mut self, step: &'a Step) -> BoxFuture<'a, Result<String>> {
        async move { timeless(&self.carry_out(step).await?) }.boxed()
    }

    fn look<'a>(&'a mut self, group: &'a Group) -> BoxFuture<'a, Result<(Document, u64)>> {
        async move {
            let view = self.operator()?.view(group).await?;
            Ok((view.document, view.revision))
        }
        .boxed()
    }

    fn groups<'a>(&'a mut self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeSet<Group>>> {
        async move {
            let groups = self.operator()?.groups().await?.into_iter().map(|entry| entry.group);
            Ok(groups.filter(|group| group.as_str().starts_with(prefix)).collect())
        }
        .boxed()
    }
}
