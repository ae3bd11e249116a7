//! A node in miniature: two slots, a loader, a server, time, and a driver that executes the machine's effects and may
//! be killed between any two of them. Every effect and every boot is held against the invariants of `docs/machine.md`.
#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses a part")]
#![allow(missing_docs, missing_debug_implementations, reason = "a test's own world")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test that cannot go on fails")]

pub mod check;
mod ledger;
pub mod lock;
mod operations;
mod rollout;
pub mod server;
pub mod story;

pub use ledger::Ledger;

use jiff::{Span, Timestamp};
use machine::{
    Command, Effect, Event, Facts, Failure, FailureKind, HoldKind, Mode, Operation, PerSlot, PermitStage,
    Policy, Record, Start, State, Strategy, step,
};
use protocol::digest::Sha256;
use protocol::slot::{Attributes, Choice, Slot, select};
use protocol::status::Exit;
use protocol::version::Version;
use server::{Quality, Server};
use std::collections::BTreeSet;

/// What a slot's partitions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// The whole image of the release with this index.
    Whole(usize),
    /// Something between two images, or an image with a wrong byte.
    Broken,
}

/// A broken promise, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

pub type Outcome = Result<(), Violation>;

/// A deliberate mistake in the execution of effects. The invariants must notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The save before an activation does not happen.
    NoSaveBeforeActivate,
    /// The save before a condemnation does not happen.
    NoSaveBeforeCondemn,
    /// A batch's operation comes before its save, and the power goes between.
    OperationBeforeSave,
    /// The target is not invalidated before it is written.
    NoInvalidate,
    /// The read-back is believed without reading.
    NoReadBack,
    /// Health checks are believed without running.
    NoHealth,
    /// The quarantine is lost on the way to the disk.
    QuarantineLost,
    /// The intent is lost on the way to the disk.
    IntentLost,
    /// The attempts are lost on the way to the disk.
    AttemptsLost,
    /// Condemnations are not carried out.
    NoCondemn,
    /// Events are sent though their save failed.
    EventsUnsaved,
    /// An undone flip is not undone.
    NoDeactivate,
    /// Reboots are taken as prepared, and hooks as run, whatever holds.
    NoPrepare,
    /// That the pre-reboot hooks ran is put on record though they did not.
    HooksAssumed,
    /// What is owed after a confirmation is lost on the way to the disk.
    PostConfirmLost,
    /// Evidence is lost on the way to the disk.
    EvidenceLost,
    /// A grant is taken as current without asking the lock again.
    VerifyAssumed,
    /// The attempt at the lock is lost on the way to the disk.
    AttemptLost,
    /// That an attempt is given up is lost on the way to the disk.
    GiveUpLost,
    /// The lock is not told of confirmations.
    ConfirmLost,
    /// That the server holds an update is lost on the way to the disk.
    HeldLost,
}

/// How an operation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Well,
    /// It fails before it did anything.
    Fails(FailureKind),
    /// It does what it should, and reports a failure.
    DoneButFails,
    /// It does a part, then the engine is killed.
    Killed,
    /// It does all, then the engine is killed before it can tell.
    DoneButKilled,
    /// It does all, then the power goes.
    DoneButPowerCut,
    /// It does a part, then the power goes.
    PowerCut,
}

/// One thing that happens to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The running operation ends.
    Finish(End),
    /// The running report ends: stored, stored but the answer lost, not stored.
    Report(Option<bool>),
    /// Seconds pass, and the timer rings if it is due.
    Pass(u32),
    /// The clock is set to another time, so many hours off.
    ClockJump(i16),
    /// The engine is killed and starts again.
    Kill,
    /// The machine loses power and boots.
    PowerCut,
    /// The engine is killed, or the power goes, after so many more effects.
    DieIn {
        /// Effects until then.
        effects: u8,
        /// Power, or only the engine.
        power: bool,
    },
    /// The next save fails.
    SaveFails,
    /// A person asks.
    Operator(Command),
    /// The server's channel points at another release, by its number modulo the number of releases.
    Channel(u8),
    /// The server lists nothing.
    ChannelEmpty,
    /// The server is reachable or not.
    Online(bool),
    /// The lock grants or denies.
    Lock(bool),
    /// The lock answers or not.
    LockAnswers(bool),
    /// A held permit is taken away.
    PermitTaken,
    /// From now on this holds every reboot, or nothing does.
    Holds(Option<HoldKind>),
    /// The server halts the rollout, or lets it go on.
    ServerHolds(bool),
}

/// The part that a restart of the engine forgets.
struct Process {
    state: State,
    evidence: Option<(Slot, Sha256)>,
    /// The running operation was given up.
    aborted: bool,
    /// The evidence that the running activation has taken.
    taken: Option<(Slot, Sha256)>,
    invalidated: Option<Slot>,
    report: Option<Vec<protocol::wire::Event>>,
    /// The version whose grant the lock called current, and when.
    verified: Option<(Version, Timestamp)>,
    /// The reboot that was prepared, and when.
    prepared: Option<(Version, Timestamp)>,
    /// The attributes when it started.
    table: PerSlot<Attributes>,
}

/// The node and all around it.
pub struct World {
    pub policy: Policy,
    pub table: PerSlot<Attributes>,
    pub bytes: PerSlot<Bytes>,
    /// The record as it is on the disk, as text.
    pub saved: String,
    pub booted: Slot,
    pub boots: u32,
    pub now: Timestamp,
    pub server: Server,
    pub mode: Mode,
    pub reboot_allowed: bool,
    pub mutation: Option<Mutation>,
    pub exit: Option<Exit>,
    /// What the driver executed, for failure messages and assertions.
    pub log: Vec<String>,
    process: Option<Process>,
    die_in: Option<(u8, bool)>,
    save_fails: bool,
    pub lock: lock::Lock,
    holds: Option<HoldKind>,
    /// Ledger of what the invariants need to know.
    pub ledger: Ledger,
    seed: u64,
    /// What was reached, for the test that the lives are rich enough.
    pub reached: BTreeSet<String>,
}

impl World {
    /// A node that runs release 0, confirmed, from slot A, with nothing in slot B.
    pub fn new(strategy: Strategy, mode: Mode, server: Server) -> Self {
        let policy =
            Policy { strategy, attempts_max: 3, interruptions_max: 6, events_max: 12, ..Policy::default() };
        let mut world = Self {
            policy,
            table: PerSlot {
                a: Attributes::default().with_priority(1).with_successful(true),
                b: Attributes::default(),
            },
            bytes: PerSlot { a: Bytes::Whole(0), b: Bytes::Broken },
            saved: serde_json::to_string(&Record::default()).unwrap(),
            booted: Slot::A,
            boots: 1,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            server,
            mode,
            reboot_allowed: true,
            mutation: None,
            exit: None,
            log: Vec::new(),
            process: None,
            die_in: None,
            save_fails: false,
            lock: lock::Lock::default(),
            holds: None,
            ledger: Ledger { forced: BTreeSet::from([0]), ..Ledger::default() },
            seed: 1,
            reached: BTreeSet::new(),
        };
        world.start().unwrap();
        world
    }

    /// As [`Self::new`], with this policy.
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self.start().unwrap();
        self
    }

    pub fn record(&self) -> Record {
        serde_json::from_str(&self.saved).unwrap()
    }

    pub fn state(&self) -> Option<&State> {
        self.process.as_ref().map(|process| &process.state)
    }

    pub fn operation(&self) -> Option<Operation> {
        self.state().and_then(|state| state.operation().cloned())
    }

    /// The evidence that this process holds.
    pub fn evidence(&self) -> Option<(Slot, Sha256)> {
        self.process.as_ref().and_then(|process| process.evidence)
    }

    /// The release that runs.
    pub fn running(&self) -> usize {
        match self.bytes.get(self.booted) {
            Bytes::Whole(index) => *index,
            Bytes::Broken => usize::MAX,
        }
    }

    fn facts(&self) -> Facts {
        Facts {
            boot_id: format!("00000000-0000-4000-8000-{:012}", self.boots).parse().unwrap(),
            slot: self.booted,
            version: self.server.release(self.running()).version.clone(),
            attributes: self.table,
            reboot_allowed: self.reboot_allowed,
        }
    }

    /// A new engine process reads the record and starts.
    pub fn start(&mut self) -> Outcome {
        self.log.push(format!("-- engine starts in slot {}, boot {}", self.booted, self.boots));
        self.exit = None;
        self.die_in = None;
        self.ledger.held.restarted();
        let record: Record = self.record();
        self.process = Some(Process {
            state: State::new(self.policy.clone(), record),
            evidence: None,
            aborted: false,
            taken: None,
            invalidated: None,
            report: None,
            verified: None,
            prepared: None,
            table: self.table,
        });
        self.seed += 1;
        self.ledger.deaths += 1;
        let elsewhere = self.record().intent.is_some_and(|intent| intent.target != self.booted);
        let previous =
            if elsewhere { "boot -1: kernel panic\nat the console".to_owned() } else { String::new() };
        let start = Start { facts: self.facts(), mode: self.mode, seed: self.seed, previous };
        self.deliver(Event::Start(start))
    }

    /// The loader: picks a slot, spends a try, starts what is there; again, if that hangs.
    pub fn boot(&mut self) -> Outcome {
        self.process = None;
        let mut left_out: Option<Slot> = None;
        for _ in 0..40 {
            let entries =
                [(1, Slot::A), (2, Slot::B)].into_iter().filter(|(_, slot)| left_out != Some(*slot));
            let choice = select(entries.map(|(number, slot)| (number, *self.table.get(slot))));
            let Some(Choice { entry, write }) = choice else {
                return Err(Violation(format!("no slot boots: {:?}", self.table)));
            };
            let slot = if entry == 1 { Slot::A } else { Slot::B };
            self.note_exhausted(slot);
            let Bytes::Whole(index) = *self.bytes.get(slot) else {
                return Err(Violation(format!("slot {slot} boots and does not hold a whole image")));
            };
            if self.server.quality(index) == Quality::Unloadable {
                // Without a try spent, a flip that was about to be undone cannot be seen to have failed.
                let undoing = |intent: &machine::Intent| intent.flip == machine::Flip::Undoing;
                if !self.record().intent.as_ref().is_some_and(undoing) {
                    self.boot_failed(index);
                }
                left_out = Some(slot);
                continue;
            }
            if let Some(attributes) = write {
                *self.table.get_mut(slot) = attributes;
            }
            if self.server.quality(index) == Quality::Hangs {
                self.log.push(format!("-- slot {slot} hangs"));
                self.boot_failed(index);
                continue;
            }
            self.booted = slot;
            self.boots += 1;
            self.ledger.reboot_asked = false;
            self.ledger.looks = 0;
            return self.start();
        }
        Err(Violation("the loader never comes to an end".to_owned()))
    }

    /// A boot failed. Where its flip was dealt with before, this is nothing new, and a person may have cleared it.
    fn boot_failed(&mut self, index: usize) {
        self.ledger.failed.insert(index);
        if self.record().intent.is_some() {
            self.ledger.fail(index);
        }
    }

    /// A slot of higher priority that has no tries left has failed: it was booted and not confirmed.
    fn note_exhausted(&mut self, chosen: Slot) {
        let (chosen_is, other_is) = (*self.table.get(chosen), *self.table.get(chosen.other()));
        if other_is.priority() > chosen_is.priority()
            && !other_is.bootable()
            && let Bytes::Whole(index) = *self.bytes.get(chosen.other())
        {
            self.boot_failed(index);
        }
    }

    /// Hands an event to the machine and executes what comes of it.
    pub fn deliver(&mut self, event: Event) -> Outcome {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let Some(process) = &mut self.process else { return Ok(()) };
            let state = process.state.clone();
            let (state, effects) = step(state, event, self.now);
            process.state = state;
            let shown = machine::status(&process.state, &identity());
            self.reached.insert(format!("state {}", shown.state));
            check::shape(&effects)?;
            next = self.execute(effects)?;
            check::lasting(self)?;
        }
        Ok(())
    }

    /// Executes a batch; says what is to be delivered at once.
    fn execute(&mut self, effects: Vec<Effect>) -> Result<Option<Event>, Violation> {
        if self.mutation == Some(Mutation::OperationBeforeSave)
            && matches!(effects.last(), Some(Effect::Run(_)))
            && matches!(effects.first(), Some(Effect::Save(_)))
        {
            let Some(Effect::Run(operation)) = effects.last().cloned() else { return Ok(None) };
            let flips = matches!(operation, Operation::Activate { .. } | Operation::Condemn { .. });
            if flips {
                self.perform(&operation, End::DoneButPowerCut)?;
                return Ok(None);
            }
        }
        let last = effects.last().cloned();
        for effect in effects {
            if let Some((left, power)) = self.die_in {
                if left == 0 {
                    self.die_in = None;
                    self.log.push("-- dies between two effects".to_owned());
                    if power {
                        self.boot()?;
                    } else {
                        self.start()?;
                    }
                    return Ok(None);
                }
                self.die_in = Some((left - 1, power));
            }
            self.log.push(describe(&effect));
            self.reached.insert(kind(&effect));
            match effect {
                Effect::Save(record) => {
                    if self.mutation != Some(Mutation::EventsUnsaved) && std::mem::take(&mut self.save_fails)
                    {
                        self.ledger.excuse();
                        return Ok(Some(Event::SaveFailed("the disk is full".to_owned())));
                    }
                    self.save(*record, last.as_ref())?;
                }
                Effect::Discard => self.process_mut().evidence = None,
                Effect::Abort => self.process_mut().aborted = true,
                Effect::Reply(_) => {}
                Effect::Report(events) => {
                    check::report(self, &events)?;
                    self.process_mut().report = Some(events);
                }
                Effect::Run(operation) => {
                    check::operation(self, &operation)?;
                    if let Operation::AskLock(question) = &operation {
                        self.check_question(question)?;
                    }
                    self.ledger.post_confirms +=
                        u32::from(matches!(operation, Operation::PostConfirm { .. }));
                    let activates = matches!(operation, Operation::Activate { .. });
                    let process = self.process_mut();
                    process.aborted = false;
                    process.taken = if activates { process.evidence.take() } else { None };
                }
                Effect::Finish(exit) => {
                    check::finished(self, exit)?;
                    self.exit = Some(exit);
                    self.process = None;
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    fn save(&mut self, mut record: Record, last: Option<&Effect>) -> Outcome {
        self.ledger.held.saved(&record);
        let activates =
            matches!(last, Some(Effect::Run(Operation::Activate { .. } | Operation::Revert { .. })));
        let condemns = matches!(last, Some(Effect::Run(Operation::Condemn { .. })));
        match self.mutation {
            Some(Mutation::NoSaveBeforeActivate) if activates => return Ok(()),
            Some(Mutation::NoSaveBeforeCondemn) if condemns => {
                let before = self.record();
                (record.quarantine, record.slots) = (before.quarantine, before.slots);
            }
            Some(Mutation::QuarantineLost) => record.quarantine.clear(),
            Some(Mutation::IntentLost) => record.intent = None,
            Some(Mutation::AttemptsLost) => record.attempts.clear(),
            Some(Mutation::HooksAssumed) => {
                record.preparation.iter_mut().for_each(|begun| begun.hooks_done = true);
            }
            Some(Mutation::PostConfirmLost) => record.post_confirm = None,
            Some(Mutation::HeldLost) => record.held = None,
            Some(Mutation::AttemptLost) => record.permit = None,
            Some(Mutation::GiveUpLost) => {
                record
                    .permit
                    .iter_mut()
                    .filter(|permit| permit.stage == PermitStage::GivenUp)
                    .for_each(|permit| permit.stage = PermitStage::Held);
            }
            Some(Mutation::EvidenceLost) => {
                let mut value = serde_json::to_value(&record).unwrap();
                for event in value["events"]["pending"].as_array_mut().unwrap() {
                    event.as_object_mut().unwrap().remove("evidence");
                }
                record = serde_json::from_value(value).unwrap();
            }
            Some(Mutation::EventsUnsaved) if std::mem::take(&mut self.save_fails) => return Ok(()),
            _ => {}
        }
        check::saved(self, &record)?;
        self.saved = serde_json::to_string(&record).unwrap();
        Ok(())
    }

    /// The running operation ends in this way.
    pub fn finish(&mut self, end: End) -> Outcome {
        let Some(operation) = self.operation() else { return Ok(()) };
        self.log.push(format!("   {operation:?} ends: {end:?}"));
        self.perform(&operation, end)
    }

    /// Time passes; the timer rings if it is due.
    pub fn pass(&mut self, seconds: u32) -> Outcome {
        self.now = self.now.checked_add(Span::new().seconds(i64::from(seconds))).unwrap();
        let due = self.state().and_then(State::wake_at).is_some_and(|at| at <= self.now);
        if due { self.deliver(Event::Tick) } else { Ok(()) }
    }

    fn reach_events(&mut self, events: &[protocol::wire::Event]) {
        self.reached.extend(events.iter().map(|event| format!("event {:?}", event.kind)));
    }

    fn end_report(&mut self, end: Option<bool>) -> Outcome {
        let Some(events) = self.process.as_mut().and_then(|process| process.report.take()) else {
            return Ok(());
        };
        let last = events.last().map_or(0, |event| event.seq);
        if end.is_some() {
            self.reach_events(&events);
            check::store(self, events)?;
        }
        let lost = || Failure::new(FailureKind::Network, "no answer");
        self.deliver(Event::Reported(if end == Some(true) { Ok(last) } else { Err(lost()) }))
    }

    /// Lets one thing happen.
    pub fn act(&mut self, action: &Action) -> Outcome {
        match action {
            Action::Finish(end) => self.finish(*end),
            Action::Report(end) => self.end_report(*end),
            Action::Pass(seconds) => self.pass(*seconds),
            Action::ClockJump(hours) => {
                self.now = self.now.checked_add(Span::new().hours(i64::from(*hours))).unwrap();
                self.deliver(Event::Tick)
            }
            Action::Kill => self.start(),
            Action::PowerCut => self.boot(),
            Action::DieIn { effects, power } => {
                self.die_in = Some((*effects, *power));
                Ok(())
            }
            Action::SaveFails => {
                self.save_fails = true;
                Ok(())
            }
            Action::Operator(command) => {
                let (failed, banned) = (self.ledger.failed.clone(), self.ledger.banned.clone());
                check::operator(self, *command);
                let so_far = self.log.len();
                self.deliver(Event::Operator(*command))?;
                // Where the save fails there is none.
                let reply = self.log[so_far..].iter().find(|line| line.contains("Reply"));
                let declined = reply.is_some_and(|line| line.contains("outcome: Declined"));
                if *command == Command::Cancel && reply.is_some() && !declined {
                    self.ledger.drained.clear();
                    self.ledger.looks = 0;
                }
                if *command == Command::Rollback && declined {
                    (self.ledger.failed, self.ledger.banned) = (failed, banned);
                }
                Ok(())
            }
            Action::Channel(number) => {
                self.server.point(usize::from(*number));
                Ok(())
            }
            Action::ChannelEmpty => {
                self.server.channel = None;
                Ok(())
            }
            Action::Online(online) => {
                self.server.online = *online;
                Ok(())
            }
            Action::Lock(grants) => {
                self.set_lock(*grants);
                Ok(())
            }
            Action::LockAnswers(answers) => {
                self.lock.reachable = *answers;
                Ok(())
            }
            Action::Holds(kind) => {
                self.holds = *kind;
                Ok(())
            }
            Action::ServerHolds(holds) => {
                self.server.hold = *holds;
                Ok(())
            }
            Action::PermitTaken => {
                self.take_permit();
                Ok(())
            }
        }
    }

    /// Faults are over: everything ends well from here. Until `done`, or too many steps.
    pub fn settle(&mut self, done: impl Fn(&Self) -> bool) -> Outcome {
        self.die_in = None;
        self.save_fails = false;
        self.server.online = true;
        self.server.hold = false;
        self.set_lock(true);
        self.lock.reachable = true;
        // Inhibitors and sessions may stay: they are respected for a bounded time.
        self.holds.take_if(|kind| kind.is_final());
        let nobody_reboots = self.policy.strategy == Strategy::Off || !self.reboot_allowed;
        let mut checks = 0;
        for _ in 0..600 {
            if done(self) {
                return Ok(());
            }
            checks += u32::from(matches!(self.operation(), Some(Operation::Check { .. })));
            let record = self.record();
            let waits = record.intent.is_some() || record.condemned(self.booted);
            if nobody_reboots && waits && checks > 2 {
                // The engine is not to reboot: a person does, some day.
                checks = 0;
                self.boot()?;
                continue;
            }
            if self.operation().is_some() {
                self.finish(End::Well)?;
            } else if self.process.as_ref().is_some_and(|process| process.report.is_some()) {
                self.end_report(Some(true))?;
            } else if let Some(at) = self.state().and_then(State::wake_at) {
                self.now = self.now.max(at);
                self.deliver(Event::Tick)?;
            } else {
                // One pass ended; the next begins, in the slot that a person rebooted into if there is one.
                if self.exit.is_none() && self.reboot_allowed {
                    return Err(Violation("the engine waits for nothing".to_owned()));
                }
                if self.policy.strategy == Strategy::Lock && !waits && self.state().is_none() {
                    // A reboot would not help: nothing is activated before there is a permit, and nothing holds.
                    self.now = self.now.checked_add(Span::new().hours(1)).unwrap();
                    self.start()?;
                    continue;
                }
                self.boot()?;
            }
        }
        Err(Violation("the node does not come to rest".to_owned()))
    }
}

/// One line of the log.
fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Save(record) => format!(
            "   Save intent={:?} quarantine={} events={}",
            record.intent.as_ref().map(|intent| (intent.target, intent.flip)),
            record.quarantine.len(),
            record.events.len()
        ),
        Effect::Report(events) => {
            format!("   Report {:?}", events.iter().map(|e| e.kind).collect::<Vec<_>>())
        }
        other => format!("   {other:?}"),
    }
}

/// The first word of an effect, and of its operation.
fn kind(effect: &Effect) -> String {
    let text = match effect {
        Effect::Run(Operation::AskLock(question)) => format!("AskLock-{:?}", question.ask),
        Effect::Run(operation) => format!("{operation:?}"),
        Effect::Finish(exit) => format!("Finish-{exit:?}"),
        Effect::Save(_) => "Save".to_owned(),
        other => format!("{other:?}"),
    };
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

/// The node's identity, which nothing here depends on.
pub fn identity() -> machine::Identity {
    machine::Identity { channel: "alpha".parse().unwrap(), group: "default".parse().unwrap() }
}
