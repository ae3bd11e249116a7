//! One short story per rule about the reboot lock: when it is asked, what it is told, and what becomes of a flip without a
//! permit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use machine::{
    Ask, Command, FailureKind, HoldKind, Mode, Operation, PermitStage, Policy, Record, Strategy, Waiting,
};
use protocol::lock::{Phase, Reply, Request};
use protocol::slot::Slot;
use protocol::status::{Exit, StateName};
use protocol::window::Window;
use world::server::Quality;
use world::story::{
    asks, daemon, offered, prepares, reboots, reply, rest, state, until, waits_for, way_to_reboot, word,
};
use world::{Action, End, World, check};

use Quality::{Good, Hangs, Sick};

fn stage(world: &World) -> Option<PermitStage> {
    world.record().permit.map(|permit| permit.stage)
}

fn phase(world: &World) -> Option<Phase> {
    world.lock.document.holders.first().map(|holder| holder.phase)
}

fn asking(world: &World) -> String {
    world.operation().map(|operation| word(&operation)).unwrap_or_default()
}

/// A node that is about to reboot into release 1, its grant verified and its slot switched.
fn verified(qualities: &[Quality]) -> World {
    let mut world = daemon(Strategy::Lock, qualities);
    until(&mut world, reboots);
    assert_eq!((stage(&world), phase(&world)), (Some(PermitStage::Held), Some(Phase::Rebooting)));
    world
}

#[test]
fn the_lock_is_asked_before_the_flip_and_says_why_not() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    world.act(&Action::Lock(false)).unwrap();
    until(&mut world, asks(&Ask::Request));
    world.finish(End::Well).unwrap();
    assert_eq!((world.operation(), state(&world)), (None, StateName::Waiting));
    assert_eq!(waits_for(&world), "permit: paused: the policy's max is 0");
    assert!(!world.table.b.bootable(), "a plain reboot now must not start it");
    assert_eq!(world.lock.document.queue.len(), 1);
    let attempt = world.record().permit.unwrap().attempt;
    world.act(&Action::Lock(true)).unwrap();
    world.pass(3_600).unwrap();
    until(&mut world, asks(&Ask::Verify));
    assert_eq!(world.record().permit.unwrap().attempt, attempt, "the attempt is the same all the time");
    assert_eq!(way_to_reboot(&mut world).join(" "), "Verify Activate Reboot");
}

#[test]
fn a_permit_that_was_taken_is_noticed_before_the_reboot_and_the_flip_undone() {
    let mut world = verified(&[Good]);
    world.finish(End::Fails(FailureKind::Node)).unwrap();
    world.act(&Action::PermitTaken).unwrap();
    world.pass(world.policy.reboot_retry_s).unwrap();
    until(&mut world, asks(&Ask::Verify));
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }));
    world.finish(End::Well).unwrap();
    assert_eq!(world.record().permit, None);
    // Another attempt, from the beginning.
    assert!(way_to_reboot(&mut world).join(" ").ends_with("Request PrepareReboot Verify Activate Reboot"));
}

#[test]
fn one_that_is_taken_while_the_node_is_made_ready_never_leads_to_a_flip() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, prepares);
    world.act(&Action::PermitTaken).unwrap();
    world.finish(End::Well).unwrap();
    assert_eq!(asking(&world), "Verify");
    world.finish(End::Well).unwrap();
    assert!(matches!(world.state().unwrap().waiting(), Some(Waiting::Permit(_))));
    assert_eq!((world.record().intent, world.record().permit), (None, None));
    assert!(waits_for(&world).contains("no permit is held for this attempt"), "{}", waits_for(&world));
}

#[test]
fn under_the_lock_a_halted_rollout_gives_the_permit_back_and_activates_nothing() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    world.act(&Action::Lock(false)).unwrap();
    until(&mut world, asks(&Ask::Request));
    world.finish(End::Well).unwrap();
    world.act(&Action::ServerHolds(true)).unwrap();
    world.act(&Action::Operator(Command::Check)).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::Check { .. }));
    world.act(&Action::Lock(true)).unwrap();
    world.finish(End::Well).unwrap();
    rest(&mut world);
    assert_eq!(waits_for(&world), "rollout: not this node's turn");
    assert_eq!((world.record().permit, world.is_holder()), (None, false));
    assert_eq!(world.lock.document.queue.len(), 0, "others go first meanwhile");
    assert!(!world.table.b.bootable());
    world.act(&Action::ServerHolds(false)).unwrap();
    world.act(&Action::Operator(Command::Check)).unwrap();
    assert!(way_to_reboot(&mut world).join(" ").ends_with("Request PrepareReboot Verify Activate Reboot"));
}

#[test]
fn what_stands_against_the_reboot_at_the_last_moment_keeps_the_permit_and_undoes_the_flip() {
    let mut world = verified(&[Good]);
    world.finish(End::Fails(FailureKind::Node)).unwrap();
    world.act(&Action::Lock(false)).unwrap();
    world.pass(world.policy.reboot_retry_s).unwrap();
    until(&mut world, asks(&Ask::Verify));
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }));
    assert!(world.is_holder());
}

#[test]
fn a_lock_that_is_silent_when_it_counts_allows_nothing() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, asks(&Ask::Verify));
    world.act(&Action::LockAnswers(false)).unwrap();
    for _ in 0..5 {
        world.finish(End::Well).unwrap();
        assert!(waits_for(&world).contains("the lock cannot be asked: no answer"), "{}", waits_for(&world));
        until(&mut world, asks(&Ask::Verify));
    }
    assert_eq!(world.record().intent, None);
    world.act(&Action::LockAnswers(true)).unwrap();
    assert_eq!(way_to_reboot(&mut world).join(" "), "Verify Activate Reboot");
}

#[test]
fn under_the_lock_a_restart_in_the_same_boot_undoes_the_flip_and_the_permit_goes_back_if_nothing_needs_it() {
    let mut world = verified(&[Good]);
    world.start().unwrap();
    assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }));
    world.server.channel = None;
    until(&mut world, asks(&Ask::Abandon));
    assert_eq!(stage(&world), Some(PermitStage::GivenUp));
    world.finish(End::Well).unwrap();
    assert_eq!((world.is_holder(), world.record().permit), (false, None));
}

#[test]
fn a_restart_keeps_the_place_in_the_queue_while_the_update_is_still_offered() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    world.act(&Action::Lock(false)).unwrap();
    until(&mut world, asks(&Ask::Request));
    world.finish(End::Well).unwrap();
    let attempt = world.record().permit.unwrap().attempt;
    world.start().unwrap();
    until(&mut world, asks(&Ask::Request));
    assert_eq!(world.record().permit.unwrap().attempt, attempt);
    assert!(!world.log.iter().any(|line| line.contains("Abandon")));
}

#[test]
fn under_the_lock_without_a_permit_a_pass_is_deferred() {
    let mut world = offered(Strategy::Lock, Mode::Once, &[Good]);
    world.act(&Action::Lock(false)).unwrap();
    rest(&mut world);
    assert_eq!(world.exit, Some(Exit::Deferred));
}

#[test]
fn the_permit_goes_back_after_a_confirmation_and_stays_after_a_failure() {
    for (quality, held) in [(Good, false), (Hangs, true), (Sick, true)] {
        let mut world = verified(&[quality]);
        world.finish(End::Well).unwrap();
        rest(&mut world);
        assert_eq!((world.record().permit.is_some(), world.is_holder()), (held, held), "{quality:?}");
        if held {
            assert_eq!((stage(&world), phase(&world)), (Some(PermitStage::Halting), Some(Phase::Failed)));
            assert!(world.lock.document.holders[0].reason.contains("1.1.0"), "{:?}", world.lock.document);
        }
    }
}

#[test]
fn the_lock_hears_of_the_boot_before_the_health_is_judged_and_does_not_keep_it_waiting() {
    let mut world = verified(&[Good]);
    world.finish(End::Well).unwrap();
    assert_eq!(asking(&world), "Booted");
    world.finish(End::Well).unwrap();
    assert_eq!((asking(&world).as_str(), phase(&world)), ("RunHealth", Some(Phase::Booted)));
    let mut world = verified(&[Good]);
    world.act(&Action::LockAnswers(false)).unwrap();
    world.finish(End::Well).unwrap();
    world.finish(End::Well).unwrap();
    assert_eq!(asking(&world), "RunHealth");
    rest(&mut world);
    assert!(world.table.b.successful());
    assert_eq!(stage(&world), Some(PermitStage::Confirmed), "it is told when the lock answers again");
    assert!(
        machine::status(world.state().unwrap(), &world::identity()).permit.unwrap().contains("no answer")
    );
    world.act(&Action::LockAnswers(true)).unwrap();
    until(&mut world, asks(&Ask::Confirm));
    world.finish(End::Well).unwrap();
    assert_eq!((world.is_holder(), world.record().permit), (false, None));
}

/// Post-confirm hooks put the node back to work; until then it is down for the others.
#[test]
fn the_permit_waits_for_the_post_confirm_hooks() {
    let mut world = verified(&[Good]);
    world.finish(End::Well).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::PostConfirm { .. }));
    world.finish(End::Killed).unwrap();
    assert!(matches!(world.operation(), Some(Operation::PostConfirm { .. })));
    assert!(world.is_holder());
    world.finish(End::Well).unwrap();
    assert_eq!(asking(&world), "Confirm");
    world.finish(End::Well).unwrap();
    assert!(!world.is_holder());
}

#[test]
fn another_release_takes_over_the_permit_of_the_one_that_failed_and_frees_it() {
    let mut world = verified(&[Hangs]);
    world.finish(End::Well).unwrap();
    rest(&mut world);
    assert_eq!(phase(&world), Some(Phase::Failed));
    let repaired = world.server.publish(Good);
    world.server.channel = Some(repaired);
    until(&mut world, reboots);
    assert_eq!(world.lock.document.holders.len(), 1);
    world.settle(|world| check::confirmed_on(world, repaired)).unwrap();
    assert!(!world.is_holder());
}

#[test]
fn a_node_that_went_down_by_itself_before_the_flip_gives_the_permit_back_and_begins_again() {
    for moment in [prepares as fn(&Operation) -> bool, |operation| word(operation) == "Activate"] {
        let mut world = daemon(Strategy::Lock, &[Good]);
        until(&mut world, moment);
        world.boot().unwrap();
        assert_eq!(world.booted, Slot::A);
        assert_eq!(asking(&world), "Abandon", "{:#?}", world.log);
        world.finish(End::Well).unwrap();
        assert!(!world.is_holder(), "nothing failed, so nothing halts");
        world.settle(|world| check::confirmed_on(world, 1)).unwrap();
    }
}

#[test]
fn cancel_and_withdrawal_give_the_permit_back_after_the_flip_is_undone() {
    for cancel in [true, false] {
        let mut world = verified(&[Good]);
        world.finish(End::Fails(FailureKind::Node)).unwrap();
        if cancel {
            reply(&mut world, Command::Cancel);
        } else {
            world.server.channel = None;
            reply(&mut world, Command::Check);
            until(&mut world, |operation| matches!(operation, Operation::Deactivate { .. }));
        }
        assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }), "{cancel}");
        world.finish(End::Well).unwrap();
        assert_eq!(asking(&world), "Abandon");
        world.finish(End::Well).unwrap();
        assert!(!world.is_holder());
    }
}

#[test]
fn a_request_that_is_cancelled_under_way_is_given_back_whatever_it_brought() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, asks(&Ask::Request));
    reply(&mut world, Command::Cancel);
    world.finish(End::Well).unwrap();
    assert!(world.is_holder(), "it was granted all the same");
    assert_eq!(asking(&world), "Abandon");
    world.finish(End::DoneButFails).unwrap();
    until(&mut world, asks(&Ask::Abandon));
    world.finish(End::Well).unwrap();
    assert_eq!((world.is_holder(), world.record().permit), (false, None));
}

#[test]
fn an_attempt_that_an_operator_ended_is_not_taken_up_again() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, asks(&Ask::Request));
    let attempt = world.record().permit.unwrap().attempt;
    world.finish(End::DoneButFails).unwrap();
    world.act(&Action::PermitTaken).unwrap();
    until(&mut world, asks(&Ask::Request));
    world.finish(End::Well).unwrap();
    assert!(waits_for(&world).contains("was ended at the lock"), "{}", waits_for(&world));
    until(&mut world, asks(&Ask::Request));
    assert_ne!(world.record().permit.unwrap().attempt, attempt);
    assert_eq!(way_to_reboot(&mut world).join(" "), "Request PrepareReboot Verify Activate Reboot");
}

#[test]
fn a_hook_or_an_alert_that_holds_keeps_nobody_else_from_the_permit() {
    for kind in [HoldKind::Hook, HoldKind::Alert] {
        let mut world = daemon(Strategy::Lock, &[Good]);
        world.act(&Action::Holds(Some(kind))).unwrap();
        until(&mut world, prepares);
        world.finish(End::Well).unwrap();
        assert_eq!(asking(&world), "Abandon");
        world.finish(End::Well).unwrap();
        assert!(!world.is_holder());
        assert_eq!(world.operation(), None, "not asked again before it is looked at again");
        assert!(waits_for(&world).contains("7"), "{}", waits_for(&world));
        world.act(&Action::Holds(None)).unwrap();
        assert_eq!(way_to_reboot(&mut world).join(" "), "Request PrepareReboot Verify Activate Reboot");
    }
}

#[test]
fn a_node_with_windows_of_its_own_asks_and_reboots_only_in_them() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    let windows = vec![Window { days: Vec::new(), start: jiff::civil::time(3, 0, 0, 0), length_s: 3_600 }];
    let policy = Policy { windows, ..world.policy.clone() };
    world = world.with_policy(policy);
    until(&mut world, |operation| matches!(operation, Operation::ReadBack { .. }));
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), None);
    assert!(
        waits_for(&world).starts_with("window: the next window opens at 2026-01-01T03:00"),
        "{}",
        waits_for(&world)
    );
    world.pass(3 * 3_600).unwrap();
    assert_eq!(asking(&world), "Request");
    world.finish(End::Well).unwrap();
    assert_eq!(asking(&world), "PrepareReboot");
    // The hooks take until after its end.
    world.pass(2 * 3_600).unwrap();
    world.finish(End::Well).unwrap();
    assert_eq!(asking(&world), "Abandon");
    world.finish(End::Well).unwrap();
    rest(&mut world);
    assert!(waits_for(&world).starts_with("window: "), "{}", waits_for(&world));
}

#[test]
fn a_newer_release_gives_back_the_permit_of_the_older_one_before_it_is_fetched() {
    let mut world = verified(&[Good, Good]);
    world.finish(End::Fails(FailureKind::Node)).unwrap();
    world.server.lists_older = true;
    world.server.channel = Some(2);
    reply(&mut world, Command::Check);
    world.act(&Action::Lock(false)).unwrap();
    until(&mut world, asks(&Ask::Abandon));
    world.finish(End::Well).unwrap();
    assert!(!world.is_holder());
    world.act(&Action::Lock(true)).unwrap();
    world.settle(|world| check::confirmed_on(world, 2)).unwrap();
}

/// The permit of a failed release is back when the attempt with another one is given up.
#[test]
fn a_group_stays_halted_until_a_repaired_release_is_confirmed_whatever_becomes_of_the_attempt() {
    for power_cut in [false, true] {
        let mut world = verified(&[Hangs]);
        world.finish(End::Well).unwrap();
        rest(&mut world);
        let repaired = world.server.publish(Good);
        world.server.channel = Some(repaired);
        world.act(&Action::Holds((!power_cut).then_some(HoldKind::Alert))).unwrap();
        until(&mut world, prepares);
        if power_cut {
            world.boot().unwrap();
            until(&mut world, asks(&Ask::Abandon));
        } else {
            world.finish(End::Well).unwrap();
        }
        assert_eq!(asking(&world), "Abandon");
        world.finish(End::Well).unwrap();
        assert_eq!((phase(&world), stage(&world)), (Some(Phase::Failed), Some(PermitStage::Halting)));
        world.settle(|world| check::confirmed_on(world, repaired)).unwrap();
        assert!(!world.is_holder());
    }
}

#[test]
fn a_node_without_a_record_asks_once_whether_the_lock_holds_a_permit_of_it() {
    for booted in [true, false] {
        let mut world = verified(&[Good]);
        if booted {
            world.finish(End::Well).unwrap();
            until(&mut world, |operation| matches!(operation, Operation::PostConfirm { .. }));
        } else {
            world.finish(End::Fails(FailureKind::Node)).unwrap();
            world.table.b = world.table.b.invalidated();
        }
        world.saved = serde_json::to_string(&Record::default()).unwrap();
        world.ledger.newest_confirmed = None;
        world.server.channel = None;
        world.start().unwrap();
        assert_eq!(asking(&world), "Booted", "{booted}");
        rest(&mut world);
        assert_eq!((world.is_holder(), world.record().permit), (false, None), "{booted}");
    }
}

/// A record that was lost: the lock knows of an attempt that this node does not.
#[test]
fn a_permit_of_an_attempt_that_is_not_on_record_is_brought_to_its_end() {
    for (to, fails) in [("1.0.0", false), ("0.9.0", true)] {
        let mut world = daemon(Strategy::Lock, &[Good]);
        rest(&mut world);
        let request = Request {
            node: "this".parse().unwrap(),
            attempt: "lost".parse().unwrap(),
            boot: "long-ago".parse().unwrap(),
            from: "0.9.0".parse().unwrap(),
            to: to.parse().unwrap(),
            zone: None,
            etcd_member: None,
            priority: 0,
            reason: String::new(),
        };
        let granted = world.tell_lock(&protocol::lock::Command::Request(request));
        assert!(matches!(granted, Reply::Granted { .. }));
        until(&mut world, asks(&Ask::Request));
        world.finish(End::Well).unwrap();
        assert_eq!((asking(&world).as_str(), stage(&world)), ("Booted", Some(PermitStage::Unknown)));
        world.finish(End::Well).unwrap();
        assert_eq!(asking(&world), "Confirm");
        world.finish(End::Well).unwrap();
        assert_eq!(phase(&world), fails.then_some(Phase::Granted), "{to}");
        if fails {
            assert_eq!(
                world.record().permit.unwrap().version.to_string(),
                to,
                "what failed is not what runs"
            );
        }
        let way = way_to_reboot(&mut world).join(" ");
        let before = if fails { "Fail " } else { "" };
        assert_eq!(way, format!("{before}Request PrepareReboot Verify Activate Reboot"));
    }
}

#[test]
fn a_rollback_needs_a_permit_too_and_its_confirmation_frees_it() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    world.settle(|world| check::confirmed_on(world, 1)).unwrap();
    rest(&mut world);
    reply(&mut world, Command::Rollback);
    assert_eq!(way_to_reboot(&mut world).join(" "), "Request PrepareReboot Verify Revert Reboot");
    world.finish(End::Well).unwrap();
    rest(&mut world);
    assert_eq!((world.running(), world.is_holder()), (0, false));
}

#[test]
fn a_flip_that_waits_for_its_reboot_is_undone_when_a_hook_begins_to_hold_or_the_window_closes() {
    for by_window in [true, false] {
        let mut world = daemon(Strategy::Lock, &[Good]);
        let windows =
            vec![Window { days: Vec::new(), start: jiff::civil::time(0, 0, 0, 0), length_s: 2 * 3_600 }];
        let policy = Policy { windows, ..world.policy.clone() };
        world = world.with_policy(policy);
        until(&mut world, reboots);
        world.finish(End::Fails(FailureKind::Node)).unwrap();
        if by_window {
            world.pass(3 * 3_600).unwrap();
        } else {
            world.act(&Action::Holds(Some(HoldKind::Alert))).unwrap();
            until(&mut world, prepares);
            world.finish(End::Well).unwrap();
        }
        assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }), "{by_window}");
        world.finish(End::Well).unwrap();
        assert_eq!(asking(&world), "Abandon", "{by_window}");
        world.finish(End::Well).unwrap();
        assert!(!world.is_holder());
    }
}

/// Nothing else would ever give it back, and it would be stuck and halt the group.
#[test]
fn an_open_attempt_goes_back_when_the_strategy_needs_no_permit_any_more() {
    for strategy in [Strategy::Off, Strategy::Window] {
        for moment in [prepares as fn(&Operation) -> bool, reboots, |operation| word(operation) == "Request"]
        {
            let mut world = daemon(Strategy::Lock, &[Good]);
            until(&mut world, moment);
            let policy = Policy { strategy, ..world.policy.clone() };
            world = world.with_policy(policy);
            until(&mut world, asks(&Ask::Abandon));
            world.finish(End::Well).unwrap();
            rest(&mut world);
            assert_eq!((world.is_holder(), world.record().permit), (false, None), "{strategy:?}");
        }
    }
}

/// The lock granted the older release's attempt, and its answer was lost; of the newer one's it never heard.
#[test]
fn an_attempt_that_another_was_to_supersede_is_given_back_where_the_lock_never_heard_of_the_other() {
    let mut world = daemon(Strategy::Lock, &[Good, Good]);
    until(&mut world, asks(&Ask::Request));
    world.finish(End::DoneButFails).unwrap();
    let first = world.record().permit.unwrap().attempt;
    world.act(&Action::LockAnswers(false)).unwrap();
    world.server.lists_older = true;
    world.server.channel = Some(2);
    reply(&mut world, Command::Check);
    let of_another = |operation: &Operation| matches!(operation, Operation::AskLock(question) if question.attempt != first);
    until(&mut world, of_another);
    world.finish(End::Well).unwrap();
    world.act(&Action::LockAnswers(true)).unwrap();
    reply(&mut world, Command::Cancel);
    world.start().unwrap();
    world.server.channel = None;
    rest(&mut world);
    assert_eq!((world.is_holder(), world.record().permit), (false, None));
}

#[test]
fn a_failed_release_is_not_forgotten_when_the_attempt_that_was_to_take_over_comes_to_nothing() {
    let mut world = verified(&[Hangs]);
    world.finish(End::Well).unwrap();
    rest(&mut world);
    let failed = world.record().permit;
    let repaired = world.server.publish(Good);
    world.server.channel = Some(repaired);
    world.act(&Action::LockAnswers(false)).unwrap();
    until(&mut world, asks(&Ask::Request));
    world.finish(End::Well).unwrap();
    reply(&mut world, Command::Cancel);
    world.act(&Action::LockAnswers(true)).unwrap();
    rest(&mut world);
    assert_eq!((world.record().permit, phase(&world)), (failed, Some(Phase::Failed)));
}

#[test]
fn a_group_that_is_not_there_when_it_is_verified_takes_nothing_away() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, asks(&Ask::Verify));
    let because = protocol::lock::Refusal::UnknownGroup { group: "default".parse().unwrap() };
    world.deliver(machine::Event::LockAnswered(Ok(Reply::Refused { because }))).unwrap();
    assert_eq!((stage(&world), world.record().intent), (Some(PermitStage::Held), None));
    assert!(waits_for(&world).contains("there is no group default"), "{}", waits_for(&world));
    world.server.channel = None;
    world.start().unwrap();
    until(&mut world, asks(&Ask::Abandon));
    world.finish(End::Well).unwrap();
    assert!(!world.is_holder());
}

#[test]
fn what_waits_for_the_post_confirm_hooks_says_so() {
    let mut world = verified(&[Good, Good]);
    world.finish(End::Well).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::PostConfirm { .. }));
    world.finish(End::Fails(FailureKind::Node)).unwrap();
    world.server.channel = Some(2);
    reply(&mut world, Command::Check);
    rest(&mut world);
    assert_eq!(
        waits_for(&world),
        "hook: the permit for 1.1.0 goes back when its post-confirm hooks have run"
    );
}

/// Nobody knows when the next pass comes, and all others would wait for it.
#[test]
fn one_pass_gives_back_a_permit_that_it_could_not_use() {
    let mut world = offered(Strategy::Lock, Mode::Once, &[Good]);
    world.act(&Action::Holds(Some(HoldKind::Inhibitor))).unwrap();
    rest(&mut world);
    assert_eq!((world.exit, world.is_holder()), (Some(Exit::Deferred), false));
    let mut world = offered(Strategy::Lock, Mode::Once, &[Good]);
    until(&mut world, asks(&Ask::Verify));
    world.act(&Action::LockAnswers(false)).unwrap();
    rest(&mut world);
    assert_eq!((world.exit, stage(&world)), (Some(Exit::Deferred), Some(PermitStage::GivenUp)));
}

/// With no engine running, `updatectl cancel` is a pass of its own.
#[test]
fn a_cancel_that_is_a_pass_of_its_own_is_done_when_the_flip_is_undone_and_the_permit_back() {
    let mut world = verified(&[Good]);
    world.finish(End::Fails(FailureKind::Node)).unwrap();
    world.mode = Mode::Request;
    world.start().unwrap();
    reply(&mut world, Command::Cancel);
    for _ in 0..20 {
        world.finish(End::Well).unwrap();
        if world.state().is_some() {
            world.act(&Action::Report(Some(true))).unwrap();
        }
    }
    assert_eq!((world.exit, world.is_holder()), (Some(Exit::Done), false), "{:#?}", world.log);
    assert!(!world.table.b.bootable());
}

#[test]
fn a_first_pass_that_cannot_ask_the_lock_is_deferred_and_claims_no_permit() {
    let mut world = offered(Strategy::Lock, Mode::Once, &[Good]);
    world.act(&Action::LockAnswers(false)).unwrap();
    world.start().unwrap();
    for _ in 0..30 {
        if world.state().is_some() {
            let shown = machine::status(world.state().unwrap(), &world::identity());
            assert_eq!(shown.permit, None);
        }
        if world.operation().is_some() {
            world.finish(End::Well).unwrap();
        } else if world.state().is_some() {
            world.act(&Action::Report(Some(true))).unwrap();
        }
    }
    assert_eq!(world.exit, Some(Exit::Deferred));
}
