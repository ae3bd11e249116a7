//! Step 3, metadata: builds and signs TUF metadata. Pure: keys, versions and times are passed in, and the same input
//! gives the same bytes.
//!
//! Each role is signed alone, so that an operator's machine touches root and targets only and a server touches
//! channels, snapshot and timestamp only. Signatures cover the canonical form that `sigstore-tuf` checks.

use crate::key::{PublicKey, SigningKey};
use crate::verify::{CHANNELS, Root, Targets, Verified};
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::manifest::TargetCustom;
use serde_json::{Map, Value, json};

/// The version of the TUF specification that our documents follow.
const SPEC_VERSION: &str = "1.0.34";
/// The target paths that are delegated to the channels role.
pub const CHANNEL_PATHS: &str = "channels/*";

/// For how long each role's metadata is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of root metadata.
    pub root: SignedDuration,
    /// Of targets metadata: renewed by the operator.
    pub targets: SignedDuration,
    /// Of channels metadata.
    pub channels: SignedDuration,
    /// Of snapshot metadata.
    pub snapshot: SignedDuration,
    /// Of timestamp metadata: for how long an attacker can hold updates back unnoticed.
    pub timestamp: SignedDuration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let days = |n: i64| SignedDuration::from_hours(24 * n);
        Self { root: days(365), targets: days(90), channels: days(7), snapshot: days(7), timestamp: days(1) }
    }
}

/// The time of expiry, in whole seconds as TUF asks.
#[must_use]
pub fn expiry(now: Timestamp, lifetime: SignedDuration) -> Timestamp {
    let end = now.saturating_add(lifetime).unwrap_or(Timestamp::MAX);
    Timestamp::from_second(end.as_second()).unwrap_or(end)
}

/// A document that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its content has no canonical form.
    #[error("{role} metadata cannot be signed: expected whole numbers and text only")]
    Canonical {
        /// Which role.
        role: &'static str,
        /// What the encoder found.
        #[source]
        source: sigstore_tuf::Error,
    },
    /// It cannot be written as JSON.
    #[error("{role} metadata cannot be written")]
    Json {
        /// Which role.
        role: &'static str,
        /// What the encoder found.
        #[source]
        source: serde_json::Error,
    },
    /// There is no version after this one.
    #[error("{role} metadata is at its last version {version}: expected one that can be raised")]
    LastVersion {
        /// Which role.
        role: &'static str,
        /// The version it is at.
        version: u64,
    },
    /// The threshold cannot be met.
    #[error(
        "the {role} role would have {keys} keys: expected at least its threshold, {threshold}, and a threshold of at least 1"
    )]
    Threshold {
        /// Which role.
        role: &'static str,
        /// Distinct keys given.
        keys: usize,
        /// The threshold asked for.
        threshold: usize,
    },
}

/// The keys of one role, and how many of them must sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleKeys {
    /// Who may sign.
    pub keys: Vec<PublicKey>,
    /// How many must.
    pub threshold: usize,
}

impl RoleKeys {
    /// A role with one key.
    #[must_use]
    pub fn one(key: PublicKey) -> Self {
        Self { keys: vec![key], threshold: 1 }
    }

    /// The keys of a role of a root.
    #[must_use]
    pub fn of_root(root: &Root, role: &str) -> Self {
        Self { keys: root.public_keys(role), threshold: root.threshold(role) }
    }

    fn to_json(&self) -> Value {
        json!({ "keyids": self.ids(), "threshold": self.threshold })
    }

    fn ids(&self) -> Vec<&str> {
        self.keys.iter().map(PublicKey::id).collect()
    }

    fn check(&self, role: &'static str) -> Result<(), BuildError> {
        let mut ids = self.ids();
        ids.sort_unstable();
        ids.dedup();
        if self.threshold == 0 || ids.len() < self.threshold {
            return Err(BuildError::Threshold { role, keys: ids.len(), threshold: self.threshold });
        }
        Ok(())
    }

    fn add_to(&self, keys: &mut Map<String, Value>) {
        for key in &self.keys {
            keys.insert(key.id().to_owned(), key.to_json());
        }
    }
}

/// Signs `signed` with every key and gives the file's bytes.
pub(crate) fn sign(
    role: &'static str,
    signed: &Value,
    signers: &[&SigningKey],
) -> Result<Vec<u8>, BuildError> {
    let canonical = sigstore_tuf::canonical_json::to_canonical_bytes(signed)
        .map_err(|source| BuildError::Canonical { role, source })?;
    let signatures: Vec<Value> =
        signers.iter().map(|key| json!({ "keyid": key.id(), "sig": key.sign_hex(&canonical) })).collect();
    let mut bytes = serde_json::to_vec_pretty(&json!({ "signatures": signatures, "signed": signed }))
        .map_err(|source| BuildError::Json { role, source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn head(role: &str, version: u64, expires: Timestamp) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("_type".to_owned(), role.into());
    map.insert("spec_version".to_owned(), SPEC_VERSION.into());
    map.insert("version".to_owned(), version.into());
    map.insert("expires".to_owned(), expiry(expires, SignedDuration::ZERO).to_string().into());
    map
}

/// The version after `version`.
///
/// # Errors
/// [`BuildError::LastVersion`].
pub fn next_version(role: &'static str, version: u64) -> Result<u64, BuildError> {
    version.checked_add(1).ok_or(BuildError::LastVersion { role, version })
}

/// What a root says.
#[derive(Clone, Debug)]
pub struct RootContent {
    /// Its version.
    pub version: u64,
    /// When it expires.
    pub expires: Timestamp,
    /// Who may make the next root.
    pub root: RoleKeys,
    /// Who may release.
    pub targets: RoleKeys,
    /// The server's key for snapshot.
    pub snapshot: RoleKeys,
    /// The server's key for timestamp.
    pub timestamp: RoleKeys,
}

/// Root metadata. The signers of version n + 1 must meet both the old and the new threshold.
///
/// # Errors
/// [`BuildError`].
pub fn root(content: &RootContent, signers: &[&SigningKey]) -> Result<Vec<u8>, BuildError> {
    let mut keys = Map::new();
    let mut roles = Map::new();
    for (role, with) in [
        ("root", &content.root),
        ("targets", &content.targets),
        ("snapshot", &content.snapshot),
        ("timestamp", &content.timestamp),
    ] {
        with.check(role)?;
        with.add_to(&mut keys);
        roles.insert(role.to_owned(), with.to_json());
    }
    let mut signed = head("root", content.version, content.expires);
    signed.insert("consistent_snapshot".to_owned(), true.into());
    signed.insert("keys".to_owned(), keys.into());
    signed.insert("roles".to_owned(), roles.into());
    sign("root", &signed.into(), signers)
}

fn delegations(channels: &RoleKeys) -> Result<Value, BuildError> {
    channels.check(CHANNELS)?;
    let mut keys = Map::new();
    channels.add_to(&mut keys);
    Ok(json!({
        "keys": keys,
        "roles": [{
            "name": CHANNELS,
            "keyids": channels.ids(),
            "threshold": channels.threshold,
            "terminating": true,
            "paths": [CHANNEL_PATHS],
        }],
    }))
}

/// The first targets metadata: no releases, and `channels/*` delegated.
///
/// # Errors
/// [`BuildError`].
pub fn first_targets(
    channels: &RoleKeys,
    expires: Timestamp,
    signers: &[&SigningKey],
) -> Result<Vec<u8>, BuildError> {
    let mut signed = head("targets", 1, expires);
    signed.insert("targets".to_owned(), json!({}));
    signed.insert("delegations".to_owned(), delegations(channels)?);
    sign("targets", &signed.into(), signers)
}

/// A change of targets metadata.
#[derive(Clone, Debug)]
pub enum TargetsChange {
    /// A file is released, or replaced.
    Add {
        /// Its target path.
        path: String,
        /// Its bytes.
        bytes: Vec<u8>,
        /// What the role says beside it.
        custom: TargetCustom,
    },
    /// What is said of a file as a dead end, and nothing else of it.
    DeadEnd {
        /// Its target path; a file that is not listed is left out.
        path: String,
        /// Why it is one; none where it is none.
        why: Option<String>,
    },
    /// A file is withdrawn.
    Remove {
        /// Its target path.
        path: String,
    },
    /// Another key signs the channels role.
    Delegate {
        /// The new keys.
        channels: RoleKeys,
    },
}

fn target_file(bytes: &[u8], custom: &TargetCustom) -> Result<Value, BuildError> {
    let mut file = json!({
        "length": bytes.len(),
        "hashes": { "sha256": Sha256::of(bytes).to_string() },
    });
    if *custom != TargetCustom::default() {
        file["custom"] =
            serde_json::to_value(custom).map_err(|source| BuildError::Json { role: "targets", source })?;
    }
    Ok(file)
}

/// What else was said of a target that is added again stays: a mark that was set since, or by a newer program.
fn keep_unknown(file: &mut Value, before: &Value) {
    let Some(before) = before["custom"].as_object() else { return };
    let mut custom = file["custom"].as_object().cloned().unwrap_or_default();
    for (key, value) in before {
        // The leave to go back is given anew with each addition, or not.
        if key != "allow_downgrade_from" && !custom.contains_key(key) {
            custom.insert(key.clone(), value.clone());
        }
    }
    if !custom.is_empty() {
        file["custom"] = custom.into();
    }
}

fn set_dead_end(file: &mut Map<String, Value>, why: Option<&str>) {
    let custom = file.entry("custom").or_insert_with(|| json!({}));
    // What is no object says nothing that anybody believes.
    let mut said = custom.as_object().cloned().unwrap_or_default();
    match why {
        Some(why) => said.insert("dead_end".to_owned(), why.into()),
        None => said.remove("dead_end"),
    };
    if said.is_empty() {
        file.remove("custom");
    } else {
        *custom = said.into();
    }
}

/// The next targets metadata: the previous one with its version raised and the changes applied in order. Without
/// changes it renews. Fields that this code does not know are kept.
///
/// # Errors
/// [`BuildError`].
pub fn next_targets(
    previous: &Verified<Targets>,
    changes: &[TargetsChange],
    expires: Timestamp,
    signers: &[&SigningKey],
) -> Result<Vec<u8>, BuildError> {
    let mut file: Value = serde_json::from_slice(previous.bytes())
        .map_err(|source| BuildError::Json { role: "targets", source })?;
    let signed = &mut file["signed"];
    signed["version"] = next_version("targets", previous.version())?.into();
    signed["expires"] = expiry(expires, SignedDuration::ZERO).to_string().into();
    for change in changes {
        match change {
            TargetsChange::Add { path, bytes, custom } => {
                let mut file = target_file(bytes, custom)?;
                keep_unknown(&mut file, &signed["targets"][path]);
                signed["targets"][path] = file;
            }
            TargetsChange::DeadEnd { path, why } => {
                if let Some(file) = signed["targets"].get_mut(path).and_then(Value::as_object_mut) {
                    set_dead_end(file, why.as_deref());
                }
            }
            TargetsChange::Remove { path } => {
                if let Some(targets) = signed["targets"].as_object_mut() {
                    targets.remove(path);
                }
            }
            TargetsChange::Delegate { channels } => signed["delegations"] = delegations(channels)?,
        }
    }
    sign("targets", signed, signers)
}

/// Metadata of the delegated channels role, listing `files` (target path and bytes).
///
/// # Errors
/// [`BuildError`].
pub fn channels<'a>(
    version: u64,
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    expires: Timestamp,
    signers: &[&SigningKey],
) -> Result<Vec<u8>, BuildError> {
    let mut targets = Map::new();
    for (path, bytes) in files {
        targets.insert(path.to_owned(), target_file(bytes, &TargetCustom::default())?);
    }
    let mut signed = head("targets", version, expires);
    signed.insert("targets".to_owned(), targets.into());
    sign(CHANNELS, &signed.into(), signers)
}

fn pin(version: u64, bytes: &[u8]) -> Value {
    json!({
        "version": version,
        "length": bytes.len(),
        "hashes": { "sha256": Sha256::of(bytes).to_string() },
    })
}

/// Snapshot metadata, pinning `files` (name, version, bytes): `targets.json` and `channels.json`.
///
/// # Errors
/// [`BuildError`].
pub fn snapshot(
    version: u64,
    files: &[(&str, u64, &[u8])],
    expires: Timestamp,
    signers: &[&SigningKey],
) -> Result<Vec<u8>, BuildError> {
    let mut signed = head("snapshot", version, expires);
    let meta: Map<_, _> =
        files.iter().map(|(name, version, bytes)| ((*name).to_owned(), pin(*version, bytes))).collect();
    signed.insert("meta".to_owned(), meta.into());
    sign("snapshot", &signed.into(), signers)
}

/// Timestamp metadata, pinning the snapshot.
///
/// # Errors
/// [`BuildError`].
pub fn timestamp(
    version: u64,
    snapshot_version: u64,
    snapshot: &[u8],
    expires: Timestamp,
    signers: &[&SigningKey],
) -> Result<Vec<u8>, BuildError> {
    let mut signed = head("timestamp", version, expires);
    signed.insert("meta".to_owned(), json!({ "snapshot.json": pin(snapshot_version, snapshot) }));
    sign("timestamp", &signed.into(), signers)
}
