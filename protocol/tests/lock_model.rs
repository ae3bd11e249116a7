//! The reboot lock, exhaustively: three nodes, every order of what they do, and every placing of faults up to a number.
//!
//! Breadth first by faults: all states that can be reached with none, with one, with two... A lost request changes
//! nothing and so adds no state; a lost reply, a copy that comes late, a crash into either slot, a restarted engine, a
//! release that does not boot, a permit taken by force, a cancelled attempt, a jump of the clock and a backend that is
//! slow between reading and writing are one fault each. What comes of a command is computed once for each document, so
//! the search is over small numbers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod lock_world;

use jiff::Timestamp;
use lock_world::{
    Answer, Doing, Message, Mutation, Node, Record, apply_with, at, attempt, boot, check_step, client,
    context, number,
    plain::{key, plain},
};
use protocol::lock::{AttemptId, ClientId, Command, Document, Limit, Phase, Policy};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

const NODES: usize = 3;
/// Copies of messages under way at once.
const LATE: usize = 2;
/// How far the clock jumps, in seconds: over every deadline, and over the time that keeps a place in the queue.
const JUMP_S: i64 = 7200;

/// Everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    document: u32,
    nodes: [Node; NODES],
    late: [Option<Message>; LATE],
    /// A backend that has read a document and has not written yet.
    slow: Option<(Message, u32)>,
    /// Jumps of the clock, forward less back.
    clock: i8,
    /// Nodes whose permit an operator took while they were going down: they count no longer.
    excused: u8,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LostReply,
    LateCopy,
    Restart,
    Cancel,
    /// The power fails, or a reboot ends in the old slot.
    Crash,
    Force,
    Clock,
    SlowBackend,
}

const ALL: [Fault; 8] = [
    Fault::LostReply,
    Fault::LateCopy,
    Fault::Restart,
    Fault::Cancel,
    Fault::Crash,
    Fault::Force,
    Fault::Clock,
    Fault::SlowBackend,
];

/// The ways to name three nodes.
const NAMINGS: [[u8; NODES]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

struct Setup<'a> {
    max: u32,
    kinds: &'a [Fault],
    attempts: u16,
    /// Nodes reboot into the version that runs.
    same_release: bool,
    mutation: Option<Mutation>,
    faults: usize,
    /// The search ends here, and says so.
    states: usize,
}

#[derive(Debug)]
struct Found {
    states: usize,
    documents: usize,
    /// States first reached with no fault, one, two...
    by_faults: Vec<usize>,
    is_complete: bool,
}

type Outcome = Result<(u32, Answer), String>;

struct Search<'a> {
    setup: Setup<'a>,
    documents: Vec<Document>,
    numbers: HashMap<Vec<u16>, u32>,
    /// The boots that a document names, by node, as bits.
    boots: Vec<[u32; NODES]>,
    outcomes: HashMap<(u32, Message, i8), Outcome>,
    ticks: HashMap<(u32, i8), u32>,
    renamed: HashMap<(u32, [u8; NODES]), u32>,
    known: HashMap<State, u32>,
    order: Vec<(State, u32)>,
}

fn time(clock: i8) -> Timestamp {
    at(i64::from(clock) * JUMP_S)
}

impl<'a> Search<'a> {
    fn new(setup: Setup<'a>) -> Self {
        Self {
            setup,
            documents: Vec::new(),
            numbers: HashMap::new(),
            boots: Vec::new(),
            outcomes: HashMap::new(),
            ticks: HashMap::new(),
            renamed: HashMap::new(),
            known: HashMap::new(),
            order: Vec::new(),
        }
    }

    fn intern(&mut self, document: Document) -> u32 {
        let document = plain(document);
        let next = u32::try_from(self.documents.len()).unwrap();
        match self.numbers.entry(key(&document)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                place.insert(next);
                let mut boots = [0; NODES];
                for holder in &document.holders {
                    let node: usize = holder.node.as_str()[1..].parse().unwrap();
                    for boot in [&holder.boot_before, &holder.boot_after].into_iter().flatten() {
                        if boot.as_str() != "another" {
                            boots[node] |= 1 << number(boot.as_str());
                        }
                    }
                }
                self.boots.push(boots);
                self.documents.push(document);
                next
            }
        }
    }

    fn transition(&mut self, document: u32, command: &Command, clock: i8) -> Result<(u32, Answer), String> {
        let before = &self.documents[document as usize];
        let context = context(time(clock));
        let applied = apply_with(before, command, &context, self.setup.mutation);
        check_step(before, command, &context, &applied, self.setup.mutation)?;
        let answer = Answer::from(&applied.reply);
        let after = applied.document.map_or(document, |after| self.intern(after));
        Ok((after, answer))
    }

    fn say(&mut self, document: u32, message: Message, clock: i8) -> Outcome {
        if let Some(known) = self.outcomes.get(&(document, message, clock)) {
            return known.clone();
        }
        let outcome = self.transition(document, &message.command(), clock);
        self.outcomes.insert((document, message, clock), outcome.clone());
        outcome
    }

    fn tick(&mut self, document: u32, clock: i8) -> Result<u32, String> {
        if let Some(known) = self.ticks.get(&(document, clock)) {
            return Ok(*known);
        }
        let (after, _) = self.transition(document, &Command::Tick, clock)?;
        self.ticks.insert((document, clock), after);
        Ok(after)
    }

    /// The boots of a node that something still names.
    fn named_boots(&self, state: &State, node: usize) -> u32 {
        let of = |message: &Message| if usize::from(message.node) == node { 1 << message.boot } else { 0 };
        let slow = state.slow.map_or(0, |(message, read)| of(&message) | self.boots[read as usize][node]);
        state.late.iter().flatten().fold(slow, |bits, message| bits | of(message))
            | self.boots[state.document as usize][node]
    }

    /// The same state by its plainest name: the order of what is under way means nothing, nor does the number of a boot
    /// that nothing names, nor which node is called first.
    fn canonical(&mut self, mut state: State) -> State {
        for id in 0..NODES {
            let named = self.named_boots(&state, id);
            let node = &mut state.nodes[id];
            if named & (1 << node.boot) == 0 {
                node.boot = u16::try_from(named.trailing_ones()).unwrap();
            }
        }
        let nodes = state.nodes.map(|node| Node { id: 0, ..node });
        let by = |naming: &&[u8; NODES]| {
            let mut named = [Node::new(0); NODES];
            for (from, to) in naming.iter().enumerate() {
                named[usize::from(*to)] = nodes[from];
            }
            named
        };
        let naming = NAMINGS.iter().min_by_key(by).unwrap();
        self.renamed(&state, naming)
    }

    /// The state with node `i` called `naming[i]`.
    fn renamed(&mut self, state: &State, naming: &[u8; NODES]) -> State {
        let mut renamed = *state;
        renamed.excused = 0;
        for (from, to) in naming.iter().enumerate() {
            renamed.nodes[usize::from(*to)] = Node { id: *to, ..state.nodes[from] };
            renamed.excused |= ((state.excused >> from) & 1) << to;
        }
        let message = |message: Message| Message { node: naming[usize::from(message.node)], ..message };
        renamed.late = state.late.map(|late| late.map(message));
        renamed.late.sort();
        renamed.slow = state.slow.map(|(word, read)| (message(word), self.renamed_document(read, naming)));
        renamed.document = self.renamed_document(state.document, naming);
        renamed
    }

    fn renamed_document(&mut self, document: u32, naming: &[u8; NODES]) -> u32 {
        if *naming == NAMINGS[0] {
            return document;
        }
        if let Some(known) = self.renamed.get(&(document, *naming)) {
            return *known;
        }
        let mut renamed = self.documents[document as usize].clone();
        let name = |node: &ClientId| naming[node.as_str()[1..].parse::<usize>().unwrap()];
        let renamed_attempt = |to: u8, old: &AttemptId| attempt(to, number(old.as_str()));
        for holder in &mut renamed.holders {
            let to = name(&holder.node);
            holder.node = client(to);
            holder.attempt = holder.attempt.as_ref().map(|old| renamed_attempt(to, old));
            for boot_id in [&mut holder.boot_before, &mut holder.boot_after].into_iter().flatten() {
                if boot_id.as_str() != "another" {
                    *boot_id = boot(to, number(boot_id.as_str()));
                }
            }
        }
        for waiter in &mut renamed.queue {
            let to = name(&waiter.node);
            waiter.node = client(to);
            waiter.attempt = waiter.attempt.as_ref().map(|old| renamed_attempt(to, old));
        }
        for finished in &mut renamed.finished {
            let to = name(&finished.node);
            finished.node = client(to);
            finished.attempt = renamed_attempt(to, &finished.attempt);
        }
        let renamed = self.intern(renamed);
        self.renamed.insert((document, *naming), renamed);
        renamed
    }

    fn fresh_boot(&self, state: &State, node: usize) -> u16 {
        let named = self.named_boots(state, node) | (1 << state.nodes[node].boot);
        u16::try_from(named.trailing_ones()).unwrap()
    }

    /// I1 and I6 of a state.
    fn check(&self, state: &State) -> Result<(), String> {
        let document = &self.documents[state.document as usize];
        let is_down = |node: &&Node| node.is_down() && state.excused & (1 << node.id) == 0;
        let down = state.nodes.iter().filter(is_down).count();
        if down > self.setup.max as usize {
            return Err(format!("I1: {down} nodes are down, {} may be", self.setup.max));
        }
        match state.nodes.iter().filter(is_down).find(|node| document.holder(&client(node.id)).is_none()) {
            Some(node) => Err(format!("I6: {node:?} is down and holds no permit")),
            None => Ok(()),
        }
    }

    /// What can happen without a fault.
    fn moves(&mut self, state: &State) -> Result<Vec<State>, String> {
        let mut next = Vec::new();
        let ticked = self.tick(state.document, state.clock)?;
        next.push(State { document: ticked, ..*state });
        for (id, node) in state.nodes.iter().enumerate() {
            let mut with = |node: Node, document: u32| {
                let mut after = State { document, ..*state };
                after.nodes[id] = node;
                next.push(after);
            };
            if let Some(message) = node.message() {
                let (document, answer) = self.say(state.document, message, state.clock)?;
                with(node.told(message.word, answer, self.setup.mutation), document);
            }
            match node.doing {
                Doing::Go => with(node.go_down(), state.document),
                Doing::Down => {
                    let mut after = *state;
                    after.nodes[id] = node.come_up(self.fresh_boot(state, id), true);
                    after.excused &= !(1 << id);
                    next.push(after);
                }
                Doing::Start if node.record == Record::None => {
                    let holder = self.documents[state.document as usize].holder(&client(node.id));
                    if let Some(node) = holder.and_then(|holder| node.reconcile(holder)) {
                        with(node, state.document);
                    } else if !node.done && node.attempts < self.setup.attempts {
                        let to = if self.setup.same_release { 0 } else { node.attempts + 1 };
                        with(node.begin(to), state.document);
                    }
                }
                _ => {}
            }
        }
        for (place, late) in state.late.iter().enumerate() {
            let Some(message) = late else { continue };
            let (document, _) = self.say(state.document, *message, state.clock)?;
            let mut after = State { document, ..*state };
            after.late[place] = None;
            next.push(after);
        }
        next.extend(self.write_at_last(state)?);
        Ok(next)
    }

    /// The slow backend writes: by compare-and-swap, or what it read so long ago. That the document is the one it read
    /// stands for its revision: were it another one with the same content, the result would be the same too.
    fn write_at_last(&mut self, state: &State) -> Result<Option<State>, String> {
        let Some((message, read)) = state.slow else { return Ok(None) };
        let guarded = self.setup.mutation != Some(Mutation::IgnoresRevision);
        let basis = if guarded { state.document } else { read };
        let (document, _) = self.say(basis, message, state.clock)?;
        let document = if !guarded && document == read { state.document } else { document };
        Ok(Some(State { document, slow: None, ..*state }))
    }

    /// What can go wrong, each for one fault.
    fn faults(&mut self, state: &State) -> Result<Vec<State>, String> {
        let kinds = self.setup.kinds;
        let mut next = Vec::new();
        for id in 0..NODES {
            for kind in kinds {
                self.fault_of_node(state, id, *kind, &mut next)?;
            }
        }
        for clock in [state.clock - 1, state.clock + 1] {
            if kinds.contains(&Fault::Clock) && (-1..=1).contains(&clock) {
                next.push(State { clock, ..*state });
            }
        }
        Ok(next)
    }

    fn fault_of_node(
        &mut self,
        state: &State,
        id: usize,
        kind: Fault,
        next: &mut Vec<State>,
    ) -> Result<(), String> {
        let node = state.nodes[id];
        let mut with = |node: Node, excused: u8| {
            let mut after = State { excused, ..*state };
            after.nodes[id] = node;
            next.push(after);
        };
        match (kind, node.message()) {
            (Fault::Restart, _) if node.doing != Doing::Down => with(node.restart(), state.excused),
            (Fault::Cancel, _) => {
                if let Some(node) = node.give_up() {
                    with(node, state.excused);
                }
            }
            (Fault::Crash, _) => {
                for into_release in [false, true] {
                    with(node.come_up(self.fresh_boot(state, id), into_release), state.excused & !(1 << id));
                }
            }
            (Fault::LostReply, Some(message)) => {
                let (document, _) = self.say(state.document, message, state.clock)?;
                next.push(State { document, ..*state });
            }
            (Fault::LateCopy, Some(message)) => {
                if let Some(place) = state.late.iter().position(Option::is_none) {
                    let mut after = *state;
                    after.late[place] = Some(message);
                    next.push(after);
                }
            }
            (Fault::SlowBackend, Some(message)) if state.slow.is_none() => {
                next.push(State { slow: Some((message, state.document)), ..*state });
            }
            (Fault::Force, _) => next.extend(self.force_release(state, id)?),
            _ => {}
        }
        Ok(())
    }

    fn force_release(&mut self, state: &State, id: usize) -> Result<Option<State>, String> {
        let node = &state.nodes[id];
        let Some(holder) = self.documents[state.document as usize].holder(&client(node.id)) else {
            return Ok(None);
        };
        let command = Command::ForceRelease {
            node: client(node.id),
            grant: holder.grant,
            who: "operator".to_owned(),
            why: String::new(),
        };
        // Only one that was told to go is excused: a grant that was not verified must end with its permit.
        let excused = if holder.phase == Phase::Rebooting && node.is_down() { 1 << id } else { 0 };
        let (document, _) = self.transition(state.document, &command, state.clock)?;
        Ok(Some(State { document, excused: state.excused | excused, ..*state }))
    }

    /// Takes a state in, if it is new. False: it is known, or there is no room.
    fn discover(&mut self, state: State, from: u32) -> bool {
        let state = self.canonical(state);
        let next = u32::try_from(self.order.len()).unwrap();
        match self.known.entry(state) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(next);
                self.order.push((state, from));
                true
            }
        }
    }

    /// How it came to a state, for a person.
    fn story(&self, mut index: u32) -> String {
        let mut lines = Vec::new();
        loop {
            let (state, from) = &self.order[index as usize];
            let holders: Vec<_> = self.documents[state.document as usize]
                .holders
                .iter()
                .map(|holder| format!("{} {:?}", holder.attempt.as_ref().unwrap(), holder.phase))
                .collect();
            let nodes: Vec<_> = state
                .nodes
                .iter()
                .map(|node| format!("b{} v{} {:?} {:?}", node.boot, node.runs, node.record, node.doing))
                .collect();
            lines.push(format!("{holders:?} | {} | {:?} {:?}", nodes.join(" | "), state.late, state.slow));
            if *from == index {
                break;
            }
            index = *from;
        }
        lines.reverse();
        lines.join("\n")
    }

    fn run(&mut self) -> Result<Found, String> {
        let policy = Policy { max: Limit::Count(self.setup.max), ..Policy::default() };
        let document = self.intern(Document::new("default".parse().unwrap(), policy));
        let nodes = [0, 1, 2].map(Node::new);
        self.discover(State { document, nodes, late: [None; LATE], slow: None, clock: 0, excused: 0 }, 0);
        let mut by_faults = Vec::new();
        let mut level = 0;
        for faults in 0..=self.setup.faults {
            let begin = level;
            // All that comes of this many faults, then one fault more anywhere in it.
            while level < self.order.len() {
                if self.order.len() > self.setup.states {
                    by_faults.push(self.order.len() - begin);
                    return Ok(self.found(by_faults, false));
                }
                self.expand(level, Self::moves)?;
                self.check_rest(level)?;
                level += 1;
            }
            by_faults.push(level - begin);
            for index in begin..level {
                if faults < self.setup.faults && self.order.len() <= self.setup.states {
                    self.expand(index, Self::faults)?;
                }
            }
        }
        Ok(self.found(by_faults, true))
    }

    fn found(&self, by_faults: Vec<usize>, is_complete: bool) -> Found {
        Found { states: self.order.len(), documents: self.documents.len(), by_faults, is_complete }
    }

    fn expand(
        &mut self,
        index: usize,
        by: fn(&mut Self, &State) -> Result<Vec<State>, String>,
    ) -> Result<(), String> {
        let from = u32::try_from(index).unwrap();
        let (state, _) = self.order[index];
        let told = |search: &Self, error: String| format!("{error}\n{}", search.story(from));
        self.check(&state).map_err(|error| told(self, error))?;
        for next in by(self, &state).map_err(|error| told(self, error))? {
            self.discover(next, from);
        }
        Ok(())
    }

    /// I7, as far as a search shows it: where nothing goes on by itself, all are through, or a failed node halts them.
    fn check_rest(&mut self, index: usize) -> Result<(), String> {
        let (state, _) = self.order[index];
        let next = self.moves(&state)?;
        if next.iter().any(|next| self.canonical(*next) != state) {
            return Ok(());
        }
        let holders = &self.documents[state.document as usize].holders;
        let is_halted = holders.iter().any(|holder| holder.phase == Phase::Failed);
        let is_through = holders.is_empty() && state.nodes.iter().all(|node| node.record == Record::None);
        if is_halted || is_through {
            return Ok(());
        }
        Err(format!("I7: nothing goes on\n{}", self.story(u32::try_from(index).unwrap())))
    }
}

fn search(setup: Setup<'_>) -> Result<Found, String> {
    Search::new(setup).run()
}

const WITHOUT_COPIES: [Fault; 6] =
    [Fault::LostReply, Fault::Restart, Fault::Cancel, Fault::Crash, Fault::Force, Fault::Clock];

/// Searches to the end of the bound, for an update into another release and for a reboot into the same one.
#[track_caller]
fn holds(name: &str, kinds: &[Fault], attempts: u16, faults: usize, max: u32, at_least: usize) {
    for same_release in [false, true] {
        let setup = Setup { max, kinds, attempts, same_release, mutation: None, faults, states: 4_000_000 };
        let found = search(setup).unwrap_or_else(|violation| panic!("{name}, max {max}: {violation}"));
        let Found { states, documents, by_faults, .. } = &found;
        println!(
            "{name}, max {max}, same release {same_release}: {states} states, {documents} documents; {by_faults:?}"
        );
        assert!(found.is_complete, "the bound was not reached: {found:?}");
        // Small searches pass by not searching.
        assert!(found.states >= at_least, "{found:?}");
    }
}

#[test]
fn all_kinds_of_faults_together_two_of_them() {
    holds("all kinds", &ALL, 2, 2, 1, 70_000);
    holds("all kinds", &ALL, 2, 2, 2, 200_000);
}

#[test]
fn each_kind_of_fault_alone_eight_of_it() {
    for kind in ALL {
        for max in [1, 2] {
            holds(&format!("{kind:?}"), &[kind], 2, 8, max, 100);
        }
    }
}

#[test]
fn eight_faults_without_copies_and_slow_backends() {
    holds("without copies", &WITHOUT_COPIES, 1, 8, 1, 100_000);
}

#[test]
fn eight_faults_around_reboots_with_two_permits() {
    holds("reboots", &[Fault::LostReply, Fault::Restart, Fault::Crash, Fault::Cancel], 1, 8, 2, 1_000);
}

#[test]
fn eight_faults_of_late_copies_while_attempts_are_given_up() {
    holds("given up", &[Fault::LateCopy, Fault::Cancel], 2, 8, 1, 100_000);
}

#[test]
fn eight_faults_of_clocks_and_operators_with_two_permits() {
    holds("clocks", &[Fault::Clock, Fault::Force], 2, 8, 2, 50_000);
}

/// Tests of the tests: a lock without a guard is found out.
#[track_caller]
fn finds(mutation: Mutation, kinds: &[Fault], same_release: bool, expected: &str) {
    let setup = Setup {
        max: 1,
        kinds,
        attempts: 2,
        same_release,
        mutation: Some(mutation),
        faults: 2,
        states: 4_000_000,
    };
    let violation = search(setup).err().unwrap_or_else(|| panic!("{mutation:?} went unnoticed"));
    assert!(violation.starts_with(expected), "{violation}");
}

#[test]
fn a_store_that_does_not_compare_revisions_is_found_out() {
    finds(Mutation::IgnoresRevision, &[Fault::SlowBackend], false, "I");
}

#[test]
fn nodes_that_do_not_verify_are_found_out() {
    finds(Mutation::SkipsVerify, &[Fault::Force], false, "I6");
}

#[test]
fn a_lock_that_does_not_compare_boots_is_found_out() {
    finds(Mutation::BelievesBoots, &[Fault::Restart], true, "I2, I4, I5");
}
