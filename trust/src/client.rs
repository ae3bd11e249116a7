//! Step 5, download: a TUF client. Refreshes from any [`Repository`] and fetches targets by path.
//!
//! `sigstore-tuf` runs the workflow of the specification. Around it, this module keeps the folder durable, sets
//! damaged files aside instead of forgetting what they said, refuses to go below the recorded floor, and judges
//! expiry by the later of the clock and the newest time at which a refresh succeeded. A time is recorded only after a
//! success, so it never lies past the expiry of signed metadata: a clock that once stood in the far future cannot
//! stop a node for good.
//!
//! The module knows nothing of Flipside's documents; the engine ([`crate::node`]) and the conformance suite's client
//! (`tuf-client`) run the same code.

use crate::TrustError;
use crate::floor::{Floor, SnapshotFloor, TimestampFloor, signers};
use crate::repository::{Asked, Bounded, translate};
use crate::store::Store;
use crate::verify::{Listed, Verified, custom};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::manifest::TargetCustom;
use sha2::Digest;
use sigstore_tuf::metadata::Role;
use sigstore_tuf::{Metadata, Repository, Root, TargetFile, TrustedMetadataSet, Updater, UpdaterConfig};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The longest target that [`Client::fetch`] reads, in bytes, unless [`Client::with_target_max`] says otherwise.
const TARGET_MAX: u64 = 50_000_000;

/// A TUF client over one folder of trusted metadata.
pub struct Client {
    folder: PathBuf,
    anchor: Vec<u8>,
    config: UpdaterConfig,
    session: Option<Session>,
}

/// What one successful refresh left behind.
struct Session {
    updater: Updater,
    asked: Arc<Mutex<Asked>>,
    store: Arc<Store>,
    time: Timestamp,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("folder", &self.folder)
            .field("refreshed", &self.session.is_some())
            .finish()
    }
}

/// The versions that a refresh ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Of root.
    pub root: u64,
    /// Of timestamp.
    pub timestamp: u64,
    /// Of snapshot.
    pub snapshot: u64,
    /// Of the top-level targets.
    pub targets: u64,
}

/// A file that could not be trusted any more and was moved out of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it lies now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

/// What came of a refresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refreshed {
    /// The versions now trusted.
    pub versions: Versions,
    /// The time that expiry was judged by: the clock, or the newest trusted time where the clock is behind it.
    pub time: Timestamp,
    /// Whether the clock is behind the newest trusted time.
    pub clock_behind: bool,
    /// When the first of root, timestamp, snapshot and targets expires.
    pub expires: Timestamp,
    /// Cached files that were damaged. What they had seen is not forgotten.
    pub set_aside: Vec<SetAside>,
}

/// A target that trusted metadata lists.
#[derive(Clone, Debug)]
pub struct Target {
    path: String,
    file: TargetFile,
}

impl Target {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.file.length
    }

    /// What the role that lists it says beside it, as far as it is ours.
    #[must_use]
    pub fn custom(&self) -> TargetCustom {
        custom(&self.file)
    }

    /// Whether these are its bytes, by length and by every hash that we know.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let hash = |name: &str, found: String| self.file.hashes.get(name).map(|expected| *expected == found);
        let hashes = [
            hash("sha256", hex::encode(sha2::Sha256::digest(bytes))),
            hash("sha512", hex::encode(sha2::Sha512::digest(bytes))),
        ];
        bytes.len() as u64 == self.file.length
            && hashes.iter().flatten().next().is_some()
            && hashes.iter().flatten().all(|same| *same)
    }
}

impl Client {
    /// A client that trusts `anchor` (the bytes of a root.json; `what` names it in errors) and keeps its state in
    /// `folder`, which is made when something is to be kept.
    ///
    /// # Errors
    /// [`TrustError::AnchorInvalid`] where the anchor is not signed by its own keys.
    pub fn open(folder: &Path, anchor: Vec<u8>, what: &str) -> Result<Self, TrustError> {
        TrustedMetadataSet::from_root(&anchor)
            .map_err(|source| TrustError::AnchorInvalid { what: what.to_owned(), source })?;
        let mut config = UpdaterConfig::default();
        config.target_max_length = TARGET_MAX;
        Ok(Self { folder: folder.to_owned(), anchor, config, session: None })
    }

    /// Limits the length of targets, in bytes.
    #[must_use]
    pub const fn with_target_max(mut self, bytes: u64) -> Self {
        self.config.target_max_length = bytes;
        self
    }

    /// Brings the trusted metadata up to date, or says why not. Blocks shortly for durable writes to the folder.
    ///
    /// After an error no target can be looked up until a refresh succeeds.
    ///
    /// # Errors
    /// [`TrustError`]; [`TrustError::kind`] tells a network failure from a refusal.
    pub async fn refresh(
        &mut self,
        repo: Arc<dyn Repository>,
        clock: Timestamp,
    ) -> Result<Refreshed, TrustError> {
        self.session = None;
        let store = Arc::new(Store::new(&self.folder));
        let mut set_aside = Vec::new();
        let mut floor = Floor::load(&store, &mut set_aside)?;
        // What the cache says is recorded before the network is asked: a cache lost later is then no loss.
        let before = floor.clone();
        inspect(&store, &self.anchor, &mut floor, &mut set_aside)?;
        if floor != before {
            floor.save(&store)?;
        }
        for file in &set_aside {
            tracing::warn!(path = %file.path.display(), reason = %file.reason, "trusted metadata was damaged and set aside");
        }

        let time = floor.newest_time.map_or(clock, |newest| newest.max(clock));
        let (bounded, asked) = Bounded::new(repo);
        let mut updater = Updater::new(bounded, &self.anchor)
            .map_err(|source| TrustError::AnchorInvalid { what: "in use".to_owned(), source })?
            .with_config(self.config)
            .with_store(Arc::clone(&store));
        let result = updater.refresh(time).await;
        // A store that failed may be why the library went wrong, so its error comes first.
        store.take_failure()?;
        result.map_err(|error| translate(error, &asked, time))?;

        raise(&mut floor, &updater, &store, &self.anchor)?;
        floor.newest_time = Some(time);
        floor.save(&store)?;
        let refreshed = describe(&updater, time, clock, set_aside)?;
        self.session = Some(Session { updater, asked, store, time });
        Ok(refreshed)
    }

    /// Looks a target up, through delegations where they apply. Needs a successful refresh.
    ///
    /// # Errors
    /// [`TrustError::UnknownTarget`] where nobody lists it; others where a delegated role cannot be trusted.
    pub async fn find(&mut self, path: &str) -> Result<Verified<Target>, TrustError> {
        let session = self.session.as_mut().ok_or(TrustError::NotRefreshed)?;
        let found = session.updater.get_target_info(path, session.time).await;
        session.store.take_failure()?;
        match found.map_err(|error| translate(error, &session.asked, session.time))? {
            Some(file) => Ok(Verified::new(Target { path: path.to_owned(), file })),
            None => Err(TrustError::UnknownTarget { path: path.to_owned() }),
        }
    }

    /// What the top-level targets role itself says about `path`, no delegation asked. Needs a successful refresh.
    #[must_use]
    pub fn listed_by_targets(&self, path: &str) -> Option<Listed> {
        let targets = self.session.as_ref()?.updater.trusted().targets_role("targets")?;
        targets.target(path).map(Listed::of)
    }

    /// Fetches a target and checks its length and hashes.
    ///
    /// # Errors
    /// [`TrustError`].
    pub async fn fetch(&mut self, target: &Verified<Target>) -> Result<Verified<Vec<u8>>, TrustError> {
        let session = self.session.as_mut().ok_or(TrustError::NotRefreshed)?;
        let limit = self.config.target_max_length;
        if target.size() > limit {
            return Err(TrustError::Oversize { name: target.path.clone(), limit });
        }
        let bytes = session.updater.download_target(&target.file, &target.path).await;
        session.store.take_failure()?;
        bytes.map(Verified::new).map_err(|error| translate(error, &session.asked, session.time))
    }
}

/// Reads the cached files, sets aside those that verify no more, and raises the floor to what the others say.
fn inspect(
    store: &Store,
    anchor: &[u8],
    floor: &mut Floor,
    set_aside: &mut Vec<SetAside>,
) -> Result<(), TrustError> {
    let roots = chain(store, anchor, set_aside)?;
    let Some(newest) = roots.last() else { return Ok(()) };
    if let Some(timestamp) = cached::<sigstore_tuf::Timestamp>(store, "timestamp", &roots, set_aside)?
        && let Some(seen) = timestamp_floor(&timestamp, newest)
    {
        // The cache being older than the floor is no error yet: the server has the last word.
        let _ = floor.timestamp(seen, newest);
    }
    if let Some(snapshot) = cached::<sigstore_tuf::Snapshot>(store, "snapshot", &roots, set_aside)?
        && let Some(seen) = snapshot_floor(&snapshot, newest)
    {
        let _ = floor.snapshot(seen, newest);
    }
    cached::<sigstore_tuf::Targets>(store, "targets", &roots, set_aside)?;
    Ok(())
}

fn history(version: u64) -> String {
    format!("root_history/{version}.root.json")
}

/// The roots from the anchor to the newest cached one. A cached root that does not follow its predecessor is set
/// aside; the server has it still.
fn chain(store: &Store, anchor: &[u8], set_aside: &mut Vec<SetAside>) -> Result<Vec<Root>, TrustError> {
    let in_use = |source| TrustError::AnchorInvalid { what: "in use".to_owned(), source };
    let mut trusted = TrustedMetadataSet::from_root(anchor).map_err(in_use)?;
    let mut roots = vec![trusted.root().clone()];
    while let Some(next) = trusted.root().version.checked_add(1) {
        let name = history(next);
        let Some(bytes) = store.read(&name)? else { break };
        if let Err(error) = trusted.update_root(&bytes) {
            set_aside.push(SetAside { path: store.set_aside(&name)?, reason: error.to_string() });
            break;
        }
        roots.push(trusted.root().clone());
    }
    Ok(roots)
}

/// A cached file, where it is still signed for the newest root. One signed only for an earlier root was replaced by a
/// rotation and stays where it is, unused; anything else is damage.
fn cached<T: Role>(
    store: &Store,
    role: &str,
    roots: &[Root],
    set_aside: &mut Vec<SetAside>,
) -> Result<Option<Metadata<T>>, TrustError> {
    let name = format!("{role}.json");
    let Some(bytes) = store.read(&name)? else { return Ok(None) };
    let verify = |metadata: &Metadata<T>, root: &Root| {
        let keys = root.role(role).ok_or_else(|| sigstore_tuf::Error::UnknownRole(role.to_owned()))?;
        metadata.verify_threshold(&root.keys, keys, role)
    };
    let reason = match Metadata::<T>::from_slice(&bytes) {
        Err(error) => error.to_string(),
        Ok(metadata) => match roots.last().map(|newest| verify(&metadata, newest)) {
            Some(Ok(())) => return Ok(Some(metadata)),
            _ if roots.iter().any(|root| verify(&metadata, root).is_ok()) => return Ok(None),
            _ if older_roots(store, roots)?.iter().any(|root| verify(&metadata, root).is_ok()) => {
                return Ok(None);
            }
            Some(Err(error)) => error.to_string(),
            None => "there is no root to check it with".to_owned(),
        },
    };
    set_aside.push(SetAside { path: store.set_aside(&name)?, reason });
    Ok(None)
}

/// Roots in the folder that came before the present anchor, from before a newer one was installed. They are only
/// asked whether a cached file was once good, never trusted.
fn older_roots(store: &Store, roots: &[Root]) -> Result<Vec<Root>, TrustError> {
    let mut older = Vec::new();
    let anchor = roots.first().map_or(1, |root| root.version);
    for version in (1..anchor).rev() {
        let Some(bytes) = store.read(&history(version))? else { break };
        if let Ok(root) = Metadata::<Root>::from_slice(&bytes) {
            older.push(root.into_signed());
        }
    }
    Ok(older)
}

fn timestamp_floor(metadata: &Metadata<sigstore_tuf::Timestamp>, root: &Root) -> Option<TimestampFloor> {
    let signed = metadata.signed();
    Some(TimestampFloor {
        version: signed.version,
        snapshot: signed.snapshot_meta()?.version,
        signers: signers(metadata, root, "timestamp"),
    })
}

fn snapshot_floor(metadata: &Metadata<sigstore_tuf::Snapshot>, root: &Root) -> Option<SnapshotFloor> {
    let pins = metadata.signed().meta.iter().map(|(name, pin)| (name.clone(), pin.version)).collect();
    Some(SnapshotFloor { pins, signers: signers(metadata, root, "snapshot") })
}

/// Checks what a refresh accepted against the floor, and raises it. The accepted files are in the store, byte for
/// byte, since the library wrote them there and no write failed.
fn raise(floor: &mut Floor, updater: &Updater, store: &Store, anchor: &[u8]) -> Result<(), TrustError> {
    let root = updater.trusted().root();
    let anchor_version = anchor_version(anchor)?;
    let mut chain = vec![(anchor_version, Sha256::of(anchor))];
    for version in anchor_version.saturating_add(1)..=root.version {
        if let Some(bytes) = store.read(&history(version))? {
            chain.push((version, Sha256::of(&bytes)));
        }
    }
    floor.roots(&chain, store)?;
    if let Some(metadata) = stored::<sigstore_tuf::Timestamp>(store, "timestamp.json")?
        && let Some(seen) = timestamp_floor(&metadata, root)
    {
        floor.timestamp(seen, root)?;
    }
    if let Some(metadata) = stored::<sigstore_tuf::Snapshot>(store, "snapshot.json")?
        && let Some(seen) = snapshot_floor(&metadata, root)
    {
        floor.snapshot(seen, root)?;
    }
    Ok(())
}

fn anchor_version(anchor: &[u8]) -> Result<u64, TrustError> {
    Metadata::<Root>::from_slice(anchor)
        .map(|root| root.signed().version)
        .map_err(|source| TrustError::AnchorInvalid { what: "in use".to_owned(), source })
}

fn stored<T: Role>(store: &Store, name: &str) -> Result<Option<Metadata<T>>, TrustError> {
    store
        .read(name)?
        .map(|bytes| Metadata::from_slice(&bytes))
        .transpose()
        .map_err(|source| TrustError::Malformed { name: name.to_owned(), source })
}

fn describe(
    updater: &Updater,
    time: Timestamp,
    clock: Timestamp,
    set_aside: Vec<SetAside>,
) -> Result<Refreshed, TrustError> {
    let trusted = updater.trusted();
    let (Some(timestamp), Some(snapshot), Some(targets)) =
        (trusted.timestamp(), trusted.snapshot(), trusted.targets_role("targets"))
    else {
        return Err(TrustError::NotRefreshed);
    };
    let root = trusted.root();
    Ok(Refreshed {
        versions: Versions {
            root: root.version,
            timestamp: timestamp.version,
            snapshot: snapshot.version,
            targets: targets.version,
        },
        time,
        clock_behind: clock < time,
        expires: root.expires.min(timestamp.expires).min(snapshot.expires).min(targets.expires),
        set_aside,
    })
}
