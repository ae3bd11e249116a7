//! What the miniature world's driver does for each operation, and how operations fail.

use super::server::Quality;
use super::{Bytes, End, Mutation, Outcome, Violation, World, check};
use machine::{
    Ask, Checked, Event, Evidence, Failure, FailureKind, Health, Hold, HoldKind, Operation, PerSlot, Question,
};
use protocol::lock::Reply;
use protocol::slot::{Attributes, Slot};
use protocol::status::Progress;
use protocol::version::Version;

impl World {
    pub(super) fn perform(&mut self, operation: &Operation, end: End) -> Outcome {
        match end {
            End::Well => {
                let event = self.carry_out(operation)?;
                if let Some(Event::Checked(Ok(checked))) = &event
                    && self.process.as_ref().is_some_and(|process| !process.aborted)
                {
                    self.hear(checked);
                }
                match event {
                    Some(event) => self.deliver(event),
                    // The machine went down, as it was asked to.
                    None => self.boot(),
                }
            }
            End::Fails(kind) => self.fail(operation, kind),
            End::DoneButFails => {
                self.carry_out(operation)?;
                self.fail(operation, FailureKind::Node)
            }
            End::DoneButKilled => {
                self.carry_out(operation)?;
                self.start()
            }
            End::DoneButPowerCut => {
                self.carry_out(operation)?;
                self.boot()
            }
            End::Killed => {
                self.half(operation);
                self.start()
            }
            End::PowerCut => {
                self.half(operation);
                self.boot()
            }
        }
    }

    /// Does a part of an operation. The table changes as a whole or not at all.
    fn half(&mut self, operation: &Operation) {
        if let Operation::Install { target, .. } = operation {
            *self.bytes.get_mut(*target) = Bytes::Broken;
        }
    }

    fn fail(&mut self, operation: &Operation, kind: FailureKind) -> Outcome {
        let failure = Failure::new(kind, format!("{kind:?} failure"));
        if !matches!(kind, FailureKind::Node | FailureKind::Release) {
            self.ledger.excuse();
        }
        if let Operation::Install { target, .. } = operation {
            *self.bytes.get_mut(*target) = Bytes::Broken;
        }
        let event = match operation {
            Operation::Probe => Event::Probed(Err(failure)),
            Operation::Check { .. } => Event::Checked(Err(failure)),
            Operation::Preflight { .. } => Event::Preflighted(Err(failure)),
            Operation::Install { .. } => Event::Installed(Err(failure)),
            Operation::ReadBack { .. } => Event::ReadBack(Err(failure)),
            Operation::RunHealth { .. } => {
                // After several in a row this counts as a failure of the release.
                if matches!(kind, FailureKind::Network | FailureKind::Cancelled) {
                    return self.deliver(Event::HealthJudged(Health::NotYet(failure.detail)));
                }
                let index = self.running();
                self.ledger.failed.insert(index);
                Event::HealthJudged(Health::Unknown(failure.detail))
            }
            Operation::PrepareReboot { version, .. } => {
                let kind = match kind {
                    FailureKind::Network => HoldKind::Inhibitor,
                    FailureKind::Release | FailureKind::Held => HoldKind::Session,
                    FailureKind::Node | FailureKind::Refused => HoldKind::Hook,
                    FailureKind::Cancelled => HoldKind::Stopped,
                };
                if matches!(kind, HoldKind::Inhibitor | HoldKind::Session) {
                    self.ledger.drained.insert((self.boots, version.clone()));
                }
                self.held(kind)
            }
            Operation::PostConfirm { .. } => {
                self.ledger.post_confirms -= u32::from(kind == FailureKind::Cancelled);
                Event::PostConfirmed(Err(failure))
            }
            Operation::AskLock(_) => Event::LockAnswered(Err(failure)),
            Operation::Reboot => Event::RebootRequested(Err(failure)),
            _ => Event::TableChanged(Err(failure)),
        };
        self.deliver(event)
    }

    /// Does what the operation says; the event that answers it, or none where the machine goes down.
    fn carry_out(&mut self, operation: &Operation) -> Result<Option<Event>, Violation> {
        Ok(Some(match operation {
            Operation::Probe => Event::Probed(Ok(self.facts())),
            Operation::Check { pending, .. } => Event::Checked(self.check(pending.as_ref())),
            Operation::Preflight { .. } => Event::Preflighted(Ok(())),
            Operation::Install { release, target } => self.install(release, *target)?,
            Operation::ReadBack { release, target } => self.read_back(release, *target),
            Operation::RunHealth { .. } => Event::HealthJudged(self.judge()),
            Operation::AskLock(question) => Event::LockAnswered(self.lock_reply(question)),
            Operation::PrepareReboot { version, hooks, force } => self.prepare(version, *hooks, *force),
            Operation::PostConfirm { version } => {
                self.ledger.post_confirmed.insert(version.clone());
                Event::PostConfirmed(Ok(()))
            }
            Operation::Reboot => return Ok(None),
            _ => {
                self.change_table(operation)?;
                check::lasting(self)?;
                Event::TableChanged(Ok(self.told(operation)))
            }
        }))
    }

    fn check(&mut self, pending: Option<&machine::Release>) -> Result<Checked, Failure> {
        let newest = self.record().newest_confirmed;
        self.server.check(pending, newest.as_ref(), &self.server.release(self.running()).version.clone())
    }

    fn install(&mut self, release: &machine::Release, target: Slot) -> Result<Event, Violation> {
        let index = self.server.index(release);
        check::write(self, index, target)?;
        *self.bytes.get_mut(target) = Bytes::Broken;
        Ok(Event::Installed(match self.server.quality(index) {
            Quality::Corrupt => Err(Failure::new(FailureKind::Release, "a chunk has the wrong digest")),
            // The disk lies once in a while: only the read-back notices.
            Quality::Miswritten => Ok(Progress::default()),
            _ => {
                *self.bytes.get_mut(target) = Bytes::Whole(index);
                Ok(Progress::default())
            }
        }))
    }

    fn read_back(&mut self, release: &machine::Release, target: Slot) -> Event {
        let index = self.server.index(release);
        let whole = *self.bytes.get(target) == Bytes::Whole(index);
        if whole || self.mutation == Some(Mutation::NoReadBack) {
            let digest = release.digest;
            if let Some(process) = &mut self.process {
                process.evidence = Some((target, digest));
            }
            self.ledger.excuse();
            return Event::ReadBack(Ok(()));
        }
        Event::ReadBack(Err(Failure::new(FailureKind::Node, "the slot does not hold what was written")))
    }

    fn judge(&mut self) -> Health {
        let index = self.running();
        let healthy = self.server.quality(index) != Quality::Sick;
        if healthy {
            self.ledger.proven.insert(index);
        }
        if healthy || self.mutation == Some(Mutation::NoHealth) {
            return Health::Passed;
        }
        self.ledger.fail(index);
        let log = "web.service: failed\nexit status: 7".to_owned();
        Health::Failed(Evidence { summary: "the service does not answer".to_owned(), log })
    }

    fn prepare(&mut self, version: &Version, hooks: bool, force: bool) -> Event {
        if self.mutation == Some(Mutation::NoPrepare) {
            return Event::RebootPrepared(Ok(()));
        }
        if self.holds == Some(HoldKind::Alert) {
            return self.held(HoldKind::Alert);
        }
        if hooks && self.holds == Some(HoldKind::Hook) {
            return self.held(HoldKind::Hook);
        }
        if hooks {
            self.ledger.drained.insert((self.boots, version.clone()));
        }
        match self.holds {
            Some(kind @ (HoldKind::Inhibitor | HoldKind::Session)) if !force => self.held(kind),
            _ => {
                let now = self.now;
                if let Some(process) = &mut self.process {
                    process.prepared = Some((version.clone(), now));
                }
                Event::RebootPrepared(Ok(()))
            }
        }
    }

    fn held(&mut self, kind: HoldKind) -> Event {
        self.reached.insert(format!("held by {kind:?}"));
        if matches!(kind, HoldKind::Inhibitor | HoldKind::Session) {
            self.ledger.looks += 1;
        }
        Event::RebootPrepared(Err(Hold::new(kind, format!("{kind:?} 7"))))
    }

    fn lock_reply(&mut self, question: &Question) -> Result<Reply, Failure> {
        match (self.mutation, &question.ask) {
            (Some(Mutation::VerifyAssumed), Ask::Verify) => {
                return Ok(Reply::Current { deadline: self.now });
            }
            (Some(Mutation::ConfirmLost), Ask::Confirm) => return Ok(Reply::Released { was_held: true }),
            _ => {}
        }
        if self.lock.reachable {
            Ok(self.ask_lock(question))
        } else {
            Err(Failure::new(FailureKind::Network, "no answer"))
        }
    }

    fn change_table(&mut self, operation: &Operation) -> Outcome {
        check::table(self, operation)?;
        let running = self.booted;
        match operation {
            Operation::Invalidate { target } if self.mutation != Some(Mutation::NoInvalidate) => {
                *self.table.get_mut(*target) = self.table.get(*target).invalidated();
                self.process_invalidated(Some(*target));
            }
            Operation::Invalidate { target } => self.process_invalidated(Some(*target)),
            Operation::Activate { target, tries, .. } => {
                *self.table.get_mut(*target) = self.table.get(*target).activated(*tries);
                *self.table.get_mut(running) = self.table.get(running).fallback();
            }
            Operation::Revert { target, tries } => {
                *self.table.get_mut(*target) = self.table.get(*target).activated(*tries);
                *self.table.get_mut(running) = self.table.get(running).fallback();
            }
            Operation::Restore { target } => {
                *self.table.get_mut(*target) = self.table.get(*target).confirmed().with_priority(1);
                *self.table.get_mut(running) = self.table.get(running).with_priority(2);
            }
            Operation::Deactivate { target } if self.mutation != Some(Mutation::NoDeactivate) => {
                *self.table.get_mut(*target) = self.table.get(*target).invalidated();
            }
            Operation::MarkGood { slot } => {
                *self.table.get_mut(*slot) = self.table.get(*slot).confirmed();
                let index = self.running();
                self.ledger.banned.remove(&index);
            }
            Operation::Condemn { slot } if self.mutation != Some(Mutation::NoCondemn) => {
                *self.table.get_mut(*slot) = self.table.get(*slot).invalidated();
            }
            _ => {}
        }
        Ok(())
    }

    /// The attributes that the driver reports; a mutation that leaves something undone lies about it.
    fn told(&self, operation: &Operation) -> PerSlot<Attributes> {
        let mut told = self.table;
        let lies = matches!(
            (self.mutation, operation),
            (Some(Mutation::NoInvalidate), Operation::Invalidate { .. })
                | (Some(Mutation::NoDeactivate), Operation::Deactivate { .. })
                | (Some(Mutation::NoCondemn), Operation::Condemn { .. })
        );
        if let (true, Operation::Invalidate { target: slot } | Operation::Deactivate { target: slot })
        | (true, Operation::Condemn { slot }) = (lies, operation)
        {
            *told.get_mut(*slot) = told.get(*slot).invalidated();
        }
        told
    }

    fn process_invalidated(&mut self, slot: Option<Slot>) {
        if let Some(process) = &mut self.process {
            process.invalidated = slot;
            process.evidence = None;
        }
    }
}
