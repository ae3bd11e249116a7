//! One short story per rule, in the words of `docs/machine.md`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use machine::{Clear, Command, Effect, FailureKind, Flip, Mode, Operation, Policy, Strategy, Waiting};
use protocol::slot::Slot;
use protocol::status::{Exit, StateName};
use protocol::window::Window;
use protocol::wire::EventKind;
use world::server::Quality;
use world::story::{daemon, events, offered, reply, rest, state, until};
use world::{Action, End, Mutation, World, check};

use Quality::{Corrupt, Good, Hangs, Sick, Unloadable};

/// Saving again at once would fail again, and the engine would do nothing else for ever.
#[test]
fn a_record_that_cannot_be_saved_is_not_saved_again_at_once() {
    for mode in [Mode::Once, Mode::Daemon] {
        let mut world = offered(Strategy::Off, mode, &[Good]);
        until(&mut world, |operation| matches!(operation, Operation::Check { .. }));
        let mut state = world.state().unwrap().clone();
        let mut now = jiff::Timestamp::from_second(2_000_000_000).unwrap();
        let mut waits = Vec::new();
        for _ in 0..3 {
            let failed = machine::Event::SaveFailed("the disk is full".to_owned());
            let (next, effects) = machine::step(state, failed, now);
            state = next;
            assert!(!effects.iter().any(|effect| matches!(effect, Effect::Save(_))), "{effects:?}");
            if state.operation().is_some() {
                // The check under way ends; its outcome cannot be saved either.
                let failure = machine::Failure::new(FailureKind::Network, "no answer");
                let (next, effects) = machine::step(state, machine::Event::Checked(Err(failure)), now);
                assert!(matches!(effects.first(), Some(Effect::Save(_))), "{effects:?}");
                state = next;
                continue;
            }
            if mode == Mode::Once {
                assert!(effects.contains(&Effect::Finish(Exit::Failed)), "{effects:?}");
                break;
            }
            let wake = state.wake_at().unwrap();
            waits.push(wake.duration_since(now).as_secs());
            assert!(wake > now);
            now = wake;
            let (next, effects) = machine::step(state, machine::Event::Tick, now);
            assert!(matches!(effects.first(), Some(Effect::Save(_))), "it tries again: {effects:?}");
            state = next;
        }
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "it waits longer each time: {waits:?}");
        assert_eq!(waits.is_empty(), mode == Mode::Once);
    }
}

/// Whoever asks is told that the request is declined when it cannot be saved: then it does not happen later either.
#[test]
fn a_request_that_could_not_be_saved_is_not_done_later() {
    let unsaved = |world: &World, command: Command| {
        let now = world.now;
        let (state, _) =
            machine::step(world.state().unwrap().clone(), machine::Event::Operator(command), now);
        let failed = machine::Event::SaveFailed("the disk is full".to_owned());
        let (mut state, _) = machine::step(state, failed, now);
        let mut now = now;
        let mut ran = Vec::new();
        for _ in 0..10 {
            now = state.wake_at().unwrap_or(now).max(now);
            let (next, effects) = machine::step(state, machine::Event::Tick, now);
            state = next;
            let Some(operation) = effects.into_iter().find_map(|effect| match effect {
                Effect::Run(operation) => Some(operation),
                _ => None,
            }) else {
                continue;
            };
            ran.push(format!("{operation:?}"));
            if matches!(operation, Operation::Probe) {
                let facts = world.state().unwrap().facts().unwrap().clone();
                let (next, _) = machine::step(state, machine::Event::Probed(Ok(facts)), now);
                state = next;
            }
        }
        (state, ran)
    };
    let mut world = daemon(Strategy::Off, &[Good]);
    rest_after_activation(&mut world);
    let (_, ran) = unsaved(&world, Command::Reboot);
    assert!(ran.contains(&"Probe".to_owned()), "it goes on: {ran:?}");
    assert!(!ran.iter().any(|operation| operation.contains("Reboot")), "{ran:?}");

    let mut world = daemon(Strategy::Immediate, &[Hangs]);
    world.settle(|world| check::done_with(world, 1)).unwrap();
    let before = world.record();
    assert_eq!(before.quarantine.len(), 1);
    let (state, _) = unsaved(&world, Command::QuarantineClear(machine::Clear::All));
    assert_eq!(state.record().quarantine, before.quarantine);
    assert_eq!(state.record().rolled_back, before.rolled_back);
}

#[test]
fn one_pass_stages_and_activates_the_next_confirms_the_third_has_nothing_to_do() {
    let mut world = offered(Strategy::Off, Mode::Once, &[Good]);
    world.reboot_allowed = false;
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Done));
    assert!(world.table.b.bootable() && !world.table.b.successful());
    world.start().unwrap();
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::NothingToDo), "it waits for the reboot");
    world.boot().unwrap();
    assert_eq!(world.booted, Slot::B);
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Done));
    assert!(check::confirmed_on(&world, 1));
    world.start().unwrap();
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::NothingToDo));
}

#[test]
fn one_pass_ends_as_failed_deferred_or_refused() {
    let mut world = offered(Strategy::Off, Mode::Once, &[Corrupt]);
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Failed));
    world.server.hold = true;
    world.start().unwrap();
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Deferred));
    world.server.hold = false;
    world.server.online = false;
    world.start().unwrap();
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Failed));
    world.server.online = true;
    for _ in 0..world.policy.attempts_max {
        world.start().unwrap();
        rest(&mut world);
    }
    assert_eq!(world.exit, Some(Exit::Refused), "its attempts are used up");
}

#[test]
fn a_release_that_hangs_is_quarantined_before_its_slot_is_zeroed_and_refused_after() {
    for quality in [Hangs, Unloadable] {
        let mut world = offered(Strategy::Immediate, Mode::Once, &[quality]);
        until(&mut world, |operation| matches!(operation, Operation::Reboot));
        world.finish(End::Well).unwrap();
        assert_eq!((world.booted, world.operation()), (Slot::A, Some(Operation::Condemn { slot: Slot::B })));
        let digest = world.server.release(1).digest;
        assert!(world.record().quarantined(&digest).is_some());
        // Cut off between the two, it is finished at the next start.
        world.start().unwrap();
        assert_eq!(world.operation(), Some(Operation::Condemn { slot: Slot::B }));
        world.boot().unwrap();
        rest(&mut world);
        assert_eq!(world.table.b, world.table.b.invalidated());
        world.start().unwrap();
        rest(&mut world);
        assert_eq!(world.exit, Some(Exit::Refused));
        assert_eq!(world.record().rolled_back.unwrap().digest, Some(digest));
    }
}

#[test]
fn a_release_that_is_sick_is_left_for_the_fallback_and_the_pass_fails() {
    let mut world = offered(Strategy::Off, Mode::Once, &[Sick]);
    world.reboot_allowed = false;
    rest(&mut world);
    world.boot().unwrap();
    assert_eq!(world.booted, Slot::B);
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Failed));
    assert_eq!(world.table.b, world.table.b.invalidated());
    world.boot().unwrap();
    assert_eq!(world.booted, Slot::A);
    rest(&mut world);
    let told: Vec<_> = world.ledger.stored.values().map(|event| event.kind).collect();
    assert_eq!(told.iter().filter(|kind| **kind == EventKind::RolledBack).count(), 1, "{told:?}");
}

#[test]
fn a_crash_before_the_flip_is_not_a_failed_boot_and_one_after_it_is_seen() {
    let activates = |operation: &Operation| matches!(operation, Operation::Activate { .. });
    let mut world = daemon(Strategy::Off, &[Good]);
    until(&mut world, activates);
    assert_eq!(world.record().intent.unwrap().flip, Flip::Activating);
    world.finish(End::PowerCut).unwrap();
    assert_eq!((world.booted, world.record().intent), (Slot::A, None));
    assert!(world.record().quarantine.is_empty());
    until(&mut world, activates);
    world.finish(End::DoneButKilled).unwrap();
    assert_eq!(world.record().intent.unwrap().flip, Flip::Activated, "the same boot: it waits for the next");
    world.boot().unwrap();
    rest(&mut world);
    assert!(check::confirmed_on(&world, 1));
}

#[test]
fn staged_and_killed_the_slot_is_not_trusted_but_installed_again() {
    let mut world = daemon(Strategy::Off, &[Good]);
    until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
    world.finish(End::Killed).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::ReadBack { .. }));
    let attempt = world.record().attempt(&world.server.release(1).digest).cloned().unwrap();
    assert_eq!((attempt.failed, attempt.interrupted), (0, 0), "being staged ended the first attempt");
}

#[test]
fn a_newer_release_takes_the_place_of_one_that_waits_for_its_boot() {
    let mut world = daemon(Strategy::Off, &[Good, Good]);
    rest_after_activation(&mut world);
    world.server.channel = Some(2);
    world.server.lists_older = true;
    world.act(&Action::Operator(Command::Check)).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::Preflight { .. }));
    assert!(world.record().intent.is_some(), "kept until it is known that the newer one can be installed");
    until(&mut world, |operation| matches!(operation, Operation::Deactivate { .. }));
    assert_eq!(world.record().intent.unwrap().flip, Flip::Undoing);
    world.finish(End::Well).unwrap();
    assert_eq!(world.record().intent, None);
    until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
    assert_eq!(world.record().intent.unwrap().content.digest, Some(world.server.release(2).digest));
}

fn rest_after_activation(world: &mut World) {
    until(world, |operation| matches!(operation, Operation::Activate { .. }));
    world.finish(End::Well).unwrap();
    assert_eq!(world.record().intent.unwrap().flip, Flip::Activated);
}

#[test]
fn a_withdrawn_release_is_not_booted_and_an_unreachable_server_withdraws_nothing() {
    let mut world = daemon(Strategy::Off, &[Good]);
    rest_after_activation(&mut world);
    world.server.online = false;
    world.act(&Action::Operator(Command::Check)).unwrap();
    rest(&mut world);
    assert!(world.record().intent.is_some());
    world.server.online = true;
    world.server.channel = None;
    world.act(&Action::Operator(Command::Check)).unwrap();
    rest(&mut world);
    assert_eq!(world.record().intent, None);
    assert_eq!(world.table.b, world.table.b.invalidated());
    world.boot().unwrap();
    assert_eq!(world.booted, Slot::A);
    assert!(world.record().quarantine.is_empty(), "withdrawn is not failed");
}

/// A node with an update that waits for a window, from two in the morning on; it is a little past midnight.
fn waits_for_window() -> World {
    let world = daemon(Strategy::Window, &[Good]);
    let windows =
        vec![Window { days: Vec::new(), start: jiff::civil::time(2, 0, 0, 0), length_s: 22 * 3_600 }];
    let policy = Policy { windows, ..world.policy.clone() };
    let mut world = world.with_policy(policy);
    rest_after_activation(&mut world);
    world
}

/// A poll at which the server holds the node, or does not.
fn poll(world: &mut World, holds: bool) {
    world.act(&Action::ServerHolds(holds)).unwrap();
    until(world, |operation| matches!(operation, Operation::Check { .. }));
    world.finish(End::Well).unwrap();
}

#[test]
fn what_a_halted_rollout_holds_is_not_booted_until_it_goes_on_and_a_restart_forgets_nothing() {
    let mut world = waits_for_window();
    poll(&mut world, true);
    world.pass(3 * 3_600).unwrap();
    let held = "not this node's turn";
    assert_eq!(world.state().unwrap().waiting(), Some(&Waiting::Rollout(held.to_owned())));
    assert!(world.record().intent.is_some(), "a pause ends: it is not undone");
    world.server.online = false;
    world.start().unwrap();
    for _ in 0..3 {
        until(&mut world, |operation| matches!(operation, Operation::Check { .. }));
        world.finish(End::Well).unwrap();
        assert_eq!(world.state().unwrap().waiting(), Some(&Waiting::Rollout(held.to_owned())));
    }
    world.server.online = true;
    poll(&mut world, false);
    until(&mut world, |operation| matches!(operation, Operation::Reboot));
    assert_eq!(world.record().held, None);
    world.finish(End::Well).unwrap();
    assert_eq!(world.booted, Slot::B);
}

#[test]
fn what_is_held_is_said_where_nobody_here_reboots() {
    let mut world = daemon(Strategy::Off, &[Good]);
    world.reboot_allowed = false;
    world.start().unwrap();
    rest_after_activation(&mut world);
    poll(&mut world, true);
    assert_eq!(world.state().unwrap().waiting(), Some(&Waiting::Rollout("not this node's turn".to_owned())));
    poll(&mut world, false);
    assert_eq!(world.state().unwrap().waiting(), None);
}

/// "Nothing" may mean that the release has become a dead end since.
#[test]
fn only_an_offer_of_it_lets_go_what_is_held() {
    let mut world = waits_for_window();
    world.server.lists_older = true;
    poll(&mut world, true);
    let held = |world: &World| world.record().held.map(|held| held.reason);
    let channel = world.server.channel.take();
    let nothing = machine::Checked {
        answer: machine::Answer::Nothing("a dead end".to_owned()),
        withdrawn: false,
        retry_after_s: None,
    };
    world.act(&Action::Operator(Command::Check)).unwrap();
    world.deliver(machine::Event::Checked(Ok(nothing))).unwrap();
    assert_eq!(held(&world).as_deref(), Some("not this node's turn"));
    world.pass(3 * 3_600).unwrap();
    assert!(matches!(world.state().unwrap().waiting(), Some(Waiting::Rollout(_))));
    // Another release takes its place, and is not held for its sake.
    world.server.channel = channel;
    let next = world.server.publish(Good);
    world.server.channel = Some(next);
    poll(&mut world, false);
    until(&mut world, |operation| matches!(operation, Operation::Reboot));
    world.finish(End::Well).unwrap();
    assert_eq!(world.running(), next);
}

/// A test of the test: the invariants notice a reboot into what was held, where the hold is not kept.
#[test]
fn a_hold_that_is_lost_is_noticed() {
    let mut world = waits_for_window();
    world.mutation = Some(Mutation::HeldLost);
    poll(&mut world, true);
    world.start().unwrap();
    let found = world
        .pass(3 * 3_600)
        .and_then(|()| (0..5).try_for_each(|_| world.finish(End::Well).and_then(|()| world.pass(1))));
    assert_eq!(found, Err(world::Violation("an update goes on that the server holds".to_owned())));
}

#[test]
fn a_person_reboots_into_what_the_server_holds_all_the_same() {
    let mut world = waits_for_window();
    poll(&mut world, true);
    assert!(reply(&mut world, Command::Reboot).contains("outcome: Done"));
    until(&mut world, |operation| matches!(operation, Operation::Reboot));
}

#[test]
fn cancel_undoes_the_flip_and_a_reboot_in_the_middle_condemns_nothing() {
    let mut world = daemon(Strategy::Off, &[Good]);
    rest_after_activation(&mut world);
    assert!(reply(&mut world, Command::Cancel).contains("outcome: Done"));
    assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }));
    world.finish(End::DoneButPowerCut).unwrap();
    assert_eq!((world.booted, world.record().intent), (Slot::A, None));
    assert!(world.record().quarantine.is_empty());
    assert!(reply(&mut world, Command::Cancel).contains("outcome: NothingToDo"));
}

#[test]
fn cancel_stops_an_installation_and_costs_no_attempt() {
    let mut world = daemon(Strategy::Off, &[Good]);
    until(&mut world, |operation| matches!(operation, Operation::Install { .. }));
    reply(&mut world, Command::Cancel);
    assert!(world.log.iter().any(|line| line.contains("Abort")));
    world.finish(End::Fails(FailureKind::Cancelled)).unwrap();
    assert_eq!(world.operation(), None);
    let attempt = world.record().attempt(&world.server.release(1).digest).cloned().unwrap();
    assert_eq!((attempt.open, attempt.failed, attempt.interrupted), (false, 0, 0));
}

#[test]
fn rollback_goes_back_is_judged_and_quarantines_what_it_left() {
    let mut world = daemon(Strategy::Immediate, &[Good]);
    world.settle(|world| check::confirmed_on(world, 1)).unwrap();
    assert!(reply(&mut world, Command::Rollback).contains("outcome: Done"));
    world.settle(|world| world.running() == 0 && world.record().intent.is_none()).unwrap();
    let release = world.server.release(1).clone();
    assert!(world.record().quarantined(&release.digest).is_some());
    assert_eq!(world.record().newest_confirmed, Some(release.version), "a rollback is not a downgrade");
    rest(&mut world);
    assert!(!world.table.b.bootable());
}

#[test]
fn rollback_can_be_cancelled_and_leaves_the_fallback_as_it_was() {
    let mut world = daemon(Strategy::Off, &[Good]);
    world.settle(|world| check::confirmed_on(world, 1)).unwrap();
    rest(&mut world);
    reply(&mut world, Command::Rollback);
    world.finish(End::Well).unwrap();
    assert_eq!(world.record().intent.unwrap().flip, Flip::Activated);
    reply(&mut world, Command::Cancel);
    rest(&mut world);
    assert!(world.table.a.bootable() && world.table.a.successful());
    world.boot().unwrap();
    assert_eq!(world.running(), 1);
}

#[test]
fn rollback_needs_something_to_go_back_to() {
    let mut world = daemon(Strategy::Off, &[Good]);
    assert!(reply(&mut world, Command::Rollback).contains("outcome: Declined"));
}

#[test]
fn an_unconfirmed_release_is_judged_before_anything_else_and_its_fallback_kept() {
    let mut world = daemon(Strategy::Off, &[Good, Good]);
    rest_after_activation(&mut world);
    world.boot().unwrap();
    world.server.channel = Some(2);
    assert!(reply(&mut world, Command::Check).contains("once the running release is confirmed"));
    assert!(matches!(world.operation(), Some(Operation::RunHealth { .. })));
    assert!(world.table.a.bootable());
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), Some(Operation::MarkGood { slot: Slot::B }));
    world.finish(End::DoneButKilled).unwrap();
    world.finish(End::Well).unwrap();
    assert!(check::confirmed_on(&world, 1), "marked good and cut off: the next start records it");
}

#[test]
fn without_a_fallback_an_unconfirmed_release_keeps_running_and_is_judged_again() {
    let mut world = daemon(Strategy::Off, &[Sick]);
    // As an installer may leave it: one slot, bootable, never confirmed.
    world.table.a = world.table.a.with_successful(false).with_tries_left(3);
    world.ledger.forced.clear();
    let first_check = || machine::Health::Failed(machine::Evidence::summary("not yet"));
    let record = machine::Record::default();
    let state = machine::State::new(world.policy.clone(), record);
    let facts = machine::Facts {
        boot_id: "00000000-0000-4000-8000-000000000001".parse().unwrap(),
        slot: Slot::A,
        version: "1.0.0".parse().unwrap(),
        attributes: world.table,
        reboot_allowed: true,
    };
    let start = machine::Start { facts, mode: Mode::Daemon, seed: 1, previous: String::new() };
    let (state, _) = machine::step(state, machine::Event::Start(start), world.now);
    let (state, effects) = machine::step(state, machine::Event::HealthJudged(first_check()), world.now);
    assert!(!state.record().condemned(Slot::A) && state.record().rolled_back.is_none(), "{effects:?}");
    let again = state.wake_at().unwrap();
    let (state, effects) = machine::step(state, machine::Event::Tick, again);
    assert!(matches!(effects.last(), Some(machine::Effect::Run(Operation::RunHealth { .. }))), "{effects:?}");
    let (state, _) = machine::step(state, machine::Event::HealthJudged(machine::Health::Passed), again);
    assert_eq!(state.operation(), Some(&Operation::MarkGood { slot: Slot::A }));
}

#[test]
fn network_failures_cost_no_attempt_and_are_retried_ever_more_slowly() {
    let mut world = daemon(Strategy::Off, &[Good]);
    let mut waits = Vec::new();
    for _ in 0..12 {
        until(&mut world, |operation| matches!(operation, Operation::Install { .. }));
        world.finish(End::Fails(FailureKind::Network)).unwrap();
        let wake = world.state().unwrap().wake_at().unwrap();
        waits.push(wake.duration_since(world.now).as_secs());
        world.pass(waits.last().copied().unwrap().try_into().unwrap()).unwrap();
    }
    assert!(waits[0] <= 75 && waits[4] > 300 && waits[11] > 10_000, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= i64::from(world.policy.backoff_max_s)), "{waits:?}");
    let attempt = world.record().attempt(&world.server.release(1).digest).cloned().unwrap();
    assert_eq!((attempt.failed, attempt.interrupted), (0, 0));
}

#[test]
fn a_quarantine_is_lifted_by_a_person_only() {
    let mut world = daemon(Strategy::Immediate, &[Hangs]);
    world.settle(|world| check::done_with(world, 1)).unwrap();
    let digest = world.server.release(1).digest;
    assert!(reply(&mut world, Command::Update { force_retry: true }).contains("outcome: Done"));
    rest(&mut world);
    assert!(world.record().quarantined(&digest).is_some());
    assert!(reply(&mut world, Command::QuarantineClear(Clear::Release(digest))).contains("1 cleared"));
    reply(&mut world, Command::Check);
    until(&mut world, |operation| matches!(operation, Operation::Preflight { .. }));
}

#[test]
fn a_refusal_is_reported_once() {
    let mut world = daemon(Strategy::Immediate, &[Hangs]);
    world.settle(|world| check::done_with(world, 1)).unwrap();
    for _ in 0..5 {
        reply(&mut world, Command::Check);
        rest(&mut world);
    }
    assert!(events(&world).iter().filter(|kind| **kind == EventKind::Refused).count() <= 1);
}

#[test]
fn off_never_reboots_and_a_window_waits_for_its_hour() {
    let mut world = daemon(Strategy::Off, &[Good]);
    rest_after_activation(&mut world);
    assert_eq!((world.operation(), state(&world)), (None, StateName::Staged));
    let mut world = daemon(Strategy::Window, &[Good]);
    rest_after_activation(&mut world);
    assert_eq!(state(&world), StateName::Waiting);
    assert!(matches!(world.state().unwrap().waiting(), Some(Waiting::Window(_))));
}

#[test]
fn a_flip_that_was_to_be_undone_and_spent_its_tries_has_failed() {
    let mut world = daemon(Strategy::Off, &[Hangs]);
    rest_after_activation(&mut world);
    reply(&mut world, Command::Cancel);
    world.act(&Action::PowerCut).unwrap();
    assert_eq!(world.booted, Slot::A);
    assert!(world.record().quarantined(&world.server.release(1).digest).is_some());
}

#[test]
fn a_rollback_cut_off_before_its_flip_condemns_nothing() {
    let mut world = daemon(Strategy::Off, &[Good]);
    world.settle(|world| check::confirmed_on(world, 1)).unwrap();
    rest(&mut world);
    reply(&mut world, Command::Rollback);
    assert!(matches!(world.operation(), Some(Operation::Revert { .. })));
    world.finish(End::PowerCut).unwrap();
    assert_eq!((world.running(), world.record().intent.clone()), (1, None));
    assert!(world.table.a.bootable() && !world.record().condemned(Slot::A));
}

#[test]
fn an_installation_that_is_cut_off_too_often_is_refused_until_a_person_says_so() {
    let mut world = offered(Strategy::Off, Mode::Once, &[Good]);
    for _ in 0..world.policy.interruptions_max {
        until(&mut world, |operation| matches!(operation, Operation::Install { .. }));
        assert_eq!(world.record().slots.b, None);
        world.finish(End::Killed).unwrap();
    }
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Refused));
    world.start().unwrap();
    reply(&mut world, Command::Update { force_retry: true });
    until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
}

#[test]
fn marked_good_by_a_person_the_checks_that_still_run_do_not_count() {
    let mut world = daemon(Strategy::Off, &[Sick]);
    rest_after_activation(&mut world);
    world.boot().unwrap();
    assert!(reply(&mut world, Command::MarkGood).contains("outcome: Done"));
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), Some(Operation::MarkGood { slot: Slot::B }));
    rest(&mut world);
    assert!(world.table.b.successful() && world.record().quarantine.is_empty());
}

#[test]
fn cancelled_while_it_is_read_back_no_evidence_is_kept_and_while_it_is_activated_it_is_undone() {
    let mut world = daemon(Strategy::Off, &[Good]);
    until(&mut world, |operation| matches!(operation, Operation::ReadBack { .. }));
    reply(&mut world, Command::Cancel);
    world.finish(End::Well).unwrap();
    assert_eq!((world.evidence(), world.operation()), (None, None));
    for end in [End::Well, End::DoneButFails] {
        reply(&mut world, Command::Check);
        until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
        reply(&mut world, Command::Cancel);
        world.finish(end).unwrap();
        until(&mut world, |operation| matches!(operation, Operation::Deactivate { .. }));
        world.finish(End::Well).unwrap();
        assert_eq!(world.record().intent, None);
        rest(&mut world);
    }
}

#[test]
fn a_change_of_the_table_that_is_not_to_be_seen_there_did_not_happen() {
    let mut world = daemon(Strategy::Off, &[Good]);
    rest_after_activation(&mut world);
    world.boot().unwrap();
    until(&mut world, |operation| matches!(operation, Operation::MarkGood { .. }));
    world.deliver(machine::Event::TableChanged(Ok(world.table))).unwrap();
    assert_eq!(world.record().newest_confirmed, Some(world.server.release(0).version.clone()));
    until(&mut world, |operation| matches!(operation, Operation::Probe));
    rest(&mut world);
    assert!(check::confirmed_on(&world, 1));
}

#[test]
fn a_pass_that_only_finishes_what_another_left_undone_changed_something() {
    let mut world = offered(Strategy::Immediate, Mode::Once, &[Hangs]);
    until(&mut world, |operation| matches!(operation, Operation::Reboot));
    world.finish(End::Well).unwrap();
    world.server.channel = None;
    world.start().unwrap();
    assert_eq!(world.operation(), Some(Operation::Condemn { slot: Slot::B }));
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Done));
    world.start().unwrap();
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::NothingToDo));
}

#[test]
fn a_clock_set_back_does_not_put_off_the_next_check() {
    let mut world = daemon(Strategy::Off, &[Good]);
    world.act(&Action::ClockJump(-20_000)).unwrap();
    assert!(matches!(world.operation(), Some(Operation::Check { .. })));
    world.server.channel = None;
    rest(&mut world);
    let wait = world.state().unwrap().wake_at().unwrap().duration_since(world.now).as_secs();
    assert!((0..=3_000).contains(&wait), "{wait}");
}

#[test]
fn while_the_facts_are_in_doubt_nothing_is_decided_on_request() {
    let mut world = daemon(Strategy::Off, &[Good]);
    rest_after_activation(&mut world);
    world.boot().unwrap();
    until(&mut world, |operation| matches!(operation, Operation::MarkGood { .. }));
    world.finish(End::DoneButFails).unwrap();
    assert_eq!(state(&world), StateName::Error);
    assert!(reply(&mut world, Command::Rollback).contains("outcome: Declined"));
    until(&mut world, |operation| matches!(operation, Operation::Probe));
    rest(&mut world);
    assert!(check::confirmed_on(&world, 1));
}

/// With nothing but a person's request to carry out, nothing is installed by the way: an offer waits for the engine.
#[test]
fn a_single_request_does_what_it_asks_for_and_nothing_else() {
    for (command, outcome) in [
        (Command::MarkGood, "outcome: NothingToDo"),
        (Command::Cancel, "outcome: NothingToDo"),
        (Command::Rollback, "outcome: Declined"),
        (Command::QuarantineClear(machine::Clear::All), "outcome: NothingToDo"),
    ] {
        let mut world = offered(Strategy::Off, Mode::Request, &[Good]);
        assert_eq!(world.operation(), None, "{command:?}: something runs before the request");
        assert!(world.state().unwrap().finished().is_none(), "{command:?}: it ended before the request");
        let said = reply(&mut world, command);
        assert!(said.contains(outcome), "{command:?}: {said}");
        assert_eq!(world.operation(), None, "{command:?}");
        assert_eq!(world.log.iter().filter(|line| line.contains("Run(")).count(), 0, "{:#?}", world.log);
    }
}

#[test]
fn a_single_request_to_update_updates() {
    let mut world = offered(Strategy::Off, Mode::Request, &[Good]);
    assert!(reply(&mut world, Command::Update { force_retry: false }).contains("outcome: Done"));
    assert!(matches!(world.operation(), Some(Operation::Check { .. })), "{:#?}", world.log);
    rest(&mut world);
    assert!(events(&world).contains(&EventKind::Activated), "{:#?}", world.log);
}
