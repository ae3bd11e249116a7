//! Step 4, channel: how a rollout would go over a fleet, in virtual time, by the very functions that let nodes go.

#[cfg(test)]
mod tests;

use super::document::{Counts, Ended, Rollout, Used};
use super::policy::{Limits, RolloutPolicy};
use super::reason::Reason;
use super::share::{Share, hashed, place};
use super::{Asked, advance, decide, next_stage, wants_waiting};
use crate::id::{Group, NodeId};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

/// The grain of the virtual time, in seconds: nodes ask, updates end and stages open at its multiples.
const STEP_S: u32 = 60;
/// How many points are reported at most, the last one aside.
const POINTS: usize = 100;
/// How many points are reported for nothing but that nodes went on.
const PROGRESS_POINTS: u32 = 20;

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
    /// How long a stage that waits for nothing but an operator's approval does so, in seconds; none is for ever.
    pub approve_after_s: Option<u32>,
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
    /// All that held back the nodes that asked last, in one line, what holds most of them first.
    pub held_by: Option<String>,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulated {
    /// Where something happened: stages, nodes that went on, something else that holds them; the last one is the end.
    pub points: Vec<Point>,
    /// What happened when.
    pub events: Vec<(Timestamp, String)>,
    /// When all had ended.
    pub done_at: Option<Timestamp>,
    /// Since when it waited, at the end, for nothing but an operator's approval.
    pub waits_for_approval: Option<Timestamp>,
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
        Used { in_flight: self.in_flight, recent, makes_room: self.recent.front().copied() }
    }

    fn granted(&mut self, now: Timestamp) {
        self.in_flight += 1;
        self.recent.push_back(now);
    }
}

/// A rollout under way in virtual time.
struct World<'a> {
    /// With a policy that asks for no approvals: when all else is there, `approvals` says whether a stage waits for one.
    rollout: Rollout,
    /// For each stage.
    approvals: Vec<bool>,
    /// Since when the stage that is open waits for nothing but an approval.
    waits_for_approval: Option<Timestamp>,
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
    /// What held back those that asked in the last step in which anybody did, and how many.
    held: BTreeMap<String, u32>,
    /// Whether anybody asked in this step.
    asked: bool,
    events: Vec<(Timestamp, String)>,
}

/// Which points of time are reported.
#[derive(Default)]
struct Report {
    points: Vec<Point>,
    /// What was seen to hold nodes in the stage that is open.
    seen: BTreeSet<Vec<String>>,
    halted: bool,
}

impl Report {
    /// Reports how far it is, if something has happened since it was reported last, or `must` be.
    fn look(&mut self, world: &World<'_>, now: Timestamp, must: bool) {
        let last = self.points.last();
        let stage_opens = last.is_some_and(|last| last.stage != world.rollout.stage);
        if stage_opens {
            self.seen.clear();
        }
        let halts = world.rollout.halted.is_some() && !self.halted;
        // Those that are told the same again and again are no news.
        let news = world.asked && !world.held.is_empty() && self.seen.insert(world.kinds(now));
        let done = |ended: &Ended| ended.granted.saturating_add(ended.ended());
        let least = u32::try_from(world.nodes.len()).unwrap_or(u32::MAX).saturating_mul(2) / PROGRESS_POINTS;
        let went_on = last.is_none_or(|last| done(&world.total) - done(&last.ended) >= least.max(1));
        if must || (stage_opens || halts || news || went_on) && self.points.len() < POINTS {
            self.halted |= halts;
            self.points.push(world.point(now));
        }
    }
}

/// Runs a rollout over nodes until all have ended, it can go no further, or the span is over. The nodes are those that have a
/// way to the release and do not run it; a node that must pass through other releases counts as going once.
#[must_use]
pub fn simulate(rollout: Rollout, nodes: Vec<(NodeId, Group)>, assumed: &Assumed) -> Simulated {
    let began = rollout.began_at;
    let steps = assumed.span_s / u64::from(STEP_S);
    let mut world = World::new(rollout, nodes, assumed);
    let (mut report, mut done_at) = (Report::default(), None);
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
        report.look(&world, now, over || step == steps);
        if over {
            break;
        }
    }
    let World { events, waits_for_approval, rollout, .. } = world;
    Simulated { points: report.points, events, done_at, waits_for_approval, rollout }
}

/// A number that a seed and a node choose, for one purpose.
fn chosen(seed: u64, purpose: &str, node: &NodeId) -> u64 {
    hashed(&format!("{purpose}\n{seed}\n{node}\n"))
}

/// What stands against nodes, by kind, and how many they are.
type Stands = (Vec<String>, u32);

impl<'a> World<'a> {
    fn new(mut rollout: Rollout, nodes: Vec<(NodeId, Group)>, assumed: &'a Assumed) -> Self {
        let approvals = take_approvals(&mut rollout.policy);
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
            approvals,
            waits_for_approval: None,
            assumed,
            nodes,
            groups,
            all: Meter::default(),
            ends: BinaryHeap::new(),
            total: Ended::default(),
            stage: Ended::default(),
            held: BTreeMap::new(),
            asked: false,
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
        let counts = self.counts(now);
        let Some(next) = advance(&self.rollout, &counts, now) else { return };
        if next.halted.is_none() && !self.is_approved(now) {
            return;
        }
        self.waits_for_approval = None;
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

    /// What [`advance`] asks for.
    fn counts(&self, now: Timestamp) -> Counts {
        let mut counts = Counts { stage: self.stage, since: self.total, ..Counts::default() };
        if self.waits_for_approval.is_some() {
            // Nobody does, or somebody has confirmed the release: else it would wait for that first.
            counts.waiting = Some(false);
        } else if wants_waiting(&self.rollout, &counts, now) {
            counts.waiting = Some(self.waiting.iter().flatten().any(|at| self.is_reached(&self.nodes[*at])));
        }
        counts
    }

    /// Whether an operator has approved the next stage, which waits for nothing else any more, or need not.
    fn is_approved(&mut self, now: Timestamp) -> bool {
        let (stage, stages) = (self.rollout.stage, self.rollout.stages());
        let needed = usize::try_from(stage).ok().and_then(|stage| self.approvals.get(stage));
        if needed != Some(&true) {
            return true;
        }
        let stage = stage + 1;
        let since = *self.waits_for_approval.get_or_insert_with(|| {
            self.events.push((now, format!("stage {stage} of {stages} waits for an operator's approval")));
            now
        });
        let Some(after) = self.assumed.approve_after_s else { return false };
        let approved = now.duration_since(since) >= SignedDuration::from_secs(after.into());
        if approved {
            self.events.push((now, format!("an operator approves that stage {} follows", stage + 1)));
        }
        approved
    }

    fn is_reached(&self, node: &Node) -> bool {
        self.rollout.reaches(&self.groups[node.group], node.place)
    }

    /// Nodes ask. What stands against one of a group stands against all of them in the same step, but for their place: so it is
    /// asked once for those that the stage reaches, until it is no, and once for the others.
    fn ask(&mut self, step: u64, now: Timestamp) {
        let polls = u64::try_from(self.waiting.len()).unwrap_or(1).max(1);
        let turn = usize::try_from(step % polls).unwrap_or(0);
        let mut held: Vec<[Option<Stands>; 2]> = vec![[None, None]; self.groups.len()];
        let asking = std::mem::take(&mut self.waiting[turn]);
        self.asked = !asking.is_empty();
        let mut left = Vec::with_capacity(asking.len());
        for at in asking {
            let node = &self.nodes[at];
            let group = node.group;
            let reached = usize::from(self.is_reached(node));
            if held[group][reached].is_none() {
                let reasons = self.decide(at, now).err();
                held[group][reached] = reasons.map(|reasons| (reasons.iter().map(kind).collect(), 0));
            }
            match &mut held[group][reached] {
                Some((_, nodes)) => {
                    *nodes += 1;
                    left.push(at);
                }
                None => self.grant(at, now),
            }
        }
        if self.asked {
            self.held.clear();
        }
        for (kinds, nodes) in held.into_iter().flatten().flatten() {
            for kind in kinds {
                *self.held.entry(kind).or_default() += nodes;
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

    /// What the next stage waits for.
    fn stage_waits(&self, now: Timestamp) -> Vec<String> {
        let mut waits = next_stage(&self.rollout, &self.counts(now), now);
        // That it is halted is told by itself.
        waits.retain(|line| !line.starts_with("an operator:"));
        if self.waits_for_approval.is_some() {
            waits.push("an operator's approval".to_owned());
        }
        waits
    }

    /// What holds nodes, without figures and times.
    fn kinds(&self, now: Timestamp) -> Vec<String> {
        let mut kinds: Vec<String> = self.held.keys().cloned().collect();
        if self.held.contains_key(EARLY) {
            let plain = |line: String| line.split([':', ',']).next().unwrap_or_default().to_owned();
            kinds.extend(self.stage_waits(now).into_iter().map(plain));
        }
        kinds
    }

    fn point(&self, at: Timestamp) -> Point {
        let mut held: Vec<(&String, u32)> = self.held.iter().map(|(line, nodes)| (line, *nodes)).collect();
        // Stable: by name where as many are held.
        held.sort_by_key(|(_, nodes)| Reverse(*nodes));
        let line = |(line, _): (&String, u32)| match line.as_str() {
            EARLY => {
                let (stage, stages) = (self.rollout.stage + 1, self.rollout.stages());
                let waits = self.stage_waits(at);
                // For a moment, where the next stage opens in the next step.
                let waits = if waits.is_empty() { "the next step".to_owned() } else { waits.join(" and ") };
                format!("stage {stage} of {stages} waits for {waits}")
            }
            _ => line.clone(),
        };
        let lines: Vec<String> = held.into_iter().map(line).collect();
        let held_by = (!lines.is_empty()).then(|| lines.join("; "));
        Point { at, stage: self.rollout.stage, in_flight: self.all.in_flight, ended: self.total, held_by }
    }
}

/// Takes the approvals that the stages of a policy wait for out of it, and says which do.
fn take_approvals(policy: &mut RolloutPolicy) -> Vec<bool> {
    let canary = policy.canary.as_mut().map(|canary| std::mem::take(&mut canary.approve));
    let waves = policy.waves.iter_mut().map(|wave| std::mem::take(&mut wave.approve));
    canary.into_iter().chain(waves).collect()
}

/// The kind of a reason that the stage which is open does not reach a node.
const EARLY: &str = "stage";

/// A reason without what differs from node to node and from time to time.
fn kind(reason: &Reason) -> String {
    match reason {
        Reason::Halted { .. } => "halted".to_owned(),
        Reason::Paused { .. } => "paused".to_owned(),
        Reason::Wave { .. } | Reason::Canary { .. } => EARLY.to_owned(),
        Reason::Frozen { .. } => "frozen".to_owned(),
        Reason::Window { group: None, .. } => "outside the windows".to_owned(),
        Reason::Window { group: Some(group), .. } => format!("outside the windows of group {group}"),
        Reason::InFlight { group: None, max: 0, .. } => "in_flight is 0".to_owned(),
        Reason::InFlight { group: Some(group), max: 0, .. } => format!("in_flight of group {group} is 0"),
        Reason::InFlight { group: None, .. } => "in_flight".to_owned(),
        Reason::InFlight { group: Some(group), .. } => format!("in_flight of group {group}"),
        Reason::Rate { group: None, .. } => "rate".to_owned(),
        Reason::Rate { group: Some(group), .. } => format!("rate of group {group}"),
        other => other.to_string(),
    }
}
