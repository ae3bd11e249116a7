//! What a person reads, and what a program does.

use super::*;
use protocol::lock::{Command, Limit, Request, Zone, apply};
use protocol::status::{Progress, SCHEMA as STATUS_SCHEMA, StateName};
use protocol::window::Window;

const NOW: &str = "2026-11-24T12:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn id(node: &str) -> ClientId {
    node.parse().unwrap()
}

fn context(now: &str) -> Context {
    Context { now: at(now), population: None, caps: Vec::new(), quorum: None }
}

fn settings() -> Lock {
    Lock {
        backend: LockBackend::Server,
        group: "default".parse().unwrap(),
        zone: None,
        priority: 0,
        etcd_member: None,
        timeout: std::time::Duration::from_secs(5),
        deadline: std::time::Duration::from_secs(30),
    }
}

/// A lock that these nodes have asked, one after the other.
fn asked(policy: Policy, nodes: &[&str]) -> Document {
    let document = Document::new("default".parse().unwrap(), policy);
    nodes.iter().fold(document, |document, node| {
        let request = Request {
            node: id(node),
            attempt: format!("attempt-of-{node}").parse().unwrap(),
            boot: "before".parse().unwrap(),
            from: "1.0.0".parse().unwrap(),
            to: "1.1.0".parse().unwrap(),
            zone: None,
            etcd_member: None,
            priority: 0,
            reason: "update".to_owned(),
        };
        apply(&document, &Command::Request(request), &context("2026-11-24T11:58:00Z")).document.unwrap()
    })
}

fn status_of(permit: Option<&str>, reason: &str) -> Status {
    Status {
        schema: STATUS_SCHEMA,
        state: StateName::Waiting,
        reason: reason.to_owned(),
        booted: None,
        other: None,
        staged: None,
        progress: Progress::default(),
        last_check: None,
        channel: None,
        group: None,
        permit: permit.map(str::to_owned),
        quarantine: Vec::new(),
        error: None,
    }
}

fn report(document: Document, node: &str, now: &str) -> Report {
    let view = View { document, revision: 7, context: context(now) };
    Report {
        strategy: "lock",
        group: "default".parse().unwrap(),
        backend: "server",
        kept: "kept by the update server http://u.example/".to_owned(),
        node: Some(id(node)),
        engine: Some(status_of(None, "permit: 1 of 1 permits held by n1")),
        running: true,
        lock: Ok(seen(view, &settings(), &id(node), Some(&"1.1.0".parse().unwrap()))),
    }
}

#[test]
fn a_waiter_sees_its_place_the_first_reason_and_all_others() {
    let report = report(asked(Policy::default(), &["n1", "n2", "n3"]), "n3", NOW);
    assert_eq!(
        text(&report, false),
        "strategy:  lock\n\
         lock:      group default, kept by the update server http://u.example/\n\
         node:      n3  waits, place 2, since 2026-11-24T11:58:00Z (2 min ago), to 1.1.0\n           \
         | 1 of 1 permits held by n1\n\
         windows:   none: a reboot can begin at any time\n\
         engine:    waiting: permit: 1 of 1 permits held by n1\n\n\
         default: 1 holding, 2 waiting\n  \
         n1  makes ready since 2026-11-24T11:58:00Z (2 min ago), 1.0.0 -> 1.1.0, due by 2026-11-24T12:58:00Z (update)\n  \
         n2  waits, place 1, since 2026-11-24T11:58:00Z (2 min ago), to 1.1.0\n\
         * n3  waits, place 2, since 2026-11-24T11:58:00Z (2 min ago), to 1.1.0\n"
    );
    let why = text(&report, true);
    let reasons: Vec<_> = why.lines().filter_map(|line| line.split_once("| ")).collect();
    let (full, behind) = ("1 of 1 permits held by n1", "1 node is ahead in the queue");
    let (own, block) = (" ".repeat(11), " ".repeat(6));
    let expected = [(&own, full), (&own, behind), (&block, full), (&block, full), (&block, behind)];
    assert_eq!(reasons, expected.map(|(indent, reason)| (indent.as_str(), reason)), "{why}");
}

#[test]
fn a_holder_sees_its_phase_its_deadline_and_what_holds_its_reboot() {
    let mut document = asked(Policy::default(), &["n1"]);
    document.policy.max = Limit::Count(0);
    let report = report(document, "n1", NOW);
    let paused = text(&report, false);
    assert!(
        paused.contains(
            "node:      n1  makes ready since 2026-11-24T11:58:00Z (2 min ago), 1.0.0 -> 1.1.0, \
             due by 2026-11-24T12:58:00Z (update)\n           | paused: the policy's max is 0\n"
        ),
        "{paused}"
    );
    let document = super::document(&report);
    assert_eq!((&document["place"], &document["permit"]["phase"]), (&json!("holds"), &json!("granted")));
    assert_eq!(document["because"], json!(["paused: the policy's max is 0"]));
    assert_eq!(document["lock"]["document"]["holders"][0]["node"], "n1");
    assert!(document["error"].is_null() && document["queue_place"].is_null(), "{document}");
}

#[test]
fn a_stuck_holder_is_shown_as_such_and_halts_the_others() {
    let stuck =
        apply(&asked(Policy::default(), &["n1", "n2"]), &Command::Tick, &context("2026-11-24T12:58:01Z"));
    let report = report(stuck.document.unwrap(), "n1", "2026-11-24T13:00:00Z");
    let text = text(&report, true);
    let own = text.lines().find(|line| line.starts_with("node:")).unwrap();
    assert!(own.contains("STUCK: silent past its deadline since 2026-11-24T12:58:0"), "{own}");
}

#[test]
fn who_neither_holds_nor_waits_sees_what_would_stand_against_it() {
    let lines = |document, node| -> Vec<String> {
        let text = text(&report(document, node, NOW), true);
        let own = text.lines().skip(2).take_while(|line| !line.starts_with("windows:"));
        own.map(|line| line.trim_start_matches("node:").trim().to_owned()).collect()
    };
    assert_eq!(
        lines(asked(Policy::default(), &[]), "n9"),
        ["n9  neither holds a permit nor waits for one, and could get one now"]
    );
    assert_eq!(
        lines(asked(Policy::default(), &["n1", "n2"]), "n9"),
        [
            "n9  neither holds a permit nor waits for one; if it asked now:",
            "| 1 of 1 permits held by n1",
            "| 1 node is ahead in the queue"
        ]
    );
    // Who goes first by the policy has nobody ahead; who is no canary waits for one.
    let policy = Policy {
        max: Limit::Count(9),
        canaries: vec![id("c")],
        priorities: [(id("n9"), 5)].into(),
        ..Policy::default()
    };
    let mut document = asked(policy, &["n1", "n2"]);
    assert_eq!(document.queue.len(), 2);
    assert_eq!(
        lines(document.clone(), "n9"),
        [
            "n9  neither holds a permit nor waits for one; if it asked now:",
            "| no canary has confirmed 1.1.0 yet"
        ]
    );
    document.policy.canaries.push(id("n9"));
    assert_eq!(lines(document, "n9").len(), 1);
}

#[test]
fn the_zone_of_the_configuration_counts() {
    let zones = serde_json::from_value(json!({ "max": { "count": 1 } })).unwrap();
    let document = asked(Policy { zones: Some(zones), ..Policy::default() }, &[]);
    let because = |zone: Option<Zone>| {
        let lock = Lock { zone, ..settings() };
        were_it_to_ask(&document, &lock, &id("n1"), None, &context(NOW))
    };
    assert!(because(None)[0].contains("this node names no zone"));
    assert!(because(Some("r1".parse().unwrap())).is_empty());
}

#[test]
fn windows_are_told_with_the_next_opening() {
    // 2026-11-24 is a Tuesday.
    let window = |length_s| Window { days: Vec::new(), start: jiff::civil::time(22, 0, 0, 0), length_s };
    let told = |policy: &Policy, now: &str| windows_line(&windows(policy, at(now)));
    let night = Policy { windows: vec![window(4 * 3600)], ..Policy::default() };
    assert_eq!(told(&night, NOW), "closed; the next opens at 2026-11-24T22:00:00Z");
    assert_eq!(told(&night, "2026-11-24T22:00:00Z"), "open now");
    assert_eq!(told(&night, "2026-11-25T01:51:00Z"), "closed; the next opens at 2026-11-25T22:00:00Z");
    let short = Policy { windows: vec![window(60)], ..Policy::default() };
    assert_eq!(told(&short, NOW), "none is ever long enough for a reboot");
    let nowhere = Policy { time_zone: "Mars/Base".to_owned(), ..night };
    assert_eq!(told(&nowhere, NOW), "not known: there is no time zone \"Mars/Base\" here");
    assert_eq!(told(&Policy::default(), NOW), "none: a reboot can begin at any time");
}

#[test]
fn a_lock_that_shows_nothing_leaves_what_the_node_knows_itself() {
    let whole = report(asked(Policy::default(), &["n1"]), "n1", NOW);
    let nothing = Report {
        strategy: "off",
        backend: "fleetlock",
        kept: "kept by the FleetLock v1 server http://l.example/".to_owned(),
        engine: Some(status_of(Some("granted\u{1b}[2J for 1.1.0"), "inhibitor: backup")),
        running: false,
        lock: Err(Unseen::Nothing("a FleetLock v1 server does not say who holds or waits".to_owned())),
        ..whole
    };
    assert_eq!(
        text(&nothing, true),
        "strategy:  off: this node asks for no permit; strategy lock does\n\
         lock:      group default, kept by the FleetLock v1 server http://l.example/\n\
         node:      n1\n\
         engine:    waiting: inhibitor: backup; no engine is running\n\
         permit:    granted\\u{1b}[2J for 1.1.0\n\
         others:    a FleetLock v1 server does not say who holds or waits\n"
    );
    let unread =
        Report { lock: Err(Unseen::Failed("no answer".to_owned())), node: None, engine: None, ..nothing };
    let text = text(&unread, false);
    assert!(text.contains("engine:    has not said anything yet; no engine is running\n"), "{text}");
    assert!(text.ends_with("others:    not known: the lock cannot be read\n"), "{text}");
    let document = document(&unread);
    assert_eq!(
        (&document["error"], &document["lock"], &document["schema"]),
        (&json!("no answer"), &json!(null), &json!(1))
    );
}
