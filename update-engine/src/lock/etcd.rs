//! Step 9, permit: the lock in etcd v3. One key per group holds the document, guarded by its ModRevision; nothing
//! expires there, so a permit survives whatever happens to nodes and members.
//!
//! | key | value |
//! |---|---|
//! | `<prefix>/v1/groups/<group>/lock` | the [`Document`], as JSON |
//! | `<prefix>/v1/groups/<group>/nodes/<node>` | the node's zone, or nothing: counted for percentages |
//! | `<prefix>/v1/caps` | the [`Caps`] over several groups, as JSON |

mod gateway;
mod operate;
mod quorum;
mod wire;

use super::View;
use super::error::LockError;
use super::swap::{self, Read, Store, Written};
use crate::config::settings;
use gateway::{Gateway, Said, Unanswered, Value};
use protocol::id::Group;
use protocol::lock::{
    Caps, ClientId, Command, Context, Document, Policy, Population, Reply, Usage, Zone, apply,
};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use operate::{Entry, Release};

/// The schema of documents that this program reads and writes.
const SCHEMA: u32 = 1;

/// The group that exists from the start.
pub const DEFAULT_GROUP: &str = "default";

/// The lock in an etcd cluster.
#[derive(Debug)]
pub struct EtcdLock {
    gateway: Gateway,
    keys: Keys,
    /// For a whole question.
    deadline: Duration,
    /// Whether this process has entered its node among those that are counted.
    entered: AtomicBool,
}

/// The names of keys.
#[derive(Clone, Debug)]
struct Keys {
    prefix: String,
}

impl Keys {
    fn groups(&self) -> String {
        format!("{}/v1/groups/", self.prefix)
    }

    fn lock(&self, group: &Group) -> String {
        format!("{}{group}/lock", self.groups())
    }

    fn nodes(&self, group: &Group) -> String {
        format!("{}{group}/nodes/", self.groups())
    }

    fn node(&self, group: &Group, node: &ClientId) -> String {
        format!("{}{node}", self.nodes(group))
    }

    fn caps(&self) -> String {
        format!("{}/v1/caps", self.prefix)
    }

    /// The group whose lock a key is.
    fn group_of(&self, key: &str) -> Option<Group> {
        key.strip_prefix(&self.groups())?.strip_suffix("/lock")?.parse().ok()
    }
}

impl EtcdLock {
    /// The lock of a cluster; asks nothing yet. One request takes at most `timeout`, a whole question `deadline`.
    ///
    /// # Errors
    /// [`LockError::File`], [`LockError::Pem`], [`LockError::Setup`] where its certificates cannot be used.
    pub fn new(settings: &settings::Etcd, timeout: Duration, deadline: Duration) -> Result<Self, LockError> {
        Ok(Self {
            gateway: Gateway::new(settings, timeout)?,
            keys: Keys { prefix: settings.prefix.clone() },
            deadline,
            entered: AtomicBool::new(false),
        })
    }

    /// Carries out a command on a group's lock.
    ///
    /// # Errors
    /// [`LockError`]; the same command may be given again whatever it is.
    pub async fn perform(&self, group: &Group, command: &Command) -> Result<Reply, LockError> {
        if let Command::Request(request) = command {
            self.enter(group, &request.node, request.zone.as_ref()).await;
        }
        let reply = swap::perform(self, group, command, self.deadline).await?;
        if let (Command::RemoveNode { node, .. }, Reply::Done) = (command, &reply) {
            let key = self.keys.node(group, node);
            self.gateway.delete(&key).await.map_err(|unanswered| unanswered.error)?;
        }
        Ok(reply)
    }

    /// The group's document as it is now, the overdue marked as such: that is written only by the next command.
    ///
    /// # Errors
    /// [`LockError::UnknownGroup`], and any other.
    pub async fn view(&self, group: &Group) -> Result<View, LockError> {
        let read = tokio::time::timeout(self.deadline, self.snapshot(group, Needs::ALL));
        let late = |_| LockError::Deadline { after: self.deadline, source: None };
        let snapshot = read.await.map_err(late)??;
        let Some(document) = snapshot.document else {
            return Err(LockError::UnknownGroup { group: group.clone() });
        };
        let now = apply(&document, &Command::Tick, &snapshot.context).document;
        Ok(View { document: now.unwrap_or(document), revision: snapshot.revision, context: snapshot.context })
    }

    /// Enters the node among those that are counted for percentages, once per process. Where that fails, one node too
    /// few is counted, which never grants too much.
    async fn enter(&self, group: &Group, node: &ClientId, zone: Option<&Zone>) {
        if self.entered.load(Ordering::Relaxed) {
            return;
        }
        let (key, zone) = (self.keys.node(group, node), zone.map_or("", Zone::as_str));
        let entered = tokio::time::timeout(self.deadline, async {
            let known = self.gateway.get(&[&key]).await?.answer;
            let revision = known.first().map_or(0, |value| value.revision);
            if known.iter().any(|value| value.bytes.as_deref() == Some(zone.as_bytes())) {
                return Ok(true);
            }
            let guard = [(key.clone(), revision)];
            self.gateway.put_if(&guard, &key, zone.into()).await.map_err(|unanswered| unanswered.error)
        });
        match entered.await {
            Ok(Ok(done)) => self.entered.store(done, Ordering::Relaxed),
            Ok(Err(error)) => {
                tracing::warn!("this node is not counted in its group yet: {}", crate::error::chain(&error));
            }
            Err(_) => tracing::warn!("this node is not counted in its group yet: etcd does not answer"),
        }
    }

    /// Reads what a decision rests on, all of it at one revision but for the number of nodes and the members' health.
    async fn snapshot(&self, group: &Group, needs: Needs) -> Result<Snapshot, LockError> {
        let (lock, caps) = (self.keys.lock(group), self.keys.caps());
        let first = [lock.as_str(), caps.as_str()];
        let first = if needs.caps { &first[..] } else { &first[..1] };
        let mut read = self.gateway.get(first).await?;
        let mut others = self.others_under_caps(group, &read.answer)?;
        if !others.is_empty() {
            let mut keys = first.to_vec();
            keys.extend(others.iter().map(|(_, key)| key.as_str()));
            read = self.gateway.get(&keys).await?;
            // The caps may have been changed between the two: then the guard fails, or the next try sees them.
            let known: BTreeSet<_> = others.iter().map(|(group, _)| group.clone()).collect();
            others = self.others_under_caps(group, &read.answer)?;
            if others.iter().any(|(group, _)| !known.contains(group)) {
                return Err(LockError::Contended { tries: 1, after: Duration::ZERO });
            }
        }
        let Said { answer: values, at } = read;
        let guard: Vec<_> = values.iter().map(|value| (value.key.clone(), value.revision)).collect();
        let revision = values.first().map_or(0, |value| value.revision);
        let document = match values.first() {
            Some(value) => self.document(group, value)?,
            None => None,
        };
        let default =
            (group.as_str() == DEFAULT_GROUP).then(|| Document::new(group.clone(), Policy::default()));
        let mut context =
            Context { now: at, population: None, caps: self.usage(group, &values)?, quorum: None };
        let document = document.or(default);
        if let Some(Document { policy, .. }) = &document {
            if needs.population && policy.counts_nodes() {
                context.population = self.population(group).await?;
            }
            if needs.quorum && policy.quorum.is_some() {
                context.quorum = quorum::health(&self.gateway).await?;
            }
        }
        Ok(Snapshot { document, revision, context, guard })
    }

    /// The other groups that share a cap with this one, with the keys of their locks.
    fn others_under_caps(&self, group: &Group, values: &[Value]) -> Result<Vec<(Group, String)>, LockError> {
        let caps = self.caps_of(values)?;
        let shared = caps.caps.values().filter(|cap| cap.groups.contains(group));
        let others: BTreeSet<&Group> =
            shared.flat_map(|cap| &cap.groups).filter(|other| *other != group).collect();
        Ok(others.into_iter().map(|other| (other.clone(), self.keys.lock(other))).collect())
    }

    fn caps_of(&self, values: &[Value]) -> Result<Caps, LockError> {
        let key = self.keys.caps();
        match values.iter().find(|value| value.key == key) {
            Some(Value { bytes: Some(bytes), .. }) => parse(&key, "caps", bytes),
            _ => Ok(Caps::default()),
        }
    }

    /// How far the caps that count this group are used up by the others.
    fn usage(&self, group: &Group, values: &[Value]) -> Result<Vec<Usage>, LockError> {
        let caps = self.caps_of(values)?;
        let mut held = BTreeMap::new();
        for value in values {
            // The own document is read by who asks.
            if let Some(other) = self.keys.group_of(&value.key).filter(|other| other != group)
                && let Some(document) = self.document(&other, value)?
            {
                held.insert(other, u32::try_from(document.holders.len()).unwrap_or(u32::MAX));
            }
        }
        let usage = |(name, cap): (String, protocol::lock::Cap)| {
            let others: BTreeSet<&Group> = cap.groups.iter().filter(|other| *other != group).collect();
            let counts = others.into_iter().filter_map(|other| held.get(other));
            Usage { cap: name, max: cap.max, held_elsewhere: counts.fold(0, |all, n| all.saturating_add(*n)) }
        };
        Ok(caps.caps.into_iter().filter(|(_, cap)| cap.groups.contains(group)).map(usage).collect())
    }

    /// A stored document; none where there is none. One that is damaged, of another schema or another group is an error.
    fn document(&self, group: &Group, value: &Value) -> Result<Option<Document>, LockError> {
        #[derive(serde::Deserialize)]
        struct Numbered {
            schema: u64,
        }
        let Some(bytes) = &value.bytes else { return Ok(None) };
        let key = self.keys.lock(group);
        let document = match parse::<Document>(&key, "lock document", bytes) {
            Ok(document) if document.is_known() => document,
            read => {
                // One of another schema may look like anything.
                let Numbered { schema } = parse(&key, "lock document", bytes)?;
                if schema != u64::from(SCHEMA) {
                    return Err(LockError::Schema { key, found: schema, expected: SCHEMA });
                }
                read?
            }
        };
        if document.group == *group {
            Ok(Some(document))
        } else {
            Err(LockError::OtherGroup { key, found: document.group, expected: group.clone() })
        }
    }

    /// How many nodes the group has; none where there is none, as when this one could not be entered.
    async fn population(&self, group: &Group) -> Result<Option<Population>, LockError> {
        let mut population = Population::default();
        for value in self.gateway.list(&self.keys.nodes(group), false).await? {
            population.total = population.total.saturating_add(1);
            let zone = value.bytes.as_deref().and_then(|zone| std::str::from_utf8(zone).ok()?.parse().ok());
            if let Some(zone) = zone {
                *population.zones.entry(zone).or_default() += 1;
            }
        }
        Ok((population.total > 0).then_some(population))
    }
}

fn parse<T: DeserializeOwned>(key: &str, expected: &'static str, bytes: &[u8]) -> Result<T, LockError> {
    serde_json::from_slice(bytes).map_err(|source| LockError::Corrupt {
        key: key.to_owned(),
        expected,
        source,
    })
}

/// What is to be read beside the document.
#[derive(Clone, Copy)]
struct Needs {
    caps: bool,
    population: bool,
    quorum: bool,
}

impl Needs {
    const ALL: Self = Self { caps: true, population: true, quorum: true };

    const fn of(command: &Command) -> Self {
        let decides = command.decides();
        Self { caps: decides, population: decides, quorum: decides }
    }
}

struct Snapshot {
    document: Option<Document>,
    /// Of the document; 0 where it is not stored yet.
    revision: u64,
    context: Context,
    guard: Vec<(String, u64)>,
}

impl Store for EtcdLock {
    /// The keys that were read, with their revisions.
    type Guard = Vec<(String, u64)>;

    async fn read(&self, group: &Group, command: &Command) -> Result<Option<Read<Self::Guard>>, LockError> {
        let Snapshot { document, revision, context, guard } =
            self.snapshot(group, Needs::of(command)).await?;
        let made_by_policy = matches!(command, Command::SetPolicy { .. });
        let document =
            document.or_else(|| made_by_policy.then(|| Document::new(group.clone(), Policy::default())));
        Ok(document.map(|document| Read { document, is_new: revision == 0, context, guard }))
    }

    async fn write(&self, document: &Document, guard: &Self::Guard) -> Written {
        let key = self.keys.lock(&document.group);
        let bytes = match serde_json::to_vec(document) {
            Ok(bytes) => bytes,
            Err(source) => {
                return Written::Failed(LockError::Corrupt { key, expected: "lock document", source });
            }
        };
        match self.gateway.put_if(guard, &key, bytes).await {
            Ok(true) => Written::Done,
            Ok(false) => Written::Conflict,
            Err(Unanswered { error, maybe_done: true }) => Written::Unknown(error),
            Err(Unanswered { error, maybe_done: false }) => Written::Failed(error),
        }
    }
}
