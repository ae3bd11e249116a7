//! A node and its server, for the tests of this crate.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test binary uses its own part of it"
)]

use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use tempfile::TempDir;
use trust::testing::{Fixture, START, manifest};
use trust::{Authorized, ErrorKind, NodeFacts, Refreshed, Refusal, Trust, TrustError};

/// A node: a state folder, an anchor and a clock.
pub struct Node {
    pub folder: TempDir,
    pub clock: Timestamp,
    pub facts: NodeFacts,
}

/// Why an offer came to nothing.
#[derive(Debug)]
pub enum No {
    Trust(TrustError),
    Refused(Refusal),
}

impl No {
    pub fn trust(self) -> TrustError {
        match self {
            Self::Trust(error) => error,
            Self::Refused(refusal) => panic!("refused by policy: {refusal}"),
        }
    }

    pub fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Trust(error) => panic!("refused by metadata: {error}"),
        }
    }
}

impl Node {
    /// A node on channel `alpha`, x86-64, running and having confirmed 1.0.0.
    pub fn new(anchor: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.json"), anchor).unwrap();
        let version = "1.0.0".parse::<protocol::version::Version>().unwrap();
        Self {
            folder,
            clock: Timestamp::from_second(START).unwrap(),
            facts: NodeFacts {
                channel: "alpha".parse().unwrap(),
                arch: "x86-64".parse().unwrap(),
                running: version.clone(),
                newest_confirmed: Some(version),
            },
        }
    }

    pub fn anchor(&self) -> PathBuf {
        self.folder.path().join("root.json")
    }

    pub fn metadata(&self) -> PathBuf {
        self.folder.path().join("trust")
    }

    pub fn pass(&mut self, time: SignedDuration) {
        self.clock += time;
    }

    /// Opens trust anew, as after a restart.
    pub fn open(&self) -> Result<Trust, TrustError> {
        Trust::open(&self.metadata(), &self.anchor())
    }

    pub async fn refresh(&self, fixture: &Fixture) -> Result<Refreshed, TrustError> {
        self.open()?.refresh(fixture.repository(), self.clock).await
    }

    /// All that stands between an offer of `version` and its installation.
    pub async fn offered(&self, fixture: &Fixture, version: &str) -> Result<Authorized, No> {
        let mut trust = self.open().map_err(No::Trust)?;
        trust.refresh(fixture.repository(), self.clock).await.map_err(No::Trust)?;
        let channel = trust.channel(&self.facts.channel).await.map_err(No::Trust)?;
        let version = version.parse().unwrap();
        let manifest = trust.manifest(&version, &self.facts.arch).await.map_err(No::Trust)?;
        trust::authorize(manifest, &channel, &self.facts).map_err(No::Refused)
    }
}

/// A repository whose channel alpha holds 1.1.0, and a node that accepts it.
pub fn ready() -> (Fixture, Node) {
    let mut fixture = Fixture::default();
    fixture.release(&manifest("1.1.0", "x86-64"));
    fixture.channel("alpha", &["1.1.0"]);
    let node = Node::new(fixture.anchor());
    (fixture, node)
}

pub const fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

/// A refusal of metadata: what the engine ends with exit code 5.
pub fn refused<T: std::fmt::Debug>(result: Result<T, TrustError>) -> TrustError {
    let error = result.expect_err("this must be refused");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    error
}

/// Makes snapshot and timestamp name the files as they are served now, signed by their right keys.
pub fn repin(fixture: &Fixture, changed: &str) {
    let pin = |bytes: &[u8]| {
        serde_json::json!({ "version": version(bytes), "length": bytes.len(),
                "hashes": { "sha256": protocol::digest::Sha256::of(bytes).to_string() } })
    };
    let snapshot = format!("{}.snapshot.json", fixture.current().snapshot);
    if !changed.contains("snapshot") && !changed.contains("timestamp") {
        let role = changed.split_once('.').unwrap().1;
        let bytes = fixture.get(changed);
        fixture.forge(&snapshot, &[&fixture.online.snapshot], |signed| signed["meta"][role] = pin(&bytes));
    }
    if !changed.contains("timestamp") {
        let bytes = fixture.get(&snapshot);
        fixture.forge("timestamp.json", &[&fixture.online.timestamp], |signed| {
            signed["meta"]["snapshot.json"] = pin(&bytes);
        });
    }
}

fn version(bytes: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(bytes).unwrap()["signed"]["version"].as_u64().unwrap()
}
