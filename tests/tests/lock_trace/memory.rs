//! The documents in memory, and what each decision rests on beside them, as `docs/lock.md` and `docs/lock-policy.md` say
//! it: the measure for all backends.

use crate::backends::{Backend, timeless};
use crate::script::Step;
use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{
    Caps, ClientId, Command, Context, Document, Policy, Population, Refusal, Reply, Usage, Zone, apply,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Locks = BTreeMap<Group, Document>;

/// All locks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) locks: Locks,
    pub(crate) caps: Caps,
    /// The nodes that asked each group, with their zones.
    nodes: BTreeMap<Group, BTreeMap<ClientId, Option<Zone>>>,
}

impl Memory {
    /// Carries a command out.
    pub(crate) fn take(&mut self, step: &Step) -> Reply {
        let (group, command) = match step {
            Step::Caps(caps) => {
                self.caps.clone_from(caps);
                return Reply::Done;
            }
            Step::Command(group, command) => (group, &**command),
        };
        let made_by_policy = matches!(command, Command::SetPolicy { .. });
        let known = self.locks.get(group).cloned();
        let Some(document) =
            known.or_else(|| made_by_policy.then(|| Document::new(group.clone(), Policy::default())))
        else {
            return Reply::Refused { because: Refusal::UnknownGroup { group: group.clone() } };
        };
        if let Command::Request(request) = command {
            let nodes = self.nodes.entry(group.clone()).or_default();
            nodes.insert(request.node.clone(), request.zone.clone());
        }
        let applied = apply(&document, command, &self.context(group));
        if let Command::RemoveNode { node, .. } = command {
            self.nodes.entry(group.clone()).or_default().remove(node);
        }
        self.locks.insert(group.clone(), applied.document.unwrap_or(document));
        applied.reply
    }

    fn context(&self, group: &Group) -> Context {
        Context {
            now: Timestamp::now(),
            population: self.population(group),
            caps: self.usage(group),
            quorum: None,
        }
    }

    fn population(&self, group: &Group) -> Option<Population> {
        let nodes = self.nodes.get(group).filter(|nodes| !nodes.is_empty())?;
        let mut population = Population::default();
        for zone in nodes.values() {
            population.total += 1;
            if let Some(zone) = zone {
                *population.zones.entry(zone.clone()).or_default() += 1;
            }
        }
        Some(population)
    }

    fn usage(&self, group: &Group) -> Vec<Usage> {
        let held = |other: &Group| self.locks.get(other).map_or(0, |lock| lock.holders.len());
        let counted = self.caps.caps.iter().filter(|(_, cap)| cap.groups.contains(group));
        let usage = |(name, cap): (&String, &protocol::lock::Cap)| {
            let others = cap.groups.iter().filter(|other| *other != group).map(held).sum::<usize>();
            let held_elsewhere = u32::try_from(others).unwrap_or(u32::MAX);
            Usage { cap: name.clone(), max: cap.max, held_elsewhere }
        };
        counted.map(usage).collect()
    }

    pub(crate) fn groups(&self) -> BTreeSet<Group> {
        self.locks.keys().cloned().collect()
    }
}

/// What is wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// One write in a hundred.
    LosesWrites,
    /// A percentage is one of nobody.
    CountsNoNodes,
    /// A group is looked at alone.
    IgnoresCaps,
}

/// The same again, as a backend with a fault.
#[derive(Debug)]
pub(crate) struct Faulty {
    fault: Fault,
    memory: Memory,
    writes: usize,
    revisions: BTreeMap<Group, u64>,
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, memory: Memory::default(), writes: 0, revisions: BTreeMap::new() }
    }

    fn carry_out(&mut self, step: &Step) -> Reply {
        match self.fault {
            Fault::CountsNoNodes => self.memory.nodes.clear(),
            Fault::IgnoresCaps => self.memory.caps = Caps::default(),
            Fault::None | Fault::LosesWrites => {}
        }
        let before = self.memory.locks.clone();
        let reply = self.memory.take(step);
        for (group, document) in &mut self.memory.locks {
            if before.get(group) == Some(document) {
                continue;
            }
            self.writes += 1;
            match before
                .get(group)
                .filter(|_| self.fault == Fault::LosesWrites && self.writes.is_multiple_of(100))
            {
                Some(old) => document.clone_from(old),
                None => *self.revisions.entry(group.clone()).or_default() += 1,
            }
        }
        reply
    }
}

impl Backend for Faulty {
    fn name(&self) -> &str {
        "a backend with a fault"
    }

    fn told(&self, _: &Step, reply: &Reply) -> String {
        timeless(reply).unwrap_or_default()
    }

    fn take<'a>(&'a mut self, step: &'a Step) -> BoxFuture<'a, Result<String>> {
        async move { timeless(&self.carry_out(step)) }.boxed()
    }

    fn look<'a>(&'a mut self, group: &'a Group) -> BoxFuture<'a, Result<(Document, u64)>> {
        async move {
            let document = self.memory.locks.get(group).context("no such group")?.clone();
            Ok((document, self.revisions.get(group).copied().unwrap_or(0)))
        }
        .boxed()
    }

    fn groups<'a>(&'a mut self, _: &'a str) -> BoxFuture<'a, Result<BTreeSet<Group>>> {
        async move { Ok(self.memory.groups()) }.boxed()
    }
}
