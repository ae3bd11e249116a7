//! Steps 5 to 12: what the machine is told.

use crate::record::{PerSlot, Release};
use protocol::digest::Sha256;
use protocol::id::BootId;
use protocol::slot::{Attributes, Slot};
use protocol::status::Progress;
use protocol::version::Version;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The engine started. The first event, once.
    Start(Start),
    /// The time of [`crate::State::wake_at`] was reached.
    Tick,
    /// A person, or a program in the name of one, asks for something. Answered by [`crate::Effect::Reply`].
    Operator(Command),
    /// How far the transfer got; only for the status.
    Progress(Progress),
    /// The record could not be saved; the rest of its batch was not executed. With a line saying why.
    SaveFailed(String),
    /// [`crate::Effect::Report`] ended: the server stored every event up to this `seq`, or the report failed.
    Reported(Result<u64, Failure>),
    /// [`crate::Operation::Probe`] ended: the facts as they are now.
    Probed(Result<Facts, Failure>),
    /// [`crate::Operation::Check`] ended.
    Checked(Result<Checked, Failure>),
    /// [`crate::Operation::Preflight`] ended.
    Preflighted(Result<(), Failure>),
    /// One of the operations that change the partition table ended: the attributes of both slots, read again from
    /// the medium. After an error nothing is assumed about what was written.
    TableChanged(Result<PerSlot<Attributes>, Failure>),
    /// [`crate::Operation::Install`] ended: every byte of the release is written to the slot.
    Installed(Result<Progress, Failure>),
    /// [`crate::Operation::ReadBack`] ended: the slot was flushed, read from the medium and compared.
    ReadBack(Result<(), Failure>),
    /// [`crate::Operation::RunHealth`] ended.
    HealthJudged(Health),
    /// [`crate::Operation::AskLock`] ended: the lock's answer, or why there is none; then what was asked may have been
    /// done all the same.
    LockAnswered(Result<protocol::lock::Reply, Failure>),
    /// [`crate::Operation::PrepareReboot`] ended: nothing holds the reboot, or what does.
    RebootPrepared(Result<(), Hold>),
    /// [`crate::Operation::Reboot`] ended: the system will go down, or why it will not.
    RebootRequested(Result<(), Failure>),
    /// [`crate::Operation::PostConfirm`] ended.
    PostConfirmed(Result<(), Failure>),
}

/// What the driver found when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The running system and the slots.
    pub facts: Facts,
    /// Whether to end after one pass.
    pub mode: Mode,
    /// Seeds the jitter. Any number; nodes should differ.
    pub seed: u64,
    /// What is known of the boots before this one, in lines, where [`crate::Intent::target`] of the record is not the
    /// slot that runs: the evidence, should that boot turn out to have failed. Else empty.
    pub previous: String,
}

/// The running system and the slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The boot that the engine runs in.
    pub boot_id: BootId,
    /// The slot that was booted.
    pub slot: Slot,
    /// The version that the running system says it is.
    pub version: Version,
    /// The attributes of both slots, from the partition table.
    pub attributes: PerSlot<Attributes>,
    /// Whether the engine may reboot this machine; false with `--disk`.
    pub reboot_allowed: bool,
}

/// How long the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One pass, then [`crate::Effect::Finish`].
    Once,
    /// Until it is stopped.
    Daemon,
    /// One request of a person: what it asks for and nothing else, then [`crate::Effect::Finish`]. Nothing runs before
    /// the request came, and nothing after one that was declined.
    Request,
}

/// What a check brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What the server said and the signed metadata bore out.
    pub answer: Answer,
    /// The signed channel file was read and lists the pending release of [`crate::Operation::Check`] no longer.
    /// False where nothing is pending or the channel file could not be read.
    pub withdrawn: bool,
    /// The server's wish for the next check, in seconds.
    pub retry_after_s: Option<u64>,
}

/// What the server said and the signed metadata bore out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing for this node. With the server's reason.
    Nothing(String),
    /// There is something, but not now. With the server's reason.
    Hold(String),
    /// An authorised release: signed, unexpired, listed by this node's channel, not a downgrade.
    Offer(Offer),
    /// There is something, and it was refused: trust, downgrade, barrier. With the refusal.
    Refused(String),
}

/// An authorised release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which.
    pub release: Release,
    /// Length of its images together, in bytes.
    pub bytes_total: u64,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault it is, which decides what happens next.
    pub kind: FailureKind,
    /// One line for a person, the chain of causes included.
    pub detail: String,
    /// The server's wish for the next attempt, in seconds.
    pub retry_after_s: Option<u64>,
}

impl Failure {
    /// A failure without a wish of the server.
    #[must_use]
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), retry_after_s: None }
    }
}

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The network's or the server's: transient, tried again with back-off, costs no attempt.
    Network,
    /// The release's: its content is not what it should be. Costs an attempt.
    Release,
    /// The node's: a disk, a partition, space. Costs an attempt.
    Node,
    /// Nobody's: it was refused (trust, policy). Costs no attempt.
    Refused,
    /// Nobody's: somebody on the node does not want it now (a pre-install hook). Tried again with back-off, costs no
    /// attempt.
    Held,
    /// Stopped by [`crate::Effect::Abort`]. Costs no attempt.
    Cancelled,
}

/// The judgement over the running release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Every required check passed before the deadline.
    Passed,
    /// A required check failed, or the deadline passed. Advisory checks, and the server being out of reach, never lead
    /// here.
    Failed(Evidence),
    /// Not to be judged now, by no fault of the release: the server is asked for and out of reach, or the judgement
    /// was stopped by [`crate::Effect::Abort`]. Judged again later, and never counted. With a line saying why.
    NotYet(String),
    /// The checks could not be run at all. With a line saying why.
    Unknown(String),
}

/// What was seen of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The failure in one line.
    pub summary: String,
    /// What was seen, in lines: the states of units, a part of the journal, exit codes. May be empty.
    pub log: String,
}

impl Evidence {
    /// A failure that its summary says everything about.
    #[must_use]
    pub fn summary(summary: impl Into<String>) -> Self {
        Self { summary: summary.into(), log: String::new() }
    }
}

/// What holds a reboot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// What kind of thing.
    pub kind: HoldKind,
    /// Which, in one line.
    pub detail: String,
}

impl Hold {
    /// This thing.
    #[must_use]
    pub fn new(kind: HoldKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// The kinds of things that hold a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldKind {
    /// A pre-reboot hook failed. Never forced.
    Hook,
    /// An alert fires, or it cannot be told whether one does. Never forced.
    Alert,
    /// A block inhibitor. Respected for a bounded time.
    Inhibitor,
    /// An active session. Respected for a bounded time.
    Session,
    /// Nothing does: the preparation was stopped by [`crate::Effect::Abort`].
    Stopped,
}

impl HoldKind {
    /// Whether it holds for as long as it is there: it is never forced.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Hook | Self::Alert)
    }
}

/// What a person asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Check now; install what is offered as the strategy says.
    Check,
    /// As [`Self::Check`]; with `force_retry` the attempts spent on releases are forgotten first.
    Update {
        /// Forget the attempts spent.
        force_retry: bool,
    },
    /// Stop what is being installed, undo a flip.
    Cancel,
    /// Go back to the other slot; the release running now is quarantined once the other one has proved itself.
    Rollback,
    /// Confirm the running release without waiting for its health checks.
    MarkGood,
    /// Forget quarantined releases, and the attempts spent on them.
    QuarantineClear(Clear),
    /// Reboot now, whatever the strategy says.
    Reboot,
}

/// Which quarantined releases to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// All.
    All,
    /// The one with this digest.
    Release(Sha256),
}
