//! Steps 3 and 4, metadata and channel: the roles that the server signs, put into the database by the transaction
//! that made them necessary.

use super::push::stored_root;
use super::{PublishError, Repository, decision, published};
use crate::store::documents::{self, Document};
use crate::store::{Connection, StoreError, channels, releases};
use jiff::Timestamp;
use protocol::manifest::{ChannelFile, SCHEMA};
use protocol::wire::Published;
use std::collections::BTreeMap;
use trust::publish::{self, Current, File};
use trust::verify_targets_signatures;

/// Whether half of a document's life is over.
fn half_over(document: &Document, now: Timestamp) -> bool {
    let life = document.expires.duration_since(document.stored_at);
    now.duration_since(document.stored_at) >= life / 2
}

/// The versions that are published, once all roles are.
pub(super) async fn versions(conn: &mut Connection) -> Result<Option<Published>, StoreError> {
    let mut found = [0; 4];
    for (version, role) in found.iter_mut().zip(["root", "targets", "snapshot", "timestamp"]) {
        match documents::newest(conn, role).await? {
            Some(document) => *version = document.version,
            None => return Ok(None),
        }
    }
    let [root, targets, snapshot, timestamp] = found;
    Ok(Some(Published { schema: protocol::wire::SCHEMA, root, targets, snapshot, timestamp }))
}

async fn store(conn: &mut Connection, role: &str, file: File, now: Timestamp) -> Result<(), StoreError> {
    let File { version, bytes, expires } = file;
    documents::put(conn, role, &Document { version, expires, stored_at: now, bytes }).await
}

async fn version(conn: &mut Connection, role: &str) -> Result<u64, StoreError> {
    Ok(documents::newest(conn, role).await?.map_or(0, |document| document.version))
}

impl Repository {
    /// Signs channels, snapshot and timestamp for what the transaction has made of targets and channels.
    pub(super) async fn seal(&self, conn: &mut Connection, now: Timestamp) -> Result<(), PublishError> {
        let targets = documents::newest(conn, "targets").await?.ok_or_else(|| {
            PublishError::Conflict(
                "the server has no root and targets metadata yet: push them first with updatectl root push FOLDER"
                    .to_owned(),
            )
        })?;
        let targets = verify_targets_signatures(&targets.bytes, &stored_root(conn).await?)?;
        let channels = channels::list(conn).await?;
        let published = published(&releases::list(conn).await?, &channels);
        let mut files = BTreeMap::new();
        for channel in channels {
            let versions = decision::listed(&published, &channel.channel);
            let path = ChannelFile::target_path(&channel.channel);
            let file = ChannelFile { schema: SCHEMA, channel: channel.channel, versions };
            let bytes = publish::channel_file(&file)?;
            documents::put_target(conn, &path, &bytes, now).await?;
            files.insert(file.channel, bytes);
        }
        let current = Current {
            channels: version(conn, "channels").await?,
            snapshot: version(conn, "snapshot").await?,
            timestamp: version(conn, "timestamp").await?,
        };
        let next = publish::next(current, &targets, &files, &self.keys, &self.lifetimes, now)?;
        store(conn, "channels", next.channels, now).await?;
        store(conn, "snapshot", next.snapshot, now).await?;
        Ok(store(conn, "timestamp", next.timestamp, now).await?)
    }

    /// Signs anew what has half of its life behind it. True if there was such.
    pub(super) async fn renew_due(
        &self,
        conn: &mut Connection,
        now: Timestamp,
    ) -> Result<bool, PublishError> {
        let due = |document: &Option<Document>| document.as_ref().is_none_or(|d| half_over(d, now));
        let channels = documents::newest(conn, "channels").await?;
        let snapshot = documents::newest(conn, "snapshot").await?;
        let timestamp = documents::newest(conn, "timestamp").await?;
        match snapshot {
            Some(snapshot) if !due(&channels) && !half_over(&snapshot, now) => {
                if !due(&timestamp) {
                    return Ok(false);
                }
                let Document { version, expires, bytes, .. } = snapshot;
                let snapshot = File { version, bytes, expires };
                let current = timestamp.map_or(0, |timestamp| timestamp.version);
                let next = publish::renew_timestamp(current, &snapshot, &self.keys, &self.lifetimes, now)?;
                store(conn, "timestamp", next, now).await?;
            }
            _ => self.seal(conn, now).await?,
        }
        Ok(true)
    }
}
