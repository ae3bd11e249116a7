use super::*;
use protocol::rollout::{Ended, Reason, Rollout, RolloutPolicy, Stop};
use protocol::slot::Slot;
use protocol::status::StateName;
use protocol::wire::{NodeInfo, RolloutCounts, SimulationPoint};

fn start() -> Timestamp {
    "2026-11-30T08:00:00Z".parse().unwrap()
}

fn hours(hours: i64) -> Timestamp {
    start() + jiff::SignedDuration::from_hours(hours)
}

fn policy(text: &str) -> RolloutPolicy {
    let file = RolloutFile::parse("t.toml", &format!("[channel.stable]\n{text}")).unwrap();
    file.channels.into_values().next().unwrap()
}

#[test]
fn a_rollout_is_a_few_lines() {
    let waves = "waves = [{ share = \"1%\" }, { share = \"100%\" }]";
    let mut rollout =
        Rollout::begin("stable".parse().unwrap(), "1.1.0".parse().unwrap(), policy(waves), None, start());
    rollout.halted =
        Some(Stop { at: hours(1), by: "server".to_owned(), why: "3 of 4\u{1b}[2J failed".to_owned() });
    let all = Ended { granted: 9, confirmed: 1, failed: 2, silent: 1 };
    let counts = RolloutCounts {
        nodes: 200,
        at_version: 50,
        dead_ends: 7,
        in_flight: 4,
        lost: 1,
        all,
        ..RolloutCounts::default()
    };
    let next_stage = vec!["an operator: updatectl rollout resume stable".to_owned(), "its hold".to_owned()];
    let info = RolloutInfo { schema: SCHEMA, rollout, counts, next_stage };
    assert_eq!(
        shown(&info, hours(25)),
        "stable -> 1.1.0  rollout 1, began 2026-11-30T08:00:00Z (1d01h ago)\n  \
         HALTED since 2026-11-30T09:00:00Z by server: 3 of 4\\u{1b}[2J failed\n  \
         [##########..............................]  50 of 200 nodes run it (25%)\n  \
         7 of them are on dead ends and stay there\n  \
         stage 1 of 2: 1% of the nodes, open for 1d01h\n  \
         let go 9: 4 under way, 1 confirmed, 2 failed, 1 silent, 1 lost\n  \
         next stage waits for an operator: updatectl rollout resume stable\n                   \
         and its hold\n"
    );
}

#[test]
fn a_simulation_is_drawn_and_its_end_told() {
    let point = |hour, confirmed, failed, held_by: &str| SimulationPoint {
        at: hours(hour),
        stage: 0,
        in_flight: 2,
        ended: Ended { granted: confirmed + failed + 2, confirmed, failed, silent: 0 },
        held_by: held_by.to_owned(),
    };
    let mut report = SimulationReport {
        schema: SCHEMA,
        channel: "stable".parse().unwrap(),
        version: "1.1.0".parse().unwrap(),
        began_at: start(),
        nodes: 100,
        left_behind: 3,
        dead_ends: 2,
        points: vec![point(0, 0, 0, "wave 1 of 3"), point(30, 50, 4, "rate")],
        events: vec!["2026-11-30T09:00:00Z stage 2 of 3 opens: 10%".to_owned()],
        done_at: None,
        waits_for_approval: None,
        halted: Some("4 of 54 nodes failed".to_owned()),
    };
    let text = draw(&report);
    assert!(
        text.starts_with(
            "stable -> 1.1.0: 100 nodes would go, from 2026-11-30T08:00:00Z on\n3 nodes have no way"
        ),
        "{text}"
    );
    assert!(
        text.contains("1d06h  [####################....................]       50        2       4  rate\n"),
        "{text}"
    );
    assert!(
        text.ends_with("opens: 10%\nhalts with 56 of 100 nodes let go: 4 of 54 nodes failed\n"),
        "{text}"
    );
    report.halted = None;
    assert!(draw(&report).ends_with("not done after 1 days: 56 of 100 nodes were let go\n"));
    report.done_at = Some(hours(30));
    assert!(draw(&report).ends_with("done after 1d06h\n"));
    (report.done_at, report.waits_for_approval) = (None, Some(hours(3)));
    assert!(draw(&report).ends_with(
        "were let go\nit waits for an operator's approval since 2026-11-30T11:00:00Z; --approve-after 1h assumes one\n"
    ));
}

#[test]
fn the_reasons_of_a_node_are_numbered() {
    let node = NodeInfo {
        node: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        channel: "stable".parse().unwrap(),
        group: "web".parse().unwrap(),
        own_group: None,
        arch: "x86-64".parse().unwrap(),
        version: "1.0.0".parse().unwrap(),
        slot: Slot::A,
        state: StateName::Idle,
        last_seen: start(),
        last_event: None,
        enrolled_with: None,
        revoked: None,
        quarantine: None,
        dead_end: None,
    };
    let because = vec![
        Reason::Canary { group: "canary".parse().unwrap() },
        Reason::InFlight { group: None, now: 2, max: 2 },
    ];
    let explain = NodeExplain {
        schema: SCHEMA,
        node,
        decision: Decision::Hold,
        version: Some("1.1.0".parse().unwrap()),
        reason: String::new(),
        because,
        grant: None,
        place: Some("43.21%".parse().unwrap()),
    };
    let text = explained(&explain);
    assert!(
        text.ends_with(
            "waits to go to 1.1.0:\n  1. the group canary goes first\n  2. 2 nodes are under way, and 2 may be\nstands at 43.21% of the nodes in this rollout\n"
        ),
        "{text}"
    );
}
