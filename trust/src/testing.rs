//! For tests: a whole TUF repository in memory, with the keys to make every kind of wrong one.
//!
//! Keys are made from fixed seeds and the time stands still unless a test moves it, so every run sees the same bytes.

use crate::Repository;
use crate::document::{self, Lifetimes, RoleKeys, RootContent, TargetsChange, expiry};
use crate::key::{OnlineKeys, SigningKey};
use crate::publish::{self, Current};
use crate::verify::{Root, Targets, Verified, verify_root_chain, verify_targets_signatures};
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::id::{Arch, Channel, PartitionRole};
use protocol::manifest::{ChannelFile, Manifest, PartitionImage, PayloadFile, SCHEMA, TargetCustom};
use protocol::version::Version;
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// 2026-11-23T12:00:00Z: when every fixture begins.
pub const START: i64 = 1_795_435_200;

/// Files by the name that a client asks for; targets under `targets/`.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What the in-memory server has and does.
#[derive(Debug, Default)]
struct Served {
    files: Files,
    asked: Vec<String>,
    down: bool,
}

/// A [`Repository`] over files in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryRepository {
    served: Arc<Mutex<Served>>,
}

type FetchFuture<'a> = Pin<Box<dyn Future<Output = sigstore_tuf::Result<Option<Vec<u8>>>> + Send + 'a>>;

impl MemoryRepository {
    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, name: &str, limit: u64) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        let mut served = self.served();
        served.asked.push(name.to_owned());
        if served.down {
            return Err(sigstore_tuf::Error::transport("connection refused"));
        }
        match served.files.get(name) {
            Some(bytes) if bytes.len() as u64 > limit => Err(crate::oversize(name, limit)),
            found => Ok(found.cloned()),
        }
    }
}

impl Repository for MemoryRepository {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.fetch(name, max_length) })
    }

    fn fetch_target<'a>(&'a self, path: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(async move { self.fetch(&format!("targets/{path}"), max_length) })
    }
}

/// An operator, a server and its files, in one.
#[derive(Debug)]
pub struct Fixture {
    /// The time at which documents are signed.
    pub now: Timestamp,
    /// For how long they are valid.
    pub lifetimes: Lifetimes,
    /// The root keys in use.
    pub root_keys: Vec<SigningKey>,
    /// How many of them sign.
    pub threshold: usize,
    /// The targets key in use.
    pub targets_key: SigningKey,
    /// The server's keys in use.
    pub online: OnlineKeys,
    repository: MemoryRepository,
    chain: Vec<Vec<u8>>,
    targets: Vec<u8>,
    channels: BTreeMap<Channel, Vec<u8>>,
    current: Current,
}

/// Tests stop at the first thing that does not work.
fn must<T, E: std::fmt::Debug>(result: Result<T, E>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the fixture cannot {what}: {error:?}"),
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new(1, 1)
    }
}

impl Fixture {
    /// A repository with `root_keys` root keys of which `threshold` must sign, no release, and everything published.
    #[must_use]
    pub fn new(root_keys: u8, threshold: usize) -> Self {
        let mut fixture = Self {
            now: must(Timestamp::from_second(START), "start"),
            lifetimes: Lifetimes::default(),
            root_keys: (0..root_keys).map(|n| SigningKey::from_seed(n + 1)).collect(),
            threshold,
            targets_key: SigningKey::from_seed(100),
            online: OnlineKeys {
                snapshot: SigningKey::from_seed(101),
                timestamp: SigningKey::from_seed(102),
                channels: SigningKey::from_seed(103),
            },
            repository: MemoryRepository::default(),
            chain: Vec::new(),
            targets: Vec::new(),
            channels: BTreeMap::new(),
            current: Current::default(),
        };
        let signers: Vec<_> = fixture.root_keys.iter().take(threshold).cloned().collect();
        fixture.push_root(&signers);
        let channels = RoleKeys::one(fixture.online.channels.public().clone());
        let expires = expiry(fixture.now, fixture.lifetimes.targets);
        fixture.targets =
            must(document::first_targets(&channels, expires, &[&fixture.targets_key]), "sign targets");
        fixture.publish();
        fixture
    }

    /// The first root: what a node has built in.
    #[must_use]
    pub fn anchor(&self) -> &[u8] {
        &self.chain[0]
    }

    /// The newest root.
    #[must_use]
    pub fn root(&self) -> Verified<Root> {
        must(verify_root_chain(&self.chain), "check its roots")
    }

    /// Every root, oldest first.
    #[must_use]
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The newest targets metadata.
    #[must_use]
    pub fn targets(&self) -> Verified<Targets> {
        must(verify_targets_signatures(&self.targets, &self.root()), "check its targets")
    }

    /// The transport to hand to a client.
    #[must_use]
    pub fn repository(&self) -> Arc<dyn Repository> {
        Arc::new(self.repository.clone())
    }

    /// Everything served now: keep it to replay it later.
    #[must_use]
    pub fn files(&self) -> Files {
        self.repository.served().files.clone()
    }

    /// Serves exactly these files.
    pub fn serve(&self, files: Files) {
        self.repository.served().files = files;
    }

    /// Serves other bytes under a name.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.repository.served().files.insert(name.to_owned(), bytes);
    }

    /// What is served under a name; empty where nothing is.
    #[must_use]
    pub fn get(&self, name: &str) -> Vec<u8> {
        self.repository.served().files.get(name).cloned().unwrap_or_default()
    }

    /// Stops serving a name.
    pub fn remove(&self, name: &str) {
        self.repository.served().files.remove(name);
    }

    /// Makes the server unreachable, or reachable again.
    pub fn set_down(&self, down: bool) {
        self.repository.served().down = down;
    }

    /// The names asked for since the last call.
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.repository.served().asked)
    }

    /// Lets time pass for the signers.
    pub fn pass(&mut self, time: SignedDuration) {
        self.now = must(self.now.checked_add(time), "let time pass");
    }

    fn push_root(&mut self, signers: &[SigningKey]) {
        let content = RootContent {
            version: self.chain.len() as u64 + 1,
            expires: expiry(self.now, self.lifetimes.root),
            root: RoleKeys {
                keys: self.root_keys.iter().map(|key| key.public().clone()).collect(),
                threshold: self.threshold,
            },
            targets: RoleKeys::one(self.targets_key.public().clone()),
            snapshot: RoleKeys::one(self.online.snapshot.public().clone()),
            timestamp: RoleKeys::one(self.online.timestamp.public().clone()),
        };
        let bytes = must(document::root(&content, &signers.iter().collect::<Vec<_>>()), "sign root");
        self.put(&format!("{}.root.json", content.version), bytes.clone());
        self.chain.push(bytes);
    }

    /// Changes keys or the threshold, chains a new root signed by the old and the new root keys, signs targets anew
    /// where its key changed, and publishes.
    pub fn rotate(&mut self, change: impl FnOnce(&mut Self)) {
        let mut signers: Vec<_> = self.root_keys.clone();
        let targets = self.targets();
        change(self);
        signers.extend(
            self.root_keys
                .iter()
                .filter(|key| signers.iter().all(|s| s.id() != key.id()))
                .cloned()
                .collect::<Vec<_>>(),
        );
        self.push_root(&signers);
        let delegate =
            TargetsChange::Delegate { channels: RoleKeys::one(self.online.channels.public().clone()) };
        let expires = expiry(self.now, self.lifetimes.targets);
        self.targets = must(
            document::next_targets(&targets, &[delegate], expires, &[&self.targets_key]),
            "sign targets",
        );
        self.publish();
    }

    /// Signs and serves targets, channels, snapshot and timestamp. Also renews them.
    pub fn publish(&mut self) {
        let targets = self.targets();
        let next = must(
            publish::next(self.current, &targets, &self.channels, &self.online, &self.lifetimes, self.now),
            "publish",
        );
        self.current = Current {
            channels: next.channels.version,
            snapshot: next.snapshot.version,
            timestamp: next.timestamp.version,
        };
        self.put(&format!("{}.targets.json", targets.version()), self.targets.clone());
        self.put(&format!("{}.channels.json", next.channels.version), next.channels.bytes);
        self.put(&format!("{}.snapshot.json", next.snapshot.version), next.snapshot.bytes);
        self.put("timestamp.json", next.timestamp.bytes);
    }

    /// The versions of the server's own roles.
    #[must_use]
    pub const fn current(&self) -> Current {
        self.current
    }

    fn change_targets(&mut self, change: TargetsChange) {
        let expires = expiry(self.now, self.lifetimes.targets);
        self.targets = must(
            document::next_targets(&self.targets(), &[change], expires, &[&self.targets_key]),
            "sign targets",
        );
        self.publish();
    }

    fn put_target(&self, path: &str, bytes: &[u8]) {
        let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
        self.put(&format!("targets/{folder}/{}.{name}", Sha256::of(bytes)), bytes.to_vec());
    }

    /// Releases a manifest and publishes.
    pub fn release(&mut self, manifest: &Manifest) {
        self.release_as(
            &Manifest::target_path(&manifest.version, &manifest.arch),
            manifest,
            TargetCustom::default(),
        );
    }

    /// Releases a manifest under any path, with anything beside it, and publishes.
    pub fn release_as(&mut self, path: &str, manifest: &Manifest, custom: TargetCustom) {
        let bytes = must(serde_json::to_vec(manifest), "write a manifest");
        self.release_bytes(path, bytes, custom);
    }

    /// Releases any bytes, and publishes.
    pub fn release_bytes(&mut self, path: &str, bytes: Vec<u8>, custom: TargetCustom) {
        self.put_target(path, &bytes);
        self.change_targets(TargetsChange::Add { path: path.to_owned(), bytes, custom });
    }

    /// Withdraws a release and publishes. Its file stays where it was.
    pub fn withdraw(&mut self, version: &Version, arch: &Arch) {
        self.change_targets(TargetsChange::Remove { path: Manifest::target_path(version, arch) });
    }

    /// Renews targets metadata and publishes.
    pub fn renew_targets(&mut self) {
        let expires = expiry(self.now, self.lifetimes.targets);
        self.targets =
            must(document::next_targets(&self.targets(), &[], expires, &[&self.targets_key]), "sign targets");
        self.publish();
    }

    /// Makes a channel hold these versions, and publishes.
    pub fn channel(&mut self, name: &str, versions: &[&str]) {
        let channel: Channel = must(name.parse(), "name a channel");
        let versions = versions.iter().map(|text| must(text.parse(), "name a version")).collect();
        let file = ChannelFile { schema: SCHEMA, channel: channel.clone(), versions };
        let bytes = must(publish::channel_file(&file), "write a channel file");
        self.channel_bytes(name, bytes);
    }

    /// Makes a channel's file hold any bytes, and publishes.
    pub fn channel_bytes(&mut self, name: &str, bytes: Vec<u8>) {
        let channel: Channel = must(name.parse(), "name a channel");
        self.put_target(&ChannelFile::target_path(&channel), &bytes);
        self.channels.insert(channel, bytes);
        self.publish();
    }

    /// Changes what a served metadata file says and signs it with these keys: one signature for each key given.
    pub fn forge(&self, name: &str, signers: &[&SigningKey], change: impl FnOnce(&mut Value)) {
        let mut file: Value = must(serde_json::from_slice(&self.get(name)), "read a file to forge");
        change(&mut file["signed"]);
        self.put(name, must(document::sign("forged", &file["signed"], signers), "forge"));
    }
}

/// A small manifest that is in order.
#[must_use]
pub fn manifest(version: &str, arch: &str) -> Manifest {
    let sha256 = |text: &str| Sha256::of(format!("{text} of {version} for {arch}").as_bytes());
    Manifest {
        schema: SCHEMA,
        os: "test".to_owned(),
        version: must(version.parse(), "name a version"),
        arch: must(arch.parse(), "name an architecture"),
        partitions: vec![PartitionImage {
            role: PartitionRole::root(),
            size: 1 << 20,
            sha256: sha256("root"),
        }],
        payloads: vec![PayloadFile {
            size: 1 << 19,
            sha256: sha256("payload"),
            head_size: 4096,
            head_sha256: sha256("head"),
            source_sha256: None,
        }],
        min_source_version: None,
        notes: String::new(),
    }
}
