//! Steps 4, 5 and 12 over HTTP: payloads by range, roles, events, signs of life, and errors in one form.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::{Client, Server, check, error, payloads};
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::wire::{EVIDENCE_MAX, Event, EventKind, Events, NodeList, NodeShow, SCHEMA, UpdateCheck};
use reqwest::{Method, StatusCode, header};
use serde_json::json;
use update_server::auth::{self, Role};
use update_server::data_dir::create_token;

async fn token(server: &Server, name: &str, role: Role, expires: Option<Timestamp>) -> Client {
    let text = auth::generate().unwrap();
    let made = create_token(server.app.store(), name, role, expires, &text, server.now()).await.unwrap();
    assert!(made);
    server.client(&text)
}

#[tokio::test]
async fn payloads_by_range() {
    payloads::by_range(&Server::start().await).await;
}

#[tokio::test]
async fn an_upload_is_whole_and_right_or_it_is_not_there() {
    let server = Server::start().await;
    let folder = server.dir.path().join("srv/payloads");
    payloads::whole_and_right(&server, || std::fs::read_dir(&folder).unwrap().count()).await;
}

#[tokio::test]
async fn who_may_what() {
    let server = Server::start().await;
    let soon = server.now().saturating_add(SignedDuration::from_hours(1)).unwrap();
    let viewer = token(&server, "viewer", Role::Viewer, Some(soon)).await;
    let publisher = token(&server, "publisher", Role::Publisher, None).await;
    let admin = server.admin();
    let payload = format!("/api/v1/payloads/{}", Sha256::of(b""));
    let all = [
        (Method::GET, "/api/v1/releases", Role::Viewer),
        (Method::GET, "/api/v1/channels", Role::Viewer),
        (Method::GET, "/api/v1/nodes", Role::Viewer),
        (Method::GET, "/api/v1/nodes/0123456789abcdef0123456789abcdef", Role::Viewer),
        (Method::GET, "/api/v1/audit", Role::Viewer),
        (Method::PUT, payload.as_str(), Role::Publisher),
        (Method::POST, "/api/v1/releases", Role::Publisher),
        (Method::PUT, "/api/v1/root", Role::Operator),
        (Method::PUT, "/api/v1/channels/alpha", Role::Operator),
        (Method::POST, "/api/v1/channels/alpha/promote", Role::Operator),
    ];
    for (method, path, needed) in all {
        let ask = async |client: &Client| client.request(method.clone(), path).send().await.unwrap();
        let refused = ask(&server.anybody()).await;
        assert_eq!(refused.headers()[header::WWW_AUTHENTICATE], "Bearer");
        error(refused, StatusCode::UNAUTHORIZED).await;
        error(ask(&server.client("flipside_wrong")).await, StatusCode::UNAUTHORIZED).await;
        for (client, role) in
            [(&viewer, Role::Viewer), (&publisher, Role::Publisher), (&admin, Role::Operator)]
        {
            let status = ask(client).await.status();
            let forbidden = status == StatusCode::FORBIDDEN;
            assert_eq!(forbidden, role < needed, "{method} {path} as {role}: {status}");
            assert_ne!(status, StatusCode::UNAUTHORIZED);
        }
    }
    let basic = server.anybody().request(Method::GET, "/api/v1/audit").basic_auth("admin", Some("x"));
    error(basic.send().await.unwrap(), StatusCode::UNAUTHORIZED).await;

    server.advance(SignedDuration::from_hours(1));
    let body = error(viewer.get("/api/v1/audit").await, StatusCode::UNAUTHORIZED).await;
    assert!(body.message.contains("expired"), "{}", body.message);

    let database = server.database_bytes();
    let secret = admin.token.unwrap();
    assert!(!database.windows(secret.len()).any(|w| w == secret.as_bytes()), "tokens are not kept in clear");
}

fn event(seq: u64, kind: EventKind) -> Event {
    let at = Timestamp::from_second(1_900_000_000 + i64::try_from(seq).unwrap()).unwrap();
    Event {
        seq,
        at,
        kind,
        version: Some("1.1.0".parse().unwrap()),
        release: None,
        detail: format!("no. {seq}"),
        evidence: String::new(),
    }
}

#[tokio::test]
async fn old_events_make_room() {
    let server = Server::start().await;
    let node = server.anybody();
    server.admin().check("alpha", "1.0.0").await;
    let id = check("alpha", "1.0.0").node;
    let kept = u64::from(update_server::store::nodes::EVENTS_KEPT);
    for start in (1..=kept + 100).step_by(100) {
        let events = (start..start + 100).map(|seq| event(seq, EventKind::Staged)).collect();
        let body = Events { schema: SCHEMA, node: id.clone(), events };
        let sent = node.send(Method::POST, "/v1/events", &body).await;
        assert_eq!(sent.status(), StatusCode::NO_CONTENT);
    }
    let mut conn = server.app.store().read().await.unwrap();
    let events = update_server::store::nodes::events(&mut conn, &id, u32::MAX).await.unwrap();
    assert_eq!(events.len() as u64, kept);
    assert_eq!((events[0].seq, events.last().unwrap().seq), (kept + 100, 101));
}

#[tokio::test]
async fn evidence_is_kept_with_its_event_and_makes_room_for_newer() {
    let server = Server::start().await;
    let node = server.anybody();
    let admin = server.admin();
    admin.check("alpha", "1.0.0").await;
    let id = check("alpha", "1.0.0").node;
    let kept = u64::from(update_server::store::nodes::EVIDENCE_KEPT);
    // PostgreSQL takes no NUL in text.
    let log = "web.service: failed\0\nexit status: 7".to_owned();
    let failed = |seq| Event { evidence: log.clone(), ..event(seq, EventKind::RolledBack) };
    let send = async |events: Vec<Event>| {
        let body = Events { schema: SCHEMA, node: id.clone(), events };
        node.send(Method::POST, "/v1/events", &body).await.status()
    };
    assert_eq!(send((1..=kept + 2).map(failed).collect()).await, StatusCode::NO_CONTENT);
    // As an engine sends it that knows nothing of evidence.
    let mut old = serde_json::to_value(event(kept + 3, EventKind::Staged)).unwrap();
    assert_eq!(old.as_object_mut().unwrap().remove("evidence"), None, "nothing is sent for none");
    let body = json!({ "schema": SCHEMA, "node": id, "events": [old] });
    assert_eq!(node.send(Method::POST, "/v1/events", &body).await.status(), StatusCode::NO_CONTENT);
    let too_long = Event { evidence: "x".repeat(EVIDENCE_MAX + 1), ..event(99, EventKind::Failed) };
    assert_eq!(send(vec![too_long]).await, StatusCode::BAD_REQUEST);
    // What a node keeps is taken in one report, whatever it is made of.
    let worst = |seq| Event { evidence: "\"\n".repeat(EVIDENCE_MAX / 2), ..event(seq, EventKind::Failed) };
    assert_eq!(send((100..108).map(worst).collect()).await, StatusCode::NO_CONTENT);

    let show: NodeShow = admin.read(&format!("/api/v1/nodes/{id}")).await;
    let with: Vec<u64> =
        show.events.iter().filter(|event| !event.evidence.is_empty()).map(|event| event.seq).collect();
    assert_eq!(with.len() as u64, kept);
    assert_eq!((with[0], *with.last().unwrap()), (107, 11), "the oldest made room, their events stay");
    assert_eq!(show.events.len() as u64, kept + 3 + 8);
    assert!(
        show.events
            .iter()
            .any(|event| event.seq == kept + 2 && event.evidence == log.replace('\0', "\u{fffd}"))
    );
    let list: NodeList = admin.read("/api/v1/nodes").await;
    assert_eq!(list.nodes[0].last_event, Some(Event { evidence: String::new(), ..worst(107) }));
}

/// A database of the first server is read as before, its events without evidence.
#[tokio::test]
async fn events_stored_before_there_was_evidence_are_still_read() {
    let server = Server::start().await;
    let id = check("alpha", "1.0.0").node;
    server.admin().check("alpha", "1.0.0").await;
    let mut change = server.app.store().write().await.unwrap();
    let document = r#"{"seq":1,"at":"2026-01-01T00:00:00Z","kind":"rolled-back","detail":"it did not boot"}"#;
    sqlx::query(
        "INSERT INTO event (node, seq, at, document, received_at) VALUES ($1, 1, '2026-01-01T00:00:00Z', $2, 0)",
    )
    .bind(id.as_str())
    .bind(document)
    .execute(&mut *change)
    .await
    .unwrap();
    change.commit().await.unwrap();
    let show: NodeShow = server.admin().read(&format!("/api/v1/nodes/{id}")).await;
    assert_eq!((show.events[0].detail.as_str(), show.events[0].evidence.as_str()), ("it did not boot", ""));
}

#[tokio::test]
async fn events_are_stored_once_and_outlive_a_restart() {
    let server = Server::start().await;
    let node = server.anybody();
    let id = check("alpha", "1.0.0").node;
    let send = async |events: &[Event]| {
        let body = Events { schema: SCHEMA, node: id.clone(), events: events.to_vec() };
        node.send(Method::POST, "/v1/events", &body).await.status()
    };
    let (first, second) = (event(1, EventKind::Staged), event(2, EventKind::Activated));
    assert_eq!(send(std::slice::from_ref(&first)).await, StatusCode::NO_CONTENT);
    assert_eq!(
        send(&[first.clone(), second.clone()]).await,
        StatusCode::NO_CONTENT,
        "the first is there already"
    );
    assert_eq!(send(&[]).await, StatusCode::NO_CONTENT);
    // A node that lost its state counts from 1 again, at another time.
    let mut again = event(1, EventKind::RolledBack);
    again.at = second.at.saturating_add(SignedDuration::from_hours(1)).unwrap();
    assert_eq!(send(std::slice::from_ref(&again)).await, StatusCode::NO_CONTENT);
    let mut huge = event(1, EventKind::Staged);
    huge.seq = u64::MAX;
    assert_eq!(send(&[huge]).await, StatusCode::BAD_REQUEST);
    let many: Vec<Event> = (0..257).map(|seq| event(seq, EventKind::Staged)).collect();
    assert_eq!(send(&many).await, StatusCode::BAD_REQUEST);
    let mut long = event(7, EventKind::Failed);
    long.detail = "x".repeat((16 << 10) + 1);
    assert_eq!(send(&[long]).await, StatusCode::BAD_REQUEST);

    let path = format!("/api/v1/nodes/{id}");
    let server = server.restart().await;
    let admin = server.admin();
    error(admin.get(&path).await, StatusCode::NOT_FOUND).await;
    admin.check("alpha", "1.0.0").await;
    let show: NodeShow = admin.read(&path).await;
    assert_eq!(show.events, [again.clone(), second, first]);
    assert_eq!(show.node.last_event, Some(again));
}

#[tokio::test]
async fn signs_of_life_are_gathered_and_kept() {
    let server = Server::start().await;
    let admin = server.admin();
    let mut said: UpdateCheck = check("alpha", "1.0.0");
    for n in 0..50u64 {
        said.node = format!("{n:032x}").parse().unwrap();
        server.advance(SignedDuration::from_secs(1));
        assert_eq!(admin.send(Method::POST, "/v1/update-check", &said).await.status(), StatusCode::OK);
    }
    let list: NodeList = admin.read("/api/v1/nodes").await;
    assert_eq!(list.nodes.len(), 50);
    assert_eq!(list.nodes[0].node, said.node, "newest first");
    assert_eq!(list.nodes[0].last_seen, server.now());
    let page: NodeList = admin.read("/api/v1/nodes?skip=48&limit=10").await;
    assert_eq!(page.nodes, list.nodes[48..]);

    said.version = "1.1.0".parse().unwrap();
    admin.send(Method::POST, "/v1/update-check", &said).await;
    let server = server.restart().await;
    let list: NodeList = server.admin().read("/api/v1/nodes").await;
    assert_eq!(list.nodes.len(), 50);
    assert_eq!(list.nodes[0].version, said.version, "written at the end of the server");
}

#[tokio::test]
async fn errors_have_one_form() {
    let server = Server::start().await;
    let (node, admin) = (server.anybody(), server.admin());
    let post =
        async |path: &str, body: String| admin.request(Method::POST, path).body(body).send().await.unwrap();
    assert_eq!(error(node.get("/nothing").await, StatusCode::NOT_FOUND).await.kind, "not-found");
    let wrong = node.request(Method::DELETE, "/v1/events").send().await.unwrap();
    error(wrong, StatusCode::METHOD_NOT_ALLOWED).await;
    for body in ["", "{", "[]", "{\"schema\":1}", "\u{0}"] {
        error(post("/v1/update-check", body.to_owned()).await, StatusCode::BAD_REQUEST).await;
        error(post("/api/v1/releases", body.to_owned()).await, StatusCode::BAD_REQUEST).await;
    }
    let mut newer = serde_json::to_value(check("alpha", "1.0.0")).unwrap();
    newer["field_of_the_future"] = true.into();
    assert_eq!(post("/v1/update-check", newer.to_string()).await.status(), StatusCode::OK);
    newer["schema"] = 2.into();
    let body = error(post("/v1/update-check", newer.to_string()).await, StatusCode::BAD_REQUEST).await;
    assert!(body.message.contains("schema 2: expected 1"), "{}", body.message);
    let long = format!("{{\"schema\":1,\"pad\":\"{}\"}}", "x".repeat(1 << 20));
    let body = error(post("/v1/update-check", long).await, StatusCode::PAYLOAD_TOO_LARGE).await;
    assert_eq!(body.kind, "too-large");
    for path in [
        "/v1/metadata/..%2Fserver.db",
        "/v1/metadata/server.db",
        "/v1/metadata/a%00b",
        "/v1/targets/a%00/b",
        "/v1/targets/../../admin-token",
        "/v1/targets/%2e%2e/admin-token",
    ] {
        error(node.get(path).await, StatusCode::NOT_FOUND).await;
    }
    error(node.get("/v1/metadata/%ff").await, StatusCode::BAD_REQUEST).await;
    error(admin.get("/api/v1/audit?limit=many").await, StatusCode::BAD_REQUEST).await;
    error(admin.get("/api/v1/nodes/abc").await, StatusCode::BAD_REQUEST).await;
    assert_eq!(node.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(node.get("/readyz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn metadata_is_cached_as_far_as_it_may() {
    let server = Server::start().await;
    let operator = server.operator();
    operator.push_root(&server.admin()).await;
    let node = server.anybody();
    for (file, caching) in
        [("1.root.json", "immutable"), ("1.snapshot.json", "immutable"), ("timestamp.json", "no-cache")]
    {
        let path = format!("/v1/metadata/{file}");
        let answer = node.get(&path).await;
        assert!(answer.headers()[header::CACHE_CONTROL].to_str().unwrap().contains(caching), "{file}");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
        let etag = answer.headers()[header::ETAG].clone();
        let again =
            node.request(Method::GET, &path).header(header::IF_NONE_MATCH, etag).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{file}");
    }
    let missing = node.get("/v1/metadata/2.root.json").await;
    assert_eq!(missing.headers()[header::CACHE_CONTROL], "no-store", "it may be there in a minute");
}
