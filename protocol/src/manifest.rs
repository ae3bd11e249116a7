//! Steps 3 and 4, metadata and channel: what a release is, and which releases a channel holds.
//!
//! Both documents are TUF targets: a node reads them only through the trust module, which checks them against signed
//! metadata. What they say is nevertheless validated here, because a signature says who wrote a document, not that it
//! makes sense.

use crate::digest::Sha256;
use crate::id::{Arch, Channel, PartitionRole};
use crate::payload::HEAD_MAX;
use crate::version::Version;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The schema number of the documents that this code writes.
pub const SCHEMA: u32 = 1;
/// The longest manifest or channel file that is fetched, in bytes.
pub const DOCUMENT_MAX: u64 = 1 << 20;

/// A release for one architecture: `releases/<version>/<arch>/manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The operating system's `ID` of os-release, or any name; nodes do not judge by it.
    pub os: String,
    /// The release's version.
    pub version: Version,
    /// The architecture it runs on.
    pub arch: Arch,
    /// The partitions of a slot that this release fills, in payload order.
    pub partitions: Vec<PartitionImage>,
    /// The files it can be installed from; the node takes the cheapest that fits.
    pub payloads: Vec<PayloadFile>,
    /// A barrier: nodes below this version must go through another release first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_source_version: Option<Version>,
    /// Free-form, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
}

/// What one partition of the slot must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionImage {
    /// Which partition of the slot.
    pub role: PartitionRole,
    /// Length of the image in bytes.
    pub size: u64,
    /// SHA-256 of the image.
    pub sha256: Sha256,
}

/// A file that a release can be installed from, served as `/v1/payloads/<sha256>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayloadFile {
    /// Length of the file in bytes.
    pub size: u64,
    /// SHA-256 of the file: its name and its place on the server.
    pub sha256: Sha256,
    /// Length of its head (header and index) in bytes.
    pub head_size: u64,
    /// SHA-256 of its head, checked before the index is believed.
    pub head_sha256: Sha256,
    /// For a delta: SHA-256 of the root image it applies to. Absent for a full payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sha256: Option<Sha256>,
}

/// Which releases a channel may hold: `channels/<channel>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelFile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The channel's own name, so that one channel's file does not pass for another's.
    pub channel: Channel,
    /// The releases that nodes of this channel may install.
    pub versions: Vec<Version>,
}

/// What the targets role says about one manifest beside its digest: `custom` of the target in targets.json, which
/// only the offline targets key can write.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetCustom {
    /// Nodes that confirmed a version up to and including this one may go back to this release: the only way in
    /// which a downgrade is authorised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_downgrade_from: Option<Version>,
    /// A dead end: no release leads on from this one, and why, in one line. Nodes are not sent there, and one that runs it is
    /// offered nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_end: Option<String>,
}

/// The longest reason of a dead end, in bytes.
pub const DEAD_END_MAX: usize = 256;

/// Checks why a release is a dead end.
///
/// # Errors
/// What is wrong, in one line.
pub fn check_dead_end(why: &str) -> Result<(), String> {
    if !why.trim().is_empty() && why.len() <= DEAD_END_MAX && !why.contains(char::is_control) {
        return Ok(());
    }
    Err(format!(
        "the reason of a dead end is not valid: expected a line of 1 to {DEAD_END_MAX} bytes that says why, found {} bytes",
        why.len()
    ))
}

/// A document that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON of this shape.
    #[error("{what} is not valid")]
    Json {
        /// Which document.
        what: String,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// A schema that this code does not know.
    #[error("{what} has schema {found}: expected {SCHEMA}; a newer engine is needed")]
    Schema {
        /// Which document.
        what: String,
        /// The number found.
        found: u32,
    },
    /// The document is about something else than its path says.
    #[error("{what} is for {found}: expected {expected}")]
    Mismatch {
        /// Which document.
        what: String,
        /// What its path or the node asks for.
        expected: String,
        /// What it says.
        found: String,
    },
    /// It contradicts itself.
    #[error("{what}: {problem}")]
    Invalid {
        /// Which document.
        what: String,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

fn check_schema(what: &str, bytes: &[u8]) -> Result<(), DocumentError> {
    let SchemaOnly { schema } = serde_json::from_slice(bytes)
        .map_err(|source| DocumentError::Json { what: what.to_owned(), source })?;
    if schema == SCHEMA {
        Ok(())
    } else {
        Err(DocumentError::Schema { what: what.to_owned(), found: schema })
    }
}

impl Manifest {
    /// The target path of a manifest.
    #[must_use]
    pub fn target_path(version: &Version, arch: &Arch) -> String {
        format!("releases/{version}/{arch}/manifest.json")
    }

    /// Parses and validates a manifest that was found at the path of `version` and `arch`.
    ///
    /// # Errors
    /// [`DocumentError`] where it does not parse, is of another version or architecture, or contradicts itself.
    pub fn parse(bytes: &[u8], version: &Version, arch: &Arch) -> Result<Self, DocumentError> {
        let what = format!("the manifest of {version} for {arch}");
        check_schema(&what, bytes)?;
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { what: what.clone(), source })?;
        let mismatch = |expected: String, found: String| {
            Err(DocumentError::Mismatch { what: what.clone(), expected, found })
        };
        if manifest.version != *version {
            return mismatch(version.to_string(), manifest.version.to_string());
        }
        if manifest.arch != *arch {
            return mismatch(arch.to_string(), manifest.arch.to_string());
        }
        manifest.check().map_err(|problem| DocumentError::Invalid { what, problem })?;
        Ok(manifest)
    }

    /// What a manifest must hold to be usable.
    fn check(&self) -> Result<(), String> {
        if self.partitions.is_empty() {
            return Err("it names no partition".to_owned());
        }
        if !self.partitions.iter().any(|p| p.role == PartitionRole::root()) {
            return Err("it names no root partition, which carries the boot attributes".to_owned());
        }
        for (i, partition) in self.partitions.iter().enumerate() {
            if self.partitions[..i].iter().any(|p| p.role == partition.role) {
                return Err(format!("it names the partition {} twice", partition.role));
            }
            if partition.size == 0 {
                return Err(format!("the image of the partition {} is empty", partition.role));
            }
        }
        if self.full_payload().is_none() {
            return Err("it names no full payload".to_owned());
        }
        for payload in &self.payloads {
            if payload.head_size > payload.size.min(HEAD_MAX) {
                return Err(format!(
                    "the head of payload {} is {} bytes long",
                    payload.sha256, payload.head_size
                ));
            }
        }
        Ok(())
    }

    /// The payload that needs no source.
    #[must_use]
    pub fn full_payload(&self) -> Option<&PayloadFile> {
        self.payloads.iter().find(|p| p.source_sha256.is_none())
    }

    /// The image of a role.
    #[must_use]
    pub fn partition(&self, role: &PartitionRole) -> Option<&PartitionImage> {
        self.partitions.iter().find(|p| p.role == *role)
    }

    /// What identifies a release for quarantine: [`release_digest`] of its partitions.
    #[must_use]
    pub fn release_digest(&self) -> Sha256 {
        release_digest(&self.partitions)
    }
}

/// The digest over the roles and digests of a release's partitions, by role. The same images published under another
/// version, or listed in another order, are the same release.
#[must_use]
pub fn release_digest(partitions: &[PartitionImage]) -> Sha256 {
    let mut partitions: Vec<_> = partitions.iter().collect();
    partitions.sort_by(|one, other| one.role.cmp(&other.role));
    let mut hasher = crate::digest::Hasher::new();
    for partition in partitions {
        hasher.update(partition.role.as_str().as_bytes());
        hasher.update(b"\0");
        hasher.update(partition.sha256.as_bytes());
    }
    hasher.finish()
}

impl ChannelFile {
    /// The target path of a channel file.
    #[must_use]
    pub fn target_path(channel: &Channel) -> String {
        format!("channels/{channel}.json")
    }

    /// Parses a channel file that was found at the path of `channel`.
    ///
    /// # Errors
    /// [`DocumentError`] where it does not parse or is another channel's.
    pub fn parse(bytes: &[u8], channel: &Channel) -> Result<Self, DocumentError> {
        let what = format!("the file of channel {channel}");
        check_schema(&what, bytes)?;
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { what: what.clone(), source })?;
        if file.channel != *channel {
            return Err(DocumentError::Mismatch {
                what,
                expected: channel.to_string(),
                found: file.channel.to_string(),
            });
        }
        Ok(file)
    }
}
