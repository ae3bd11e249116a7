//! Steps 8 to 10, flip, permit, reboot: when the next boot is switched, and who reboots when.

use super::Turn;
use super::prepare::Leave;
use crate::effect::Operation;
use crate::event::Failure;
use crate::policy::Strategy;
use crate::record::{Content, Flip, Intent, Purpose, Release};
use crate::state::Waiting;
use protocol::slot::Slot;
use protocol::status::Exit;
use protocol::version::Version;
use protocol::window::{Opening, opening};
use protocol::wire::EventKind;

impl Turn {
    /// A staged release: activated at once, or under the permit.
    pub(super) fn decide_activation(&mut self, release: &Release, target: Slot) -> Option<Operation> {
        let leave = match self.held_by_rollout(release) {
            Some(held) => held,
            None => self.leave(&release.version),
        };
        match leave {
            Leave::Wait => None,
            Leave::Ask(operation) => Some(operation),
            Leave::Granted => {
                let content = Content {
                    version: release.version.clone(),
                    digest: Some(release.digest),
                    reported: None,
                    condemned: false,
                };
                self.intend(content, target, Purpose::Update)?;
                let tries = self.state.policy.tries;
                Some(Operation::Activate { release: release.clone(), target, tries })
            }
        }
    }

    /// What a flip still needs: its undoing, or the way back that a person asked for.
    pub(super) fn decide_flip(&mut self, other: Slot) -> Option<Operation> {
        if let Some(undo) = self.decide_undo() {
            return Some(undo);
        }
        match &self.state.record.intent {
            // Its operation ended without saying what is on the disk.
            Some(intent) if intent.flip == Flip::Activating => return Some(Operation::Probe),
            Some(_) => return None,
            None => {}
        }
        if !self.state.run.rollback_wanted {
            return None;
        }
        let Some(content) = self.state.record.slots.get(other).clone() else {
            self.state.run.rollback_wanted = false;
            return None;
        };
        match self.leave(&content.version) {
            Leave::Wait => None,
            Leave::Ask(operation) => Some(operation),
            Leave::Granted => {
                let from = self.state.record.slots.get(other.other()).clone()?;
                self.intend(content, other, Purpose::Rollback { from })?;
                Some(Operation::Revert { target: other, tries: self.state.policy.tries })
            }
        }
    }

    /// A flip that is to be undone.
    pub(super) fn decide_undo(&self) -> Option<Operation> {
        let intent = self.state.record.intent.as_ref().filter(|intent| intent.flip == Flip::Undoing)?;
        let target = intent.target;
        Some(match intent.purpose {
            Purpose::Update => Operation::Deactivate { target },
            Purpose::Rollback { .. } => Operation::Restore { target },
        })
    }

    /// Records what the flip that comes next is for. It is durable before the flip is made.
    fn intend(&mut self, content: Content, target: Slot, purpose: Purpose) -> Option<()> {
        let facts = self.state.run.facts.as_ref()?;
        self.state.record.intent = Some(Intent {
            content,
            target,
            boot_id: facts.boot_id.clone(),
            tries: self.state.policy.tries,
            purpose,
            flip: Flip::Activating,
        });
        Some(())
    }

    /// The flip is on the disk.
    pub(super) fn activated(&mut self) {
        let undo = std::mem::take(&mut self.state.run.undo_wanted);
        self.state.run.rollback_wanted = false;
        // The evidence was used up; the attempt ended when the slot was staged.
        self.state.run.update = None;
        self.state.run.reboot_at = None;
        let Some(intent) = &mut self.state.record.intent else { return };
        intent.flip = if undo { Flip::Undoing } else { Flip::Activated };
        let (content, target) = (intent.content.clone(), intent.target);
        self.tell(EventKind::Activated, Some(&content.version), content.digest, "");
        self.note(format!("{} is activated: the next boot starts slot {target}", content.version));
        self.state.run.error = None;
        self.verdict(Exit::Done);
    }

    /// The reboot, where something waits for it and the strategy, the window, the permit and the node agree.
    pub(super) fn decide_reboot(&mut self) -> Option<Operation> {
        let facts = self.state.run.facts.as_ref()?;
        let allowed = facts.reboot_allowed;
        let wanted = self.state.run.reboot_wanted;
        let Some(intent) = &self.state.record.intent else {
            if !wanted || !allowed {
                self.state.run.reboot_wanted = false;
                return self.decide_permit_unneeded();
            }
            // What holds an update that is staged would hold this as well.
            if matches!(
                self.state.run.waiting,
                Some(Waiting::Hook(_) | Waiting::Alert(_) | Waiting::Inhibitor(_))
            ) {
                return None;
            }
            let version = self.state.running_version()?.clone();
            let ready = self.prepared(&version);
            return self.reboot_if(ready);
        };
        if intent.flip != Flip::Activated {
            return None;
        }
        let version = intent.content.version.clone();
        let update = intent.content.release().filter(|_| intent.purpose == Purpose::Update && !wanted);
        // Said also where somebody else reboots.
        if let Some(held) = update.and_then(|release| self.held_by_rollout(&release)) {
            return self.reboot_if(held);
        }
        if !allowed {
            return None;
        }
        if !wanted {
            if let Some(at) = self.state.run.reboot_at
                && self.wait_until(at)
            {
                self.state.run.waiting = Some(Waiting::Inhibitor(self.state.run.reboot_note.clone()));
                return None;
            }
            match self.state.policy.strategy {
                Strategy::Off => return None,
                Strategy::Immediate => {}
                Strategy::Window => self.wait_for_window(&version)?,
                Strategy::Lock => {
                    let ready = self.leave(&version);
                    return self.reboot_if(ready);
                }
            }
        }
        let ready = self.prepared(&version);
        self.reboot_if(ready)
    }

    fn reboot_if(&mut self, ready: Leave) -> Option<Operation> {
        match ready {
            Leave::Granted => {}
            Leave::Ask(operation) => return Some(operation),
            Leave::Wait => return None,
        }
        self.state.run.reboot_wanted = false;
        self.announce_reboot();
        Some(Operation::Reboot)
    }

    fn announce_reboot(&mut self) {
        if std::mem::replace(&mut self.state.run.reboot_announced, true) {
            return;
        }
        if let Some(intent) = self.state.record.intent.clone() {
            self.tell(EventKind::Rebooting, Some(&intent.content.version), intent.content.digest, "");
        }
    }

    /// Something if a window is open for the reboot into this version.
    pub(super) fn wait_for_window(&mut self, version: &Version) -> Option<()> {
        let reason = match opening(&self.state.policy.windows, &self.state.policy.zone, self.now, 0) {
            Opening::Open => return Some(()),
            Opening::At(at) => {
                self.wake(at);
                format!("the next window opens at {at}")
            }
            Opening::Never => "no window is configured".to_owned(),
        };
        self.put_off_preparation(version);
        if self.state.run.verdict == Some(Exit::NothingToDo) {
            self.verdict(Exit::Deferred);
        }
        self.state.run.waiting = Some(Waiting::Window(reason));
        None
    }

    /// The running release failed and its slot is zeroed: only the reboot is left.
    pub(super) fn decide_way_back(&mut self) -> Option<Operation> {
        if !self.state.run.facts.as_ref()?.reboot_allowed {
            self.verdict(Exit::Failed);
            self.note("the next boot goes back to the other slot");
            return None;
        }
        if self.reboot_settling() {
            return None;
        }
        if let Some(at) = self.state.run.reboot_at
            && self.wait_until(at)
        {
            self.state.run.waiting = Some(Waiting::Inhibitor(self.state.run.reboot_note.clone()));
            return None;
        }
        Some(Operation::Reboot)
    }

    /// Whether a reboot that was accepted still has time to happen.
    pub(super) fn reboot_settling(&mut self) -> bool {
        if !self.state.run.reboot_requested {
            return false;
        }
        if let Some(at) = self.state.run.reboot_at
            && self.wait_until(at)
        {
            return true;
        }
        self.state.run.reboot_requested = false;
        self.state.run.reboot_at = None;
        false
    }

    pub(super) fn reboot_requested(&mut self, result: Result<(), Failure>) {
        self.state.run.reboot_at = Some(self.after(self.state.policy.reboot_retry_s.into()));
        self.state.run.permit_checked_at = None;
        self.state.run.prepared_at = None;
        match result {
            Ok(()) => {
                self.state.run.reboot_requested = true;
                if self.state.run.verdict != Some(Exit::Failed) {
                    self.verdict(Exit::Done);
                }
            }
            Err(failure) => {
                self.state.run.reboot_note = self.cut(&failure.detail);
                if self.state.run.verdict != Some(Exit::Failed) {
                    self.verdict(Exit::Deferred);
                }
            }
        }
    }
}
