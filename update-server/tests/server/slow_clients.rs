//! Clients that take their time, or that say too much: each is let go, and the server answers others meanwhile.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::check;
use common::listening::Listening;
use protocol::digest::Sha256;
use protocol::wire::BODY_MAX;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use update_server::listen::Limits;

/// Long enough that nothing ends by it.
const AGES: Duration = Duration::from_secs(3600);
/// How often a slow client says something.
const STEP: Duration = Duration::from_millis(20);

fn patient() -> Limits {
    Limits { handshake: AGES, idle: AGES, stall: AGES, read: AGES, body: AGES, connections: 100 }
}

async fn connect(server: &Listening) -> TcpStream {
    TcpStream::connect(&server.address).await.unwrap()
}

/// Everything that is said until the server hangs up, which it must.
async fn rest(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A connection that was cut off while we were writing is reset.
    drop(stream.read_to_end(&mut said).await);
    String::from_utf8(said).unwrap()
}

/// Writes byte by byte, for ever; returns what the server says before it hangs up.
async fn trickle(mut stream: TcpStream, bytes: impl Iterator<Item = u8>) -> String {
    let (mut from, mut to) = stream.split();
    let mut said = Vec::new();
    let write = async {
        for byte in bytes {
            if to.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(STEP).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        // It ends when the server has hung up.
        _ = from.read_to_end(&mut said) => {}
    }
    String::from_utf8(said).unwrap()
}

async fn answers(server: &Listening) {
    let client = reqwest::Client::new();
    let url = format!("http://{}/v1/update-check", server.address);
    let answer = client.post(url).json(&check("stable", "1.0.0")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn headers_that_do_not_end_are_not_waited_for() {
    let limits = Limits { idle: Duration::from_millis(300), connections: 2, ..patient() };
    let server = Listening::start(None, limits).await;
    let header = b"GET /healthz HTTP/1.1\r\nX: ".iter().copied().chain(std::iter::repeat(b'y'));
    // HTTP/2, of which the first request never comes.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let mut two = connect(&server).await;
    two.write_all(&preface).await.unwrap();
    // With the two there is no place left: the others wait, and get theirs.
    let (slow, ()) = tokio::join!(trickle(connect(&server).await, header), answers(&server));
    assert!(!slow.contains("200"), "{slow}");
    let mut said = Vec::new();
    drop(two.read_to_end(&mut said).await);
    answers(&server).await;
    server.end().await;
}

#[tokio::test]
async fn a_connection_that_is_kept_alive_is_closed_in_the_end() {
    let limits = Limits { idle: Duration::from_millis(100), ..patient() };
    let server = Listening::start(None, limits).await;
    let mut stream = connect(&server).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let said = rest(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("ok\n"), "{said}");
    server.end().await;
}

#[tokio::test]
async fn a_document_that_trickles_in_is_refused() {
    let limits = Limits { body: Duration::from_millis(300), ..patient() };
    let server = Listening::start(None, limits).await;
    for path in ["/v1/update-check", "/fleetlock/v1/pre-reboot"] {
        let mut stream = connect(&server).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nfleet-lock-protocol: true\r\nContent-Length: 100000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (said, ()) = tokio::join!(trickle(stream, std::iter::repeat(b' ')), answers(&server));
        assert!(said.starts_with("HTTP/1.1 408") || said.starts_with("HTTP/1.1 400"), "{path}: {said}");
        assert!(said.contains("did not come within"), "{path}: {said}");
    }
    server.end().await;
}

/// The head of an upload, without its body.
fn upload(server: &Listening, token: &str) -> String {
    format!(
        "PUT /api/v1/payloads/{} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\nContent-Length: 50\r\n\r\n",
        Sha256::of(&[b' '; 50]),
        server.address
    )
}

#[tokio::test]
async fn an_upload_may_be_slow_but_must_move() {
    let limits = Limits { body: Duration::from_millis(200), read: Duration::from_millis(1500), ..patient() };
    let server = Listening::start(None, limits).await;
    let mut stream = connect(&server).await;
    stream.write_all(upload(&server, &server.token()).as_bytes()).await.unwrap();
    for _ in 0..50 {
        stream.write_all(b" ").await.unwrap();
        tokio::time::sleep(STEP).await;
    }
    let said = rest(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 204"), "slow: {said}");

    let mut stream = connect(&server).await;
    stream.write_all(upload(&server, &server.token()).as_bytes()).await.unwrap();
    stream.write_all(b" ").await.unwrap();
    let said = rest(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("broke off after 1 bytes"), "{said}");
    // Nobody waits for the body of an upload that is not allowed.
    let mut stream = connect(&server).await;
    stream.write_all(upload(&server, "wrong").as_bytes()).await.unwrap();
    let said = rest(&mut stream).await;
    assert!(said.starts_with("HTTP/1.1 401"), "{said}");
    server.end().await;
}

#[tokio::test]
async fn a_download_that_nobody_takes_is_cut_off() {
    let limits = Limits { stall: Duration::from_millis(500), ..patient() };
    let server = Listening::start(None, limits).await;
    // More than the buffers of both ends hold.
    let payload = vec![7; 64 << 20];
    let digest = Sha256::of(&payload);
    std::fs::write(server.dir.path().join(format!("srv/payloads/{digest}")), &payload).unwrap();
    let mut stream = connect(&server).await;
    let ask = format!("GET /v1/payloads/{digest} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut taken = Vec::new();
    drop(stream.read_to_end(&mut taken).await);
    assert!(taken.len() < payload.len(), "it was sent after all");
    answers(&server).await;
    server.end().await;
}

#[tokio::test]
async fn a_document_that_is_too_long_is_refused_before_it_is_read() {
    let server = Listening::start(None, patient()).await;
    let mut stream = connect(&server).await;
    let head = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2);
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut from, mut to) = stream.split();
    let mut said = Vec::new();
    let megabytes = async {
        let piece = vec![b' '; 1 << 20];
        while to.write_all(&piece).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = megabytes => {}
        _ = from.read_to_end(&mut said) => {}
    }
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("413") && said.contains(&BODY_MAX.to_string()), "{said}");
    answers(&server).await;
    server.end().await;
}
