//! Steps 5 to 12: one step of the machine. Handlers change the state; then one function decides what runs next.

mod activate;
mod boot;
mod check;
mod confirm;
mod install;
mod operator;
mod permit;
mod prepare;
mod schedule;

use crate::effect::{Effect, Operation, Outcome, Reply};
use crate::event::{Event, Failure, FailureKind};
use crate::queue::About;
use crate::record::{PerSlot, Release};
use crate::state::{Asked, LastBatch, Stage, State, Waiting};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::slot::{Attributes, Slot};
use protocol::status::Exit;
use protocol::version::Version;
use protocol::wire::EventKind;

/// One step: the state and the effects that follow from an event at this time.
///
/// An event that does not answer the running operation, and an event after [`Effect::Finish`], changes nothing.
#[must_use]
pub fn step(state: State, event: Event, now: Timestamp) -> (State, Vec<Effect>) {
    let mut turn = Turn { state, now, side: Vec::new(), unsaved: false };
    if turn.state.run.finished.is_some() && !matches!(event, Event::SaveFailed(_)) {
        return (turn.state, Vec::new());
    }
    turn.handle(event);
    turn.close()
}

/// One step under way.
struct Turn {
    state: State,
    now: Timestamp,
    /// Effects that neither save, report nor run: discard, abort, reply.
    side: Vec<Effect>,
    /// The record could not be saved just now: nothing that needs saving follows before the wait is over.
    unsaved: bool,
}

impl Turn {
    fn handle(&mut self, event: Event) {
        // The save of a batch fails before anything else happens.
        if !matches!(event, Event::SaveFailed(_)) {
            self.state.run.forgiven = None;
        }
        if is_answer(&event) {
            if !self.answers(&event) {
                return;
            }
            let Some(operation) = self.state.run.operation.take() else { return };
            let abandoned = std::mem::take(&mut self.state.run.abandoned);
            return self.answered(&operation, event, abandoned);
        }
        match event {
            Event::Start(start) => self.started(start),
            Event::Operator(command) => self.operator(command),
            Event::Progress(progress) => self.state.run.progress = progress,
            Event::SaveFailed(detail) => self.save_failed(&detail),
            Event::Reported(result) => self.reported(&result),
            _ => {}
        }
    }

    fn answered(&mut self, operation: &Operation, event: Event, abandoned: bool) {
        match event {
            Event::Probed(result) => self.probed(result),
            Event::Checked(result) => self.checked(result, abandoned),
            Event::Preflighted(result) => self.preflighted(result, abandoned),
            Event::TableChanged(Ok(attributes)) => self.table_changed(operation, attributes, abandoned),
            Event::TableChanged(Err(failure)) => self.table_failed(operation, &failure),
            Event::Installed(result) => self.installed(result, abandoned),
            Event::ReadBack(result) => self.read_back(result, abandoned),
            Event::HealthJudged(health) => self.judged(health, abandoned),
            Event::LockAnswered(answer) => {
                if let Operation::AskLock(question) = operation {
                    self.lock_answered(question, answer, abandoned);
                }
            }
            Event::RebootPrepared(result) => self.reboot_prepared(result, abandoned),
            Event::RebootRequested(result) => self.reboot_requested(result),
            Event::PostConfirmed(result) => {
                if let Operation::PostConfirm { version } = operation {
                    self.post_confirmed(version, result);
                }
            }
            _ => {}
        }
    }

    /// Whether this event answers the operation that runs.
    fn answers(&self, event: &Event) -> bool {
        use Operation as Op;
        let Some(operation) = &self.state.run.operation else { return false };
        match event {
            Event::Probed(_) => matches!(operation, Op::Probe),
            Event::Checked(_) => matches!(operation, Op::Check { .. }),
            Event::Preflighted(_) => matches!(operation, Op::Preflight { .. }),
            Event::TableChanged(_) => changes_table(operation),
            Event::Installed(_) => matches!(operation, Op::Install { .. }),
            Event::ReadBack(_) => matches!(operation, Op::ReadBack { .. }),
            Event::HealthJudged(_) => matches!(operation, Op::RunHealth { .. }),
            Event::LockAnswered(_) => matches!(operation, Op::AskLock(_)),
            Event::RebootPrepared(_) => matches!(operation, Op::PrepareReboot { .. }),
            Event::RebootRequested(_) => matches!(operation, Op::Reboot),
            Event::PostConfirmed(_) => matches!(operation, Op::PostConfirm { .. }),
            _ => false,
        }
    }

    /// A table operation was done: keep the attributes, then what follows from it.
    fn table_changed(&mut self, operation: &Operation, attributes: PerSlot<Attributes>, abandoned: bool) {
        if let Some(facts) = &mut self.state.run.facts {
            facts.attributes = attributes;
        }
        if !achieved(operation, &attributes) {
            let detail =
                format!("{operation:?} was reported as done, but the table does not say so: {attributes:?}");
            return self.table_failed(operation, &Failure::new(FailureKind::Node, detail));
        }
        self.state.run.table_failures = 0;
        self.state.run.changed = true;
        match operation {
            Operation::Invalidate { .. } => self.invalidated(abandoned),
            Operation::Activate { .. } | Operation::Revert { .. } => self.activated(),
            Operation::Deactivate { .. } | Operation::Restore { .. } => self.deactivated(),
            Operation::MarkGood { .. } => self.complete_confirmation(),
            _ => {}
        }
    }

    /// A table operation failed: nothing is known about the table until it is read again.
    fn table_failed(&mut self, operation: &Operation, failure: &Failure) {
        if matches!(operation, Operation::Invalidate { .. } | Operation::Activate { .. }) {
            self.update_failed(failure, true);
        }
        self.state.run.table_failures = self.state.run.table_failures.saturating_add(1);
        self.doubt(&failure.detail, self.state.run.table_failures);
    }

    /// The record could not be saved: what its batch would have started did not start.
    fn save_failed(&mut self, detail: &str) {
        self.unsaved = true;
        self.state.saved = None;
        if let Some(forgiven) = self.state.run.forgiven.take() {
            let record = &mut self.state.record;
            record.attempts = forgiven.attempts;
            record.quarantine = forgiven.quarantine;
            record.rolled_back = forgiven.rolled_back;
            record.refusal = forgiven.refusal;
        }
        let last = std::mem::take(&mut self.state.run.last_batch);
        if last.operation {
            self.state.run.operation = None;
            self.state.run.abandoned = false;
        }
        if last.report {
            self.state.run.report_running = false;
        }
        if last.finish {
            self.state.run.finished = None;
        }
        self.state.run.table_failures = self.state.run.table_failures.saturating_add(1);
        let detail = format!("the state could not be saved: {detail}");
        self.doubt(&detail, self.state.run.table_failures);
    }

    /// Goes on only after the facts were read again, after a wait that grows with the failures in a row.
    fn doubt(&mut self, detail: &str, failures: u32) {
        self.fail(detail);
        self.drop_update();
        // Whoever asked is told that it was declined, or reads the error: it must not happen later all the same.
        self.state.run.rollback_wanted = false;
        self.state.run.reboot_wanted = false;
        let wait = self.backoff(failures);
        self.state.run.probe_at = Some(self.after(wait));
    }

    /// Notes what is wrong; one pass ends as failed.
    fn fail(&mut self, detail: &str) {
        self.state.run.error = Some(self.cut(detail));
        self.verdict(Exit::Failed);
    }

    fn verdict(&mut self, exit: Exit) {
        self.state.run.verdict = Some(exit);
    }

    /// Says what is going on, for the status.
    fn note(&mut self, text: impl Into<String>) {
        self.state.run.note = self.cut(&text.into());
    }

    /// On one line, and no longer than the policy's bound, at a character's edge.
    fn cut(&self, text: &str) -> String {
        let text = protocol::status::one_line(text);
        let mut end = text.len().min(self.state.policy.detail_max);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.get(..end).unwrap_or_default().to_owned()
    }

    /// Queues an event for the server.
    fn tell(&mut self, kind: EventKind, version: Option<&Version>, release: Option<Sha256>, detail: &str) {
        self.tell_with(kind, version, release, detail, "");
    }

    /// Queues an event for the server, with what was seen of a failure.
    fn tell_with(
        &mut self,
        kind: EventKind,
        version: Option<&Version>,
        release: Option<Sha256>,
        detail: &str,
        evidence: &str,
    ) {
        let evidence = bounded_lines(evidence, self.state.policy.evidence_max);
        let about = About { kind, version, release, detail: self.cut(detail), evidence };
        self.state.record.events.push(self.now, about, &self.state.policy);
    }

    fn tell_release(&mut self, kind: EventKind, release: &Release, detail: &str) {
        self.tell(kind, Some(&release.version), Some(release.digest), detail);
    }

    fn reply(&mut self, outcome: Outcome, text: impl Into<String>) {
        if let Some(asked) = &mut self.state.run.asked {
            *asked = if outcome == Outcome::Done { Asked::Accepted } else { Asked::Declined };
        }
        self.side.push(Effect::Reply(Reply { outcome, text: text.into() }));
    }

    /// Stops the running operation; what it brings is not used.
    fn abandon_operation(&mut self) {
        self.state.run.abandoned = true;
        self.side.push(Effect::Abort);
    }

    /// The slot that runs, the other one, and the attributes of both in that order.
    fn slots(&self) -> Option<(Slot, Slot, Attributes, Attributes)> {
        let facts = self.state.run.facts.as_ref()?;
        let (running, other) = (facts.slot, facts.slot.other());
        Some((running, other, *facts.attributes.get(running), *facts.attributes.get(other)))
    }

    /// What runs next, if anything can run now. Where something must wait, the time to look again is noted.
    fn decide(&mut self) -> Option<Operation> {
        let (running, other, running_is, other_is) = self.slots()?;
        self.state.run.waiting = None;
        if matches!(self.state.run.asked, Some(Asked::Awaited | Asked::Declined)) {
            return None;
        }
        if let Some(at) = self.state.run.probe_at {
            // One pass ends here; the next one begins with fresh facts anyway.
            return if self.state.run.once || self.wait_until(at) { None } else { Some(Operation::Probe) };
        }
        if !running_is.successful() {
            return self.decide_unconfirmed(running, running_is, other_is);
        }
        if self.state.record.condemned(other) && other_is != other_is.invalidated() {
            return Some(Operation::Condemn { slot: other });
        }
        if let Some(operation) = self.decide_flip(other) {
            return Some(operation);
        }
        if self.reboot_settling() {
            return None;
        }
        if let Some(operation) = self.decide_post_confirm() {
            return Some(operation);
        }
        if let Some(operation) = self.decide_permit_end() {
            return Some(operation);
        }
        if let Some(operation) = self.decide_update(other) {
            return Some(operation);
        }
        // One pass looks for something newer before it reboots into what is there.
        let check_first = self.state.run.once;
        let check = |turn: &mut Self| turn.decide_check();
        let reboot = |turn: &mut Self| turn.decide_reboot();
        let first = if check_first { check(self) } else { reboot(self) };
        let next = first
            .or_else(|| if check_first { reboot(self) } else { check(self) })
            .or_else(|| self.decide_permit_unused());
        let run = &mut self.state.run;
        if next.is_none() && run.waiting.is_none() {
            run.waiting = run.install_held.clone().map(Waiting::Hook);
        }
        next
    }

    /// Composes the batch: save, then what stands beside, then the report, then what runs next.
    fn close(mut self) -> (State, Vec<Effect>) {
        self.state.run.wake_at = None;
        if self.unsaved {
            return self.close_unsaved();
        }
        let idle = self.state.run.operation.is_none() && self.state.run.finished.is_none();
        let operation = if idle { self.decide() } else { None };
        let report = self.decide_report();
        let finish = idle && operation.is_none() && self.may_finish();
        let mut effects = Vec::new();
        if self.state.saved.as_ref() != Some(&self.state.record) {
            effects.push(Effect::Save(Box::new(self.state.record.clone())));
            self.state.saved = Some(self.state.record.clone());
        }
        let run = &mut self.state.run;
        run.last_batch = LastBatch { operation: operation.is_some(), report: report.is_some(), finish };
        effects.append(&mut self.side);
        effects.extend(report.map(Effect::Report));
        if let Some(operation) = operation {
            run.operation = Some(operation.clone());
            effects.push(Effect::Run(operation));
        }
        if finish {
            let exit = match run.verdict.unwrap_or(Exit::NothingToDo) {
                // Nothing new, but what an earlier run had left undone was done.
                Exit::NothingToDo if run.changed => Exit::Done,
                exit => exit,
            };
            run.finished = Some(exit);
            effects.push(Effect::Finish(exit));
        }
        (self.state, effects)
    }

    /// The batch after a save failed. Saving again at once would fail again, and the driver would do nothing else: one
    /// pass ends here, and a daemon tries again after the wait that [`Self::doubt`] set.
    fn close_unsaved(mut self) -> (State, Vec<Effect>) {
        let idle = self.state.run.operation.is_none();
        if idle {
            // Facts in doubt let nothing run; this notes when to look again.
            let runs = self.decide();
            debug_assert!(runs.is_none(), "{runs:?} would run unsaved");
        }
        let mut effects = std::mem::take(&mut self.side);
        let finish = idle && self.state.run.once;
        self.state.run.last_batch = LastBatch { operation: false, report: false, finish };
        if finish {
            self.state.run.finished = Some(Exit::Failed);
            effects.push(Effect::Finish(Exit::Failed));
        }
        (self.state, effects)
    }

    /// Whether the pass is over: nothing can run now, and the server was told or could not be.
    fn may_finish(&self) -> bool {
        let run = &self.state.run;
        let told = self.state.record.events.is_empty() || run.report_failed;
        let awaited = run.asked == Some(Asked::Awaited);
        run.once && !awaited && run.facts.is_some() && !run.report_running && told
    }

    /// Gives up the update under way, if there is one: its evidence is dropped, its attempt does not count.
    fn drop_update(&mut self) {
        let Some(update) = self.state.run.update.take() else { return };
        if update.stage == Stage::Staged {
            self.side.push(Effect::Discard);
        }
        self.close_attempt(update.offer.release.digest);
    }
}

/// Whether this event answers an operation.
const fn is_answer(event: &Event) -> bool {
    !matches!(
        event,
        Event::Start(_)
            | Event::Tick
            | Event::Operator(_)
            | Event::Progress(_)
            | Event::SaveFailed(_)
            | Event::Reported(_)
    )
}

/// Lines of a bounded length: where there are too many bytes, the middle is left out. What comes first says what failed,
/// what comes last is nearest to it.
fn bounded_lines(text: &str, max: usize) -> String {
    const CUT: &str = "\n[...]\n";
    let text = protocol::status::lines(text);
    if text.len() <= max {
        return text;
    }
    let mut head = max / 4;
    let mut tail = text.len() - max.saturating_sub(head + CUT.len());
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    let whole = [text.get(..head), Some(CUT), text.get(tail..)].map(Option::unwrap_or_default).concat();
    if whole.len() <= max { whole } else { String::new() }
}

const fn changes_table(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Invalidate { .. }
            | Operation::Activate { .. }
            | Operation::Revert { .. }
            | Operation::Deactivate { .. }
            | Operation::Restore { .. }
            | Operation::MarkGood { .. }
            | Operation::Condemn { .. }
    )
}

/// Whether the table says what this operation was to make it say.
fn achieved(operation: &Operation, attributes: &PerSlot<Attributes>) -> bool {
    match operation {
        Operation::Invalidate { target }
        | Operation::Deactivate { target }
        | Operation::Condemn { slot: target } => {
            let is = *attributes.get(*target);
            is == is.invalidated()
        }
        Operation::Activate { target, .. } | Operation::Revert { target, .. } => {
            let (is, running_is) = (attributes.get(*target), attributes.get(target.other()));
            is.bootable() && is.priority() > running_is.priority()
        }
        Operation::Restore { target } => {
            let (is, running_is) = (attributes.get(*target), attributes.get(target.other()));
            is.successful() && is.priority() < running_is.priority()
        }
        Operation::MarkGood { slot } => attributes.get(*slot).successful(),
        _ => true,
    }
}
