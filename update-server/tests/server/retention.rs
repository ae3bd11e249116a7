//! Steps 4 and 12: what is deleted when it is old, what stays, and what is counted.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, id};
use common::{Client, Server, error};
use futures::future::join_all;
use jiff::SignedDuration;
use protocol::lock::ClientId;
use protocol::rollout::Rollout;
use protocol::wire::{
    AuditLog, EventCount, EventKind, EventStats, LockInfo, NodeCredential, NodeList, NodeShow, VersionStats,
};
use reqwest::{Method, StatusCode};
use update_server::data_dir::DataDir;
use update_server::retention::{self, NEWEST_KEPT, Retention};
use update_server::server::App;
use update_server::store::{Store, credentials, old, rollouts};

const DAY: SignedDuration = SignedDuration::from_hours(24);

async fn events(client: &Client, number: u32) -> usize {
    client.read::<NodeShow>(&format!("/api/v1/nodes/{}", id(number))).await.events.len()
}

/// How many events of a kind are counted about 1.1.0 in the channel stable.
async fn counted(client: &Client, kind: EventKind) -> u64 {
    let stats: EventStats = client.read("/api/v1/stats/events?from=2030-01-01&to=2031-01-01").await;
    let of = |count: &&EventCount| {
        let (channel, version) = (count.channel.as_ref().unwrap(), count.version.as_ref().unwrap());
        count.kind == kind && channel.as_str() == "stable" && version.as_str() == "1.1.0"
    };
    stats.counts.iter().filter(of).map(|count| count.events).sum()
}

async fn rows(store: &Store, text: &'static str) -> Vec<(i64, String, String, String, i64)> {
    sqlx::query_as(text).fetch_all(&mut *store.read().await.unwrap()).await.unwrap()
}

/// A server that points stable at 1.1.0.
async fn server() -> (Server, Client) {
    let server = Server::start().await;
    let admin = server.admin();
    let mut operator = server.operator();
    operator.push_root(&admin).await;
    operator.release(&admin, "1.1.0").await;
    assert_eq!(admin.set_channel("stable", "1.1.0").await.status(), StatusCode::OK);
    (server, admin)
}

/// A node that the server has in its database.
async fn node(server: &Server, number: u32) -> Node {
    let node = Node::new(&server.admin(), number, "default");
    node.ask().await;
    server.app.checkins().flush(server.app.store()).await.unwrap();
    node
}

#[tokio::test]
async fn old_events_go_and_their_counts_stay() {
    let (server, admin) = server().await;
    let (mut talker, mut quiet) = (node(&server, 1).await, node(&server, 2).await);
    let many = vec![EventKind::Failed; 100];
    for _ in 0..7 {
        talker.tell(&many).await;
    }
    quiet.tell(&[EventKind::RolledBack]).await;
    server.advance(DAY * 89);
    talker.tell(&[EventKind::Staged]).await;
    retention::tick(&server.app).await.unwrap();
    let all = async || rows(server.app.store(), "SELECT id, '', '', '', id FROM event ORDER BY id").await;
    assert_eq!(all().await.len(), 702, "none is 90 days old");
    server.advance(DAY * 2);
    retention::tick(&server.app).await.unwrap();
    // Its newest 32, of which 31 are old; and the only one of a node.
    let left = all().await;
    assert_eq!(left.len(), NEWEST_KEPT as usize + 1);
    assert_eq!(left.first().unwrap().0, 700 - 30);
    assert_eq!(events(&admin, 1).await, NEWEST_KEPT as usize);
    assert_eq!(events(&admin, 2).await, 1);
    assert_eq!(counted(&admin, EventKind::Failed).await, 700);
    assert_eq!(counted(&admin, EventKind::RolledBack).await, 1);
    assert_eq!(counted(&admin, EventKind::Staged).await, 1);
    retention::tick(&server.app).await.unwrap();
    assert_eq!(all().await.len(), NEWEST_KEPT as usize + 1);
}

#[tokio::test]
async fn an_event_is_counted_once_and_under_names_that_the_server_knows() {
    let (server, admin) = server().await;
    let mut known = node(&server, 1).await;
    let sent = known.events("1.1.0", &[EventKind::Failed, EventKind::Refused]);
    for _ in 0..3 {
        assert!(known.try_send(&sent).await);
    }
    assert_eq!((counted(&admin, EventKind::Failed).await, counted(&admin, EventKind::Refused).await), (1, 1));
    // What nodes make up is one count, however much they make up.
    let mut liar = Node::new(&admin, 2, "default");
    liar.says.channel = "nowhere".parse().unwrap();
    liar.ask().await;
    server.app.checkins().flush(server.app.store()).await.unwrap();
    for n in 0..20 {
        let mut events = liar.events(&format!("9.9.{n}"), &[EventKind::Failed]);
        "a NUL: \0, and \"kind\":\"staged\",\"version\":\"1.1.0\"".clone_into(&mut events.events[0].detail);
        assert!(liar.try_send(&events).await);
    }
    let stats: EventStats = admin.read("/api/v1/stats/events").await;
    assert_eq!(stats.to.to_string(), "2030-03-17");
    let made_up: Vec<_> = stats.counts.iter().filter(|count| count.channel.is_none()).collect();
    assert_eq!(made_up.len(), 1);
    assert_eq!((made_up[0].version.clone(), made_up[0].events), (None, 20));

    // What was stored before there were counts is counted by the migration.
    let text =
        "SELECT day, channel, version, kind, events FROM event_count ORDER BY day, channel, version, kind";
    let before = rows(server.app.store(), text).await;
    let migration = match server.database.postgres {
        Some(_) => include_str!("../../migrations/postgres/0006_statistics.sql"),
        None => include_str!("../../migrations/sqlite/0006_statistics.sql"),
    };
    let (_, insert) = migration.split_once("INSERT").unwrap();
    let (insert, _) = insert.split_once(';').unwrap();
    let mut change = server.app.store().write().await.unwrap();
    sqlx::query("DELETE FROM event_count").execute(&mut *change).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("INSERT{insert}"))).execute(&mut *change).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(rows(server.app.store(), text).await, before);
}

#[tokio::test]
async fn versions_are_counted_once_an_hour_and_for_a_year() {
    let (server, admin) = server().await;
    let mut nodes = [node(&server, 1).await, node(&server, 2).await, node(&server, 3).await];
    let spread = async || {
        let path = "/api/v1/stats/versions?channel=stable&from=2030-03-01&to=2030-04-01";
        let stats: VersionStats = admin.read(path).await;
        let counts = stats.counts.into_iter();
        counts.map(|c| (c.hour.to_string(), c.version.unwrap().to_string(), c.nodes)).collect::<Vec<_>>()
    };
    let count = |hour: &str, version: &str, nodes| (format!("2030-03-17T{hour}Z"), version.to_owned(), nodes);
    // Another server on the same database counts as well, at the same time.
    for _ in 0..2 {
        join_all((0..4).map(|_| retention::tick(&server.app))).await.into_iter().for_each(|r| r.unwrap());
    }
    let first = count("17:00:00", "1.0.0", 3);
    assert_eq!(spread().await, std::slice::from_ref(&first));
    server.advance(SignedDuration::from_mins(60));
    nodes[0].says.version = "1.1.0".parse().unwrap();
    nodes[0].ask().await;
    retention::tick(&server.app).await.unwrap();
    let second = [count("18:00:00", "1.0.0", 2), count("18:00:00", "1.1.0", 1)];
    assert_eq!(spread().await, [&[first][..], &second].concat());
    // A node that is gone is not counted for ever.
    server.advance(DAY * 31);
    retention::tick(&server.app).await.unwrap();
    assert_eq!(spread().await.len(), 3);
    server.advance(DAY * 335 - SignedDuration::from_mins(50));
    retention::tick(&server.app).await.unwrap();
    assert_eq!(spread().await, second, "the first hour is more than a year ago");

    let viewer = |path: &str| format!("/api/v1/stats/{path}");
    error(admin.get(&viewer("versions")).await, StatusCode::BAD_REQUEST).await;
    error(admin.get(&viewer("events?from=yesterday")).await, StatusCode::BAD_REQUEST).await;
    error(admin.get(&viewer("events?from=2030-02-02&to=2030-02-01")).await, StatusCode::BAD_REQUEST).await;
    error(server.anybody().get(&viewer("events")).await, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test]
async fn silent_nodes_are_forgotten_but_not_who_holds_a_permit() {
    let (server, admin) = server().await;
    server.app.set_retention(Retention { nodes: Some(DAY * 40), ..Retention::default() });
    let (mut gone, mut holder, alive) =
        (node(&server, 1).await, node(&server, 2).await, node(&server, 3).await);
    gone.tell(&vec![EventKind::Failed; 250]).await;
    gone.tell(&vec![EventKind::Failed; 256]).await;
    holder.tell(&[EventKind::Staged]).await;
    let lock = |number: u32| {
        let body = format!("{{\"client_params\":{{\"id\":\"{}\",\"group\":\"default\"}}}}", id(number));
        let request = server.anybody().request(Method::POST, "/v1/pre-reboot");
        request.header("fleet-lock-protocol", "true").body(body).send()
    };
    assert_eq!(lock(2).await.unwrap().status(), StatusCode::OK);
    let bound = ClientId::from(&id(1));
    let mut change = server.app.store().write().await.unwrap();
    let hash = NodeCredential::from_random([1; 32]).hash();
    assert!(credentials::bind(&mut change, &bound, &hash, server.now(), None).await.unwrap());
    change.commit().await.unwrap();

    let known = async || {
        let list: NodeList = admin.read("/api/v1/nodes").await;
        let mut ids: Vec<_> = list.nodes.into_iter().map(|info| info.node).collect();
        ids.sort_by_key(ToString::to_string);
        ids
    };
    server.advance(DAY * 39);
    alive.ask().await;
    retention::tick(&server.app).await.unwrap();
    assert_eq!(known().await, [id(1), id(2), id(3)]);
    server.advance(DAY * 2);
    retention::tick(&server.app).await.unwrap();
    assert_eq!(known().await, [id(2), id(3)]);
    let held: LockInfo = admin.read("/api/v1/locks/default").await;
    assert_eq!(held.view.document.holders.len(), 1);
    let left = rows(server.app.store(), "SELECT id, node, '', '', id FROM event").await;
    assert_eq!(left.iter().map(|row| row.1.clone()).collect::<Vec<_>>(), [id(2).to_string()]);
    let mut conn = server.app.store().read().await.unwrap();
    assert!(credentials::find(&mut conn, &bound).await.unwrap().is_none());
    drop(conn);
    assert_eq!(counted(&admin, EventKind::Failed).await, 506, "what they reported stays known");
    let log: AuditLog = admin.read("/api/v1/audit").await;
    let forgotten: Vec<_> = log.entries.iter().filter(|entry| entry.action == "node.forget").collect();
    assert_eq!(forgotten.len(), 1);
    assert_eq!((forgotten[0].subject.as_str(), forgotten[0].actor.as_str()), (bound.as_str(), "server"));
}

/// Two servers on one database, where there can be two.
#[tokio::test]
async fn two_servers_count_and_delete_together() {
    let (server, admin) = server().await;
    if server.database.postgres.is_none() {
        return;
    }
    let dir = server.dir.path().join("second");
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(server.dir.path().join("srv"))
            .arg(&dir)
            .status()
            .unwrap()
            .success()
    );
    let data = DataDir::open(&dir, server.database.url().as_ref(), None).await.unwrap();
    let now = server.now().saturating_add(DAY * 100).unwrap();
    let second = App::new(&data, std::sync::Arc::new(move || now)).await.unwrap();
    let mut talker = node(&server, 1).await;
    for _ in 0..6 {
        talker.tell(&[EventKind::Failed; 200]).await;
    }
    server.advance(DAY * 100);
    talker.ask().await;
    let ticks = [&server.app, &second, &server.app, &second].map(retention::tick);
    join_all(ticks).await.into_iter().for_each(|result| result.unwrap());
    assert_eq!(events(&admin, 1).await, NEWEST_KEPT as usize);
    assert_eq!(counted(&admin, EventKind::Failed).await, 1200);
    let hours = rows(server.app.store(), "SELECT hour, channel, version, '', nodes FROM version_count").await;
    assert_eq!(hours.iter().map(|row| row.4).max(), Some(1));
}

#[tokio::test]
async fn grants_of_rollouts_long_past_go_piece_by_piece() {
    let (server, _) = server().await;
    let store = server.app.store();
    let mut change = store.write().await.unwrap();
    let rollout = rollouts::find(&mut change, &"stable".parse().unwrap()).await.unwrap().unwrap();
    let many = i64::from(retention::ROWS) * 2 + 7;
    for (number, nodes) in [(1, many), (2, 1), (12, 1)] {
        for node in 0..nodes {
            sqlx::query(
                "INSERT INTO rollout_grant (channel, number, node, version, grp, stage, granted_at, phase, phase_at)
                 VALUES ('stable', $1, $2, '1.1.0', 'web', 0, 0, 'confirmed', 0)",
            )
            .bind(number)
            .bind(id(u32::try_from(node).unwrap()).as_str())
            .execute(&mut *change)
            .await
            .unwrap();
        }
    }
    change.commit().await.unwrap();
    let left = async || {
        let text = "SELECT number, '', '', '', COUNT(*) FROM rollout_grant GROUP BY number ORDER BY number";
        rows(store, text).await.into_iter().map(|(number, .., count)| (number, count)).collect::<Vec<_>>()
    };
    let mut change = store.write().await.unwrap();
    rollouts::put(&mut change, &Rollout { number: 12, ..rollout.clone() }).await.unwrap();
    change.commit().await.unwrap();
    assert_eq!(left().await, [(1, many), (2, 1), (12, 1)], "not in a change that operators wait for");
    let mut change = store.write().await.unwrap();
    let gone = old::delete_grants(&mut change, &rollout.channel, 2, 100).await.unwrap();
    assert_eq!(gone, 100, "one change deletes a few");
    change.commit().await.unwrap();
    retention::tick(&server.app).await.unwrap();
    assert_eq!(left().await, [(2, 1), (12, 1)]);
}
