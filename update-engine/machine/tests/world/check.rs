//! The invariants, held against every effect, every write and every boot of the miniature world.

use super::rollout::not_held;
use super::server::Quality;
use super::{Bytes, Outcome, Violation, World};
use machine::{Clear, Command, Effect, Flip, Operation, Purpose, Record, Strategy};
use protocol::slot::{Slot, select};
use protocol::status::Exit;
use protocol::version::Version;
use protocol::wire;

pub(super) fn deny(text: impl Into<String>) -> Outcome {
    Err(Violation(text.into()))
}

/// A batch saves first, and runs or finishes last.
pub fn shape(effects: &[Effect]) -> Outcome {
    let last = effects.len().saturating_sub(1);
    for (index, effect) in effects.iter().enumerate() {
        match effect {
            Effect::Save(_) if index != 0 => return deny("a save that is not first in its batch"),
            Effect::Run(_) | Effect::Finish(_) if index != last => {
                return deny("an operation that is not last in its batch");
            }
            _ => {}
        }
    }
    Ok(())
}

/// What must hold at every moment, whatever was done last.
pub fn lasting(world: &World) -> Outcome {
    for slot in Slot::ALL {
        if world.table.get(slot).bootable() && *world.bytes.get(slot) == Bytes::Broken {
            return deny(format!("slot {slot} may boot and does not hold a whole image"));
        }
    }
    on_record(world)?;
    contents(world)?;
    let safe = Slot::ALL.into_iter().any(|slot| {
        let attributes = world.table.get(slot);
        let Bytes::Whole(index) = *world.bytes.get(slot) else { return false };
        let proven = world.ledger.proven.contains(&index) || world.ledger.forced.contains(&index);
        attributes.successful() && attributes.bootable() && proven
    });
    if safe { Ok(()) } else { deny(format!("no slot is bootable, intact and proven: {:?}", world.table)) }
}

/// What the record says that a slot holds, it holds.
fn contents(world: &World) -> Outcome {
    let record = world.record();
    for slot in Slot::ALL {
        let digest = record.slots.get(slot).as_ref().and_then(|content| content.digest);
        let Some(index) = digest.map(|digest| world.server.of_digest(&digest)) else { continue };
        if *world.bytes.get(slot) != Bytes::Whole(index) {
            return deny(format!("slot {slot} is on record as holding release {index}, and does not"));
        }
    }
    Ok(())
}

/// The next boot goes to another slot only where that is on record: as intended, or as still to be put right.
fn on_record(world: &World) -> Outcome {
    let entries = [(1, *world.table.get(Slot::A)), (2, *world.table.get(Slot::B))];
    let Some(choice) = select(entries) else { return deny("no slot boots next") };
    let next = if choice.entry == 1 { Slot::A } else { Slot::B };
    let record = world.record();
    let intended = record.intent.as_ref().is_some_and(|intent| intent.target == next);
    // An unconfirmed release whose tries are spent is left by the loader.
    let unconfirmed = !world.table.get(world.booted).successful();
    if next == world.booted || unconfirmed || intended || record.condemned(next) {
        Ok(())
    } else {
        deny(format!("slot {next} boots next, and nothing on record says so"))
    }
}

/// Before an operation starts.
pub fn operation(world: &World, operation: &Operation) -> Outcome {
    let running = world.booted;
    match operation {
        Operation::Invalidate { target }
        | Operation::Install { target, .. }
        | Operation::Activate { target, .. }
        | Operation::Revert { target, .. }
        | Operation::Deactivate { target }
        | Operation::Restore { target }
            if *target == running =>
        {
            deny(format!("{operation:?} on the running slot"))
        }
        Operation::MarkGood { slot } if *slot != running => {
            deny("another slot than the running one is confirmed")
        }
        Operation::Reboot => reboot(world),
        Operation::PrepareReboot { version, hooks, force } => preparation(world, version, *hooks, *force),
        Operation::PostConfirm { .. } if !world.table.get(running).successful() => {
            deny("post-confirm hooks run for what is not confirmed")
        }
        Operation::PostConfirm { .. } if world.ledger.post_confirms >= world.policy.post_confirm_max => {
            deny("the post-confirm hooks are run again and again")
        }
        Operation::Activate { release, .. } if world.policy.strategy == Strategy::Lock => {
            not_held(world, Some(release.digest))?;
            made_ready(world, &release.version)?;
            world.is_verified(&release.version)
        }
        Operation::Revert { target, .. } => {
            let version = world.record().slots.get(*target).as_ref().map(|content| content.version.clone());
            version.map_or(Ok(()), |version| world.is_verified(&version))
        }
        Operation::Invalidate { target } => begun(world, *target),
        _ => Ok(()),
    }
}

/// A reboot is the strategy's, a person's, or the way back.
fn reboot(world: &World) -> Outcome {
    let way_back = world.record().condemned(world.booted);
    let by_strategy = world.policy.strategy != Strategy::Off && world.record().intent.is_some();
    if !world.reboot_allowed {
        return deny("a reboot that is not allowed");
    }
    if way_back {
        return Ok(());
    }
    if !by_strategy && !world.ledger.reboot_asked {
        return deny("a reboot nobody asked for");
    }
    let intent = world.record().intent;
    let update = intent.as_ref().filter(|intent| intent.purpose == Purpose::Update);
    not_held(world, update.and_then(|intent| intent.content.digest))?;
    let intended = intent.map(|intent| intent.content.version);
    if let Some(version) = intended.as_ref().filter(|_| !world.ledger.reboot_asked) {
        world.is_verified(version)?;
    }
    let running = &world.server.release(world.running()).version;
    made_ready(world, intended.as_ref().unwrap_or(running))
}

/// What leads to a reboot was prepared for that reboot, by this process, a moment ago, and its hooks ran.
fn made_ready(world: &World, version: &Version) -> Outcome {
    if !world.reboot_allowed {
        return Ok(());
    }
    if !world.ledger.drained.contains(&(world.boots, version.clone())) {
        return deny(format!("the hooks before the reboot into {version} did not run, or failed"));
    }
    let prepared = world.process.as_ref().and_then(|process| process.prepared.as_ref());
    let Some((_, at)) = prepared.filter(|(prepared, _)| prepared == version) else {
        return deny(format!("the reboot into {version} was not prepared: {prepared:?}"));
    };
    let age = world.now.duration_since(*at).as_secs();
    if (0..i64::from(world.policy.prepared_max_s)).contains(&age) {
        Ok(())
    } else {
        deny(format!("the preparation is {age} s old"))
    }
}

/// Hooks are left out only where they ran; what holds is forced only after it was respected.
fn preparation(world: &World, version: &Version, hooks: bool, force: bool) -> Outcome {
    if !world.reboot_allowed {
        return deny("a reboot is prepared that is not allowed");
    }
    if !hooks && !world.ledger.drained.contains(&(world.boots, version.clone())) {
        return deny(format!("the hooks before the reboot into {version} are left out, and never ran"));
    }
    // However the clock jumps, so many looks are needed; one pass after another is not bound to the interval.
    let looks = world.policy.hold_max_s / (2 * world.policy.hold_retry_s);
    let needed = if world.mode == machine::Mode::Once { 2 } else { looks };
    if force && world.ledger.looks < needed {
        return deny(format!("what holds is forced after {} looks", world.ledger.looks));
    }
    Ok(())
}

fn begun(world: &World, target: Slot) -> Outcome {
    let record = world.record();
    let open: Vec<_> = record.attempts.iter().filter(|attempt| attempt.open).collect();
    let [attempt] = open[..] else {
        return deny(format!("slot {target} is invalidated without an attempt on record"));
    };
    if attempt.failed >= world.policy.attempts_max || attempt.interrupted >= world.policy.interruptions_max {
        return deny("an attempt beyond the bound");
    }
    Ok(())
}

/// Before the partition table changes.
pub fn table(world: &World, operation: &Operation) -> Outcome {
    let running = world.booted;
    let confirmed = world.table.get(running).successful();
    let record = world.record();
    match operation {
        Operation::Invalidate { .. } if !confirmed => {
            deny("the fallback is overwritten before the running slot is confirmed")
        }
        Operation::Activate { release, target, .. } => {
            let index = world.server.index(release);
            if *world.bytes.get(*target) != Bytes::Whole(index) {
                return deny("a slot is activated that does not hold the release");
            }
            if world.process.as_ref().and_then(|process| process.taken) != Some((*target, release.digest)) {
                return deny("a slot is activated without evidence");
            }
            if world.ledger.quarantined.contains(&release.digest) {
                return deny("a quarantined release is activated");
            }
            if world.ledger.banned.contains(&index) {
                return deny("a release is activated again that failed here");
            }
            intended(world, &record, *target)
        }
        Operation::Revert { target, .. } => {
            let is = world.table.get(*target);
            if !is.bootable() || !is.successful() || record.condemned(*target) {
                return deny("a rollback to a slot that was not good");
            }
            intended(world, &record, *target)
        }
        Operation::Deactivate { target } | Operation::Restore { target } => {
            let undoing = |intent: &machine::Intent| intent.flip == Flip::Undoing && intent.target == *target;
            if record.intent.as_ref().is_some_and(undoing) {
                Ok(())
            } else {
                deny(
                    "a flip is undone without that being on record: a reboot now would count as a failed boot",
                )
            }
        }
        Operation::Condemn { slot } => {
            if !record.condemned(*slot) {
                return deny("a slot is condemned before that is durable");
            }
            let failed = |index| world.ledger.failed.contains(&index);
            if !matches!(*world.bytes.get(*slot), Bytes::Whole(index) if failed(index)) {
                return deny("a slot is condemned whose release never failed");
            }
            let other = *world.table.get(slot.other());
            if other.bootable() { Ok(()) } else { deny("the last bootable slot is condemned") }
        }
        Operation::MarkGood { slot } => {
            let Bytes::Whole(index) = *world.bytes.get(*slot) else {
                return deny("a broken slot is confirmed");
            };
            let proven = world.ledger.proven.contains(&index) || world.ledger.forced.contains(&index);
            if proven { Ok(()) } else { deny("a release is confirmed that was not found healthy") }
        }
        _ => Ok(()),
    }
}

/// A flip is on record before it is made.
fn intended(world: &World, record: &Record, target: Slot) -> Outcome {
    let on_record = record
        .intent
        .as_ref()
        .is_some_and(|intent| intent.target == target && intent.flip == Flip::Activating);
    if !on_record {
        return deny("a flip is made without its intent on record");
    }
    if !world.table.get(world.booted).successful() {
        return deny("a flip is made though there is nothing to fall back to");
    }
    Ok(())
}

/// Before a slot's bytes change.
pub fn write(world: &mut World, index: usize, target: Slot) -> Outcome {
    let is = *world.table.get(target);
    if target == world.booted {
        return deny("the running slot is written");
    }
    if is != is.invalidated() {
        return deny("a slot is written that was not invalidated");
    }
    if world.process.as_ref().and_then(|process| process.invalidated) != Some(target) {
        return deny("a slot is written that this process did not invalidate");
    }
    let begun = world.ledger.begun.entry(index).or_default();
    *begun += 1;
    world.ledger.last_begun = Some(index);
    let bound = world.policy.attempts_max + world.policy.interruptions_max;
    if *begun > bound { deny(format!("release {index} is tried for the {begun}th time")) } else { Ok(()) }
}

/// Before a record becomes durable.
pub fn saved(world: &mut World, record: &Record) -> Outcome {
    let newest = record.newest_confirmed.clone();
    if let Some(before) = &world.ledger.newest_confirmed
        && newest.as_ref().is_none_or(|newest| newest.is_older_than(before))
    {
        return deny("the newest confirmed version went down");
    }
    world.ledger.newest_confirmed = newest;
    if let Some(intent) = &record.intent
        && let Purpose::Rollback { from } = &intent.purpose
    {
        world.ledger.failed.extend(from.digest.map(|digest| world.server.of_digest(&digest)));
    }
    for entry in &record.quarantine {
        let index = world.server.of_digest(&entry.release);
        if !world.ledger.failed.contains(&index) {
            return deny(format!("release {index} is quarantined and never failed: {}", entry.reason));
        }
    }
    let now: std::collections::BTreeSet<_> = record.quarantine.iter().map(|entry| entry.release).collect();
    if !world.ledger.quarantined.is_subset(&now) {
        return deny("a quarantine is forgotten that nobody cleared");
    }
    world.ledger.quarantined = now;
    if record.events.len() > world.policy.events_max {
        return deny("more events are kept than the bound allows");
    }
    owed(world, record)?;
    evidence(world, record)
}

/// The post-confirm hooks are owed from the confirmation on, until they ran or were cut off too often.
fn owed(world: &mut World, record: &Record) -> Outcome {
    let owed = record.post_confirm.as_ref();
    let confirmations: Vec<_> =
        record.events.iter().filter(|event| event.kind == wire::EventKind::Confirmed).collect();
    if let Some(newest) = confirmations.last()
        && world.ledger.confirmed.insert(newest.seq)
    {
        (world.ledger.post_confirms, world.ledger.deaths) = (0, 0);
        if owed.map(|owed| Some(&owed.version)) != Some(newest.version.as_ref()) {
            return deny("a confirmation is recorded and its hooks are not owed");
        }
        return Ok(());
    }
    let before = world.record().post_confirm;
    let ran = world.ledger.post_confirms > 0 || world.ledger.deaths >= world.policy.post_confirm_max;
    if before.is_some() && owed.is_none() && !ran {
        return deny("the post-confirm hooks are forgotten before they ran");
    }
    Ok(())
}

/// Failures come with what was seen of them, and keep it until they were sent or too many came after them.
fn evidence(world: &mut World, record: &Record) -> Outcome {
    let kept = world.policy.evidence_kept;
    let newest = record.events.iter().collect::<Vec<_>>();
    let newer = |seq| newest.iter().filter(|event| event.seq > seq && !event.evidence.is_empty()).count();
    for event in &newest {
        let back = event.kind == wire::EventKind::RolledBack;
        let says = |text| event.detail.contains(text);
        let seen = back && (says("did not boot") || says("service does not answer"));
        let expected = seen || world.ledger.evidence.contains_key(&event.seq);
        if expected && event.evidence.is_empty() && newer(event.seq) < kept {
            return deny(format!("event {} has no evidence: {}", event.seq, event.detail));
        }
        if !event.evidence.is_empty() {
            let known = world.ledger.evidence.entry(event.seq).or_insert_with(|| event.evidence.clone());
            if *known != event.evidence {
                return deny(format!("the evidence of event {} changed", event.seq));
            }
        }
    }
    if newest.iter().filter(|event| !event.evidence.is_empty()).count() > kept {
        return deny("more evidence is kept than the bound allows");
    }
    Ok(())
}

/// Events are durable before they are sent: an engine that is killed must not give their numbers to others.
pub fn report(world: &World, events: &[wire::Event]) -> Outcome {
    let record = world.record();
    for event in events {
        if !record.events.iter().any(|known| known == event) {
            return deny(format!("event {} is sent and not on record", event.seq));
        }
    }
    if events.is_sorted_by_key(|event| event.seq) { Ok(()) } else { deny("events are sent out of order") }
}

/// The server stores each number once.
pub fn store(world: &mut World, events: Vec<wire::Event>) -> Outcome {
    for event in events {
        let known = world.ledger.stored.entry(event.seq).or_insert_with(|| event.clone());
        // Between two reports its evidence may have made room for newer one.
        let bare = |event: &wire::Event| wire::Event { evidence: String::new(), ..event.clone() };
        if bare(known) != bare(&event) {
            return deny(format!("two events have the number {}: {known:?} and {event:?}", event.seq));
        }
    }
    Ok(())
}

/// A person's request changes what is allowed.
pub fn operator(world: &mut World, command: Command) {
    match command {
        Command::Update { force_retry: true } => world.ledger.begun.clear(),
        Command::QuarantineClear(which) => {
            let cleared = |index: usize, world: &World| match which {
                Clear::All => true,
                Clear::Release(digest) => world.server.release(index).digest == digest,
            };
            let banned = std::mem::take(&mut world.ledger.banned);
            world.ledger.banned = banned.into_iter().filter(|index| !cleared(*index, world)).collect();
            let begun = std::mem::take(&mut world.ledger.begun);
            world.ledger.begun = begun.into_iter().filter(|(index, _)| !cleared(*index, world)).collect();
            world.ledger.quarantined.retain(|digest| match which {
                Clear::All => false,
                Clear::Release(wanted) => *digest != wanted,
            });
        }
        Command::MarkGood => {
            let index = world.running();
            world.ledger.forced.insert(index);
        }
        Command::Reboot => world.ledger.reboot_asked = true,
        Command::Cancel => world.ledger.excuse(),
        // Where the running release is being judged, this is its failure.
        Command::Rollback if !world.table.get(world.booted).successful() => {
            let index = world.running();
            world.ledger.failed.insert(index);
            world.ledger.banned.insert(index);
        }
        _ => {}
    }
}

/// The exit code of a pass says whether it changed anything.
pub fn finished(world: &World, exit: Exit) -> Outcome {
    let before = world.process.as_ref().map(|process| process.table);
    let changed = before != Some(world.table);
    match exit {
        Exit::NothingToDo if changed => deny("a pass that changed the table says there was nothing to do"),
        Exit::Usage => deny("a pass says it was asked for wrongly"),
        _ if world.mode == machine::Mode::Daemon => deny("a daemon ends"),
        _ => Ok(()),
    }
}

/// Whether the node has done with a release that is no good: it never boots again, and the server knows.
pub fn done_with(world: &World, index: usize) -> bool {
    let record = world.record();
    let release = world.server.release(index);
    let at_rest =
        world.running() != index && world.table.get(world.booted).successful() && record.intent.is_none();
    let gone = Slot::ALL
        .into_iter()
        .all(|slot| *world.bytes.get(slot) != Bytes::Whole(index) || !world.table.get(slot).bootable());
    let told = |kind| {
        world.ledger.stored.values().any(|event| event.kind == kind && event.release == Some(release.digest))
    };
    at_rest
        && gone
        && world.lock_is_told()
        && match world.server.quality(index) {
            Quality::Good => false,
            Quality::Hangs | Quality::Unloadable | Quality::Sick => {
                record.quarantined(&release.digest).is_some() && told(wire::EventKind::RolledBack)
            }
            Quality::Corrupt | Quality::Miswritten => {
                let failed = record.attempt(&release.digest).map_or(0, |attempt| attempt.failed);
                failed == world.policy.attempts_max
                    && told(wire::EventKind::Failed)
                    && told(wire::EventKind::Refused)
            }
        }
}

/// Whether the node is where it should be: on this release, confirmed, with nothing left to do.
pub fn confirmed_on(world: &World, index: usize) -> bool {
    let record = world.record();
    world.running() == index
        && world.table.get(world.booted).successful()
        && record.intent.is_none()
        && record.newest_confirmed.as_ref() == Some(&world.server.release(index).version)
        && world.server.quality(index) == Quality::Good
        && record.post_confirm.is_none()
        && record.permit.is_none()
        && world.lock_is_told()
        && world.ledger.post_confirmed.contains(&world.server.release(index).version)
}
