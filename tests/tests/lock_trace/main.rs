//! The reboot lock's backends decide alike: the same commands are given, one after the other, to [`apply`] on documents
//! in memory, to update servers (on SQLite and on PostgreSQL) by their API, and to etcd by the engine's client. After
//! each one the answers are equal, and so are the documents but for the times in them; and it is written exactly where
//! something changed.
//!
//! The commands follow from a seed. A trace that fails says which: `LOCK_SEED=17 cargo nextest run -p tests --test
//! lock_trace` gives it again; `LOCK_TRACES=100` gives more of them.
//!
//! Each backend is asked in the way it offers:
//!
//! | command | update server | etcd |
//! |---|---|---|
//! | request, verify, abandon, booted, confirm, fail | v2, by the engine's client with each node's own credential | by the engine's client |
//! | FleetLock v1 | `v1/pre-reboot`, `v1/steady-state`: a status, a kind and a line instead of a reply | no v1 client reaches etcd; the same client gives the command |
//! | take a permit, remove a node | the operators' API: done, or a status and a line | `EtcdLock::release`, `remove_node` |
//! | policies, caps | the policy file | `EtcdLock::set_policy`, `set_caps` |
//!
//! What is not in the traces: time that passes (stuck holders, places in the queue that are lost), as both backends are
//! real and have clocks of their own; the guard of an etcd cluster's quorum, for which a server has no cluster to ask, by
//! contract; and groups that change under a node, as the server counts a node where it asked last, and etcd in each
//! group that it asked. Commands at the same time are in `etcd.rs` and in the server's own tests.
//!
//! [`apply`]: protocol::lock::apply

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backends;
mod etcd;
mod memory;
mod script;
mod server;

use anyhow::{Context as _, Result, ensure};
use backends::{Backend, timeless};
use etcd::EtcdBackend;
use memory::Memory;
use script::{Script, Step};
use server::ServerBackend;
use std::collections::BTreeMap;
use std::time::Duration;
use tests::etcd::{Cluster, Setup};
use tests::lock_server::LockServer;
use tests::postgres;
use tests::programs::Programs;

/// Traces, if `LOCK_TRACES` does not say how many.
const TRACES: u64 = 6;
/// Commands in each.
const STEPS: usize = 250;
/// Commands that are told where two backends differ.
const TOLD: usize = 8;

/// What all traces share: fresh groups and nodes are all that one needs.
struct Stage {
    sqlite: LockServer,
    postgres: LockServer,
    etcd: Cluster,
    // The server goes before its database.
    _database: postgres::Cluster,
}

impl Stage {
    async fn set() -> Result<Self> {
        let programs = Programs::find()?;
        let setup = Setup { members: 1, election: Duration::from_secs(1), tls: None, wires: false };
        let database = postgres::Cluster::start()?;
        let url = database.url(&database.create()?);
        Ok(Self {
            sqlite: LockServer::start(&programs, &[])?,
            postgres: LockServer::start(&programs, &["--database-url", &url])?,
            etcd: Cluster::start(setup).await?,
            _database: database,
        })
    }

    /// All that must decide like [`Memory`].
    fn backends(&self) -> Vec<Box<dyn Backend + '_>> {
        vec![
            Box::new(ServerBackend::new("update-server on SQLite", &self.sqlite)),
            Box::new(ServerBackend::new("update-server on PostgreSQL", &self.postgres)),
            Box::new(EtcdBackend::new(&self.etcd)),
        ]
    }
}

/// How often each kind of answer was given, by its name in JSON: traces that never get to one prove nothing about it.
type Seen = BTreeMap<String, usize>;

/// Gives the trace of a seed to all backends.
async fn trace(seed: u64, backends: &mut [Box<dyn Backend + '_>], seen: &mut Seen) -> Result<()> {
    let mut memory = Memory::default();
    let mut script = Script::new(seed);
    let mut revisions = BTreeMap::new();
    for number in 0..STEPS {
        let step = script.next(&memory);
        let before = memory.locks.clone();
        let reply = memory.take(&step);
        backends::count(&reply, seen);
        for backend in backends.iter_mut() {
            let step_of = compare(backend.as_mut(), &step, &reply, (&before, &memory), &mut revisions).await;
            step_of.with_context(|| {
                let last = script.given.iter().rev().take(TOLD).rev();
                let told: Vec<_> = last.map(|step| format!("  {step:?}")).collect();
                format!(
                    "LOCK_SEED={seed}: {} at command {number}, the last of\n{}",
                    backend.name(),
                    told.join("\n")
                )
            })?;
        }
    }
    for backend in backends.iter_mut() {
        let (groups, expected) = (backend.groups(script.prefix()).await?, memory.groups());
        ensure!(
            groups == expected,
            "LOCK_SEED={seed}: {}: expected {expected:?}, found {groups:?}",
            backend.name()
        );
    }
    Ok(())
}

/// Gives one command to one backend, and compares its answer, and all documents after it.
async fn compare(
    backend: &mut dyn Backend,
    step: &Step,
    reply: &protocol::lock::Reply,
    (before, after): (&memory::Locks, &Memory),
    revisions: &mut BTreeMap<String, u64>,
) -> Result<()> {
    let (expected, said) = (backend.told(step, reply), backend.take(step).await?);
    ensure!(said == expected, "expected the answer\n  {expected}\nfound\n  {said}");
    for (group, document) in &after.locks {
        let (found, revision) = backend.look(group).await?;
        let (expected, found) = (timeless(document)?, timeless(&found)?);
        ensure!(found == expected, "expected the lock of group {group}\n  {expected}\nfound\n  {found}");
        let changed = before.get(group) != Some(document);
        let written = revisions.insert(format!("{} {group}", backend.name()), revision) != Some(revision);
        ensure!(written == changed, "group {group}: changed is {changed}, and written is {written}");
    }
    Ok(())
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_commands_have_the_same_outcome_everywhere() {
    let stage = Stage::set().await.unwrap();
    let chosen = number_from("LOCK_SEED");
    let seeds = chosen.map_or(0..number_from("LOCK_TRACES").unwrap_or(TRACES), |seed| seed..seed + 1);
    let mut seen = Seen::new();
    for seed in seeds {
        // New ones each time: a client is one node's, and these nodes are new.
        let mut backends = stage.backends();
        trace(seed, &mut backends, &mut seen).await.unwrap_or_else(|error| panic!("{error:#}"));
    }
    println!("{seen:?}");
    if chosen.is_none() {
        let missing: Vec<_> = backends::ANSWERS.iter().filter(|name| !seen.contains_key(**name)).collect();
        assert!(missing.is_empty(), "no trace was answered {missing:?}: {seen:?}");
    }
}

/// A test of the test: a backend that forgets one write in a hundred, and one that never tells a node about the others.
#[tokio::test]
async fn a_backend_that_decides_otherwise_is_found() {
    for fault in [memory::Fault::LosesWrites, memory::Fault::CountsNoNodes, memory::Fault::IgnoresCaps] {
        let mut found = 0;
        for seed in 0..TRACES {
            let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(memory::Faulty::new(fault))];
            found += usize::from(trace(seed, &mut backends, &mut Seen::new()).await.is_err());
        }
        assert!(found > 0, "{fault:?} was not found");
        let mut honest: Vec<Box<dyn Backend>> = vec![Box::new(memory::Faulty::new(memory::Fault::None))];
        trace(0, &mut honest, &mut Seen::new()).await.unwrap();
    }
}
