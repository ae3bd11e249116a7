//! Steps 4, 9 and 12: receivers are told what happens: signed, again where they fail, and after a kill.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::post;
use common::fleet::{Node, act, set_policy};
use common::program::Program;
use common::{Operator, Server, done};
use jiff::{SignedDuration, Timestamp};
use protocol::id::NodeId;
use protocol::lock::{AttemptId, ClientId, Command, Reply, Request};
use protocol::wire::{EventKind, LockAnswer, LockCommand, NodeCredential, SCHEMA};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use update_server::store::Store;
use update_server::store::webhooks::{self as stored, Delivery, WAITING_MAX, Webhook};
use update_server::webhooks;

const SECRET: &str = "whsec_test";

/// What a receiver was told, and what it answers.
#[derive(Clone, Default)]
struct Receiver {
    told: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    answer: Arc<Mutex<Option<StatusCode>>>,
}

impl Receiver {
    /// A receiver and its address.
    async fn start() -> (Self, String) {
        let receiver = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/hook", post(take))
            .route("/elsewhere", post(take))
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (receiver, url)
    }

    fn answers(&self, status: StatusCode) {
        *self.answer.lock().unwrap() = Some(status);
    }

    fn told(&self) -> Vec<(HeaderMap, String)> {
        self.told.lock().unwrap().clone()
    }

    fn kinds(&self) -> Vec<String> {
        let kind = |(_, body): (HeaderMap, String)| {
            serde_json::from_str::<Value>(&body).unwrap()["kind"].as_str().unwrap().to_owned()
        };
        self.told().into_iter().map(kind).collect()
    }

    async fn has(&self, number: usize) {
        while self.told().len() < number {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> Response {
    receiver.told.lock().unwrap().push((headers, body));
    match *receiver.answer.lock().unwrap() {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(StatusCode::TEMPORARY_REDIRECT) => Redirect::temporary("/elsewhere").into_response(),
        Some(status) => status.into_response(),
    }
}

async fn add(store: &Store, url: &str, events: &[&str]) {
    let mut change = store.write().await.unwrap();
    let webhook = Webhook {
        name: "ops".to_owned(),
        url: url.to_owned(),
        secret: SECRET.to_owned(),
        events: events.iter().map(|event| (*event).to_owned()).collect(),
        created_at: Timestamp::UNIX_EPOCH,
    };
    assert!(stored::add(&mut change, &webhook).await.unwrap());
    change.commit().await.unwrap();
}

async fn waiting(store: &Store) -> Vec<Delivery> {
    stored::deliveries(&mut store.read().await.unwrap()).await.unwrap()
}

async fn server() -> Server {
    let server = Server::start().await;
    let (admin, mut operator) = (server.admin(), server.operator());
    operator.push_root(&admin).await;
    operator.release(&admin, "1.1.0").await;
    set_policy(&admin, "waves = [{ share = \"50%\" }, { share = \"100%\" }]\nhalt = { failures = 1 }\n")
        .await;
    server
}

#[tokio::test]
async fn what_happens_is_told_once_and_the_signature_is_right() {
    let server = server().await;
    let (receiver, url) = Receiver::start().await;
    add(server.app.store(), &url, &["rollout.halted", "rollout.stage", "node.rolled-back"]).await;
    let admin = server.admin();
    assert!(admin.set_channel("stable", "1.1.0").await.status().is_success());
    act(&admin, "approve", None).await;
    let mut node = Node::new(&admin, 1, "default");
    assert!(node.may_go().await);
    node.tell(&[EventKind::Activated, EventKind::RolledBack]).await;
    receiver.has(3).await;
    let mut kinds = receiver.kinds();
    kinds.sort();
    assert_eq!(kinds, ["node.rolled-back", "rollout.halted", "rollout.stage"]);
    for (headers, body) in receiver.told() {
        let signature = headers["flipside-signature"].to_str().unwrap();
        assert_eq!(signature, webhooks::signature(SECRET, &body, server.now()));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["schema"], 1);
        assert_eq!(headers["flipside-event"], body["kind"].as_str().unwrap());
    }
    // Each is gone once it was received.
    while !waiting(server.app.store()).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(receiver.told().len(), 3);
}

#[tokio::test]
async fn it_is_told_again_until_it_is_given_up() {
    let server = server().await;
    let (receiver, url) = Receiver::start().await;
    receiver.answers(StatusCode::INTERNAL_SERVER_ERROR);
    add(server.app.store(), &url, &["node.failed"]).await;
    let mut node = Node::new(&server.admin(), 1, "default");
    node.tell(&[EventKind::Failed, EventKind::RolledBack]).await;
    let attempted = async |attempts: u32| loop {
        let all = waiting(server.app.store()).await;
        if all.len() == 1 && all[0].attempts == attempts && !all[0].problem.is_empty() {
            // The claim of an attempt under way ends later than its retry.
            return all[0].clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let first = attempted(1).await;
    assert!(first.problem.contains("500"), "{}", first.problem);
    assert_eq!(first.due_at, server.now().saturating_add(SignedDuration::from_secs(10)).unwrap());
    // Not where the receiver points.
    receiver.answers(StatusCode::TEMPORARY_REDIRECT);
    server.advance(SignedDuration::from_secs(10));
    receiver.has(2).await;
    while !waiting(server.app.store()).await[0].problem.contains("307") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(receiver.told().len(), 2);
    server.advance(SignedDuration::from_hours(25));
    while !waiting(server.app.store()).await[0].given_up {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(waiting(server.app.store()).await[0].attempts, 3);
    // The next one is told all the same.
    receiver.told.lock().unwrap().clear();
    *receiver.answer.lock().unwrap() = None;
    node.tell(&[EventKind::Failed]).await;
    receiver.has(1).await;
}

#[tokio::test]
async fn no_more_wait_than_may_and_one_server_sends() {
    let server = server().await;
    // Nobody listens there.
    add(server.app.store(), "http://127.0.0.1:1/", &["node.failed"]).await;
    let mut change = server.app.store().write().await.unwrap();
    let later = server.now().saturating_add(SignedDuration::from_hours(1)).unwrap();
    for n in 0..WAITING_MAX + 5 {
        let taken = stored::enqueue(&mut change, "ops", "node.failed", "{}", later).await.unwrap();
        assert_eq!(taken, n < WAITING_MAX);
    }
    change.commit().await.unwrap();
    let found = waiting(server.app.store()).await[0].clone();
    let mut change = server.app.store().write().await.unwrap();
    let until = later.saturating_add(SignedDuration::from_secs(60)).unwrap();
    assert!(stored::claim(&mut change, &found, until).await.unwrap());
    assert!(!stored::claim(&mut change, &found, until).await.unwrap(), "another server has it");
    assert!(stored::remove(&mut change, "ops").await.unwrap());
    change.commit().await.unwrap();
    assert!(waiting(server.app.store()).await.is_empty());
}

/// All that a receiver was told, once nothing waits any more, without what differs from run to run.
async fn all_told(server: &Server, receiver: &Receiver) -> Vec<Value> {
    let client = reqwest::Client::new();
    webhooks::tick(&server.app, &client).await.unwrap();
    while !waiting(server.app.store()).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = receiver.told.lock().unwrap().drain(..).collect::<Vec<_>>();
    told.iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect()
}

#[tokio::test]
async fn a_holder_that_is_stuck_is_told_once_and_one_that_failed_too() {
    let server = server().await;
    let (receiver, url) = Receiver::start().await;
    add(server.app.store(), &url, &["lock.stuck", "lock.failed"]).await;
    let id: NodeId = common::fleet::id(1);
    let credential = NodeCredential::from_random([1; 32]);
    let client = server.client(credential.reveal());
    let tell = async |command: Command| {
        let body = LockCommand { schema: SCHEMA, command };
        done::<LockAnswer>(client.send(Method::POST, "/v2/lock/default", &body).await).await.reply
    };
    let (node, attempt): (ClientId, AttemptId) = (ClientId::from(&id), "a-1".parse().unwrap());
    let request = Request {
        node: node.clone(),
        attempt: attempt.clone(),
        boot: "boot-1".parse().unwrap(),
        from: "1.0.0".parse().unwrap(),
        to: "1.1.0".parse().unwrap(),
        zone: None,
        etcd_member: None,
        priority: 0,
        reason: "update to 1.1.0".to_owned(),
    };
    assert!(matches!(tell(Command::Request(request)).await, Reply::Granted { .. }));
    update_server::locks::tick(&server.app).await.unwrap();
    assert_eq!(all_told(&server, &receiver).await, [Value::Null; 0], "it has its time");
    server.advance(SignedDuration::from_hours(2));
    let at = server.now();
    for _ in 0..2 {
        update_server::locks::tick(&server.app).await.unwrap();
    }
    let stuck = json!({
        "schema": 1, "kind": "lock.stuck", "at": at, "group": "default", "node": node, "version": "1.1.0",
        "reason": "update to 1.1.0",
    });
    assert_eq!(all_told(&server, &receiver).await, [stuck]);
    server.advance(SignedDuration::from_secs(1));
    let boot = "boot-2".parse().unwrap();
    let fail = Command::Fail { node: node.clone(), attempt, boot, reason: "no network".to_owned() };
    for _ in 0..2 {
        assert_eq!(tell(fail.clone()).await, Reply::Noted);
    }
    let failed = json!({
        "schema": 1, "kind": "lock.failed", "at": server.now(), "group": "default", "node": node,
        "version": "1.1.0", "reason": "no network",
    });
    assert_eq!(all_told(&server, &receiver).await, [failed]);
}

#[tokio::test]
async fn a_node_that_falls_silent_in_its_reboot_is_told_once() {
    let server = server().await;
    let (receiver, url) = Receiver::start().await;
    add(server.app.store(), &url, &["node.silent"]).await;
    let admin = server.admin();
    assert!(admin.set_channel("stable", "1.1.0").await.status().is_success());
    let mut number = 0;
    let mut node = loop {
        let node = Node::new(&admin, number, "default");
        if node.may_go().await {
            break node;
        }
        number += 1;
    };
    node.tell(&[EventKind::Activated, EventKind::Rebooting]).await;
    server.app.checkins().flush(server.app.store()).await.unwrap();
    update_server::rollouts::tick(&server.app).await.unwrap();
    assert_eq!(all_told(&server, &receiver).await, [Value::Null; 0]);
    server.advance(SignedDuration::from_mins(90));
    for _ in 0..2 {
        update_server::rollouts::tick(&server.app).await.unwrap();
    }
    let silent = json!({
        "schema": 1, "kind": "node.silent", "at": server.now(), "node": common::fleet::id(number),
        "version": "1.1.0",
    });
    assert_eq!(all_told(&server, &receiver).await, [silent]);
}

#[tokio::test]
async fn metadata_that_only_an_operator_can_renew_is_told_of_once_before_it_expires() {
    let server = server().await;
    let (receiver, url) = Receiver::start().await;
    add(server.app.store(), &url, &["metadata.expiring"]).await;
    let day = SignedDuration::from_hours(24);
    let began = server.now();
    let told = |role: &str, version: u32, after: i64| {
        let expires = began.saturating_add(day * i32::try_from(after).unwrap()).unwrap();
        json!({
            "schema": 1, "kind": "metadata.expiring", "at": server.now(), "role": role, "version": version,
            "expires": expires,
        })
    };
    server.advance(day * 68);
    assert_eq!(all_told(&server, &receiver).await, [Value::Null; 0]);
    // The first targets metadata had no release; the second one is what nodes are given.
    server.advance(day * 2);
    assert_eq!(all_told(&server, &receiver).await, [told("targets", 2, 90)]);
    server.advance(day);
    assert_eq!(all_told(&server, &receiver).await, [Value::Null; 0], "once");
    server.advance(day * (365 - 20 - 71));
    assert_eq!(all_told(&server, &receiver).await, [told("root", 1, 365)]);
}

/// What was acknowledged before a kill is told by the next server. The secret is shown once.
#[tokio::test]
async fn a_kill_takes_no_delivery_away() {
    let program = Program::new();
    let (receiver, url) = Receiver::start().await;
    receiver.answers(StatusCode::SERVICE_UNAVAILABLE);
    let run = |args: &[&str]| program.home.program(&[&["webhook"], args].concat()).output().unwrap();
    let added = run(&["add", "--name", "ops", "--url", &url, "--events", "node.failed,lock.stuck"]);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    let secret = String::from_utf8(added.stdout).unwrap().trim().to_owned();
    assert_eq!(run(&["add", "--name", "x", "--url", &url, "--events", "nothing"]).status.code(), Some(2));
    assert_eq!(
        run(&["add", "--name", "x", "--url", "file:///x", "--events", "node.failed"]).status.code(),
        Some(1)
    );
    let mut operator = Operator::new(&program.srv(), Timestamp::now());
    operator.push_root(&program.client()).await;
    operator.release(&program.client(), "1.1.0").await;
    Node::new(&program.client(), 1, "default").tell(&[EventKind::Failed]).await;
    receiver.has(1).await;
    let list = String::from_utf8(run(&["list"]).stdout).unwrap();
    assert!(list.contains("node.failed") && !list.contains(&secret), "{list}");
    *receiver.answer.lock().unwrap() = None;
    let program = program.kill_and_restart();
    receiver.has(2).await;
    let (headers, body) = receiver.told().pop().unwrap();
    let signature = headers["flipside-signature"].to_str().unwrap().to_owned();
    let at = signature.strip_prefix("t=").unwrap().split_once(',').unwrap().0.parse().unwrap();
    assert_eq!(signature, webhooks::signature(&secret, &body, Timestamp::from_second(at).unwrap()));
    let removed = program.home.program(&["webhook", "remove", "--name", "ops"]).output().unwrap();
    assert!(removed.status.success());
}
