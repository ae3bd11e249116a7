//! One short story per rule about what comes before a reboot, what comes after a confirmation, and what is told of a
//! failure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use machine::{
    Ask, Command, Effect, Event, Failure, FailureKind, Flip, Health, HoldKind, Mode, Operation, Policy,
    Record, Strategy, Waiting,
};
use protocol::slot::Slot;
use protocol::status::{Exit, StateName};
use protocol::window::Window;
use protocol::wire::EventKind;
use world::server::Quality;
use world::story::{
    asks, daemon, events, offered, prepares, reboots, reply, rest, state, until, waits_for, way_to_reboot,
};
use world::{Action, End, World, check};

use Quality::{Good, Hangs, Sick};

/// What the preparation under way is to do: hooks, force.
fn preparing(world: &World) -> Option<(bool, bool)> {
    match world.operation()? {
        Operation::PrepareReboot { hooks, force, .. } => Some((hooks, force)),
        _ => None,
    }
}

/// A daemon that is about to prepare its reboot, and what holds it.
fn held(strategy: Strategy, kind: HoldKind) -> World {
    let mut world = daemon(strategy, &[Good]);
    world.act(&Action::Holds(Some(kind))).unwrap();
    until(&mut world, prepares);
    assert_eq!(preparing(&world), Some((true, false)));
    world.finish(End::Well).unwrap();
    world
}

#[test]
fn the_node_is_made_ready_before_it_reboots_and_under_the_lock_before_the_flip() {
    for (strategy, wanted) in [
        (Strategy::Immediate, "Activate PrepareReboot Reboot"),
        (Strategy::Lock, "Request PrepareReboot Verify Activate Reboot"),
    ] {
        let way = way_to_reboot(&mut daemon(strategy, &[Good]));
        let after = way.iter().position(|step| step == "ReadBack").unwrap() + 1;
        assert_eq!(way[after..].join(" "), wanted);
    }
}

#[test]
fn what_holds_is_looked_at_again_without_running_the_hooks_again() {
    for (kind, reason) in
        [(HoldKind::Inhibitor, "inhibitor: Inhibitor 7"), (HoldKind::Session, "inhibitor: session Session 7")]
    {
        let mut world = held(Strategy::Immediate, kind);
        assert_eq!((state(&world), waits_for(&world)), (StateName::Waiting, reason.to_owned()));
        world.pass(world.policy.hold_retry_s - 1).unwrap();
        assert_eq!(world.operation(), None);
        world.pass(1).unwrap();
        assert_eq!(preparing(&world), Some((false, false)));
        let shown = machine::status(world.state().unwrap(), &world::identity());
        assert_eq!((shown.state, shown.reason.as_str()), (StateName::Waiting, reason), "it does not flicker");
        world.act(&Action::Holds(None)).unwrap();
        world.finish(End::Well).unwrap();
        assert_eq!(world.operation(), Some(Operation::Reboot));
    }
}

/// By a monotonic clock; a jump of the other one changes little.
#[test]
fn inhibitors_and_sessions_are_respected_for_a_bounded_time() {
    for jump in [0, 1_000, -1_000] {
        let mut world = held(Strategy::Immediate, HoldKind::Inhibitor);
        world.act(&Action::ClockJump(jump)).unwrap();
        let mut respected = 0;
        while preparing(&world) != Some((false, true)) {
            if world.operation().is_some() {
                world.finish(End::Well).unwrap();
            } else {
                world.pass(10).unwrap();
                respected += 10;
            }
            assert!(respected <= world.policy.hold_max_s + 120, "{jump}: held for {respected} s");
        }
        assert!(respected + 60 >= world.policy.hold_max_s, "{jump}: forced after {respected} s");
        world.finish(End::Well).unwrap();
        assert_eq!(world.operation(), Some(Operation::Reboot));
    }
}

#[test]
fn a_hook_that_fails_is_run_again_and_never_forced() {
    let mut world = held(Strategy::Immediate, HoldKind::Hook);
    for _ in 0..20 {
        rest(&mut world);
        assert_eq!((state(&world), waits_for(&world).as_str()), (StateName::Waiting, "hook: Hook 7"));
        until(&mut world, prepares);
        assert_eq!(preparing(&world), Some((true, false)));
        world.pass(3_600).unwrap();
        world.finish(End::Well).unwrap();
    }
    world.act(&Action::Holds(None)).unwrap();
    assert_eq!(way_to_reboot(&mut world).last().unwrap(), "Reboot");
}

#[test]
fn a_person_who_asks_has_what_holds_looked_at_at_once() {
    let mut world = held(Strategy::Immediate, HoldKind::Alert);
    rest(&mut world);
    assert_eq!(waits_for(&world), "alert: Alert 7");
    reply(&mut world, Command::Check);
    assert!(world.operation().as_ref().is_some_and(prepares), "{:?}", world.operation());
}

#[test]
fn cancelled_while_it_is_prepared_the_flip_is_undone_and_the_next_time_begins_anew() {
    let mut world = daemon(Strategy::Immediate, &[Good]);
    until(&mut world, prepares);
    assert!(reply(&mut world, Command::Cancel).contains("outcome: Done"));
    assert!(world.log.iter().any(|line| line.contains("Abort")));
    // It was done already when it was told to stop.
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }));
    world.finish(End::Well).unwrap();
    assert_eq!((world.operation(), world.record().preparation), (None, None));
    reply(&mut world, Command::Check);
    until(&mut world, prepares);
    assert_eq!(preparing(&world), Some((true, false)));
}

#[test]
fn a_rollback_takes_the_place_of_a_reboot_that_is_prepared() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    world.settle(|world| check::confirmed_on(world, 1)).unwrap();
    rest(&mut world);
    reply(&mut world, Command::Reboot);
    assert_eq!(preparing(&world), Some((true, false)));
    assert!(reply(&mut world, Command::Rollback).contains("outcome: Done"));
    world.finish(End::Fails(FailureKind::Cancelled)).unwrap();
    until(&mut world, prepares);
    let Some(Operation::PrepareReboot { version, hooks: true, .. }) = world.operation() else {
        panic!("{:?}", world.operation());
    };
    assert_eq!(version, world.server.release(0).version);
    assert_eq!(way_to_reboot(&mut world).join(" "), "PrepareReboot Verify Revert Reboot");
}

fn windows(opens_for_s: u32) -> World {
    let mut world = daemon(Strategy::Window, &[Good]);
    let midnight = jiff::civil::time(0, 0, 0, 0);
    let windows = vec![Window { days: Vec::new(), start: midnight, length_s: opens_for_s }];
    let policy = Policy { windows, ..world.policy.clone() };
    world = world.with_policy(policy);
    world
}

#[test]
fn a_window_that_closed_meanwhile_is_closed() {
    let mut world = windows(3_600);
    until(&mut world, prepares);
    world.pass(7_200).unwrap();
    rest(&mut world);
    assert!(matches!(world.state().unwrap().waiting(), Some(Waiting::Window(_))));
    until_window(&mut world);
    assert_eq!(preparing(&world), Some((true, false)), "by now the node may be at work again");
    assert_eq!(way_to_reboot(&mut world).join(" "), "PrepareReboot Reboot");
}

#[test]
fn a_window_that_closes_while_an_inhibitor_holds_forces_nothing() {
    let mut world = windows(300);
    world.act(&Action::Holds(Some(HoldKind::Inhibitor))).unwrap();
    until(&mut world, prepares);
    for _ in 0..60 {
        if world.operation().is_some() {
            assert!(matches!(preparing(&world), Some((_, false))), "{:?}", world.operation());
            world.finish(End::Well).unwrap();
        }
        if matches!(world.state().unwrap().waiting(), Some(Waiting::Window(_))) {
            until_window(&mut world);
            assert_eq!(preparing(&world), Some((true, false)));
            return;
        }
        world.pass(10).unwrap();
    }
    panic!("the window never closes: {:#?}", world.log);
}

/// Each window is shorter than what holds is respected for; together they are not.
#[test]
fn a_session_that_never_ends_does_not_outlast_short_windows() {
    let mut world = windows(300);
    assert!(world.policy.hold_max_s > 300);
    world.act(&Action::Holds(Some(HoldKind::Session))).unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        until_window(&mut world);
        seen.push(preparing(&world).unwrap());
        // Through this window.
        while !matches!(world.state().unwrap().waiting(), Some(Waiting::Window(_))) {
            match world.operation() {
                Some(Operation::Reboot) => {
                    let windows = seen.len();
                    assert!((3..=4).contains(&windows), "the reboot came in window {windows}: {seen:?}");
                    assert!(
                        seen.iter().all(|(hooks, _)| *hooks),
                        "the node is drained anew each time: {seen:?}"
                    );
                    return;
                }
                Some(_) => world.finish(End::Well).unwrap(),
                None => world.pass(10).unwrap(),
            }
        }
    }
    panic!("it is put off for ever: {seen:?}");
}

#[test]
fn windows_that_are_shorter_than_the_respect_are_warned_about() {
    let of = |strategy, length_s, hold_max_s| {
        let window = Window { days: Vec::new(), start: jiff::civil::time(2, 0, 0, 0), length_s };
        Policy { strategy, windows: vec![window], hold_max_s, ..Policy::default() }.warning()
    };
    assert_eq!(of(Strategy::Window, 601, 600), None);
    assert_eq!(of(Strategy::Immediate, 60, 600), None, "windows bind nothing there");
    let warning = of(Strategy::Window, 600, 600).unwrap();
    assert!(warning.contains("600 s (reboot.hold_max_s)"), "{warning}");
}

/// To the next window; checks come and go.
fn until_window(world: &mut World) {
    for _ in 0..2_000 {
        match world.operation() {
            Some(operation) if prepares(&operation) => return,
            Some(_) => world.finish(End::Well).unwrap(),
            None => world.pass(60).unwrap(),
        }
    }
    panic!("no window opens");
}

#[test]
fn a_preparation_that_is_a_while_ago_is_made_again() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, asks(&Ask::Verify));
    world.pass(world.policy.prepared_max_s).unwrap();
    world.finish(End::Well).unwrap();
    assert_eq!(preparing(&world), Some((false, false)));
    assert_eq!(way_to_reboot(&mut world).join(" "), "PrepareReboot Verify Activate Reboot");
}

#[test]
fn what_was_prepared_for_one_release_is_not_for_another() {
    let mut world = daemon(Strategy::Immediate, &[Good, Good]);
    world.act(&Action::Holds(Some(HoldKind::Inhibitor))).unwrap();
    until(&mut world, prepares);
    world.finish(End::Well).unwrap();
    world.server.channel = Some(2);
    world.server.lists_older = true;
    reply(&mut world, Command::Check);
    until(&mut world, |operation| matches!(operation, Operation::Deactivate { .. }));
    until(&mut world, prepares);
    let Some(Operation::PrepareReboot { version, hooks, force }) = world.operation() else { panic!() };
    assert_eq!((version, hooks, force), (world.server.release(2).version.clone(), true, false));
}

#[test]
fn a_restart_of_the_engine_undoes_the_flip_and_remembers_that_the_hooks_ran() {
    let mut world = held(Strategy::Lock, HoldKind::Inhibitor);
    world.start().unwrap();
    until(&mut world, prepares);
    assert_eq!(preparing(&world), Some((false, false)));
    world.act(&Action::Holds(None)).unwrap();
    until(&mut world, reboots);
    assert_eq!(world.record().intent.unwrap().flip, Flip::Activated);
    world.start().unwrap();
    assert_eq!(world.operation(), Some(Operation::Deactivate { target: Slot::B }));
    until(&mut world, prepares);
    assert_eq!(preparing(&world), Some((false, false)));
    // Another boot: nothing is remembered.
    world.act(&Action::PowerCut).unwrap();
    until(&mut world, prepares);
    assert_eq!(preparing(&world), Some((true, false)));
}

#[test]
fn killed_while_the_hooks_run_they_run_again() {
    let mut world = daemon(Strategy::Immediate, &[Good]);
    until(&mut world, prepares);
    world.finish(End::Killed).unwrap();
    until(&mut world, prepares);
    assert_eq!(preparing(&world), Some((true, false)));
}

#[test]
fn a_reboot_that_a_person_asks_for_is_prepared_and_can_be_cancelled() {
    let mut world = daemon(Strategy::Off, &[Good]);
    world.server.channel = None;
    rest(&mut world);
    world.act(&Action::Holds(Some(HoldKind::Session))).unwrap();
    assert!(reply(&mut world, Command::Reboot).contains("outcome: Done"));
    let Some(Operation::PrepareReboot { version, hooks: true, force: false }) = world.operation() else {
        panic!("{:?}", world.operation());
    };
    assert_eq!(version, world.server.release(0).version);
    world.finish(End::Well).unwrap();
    assert_eq!(waits_for(&world), "inhibitor: session Session 7");
    assert!(reply(&mut world, Command::Cancel).contains("outcome: Done"));
    world.act(&Action::Holds(None)).unwrap();
    world.pass(world.policy.hold_retry_s).unwrap();
    assert!(!matches!(world.operation(), Some(Operation::PrepareReboot { .. } | Operation::Reboot)));
    reply(&mut world, Command::Reboot);
    until(&mut world, reboots);
}

/// Neither stands in the way of the other: no hooks are run for the one, then for the other, and again.
#[test]
fn a_person_s_reboot_goes_ahead_though_the_update_has_no_permit() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    world.act(&Action::Lock(false)).unwrap();
    world.act(&Action::Holds(Some(HoldKind::Inhibitor))).unwrap();
    until(&mut world, asks(&Ask::Request));
    world.finish(End::Well).unwrap();
    reply(&mut world, Command::Reboot);
    let mut hooks = 0;
    for _ in 0..400 {
        match world.operation() {
            Some(Operation::Reboot) => {
                assert_eq!(hooks, 1);
                return;
            }
            Some(_) => {
                hooks += u32::from(matches!(preparing(&world), Some((true, _))));
                world.finish(End::Well).unwrap();
            }
            None => world.pass(10).unwrap(),
        }
    }
    panic!("it never reboots: {}", waits_for(&world));
}

#[test]
fn one_pass_after_another_does_not_respect_for_ever() {
    let mut world = offered(Strategy::Immediate, Mode::Once, &[Good]);
    world.act(&Action::Holds(Some(HoldKind::Inhibitor))).unwrap();
    for pass in 0..4 {
        rest_or_reboot(&mut world);
        if world.operation() == Some(Operation::Reboot) {
            assert_eq!(pass, 2, "the first look begins the time, the third pass is beyond it");
            return;
        }
        assert_eq!(world.exit, Some(Exit::Deferred));
        world.now = world.now.checked_add(jiff::Span::new().minutes(45)).unwrap();
        world.start().unwrap();
    }
    panic!("it never reboots");
}

fn rest_or_reboot(world: &mut World) {
    while let Some(operation) = world.operation().filter(|operation| !reboots(operation)) {
        world.finish(End::Well).unwrap();
        assert!(world.log.len() < 10_000, "{operation:?}");
    }
    if world.operation().is_none() {
        rest(world);
    }
}

#[test]
fn without_a_reboot_nothing_is_made_ready_for_one() {
    for strategy in [Strategy::Immediate, Strategy::Lock] {
        let mut world = offered(strategy, Mode::Once, &[Good]);
        world.reboot_allowed = false;
        world.start().unwrap();
        rest(&mut world);
        assert!(world.table.b.bootable() && !world.log.iter().any(|line| line.contains("PrepareReboot")));
    }
}

#[test]
fn the_way_back_is_held_by_nothing_and_tried_again() {
    let mut world = daemon(Strategy::Immediate, &[Sick]);
    until(&mut world, reboots);
    world.finish(End::Well).unwrap();
    world.act(&Action::Holds(Some(HoldKind::Hook))).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::Condemn { .. }));
    world.finish(End::Well).unwrap();
    assert_eq!(world.operation(), Some(Operation::Reboot));
    world.finish(End::Fails(FailureKind::Node)).unwrap();
    world.pass(world.policy.reboot_retry_s).unwrap();
    assert_eq!(world.operation(), Some(Operation::Reboot));
}

#[test]
fn post_confirm_hooks_run_after_the_confirmation_and_the_permit_waits_for_them() {
    let mut world = daemon(Strategy::Lock, &[Good]);
    until(&mut world, reboots);
    world.finish(End::Well).unwrap();
    until(&mut world, |operation| matches!(operation, Operation::PostConfirm { .. }));
    assert_eq!(state(&world), StateName::Confirming);
    assert!(world.table.b.successful());
    world.finish(End::Killed).unwrap();
    assert!(matches!(world.operation(), Some(Operation::PostConfirm { .. })), "killed in it, it runs again");
    assert!(world.record().permit.is_some());
    world.finish(End::Well).unwrap();
    rest(&mut world);
    assert_eq!((world.record().post_confirm, world.record().permit), (None, None));
}

#[test]
fn post_confirm_hooks_that_fail_are_told_and_given_up_and_stand_in_no_update_s_way() {
    let mut world = daemon(Strategy::Off, &[Good, Good]);
    until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
    world.finish(End::Well).unwrap();
    world.boot().unwrap();
    world.server.channel = Some(2);
    for attempt in 1..=world.policy.post_confirm_max {
        until(&mut world, |operation| matches!(operation, Operation::PostConfirm { .. }));
        world.finish(End::Fails(FailureKind::Node)).unwrap();
        let shown = machine::status(world.state().unwrap(), &world::identity());
        let error = shown.error.unwrap();
        assert!(error.contains(&format!("({attempt} of 3): Node failure")), "{error}");
        assert!(shown.quarantine.is_empty());
        if attempt == 1 {
            // While they wait for the next time, the next release comes.
            until(&mut world, |operation| matches!(operation, Operation::Preflight { .. }));
        }
    }
    assert_eq!(world.record().post_confirm, None);
    let failed = events(&world).into_iter().filter(|kind| *kind == EventKind::HookFailed).count();
    assert_eq!(failed, 3);
    assert_eq!(world.record().intent.unwrap().flip, Flip::Activated);
}

#[test]
fn an_update_that_the_node_does_not_want_now_waits_and_costs_nothing() {
    let mut world = daemon(Strategy::Off, &[Good]);
    let mut waits = Vec::new();
    for _ in 0..world.policy.attempts_max + 2 {
        until(&mut world, |operation| matches!(operation, Operation::Preflight { .. }));
        world.finish(End::Fails(FailureKind::Held)).unwrap();
        assert_eq!((state(&world), waits_for(&world).as_str()), (StateName::Waiting, "hook: Held failure"));
        let shown = machine::status(world.state().unwrap(), &world::identity());
        assert_eq!(shown.error, None);
        waits.push(world.state().unwrap().wake_at().unwrap().duration_since(world.now).as_secs());
    }
    assert!(waits.last() > waits.first(), "it asks less and less often: {waits:?}");
    assert!(world.record().attempts.is_empty() && events(&world).is_empty());
    until(&mut world, |operation| matches!(operation, Operation::Install { .. }));
    let mut world = offered(Strategy::Off, Mode::Once, &[Good]);
    until(&mut world, |operation| matches!(operation, Operation::Preflight { .. }));
    world.finish(End::Fails(FailureKind::Held)).unwrap();
    assert_eq!(world.exit, Some(Exit::Deferred));
}

#[test]
fn a_judgement_that_cannot_be_made_yet_counts_for_nothing() {
    let mut world = daemon(Strategy::Off, &[Good]);
    until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
    world.finish(End::Well).unwrap();
    world.boot().unwrap();
    for _ in 0..20 {
        until(&mut world, |operation| matches!(operation, Operation::RunHealth { .. }));
        world.deliver(Event::HealthJudged(Health::NotYet("the server is out of reach".to_owned()))).unwrap();
        let shown = machine::status(world.state().unwrap(), &world::identity());
        assert_eq!((shown.state, shown.error), (StateName::Confirming, None));
        assert!(shown.reason.contains("not confirmed yet: the server is out of reach"), "{}", shown.reason);
        let wait = world.state().unwrap().wake_at().unwrap().duration_since(world.now).as_secs();
        assert!((1..=i64::from(world.policy.rejudge_s)).contains(&wait), "{wait}");
    }
    assert!(world.record().quarantine.is_empty());
    world.settle(|world| check::confirmed_on(world, 1)).unwrap();
}

#[test]
fn a_health_that_cannot_be_judged_is_given_up_before_the_guard_goes_back() {
    let mut world = daemon(Strategy::Off, &[Good]);
    until(&mut world, |operation| matches!(operation, Operation::Activate { .. }));
    world.finish(End::Well).unwrap();
    world.boot().unwrap();
    let began = world.now;
    for judgement in 1..=world.policy.judgements_max {
        until(&mut world, |operation| matches!(operation, Operation::RunHealth { .. }));
        // The guard goes back after this and 300 s.
        let waited = world.now.duration_since(began).as_secs();
        assert!(waited <= i64::from(world.policy.health_deadline_s), "{judgement}: {waited} s");
        assert!(world.record().quarantine.is_empty());
        world.finish(End::Fails(FailureKind::Node)).unwrap();
    }
    assert_eq!(world.record().quarantine.len(), 1);
}

#[test]
fn what_was_seen_of_a_failure_goes_to_the_server_and_the_reason_stays_one_line() {
    for (quality, seen) in
        [(Sick, "web.service: failed\nexit status: 7"), (Hangs, "boot -1: kernel panic\nat the console")]
    {
        let mut world = daemon(Strategy::Immediate, &[quality]);
        until(&mut world, reboots);
        world.finish(End::Well).unwrap();
        until(&mut world, |operation| matches!(operation, Operation::Condemn { .. }));
        let record = world.record();
        let event = record.events.iter().find(|event| event.kind == EventKind::RolledBack).unwrap();
        assert_eq!(event.evidence, seen);
        assert_eq!(record.quarantine[0].reason, event.detail);
        assert!(!event.detail.contains('\n') && !event.detail.contains("exit status"), "{}", event.detail);
    }
}

/// A node that is not confirmed and has nothing to go back to: it is judged again and again.
fn unconfirmed() -> (machine::State, jiff::Timestamp) {
    let world = daemon(Strategy::Off, &[Good]);
    let mut facts = world.state().unwrap().facts().unwrap().clone();
    facts.attributes.a = facts.attributes.a.with_successful(false).with_tries_left(3);
    let start = machine::Start { facts, mode: Mode::Daemon, seed: 1, previous: String::new() };
    let state = machine::State::new(Policy::default(), Record::default());
    (machine::step(state, Event::Start(start), world.now).0, world.now)
}

fn sick(summary: &str, log: &str) -> Event {
    let evidence = machine::Evidence { summary: summary.to_owned(), log: log.to_owned() };
    Event::HealthJudged(Health::Failed(evidence))
}

#[test]
fn evidence_is_bounded_in_length_and_number() {
    let max = Policy::default().evidence_max;
    let long = format!("first\n{}\n\u{1b}[31mlast\n", "é".repeat(max));
    let (state, now) = unconfirmed();
    let (state, _) = machine::step(state, sick("sick", &long), now);
    let kept = &state.record().events.iter().next().unwrap().evidence;
    assert!(kept.len() <= max && kept.len() > max - 8, "{}", kept.len());
    assert!(kept.starts_with("first\n") && kept.contains("[...]") && kept.ends_with("\\u{1b}[31mlast"));

    // Twelve different failures in a row; nothing reaches the server.
    let (mut state, mut now) = unconfirmed();
    for number in 0..12 {
        let failed = sick(&format!("no. {number}"), &format!("{}{number}", "x".repeat(9_000)));
        state = machine::step(state, failed, now).0;
        now = state.wake_at().unwrap().max(now);
        let (next, effects) = machine::step(state, Event::Tick, now);
        assert!(matches!(effects.last(), Some(Effect::Run(Operation::RunHealth { .. }))), "{effects:?}");
        state = next;
    }
    let evidence: Vec<bool> = state.record().events.iter().map(|event| !event.evidence.is_empty()).collect();
    let kept = Policy::default().evidence_kept;
    assert_eq!(evidence, [vec![false; 12 - kept], vec![true; kept]].concat(), "the newest keep theirs");
}

#[test]
fn a_record_of_before_there_were_preparations_is_read() {
    let mut old = serde_json::to_value(Record::default()).unwrap();
    assert!(old.get("preparation").is_none() && old.get("post_confirm").is_none(), "{old}");
    old["events"]["pending"] = serde_json::json!([
        { "seq": 1, "at": "2026-01-01T00:00:00Z", "kind": "rolled-back", "detail": "it did not boot" }
    ]);
    let record: Record = serde_json::from_value(old).unwrap();
    assert_eq!((record.preparation, record.post_confirm), (None, None));
    assert_eq!(record.events.iter().next().unwrap().evidence, "");
}

#[test]
fn stopped_in_the_middle_is_no_error() {
    for stops in [
        |operation: &Operation| matches!(operation, Operation::Check { .. }),
        |operation: &Operation| matches!(operation, Operation::Install { .. }),
        prepares,
    ] {
        let mut world = daemon(Strategy::Immediate, &[Good]);
        until(&mut world, stops);
        let state = world.state().unwrap().clone();
        let stopped = Failure::new(FailureKind::Cancelled, "stopped");
        let hold = machine::Hold::new(HoldKind::Stopped, "stopped");
        let event = match state.operation().unwrap() {
            Operation::Check { .. } => Event::Checked(Err(stopped)),
            Operation::Install { .. } => Event::Installed(Err(stopped)),
            _ => Event::RebootPrepared(Err(hold)),
        };
        let (state, _) = machine::step(state, event, world.now);
        let shown = machine::status(&state, &world::identity());
        assert_eq!(shown.error, None);
        assert!(!shown.reason.contains("stopped"), "{}: {}", shown.state, shown.reason);
    }
}

#[test]
fn a_request_that_changes_nothing_says_so() {
    let mut world = daemon(Strategy::Off, &[Good]);
    world.server.channel = None;
    rest(&mut world);
    for command in [Command::Cancel, Command::MarkGood, Command::QuarantineClear(machine::Clear::All)] {
        assert!(reply(&mut world, command).contains("outcome: NothingToDo"), "{command:?}");
    }
}
