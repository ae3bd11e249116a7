//! Step 4, channel: rollouts by HTTP, with a clock that the test owns.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, act, explain, id, pass, published, rolling, rollout, set_policy};
use common::{Client, Release, done, error};
use jiff::SignedDuration;
use protocol::rollout::{GrantPhase, Share};
use protocol::status::StateName;
use protocol::wire::{
    AuditLog, ChannelInfo, ChannelPromote, ChannelSet, Decision, EventKind, Policies, PolicySet, RolloutAct,
    RolloutList, SCHEMA, SimulationReport, SimulationRequest, UpdateCheck,
};
use reqwest::{Method, StatusCode};

#[tokio::test]
async fn without_a_policy_all_go_and_three_of_a_few_that_fail_halt_it() {
    let (server, admin) = rolling("").await;
    let mut nodes: Vec<Node> = (0..6).map(|n| Node::new(&admin, n, "web")).collect();
    for node in &nodes {
        assert!(node.may_go().await);
        assert!(node.may_go().await, "asked again, it still may");
    }
    assert_eq!(rollout(&admin).await.counts.in_flight, 6);
    let repeated = nodes[0].events("1.1.0", &[EventKind::Rebooting, EventKind::RolledBack]);
    for _ in 0..5 {
        assert!(nodes[0].try_send(&repeated).await, "sent again, it counts once");
    }
    nodes[1].tell(&[EventKind::Failed]).await;
    assert!(nodes[5].may_go().await);
    assert_eq!(rollout(&admin).await.rollout.halted, None, "two are too few to tell");
    nodes[2].tell(&[EventKind::RolledBack]).await;
    let info = rollout(&admin).await;
    assert_eq!(info.rollout.halted.unwrap().why, "3 of 3 nodes failed");
    // At once, without a tick: who reported it is answered after it is halted.
    for node in [&nodes[5], &Node::new(&admin, 77, "web")] {
        let answer = node.ask().await;
        assert_eq!(answer.decision, Decision::Hold);
        assert!(answer.reason.starts_with("1.1.0 waits: the rollout is halted since "), "{}", answer.reason);
    }
    // Resumed, the failures before do not count.
    let _: protocol::wire::RolloutInfo = done(act(&admin, "resume", None).await).await;
    pass(&server, 1).await;
    assert_eq!(rollout(&admin).await.rollout.halted, None);
    assert!(nodes[5].may_go().await);
    let back = nodes[0].ask().await;
    assert_eq!(back.decision, Decision::Hold);
    assert!(back.reason.contains("this node came back from 1.1.0 at "), "{}", back.reason);
    assert!(nodes[1].may_go().await, "one that could not install it may try again");
    // The node says that it takes it again.
    nodes[0].says.quarantine = Some(Vec::new());
    assert!(nodes[0].may_go().await);
    // One that has it in quarantine is offered it, so that it refuses by itself and says so, and takes up no place.
    let before = rollout(&admin).await.counts.all.granted;
    let mut wary = Node::new(&admin, 88, "web");
    wary.says.quarantine = Some(vec!["1.1.0".parse().unwrap()]);
    assert!(wary.may_go().await);
    assert_eq!(rollout(&admin).await.counts.all.granted, before);
}

#[tokio::test]
async fn canaries_then_waves_and_the_clock_decides() {
    let waves = "waves = [{ share = \"30%\", hold = \"2h\", confirmed = \"100%\" }, { share = \"100%\" }]\n\
                 [channel.stable.canary]\ngroup = \"canary\"\nhold = \"1h\"\n";
    let (server, admin) = rolling(waves).await;
    let mut canary = Node::new(&admin, 1000, "canary");
    let mut nodes: Vec<Node> = (0..30).map(|n| Node::new(&admin, n, "web")).collect();
    for node in &nodes {
        assert_eq!(node.ask().await.reason, "1.1.0 waits: the group canary goes first");
    }
    pass(&server, 120).await;
    assert!(!nodes[0].may_go().await, "no canary has confirmed it");
    assert!(canary.may_go().await);
    canary.confirm().await;
    assert!(!nodes[0].may_go().await, "a stage opens with a tick");
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert_eq!((info.rollout.stage, info.rollout.share()), (1, Share::percent(30)));
    let mut first = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        if node.may_go().await {
            first.push(at);
        }
    }
    assert!((3..=16).contains(&first.len()), "{first:?}");
    pass(&server, 180).await;
    assert_eq!(rollout(&admin).await.rollout.stage, 1, "they have not confirmed it");
    for at in &first {
        nodes[*at].confirm().await;
        assert_eq!(nodes[*at].ask().await.decision, Decision::None);
    }
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert!(info.rollout.is_last_stage() && info.next_stage.is_empty(), "{info:?}");
    for (at, node) in nodes.iter().enumerate() {
        assert_eq!(node.may_go().await, !first.contains(&at));
    }
    assert_eq!(rollout(&admin).await.counts.all.granted, 31);
}

#[tokio::test]
async fn a_canary_that_fails_halts_it_at_once() {
    let (server, admin) = rolling("[channel.stable.canary]\ngroup = \"canary\"\n").await;
    let mut canaries: Vec<Node> = (0..3).map(|n| Node::new(&admin, n, "canary")).collect();
    for canary in &canaries {
        assert!(canary.may_go().await);
    }
    canaries[0].tell(&[EventKind::RolledBack]).await;
    let halted = rollout(&admin).await.rollout.halted.unwrap();
    assert_eq!(halted.why, "1 of 3 nodes of the canary group canary failed");
    let _: protocol::wire::RolloutInfo = done(act(&admin, "resume", None).await).await;
    pass(&server, 61).await;
    assert_eq!(rollout(&admin).await.rollout.halted, None);
    canaries[1].confirm().await;
    canaries[2].confirm().await;
    pass(&server, 1).await;
    assert!(Node::new(&admin, 9, "web").may_go().await, "the failed one is forgiven");
}

#[tokio::test]
async fn failures_one_after_the_other_add_up_though_each_node_tries_again() {
    let (server, admin) =
        rolling("in_flight = 1\n[channel.stable.halt]\nfailures = 3\nfailure_rate = \"100%\"\n").await;
    let mut nodes: Vec<Node> = (0..4).map(|n| Node::new(&admin, n, "web")).collect();
    for (at, node) in nodes[..3].iter_mut().enumerate() {
        for _ in 0..2 {
            assert!(node.may_go().await, "node {at} tries again");
            // The last refusal of an engine names no version.
            let mut events =
                node.events("1.1.0", &[if at == 1 { EventKind::Refused } else { EventKind::Failed }]);
            events.events[0].version = events.events[0].version.take().filter(|_| at != 1);
            assert!(node.try_send(&events).await);
            if rollout(&admin).await.rollout.halted.is_some() {
                break;
            }
            server.advance(SignedDuration::from_secs(1));
        }
    }
    assert_eq!(rollout(&admin).await.rollout.halted.unwrap().why, "3 of 3 nodes failed");
    assert!(!nodes[3].may_go().await);
}

#[tokio::test]
async fn a_node_that_does_nothing_with_its_leave_or_goes_elsewhere_gives_up_its_place() {
    let (server, admin) = rolling("in_flight = 1\n").await;
    let (mut idle, other) = (Node::new(&admin, 1, "web"), Node::new(&admin, 2, "web"));
    assert!(idle.may_go().await);
    pass(&server, 20).await;
    assert!(idle.may_go().await, "asked again");
    pass(&server, 1).await;
    assert_eq!(rollout(&admin).await.counts.all.failed, 1);
    assert!(other.may_go().await);
    idle.says.channel = "beta".parse().unwrap();
    let mut gone = other.clone();
    gone.says.channel = "beta".parse().unwrap();
    server.advance(SignedDuration::from_secs(1));
    gone.ask().await;
    pass(&server, 1).await;
    let counts = rollout(&admin).await.counts;
    assert_eq!((counts.in_flight, counts.lost), (0, 1));
}

#[tokio::test]
async fn what_confirms_a_step_on_the_way_proves_nothing_about_the_release() {
    let (server, admin, mut operator) = published(&["1.0.0", "1.1.0"]).await;
    let barrier = Release::new("2.0.0", Some("1.1.0"));
    admin.upload(&barrier.payload).await;
    let push = operator.push(&[barrier.add()]);
    let _: protocol::wire::Published = done(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    set_policy(&admin, "[channel.stable.canary]\ngroup = \"canary\"\nhold = \"0s\"\n").await;
    let _: ChannelInfo = done(admin.set_channel("stable", "2.0.0").await).await;
    let mut canary = Node::new(&admin, 1, "canary");
    assert_eq!(canary.ask().await.version.unwrap().as_str(), "1.1.0");
    canary.confirm().await;
    pass(&server, 60).await;
    assert_eq!(rollout(&admin).await.rollout.stage, 0, "nobody runs 2.0.0");
    assert_eq!(canary.ask().await.version.unwrap().as_str(), "2.0.0");
    let events = canary.events("2.0.0", &[EventKind::Confirmed]);
    assert!(canary.try_send(&events).await);
    pass(&server, 1).await;
    assert_eq!(rollout(&admin).await.rollout.stage, 1);
}

#[tokio::test]
async fn places_are_taken_by_nodes_of_the_rollout_before_and_a_second_approval_opens_nothing() {
    let waves = "in_flight = 1\nwaves = [{ share = \"50%\", approve = true }, { share = \"75%\", approve = true }, { share = \"100%\" }]\n";
    let (_server, admin) = rolling(waves).await;
    let mut going = 0;
    while !Node::new(&admin, going, "web").may_go().await {
        going += 1;
    }
    let _: ChannelInfo = done(admin.set_channel("stable", "1.0.0").await).await;
    let _: ChannelInfo = done(admin.set_channel("stable", "1.1.0").await).await;
    let seen = rollout(&admin).await.rollout;
    assert_eq!(seen.number, 3);
    let approve = |stage| RolloutAct {
        schema: SCHEMA,
        group: None,
        why: "w".to_owned(),
        number: Some(3),
        stage: Some(stage),
    };
    let send =
        async |body: RolloutAct| admin.send(Method::POST, "/api/v1/rollouts/stable/approve", &body).await;
    let info: protocol::wire::RolloutInfo = done(send(approve(0)).await).await;
    assert_eq!(info.rollout.stage, 1);
    let refused = error(send(approve(0)).await, StatusCode::CONFLICT).await;
    assert!(refused.message.contains("stage 2 is open, and 1 was meant"), "{}", refused.message);
    let refused = error(send(RolloutAct { number: Some(2), ..approve(1) }).await, StatusCode::CONFLICT).await;
    assert!(refused.message.contains("number 3 runs, and 2 was meant"), "{}", refused.message);
    for number in 0..8 {
        let answer = Node::new(&admin, 100 + number, "web").ask().await;
        assert!(answer.reason.contains("1 nodes are under way, and 1 may be"), "{}", answer.reason);
    }
}

#[tokio::test]
async fn silence_in_the_reboot_counts_as_failure_and_a_late_word_takes_it_back() {
    let (server, admin) =
        rolling("silent_after = \"30m\"\nlost_after = \"3h\"\n[channel.stable.halt]\nfailures = 2\n").await;
    let mut nodes: Vec<Node> = (0..4).map(|n| Node::new(&admin, n, "web")).collect();
    for node in &nodes {
        assert!(node.may_go().await);
    }
    for node in &mut nodes[..2] {
        node.tell(&[EventKind::Activated, EventKind::Rebooting]).await;
    }
    pass(&server, 29).await;
    assert_eq!(rollout(&admin).await.counts.since.silent, 0);
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert_eq!(info.counts.since.silent, 2);
    assert_eq!(
        info.rollout.halted.unwrap().why,
        "2 of 2 nodes failed, 2 of them by falling silent in the reboot"
    );
    // Nothing was heard of those that never began their reboot: no failure.
    pass(&server, 160).await;
    let counts = rollout(&admin).await.counts;
    assert_eq!((counts.lost, counts.in_flight, counts.since.silent), (2, 0, 2));
    // One of them was only slow.
    nodes[0].confirm().await;
    assert_eq!(rollout(&admin).await.counts.since.silent, 1);
    assert!(rollout(&admin).await.rollout.halted.is_some(), "an operator looks at it all the same");
}

#[tokio::test]
async fn a_node_whose_events_were_lost_is_known_by_what_it_runs() {
    let (server, admin) = rolling("in_flight = 1\n").await;
    let (mut one, other) = (Node::new(&admin, 1, "web"), Node::new(&admin, 2, "web"));
    assert!(one.may_go().await);
    assert!(other.ask().await.reason.ends_with("1 nodes are under way, and 1 may be"));
    one.says.version = "1.1.0".parse().unwrap();
    one.says.state = StateName::Confirming;
    server.advance(SignedDuration::from_secs(1));
    assert_eq!(one.ask().await.decision, Decision::None);
    pass(&server, 1).await;
    assert!(!other.may_go().await, "not proved yet");
    one.says.state = StateName::Idle;
    one.ask().await;
    pass(&server, 1).await;
    let grant = rollout(&admin).await.counts;
    assert_eq!((grant.all.confirmed, grant.in_flight), (1, 0));
    assert!(other.may_go().await);
}

#[tokio::test]
async fn windows_tell_when_to_ask_again_and_pauses_hold_those_under_way() {
    // The clock stands at 17:46:41 UTC.
    let (server, admin) = rolling("windows = [{ start = \"18:00\", length = \"1h\" }]\n").await;
    let node = Node::new(&admin, 1, "web");
    let answer = node.ask().await;
    assert!(answer.reason.contains("the next opens at 2030-03-17T18:00:00Z"), "{}", answer.reason);
    let wait = answer.retry_after_s.unwrap();
    assert!((800..800 + 1800).contains(&wait), "{wait}");
    let told = explain(&admin, 1).await;
    assert_eq!((told.decision, told.because.len()), (Decision::Hold, 1));
    pass(&server, 14).await;
    assert!(node.may_go().await);
    assert_eq!(explain(&admin, 1).await.grant.unwrap().phase, GrantPhase::Granted);

    let _: protocol::wire::RolloutInfo = done(act(&admin, "pause", Some("web")).await).await;
    let held = node.ask().await;
    assert!(
        held.reason.starts_with("1.1.0 waits: group web: the rollout is paused by admin since "),
        "{}",
        held.reason
    );
    assert!(Node::new(&admin, 2, "db").may_go().await, "another group");
    error(act(&admin, "pause", Some("web")).await, StatusCode::CONFLICT).await;
    let _: protocol::wire::RolloutInfo = done(act(&admin, "resume", Some("web")).await).await;
    assert!(node.may_go().await);
    let _: protocol::wire::RolloutInfo = done(act(&admin, "pause", None).await).await;
    assert!(!Node::new(&admin, 2, "db").may_go().await);
    let server = server.restart().await;
    let admin = server.admin();
    assert!(!Node::new(&admin, 1, "web").may_go().await, "a pause outlives the server");
    error(act(&admin, "approve", None).await, StatusCode::CONFLICT).await;
    let log: AuditLog = admin.read("/api/v1/audit").await;
    let acts: Vec<&str> = log.entries.iter().map(|entry| entry.action.as_str()).take(4).collect();
    assert_eq!(acts, ["rollout.pause", "rollout.resume", "rollout.pause", "channel.set"]);
}

#[tokio::test]
async fn a_channel_is_not_pointed_where_its_nodes_have_no_way_to() {
    let (server, admin, mut operator) = published(&["1.0.0", "1.1.0"]).await;
    let _: ChannelInfo = done(admin.set_channel("stable", "1.1.0").await).await;
    let barrier = Release::new("2.0.0", Some("1.5.0"));
    admin.upload(&barrier.payload).await;
    let push = operator.push(&[barrier.add()]);
    let _: protocol::wire::Published = done(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    for number in 0..3 {
        Node::new(&admin, number, "web").ask().await;
    }
    let mut newer = Node::new(&admin, 9, "web");
    newer.says.version = "1.9.0".parse().unwrap();
    newer.ask().await;
    let set = |version: &str, leave_behind| ChannelSet {
        schema: SCHEMA,
        version: version.parse().unwrap(),
        leave_behind,
        to_dead_end: false,
    };
    let path = "/api/v1/channels/stable";
    let refused =
        error(admin.send(Method::PUT, path, &set("2.0.0", false)).await, StatusCode::CONFLICT).await;
    assert!(
        refused
            .message
            .starts_with("3 nodes of stable would have no way to 2.0.0: 3 on 1.0.0 for x86-64 (the channel"),
        "{}",
        refused.message
    );
    assert!(refused.message.contains("--leave-behind"), "{}", refused.message);
    let refused =
        error(admin.send(Method::PUT, path, &set("1.0.0", false)).await, StatusCode::CONFLICT).await;
    assert!(
        refused.message.starts_with("1 nodes of stable would have no way to 1.0.0: 1 on 1.9.0"),
        "{}",
        refused.message
    );
    assert_eq!(rollout(&admin).await.rollout.version.as_str(), "1.1.0", "nothing has changed");
    let _: ChannelInfo = done(admin.send(Method::PUT, path, &set("2.0.0", true)).await).await;
    let begun = rollout(&admin).await.rollout;
    assert_eq!((begun.number, begun.version.as_str()), (2, "2.0.0"));
    // Nodes that were not heard of for a month do not count.
    server.advance(SignedDuration::from_hours(31 * 24));
    let _: ChannelInfo = done(admin.send(Method::PUT, path, &set("1.0.0", false)).await).await;
}

#[tokio::test]
async fn a_promotion_waits_for_its_gate() {
    let (server, admin, _) = published(&["1.0.0", "1.1.0"]).await;
    let gate = "[channel.stable.promotion]\nsoak = \"24h\"\nhealthy = \"90%\"\nnodes = 2\n";
    set_policy(&admin, gate).await;
    let promote = |despite_gate: Option<&str>| {
        let (schema, from, leave_behind) = (SCHEMA, "beta".parse().unwrap(), false);
        let despite_gate = despite_gate.map(str::to_owned);
        let body = ChannelPromote { schema, from, leave_behind, to_dead_end: false, despite_gate };
        let admin = admin.clone();
        async move { admin.send(Method::POST, "/api/v1/channels/stable/promote", &body).await }
    };
    let _: ChannelInfo = done(admin.set_channel("beta", "1.1.0").await).await;
    let mut nodes: Vec<Node> = (0..3).map(|n| Node::new(&admin, n, "web")).collect();
    for node in &mut nodes {
        node.says.channel = "beta".parse().unwrap();
        assert!(node.may_go().await);
    }
    let says = |message: &str, found: &str| assert!(message.contains(found), "{message}");
    says(
        &error(promote(None).await, StatusCode::CONFLICT).await.message,
        "beta must have 1.1.0 until 2030-03-18T17:46:40Z; 0 nodes of beta have confirmed 1.1.0, and 2 must",
    );
    pass(&server, 24 * 60).await;
    nodes[0].confirm().await;
    says(
        &error(promote(None).await, StatusCode::CONFLICT).await.message,
        "1 nodes of beta have confirmed 1.1.0, and 2 must",
    );
    nodes[1].confirm().await;
    nodes[2].tell(&[EventKind::RolledBack]).await;
    says(
        &error(promote(None).await, StatusCode::CONFLICT).await.message,
        "66.66% of the nodes of beta are well with 1.1.0",
    );
    error(promote(Some("")).await, StatusCode::BAD_REQUEST).await;
    let _: ChannelInfo = done(promote(Some("the failed one has a broken disk")).await).await;
    let log: AuditLog = admin.read("/api/v1/audit?limit=1").await;
    says(&log.entries[0].detail, "although 66.66% of the nodes");
    says(&log.entries[0].detail, "broken disk");
}

/// Whatever the policy of the channel that it would go to says: it has none here.
#[tokio::test]
async fn what_is_halted_or_paused_is_not_promoted_by_oversight() {
    let (_server, admin) = rolling("").await;
    let promote = |despite_gate: Option<&str>| {
        let despite_gate = despite_gate.map(str::to_owned);
        let from = "stable".parse().unwrap();
        let body =
            ChannelPromote { schema: SCHEMA, from, leave_behind: false, to_dead_end: false, despite_gate };
        let admin = admin.clone();
        async move { admin.send(Method::POST, "/api/v1/channels/late/promote", &body).await }
    };
    for number in 0..3 {
        let mut node = Node::new(&admin, number, "web");
        assert!(node.may_go().await);
        node.tell(&[EventKind::RolledBack]).await;
    }
    let _: protocol::wire::RolloutInfo = done(act(&admin, "pause", None).await).await;
    let refused = error(promote(None).await, StatusCode::CONFLICT).await.message;
    let both = "1.1.0 is not promoted to late: the rollout on stable is halted (3 of 3 nodes failed); the rollout on stable is \
                paused (a test); promote it when that has changed";
    assert!(refused.starts_with(both), "{refused}");
    let _: ChannelInfo = done(promote(Some("only their disks were full")).await).await;
    let _: protocol::wire::RolloutInfo = done(act(&admin, "resume", None).await).await;
    let _: ChannelInfo = done(promote(None).await).await;
}

#[tokio::test]
async fn policies_are_set_whole_or_not_at_all_by_who_may() {
    let (_server, admin) = rolling("in_flight = 5\n").await;
    let before: Policies = admin.read("/api/v1/rollout-policy").await;
    let set = |file: &str, replaces| PolicySet {
        schema: SCHEMA,
        replaces,
        file: file.to_owned(),
        why: "w".to_owned(),
    };
    let path = "/api/v1/rollout-policy";
    let wrong = set("[channel.stable]\nin_flight = -1\nwave = 2", before.digest);
    let refused = error(admin.send(Method::PUT, path, &wrong).await, StatusCode::BAD_REQUEST).await;
    assert_eq!(
        refused.message,
        "the policy file:2:13: channel.stable.in_flight: expected a number from 0 to 4294967295, found -1 (and 1 more errors)"
    );
    let file = "[channel.beta]\nin_flight = 1\n[channel.stable]\nin_flight = 6\n";
    let _: Policies = done(admin.send(Method::PUT, path, &set(file, before.digest)).await).await;
    error(admin.send(Method::PUT, path, &set(file, before.digest)).await, StatusCode::CONFLICT).await;
    assert_eq!(rollout(&admin).await.rollout.policy.limits.in_flight, Some(6), "at once");
    let all: Policies = admin.read(path).await;
    assert!(all.file.contains("[channel.beta]") && all.file.contains("in_flight = 6"), "{}", all.file);
    let anybody = Client { token: None, ..admin.clone() };
    for path in ["/api/v1/rollouts", "/api/v1/rollouts/stable", path] {
        error(anybody.get(path).await, StatusCode::UNAUTHORIZED).await;
    }
    error(act(&anybody, "pause", None).await, StatusCode::UNAUTHORIZED).await;
    error(admin.get("/api/v1/rollouts/nightly").await, StatusCode::NOT_FOUND).await;
    let list: RolloutList = admin.read("/api/v1/rollouts").await;
    assert_eq!(list.rollouts.len(), 1);
}

#[tokio::test]
async fn a_simulation_goes_over_the_real_fleet_and_changes_nothing() {
    let (_server, admin) = rolling("waves = [{ share = \"10%\", hold = \"6h\" }, { share = \"100%\" }]\nrate = { max = 40, per = \"1h\" }\n").await;
    for number in 0..200 {
        Node::new(&admin, number, if number % 5 == 0 { "db" } else { "web" }).ask().await;
    }
    let granted = rollout(&admin).await.counts.all.granted;
    let ask = |failing: &str, seed| SimulationRequest {
        schema: SCHEMA,
        version: None,
        file: None,
        failing: failing.parse().unwrap(),
        silent: "1%".parse().unwrap(),
        seed,
        poll_interval_s: 2700,
        update_takes_s: 900,
        approve_after_s: None,
        span_s: 14 * 86_400,
    };
    let path = "/api/v1/rollouts/stable/simulate";
    let run = async |request: SimulationRequest| -> SimulationReport {
        done(admin.send(Method::POST, path, &request).await).await
    };
    let well = run(ask("0%", 1)).await;
    assert_eq!((well.nodes, well.halted.clone()), (200, None));
    assert!(well.done_at.unwrap() > well.began_at + SignedDuration::from_hours(6), "{well:?}");
    assert!(well.events[0].ends_with("stage 2 of 2 opens: 100%"), "{:?}", well.events);
    assert!(well.points.iter().any(|point| point.held_by == "rate"), "{:?}", well.points);
    let hold = |held_by: &str| held_by.contains("stage 1 of 2 waits for its hold, until ");
    assert!(well.points.iter().any(|point| hold(&point.held_by)), "{:?}", well.points);
    assert_eq!(well, run(ask("0%", 1)).await, "the same seed, the same history");
    let bad = run(ask("40%", 1)).await;
    assert!(bad.halted.is_some() && bad.points.last().unwrap().ended.granted < 60, "{bad:?}");
    assert_eq!(rollout(&admin).await.counts.all.granted, granted);
    let wrong = SimulationRequest { span_s: 0, ..ask("0%", 1) };
    error(admin.send(Method::POST, path, &wrong).await, StatusCode::BAD_REQUEST).await;
    let missing = SimulationRequest { version: Some("9.9.9".parse().unwrap()), ..ask("0%", 1) };
    error(admin.send(Method::POST, path, &missing).await, StatusCode::NOT_FOUND).await;
}

#[tokio::test]
async fn a_wave_waits_for_the_last_node_that_could_go_and_looks_at_few_to_know() {
    let waves =
        "in_flight = 0\nwaves = [{ share = \"50%\", hold = \"1h\" }, { share = \"100%\", hold = \"1h\" }]\n";
    let (server, admin) = rolling(waves).await;
    let version = "1.1.0".parse().unwrap();
    let in_wave = |number: &u32| Share::percent(50).covers(protocol::rollout::place(&version, &id(*number)));
    let nodes: Vec<u32> = (0..2500).collect();
    let last = *nodes.iter().rfind(|number| in_wave(number)).unwrap();
    // All but one run it already.
    for number in &nodes {
        let runs = if *number == last { "1.0.0" } else { "1.1.0" };
        let check = UpdateCheck { node: id(*number), ..common::check("stable", runs) };
        let _ = server.app.checkins().add(check, server.now());
    }
    for _ in 0..3 {
        pass(&server, 60).await;
        assert_eq!(rollout(&admin).await.rollout.stage, 0, "the last of three pages waits");
    }
    // As long as that one waits no other is read: here they cannot be.
    let groups = async |group: &str| {
        let mut change = server.app.store().write().await.unwrap();
        let others = sqlx::query("UPDATE node SET grp = $1 WHERE node <> $2").bind(group.to_owned());
        others.bind(id(last).as_str().to_owned()).execute(&mut *change).await.unwrap();
        change.commit().await.unwrap();
    };
    groups("no group!").await;
    assert!(!rollout(&admin).await.next_stage.is_empty());
    groups("web").await;
    // It has gone; the one that waits now is before it.
    let first = *nodes.iter().find(|number| in_wave(number)).unwrap();
    for (number, runs) in [(last, "1.1.0"), (first, "1.0.0")] {
        server.advance(SignedDuration::from_secs(1));
        let check = UpdateCheck { node: id(number), ..common::check("stable", runs) };
        let _ = server.app.checkins().add(check, server.now());
    }
    pass(&server, 1).await;
    assert_eq!(rollout(&admin).await.rollout.stage, 0);
    let check = UpdateCheck { node: id(first), ..common::check("stable", "1.1.0") };
    let _ = server.app.checkins().add(check, server.now());
    pass(&server, 1).await;
    assert!(rollout(&admin).await.rollout.is_last_stage(), "nobody waits");
}

#[tokio::test]
async fn a_wave_waits_for_the_canary_group_too() {
    let waves = "waves = [{ share = \"0.01%\", hold = \"1h\" }, { share = \"100%\" }]\n\
                 [channel.stable.canary]\ngroup = \"canary\"\n";
    let (server, admin) = rolling(waves).await;
    let mut canary = Node::new(&admin, 1, "canary");
    let _: protocol::wire::RolloutInfo = done(act(&admin, "approve", None).await).await;
    let _: protocol::wire::RolloutInfo = done(act(&admin, "pause", Some("canary")).await).await;
    assert!(!canary.may_go().await);
    pass(&server, 61).await;
    assert_eq!(rollout(&admin).await.rollout.stage, 1, "a canary could go");
    let _: protocol::wire::RolloutInfo = done(act(&admin, "resume", Some("canary")).await).await;
    assert!(canary.may_go().await);
    canary.confirm().await;
    pass(&server, 1).await;
    assert!(rollout(&admin).await.rollout.is_last_stage());
}

#[tokio::test]
async fn what_was_undone_on_a_node_takes_up_no_place() {
    let (server, admin) = rolling("in_flight = 1\n").await;
    let (mut first, second) = (Node::new(&admin, 1, "web"), Node::new(&admin, 2, "web"));
    assert!(first.may_go().await);
    first.tell(&[EventKind::Activated]).await;
    first.says.state = StateName::Staged;
    pass(&server, 20).await;
    assert!(first.may_go().await && !second.may_go().await, "it waits for its reboot");
    // Its release is called back: the node undoes what it has activated, and tells nothing of it.
    first.says.state = StateName::Idle;
    pass(&server, 20).await;
    first.ask().await;
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert_eq!((info.counts.in_flight, info.counts.lost, info.counts.all.failed), (0, 1, 0));
    assert!(second.may_go().await);
}

#[tokio::test]
async fn what_a_pause_made_a_node_give_up_is_no_failure() {
    let (server, admin) = rolling("[channel.stable.halt]\nfailures = 1\n").await;
    let node = Node::new(&admin, 1, "web");
    assert!(node.may_go().await);
    let _: protocol::wire::RolloutInfo = done(act(&admin, "pause", None).await).await;
    // Its engine started anew, and has nothing in hand.
    pass(&server, 20).await;
    assert!(!node.may_go().await);
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert_eq!((info.rollout.halted, info.counts.all.failed, info.counts.lost), (None, 0, 1));
    let _: protocol::wire::RolloutInfo = done(act(&admin, "resume", None).await).await;
    pass(&server, 1).await;
    assert_eq!(rollout(&admin).await.rollout.halted, None);
    assert!(node.may_go().await, "it is let go again");
}
