//! Steps 3 and 4, metadata and channel: what operators push. Nothing is stored before its signatures are checked.

use super::{PublishError, Repository};
use crate::store::audit::{self, Change};
use crate::store::documents::{self, Document};
use crate::store::releases::{self, Release};
use crate::store::{Connection, StoreError, channels};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::Arch;
use protocol::manifest::{Manifest, TargetCustom, check_dead_end};
use protocol::version::Version;
use protocol::wire::{Published, ReleasePush, RootPush};
use serde::Deserialize;
use std::collections::BTreeMap;
use trust::verify::{Listed, claimed_version};
use trust::{Root, Targets, Verified, verify_root_chain, verify_targets, verify_targets_signatures};

fn peek_version(what: &str, text: &str) -> Result<u64, PublishError> {
    claimed_version(text.as_bytes())
        .map_err(|error| PublishError::Refused(format!("{what} is not TUF metadata: {error}")))
}

/// The roots that are stored, checked again as a chain.
pub(super) async fn stored_root(conn: &mut Connection) -> Result<Verified<Root>, PublishError> {
    let chain: Vec<Vec<u8>> = documents::roots(conn).await?.into_iter().map(|root| root.bytes).collect();
    if chain.is_empty() {
        return Err(PublishError::Conflict(
            "the server has no root yet: push it first with updatectl root push FOLDER".to_owned(),
        ));
    }
    Ok(verify_root_chain(&chain)?)
}

/// Manifests of a push, by their digests; what is used is taken out.
struct Pushed(BTreeMap<Sha256, Vec<u8>>);

impl Pushed {
    fn new(manifests: Vec<String>) -> Self {
        Self(manifests.into_iter().map(|text| (Sha256::of(text.as_bytes()), text.into_bytes())).collect())
    }
}

impl Repository {
    /// Takes roots and targets metadata that an operator made, and signs all of the server's roles anew.
    ///
    /// The first root ever is taken on the operator's word; from then on each one must be signed by its predecessor.
    ///
    /// # Errors
    /// [`PublishError`]; then nothing has changed.
    pub async fn push_root(
        &self,
        push: RootPush,
        actor: &str,
        now: Timestamp,
    ) -> Result<Published, PublishError> {
        let _turn = self.publishing.lock().await;
        let mut change = self.store.write().await?;
        let added = self.add_roots(&mut change, &push.roots, actor, now).await?;
        let root = stored_root(&mut change).await?;
        let replaced = self.add_first_targets(&mut change, &root, push.targets, actor, now).await?;
        if added || replaced {
            self.seal(&mut change, now).await?;
            change.commit().await.map_err(StoreError::from)?;
            self.reload().await?;
        }
        self.versions()
    }

    fn versions(&self) -> Result<Published, PublishError> {
        self.view().versions.clone().ok_or_else(|| {
            PublishError::Conflict("the server has no root and targets metadata yet".to_owned())
        })
    }

    /// Stores the roots that are new. True if any was.
    async fn add_roots(
        &self,
        conn: &mut Connection,
        roots: &[String],
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, PublishError> {
        let mut chain: BTreeMap<u64, Vec<u8>> =
            documents::roots(conn).await?.into_iter().map(|root| (root.version, root.bytes)).collect();
        let newest = chain.keys().next_back().copied().unwrap_or(0);
        let mut new = Vec::new();
        for text in roots {
            let version = peek_version("a pushed root", text)?;
            match chain.get(&version) {
                Some(stored) if stored.as_slice() == text.as_bytes() => {}
                Some(_) => {
                    return Err(PublishError::Conflict(format!(
                        "the server has another root of version {version}: expected the one it was set up with; \
                         check that keys and server belong together"
                    )));
                }
                None if version < newest => {
                    return Err(PublishError::Conflict(format!(
                        "the root of version {version} is older than the server's, {newest}, and not part of its chain"
                    )));
                }
                None => {
                    chain.insert(version, text.clone().into_bytes());
                    new.push(version);
                }
            }
        }
        if new.is_empty() {
            return Ok(false);
        }
        let bytes: Vec<Vec<u8>> = chain.values().cloned().collect();
        let root = verify_root_chain(&bytes)?;
        self.check_root(&root, now)?;
        for version in new {
            let bytes = chain.remove(&version).unwrap_or_default();
            let link = verify_root_expiry(&bytes)?;
            let document = Document { version, expires: link, stored_at: now, bytes };
            documents::put(conn, "root", &document).await?;
            let subject = format!("version {version}");
            let entry = Change { actor, action: "root.push", subject: &subject, detail: "" };
            audit::record(conn, now, entry).await?;
        }
        Ok(true)
    }

    fn check_root(&self, root: &Root, now: Timestamp) -> Result<(), PublishError> {
        if root.expires() <= now {
            return Err(PublishError::Refused(format!(
                "the root of version {} expired at {}: expected one that is valid; sign a new one",
                root.version(),
                root.expires()
            )));
        }
        for (role, key) in [("snapshot", &self.keys.snapshot), ("timestamp", &self.keys.timestamp)] {
            if root.threshold(role) != 1 || !root.key_ids(role).iter().any(|id| id == key.id()) {
                return Err(PublishError::Refused(format!(
                    "the root lets other keys sign {role}: expected this server's, {}; make the root with this \
                     server's online-keys.pub.json",
                    key.id()
                )));
            }
        }
        Ok(())
    }

    /// Takes targets metadata that came with a root. True if it replaced what was there.
    async fn add_first_targets(
        &self,
        conn: &mut Connection,
        root: &Verified<Root>,
        pushed: Option<String>,
        actor: &str,
        now: Timestamp,
    ) -> Result<bool, PublishError> {
        let stored = documents::newest(conn, "targets").await?;
        let pushed = match pushed {
            Some(text) => Some((peek_version("the pushed targets metadata", &text)?, text)),
            None => None,
        };
        match (stored, pushed) {
            (None, None) => Err(PublishError::Refused(
                "the server has no targets metadata yet: expected targets.json beside the root".to_owned(),
            )),
            (Some(stored), Some((version, text))) if version > stored.version => {
                let targets = verify_targets(text.as_bytes(), root, now)?;
                self.replace_targets(conn, &targets, Pushed::new(Vec::new()), actor, now).await?;
                Ok(true)
            }
            (None, Some((_, text))) => {
                let targets = verify_targets(text.as_bytes(), root, now)?;
                self.replace_targets(conn, &targets, Pushed::new(Vec::new()), actor, now).await?;
                Ok(true)
            }
            // Releases were pushed since the keys folder's targets.json was made: the server's is the newer one.
            (Some(stored), _) => match verify_targets_signatures(&stored.bytes, root) {
                Ok(_) => Ok(false),
                Err(error) => Err(PublishError::Conflict(format!(
                    "the new root does not accept the server's targets metadata, version {}: {}; sign its \
                     successor with the new targets key and push it together with the root",
                    stored.version,
                    crate::error::chain(&error)
                ))),
            },
        }
    }

    /// Takes the next targets metadata and the manifests it adds.
    ///
    /// # Errors
    /// [`PublishError`]; then nothing has changed.
    pub async fn push_release(
        &self,
        push: ReleasePush,
        actor: &str,
        now: Timestamp,
    ) -> Result<Published, PublishError> {
        let _turn = self.publishing.lock().await;
        let mut change = self.store.write().await?;
        let root = stored_root(&mut change).await?;
        let current = documents::newest(&mut change, "targets").await?.map_or(0, |targets| targets.version);
        if current != push.replaces {
            return Err(PublishError::Conflict(format!(
                "the server's targets metadata is version {current}: expected {}, from which this push was made; \
                 someone else has pushed meanwhile, run the same command again",
                push.replaces
            )));
        }
        let targets = verify_targets(push.targets.as_bytes(), &root, now)?;
        if current.checked_add(1) != Some(targets.version()) {
            return Err(PublishError::Refused(format!(
                "the pushed targets metadata is version {}: expected the one after {current}",
                targets.version()
            )));
        }
        self.replace_targets(&mut change, &targets, Pushed::new(push.manifests), actor, now).await?;
        self.seal(&mut change, now).await?;
        change.commit().await.map_err(StoreError::from)?;
        self.reload().await?;
        self.versions()
    }

    /// Makes `targets` the newest targets metadata, and the releases those that it names.
    async fn replace_targets(
        &self,
        conn: &mut Connection,
        targets: &Verified<Targets>,
        mut pushed: Pushed,
        actor: &str,
        now: Timestamp,
    ) -> Result<(), PublishError> {
        let ours = self.keys.channels.id();
        if !targets.channels_key_ids().iter().any(|id| id == ours) {
            return Err(PublishError::Refused(format!(
                "the targets metadata lets other keys sign channels: expected this server's, {ours}; make it with \
                 this server's online-keys.pub.json"
            )));
        }
        let old: BTreeMap<(Version, Arch), Release> = releases::list(conn)
            .await?
            .into_iter()
            .map(|release| ((release.manifest.version.clone(), release.manifest.arch.clone()), release))
            .collect();
        let mut gone = old.clone();
        let mut done = Vec::new();
        for (path, listed) in targets.targets() {
            let (version, arch) = release_of(path)?;
            let before = gone.remove(&(version.clone(), arch.clone()));
            let subject = format!("{version} {arch}");
            let actions = self.put_release(conn, version, arch, &listed, before, &mut pushed, now).await?;
            done.extend(actions.into_iter().map(|(action, note)| (action, subject.clone(), note)));
        }
        if let Some(digest) = pushed.0.into_keys().find(|digest| !names(targets, digest)) {
            return Err(PublishError::Refused(format!(
                "a manifest with the sha256 {digest} was pushed that the targets metadata does not name"
            )));
        }
        for release in gone.into_values() {
            let (version, arch) = (&release.manifest.version, &release.manifest.arch);
            check_unused(conn, &release).await?;
            releases::remove(conn, version, arch).await?;
            done.push(("release.withdraw", format!("{version} {arch}"), String::new()));
        }
        channels::forget_insistence(conn).await?;
        if done.is_empty() {
            done.push(("targets.push", "no release changed".to_owned(), String::new()));
        }
        for (action, subject, note) in &done {
            let detail = format!("targets version {}{note}", targets.version());
            audit::record(conn, now, Change { actor, action, subject, detail: &detail }).await?;
        }
        let document = Document {
            version: targets.version(),
            expires: targets.expires(),
            stored_at: now,
            bytes: targets.bytes().to_vec(),
        };
        Ok(documents::put(conn, "targets", &document).await?)
    }

    /// Adds or keeps one release that the targets metadata names; says what was done for the audit log, with what to add to
    /// it.
    #[allow(
        clippy::too_many_arguments,
        reason = "one step of replace_targets, which is too long with it inside"
    )]
    async fn put_release(
        &self,
        conn: &mut Connection,
        version: Version,
        arch: Arch,
        listed: &Listed,
        before: Option<Release>,
        pushed: &mut Pushed,
        now: Timestamp,
    ) -> Result<Vec<(&'static str, String)>, PublishError> {
        let path = Manifest::target_path(&version, &arch);
        let digest = listed.sha256.ok_or_else(|| {
            PublishError::Refused(format!("the targets metadata gives no sha256 for {path}: expected one"))
        })?;
        let TargetCustom { allow_downgrade_from, dead_end } = listed.custom.clone();
        dead_end.as_deref().map_or(Ok(()), check_dead_end).map_err(PublishError::Refused)?;
        if let Some(mut release) = before {
            if release.target != documents::target_name(&path, &digest) {
                return Err(PublishError::Conflict(format!(
                    "the release {version} for {arch} exists with another manifest: a release never changes; give \
                     the new one another version"
                )));
            }
            let mut done = Vec::new();
            if release.allow_downgrade_from != allow_downgrade_from {
                done.push(("release.change", String::new()));
            }
            if release.dead_end != dead_end {
                done.push(marked(dead_end.as_deref()));
            }
            if !done.is_empty() {
                (release.allow_downgrade_from, release.dead_end) = (allow_downgrade_from, dead_end);
                releases::put(conn, &release).await?;
            }
            return Ok(done);
        }
        let bytes = pushed.0.remove(&digest).ok_or_else(|| {
            PublishError::Refused(format!(
                "the targets metadata names {path} with the sha256 {digest}: expected that manifest to be pushed with it"
            ))
        })?;
        if bytes.len() as u64 != listed.size {
            return Err(PublishError::Refused(format!(
                "{path} is {} bytes long: expected {}, as the targets metadata says",
                bytes.len(),
                listed.size
            )));
        }
        let manifest = Manifest::parse(&bytes, &version, &arch)
            .map_err(|error| PublishError::Refused(crate::error::chain(&error)))?;
        for payload in &manifest.payloads {
            if !self.payloads.holds(&payload.sha256, payload.size).await? {
                return Err(PublishError::Conflict(format!(
                    "the server has no payload {} of {} bytes, which {path} names: upload it first",
                    payload.sha256, payload.size
                )));
            }
        }
        let target = documents::put_target(conn, &path, &bytes, now).await?;
        let mut done = vec![("release.push", String::new())];
        done.extend(dead_end.as_deref().map(|why| marked(Some(why))));
        let release = Release { manifest, target, allow_downgrade_from, dead_end, pushed_at: now };
        releases::put(conn, &release).await?;
        Ok(done)
    }
}

/// A mark as a dead end, or that it was taken back, for the audit log.
fn marked(why: Option<&str>) -> (&'static str, String) {
    let note = why.map_or_else(|| ": a dead end no more".to_owned(), |why| format!(": {why}"));
    ("release.dead-end", note)
}

/// When a root expires, whatever the chain says about it.
fn verify_root_expiry(bytes: &[u8]) -> Result<Timestamp, PublishError> {
    #[derive(Deserialize)]
    struct Envelope {
        signed: Signed,
    }
    #[derive(Deserialize)]
    struct Signed {
        expires: Timestamp,
    }
    serde_json::from_slice::<Envelope>(bytes)
        .map(|envelope| envelope.signed.expires)
        .map_err(|error| PublishError::Refused(format!("a pushed root is not TUF metadata: {error}")))
}

/// The release whose manifest is at `path`. Anything else has no place in our targets metadata.
fn release_of(path: &str) -> Result<(Version, Arch), PublishError> {
    let parse = || {
        let (version, arch) =
            path.strip_prefix("releases/")?.strip_suffix("/manifest.json")?.split_once('/')?;
        Some((version.parse().ok()?, arch.parse().ok()?))
    };
    parse().ok_or_else(|| {
        PublishError::Refused(format!(
            "the targets metadata names {:?}: expected only releases/<version>/<arch>/manifest.json",
            path.chars().take(200).collect::<String>()
        ))
    })
}

fn names(targets: &Targets, digest: &Sha256) -> bool {
    targets.targets().any(|(_, listed)| listed.sha256 == Some(*digest))
}

/// A release that a channel points at, or that nodes of a channel must pass through, cannot be withdrawn; nor a dead end,
/// because nothing would tell any more that no release leads on from it.
async fn check_unused(conn: &mut Connection, release: &Release) -> Result<(), PublishError> {
    let (version, arch) = (&release.manifest.version, &release.manifest.arch);
    if release.dead_end.is_some() {
        return Err(PublishError::Conflict(format!(
            "{version} for {arch} is a dead end, and withdrawn it would be forgotten that nodes which run it must not be sent \
             on; no node is sent there as it is; to withdraw it all the same, first run updatectl release dead-end {version} \
             --clear"
        )));
    }
    let channels = channels::list(conn).await?;
    let releases = releases::list(conn).await?;
    let published = super::published(&releases, &channels);
    for channel in &channels {
        if channel.version == *version
            || crate::decision::listed(&published, &channel.channel).contains(version)
        {
            return Err(PublishError::Conflict(format!(
                "the channel {} needs the release {version} for {arch}: point it at another release first",
                channel.channel
            )));
        }
    }
    Ok(())
}
