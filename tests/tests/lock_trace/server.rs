//! An update server: nodes by v2 with their own credentials, FleetLock v1, operators by their API.

use crate::backends::{Backend, timeless, timeless_line};
use crate::script::Step;
use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use protocol::id::{Group, NodeId};
use protocol::lock::{ClientId, Command, Document, Refusal, Reply, Wait};
use protocol::wire::{ErrorBody, NodeCredential};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tests::lock_server::{FleetLockSaid, LockServer};
use update_engine::config::fragment::Fragment;
use update_engine::config::{Merged, Settings};
use update_engine::lock::LockClient;
use update_engine::network;

pub(crate) struct ServerBackend<'a> {
    name: &'static str,
    server: &'a LockServer,
    nodes: BTreeMap<(Group, ClientId), LockClient>,
}

impl<'a> ServerBackend<'a> {
    pub(crate) fn new(name: &'static str, server: &'a LockServer) -> Self {
        Self { name, server, nodes: BTreeMap::new() }
    }

    /// The engine's client as it is made from a node's configuration.
    fn node(&mut self, group: &Group, id: &ClientId) -> Result<&LockClient> {
        let key = (group.clone(), id.clone());
        if !self.nodes.contains_key(&key) {
            let text = format!(
                "[server]\nurl = \"{}/\"\n[identity]\nchannel = \"stable\"\ngroup = \"{group}\"\n",
                self.server.address()
            );
            let fragment = Fragment::parse(Path::new("node.toml"), &text)?;
            let settings = Settings::from_merged(&Merged::from_fragments([fragment]))?;
            let node: NodeId = id.as_str().parse()?;
            let mut secret = [7; 32];
            hex::decode_to_slice(id.as_str(), &mut secret[..16])?;
            let client = network::Client::new(&settings.server, settings.download.clone())?
                .with_credential(NodeCredential::from_random(secret));
            self.nodes.insert(key.clone(), LockClient::new(&settings.lock, &client, &node)?);
        }
        self.nodes.get(&key).context("no such node")
    }

    async fn carry_out(&mut self, step: &Step) -> Result<String> {
        let server = self.server;
        let (group, command) = match step {
            Step::Caps(caps) => {
                server.change_policies(|file| file.caps.clone_from(caps), "test").await?;
                return Ok(done());
            }
            Step::Command(group, command) => (group, &**command),
        };
        match command {
            Command::FleetLockRequest { node } => {
                Ok(fleet_lock(&server.fleet_lock("pre-reboot", node, group).await?))
            }
            Command::FleetLockSteady { node } => {
                Ok(fleet_lock(&server.fleet_lock("steady-state", node, group).await?))
            }
            Command::ForceRelease { node, grant, why, .. } => {
                let answer = server.release(group, node, *grant, why).await?;
                if answer.status.is_success() {
                    return Ok(done());
                }
                Ok(refused(answer.status.as_u16(), &answer.read::<ErrorBody>()?.message))
            }
            Command::RemoveNode { node, why, .. } => {
                // The server also says whether it knew the node, also where it only held its credential.
                server.remove_node(node, why).await?;
                Ok(done())
            }
            Command::SetPolicy { policy, why, .. } => {
                server.set_policy(group, (**policy).clone(), why).await?;
                Ok(done())
            }
            command => {
                let node = command_node(command).context("not a node's command")?.clone();
                timeless(&self.node(group, &node)?.perform(command).await?)
            }
        }
    }
}

fn done() -> String {
    "done".to_owned()
}

fn refused(status: u16, line: &str) -> String {
    format!("{status} {}", timeless_line(line))
}

fn fleet_lock(said: &FleetLockSaid) -> String {
    let FleetLockSaid { status, error, retry_after_s } = said;
    let error = error.as_ref().map(|error| format!("{}: {}", error.kind, timeless_line(&error.value)));
    format!("{status} {} {retry_after_s:?}", error.unwrap_or_default())
}

fn command_node(command: &Command) -> Option<&ClientId> {
    match command {
        Command::Request(request) => Some(&request.node),
        Command::Verify { node, .. }
        | Command::Abandon { node, .. }
        | Command::Booted { node, .. }
        | Command::Confirm { node, .. }
        | Command::Fail { node, .. } => Some(node),
        _ => None,
    }
}

/// The kinds of `docs/server.md`.
fn kind(wait: &Wait) -> &'static str {
    match wait {
        Wait::Halted { .. } => "failed_lock_halted",
        Wait::Window { .. } => "failed_lock_window",
        Wait::NoZone | Wait::SizeUnknown { .. } => "failed_lock_policy",
        _ => "failed_lock_semaphore_full",
    }
}

/// How FleetLock v1 tells a reply.
fn as_fleet_lock(reply: &Reply, group: &Group) -> String {
    let no = |status, kind: &str, value: String, retry_after_s| FleetLockSaid {
        status,
        error: Some(protocol::wire::FleetLockError { kind: kind.to_owned(), value }),
        retry_after_s,
    };
    fleet_lock(&match reply {
        Reply::Wait { because, retry_after_s } => {
            no(409, kind(&because[0]), because[0].to_string(), Some(*retry_after_s))
        }
        Reply::Refused { because: Refusal::UnknownGroup { .. } } => {
            let value = format!("there is no group {group}: an operator sets a policy for it first");
            no(400, "unknown_group", value, None)
        }
        Reply::Refused { because } => no(409, "failed_lock_refused", because.to_string(), None),
        _ => FleetLockSaid { status: 200, error: None, retry_after_s: None },
    })
}

impl Backend for ServerBackend<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn told(&self, step: &Step, reply: &Reply) -> String {
        let Step::Command(group, command) = step else { return done() };
        match (&**command, reply) {
            (Command::FleetLockRequest { .. } | Command::FleetLockSteady { .. }, reply) => {
                as_fleet_lock(reply, group)
            }
            (Command::ForceRelease { node, .. }, Reply::Refused { because: Refusal::NotHeld { .. } }) => {
                refused(404, &format!("{node} holds no permit in group {group}"))
            }
            (Command::ForceRelease { .. }, Reply::Refused { because }) => refused(409, &because.to_string()),
            (_, Reply::Done) => done(),
            (_, reply) => timeless(reply).unwrap_or_default(),
        }
    }

    fn take<'a>(&'a mut self, step: &'a Step) -> BoxFuture<'a, Result<String>> {
        self.carry_out(step).boxed()
    }

    fn look<'a>(&'a mut self, group: &'a Group) -> BoxFuture<'a, Result<(Document, u64)>> {
        async move {
            let view = self.server.show(group).await?.context("no such group")?.view;
            Ok((view.document, view.revision))
        }
        .boxed()
    }

    fn groups<'a>(&'a mut self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeSet<Group>>> {
        async move {
            let groups = self.server.list().await?.locks.into_iter().map(|lock| lock.view.document.group);
            Ok(groups.filter(|group| group.as_str().starts_with(prefix)).collect())
        }
        .boxed()
    }
}
