//! Step 11, boot: what the engine finds when it starts, held against what it meant to do.
//!
//! A boot counts as failed only after a completed flip, in a new boot, with the other slot booted. Everything else
//! that can be found here is a flip that was not made, or one that still waits for its boot.

use super::Turn;
use crate::event::{Facts, Failure, Start};
use crate::policy::Strategy;
use crate::record::{Content, Flip, Intent, LastBoot, Purpose, RolledBack};
use crate::state::Judgement;
use protocol::slot::{Attributes, Slot};
use protocol::status::{Exit, QuarantineEntry};
use protocol::wire::EventKind;

impl Turn {
    pub(super) fn started(&mut self, start: Start) {
        if self.state.run.facts.is_some() {
            return;
        }
        self.state.run.set_mode(start.mode);
        self.state.run.random = start.seed;
        self.state.run.previous = start.previous;
        for attempt in self.state.record.attempts.iter_mut().filter(|attempt| attempt.open) {
            attempt.open = false;
            attempt.interrupted = attempt.interrupted.saturating_add(1);
        }
        self.state.run.next_check = Some(self.first_check());
        self.reconcile(start.facts);
    }

    pub(super) fn probed(&mut self, result: Result<Facts, Failure>) {
        match result {
            Ok(facts) => {
                self.state.run.probe_at = None;
                self.reconcile(facts);
            }
            Err(failure) => {
                self.state.run.table_failures = self.state.run.table_failures.saturating_add(1);
                self.doubt(&failure.detail, self.state.run.table_failures);
            }
        }
    }

    /// Brings the record in line with what is there. Nothing is written but the record.
    fn reconcile(&mut self, facts: Facts) {
        self.state.run.judgement = Judgement::Pending;
        let first = self.state.record.last_boot.is_none();
        self.state.record.last_boot = Some(LastBoot { boot_id: facts.boot_id.clone(), slot: facts.slot });
        self.state.record.preparation.take_if(|begun| begun.boot_id != facts.boot_id);
        if let Some(intent) = self.state.record.intent.take() {
            self.reconcile_flip(intent, &facts);
        }
        self.state.run.undo_wanted = false;
        self.learn_running(&facts);
        let confirmed = facts.attributes.get(facts.slot).successful();
        let booted_target =
            self.state.record.intent.as_ref().is_some_and(|intent| intent.target == facts.slot);
        self.state.run.facts = Some(facts);
        if confirmed && booted_target {
            // Marked good, then cut off before that was recorded.
            self.complete_confirmation();
        } else if confirmed {
            self.raise_newest_confirmed();
        }
        self.settle_permit();
        if first {
            self.look_for_lost_permit();
        }
    }

    /// Finds out what became of a flip. Puts the intent back where it still stands.
    fn reconcile_flip(&mut self, mut intent: Intent, facts: &Facts) {
        let target_is = *facts.attributes.get(intent.target);
        if facts.slot == intent.target {
            // The target runs, so the flip was made and a boot came since, whatever the ids say.
            *self.state.record.slots.get_mut(intent.target) = Some(intent.content.clone());
            intent.flip = Flip::Activated;
            self.state.record.intent = Some(intent);
            return;
        }
        let landed = landed(&intent, target_is);
        let new_boot = intent.boot_id != facts.boot_id;
        match intent.flip {
            // A made flip whose target lost its attributes in the same boot was undone by somebody else.
            Flip::Activated if new_boot => self.fell_back(&intent, facts.slot),
            Flip::Activating if landed && new_boot => self.fell_back(&intent, facts.slot),
            // About to be undone, but it was booted until its tries were spent.
            Flip::Undoing if landed && new_boot && target_is.tries_left() == 0 => {
                self.fell_back(&intent, facts.slot);
            }
            _ if !landed => {}
            Flip::Activating | Flip::Activated => {
                // The permit of before may be gone, and a person may have cancelled while the flip was made.
                let undo = self.state.policy.strategy == Strategy::Lock || self.state.run.undo_wanted;
                if intent.flip == Flip::Activating {
                    let content = &intent.content;
                    self.tell(EventKind::Activated, Some(&content.version), content.digest, "");
                }
                intent.flip = if undo { Flip::Undoing } else { Flip::Activated };
                self.note_content(&intent);
                self.state.record.intent = Some(intent);
            }
            Flip::Undoing => self.state.record.intent = Some(intent),
        }
    }

    fn note_content(&mut self, intent: &Intent) {
        *self.state.record.slots.get_mut(intent.target) = Some(intent.content.clone());
    }

    /// The activated slot did not come up. Recorded here; its attributes are zeroed once this is durable.
    fn fell_back(&mut self, intent: &Intent, running: Slot) {
        let reason = format!(
            "{} was activated in slot {} and did not boot: slot {running} booted instead",
            intent.content.version, intent.target
        );
        self.note_content(intent);
        let seen = self.state.run.previous.clone();
        self.condemn(intent.target, &reason, &seen);
        self.note(reason);
        self.verdict(Exit::Done);
    }

    /// Records that what this slot holds failed here. The quarantine is durable before its attributes change.
    pub(super) fn condemn(&mut self, slot: Slot, reason: &str, seen: &str) {
        let Some(content) = self.state.record.slots.get_mut(slot) else { return };
        content.condemned = true;
        let content = content.clone();
        self.quarantine(&content, reason);
        if let Some(release) = content.release() {
            self.count_failure(&release, reason);
        }
        self.state.record.rolled_back = Some(RolledBack {
            version: content.version.clone(),
            digest: content.digest,
            reason: self.cut(reason),
            at: self.now,
        });
        self.permit_failed(&content.version, reason);
        self.tell_with(EventKind::RolledBack, Some(&content.version), content.digest, reason, seen);
    }

    pub(super) fn quarantine(&mut self, content: &Content, reason: &str) {
        let Some(digest) = content.digest else { return };
        if self.state.record.quarantined(&digest).is_none() {
            let reason = self.cut(reason);
            let entry =
                QuarantineEntry { release: digest, version: content.version.clone(), reason, at: self.now };
            self.state.record.quarantine.push(entry);
        }
    }

    /// Notes what the running slot holds. Where its system calls itself something else than when it last ran,
    /// somebody else wrote the slot and what was known about it is void.
    fn learn_running(&mut self, facts: &Facts) {
        let unknown =
            || Content { version: facts.version.clone(), digest: None, reported: None, condemned: false };
        let slot = self.state.record.slots.get_mut(facts.slot);
        let known =
            slot.take().filter(|known| known.reported.as_ref().is_none_or(|then| *then == facts.version));
        let mut content = known.unwrap_or_else(unknown);
        content.reported = Some(facts.version.clone());
        *slot = Some(content);
    }
}

/// Whether the flip is on the disk. Before it, an update's target is invalidated and a rollback's target successful.
fn landed(intent: &Intent, target_is: Attributes) -> bool {
    match intent.purpose {
        Purpose::Update => target_is.priority() > 0,
        Purpose::Rollback { .. } => target_is.priority() > 0 && !target_is.successful(),
    }
}
