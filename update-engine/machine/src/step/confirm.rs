//! Step 12, confirm: the running release is judged; it is made permanent, or the node goes back.

use super::Turn;
use crate::effect::Operation;
use crate::event::{Evidence, Health};
use crate::record::{Flip, Purpose};
use crate::state::Judgement;
use protocol::slot::{Attributes, Slot};
use protocol::status::Exit;
use protocol::wire::EventKind;

impl Turn {
    /// What runs next while the running slot is not successful: nothing but its confirmation, or the way back.
    pub(super) fn decide_unconfirmed(
        &mut self,
        running: Slot,
        running_is: Attributes,
        other_is: Attributes,
    ) -> Option<Operation> {
        if self.state.record.condemned(running) && other_is.bootable() {
            if running_is != running_is.invalidated() {
                return Some(Operation::Condemn { slot: running });
            }
            return self.decide_way_back();
        }
        if let Some(operation) = self.decide_booted() {
            return Some(operation);
        }
        let judgement = self.state.run.judgement;
        match judgement {
            Judgement::Passed => Some(Operation::MarkGood { slot: running }),
            Judgement::Again(at) if self.wait_until(at) => None,
            Judgement::Pending | Judgement::Again(_) => {
                Some(Operation::RunHealth { deadline_s: self.state.policy.health_deadline_s })
            }
        }
    }

    pub(super) fn judged(&mut self, health: Health, abandoned: bool) {
        // The operator decided meanwhile.
        if abandoned {
            return;
        }
        match health {
            Health::Passed => self.state.run.judgement = Judgement::Passed,
            Health::Failed(evidence) => self.confirmation_failed(&evidence),
            Health::NotYet(why) => self.not_judged_yet(&why),
            Health::Unknown(why) => {
                self.state.run.unknown_judgements += 1;
                let detail = format!("the health of the running release could not be judged: {why}");
                if self.state.run.unknown_judgements >= self.state.policy.judgements_max {
                    return self.confirmation_failed(&Evidence::summary(detail));
                }
                self.fail(&detail);
                // All of them are over before the guard, which gives the health deadline and some more, goes back: what
                // is wrong is then on record.
                let policy = &self.state.policy;
                let share = u64::from((policy.health_deadline_s / policy.judgements_max.max(1)).max(1));
                let most = share.min(policy.rejudge_s.into());
                let wait = self.backoff(self.state.run.unknown_judgements).min(most);
                self.state.run.judgement = Judgement::Again(self.after(wait));
            }
        }
    }

    /// Nothing is known against the running release: it is judged again soon, then less often.
    fn not_judged_yet(&mut self, why: &str) {
        self.state.run.not_yet = self.state.run.not_yet.saturating_add(1);
        let wait = self.backoff(self.state.run.not_yet).min(self.state.policy.rejudge_s.into());
        self.state.run.judgement = Judgement::Again(self.after(wait));
        self.state.run.error = None;
        self.note(format!("the running release is not confirmed yet: {why}"));
        self.verdict(Exit::Deferred);
    }

    /// The running release is not to stay. With a slot to go back to, the quarantine is recorded here and the rest
    /// follows from it; without one the node keeps running what it has.
    pub(super) fn confirmation_failed(&mut self, evidence: &Evidence) {
        let Evidence { summary: evidence, log: seen } = evidence;
        let Some((running, other, _, other_is)) = self.slots() else { return };
        self.state.run.unknown_judgements = 0;
        self.judge_again();
        let version = self.state.running_version().map(ToString::to_string).unwrap_or_default();
        if other_is.bootable() && !self.state.record.condemned(other) {
            let reason = format!("{version} booted in slot {running} and was not confirmed: {evidence}");
            self.condemn(running, &reason, seen);
            self.state.record.intent = None;
            self.fail(&reason);
            self.note(format!("going back to slot {other}"));
            return;
        }
        let reason = format!("{version} was not confirmed, and slot {other} cannot boot: {evidence}");
        if self.state.run.error.as_deref() != Some(reason.as_str()) {
            let content = self.state.record.slots.get(running).clone();
            let digest = content.as_ref().and_then(|content| content.digest);
            let version = content.as_ref().map(|content| &content.version);
            self.tell_with(EventKind::Failed, version, digest, &reason, seen);
        }
        self.fail(&reason);
    }

    fn judge_again(&mut self) {
        let at = self.after(self.state.policy.rejudge_s.into());
        self.state.run.judgement = Judgement::Again(at);
    }

    /// Records a confirmation that is on the disk.
    pub(super) fn complete_confirmation(&mut self) {
        let Some((running, ..)) = self.slots() else { return };
        self.raise_newest_confirmed();
        self.state.run.judgement = Judgement::Pending;
        self.state.run.unknown_judgements = 0;
        self.state.run.error = None;
        let Some(content) = self.state.record.slots.get_mut(running) else { return };
        content.condemned = false;
        let content = content.clone();
        if let Some(digest) = content.digest {
            self.state.record.attempts.retain(|attempt| attempt.release.digest != digest);
        }
        let rollback = match self.state.record.intent.take() {
            Some(intent) if intent.target == running => match intent.purpose {
                Purpose::Rollback { from } => Some(from),
                Purpose::Update => None,
            },
            _ => None,
        };
        if let Some(from) = rollback {
            self.quarantine(&from, &format!("rolled back to {} on request", content.version));
            // What was gone back from stays bootable only where nothing could keep it from being installed again.
            let left = self.state.record.slots.get_mut(running.other());
            if let Some(left) =
                left.as_mut().filter(|left| left.digest.is_some() && left.digest == from.digest)
            {
                left.condemned = true;
            }
        } else {
            self.state.record.rolled_back = None;
        }
        self.settle_permit();
        self.owe_post_confirm(&content.version);
        self.tell(EventKind::Confirmed, Some(&content.version), content.digest, "");
        self.note(format!("{} is confirmed in slot {running}", content.version));
        self.verdict(Exit::Done);
    }

    /// The running slot is successful, so what it runs was confirmed here.
    pub(super) fn raise_newest_confirmed(&mut self) {
        let Some(running) = self.state.running_version().cloned() else { return };
        let newest = &mut self.state.record.newest_confirmed;
        if newest.as_ref().is_none_or(|newest| newest.is_older_than(&running)) {
            *newest = Some(running);
        }
    }

    /// The flip was undone.
    pub(super) fn deactivated(&mut self) {
        self.state.record.intent.take_if(|intent| intent.flip == Flip::Undoing);
        self.state.run.undo_wanted = false;
        self.state.run.reboot_requested = false;
        self.state.run.reboot_announced = false;
        self.state.run.permit_checked_at = None;
        self.state.run.prepared_at = None;
    }
}
