//! Step 4, channel: many nodes ask at the same time, and the server is killed while they do: no limit is exceeded, and no
//! grant or event that was acknowledged is lost.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, rollout, set_policy};
use common::program::Program;
use common::{Client, Operator, Server, done};
use futures::future::join_all;
use jiff::Timestamp;
use proptest::prelude::*;
use protocol::wire::{ChannelInfo, Decision, EventKind, NodeShow, RolloutInfo};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

async fn point(admin: &Client, mut operator: Operator, policy: &str) {
    operator.push_root(admin).await;
    operator.release(admin, "1.1.0").await;
    set_policy(admin, policy).await;
    let _: ChannelInfo = done(admin.set_channel("stable", "1.1.0").await).await;
}

/// One case of limits: 40 nodes ask twice each, all at once; then some go on, and all ask again.
async fn never_exceeded(in_flight: u32, rate: u32, db: u32, fates: &[u8]) {
    let server = Server::start().await;
    let admin = server.admin();
    let policy = format!(
        "in_flight = {in_flight}\nrate = {{ max = {rate}, per = \"1h\" }}\n\
         [channel.stable.halt]\nfailures = 1000\nfailure_rate = \"100%\"\nleast_failures = 1000\n\
         [channel.stable.groups.db]\nin_flight = {db}\n"
    );
    point(&admin, server.operator(), &policy).await;
    let group = |number: u32| if number.is_multiple_of(3) { "db" } else { "web" };
    let mut nodes: Vec<Node> = (0..40).map(|n| Node::new(&admin, n, group(n))).collect();
    let mut went: BTreeMap<usize, bool> = BTreeMap::new();
    for round in 0..3 {
        let asks = nodes.iter().chain(&nodes).map(Node::ask);
        let answers = join_all(asks).await;
        let open: Vec<usize> = (0..nodes.len())
            .filter(|at| {
                answers[*at].decision == Decision::Update || answers[at + 40].decision == Decision::Update
            })
            .collect();
        let new: Vec<usize> = open.iter().copied().filter(|at| !went.contains_key(at)).collect();
        went.extend(new.iter().map(|at| (*at, true)));
        let counts = rollout(&admin).await.counts;
        let under_way = |of: Option<&str>| {
            let mine = went
                .iter()
                .filter(|(at, open)| **open && of.is_none_or(|of| group(u32::try_from(**at).unwrap()) == of));
            u32::try_from(mine.count()).unwrap()
        };
        assert_eq!(counts.in_flight, under_way(None), "round {round}: what was answered is what is counted");
        assert!(counts.in_flight <= in_flight && under_way(Some("db")) <= db, "round {round}: {counts:?}");
        assert!(counts.all.granted <= rate, "round {round}: the clock stands still");
        // As many as may be: nobody is held for nothing.
        let room = counts.in_flight == in_flight || counts.all.granted == rate || under_way(Some("db")) == db;
        assert!(room || went.len() == 40, "round {round}: {counts:?}");
        for (at, fate) in went.keys().copied().collect::<Vec<_>>().into_iter().zip(fates.iter().cycle()) {
            match fate % 3 {
                0 if went[&at] => {
                    nodes[at].confirm().await;
                    went.insert(at, false);
                }
                1 if went[&at] => {
                    nodes[at].tell(&[EventKind::RolledBack]).await;
                    went.insert(at, false);
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_limit_is_exceeded_whoever_asks_at_once(
        in_flight in 0_u32..12, rate in 1_u32..30, db in 0_u32..4, fates in proptest::collection::vec(any::<u8>(), 8),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(never_exceeded(in_flight, rate, db, &fates));
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_nodes_rows_does_not_hold_up_the_others() {
    let server = Server::start().await;
    let admin = server.admin();
    point(&admin, server.operator(), "").await;
    let mut change = server.app.store().write().await.unwrap();
    sqlx::query(
        "INSERT INTO rollout_grant (channel, number, node, version, grp, stage, granted_at, phase, phase_at)
         VALUES ('stable', 1, $1, '1.1.0', 'web', 0, 0, 'nonsense', 0)",
    )
    .bind(common::fleet::id(3).as_str())
    .execute(&mut *change)
    .await
    .unwrap();
    change.commit().await.unwrap();
    let mut nodes: Vec<Node> = (0..12).map(|n| Node::new(&admin, n, "web")).collect();
    let answers = join_all(nodes.iter().map(Node::try_ask)).await;
    let events: Vec<_> = nodes.iter_mut().map(|node| node.events("1.1.0", &[EventKind::Confirmed])).collect();
    let sent = join_all(nodes.iter().zip(&events).map(|(node, events)| node.try_send(events))).await;
    for (at, (answer, sent)) in answers.iter().zip(sent).enumerate() {
        assert_eq!(answer.is_some(), at != 3, "node {at}");
        assert_eq!(sent, at != 3, "node {at}");
    }
}

/// Asks and reports until told to stop, and remembers what was acknowledged.
async fn live(mut node: Node, stop: Arc<AtomicBool>) -> (Node, bool, u64) {
    let (mut granted, mut acknowledged) = (false, 0);
    while !stop.load(Ordering::Relaxed) {
        granted |= node.try_ask().await.is_some_and(|answer| answer.decision == Decision::Update);
        let events = node.events("1.1.0", &[EventKind::DownloadStarted]);
        // As the engine does: an event is sent until it is acknowledged.
        while !node.try_send(&events).await && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if !stop.load(Ordering::Relaxed) {
            acknowledged = events.events[0].seq;
        }
    }
    (node, granted, acknowledged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_or_doubled_when_the_server_is_killed_under_load() {
    let mut program = Program::new();
    let admin = program.client();
    point(&admin, Operator::new(&program.srv(), Timestamp::now()), "in_flight = 9\n").await;
    let mut nodes: Vec<Node> = (0..24).map(|n| Node::new(&admin, n, "web")).collect();
    let mut granted = [false; 24];
    let mut acknowledged = [0; 24];
    for round in 0..4 {
        let stop = Arc::new(AtomicBool::new(false));
        let client = program.client();
        let lives: Vec<_> =
            nodes.drain(..).map(|node| tokio::spawn(live(node.at(&client), Arc::clone(&stop)))).collect();
        tokio::time::sleep(Duration::from_millis(150 + 130 * round)).await;
        program = program.kill_and_restart();
        stop.store(true, Ordering::Relaxed);
        for (at, life) in lives.into_iter().enumerate() {
            let (node, went, seq) = life.await.unwrap();
            granted[at] |= went;
            acknowledged[at] = acknowledged[at].max(seq);
            nodes.push(node);
        }
        let client = program.client();
        let info: RolloutInfo = rollout(&client).await;
        let let_go = granted.iter().filter(|granted| **granted).count();
        assert!(info.counts.in_flight <= 9, "round {round}: {:?}", info.counts);
        assert!(usize::try_from(info.counts.in_flight).unwrap() >= let_go, "round {round}: a grant was lost");
        for (at, node) in nodes.iter().enumerate() {
            let node = node.clone().at(&client);
            let open = granted[at];
            assert!(!open || node.may_go().await, "round {round}: node {at} was let go and is no more");
            granted[at] |= node.may_go().await;
            if acknowledged[at] > 0 {
                let show: NodeShow = client.read(&format!("/api/v1/nodes/{}", node.says.node)).await;
                let mut seqs: Vec<u64> = show.events.iter().map(|event| event.seq).collect();
                seqs.sort_unstable();
                assert!(
                    seqs.contains(&acknowledged[at]),
                    "round {round}: node {at} lost event {}",
                    acknowledged[at]
                );
                let all = seqs.len();
                seqs.dedup();
                assert_eq!(seqs.len(), all, "round {round}: node {at} has an event twice");
            }
        }
    }
    assert!(granted.iter().filter(|granted| **granted).count() == 9, "all places were taken");
}
