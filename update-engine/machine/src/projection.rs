//! Steps 5 to 12 as an operator sees them: the status document, made from the state.

use crate::effect::Operation;
use crate::record::Flip;
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
        permit: record.permit.clone(),
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

const fn of_operation(operation: &Operation) -> StateName {
    match operation {
        Operation::Probe => StateName::Error,
        Operation::Check { .. } => StateName::Checking,
        Operation::Preflight { .. } => StateName::Available,
        Operation::Invalidate { .. } | Operation::Install { .. } => StateName::Downloading,
        Operation::ReadBack { .. } => StateName::Verifying,
        Operation::Activate { .. } | Operation::Revert { .. } => StateName::Staged,
        Operation::Deactivate { .. } | Operation::Restore { .. } | Operation::ReleasePermit => {
            StateName::Idle
        }
        Operation::MarkGood { .. } | Operation::RunHealth { .. } | Operation::PostConfirm { .. } => {
            StateName::Confirming
        }
        Operation::Condemn { .. } => StateName::RolledBack,
        Operation::AcquirePermit { .. } | Operation::RecheckPermit | Operation::PrepareReboot { .. } => {
            StateName::Waiting
        }
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
