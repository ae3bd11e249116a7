//! Step 3, metadata: the targets role, which says what is a release. It is changed here and nowhere else: the
//! server's current metadata is verified with the operator's own root, compared with what was seen last, changed,
//! signed, and sent back by compare-and-swap.

use super::{Client, OperatorError};
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::wire::{Published, ReleasePush, SCHEMA};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use trust::document::{TargetsChange, expiry, next_targets};
use trust::{Root, SigningKey, Targets, Verified, verify_root_chain, verify_targets_signatures};

/// How to sign.
#[derive(Clone, Debug, clap::Args)]
pub struct SignOptions {
    /// The targets key. May be given again where the root asks for more than one signature.
    #[arg(long, required = true, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// The root to verify the server's metadata with [default: root.json beside the key].
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// For how many days the signed metadata is valid.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..))]
    valid_days: u16,
    /// Sign without asking.
    #[arg(long)]
    pub(super) yes: bool,
}

/// The newest targets metadata that was seen of the server: `targets.seen.json` beside the key.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    schema: u32,
    version: u64,
    sha256: Sha256,
}

/// The operator's keys folder, as far as targets metadata needs it.
#[derive(Debug)]
pub(super) struct Signer {
    folder: PathBuf,
    root: Verified<Root>,
    keys: Vec<SigningKey>,
    lifetime: SignedDuration,
}

/// What the server names, read without belief: only to find the file whose signature counts.
#[derive(Deserialize)]
struct Peek {
    signed: PeekSigned,
}

#[derive(Deserialize)]
struct PeekSigned {
    meta: std::collections::BTreeMap<String, PeekPin>,
}

#[derive(Deserialize)]
struct PeekPin {
    version: u64,
}

/// The version that a document of the server gives for a file.
fn peek(client: &Client, what: &str, bytes: &[u8], file: &str) -> Result<u64, OperatorError> {
    let peek: Peek = serde_json::from_slice(bytes).map_err(|source| OperatorError::Answer {
        what: what.to_owned(),
        server: client.server().to_owned(),
        source,
    })?;
    peek.signed
        .meta
        .get(file)
        .map(|pin| pin.version)
        .ok_or_else(|| OperatorError::Refused(format!("the server's {what} names no {file}: expected it to")))
}

/// The newest targets metadata that the server names, with its version, unverified.
pub(super) async fn fetch(client: &Client) -> Result<Option<(u64, Vec<u8>)>, OperatorError> {
    let Some(timestamp) = client.metadata("timestamp.json").await? else { return Ok(None) };
    let lacks = |name: &str| {
        OperatorError::Refused(format!(
            "the server names {name} and does not have it: expected a whole repository"
        ))
    };
    let name = format!("{}.snapshot.json", peek(client, "timestamp.json", &timestamp, "snapshot.json")?);
    let snapshot = client.metadata(&name).await?.ok_or_else(|| lacks(&name))?;
    let version = peek(client, &name, &snapshot, "targets.json")?;
    let name = format!("{version}.targets.json");
    Ok(Some((version, client.metadata(&name).await?.ok_or_else(|| lacks(&name))?)))
}

impl Signer {
    /// Reads the keys and the root beside them.
    pub(super) fn open(options: &SignOptions) -> Result<Self, OperatorError> {
        let first = options.key.first().map_or(Path::new(""), PathBuf::as_path);
        let folder = match first.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let path = options.root.clone().unwrap_or_else(|| folder.join("root.json"));
        let bytes = std::fs::read(&path).map_err(OperatorError::file(&path))?;
        let what = path.display().to_string();
        let root = verify_root_chain(&[bytes]).map_err(|source| OperatorError::Untrusted { what, source })?;
        let mut keys = Vec::new();
        for path in &options.key {
            let key =
                SigningKey::load(path).map_err(|source| OperatorError::Key { path: path.clone(), source })?;
            if !root.key_ids("targets").iter().any(|id| id == key.id()) {
                return Err(OperatorError::Wrong(format!(
                    "the key {} may not sign releases: expected one of {}, which the root of version {} names, found {}",
                    path.display(),
                    root.key_ids("targets").join(", "),
                    root.version(),
                    key.id()
                )));
            }
            keys.push(key);
        }
        if keys.len() < root.threshold("targets") {
            return Err(OperatorError::Wrong(format!(
                "the root asks for {} signatures of releases: expected as many --key, found {}",
                root.threshold("targets"),
                keys.len()
            )));
        }
        let lifetime = SignedDuration::from_hours(24 * i64::from(options.valid_days));
        Ok(Self { folder, root, keys, lifetime })
    }

    fn seen_path(&self) -> PathBuf {
        self.folder.join("targets.seen.json")
    }

    fn seen(&self) -> Result<Option<Seen>, OperatorError> {
        let path = self.seen_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OperatorError::File { path, source }),
        };
        let seen: Seen = serde_json::from_slice(&bytes).map_err(|error| {
            // Never taken as "nothing was seen": that would let the server go back.
            OperatorError::Wrong(format!(
                "{} is damaged: expected the version and digest of the targets metadata seen last ({error}); \
                 remove it only if you are sure that the server is honest",
                path.display()
            ))
        })?;
        Ok(Some(seen))
    }

    /// The server's current targets metadata: signed as our own root asks, and not older than what was seen. It may
    /// have expired, for what is made of it will not have.
    pub(super) async fn current(&self, client: &Client) -> Result<Verified<Targets>, OperatorError> {
        let (version, bytes) = fetch(client).await?.ok_or_else(|| {
            OperatorError::Wrong(
                "the server has no metadata yet: expected updatectl root push to come first".to_owned(),
            )
        })?;
        let what = format!("the server's targets metadata, version {version},");
        let targets = verify_targets_signatures(&bytes, &self.root)
            .map_err(|source| OperatorError::Untrusted { what, source })?;
        let path = self.seen_path();
        if let Some(seen) = self.seen()? {
            let digest = Sha256::of(targets.bytes());
            if targets.version() < seen.version {
                return Err(OperatorError::Refused(format!(
                    "the server shows targets metadata of version {}: expected at least {}, which was seen before; \
                     it serves old metadata or was restored from an old backup; nothing was signed. If you know \
                     why, remove {}",
                    targets.version(),
                    seen.version,
                    path.display()
                )));
            }
            if targets.version() == seen.version && digest != seen.sha256 {
                return Err(OperatorError::Refused(format!(
                    "the server shows other targets metadata of version {} than was seen before: expected the \
                     sha256 {}, found {digest}; someone else holds a targets key; nothing was signed",
                    seen.version, seen.sha256
                )));
            }
        }
        self.remember(&targets, false)?;
        Ok(targets)
    }

    /// Records what was seen; with `ours`, also keeps it as the folder's targets.json, which `keys rotate` signs anew.
    fn remember(&self, targets: &Targets, ours: bool) -> Result<(), OperatorError> {
        let seen = Seen { schema: 1, version: targets.version(), sha256: Sha256::of(targets.bytes()) };
        let bytes = serde_json::to_vec(&seen).map_err(OperatorError::Output)?;
        let path = self.seen_path();
        disk::durable::write(&path, &bytes).map_err(OperatorError::file(&path))?;
        if ours {
            let path = self.folder.join("targets.json");
            disk::durable::write(&path, targets.bytes()).map_err(OperatorError::file(&path))?;
        }
        Ok(())
    }

    /// Signs the successor of `current` with `changes` and sends it with the manifests that it adds.
    pub(super) async fn push(
        &self,
        client: &Client,
        current: &Verified<Targets>,
        changes: &[TargetsChange],
        manifests: Vec<String>,
    ) -> Result<Published, OperatorError> {
        let keys: Vec<&SigningKey> = self.keys.iter().collect();
        let next = next_targets(current, changes, expiry(Timestamp::now(), self.lifetime), &keys)?;
        let what = "the targets metadata just signed".to_owned();
        let next = verify_targets_signatures(&next, &self.root)
            .map_err(|source| OperatorError::Untrusted { what, source })?;
        let push = ReleasePush {
            schema: SCHEMA,
            replaces: current.version(),
            targets: String::from_utf8_lossy(next.bytes()).into_owned(),
            manifests,
        };
        let published: Published = client.change(Method::POST, "api/v1/releases", &push).await?;
        self.remember(&next, true)?;
        Ok(published)
    }
}
