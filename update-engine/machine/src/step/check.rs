//! Step 4, channel, and step 3's outcome: when to ask the server, and what its answer means for this node.

use super::Turn;
use crate::effect::Operation;
use crate::event::{Answer, Checked, Failure, FailureKind, Offer};
use crate::record::{Flip, HeldRelease, Purpose, Refusal, Release};
use crate::state::{Stage, Update};
use protocol::status::{Exit, LastCheck, Progress};
use protocol::wire::EventKind;

/// Why an offer is not taken.
enum Decline {
    /// It runs already, or waits for its boot already.
    Nothing(String),
    /// This node does not take it.
    Refused(String),
}

impl Turn {
    pub(super) fn decide_check(&mut self) -> Option<Operation> {
        let run = &self.state.run;
        if run.rollback_wanted || run.once && (run.checked || run.verdict.is_some()) {
            return None;
        }
        // A person's other request is no occasion to install something.
        if run.asked.is_some() && !run.interactive {
            return None;
        }
        if !self.state.run.once {
            let at = self.state.run.next_check?;
            if self.wait_until(at) {
                return None;
            }
        }
        let pending = self.state.pending().map(|(release, _)| release);
        Some(Operation::Check { interactive: self.state.run.interactive, pending })
    }

    pub(super) fn checked(&mut self, result: Result<Checked, Failure>, abandoned: bool) {
        self.state.run.checked = true;
        self.state.run.looked = true;
        self.state.run.install_held = None;
        if abandoned {
            self.schedule_check(None);
            return;
        }
        match result {
            Ok(checked) => {
                self.state.run.error = None;
                self.schedule_check(checked.retry_after_s);
                let withdrawn = checked.withdrawn && self.withdraw();
                self.take_answer(checked.answer);
                if withdrawn && self.state.run.update.is_none() {
                    self.verdict(Exit::Done);
                }
            }
            Err(failure) => self.check_failed(&failure),
        }
    }

    fn check_failed(&mut self, failure: &Failure) {
        if failure.kind == FailureKind::Cancelled {
            // The engine is stopped in the middle of it.
            return self.schedule_check(None);
        }
        self.state.run.error = Some(self.cut(&failure.detail));
        match failure.kind {
            FailureKind::Refused => {
                self.schedule_check(failure.retry_after_s);
                self.refused(None, &failure.detail);
            }
            _ => {
                self.schedule_retry(failure.retry_after_s);
                self.note_check("failed");
                self.verdict(Exit::Failed);
            }
        }
    }

    fn note_check(&mut self, result: &str) {
        // With an update to install, whether all went well is known only when it is staged.
        if !matches!(result, "update" | "failed") {
            self.state.run.failures = 0;
        }
        self.state.record.last_check = Some(LastCheck { at: self.now, result: result.to_owned() });
    }

    fn take_answer(&mut self, answer: Answer) {
        self.hold_or_let_go(&answer);
        match answer {
            Answer::Nothing(reason) => self.nothing_new(reason),
            Answer::Hold(reason) => {
                self.note_check("deferred");
                self.note(reason);
                self.verdict(Exit::Deferred);
            }
            Answer::Refused(reason) => {
                self.state.run.error = Some(self.cut(&reason));
                self.refused(None, &reason);
            }
            Answer::Offer(offer) => self.offered(offer),
        }
    }

    /// Whether what waits here is held from now on. Only the server's word that this very release may go on lets it go: "nothing"
    /// may have other causes, such as a dead end, and what cannot be trusted means nothing.
    fn hold_or_let_go(&mut self, answer: &Answer) {
        let pending = self.state.pending().map(|(release, _)| release.digest);
        let held = match (answer, pending) {
            (_, None) => None,
            (Answer::Hold(reason), Some(release)) => Some(HeldRelease { release, reason: self.cut(reason) }),
            (Answer::Offer(offer), Some(release)) if offer.release.digest == release => None,
            _ => return,
        };
        self.state.record.held = held;
    }

    fn nothing_new(&mut self, reason: String) {
        self.note_check("no-update");
        self.note(reason);
        self.verdict(Exit::NothingToDo);
    }

    fn offered(&mut self, offer: Offer) {
        match self.decline(&offer.release) {
            Some(Decline::Nothing(reason)) => self.nothing_new(reason),
            Some(Decline::Refused(reason)) => {
                self.state.run.error = Some(self.cut(&reason));
                self.refused(Some(offer.release), &reason);
            }
            None => {
                self.note_check("update");
                self.note(format!("{} is to be installed", offer.release.version));
                self.drop_update();
                self.state.record.refusal = None;
                self.state.run.progress = Progress { bytes_total: offer.bytes_total, ..Progress::default() };
                self.state.run.update = Some(Update { offer, stage: Stage::Accepted });
            }
        }
    }

    /// Why this node does not take a release that its channel offers, if it does not.
    fn decline(&self, release: &Release) -> Option<Decline> {
        let record = &self.state.record;
        let (running, ..) = self.slots()?;
        let running_digest = record.slots.get(running).as_ref().and_then(|content| content.digest);
        if running_digest == Some(release.digest) || self.state.running_version() == Some(&release.version) {
            return Some(Decline::Nothing(format!("{} runs already", release.version)));
        }
        if let Some(entry) = record.quarantined(&release.digest) {
            let why = &entry.reason;
            return Some(Decline::Refused(format!(
                "{} is quarantined on this node ({why}); `updatectl quarantine clear` allows it again",
                release.version
            )));
        }
        if let Some(pending) = self.declined_for_pending(release) {
            return Some(Decline::Nothing(pending));
        }
        self.attempts_exhausted(release).map(Decline::Refused)
    }

    /// Why what waits already in the other slot stays there, if it does.
    fn declined_for_pending(&self, release: &Release) -> Option<String> {
        let intent = self.state.record.intent.as_ref().filter(|intent| intent.flip != Flip::Undoing);
        if let Some(intent) = intent.filter(|intent| intent.purpose != Purpose::Update) {
            return Some(format!("the way back to {} waits for the reboot", intent.content.version));
        }
        let (pending, activated) = self.state.pending()?;
        if activated && intent.is_none() {
            // Being undone: whatever is offered may take its place.
            return None;
        }
        let waits = if activated { "is activated and waits for the reboot" } else { "is staged" };
        if pending.digest == release.digest {
            return Some(format!("{} {waits}", pending.version));
        }
        release
            .version
            .is_older_than(&pending.version)
            .then(|| format!("{} {waits}, and {} is older", pending.version, release.version))
    }

    fn attempts_exhausted(&self, release: &Release) -> Option<String> {
        let attempt = self.state.record.attempt(&release.digest)?;
        let policy = &self.state.policy;
        if attempt.failed >= policy.attempts_max {
            return Some(format!(
                "{} failed {} times here, the last time: {}; `updatectl update --force` tries again",
                release.version, attempt.failed, attempt.last_error
            ));
        }
        (attempt.interrupted >= policy.interruptions_max).then(|| {
            format!(
                "{} was cut off {} times while it was installed; `updatectl update --force` tries again",
                release.version, attempt.interrupted
            )
        })
    }

    /// The channel no longer lists what waits in the other slot: it is not to boot. Says whether there was anything.
    fn withdraw(&mut self) -> bool {
        let Some((pending, activated)) = self.state.pending() else { return false };
        if activated {
            if !self.undo_flip(false) {
                return false;
            }
        } else {
            self.drop_update();
        }
        self.forget_preparation();
        self.give_up_permit();
        self.note(format!("{} was withdrawn from the channel", pending.version));
        true
    }

    /// What waits for its boot is not to boot any more. Says whether there was anything, a way back included or not.
    pub(super) fn undo_flip(&mut self, rollback_too: bool) -> bool {
        match &mut self.state.record.intent {
            Some(intent)
                if intent.flip == Flip::Activated && (rollback_too || intent.purpose == Purpose::Update) =>
            {
                intent.flip = Flip::Undoing;
                true
            }
            _ => false,
        }
    }

    pub(super) fn refused(&mut self, release: Option<Release>, reason: &str) {
        self.note_check("refused");
        self.tell_once(EventKind::Refused, release, reason);
        self.note(reason);
        self.verdict(Exit::Refused);
    }

    /// Tells the server, unless this is what it was told last.
    pub(super) fn tell_once(&mut self, kind: EventKind, release: Option<Release>, reason: &str) {
        let refusal = Refusal { release, reason: self.cut(reason) };
        if self.state.record.refusal.as_ref() == Some(&refusal) {
            return;
        }
        let release = refusal.release.clone();
        self.state.record.refusal = Some(refusal);
        let digest = release.as_ref().map(|release| release.digest);
        self.tell(kind, release.as_ref().map(|release| &release.version), digest, reason);
    }

    /// What is to be sent to the server now, if anything.
    pub(super) fn decide_report(&mut self) -> Option<Vec<protocol::wire::Event>> {
        let run = &self.state.run;
        if run.facts.is_none() || run.report_running || self.state.record.events.is_empty() {
            return None;
        }
        if run.once && run.report_failed {
            return None;
        }
        if let Some(at) = run.report_at
            && self.wait_until(at)
        {
            return None;
        }
        self.state.run.report_running = true;
        Some(self.state.record.events.batch(self.state.policy.report_max))
    }

    pub(super) fn reported(&mut self, result: &Result<u64, Failure>) {
        if !std::mem::take(&mut self.state.run.report_running) {
            return;
        }
        let stored = matches!(result, Ok(up_to) if self.state.record.events.acknowledge(*up_to));
        let run = &mut self.state.run;
        if stored {
            run.report_failures = 0;
            run.report_at = None;
        } else {
            run.report_failures = run.report_failures.saturating_add(1);
            run.report_failed = true;
            let wait = self.backoff(self.state.run.report_failures);
            self.state.run.report_at = Some(self.after(wait));
        }
    }
}
