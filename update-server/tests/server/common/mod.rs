//! A server with a clock that tests own, and an operator with keys.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

pub mod database;
pub mod fleet;
pub mod listening;
pub mod payloads;
pub mod program;

use database::Database;
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::id::PartitionRole;
use protocol::manifest::{Manifest, PartitionImage, PayloadFile, SCHEMA, TargetCustom};
use protocol::wire::{self, ErrorBody, Published, ReleasePush, RootPush};
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tests::s3::S3;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use trust::document::{self, RoleKeys, RootContent, TargetsChange, expiry};
use trust::{
    OnlinePublicKeys, Root, SigningKey, Targets, Verified, verify_root_chain, verify_targets_signatures,
};
use update_server::data_dir::{self, DataDir};
use update_server::payloads::BucketPlace;
use update_server::server::{App, Clock};

/// The one architecture of most tests.
pub const ARCH: &str = "x86-64";

/// A server in this process.
pub struct Server {
    /// Its folder.
    pub dir: TempDir,
    /// Where its data is.
    pub database: Database,
    /// The bucket with its payloads, if they are not in its folder.
    pub bucket: Option<BucketPlace>,
    /// Its parts.
    pub app: App,
    /// Its address.
    pub url: String,
    time: Arc<Mutex<Timestamp>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    /// A new server.
    pub async fn start() -> Self {
        Self::start_at(Timestamp::from_second(1_900_000_000).unwrap()).await
    }

    /// A new server with its payloads in this bucket.
    pub async fn on(s3: &S3) -> Self {
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let bucket = BucketPlace::new(&s3.address(), s3.variables().into_iter()).unwrap();
        Self::make(Some(bucket), now).await
    }

    /// A new server whose clock stands at `now`.
    pub async fn start_at(now: Timestamp) -> Self {
        Self::make(None, now).await
    }

    async fn make(bucket: Option<BucketPlace>, now: Timestamp) -> Self {
        let (dir, database) = (TempDir::new().unwrap(), Database::new());
        data_dir::init(&dir.path().join("srv"), database.url().as_ref(), now).await.unwrap();
        Self::run(dir, database, bucket, Arc::new(Mutex::new(now))).await
    }

    async fn run(
        dir: TempDir,
        database: Database,
        bucket: Option<BucketPlace>,
        time: Arc<Mutex<Timestamp>>,
    ) -> Self {
        let data =
            DataDir::open(&dir.path().join("srv"), database.url().as_ref(), bucket.as_ref()).await.unwrap();
        let source = Arc::clone(&time);
        let clock: Clock = Arc::new(move || *source.lock().unwrap());
        let app = App::new(&data, clock).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = app.clone();
        let task = tokio::spawn(async move {
            serving.serve(listener, async { drop(stopped.await) }).await;
            drop(data);
        });
        Self { dir, database, bucket, app, url, time, stop, task }
    }

    /// Ends it in good order and starts it again on the same folder.
    pub async fn restart(self) -> Self {
        self.restart_after(|_, _| {}).await
    }

    /// Ends it in good order, lets `change` have its database and its folder, and starts it again.
    pub async fn restart_after(mut self, change: impl FnOnce(&mut Database, &Path)) -> Self {
        self.stop.send(()).unwrap();
        self.task.await.unwrap();
        change(&mut self.database, &self.dir.path().join("srv"));
        Self::run(self.dir, self.database, self.bucket, self.time).await
    }

    /// Everything that its database holds.
    pub fn database_bytes(&self) -> Vec<u8> {
        self.database.bytes(&self.dir.path().join("srv"))
    }

    /// The time by its clock.
    pub fn now(&self) -> Timestamp {
        *self.time.lock().unwrap()
    }

    /// Lets its clock jump ahead.
    pub fn advance(&self, by: SignedDuration) {
        let mut time = self.time.lock().unwrap();
        *time = time.saturating_add(by).unwrap();
    }

    /// The token that `init` made.
    pub fn admin(&self) -> Client {
        let token = std::fs::read_to_string(self.dir.path().join("srv/admin-token")).unwrap();
        self.client(token.trim())
    }

    /// A client with a token.
    pub fn client(&self, token: &str) -> Client {
        Client { http: reqwest::Client::new(), url: self.url.clone(), token: Some(token.to_owned()) }
    }

    /// A client without one.
    pub fn anybody(&self) -> Client {
        Client { http: reqwest::Client::new(), url: self.url.clone(), token: None }
    }

    /// Keys for this server.
    pub fn operator(&self) -> Operator {
        Operator::new(&self.dir.path().join("srv"), self.now())
    }
}

/// HTTP, and what an operator says over it.
#[derive(Clone)]
pub struct Client {
    /// The client.
    pub http: reqwest::Client,
    /// The server.
    pub url: String,
    /// The token.
    pub token: Option<String>,
}

impl Client {
    /// A request, with the token if there is one.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    /// `GET` of a document that is there.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = self.get(path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.json().await.unwrap()
    }

    /// Sends a document.
    pub async fn send<B: Serialize>(&self, method: Method, path: &str, body: &B) -> Response {
        self.request(method, path).json(body).send().await.unwrap()
    }

    /// Uploads a payload under the digest of its bytes.
    pub async fn upload(&self, bytes: &[u8]) -> Response {
        let path = format!("/api/v1/payloads/{}", Sha256::of(bytes));
        self.request(Method::PUT, &path).body(bytes.to_vec()).send().await.unwrap()
    }

    /// Points a channel at a version.
    pub async fn set_channel(&self, channel: &str, version: &str) -> Response {
        let version = version.parse().unwrap();
        let body = wire::ChannelSet { schema: wire::SCHEMA, version, leave_behind: true, to_dead_end: false };
        self.send(Method::PUT, &format!("/api/v1/channels/{channel}"), &body).await
    }

    /// What a node of `channel` that runs `version` is told.
    pub async fn check(&self, channel: &str, version: &str) -> wire::UpdateAnswer {
        let response = self.send(Method::POST, "/v1/update-check", &check(channel, version)).await;
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.unwrap()
    }
}

/// What a node says at a check.
pub fn check(channel: &str, version: &str) -> wire::UpdateCheck {
    wire::UpdateCheck {
        schema: wire::SCHEMA,
        node: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        channel: channel.parse().unwrap(),
        group: "default".parse().unwrap(),
        arch: ARCH.parse().unwrap(),
        version: version.parse().unwrap(),
        slot: protocol::slot::Slot::A,
        boot_id: "boot-1".parse().unwrap(),
        state: protocol::status::StateName::Idle,
        interactive: false,
        quarantine: None,
    }
}

/// The body of an error answer, after a look at its status.
pub async fn error(response: Response, status: StatusCode) -> ErrorBody {
    assert_eq!(response.status(), status);
    let body: ErrorBody = response.json().await.unwrap();
    assert!(!body.message.is_empty() && !body.message.contains('\n'), "one line: {body:?}");
    body
}

/// What came of a change that was made.
pub async fn done<T: DeserializeOwned>(response: Response) -> T {
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// An operator's keys, and what was signed last.
pub struct Operator {
    /// The root key.
    pub root_key: SigningKey,
    /// The targets key.
    pub targets_key: SigningKey,
    /// The server's public keys.
    pub online: OnlinePublicKeys,
    /// The newest root.
    pub root: Verified<Root>,
    /// The newest targets metadata.
    pub targets: Verified<Targets>,
    /// When everything is signed.
    pub now: Timestamp,
}

impl Operator {
    /// New keys for the server in `srv`.
    pub fn new(srv: &Path, now: Timestamp) -> Self {
        let online = OnlinePublicKeys::load(&srv.join("online-keys.pub.json")).unwrap();
        let (root_key, targets_key) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let root = root_with(&online, &root_key, &targets_key, 1, now);
        let root = verify_root_chain(&[document::root(&root, &[&root_key]).unwrap()]).unwrap();
        let channels = RoleKeys::one(online.channels.clone());
        let targets = document::first_targets(&channels, life(now), &[&targets_key]).unwrap();
        let targets = verify_targets_signatures(&targets, &root).unwrap();
        Self { root_key, targets_key, online, root, targets, now }
    }

    /// The push of root and targets metadata.
    pub fn root_push(&self) -> RootPush {
        RootPush {
            schema: wire::SCHEMA,
            roots: vec![text(self.root.bytes())],
            targets: Some(text(self.targets.bytes())),
        }
    }

    /// Pushes root and targets metadata.
    pub async fn push_root(&self, client: &Client) -> Published {
        done(client.send(Method::PUT, "/api/v1/root", &self.root_push()).await).await
    }

    /// The push that makes `changes`. What it signs is what the next push starts from.
    pub fn push(&mut self, changes: &[TargetsChange]) -> ReleasePush {
        let (push, targets) = self.sign(changes);
        self.targets = targets;
        push
    }

    /// As [`Self::push`], without moving on.
    pub fn sign(&self, changes: &[TargetsChange]) -> (ReleasePush, Verified<Targets>) {
        let bytes =
            document::next_targets(&self.targets, changes, life(self.now), &[&self.targets_key]).unwrap();
        let targets = verify_targets_signatures(&bytes, &self.root).unwrap();
        let manifests = changes.iter().filter_map(|change| match change {
            TargetsChange::Add { bytes, .. } => Some(text(bytes)),
            _ => None,
        });
        let push = ReleasePush {
            schema: wire::SCHEMA,
            replaces: self.targets.version(),
            targets: text(targets.bytes()),
            manifests: manifests.collect(),
        };
        (push, targets)
    }

    /// Marks a release as a dead end, or takes that back.
    pub async fn dead_end(&mut self, client: &Client, version: &str, why: Option<&str>) -> Response {
        let path = Manifest::target_path(&version.parse().unwrap(), &ARCH.parse().unwrap());
        let push = self.sign(&[TargetsChange::DeadEnd { path, why: why.map(str::to_owned) }]);
        let response = client.send(Method::POST, "/api/v1/releases", &push.0).await;
        if response.status() == StatusCode::OK {
            self.targets = push.1;
        }
        response
    }

    /// Uploads and pushes a release.
    pub async fn release(&mut self, client: &Client, version: &str) -> Release {
        let release = Release::new(version, None);
        assert_eq!(client.upload(&release.payload).await.status(), StatusCode::NO_CONTENT);
        let push = self.push(&[release.add()]);
        let _: Published = done(client.send(Method::POST, "/api/v1/releases", &push).await).await;
        release
    }
}

/// A root that names these keys.
pub fn root_with(
    online: &OnlinePublicKeys,
    root: &SigningKey,
    targets: &SigningKey,
    version: u64,
    now: Timestamp,
) -> RootContent {
    RootContent {
        version,
        expires: expiry(now, SignedDuration::from_hours(24 * 365)),
        root: RoleKeys::one(root.public().clone()),
        targets: RoleKeys::one(targets.public().clone()),
        snapshot: RoleKeys::one(online.snapshot.clone()),
        timestamp: RoleKeys::one(online.timestamp.clone()),
    }
}

fn life(now: Timestamp) -> Timestamp {
    expiry(now, SignedDuration::from_hours(24 * 90))
}

/// A file's text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A release whose payload the server does not look into.
#[derive(Clone)]
pub struct Release {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its manifest, byte for byte.
    pub bytes: Vec<u8>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Release {
    /// A release of its own content.
    pub fn new(version: &str, min_source: Option<&str>) -> Self {
        let payload = format!("the payload of {version}").repeat(100).into_bytes();
        let manifest = Manifest {
            schema: SCHEMA,
            os: "test".to_owned(),
            version: version.parse().unwrap(),
            arch: ARCH.parse().unwrap(),
            partitions: vec![PartitionImage {
                role: PartitionRole::root(),
                size: 4096,
                sha256: Sha256::of(version.as_bytes()),
            }],
            payloads: vec![PayloadFile {
                size: payload.len() as u64,
                sha256: Sha256::of(&payload),
                head_size: 64,
                head_sha256: Sha256::of(&payload[..64]),
                source_sha256: None,
            }],
            min_source_version: min_source.map(|v| v.parse().unwrap()),
            notes: String::new(),
        };
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
        Self { manifest, bytes, payload }
    }

    /// Its target path.
    pub fn path(&self) -> String {
        Manifest::target_path(&self.manifest.version, &self.manifest.arch)
    }

    /// The change of targets metadata that adds it.
    pub fn add(&self) -> TargetsChange {
        TargetsChange::Add { path: self.path(), bytes: self.bytes.clone(), custom: TargetCustom::default() }
    }
}

/// The server's files as a node's TUF client asks for them.
pub struct Http(pub Client);

type Fetch<'a> = Pin<Box<dyn Future<Output = sigstore_tuf::Result<Option<Vec<u8>>>> + Send + 'a>>;

impl Http {
    async fn fetch(&self, path: String) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        let response = self.0.get(&path).await;
        match response.status() {
            StatusCode::OK => Ok(Some(response.bytes().await.unwrap().to_vec())),
            StatusCode::NOT_FOUND => Ok(None),
            status => panic!("{path}: {status}"),
        }
    }
}

impl trust::Repository for Http {
    fn fetch_metadata<'a>(&'a self, name: &'a str, _max_length: u64) -> Fetch<'a> {
        Box::pin(self.fetch(format!("/v1/metadata/{name}")))
    }

    fn fetch_target<'a>(&'a self, path: &'a str, _max_length: u64) -> Fetch<'a> {
        Box::pin(self.fetch(format!("/v1/targets/{path}")))
    }
}

/// What a node of `channel` that trusts `root` finds when it refreshes at `now`: the channel's versions.
pub async fn node_sees(
    client: &Client,
    root: &Root,
    channel: &str,
    now: Timestamp,
) -> Result<Vec<String>, trust::TrustError> {
    let dir = TempDir::new().unwrap();
    let anchor = dir.path().join("root.json");
    std::fs::write(&anchor, root.bytes()).unwrap();
    let mut trust = trust::Trust::open(&dir.path().join("trust"), &anchor)?;
    trust.refresh(Arc::new(Http(client.clone())), now).await?;
    let file = trust.channel(&channel.parse().unwrap()).await?;
    for version in &file.versions {
        trust.manifest(version, &ARCH.parse().unwrap()).await?;
    }
    Ok(file.versions.iter().map(ToString::to_string).collect())
}
