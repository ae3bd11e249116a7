//! Step 4, channel: what time and results do to a rollout: it halts, or its next stage opens.

use super::document::{Counts, Ended, Rollout, Stage, Stop};
use super::share::Share;
use jiff::{SignedDuration, Timestamp};

/// What a stage waits for.
struct Needs {
    hold_s: u32,
    confirmed: Share,
    approve: bool,
    /// At least one node must have confirmed the release, whether or not there are nodes that could.
    proof: bool,
}

impl Needs {
    fn of(rollout: &Rollout) -> Self {
        match rollout.open() {
            Stage::Canary(canary) => Self {
                hold_s: canary.hold_s,
                confirmed: canary.confirmed,
                approve: canary.approve,
                proof: true,
            },
            Stage::Wave(wave) => {
                Self { hold_s: wave.hold_s, confirmed: wave.confirmed, approve: wave.approve, proof: false }
            }
        }
    }
}

/// The rollout after the time that has passed and the results that have come in; none where they change nothing. At most
/// one stage opens at a time.
#[must_use]
pub fn advance(rollout: &Rollout, counts: &Counts, now: Timestamp) -> Option<Rollout> {
    if rollout.halted.is_some() {
        return None;
    }
    if let Some(why) = too_many_failures(rollout, counts).or_else(|| canary_failed(rollout, counts)) {
        let halted = Some(Stop { at: now, by: "server".to_owned(), why });
        return Some(Rollout { halted, ..rollout.clone() });
    }
    let nobody_waits = counts.waiting == Some(false);
    let proven = counts.stage.confirmed > 0 || (nobody_waits && !Needs::of(rollout).proof);
    if !is_held_enough(rollout, counts, now) || !proven && !rollout.approved {
        return None;
    }
    Some(Rollout { stage: rollout.stage + 1, stage_at: now, approved: false, ..rollout.clone() })
}

/// Whether [`advance`] can only tell with [`Counts::waiting`]: nothing else keeps the next stage from opening, but nobody has
/// confirmed the release in this one. Finding that nobody waits goes through all nodes of the channel.
#[must_use]
pub fn wants_waiting(rollout: &Rollout, counts: &Counts, now: Timestamp) -> bool {
    rollout.halted.is_none()
        && counts.stage.confirmed == 0
        && !Needs::of(rollout).proof
        && is_held_enough(rollout, counts, now)
}

/// Whether time, the share of confirmed nodes and operators let the next stage open. An operator's approval stands for all
/// that the stage waits for but a halt and a pause.
fn is_held_enough(rollout: &Rollout, counts: &Counts, now: Timestamp) -> bool {
    let needs = Needs::of(rollout);
    if rollout.is_last_stage() || rollout.paused.is_some() {
        return false;
    }
    if rollout.approved {
        return true;
    }
    let held = now.duration_since(rollout.stage_at) >= SignedDuration::from_secs(needs.hold_s.into());
    held && !needs.approve && needs.confirmed.is_reached_by(counts.stage.confirmed, counts.stage.granted)
}

/// What the next stage waits for, each in one line for people; nothing where the last one is open.
#[must_use]
pub fn next_stage(rollout: &Rollout, counts: &Counts, now: Timestamp) -> Vec<String> {
    if rollout.is_last_stage() {
        return Vec::new();
    }
    let needs = Needs::of(rollout);
    let mut waits = Vec::new();
    if rollout.halted.is_some() || rollout.paused.is_some() {
        waits.push(format!("an operator: updatectl rollout resume {} --why TEXT", rollout.channel));
    }
    if rollout.approved {
        return waits;
    }
    let nobody_left = counts.waiting == Some(false) && is_stuck(rollout, counts);
    if needs.approve || nobody_left {
        let as_nobody = if nobody_left {
            ", as no node is left in this stage that could confirm the release (each failed or has it in quarantine, or there is none)"
        } else {
            ""
        };
        let channel = &rollout.channel;
        waits.push(format!(
            "an operator's approval{as_nobody}: updatectl rollout approve {channel} --why TEXT"
        ));
    }
    let over = rollout.stage_at.checked_add(SignedDuration::from_secs(needs.hold_s.into()));
    if let Some(over) = over.ok().filter(|over| *over > now) {
        waits.push(format!("its hold, until {over:.0}"));
    }
    let (confirmed, granted) = (counts.stage.confirmed, counts.stage.granted);
    if !needs.confirmed.is_reached_by(confirmed, granted) {
        let share = needs.confirmed;
        waits.push(format!("confirmations: {confirmed} of {granted} let go in this stage, and {share} must"));
    } else if confirmed == 0 && !nobody_left && (needs.proof || counts.waiting != Some(false)) {
        waits.push("a first node of this stage that confirms the release".to_owned());
    }
    waits
}

/// Whether the nodes that were let go in the open stage cannot open the next one any more, whatever comes of those under way: only
/// others could, if there are any, or an operator's approval. With [`Counts::waiting`] `Some(false)`, [`next_stage`] says so.
#[must_use]
pub fn is_stuck(rollout: &Rollout, counts: &Counts) -> bool {
    let (needs, stage) = (Needs::of(rollout), &counts.stage);
    let could = stage.granted.saturating_sub(stage.failures());
    let proves_nothing = needs.proof && could == 0;
    !rollout.is_last_stage() && (proves_nothing || !needs.confirmed.is_reached_by(could, stage.granted))
}

/// The canary group is there to find out: where so many of it failed that the share that must confirm the release cannot be
/// reached, nobody waits for it in vain.
fn canary_failed(rollout: &Rollout, counts: &Counts) -> Option<String> {
    let Stage::Canary(canary) = rollout.open() else { return None };
    let Ended { granted, .. } = counts.stage;
    let failures = counts.stage.failures();
    let reachable = canary.confirmed.is_reached_by(granted.saturating_sub(failures), granted);
    (failures > 0 && !reachable)
        .then(|| format!("{failures} of {granted} nodes of the canary group {} failed", canary.group))
}

fn too_many_failures(rollout: &Rollout, counts: &Counts) -> Option<String> {
    let (halt, since) = (&rollout.policy.halt, &counts.since);
    let (failures, ended) = (since.failures(), since.ended());
    let by_number = halt.failures.is_some_and(|max| failures >= max);
    let by_rate = failures >= halt.least_failures.max(1) && halt.failure_rate.is_reached_by(failures, ended);
    (by_number || by_rate).then(|| {
        let silent = match since.silent {
            0 => String::new(),
            silent => format!(", {silent} of them by falling silent in the reboot"),
        };
        format!("{failures} of {ended} nodes failed{silent}")
    })
}
