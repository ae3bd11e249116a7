//! Steps 5 to 12 as an operator sees them: the status document, made from the state.

use crate::effect::{Ask, Operation, Question};
use crate::record::{Flip, Permit, PermitStage};
use crate::state::{Run, State, Waiting};
use protocol::id::{Channel, Group};
use protocol::status::{BootedSlot, OtherSlot, SCHEMA, StagedRelease, StateName, Status};
use protocol::version::Version;

/// What the status says about the node that the machine need not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The channel that the node follows.
    pub channel: Channel,
    /// The group that it belongs to.
    pub group: Group,
}

/// What `updatectl status` shows of this state.
#[must_use]
pub fn status(state: &State, identity: &Identity) -> Status {
    let (name, reason) = name(state);
    let record = &state.record;
    let facts = state.run.facts.as_ref();
    Status {
        schema: SCHEMA,
        state: name,
        reason,
        booted: facts.map(|facts| BootedSlot {
            slot: facts.slot,
            version: state.running_version().unwrap_or(&facts.version).clone(),
            confirmed: facts.attributes.get(facts.slot).successful(),
        }),
        other: facts.map(|facts| {
            let slot = facts.slot.other();
            OtherSlot {
                slot,
                version: record.slots.get(slot).as_ref().map(|content| content.version.clone()),
                bootable: facts.attributes.get(slot).bootable(),
            }
        }),
        staged: state.pending().map(|(release, activated)| StagedRelease {
            version: release.version,
            release: release.digest,
            activated,
        }),
        progress: state.run.progress,
        last_check: record.last_check.clone(),
        channel: Some(identity.channel.clone()),
        group: Some(identity.group.clone()),
        permit: record.permit.as_ref().and_then(|permit| permit_line(permit, trouble(&state.run))),
        quarantine: record.quarantine.clone(),
        error: state.run.error.clone(),
    }
}

/// The state's name, and why it is in it.
fn name(state: &State) -> (StateName, String) {
    let run = &state.run;
    let note = || run.note.clone();
    match &run.operation {
        Some(Operation::PrepareReboot { version, .. }) => (StateName::Waiting, preparing(run, version)),
        Some(Operation::PostConfirm { version }) => {
            (StateName::Confirming, format!("hook: post-confirm hooks after {version} was confirmed"))
        }
        Some(operation @ Operation::AskLock(question)) => (of_operation(operation), asking(question)),
        Some(operation) => (of_operation(operation), note()),
        None => match &run.waiting {
            Some(waiting) => (StateName::Waiting, waiting.to_string()),
            None => resting(state),
        },
    }
}

/// What a preparation that runs does; where it only looks whether something still holds the reboot, that thing.
fn preparing(run: &Run, version: &Version) -> String {
    match &run.hold {
        Some(hold) => Waiting::from(hold).to_string(),
        None => format!("hook: the node is made ready for the reboot into {version}"),
    }
}

/// Why the lock was not told yet, where it was tried.
fn trouble(run: &Run) -> &str {
    if run.permit_at.is_some() { &run.permit_note } else { "" }
}

/// What the lock is asked.
fn asking(question: &Question) -> String {
    let version = &question.version;
    match question.ask {
        Ask::Request => format!("permit: the lock is asked for the reboot into {version}"),
        Ask::Verify => format!("permit: the lock is asked whether the reboot into {version} may begin"),
        Ask::Abandon => format!("the lock is told that the reboot into {version} is given up"),
        Ask::Booted => format!("the lock is told that {version} is up"),
        Ask::Confirm => format!("the lock is told that {version} is confirmed"),
        Ask::Fail { .. } => format!("the lock is told that {version} failed"),
    }
}

/// What the node holds of the lock, if anything.
fn permit_line(permit: &Permit, trouble: &str) -> Option<String> {
    let version = &permit.version;
    let untold = || if trouble.is_empty() { String::new() } else { format!(": {trouble}") };
    match &permit.stage {
        // It may be held; only the lock knows.
        PermitStage::Asked | PermitStage::Unknown => None,
        PermitStage::Held => Some(format!("held for the reboot into {version}")),
        PermitStage::GivenUp => Some(format!("given back once the lock hears of it{}", untold())),
        PermitStage::Confirmed => {
            Some(format!("held until the lock hears that {version} is confirmed{}", untold()))
        }
        PermitStage::Failed { .. } => {
            Some(format!("held; the lock is still to hear that {version} failed{}", untold()))
        }
        PermitStage::Halting => {
            Some(format!("left held, as {version} failed here: another release or an operator frees it"))
        }
    }
}

const fn of_operation(operation: &Operation) -> StateName {
    match operation {
        Operation::Probe => StateName::Error,
        Operation::Check { .. } => StateName::Checking,
        Operation::Preflight { .. } => StateName::Available,
        Operation::Invalidate { .. } | Operation::Install { .. } => StateName::Downloading,
        Operation::ReadBack { .. } => StateName::Verifying,
        Operation::Activate { .. } | Operation::Revert { .. } => StateName::Staged,
        Operation::Deactivate { .. } | Operation::Restore { .. } => StateName::Idle,
        Operation::MarkGood { .. } | Operation::RunHealth { .. } | Operation::PostConfirm { .. } => {
            StateName::Confirming
        }
        Operation::Condemn { .. } => StateName::RolledBack,
        Operation::PrepareReboot { .. } => StateName::Waiting,
        Operation::AskLock(question) => match question.ask {
            Ask::Request | Ask::Verify => StateName::Waiting,
            Ask::Booted | Ask::Confirm => StateName::Confirming,
            Ask::Abandon => StateName::Idle,
            Ask::Fail { .. } => StateName::RolledBack,
        },
        Operation::Reboot => StateName::Rebooting,
    }
}

/// The state's name while nothing runs.
fn resting(state: &State) -> (StateName, String) {
    let (run, record) = (&state.run, &state.record);
    let Some(facts) = &run.facts else { return (StateName::Idle, "starting".to_owned()) };
    if run.reboot_requested {
        return (StateName::Rebooting, run.note.clone());
    }
    let error = || run.error.clone().unwrap_or_default();
    if run.probe_at.is_some() {
        return (StateName::Error, error());
    }
    if !facts.attributes.get(facts.slot).successful() {
        let name = if record.condemned(facts.slot) { StateName::RolledBack } else { StateName::Confirming };
        return (name, if run.error.is_some() { error() } else { run.note.clone() });
    }
    if let Some(intent) = record.intent.as_ref().filter(|intent| intent.flip == Flip::Activated) {
        let version = &intent.content.version;
        return (StateName::Staged, format!("the next boot starts {version} in slot {}", intent.target));
    }
    if let Some(back) = &record.rolled_back {
        return (StateName::RolledBack, back.reason.clone());
    }
    if run.error.is_some() {
        return (StateName::Error, error());
    }
    (StateName::Idle, run.note.clone())
}
