//! Steps 5 to 7, download, verify, slot: an accepted release on its way into the inactive slot.

use super::Turn;
use crate::effect::{Effect, Operation};
use crate::event::{Failure, FailureKind};
use crate::record::{Attempt, Content, Flip, Release};
use crate::state::Stage;
use protocol::digest::Sha256;
use protocol::slot::Slot;
use protocol::status::{Exit, Progress};
use protocol::wire::EventKind;

impl Turn {
    /// The next operation of the update under way, if there is one that can run now.
    pub(super) fn decide_update(&mut self, target: Slot) -> Option<Operation> {
        let update = self.state.run.update.as_ref()?;
        let (release, stage) = (update.offer.release.clone(), update.stage);
        match stage {
            Stage::Accepted => Some(Operation::Preflight { release, target }),
            Stage::Preflighted => {
                self.give_up_permit_unless_for(&release.version);
                // What is activated there is superseded: its flip is undone before its slot is touched.
                if let Some(intent) = &mut self.state.record.intent {
                    intent.flip = Flip::Undoing;
                    return self.decide_flip(target);
                }
                self.open_attempt(&release);
                *self.state.record.slots.get_mut(target) = None;
                Some(Operation::Invalidate { target })
            }
            Stage::Invalidated => {
                self.tell_release(EventKind::DownloadStarted, &release, "");
                Some(Operation::Install { release, target })
            }
            Stage::Installed => Some(Operation::ReadBack { release, target }),
            Stage::Staged => self.decide_activation(&release, target),
        }
    }

    pub(super) fn preflighted(&mut self, result: Result<(), Failure>, abandoned: bool) {
        match result {
            _ if abandoned => {}
            Ok(()) => self.reached(Stage::Preflighted),
            // Nothing was written, so this costs no attempt.
            Err(failure) => self.update_failed(&failure, false),
        }
    }

    pub(super) fn invalidated(&mut self, abandoned: bool) {
        if !abandoned {
            self.reached(Stage::Invalidated);
        }
    }

    pub(super) fn installed(&mut self, result: Result<Progress, Failure>, abandoned: bool) {
        match result {
            _ if abandoned => {}
            Ok(progress) => {
                self.state.run.progress = progress;
                self.reached(Stage::Installed);
            }
            Err(failure) => self.update_failed(&failure, true),
        }
    }

    pub(super) fn read_back(&mut self, result: Result<(), Failure>, abandoned: bool) {
        match result {
            // The evidence may be there; nobody will use it.
            Ok(()) if abandoned => self.side.push(Effect::Discard),
            Err(_) if abandoned => {}
            Ok(()) => self.staged(),
            Err(failure) => self.update_failed(&failure, true),
        }
    }

    fn staged(&mut self) {
        let Some((_, target, ..)) = self.slots() else { return };
        let Some(update) = &mut self.state.run.update else {
            // Nobody will use the evidence, and the disk stays locked for as long as it is there.
            self.side.push(Effect::Discard);
            return;
        };
        update.stage = Stage::Staged;
        let release = update.offer.release.clone();
        self.close_attempt(release.digest);
        self.state.run.failures = 0;
        self.state.record.rolled_back = None;
        self.tell_release(EventKind::Staged, &release, "");
        self.note(format!("{} is staged in slot {target}", release.version));
        self.verdict(Exit::Done);
        let content = Content {
            version: release.version,
            digest: Some(release.digest),
            reported: None,
            condemned: false,
        };
        *self.state.record.slots.get_mut(target) = Some(content);
    }

    fn reached(&mut self, stage: Stage) {
        if let Some(update) = &mut self.state.run.update {
            update.stage = stage;
        }
    }

    /// The update under way came to nothing. What that costs depends on whose fault it was.
    pub(super) fn update_failed(&mut self, failure: &Failure, counted: bool) {
        let Some(release) = self.state.run.update.as_ref().map(|update| update.offer.release.clone()) else {
            return;
        };
        self.drop_update();
        match failure.kind {
            FailureKind::Held => return self.install_held(failure),
            // Nothing is wrong: somebody wanted it to stop.
            FailureKind::Cancelled => self.verdict(Exit::Failed),
            _ => self.fail(&failure.detail),
        }
        match failure.kind {
            FailureKind::Network | FailureKind::Held => self.schedule_retry(failure.retry_after_s),
            FailureKind::Cancelled => self.schedule_check(None),
            FailureKind::Refused => {
                // Nothing is counted against the release, so what bounds the tries is that each waits longer.
                let failures = self.state.run.failures;
                self.refused(Some(release), &failure.detail);
                self.state.run.failures = failures;
                self.schedule_retry(failure.retry_after_s);
            }
            FailureKind::Release | FailureKind::Node => {
                self.schedule_retry(failure.retry_after_s);
                if counted {
                    self.count_failure(&release, &failure.detail);
                    self.tell_release(EventKind::Failed, &release, &failure.detail);
                } else {
                    self.tell_once(EventKind::Failed, Some(release), &failure.detail);
                }
            }
        }
    }

    /// The node does not want an update now: it is asked again, after a wait that grows, and nothing counts.
    fn install_held(&mut self, failure: &Failure) {
        self.state.run.install_held = Some(self.cut(&failure.detail));
        self.schedule_retry(failure.retry_after_s);
        self.verdict(Exit::Deferred);
    }

    /// Notes that an attempt is under way, so that one which is cut off is noticed.
    fn open_attempt(&mut self, release: &Release) {
        self.attempt_mut(release).open = true;
    }

    /// The attempt under way ended, and costs nothing.
    pub(super) fn close_attempt(&mut self, digest: Sha256) {
        let attempts = &mut self.state.record.attempts;
        for attempt in attempts.iter_mut().filter(|attempt| attempt.release.digest == digest) {
            attempt.open = false;
        }
    }

    pub(super) fn count_failure(&mut self, release: &Release, reason: &str) {
        let reason = self.cut(reason);
        let attempt = self.attempt_mut(release);
        attempt.open = false;
        attempt.failed = attempt.failed.saturating_add(1);
        attempt.last_error = reason;
    }

    fn attempt_mut(&mut self, release: &Release) -> &mut Attempt {
        let attempts = &mut self.state.record.attempts;
        // The one in use moves to the end, so that the one trimmed is the one longest out of use.
        let known = attempts.iter().position(|attempt| attempt.release.digest == release.digest);
        let attempt = known.map(|index| attempts.remove(index)).unwrap_or_else(|| Attempt {
            release: release.clone(),
            open: false,
            failed: 0,
            interrupted: 0,
            last_error: String::new(),
        });
        let excess = (attempts.len() + 1).saturating_sub(self.state.policy.attempts_kept.max(1));
        attempts.drain(..excess);
        attempts.push(attempt);
        let last = attempts.len() - 1;
        &mut attempts[last]
    }
}
