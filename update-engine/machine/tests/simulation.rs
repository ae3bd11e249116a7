//! Random lives of a node: whatever happens, the invariants hold, and when the faults are over the node gets to a good
//! release. A failing life is shrunk by proptest, kept under `tests/regressions`, and replayed by every later run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod world;

use machine::{Clear, Command, FailureKind, HoldKind, Mode, Policy, Strategy as Reboots};
use proptest::prelude::*;
use proptest::test_runner::{
    Config, FileFailurePersistence, RngAlgorithm, TestCaseError, TestRng, TestRunner,
};
use protocol::window::Window;
use world::server::{Quality, Server};
use world::{Action, End, Mutation, Outcome, World, check};

/// A node's circumstances and what happens to it.
#[derive(Clone, Debug)]
struct Life {
    strategy: Reboots,
    mode: Mode,
    reboot_allowed: bool,
    qualities: Vec<Quality>,
    actions: Vec<Action>,
    lists_older: bool,
    /// A release that is no good, offered when the faults are over.
    finale: Quality,
}

fn kinds() -> impl Strategy<Value = FailureKind> {
    prop::sample::select(vec![
        FailureKind::Network,
        FailureKind::Network,
        FailureKind::Release,
        FailureKind::Node,
        FailureKind::Refused,
        FailureKind::Held,
        FailureKind::Cancelled,
    ])
}

fn ends() -> impl Strategy<Value = End> {
    prop_oneof![
        40 => Just(End::Well),
        3 => kinds().prop_map(End::Fails),
        1 => Just(End::DoneButFails),
        1 => Just(End::Killed),
        1 => Just(End::DoneButKilled),
        1 => Just(End::DoneButPowerCut),
        1 => Just(End::PowerCut),
    ]
}

fn commands() -> impl Strategy<Value = Command> {
    prop::sample::select(vec![
        Command::Check,
        Command::Check,
        Command::Update { force_retry: false },
        Command::Update { force_retry: true },
        Command::Cancel,
        Command::Cancel,
        Command::Rollback,
        Command::Rollback,
        Command::MarkGood,
        Command::QuarantineClear(Clear::All),
        Command::Reboot,
    ])
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        100 => ends().prop_map(Action::Finish),
        8 => prop::option::weighted(0.8, prop::bool::weighted(0.7)).prop_map(Action::Report),
        16 => prop_oneof![1_u32..120, Just(3_600), Just(86_400)].prop_map(Action::Pass),
        1 => (-20_000_i16..20_000).prop_map(Action::ClockJump),
        2 => Just(Action::Kill),
        3 => Just(Action::PowerCut),
        4 => (0_u8..12, any::<bool>()).prop_map(|(effects, power)| Action::DieIn { effects, power }),
        2 => Just(Action::SaveFails),
        6 => commands().prop_map(Action::Operator),
        8 => any::<u8>().prop_map(Action::Channel),
        1 => Just(Action::ChannelEmpty),
        2 => prop::bool::weighted(0.7).prop_map(Action::Online),
        2 => prop::bool::weighted(0.7).prop_map(Action::Lock),
        1 => prop::bool::weighted(0.6).prop_map(Action::LockAnswers),
        1 => Just(Action::PermitTaken),
        4 => prop::option::weighted(0.6, holds()).prop_map(Action::Holds),
        4 => prop::bool::weighted(0.5).prop_map(Action::ServerHolds),
    ]
}

fn holds() -> impl Strategy<Value = HoldKind> {
    prop::sample::select(vec![HoldKind::Hook, HoldKind::Alert, HoldKind::Inhibitor, HoldKind::Session])
}

const BAD: [Quality; 5] =
    [Quality::Hangs, Quality::Unloadable, Quality::Sick, Quality::Corrupt, Quality::Miswritten];

fn qualities() -> impl Strategy<Value = Quality> {
    prop_oneof![
        6 => Just(Quality::Good),
        2 => Just(Quality::Hangs),
        1 => Just(Quality::Unloadable),
        2 => Just(Quality::Sick),
        1 => Just(Quality::Corrupt),
        1 => Just(Quality::Miswritten),
    ]
}

fn lives() -> impl Strategy<Value = Life> {
    let strategies = vec![Reboots::Off, Reboots::Immediate, Reboots::Window, Reboots::Lock];
    (
        prop::sample::select(strategies),
        prop::sample::select(vec![Mode::Daemon, Mode::Daemon, Mode::Once]),
        (prop::bool::weighted(0.8), any::<bool>()),
        prop::collection::vec(qualities(), 1..6),
        prop::collection::vec(actions(), 1..200),
        prop::sample::select(BAD.to_vec()),
    )
        .prop_map(|(strategy, mode, (reboot_allowed, lists_older), qualities, actions, finale)| Life {
            strategy,
            mode,
            reboot_allowed,
            qualities,
            actions,
            lists_older,
            finale,
        })
}

/// Release 0 is what runs at the beginning, the others come after it.
fn node(life: &Life, mutation: Option<Mutation>) -> World {
    let mut qualities = vec![Quality::Good];
    qualities.extend(&life.qualities);
    let mut world = World::new(life.strategy, life.mode, Server::new(&qualities));
    world.mutation = mutation;
    world.reboot_allowed = life.reboot_allowed;
    world.server.lists_older = life.lists_older;
    let midnight = jiff::civil::time(0, 0, 0, 0);
    let windows = vec![Window { days: Vec::new(), start: midnight, length_s: 4 * 3600 }];
    let policy = Policy { windows, ..world.policy.clone() };
    world.with_policy(policy)
}

/// Lives it, then lets the faults end and a good release appear.
fn live(life: &Life, mutation: Option<Mutation>) -> (World, Result<(), String>) {
    let mut world = node(life, mutation);
    let outcome = go_through(&mut world, life);
    (world, outcome.map_err(|violation| violation.0))
}

fn go_through(world: &mut World, life: &Life) -> Outcome {
    for action in &life.actions {
        world.log.push(format!("* {action:?}"));
        world.act(action)?;
    }
    world.log.push("* the faults are over".to_owned());
    let bad = world.server.publish(life.finale);
    world.server.channel = Some(bad);
    world.settle(|world| check::done_with(world, bad))?;
    let good = world.server.publish(Quality::Good);
    world.server.channel = Some(good);
    world.settle(|world| check::confirmed_on(world, good))
}

/// `FLIPSIDE_CASES` makes a longer run of it.
fn cases() -> u32 {
    std::env::var("FLIPSIDE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(2_500)
}

fn config(cases: u32) -> Config {
    let file = FileFailurePersistence::Direct("tests/regressions/simulation.txt");
    Config { cases, failure_persistence: Some(Box::new(file)), max_shrink_iters: 20_000, ..Config::default() }
}

#[test]
fn whatever_happens_the_invariants_hold_and_a_good_release_arrives() {
    let mut runner = TestRunner::new(config(cases()));
    let result = runner.run(&lives(), |life| match live(&life, None) {
        (_, Ok(())) => Ok(()),
        (world, Err(violation)) => {
            let last = world.log.len().saturating_sub(80);
            Err(TestCaseError::fail(format!("{violation}\n{}", world.log[last..].join("\n"))))
        }
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// A test of the test: the random lives reach everything that the machine can do.
#[test]
fn the_lives_reach_everything() {
    let mut reached = std::collections::BTreeSet::new();
    let config = Config { cases: 4_000, failure_persistence: None, ..Config::default() };
    let all = std::cell::RefCell::new(&mut reached);
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&lives(), |life| {
            let (world, _) = live(&life, None);
            all.borrow_mut().extend(world.reached);
            Ok(())
        })
        .unwrap();
    let operations = "Probe Check Preflight Invalidate Install ReadBack Activate Revert Deactivate Restore MarkGood \
                      Condemn RunHealth AskLock-Request AskLock-Verify AskLock-Abandon AskLock-Booted AskLock-Confirm \
                      AskLock-Fail PrepareReboot Reboot PostConfirm";
    let effects = "Save Discard Abort Reply Report Finish-Done Finish-Failed Finish-NothingToDo Finish-Deferred \
                   Finish-Refused";
    let states =
        "idle checking available downloading verifying staged waiting rebooting confirming rolled-back error";
    let events = "DownloadStarted Staged Activated Rebooting Confirmed RolledBack Failed Refused HookFailed";
    let wanted = operations.split(' ').chain(effects.split(' ')).map(ToOwned::to_owned);
    let wanted = wanted.chain(states.split(' ').map(|state| format!("state {state}")));
    let wanted = wanted.chain(events.split(' ').map(|event| format!("event {event}")));
    let wanted =
        wanted.chain("Hook Alert Inhibitor Session".split(' ').map(|kind| format!("held by {kind}")));
    let answers = "Granted Current Wait Noted Released Refused-NotHeld";
    let wanted = wanted.chain(answers.split(' ').map(|answer| format!("answer {answer}")));
    let missing: Vec<_> = wanted.filter(|wanted| !reached.contains(wanted)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?}");
}

/// The invariants notice each of these mistakes in an execution of effects, so they can fail.
fn noticed(mutation: Mutation) {
    let config = Config { cases: 3_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&lives(), |life| live(&life, Some(mutation)).1.map_err(TestCaseError::fail));
    let Err(error) = result else { panic!("{mutation:?} goes unnoticed") };
    let text = error.to_string();
    println!("{mutation:?}: {}", text.lines().next().unwrap_or_default());
}

macro_rules! mutations {
    ($($name:ident: $mutation:ident,)*) => { $(
        #[test]
        fn $name() {
            noticed(Mutation::$mutation);
        }
    )* };
}

mutations! {
    notices_no_save_before_activate: NoSaveBeforeActivate,
    notices_no_save_before_condemn: NoSaveBeforeCondemn,
    notices_operation_before_save: OperationBeforeSave,
    notices_no_invalidate: NoInvalidate,
    notices_no_read_back: NoReadBack,
    notices_no_health: NoHealth,
    notices_quarantine_lost: QuarantineLost,
    notices_intent_lost: IntentLost,
    notices_attempts_lost: AttemptsLost,
    notices_no_condemn: NoCondemn,
    notices_events_unsaved: EventsUnsaved,
    notices_no_deactivate: NoDeactivate,
    notices_no_prepare: NoPrepare,
    notices_hooks_assumed: HooksAssumed,
    notices_post_confirm_lost: PostConfirmLost,
    notices_evidence_lost: EvidenceLost,
    notices_verify_assumed: VerifyAssumed,
    notices_attempt_lost: AttemptLost,
    notices_give_up_lost: GiveUpLost,
    notices_confirm_lost: ConfirmLost,
}
