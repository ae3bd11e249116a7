//! Steps 5 to 12: the whole state: policy, durable record, and what is known only while the engine runs.

use crate::effect::Operation;
use crate::event::{Facts, Hold, HoldKind, Mode, Offer};
use crate::policy::Policy;
use crate::record::{Attempt, Content, Record, Refusal, Release, RolledBack};
use jiff::Timestamp;
use protocol::status::{Exit, Progress, QuarantineEntry};
use protocol::version::Version;
use std::fmt;

/// The machine's state. Made from a policy and the saved record, changed only by [`crate::step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub(crate) policy: Policy,
    pub(crate) record: Record,
    /// The record as the last `Save` has it; `None` where it is unknown what is durable.
    pub(crate) saved: Option<Record>,
    pub(crate) run: Run,
}

impl State {
    /// The state of an engine that is about to start with this record.
    #[must_use]
    pub fn new(policy: Policy, record: Record) -> Self {
        Self { policy, saved: Some(record.clone()), record, run: Run::default() }
    }

    /// The bounds in force.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The durable part.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The facts last reported.
    #[must_use]
    pub const fn facts(&self) -> Option<&Facts> {
        self.run.facts.as_ref()
    }

    /// The operation that runs.
    #[must_use]
    pub const fn operation(&self) -> Option<&Operation> {
        self.run.operation.as_ref()
    }

    /// When to deliver [`crate::Event::Tick`], whatever runs. A time in the past means now.
    #[must_use]
    pub const fn wake_at(&self) -> Option<Timestamp> {
        self.run.wake_at
    }

    /// The exit code, once [`crate::Effect::Finish`] was given.
    #[must_use]
    pub const fn finished(&self) -> Option<Exit> {
        self.run.finished
    }

    /// What is being waited for, if anything.
    #[must_use]
    pub const fn waiting(&self) -> Option<&Waiting> {
        self.run.waiting.as_ref()
    }

    /// The version that runs: as its manifest has it where the engine installed it, else what the running system
    /// calls itself. What a release is compared with.
    #[must_use]
    pub fn running_version(&self) -> Option<&Version> {
        let facts = self.run.facts.as_ref()?;
        Some(self.record.slots.get(facts.slot).as_ref().map_or(&facts.version, |content| &content.version))
    }

    /// The release that the other slot holds, verified, and that did not boot yet; and whether it is activated.
    #[must_use]
    pub fn pending(&self) -> Option<(Release, bool)> {
        let facts = self.run.facts.as_ref()?;
        if let Some(intent) = self.record.intent.as_ref().filter(|intent| intent.target != facts.slot) {
            return intent.content.release().map(|release| (release, true));
        }
        let update = self.run.update.as_ref().filter(|update| update.stage == Stage::Staged)?;
        Some((update.offer.release.clone(), false))
    }
}

/// What is being waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The next window, or a window at all.
    Window(String),
    /// The permit.
    Permit(String),
    /// The system is not to reboot now: an inhibitor, an active session, a reboot that failed.
    Inhibitor(String),
    /// A hook of the node does not want it now.
    Hook(String),
    /// An alert fires.
    Alert(String),
    /// The server holds what waits here: its rollout is halted or paused.
    Rollout(String),
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(reason) => write!(f, "window: {reason}"),
            Self::Permit(reason) => write!(f, "permit: {reason}"),
            Self::Inhibitor(reason) => write!(f, "inhibitor: {reason}"),
            Self::Hook(reason) => write!(f, "hook: {reason}"),
            Self::Alert(reason) => write!(f, "alert: {reason}"),
            Self::Rollout(reason) => write!(f, "rollout: {reason}"),
        }
    }
}

impl From<&Hold> for Waiting {
    fn from(hold: &Hold) -> Self {
        let detail = hold.detail.clone();
        match hold.kind {
            HoldKind::Hook => Self::Hook(detail),
            HoldKind::Alert => Self::Alert(detail),
            HoldKind::Session if !detail.starts_with("session") => {
                Self::Inhibitor(format!("session {detail}"))
            }
            HoldKind::Inhibitor | HoldKind::Session | HoldKind::Stopped => Self::Inhibitor(detail),
        }
    }
}

/// What is known only while the engine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) facts: Option<Facts>,
    pub(crate) once: bool,
    /// With [`Mode::Request`]: what became of the request.
    pub(crate) asked: Option<Asked>,
    pub(crate) random: u64,
    pub(crate) operation: Option<Operation>,
    /// The last batch started the running operation, or a report, or finished: undone when its save fails.
    pub(crate) last_batch: LastBatch,
    pub(crate) report_running: bool,
    pub(crate) report_failed: bool,
    pub(crate) report_at: Option<Timestamp>,
    pub(crate) report_failures: u32,
    pub(crate) wake_at: Option<Timestamp>,
    /// Facts are in doubt until this time, then they are read again.
    pub(crate) probe_at: Option<Timestamp>,
    pub(crate) table_failures: u32,
    pub(crate) update: Option<Update>,
    /// The running operation works for something that was given up.
    pub(crate) abandoned: bool,
    pub(crate) next_check: Option<Timestamp>,
    pub(crate) interactive: bool,
    pub(crate) checked: bool,
    /// A check ended in this run, however.
    pub(crate) looked: bool,
    pub(crate) failures: u32,
    pub(crate) judgement: Judgement,
    pub(crate) unknown_judgements: u32,
    pub(crate) waiting: Option<Waiting>,
    /// The lock is not asked before this time.
    pub(crate) permit_at: Option<Timestamp>,
    pub(crate) permit_note: String,
    /// When the lock last said that the grant on record is current.
    pub(crate) permit_checked_at: Option<Timestamp>,
    /// Questions in a row to which the lock gave no answer.
    pub(crate) lock_failures: u32,
    /// The lock knows that the release is up and proves its health.
    pub(crate) booted_told: bool,
    /// When the preparation of [`Record::preparation`] found nothing that holds the reboot.
    pub(crate) prepared_at: Option<Timestamp>,
    /// What held it when it was last looked.
    pub(crate) hold: Option<Hold>,
    pub(crate) hold_until: Option<Timestamp>,
    pub(crate) post_confirm_at: Option<Timestamp>,
    /// Why the node does not want an update now, until the next check.
    pub(crate) install_held: Option<String>,
    pub(crate) not_yet: u32,
    /// What is known of the boots before this one.
    pub(crate) previous: String,
    pub(crate) reboot_at: Option<Timestamp>,
    pub(crate) reboot_note: String,
    pub(crate) reboot_requested: bool,
    pub(crate) reboot_announced: bool,
    pub(crate) reboot_wanted: bool,
    pub(crate) rollback_wanted: bool,
    pub(crate) undo_wanted: bool,
    /// What a request has just cleared, until its batch is saved: a request that is declined clears nothing.
    pub(crate) forgiven: Option<Box<Forgiven>>,
    pub(crate) verdict: Option<Exit>,
    /// The partition table was changed in this run.
    pub(crate) changed: bool,
    pub(crate) finished: Option<Exit>,
    pub(crate) progress: Progress,
    pub(crate) note: String,
    pub(crate) error: Option<String>,
}

impl Run {
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        self.once = mode != Mode::Daemon;
        self.asked = (mode == Mode::Request).then_some(Asked::Awaited);
    }
}

/// What became of the one request of [`Mode::Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It did not come yet.
    Awaited,
    /// It is carried out.
    Accepted,
    /// There is nothing to do for it.
    Declined,
}

/// The parts of the record that a person can clear, as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forgiven {
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) quarantine: Vec<QuarantineEntry>,
    pub(crate) rolled_back: Option<RolledBack>,
    pub(crate) refusal: Option<Refusal>,
}

impl Forgiven {
    pub(crate) fn of(record: &Record) -> Box<Self> {
        Box::new(Self {
            attempts: record.attempts.clone(),
            quarantine: record.quarantine.clone(),
            rolled_back: record.rolled_back.clone(),
            refusal: record.refusal.clone(),
        })
    }
}

/// What the last batch held besides its save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LastBatch {
    pub(crate) operation: bool,
    pub(crate) report: bool,
    pub(crate) finish: bool,
}

/// The update that is under way in this run of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) offer: Offer,
    pub(crate) stage: Stage,
}

/// How far it got: what was done last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Accepted,
    Preflighted,
    Invalidated,
    Installed,
    Staged,
}

/// What is known of the running release's health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Judgement {
    #[default]
    Pending,
    Passed,
    /// To be judged again at this time.
    Again(Timestamp),
}

impl Content {
    /// The release, where its digest is known.
    #[must_use]
    pub fn release(&self) -> Option<Release> {
        self.digest.map(|digest| Release { version: self.version.clone(), digest })
    }
}
