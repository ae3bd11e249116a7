//! Steps 5 to 12: the operations that the state machine asks for, each done and answered by its one event.

mod lock;
mod system;

use crate::check::Checker;
use crate::health::Checks;
use crate::install::Installer;
use crate::pause::{Pause, Point};
use crate::preflight;
use crate::slots::{Slots, SlotsError};
use machine::{Ask, Event, Facts, Failure, FailureKind, Operation, Record, Release};
use protocol::slot::Slot;
use protocol::status::StateName;
use protocol::version::Version;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use trust::Authorized;

pub use lock::Locking;
pub use system::{Hooks, Rebooting};

/// What an operation needs to know of the machine's state when it starts.
#[derive(Clone, Debug)]
pub struct Context {
    /// The facts last reported.
    pub facts: Facts,
    /// The version that runs, as its manifest has it.
    pub running: Version,
    /// The newest version confirmed.
    pub newest_confirmed: Option<Version>,
    /// The versions that this node does not take, because they failed here.
    pub quarantine: Vec<Version>,
    /// What the status said before this operation.
    pub state: StateName,
}

impl Context {
    /// What the machine's state says before an operation starts.
    #[must_use]
    pub fn new(facts: Facts, running: Version, record: &Record, state: StateName) -> Self {
        let quarantine = record.quarantine.iter().map(|entry| entry.version.clone()).collect();
        Self { facts, running, newest_confirmed: record.newest_confirmed.clone(), quarantine, state }
    }
}

/// Does operations, one at a time.
#[derive(Debug)]
pub struct Operations {
    /// Asks the server.
    pub checker: Checker,
    /// Brings releases to the disk.
    pub installer: Installer,
    /// Judges them.
    pub health: Checks,
    /// What the node's owner has run.
    pub hooks: Hooks,
    /// The reboot lock.
    pub lock: Locking,
    /// Reboots.
    pub rebooting: Rebooting,
    /// The state folder.
    pub state_dir: PathBuf,
    /// The disk is this machine's own, not one given by `--disk`.
    pub own_disk: bool,
    /// The release offered last, with the evidence that it may be installed.
    pub authorized: Mutex<Option<Authorized>>,
    /// Set to stop the running operation.
    pub abort: Arc<AtomicBool>,
    /// Wakes an operation that sleeps, so that it sees `abort`.
    pub wake: tokio::sync::Notify,
    /// Where to stop for a test.
    pub pause: Pause,
}

/// The points before and after an operation.
const fn points(operation: &Operation) -> (Option<Point>, Option<Point>) {
    match operation {
        Operation::Check { .. } => (Some(Point::Checking), None),
        Operation::Preflight { .. } => (Some(Point::Available), None),
        Operation::Invalidate { .. } => (Some(Point::Invalidating), Some(Point::Invalidated)),
        Operation::Install { .. } => (None, Some(Point::Downloaded)),
        Operation::ReadBack { .. } => (Some(Point::Verifying), Some(Point::Staged)),
        Operation::Activate { .. } | Operation::Revert { .. } => {
            (Some(Point::Activating), Some(Point::Activated))
        }
        Operation::Deactivate { .. } | Operation::Restore { .. } => {
            (Some(Point::Undoing), Some(Point::Undone))
        }
        Operation::MarkGood { .. } => (Some(Point::MarkingGood), Some(Point::MarkedGood)),
        Operation::Condemn { .. } => (Some(Point::Quarantining), Some(Point::Quarantined)),
        Operation::RunHealth { .. } => (Some(Point::Confirming), None),
        Operation::AskLock(question) => match question.ask {
            Ask::Request => (Some(Point::Requesting), Some(Point::Requested)),
            Ask::Verify => (Some(Point::Rechecking), Some(Point::Rechecked)),
            Ask::Abandon | Ask::Confirm | Ask::Fail { .. } => (Some(Point::Releasing), Some(Point::Released)),
            Ask::Booted => (None, None),
        },
        Operation::Reboot => (Some(Point::Rebooting), None),
        _ => (None, None),
    }
}

impl Operations {
    /// Asks the running operation to end as soon as it can.
    pub fn stop(&self) {
        self.abort.store(true, Ordering::Relaxed);
        self.wake.notify_waiters();
    }

    /// Does an operation; the event is its answer.
    pub async fn perform(self: Arc<Self>, operation: Operation, context: Context) -> Event {
        let (before, after) = points(&operation);
        if let Some(point) = before {
            self.pause.at(point);
        }
        let event = self.perform_unpaused(operation, context).await;
        if let Some(point) = after {
            self.pause.at(point);
        }
        event
    }

    async fn perform_unpaused(self: &Arc<Self>, operation: Operation, context: Context) -> Event {
        let running = context.facts.slot;
        match operation {
            Operation::Probe => Event::Probed(self.probe(context.facts).await),
            Operation::Check { interactive, pending } => {
                Event::Checked(self.check(&context, interactive, pending).await)
            }
            Operation::Preflight { release, target } => {
                Event::Preflighted(self.preflight(release, target, running).await)
            }
            Operation::Install { release, target } => {
                Event::Installed(self.install(release, target, running).await)
            }
            Operation::ReadBack { release, target } => Event::ReadBack(self.read_back(release, target).await),
            Operation::Invalidate { target } => self.table(move |s| s.invalidate(target, running)).await,
            Operation::Activate { release, target, tries } => {
                self.table(move |s| s.activate(release.digest, target, running, tries)).await
            }
            Operation::Revert { target, tries } => {
                self.table(move |s| s.revert(target, running, tries)).await
            }
            Operation::Deactivate { target } => self.table(move |s| s.deactivate(target, running)).await,
            Operation::Restore { target } => self.table(move |s| s.restore(target, running)).await,
            Operation::MarkGood { slot } => self.table(move |s| s.confirm(slot)).await,
            Operation::Condemn { slot } => self.table(move |s| s.condemn(slot)).await,
            Operation::RunHealth { deadline_s } => {
                Event::HealthJudged(self.judge(&context, deadline_s).await)
            }
            Operation::AskLock(question) => Event::LockAnswered(self.ask_lock(*question).await),
            Operation::PrepareReboot { version, hooks, force } => {
                Event::RebootPrepared(self.prepare_reboot(&context, &version, hooks, force).await)
            }
            Operation::Reboot => Event::RebootRequested(self.reboot().await),
            Operation::PostConfirm { version } => {
                Event::PostConfirmed(self.post_confirm(&context, &version).await)
            }
        }
    }

    /// Runs something about the disk on a thread that may block.
    async fn on_slots<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Slots) -> Result<T, SlotsError> + Send + 'static,
    ) -> Result<T, Failure> {
        let slots = Arc::clone(&self.installer.slots);
        let work = tokio::task::spawn_blocking(move || {
            work(&mut slots.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match work.await {
            Ok(result) => result.map_err(|error| {
                let kind = if error.is_releases_fault() { FailureKind::Release } else { FailureKind::Node };
                Failure::new(kind, crate::error::chain(&error))
            }),
            Err(failure) => std::panic::resume_unwind(failure.into_panic()),
        }
    }

    async fn table(
        &self,
        change: impl FnOnce(&mut Slots) -> Result<machine::PerSlot<protocol::slot::Attributes>, SlotsError>
        + Send
        + 'static,
    ) -> Event {
        Event::TableChanged(self.on_slots(change).await)
    }

    async fn probe(&self, facts: Facts) -> Result<Facts, Failure> {
        let attributes = self.on_slots(|slots| slots.attributes()).await?;
        Ok(Facts { attributes, ..facts })
    }

    /// Ends early, as cancelled, when the operation is to stop.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let stopped = self.wake.notified();
        if self.abort.load(Ordering::Relaxed) {
            return Err(Failure::new(FailureKind::Cancelled, "stopped"));
        }
        tokio::select! {
            result = work => result,
            () = stopped => Err(Failure::new(FailureKind::Cancelled, "stopped")),
        }
    }

    async fn check(
        &self,
        context: &Context,
        interactive: bool,
        pending: Option<Release>,
    ) -> Result<machine::Checked, Failure> {
        let check = self.checker.check(context, interactive, pending.as_ref());
        let (checked, authorized) = self.unless_stopped(check).await?;
        if authorized.is_some() {
            *self.authorized.lock().unwrap_or_else(PoisonError::into_inner) = authorized;
        }
        Ok(checked)
    }

    /// The evidence for a release that the machine decided about.
    fn evidence(&self, release: &Release) -> Result<Authorized, Failure> {
        let authorized = self.authorized.lock().unwrap_or_else(PoisonError::into_inner).clone();
        authorized.filter(|offered| offered.release_digest() == release.digest).ok_or_else(|| {
            Failure::new(
                FailureKind::Refused,
                format!("release {} has not been checked in this run: it is checked again", release.version),
            )
        })
    }

    async fn preflight(&self, release: Release, target: Slot, running: Slot) -> Result<(), Failure> {
        let authorized = self.evidence(&release)?;
        if self.own_disk {
            self.state_survives().await?;
        }
        preflight::state_space(&self.state_dir, authorized.manifest())?;
        self.on_slots(move |slots| slots.preflight(authorized.manifest(), target, running)).await?;
        self.pre_install(&release, target).await
    }

    /// Whether the state folder outlives a slot change. Asked before an update only: what was activated before is
    /// confirmed all the same.
    async fn state_survives(&self) -> Result<(), Failure> {
        let dir = self.state_dir.clone();
        let place =
            self.on_slots(move |slots| Ok(preflight::place_of(&dir, &slots.look()?, slots.path()))).await??;
        preflight::survives(&place).map_err(|why| {
            let detail = format!(
                "the state folder {} does not survive a slot change: {why}; put it on a partition outside of both slots (state.dir)",
                self.state_dir.display()
            );
            Failure::new(FailureKind::Node, detail)
        })
    }

    async fn install(
        &self,
        release: Release,
        target: Slot,
        running: Slot,
    ) -> Result<protocol::status::Progress, Failure> {
        let authorized = self.evidence(&release)?;
        let installer = self.installer.clone();
        let work = async move {
            installer.install(authorized.manifest(), target, running).await.map_err(|error| error.failure())
        };
        // Not cut off from outside: its threads write, and are asked to stop instead.
        work.await
    }

    async fn read_back(&self, release: Release, target: Slot) -> Result<(), Failure> {
        let authorized = self.evidence(&release)?;
        let how = self
            .on_slots(move |slots| slots.read_back(&authorized.manifest().partitions, target, &|_| {}))
            .await?;
        tracing::info!(?how, "slot {target} was read back and holds the release");
        Ok(())
    }
}
