//! The real program: its commands, its files, and what is left after a kill.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::program::{Home, Program};
use common::{ARCH, Client, Operator, Release, done};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::wire::{ChannelInfo, Decision, LockInfo, Published, ReleaseList};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn command(args: &[&str], home: &Home) -> Output {
    home.program(args).output().unwrap()
}

fn json(args: &[&str], home: &Home) -> Value {
    let output = command(&[args, &["--json"]].concat(), home);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["schema"], 1);
    value
}

/// One line on stderr that says what is wrong.
fn fails(args: &[&str], home: &Home, saying: &str) {
    let output = command(args, home);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.starts_with("update-server: ") && line.trim_end().lines().count() == 1, "{line}");
    assert!(line.contains(saying), "{line}");
    assert!(output.stdout.is_empty());
    assert_eq!(
        failure(&[args, &["--json"]].concat(), home, 1)["error"],
        line["update-server: ".len()..].trim_end()
    );
}

/// What is printed on stdout where documents are asked for.
fn failure(args: &[&str], home: &Home, code: i32) -> Value {
    let output = command(args, home);
    assert_eq!(output.status.code(), Some(code), "{args:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1, "{document}");
    document
}

#[test]
fn wrong_usage_is_a_document_where_documents_are_asked_for() {
    let home = Home::new();
    for args in [&["token", "list", "--bogus", "--json"][..], &["--json", "serve", "--bogus"]] {
        assert_eq!(failure(args, &home, 2)["error"], "unexpected argument '--bogus' found");
        let text: Vec<_> = args.iter().copied().filter(|arg| *arg != "--json").collect();
        assert!(command(&text, &home).stdout.is_empty());
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn init_makes_a_folder_once() {
    let home = Home::new();
    let srv = home.srv();
    fails(&["serve", "--listen", "127.0.0.1:0"], &home, "update-server init");
    let made = json(&["init"], &home);
    assert_eq!(made["online_keys"], srv.join("online-keys.pub.json").to_str().unwrap());
    assert_eq!(mode(&srv.join("admin-token")), 0o600);
    assert_eq!(mode(&srv.join("online-keys")), 0o700);
    for key in ["snapshot.pem", "timestamp.pem", "channels.pem"] {
        assert_eq!(mode(&srv.join("online-keys").join(key)), 0o600);
    }
    let token = std::fs::read(srv.join("admin-token")).unwrap();
    fails(&["init"], &home, "is a data directory already");
    assert_eq!(std::fs::read(srv.join("admin-token")).unwrap(), token, "nothing was changed");
    for listen in ["127.0.0.1", "localhost:http", ":8400"] {
        fails(&["serve", "--listen", listen], &home, ": expected HOST:PORT, as in ");
    }
}

#[tokio::test]
async fn tokens_from_the_command_line() {
    let program = Program::new();
    let home = &program.home;
    let made = json(&["token", "create", "--name", "ci", "--role", "publisher"], home);
    let mut ci = program.client();
    ci.token = Some(made["token"].as_str().unwrap().to_owned());
    assert_eq!(ci.get("/api/v1/releases").await.status(), StatusCode::OK);
    fails(&["token", "create", "--name", "ci", "--role", "viewer"], home, "exists already");
    fails(&["token", "create", "--name", "a b", "--role", "viewer"], home, "not a valid token name");
    let ends = |at| ["token", "create", "--name", "late", "--role", "viewer", "--expires", at];
    fails(&ends("2020-01-01T00:00:00Z"), home, "would be dead from the start");
    json(&ends("2999-01-01T00:00:00Z"), home);
    let text = command(&["token", "list"], home).stdout;
    assert!(String::from_utf8(text).unwrap().contains(", ends 2999-01-01T00:00:00Z\n"));
    let usage = command(&["token", "create", "--name", "x", "--role", "king"], home);
    assert_eq!(usage.status.code(), Some(2));

    let list = json(&["token", "list"], home);
    let names: Vec<&str> =
        list["tokens"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["admin", "ci", "late"]);
    assert!(!list.to_string().contains("flipside_"), "a list shows no secret");

    assert_eq!(json(&["token", "revoke", "--name", "ci"], home)["revoked"], true);
    assert_eq!(ci.get("/api/v1/releases").await.status(), StatusCode::UNAUTHORIZED, "at once");
    assert_eq!(command(&["token", "revoke", "--name", "ci"], home).status.code(), Some(3));
    fails(&["token", "revoke", "--name", "nobody"], home, "there is no token nobody");
}

#[tokio::test]
async fn one_server_per_folder_and_a_clean_end() {
    let mut program = Program::new();
    fails(&["serve", "--listen", "127.0.0.1:0"], &program.home, "another update-server runs");
    let backup = program.home.dir.path().join("backup.db");
    let out = backup.to_str().unwrap().to_owned();
    if program.home.database.postgres.is_some() {
        let refused = failure(&["backup", "--out", &out, "--json"], &program.home, 2);
        assert!(refused["error"].as_str().unwrap().contains("use pg_dump"), "{refused}");
        assert!(!backup.exists());
    } else {
        assert!(json(&["backup", "--out", &out], &program.home)["bytes"].as_u64().unwrap() > 0);
        fails(&["backup", "--out", &out], &program.home, "expected a new file");
        assert!(std::fs::read(&backup).unwrap().starts_with(b"SQLite format 3"));
    }

    let pid = program.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(program.child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn killed_at_any_point_it_goes_on_where_it_was() {
    let program = Program::new();
    let mut operator = Operator::new(&program.srv(), Timestamp::now());
    operator.push_root(&program.client()).await;

    // In the middle of an upload.
    let release = Release::new("1.1.0", None);
    let path = format!("/api/v1/payloads/{}", Sha256::of(&release.payload));
    let client = program.client();
    let mut line = std::net::TcpStream::connect(client.url.strip_prefix("http://").unwrap()).unwrap();
    let (token, half) = (client.token.unwrap(), release.payload.len() / 2);
    write!(
        line,
        "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
        release.payload.len()
    )
    .unwrap();
    line.write_all(&release.payload[..half]).unwrap();
    let program = program.kill_and_restart();
    // A kill may come before the file is made; so that there is one in every run:
    std::fs::write(program.srv().join("payloads/.upload-left"), b"half").unwrap();
    let program = program.kill_and_restart();
    assert_eq!(std::fs::read_dir(program.srv().join("payloads")).unwrap().count(), 0);
    let push = operator.sign(&[release.add()]).0;
    let client = program.client();
    let refused = client.send(Method::POST, "/api/v1/releases", &push).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT, "the payload is not there");

    // Between the upload and the release.
    assert_eq!(client.upload(&release.payload).await.status(), StatusCode::NO_CONTENT);
    let program = program.kill_and_restart();
    let client = program.client();
    assert!(client.read::<ReleaseList>("/api/v1/releases").await.releases.is_empty());
    let push = operator.push(&[release.add()]);
    let _: Published = done(client.send(Method::POST, "/api/v1/releases", &push).await).await;

    // Right after each change was acknowledged.
    let program = program.kill_and_restart();
    let _: ChannelInfo = done(program.client().set_channel("alpha", "1.1.0").await).await;
    let program = program.kill_and_restart();
    let client = program.client();
    assert_eq!(client.check("alpha", "1.0.0").await.decision, Decision::Update);
    let seen = common::node_sees(&client, &operator.root, "alpha", Timestamp::now()).await.unwrap();
    assert_eq!(seen, ["1.1.0"], "for {ARCH}");
}

/// A permit that was granted before a kill is held after it; one that was freed is free.
#[tokio::test]
async fn permits_survive_a_kill_as_they_were_told() {
    let mut program = Program::new();
    for round in 0..4 {
        let granted = contend(&program, round).await;
        program = program.kill_and_restart();
        let lock: LockInfo = program.client().read("/api/v1/locks/default").await;
        let held: Vec<String> = lock.view.document.holders.iter().map(|h| h.node.to_string()).collect();
        assert!(held.len() <= 1, "one at a time: {held:?}");
        if let Some(granted) = &granted {
            assert_eq!(&held, std::slice::from_ref(granted), "round {round}");
        }
        for node in held {
            assert_eq!(ask(&program, "steady-state", &node).await, Some(StatusCode::OK));
        }
        program = program.kill_and_restart();
        let lock: LockInfo = program.client().read("/api/v1/locks/default").await;
        assert!(lock.view.document.holders.is_empty(), "round {round}");
    }
}

async fn ask(program: &Program, what: &str, node: &str) -> Option<StatusCode> {
    let client = Client { token: None, ..program.client() };
    let request = client.request(Method::POST, &format!("/v1/{what}")).header("fleet-lock-protocol", "true");
    let body = format!("{{\"client_params\":{{\"id\":\"{node}\",\"group\":\"default\"}}}}");
    request.body(body).send().await.ok().map(|answer| answer.status())
}

/// Eight nodes ask at once; who was told that it holds. The kill comes with the first answer that says so: the other
/// requests are under way then.
async fn contend(program: &Program, round: u32) -> Option<String> {
    use futures::StreamExt as _;
    let asked = (0..8).map(|n| async move {
        let node = format!("r{round}n{n}");
        (ask(program, "pre-reboot", &node).await, node)
    });
    let mut answers = asked.collect::<futures::stream::FuturesUnordered<_>>();
    while let Some((status, node)) = answers.next().await {
        if status == Some(StatusCode::OK) {
            return Some(node);
        }
    }
    None
}
