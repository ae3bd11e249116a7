//! Step 4, channel: the clock goes back, and channels go back to a release that they had: what nodes report is counted all the
//! same, and where it belongs.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, act, id, rolling, rollout, set_policy};
use common::{Client, Release, Server, done};
use jiff::SignedDuration;
use protocol::rollout::Rollout;
use protocol::wire::{ChannelInfo, EventKind, RolloutInfo};
use reqwest::Method;
use update_server::rollouts;
use update_server::store::rollouts as stored;

const HOUR: SignedDuration = SignedDuration::from_hours(1);

async fn set(admin: &Client, version: &str) {
    let _: ChannelInfo = done(admin.set_channel("stable", version).await).await;
}

/// The rollouts in which a node was let go to 1.1.0, and what came of it.
async fn grants(server: &Server, node: u32) -> Vec<(i64, String)> {
    sqlx::query_as(
        "SELECT number, phase FROM rollout_grant WHERE node = $1 AND version = '1.1.0' ORDER BY number",
    )
    .bind(id(node).as_str())
    .fetch_all(&mut *server.app.store().read().await.unwrap())
    .await
    .unwrap()
}

#[tokio::test]
async fn failures_count_though_the_clock_was_set_back() {
    let (server, admin) = rolling("[channel.stable.halt]\nfailures = 3\n").await;
    server.advance(-HOUR);
    let mut nodes: Vec<Node> = (0..7).map(|n| Node::new(&admin, n, "web")).collect();
    for node in &mut nodes[..3] {
        assert_eq!(rollout(&admin).await.rollout.halted, None);
        assert!(node.may_go().await);
        node.tell(&[EventKind::RolledBack]).await;
    }
    assert_eq!(rollout(&admin).await.rollout.halted.unwrap().why, "3 of 3 nodes failed");
    // Those before an operator resumes it are forgiven, those after it are not, whatever the clock says.
    let resumed: RolloutInfo = done(act(&admin, "resume", None).await).await;
    assert_eq!((resumed.rollout.resumes, resumed.counts.since.failed), (1, 0));
    server.advance(-HOUR);
    for node in &mut nodes[3..6] {
        assert_eq!(rollout(&admin).await.rollout.halted, None);
        assert!(node.may_go().await);
        node.tell(&[EventKind::RolledBack]).await;
    }
    assert_eq!(rollout(&admin).await.rollout.halted.unwrap().why, "3 of 3 nodes failed");
    let _: RolloutInfo = done(act(&admin, "resume", None).await).await;
    assert!(nodes[6].may_go().await);
    nodes[6].confirm().await;
    let since = rollout(&admin).await.counts.since;
    assert_eq!((since.confirmed, since.failed), (1, 0));
}

#[tokio::test]
async fn the_canary_group_is_forgiven_and_fails_again_though_the_clock_was_set_back() {
    let (server, admin) = rolling("[channel.stable.canary]\ngroup = \"canary\"\n").await;
    let mut canaries: Vec<Node> = (0..2).map(|n| Node::new(&admin, n, "canary")).collect();
    for canary in &mut canaries {
        assert!(canary.may_go().await);
        canary.tell(&[EventKind::RolledBack]).await;
        assert!(rollout(&admin).await.rollout.halted.is_some());
        server.advance(-HOUR);
        let info: RolloutInfo = done(act(&admin, "resume", None).await).await;
        assert_eq!(info.rollout.halted, None);
        rollouts::tick(&server.app).await.unwrap();
        assert_eq!(rollout(&admin).await.rollout.halted, None);
    }
}

#[tokio::test]
async fn the_grant_that_was_given_last_is_not_the_one_with_the_latest_time() {
    let (server, admin) = rolling("").await;
    let mut node = Node::new(&admin, 1, "web");
    assert!(node.may_go().await);
    node.tell(&[EventKind::Failed]).await;
    set(&admin, "1.0.0").await;
    server.advance(-HOUR);
    set(&admin, "1.1.0").await;
    assert!(node.may_go().await);
    node.tell(&[EventKind::RolledBack]).await;
    let counts = rollout(&admin).await.counts;
    assert_eq!((counts.all.failed, counts.in_flight), (1, 0));
    assert_eq!(grants(&server, 1).await, [(1, "failed".to_owned()), (3, "rolled-back".to_owned())]);
}

#[tokio::test]
async fn a_rollout_that_is_over_takes_no_failure_of_the_one_that_runs() {
    let (server, admin) =
        rolling("silent_after = \"30m\"\nlost_after = \"1h\"\n[channel.stable.halt]\nfailures = 1\n").await;
    let (mut failed, mut late) = (Node::new(&admin, 1, "web"), Node::new(&admin, 2, "web"));
    assert!(failed.may_go().await && late.may_go().await);
    failed.tell(&[EventKind::Failed]).await;
    server.advance(HOUR * 2);
    rollouts::tick(&server.app).await.unwrap();
    set(&admin, "1.0.0").await;
    set_policy(&admin, "in_flight = 0\n[channel.stable.halt]\nfailures = 1\n").await;
    set(&admin, "1.1.0").await;
    let phase = async |node, phase: &str| {
        assert_eq!(grants(&server, node).await, [(1, phase.to_owned())]);
        let info = rollout(&admin).await;
        assert_eq!((info.rollout.number, info.rollout.halted, info.counts.all.failed), (3, None, 0));
        info.counts.in_flight
    };
    // They were not let go in this rollout, so what they do is their own.
    failed.tell(&[EventKind::RolledBack]).await;
    assert_eq!(phase(1, "failed").await, 0);
    late.tell(&[EventKind::Failed]).await;
    assert_eq!(phase(2, "lost").await, 0);
    // One that was thought lost goes on, takes up its place again, and fails in the rollout that let it go.
    late.tell(&[EventKind::Rebooting]).await;
    assert_eq!(phase(2, "rebooting").await, 1);
    late.tell(&[EventKind::RolledBack]).await;
    assert_eq!(phase(2, "rolled-back").await, 0);
}

#[tokio::test]
async fn each_node_counts_once() {
    let server = Server::start().await;
    let admin = server.admin();
    let mut operator = server.operator();
    operator.push_root(&admin).await;
    operator.release(&admin, "1.1.0").await;
    // 1.1.0 is on the way to 2.0.0.
    let barrier = Release::new("2.0.0", Some("1.1.0"));
    admin.upload(&barrier.payload).await;
    let push = operator.push(&[barrier.add()]);
    let _: protocol::wire::Published = done(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    set_policy(&admin, "[channel.stable.halt]\nfailure_rate = \"60%\"\nleast_failures = 3\n").await;
    set(&admin, "2.0.0").await;
    let mut nodes: Vec<Node> = (0..4).map(|n| Node::new(&admin, n, "web")).collect();
    for (at, node) in nodes.iter_mut().enumerate() {
        assert!(node.may_go().await);
        // One fails and tries again: it was let go once.
        if at == 0 {
            node.tell(&[EventKind::Failed]).await;
            assert!(node.may_go().await);
            let since = rollout(&admin).await.counts.since;
            assert_eq!((since.granted, since.failed), (1, 1));
        }
        node.confirm().await;
        assert!(node.may_go().await);
    }
    let since = rollout(&admin).await.counts.since;
    assert_eq!((since.granted, since.confirmed, since.failed), (4, 4, 0));
    for node in &mut nodes[..3] {
        assert_eq!(rollout(&admin).await.rollout.halted, None);
        let failed = node.events("2.0.0", &[EventKind::RolledBack]);
        assert!(node.try_send(&failed).await);
    }
    // All that have ended; that they have come through the step before is no success of theirs.
    let info = rollout(&admin).await;
    assert_eq!(info.rollout.halted.unwrap().why, "3 of 4 nodes failed");
    assert_eq!((info.counts.since.granted, info.counts.since.confirmed), (4, 1));
}

#[tokio::test]
async fn grants_that_an_older_server_wrote_keep_their_order_and_what_was_forgiven() {
    let (server, admin) = rolling("").await;
    let store = server.app.store();
    let mut change = store.write().await.unwrap();
    // The tables as they were.
    let (old, new) = match &server.database.postgres {
        Some(_) => (
            include_str!("../../migrations/postgres/0005_rollouts.sql"),
            include_str!("../../migrations/postgres/0009_grants_in_order.sql"),
        ),
        None => (
            include_str!("../../migrations/sqlite/0005_rollouts.sql"),
            include_str!("../../migrations/sqlite/0009_grants_in_order.sql"),
        ),
    };
    let channel = "stable".parse().unwrap();
    let before = stored::find(&mut change, &channel).await.unwrap().unwrap();
    let micros = before.counted_from.as_microsecond();
    for table in ["rollout_policy", "rollout", "rollout_grant"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("DROP TABLE {table}"))).execute(&mut *change).await.unwrap();
    }
    sqlx::raw_sql(old).execute(&mut *change).await.unwrap();
    let mut document = serde_json::to_value(&before).unwrap();
    document.as_object_mut().unwrap().remove("resumes");
    document["paused"] = serde_json::json!({
        "at": before.began_at, "by": "x", "why": "\"counted_from\":\"1970-01-01T00:00:00Z\" and a NUL: \0",
    });
    sqlx::query("INSERT INTO rollout (channel, document) VALUES ('stable', $1)")
        .bind(document.to_string())
        .execute(&mut *change)
        .await
        .unwrap();
    let second = 1_000_000;
    for (node, number, phase, phase_at, failed_at) in [
        (1, 1, "failed", -second, Some(-second)),
        (2, 1, "failed", second, Some(second)),
        (3, 1, "granted", 2 * second, Some(second)),
        (4, 1, "confirmed", -second, None),
        (5, 1, "confirmed", second, None),
        (6, 1, "granted", second, None),
    ] {
        sqlx::query(
            "INSERT INTO rollout_grant (channel, number, node, version, grp, stage, granted_at, phase, phase_at, failed_at)
             VALUES ('stable', $1, $2, '1.1.0', 'web', 0, $3, $4, $3, $5)",
        )
        .bind(number)
        .bind(id(node).as_str())
        .bind(micros + phase_at)
        .bind(phase)
        .bind(failed_at.map(|at| micros + at))
        .execute(&mut *change)
        .await
        .unwrap();
    }
    sqlx::query(
        "INSERT INTO rollout_grant (channel, number, node, version, grp, stage, granted_at, phase, phase_at)
         VALUES ('beta', 7, $1, '1.1.0', 'web', 0, 5, 'lost', 5)",
    )
    .bind(id(6).as_str())
    .execute(&mut *change)
    .await
    .unwrap();
    sqlx::raw_sql(new).execute(&mut *change).await.unwrap();
    let now = stored::find(&mut change, &channel).await.unwrap().unwrap();
    assert_eq!(Rollout { paused: None, ..now.clone() }, before);
    assert_eq!(stored::failures(&mut change, &now).await.unwrap(), (2, 0), "nodes 2 and 3");
    assert_eq!(stored::confirmed_since(&mut change, &now).await.unwrap(), 1, "node 5");
    let (stage, _) = stored::ended(&mut change, &now, true).await.unwrap();
    assert_eq!((stage.failed, stage.confirmed), (1, 2), "node 2; a stage forgets no confirmation");
    let order = stored::grants_for(&mut change, &id(6), &before.version).await.unwrap();
    let order: Vec<u64> = order.iter().map(|(key, _)| key.number).collect();
    assert_eq!(order, [1, 7], "the last one first");
    change.commit().await.unwrap();
    // And it goes on.
    let mut node = Node::new(&admin, 9, "web");
    let _: RolloutInfo = done(act(&admin, "resume", None).await).await;
    assert!(node.may_go().await);
    node.confirm().await;
}
