//! Step 10, reboot: what is done on the node before it, and what may hold it; and step 12's hooks after it.
//!
//! Hooks run first (they drain the node), then it is looked for inhibitors and active sessions. What holds the reboot
//! is looked at again until nothing does, or, but for hooks, until it was respected for as long as the policy says.

use super::Turn;
use crate::effect::Operation;
use crate::event::{Failure, FailureKind, Hold, HoldKind};
use crate::record::{PostConfirm, Preparation};
use crate::state::Waiting;
use jiff::Timestamp;
use protocol::status::Exit;
use protocol::version::Version;
use protocol::wire::EventKind;

/// Whether something allows to go on.
pub(super) enum Leave {
    /// It does, or is not needed.
    Granted,
    /// This operation must run first.
    Ask(Operation),
    /// Not now.
    Wait,
}

impl Turn {
    /// Whether the reboot into this version was prepared, and that a moment ago.
    pub(super) fn prepared(&mut self, version: &Version) -> Leave {
        let Some(boot_id) = self.state.run.facts.as_ref().map(|facts| facts.boot_id.clone()) else {
            return Leave::Wait;
        };
        let begun = self.state.record.preparation.as_ref();
        if begun.is_none_or(|begun| begun.version != *version || begun.boot_id != boot_id) {
            self.forget_preparation();
        }
        let preparation = self.state.record.preparation.get_or_insert_with(|| Preparation {
            version: version.clone(),
            boot_id,
            hooks_done: false,
            held_s: 0,
            held_at: None,
        });
        let hooks = !preparation.hooks_done;
        let force = preparation.held_s >= self.state.policy.hold_max_s;
        if self.state.run.prepared_at.is_some_and(|at| self.is_fresh(at)) {
            return Leave::Granted;
        }
        self.state.run.prepared_at = None;
        if let Some(at) = self.state.run.hold_until
            && self.wait_until(at)
        {
            self.state.run.waiting = self.state.run.hold.as_ref().map(Waiting::from);
            return Leave::Wait;
        }
        // What was checked before may be different by the time the hooks are done.
        self.state.run.permit_checked_at = None;
        Leave::Ask(Operation::PrepareReboot { version: version.clone(), hooks, force })
    }

    /// A preparation holds good for a while only; one from the future was made before the clock was set back.
    pub(super) fn is_fresh(&self, at: Timestamp) -> bool {
        at <= self.now && self.now < super::schedule::later(at, self.state.policy.prepared_max_s.into())
    }

    /// The reboot that was prepared is given up: the next one begins anew, hooks included.
    pub(super) fn forget_preparation(&mut self) {
        self.state.record.preparation = None;
        self.state.run.prepared_at = None;
        self.state.run.hold = None;
        self.state.run.hold_until = None;
    }

    /// The window closed. By the next one the node may have been put to work again, so the hooks run again; what holds
    /// the reboot was respected for as long as it was, or windows shorter than the bound would put it off for ever.
    pub(super) fn put_off_preparation(&mut self, version: &Version) {
        let preparation = self.state.record.preparation.take_if(|begun| begun.version == *version);
        if preparation.is_none() {
            // What a person has prepared meanwhile waits for no window.
            return;
        }
        self.forget_preparation();
        self.state.record.preparation =
            preparation.map(|begun| Preparation { hooks_done: false, held_at: None, ..begun });
    }

    pub(super) fn reboot_prepared(&mut self, result: Result<(), Hold>, abandoned: bool) {
        if abandoned {
            return;
        }
        let retry_s = match &result {
            Err(hold) if hold.kind.is_final() => self.state.policy.reboot_retry_s,
            _ => self.state.policy.hold_retry_s,
        };
        // An alert is looked for before the hooks as well.
        let hooks_done =
            !matches!(&result, Err(hold) if hold.kind.is_final() || hold.kind == HoldKind::Stopped);
        if let Some(preparation) = &mut self.state.record.preparation {
            preparation.hooks_done |= hooks_done;
        }
        match result {
            Ok(()) => {
                self.state.run.prepared_at = Some(self.now);
                self.state.run.hold = None;
                self.state.run.hold_until = None;
                return;
            }
            Err(hold) if hold.kind == HoldKind::Stopped => self.state.run.hold = None,
            Err(hold) => {
                if hold.kind.is_final() {
                    // It may last: the permit is for others meanwhile.
                    if self.give_up_permit() {
                        self.undo_without_permit();
                    }
                } else {
                    self.respected();
                }
                self.state.run.hold = Some(Hold { detail: self.cut(&hold.detail), ..hold });
            }
        }
        self.state.run.hold_until = Some(self.after(retry_s.into()));
        if self.state.run.verdict != Some(Exit::Failed) {
            self.verdict(Exit::Deferred);
        }
    }

    /// Counts for how long what holds the reboot was respected. Between two looks of one process not more counts than
    /// they can be apart, so that a jump of the clock does not end the respect.
    fn respected(&mut self) {
        let policy = &self.state.policy;
        let most =
            if self.state.run.once { policy.hold_max_s } else { policy.hold_retry_s.saturating_mul(2) };
        let Some(preparation) = &mut self.state.record.preparation else { return };
        let passed = preparation.held_at.map_or(0, |at| self.now.duration_since(at).as_secs());
        let passed = u32::try_from(passed.max(0)).unwrap_or(u32::MAX).min(most);
        preparation.held_s = preparation.held_s.saturating_add(passed);
        preparation.held_at = Some(self.now);
    }

    /// The post-confirm hooks, where they are owed and not to be waited for.
    pub(super) fn decide_post_confirm(&mut self) -> Option<Operation> {
        self.state.record.post_confirm.as_ref()?;
        if let Some(at) = self.state.run.post_confirm_at
            && self.wait_until(at)
        {
            return None;
        }
        let most = self.state.policy.post_confirm_max;
        let owed = self.state.record.post_confirm.as_mut()?;
        if owed.started >= most {
            let version = owed.version.clone();
            self.state.record.post_confirm = None;
            self.hook_failed(&version, "the post-confirm hooks were cut off every time; they are given up");
            return None;
        }
        owed.started += 1;
        Some(Operation::PostConfirm { version: owed.version.clone() })
    }

    pub(super) fn post_confirmed(&mut self, version: &Version, result: Result<(), Failure>) {
        let most = self.state.policy.post_confirm_max;
        let Some(owed) = self.state.record.post_confirm.as_mut().filter(|owed| owed.version == *version)
        else {
            return;
        };
        match result {
            Ok(()) => {
                self.state.record.post_confirm = None;
                self.state.run.error = None;
            }
            Err(failure) => {
                if failure.kind == FailureKind::Cancelled {
                    owed.started = owed.started.saturating_sub(1);
                } else {
                    let started = owed.started;
                    if started >= most {
                        self.state.record.post_confirm = None;
                    }
                    let detail =
                        format!("the post-confirm hooks failed ({started} of {most}): {}", failure.detail);
                    self.hook_failed(version, &detail);
                }
                self.state.run.post_confirm_at = Some(self.after(self.state.policy.reboot_retry_s.into()));
            }
        }
    }

    /// A warning: the release stays, and the verdict of the pass as well.
    fn hook_failed(&mut self, version: &Version, detail: &str) {
        self.state.run.error = Some(self.cut(detail));
        self.tell(EventKind::HookFailed, Some(version), None, detail);
    }

    /// The post-confirm hooks are to run for what was just confirmed.
    pub(super) fn owe_post_confirm(&mut self, version: &Version) {
        self.state.record.post_confirm = Some(PostConfirm { version: version.clone(), started: 0 });
        self.state.run.post_confirm_at = None;
    }
}
