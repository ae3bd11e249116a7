//! Step 5, download: payloads in an S3 bucket are as payloads in a folder, and what goes wrong with a bucket is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::{Client, Release, Server, done, error, payloads};
use protocol::digest::Sha256;
use protocol::wire::{Published, ReleasePush};
use reqwest::{Method, StatusCode};
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tests::s3::{BUCKET, S3, SECRET};

/// How often is looked for what is waited for.
const LOOK: Duration = Duration::from_millis(20);

#[tokio::test]
async fn payloads_by_range() {
    let s3 = S3::start().unwrap();
    payloads::by_range(&Server::on(&s3).await).await;
}

#[tokio::test]
async fn an_upload_is_whole_and_right_or_it_is_not_there() {
    let s3 = S3::start().unwrap();
    let server = Server::on(&s3).await;
    payloads::whole_and_right(&server, || s3.objects() + s3.unfinished()).await;
    assert!(
        !server.dir.path().join("srv/payloads").join(Sha256::of(&payloads::payload()).to_string()).exists()
    );
    let empty = payloads::upload(&server, b"").await;
    assert_eq!(server.anybody().get(&empty).await.bytes().await.unwrap(), b"".as_slice());
}

/// Parts are in the bucket when the operator's machine is switched off.
#[tokio::test]
async fn parts_of_an_upload_that_breaks_off_are_taken_away() {
    let s3 = S3::start().unwrap();
    let server = Server::on(&s3).await;
    let admin = server.admin();
    let bytes = vec![7; 40 << 20];
    let digest = Sha256::of(&bytes);
    let mut line = std::net::TcpStream::connect(admin.url.strip_prefix("http://").unwrap()).unwrap();
    write!(
        line,
        "PUT /api/v1/payloads/{digest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        admin.token.as_ref().unwrap(),
        bytes.len()
    )
    .unwrap();
    let line = tokio::task::spawn_blocking(move || {
        line.write_all(&bytes[..30 << 20]).unwrap();
        line
    })
    .await
    .unwrap();
    while s3.unfinished() < 3 {
        tokio::time::sleep(LOOK).await;
    }
    drop(line);
    while s3.unfinished() > 0 {
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(s3.objects(), 0);
    error(admin.get(&format!("/v1/payloads/{digest}")).await, StatusCode::NOT_FOUND).await;
}

/// The answer to the last request of an upload may be lost: then the next one is told that there is no such upload.
#[tokio::test]
async fn an_object_that_is_there_after_all_counts() {
    let s3 = S3::start().unwrap();
    let server = Server::on(&s3).await;
    payloads::upload(&server, b"once").await;
    s3.complete_nothing();
    payloads::upload(&server, b"once").await;
    let refused = server.admin().upload(b"another").await;
    let body = error(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(body.message.contains("the payload store failed"), "{}", body.message);
    assert_eq!((s3.objects(), s3.unfinished()), (1, 0));
}

#[tokio::test]
async fn a_release_needs_its_payload_in_the_bucket() {
    let s3 = S3::start().unwrap();
    let server = Server::on(&s3).await;
    let (admin, mut operator) = (server.admin(), server.operator());
    operator.push_root(&admin).await;
    assert!(!format!("{:?}", server.app.payloads()).contains(SECRET));
    let release = Release::new("1.1.0", None);
    let push = operator.push(&[release.add()]);
    error(admin.send(Method::POST, "/api/v1/releases", &push).await, StatusCode::CONFLICT).await;
    let object = s3.object(&Sha256::of(&release.payload).to_string());
    std::fs::create_dir_all(object.parent().unwrap()).unwrap();
    std::fs::write(&object, &release.payload[1..]).unwrap();
    error(admin.send(Method::POST, "/api/v1/releases", &push).await, StatusCode::CONFLICT).await;
    assert_eq!(admin.upload(&release.payload).await.status(), StatusCode::NO_CONTENT);
    let _: Published = done(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    assert_eq!(admin.set_channel("alpha", "1.1.0").await.status(), StatusCode::OK);
    let seen = common::node_sees(&server.anybody(), &operator.root, "alpha", server.now()).await.unwrap();
    assert_eq!(seen, ["1.1.0"]);
}

/// Until `/readyz` answers with this status; what it says then.
async fn until_ready_is(client: &Client, status: StatusCode) -> String {
    loop {
        let answer = client.get("/readyz").await;
        if answer.status() == status {
            return answer.text().await.unwrap();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whatever needs the bucket is answered with 503, and nothing else is.
async fn nothing_but_payloads_fails(server: &Server, path: &str, push: &ReleasePush, saying: &str) {
    let admin = server.admin();
    for refused in [
        admin.get(path).await,
        admin.upload(b"another").await,
        admin.send(Method::POST, "/api/v1/releases", push).await,
    ] {
        let body = error(refused, StatusCode::SERVICE_UNAVAILABLE).await;
        assert_eq!(body.kind, "unavailable");
        assert!(body.message.contains(saying), "{}", body.message);
        assert!(!body.message.contains(BUCKET), "only the log says where: {}", body.message);
    }
    assert!(until_ready_is(&admin, StatusCode::SERVICE_UNAVAILABLE).await.contains(saying));
    assert_eq!(admin.get("/api/v1/releases").await.status(), StatusCode::OK);
    assert_eq!(admin.get("/healthz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_bucket_may_refuse_or_be_away_and_come_back() {
    let mut s3 = S3::start().unwrap();
    let server = Server::on(&s3).await;
    let bytes = payloads::payload();
    let path = payloads::upload(&server, &bytes).await;
    let mut operator = server.operator();
    operator.push_root(&server.admin()).await;
    let push = operator.push(&[Release::new("1.1.0", None).add()]);

    s3.deny(true);
    nothing_but_payloads_fails(&server, &path, &push, "denies access").await;
    s3.deny(false);
    until_ready_is(&server.anybody(), StatusCode::OK).await;

    s3.stop().unwrap();
    nothing_but_payloads_fails(&server, &path, &push, "cannot be reached").await;
    s3.restart().unwrap();
    until_ready_is(&server.anybody(), StatusCode::OK).await;
    assert_eq!(server.anybody().get(&path).await.bytes().await.unwrap(), bytes);
}

/// A server that starts with this environment fails with one line.
fn fails(srv: &TempDir, address: &str, variables: &[(&str, &str)], saying: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir"])
        .arg(srv.path().join("srv"));
    command.env_clear().env("UPDATE_SERVER_PAYLOAD_STORE", address).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.starts_with("update-server: ") && line.trim_end().lines().count() == 1, "{line}");
    for word in saying {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert!(!line.contains(SECRET) && !line.contains("hidden"), "{line}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_at_the_start() {
    let s3 = S3::start().unwrap();
    let srv = TempDir::new().unwrap();
    let mut init = Command::new(env!("CARGO_BIN_EXE_update-server"));
    assert!(init.args(["init", "--data-dir"]).arg(srv.path().join("srv")).status().unwrap().success());

    let (address, all) = (s3.address(), s3.variables());
    let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let with = |name: &'static str, value: &'static str| {
        let rest = all.iter().copied().filter(|(other, _)| *other != name);
        rest.chain([(name, value)]).collect::<Vec<_>>()
    };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let to = |endpoint: &str| {
        let mut variables: Vec<(String, String)> = s3.variables();
        variables
            .iter_mut()
            .filter(|(name, _)| name == "AWS_ENDPOINT_URL")
            .for_each(|(_, v)| endpoint.clone_into(v));
        variables
    };
    for (endpoint, detail) in [(&closed, "refused"), (&silent, "no answer for 5 s")] {
        let variables = to(endpoint);
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        fails(
            &srv,
            &address,
            &variables,
            &[&address, "cannot be reached", endpoint, detail, "AWS_ENDPOINT_URL"],
        );
    }
    let denied = ["denies access", "s3:ListBucket", "AWS_SECRET_ACCESS_KEY"];
    fails(
        &srv,
        &address,
        &with("AWS_SECRET_ACCESS_KEY", "hidden"),
        &[&denied[..], &["SignatureDoesNotMatch"]].concat(),
    );
    fails(&srv, &address, &with("AWS_ACCESS_KEY_ID", "AKIANOBODY"), &denied);
    s3.deny(true);
    fails(&srv, &address, &all, &[&denied[..], &["AccessDenied"]].concat());
    s3.deny(false);
    fails(&srv, "s3://elsewhere/fleet", &all, &["there is no bucket elsewhere", "NoSuchBucket"]);
    fails(&srv, &address, &with("AWS_ALLOW_HTTP", "false"), &["expected https, or AWS_ALLOW_HTTP=true"]);
    fails(&srv, &address, &with("AWS_ALLOW_HTTP", "hidden?"), &["expected https, or AWS_ALLOW_HTTP=true"]);
    fails(
        &srv,
        &address,
        &with("AWS_ENDPOINT_URL", "https://key:hidden@127.0.0.1"),
        &["AWS_ENDPOINT_URL has an @"],
    );
    fails(&srv, "/var/lib/payloads", &all, &["expected s3://BUCKET/PREFIX", "/var/lib/payloads"]);
    fails(&srv, "s3://key:hidden@payloads", &all, &["expected s3://BUCKET/PREFIX"]);

    // A machine without a role: nobody listens where it would ask for keys.
    let without: Vec<_> = all.iter().copied().filter(|(name, _)| !name.contains("_KEY")).collect();
    let metadata = [&without[..], &[("AWS_METADATA_ENDPOINT", closed.as_str())]].concat();
    fails(&srv, &address, &metadata, &["there are no keys", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"]);
    let half: Vec<_> = all.iter().copied().filter(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY").collect();
    fails(&srv, &address, &half, &["make no sense", "SecretAccessKey"]);
}
