//! Step 4, channel: whatever a client sends, the answer is a refusal in one line and the server goes on. The addresses come
//! from the server's own description, so that none is left out.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use crate::common;

use axum::http::header;
use common::{Client, Server, check};
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::wire::ErrorBody;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use std::fmt::Write as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use update_server::auth::{Role, generate};
use update_server::store::tokens::{self, Token};

/// One address of the description, its variable parts filled in.
#[derive(Debug)]
struct Address {
    method: Method,
    path: String,
    /// The least role, where it is for operators.
    role: Option<String>,
    /// Whether its body is a document.
    document: bool,
    /// An example of that document, as far as the description tells.
    example: Value,
}

/// A value that a schema allows, deep enough to be changed.
fn example(schema: &Value, all: &Value, depth: u32) -> Value {
    if let Some(Value::String(to)) = schema.get("$ref") {
        return example(all.pointer(&to[1..]).unwrap(), all, depth);
    }
    if let Some(one) = ["const", "enum"].iter().find_map(|key| schema.get(*key)) {
        return one.get(0).unwrap_or(one).clone();
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(first) = schema.get(key).and_then(|all| all.as_array()?.last()) {
            return example(first, all, depth);
        }
    }
    if let Some(parts) = schema.get("allOf").and_then(Value::as_array) {
        let mut whole = serde_json::Map::new();
        for part in parts {
            whole.extend(example(part, all, depth).as_object().cloned().unwrap_or_default());
        }
        return whole.into();
    }
    let kind = schema["type"].as_array().and_then(|kinds| kinds.first()).unwrap_or(&schema["type"]);
    match kind.as_str() {
        Some("object") if depth < 6 => {
            let fields = schema["properties"].as_object().cloned().unwrap_or_default();
            let filled = fields.into_iter().map(|(name, schema)| (name, example(&schema, all, depth + 1)));
            filled.collect::<serde_json::Map<_, _>>().into()
        }
        Some("array") if depth < 6 => json!([example(&schema["items"], all, depth + 1)]),
        Some("array") => json!([]),
        Some("integer") => json!(1),
        Some("boolean") => json!(false),
        Some("string") if schema["format"] == "date-time" => json!("2030-01-01T00:00:00Z"),
        Some("string") => match schema["pattern"].as_str() {
            Some(hex) if hex.contains("{32}") => json!("0".repeat(32)),
            Some(hex) if hex.contains("{64}") => json!("0".repeat(64)),
            Some(share) if share.contains('%') => json!("10%"),
            _ => json!("1"),
        },
        _ => json!({}),
    }
}

/// Every address that the server says it has.
async fn addresses(client: &Client) -> Vec<Address> {
    let document: Value = client.read("/openapi.json").await;
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let role = operation["security"][0]["operator"][0].as_str().map(str::to_owned);
            let media = &operation["requestBody"]["content"]["application/json"];
            let filled = path
                .replace("{node}", &"0".repeat(32))
                .replace("{digest}", &"0".repeat(64))
                .replace("{channel}", "alpha")
                .replace("{group}", "default")
                .replace("{file}", "9.root.json")
                .replace("{path}", "a/b");
            found.push(Address {
                method: method.to_uppercase().parse().unwrap(),
                path: filled,
                role,
                document: !media.is_null(),
                example: example(&media["schema"], &document, 0),
            });
        }
    }
    assert!(found.len() > 35, "the description is whole: {}", found.len());
    found
}

/// Makes numbers from a seed, the same ones each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap()
    }
}

/// Puts something of a wrong kind in one place of a document.
fn spoil(value: &mut Value, dice: &mut Dice) {
    let inside = match value {
        Value::Object(fields) if !fields.is_empty() => {
            let at = dice.roll(fields.len());
            fields.values_mut().nth(at)
        }
        Value::Array(items) if !items.is_empty() => {
            let at = dice.roll(items.len());
            items.get_mut(at)
        }
        _ => None,
    };
    if let Some(inside) = inside.filter(|_| dice.roll(5) > 0) {
        return spoil(inside, dice);
    }
    *value = match dice.roll(8) {
        0 => json!("x".repeat(100_000)),
        1 => json!("\u{0}"),
        2 => json!(-1),
        3 => json!(u64::MAX),
        4 => json!(1e300),
        5 => json!([[[[{}]]]]),
        6 => json!({ "\u{202e}": "\r\n" }),
        _ => json!("../../etc/passwd"),
    };
}

/// A document that is not what it should be. Some are still valid: the server ignores what it does not know.
fn mutated(example: &Value, dice: &mut Dice) -> Vec<u8> {
    let text = example.to_string();
    let cut = dice.roll(text.len());
    match dice.roll(9) {
        0 => text.as_bytes()[..cut].to_vec(),
        1 => "[".repeat(50_000).into_bytes(),
        2 => "{\"schema\":1,\"a\":".repeat(10_000).into_bytes(),
        3 => text.replacen('{', "{\"schema\":1,\"schema\":1,", 1).into_bytes(),
        4 => [&text.as_bytes()[..cut], &[0xff, 0xfe, 0xc0]].concat(),
        5 => [&text.as_bytes()[..cut], &[0], &text.as_bytes()[cut..]].concat(),
        6 => format!("{{\"schema\":{}}}", "9".repeat(400)).into_bytes(),
        _ => {
            let mut spoiled = example.clone();
            spoil(&mut spoiled, dice);
            spoiled.to_string().into_bytes()
        }
    }
}

/// An answer that refuses, in one line of our form (FleetLock v1's has its own kinds, and calls the line `value`).
async fn refused(response: Response, what: &str) -> StatusCode {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert!(status.is_client_error(), "{what}: {status} {text}");
    let body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{what}: {status} {text:?}"));
    let line = body["message"].as_str().or(body["value"].as_str()).unwrap();
    assert!(body["kind"].is_string() && !line.is_empty() && line.len() < 2000, "{what}: {text}");
    assert!(!line.contains(char::is_control), "{what}: one line: {line:?}");
    status
}

/// It answers as before.
async fn still_serves(server: &Server) {
    let anybody = server.anybody();
    assert_eq!(anybody.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(anybody.get("/readyz").await.status(), StatusCode::OK);
    anybody.check("alpha", "1.0.0").await;
}

#[tokio::test]
async fn documents_that_are_no_documents_are_refused() {
    let server = Server::start().await;
    let admin = server.admin();
    let mut dice = Dice(7);
    let (mut refusals, mut taken) = (0, 0);
    for address in addresses(&admin).await.iter().filter(|address| address.document) {
        for round in 0..60 {
            let body = mutated(&address.example, &mut dice);
            let start = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
            let what = format!("{} {} round {round}: {start}", address.method, address.path);
            let request = admin.request(address.method.clone(), &address.path);
            let response = request.header("fleet-lock-protocol", "true").body(body).send().await.unwrap();
            if response.status().is_success() {
                taken += 1;
            } else {
                refused(response, &what).await;
                refusals += 1;
            }
        }
    }
    assert!(refusals > 4 * taken, "most of them are no documents: {refusals} refused, {taken} taken");
    still_serves(&server).await;
}

/// Sends a request line as it is, which no client library would.
async fn raw(server: &Server, line: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    let token = server.admin().token.unwrap();
    let head =
        format!("{line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
    // A server that has refused may have closed already.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("{line}: {answer:?}")).parse().unwrap();
    (status, answer)
}

#[tokio::test]
async fn paths_and_methods_that_lead_nowhere_are_refused() {
    let server = Server::start().await;
    let long = "a".repeat(20_000);
    let mut tricks = Vec::new();
    for base in [
        "/v1/metadata/",
        "/v1/targets/",
        "/v1/payloads/",
        "/api/v1/channels/",
        "/api/v1/nodes/",
        "/api/v1/rollouts/",
        "/api/v1/locks/",
        "/v2/lock/",
    ] {
        for trick in [
            "..",
            "../server.db",
            "%2e%2e",
            "%2e%2e%2fserver.db",
            "%00",
            "a%00b",
            "/",
            "//x",
            "%ff%fe",
            "%",
            "%zz",
            &long,
        ] {
            tricks.push(format!("{base}{trick}"));
        }
    }
    for path in tricks.iter().map(String::as_str).chain([
        "//",
        "/..",
        "/.",
        "/api",
        "/api/v1/",
        "/%2e%2e/admin-token",
    ]) {
        let (status, answer) = raw(&server, &format!("GET {path}")).await;
        assert!((400..500).contains(&status), "{}: {status}", &path[..path.len().min(80)]);
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let body: ErrorBody = serde_json::from_str(body).unwrap_or_else(|_| panic!("{path}: {answer}"));
        assert!(!body.message.is_empty() && !body.message.contains(char::is_control), "{body:?}");
    }
    let admin = server.admin();
    let addresses = addresses(&admin).await;
    for path in addresses.iter().map(|address| &address.path) {
        let taken = |method: &Method| addresses.iter().any(|a| &a.path == path && a.method == *method);
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW"] {
            let method: Method = method.parse().unwrap();
            let described = taken(&method);
            // What is described is tried with documents above.
            if !described {
                let response = admin.request(method.clone(), path).send().await.unwrap();
                let status = refused(response, &format!("{method} {path}")).await;
                assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path} is in no description");
            }
        }
    }
    // What is described is served: it is not the router that refuses.
    for address in &addresses {
        let response = admin.request(address.method.clone(), &address.path).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{address:?}");
        assert!(!text.contains("there is nothing at this address"), "{address:?}");
    }
    still_serves(&server).await;
}

#[tokio::test]
async fn nobody_gets_more_than_their_token_is_good_for() {
    let server = Server::start().await;
    let admin = server.admin();
    let now = server.now();
    let make = async |name: &str, role: Role, expires: Option<Timestamp>| {
        let token = generate().unwrap();
        let mut change = server.app.store().write().await.unwrap();
        let row =
            Token { name: name.to_owned(), role, created_at: now, expires_at: expires, revoked_at: None };
        assert!(tokens::create(&mut change, &row, &Sha256::of(token.as_bytes())).await.unwrap());
        change.commit().await.unwrap();
        server.client(&token)
    };
    let viewer = make("viewer", Role::Viewer, None).await;
    let publisher = make("publisher", Role::Publisher, None).await;
    let expired = make("expired", Role::Operator, Some(now)).await;
    let ended = make("ended", Role::Operator, Some(now + SignedDuration::from_hours(1))).await;
    let mut change = server.app.store().write().await.unwrap();
    tokens::revoke(&mut change, "ended", now).await.unwrap();
    change.commit().await.unwrap();
    let mut headers = ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer flipside_", "Bearer \u{e4}"]
        .map(str::to_owned)
        .to_vec();
    headers.push(format!("Bearer {}", "x".repeat(8000)));
    headers.push(format!("Bearer flipside_node_{}", "0".repeat(64)));
    headers.push(format!("Token {}", admin.token.as_ref().unwrap()));
    for address in addresses(&admin).await.iter().filter(|address| address.role.is_some()) {
        let ask = |client: &Client| {
            let request = client.request(address.method.clone(), &address.path);
            if address.document { request.body(address.example.to_string()) } else { request }
        };
        let what = format!("{address:?}");
        for client in [&server.anybody(), &expired, &ended] {
            let status = refused(ask(client).send().await.unwrap(), &what).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
        }
        for value in &headers {
            let request = ask(&server.anybody()).header(header::AUTHORIZATION, value.as_bytes());
            assert_eq!(
                refused(request.send().await.unwrap(), &what).await,
                StatusCode::UNAUTHORIZED,
                "{value}"
            );
        }
        let role = address.role.as_deref().unwrap();
        let too_little: &[&Client] = match role {
            "operator" => &[&viewer, &publisher],
            "publisher" => &[&viewer],
            _ => &[],
        };
        for client in too_little {
            assert_eq!(
                refused(ask(client).send().await.unwrap(), &what).await,
                StatusCode::FORBIDDEN,
                "{what}"
            );
        }
        // The role that the description names is enough.
        let enough = match role {
            "viewer" => &viewer,
            "publisher" => &publisher,
            _ => &admin,
        };
        let status = ask(enough).send().await.unwrap().status();
        assert!(status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN, "{what}: {status}");
    }
    still_serves(&server).await;
}

#[tokio::test]
async fn bodies_beyond_every_bound_are_refused() {
    let server = Server::start().await;
    let admin = server.admin();
    // Longer than the longest that any address takes.
    let mut long = String::from("{\"schema\":1,\"pad\":\"");
    for _ in 0..(17 << 16) {
        let _ = write!(long, "0123456789abcdef");
    }
    long.push_str("\"}");
    let long = bytes::Bytes::from(long);
    let mut answered = 0;
    for address in addresses(&admin).await.iter().filter(|address| address.document) {
        let request =
            || admin.request(address.method.clone(), &address.path).header("fleet-lock-protocol", "true");
        let whole = request().body(long.clone()).send().await;
        let pieces: Vec<_> =
            long.chunks(1 << 20).map(|piece| Ok::<_, std::io::Error>(long.slice_ref(piece))).collect();
        let chunked = request().body(reqwest::Body::wrap_stream(futures::stream::iter(pieces))).send().await;
        for answer in [whole, chunked] {
            // One that still sends may find the connection closed before it reads the answer.
            let Ok(answer) = answer else { continue };
            answered += 1;
            let fleetlock = address.path.contains("pre-reboot") || address.path.contains("steady-state");
            let status = refused(answer, &address.path).await;
            let expected = if fleetlock { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE };
            assert_eq!(status, expected, "{}", address.path);
        }
    }
    assert!(answered > 10, "most of them hear why: {answered}");
    let said = admin.send(Method::POST, "/v1/update-check", &check("alpha", "1.0.0")).await;
    assert_eq!(said.status(), StatusCode::OK);
    still_serves(&server).await;
}
