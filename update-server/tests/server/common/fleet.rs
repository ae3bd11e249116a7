//! Nodes of a server, as HTTP clients without an engine.

use super::{Client, Operator, Server, check, done};
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::status::StateName;
use protocol::wire::{self, Event, EventKind, Events, NodeExplain, RolloutInfo, UpdateAnswer, UpdateCheck};
use reqwest::{Method, StatusCode};

/// The id of a node.
pub fn id(number: u32) -> protocol::id::NodeId {
    format!("{number:032x}").parse().unwrap()
}

/// A node.
#[derive(Clone)]
pub struct Node {
    /// What it says at a check.
    pub says: UpdateCheck,
    client: Client,
    events: u64,
}

impl Node {
    /// A node of the channel stable that runs 1.0.0.
    pub fn new(client: &Client, number: u32, group: &str) -> Self {
        let client = Client { token: None, ..client.clone() };
        let says =
            UpdateCheck { node: id(number), group: group.parse().unwrap(), ..check("stable", "1.0.0") };
        Self { says, client, events: 0 }
    }

    /// The same node, with the server at another address.
    pub fn at(mut self, client: &Client) -> Self {
        self.client.url.clone_from(&client.url);
        self
    }

    /// Asks; none where the server does not answer.
    pub async fn try_ask(&self) -> Option<UpdateAnswer> {
        let sent =
            self.client.request(Method::POST, "/v1/update-check").json(&self.says).send().await.ok()?;
        if sent.status() == StatusCode::OK { sent.json().await.ok() } else { None }
    }

    /// Asks.
    pub async fn ask(&self) -> UpdateAnswer {
        done(self.client.send(Method::POST, "/v1/update-check", &self.says).await).await
    }

    /// Whether it may go.
    pub async fn may_go(&self) -> bool {
        self.ask().await.decision == wire::Decision::Update
    }

    /// Events about a version, not sent yet.
    pub fn events(&mut self, version: &str, kinds: &[EventKind]) -> Events {
        let events = kinds.iter().map(|kind| {
            self.events += 1;
            Event {
                seq: self.events,
                at: Timestamp::from_second(1_900_000_000).unwrap(),
                kind: *kind,
                version: Some(version.parse().unwrap()),
                release: Some(Sha256::of(version.as_bytes())),
                detail: String::new(),
                evidence: String::new(),
            }
        });
        Events { schema: wire::SCHEMA, node: self.says.node.clone(), events: events.collect() }
    }

    /// Sends events. False where the server does not acknowledge them.
    pub async fn try_send(&self, events: &Events) -> bool {
        let sent = self.client.request(Method::POST, "/v1/events").json(events).send().await;
        sent.is_ok_and(|response| response.status() == StatusCode::NO_CONTENT)
    }

    /// Reports about 1.1.0.
    pub async fn tell(&mut self, kinds: &[EventKind]) {
        let events = self.events("1.1.0", kinds);
        assert!(self.try_send(&events).await, "{kinds:?}");
    }

    /// Reboots into 1.1.0 and confirms it.
    pub async fn confirm(&mut self) {
        self.tell(&[EventKind::Activated, EventKind::Rebooting, EventKind::Confirmed]).await;
        self.says.version = "1.1.0".parse().unwrap();
        self.says.state = StateName::Idle;
    }
}

/// Sets the rollout policy of the channel stable.
pub async fn set_policy(client: &Client, text: &str) {
    let before: wire::Policies = client.read("/api/v1/rollout-policy").await;
    let body = wire::PolicySet {
        schema: wire::SCHEMA,
        replaces: before.digest,
        file: format!("[channel.stable]\n{text}"),
        why: "a test".to_owned(),
    };
    let _: wire::Policies = done(client.send(Method::PUT, "/api/v1/rollout-policy", &body).await).await;
}

/// Pauses, resumes or approves.
pub async fn act(client: &Client, verb: &str, group: Option<&str>) -> reqwest::Response {
    let group = group.map(|group| group.parse().unwrap());
    let body =
        wire::RolloutAct { schema: wire::SCHEMA, group, why: "a test".to_owned(), number: None, stage: None };
    client.send(Method::POST, &format!("/api/v1/rollouts/stable/{verb}"), &body).await
}

/// The rollout of the channel stable.
pub async fn rollout(client: &Client) -> RolloutInfo {
    client.read("/api/v1/rollouts/stable").await
}

/// Why a node may or may not go.
pub async fn explain(client: &Client, number: u32) -> NodeExplain {
    client.read(&format!("/api/v1/nodes/{}/explain", id(number))).await
}

/// A server with these releases.
pub async fn published(versions: &[&str]) -> (Server, Client, Operator) {
    let server = Server::start().await;
    let admin = server.admin();
    let mut operator = server.operator();
    operator.push_root(&admin).await;
    for version in versions {
        operator.release(&admin, version).await;
    }
    (server, admin, operator)
}

/// A server with 1.0.0 that points stable at 1.1.0 by a policy.
pub async fn rolling(policy: &str) -> (Server, Client) {
    let (server, admin, _) = published(&["1.0.0", "1.1.0"]).await;
    set_policy(&admin, policy).await;
    let _: wire::ChannelInfo = done(admin.set_channel("stable", "1.1.0").await).await;
    server.advance(SignedDuration::from_secs(1));
    (server, admin)
}

/// Minutes pass, and the server looks at its rollouts.
pub async fn pass(server: &Server, minutes: i64) {
    server.advance(SignedDuration::from_mins(minutes));
    server.app.checkins().flush(server.app.store()).await.unwrap();
    update_server::rollouts::tick(&server.app).await.unwrap();
}
