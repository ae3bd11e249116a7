//! Step 5, download: what a node believes. [`Trust`] reads channel files and manifests through the TUF client, and
//! [`authorize`] decides whether a release may be installed here; nothing else makes an [`Authorized`].
//!
//! The node believes the server about *when*, never about *what* (DESIGN section 6).

use crate::TrustError;
use crate::client::{Client, Refreshed};
use crate::verify::Verified;
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::{Arch, Channel};
use protocol::manifest::{ChannelFile, DOCUMENT_MAX, Manifest, TargetCustom};
use protocol::version::Version;
use sigstore_tuf::Repository;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// The longest anchor that is read, in bytes: the limit for root metadata from the network.
const ANCHOR_MAX: u64 = 512_000;

/// The node's trust: an anchor, a folder of trusted metadata, and after a refresh what it says.
#[derive(Debug)]
pub struct Trust {
    client: Client,
}

/// A manifest that the targets role lists, with what that role says beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedManifest {
    manifest: Verified<Manifest>,
    custom: TargetCustom,
}

impl VerifiedManifest {
    /// What the targets role says beside the manifest's digest.
    #[must_use]
    pub const fn custom(&self) -> &TargetCustom {
        &self.custom
    }
}

impl Deref for VerifiedManifest {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

impl Trust {
    /// Reads and checks the trust anchor. Its own expiry does not count: the chain leads on from it.
    ///
    /// # Errors
    /// [`TrustError::AnchorMissing`], [`TrustError::AnchorInvalid`]: never "accept".
    pub fn open(metadata_dir: &Path, anchor: &Path) -> Result<Self, TrustError> {
        let missing = |source| TrustError::AnchorMissing { path: anchor.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(anchor).map_err(missing)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, ANCHOR_MAX), &mut bytes)
            .map_err(missing)?;
        let client = Client::open(metadata_dir, bytes, &anchor.display().to_string())?;
        Ok(Self { client: client.with_target_max(DOCUMENT_MAX) })
    }

    /// Brings the trusted metadata up to date, or says why not.
    ///
    /// # Errors
    /// [`TrustError`]; [`TrustError::kind`] tells a network failure from a refusal.
    pub async fn refresh(
        &mut self,
        repo: Arc<dyn Repository>,
        clock: Timestamp,
    ) -> Result<Refreshed, TrustError> {
        self.client.refresh(repo, clock).await
    }

    /// What a channel may hold.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn channel(&mut self, channel: &Channel) -> Result<Verified<ChannelFile>, TrustError> {
        let target = self.client.find(&ChannelFile::target_path(channel)).await?;
        let bytes = self.client.fetch(&target).await?;
        Ok(Verified::new(ChannelFile::parse(&bytes, channel)?))
    }

    /// The manifest of a release. It must be listed by the targets role itself: nobody to whom paths are delegated
    /// can release, or allow a downgrade.
    ///
    /// # Errors
    /// [`TrustError::UnknownTarget`] for a release that was withdrawn or never released; other [`TrustError`]s.
    pub async fn manifest(&mut self, version: &Version, arch: &Arch) -> Result<VerifiedManifest, TrustError> {
        let path = Manifest::target_path(version, arch);
        let target = self.client.find(&path).await?;
        let Some(listed) = self.client.listed_by_targets(&path) else {
            return Err(TrustError::UnknownTarget { path });
        };
        let bytes = self.client.fetch(&target).await?;
        let manifest = Verified::new(Manifest::parse(&bytes, version, arch)?);
        Ok(VerifiedManifest { manifest, custom: listed.custom })
    }
}

/// What the node is, for [`authorize`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The channel it follows, by its own configuration.
    pub channel: Channel,
    /// Its architecture.
    pub arch: Arch,
    /// The version it runs.
    pub running: Version,
    /// The newest version it ever confirmed.
    pub newest_confirmed: Option<Version>,
}

impl NodeFacts {
    /// The version that nothing may be older than: the newest confirmed one, or the running one if that is newer.
    fn newest(&self) -> &Version {
        match &self.newest_confirmed {
            Some(confirmed) if !confirmed.is_older_than(&self.running) => confirmed,
            _ => &self.running,
        }
    }
}

/// Why a release that exists may not be installed on this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The channel file is another channel's.
    #[error(
        "refused {version}: expected the file of channel {expected}, found that of {found}; check [identity] channel"
    )]
    Channel {
        /// The release.
        version: Box<Version>,
        /// The node's channel.
        expected: Channel,
        /// The file's channel.
        found: Channel,
    },
    /// The node's channel does not list the release.
    #[error(
        "refused {version}: expected a release that channel {channel} lists, found {listed}; `updatectl channel set` changes what it lists"
    )]
    NotInChannel {
        /// The release.
        version: Box<Version>,
        /// The node's channel.
        channel: Channel,
        /// What it lists, for people.
        listed: String,
    },
    /// The release is for another architecture.
    #[error(
        "refused {version}: expected a release for {expected}, found one for {found}; push the release for this architecture"
    )]
    Arch {
        /// The release.
        version: Box<Version>,
        /// The node's architecture.
        expected: Arch,
        /// The release's.
        found: Arch,
    },
    /// The release is older than what this node has confirmed.
    #[error(
        "refused {version}: expected {newest} or newer, since this node has run {newest}; only the targets key can allow a downgrade"
    )]
    Downgrade {
        /// The release.
        version: Box<Version>,
        /// The newest version confirmed or running.
        newest: Box<Version>,
    },
    /// Another release must be installed first.
    #[error("refused {version}: expected a node at {needs} or newer, found {running}; install {needs} first")]
    Barrier {
        /// The release.
        version: Box<Version>,
        /// The least version to come from.
        needs: Box<Version>,
        /// The version that runs.
        running: Box<Version>,
    },
}

/// Evidence that a release may be installed here: signed, unexpired, listed by the node's own channel, for its
/// architecture, no unauthorised downgrade, barrier passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorized {
    manifest: VerifiedManifest,
}

impl Authorized {
    /// The manifest to install.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The version to install.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.manifest.version
    }

    /// What identifies the release for quarantine.
    #[must_use]
    pub fn release_digest(&self) -> Sha256 {
        self.manifest.release_digest()
    }
}

/// Decides whether a release may be installed on this node.
///
/// # Errors
/// [`Refusal`] with the first reason against it.
pub fn authorize(
    manifest: VerifiedManifest,
    channel: &Verified<ChannelFile>,
    node: &NodeFacts,
) -> Result<Authorized, Refusal> {
    let version = Box::new(manifest.version.clone());
    if channel.channel != node.channel {
        let found = channel.channel.clone();
        return Err(Refusal::Channel { version, expected: node.channel.clone(), found });
    }
    if !channel.versions.contains(&manifest.version) {
        let names: Vec<&str> = channel.versions.iter().map(Version::as_str).collect();
        let listed = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Refusal::NotInChannel { version, channel: node.channel.clone(), listed });
    }
    if manifest.arch != node.arch {
        let found = manifest.arch.clone();
        return Err(Refusal::Arch { version, expected: node.arch.clone(), found });
    }
    let newest = node.newest();
    let allowed =
        manifest.custom.allow_downgrade_from.as_ref().is_some_and(|from| !from.is_older_than(newest));
    if version.is_older_than(newest) && !allowed {
        return Err(Refusal::Downgrade { version, newest: Box::new(newest.clone()) });
    }
    if let Some(needs) =
        manifest.min_source_version.as_ref().filter(|needs| node.running.is_older_than(needs))
    {
        let (needs, running) = (Box::new(needs.clone()), Box::new(node.running.clone()));
        return Err(Refusal::Barrier { version, needs, running });
    }
    Ok(Authorized { manifest })
}
