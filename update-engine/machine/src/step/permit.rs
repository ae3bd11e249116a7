//! Step 9, permit: the attempts at the reboot lock: when it is asked, and what it is told of how they ended.
//!
//! The rules that the lock rests on (docs/lock.md): an attempt is on record before the first request for it; to give it up
//! is on record before the first word of that, and it never goes on; a reboot follows only on a verification that was just
//! answered; what became of the reboot is told until the lock heard it.

use super::Turn;
use super::prepare::Leave;
use crate::effect::{Ask, Operation, Question};
use crate::event::{Failure, FailureKind};
use crate::policy::Strategy;
use crate::record::{Permit, PermitStage, Release};
use crate::state::Waiting;
use protocol::lock::{AttemptId, Refusal, Reply, Wait};
use protocol::status::Exit;
use protocol::version::Version;

impl Turn {
    /// Under the lock: the permit, then the node made ready, then the permit checked again.
    pub(super) fn leave(&mut self, version: &Version) -> Leave {
        if self.state.policy.strategy != Strategy::Lock {
            return Leave::Granted;
        }
        if let Some(at) = self.state.run.permit_at
            && self.wait_until(at)
        {
            self.state.run.waiting = Some(Waiting::Permit(self.state.run.permit_note.clone()));
            self.verdict(Exit::Deferred);
            return Leave::Wait;
        }
        if !self.state.policy.windows.is_empty() && self.wait_for_window(version).is_none() {
            // Held outside of this node's windows it would only keep others from theirs.
            return self.wait_without_permit();
        }
        if let Some(ask) = self.obtain(version) {
            return ask;
        }
        // Without a reboot there is nothing to make ready for.
        if self.state.run.facts.as_ref().is_some_and(|facts| facts.reboot_allowed) {
            match self.prepared(version) {
                Leave::Granted => {}
                not_yet => return not_yet,
            }
        }
        if self.state.run.permit_checked_at.is_some_and(|at| self.is_fresh(at)) {
            return Leave::Granted;
        }
        self.state.run.permit_checked_at = None;
        self.question(Ask::Verify).map_or(Leave::Wait, Leave::Ask)
    }

    /// What the server has this node wait with: the automatic way into an update, not what a person asks for. What waits
    /// already in the other slot is not undone, as a pause ends; but under the lock it needs a permit, which is for others
    /// meanwhile.
    pub(super) fn held_by_rollout(&mut self, release: &Release) -> Option<Leave> {
        let held = self.state.record.held.as_ref().filter(|held| held.release == release.digest)?;
        let reason = held.reason.clone();
        // When the rollout goes on, the node may have been put to work again.
        self.put_off_preparation(&release.version);
        self.state.run.waiting = Some(Waiting::Rollout(reason));
        if self.state.policy.strategy == Strategy::Lock {
            return Some(self.wait_without_permit());
        }
        self.deferred();
        Some(Leave::Wait)
    }

    /// One pass ends as put off, unless something went wrong in it.
    fn deferred(&mut self) {
        if !matches!(self.state.run.verdict, Some(Exit::Failed | Exit::Refused)) {
            self.verdict(Exit::Deferred);
        }
    }

    /// The permit goes back, and what was activated under it is undone.
    fn wait_without_permit(&mut self) -> Leave {
        self.deferred();
        self.give_up_permit();
        self.undo_without_permit();
        match self.decide_undo() {
            Some(undo) => Leave::Ask(undo),
            None => self.end_or_wait(),
        }
    }

    /// What is still to be done for a permit for this version; nothing if it is held.
    fn obtain(&mut self, version: &Version) -> Option<Leave> {
        let boot_id = self.state.run.facts.as_ref()?.boot_id.clone();
        let permit = self.state.record.permit.clone();
        let is_this = |permit: &&Permit| permit.version == *version && permit.boot_id == boot_id;
        match permit.as_ref().filter(is_this).map(|permit| &permit.stage) {
            Some(PermitStage::Held) => return None,
            Some(PermitStage::Asked) => {}
            // A failed version is asked for again all the same: the lock says what stands against it.
            _ => {
                if let Some(held) = self.held_back() {
                    return Some(held);
                }
                if let Some(told) = permit.as_ref().and_then(|permit| self.told_first(permit)) {
                    return Some(told);
                }
                let attempt = self.new_attempt()?;
                self.state.record.permit = Some(Permit {
                    attempt,
                    version: version.clone(),
                    boot_id,
                    stage: PermitStage::Asked,
                    before: permit.map(Box::new),
                });
            }
        }
        Some(self.question(Ask::Request).map_or(Leave::Wait, Leave::Ask))
    }

    /// What is still to be told of another attempt comes first. One that is open in this boot, or failed, is superseded at
    /// the lock by the new one, which inherits its permit or its place; but only one at a time.
    fn told_first(&mut self, permit: &Permit) -> Option<Leave> {
        if permit.is_open() && permit.before.is_some() {
            self.give_up_permit();
        } else if permit.is_open() || permit.stage == PermitStage::Halting {
            return None;
        }
        Some(self.end_or_wait())
    }

    /// What was found to hold the reboot, and is not looked at again yet: no permit is asked for meanwhile.
    fn held_back(&mut self) -> Option<Leave> {
        let at = self.state.run.hold_until?;
        if !self.wait_until(at) {
            return None;
        }
        self.state.run.waiting = self.state.run.hold.as_ref().map(Waiting::from);
        Some(Leave::Wait)
    }

    /// An id that was never used: by the time, and by chance where a clock was set back or a record lost.
    fn new_attempt(&mut self) -> Option<AttemptId> {
        let (now, chance) = (self.now.as_millisecond(), self.random(u64::MAX));
        format!("{now:x}-{chance:016x}").parse().ok()
    }

    /// A question about the attempt on record.
    fn question(&self, ask: Ask) -> Option<Operation> {
        let permit = self.state.record.permit.as_ref()?;
        let facts = self.state.run.facts.as_ref()?;
        let boot_id = if ask == Ask::Abandon { &permit.boot_id } else { &facts.boot_id };
        Some(Operation::AskLock(Box::new(Question {
            attempt: permit.attempt.clone(),
            boot_id: boot_id.clone(),
            running: self.state.running_version()?.clone(),
            version: permit.version.clone(),
            ask,
        })))
    }

    // --- how attempts end

    /// The attempt goes no further. Says whether there was one that might have.
    pub(super) fn give_up_permit(&mut self) -> bool {
        self.state.run.permit_checked_at = None;
        match &mut self.state.record.permit {
            Some(permit) if permit.is_open() => {
                permit.stage = PermitStage::GivenUp;
                self.state.run.permit_at = None;
                true
            }
            _ => false,
        }
    }

    /// A permit that is held for another version than this one is not kept while this one is fetched.
    pub(super) fn give_up_permit_unless_for(&mut self, version: &Version) {
        let other = |permit: &Permit| permit.stage == PermitStage::Held && permit.version != *version;
        if self.state.record.permit.as_ref().is_some_and(other) {
            self.give_up_permit();
        }
    }

    /// What the lock is still to be told of an attempt that ended.
    pub(super) fn decide_permit_end(&mut self) -> Option<Operation> {
        let ask = match &self.state.record.permit.as_ref()?.stage {
            PermitStage::Asked | PermitStage::Held | PermitStage::Halting => return None,
            // The node is back at work only when the post-confirm hooks have run.
            PermitStage::Confirmed if self.state.record.post_confirm.is_some() => return None,
            PermitStage::GivenUp => Ask::Abandon,
            PermitStage::Confirmed => Ask::Confirm,
            PermitStage::Failed { reason } => Ask::Fail { reason: reason.clone() },
            // It does not know of such a boot, and says for which attempt it does hold a permit.
            PermitStage::Unknown => Ask::Booted,
        };
        if let Some(at) = self.state.run.permit_at
            && self.wait_until(at)
        {
            return None;
        }
        self.question(ask)
    }

    fn end_or_wait(&mut self) -> Leave {
        match self.decide_permit_end() {
            Some(operation) => Leave::Ask(operation),
            None => {
                let waiting = match &self.state.record.post_confirm {
                    Some(owed) => Waiting::Hook(format!(
                        "the permit for {} goes back when its post-confirm hooks have run",
                        owed.version
                    )),
                    None => Waiting::Permit(self.state.run.permit_note.clone()),
                };
                self.state.run.waiting.get_or_insert(waiting);
                self.verdict(Exit::Deferred);
                Leave::Wait
            }
        }
    }

    /// The attempt that nothing needs any more is given up: what it was for is gone. After a start that is known only once
    /// the server was asked.
    pub(super) fn decide_permit_unneeded(&mut self) -> Option<Operation> {
        let run = &self.state.run;
        if run.update.is_some() || run.rollback_wanted || !run.looked {
            return None;
        }
        if !self.give_up_permit() {
            return None;
        }
        self.decide_permit_end()
    }

    /// One pass ends: a permit that it could not use is for others until the next pass, which nobody knows the time of. One
    /// that covers a flip stays.
    pub(super) fn decide_permit_unused(&mut self) -> Option<Operation> {
        let held = |permit: &Permit| permit.stage == PermitStage::Held;
        if !self.state.run.once
            || self.state.record.intent.is_some()
            || !self.state.record.permit.as_ref().is_some_and(held)
        {
            return None;
        }
        self.give_up_permit();
        self.decide_permit_end()
    }

    /// The lock is told, once, that the release is up; its health is not kept waiting if it cannot be.
    pub(super) fn decide_booted(&mut self) -> Option<Operation> {
        let facts = self.state.run.facts.as_ref()?;
        let permit = self.state.record.permit.as_ref()?;
        let in_it = self.state.running_version() == Some(&permit.version);
        if self.state.run.booted_told || !in_it || !permit.is_open() || permit.boot_id == facts.boot_id {
            return None;
        }
        if let Some(at) = self.state.run.permit_at
            && self.wait_until(at)
        {
            return None;
        }
        self.question(Ask::Booted)
    }

    /// Without a record, which may have been lost: the lock is asked once whether it holds a permit of this node.
    pub(super) fn look_for_lost_permit(&mut self) {
        if self.state.policy.strategy != Strategy::Lock || self.state.record.permit.is_some() {
            return;
        }
        let Some(boot_id) = self.state.run.facts.as_ref().map(|facts| facts.boot_id.clone()) else { return };
        let (Some(attempt), Some(version)) = (self.new_attempt(), self.state.running_version().cloned())
        else {
            return;
        };
        let stage = PermitStage::Unknown;
        self.state.record.permit = Some(Permit { attempt, version, boot_id, stage, before: None });
    }

    /// In another boot than that of the attempt: what became of it, as far as the record and the table say. What failed was
    /// noted before ([`Self::permit_failed`]).
    pub(super) fn settle_permit(&mut self) {
        let Some((.., running_is, _)) = self.slots() else { return };
        let Some(facts) = &self.state.run.facts else { return };
        let running = self.state.running_version().cloned();
        let Some(permit) = &mut self.state.record.permit else { return };
        let ended = !permit.is_open() && permit.stage != PermitStage::GivenUp;
        if permit.boot_id == facts.boot_id {
            // The configuration needs none any more, and nothing else would give it back.
            if permit.is_open() && self.state.policy.strategy != Strategy::Lock {
                permit.stage = PermitStage::GivenUp;
            }
            return;
        }
        if ended {
            return;
        }
        permit.stage = if running.as_ref() != Some(&permit.version) {
            // It went down by itself before its next boot was switched, and is up again in what it ran.
            PermitStage::GivenUp
        } else if running_is.successful() {
            PermitStage::Confirmed
        } else {
            PermitStage::Held
        };
    }

    /// The release of the attempt failed here, in another boot than that of the attempt.
    pub(super) fn permit_failed(&mut self, version: &Version, reason: &str) {
        let reason = self.cut(reason);
        let boot = self.state.record.last_boot.as_ref().map(|boot| boot.boot_id.clone());
        let Some(permit) = &mut self.state.record.permit else { return };
        let is_its = permit.version == *version && Some(&permit.boot_id) != boot.as_ref();
        if is_its && (permit.is_open() || permit.stage == PermitStage::GivenUp) {
            permit.stage = PermitStage::Failed { reason };
        }
    }

    // --- answers

    pub(super) fn lock_answered(
        &mut self,
        question: &Question,
        answer: Result<Reply, Failure>,
        abandoned: bool,
    ) {
        // Another attempt took its place meanwhile.
        if self.state.record.permit.as_ref().is_none_or(|permit| permit.attempt != question.attempt) {
            return;
        }
        let reply = match answer {
            Ok(reply) => reply,
            Err(failure) => return self.lock_silent(question, &failure),
        };
        self.state.run.lock_failures = 0;
        self.state.run.permit_at = None;
        match (&question.ask, reply) {
            (Ask::Request, reply) => self.requested(reply),
            (Ask::Verify, reply) => self.verified(&question.version, reply, abandoned),
            (Ask::Booted, reply) => self.booted_heard(reply),
            (Ask::Abandon, Reply::Released { was_held: false }) => self.attempt_over(),
            (_, Reply::Released { .. }) => self.state.record.permit = None,
            (Ask::Fail { .. }, Reply::Noted) => self.permit_is(PermitStage::Halting),
            // Taken over without its record, and begun in this very boot: it did not lead to a reboot.
            (Ask::Confirm, Reply::Refused { because: Refusal::SameBoot }) => {
                self.permit_is(PermitStage::GivenUp);
                if let Some(permit) = &mut self.state.record.permit {
                    permit.boot_id = question.boot_id.clone();
                }
            }
            (_, Reply::Refused { because: because @ (Refusal::SameBoot | Refusal::UnknownGroup { .. }) }) => {
                self.put_off_lock(&because.to_string(), self.state.policy.permit_retry_s.into());
            }
            // The lock knows of a reboot where this node knows of none: it counts as a failed one, as that frees nothing.
            (Ask::Abandon, Reply::Refused { because: Refusal::Rebooted }) => {
                let reason = "the reboot was given up, and the lock knows of one".to_owned();
                self.permit_is(PermitStage::Failed { reason });
            }
            // Another version runs than the permit was granted for: that one is not here.
            (Ask::Confirm, Reply::Refused { because: because @ Refusal::OtherVersion { .. } }) => {
                self.permit_is(PermitStage::Failed { reason: because.to_string() });
                if let (Some(permit), Refusal::OtherVersion { expected, .. }) =
                    (&mut self.state.record.permit, because)
                {
                    permit.version = expected;
                }
            }
            // The attempt is over there already.
            (_, Reply::Refused { .. }) => self.attempt_over(),
            (_, reply) => self.put_off_lock(&unexpected(&reply), self.state.policy.permit_retry_max_s.into()),
        }
    }

    fn permit_is(&mut self, stage: PermitStage) {
        if let Some(permit) = &mut self.state.record.permit {
            permit.stage = stage;
        }
    }

    /// The attempt is over, and holds nothing. What it was to take the place of may still be held: an attempt that was open
    /// is given back, a failed one goes on to halt the group.
    fn attempt_over(&mut self) {
        let before = self.state.record.permit.take().and_then(|permit| permit.before);
        self.state.record.permit = before.map(|mut before| {
            if before.is_open() {
                before.stage = PermitStage::GivenUp;
            }
            *before
        });
    }

    /// The lock carried a request of this attempt out: one that was open before is over there.
    fn superseded(&mut self) {
        if let Some(permit) = &mut self.state.record.permit {
            permit.before.take_if(|before| before.is_open());
        }
    }

    fn requested(&mut self, reply: Reply) {
        // Given up meanwhile: whatever came of it is given back.
        if self.state.record.permit.as_ref().is_none_or(|permit| !permit.is_open()) {
            return;
        }
        if matches!(reply, Reply::Granted { .. } | Reply::Wait { .. }) {
            self.superseded();
        }
        match reply {
            Reply::Granted { .. } => self.permit_is(PermitStage::Held),
            Reply::Wait { because, retry_after_s } => self.wait_for_permit(&listed(&because), retry_after_s),
            Reply::Refused { because: Refusal::AttemptOver } => {
                self.attempt_over();
                self.wait_for_permit("the attempt was ended at the lock; another one begins", 1);
            }
            Reply::Refused { because: Refusal::Rebooted } => self.permit_is(PermitStage::Unknown),
            Reply::Refused { because } => {
                self.wait_for_permit(&because.to_string(), self.state.policy.permit_retry_max_s);
            }
            reply => self.wait_for_permit(&unexpected(&reply), self.state.policy.permit_retry_max_s),
        }
    }

    /// Only a current grant allows the flip and the reboot, and only where this node still wants them.
    fn verified(&mut self, version: &Version, reply: Reply, abandoned: bool) {
        let held = self.state.record.permit.as_ref().is_some_and(|permit| permit.stage == PermitStage::Held);
        if abandoned || !held {
            return;
        }
        match reply {
            Reply::Current { .. } => self.state.run.permit_checked_at = Some(self.now),
            Reply::Wait { because, retry_after_s } => {
                self.wait_for_permit(&listed(&because), retry_after_s);
                if because.iter().any(|wait| matches!(wait, Wait::Window { .. })) {
                    // By the next window the node may have been put to work again, and others may be due before it.
                    self.put_off_preparation(version);
                    self.give_up_permit();
                }
                self.undo_without_permit();
            }
            Reply::Refused { because } => {
                // A group that is not there says nothing of who holds what, and may be there again.
                if !matches!(because, Refusal::UnknownGroup { .. }) {
                    self.state.record.permit = None;
                }
                self.wait_for_permit(&because.to_string(), self.state.policy.permit_retry_s);
                self.undo_without_permit();
            }
            reply => {
                self.wait_for_permit(&unexpected(&reply), self.state.policy.permit_retry_max_s);
                self.undo_without_permit();
            }
        }
    }

    /// What was activated under a permit that allows it no more must not boot.
    pub(super) fn undo_without_permit(&mut self) {
        if self.undo_flip(true) {
            self.state.run.next_check = self.state.run.permit_at.or(Some(self.now));
        }
    }

    fn booted_heard(&mut self, reply: Reply) {
        let unknown =
            self.state.record.permit.as_ref().is_some_and(|permit| permit.stage == PermitStage::Unknown);
        match reply {
            Reply::Refused { because: Refusal::NotHeld { holder: Some(attempt) } } if unknown => {
                // What runs is confirmed, or nothing would have been asked for. If the permit was for another version, the
                // lock says so to that.
                let Some(running) = self.state.running_version().cloned() else { return };
                if let Some(permit) = &mut self.state.record.permit {
                    (permit.attempt, permit.version) = (attempt, running);
                    permit.stage = PermitStage::Confirmed;
                }
            }
            _ if unknown => self.state.record.permit = None,
            _ => self.state.run.booted_told = true,
        }
    }

    /// No answer: it may have been done, and is asked again.
    fn lock_silent(&mut self, question: &Question, failure: &Failure) {
        if failure.kind == FailureKind::Cancelled {
            return;
        }
        let run = &mut self.state.run;
        run.lock_failures = run.lock_failures.saturating_add(1);
        let wait_s = self.backoff(self.state.run.lock_failures);
        let wait_s = wait_s.min(self.state.policy.permit_retry_max_s.into());
        let wait_s = failure.retry_after_s.map_or(wait_s, |wish| self.bounded(wish).max(wait_s));
        let note = format!("the lock cannot be asked: {}", failure.detail);
        self.put_off_lock(&note, wait_s);
        if matches!(question.ask, Ask::Request | Ask::Verify) {
            self.verdict(Exit::Deferred);
        }
        if question.ask == Ask::Verify {
            self.undo_without_permit();
        }
    }

    fn put_off_lock(&mut self, reason: &str, seconds: u64) {
        self.state.run.permit_note = self.cut(reason);
        self.state.run.permit_checked_at = None;
        self.state.run.permit_at = Some(self.after(seconds));
    }

    fn wait_for_permit(&mut self, reason: &str, retry_after_s: u32) {
        let wait_s = u64::from(retry_after_s).clamp(1, self.state.policy.retry_after_max_s.into());
        self.put_off_lock(reason, wait_s);
        self.verdict(Exit::Deferred);
    }
}

/// All that stands against it, the first reason first.
fn listed(because: &[Wait]) -> String {
    because.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn unexpected(reply: &Reply) -> String {
    format!("the lock gave an answer that was not expected: {reply:?}")
}
