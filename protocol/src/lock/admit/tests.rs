use super::*;
use crate::lock::command::{Population, QuorumHealth, Usage};
use crate::lock::document::Proved;
use crate::lock::policy::Quorum;
use crate::window::Window;
use jiff::civil::{Weekday, time};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn id(text: &str) -> ClientId {
    text.parse().unwrap()
}

fn zone(text: &str) -> Zone {
    text.parse().unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn context() -> Context {
    Context { now: at("2026-11-24T12:00:00Z"), population: None, caps: Vec::new(), quorum: None }
}

fn document(policy: Policy, holders: Vec<Holder>) -> Document {
    Document { holders, ..Document::new("default".parse().unwrap(), policy) }
}

fn of(max: u32) -> Policy {
    Policy { max: Limit::Count(max), ..Policy::default() }
}

fn holder(node: &str) -> Holder {
    let now = context().now;
    Holder {
        node: id(node),
        attempt: Some("a1".parse().unwrap()),
        boot_before: Some("boot-1".parse().unwrap()),
        boot_after: None,
        from: Some(version("1.0")),
        to: Some(version("1.1")),
        zone: None,
        etcd_member: None,
        reason: "update".to_owned(),
        grant: 1,
        phase: Phase::Granted,
        granted_at: now,
        phase_at: now,
        deadline: now,
        stuck_since: None,
        instead_of: None,
    }
}

fn member(node: &str, name: &str) -> Holder {
    Holder { etcd_member: Some(name.to_owned()), ..holder(node) }
}

/// The reasons of a node that would hold `like`, were it admitted.
fn asked(document: &Document, like: &Holder, context: &Context) -> Vec<Wait> {
    admit(document, &Candidate::from(like), context).err().unwrap_or_default()
}

fn reasons(document: &Document) -> Vec<Wait> {
    asked(document, &holder("me"), &context())
}

fn fleet_lock(node: &str) -> Holder {
    Holder { attempt: None, boot_before: None, from: None, to: None, ..holder(node) }
}

#[test]
fn a_free_permit_is_given_and_a_full_lock_names_its_holders() {
    assert_eq!(reasons(&document(of(1), vec![])), []);
    assert_eq!(reasons(&document(of(2), vec![holder("a")])), []);
    let full = Wait::Full { max: 1, holders: vec![id("a")] };
    assert_eq!(reasons(&document(of(1), vec![holder("a")])), [full]);
}

#[test]
fn more_holders_than_max_grant_nothing_and_break_nothing() {
    let full = Wait::Full { max: 1, holders: vec![id("a"), id("b")] };
    assert_eq!(reasons(&document(of(1), vec![holder("a"), holder("b")])), [full]);
}

#[test]
fn percentages_round_down_but_to_at_least_one() {
    for (percent, size, expected) in [
        (10, 300, 30),
        (10, 9, 1),
        (10, 19, 1),
        (10, 20, 2),
        (100, 7, 7),
        (1, 0, 1),
        (0, 300, 0),
        (200, 7, 7),
    ] {
        assert_eq!(count(Limit::Percent(percent), Some(size)), Some(expected), "{percent} % of {size}");
    }
    assert_eq!(count(Limit::Percent(100), Some(u32::MAX)), Some(u32::MAX));
}

#[test]
fn of_a_counted_population_and_the_policys_size_the_lesser_counts_and_without_both_nobody_is_admitted() {
    let mut document = document(Policy { max: Limit::Percent(10), ..Policy::default() }, vec![holder("a")]);
    assert_eq!(reasons(&document), [Wait::SizeUnknown { zone: None }]);
    document.policy.size = Some(20);
    assert_eq!(reasons(&document), []);
    let full = Wait::Full { max: 1, holders: vec![id("a")] };
    let of = |total| Some(Population { total, zones: BTreeMap::new() });
    let counted = |document: &Document, total| {
        asked(document, &holder("me"), &Context { population: of(total), ..context() })
    };
    assert_eq!(counted(&document, 10), std::slice::from_ref(&full));
    document.policy.size = Some(10);
    assert_eq!(counted(&document, 20), [full], "nodes that were made up raise nothing");
    document.policy.size = None;
    assert_eq!(counted(&document, 20), []);
}

#[test]
fn a_full_zone_holds_up_only_its_own_nodes() {
    let zones = Zones {
        max: Limit::Count(1),
        limits: BTreeMap::from([(zone("big"), Limit::Count(2))]),
        sizes: BTreeMap::new(),
    };
    let policy = Policy { zones: Some(zones), ..of(9) };
    let in_zone = |node, name| Holder { zone: Some(zone(name)), ..holder(node) };
    let document = document(policy, vec![in_zone("a", "r1"), in_zone("b", "big")]);
    let full = Wait::ZoneFull { zone: zone("r1"), max: 1, holders: vec![id("a")] };
    assert_eq!(asked(&document, &in_zone("me", "r1"), &context()), [full]);
    assert_eq!(asked(&document, &in_zone("me", "r2"), &context()), []);
    assert_eq!(asked(&document, &in_zone("me", "big"), &context()), []);
    assert_eq!(asked(&document, &holder("me"), &context()), [Wait::NoZone]);
}

#[test]
fn a_holder_of_unknown_zone_counts_in_every_zone() {
    let zones = Zones { max: Limit::Count(1), limits: BTreeMap::new(), sizes: BTreeMap::new() };
    let document = document(Policy { zones: Some(zones), ..of(9) }, vec![fleet_lock("old")]);
    let me = Holder { zone: Some(zone("r1")), ..holder("me") };
    let full = Wait::ZoneFull { zone: zone("r1"), max: 1, holders: vec![id("old")] };
    assert_eq!(asked(&document, &me, &context()), [full]);
}

#[test]
fn a_percentage_of_a_zone_needs_the_zones_size() {
    let zones = Zones { max: Limit::Percent(10), limits: BTreeMap::new(), sizes: BTreeMap::new() };
    let in_r1 = |node| Holder { zone: Some(zone("r1")), ..holder(node) };
    let mut document = document(Policy { zones: Some(zones), ..of(9) }, vec![in_r1("a")]);
    assert_eq!(asked(&document, &in_r1("me"), &context()), [Wait::SizeUnknown { zone: Some(zone("r1")) }]);
    document.policy.zones.as_mut().unwrap().sizes.insert(zone("r1"), 20);
    assert_eq!(asked(&document, &in_r1("me"), &context()), []);
    let population = Some(Population { total: 100, zones: BTreeMap::from([(zone("r1"), 10)]) });
    let full = Wait::ZoneFull { zone: zone("r1"), max: 1, holders: vec![id("a")] };
    assert_eq!(asked(&document, &in_r1("me"), &Context { population, ..context() }), [full]);
}

#[test]
fn a_cap_counts_this_group_and_the_others() {
    let usage = |max| Usage { cap: "dc".to_owned(), max, held_elsewhere: 1 };
    let document = document(of(9), vec![holder("a")]);
    let capped = |max| asked(&document, &holder("me"), &Context { caps: vec![usage(max)], ..context() });
    assert_eq!(capped(3), []);
    assert_eq!(capped(2), [Wait::CapFull { cap: "dc".to_owned(), max: 2, held: 2 }]);
}

/// Saturday's night in Berlin, 22:00 to 06:00.
fn berlin() -> Policy {
    let window = Window { days: vec![Weekday::Saturday], start: time(22, 0, 0, 0), length_s: 8 * 3600 };
    Policy { windows: vec![window], time_zone: "Europe/Berlin".to_owned(), ..of(1) }
}

#[test]
fn windows_open_by_their_zones_clock_and_close_with_time_for_a_reboot_left() {
    let document = document(berlin(), vec![]);
    let opens = |now, expected: Option<&str>| {
        let wait = asked(&document, &holder("me"), &Context { now: at(now), ..context() });
        assert_eq!(wait, expected.map(|at| Wait::Window { opens: at.parse().ok() }).as_slice(), "at {now}");
    };
    // Winter: CET is UTC+1. The clock of Berlin shows 22:00 at 21:00Z.
    opens("2026-11-28T20:59:59Z", Some("2026-11-28T21:00:00Z"));
    opens("2026-11-28T21:00:00Z", None);
    opens("2026-11-29T04:49:59Z", None);
    opens("2026-11-29T04:50:00Z", Some("2026-12-05T21:00:00Z"));
    // Summer: CEST is UTC+2.
    opens("2026-07-04T20:00:00Z", None);
    // The night in which clocks go forward: 22:00 CET is 21:00Z and 06:00 CEST is 04:00Z.
    opens("2026-03-28T21:00:00Z", None);
    opens("2026-03-29T03:49:59Z", None);
    opens("2026-03-29T03:50:00Z", Some("2026-04-04T20:00:00Z"));
    // The night in which they go back: 22:00 CEST is 20:00Z, and eight hours later it is 05:00 CET.
    opens("2026-10-24T20:00:00Z", None);
    opens("2026-10-25T03:49:59Z", None);
    opens("2026-10-25T03:50:00Z", Some("2026-10-31T21:00:00Z"));
}

#[test]
fn a_window_that_is_too_short_or_in_no_known_zone_admits_nobody() {
    let mut policy = Policy { reboot_takes_s: 8 * 3600, ..berlin() };
    assert_eq!(reasons(&document(policy.clone(), vec![])), [Wait::Window { opens: None }]);
    policy.time_zone = "Mars/Olympus".to_owned();
    assert_eq!(reasons(&document(policy, vec![])), [Wait::TimeZone { name: "Mars/Olympus".to_owned() }]);
    assert!(Policy::default().time_zone().is_some(), "UTC is always known");
}

#[test]
fn trouble_halts_its_group_as_the_policy_says() {
    let since = at("2026-11-24T10:00:00Z");
    let failed = Holder { phase: Phase::Failed, phase_at: since, ..holder("a") };
    let stuck = Holder { stuck_since: Some(since), ..holder("b") };
    let halted = |node, stuck| Wait::Halted { node: id(node), stuck, since, reason: "update".to_owned() };
    let mut document = document(of(9), vec![failed.clone(), stuck.clone()]);
    assert_eq!(reasons(&document), [halted("a", false), halted("b", true)]);
    assert_eq!(in_force(&document, &holder("c"), &context()).unwrap_err().len(), 2);
    // A node's own trouble is no reason against itself, the other's is.
    assert_eq!(in_force(&document, &stuck, &context()), Err(vec![halted("a", false)]));
    document.policy.on_failed = OnTrouble::Hold;
    assert_eq!(reasons(&document), [halted("b", true)]);
    document.policy.on_stuck = OnTrouble::Hold;
    assert_eq!(reasons(&document), []);
    document.policy.max = Limit::Count(2);
    assert_eq!(reasons(&document).len(), 1, "with hold it still counts");
}

fn health(members: &[(&str, bool)]) -> Context {
    let members = members.iter().map(|(name, answers)| ((*name).to_owned(), *answers)).collect();
    Context { quorum: Some(QuorumHealth { members }), ..context() }
}

fn guarded(members: Option<u32>, holders: Vec<Holder>) -> Document {
    document(Policy { quorum: Some(Quorum { members }), ..of(9) }, holders)
}

#[test]
fn a_member_reboots_only_if_enough_others_answer() {
    let well = health(&[("e1", true), ("e2", true), ("e3", true)]);
    let short = Wait::Quorum { left: 1, needed: 2 };
    let me = member("me", "e1");
    assert_eq!(asked(&guarded(None, vec![]), &me, &well), []);
    assert_eq!(asked(&guarded(None, vec![member("b", "e2")]), &me, &well), std::slice::from_ref(&short));
    assert_eq!(asked(&guarded(None, vec![holder("b")]), &me, &well), [], "not a member");
    let ill = health(&[("e1", true), ("e2", true), ("e3", false)]);
    assert_eq!(asked(&guarded(None, vec![]), &me, &ill), [short]);
    assert_eq!(asked(&guarded(None, vec![]), &member("me", "e3"), &ill), [], "it is down already");
    assert_eq!(asked(&guarded(None, vec![]), &holder("me"), &ill), [], "not a member");
    let two = health(&[("e1", true), ("e2", true)]);
    assert_eq!(asked(&guarded(None, vec![]), &me, &two), [Wait::Quorum { left: 1, needed: 2 }]);
}

#[test]
fn a_cluster_that_cannot_be_asked_is_counted_by_the_policy_or_not_at_all() {
    let me = member("me", "e1");
    assert_eq!(asked(&guarded(None, vec![]), &me, &context()), [Wait::QuorumUnknown]);
    assert_eq!(asked(&guarded(None, vec![]), &me, &health(&[])), [Wait::QuorumUnknown]);
    assert_eq!(asked(&guarded(Some(3), vec![]), &me, &context()), []);
    let held = guarded(Some(3), vec![member("b", "e2")]);
    assert_eq!(asked(&held, &me, &context()), [Wait::Quorum { left: 1, needed: 2 }]);
    assert_eq!(asked(&guarded(Some(5), vec![member("b", "e2")]), &me, &context()), []);
}

#[test]
fn what_cannot_be_named_counts_as_a_member() {
    let well = health(&[("e1", true), ("e2", true), ("e3", true)]);
    let short = [Wait::Quorum { left: 1, needed: 2 }];
    let me = member("me", "e1");
    assert_eq!(asked(&guarded(None, vec![fleet_lock("old")]), &me, &well), short);
    assert_eq!(asked(&guarded(None, vec![member("b", "renamed")]), &me, &well), short);
    assert_eq!(asked(&guarded(None, vec![member("b", "e2")]), &fleet_lock("old"), &well), short);
    assert_eq!(asked(&guarded(None, vec![]), &fleet_lock("old"), &well), []);
}

#[test]
fn others_wait_until_a_canary_has_confirmed_the_release() {
    let mut document = document(Policy { canaries: vec![id("bird")], ..of(9) }, vec![]);
    assert_eq!(reasons(&document), [Wait::Canary { version: version("1.1") }]);
    assert_eq!(asked(&document, &holder("bird"), &context()), []);
    assert_eq!(asked(&document, &fleet_lock("old"), &context()), [], "it names no version");
    let proved = |text| Proved { version: version(text), node: id("bird"), at: context().now };
    document.proved.push(proved("1.0"));
    assert_eq!(reasons(&document), [Wait::Canary { version: version("1.1") }]);
    document.proved.push(proved("1.1"));
    assert_eq!(reasons(&document), []);
}

#[test]
fn all_reasons_are_given_and_what_a_person_must_end_comes_first() {
    let zones = Zones { max: Limit::Count(1), limits: BTreeMap::new(), sizes: BTreeMap::new() };
    let policy = Policy {
        zones: Some(zones),
        canaries: vec![id("bird")],
        quorum: Some(Quorum { members: Some(3) }),
        ..Policy { max: Limit::Count(1), ..berlin() }
    };
    let r1 = Some(zone("r1"));
    let failed = Holder { phase: Phase::Failed, zone: r1.clone(), ..member("a", "e1") };
    let caps = vec![Usage { cap: "dc".to_owned(), max: 1, held_elsewhere: 0 }];
    let me = Holder { zone: r1, ..member("me", "e2") };
    let found = asked(&document(policy, vec![failed]), &me, &Context { caps, ..context() });
    let names: Vec<String> = found
        .iter()
        .map(|wait| serde_json::to_value(wait).unwrap()["wait"].as_str().unwrap().to_owned())
        .collect();
    let expected = ["halted", "window", "canary", "full", "zone-full", "cap-full", "quorum"];
    assert_eq!(names, expected);
}

#[test]
fn a_limit_of_zero_pauses_grants_and_reboots_and_comes_first() {
    let since = context().now;
    let stuck = Holder { stuck_since: Some(since), ..holder("a") };
    let paused = Wait::Full { max: 0, holders: vec![id("a")] };
    let document = document(of(0), vec![stuck.clone()]);
    assert_eq!(reasons(&document)[0], paused);
    assert_eq!(in_force(&document, &stuck, &context()), Err(vec![paused]));
}

#[test]
fn a_grant_stays_in_force_while_its_own_permit_fills_the_lock() {
    let well = health(&[("e1", true), ("e2", true), ("e3", true)]);
    let me = member("me", "e1");
    let mut lock = guarded(None, vec![me.clone()]);
    lock.policy.max = Limit::Count(1);
    lock.policy.canaries = vec![id("bird")];
    assert_eq!(in_force(&lock, &me, &well), Ok(()));
    let ill = health(&[("e1", true), ("e2", true), ("e3", false)]);
    assert_eq!(in_force(&lock, &me, &ill), Err(vec![Wait::Quorum { left: 1, needed: 2 }]));
    lock.policy = berlin();
    let opens = Some(at("2026-11-28T21:00:00Z"));
    assert_eq!(in_force(&lock, &me, &well), Err(vec![Wait::Window { opens }]));
}

proptest! {
    /// Whatever the policy and the order of arrivals, what admission lets in stays within every limit (I1).
    #[test]
    fn admitting_one_after_another_never_passes_a_limit(
        max in prop_oneof![(0_u32..6).prop_map(Limit::Count), (1_u8..=100).prop_map(Limit::Percent)],
        zone_max in prop_oneof![(0_u32..3).prop_map(Limit::Count), (1_u8..=100).prop_map(Limit::Percent)],
        cap in 0_u32..8, elsewhere in 0_u32..4, members in 1_u32..7,
        nodes in prop::collection::vec((0_u8..3, prop::option::of(0_u32..7)), 0..20),
    ) {
        let zone_of = |n: u8| zone(&format!("z{n}"));
        let zones = Zones { max: zone_max, limits: BTreeMap::new(), sizes: BTreeMap::new() };
        let quorum = Some(Quorum { members: Some(members) });
        let mut lock = document(Policy { max, zones: Some(zones), quorum, ..Policy::default() }, vec![]);
        let total = u32::try_from(nodes.len()).unwrap();
        let size_of = |n| u32::try_from(nodes.iter().filter(|node| node.0 == n).count()).unwrap();
        let population = Population { total, zones: (0..3).map(|n| (zone_of(n), size_of(n))).collect() };
        let caps = vec![Usage { cap: "dc".to_owned(), max: cap, held_elsewhere: elsewhere }];
        let context = Context { population: Some(population), caps, ..context() };
        for (n, (z, etcd)) in nodes.iter().enumerate() {
            let etcd_member = etcd.map(|m| format!("e{m}"));
            let me = Holder { zone: Some(zone_of(*z)), etcd_member, ..holder(&format!("n{n}")) };
            match admit(&lock, &Candidate::from(&me), &context) {
                Ok(()) => lock.holders.push(me),
                Err(reasons) => prop_assert!(!reasons.is_empty()),
            }
        }
        let held = held(&lock);
        prop_assert!(held <= count(max, Some(total)).unwrap());
        prop_assert!(held == 0 || held + elsewhere <= cap);
        for z in 0..3 {
            let here = lock.holders.iter().filter(|h| h.zone == Some(zone_of(z))).count();
            prop_assert!(u32::try_from(here).unwrap() <= count(zone_max, Some(size_of(z))).unwrap());
        }
        let down: BTreeSet<_> = lock.holders.iter().filter_map(|h| h.etcd_member.as_ref()).collect();
        let up = members.saturating_sub(u32::try_from(down.len()).unwrap());
        prop_assert!(down.is_empty() || up > members / 2, "{up} of {members} members are up");
    }

    /// What is admitted would, granted, be in force at once: no node gets a permit that it cannot use.
    #[test]
    fn what_is_admitted_is_in_force(
        max in 0_u32..3, held in 0_usize..3, failed: bool, stuck: bool, hold: bool, windows: bool,
        hours in 0_i64..400, etcd in prop::option::of(0_u32..5), answers in prop::collection::vec(any::<bool>(), 0..5),
    ) {
        let on = if hold { OnTrouble::Hold } else { OnTrouble::Halt };
        let windows = if windows { berlin().windows } else { Vec::new() };
        let quorum = Some(Quorum { members: None });
        let policy = Policy { windows, quorum, on_failed: on, on_stuck: on, ..of(max) };
        let mut lock = document(policy, (0..held).map(|n| holder(&format!("n{n}"))).collect());
        if let Some(first) = lock.holders.first_mut() {
            first.phase = if failed { Phase::Failed } else { Phase::Granted };
            first.stuck_since = stuck.then_some(context().now);
        }
        let members: Vec<_> = (0..answers.len()).map(|n| format!("e{n}")).collect();
        let members: Vec<_> = members.iter().map(String::as_str).zip(answers).collect();
        let now = context().now.checked_add(SignedDuration::from_hours(hours)).unwrap();
        let context = Context { now, ..health(&members) };
        let me = Holder { etcd_member: etcd.map(|m| format!("e{m}")), ..holder("me") };
        if admit(&lock, &Candidate::from(&me), &context).is_ok() {
            lock.holders.push(me.clone());
            prop_assert_eq!(in_force(&lock, &me, &context), Ok(()));
        }
    }
}
