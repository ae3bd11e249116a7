//! Steps 4 and 9: nodes enrol with tokens, operators place them in groups, revoke and reinstate them.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use axum::http::HeaderMap;
use common::fleet::{id, set_policy};
use common::{Client, Server, check, done, error};
use futures::future::join_all;
use jiff::SignedDuration;
use protocol::id::Group;
use protocol::lock::{ClientId, Command, Reply, Request};
use protocol::wire::{
    AuditLog, Decision, ENROLMENT_HEADER, EnrolmentCreate, EnrolmentCreated, EnrolmentInfo, EnrolmentList,
    EnrolmentState, Events, LockAnswer, LockCommand, LockInfo, NOT_ENROLLED, NodeCredential, NodeExplain,
    NodeGroup, NodeList, NodeRemove, NodeRevoke, NodeRevoked, NodeShow, RolloutInfo, SCHEMA, UpdateAnswer,
    UpdateCheck,
};
use reqwest::{Method, Response, StatusCode};
use std::sync::{Arc, Mutex};
use update_server::credentials::Need;
use update_server::data_dir::DataDir;
use update_server::enrolment::Enrolment;
use update_server::server::App;
use update_server::{changes, rollouts};

/// A node with its credential, and the token that it was given.
#[derive(Clone)]
struct Node {
    says: UpdateCheck,
    client: Client,
    token: Option<String>,
}

impl Node {
    fn new(server: &Server, number: u32, token: Option<&str>) -> Self {
        let secret = NodeCredential::from_random([u8::try_from(number % 251).unwrap(); 32]);
        let says = UpdateCheck { node: id(number), ..check("stable", "1.0.0") };
        Self { says, client: server.client(secret.reveal()), token: token.map(str::to_owned) }
    }

    async fn send<B: serde::Serialize>(&self, path: &str, body: &B) -> Response {
        let mut request = self.client.request(Method::POST, path).json(body);
        if let Some(token) = &self.token {
            request = request.header(ENROLMENT_HEADER, token);
        }
        request.send().await.unwrap()
    }

    async fn check(&self) -> Response {
        self.send("/v1/update-check", &self.says).await
    }

    async fn events(&self) -> Response {
        self.send("/v1/events", &Events { schema: SCHEMA, node: self.says.node.clone(), events: Vec::new() })
            .await
    }

    async fn request(&self, attempt: &str) -> Response {
        let command = Command::Request(Request {
            node: ClientId::from(&self.says.node),
            attempt: attempt.parse().unwrap(),
            boot: "boot-1".parse().unwrap(),
            from: "1.0.0".parse().unwrap(),
            to: "1.1.0".parse().unwrap(),
            zone: None,
            etcd_member: None,
            priority: 0,
            reason: String::new(),
        });
        self.send("/v2/lock/default", &LockCommand { schema: SCHEMA, command }).await
    }

    async fn permit(&self, attempt: &str) -> Reply {
        done::<LockAnswer>(self.request(attempt).await).await.reply
    }

    fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }
}

async fn closed() -> Server {
    let server = Server::start().await;
    server.app.set_enrolment(Enrolment::Token);
    server
}

fn wish() -> EnrolmentCreate {
    EnrolmentCreate { schema: SCHEMA, group: None, expires_in_s: None, uses: None, note: "rack 4".to_owned() }
}

async fn token(server: &Server, wish: EnrolmentCreate) -> EnrolmentCreated {
    done(server.admin().send(Method::POST, "/api/v1/enrolment-tokens", &wish).await).await
}

async fn tokens(server: &Server) -> Vec<EnrolmentInfo> {
    server.admin().read::<EnrolmentList>("/api/v1/enrolment-tokens").await.enrolments
}

async fn audit(server: &Server) -> Vec<(String, String, String)> {
    let log: AuditLog = server.admin().read("/api/v1/audit").await;
    log.entries.into_iter().map(|entry| (entry.action, entry.subject, entry.detail)).collect()
}

async fn revoke(server: &Server, node: &str) -> NodeRevoked {
    let body = NodeRevoke { schema: SCHEMA, reason: "stolen".to_owned() };
    done(server.admin().send(Method::PUT, &format!("/api/v1/nodes/{node}/revocation"), &body).await).await
}

async fn delete(server: &Server, path: &str) -> StatusCode {
    server.admin().request(Method::DELETE, path).send().await.unwrap().status()
}

async fn place(server: &Server, number: u32, group: &str) -> StatusCode {
    let body = NodeGroup { schema: SCHEMA, group: group.parse().unwrap() };
    server.admin().send(Method::PUT, &format!("/api/v1/nodes/{}/group", id(number)), &body).await.status()
}

async fn show(server: &Server, number: u32) -> NodeShow {
    server.admin().read(&format!("/api/v1/nodes/{}", id(number))).await
}

/// A server with a release 1.1.0 that the channel stable points at.
async fn with_release(server: &Server, policy: &str) {
    let (admin, mut operator) = (server.admin(), server.operator());
    operator.push_root(&admin).await;
    operator.release(&admin, "1.1.0").await;
    set_policy(&admin, policy).await;
    assert_eq!(admin.set_channel("stable", "1.1.0").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn nobody_unknown_is_heard_without_a_token_and_whoever_is_known_goes_on() {
    let server = Server::start().await;
    let old = Node::new(&server, 1, None);
    assert_eq!(old.check().await.status(), StatusCode::OK, "open, as ever");
    let server = server.restart().await;
    server.app.set_enrolment(Enrolment::Token);
    let old = Node::new(&server, 1, None);
    assert_eq!(old.check().await.status(), StatusCode::OK, "bound before");

    let new = Node::new(&server, 2, None);
    for response in [new.check().await, new.events().await, new.request("a").await] {
        let body = error(response, StatusCode::UNAUTHORIZED).await;
        assert_eq!(body.kind, NOT_ENROLLED);
        assert!(body.message.contains("updatectl enrolment create"), "{}", body.message);
        assert!(
            body.message.contains("enrolment_token_file") && body.message.len() <= 300,
            "{}",
            body.message
        );
    }
    let anybody = server.anybody().send(Method::POST, "/v1/update-check", &new.says).await;
    assert_eq!(error(anybody, StatusCode::UNAUTHORIZED).await.kind, NOT_ENROLLED, "no credential at all");
    let made = token(&server, wish()).await;
    let mut anybody = new.clone();
    (anybody.client.token, anybody.token) = (None, Some(made.token.clone()));
    assert_eq!(anybody.check().await.status(), StatusCode::UNAUTHORIZED, "a token is no credential");
    assert_eq!(tokens(&server).await[0].used, 0);

    // On each of the routes; and an answer that was lost costs nothing.
    for (number, route) in [(2, "check"), (3, "events"), (4, "lock")] {
        let node = Node::new(&server, number, Some(&made.token));
        for _ in 0..2 {
            let status = match route {
                "check" => node.check().await.status(),
                "events" => node.events().await.status(),
                _ => node.request("a").await.status(),
            };
            assert!(status.is_success(), "{route}: {status}");
        }
        assert!(node.without_token().check().await.status().is_success());
    }
    let used = &tokens(&server).await[0];
    assert_eq!((used.used, used.last_used_at), (3, Some(server.now())));
    assert_eq!(show(&server, 2).await.node.enrolled_with.as_deref(), Some(made.enrolment.id.as_str()));
    assert_eq!(show(&server, 1).await.node.enrolled_with, None);
    let log = audit(&server).await;
    let enrolled = log.iter().filter(|(action, ..)| action == "node.enrol").count();
    assert_eq!(enrolled, 3, "{log:?}");
    // Another one's credential for an id that is bound is refused, token or not.
    let thief = Node { says: new.says.clone(), ..Node::new(&server, 9, Some(&made.token)) };
    error(thief.check().await, StatusCode::FORBIDDEN).await;
    assert_eq!(tokens(&server).await[0].used, 3);
    let database = server.database_bytes();
    assert!(!database.windows(made.token.len()).any(|window| window == made.token.as_bytes()), "only hashes");

    // It is on the disk.
    let server = server.restart().await;
    server.app.set_enrolment(Enrolment::Token);
    assert_eq!(Node::new(&server, 3, None).check().await.status(), StatusCode::OK);
}

#[tokio::test]
async fn tokens_end_by_time_by_use_and_by_an_operator() {
    let server = closed().await;
    let refused = async |number: u32, token: &str, saying: &str| {
        // Who shows a token that was good once is not guessing.
        let over = ["is expired", "is used up", "is revoked"].contains(&saying);
        let status = if over { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED };
        let body = error(Node::new(&server, number, Some(token)).check().await, status).await;
        assert!(body.message.contains(saying), "{saying}: {}", body.message);
        assert_ne!(body.kind, NOT_ENROLLED, "a node must not try it again and again");
        assert!(body.message.len() <= 300);
    };
    let brief = token(&server, EnrolmentCreate { expires_in_s: Some(60), ..wish() }).await;
    let once = token(&server, EnrolmentCreate { uses: Some(1), ..wish() }).await;
    let ended = token(&server, wish()).await;
    server.advance(SignedDuration::from_secs(59));
    assert_eq!(Node::new(&server, 1, Some(&brief.token)).check().await.status(), StatusCode::OK);
    server.advance(SignedDuration::from_secs(1));
    refused(2, &brief.token, "is expired").await;
    assert_eq!(Node::new(&server, 1, Some(&brief.token)).check().await.status(), StatusCode::OK);
    assert_eq!(Node::new(&server, 3, Some(&once.token)).check().await.status(), StatusCode::OK);
    refused(4, &once.token, "is used up").await;
    let path = format!("/api/v1/enrolment-tokens/{}", ended.enrolment.id);
    assert_eq!(delete(&server, &path).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(&server, &path).await, StatusCode::CONFLICT);
    assert_eq!(delete(&server, "/api/v1/enrolment-tokens/0123").await, StatusCode::NOT_FOUND);
    refused(5, &ended.token, "is revoked").await;
    refused(5, &format!("flipside_enrol_{}", "0".repeat(64)), "is unknown").await;
    refused(5, "letmein", "not an enrolment token").await;
    let states: Vec<_> = tokens(&server).await.into_iter().map(|token| token.state).collect();
    for state in [EnrolmentState::Expired, EnrolmentState::UsedUp, EnrolmentState::Revoked] {
        assert!(states.contains(&state), "{states:?}");
    }
    // What makes no sense, and who may not.
    for wish in [
        EnrolmentCreate { uses: Some(0), ..wish() },
        EnrolmentCreate { expires_in_s: Some(0), ..wish() },
        EnrolmentCreate { note: "two\nlines".to_owned(), ..wish() },
    ] {
        let answer = server.admin().send(Method::POST, "/api/v1/enrolment-tokens", &wish).await;
        error(answer, StatusCode::BAD_REQUEST).await;
    }
    let store = server.app.store();
    update_server::data_dir::create_token(
        store,
        "watcher",
        update_server::auth::Role::Publisher,
        None,
        "flipside_watcher",
        server.now(),
    )
    .await
    .unwrap();
    let publisher = server.client("flipside_watcher");
    assert_eq!(publisher.get("/api/v1/enrolment-tokens").await.status(), StatusCode::OK);
    let answer = publisher.send(Method::POST, "/api/v1/enrolment-tokens", &wish()).await;
    error(answer, StatusCode::FORBIDDEN).await;
    let log = audit(&server).await;
    assert!(log.iter().any(|(action, ..)| action == "enrolment.revoke"), "{log:?}");
    assert!(
        log.iter().any(|(action, _, detail)| action == "enrolment.create"
            && detail.contains("uses 1, ends never: rack 4")),
        "{log:?}"
    );
}

#[tokio::test]
async fn a_token_enrols_no_more_nodes_than_it_may_whoever_asks_at_once() {
    let server = closed().await;
    let made = token(&server, EnrolmentCreate { uses: Some(20), ..wish() }).await;
    let nodes: Vec<Node> = (0..50).map(|number| Node::new(&server, number, Some(&made.token))).collect();
    // Each asks twice, as one does whose first answer is late.
    let statuses = join_all(nodes.iter().chain(&nodes).map(async |node| node.check().await.status())).await;
    let enrolled: Vec<bool> = (0..50)
        .map(|at| {
            assert_eq!(statuses[at], statuses[at + 50], "node {at}: bound or not, and that is that");
            statuses[at] == StatusCode::OK
        })
        .collect();
    assert_eq!(enrolled.iter().filter(|enrolled| **enrolled).count(), 20);
    let info = &tokens(&server).await[0];
    assert_eq!((info.used, info.state), (20, EnrolmentState::UsedUp));
    for (node, enrolled) in nodes.iter().zip(enrolled) {
        assert_eq!(node.without_token().check().await.status() == StatusCode::OK, enrolled);
    }
}

#[tokio::test]
async fn a_node_is_in_the_group_that_the_server_says() {
    let server = closed().await;
    // Only the group canary may go, and nodes name themselves whatever they like.
    with_release(&server, "[channel.stable.canary]\ngroup = \"canary\"\nhold = \"1h\"\n").await;
    let (canary, any) = (
        token(&server, EnrolmentCreate { group: Some("canary".parse().unwrap()), ..wish() }).await,
        token(&server, wish()).await,
    );
    let mut liar = Node::new(&server, 1, Some(&any.token));
    let placed = Node::new(&server, 2, Some(&canary.token));
    let goes =
        async |node: &Node| done::<UpdateAnswer>(node.check().await).await.decision == Decision::Update;
    assert!(goes(&placed).await, "it says default, and was placed in canary");
    assert!(!goes(&liar).await);
    liar.says.group = "canary".parse().unwrap();
    let group = |node: &NodeShow| (node.node.group.to_string(), node.node.own_group.clone());
    let own = Some::<Group>("default".parse().unwrap());
    assert_eq!(group(&show(&server, 2).await), ("canary".to_owned(), own.clone()));
    assert_eq!(place(&server, 1, "web").await, StatusCode::NO_CONTENT);
    assert!(!goes(&liar).await, "its own word does not count any more");
    assert_eq!(group(&show(&server, 1).await), ("web".to_owned(), Some("canary".parse().unwrap())));
    let list: NodeList = server.admin().read("/api/v1/nodes").await;
    assert!(list.nodes.iter().any(|node| node.group.as_str() == "web" && node.own_group.is_some()));
    let explain: NodeExplain = server.admin().read(&format!("/api/v1/nodes/{}/explain", id(1))).await;
    assert_eq!(explain.decision, Decision::Hold);
    assert!(explain.because[0].to_string().contains("canary goes first"), "{:?}", explain.because);

    assert_eq!(delete(&server, &format!("/api/v1/nodes/{}/group", id(1))).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(&server, &format!("/api/v1/nodes/{}/group", id(1))).await, StatusCode::NOT_FOUND);
    assert_eq!(place(&server, 77, "web").await, StatusCode::NOT_FOUND);
    assert!(goes(&liar).await, "and now it does");
    assert_eq!(group(&show(&server, 1).await), ("canary".to_owned(), None));
    let log = audit(&server).await;
    let details: Vec<&str> = log
        .iter()
        .filter(|(action, ..)| action == "node.set-group")
        .map(|(_, _, detail)| detail.as_str())
        .collect();
    assert_eq!(details, ["web -> its own word", "its own word -> web"]);
    // Limits of a group count those who were placed there.
    let grants: RolloutInfo = server.admin().read("/api/v1/rollouts/stable").await;
    assert_eq!(grants.counts.in_flight, 2);

    // Forgotten with the node; the next one with that id has its own word, or its token's.
    let remove = NodeRemove { schema: SCHEMA, why: "gone".to_owned() };
    let path = format!("/api/v1/nodes/{}/remove", id(2));
    assert_eq!(server.admin().send(Method::POST, &path, &remove).await.status(), StatusCode::NO_CONTENT);
    error(placed.without_token().check().await, StatusCode::UNAUTHORIZED).await;
    let again = Node { token: Some(any.token), ..placed };
    assert_eq!(again.check().await.status(), StatusCode::OK);
    assert_eq!(group(&show(&server, 2).await), ("default".to_owned(), None));
}

#[tokio::test]
async fn a_revoked_node_is_not_heard_and_what_it_held_is_free() {
    let server = Server::start().await;
    with_release(&server, "in_flight = 1\n").await;
    let (a, b) = (Node::new(&server, 1, None), Node::new(&server, 2, None));
    assert_eq!(done::<UpdateAnswer>(a.check().await).await.decision, Decision::Update);
    assert_eq!(done::<UpdateAnswer>(b.check().await).await.decision, Decision::Hold);
    assert!(matches!(a.permit("a-1").await, Reply::Granted { .. }));
    assert!(matches!(b.permit("b-1").await, Reply::Wait { .. }));

    let taken = revoke(&server, a.says.node.as_str()).await;
    let default: Group = "default".parse().unwrap();
    assert_eq!((taken.known, taken.permits, taken.places.len()), (true, vec![default], 0));
    for response in [a.check().await, a.events().await, a.request("a-2").await] {
        let body = error(response, StatusCode::FORBIDDEN).await;
        assert!(body.message.contains("is revoked since 2030-03-17T17:46:40Z (stolen)"), "{}", body.message);
        assert!(body.message.len() <= 300);
    }
    let thief = Node { says: a.says.clone(), ..Node::new(&server, 9, None) };
    let body = error(thief.check().await, StatusCode::FORBIDDEN).await;
    assert!(!body.message.contains("stolen"), "why is nobody else's business: {}", body.message);
    let v1 = format!("{{\"client_params\":{{\"id\":\"{}\",\"group\":\"default\"}}}}", a.says.node);
    let v1 = server.anybody().request(Method::POST, "/v1/pre-reboot").body(v1);
    assert_eq!(
        v1.header("fleet-lock-protocol", "true").send().await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
    assert!(matches!(b.permit("b-1").await, Reply::Granted { .. }), "its permit went");
    assert_eq!(done::<UpdateAnswer>(b.check().await).await.decision, Decision::Update, "its place too");
    let log = audit(&server).await;
    let of = |what: &str| {
        log.iter().find(|(action, ..)| action == what).unwrap_or_else(|| panic!("{what}: {log:?}"))
    };
    assert!(of("lock.remove").2.contains("the permit of"), "not in silence: {log:?}");
    assert_eq!(of("node.revoke").2, "stolen");
    let info: LockInfo = server.admin().read("/api/v1/locks/default").await;
    assert_eq!(info.view.population.unwrap().total, 1, "it does not count for percentages");
    let shown = show(&server, 1).await.node.revoked.unwrap();
    assert_eq!((shown.reason.as_str(), shown.by.as_str()), ("stolen", "admin"));
    let explain: NodeExplain = server.admin().read(&format!("/api/v1/nodes/{}/explain", id(1))).await;
    assert!(explain.reason.contains("is revoked"), "{}", explain.reason);
    let rollout: RolloutInfo = server.admin().read("/api/v1/rollouts/stable").await;
    assert_eq!((rollout.counts.nodes, rollout.counts.lost), (1, 1), "{:?}", rollout.counts);

    // Neither a restart nor what is forgotten of it lets it be heard again.
    let server = server.restart().await;
    let a = Node::new(&server, 1, None);
    error(a.check().await, StatusCode::FORBIDDEN).await;
    let remove = NodeRemove { schema: SCHEMA, why: "gone".to_owned() };
    let path = format!("/api/v1/nodes/{}/remove", id(1));
    assert_eq!(server.admin().send(Method::POST, &path, &remove).await.status(), StatusCode::NO_CONTENT);
    error(a.check().await, StatusCode::FORBIDDEN).await;
    error(server.anybody().send(Method::POST, "/v1/update-check", &a.says).await, StatusCode::FORBIDDEN)
        .await;
    let gone = server.admin().get(&format!("/api/v1/nodes/{}", id(1))).await;
    let gone = error(gone, StatusCode::NOT_FOUND).await;
    assert!(gone.message.contains("revoked since") && gone.message.contains("stolen"), "{}", gone.message);
    let body = NodeRevoke { schema: SCHEMA, reason: "again".to_owned() };
    let path = format!("/api/v1/nodes/{}/revocation", id(1));
    error(server.admin().send(Method::PUT, &path, &body).await, StatusCode::CONFLICT).await;
    assert_eq!(delete(&server, &path).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(&server, &path).await, StatusCode::NOT_FOUND);
    assert_eq!(a.check().await.status(), StatusCode::OK);
    assert!(!revoke(&server, "never-heard-of").await.known);
}

/// A token does not bring a revoked id back either, and uses none up.
#[tokio::test]
async fn a_revoked_id_does_not_enrol() {
    let server = closed().await;
    let made = token(&server, wish()).await;
    revoke(&server, id(1).as_str()).await;
    let node = Node::new(&server, 1, Some(&made.token));
    error(node.check().await, StatusCode::FORBIDDEN).await;
    assert_eq!(tokens(&server).await[0].used, 0);
    assert_eq!(delete(&server, &format!("/api/v1/nodes/{}/revocation", id(1))).await, StatusCode::NO_CONTENT);
    assert_eq!(node.check().await.status(), StatusCode::OK);
}

/// However a node's words and its revocation fall together, afterwards it holds nothing and is not heard.
#[tokio::test]
async fn a_revocation_in_the_middle_of_a_nodes_words_leaves_it_nothing() {
    let server = Server::start().await;
    with_release(&server, "").await;
    for number in 0..12 {
        let node = Node::new(&server, number, None);
        let words = async {
            join_all((0..4).map(async |_| (node.check().await.status(), node.request("a").await.status())))
                .await
        };
        let (_, revoked) = tokio::join!(words, async { revoke(&server, node.says.node.as_str()).await });
        assert_eq!(revoked.node.as_str(), node.says.node.as_str());
        error(node.check().await, StatusCode::FORBIDDEN).await;
        error(node.request("a").await, StatusCode::FORBIDDEN).await;
        let info: LockInfo = server.admin().read("/api/v1/locks/default").await;
        let document = info.view.document;
        assert!(document.holders.is_empty() && document.queue.is_empty(), "{number}: {document:?}");
        let rollout: RolloutInfo = server.admin().read("/api/v1/rollouts/stable").await;
        assert_eq!(rollout.counts.in_flight, 0, "{number}");
    }
}

/// What another server on the same database may still believe, and for how long.
#[tokio::test]
async fn another_server_hears_of_a_revocation_within_a_minute() {
    let server = Server::start().await;
    // SQLite has one server only.
    let Some(url) = server.database.url() else { return };
    let (srv, beside) = (server.dir.path().join("srv"), server.dir.path().join("beside"));
    assert!(std::process::Command::new("cp").arg("-a").args([&srv, &beside]).status().unwrap().success());
    let data = DataDir::open(&beside, Some(&url), None).await.unwrap();
    let time = Arc::new(Mutex::new(server.now()));
    let clock = Arc::clone(&time);
    let other = App::new(&data, Arc::new(move || *clock.lock().unwrap())).await.unwrap();

    let node = Node::new(&server, 1, None);
    assert_eq!(node.check().await.status(), StatusCode::OK);
    let mut headers = HeaderMap::new();
    let bearer = format!("Bearer {}", node.client.token.as_ref().unwrap());
    headers.insert("authorization", bearer.parse().unwrap());
    let says = ClientId::from(&node.says.node);
    let heard = async |need| other.credentials().check(&other, &says, &headers, need).await.is_ok();
    assert!(heard(Need::IfBound).await);
    revoke(&server, says.as_str()).await;
    assert!(!heard(Need::Always).await, "a lock command is refused at once");
    let ask = rollouts::Ask {
        channel: "stable".parse().unwrap(),
        target: "1.1.0".parse().unwrap(),
        node: node.says.node.clone(),
        group: "default".parse().unwrap(),
        version: "1.1.0".parse().unwrap(),
        quarantined: None,
    };
    let told = changes::make(&other, changes::Change::Ask(ask)).await.unwrap();
    assert_eq!(told, changes::Done::Told(rollouts::Told::Revoked), "and so is a grant");
    let ahead = |by: i64| {
        let mut time = time.lock().unwrap();
        *time = time.saturating_add(SignedDuration::from_secs(by)).unwrap();
    };
    ahead(60);
    assert!(!heard(Need::IfBound).await, "and a minute later everything");
    assert_eq!(delete(&server, &format!("/api/v1/nodes/{says}/revocation")).await, StatusCode::NO_CONTENT);
    assert!(heard(Need::IfBound).await, "that it is revoked is not remembered");
}
