//! Every step, on request: what a person may ask of the engine, and the answer.

use super::Turn;
use crate::effect::{Ask, Operation, Outcome};
use crate::event::{Clear, Command, Evidence};
use crate::record::Flip;
use crate::state::{Forgiven, Judgement, Stage};
use protocol::status::Exit;

impl Turn {
    pub(super) fn operator(&mut self, command: Command) {
        if self.state.run.facts.is_none() {
            return self.reply(Outcome::Declined, "the engine has not started yet");
        }
        let in_doubt =
            self.state.run.probe_at.is_some() || self.state.run.operation == Some(Operation::Probe);
        if in_doubt
            && matches!(command, Command::Cancel | Command::Rollback | Command::MarkGood | Command::Reboot)
        {
            return self.reply(
                Outcome::Declined,
                "the state of the slots must be read again first; try again shortly",
            );
        }
        match command {
            Command::Check => self.check_now(false),
            Command::Update { force_retry } => self.check_now(force_retry),
            Command::Cancel => self.cancel(),
            Command::Rollback => self.rollback(),
            Command::MarkGood => self.mark_good(),
            Command::QuarantineClear(which) => self.clear_quarantine(which),
            Command::Reboot => self.reboot(),
        }
    }

    fn confirmed(&self) -> bool {
        self.slots().is_some_and(|(_, _, running_is, _)| running_is.successful())
    }

    /// An update is being written; nothing else may touch its slot.
    fn installing(&self) -> bool {
        self.state.run.update.as_ref().is_some_and(|update| update.stage < Stage::Staged)
    }

    fn check_now(&mut self, force_retry: bool) {
        if force_retry {
            self.state.run.forgiven = Some(Forgiven::of(&self.state.record));
            // The one under way stays on record: if it is cut off, that must be noticed.
            self.state.record.attempts.retain_mut(|attempt| {
                (attempt.failed, attempt.interrupted) = (0, 0);
                attempt.open
            });
        }
        let run = &mut self.state.run;
        run.probe_at = run.probe_at.map(|_| self.now);
        run.permit_at = None;
        // Whoever mended a hook wants it run again now.
        run.hold_until = None;
        run.checked = false;
        run.next_check = Some(self.now);
        run.interactive = true;
        if !self.confirmed() {
            return self.reply(Outcome::Done, "will check once the running release is confirmed");
        }
        if self.installing() {
            return self.reply(Outcome::Done, "an update is being installed; will check again after it");
        }
        self.reply(Outcome::Done, "checking");
    }

    fn cancel(&mut self) {
        let run = &self.state.run;
        if run.reboot_requested || matches!(run.operation, Some(Operation::Reboot)) {
            return self.reply(Outcome::Declined, "the reboot was requested already");
        }
        if !self.confirmed() {
            return self.reply(
                Outcome::Declined,
                "the running release is being judged; `rollback` or `mark-good` decides",
            );
        }
        let wanted = std::mem::take(&mut self.state.run.rollback_wanted)
            | std::mem::take(&mut self.state.run.reboot_wanted)
            | self.state.run.install_held.take().is_some()
            | self.give_up_permit();
        self.forget_preparation();
        let busy = self.state.run.operation.clone();
        match busy {
            Some(Operation::Activate { .. } | Operation::Revert { .. }) => {
                self.state.run.undo_wanted = true;
                return self.reply(Outcome::Done, "the switch of the next boot will be undone");
            }
            Some(
                Operation::Check { .. }
                | Operation::Preflight { .. }
                | Operation::Install { .. }
                | Operation::ReadBack { .. }
                | Operation::PrepareReboot { .. },
            ) => self.abandon_operation(),
            Some(Operation::Invalidate { .. }) => self.state.run.abandoned = true,
            Some(Operation::AskLock(question)) if matches!(question.ask, Ask::Request | Ask::Verify) => {
                self.abandon_operation();
            }
            _ => {}
        }
        let dropped = self.state.run.update.is_some();
        self.drop_update();
        let undone = self.undo_flip(true);
        self.schedule_check(None);
        if wanted || dropped || undone || self.state.run.abandoned {
            self.note("cancelled on request");
            // Whoever asked for nothing else has what was asked for; a pass that was to update has not.
            let done = undone || self.state.run.asked.is_some();
            self.verdict(if done { Exit::Done } else { Exit::Failed });
            self.reply(
                Outcome::Done,
                if undone { "the switch of the next boot is being undone" } else { "cancelled" },
            );
        } else {
            self.reply(Outcome::NothingToDo, "nothing is under way");
        }
    }

    fn rollback(&mut self) {
        let Some((_, other, running_is, other_is)) = self.slots() else { return };
        if !running_is.successful() {
            if !other_is.bootable() || self.state.record.condemned(other) {
                return self.reply(Outcome::Declined, format!("slot {other} cannot boot"));
            }
            if matches!(self.state.run.operation, Some(Operation::MarkGood { .. })) {
                return self.reply(
                    Outcome::Declined,
                    "the running release is being confirmed this moment; try again",
                );
            }
            if self.state.run.operation.is_some() {
                self.abandon_operation();
            }
            self.confirmation_failed(&Evidence::summary("rolled back on request"));
            return self.reply(Outcome::Done, format!("going back to slot {other}"));
        }
        if self.installing() {
            return self.reply(Outcome::Declined, "an update is being installed; `cancel` it first");
        }
        if let Some(intent) = &self.state.record.intent {
            let version = intent.content.version.clone();
            return self
                .reply(Outcome::Declined, format!("{version} waits for the reboot; `cancel` undoes that"));
        }
        let condemned = self.state.record.condemned(other);
        if !other_is.bootable() || !other_is.successful() || condemned {
            return self.reply(Outcome::Declined, format!("slot {other} holds nothing that was good here"));
        }
        if self.state.record.slots.get(other).is_none() {
            return self.reply(
                Outcome::Declined,
                format!("it is not known what slot {other} holds: it never ran under this engine"),
            );
        }
        self.drop_update();
        self.state.run.rollback_wanted = true;
        self.state.run.permit_at = None;
        if matches!(self.state.run.operation, Some(Operation::Check { .. } | Operation::PrepareReboot { .. }))
        {
            self.abandon_operation();
        }
        self.reply(Outcome::Done, format!("the next boot will start slot {other}"));
    }

    fn mark_good(&mut self) {
        let Some((running, other, running_is, other_is)) = self.slots() else { return };
        if running_is.successful() {
            return self.reply(Outcome::NothingToDo, format!("slot {running} is confirmed already"));
        }
        if self.state.record.condemned(running) && other_is.bootable() {
            return self
                .reply(Outcome::Declined, format!("the running release failed; going back to slot {other}"));
        }
        if matches!(self.state.run.operation, Some(Operation::RunHealth { .. })) {
            self.abandon_operation();
        }
        self.state.run.judgement = Judgement::Passed;
        self.reply(Outcome::Done, format!("slot {running} will be confirmed"));
    }

    fn clear_quarantine(&mut self, which: Clear) {
        let keep = |digest: &protocol::digest::Sha256| match which {
            Clear::All => false,
            Clear::Release(wanted) => *digest != wanted,
        };
        self.state.run.forgiven = Some(Forgiven::of(&self.state.record));
        let record = &mut self.state.record;
        let before = record.quarantine.len();
        record.quarantine.retain(|entry| keep(&entry.release));
        record.attempts.retain_mut(|attempt| {
            if !keep(&attempt.release.digest) {
                (attempt.failed, attempt.interrupted) = (0, 0);
            }
            attempt.open || keep(&attempt.release.digest)
        });
        if record.rolled_back.as_ref().and_then(|back| back.digest).is_some_and(|digest| !keep(&digest)) {
            record.rolled_back = None;
        }
        let cleared = before - record.quarantine.len();
        record.refusal = None;
        let outcome = if cleared > 0 { Outcome::Done } else { Outcome::NothingToDo };
        self.reply(outcome, format!("{cleared} cleared"));
    }

    fn reboot(&mut self) {
        let allowed = self.state.run.facts.as_ref().is_some_and(|facts| facts.reboot_allowed);
        if !allowed {
            return self.reply(Outcome::Declined, "this engine does not reboot: it works on a disk image");
        }
        if self.installing() {
            return self.reply(Outcome::Declined, "an update is being installed; `cancel` it first");
        }
        if self.state.record.intent.as_ref().is_some_and(|intent| intent.flip != Flip::Activated) {
            return self.reply(Outcome::Declined, "the switch of the next boot is being changed; try again");
        }
        if !self.confirmed() {
            return self.reply(
                Outcome::Declined,
                "the running release is not confirmed; `rollback` or `mark-good` decides",
            );
        }
        self.state.run.reboot_wanted = true;
        self.state.run.reboot_at = None;
        self.state.run.hold_until = None;
        self.reply(Outcome::Done, "rebooting");
    }
}
