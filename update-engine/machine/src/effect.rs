//! Steps 5 to 12: what the driver is to do.

use crate::record::{Record, Release};
use protocol::id::BootId;
use protocol::lock::AttemptId;
use protocol::slot::Slot;
use protocol::status::Exit;
use protocol::version::Version;
use protocol::wire;

/// One thing to do. See the rules in the crate's documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this record durable. On failure: [`crate::Event::SaveFailed`], and the rest of the batch is dropped.
    Save(Box<Record>),
    /// Drop the evidence of a staged slot, if there is any. A running [`Operation::Activate`] has taken it already.
    Discard,
    /// Stop the running operation as soon as it can; its event still comes.
    Abort,
    /// Answer the operator event of this step.
    Reply(Reply),
    /// Send these events to the server, beside the running operation. Answered by [`crate::Event::Reported`]; there
    /// is never more than one report under way.
    Report(Vec<wire::Event>),
    /// Run this operation. Always the last effect of its batch.
    Run(Operation),
    /// The pass of [`crate::Mode::Once`] is over: end with this exit code.
    Finish(Exit),
}

/// The answer to an operator's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// What becomes of it.
    pub outcome: Outcome,
    /// What will happen, or why nothing will; one line.
    pub text: String,
}

/// What becomes of an operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, or will be.
    Done,
    /// There is nothing that it could change: what was asked for is so already.
    NothingToDo,
    /// It cannot be done, or not now.
    Declined,
}

/// An operation that takes time and may fail. There is never more than one running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read the facts again, after a failure that left them in doubt. → [`crate::Event::Probed`]
    Probe,
    /// Ask the server, check the trust chain. → [`crate::Event::Checked`]
    Check {
        /// Whether a person asked.
        interactive: bool,
        /// The release staged or activated: find out whether the channel still lists it.
        pending: Option<Release>,
    },
    /// Everything that can be found out before the first byte: sizes, table health, mounts, space. Also of a target
    /// that holds an activated release at this time. → [`crate::Event::Preflighted`]
    Preflight {
        /// The release to install.
        release: Release,
        /// The slot it goes to.
        target: Slot,
    },
    /// Make the slot one that boot selection cannot choose; flushed. → [`crate::Event::TableChanged`]
    Invalidate {
        /// The slot.
        target: Slot,
    },
    /// Fetch what is missing, write the slot. → [`crate::Event::Installed`]
    Install {
        /// The release to install.
        release: Release,
        /// The slot it goes to.
        target: Slot,
    },
    /// Flush the slot, read it back from the medium, compare; keep the evidence. → [`crate::Event::ReadBack`]
    ReadBack {
        /// The release it must hold.
        release: Release,
        /// The slot.
        target: Slot,
    },
    /// Switch the next boot to the slot, with the evidence of the read-back. → [`crate::Event::TableChanged`]
    Activate {
        /// The release it holds.
        release: Release,
        /// The slot.
        target: Slot,
        /// Tries it gets.
        tries: u8,
    },
    /// Switch the next boot to the slot without evidence: it is bootable and successful, which is checked again
    /// there. It gets priority 2, `tries`, successful 0; the running slot priority 1. → [`crate::Event::TableChanged`]
    Revert {
        /// The slot.
        target: Slot,
        /// Tries it gets.
        tries: u8,
    },
    /// Undo the switch of [`Self::Activate`]: the target is invalidated. → [`crate::Event::TableChanged`]
    Deactivate {
        /// The slot.
        target: Slot,
    },
    /// Undo the switch of [`Self::Revert`]: the target gets priority 1, tries 0 and successful back, the running slot
    /// priority 2. → [`crate::Event::TableChanged`]
    Restore {
        /// The slot.
        target: Slot,
    },
    /// Set the running slot successful, tries 0. → [`crate::Event::TableChanged`]
    MarkGood {
        /// The running slot.
        slot: Slot,
    },
    /// Zero the slot's attributes after its release failed. → [`crate::Event::TableChanged`]
    Condemn {
        /// The slot.
        slot: Slot,
    },
    /// Judge the running release, within so many seconds by a monotonic clock. → [`crate::Event::HealthJudged`]
    RunHealth {
        /// Seconds until it counts as failed.
        deadline_s: u32,
    },
    /// Ask the reboot lock. → [`crate::Event::LockAnswered`]
    AskLock(Box<Question>),
    /// Make ready for a reboot: run the pre-reboot hooks if `hooks`, then look for what holds a reboot (inhibitors,
    /// active sessions) and warn the users. → [`crate::Event::RebootPrepared`]
    PrepareReboot {
        /// The version to reboot into.
        version: Version,
        /// Whether the hooks are to run; they are not where they did for this reboot already.
        hooks: bool,
        /// What holds the reboot was respected for long enough: it is told and warned, and holds no more. Hooks are
        /// never forced.
        force: bool,
    },
    /// Reboot. → [`crate::Event::RebootRequested`]
    Reboot,
    /// Run the post-confirm hooks. → [`crate::Event::PostConfirmed`]
    PostConfirm {
        /// The version that was confirmed.
        version: Version,
    },
}

/// What the reboot lock is asked or told about one attempt. It may be asked again after any failure: the lock is
/// idempotent on node and attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The attempt, which is on record.
    pub attempt: AttemptId,
    /// The boot that this is about.
    pub boot_id: BootId,
    /// The version that runs.
    pub running: Version,
    /// The version of the attempt.
    pub version: Version,
    /// What is asked.
    pub ask: Ask,
}

/// The questions to the lock, as `protocol::lock::Command` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// For the permit.
    Request,
    /// Whether the grant is current, immediately before the flip and the reboot.
    Verify,
    /// The attempt is given up before it led to a reboot. [`Question::boot_id`] is the boot in which it was begun, also
    /// where the node went down by itself since.
    Abandon,
    /// The node is up in another boot, in the version of the attempt, and proves its health.
    Booted,
    /// The version was confirmed.
    Confirm,
    /// The version failed here.
    Fail {
        /// Why.
        reason: String,
    },
}
