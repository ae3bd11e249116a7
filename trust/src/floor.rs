//! Step 5, trust: what this node has seen, so that older metadata is recognised even when the cached copies are lost.
//!
//! The floor of a role holds as long as enough of the keys that signed it still sign for that role. When root takes
//! those keys away the floor goes with them: that is how a fleet recovers after an attacker with a stolen key has
//! published absurdly high versions (TUF calls it a fast-forward attack).

use crate::TrustError;
use crate::client::SetAside;
use crate::key::PublicKey;
use crate::store::Store;
use jiff::Timestamp;
use protocol::digest::Sha256;
use serde::{Deserialize, Serialize};
use sigstore_tuf::metadata::Role;
use sigstore_tuf::{Metadata, Root};
use std::collections::{BTreeMap, BTreeSet};

const SCHEMA: u32 = 1;
const FILES: [&str; 2] = ["seen/floor.json", "seen/floor.backup.json"];

/// Ids (computed, not declared) of the keys whose valid signatures a file carried.
type Signers = BTreeSet<String>;

/// What must never be gone below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Floor {
    /// Counts the saves, so that of two intact copies the newer one is taken.
    saves: u64,
    /// Every root of the chain by version. The newest is a floor for good: root has no recovery but a new anchor.
    roots: BTreeMap<u64, Sha256>,
    timestamp: Option<TimestampFloor>,
    snapshot: Option<SnapshotFloor>,
    /// The newest time at which a refresh succeeded.
    pub(crate) newest_time: Option<Timestamp>,
}

/// What the newest timestamp said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TimestampFloor {
    pub(crate) version: u64,
    pub(crate) snapshot: u64,
    pub(crate) signers: Signers,
}

/// What the newest snapshot said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotFloor {
    pub(crate) pins: BTreeMap<String, u64>,
    pub(crate) signers: Signers,
}

/// The file: the floor and a digest over it, because a flipped digit must not pass for a version.
#[derive(Serialize, Deserialize)]
struct Saved {
    schema: u32,
    sha256: Sha256,
    floor: Floor,
}

fn digest(floor: &Floor) -> Result<Sha256, serde_json::Error> {
    serde_json::to_vec(floor).map(|bytes| Sha256::of(&bytes))
}

fn parse(bytes: &[u8]) -> Result<Floor, String> {
    let saved: Saved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if saved.schema != SCHEMA {
        return Err(format!("schema {}, expected {SCHEMA}", saved.schema));
    }
    if digest(&saved.floor).ok() != Some(saved.sha256) {
        return Err("its digest does not match".to_owned());
    }
    Ok(saved.floor)
}

/// The computed ids of the keys whose signatures over `metadata` are valid for `role`.
pub(crate) fn signers<T: Role>(metadata: &Metadata<T>, root: &Root, role: &str) -> Signers {
    let Some(keys) = root.role(role) else { return Signers::new() };
    let valid = |id: &String| {
        let mut alone = keys.clone();
        alone.keyids = vec![id.clone()];
        alone.threshold = 1;
        metadata.verify_threshold(&root.keys, &alone, role).is_ok()
    };
    keys.keyids.iter().filter(|id| valid(id)).filter_map(|id| root.keys.get(id)).map(key_id).collect()
}

fn key_id(key: &sigstore_tuf::Key) -> String {
    PublicKey::from(key).id().to_owned()
}

/// Whether enough of `signers` still sign for `role`.
fn in_force(signers: &Signers, root: &Root, role: &str) -> bool {
    root.role(role).is_some_and(|keys| {
        let still: Signers = keys
            .keyids
            .iter()
            .filter_map(|id| root.keys.get(id))
            .map(key_id)
            .filter(|id| signers.contains(id))
            .collect();
        still.len() >= keys.threshold
    })
}

impl Floor {
    /// Reads the newer intact copy. Damaged copies are set aside and reported.
    pub(crate) fn load(store: &Store, set_aside: &mut Vec<SetAside>) -> Result<Self, TrustError> {
        let mut newest = Self::default();
        for name in FILES {
            let Some(bytes) = store.read(name)? else { continue };
            match parse(&bytes) {
                Ok(floor) if floor.saves >= newest.saves => newest = floor,
                Ok(_) => {}
                Err(reason) => set_aside.push(SetAside { path: store.set_aside(name)?, reason }),
            }
        }
        Ok(newest)
    }

    /// Writes both copies, one after the other.
    pub(crate) fn save(&mut self, store: &Store) -> Result<(), TrustError> {
        self.saves = self.saves.saturating_add(1);
        let failed = |error: serde_json::Error| TrustError::Store {
            path: store.folder().join(FILES[0]),
            source: error.into(),
        };
        let sha256 = digest(self).map_err(failed)?;
        let saved = Saved { schema: SCHEMA, sha256, floor: self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&saved).map_err(failed)?;
        bytes.push(b'\n');
        FILES.iter().try_for_each(|name| store.write(name, &bytes))
    }

    /// Takes a chain of verified roots, oldest first, or refuses one that ends too early.
    ///
    /// An anchor that this folder never met and that is not older than what it met starts trust anew: the operator
    /// installed it.
    pub(crate) fn roots(&mut self, chain: &[(u64, Sha256)], store: &Store) -> Result<(), TrustError> {
        let (Some(newest), Some(first)) = (chain.last().map(|(v, _)| *v), chain.first().map(|(v, _)| *v))
        else {
            return Ok(());
        };
        let known = chain.iter().any(|(version, sha256)| self.roots.get(version) == Some(sha256));
        let older_anchor = self.roots.first_key_value().is_some_and(|(oldest, _)| first < *oldest);
        if let Some((trusted, _)) = self.roots.last_key_value()
            && newest < *trusted
            && (known || older_anchor)
        {
            let folder = store.folder().to_owned();
            return Err(TrustError::RootRollback { trusted: *trusted, found: newest, folder });
        }
        if !known {
            self.roots.clear();
        }
        self.roots.extend(chain.iter().copied());
        Ok(())
    }

    /// Refuses a timestamp below the floor, else raises the floor to it.
    pub(crate) fn timestamp(&mut self, seen: TimestampFloor, root: &Root) -> Result<(), TrustError> {
        if let Some(floor) =
            self.timestamp.as_ref().filter(|floor| in_force(&floor.signers, root, "timestamp"))
        {
            not_below("timestamp", floor.version, seen.version)?;
            not_below("snapshot", floor.snapshot, seen.snapshot)?;
        }
        self.timestamp = Some(seen);
        Ok(())
    }

    /// Refuses a snapshot that pins anything below the floor, else raises the floor to it.
    pub(crate) fn snapshot(&mut self, seen: SnapshotFloor, root: &Root) -> Result<(), TrustError> {
        if let Some(floor) = self.snapshot.as_ref().filter(|floor| in_force(&floor.signers, root, "snapshot"))
        {
            for (name, version) in &floor.pins {
                let role = name.strip_suffix(".json").unwrap_or(name);
                not_below(role, *version, seen.pins.get(name).copied().unwrap_or(0))?;
            }
        }
        self.snapshot = Some(seen);
        Ok(())
    }
}

fn not_below(role: &str, trusted: u64, found: u64) -> Result<(), TrustError> {
    if found < trusted { Err(TrustError::Rollback { role: role.to_owned(), trusted, found }) } else { Ok(()) }
}
