//! Addresses that ask too often: 429, when to come back, and what nodes make of it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::listening::Listening;
use common::{check, error};
use protocol::wire::{ENROLMENT_HEADER, NOT_ENROLLED, NodeCredential};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use std::path::Path;
use std::time::Duration;
use update_engine::config::{Merged, Settings, fragment::Fragment};
use update_engine::network;
use update_server::enrolment::Enrolment;
use update_server::listen::Listener;
use update_server::rates::{Gate, Rates};

async fn start(rates: Rates) -> Listening {
    Listening::start_as(|tcp| Listener::from(tcp).with_gate(Gate::new(rates))).await
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.unwrap()
}

#[tokio::test]
async fn nodes_of_one_address_are_told_when_to_come_back() {
    let server =
        start(Rates { requests: 1, failures: 0, proxies: vec!["127.0.0.0/8".parse().unwrap()] }).await;
    let client = Client::new();
    let url = |path: &str| format!("http://{}{path}", server.address);
    let ask = || client.post(url("/v1/update-check")).json(&check("stable", "1.0.0"));
    let mut refused = send(ask()).await;
    for _ in 0..1000 {
        if refused.status() != StatusCode::OK {
            break;
        }
        refused = send(ask()).await;
    }
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    let body = error(refused, StatusCode::TOO_MANY_REQUESTS).await;
    assert_eq!(body.kind, "too-many-requests");
    // Another address, as the trusted proxy says; and what looks after the server.
    assert_eq!(send(ask().header("X-Forwarded-For", "192.0.2.1")).await.status(), StatusCode::OK);
    assert_eq!(send(client.get(url("/healthz"))).await.status(), StatusCode::OK);

    let text = format!("[server]\nurl = \"{}\"\n[identity]\nchannel = \"stable\"\n", url(""));
    let fragment = Fragment::parse(Path::new("/etc/node.toml"), &text).unwrap();
    let settings = Settings::from_merged(&Merged::from_fragments([fragment])).unwrap();
    let node = network::Client::new(&settings.server, settings.download).unwrap();
    let impatient = node.clone().asking_once();
    let refused = loop {
        if let Err(refused) = impatient.update_check(&check("stable", "1.0.0")).await {
            break refused;
        }
    };
    assert!(refused.is_passing(), "{refused}");
    assert!(refused.retry_after().unwrap() >= Duration::from_secs(1), "{refused}");
    // It comes back when it was told to, and not before: then it is heard.
    node.update_check(&check("stable", "1.0.0")).await.unwrap();
    server.end().await;
}

#[tokio::test]
async fn wrong_tokens_are_not_looked_up_for_ever() {
    let client = Client::new();
    // Ten, however few a minute, and the next one after a minute.
    let server = start(Rates { requests: 0, failures: 1, proxies: Vec::new() }).await;
    let ask =
        |token: &str| client.get(format!("http://{}/api/v1/channels", server.address)).bearer_auth(token);
    for _ in 0..100 {
        assert_eq!(send(ask(&server.token())).await.status(), StatusCode::OK, "right ones cost nothing");
    }
    for _ in 0..10 {
        assert_eq!(send(ask("wrong")).await.status(), StatusCode::UNAUTHORIZED);
    }
    let refused = send(ask(&server.token())).await;
    assert!(refused.headers().contains_key("retry-after"));
    error(refused, StatusCode::TOO_MANY_REQUESTS).await;
    server.end().await;
}

/// A rack that is switched on behind one address asks all at once whether it must enrol: operators there are heard all the same.
#[tokio::test]
async fn nodes_that_must_enrol_first_are_no_failures() {
    let server = start(Rates { requests: 0, failures: 1, proxies: Vec::new() }).await;
    server.app.set_enrolment(Enrolment::Token);
    let client = Client::new();
    let ask = || {
        let secret = NodeCredential::from_random([1; 32]);
        let url = format!("http://{}/v1/update-check", server.address);
        client.post(url).json(&check("stable", "1.0.0")).bearer_auth(secret.reveal())
    };
    let operator = || {
        let url = format!("http://{}/api/v1/channels", server.address);
        client.get(url).bearer_auth(server.token())
    };
    for _ in 0..20 {
        assert_eq!(error(send(ask()).await, StatusCode::UNAUTHORIZED).await.kind, NOT_ENROLLED);
    }
    assert_eq!(send(operator()).await.status(), StatusCode::OK);
    // Whoever shows a token that is none is guessing.
    let wrong = format!("flipside_enrol_{}", "0".repeat(64));
    for _ in 0..11 {
        error(send(ask().header(ENROLMENT_HEADER, &wrong)).await, StatusCode::UNAUTHORIZED).await;
    }
    assert_eq!(send(operator()).await.status(), StatusCode::TOO_MANY_REQUESTS);
    server.end().await;
}
