//! The last stage of configuration: which reboot lock this node asks, and how.

use super::{ConfigError, Merged, Reader};
use protocol::id::Group;
use protocol::lock::Zone;
use reqwest::Url;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// `[lock]`
#[derive(Clone, Debug)]
pub struct Lock {
    /// Who keeps it.
    pub backend: LockBackend,
    /// Whose permits are asked for.
    pub group: Group,
    /// Where this node stands, for limits per zone.
    pub zone: Option<Zone>,
    /// Higher goes first.
    pub priority: i32,
    /// The member of the guarded etcd cluster that runs on this node.
    pub etcd_member: Option<String>,
    /// For one request.
    pub timeout: Duration,
    /// For one question with all that is tried for it; never shorter than [`Self::timeout`].
    pub deadline: Duration,
}

/// Who keeps the lock.
#[derive(Clone, Debug)]
pub enum LockBackend {
    /// The update server.
    Server,
    /// An etcd cluster.
    Etcd(Box<Etcd>),
    /// Any FleetLock v1 server.
    FleetLock {
        /// Its base address, ending in a slash.
        base_url: Url,
    },
}

/// `[lock.etcd]`
#[derive(Clone, Debug)]
pub struct Etcd {
    /// The members' client addresses; never empty, no paths in them.
    pub endpoints: Vec<Url>,
    /// The authorities that may sign the members' certificates; those of the system where it is not set.
    pub ca: Option<PathBuf>,
    /// A client certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A user of etcd.
    pub login: Option<Login>,
    /// Before all keys; begins with a slash or not, and does not end in one.
    pub prefix: String,
}

/// A user of etcd.
#[derive(Clone, Debug)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The file with the password; a line end at its end does not count.
    pub password_file: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum BackendInput {
    Server,
    Etcd,
    FleetLock,
}

impl Lock {
    /// Validates `[lock]` alone, with the group of `[identity]` that it may stand for.
    ///
    /// # Errors
    /// As for [`super::Settings::from_merged`].
    pub fn from_merged(merged: &Merged) -> Result<Self, ConfigError> {
        Reader { merged }.lock()
    }
}

impl Reader<'_> {
    pub(super) fn lock(&self) -> Result<Lock, ConfigError> {
        let backend = match self.required("lock.backend")? {
            BackendInput::Server => LockBackend::Server,
            BackendInput::Etcd => LockBackend::Etcd(Box::new(self.etcd()?)),
            BackendInput::FleetLock => LockBackend::FleetLock { base_url: self.base_url()? },
        };
        let timeout = self.seconds("lock.timeout_s", 1..=300)?;
        let deadline = self.seconds("lock.deadline_s", 1..=3600)?;
        if deadline < timeout {
            let problem = format!("expected at least lock.timeout_s ({})", timeout.as_secs());
            return Err(self.bad("lock.deadline_s", format!("{problem}, found {}", deadline.as_secs())));
        }
        let group = match self.optional("lock.group")? {
            Some(group) => group,
            None => self.required("identity.group")?,
        };
        Ok(Lock {
            backend,
            group,
            zone: self.optional("lock.zone")?,
            priority: self.number("lock.priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?,
            etcd_member: self.optional("lock.etcd_member")?,
            timeout,
            deadline,
        })
    }

    /// A setting that the chosen backend cannot do without.
    fn needed<T>(&self, path: &'static str, backend: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| self.bad(path, format!("backend {backend} needs it, found nothing")))
    }

    fn base_url(&self) -> Result<Url, ConfigError> {
        let path = "lock.fleetlock.base_url";
        self.needed(path, "fleetlock", self.merged.get(path))?;
        self.url(path)
    }

    fn etcd(&self) -> Result<Etcd, ConfigError> {
        let identity = self.pair("lock.etcd.cert", "lock.etcd.key")?;
        let user: Option<String> = self.optional("lock.etcd.user")?;
        let file = self.optional_path("lock.etcd.password_file")?;
        let login = match (user, file) {
            (Some(user), Some(password_file)) => Some(Login { user, password_file }),
            (None, None) => None,
            (Some(_), None) => {
                return Err(self.bad("lock.etcd.password_file", "lock.etcd.user needs it, found nothing"));
            }
            (None, Some(_)) => {
                return Err(self.bad("lock.etcd.user", "lock.etcd.password_file needs it, found nothing"));
            }
        };
        let prefix: String = self.required("lock.etcd.prefix")?;
        Ok(Etcd {
            endpoints: self.endpoints()?,
            ca: self.optional_path("lock.etcd.ca")?,
            identity,
            login,
            prefix: prefix.trim_end_matches('/').to_owned(),
        })
    }

    fn endpoints(&self) -> Result<Vec<Url>, ConfigError> {
        let path = "lock.etcd.endpoints";
        let texts: Vec<String> = self.required(path)?;
        self.needed(path, "etcd", texts.first())?;
        let endpoint = |text: &String| {
            endpoint(text).ok_or_else(|| {
                let example = "expected addresses like https://etcd1.example.org:2379";
                self.bad(path, format!("{example}, found {text:?}"))
            })
        };
        texts.iter().map(endpoint).collect()
    }
}

/// A member's client address: scheme, host and port, and nothing else.
#[must_use]
pub fn endpoint(text: &str) -> Option<Url> {
    let url: Url = text.parse().ok()?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    is_plain.then_some(url)
}
