//! Step 4, channel: what operators are shown of a rollout: which nodes are where, what holds everybody, what can open the next
//! stage, and which names look like mistakes.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, act, explain, id, pass, rolling, rollout, set_policy};
use common::{Client, done, error};
use jiff::SignedDuration;
use protocol::rollout::{GrantPhase, Reason, RolloutPolicy};
use protocol::wire::{
    AuditLog, ChannelInfo, EventKind, NodeList, Policies, PolicyRemove, PolicySet, RolloutInfo, RolloutNodes,
    SCHEMA,
};
use reqwest::{Method, StatusCode};

async fn listed(admin: &Client, query: &str) -> RolloutNodes {
    admin.read(&format!("/api/v1/rollouts/stable/nodes?{query}")).await
}

fn ids(list: &RolloutNodes) -> Vec<protocol::id::NodeId> {
    list.nodes.iter().map(|node| node.node.clone()).collect()
}

#[tokio::test]
async fn the_nodes_that_failed_are_named_and_so_are_those_of_the_rollout_before() {
    let (_server, admin) = rolling("").await;
    let mut nodes: Vec<Node> = (0..6).map(|n| Node::new(&admin, n, "web")).collect();
    for node in &nodes {
        assert!(node.may_go().await);
    }
    for (node, kind) in
        nodes.iter_mut().zip([EventKind::RolledBack, EventKind::Failed, EventKind::RolledBack])
    {
        let mut events = node.events("1.1.0", &[kind]);
        events.events[0].detail = "web.service failed".to_owned();
        assert!(node.try_send(&events).await);
    }
    let failures = "phase=failed,rolled-back,silent";
    let list = listed(&admin, failures).await;
    assert_eq!(ids(&list), [id(0), id(1), id(2)]);
    let first = &list.nodes[0];
    assert_eq!((first.grant.phase, first.stage, first.rollout), (GrantPhase::RolledBack, Some(0), 1));
    assert_eq!(first.last_event.as_ref().unwrap().detail, "web.service failed");
    assert_eq!((first.group.as_str(), first.forgiven), ("web", false));
    assert_eq!(ids(&listed(&admin, "phase=failed").await), [id(1)]);
    assert_eq!(ids(&listed(&admin, "phase=failed%2Csilent").await), [id(1)], "as some clients write it");
    // Page by page.
    let page = listed(&admin, "limit=4").await;
    assert_eq!((ids(&page), &page.next), ((0..4).map(id).collect(), &Some(id(3))));
    let page = listed(&admin, &format!("limit=4&after={}", id(3))).await;
    assert_eq!((ids(&page), page.next), (vec![id(4), id(5)], None));
    for (path, status) in [
        ("stable/nodes?phase=broken", StatusCode::BAD_REQUEST),
        ("stable/nodes?phase=", StatusCode::BAD_REQUEST),
        ("stable/nodes?after=x", StatusCode::BAD_REQUEST),
        ("beta/nodes", StatusCode::NOT_FOUND),
    ] {
        let sent = admin.request(Method::GET, &format!("/api/v1/rollouts/{path}")).send().await.unwrap();
        assert_eq!(sent.status(), status, "{path}");
    }

    let resumed: RolloutInfo = done(act(&admin, "resume", None).await).await;
    assert_eq!((resumed.counts.all.failed, resumed.counts.forgiven), (3, 3));
    assert!(listed(&admin, failures).await.nodes.iter().all(|node| node.forgiven));
    nodes[3].tell(&[EventKind::Failed]).await;
    assert_eq!(rollout(&admin).await.counts.forgiven, 3);
    assert!(!listed(&admin, &format!("after={}", id(2))).await.nodes[0].forgiven);

    let _: ChannelInfo = done(admin.set_channel("stable", "1.0.0").await).await;
    let _: ChannelInfo = done(admin.set_channel("stable", "1.1.0").await).await;
    let counts = rollout(&admin).await.counts;
    assert_eq!((counts.in_flight, counts.in_flight_before, counts.all.granted), (2, 2, 0));
    let list = listed(&admin, "").await;
    assert_eq!((ids(&list), list.number), (vec![id(4), id(5)], 3));
    assert_eq!(list.nodes[0].rollout, 1);
    assert!(nodes[4].may_go().await);
    let list = listed(&admin, "phase=granted").await;
    assert_eq!(list.nodes.iter().map(|node| node.rollout).collect::<Vec<_>>(), [3, 1], "each node once");
}

#[tokio::test]
async fn nodes_are_listed_by_channel_group_and_version() {
    let (_server, admin) = rolling("").await;
    for (number, group, channel) in [(1, "web", "stable"), (2, "db", "stable"), (3, "web", "beta")] {
        let mut node = Node::new(&admin, number, group);
        node.says.channel = channel.parse().unwrap();
        node.ask().await;
    }
    let placed = serde_json::json!({ "schema": SCHEMA, "group": "web" });
    let path = format!("/api/v1/nodes/{}/group", id(2));
    assert_eq!(admin.send(Method::PUT, &path, &placed).await.status(), StatusCode::NO_CONTENT);
    for (query, expected) in [
        ("", vec![1, 2, 3]),
        ("channel=stable", vec![1, 2]),
        ("group=web", vec![1, 2, 3]),
        ("group=db", vec![]),
        ("channel=beta&group=web&version=1.0.0", vec![3]),
        ("version=1.1.0", vec![]),
        ("channel=stable&limit=1&skip=2", vec![]),
    ] {
        let list: NodeList = admin.read(&format!("/api/v1/nodes?{query}")).await;
        let mut found: Vec<_> = list.nodes.into_iter().map(|node| node.node).collect();
        found.sort();
        assert_eq!(found, expected.into_iter().map(id).collect::<Vec<_>>(), "{query}");
    }
}

#[tokio::test]
async fn what_holds_everybody_is_told_of_the_rollout() {
    let (_server, admin) =
        rolling("in_flight = 0\nfreezes = [{ from = \"2020-01-01\", to = \"2099-12-31\" }]\n").await;
    let held = rollout(&admin).await.holds_all;
    assert!(matches!(held[..], [Reason::Frozen { .. }, Reason::InFlight { max: 0, .. }]), "{held:?}");
    set_policy(&admin, "in_flight = 1\nrate = { max = 1, per = \"1h\" }\n").await;
    assert_eq!(rollout(&admin).await.holds_all, []);
    assert!(Node::new(&admin, 1, "web").may_go().await);
    let held = rollout(&admin).await.holds_all;
    assert!(matches!(held[..], [Reason::InFlight { now: 1, .. }, Reason::Rate { max: 1, .. }]), "{held:?}");
    set_policy(&admin, "").await;
    let paused: RolloutInfo = done(act(&admin, "pause", None).await).await;
    assert!(matches!(paused.holds_all[..], [Reason::Paused { .. }]), "{:?}", paused.holds_all);
}

#[tokio::test]
async fn a_stage_that_nobody_is_left_to_prove_says_so_and_an_approval_opens_the_next_one() {
    let (server, admin) = rolling("[channel.stable.canary]\ngroup = \"canary\"\nhold = \"0s\"\n").await;
    let nobody = async || {
        let waits = rollout(&admin).await.next_stage.join("; ");
        (waits.contains("no node is left in this stage that could confirm the release"), waits)
    };
    assert!(nobody().await.0, "there is none");
    let mut canaries: Vec<Node> = (0..3).map(|n| Node::new(&admin, n, "canary")).collect();
    let web = Node::new(&admin, 9, "web");
    canaries[2].says.quarantine = Some(vec!["1.1.0".parse().unwrap()]);
    for canary in &canaries {
        assert!(canary.may_go().await);
    }
    assert!(!nobody().await.0, "two are under way");
    for canary in &mut canaries[..2] {
        canary.tell(&[EventKind::RolledBack]).await;
    }
    canaries[1].says.quarantine = Some(vec!["1.1.0".parse().unwrap()]);
    assert!(canaries[1].may_go().await, "so that it refuses");
    let (is_nobody, waits) = nobody().await;
    assert!(is_nobody && waits.contains("updatectl rollout resume stable --why TEXT"), "{waits}");
    let _: RolloutInfo = done(act(&admin, "resume", None).await).await;
    pass(&server, 60).await;
    let (is_nobody, waits) = nobody().await;
    assert!(is_nobody && waits.ends_with("updatectl rollout approve stable --why TEXT"), "{waits}");

    assert!(!web.may_go().await);
    let told = explain(&admin, 9).await;
    assert!(matches!(told.because[..], [Reason::Canary { .. }]), "{told:?}");
    assert_eq!(told.next_stage, [waits], "what its stage waits for");
    assert_eq!(explain(&admin, 0).await.next_stage, Vec::<String>::new(), "its stage is open");

    // It was cleared there.
    canaries[1].says.quarantine = Some(Vec::new());
    server.advance(SignedDuration::from_secs(1));
    assert!(canaries[1].may_go().await);
    assert!(!nobody().await.0);
    let approved: RolloutInfo = done(act(&admin, "approve", None).await).await;
    assert_eq!((approved.rollout.stage, approved.next_stage), (1, Vec::new()));
    assert!(web.may_go().await);
}

#[tokio::test]
async fn a_wave_does_not_wait_for_nodes_that_have_the_release_in_quarantine() {
    let waves = "waves = [{ share = \"99%\", hold = \"0s\" }, { share = \"100%\" }]\n";
    let (server, admin) = rolling(waves).await;
    let mut node = Node::new(&admin, 1, "web");
    node.says.channel = "stable".parse().unwrap();
    node.says.quarantine = Some(vec!["1.1.0".parse().unwrap()]);
    assert!(node.may_go().await, "so that it refuses");
    pass(&server, 1).await;
    assert!(rollout(&admin).await.rollout.is_last_stage());
}

#[tokio::test]
async fn names_that_nobody_has_are_warned_of_and_taken() {
    let (_server, admin) = rolling("").await;
    Node::new(&admin, 1, "web").ask().await;
    let set = async |file: &str| -> Policies {
        let before: Policies = admin.read("/api/v1/rollout-policy").await;
        let (replaces, file, why) = (before.digest, file.to_owned(), "w".to_owned());
        let body = PolicySet { schema: SCHEMA, replaces, file, why };
        done(admin.send(Method::PUT, "/api/v1/rollout-policy", &body).await).await
    };
    let right = "[channel.stable.canary]\ngroup = \"web\"\n[channel.stable.groups.web]\nin_flight = 1\n";
    assert_eq!(set(right).await.warnings, Vec::<String>::new());
    let wrong = "[channel.stable.canary]\ngroup = \"wbe\"\n[channel.stable.groups.db]\nin_flight = 1\n[channel.nosuch]\n";
    let expected = [
        "no channel nosuch is known: it points at no release, and no node follows it",
        "no node of group wbe is known on channel stable (the policy's canary group)",
        "no node of group db is known on channel stable (the policy has limits for it)",
    ];
    assert_eq!(set(wrong).await.warnings, expected);
    assert_eq!(admin.read::<Policies>("/api/v1/rollout-policy").await.warnings, expected);
    let paused: RolloutInfo = done(act(&admin, "pause", Some("nogroup")).await).await;
    assert_eq!(
        paused.warnings.last().unwrap(),
        "no node of group nogroup is known on channel stable (it is paused)"
    );
}

#[tokio::test]
async fn a_policy_is_removed_as_if_an_empty_one_were_set() {
    let (server, admin) =
        rolling("in_flight = 5\nwaves = [{ share = \"10%\" }, { share = \"100%\" }]\n").await;
    let before: Policies = admin.read("/api/v1/rollout-policy").await;
    let remove = async |replaces| {
        let body = PolicyRemove { schema: SCHEMA, replaces, why: "a test".to_owned() };
        admin.send(Method::POST, "/api/v1/rollout-policy/stable/remove", &body).await
    };
    let other = protocol::digest::Sha256::of(b"another one");
    error(remove(other).await, StatusCode::CONFLICT).await;
    let running = rollout(&admin).await.rollout;
    let after: Policies = done(remove(before.digest).await).await;
    assert_eq!(after, admin.read("/api/v1/rollout-policy").await);
    let now = rollout(&admin).await.rollout;
    assert_eq!(now, running.with_policy(RolloutPolicy::default(), server.now()));
    let refused = error(remove(after.digest).await, StatusCode::NOT_FOUND).await;
    assert_eq!(refused.message, "the channel stable has no policy of its own: the default one holds");
    let log: AuditLog = admin.read("/api/v1/audit?limit=1").await;
    let entry = &log.entries[0];
    assert_eq!((entry.action.as_str(), entry.subject.as_str()), ("rollout.policy-remove", "stable"));
    assert!(
        entry.detail.starts_with("back to the default; ") && entry.detail.ends_with(": a test"),
        "{entry:?}"
    );
    let _: ChannelInfo = done(admin.set_channel("stable", "1.0.0").await).await;
    assert_eq!(rollout(&admin).await.rollout.policy, RolloutPolicy::default(), "of the next one, too");
}
