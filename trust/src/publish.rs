//! Step 4, channel: what a server signs. From what is published now to what is published next: channels, snapshot and
//! timestamp, versions raised by one, and nothing that only the operator may sign.

use crate::document::{self, BuildError, Lifetimes, expiry, next_version};
use crate::key::OnlineKeys;
use crate::verify::{Root, Targets, Verified};
use jiff::Timestamp;
use protocol::id::Channel;
use protocol::manifest::ChannelFile;
use std::collections::BTreeMap;

/// A metadata file and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// The version inside it.
    pub version: u64,
    /// The file, byte for byte.
    pub bytes: Vec<u8>,
    /// When it expires.
    pub expires: Timestamp,
}

/// The versions of the server's own roles; 0 before anything was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// Of channels.
    pub channels: u64,
    /// Of snapshot.
    pub snapshot: u64,
    /// Of timestamp.
    pub timestamp: u64,
}

/// The files to publish together. Readers must never see the timestamp before the other two are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// `<n>.channels.json`.
    pub channels: File,
    /// `<n>.snapshot.json`.
    pub snapshot: File,
    /// `timestamp.json`.
    pub timestamp: File,
}

/// The server's keys are not those that the operator signed for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server's {role} key is not the one that the operator signed: expected {expected}, found {found}; \
     make the root with this server's online-keys.pub.json (`image-tools keys init` or `keys rotate --online`)"
)]
pub struct ForeignKeys {
    role: &'static str,
    expected: String,
    found: String,
}

/// Checks that root and targets name this server's keys, so that it can sign what they ask for. A channels role that
/// does not name the server's key is signed offline: `Ok(false)`.
///
/// # Errors
/// [`ForeignKeys`] for snapshot or timestamp.
pub fn check_keys(root: &Root, targets: &Targets, keys: &OnlineKeys) -> Result<bool, ForeignKeys> {
    for (role, key) in [("snapshot", &keys.snapshot), ("timestamp", &keys.timestamp)] {
        let ids = root.key_ids(role);
        if !ids.iter().any(|id| id == key.id()) {
            return Err(ForeignKeys { role, expected: ids.join(" or "), found: key.id().to_owned() });
        }
    }
    Ok(targets.channels_key_ids().iter().any(|id| id == keys.channels.id()))
}

/// The bytes of a channel file.
///
/// # Errors
/// [`BuildError::Json`].
pub fn channel_file(file: &ChannelFile) -> Result<Vec<u8>, BuildError> {
    let mut bytes =
        serde_json::to_vec_pretty(file).map_err(|source| BuildError::Json { role: "channels", source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Everything that follows from `targets` and the channel files, signed by the server. Also renews all three.
///
/// # Errors
/// [`BuildError`].
pub fn next(
    current: Current,
    targets: &Verified<Targets>,
    channels: &BTreeMap<Channel, Vec<u8>>,
    keys: &OnlineKeys,
    lifetimes: &Lifetimes,
    now: Timestamp,
) -> Result<Publication, BuildError> {
    let version = next_version("channels", current.channels)?;
    let expires = expiry(now, lifetimes.channels);
    let paths: Vec<_> =
        channels.iter().map(|(name, bytes)| (ChannelFile::target_path(name), bytes.as_slice())).collect();
    let files = paths.iter().map(|(path, bytes)| (path.as_str(), *bytes));
    let bytes = document::channels(version, files, expires, &[&keys.channels])?;
    with_channels(current, targets, File { version, bytes, expires }, keys, lifetimes, now)
}

/// As [`next`], with channels metadata that someone else signed: an operator's offline channels key.
///
/// # Errors
/// [`BuildError`].
pub fn with_channels(
    current: Current,
    targets: &Verified<Targets>,
    channels: File,
    keys: &OnlineKeys,
    lifetimes: &Lifetimes,
    now: Timestamp,
) -> Result<Publication, BuildError> {
    let version = next_version("snapshot", current.snapshot)?;
    let expires = expiry(now, lifetimes.snapshot);
    let pinned = [
        ("targets.json", targets.version(), targets.bytes()),
        ("channels.json", channels.version, channels.bytes.as_slice()),
    ];
    let bytes = document::snapshot(version, &pinned, expires, &[&keys.snapshot])?;
    let snapshot = File { version, bytes, expires };
    let timestamp = renew_timestamp(current.timestamp, &snapshot, keys, lifetimes, now)?;
    Ok(Publication { channels, snapshot, timestamp })
}

/// The next timestamp for an unchanged snapshot.
///
/// # Errors
/// [`BuildError`].
pub fn renew_timestamp(
    current: u64,
    snapshot: &File,
    keys: &OnlineKeys,
    lifetimes: &Lifetimes,
    now: Timestamp,
) -> Result<File, BuildError> {
    let version = next_version("timestamp", current)?;
    let expires = expiry(now, lifetimes.timestamp);
    let bytes = document::timestamp(version, snapshot.version, &snapshot.bytes, expires, &[&keys.timestamp])?;
    Ok(File { version, bytes, expires })
}
