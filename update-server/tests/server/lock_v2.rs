//! Step 9, permit: the reboot lock for our own nodes, over HTTP: a permit's life, credentials, restarts, caps, and what
//! is on record afterwards.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::{Client, Server, check, done, error};
use jiff::SignedDuration;
use protocol::id::{BootId, NodeId};
use protocol::lock::{ClientId, Command, Phase, Refusal, Reply, Request, Wait};
use protocol::version::Version;
use protocol::wire::{
    AuditLog, Events, LockAnswer, LockCommand, LockInfo, LockList, LockRelease, LockView, NodeCredential,
    NodeList, NodeRemove, Policies, PolicySet, SCHEMA,
};
use reqwest::{Method, StatusCode};

/// A node with its credential.
struct Node {
    id: ClientId,
    client: Client,
    zone: Option<&'static str>,
}

impl Node {
    fn new(server: &Server, n: u8) -> Self {
        let id: NodeId = format!("{n:032x}").parse().unwrap();
        let credential = NodeCredential::from_random([n; 32]);
        Self { id: ClientId::from(&id), client: server.client(credential.reveal()), zone: None }
    }

    fn in_zone(mut self, zone: &'static str) -> Self {
        self.zone = Some(zone);
        self
    }

    /// The same node after the server moved to another address.
    fn moved_to(mut self, server: &Server) -> Self {
        self.client.url.clone_from(&server.url);
        self
    }

    async fn tell(&self, group: &str, command: Command) -> Reply {
        let body = LockCommand { schema: SCHEMA, command };
        let answer = self.client.send(Method::POST, &format!("/v2/lock/{group}"), &body).await;
        done::<LockAnswer>(answer).await.reply
    }

    fn wish(&self, attempt: &str) -> Command {
        Command::Request(Request {
            node: self.id.clone(),
            attempt: attempt.parse().unwrap(),
            boot: boot("boot-1"),
            from: version("1.0.0"),
            to: version("1.1.0"),
            zone: self.zone.map(|zone| zone.parse().unwrap()),
            etcd_member: None,
            priority: 0,
            reason: "update to 1.1.0".to_owned(),
        })
    }

    async fn request_in(&self, group: &str, attempt: &str) -> Reply {
        self.tell(group, self.wish(attempt)).await
    }

    async fn request(&self, attempt: &str) -> Reply {
        self.request_in("default", attempt).await
    }

    async fn verify(&self, attempt: &str) -> Reply {
        let (node, attempt, boot) = (self.id.clone(), attempt.parse().unwrap(), boot("boot-1"));
        self.tell("default", Command::Verify { node, attempt, boot }).await
    }

    async fn confirm(&self, attempt: &str, in_boot: &str) -> Reply {
        let (node, attempt, boot) = (self.id.clone(), attempt.parse().unwrap(), boot(in_boot));
        self.tell("default", Command::Confirm { node, attempt, boot, version: version("1.1.0") }).await
    }
}

fn boot(name: &str) -> BootId {
    name.parse().unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn is_granted(reply: &Reply) -> bool {
    matches!(reply, Reply::Granted { .. })
}

async fn show(server: &Server, group: &str) -> LockInfo {
    server.admin().read(&format!("/api/v1/locks/{group}")).await
}

async fn audit(server: &Server) -> Vec<(String, String, String, String)> {
    let log: AuditLog = server.admin().read("/api/v1/audit").await;
    log.entries.into_iter().map(|entry| (entry.actor, entry.action, entry.subject, entry.detail)).collect()
}

async fn set_policy(server: &Server, file: &str) -> Policies {
    let admin = server.admin();
    let Policies { digest, .. } = admin.read("/api/v1/lock-policy").await;
    let body = PolicySet { schema: SCHEMA, replaces: digest, file: file.to_owned(), why: "test".to_owned() };
    done(admin.send(Method::PUT, "/api/v1/lock-policy", &body).await).await
}

#[tokio::test]
async fn a_permits_life() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, 1), Node::new(&server, 2));
    assert!(is_granted(&a.request("a-1").await));
    assert!(is_granted(&a.request("a-1").await), "asked twice, granted once");
    let Reply::Wait { because, retry_after_s } = b.request("b-1").await else { panic!("b waits") };
    assert!(
        matches!(&because[..], [Wait::Full { max: 1, holders }] if holders[..] == [a.id.clone()]),
        "{because:?}"
    );
    assert!(retry_after_s > 0);
    assert!(matches!(a.verify("a-0").await, Reply::Refused { because: Refusal::NotHeld { .. } }));
    assert!(matches!(a.verify("a-1").await, Reply::Current { .. }));
    let info = show(&server, "default").await;
    assert_eq!(info.view.document.holders[0].phase, Phase::Rebooting);
    assert_eq!(info.waiting[0].node, b.id);
    assert!(info.waiting[0].because[0].contains("1 of 1 permits held by"), "{:?}", info.waiting);

    // The holder survives the server's restart, and so does the place in the queue.
    let server = server.restart().await;
    let (a, b) = (a.moved_to(&server), b.moved_to(&server));
    assert!(matches!(a.confirm("a-1", "boot-1").await, Reply::Refused { because: Refusal::SameBoot }));
    assert_eq!(a.confirm("a-1", "boot-2").await, Reply::Released { was_held: true });
    assert_eq!(a.confirm("a-1", "boot-2").await, Reply::Released { was_held: false });
    assert!(
        matches!(a.request("a-1").await, Reply::Refused { because: Refusal::AttemptOver }),
        "a late message"
    );
    assert!(is_granted(&b.request("b-1").await));
    assert!(
        audit(&server).await.iter().all(|(_, action, ..)| !action.starts_with("lock.")),
        "nodes' words are no acts"
    );
}

#[tokio::test]
async fn what_changes_nothing_writes_nothing() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, 1), Node::new(&server, 2));
    a.request("a-1").await;
    b.request("b-1").await;
    let before = show(&server, "default").await.view.revision;
    for _ in 0..5 {
        a.request("a-1").await;
        b.request("b-1").await;
    }
    assert_eq!(show(&server, "default").await.view.revision, before);
}

#[tokio::test]
async fn an_unknown_group_and_commands_that_are_not_a_nodes() {
    let server = Server::start().await;
    let a = Node::new(&server, 1);
    let reply = a.request_in("nobody-set-this", "a-1").await;
    assert!(matches!(reply, Reply::Refused { because: Refusal::UnknownGroup { .. } }), "{reply:?}");
    let (who, why) = ("admin".to_owned(), "because".to_owned());
    for command in [
        Command::Tick,
        Command::FleetLockRequest { node: a.id.clone() },
        Command::ForceRelease { node: a.id.clone(), grant: 1, who: who.clone(), why: why.clone() },
        Command::SetPolicy { policy: Box::default(), who, why },
    ] {
        let body = LockCommand { schema: SCHEMA, command };
        let answer = a.client.send(Method::POST, "/v2/lock/default", &body).await;
        error(answer, StatusCode::BAD_REQUEST).await;
    }
    let long =
        a.client.request(Method::POST, "/v2/lock/default").body("x".repeat(1 << 20)).send().await.unwrap();
    error(long, StatusCode::PAYLOAD_TOO_LARGE).await;
    error(a.client.get(&format!("/v2/lock/nobody-set-this?node={}", a.id)).await, StatusCode::NOT_FOUND)
        .await;
    error(a.client.get("/v2/lock/default").await, StatusCode::BAD_REQUEST).await;
}

#[tokio::test]
async fn a_node_sees_the_lock_that_decides_about_it() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, 1).in_zone("r1"), Node::new(&server, 2));
    a.request("a-1").await;
    b.request("b-1").await;
    let view: LockView = b.client.read(&format!("/v2/lock/default?node={}", b.id)).await;
    assert_eq!(view.document.holders[0].node, a.id);
    let population = view.population.unwrap();
    assert_eq!((population.total, population.zones[&"r1".parse().unwrap()]), (2, 1));
    // Not for everybody: the id in the query must be the credential's own.
    error(a.client.get(&format!("/v2/lock/default?node={}", b.id)).await, StatusCode::FORBIDDEN).await;
    error(server.anybody().get("/v2/lock/default?node=unheard-of").await, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test]
async fn the_first_credential_binds_a_node_id() {
    let server = Server::start().await;
    let (a, thief) = (Node::new(&server, 1), Node::new(&server, 9));
    let wish = LockCommand { schema: SCHEMA, command: a.wish("a-1") };
    let path = "/v2/lock/default";
    error(server.anybody().send(Method::POST, path, &wish).await, StatusCode::UNAUTHORIZED).await;
    error(server.admin().send(Method::POST, path, &wish).await, StatusCode::UNAUTHORIZED).await;
    let garbled = server.client("flipside_node_xyz");
    error(garbled.send(Method::POST, path, &wish).await, StatusCode::UNAUTHORIZED).await;
    assert!(is_granted(&a.request("a-1").await));
    let refused = error(thief.client.send(Method::POST, path, &wish).await, StatusCode::FORBIDDEN).await;
    assert!(refused.message.contains("reset-credential"), "{}", refused.message);
    error(server.anybody().send(Method::POST, path, &wish).await, StatusCode::FORBIDDEN).await;

    // It outlives a restart; and an operator lets a node that lost it be heard again.
    let server = server.restart().await;
    let (a, thief) = (a.moved_to(&server), thief.moved_to(&server));
    error(thief.client.send(Method::POST, path, &wish).await, StatusCode::FORBIDDEN).await;
    let reset = format!("/api/v1/nodes/{}/credential", a.id);
    let viewer = server.client("flipside_unknown");
    error(viewer.request(Method::DELETE, &reset).send().await.unwrap(), StatusCode::UNAUTHORIZED).await;
    let forgotten = server.admin().request(Method::DELETE, &reset).send().await.unwrap();
    assert_eq!(forgotten.status(), StatusCode::NO_CONTENT);
    let again = server.admin().request(Method::DELETE, &reset).send().await.unwrap();
    error(again, StatusCode::NOT_FOUND).await;
    assert!(
        matches!(thief.tell("default", wish.command.clone()).await, Reply::Granted { .. }),
        "now it is bound to this"
    );
    error(a.client.send(Method::POST, path, &wish).await, StatusCode::FORBIDDEN).await;
    assert_eq!(audit(&server).await[0].1, "node.reset-credential");
    let database = server.database_bytes();
    let secret = NodeCredential::from_random([1; 32]);
    let secret = secret.reveal().as_bytes();
    assert!(!database.windows(secret.len()).any(|window| window == secret), "only hashes are kept");
}

#[tokio::test]
async fn checks_and_events_are_heard_without_a_credential_until_the_id_is_bound() {
    let server = Server::start().await;
    let said = check("alpha", "1.0.0");
    let events = Events { schema: SCHEMA, node: said.node.clone(), events: Vec::new() };
    let owner = server.client(NodeCredential::from_random([1; 32]).reveal());
    let other = server.client(NodeCredential::from_random([2; 32]).reveal());
    let status = async |client: &Client| {
        let check = client.send(Method::POST, "/v1/update-check", &said).await.status();
        (check, client.send(Method::POST, "/v1/events", &events).await.status())
    };
    let heard = (StatusCode::OK, StatusCode::NO_CONTENT);
    let forbidden = (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN);
    assert_eq!(status(&server.anybody()).await, heard, "an engine of the first version");
    assert_eq!(status(&owner).await, heard);
    assert_eq!(status(&owner).await, heard);
    assert_eq!(status(&other).await, forbidden);
    assert_eq!(status(&server.anybody()).await, forbidden);
    server.advance(SignedDuration::from_hours(1));
    assert_eq!(status(&server.anybody()).await, forbidden, "it does not wear off");
    assert_eq!(status(&owner).await, heard);
    let reset = format!("/api/v1/nodes/{}/credential", said.node);
    server.admin().request(Method::DELETE, &reset).send().await.unwrap();
    assert_eq!(status(&other).await, heard);
    assert_eq!(status(&owner).await, forbidden);
}

#[tokio::test]
async fn an_operator_takes_the_permit_that_they_saw_and_no_other() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, 1), Node::new(&server, 2));
    a.request("a-1").await;
    let admin = server.admin();
    let release = async |node: &ClientId, grant: u64, why: &str| {
        let body = LockRelease { schema: SCHEMA, node: node.clone(), grant, why: why.to_owned() };
        admin.send(Method::POST, "/api/v1/locks/default/release", &body).await
    };
    let grant = show(&server, "default").await.view.document.holders[0].grant;
    error(release(&a.id, grant, " ").await, StatusCode::BAD_REQUEST).await;
    error(release(&b.id, grant, "why").await, StatusCode::NOT_FOUND).await;
    error(release(&a.id, grant + 1, "why").await, StatusCode::CONFLICT).await;
    let info: LockInfo = done(release(&a.id, grant, "the machine burned down").await).await;
    assert!(info.view.document.holders.is_empty());
    // A retry of an answer that was lost does nothing, also when the node holds another permit by then.
    let _: LockInfo = done(release(&a.id, grant, "the machine burned down").await).await;
    assert!(matches!(a.verify("a-1").await, Reply::Refused { because: Refusal::NotHeld { .. } }));
    assert!(is_granted(&a.request("a-2").await));
    let _: LockInfo = done(release(&a.id, grant, "the machine burned down").await).await;
    assert_eq!(show(&server, "default").await.view.document.holders.len(), 1);
    let acts: Vec<_> =
        audit(&server).await.into_iter().filter(|(_, action, ..)| action == "lock.release").collect();
    assert_eq!(acts.len(), 1, "{acts:?}");
    let (actor, _, subject, detail) = &acts[0];
    assert_eq!((actor.as_str(), subject.as_str()), ("admin", "default"));
    assert!(detail.contains(a.id.as_str()) && detail.ends_with(": the machine burned down"), "{detail}");
    let viewer = server.anybody();
    error(viewer.get("/api/v1/locks").await, StatusCode::UNAUTHORIZED).await;
}

const TWO_GROUPS: &str = "
[group.default]
max = 2
[group.web]
max = 5
[cap.all]
groups = [\"default\", \"web\"]
max = 2
";

#[tokio::test]
async fn policies_are_set_whole_by_compare_and_swap() {
    let server = Server::start().await;
    let admin = server.admin();
    let first: Policies = admin.read("/api/v1/lock-policy").await;
    assert!(first.file.contains("[group.default]"), "{}", first.file);
    let second = set_policy(&server, TWO_GROUPS).await;
    assert_ne!(first.digest, second.digest);
    let locks: LockList = admin.read("/api/v1/locks").await;
    let groups: Vec<_> = locks.locks.iter().map(|info| info.view.document.group.to_string()).collect();
    assert_eq!(groups, ["default", "web"]);
    assert_eq!(audit(&server).await.iter().filter(|(_, action, ..)| action == "lock.policy").count(), 2);
    assert_eq!(audit(&server).await.iter().filter(|(_, action, ..)| action == "lock.caps").count(), 1);
    // Seen before somebody else changed it.
    let stale =
        PolicySet { schema: SCHEMA, replaces: first.digest, file: second.file.clone(), why: "x".to_owned() };
    error(admin.send(Method::PUT, "/api/v1/lock-policy", &stale).await, StatusCode::CONFLICT).await;
    // What is printed reads back as itself, and changes nothing.
    let same = set_policy(&server, &second.file).await;
    assert_eq!(same, second);
    assert_eq!(audit(&server).await.iter().filter(|(_, action, ..)| action == "lock.policy").count(), 2);
    let wrong =
        PolicySet { file: "[group.default]\nmax = \"many\"\n".to_owned(), replaces: second.digest, ..stale };
    let wrong =
        error(admin.send(Method::PUT, "/api/v1/lock-policy", &wrong).await, StatusCode::BAD_REQUEST).await;
    assert!(wrong.message.contains(":2:"), "the line is named: {}", wrong.message);
}

#[tokio::test]
async fn a_cap_holds_over_groups_also_when_all_ask_at_once() {
    let server = Server::start().await;
    set_policy(&server, TWO_GROUPS).await;
    let nodes: Vec<Node> = (1..=20).map(|n| Node::new(&server, n)).collect();
    let ask = async || {
        let asked = nodes.iter().enumerate().map(|(at, node)| async move {
            let group = if at % 2 == 0 { "default" } else { "web" };
            is_granted(&node.request_in(group, "first").await)
        });
        futures::future::join_all(asked).await.into_iter().filter(|granted| *granted).count()
    };
    assert_eq!(ask().await, 2);
    assert_eq!(ask().await, 2, "the same two");
    let held = show(&server, "default").await.view.document.holders.len()
        + show(&server, "web").await.view.document.holders.len();
    assert_eq!(held, 2);
    // A lower limit takes nothing away, and grants nothing.
    set_policy(&server, &TWO_GROUPS.replace("max = 2", "max = 1")).await;
    assert_eq!(ask().await, 2, "still those who hold");
}

#[tokio::test]
async fn percentages_count_the_nodes_that_were_heard_of() {
    let server = Server::start().await;
    set_policy(&server, "[group.default]\nmax = \"10%\"\n").await;
    let node = server.anybody();
    for n in 100..139u32 {
        let mut said = check("alpha", "1.0.0");
        said.node = format!("{n:032x}").parse().unwrap();
        assert_eq!(node.send(Method::POST, "/v1/update-check", &said).await.status(), StatusCode::OK);
    }
    let _: NodeList = server.admin().read("/api/v1/nodes").await;
    // The 39 that checked and those that ask: below 50, so four.
    let mut granted = 0;
    for n in 1..=8 {
        granted += usize::from(is_granted(&Node::new(&server, n).request("first").await));
    }
    assert_eq!(granted, 4);
    let population = show(&server, "default").await.view.population.unwrap();
    assert_eq!(population.total, 47);
    server.advance(SignedDuration::from_hours(31 * 24));
    assert!(show(&server, "default").await.view.population.is_none(), "all gone for a month");
}

#[tokio::test]
async fn a_node_that_is_gone_takes_its_permit_with_it() {
    let server = Server::start().await;
    let (a, b) = (Node::new(&server, 1), Node::new(&server, 2));
    a.request("a-1").await;
    b.request("b-1").await;
    let admin = server.admin();
    let body = NodeRemove { schema: SCHEMA, why: "scaled in".to_owned() };
    let path = |node: &Node| format!("/api/v1/nodes/{}/remove", node.id);
    assert_eq!(admin.send(Method::POST, &path(&a), &body).await.status(), StatusCode::NO_CONTENT);
    error(admin.send(Method::POST, &path(&a), &body).await, StatusCode::NOT_FOUND).await;
    assert!(show(&server, "default").await.view.document.holders.is_empty());
    assert!(is_granted(&b.request("b-1").await));
    let actions: Vec<String> =
        audit(&server).await.into_iter().map(|(_, action, ..)| action).take(2).collect();
    assert_eq!(actions, ["node.remove", "lock.remove"]);
}

#[tokio::test]
async fn a_silent_holder_is_shown_stuck_and_put_on_record_by_time_alone() {
    let server = Server::start().await;
    let a = Node::new(&server, 1);
    a.request("a-1").await;
    server.advance(SignedDuration::from_hours(2));
    let info = show(&server, "default").await;
    assert!(info.view.document.holders[0].stuck_since.is_some(), "shown before it is written");
    // The server's own look at the locks, when it starts, may have come first.
    update_server::locks::tick(&server.app).await.unwrap();
    let recorded = {
        let mut conn = server.app.store().read().await.unwrap();
        update_server::store::locks::find(&mut conn, &"default".parse().unwrap()).await.unwrap().unwrap()
    };
    assert!(recorded.1.holders[0].stuck_since.is_some(), "on record");
    update_server::locks::tick(&server.app).await.unwrap();
    assert_eq!(show(&server, "default").await.view.revision, recorded.0, "once");
    // Its next word makes it well (I4).
    assert!(is_granted(&a.request("a-1").await));
    assert!(show(&server, "default").await.view.document.holders[0].stuck_since.is_none());
}
