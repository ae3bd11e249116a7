//! Steps 3 and 5, metadata: the evidence [`Verified`], and roots and targets that someone hands in.
//!
//! A node follows the whole TUF workflow ([`crate::client`]). A server and an operator's machine, which *receive*
//! root and targets metadata, check just those with the functions here, over the same library.

use crate::TrustError;
use crate::key::PublicKey;
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::Arch;
use protocol::manifest::TargetCustom;
use protocol::version::Version;
use sigstore_tuf::metadata::Role;
use sigstore_tuf::{Metadata, RoleKeys, TargetFile, TrustedMetadataSet};
use std::collections::BTreeMap;
use std::ops::Deref;

/// The name of the delegated role that signs channel files.
pub const CHANNELS: &str = "channels";

/// Something that signed metadata vouches for. Only this crate makes one, after checking the signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// The only constructor; every caller stands right behind a check.
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }

    /// Gives the value up; the evidence is gone with it.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A root: who may sign what.
#[derive(Clone, Debug)]
pub struct Root {
    pub(crate) signed: sigstore_tuf::Root,
    bytes: Vec<u8>,
}

/// The version that a metadata file claims, before anything in it is believed: for finding out where it belongs.
///
/// # Errors
/// Where it is no metadata.
pub fn claimed_version(bytes: &[u8]) -> Result<u64, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Claim {
        signed: Signed,
    }
    #[derive(serde::Deserialize)]
    struct Signed {
        version: u64,
    }
    serde_json::from_slice::<Claim>(bytes).map(|claim| claim.signed.version)
}

impl Root {
    /// Its version.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.signed.version
    }

    /// When it expires.
    #[must_use]
    pub const fn expires(&self) -> Timestamp {
        self.signed.expires
    }

    /// The file, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The ids of the keys that may sign for a role (`root`, `targets`, `snapshot`, `timestamp`).
    #[must_use]
    pub fn key_ids(&self, role: &str) -> &[String] {
        self.signed.role(role).map_or(&[], |keys| &keys.keyids)
    }

    /// How many of them must sign.
    #[must_use]
    pub fn threshold(&self, role: &str) -> usize {
        self.signed.role(role).map_or(0, |keys| keys.threshold)
    }

    /// The public keys of a role.
    #[must_use]
    pub fn public_keys(&self, role: &str) -> Vec<PublicKey> {
        self.key_ids(role).iter().filter_map(|id| self.signed.keys.get(id)).map(PublicKey::from).collect()
    }
}

/// Targets metadata, of the top-level role or a delegated one: which files exist.
#[derive(Clone, Debug)]
pub struct Targets {
    pub(crate) signed: sigstore_tuf::Targets,
    bytes: Vec<u8>,
}

/// What targets metadata says about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, where the metadata gives one (ours always does).
    pub sha256: Option<Sha256>,
    /// What the role says beside it.
    pub custom: TargetCustom,
}

impl Listed {
    pub(crate) fn of(target: &TargetFile) -> Self {
        Self {
            size: target.length,
            sha256: target.hashes.get("sha256").and_then(|hex| hex.parse().ok()),
            custom: custom(target),
        }
    }
}

/// A `custom` that is not ours authorises nothing.
pub(crate) fn custom(target: &TargetFile) -> TargetCustom {
    target.custom.clone().and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default()
}

impl Targets {
    /// Its version.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.signed.version
    }

    /// When it expires.
    #[must_use]
    pub const fn expires(&self) -> Timestamp {
        self.signed.expires
    }

    /// The file, byte for byte.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says about the file at `path`.
    #[must_use]
    pub fn target(&self, path: &str) -> Option<Listed> {
        self.signed.targets.get(path).map(Listed::of)
    }

    /// All the files it lists, by path.
    pub fn targets(&self) -> impl Iterator<Item = (&str, Listed)> {
        self.signed.targets.iter().map(|(path, target)| (path.as_str(), Listed::of(target)))
    }

    /// The releases it lists, by their manifests' paths.
    pub fn releases(&self) -> impl Iterator<Item = (Version, Arch, Listed)> {
        self.targets().filter_map(|(path, listed)| {
            let (version, arch) =
                path.strip_prefix("releases/")?.strip_suffix("/manifest.json")?.split_once('/')?;
            Some((version.parse().ok()?, arch.parse().ok()?, listed))
        })
    }

    /// The ids of the keys that may sign the delegated channels role.
    #[must_use]
    pub fn channels_key_ids(&self) -> Vec<String> {
        self.channels_role().map(|(_, keys)| keys.keyids).unwrap_or_default()
    }

    fn channels_role(&self) -> Option<(&BTreeMap<String, sigstore_tuf::Key>, RoleKeys)> {
        let delegations = self.signed.delegations.as_ref()?;
        let role = delegations.roles.iter().find(|role| role.name == CHANNELS)?;
        Some((&delegations.keys, role.role_keys()))
    }
}

fn not_expired(role: &str, expires: Timestamp, now: Timestamp) -> Result<(), TrustError> {
    if expires < now { Err(TrustError::Expired { role: role.to_owned(), expires, now }) } else { Ok(()) }
}

/// Checks a chain of roots, oldest first: the first is signed by its own keys, each other one by its own keys and by
/// its predecessor's, and has the next version. Expiry is not judged; see [`Root::expires`].
///
/// The first root is taken as the anchor: the caller must have it from somewhere it trusts.
///
/// # Errors
/// [`TrustError`] naming the root at fault.
pub fn verify_root_chain(roots: &[Vec<u8>]) -> Result<Verified<Root>, TrustError> {
    let (first, later) = roots.split_first().ok_or(TrustError::Missing { name: "root.json".to_owned() })?;
    let mut trusted = TrustedMetadataSet::from_root(first)
        .map_err(|source| TrustError::AnchorInvalid { what: "root.json".to_owned(), source })?;
    for bytes in later {
        let name = format!("{}.root.json", trusted.root().version.saturating_add(1));
        trusted
            .update_root(bytes)
            .map_err(|error| TrustError::from_library(error, &name, Timestamp::UNIX_EPOCH))?;
    }
    Ok(Verified::new(Root { signed: trusted.root().clone(), bytes: trusted.root_bytes().to_vec() }))
}

fn parse<T: Role>(bytes: &[u8], name: &str) -> Result<Metadata<T>, TrustError> {
    Metadata::from_slice(bytes).map_err(|source| TrustError::Malformed { name: name.to_owned(), source })
}

/// Checks the signatures of targets metadata, whatever its expiry: for renewing what has expired.
///
/// # Errors
/// [`TrustError`].
pub fn verify_targets_signatures(
    bytes: &[u8],
    root: &Verified<Root>,
) -> Result<Verified<Targets>, TrustError> {
    let metadata = parse::<sigstore_tuf::Targets>(bytes, "targets.json")?;
    let keys = root.signed.role("targets").ok_or_else(|| TrustError::Malformed {
        name: "root.json".to_owned(),
        source: sigstore_tuf::Error::UnknownRole("targets".to_owned()),
    })?;
    metadata
        .verify_threshold(&root.signed.keys, keys, "targets")
        .map_err(|error| TrustError::from_library(error, "targets.json", Timestamp::UNIX_EPOCH))?;
    Ok(Verified::new(Targets { signed: metadata.into_signed(), bytes: bytes.to_vec() }))
}

/// Checks targets metadata: signed as `root` asks for, and unexpired at `now`.
///
/// # Errors
/// [`TrustError`].
pub fn verify_targets(
    bytes: &[u8],
    root: &Verified<Root>,
    now: Timestamp,
) -> Result<Verified<Targets>, TrustError> {
    let targets = verify_targets_signatures(bytes, root)?;
    not_expired("targets", targets.expires(), now)?;
    Ok(targets)
}

/// Checks metadata of the delegated channels role: signed as `targets` asks for, and unexpired at `now`.
///
/// # Errors
/// [`TrustError`].
pub fn verify_channels(
    bytes: &[u8],
    targets: &Verified<Targets>,
    now: Timestamp,
) -> Result<Verified<Targets>, TrustError> {
    let metadata = parse::<sigstore_tuf::Targets>(bytes, "channels.json")?;
    let (keys, role) = targets.channels_role().ok_or_else(|| TrustError::Malformed {
        name: "targets.json".to_owned(),
        source: sigstore_tuf::Error::UnknownRole(CHANNELS.to_owned()),
    })?;
    metadata
        .verify_threshold(keys, &role, CHANNELS)
        .map_err(|error| TrustError::from_library(error, "channels.json", now))?;
    not_expired(CHANNELS, metadata.signed().expires, now)?;
    Ok(Verified::new(Targets { signed: metadata.into_signed(), bytes: bytes.to_vec() }))
}
