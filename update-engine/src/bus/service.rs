//! All steps: the engine's object on the bus. Reading needs nothing; each method is a request to the state machine,
//! made once polkit has allowed it.

use super::RequestError;
use super::authority::authorize;
use crate::driver::{Shown, Signal};
use machine::{Clear, Command, Outcome};
use protocol::digest::Sha256;
use protocol::status::Status;
use serde::Serialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use zbus::Connection;
use zbus::message::Header;
use zbus::zvariant::Value;

/// How long the state machine may take to answer: it answers between two effects, of which saving the record on a
/// busy disk is the longest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The object.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) engine: mpsc::Sender<Signal>,
    pub(super) shown: watch::Receiver<Option<Shown>>,
    /// Absolute.
    pub(super) state_dir: PathBuf,
}

/// The status as it goes over the bus.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    status: &'a Status,
    /// An operation runs: the rest is about to change by itself.
    busy: bool,
}

/// The values of the properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Properties {
    state: String,
    reason: String,
    status: String,
    bytes_total: u64,
    bytes_done: u64,
    bytes_downloaded: u64,
    booted_slot: String,
    booted_version: String,
    staged_version: String,
}

impl From<&Shown> for Properties {
    fn from(Shown { status, busy }: &Shown) -> Self {
        let Status { state, reason, booted, staged, progress, .. } = status;
        let booted = booted.as_ref();
        Self {
            state: state.to_string(),
            reason: reason.clone(),
            // A status is made of texts and numbers: it always has a JSON form.
            status: serde_json::to_string(&Document { status, busy: *busy }).unwrap_or_default(),
            bytes_total: progress.bytes_total,
            bytes_done: progress.bytes_done,
            bytes_downloaded: progress.bytes_downloaded,
            booted_slot: booted.map(|booted| booted.slot.to_string()).unwrap_or_default(),
            booted_version: booted.map(|booted| booted.version.to_string()).unwrap_or_default(),
            staged_version: staged.as_ref().map(|staged| staged.version.to_string()).unwrap_or_default(),
        }
    }
}

impl Properties {
    /// What is other than it was, by the properties' names on the bus.
    pub(super) fn changes<'a>(&'a self, old: &Self) -> HashMap<&'static str, Value<'a>> {
        let text = |new: &'a String, old: &String| (new != old).then(|| Value::from(new.as_str()));
        let number = |new: u64, old: u64| (new != old).then(|| Value::from(new));
        [
            ("State", text(&self.state, &old.state)),
            ("Reason", text(&self.reason, &old.reason)),
            ("Status", text(&self.status, &old.status)),
            ("BytesTotal", number(self.bytes_total, old.bytes_total)),
            ("BytesDone", number(self.bytes_done, old.bytes_done)),
            ("BytesDownloaded", number(self.bytes_downloaded, old.bytes_downloaded)),
            ("BootedSlot", text(&self.booted_slot, &old.booted_slot)),
            ("BootedVersion", text(&self.booted_version, &old.booted_version)),
            ("StagedVersion", text(&self.staged_version, &old.staged_version)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

impl Service {
    fn properties(&self) -> Properties {
        self.shown.borrow().as_ref().map(Properties::from).unwrap_or_default()
    }

    /// Puts a request to the state machine, if the caller may.
    async fn request(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: &str,
        command: Command,
    ) -> Result<String, RequestError> {
        authorize(connection, header, &format!("io.flipside.update-engine.{action}")).await?;
        let ask = async {
            let (reply_to, reply) = oneshot::channel();
            self.engine.send(Signal::Request((command, reply_to))).await.ok()?;
            reply.await.ok()
        };
        let reply = match tokio::time::timeout(ANSWER_TIMEOUT, ask).await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Err(RequestError::Unavailable("the engine is ending".to_owned())),
            Err(_) => {
                return Err(RequestError::Unavailable(format!(
                    "the engine does not answer within {} s; it may still do what was asked",
                    ANSWER_TIMEOUT.as_secs()
                )));
            }
        };
        match reply.outcome {
            Outcome::Done => Ok(reply.text),
            Outcome::NothingToDo => Err(RequestError::NothingToDo(reply.text)),
            Outcome::Declined => Err(RequestError::Declined(reply.text)),
        }
    }
}

#[zbus::interface(name = "io.flipside.UpdateEngine1")]
impl Service {
    async fn check(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, RequestError> {
        self.request(connection, &header, "check", Command::Check).await
    }

    async fn update(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
        force_retry: bool,
    ) -> Result<String, RequestError> {
        self.request(connection, &header, "update", Command::Update { force_retry }).await
    }

    async fn reboot(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, RequestError> {
        self.request(connection, &header, "reboot", Command::Reboot).await
    }

    async fn rollback(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, RequestError> {
        self.request(connection, &header, "rollback", Command::Rollback).await
    }

    async fn mark_good(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, RequestError> {
        self.request(connection, &header, "mark-good", Command::MarkGood).await
    }

    async fn cancel(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<String, RequestError> {
        self.request(connection, &header, "cancel", Command::Cancel).await
    }

    async fn quarantine_clear(
        &self,
        #[zbus(connection)] connection: &Connection,
        #[zbus(header)] header: Header<'_>,
        release: &str,
    ) -> Result<String, RequestError> {
        let which = if release.is_empty() {
            Clear::All
        } else {
            Clear::Release(release.parse::<Sha256>().map_err(|error| {
                RequestError::InvalidArgument(format!(
                    "expected a release's sha256, or nothing for all of them: {error}"
                ))
            })?)
        };
        self.request(connection, &header, "quarantine-clear", Command::QuarantineClear(which)).await
    }

    #[zbus(property)]
    fn state(&self) -> String {
        self.properties().state
    }

    #[zbus(property)]
    fn reason(&self) -> String {
        self.properties().reason
    }

    #[zbus(property)]
    fn status(&self) -> String {
        self.properties().status
    }

    /// Empty where the folder's name is not text.
    #[zbus(property(emits_changed_signal = "const"))]
    fn state_directory(&self) -> String {
        self.state_dir.to_str().unwrap_or_default().to_owned()
    }

    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        self.properties().bytes_total
    }

    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.properties().bytes_done
    }

    #[zbus(property)]
    fn bytes_downloaded(&self) -> u64 {
        self.properties().bytes_downloaded
    }

    #[zbus(property)]
    fn booted_slot(&self) -> String {
        self.properties().booted_slot
    }

    #[zbus(property)]
    fn booted_version(&self) -> String {
        self.properties().booted_version
    }

    #[zbus(property)]
    fn staged_version(&self) -> String {
        self.properties().staged_version
    }
}
