//! The reboot lock's rules one by one, each as a short story of commands and answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod lock_world;

use jiff::Timestamp;
use lock_world::{at, attempt, boot, client, context, version};
use protocol::lock::{
    ActKind, Command, Document, Holder, Limit, OnTrouble, Phase, Policy, Refusal, Reply, Request, Wait, apply,
};
use protocol::window::Window;

/// A lock and its clock.
struct Lock {
    document: Document,
    now: Timestamp,
    writes: usize,
}

impl Lock {
    fn new(policy: Policy) -> Self {
        Self { document: Document::new("default".parse().unwrap(), policy), now: at(0), writes: 0 }
    }

    fn of(max: u32) -> Self {
        Self::new(Policy { max: Limit::Count(max), ..Policy::default() })
    }

    fn tell(&mut self, command: &Command) -> Reply {
        let applied = apply(&self.document, command, &context(self.now));
        if let Some(document) = applied.document {
            assert_ne!(document, self.document, "{command:?} writes what is there");
            self.writes += 1;
            self.document = document;
        }
        applied.reply
    }

    fn refuses(&mut self, command: &Command, expected: &Refusal) {
        let before = self.document.clone();
        assert_eq!(self.tell(command), Reply::Refused { because: expected.clone() });
        assert_eq!(self.document, before, "a refusal changes nothing");
    }

    /// Tells it twice: the same answer, and nothing is written the second time.
    fn tell_twice(&mut self, command: &Command) -> Reply {
        let reply = self.tell(command);
        let writes = self.writes;
        let again = self.tell(command);
        assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&reply), "{command:?}");
        assert_eq!(self.writes, writes, "{command:?}");
        reply
    }

    fn pass(&mut self, seconds: i64) {
        self.now += jiff::SignedDuration::from_secs(seconds);
    }

    fn holder(&self, node: u8) -> &Holder {
        self.document.holder(&client(node)).unwrap()
    }

    fn holds(&self, node: u8) -> bool {
        self.document.holder(&client(node)).is_some()
    }

    /// Grants and verifies the node's attempt 1, from boot 0 into release 1.
    fn reboots(&mut self, node: u8) {
        assert!(matches!(self.tell_twice(&request(node, 1, 0, 1)), Reply::Granted { .. }));
        assert!(matches!(self.tell_twice(&verify(node, 1, 0)), Reply::Current { .. }));
    }

    fn fails(&mut self, node: u8) {
        self.reboots(node);
        assert_eq!(self.tell_twice(&fail(node, 1, 1)), Reply::Noted);
    }
}

fn request(node: u8, number: u16, in_boot: u16, to: u16) -> Command {
    Command::Request(Request {
        node: client(node),
        attempt: attempt(node, number),
        boot: boot(node, in_boot),
        from: version(0),
        to: version(to),
        zone: None,
        etcd_member: None,
        priority: 0,
        reason: "update".to_owned(),
    })
}

fn verify(node: u8, number: u16, in_boot: u16) -> Command {
    Command::Verify { node: client(node), attempt: attempt(node, number), boot: boot(node, in_boot) }
}

fn abandon(node: u8, number: u16, in_boot: u16) -> Command {
    Command::Abandon { node: client(node), attempt: attempt(node, number), boot: boot(node, in_boot) }
}

fn booted(node: u8, number: u16, in_boot: u16, runs: u16) -> Command {
    let (attempt, boot) = (attempt(node, number), boot(node, in_boot));
    Command::Booted { node: client(node), attempt, boot, version: version(runs) }
}

fn confirm(node: u8, number: u16, in_boot: u16, runs: u16) -> Command {
    let (attempt, boot) = (attempt(node, number), boot(node, in_boot));
    Command::Confirm { node: client(node), attempt, boot, version: version(runs) }
}

fn fail(node: u8, number: u16, in_boot: u16) -> Command {
    let reason = "the loader went back".to_owned();
    Command::Fail { node: client(node), attempt: attempt(node, number), boot: boot(node, in_boot), reason }
}

fn force(node: u8, grant: u64) -> Command {
    Command::ForceRelease { node: client(node), grant, who: "ada".to_owned(), why: "burnt down".to_owned() }
}

fn set(policy: Policy) -> Command {
    Command::SetPolicy { policy: Box::new(policy), who: "ada".to_owned(), why: "a change".to_owned() }
}

fn waits(reply: &Reply) -> &[Wait] {
    let Reply::Wait { because, .. } = reply else { panic!("{reply:?}") };
    because
}

fn at_night() -> Policy {
    // `at(0)` is 08:00 in UTC.
    Policy {
        windows: vec![Window { days: Vec::new(), start: jiff::civil::time(8, 0, 0, 0), length_s: 3600 }],
        ..Policy::default()
    }
}

#[test]
fn a_permit_goes_from_request_to_confirmation_and_the_next_one_follows() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    assert_eq!(lock.holder(1).phase, Phase::Rebooting);
    let reply = lock.tell_twice(&request(2, 1, 0, 1));
    assert!(matches!(waits(&reply), [Wait::Full { max: 1, .. }]), "{reply:?}");
    assert_eq!(lock.tell_twice(&booted(1, 1, 1, 1)), Reply::Noted);
    assert_eq!(lock.holder(1).boot_after, Some(boot(1, 1)));
    assert!(matches!(lock.tell_twice(&verify(2, 1, 0)), Reply::Refused { .. }));
    assert_eq!(lock.tell_twice(&confirm(1, 1, 1, 1)), Reply::Released { was_held: true });
    assert!(matches!(lock.tell_twice(&request(2, 1, 0, 1)), Reply::Granted { .. }));
    assert!(lock.document.queue.is_empty());
}

#[test]
fn only_another_boot_of_the_release_ends_the_reboot() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    for word in [booted(1, 1, 0, 1), confirm(1, 1, 0, 1), fail(1, 1, 0)] {
        lock.refuses(&word, &Refusal::SameBoot);
    }
    let other = Refusal::OtherVersion { expected: version(1), found: version(0) };
    lock.refuses(&booted(1, 1, 1, 0), &other);
    lock.refuses(&confirm(1, 1, 1, 0), &other);
    lock.refuses(&verify(1, 1, 1), &Refusal::OtherBoot { expected: boot(1, 0), found: boot(1, 1) });
    lock.refuses(&request(1, 1, 1, 1), &Refusal::Rebooted);
    lock.refuses(&abandon(1, 1, 1), &Refusal::Rebooted);
    lock.tell(&booted(1, 1, 1, 1));
    lock.refuses(&verify(1, 1, 0), &Refusal::Rebooted);
    lock.refuses(&abandon(1, 1, 0), &Refusal::Rebooted);
}

#[test]
fn what_is_late_about_an_ended_attempt_does_nothing() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    lock.tell(&confirm(1, 1, 1, 1));
    lock.refuses(&request(1, 1, 0, 1), &Refusal::AttemptOver);
    lock.refuses(&verify(1, 1, 0), &Refusal::NotHeld { holder: None });
    lock.tell(&request(1, 2, 1, 2));
    lock.refuses(&verify(1, 1, 0), &Refusal::NotHeld { holder: Some(attempt(1, 2)) });
    for late in [abandon(1, 1, 0), fail(1, 1, 1), confirm(1, 1, 1, 1)] {
        assert_eq!(lock.tell(&late), Reply::Released { was_held: false });
    }
    assert_eq!(lock.holder(1).attempt, Some(attempt(1, 2)));
}

#[test]
fn an_attempt_that_is_given_up_while_it_waits_never_acquires() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    lock.tell(&request(2, 1, 0, 1));
    assert_eq!(lock.tell_twice(&abandon(2, 1, 0)), Reply::Released { was_held: false });
    assert!(lock.document.queue.is_empty());
    // One whose request was overtaken, too.
    lock.tell(&abandon(3, 1, 0));
    lock.tell(&confirm(1, 1, 1, 1));
    lock.refuses(&request(2, 1, 0, 1), &Refusal::AttemptOver);
    lock.refuses(&request(3, 1, 0, 1), &Refusal::AttemptOver);
}

#[test]
fn a_permit_is_given_back_only_before_the_reboot() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    assert!(matches!(lock.tell_twice(&abandon(1, 1, 0)), Reply::Released { .. }));
    assert!(!lock.holds(1));
}

#[test]
fn silence_makes_stuck_and_frees_nothing_until_the_node_speaks() {
    let mut lock = Lock::of(2);
    lock.reboots(1);
    lock.pass(7 * 24 * 3600);
    assert_eq!(lock.tell_twice(&Command::Tick), Reply::Done);
    assert!(lock.holder(1).stuck_since.is_some() && lock.holder(1).phase == Phase::Rebooting);
    let reply = lock.tell(&request(2, 1, 0, 1));
    assert!(matches!(waits(&reply), [Wait::Halted { stuck: true, .. }]), "{reply:?}");
    assert_eq!(lock.tell(&booted(1, 1, 1, 1)), Reply::Noted);
    assert_eq!(lock.holder(1).stuck_since, None);
    assert!(matches!(lock.tell(&request(2, 1, 0, 1)), Reply::Granted { .. }));
}

#[test]
fn a_clock_that_goes_back_frees_nothing_and_keeps_no_place_for_ever() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    lock.tell(&request(2, 1, 0, 1));
    lock.pass(-24 * 3600);
    lock.tell(&Command::Tick);
    assert!(lock.holds(1));
    lock.pass(16 * 60);
    lock.tell(&Command::Tick);
    assert!(lock.document.queue.is_empty(), "node 2 was silent for longer than its place is kept");
}

#[test]
fn a_policy_frees_the_stuck_and_the_failed_where_it_says_so() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    lock.pass(24 * 3600);
    lock.tell(&Command::Tick);
    let policy = Policy { on_stuck: OnTrouble::Release, on_failed: OnTrouble::Release, ..Policy::default() };
    assert_eq!(lock.tell_twice(&set(policy)), Reply::Done);
    assert!(!lock.holds(1));
    lock.reboots(2);
    assert!(matches!(lock.tell_twice(&fail(2, 1, 1)), Reply::Released { .. }));
    assert!(!lock.holds(2));
}

#[test]
fn a_failed_node_halts_its_group_and_exchanges_its_permit_for_another_release() {
    let mut lock = Lock::of(2);
    assert!(matches!(lock.tell(&request(2, 1, 0, 1)), Reply::Granted { .. }));
    lock.fails(1);
    assert_eq!(lock.holder(1).reason, "the loader went back");
    let reply = lock.tell(&verify(2, 1, 0));
    assert!(matches!(waits(&reply), [Wait::Halted { stuck: false, .. }]), "{reply:?}");
    assert!(lock.holds(2), "a refused verification takes nothing away");
    for word in [booted(1, 1, 2, 1), confirm(1, 1, 2, 1)] {
        lock.refuses(&word, &Refusal::AttemptOver);
    }
    lock.refuses(&request(1, 2, 1, 1), &Refusal::SameRelease { version: version(1) });
    let grant = lock.holder(1).grant;
    assert!(matches!(lock.tell_twice(&request(1, 2, 1, 2)), Reply::Granted { .. }));
    assert!(lock.holder(1).grant > grant && lock.holder(1).boot_before == Some(boot(1, 1)));
    assert!(matches!(lock.tell(&verify(1, 2, 1)), Reply::Current { .. }));
    let reply = lock.tell(&verify(2, 1, 0));
    assert!(
        matches!(waits(&reply), [Wait::Halted { stuck: false, .. }]),
        "only a confirmation ends it: {reply:?}"
    );
    assert_eq!(lock.tell(&confirm(1, 2, 2, 2)), Reply::Released { was_held: true });
    assert!(matches!(lock.tell(&verify(2, 1, 0)), Reply::Current { .. }));
}

#[test]
fn an_exchange_that_comes_to_nothing_leaves_the_group_halted() {
    let mut lock = Lock::of(2);
    lock.fails(1);
    let grant = lock.holder(1).grant;
    lock.tell(&request(1, 2, 1, 2));
    // Another one in its place, in the same boot; not for what failed.
    lock.refuses(&request(1, 3, 1, 1), &Refusal::SameRelease { version: version(1) });
    lock.tell(&request(1, 3, 1, 3));
    assert_eq!(lock.tell_twice(&abandon(1, 3, 1)), Reply::Released { was_held: false });
    let failed = lock.holder(1);
    assert_eq!((failed.phase, failed.grant, failed.to.clone()), (Phase::Failed, grant, Some(version(1))));
    let reply = lock.tell(&request(2, 1, 0, 3));
    assert!(matches!(waits(&reply), [Wait::Halted { stuck: false, .. }, ..]), "{reply:?}");
    // It may try again, and fail again.
    lock.tell(&request(1, 4, 1, 3));
    assert!(matches!(lock.tell(&verify(1, 4, 1)), Reply::Current { .. }));
    lock.tell(&fail(1, 4, 2));
    let again = lock.holder(1);
    assert_eq!(
        (again.phase, again.to.clone(), again.instead_of.clone()),
        (Phase::Failed, Some(version(3)), None)
    );
}

#[test]
fn failed_nodes_do_not_keep_each_other_from_what_repairs_them() {
    let mut lock = Lock::of(2);
    for node in [1, 2] {
        assert!(matches!(lock.tell(&request(node, 1, 0, 1)), Reply::Granted { .. }));
    }
    for node in [1, 2] {
        assert!(matches!(lock.tell(&verify(node, 1, 0)), Reply::Current { .. }));
    }
    for node in [1, 2] {
        lock.tell(&fail(node, 1, 1));
    }
    for node in [1, 2] {
        lock.tell(&request(node, 2, 1, 2));
        assert!(matches!(lock.tell(&verify(node, 2, 1)), Reply::Current { .. }), "{node}");
    }
    lock.tell(&confirm(1, 2, 2, 2));
    let reply = lock.tell(&request(3, 1, 0, 2));
    assert!(matches!(waits(&reply), [Wait::Halted { .. }, ..]), "one is not made good yet: {reply:?}");
    lock.tell(&confirm(2, 2, 2, 2));
    assert!(matches!(lock.tell(&request(3, 1, 0, 2)), Reply::Granted { .. }));
}

#[test]
fn an_exchange_waits_for_a_window() {
    let mut lock = Lock::new(at_night());
    lock.fails(1);
    lock.pass(3600);
    let reply = lock.tell_twice(&request(1, 2, 1, 2));
    assert!(matches!(waits(&reply), [Wait::Window { .. }]), "{reply:?}");
    assert_eq!(lock.holder(1).attempt, Some(attempt(1, 1)));
}

#[test]
fn a_grant_is_not_current_when_too_little_of_the_window_is_left() {
    let mut lock = Lock::new(at_night());
    lock.tell(&request(1, 1, 0, 1));
    lock.pass(3600 - 600);
    let reply = lock.tell(&verify(1, 1, 0));
    assert!(matches!(waits(&reply), [Wait::Window { .. }]), "{reply:?}");
    assert_eq!(lock.holder(1).phase, Phase::Granted);
}

#[test]
fn a_node_that_lost_its_record_takes_its_own_permit_over_in_the_same_boot_only() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    assert!(matches!(lock.tell_twice(&request(1, 2, 0, 1)), Reply::Granted { .. }));
    lock.refuses(&verify(1, 1, 0), &Refusal::NotHeld { holder: Some(attempt(1, 2)) });
    lock.refuses(&request(1, 3, 1, 1), &Refusal::Rebooted);
    assert_eq!(lock.document.holders.len(), 1);
}

#[test]
fn an_operator_takes_only_the_grant_that_they_saw() {
    let mut lock = Lock::of(1);
    lock.refuses(&force(1, 1), &Refusal::NotHeld { holder: None });
    lock.tell(&request(1, 1, 0, 1));
    let grant = lock.holder(1).grant;
    lock.refuses(&force(1, grant + 1), &Refusal::GrantChanged { expected: grant + 1, found: grant });
    assert_eq!(lock.tell_twice(&force(1, grant)), Reply::Done);
    assert!(matches!(&lock.document.acts[..], [act] if act.who == "ada" && act.why == "burnt down"));
    lock.refuses(&verify(1, 1, 0), &Refusal::NotHeld { holder: None });
    lock.refuses(&request(1, 1, 0, 1), &Refusal::AttemptOver);
    // The same command, late, spares a newer grant.
    assert!(matches!(lock.tell(&request(1, 2, 0, 1)), Reply::Granted { .. }));
    assert_eq!(lock.tell(&force(1, grant)), Reply::Done);
    assert!(lock.holds(1));
}

#[test]
fn a_removed_node_leaves_no_permit_and_no_place() {
    let mut lock = Lock::of(1);
    lock.reboots(1);
    lock.tell(&request(2, 1, 0, 1));
    for node in [1, 2] {
        let remove =
            Command::RemoveNode { node: client(node), who: "ada".to_owned(), why: "scrapped".to_owned() };
        assert_eq!(lock.tell_twice(&remove), Reply::Done);
    }
    assert!(lock.document.holders.is_empty() && lock.document.queue.is_empty());
    let removed = |kind: &ActKind| matches!(kind, ActKind::RemoveNode { attempt: Some(_), .. });
    assert!(lock.document.acts.iter().all(|act| removed(&act.kind)) && lock.document.acts.len() == 2);
    lock.refuses(&request(2, 1, 0, 1), &Refusal::AttemptOver);
}

#[test]
fn a_lower_limit_grants_nothing_until_the_number_is_below_it() {
    let mut lock = Lock::of(2);
    lock.reboots(1);
    lock.reboots(2);
    lock.tell(&set(Policy::default()));
    assert_eq!(lock.document.holders.len(), 2);
    lock.tell(&confirm(1, 1, 1, 1));
    assert!(matches!(waits(&lock.tell(&request(3, 1, 0, 1))), [Wait::Full { max: 1, .. }]));
    lock.tell(&confirm(2, 1, 1, 1));
    assert!(matches!(lock.tell(&request(3, 1, 0, 1)), Reply::Granted { .. }));
}

#[test]
fn waiters_go_by_priority_then_in_turn_and_may_not_be_passed() {
    let policy = Policy { priorities: [(client(4), 1)].into(), ..Policy::default() };
    let mut lock = Lock::new(policy);
    lock.reboots(1);
    for node in [2, 3, 4] {
        lock.tell(&request(node, 1, 0, 1));
    }
    let order: Vec<_> = lock.document.queue.iter().map(|waiter| waiter.node.clone()).collect();
    assert_eq!(order, [4, 2, 3].map(client));
    lock.tell(&set(Policy { priorities: [(client(3), 2)].into(), ..Policy::default() }));
    assert_eq!(lock.document.queue[0].node, client(3), "a new policy counts before node 3 asks again");
    lock.tell(&set(Policy { priorities: [(client(3), 0), (client(4), 1)].into(), ..Policy::default() }));
    lock.tell(&abandon(3, 1, 0));
    lock.tell(&request(3, 2, 0, 1));
    lock.tell(&confirm(1, 1, 1, 1));
    let reply = lock.tell(&request(2, 1, 0, 1));
    assert!(matches!(waits(&reply), [Wait::Queue { ahead: 1 }]), "{reply:?}");
    // With two permits the second one goes too, before the first has come for its own.
    lock.tell(&set(Policy { max: Limit::Count(2), ..lock.document.policy.clone() }));
    assert!(matches!(lock.tell(&request(2, 1, 0, 1)), Reply::Granted { .. }));
    assert!(matches!(waits(&lock.tell(&request(3, 2, 0, 1))), [Wait::Queue { ahead: 1 }]));
    // A waiter that stopped asking is not waited for.
    lock.pass(10 * 60);
    lock.tell(&request(3, 2, 0, 1));
    lock.pass(6 * 60);
    assert!(matches!(lock.tell(&request(3, 2, 0, 1)), Reply::Granted { .. }));
}

#[test]
fn a_full_queue_turns_away_and_asking_often_does_not_write() {
    let mut lock = Lock::of(1);
    lock.reboots(0);
    let many: Vec<Command> = (0..1025)
        .map(|number| Command::FleetLockRequest { node: format!("v1-{number}").parse().unwrap() })
        .collect();
    for command in &many[..1024] {
        lock.tell(command);
    }
    let writes = lock.writes;
    let reply = lock.tell(&many[1024]);
    assert!(waits(&reply).contains(&Wait::QueueFull), "{reply:?}");
    lock.pass(4 * 60);
    lock.tell(&many[7]);
    assert_eq!(lock.writes, writes);
    lock.pass(2 * 60);
    lock.tell(&many[7]);
    assert_eq!(lock.writes, writes + 1);
}

#[test]
fn hints_grow_with_the_place_differ_by_node_and_never_cost_a_place() {
    let hints = |lock: &mut Lock| -> Vec<u32> {
        let hint = |node: u8| match lock.tell(&request(node, 1, 0, 1)) {
            Reply::Wait { retry_after_s, .. } => retry_after_s,
            other => panic!("{other:?}"),
        };
        (1..100).map(hint).collect()
    };
    let mut lock = Lock::of(1);
    lock.reboots(0);
    let in_turn = hints(&mut lock);
    assert!(in_turn[0] < 20 && in_turn[4] > in_turn[0] && in_turn[90] > 200, "{in_turn:?}");
    let mut closed = Lock::new(at_night());
    closed.pass(2 * 3600);
    let closed = hints(&mut closed);
    let differing: std::collections::BTreeSet<_> = closed.iter().collect();
    assert!(differing.len() > 40, "{closed:?}");
    assert!(in_turn.iter().chain(&closed).all(|hint| *hint <= 10 * 60), "a place is kept for 15 minutes");
}

#[test]
fn fleet_lock_has_no_attempts_and_touches_none() {
    let mut lock = Lock::of(1);
    let ask = |node| Command::FleetLockRequest { node: client(node) };
    let steady = |node| Command::FleetLockSteady { node: client(node) };
    assert!(matches!(lock.tell_twice(&ask(1)), Reply::Granted { .. }));
    assert!(matches!(waits(&lock.tell(&ask(2))), [Wait::Full { .. }]));
    // Not a holder: no write, whatever is overdue meanwhile.
    lock.pass(48 * 3600);
    let writes = lock.writes;
    assert_eq!(lock.tell(&steady(3)), Reply::Released { was_held: false });
    assert_eq!(lock.writes, writes);
    assert_eq!(lock.tell(&steady(2)), Reply::Released { was_held: false });
    assert!(lock.document.queue.is_empty());
    assert_eq!(lock.tell_twice(&steady(1)), Reply::Released { was_held: true });
    lock.reboots(4);
    lock.refuses(&ask(4), &Refusal::HeldByAttempt);
    lock.refuses(&steady(4), &Refusal::HeldByAttempt);
}

#[test]
fn a_canary_opens_its_release_to_the_others() {
    let mut lock = Lock::new(Policy { canaries: vec![client(1)], ..Policy::default() });
    assert!(matches!(waits(&lock.tell(&request(2, 1, 0, 1))), [Wait::Canary { .. }]));
    lock.reboots(1);
    lock.tell_twice(&confirm(1, 1, 1, 1));
    assert!(matches!(lock.tell(&request(2, 1, 0, 1)), Reply::Granted { .. }));
}

#[test]
fn a_document_stays_bounded_and_is_read_as_it_was_written() {
    let mut lock = Lock::of(1);
    for number in 1..700 {
        lock.tell(&request(1, number, 0, 1));
        let grant = lock.holder(1).grant;
        let long = "ä".repeat(400);
        let command = Command::ForceRelease { node: client(1), grant, who: long.clone(), why: long };
        assert_eq!(lock.tell(&command), Reply::Done);
    }
    let Document { acts, finished, .. } = &lock.document;
    assert!(acts.len() == 64 && finished.len() == 512 && acts[0].why.len() <= 256);
    let text = serde_json::to_string(&lock.document).unwrap();
    assert_eq!(serde_json::from_str::<Document>(&text).unwrap(), lock.document);
}
