//! Step 9, permit: FleetLock v1 as its clients speak it, byte by byte where that matters.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::Server;
use jiff::SignedDuration;
use protocol::wire::{FleetLockError, LockInfo, Policies, PolicySet, SCHEMA};
use reqwest::{Method, Response, StatusCode, header};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const LOCK: &str = "/v1/pre-reboot";
const UNLOCK: &str = "/v1/steady-state";

fn body(id: &str, group: &str) -> String {
    format!("{{\n  \"client_params\": {{\n    \"id\": \"{id}\",\n    \"group\": \"{group}\"\n  }}\n}}")
}

/// As Zincati asks: no Content-Type, pretty JSON.
async fn ask(server: &Server, path: &str, id: &str) -> Response {
    let request = server.anybody().request(Method::POST, path).header("fleet-lock-protocol", "true");
    request.body(body(id, "default")).send().await.unwrap()
}

async fn granted(server: &Server, path: &str, id: &str) {
    assert_eq!(ask(server, path, id).await.status(), StatusCode::OK, "{path} {id}");
}

async fn refused(response: Response, status: StatusCode, kind: &str) -> String {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let error: FleetLockError = response.json().await.unwrap();
    assert_eq!(error.kind, kind, "{}", error.value);
    assert!(!error.value.is_empty() && !error.value.contains('\n'), "one line: {error:?}");
    error.value
}

async fn lock(server: &Server) -> LockInfo {
    server.admin().read("/api/v1/locks/default").await
}

async fn holders(server: &Server) -> Vec<String> {
    lock(server).await.view.document.holders.iter().map(|holder| holder.node.to_string()).collect()
}

#[tokio::test]
async fn lock_full_unlock_and_again() {
    let server = Server::start().await;
    granted(&server, LOCK, "a").await;
    granted(&server, LOCK, "a").await;
    let full = ask(&server, LOCK, "b").await;
    assert!(full.headers().contains_key(header::RETRY_AFTER));
    let value = refused(full, StatusCode::CONFLICT, "failed_lock_semaphore_full").await;
    assert!(value.contains("held by a"), "{value}");
    granted(&server, UNLOCK, "a").await;
    granted(&server, LOCK, "b").await;
    assert_eq!(holders(&server).await, ["b"]);
    granted(&server, UNLOCK, "b").await;
    granted(&server, UNLOCK, "b").await;
    assert!(holders(&server).await.is_empty());
}

#[tokio::test]
async fn unlock_by_who_holds_nothing_writes_nothing() {
    let server = Server::start().await;
    granted(&server, LOCK, "a").await;
    let before = lock(&server).await.view.revision;
    granted(&server, UNLOCK, "b").await;
    assert_eq!(lock(&server).await.view.revision, before);
    assert_eq!(holders(&server).await, ["a"]);
}

#[tokio::test]
async fn thirty_at_once() {
    let server = Server::start().await;
    let all = async |path: &'static str| {
        let asked = (0..30).map(|n| {
            let request = server.anybody().request(Method::POST, path).header("fleet-lock-protocol", "true");
            request.body(body(&format!("n{n}"), "default")).send()
        });
        let answers = futures::future::join_all(asked).await;
        answers.into_iter().map(|answer| answer.unwrap().status()).collect::<Vec<_>>()
    };
    let steady = all(UNLOCK).await;
    assert!(steady.iter().all(|status| *status == StatusCode::OK), "{steady:?}");
    let locked = all(LOCK).await;
    let count = |status: StatusCode| locked.iter().filter(|found| **found == status).count();
    assert_eq!((count(StatusCode::OK), count(StatusCode::CONFLICT)), (1, 29), "{locked:?}");
    // Each gets through in the end, one at a time.
    let mut order = Vec::new();
    while let Some(holder) = holders(&server).await.first().cloned() {
        granted(&server, UNLOCK, &holder).await;
        order.push(holder);
        let locked = all(LOCK).await;
        assert_eq!(locked.iter().filter(|status| **status == StatusCode::OK).count(), 1);
        if order.len() == 30 {
            break;
        }
    }
    order.sort();
    order.dedup();
    assert_eq!(order.len(), 30, "no node was passed over");
}

#[tokio::test]
async fn thirty_at_once_and_each_of_them_twice_when_three_may() {
    let server = Server::start().await;
    let admin = server.admin();
    let Policies { digest, .. } = admin.read("/api/v1/lock-policy").await;
    let (file, why) = ("[group.default]\nmax = 3\n".to_owned(), "test".to_owned());
    let set = PolicySet { schema: SCHEMA, replaces: digest, file, why };
    let _: Policies = common::done(admin.send(Method::PUT, "/api/v1/lock-policy", &set).await).await;
    let asked = (0..60).map(|n| {
        let request = server.anybody().request(Method::POST, LOCK).header("fleet-lock-protocol", "true");
        async move {
            let id = format!("n{}", n % 30);
            let answer = request.body(body(&id, "default")).send().await.unwrap();
            (id, answer.status())
        }
    });
    let answers = futures::future::join_all(asked).await;
    let with = |status: StatusCode| {
        let ids = answers.iter().filter(|(_, found)| *found == status).map(|(id, _)| id.clone());
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    let (granted, full) = (with(StatusCode::OK), with(StatusCode::CONFLICT));
    assert_eq!((granted.len(), full.len()), (3, 27), "{answers:?}");
    assert!(granted.is_disjoint(&full), "a client is told the same twice");
    assert_eq!(holders(&server).await.into_iter().collect::<std::collections::BTreeSet<_>>(), granted);
    assert_eq!(lock(&server).await.view.document.queue.len(), 27, "nobody waits twice");
}

#[tokio::test]
async fn unlock_by_who_waits_gives_up_the_place_and_frees_nothing() {
    let server = Server::start().await;
    granted(&server, LOCK, "a").await;
    for waiter in ["b", "c"] {
        refused(ask(&server, LOCK, waiter).await, StatusCode::CONFLICT, "failed_lock_semaphore_full").await;
    }
    granted(&server, UNLOCK, "b").await;
    assert_eq!(holders(&server).await, ["a"]);
    granted(&server, UNLOCK, "a").await;
    granted(&server, LOCK, "c").await;
}

/// Written by hand, so that nothing adds a header: reqwest, for one, never sends a doubled slash as we type it.
async fn raw(server: &Server, request: &str) -> (u16, String) {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(!answer.to_ascii_lowercase().contains("\r\nlocation:"), "{answer}");
    (status, answer)
}

fn request(line: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{line} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

const TRUE: &str = "fleet-lock-protocol: true\r\n";

#[tokio::test]
async fn any_content_type_or_none_and_every_spelling_of_the_path() {
    let server = Server::start().await;
    let body = body("a", "default");
    for content_type in [
        "",
        "Content-Type: application/json\r\n",
        "Content-Type: application/json; charset=utf-8\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: text/plain\r\n",
        "Content-Type: nonsense\r\n",
        "Content-Type:\r\n",
    ] {
        let asked = request("POST /v1/pre-reboot", &format!("{TRUE}{content_type}"), &body);
        assert_eq!(raw(&server, &asked).await.0, 200, "{content_type:?}");
    }
    for path in [
        "/v1/pre-reboot",
        "//v1/pre-reboot",
        "/fleetlock/v1/pre-reboot",
        "/fleetlock//v1/pre-reboot",
        "/any/prefix//v1/pre-reboot",
    ] {
        assert_eq!(raw(&server, &request(&format!("POST {path}"), TRUE, &body)).await.0, 200, "{path}");
        let unlock = path.replace("pre-reboot", "steady-state");
        assert_eq!(raw(&server, &request(&format!("POST {unlock}"), TRUE, &body)).await.0, 200, "{unlock}");
        assert!(holders(&server).await.is_empty(), "{unlock}");
    }
    // In the form in which HTTP/1.1 sends a body of unknown length.
    let chunked = format!(
        "POST //v1/pre-reboot HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{TRUE}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    assert_eq!(raw(&server, &chunked).await.0, 200);
    assert_eq!(holders(&server).await, ["a"]);
}

#[tokio::test]
async fn what_is_not_the_protocol_is_refused_with_one_of_a_few_kinds() {
    let server = Server::start().await;
    let good = body("a", "default");
    let long = format!("{{\"client_params\":{{\"id\":\"{}\",\"group\":\"default\"}}}}", "x".repeat(1 << 20));
    for (headers, body, kind) in [
        ("", good.as_str(), "missing_header"),
        ("fleet-lock-protocol: false\r\n", &good, "missing_header"),
        ("fleet-lock-protocol: True\r\n", &good, "missing_header"),
        ("fleet-lock-protocol:\r\n", &good, "missing_header"),
        (TRUE, "", "invalid_body"),
        (TRUE, "{", "invalid_body"),
        (TRUE, "[]", "invalid_body"),
        (TRUE, "{\"client_params\":{\"id\":\"a\"}}", "invalid_body"),
        (TRUE, "{\"client_params\":{\"id\":7,\"group\":\"default\"}}", "invalid_body"),
        (TRUE, "client_params=a", "invalid_body"),
        (TRUE, &long, "invalid_body"),
        (TRUE, &body("", "default"), "invalid_client_identity"),
        (TRUE, &body("a b", "default"), "invalid_client_identity"),
        (TRUE, &body("a", ""), "invalid_client_identity"),
        (TRUE, &body("a", "../x"), "invalid_client_identity"),
        (TRUE, &body("a", "nobody-set-this"), "unknown_group"),
    ] {
        for path in [LOCK, UNLOCK] {
            let (status, answer) = raw(&server, &request(&format!("POST {path}"), headers, body)).await;
            assert_eq!(status, 400, "{path} {headers:?}: {answer}");
            assert!(answer.contains(&format!("{{\"kind\":\"{kind}\",\"value\":\"")), "{kind}: {answer}");
        }
    }
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let (status, answer) = raw(&server, &request(&format!("{method} {LOCK}"), TRUE, &good)).await;
        assert_eq!(status, 405, "{answer}");
        assert!(answer.contains("method_not_allowed") && answer.contains("allow: POST"), "{answer}");
    }
    assert_eq!(lock(&server).await.view.revision, 1, "nothing of all this was written");
}

#[tokio::test]
async fn a_stuck_holder_halts_the_group_under_another_kind() {
    let server = Server::start().await;
    granted(&server, LOCK, "a").await;
    server.advance(SignedDuration::from_hours(24));
    let value = refused(ask(&server, LOCK, "b").await, StatusCode::CONFLICT, "failed_lock_halted").await;
    assert!(value.contains("node a"), "{value}");
    // It speaks at last: it is well, and its permit is free.
    granted(&server, UNLOCK, "a").await;
    granted(&server, LOCK, "b").await;
}

#[tokio::test]
async fn holders_survive_a_restart_of_the_server() {
    let server = Server::start().await;
    granted(&server, LOCK, "a").await;
    let server = server.restart().await;
    assert_eq!(holders(&server).await, ["a"]);
    refused(ask(&server, LOCK, "b").await, StatusCode::CONFLICT, "failed_lock_semaphore_full").await;
    granted(&server, UNLOCK, "a").await;
}

#[tokio::test]
async fn a_database_that_is_gone_grants_nothing() {
    let server = Server::start().await;
    server.app.store().close().await;
    for path in [LOCK, UNLOCK] {
        let answer = ask(&server, path, "a").await;
        refused(answer, StatusCode::INTERNAL_SERVER_ERROR, "internal_error").await;
    }
}
