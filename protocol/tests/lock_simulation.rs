//! The reboot lock, at random and for long: two groups under one cap, several backends that read, wait and write by
//! compare-and-swap, and everything that goes wrong on the way.
//!
//! Each life follows from its seed. A failing one says which: `LOCK_SEED=17 cargo nextest run -p protocol --test
//! lock_simulation` lives it again; `LOCK_LIVES=5000` lives more of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod lock_world;

use jiff::{SignedDuration, Timestamp};
use lock_world::{
    Answer, Doing, Mutation, Node, Record, Word, apply_with, at, check_step, client, is_holder, number,
};
use protocol::lock::{
    Command, Context, Document, Holder, Limit, OnTrouble, Phase, Policy, Reply, Usage, Waiter, Zone, Zones,
};
use protocol::window::Window;
use std::collections::BTreeSet;

const GROUPS: usize = 2;
const NODES_PER_GROUP: usize = 4;
/// Permits in both groups together.
const CAP: u32 = 3;
const STEPS: usize = 3000;
const LIVES: u64 = 150;
/// As in the lock: after so many seconds of silence a place in the queue is lost.
const WAITER_MAX_S: i64 = 15 * 60;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// A node and its wire.
struct Client {
    node: Node,
    group: usize,
    /// The call whose answer it waits for; any other answer comes too late.
    awaits: Option<u64>,
    /// The last release that failed here.
    failed: u16,
    /// How its next boot ends: in the release, or back in the old slot.
    boots: u16,
}

/// A command on its way.
#[derive(Clone)]
struct Call {
    command: Command,
    group: usize,
    from: Option<(usize, u64, Word)>,
    stage: Stage,
}

#[derive(Clone)]
enum Stage {
    Sent,
    /// A backend has read and has not written.
    Read(Box<Snapshot>),
    Answered(Answer),
}

#[derive(Clone)]
struct Snapshot {
    documents: Vec<Document>,
    revisions: Vec<u64>,
    now: Timestamp,
}

struct World {
    dice: Dice,
    mutation: Option<Mutation>,
    now: Timestamp,
    documents: Vec<Document>,
    revisions: Vec<u64>,
    /// The most permits that may be in use: the limit, or an older and higher one until that many are back.
    ceilings: Vec<u32>,
    clients: Vec<Client>,
    calls: Vec<Call>,
    calls_made: u64,
    newest: u16,
    /// Nothing goes wrong any more, and nobody wants anything but the newest release.
    settles: bool,
    /// Releases that do not boot.
    bad: BTreeSet<u16>,
    /// Attempts whose permit was taken, by an operator or by a policy that says so, after they were told to go.
    excused: BTreeSet<(u8, u16)>,
    counts: Counts,
}

/// What happened, so that a simulation in which nothing does is noticed.
#[derive(Debug, Default)]
struct Counts {
    grants: usize,
    reboots: usize,
    confirmed: usize,
    failed: usize,
    conflicts: usize,
    taken: usize,
    stuck: usize,
}

fn zone(node: u8) -> Zone {
    format!("rack{}", node % 2).parse().unwrap()
}

fn max_of(document: &Document) -> u32 {
    match document.policy.max {
        Limit::Count(max) => max,
        Limit::Percent(_) => panic!("no percentages here"),
    }
}

impl World {
    fn new(seed: u64, mutation: Option<Mutation>) -> Self {
        let policy = || Policy { max: Limit::Count(2), ..Policy::default() };
        let document = |name: &str| Document::new(name.parse().unwrap(), policy());
        let nodes = (0..).take(GROUPS * NODES_PER_GROUP).map(|id: u8| Client {
            node: Node::new(id),
            group: usize::from(id) % GROUPS,
            awaits: None,
            failed: 0,
            boots: 0,
        });
        Self {
            dice: Dice(seed),
            mutation,
            now: at(0),
            documents: vec![document("default"), document("other")],
            revisions: vec![1; GROUPS],
            ceilings: vec![2; GROUPS],
            clients: nodes.collect(),
            calls: Vec::new(),
            calls_made: 0,
            newest: 1,
            settles: false,
            bad: BTreeSet::new(),
            excused: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    fn call(&mut self, group: usize, command: Command, from: Option<(usize, u64, Word)>) {
        self.calls.push(Call { command, group, from, stage: Stage::Sent });
    }

    // --- nodes

    /// What a node does next of itself.
    fn act(&mut self, index: usize) {
        let client = &self.clients[index];
        let (node, group) = (client.node, client.group);
        match node.doing {
            Doing::Go => self.clients[index].node = node.go_down(),
            Doing::Down => {
                self.counts.reboots += 1;
                let good = !matches!(node.record, Record::Open { to, .. } if self.bad.contains(&to));
                self.come_up(index, good);
            }
            _ if client.awaits.is_some() => {}
            Doing::Start if node.record == Record::None => self.begin(index),
            _ => {
                let Some(message) = node.message() else { return };
                self.calls_made += 1;
                let mut command = message.command();
                if let Command::Request(request) = &mut command {
                    request.zone = Some(zone(node.id));
                }
                self.clients[index].awaits = Some(self.calls_made);
                self.call(group, command, Some((index, self.calls_made, message.word)));
            }
        }
    }

    /// A node with no attempt takes up what the lock knows of it, or wants the newest release, or just a reboot.
    fn begin(&mut self, index: usize) {
        let Client { node, group, failed, .. } = self.clients[index];
        let holder = self.documents[group].holder(&client(node.id));
        if let Some(node) = holder.and_then(|holder| node.reconcile(holder)) {
            self.clients[index].node = node;
        } else if node.runs != self.newest && failed != self.newest {
            self.clients[index].node = node.begin(self.newest);
        } else if !self.settles && self.dice.percent(5) {
            self.clients[index].node = node.begin(node.runs);
        }
    }

    fn come_up(&mut self, index: usize, into_release: bool) {
        let client = &mut self.clients[index];
        client.boots += 1;
        client.awaits = None;
        client.node = client.node.come_up(client.boots, into_release);
    }

    fn told(&mut self, (index, call, word): (usize, u64, Word), answer: Answer) {
        let client = &mut self.clients[index];
        if client.awaits != Some(call) {
            return;
        }
        client.awaits = None;
        if let (Word::Fail, Record::Open { to, .. }) = (word, client.node.record) {
            client.failed = to;
            self.counts.failed += 1;
        }
        client.node = client.node.told(word, answer, self.mutation);
        self.counts.confirmed += usize::from(client.node.done && word == Word::Confirm);
    }

    // --- backends

    /// One call goes one step on.
    fn progress(&mut self, place: usize) -> Result<(), String> {
        match &self.calls[place].stage {
            Stage::Sent => {
                let snapshot = Snapshot {
                    documents: self.documents.clone(),
                    revisions: self.revisions.clone(),
                    now: self.now,
                };
                self.calls[place].stage = Stage::Read(Box::new(snapshot));
            }
            Stage::Read(snapshot) => {
                let snapshot = snapshot.clone();
                return self.write(place, &snapshot);
            }
            Stage::Answered(answer) => {
                let answer = *answer;
                if let Some(from) = self.calls.swap_remove(place).from {
                    self.told(from, answer);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, place: usize, read: &Snapshot) -> Result<(), String> {
        let Call { command, group, .. } = self.calls[place].clone();
        let before = &read.documents[group];
        let held_elsewhere = u32::try_from(read.documents[1 - group].holders.len()).unwrap();
        let caps = vec![Usage { cap: "both".to_owned(), max: CAP, held_elsewhere }];
        let context = Context { now: read.now, population: None, caps, quorum: None };
        let applied = apply_with(before, &command, &context, self.mutation);
        check_step(before, &command, &context, &applied, self.mutation)?;
        if let Some(after) = &applied.document {
            if self.revisions != read.revisions && self.mutation != Some(Mutation::IgnoresRevision) {
                self.counts.conflicts += 1;
                self.calls[place].stage = Stage::Sent;
                return Ok(());
            }
            check_grant(before, after, held_elsewhere, read.now)?;
            self.excuse(before, after, &command);
            self.documents[group] = after.clone();
            self.revisions[group] += 1;
        }
        self.counts.grants += usize::from(matches!(applied.reply, Reply::Granted { .. }));
        // Now and then the backend does not learn that its write succeeded, and does it all again.
        let is_unknown = applied.document.is_some() && self.dice.percent(5);
        self.calls[place].stage =
            if is_unknown { Stage::Sent } else { Stage::Answered(Answer::from(&applied.reply)) };
        Ok(())
    }

    fn excuse(&mut self, before: &Document, after: &Document, command: &Command) {
        let by_operator = matches!(command, Command::ForceRelease { .. } | Command::RemoveNode { .. });
        for holder in &before.holders {
            self.counts.stuck += usize::from(holder.stuck_since.is_some());
            let by_policy = after.policy.on_stuck == OnTrouble::Release;
            let is_gone = after.holder(&holder.node).is_none();
            if is_gone && holder.phase == Phase::Rebooting && (by_operator || by_policy) {
                self.counts.taken += 1;
                let node = holder.node.as_str()[1..].parse().unwrap();
                self.excused.insert((node, number(holder.attempt.as_ref().unwrap().as_str())));
            }
        }
    }

    // --- what goes wrong

    fn something_goes_wrong(&mut self) {
        let index = self.dice.below(self.clients.len());
        let node = self.clients[index].node;
        match self.dice.below(14) {
            // It gives up waiting for an answer, and asks again.
            0..4 => self.clients[index].awaits = None,
            4 if node.doing != Doing::Down => {
                self.clients[index].awaits = None;
                self.clients[index].node = node.restart();
            }
            5 => {
                let into_release = self.dice.percent(50);
                self.come_up(index, into_release);
            }
            6 => {
                if let Some(node) = node.give_up() {
                    self.clients[index].awaits = None;
                    self.clients[index].node = node;
                }
            }
            7 | 8 if !self.calls.is_empty() => {
                let place = self.dice.below(self.calls.len());
                self.calls.swap_remove(place);
            }
            9 | 10 if !self.calls.is_empty() && self.calls.len() < 40 => {
                let place = self.dice.below(self.calls.len());
                self.calls.push(Call { stage: Stage::Sent, ..self.calls[place].clone() });
            }
            11 => {
                let jump_s = i64::try_from(self.dice.below(8 * 3600)).unwrap() - 4 * 3600;
                self.now += SignedDuration::from_secs(jump_s);
            }
            12 => self.operator(index),
            _ => self.fleet_lock(index),
        }
    }

    /// An operator saw the lock a while ago, and their command may take long too.
    fn operator(&mut self, index: usize) {
        let group = self.clients[index].group;
        let (who, why) = ("operator".to_owned(), "simulation".to_owned());
        let node = client(self.clients[index].node.id);
        let command = match self.dice.below(6) {
            0..3 => {
                let Some(Holder { grant, .. }) = self.documents[group].holder(&node) else { return };
                Command::ForceRelease { node, grant: *grant, who, why }
            }
            3 => Command::RemoveNode { node, who, why },
            4 => {
                self.newest += 1;
                if self.dice.percent(40) {
                    self.bad.insert(self.newest);
                }
                Command::Tick
            }
            _ => Command::SetPolicy { policy: Box::new(self.policy()), who, why },
        };
        self.call(group, command, None);
    }

    fn policy(&mut self) -> Policy {
        let trouble = [OnTrouble::Halt, OnTrouble::Halt, OnTrouble::Hold, OnTrouble::Release];
        let first = client(0);
        let night = Window { days: Vec::new(), start: jiff::civil::time(1, 0, 0, 0), length_s: 6 * 3600 };
        Policy {
            max: Limit::Count(self.dice.pick(&[0, 1, 1, 2, 3])),
            on_stuck: self.dice.pick(&trouble),
            on_failed: self.dice.pick(&trouble),
            windows: if self.dice.percent(20) { vec![night] } else { Vec::new() },
            zones: self.dice.percent(30).then(one_per_zone),
            priorities: if self.dice.percent(30) { [(first, 5)].into() } else { [].into() },
            ..Policy::default()
        }
    }

    /// A v1 client: one of its own in each group, or one that calls itself as a node does.
    fn fleet_lock(&mut self, index: usize) {
        let group = self.clients[index].group;
        let id = if self.dice.percent(80) {
            100 + u8::try_from(group).unwrap()
        } else {
            self.clients[index].node.id
        };
        let node = client(id);
        let command = if self.dice.percent(40) {
            Command::FleetLockRequest { node }
        } else {
            Command::FleetLockSteady { node }
        };
        self.call(group, command, None);
    }

    // --- what must hold

    fn check(&mut self) -> Result<(), String> {
        for group in 0..GROUPS {
            let document = &self.documents[group];
            let max = max_of(document);
            let held = u32::try_from(document.holders.len()).unwrap();
            if held <= max || max > self.ceilings[group] {
                self.ceilings[group] = max;
            }
            let mut down = 0;
            for Client { node, .. } in self.clients.iter().filter(|client| client.group == group) {
                let Record::Open { attempt, .. } = node.record else { continue };
                if !node.is_down() || self.excused.contains(&(node.id, attempt)) {
                    continue;
                }
                down += 1;
                if !is_holder(document, node.id) {
                    return Err(format!("I6: {node:?} is down and holds no permit of {document:?}"));
                }
            }
            if down > self.ceilings[group] {
                let limit = self.ceilings[group];
                return Err(format!("I1: {down} are down, {limit} may be: {:?}", self.documents[group]));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += SignedDuration::from_secs(i64::try_from(self.dice.below(40)).unwrap());
        match self.dice.below(100) {
            0..45 => {
                let index = self.dice.below(self.clients.len());
                self.act(index);
            }
            45..95 if !self.calls.is_empty() => {
                let place = self.dice.below(self.calls.len());
                self.progress(place)?;
            }
            95..99 => self.something_goes_wrong(),
            99 => {
                let group = self.dice.below(GROUPS);
                self.call(group, Command::Tick, None);
            }
            _ => {}
        }
        self.check()
    }

    // --- the end of all faults

    fn deliver(&mut self) -> Result<(), String> {
        while !self.calls.is_empty() {
            self.progress(self.calls.len() - 1)?;
            self.check()?;
        }
        Ok(())
    }

    /// I7: when nothing goes wrong any more, everyone gets through, in time.
    fn settle(&mut self) -> Result<(), String> {
        self.deliver()?;
        self.settles = true;
        self.newest += 1;
        for group in 0..GROUPS {
            let (who, why) = ("operator".to_owned(), "end".to_owned());
            self.call(group, Command::SetPolicy { policy: Box::default(), who, why }, None);
            let v1 = client(100 + u8::try_from(group).unwrap());
            self.call(group, Command::FleetLockSteady { node: v1 }, None);
        }
        for _ in 0..400 {
            self.deliver()?;
            if self
                .clients
                .iter()
                .all(|client| client.node.runs == self.newest && client.node.record == Record::None)
                && self.documents.iter().all(|document| document.holders.is_empty())
            {
                return Ok(());
            }
            for index in 0..self.clients.len() {
                self.act(index);
                self.check()?;
            }
            self.now += SignedDuration::from_secs(30);
        }
        let nodes: Vec<_> = self.clients.iter().map(|client| client.node).collect();
        let locks: Vec<_> =
            self.documents.iter().map(|document| (&document.holders, &document.queue)).collect();
        Err(format!("I7: not all got through: {nodes:?} {locks:?}"))
    }

    fn live(mut self) -> Result<Counts, String> {
        for _ in 0..STEPS {
            self.step()?;
        }
        // What was under way may still come, late; the nodes have given up waiting for it.
        for client in &mut self.clients {
            client.awaits = None;
        }
        self.settle()?;
        Ok(self.counts)
    }
}

/// Limits of a document that is written, where it has a new holder: by zone, by the cap, and in turn.
fn check_grant(
    before: &Document,
    after: &Document,
    held_elsewhere: u32,
    now: Timestamp,
) -> Result<(), String> {
    let Some(newcomer) = after.holders.iter().find(|holder| before.holder(&holder.node).is_none()) else {
        return Ok(());
    };
    // A policy that frees the stuck may have done so just before.
    let held = u32::try_from(after.holders.len()).unwrap() - 1;
    if held + 1 + held_elsewhere > CAP {
        return Err(format!("I1: {} permits in both groups", held + 1 + held_elsewhere));
    }
    if before.policy.zones.is_some() {
        let zones = after.holders.iter().filter(|holder| holder.zone == newcomer.zone).count();
        return if zones > 1 { Err(format!("I1: {zones} permits in one zone")) } else { Ok(()) };
    }
    // Without zones all waiters of a group are alike: as many as there are free permits may go, in order.
    let place = before.queue.iter().position(|waiter| waiter.node == newcomer.node);
    let priority = place.map_or_else(
        || before.policy.priorities.get(&newcomer.node).copied().unwrap_or(0),
        |place| before.queue[place].priority,
    );
    let is_ahead = |(at, waiter): &(usize, &Waiter)| {
        waiter.priority >= priority
            && place.is_none_or(|place| *at < place)
            && now.duration_since(waiter.seen).as_secs() <= WAITER_MAX_S
    };
    let ahead = before.queue.iter().enumerate().filter(is_ahead).count();
    let free = max_of(before).saturating_sub(held).min(CAP - held - held_elsewhere);
    if ahead >= free as usize {
        return Err(format!("I7: {} passes {ahead} waiters, with {free} free: {before:?}", newcomer.node));
    }
    Ok(())
}

fn one_per_zone() -> Zones {
    Zones { max: Limit::Count(1), limits: [].into(), sizes: [].into() }
}

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn lives_full_of_faults_keep_every_invariant() {
    let seeds =
        number_from("LOCK_SEED").map_or(0..number_from("LOCK_LIVES").unwrap_or(LIVES), |seed| seed..seed + 1);
    let mut total = Counts::default();
    for seed in seeds {
        let counts =
            World::new(seed, None).live().unwrap_or_else(|violation| panic!("LOCK_SEED={seed}: {violation}"));
        total.grants += counts.grants;
        total.reboots += counts.reboots;
        total.confirmed += counts.confirmed;
        total.failed += counts.failed;
        total.conflicts += counts.conflicts;
        total.taken += counts.taken;
        total.stuck += counts.stuck;
    }
    println!("{total:?}");
    let Counts { grants, reboots, confirmed, failed, conflicts, taken, stuck } = total;
    assert!(
        [grants, reboots, confirmed, failed, conflicts, taken, stuck].iter().all(|count| *count > 0),
        "{total:?}"
    );
}

/// Tests of the tests: among a few lives, one shows that the guard is missing.
#[track_caller]
fn finds(mutation: Mutation, expected: &[&str]) {
    let violation = (0..40).find_map(|seed| World::new(seed, Some(mutation)).live().err());
    let violation = violation.unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
    assert!(expected.iter().any(|invariant| violation.starts_with(invariant)), "{violation}");
}

#[test]
fn a_store_that_does_not_compare_revisions_is_found_out() {
    finds(Mutation::IgnoresRevision, &["I1", "I6"]);
}

#[test]
fn nodes_that_do_not_verify_are_found_out() {
    finds(Mutation::SkipsVerify, &["I6"]);
}

#[test]
fn a_lock_that_does_not_compare_boots_is_found_out() {
    finds(Mutation::BelievesBoots, &["I2, I4, I5", "I6"]);
}
