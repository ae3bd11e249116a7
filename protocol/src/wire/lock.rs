//! Step 9, permit: what is said about the reboot lock, by nodes, by operators, and by FleetLock v1 clients.

use crate::lock::{
    ClientId, Command, Context, Document, Population, Reply, Usage, Wait, holders_wait, waiters_wait,
};
use serde::{Deserialize, Serialize};

/// The longest body of a request about the lock, in bytes, policy files aside.
pub const LOCK_BODY_MAX: usize = 16 << 10;

/// What a node asks of the lock of the group in the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockCommand {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// One that a node may give: request, verify, abandon, booted, confirm, fail.
    pub command: Command,
}

impl LockCommand {
    /// Who gives the command; none if it is one that only operators or FleetLock v1 clients give.
    #[must_use]
    pub const fn node(&self) -> Option<&ClientId> {
        match &self.command {
            Command::Request(request) => Some(&request.node),
            Command::Verify { node, .. }
            | Command::Abandon { node, .. }
            | Command::Booted { node, .. }
            | Command::Confirm { node, .. }
            | Command::Fail { node, .. } => Some(node),
            Command::FleetLockRequest { .. }
            | Command::FleetLockSteady { .. }
            | Command::ForceRelease { .. }
            | Command::RemoveNode { .. }
            | Command::SetPolicy { .. }
            | Command::Tick => None,
        }
    }
}

/// The lock's answer. A refusal and a wait are answers too: only bad input, a wrong credential and a database that does
/// not answer are HTTP errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockAnswer {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// What [`crate::lock::apply`] said, once the change is durable.
    pub reply: Reply,
}

/// One group's lock as it is, with all that decides about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockView {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Counts the changes of the document.
    pub revision: u64,
    /// The document.
    pub document: Document,
    /// How many nodes the group has, where the server has heard of any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub population: Option<Population>,
    /// The caps over several groups that count this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<Usage>,
}

/// One group's lock for an operator: with what stands against each node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockInfo {
    /// The lock.
    #[serde(flatten)]
    pub view: LockView,
    /// What stands against the reboot of each holder that has not rebooted yet, in the document's order.
    pub holding: Vec<LockReasons>,
    /// What each waiter waits for, in the document's order.
    pub waiting: Vec<LockReasons>,
}

impl LockInfo {
    /// The lock with what stands against each node, as it is decided with `context`.
    #[must_use]
    pub fn new(view: LockView, context: &Context) -> Self {
        let told = |all: Vec<(ClientId, Vec<Wait>)>| {
            let lines = |because: Vec<Wait>| because.iter().map(ToString::to_string).collect();
            all.into_iter().map(|(node, because)| LockReasons { node, because: lines(because) }).collect()
        };
        let holding = told(holders_wait(&view.document, context));
        let waiting = told(waiters_wait(&view.document, context));
        Self { view, holding, waiting }
    }
}

/// What stands against one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockReasons {
    /// Which.
    pub node: ClientId,
    /// For people, each in one line; the first is the one to show, and none means that it may go.
    pub because: Vec<String>,
}

/// The locks of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockList {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// By group.
    pub locks: Vec<LockInfo>,
}

/// Takes a permit away, if it is still the one that the operator saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockRelease {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// From whom.
    pub node: ClientId,
    /// [`crate::lock::Holder::grant`] as the operator saw it.
    pub grant: u64,
    /// Why.
    pub why: String,
}

/// Takes over the lock of another system, into a group that nobody holds or waits in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockImport {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Whose lock it was, for the audit log: `locksmith`, `airlock`.
    pub system: String,
    /// How many may hold a permit at once.
    pub max: u32,
    /// Who holds one. They hold as FleetLock v1 clients do: without attempt.
    pub holders: Vec<ClientId>,
    /// Why.
    pub why: String,
}

/// A node is gone for good: its permits and its places in queues go with it, and its credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRemove {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Why.
    pub why: String,
}

/// The body of both requests of FleetLock v1, which is another project's protocol and carries no schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetLockBody {
    /// Who asks.
    pub client_params: FleetLockClient,
}

/// Who asks by FleetLock v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetLockClient {
    /// The client's own id.
    pub id: String,
    /// The group it belongs to.
    pub group: String,
}

/// The body of an error answer of FleetLock v1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetLockError {
    /// For programs, and a label of their metrics: one of a few.
    pub kind: String,
    /// For people: one line.
    pub value: String,
}
