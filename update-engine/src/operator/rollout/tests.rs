use super::*;
use protocol::rollout::{Ended, Grant, GrantPhase, Reason, Rollout, RolloutPolicy, Stop};
use protocol::slot::Slot;
use protocol::status::StateName;
use protocol::wire::{Event, EventKind, NodeInfo, RolloutCounts, RolloutNode, SimulationPoint};

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
        in_flight_before: 3,
        forgiven: 2,
        lost: 1,
        all,
        ..RolloutCounts::default()
    };
    let next_stage = vec!["an operator".to_owned(), "its hold".to_owned()];
    let halted = Reason::Halted { since: hours(1), why: String::new() };
    let holds_all = vec![halted, Reason::Frozen { until: Some(hours(48)), why: "audit".to_owned() }];
    let group = Stop { at: hours(2), by: "eva".to_owned(), why: "tables".to_owned() };
    rollout.paused_groups.insert("db".parse().unwrap(), group);
    let warnings = Vec::new();
    let info = RolloutInfo { schema: SCHEMA, rollout, counts, next_stage, holds_all, warnings };
    assert_eq!(
        shown(&info, hours(25)),
        "stable -> 1.1.0  rollout 1, began 2026-11-30T08:00:00Z (1d01h ago)\n  \
         HALTED since 2026-11-30T09:00:00Z by server: 3 of 4\\u{1b}[2J failed\n  \
         which nodes: updatectl rollout nodes stable --phase failed,rolled-back,silent\n  \
         to go on:    updatectl rollout resume stable --why TEXT\n  \
         PAUSED for group db since 2026-11-30T10:00:00Z by eva: tables\n  \
         to go on:    updatectl rollout resume stable --group db --why TEXT\n  \
         [##########..............................]  50 of 200 nodes run it (25%)\n  \
         7 of them are on dead ends and stay there\n  \
         stage 1 of 2: 1% of the nodes, open for 1d01h\n  \
         let go 9: 1 under way, 1 confirmed, 2 failed, 1 silent (2 of these no longer counted), 1 lost\n  \
         and 3 under way in a rollout before this one\n  \
         nobody is let go now: frozen until 2026-12-02T08:00:00Z: audit\n  \
         next stage waits for an operator\n                   \
         and its hold\n"
    );
}

#[test]
fn a_node_that_was_let_go_is_a_line() {
    let event = Event {
        seq: 1,
        at: hours(1),
        kind: EventKind::RolledBack,
        version: None,
        release: None,
        detail: "web.service \u{1b}failed".to_owned(),
        evidence: String::new(),
    };
    let mut node = RolloutNode {
        node: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        group: "web".parse().unwrap(),
        rollout: 2,
        stage: Some(0),
        grant: Grant {
            version: "1.1.0".parse().unwrap(),
            granted_at: start(),
            phase: GrantPhase::RolledBack,
            phase_at: hours(1),
        },
        forgiven: true,
        last_event: Some(event),
    };
    let text = format!("{NODES_HEADING}\n{}", node_line(&node, 2));
    assert_eq!(
        text,
        "NODE                              GROUP      VERSION        STAGE PHASE       SINCE                 LAST EVENT\n\
         0123456789abcdef0123456789abcdef  web        1.1.0          1     rolled-back 2026-11-30T09:00:00Z  \
         (no longer counted) rolled-back web.service \\u{1b}failed"
    );
    (node.stage, node.forgiven, node.last_event) = (None, false, None);
    assert!(
        node_line(&node, 3).ends_with("1.1.0          -     rolled-back 2026-11-30T09:00:00Z  (rollout 2)")
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
        next_stage: vec!["an operator's approval".to_owned(), "its hold".to_owned()],
    };
    let text = explained(&explain);
    assert!(
        text.ends_with(
            "waits to go to 1.1.0:\n  1. the group canary goes first\n  2. 2 nodes are under way, and 2 may be\nnext stage waits for an operator's approval\n                 and its hold\nstands at 43.21% of the nodes in this rollout\n"
        ),
        "{text}"
    );
}
