//! Steps 3 and 4: what an operator pushes is what a node's TUF client finds, and nothing that is wrong gets in.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::{Operator, Release, Server, done, error, node_sees, root_with, text};
use jiff::SignedDuration;
use protocol::id::Channel;
use protocol::manifest::TargetCustom;
use protocol::wire::{
    AuditLog, ChannelInfo, ChannelList, ChannelPromote, Decision, Published, ReleaseList, ReleasePush, SCHEMA,
};
use reqwest::{Method, StatusCode};
use trust::document::{self, TargetsChange};
use trust::{SigningKey, verify_root_chain};

fn days(n: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * n)
}

/// A server with a root, and its operator.
async fn ready() -> (Server, Operator, common::Client) {
    let server = Server::start().await;
    let operator = server.operator();
    let admin = server.admin();
    operator.push_root(&admin).await;
    (server, operator, admin)
}

#[tokio::test]
async fn a_release_reaches_the_nodes_of_its_channel() {
    let (server, mut operator, admin) = ready().await;
    assert_eq!(admin.check("alpha", "1.0.0").await.decision, Decision::None);
    let release = operator.release(&admin, "1.1.0").await;
    let info: ChannelInfo = done(admin.set_channel("alpha", "1.1.0").await).await;
    assert_eq!((info.version.as_str(), info.changed_by.as_str()), ("1.1.0", "admin"));

    let node = server.anybody();
    let answer = node.check("alpha", "1.0.0").await;
    assert_eq!((answer.decision, answer.version), (Decision::Update, Some(release.manifest.version.clone())));
    assert_eq!(node_sees(&node, &operator.root, "alpha", server.now()).await.unwrap(), ["1.1.0"]);
    assert!(node_sees(&node, &operator.root, "beta", server.now()).await.is_err(), "beta is not there yet");
    let path = format!("/v1/payloads/{}", release.manifest.payloads[0].sha256);
    assert_eq!(node.get(&path).await.bytes().await.unwrap(), release.payload);

    let promote = ChannelPromote {
        schema: SCHEMA,
        from: "alpha".parse().unwrap(),
        leave_behind: true,
        to_dead_end: false,
        despite_gate: None,
    };
    let promoted = admin.send(Method::POST, "/api/v1/channels/beta/promote", &promote).await;
    assert_eq!(done::<ChannelInfo>(promoted).await.version.as_str(), "1.1.0");
    assert_eq!(node_sees(&node, &operator.root, "beta", server.now()).await.unwrap(), ["1.1.0"]);
    let list: ChannelList = admin.read("/api/v1/channels").await;
    assert_eq!(list.channels.len(), 2);
    let releases: ReleaseList = admin.read("/api/v1/releases").await;
    let channels: Vec<&str> = releases.releases[0].channels.iter().map(Channel::as_str).collect();
    assert_eq!(channels, ["alpha", "beta"]);

    let log: AuditLog = admin.read("/api/v1/audit").await;
    let actions: Vec<&str> = log.entries.iter().rev().map(|entry| entry.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "token.create",
            "root.push",
            "targets.push",
            "payload.upload",
            "release.push",
            "channel.set",
            "channel.set"
        ]
    );
    assert_eq!(log.entries[0].detail, "nothing -> 1.1.0 (promoted from alpha), rollout 1");
    let page: AuditLog = admin.read("/api/v1/audit?before=3&limit=1").await;
    assert_eq!((page.entries.len(), page.entries[0].seq), (1, 2));
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let (server, mut operator, admin) = ready().await;
    let release = operator.release(&admin, "1.1.0").await;
    done::<ChannelInfo>(admin.set_channel("alpha", "1.1.0").await).await;
    let before: AuditLog = admin.read("/api/v1/audit").await;
    let timestamp = admin.get("/v1/metadata/timestamp.json").await.bytes().await.unwrap();

    let server = server.restart().await;
    let admin = server.admin();
    assert_eq!(admin.read::<AuditLog>("/api/v1/audit").await, before);
    assert_eq!(admin.get("/v1/metadata/timestamp.json").await.bytes().await.unwrap(), timestamp);
    assert_eq!(admin.check("alpha", "1.0.0").await.version.unwrap().as_str(), "1.1.0");
    assert_eq!(node_sees(&admin, &operator.root, "alpha", server.now()).await.unwrap(), ["1.1.0"]);
    let path = format!("/v1/payloads/{}", release.manifest.payloads[0].sha256);
    assert_eq!(admin.get(&path).await.bytes().await.unwrap(), release.payload);
    operator.release(&admin, "1.2.0").await;
}

#[tokio::test]
async fn of_two_pushes_from_the_same_version_one_is_refused() {
    let (_server, operator, admin) = ready().await;
    let mut pushes = Vec::new();
    for version in ["1.1.0", "1.2.0"] {
        let release = Release::new(version, None);
        assert_eq!(admin.upload(&release.payload).await.status(), StatusCode::NO_CONTENT);
        pushes.push(operator.sign(&[release.add()]).0);
    }
    let send = |push| admin.send(Method::POST, "/api/v1/releases", push);
    let (first, second) = tokio::join!(send(&pushes[0]), send(&pushes[1]));
    let mut statuses = [first.status(), second.status()];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::CONFLICT]);
    let refused = if first.status() == StatusCode::CONFLICT { first } else { second };
    let body = error(refused, StatusCode::CONFLICT).await;
    assert!(body.message.contains("version 2: expected 1"), "{}", body.message);
    assert_eq!(admin.read::<ReleaseList>("/api/v1/releases").await.releases.len(), 1);
}

#[tokio::test]
async fn a_root_is_taken_once_and_then_only_along_its_chain() {
    let (server, operator, admin) = ready().await;
    let again = operator.push_root(&admin).await;
    assert_eq!((again.root, again.targets, again.snapshot, again.timestamp), (1, 1, 1, 1), "nothing to do");

    let stranger = server.operator();
    let refused = admin.send(Method::PUT, "/api/v1/root", &stranger.root_push()).await;
    assert_eq!(error(refused, StatusCode::CONFLICT).await.kind, "conflict");

    // The next root, signed by a stranger only.
    let key = SigningKey::generate().unwrap();
    let content = root_with(&operator.online, &key, &operator.targets_key, 2, server.now());
    let mut push = operator.root_push();
    push.roots.push(text(&document::root(&content, &[&key]).unwrap()));
    let refused = admin.send(Method::PUT, "/api/v1/root", &push).await;
    error(refused, StatusCode::BAD_REQUEST).await;

    // The same, signed by the old key as well.
    let bytes = document::root(&content, &[&operator.root_key, &key]).unwrap();
    push.roots[1] = text(&bytes);
    let published: Published = done(admin.send(Method::PUT, "/api/v1/root", &push).await).await;
    assert_eq!((published.root, published.snapshot), (2, 2), "the server's roles are signed anew");
    assert_eq!(admin.get("/v1/metadata/2.root.json").await.bytes().await.unwrap(), bytes);
    assert_eq!(admin.get("/v1/metadata/3.root.json").await.status(), StatusCode::NOT_FOUND);
    let chain = [operator.root.bytes().to_vec(), bytes];
    assert_eq!(verify_root_chain(&chain).unwrap().version(), 2);
}

#[tokio::test]
async fn a_root_for_another_server_is_refused() {
    let server = Server::start().await;
    let other = Server::start().await;
    let operator = other.operator();
    let refused = server.admin().send(Method::PUT, "/api/v1/root", &operator.root_push()).await;
    let body = error(refused, StatusCode::BAD_REQUEST).await;
    assert!(body.message.contains("online-keys.pub.json"), "{}", body.message);
    assert_eq!(server.anybody().get("/v1/metadata/1.root.json").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_new_targets_key_needs_targets_metadata_signed_with_it() {
    let (server, mut operator, admin) = ready().await;
    operator.release(&admin, "1.1.0").await;
    let key = SigningKey::generate().unwrap();
    let content = root_with(&operator.online, &operator.root_key, &key, 2, server.now());
    let mut push = operator.root_push();
    push.roots.push(text(&document::root(&content, &[&operator.root_key]).unwrap()));
    push.targets = None;
    let refused = admin.send(Method::PUT, "/api/v1/root", &push).await;
    error(refused, StatusCode::CONFLICT).await;
    assert_eq!(admin.get("/v1/metadata/2.root.json").await.status(), StatusCode::NOT_FOUND, "all or nothing");

    let expires = operator.targets.expires();
    let next = document::next_targets(&operator.targets, &[], expires, &[&key]).unwrap();
    push.targets = Some(text(&next));
    let published: Published = done(admin.send(Method::PUT, "/api/v1/root", &push).await).await;
    assert_eq!((published.root, published.targets), (2, 3));
    assert_eq!(admin.read::<ReleaseList>("/api/v1/releases").await.releases.len(), 1);
}

#[tokio::test]
async fn what_a_release_push_may_not_be() {
    let (_server, mut operator, admin) = ready().await;
    let push = async |push: &ReleasePush| admin.send(Method::POST, "/api/v1/releases", push).await;
    let release = Release::new("1.1.0", None);

    let (signed, _) = operator.sign(&[release.add()]);
    let body = error(push(&signed).await, StatusCode::CONFLICT).await;
    assert!(body.message.contains("no payload"), "the payload comes first: {}", body.message);
    assert_eq!(admin.upload(&release.payload).await.status(), StatusCode::NO_CONTENT);

    let mut wrong = signed.clone();
    wrong.manifests.clear();
    let body = error(push(&wrong).await, StatusCode::BAD_REQUEST).await;
    assert!(body.message.contains("expected that manifest"), "{}", body.message);

    let mut wrong = signed.clone();
    wrong.manifests[0] = wrong.manifests[0].replace("1.1.0", "1.1.1");
    error(push(&wrong).await, StatusCode::BAD_REQUEST).await;

    let mut wrong = signed.clone();
    wrong.manifests.push("{}".to_owned());
    error(push(&wrong).await, StatusCode::BAD_REQUEST).await;

    let mut wrong = signed.clone();
    wrong.targets = wrong.targets.replace("1.1.0", "1.1.1");
    let body = error(push(&wrong).await, StatusCode::BAD_REQUEST).await;
    assert!(body.message.contains("not trusted"), "the signature does not fit: {}", body.message);

    for path in [
        "releases/1.1.0/manifest.json",
        "../../etc/passwd",
        "channels/alpha.json",
        "releases/../x/manifest.json",
    ] {
        let change = TargetsChange::Add {
            path: path.to_owned(),
            bytes: release.bytes.clone(),
            custom: TargetCustom::default(),
        };
        let body = error(push(&operator.sign(&[change]).0).await, StatusCode::BAD_REQUEST).await;
        assert!(body.message.contains("expected only releases/"), "{path}: {}", body.message);
    }

    let stranger = SigningKey::generate().unwrap();
    let expires = operator.targets.expires();
    let foreign = document::next_targets(&operator.targets, &[release.add()], expires, &[&stranger]).unwrap();
    let mut wrong = signed.clone();
    wrong.targets = text(&foreign);
    error(push(&wrong).await, StatusCode::BAD_REQUEST).await;

    let expired = document::next_targets(
        &operator.targets,
        &[release.add()],
        operator.now.saturating_sub(days(1)).unwrap(),
        &[&operator.targets_key],
    );
    let mut wrong = signed.clone();
    wrong.targets = text(&expired.unwrap());
    error(push(&wrong).await, StatusCode::BAD_REQUEST).await;
    assert!(admin.read::<ReleaseList>("/api/v1/releases").await.releases.is_empty(), "nothing got in");

    // The right one, and then the same release with other contents.
    let signed = operator.push(&[release.add()]);
    done::<Published>(push(&signed).await).await;
    let mut other = release.clone();
    other.manifest.notes = "rebuilt".to_owned();
    other.bytes = serde_json::to_vec(&other.manifest).unwrap();
    let body = error(push(&operator.sign(&[other.add()]).0).await, StatusCode::CONFLICT).await;
    assert!(body.message.contains("never changes"), "{}", body.message);
}

#[tokio::test]
async fn a_release_is_withdrawn_once_no_channel_needs_it() {
    let (server, mut operator, admin) = ready().await;
    let old = operator.release(&admin, "1.1.0").await;
    operator.release(&admin, "1.2.0").await;
    done::<ChannelInfo>(admin.set_channel("alpha", "1.1.0").await).await;
    let remove = [TargetsChange::Remove { path: old.path() }];
    let (refused, _) = operator.sign(&remove);
    let body =
        error(admin.send(Method::POST, "/api/v1/releases", &refused).await, StatusCode::CONFLICT).await;
    assert!(body.message.contains("alpha needs the release 1.1.0"), "{}", body.message);

    done::<ChannelInfo>(admin.set_channel("alpha", "1.2.0").await).await;
    let push = operator.push(&remove);
    done::<Published>(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    let versions: Vec<String> = admin
        .read::<ReleaseList>("/api/v1/releases")
        .await
        .releases
        .iter()
        .map(|release| release.version.to_string())
        .collect();
    assert_eq!(versions, ["1.2.0"]);
    error(admin.set_channel("alpha", "1.1.0").await, StatusCode::NOT_FOUND).await;
    assert_eq!(node_sees(&admin, &operator.root, "alpha", server.now()).await.unwrap(), ["1.2.0"]);
}

#[tokio::test]
async fn a_barrier_is_offered_and_listed() {
    let (server, mut operator, admin) = ready().await;
    operator.release(&admin, "2.0.0").await;
    let release = Release::new("3.0.0", Some("2.0.0"));
    assert_eq!(admin.upload(&release.payload).await.status(), StatusCode::NO_CONTENT);
    let push = operator.push(&[release.add()]);
    done::<Published>(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    done::<ChannelInfo>(admin.set_channel("alpha", "3.0.0").await).await;
    assert_eq!(admin.check("alpha", "1.0.0").await.version.unwrap().as_str(), "2.0.0");
    assert_eq!(admin.check("alpha", "2.0.0").await.version.unwrap().as_str(), "3.0.0");
    let listed = node_sees(&admin, &operator.root, "alpha", server.now()).await.unwrap();
    assert_eq!(listed, ["2.0.0", "3.0.0"]);
}

#[tokio::test]
async fn metadata_is_renewed_at_half_of_its_life() {
    let (server, mut operator, admin) = ready().await;
    operator.release(&admin, "1.1.0").await;
    done::<ChannelInfo>(admin.set_channel("alpha", "1.1.0").await).await;
    let versions = || server.app.repository().view().versions.clone().unwrap();
    let start = versions();
    let renew = async || server.app.repository().renew(server.now()).await.unwrap();

    server.advance(SignedDuration::from_hours(11));
    assert!(!renew().await, "not half a day yet");
    server.advance(SignedDuration::from_hours(1));
    assert!(renew().await);
    assert_eq!((versions().timestamp, versions().snapshot), (start.timestamp + 1, start.snapshot));
    assert!(!renew().await, "once is enough");

    // Two months of a server that renews every six hours and of nodes that ask: everything stays fresh.
    for _ in 0..(60 * 4) {
        server.advance(SignedDuration::from_hours(6));
        renew().await;
    }
    let now = server.now();
    assert_eq!(node_sees(&admin, &operator.root, "alpha", now).await.unwrap(), ["1.1.0"]);
    assert!(versions().snapshot > start.snapshot + 15, "snapshot and channels too: {:?}", versions());
    assert_eq!(versions().targets, start.targets, "what the operator signed is not touched");
    let path = format!("/v1/metadata/{}.snapshot.json", start.snapshot);
    assert_eq!(admin.get(&path).await.status(), StatusCode::NOT_FOUND, "superseded a month ago");

    // A server that was away for two days wakes with expired metadata, says so, and renews it.
    server.advance(days(2));
    assert_eq!(admin.get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(node_sees(&admin, &operator.root, "alpha", server.now()).await.is_err());
    assert!(renew().await);
    assert_eq!(admin.get("/readyz").await.status(), StatusCode::OK);
    assert!(node_sees(&admin, &operator.root, "alpha", server.now()).await.is_ok());

    // Targets metadata expires after three months: the server cannot renew it, the operator can.
    server.advance(days(60));
    renew().await;
    assert!(node_sees(&admin, &operator.root, "alpha", server.now()).await.is_err());
    operator.now = server.now();
    let push = operator.push(&[]);
    done::<Published>(admin.send(Method::POST, "/api/v1/releases", &push).await).await;
    assert!(node_sees(&admin, &operator.root, "alpha", server.now()).await.is_ok());
}

#[tokio::test]
async fn channels_need_a_release_and_a_root() {
    let server = Server::start().await;
    let admin = server.admin();
    error(admin.set_channel("alpha", "1.1.0").await, StatusCode::NOT_FOUND).await;
    let mut operator = server.operator();
    let (push, _) = operator.sign(&[]);
    let refused = admin.send(Method::POST, "/api/v1/releases", &push).await;
    let body = error(refused, StatusCode::CONFLICT).await;
    assert!(body.message.contains("root push"), "{}", body.message);
    operator.push_root(&admin).await;
    operator.release(&admin, "1.1.0").await;
    error(admin.set_channel("alpha", "1.0.9").await, StatusCode::NOT_FOUND).await;
    error(admin.set_channel("..", "1.1.0").await, StatusCode::NOT_FOUND).await;
    error(admin.set_channel("a%2Fb", "1.1.0").await, StatusCode::BAD_REQUEST).await;
    let promote = ChannelPromote {
        schema: SCHEMA,
        from: "alpha".parse().unwrap(),
        leave_behind: true,
        to_dead_end: false,
        despite_gate: None,
    };
    let refused = admin.send(Method::POST, "/api/v1/channels/beta/promote", &promote).await;
    error(refused, StatusCode::NOT_FOUND).await;
    assert!(admin.read::<ChannelList>("/api/v1/channels").await.channels.is_empty());
}
