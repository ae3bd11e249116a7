//! All steps, on a bus: a private system bus, a polkit that says what a test wants, and a listener.

use crate::process::Service;
use crate::world::path;
use anyhow::{Context, Result, bail};
use futures::StreamExt as _;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use zbus::zvariant::{OwnedValue, Value};
use zbus::{Connection, connection};

/// After this long, what is waited for does not come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A bus of its own for a test, with a folder that every user may enter.
#[derive(Debug)]
pub struct Bus {
    folder: tempfile::TempDir,
    daemon: Option<Service>,
}

/// Every user may connect, own names and talk: what is judged is the engine's own judgement.
const CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
  </policy>
</busconfig>
"#;

impl Bus {
    /// Starts it.
    ///
    /// # Errors
    /// Where `dbus-daemon` is missing or fails.
    pub fn start() -> Result<Self> {
        let mut permissions = tempfile::Builder::new();
        permissions.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let folder = permissions.prefix("flipside-bus-").tempdir()?;
        let mut bus = Self { folder, daemon: None };
        bus.go_on()?;
        Ok(bus)
    }

    /// Starts it again at the same address after [`Self::stop`].
    ///
    /// # Errors
    /// Where `dbus-daemon` fails.
    pub fn go_on(&mut self) -> Result<()> {
        let socket = self.socket();
        // A daemon that was killed leaves it behind.
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let config = self.folder.path().join("bus.conf");
        std::fs::write(&config, CONFIG.replace("SOCKET", path(&socket)?))?;
        let mut command = Command::new("dbus-daemon");
        command.arg("--nofork").arg("--print-address").arg(format!("--config-file={}", config.display()));
        self.daemon = Some(Service::start(&mut command, &self.folder.path().join("log"))?);
        Ok(())
    }

    /// Ends it by its process id, without notice.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A folder that every user may enter.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where it listens, as in `DBUS_SYSTEM_BUS_ADDRESS`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket().display())
    }

    /// Has a program take this bus for the system's.
    pub fn serve<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
    }

    /// A connection to it.
    ///
    /// # Errors
    /// Where there is none to be had.
    pub async fn connect(&self) -> Result<Connection> {
        Ok(connection::Builder::address(self.address().as_str())?.build().await?)
    }

    /// Waits until a name has an owner, or has none any more.
    ///
    /// # Errors
    /// Where that does not happen within two minutes.
    pub async fn wait_for_name(&self, name: &str, owned: bool) -> Result<()> {
        let connection = self.connect().await?;
        let bus = zbus::fdo::DBusProxy::new(&connection).await?;
        let mut changes = bus.receive_name_owner_changed_with_args(&[(0, name)]).await?;
        while bus.name_has_owner(name.try_into()?).await? != owned {
            if tokio::time::timeout(PATIENCE, changes.next()).await.is_err() {
                bail!("{name} is still {}", if owned { "not on the bus" } else { "on the bus" });
            }
        }
        Ok(())
    }
}

/// What a [`Polkit`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The caller may.
    Yes,
    /// The caller may not.
    No,
    /// The caller may after giving a password.
    Challenge,
}

/// A question that a [`Polkit`] was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The kind of subject.
    pub kind: String,
    /// The subject's name.
    pub name: String,
    /// The action's id.
    pub action: String,
    /// Its flags: 1 is that a person may be asked.
    pub flags: u32,
}

/// An authority that says what a test wants, and keeps what it was asked.
#[derive(Clone, Debug)]
pub struct Polkit {
    asked: Arc<Mutex<Vec<Question>>>,
    verdict: Arc<Mutex<Verdict>>,
}

/// `(is_authorized, is_challenge, details)`
type Answer = (bool, bool, HashMap<String, String>);

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Polkit {
    fn check_authorization(
        &self,
        subject: (String, HashMap<String, OwnedValue>),
        action_id: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation_id: &str,
    ) -> zbus::fdo::Result<(Answer,)> {
        let (kind, properties) = subject;
        if details.into_keys().next().is_some() || cancellation_id.is_empty() {
            // The real one refuses details from whoever does not own the action.
            return Err(zbus::fdo::Error::InvalidArgs(
                "unexpected details, or no cancellation id".to_owned(),
            ));
        }
        let name = match properties.get("name").map(std::ops::Deref::deref) {
            Some(Value::Str(name)) => name.to_string(),
            other => return Err(zbus::fdo::Error::InvalidArgs(format!("no name of a subject: {other:?}"))),
        };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(Question {
            kind,
            name,
            action: action_id,
            flags,
        });
        let answer: Answer = match *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) {
            Verdict::Yes => (true, false, HashMap::new()),
            Verdict::No => (false, false, HashMap::new()),
            Verdict::Challenge => (false, true, HashMap::new()),
        };
        Ok((answer,))
    }
}

impl Polkit {
    /// Puts it on a bus; it is there as long as the connection.
    ///
    /// # Errors
    /// Where the name is taken.
    pub async fn start(bus: &Bus, verdict: Verdict) -> Result<(Self, Connection)> {
        let polkit = Self { asked: Arc::default(), verdict: Arc::new(Mutex::new(verdict)) };
        let connection = connection::Builder::address(bus.address().as_str())?
            .serve_at("/org/freedesktop/PolicyKit1/Authority", polkit.clone())?
            .name("org.freedesktop.PolicyKit1")?
            .build()
            .await?;
        Ok((polkit, connection))
    }

    /// Answers this from now on.
    pub fn answer(&self, verdict: Verdict) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
    }

    /// What it was asked so far, which it then forgets.
    #[must_use]
    pub fn asked(&self) -> Vec<Question> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A signal about changed properties.
#[derive(Debug)]
pub struct Told {
    /// When it came.
    pub at: Instant,
    /// The properties with their new values.
    pub changed: HashMap<String, OwnedValue>,
}

impl Told {
    /// The new value of a text property.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let value = self.changed.get(name)?;
        String::try_from(value.try_clone().ok()?).ok()
    }

    /// The new value of a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        u64::try_from(self.changed.get(name)?).ok()
    }
}

/// Collects the signals of an engine.
#[derive(Debug)]
pub struct Listener {
    signals: zbus::fdo::PropertiesChangedStream,
}

impl Listener {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the bus does not answer.
    pub async fn start(bus: &Bus, name: &str, object: &str) -> Result<Self> {
        let connection = bus.connect().await?;
        let properties = zbus::fdo::PropertiesProxy::builder(&connection)
            .destination(name.to_owned())?
            .path(object.to_owned())?
            .build()
            .await?;
        Ok(Self { signals: properties.receive_properties_changed().await? })
    }

    /// All signals up to the first for which `last` holds.
    ///
    /// # Errors
    /// Where none comes for two minutes.
    pub async fn until(&mut self, last: impl Fn(&Told) -> bool) -> Result<Vec<Told>> {
        let mut all = Vec::new();
        loop {
            let signal = tokio::time::timeout(PATIENCE, self.signals.next())
                .await
                .with_context(|| format!("no such signal, but {all:?}"))?
                .context("the bus is gone")?;
            let mut changed = HashMap::new();
            for (name, value) in signal.args()?.changed_properties() {
                changed.insert((*name).to_owned(), value.try_to_owned()?);
            }
            let told = Told { at: Instant::now(), changed };
            let end = last(&told);
            all.push(told);
            if end {
                return Ok(all);
            }
        }
    }
}
