//! Steps 3 and 4, metadata and channel: the TUF repository. What operators push is checked here and published whole.
//!
//! A change of anything is one transaction of the database: the pushed documents, the rows about them, and the
//! channels, snapshot and timestamp metadata that the server signs for them. So at every point, a crash included, the
//! timestamp names a snapshot that exists, and that snapshot names files that exist.

pub mod paths;
mod push;
mod seal;

use crate::decision::{self, Candidate};
use crate::payloads::{PayloadError, Payloads};
use crate::rollouts;
use crate::store::audit::{self, Change};
use crate::store::releases::Release;
use crate::store::{Connection, Store, StoreError, Transaction, channels, documents, releases};
use jiff::{SignedDuration, Timestamp};
use protocol::id::Channel;
use protocol::version::Version;
use protocol::wire::{ChannelInfo, OnDeadEnd, Published};
use std::sync::{Arc, PoisonError, RwLock};
use trust::document::{BuildError, Lifetimes};
use trust::{OnlineKeys, TrustError};

/// For how long superseded channels and snapshot metadata stay readable, for nodes in the middle of a refresh.
const KEEP_SUPERSEDED: SignedDuration = SignedDuration::from_hours(24 * 30);
/// From how long before its expiry the log warns of metadata that only an operator can renew.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 21);

/// Why something is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// What was pushed makes no sense here.
    #[error("{0}")]
    Refused(String),
    /// What was pushed is not signed as it must be.
    #[error("the pushed metadata is not trusted")]
    Untrusted(#[from] TrustError),
    /// The repository is in another state than the push assumes.
    #[error("{0}")]
    Conflict(String),
    /// What the request names is not there.
    #[error("{0}")]
    Missing(String),
    /// Whether a payload is there is not known.
    #[error(transparent)]
    Payloads(#[from] PayloadError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server's own metadata cannot be signed.
    #[error("cannot sign the server's own metadata")]
    Signing(#[from] BuildError),
}

/// What is published, in memory: checks and lists are answered from it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What the decision is made from.
    pub published: decision::Published,
    /// All releases, newest version first.
    pub releases: Vec<Release>,
    /// All channels, by name.
    pub channels: Vec<ChannelInfo>,
    /// The versions of the metadata, once there is a root.
    pub versions: Option<Published>,
    /// When the timestamp metadata expires.
    pub fresh_until: Option<Timestamp>,
}

impl View {
    async fn load(conn: &mut Connection) -> Result<Self, StoreError> {
        let releases = releases::list(conn).await?;
        let channels = channels::list(conn).await?;
        Ok(Self {
            published: published(&releases, &channels),
            releases,
            channels,
            versions: seal::versions(conn).await?,
            fresh_until: documents::newest(conn, "timestamp").await?.map(|timestamp| timestamp.expires),
        })
    }
}

fn published(releases: &[Release], channels: &[ChannelInfo]) -> decision::Published {
    let candidate = |release: &Release| Candidate {
        version: release.manifest.version.clone(),
        arch: release.manifest.arch.clone(),
        min_source: release.manifest.min_source_version.clone(),
        allow_downgrade_from: release.allow_downgrade_from.clone(),
        dead_end: release.dead_end.clone(),
    };
    decision::Published {
        releases: releases.iter().map(candidate).collect(),
        channels: channels.iter().map(|c| (c.channel.clone(), c.version.clone())).collect(),
        to_dead_ends: channels.iter().filter(|c| c.to_dead_end).map(|c| c.channel.clone()).collect(),
    }
}

/// Who wants a channel to be pointed at a release, and how much they want it.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The name of the token.
    pub actor: &'a str,
    /// The channel that it is promoted from, if it is.
    pub from: Option<&'a Channel>,
    /// Although nodes have no way to it.
    pub leave_behind: bool,
    /// Although it is a dead end.
    pub to_dead_end: bool,
    /// Although the promotion gate is closed: why.
    pub despite_gate: Option<&'a str>,
}

/// The repository.
#[derive(Debug)]
pub struct Repository {
    store: Store,
    payloads: Payloads,
    keys: OnlineKeys,
    lifetimes: Lifetimes,
    view: RwLock<Arc<View>>,
    /// Held from the begin of a change until the view shows it, so that views follow one another as changes do.
    publishing: tokio::sync::Mutex<()>,
}

impl Repository {
    /// The repository in `store`, signing with `keys`.
    ///
    /// # Errors
    /// [`StoreError`] where what is published cannot be read.
    pub async fn open(store: Store, payloads: Payloads, keys: OnlineKeys) -> Result<Self, StoreError> {
        let view = View::load(&mut *store.read_at_once().await?).await?;
        Ok(Self {
            store,
            payloads,
            keys,
            lifetimes: Lifetimes::default(),
            view: RwLock::new(Arc::new(view)),
            publishing: tokio::sync::Mutex::new(()),
        })
    }

    /// What is published now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        // A view is replaced whole, so it is whole even after a panic.
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn reload(&self) -> Result<(), StoreError> {
        let view = View::load(&mut *self.store.read_at_once().await?).await?;
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        Ok(())
    }

    /// Shows what another server on the same database has published. Every change of what is published comes with a new
    /// timestamp, so that one number tells.
    ///
    /// # Errors
    /// [`StoreError`] where what is published cannot be read; then the view stays as it is.
    pub async fn follow(&self) -> Result<(), StoreError> {
        let timestamp = documents::newest(&mut *self.store.read().await?, "timestamp").await?;
        let shown = self.view().versions.as_ref().map(|versions| versions.timestamp);
        if timestamp.map(|document| document.version) == shown {
            return Ok(());
        }
        let _turn = self.publishing.lock().await;
        self.reload().await
    }

    /// Points a channel at a release: a rollout of it begins.
    ///
    /// # Errors
    /// [`PublishError`]; then nothing has changed.
    pub async fn set_channel(
        &self,
        channel: &Channel,
        version: &Version,
        wish: Wish<'_>,
        now: Timestamp,
    ) -> Result<ChannelInfo, PublishError> {
        let _turn = self.publishing.lock().await;
        let mut change = self.store.write().await?;
        let before = channels::list(&mut change).await?.into_iter().find(|c| c.channel == *channel);
        let releases = releases::list(&mut change).await?;
        let dead_end = releases.iter().find(|r| r.manifest.version == *version && r.dead_end.is_some());
        if let Some(same) = before.as_ref().filter(|before| before.version == *version) {
            if same.to_dead_end || !wish.to_dead_end || dead_end.is_none() {
                return Ok(same.clone());
            }
            let detail = format!("{version}: its nodes go there although it is a dead end");
            return self.point(change, channel, (version, true), wish.actor, &detail, now).await;
        }
        if !releases.iter().any(|release| release.manifest.version == *version) {
            return Err(PublishError::Missing(format!(
                "there is no release {version}: expected {}; push it first with updatectl release push FOLDER --key KEY",
                held(&releases)
            )));
        }
        if let Some(from) = wish.from {
            // This server's view may be behind what another one has published.
            let there = channels::list(&mut change).await?.into_iter().find(|c| c.channel == *from);
            if there.is_none_or(|there| there.version != *version) {
                return Err(PublishError::Conflict(format!(
                    "the channel {from} was pointed elsewhere meanwhile: expected {version} there; run the same command again"
                )));
            }
        }
        let mut notes = self.check_gate(&mut change, channel, version, wish, now).await?;
        if let Some(end) = dead_end {
            if !wish.to_dead_end {
                return Err(PublishError::Conflict(refuse_dead_end(channel, end)));
            }
            notes.push_str(" although it is a dead end");
        }
        let (ways, on_dead_ends) =
            self.check_ways(&mut change, channel, &releases, version, wish, now).await?;
        notes.push_str(&ways);
        let number = rollouts::begin(&mut change, channel, version, now).await?;
        let from = before.map_or_else(|| "nothing".to_owned(), |before| before.version.to_string());
        let detail = format!("{from} -> {version}{notes}, rollout {number}");
        let to = (version, dead_end.is_some());
        let info = self.point(change, channel, to, wish.actor, &detail, now).await?;
        Ok(ChannelInfo { on_dead_ends, ..info })
    }

    /// Writes where a channel points, and whether although that is a dead end, and publishes it.
    async fn point(
        &self,
        mut change: Transaction,
        channel: &Channel,
        (version, to_dead_end): (&Version, bool),
        actor: &str,
        detail: &str,
        now: Timestamp,
    ) -> Result<ChannelInfo, PublishError> {
        channels::set(&mut change, channel, version, to_dead_end, now, actor).await?;
        let entry = Change { actor, action: "channel.set", subject: channel.as_str(), detail };
        audit::record(&mut change, now, entry).await?;
        self.seal(&mut change, now).await?;
        change.commit().await.map_err(StoreError::from)?;
        self.reload().await?;
        let view = self.view();
        view.channels.iter().find(|c| c.channel == *channel).cloned().ok_or_else(|| {
            PublishError::Store(StoreError::Corrupt { what: "a channel", found: channel.to_string() })
        })
    }

    /// Whether the channel's nodes have a way to the release, but for those on dead ends: what to note about them in the audit
    /// log, and these.
    async fn check_ways(
        &self,
        conn: &mut Connection,
        channel: &Channel,
        releases: &[Release],
        version: &Version,
        wish: Wish<'_>,
        now: Timestamp,
    ) -> Result<(String, Vec<OnDeadEnd>), PublishError> {
        let mut all = channels::list(conn).await?;
        all.retain(|other| other.channel != *channel);
        let mut next = published(releases, &all);
        next.channels.insert(channel.clone(), version.clone());
        // Where it is one, that was insisted on.
        next.to_dead_ends.insert(channel.clone());
        let (left, on_dead_ends) = paths::left_behind(conn, &next, channel, now).await?;
        let mut notes = String::new();
        if let Some(left) = left {
            if !wish.leave_behind {
                return Err(PublishError::Conflict(left));
            }
            notes.push_str("; nodes are left behind");
        }
        let stay = on_dead_ends.iter().map(|on| on.nodes).fold(0, u32::saturating_add);
        if stay > 0 {
            notes.push_str(&format!("; {stay} nodes stay on dead ends"));
        }
        Ok((notes, on_dead_ends))
    }

    /// Whether the release may be promoted to the channel, and what to note about it in the audit log.
    async fn check_gate(
        &self,
        conn: &mut Connection,
        channel: &Channel,
        version: &Version,
        wish: Wish<'_>,
        now: Timestamp,
    ) -> Result<String, PublishError> {
        let Some(from) = wish.from else { return Ok(String::new()) };
        let closed = paths::closed_gate(conn, from, channel, version, now).await?.join("; ");
        match wish.despite_gate {
            _ if closed.is_empty() => Ok(format!(" (promoted from {from})")),
            Some(why) => Ok(format!(" (promoted from {from} although {closed}: {why})")),
            None => Err(PublishError::Conflict(format!(
                "{version} is not promoted to {channel}: {closed}; promote it when that has changed, or now with \
                 --despite-gate WHY"
            ))),
        }
    }

    /// Points a channel at the release that `wish.from` points at.
    ///
    /// # Errors
    /// [`PublishError`]; then nothing has changed.
    pub async fn promote(
        &self,
        from: &Channel,
        to: &Channel,
        wish: Wish<'_>,
        now: Timestamp,
    ) -> Result<ChannelInfo, PublishError> {
        let version = self.view().published.channels.get(from).cloned().ok_or_else(|| {
            PublishError::Missing(format!(
                "the channel {from} points at no release: set it first with updatectl channel set {from} VERSION"
            ))
        })?;
        self.set_channel(to, &version, Wish { from: Some(from), ..wish }, now).await
    }

    /// Signs timestamp, snapshot and channels metadata anew where half of their life is over, and warns in the log of
    /// what only an operator can renew. Called at start and every minute. True if it signed anything.
    ///
    /// # Errors
    /// [`PublishError`]; then nothing has changed.
    pub async fn renew(&self, now: Timestamp) -> Result<bool, PublishError> {
        let _turn = self.publishing.lock().await;
        let mut change = self.store.write().await?;
        if documents::newest(&mut change, "root").await?.is_none() {
            return Ok(false);
        }
        for (role, remedy) in
            [("root", "sign and push a new root"), ("targets", "run updatectl release renew --key KEY")]
        {
            let Some(document) = documents::newest(&mut change, role).await? else { continue };
            if document.expires <= now {
                tracing::error!(role, expires = %document.expires, "metadata has expired and no node updates: {remedy}");
            } else if document.expires.duration_since(now) < WARN_BEFORE {
                tracing::warn!(role, expires = %document.expires, "metadata expires soon: {remedy}");
            }
        }
        let signed = self.renew_due(&mut change, now).await?;
        if signed {
            let before = now.saturating_sub(KEEP_SUPERSEDED).unwrap_or(Timestamp::MIN);
            documents::prune(&mut change, "snapshot", before).await?;
            documents::prune(&mut change, "channels", before).await?;
            change.commit().await.map_err(StoreError::from)?;
            self.reload().await?;
            tracing::info!(versions = ?self.view().versions, "metadata renewed");
        }
        Ok(signed)
    }
}

/// Why a channel is not pointed at a dead end.
fn refuse_dead_end(channel: &Channel, end: &Release) -> String {
    let (version, arch) = (&end.manifest.version, &end.manifest.arch);
    let why = end.dead_end.as_deref().unwrap_or_default();
    format!(
        "{version} is a dead end for {arch} ({why}): nodes of {channel} that go there get no further by themselves; choose \
         another release, or insist with --to-dead-end"
    )
}

/// The releases that may be named instead of one that may not.
fn held(releases: &[Release]) -> String {
    let mut versions: Vec<&str> = releases.iter().map(|r| r.manifest.version.as_str()).collect();
    versions.dedup();
    match versions.as_slice() {
        [] => "one that the server holds, and it holds none".to_owned(),
        [only] => (*only).to_owned(),
        _ => format!("one of {}", versions.join(", ")),
    }
}
