//! Step 4, channel: how a rollout would go over a fleet, in virtual time, by the very functions that let nodes go.

use super::document::{Counts, Ended, Rollout, Used};
use super::policy::Limits;
use super::reason::Reason;
use super::share::{Share, hashed, place};
use super::{Asked, advance, decide, wants_waiting};
use crate::id::{Group, NodeId};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// The grain of the virtual time, in seconds: nodes ask, updates end and stages open at its multiples.
const STEP_S: u32 = 60;
/// How many points are reported at most. Where there would be more, every other one is left out.
const POINTS: usize = 128;

/// What is assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assumed {
    /// What share of the nodes fails: comes back without the release.
    pub failing: Share,
    /// What share of the nodes falls silent in its reboot.
    pub silent: Share,
    /// Chooses which nodes fail and when nodes ask.
    pub seed: u64,
    /// How often nodes ask, in seconds.
    pub poll_interval_s: u32,
    /// How long a node takes from its leave to its confirmation, in seconds.
    pub update_takes_s: u32,
    /// How long to go on, in seconds.
    pub span_s: u64,
}

/// How far it was at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// When.
    pub at: Timestamp,
    /// The stage that was open.
    pub stage: u32,
    /// Under way.
    pub in_flight: u32,
    /// What had come of those let go.
    pub ended: Ended,
    /// What held back most of the nodes that asked since the point before, in one line.
    pub held_by: Option<String>,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulated {
    /// In equal steps of time, the last one at the end.
    pub points: Vec<Point>,
    /// What happened when.
    pub events: Vec<(Timestamp, String)>,
    /// When all had ended.
    pub done_at: Option<Timestamp>,
    /// The rollout at the end.
    pub rollout: Rollout,
}

/// What becomes of a node that is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Confirms,
    Fails,
    FallsSilent,
}

struct Node {
    id: NodeId,
    group: usize,
    place: u64,
    fate: Fate,
    /// At which step of each poll interval it asks.
    asks_at: usize,
}

/// Limits of one group or of all, as they are used up.
#[derive(Default)]
struct Meter {
    in_flight: u32,
    recent: VecDeque<Timestamp>,
}

impl Meter {
    fn used(&mut self, limits: Option<&Limits>, now: Timestamp) -> Used {
        let per_s = limits.and_then(|limits| limits.rate).map_or(0, |rate| rate.per_s);
        let since = now.saturating_sub(SignedDuration::from_secs(per_s.into())).unwrap_or(Timestamp::MIN);
        while self.recent.front().is_some_and(|at| *at <= since) {
            self.recent.pop_front();
        }
        let recent = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        Used { in_flight: self.in_flight, recent, first_recent: self.recent.front().copied() }
    }

    fn granted(&mut self, now: Timestamp) {
        self.in_flight += 1;
        self.recent.push_back(now);
    }
}

/// A rollout under way in virtual time.
struct World<'a> {
    rollout: Rollout,
    assumed: &'a Assumed,
    nodes: Vec<Node>,
    groups: Vec<Group>,
    /// Those that wait, by the step of each poll interval at which they ask.
    waiting: Vec<Vec<usize>>,
    all: Meter,
    by_group: Vec<Meter>,
    /// When the updates under way end, for which node, in which stage it was let go.
    ends: BinaryHeap<Reverse<(Timestamp, usize, u32)>>,
    total: Ended,
    stage: Ended,
    held: BTreeMap<String, u32>,
    events: Vec<(Timestamp, String)>,
}

/// Runs a rollout over nodes until all have ended, it can go no further, or the span is over. The nodes are those that have a
/// way to the release and do not run it; a node that must pass through other releases counts as going once.
#[must_use]
pub fn simulate(rollout: Rollout, nodes: Vec<(NodeId, Group)>, assumed: &Assumed) -> Simulated {
    let began = rollout.began_at;
    let steps = assumed.span_s / u64::from(STEP_S);
    let mut world = World::new(rollout, nodes, assumed);
    let (mut points, mut done_at, mut every) = (Vec::new(), None, 1);
    for step in 0..=steps {
        let at = i64::try_from(step * u64::from(STEP_S)).unwrap_or(i64::MAX);
        let Ok(now) = began.checked_add(SignedDuration::from_secs(at)) else { break };
        world.end(now);
        world.advance(now);
        world.ask(step, now);
        let waiting = world.waiting.iter().any(|turn| !turn.is_empty());
        let over = world.ends.is_empty() && (!waiting || world.rollout.halted.is_some());
        if over && !waiting {
            done_at = Some(now);
        }
        if over || step == steps || step % every == 0 {
            points.push(world.point(now));
        }
        if points.len() > POINTS {
            every *= 2;
            points = points.into_iter().step_by(2).collect();
        }
        if over {
            break;
        }
    }
    Simulated { points, events: world.events, done_at, rollout: world.rollout }
}

/// A number that a seed and a node choose, for one purpose.
fn chosen(seed: u64, purpose: &str, node: &NodeId) -> u64 {
    hashed(&format!("{purpose}\n{seed}\n{node}\n"))
}

impl<'a> World<'a> {
    fn new(rollout: Rollout, nodes: Vec<(NodeId, Group)>, assumed: &'a Assumed) -> Self {
        let mut groups: Vec<Group> = nodes.iter().map(|(_, group)| group.clone()).collect();
        groups.sort();
        groups.dedup();
        let polls = (assumed.poll_interval_s / STEP_S).max(1);
        let node = |(id, group): (NodeId, Group)| {
            let luck = chosen(assumed.seed, "fate", &id);
            let fate = if assumed.failing.covers(luck) {
                Fate::Fails
            } else if assumed.silent.covers(u64::MAX - luck) {
                Fate::FallsSilent
            } else {
                Fate::Confirms
            };
            let asks_at = usize::try_from(chosen(assumed.seed, "asks", &id) % u64::from(polls)).unwrap_or(0);
            let group = groups.binary_search(&group).unwrap_or(0);
            Node { place: place(&rollout.version, &id), id, group, fate, asks_at }
        };
        let nodes: Vec<Node> = nodes.into_iter().map(node).collect();
        let mut waiting = vec![Vec::new(); usize::try_from(polls).unwrap_or(1)];
        for (at, node) in nodes.iter().enumerate() {
            if let Some(turn) = waiting.get_mut(node.asks_at) {
                turn.push(at);
            }
        }
        Self {
            waiting,
            by_group: groups.iter().map(|_| Meter::default()).collect(),
            rollout,
            assumed,
            nodes,
            groups,
            all: Meter::default(),
            ends: BinaryHeap::new(),
            total: Ended::default(),
            stage: Ended::default(),
            held: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Updates end.
    fn end(&mut self, now: Timestamp) {
        while let Some(Reverse((_, at, stage))) =
            self.ends.peek().filter(|Reverse((when, ..))| *when <= now).copied()
        {
            self.ends.pop();
            let node = &self.nodes[at];
            self.all.in_flight -= 1;
            self.by_group[node.group].in_flight -= 1;
            let of_stage = (stage == self.rollout.stage).then_some(&mut self.stage);
            for ended in of_stage.into_iter().chain([&mut self.total]) {
                match node.fate {
                    Fate::Confirms => ended.confirmed += 1,
                    Fate::Fails => ended.failed += 1,
                    Fate::FallsSilent => ended.silent += 1,
                }
            }
        }
    }

    /// Time passes, and results count.
    fn advance(&mut self, now: Timestamp) {
        let mut counts = Counts { stage: self.stage, since: self.total, ..Counts::default() };
        if wants_waiting(&self.rollout, &counts, now) {
            counts.waiting = Some(self.waiting.iter().flatten().any(|at| self.is_reached(&self.nodes[*at])));
        }
        let Some(next) = advance(&self.rollout, &counts, now) else { return };
        match &next.halted {
            Some(halted) => self.events.push((now, format!("halted: {}", halted.why))),
            None => {
                self.events.push((
                    now,
                    format!("stage {} of {} opens: {}", next.stage + 1, next.stages(), next.share()),
                ));
                self.stage = Ended::default();
            }
        }
        self.rollout = next;
    }

    fn is_reached(&self, node: &Node) -> bool {
        self.rollout.reaches(&self.groups[node.group], node.place)
    }

    /// Nodes ask. What stands against one of a group stands against all of them in the same step, but for their place.
    fn ask(&mut self, step: u64, now: Timestamp) {
        let polls = u64::try_from(self.waiting.len()).unwrap_or(1).max(1);
        let turn = usize::try_from(step % polls).unwrap_or(0);
        let mut full: Vec<Option<String>> = vec![None; self.groups.len()];
        let asking = std::mem::take(&mut self.waiting[turn]);
        let mut left = Vec::with_capacity(asking.len());
        for at in asking {
            let node = &self.nodes[at];
            let group = node.group;
            let held = match &full[group] {
                Some(held) if self.is_reached(node) => Some(held.clone()),
                _ => self.decide(at, now).err().map(|reasons| {
                    let alone = !matches!(reasons[..], [Reason::Wave { .. } | Reason::Canary { .. }, ..]);
                    let line = kind(&reasons[0]);
                    full[group] = full[group].take().or_else(|| alone.then(|| line.clone()));
                    line
                }),
            };
            match held {
                Some(line) => {
                    *self.held.entry(line).or_default() += 1;
                    left.push(at);
                }
                None => self.grant(at, now),
            }
        }
        self.waiting[turn] = left;
    }

    fn decide(&mut self, at: usize, now: Timestamp) -> Result<(), Vec<Reason>> {
        let node = &self.nodes[at];
        let group = &self.groups[node.group];
        let policy = &self.rollout.policy;
        let counts = Counts { used: self.all.used(Some(&policy.limits), now), ..Counts::default() };
        let own = self.by_group[node.group].used(policy.groups.get(group), now);
        let asked =
            Asked { node: &node.id, group, version: &self.rollout.version, grant: None, quarantined: None };
        decide(&self.rollout, &asked, &counts, &own, now)
    }

    fn grant(&mut self, at: usize, now: Timestamp) {
        let node = &self.nodes[at];
        self.all.granted(now);
        self.by_group[node.group].granted(now);
        self.total.granted += 1;
        self.stage.granted += 1;
        let quiet = if node.fate == Fate::FallsSilent { self.rollout.policy.silent_after_s } else { 0 };
        let takes = SignedDuration::from_secs(i64::from(self.assumed.update_takes_s) + i64::from(quiet));
        let ends = now.saturating_add(takes).unwrap_or(Timestamp::MAX);
        self.ends.push(Reverse((ends, at, self.rollout.stage)));
    }

    fn point(&mut self, at: Timestamp) -> Point {
        let held = std::mem::take(&mut self.held);
        let held_by = held.into_iter().max_by_key(|(_, nodes)| *nodes).map(|(line, _)| line);
        Point { at, stage: self.rollout.stage, in_flight: self.all.in_flight, ended: self.total, held_by }
    }
}

/// A reason without what differs from node to node and from time to time.
fn kind(reason: &Reason) -> String {
    match reason {
        Reason::Halted { .. } => "halted".to_owned(),
        Reason::Paused { .. } => "paused".to_owned(),
        Reason::Wave { wave, of, .. } => format!("wave {wave} of {of}"),
        Reason::Canary { group } => format!("the group {group} goes first"),
        Reason::Frozen { .. } => "frozen".to_owned(),
        Reason::Window { group: None, .. } => "outside the windows".to_owned(),
        Reason::Window { group: Some(group), .. } => format!("outside the windows of group {group}"),
        Reason::InFlight { group: None, .. } => "in_flight".to_owned(),
        Reason::InFlight { group: Some(group), .. } => format!("in_flight of group {group}"),
        Reason::Rate { group: None, .. } => "rate".to_owned(),
        Reason::Rate { group: Some(group), .. } => format!("rate of group {group}"),
        other => other.to_string(),
    }
}
