//! Step 4, channel: dead ends by HTTP: who is told, who is not waited for, and what is refused; and what nodes say that they
//! have in quarantine.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, act, explain, id, pass, published, rollout, set_policy};
use common::{ARCH, Client, Operator, done, error, node_sees};
use jiff::SignedDuration;
use protocol::rollout::{GrantPhase, Reason, Share, place};
use protocol::wire::{
    AuditLog, ChannelInfo, ChannelPromote, ChannelSet, Decision, EventKind, NodeShow, OnDeadEnd, Published,
    QUARANTINE_MAX, ReleaseList, RolloutInfo, SCHEMA, SimulationReport, SimulationRequest,
};
use reqwest::{Method, StatusCode};

/// The dead end of these tests, between 1.0.0 and 1.1.0.
const END: &str = "1.0.5";
const WHY: &str = "its updater cannot write";

async fn mark(operator: &mut Operator, admin: &Client, why: Option<&str>) {
    let _: Published = done(operator.dead_end(admin, END, why).await).await;
}

fn set(version: &str, to_dead_end: bool) -> ChannelSet {
    ChannelSet { schema: SCHEMA, version: version.parse().unwrap(), leave_behind: false, to_dead_end }
}

async fn point(admin: &Client, channel: &str, version: &str, to_dead_end: bool) -> ChannelInfo {
    let path = format!("/api/v1/channels/{channel}");
    done(admin.send(Method::PUT, &path, &set(version, to_dead_end)).await).await
}

fn running(admin: &Client, number: u32, version: &str) -> Node {
    let mut node = Node::new(admin, number, "web");
    node.says.version = version.parse().unwrap();
    node
}

#[tokio::test]
async fn who_runs_a_dead_end_is_told_so_and_blocks_no_push() {
    let (server, admin, mut operator) = published(&["1.0.0", END, "1.1.0"]).await;
    point(&admin, "stable", END, false).await;
    let (behind, stuck) = (running(&admin, 1, "1.0.0"), running(&admin, 2, END));
    assert!(behind.may_go().await);
    stuck.ask().await;
    mark(&mut operator, &admin, Some(WHY)).await;

    // At once, though a channel points at it.
    let answer = behind.ask().await;
    assert_eq!(answer.decision, Decision::None);
    assert!(
        answer.reason.starts_with("the channel stable points at 1.0.5, a dead end (its"),
        "{}",
        answer.reason
    );
    let none: [&str; 0] = [];
    assert_eq!(node_sees(&admin, &operator.root, "stable", server.now()).await.unwrap(), none);
    let answer = stuck.ask().await;
    assert_eq!((answer.decision, answer.version), (Decision::None, None));
    let told = "the node runs 1.0.5, a dead end (its updater cannot write): no release leads on from it";
    assert!(answer.reason.starts_with(told), "{}", answer.reason);
    let explained = explain(&admin, 2).await;
    assert_eq!((explained.decision, explained.reason), (Decision::None, answer.reason));
    assert_eq!(explained.node.dead_end.as_deref(), Some(WHY));
    let show: NodeShow = admin.read(&format!("/api/v1/nodes/{}", id(1))).await;
    assert_eq!(show.node.dead_end, None);
    let releases: ReleaseList = admin.read("/api/v1/releases").await;
    let ends = releases.releases.iter().filter(|release| release.dead_end.as_deref() == Some(WHY));
    assert_eq!(ends.map(|release| release.version.as_str()).collect::<Vec<_>>(), [END]);

    // Who stays there is told, and does not need to be insisted on.
    let info = point(&admin, "stable", "1.1.0", false).await;
    let on = OnDeadEnd {
        version: END.parse().unwrap(),
        arch: ARCH.parse().unwrap(),
        nodes: 1,
        why: WHY.to_owned(),
    };
    assert_eq!(info.on_dead_ends, [on]);
    let log: AuditLog = admin.read("/api/v1/audit?limit=2").await;
    assert_eq!(log.entries[0].detail, "1.0.5 -> 1.1.0; 1 nodes stay on dead ends, rollout 2");
    assert_eq!(log.entries[1].action, "release.dead-end");
    assert_eq!(log.entries[1].detail, "targets version 5: its updater cannot write");
    assert!(behind.may_go().await);
    assert!(!stuck.may_go().await);
    let counts = rollout(&admin).await.counts;
    assert_eq!((counts.nodes, counts.at_version, counts.dead_ends), (2, 0, 1));

    mark(&mut operator, &admin, None).await;
    assert!(stuck.may_go().await);
    let log: AuditLog = admin.read("/api/v1/audit?limit=1").await;
    assert_eq!(log.entries[0].detail, "targets version 6: a dead end no more");
}

#[tokio::test]
async fn a_channel_points_at_a_dead_end_only_where_that_is_insisted_on() {
    let (server, admin, mut operator) = published(&["1.0.0", END, "1.1.0"]).await;
    mark(&mut operator, &admin, Some(WHY)).await;
    let node = running(&admin, 1, "1.0.0");
    let path = "/api/v1/channels/stable";
    let refused = error(admin.send(Method::PUT, path, &set(END, false)).await, StatusCode::CONFLICT).await;
    assert!(
        refused.message.starts_with("1.0.5 is a dead end for x86-64 (its updater"),
        "{}",
        refused.message
    );
    assert!(refused.message.ends_with("or insist with --to-dead-end"), "{}", refused.message);

    let info = point(&admin, "stable", END, true).await;
    assert!(info.to_dead_end && info.on_dead_ends.is_empty(), "{info:?}");
    assert_eq!(node.ask().await.version.unwrap().as_str(), END);
    assert_eq!(node_sees(&admin, &operator.root, "stable", server.now()).await.unwrap(), [END]);
    let log: AuditLog = admin.read("/api/v1/audit?limit=1").await;
    assert_eq!(log.entries[0].detail, "nothing -> 1.0.5 although it is a dead end, rollout 1");
    let promote = |to_dead_end| ChannelPromote {
        schema: SCHEMA,
        from: "stable".parse().unwrap(),
        leave_behind: false,
        to_dead_end,
        despite_gate: None,
    };
    let path = "/api/v1/channels/beta/promote";
    error(admin.send(Method::POST, path, &promote(false)).await, StatusCode::CONFLICT).await;
    let promoted: ChannelInfo = done(admin.send(Method::POST, path, &promote(true)).await).await;
    assert!(promoted.to_dead_end);

    let server = server.restart().await;
    let (admin, node) = (server.admin(), node.at(&server.admin()));
    assert!(node.may_go().await, "that it was insisted on outlives the server");
    // It is forgotten with the mark.
    mark(&mut operator, &admin, None).await;
    assert!(node.may_go().await);
    mark(&mut operator, &admin, Some("another reason")).await;
    assert!(!node.may_go().await);
    let info = point(&admin, "stable", END, true).await;
    assert!(info.to_dead_end && node.may_go().await);
    assert_eq!(rollout(&admin).await.rollout.number, 1, "the same rollout");
    assert!(!point(&admin, "stable", "1.1.0", true).await.to_dead_end, "there is nothing to insist on");
}

#[tokio::test]
async fn what_is_said_of_a_dead_end_is_checked_and_lasts_as_long_as_the_release() {
    let (_server, admin, mut operator) = published(&["1.0.0", END, "1.1.0"]).await;
    for wrong in ["", "two\nlines", &"x".repeat(257)] {
        let refused = error(operator.dead_end(&admin, END, Some(wrong)).await, StatusCode::BAD_REQUEST).await;
        assert!(refused.message.starts_with("the reason of a dead end is not valid"), "{}", refused.message);
    }
    mark(&mut operator, &admin, Some(WHY)).await;
    let path = protocol::manifest::Manifest::target_path(&END.parse().unwrap(), &ARCH.parse().unwrap());
    let remove = trust::document::TargetsChange::Remove { path };
    let withdraw = operator.sign(std::slice::from_ref(&remove)).0;
    let refused =
        error(admin.send(Method::POST, "/api/v1/releases", &withdraw).await, StatusCode::CONFLICT).await;
    assert!(refused.message.contains("release dead-end 1.0.5 --clear"), "{}", refused.message);
    mark(&mut operator, &admin, None).await;
    let withdraw = operator.push(&[remove]);
    let _: Published = done(admin.send(Method::POST, "/api/v1/releases", &withdraw).await).await;
}

/// The numbers of nodes that the first wave of 1.1.0 reaches, or of those that it does not.
fn of_the_first_half(yes: bool) -> Vec<u32> {
    let version = "1.1.0".parse().unwrap();
    (1..50).filter(|number| Share::percent(50).covers(place(&version, &id(*number))) == yes).collect()
}

#[tokio::test]
async fn nodes_on_dead_ends_are_not_waited_for() {
    let (server, admin, mut operator) = published(&["1.0.0", END, "1.1.0"]).await;
    let waves = "waves = [{ share = \"50%\", hold = \"1m\" }, { share = \"100%\" }]\n\
                 [channel.stable.promotion]\nhealthy = \"100%\"\n";
    set_policy(&admin, waves).await;
    point(&admin, "stable", "1.1.0", false).await;
    let first = of_the_first_half(true);
    let (granted, stuck, other) = (
        running(&admin, first[0], END),
        running(&admin, first[1], END),
        running(&admin, of_the_first_half(false)[0], "1.0.0"),
    );
    assert!(granted.may_go().await);
    let _: RolloutInfo = done(act(&admin, "pause", None).await).await;
    assert!(!stuck.may_go().await && !other.may_go().await);
    let _: RolloutInfo = done(act(&admin, "resume", None).await).await;
    pass(&server, 5).await;
    assert_eq!(rollout(&admin).await.rollout.stage, 0, "one is under way, and one could go");
    mark(&mut operator, &admin, Some(WHY)).await;
    let request = SimulationRequest {
        schema: SCHEMA,
        version: None,
        file: None,
        failing: Share::percent(0),
        silent: Share::percent(0),
        seed: 1,
        poll_interval_s: 2700,
        update_takes_s: 900,
        approve_after_s: None,
        span_s: 86_400,
    };
    let report: SimulationReport =
        done(admin.send(Method::POST, "/api/v1/rollouts/stable/simulate", &request).await).await;
    assert_eq!((report.nodes, report.left_behind, report.dead_ends), (1, 0, 2));
    assert!(report.done_at.is_some(), "{report:?}");
    pass(&server, 5).await;
    assert_eq!(rollout(&admin).await.counts.in_flight, 1, "until it has asked again");
    assert!(!granted.may_go().await);
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert_eq!((info.counts.in_flight, info.counts.lost, info.counts.all.failed), (0, 1, 0), "no failure");
    // Whether anybody waits is looked for when nothing else is changed.
    pass(&server, 1).await;
    let info = rollout(&admin).await;
    assert_eq!(info.rollout.stage, 1, "there is nobody left in it that could go");
    assert!(other.may_go().await);

    // Nor by a gate.
    point(&admin, "beta", "1.1.0", false).await;
    let mut well = running(&admin, 500, "1.0.0");
    let mut end = running(&admin, 501, END);
    (well.says.channel, end.says.channel) = ("beta".parse().unwrap(), "beta".parse().unwrap());
    assert!(well.may_go().await && !end.may_go().await);
    well.confirm().await;
    point(&admin, "stable", "1.0.0", false).await;
    let promote = ChannelPromote {
        schema: SCHEMA,
        from: "beta".parse().unwrap(),
        leave_behind: false,
        to_dead_end: false,
        despite_gate: None,
    };
    let info: ChannelInfo =
        done(admin.send(Method::POST, "/api/v1/channels/stable/promote", &promote).await).await;
    assert_eq!(info.on_dead_ends.iter().map(|on| on.nodes).sum::<u32>(), 2, "those of stable alone");
}

#[tokio::test]
async fn what_a_node_has_in_quarantine_is_known_and_explained() {
    let (server, admin, _) = published(&["1.0.0", END, "1.1.0"]).await;
    point(&admin, "stable", "1.1.0", false).await;
    let mut node = running(&admin, 1, "1.0.0");
    let kept = async || {
        let show: NodeShow = admin.read(&format!("/api/v1/nodes/{}", id(1))).await;
        show.node.quarantine.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert!(node.may_go().await);
    assert_eq!(kept().await, None, "an older engine does not say");
    node.says.quarantine = Some(vec![END.parse().unwrap(), "1.1.0".parse().unwrap()]);
    server.advance(SignedDuration::from_secs(1));
    assert!(node.may_go().await, "so that it refuses by itself");
    assert_eq!(kept().await.unwrap(), [END, "1.1.0"]);
    let told = explain(&admin, 1).await;
    assert_eq!(told.decision, Decision::Hold);
    assert_eq!(told.because, [Reason::Quarantined { version: "1.1.0".parse().unwrap() }]);

    // It came back, and was then allowed there again.
    node.tell(&[EventKind::RolledBack]).await;
    assert!(matches!(explain(&admin, 1).await.because[..], [Reason::RolledBack { .. }]));
    let _: RolloutInfo = done(act(&admin, "pause", None).await).await;
    node.says.quarantine = Some(Vec::new());
    server.advance(SignedDuration::from_secs(1));
    assert!(!node.may_go().await);
    assert_eq!(kept().await.unwrap(), [""; 0]);
    let _: RolloutInfo = done(act(&admin, "resume", None).await).await;
    let told = explain(&admin, 1).await;
    assert_eq!((told.decision, told.grant.unwrap().phase), (Decision::Update, GrantPhase::RolledBack));

    // The newest are kept.
    node.says.quarantine = Some((0..100).map(|n| format!("0.{n}").parse().unwrap()).collect());
    server.advance(SignedDuration::from_secs(1));
    node.ask().await;
    let versions = kept().await.unwrap();
    let ends = (versions[0].as_str(), versions[versions.len() - 1].as_str());
    assert_eq!((versions.len(), ends), (QUARANTINE_MAX, ("0.68", "0.99")));
}
