//! All steps, from the other side of the bus: how `updatectl` asks a running engine and follows it.

use super::{INTERFACE, NAME, PATH, RequestError};
use futures::StreamExt as _;
use protocol::status::Status;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use zbus::fdo::{DBusProxy, NameOwnerChangedStream, PropertiesChangedStream, PropertiesProxy};
use zbus::proxy::{CacheProperties, MethodFlags};
use zbus::{Connection, Proxy, connection};

/// How long the bus may take to let a client in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long reading a property may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take: a person may have to give a password first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(200);

/// A running engine, reached over the bus.
#[derive(Debug)]
pub struct Remote {
    connection: Connection,
    proxy: Proxy<'static>,
}

/// Why an engine is not asked over the bus.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The bus is there, and does not let this program in.
    #[error("the system bus cannot be used")]
    Connect(#[source] zbus::Error),
    /// The bus does not answer.
    #[error("the system bus does not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    /// The engine does not answer.
    #[error("the engine on the bus does not answer within {} s", READ_TIMEOUT.as_secs())]
    Silent,
    /// The engine, or the bus, went.
    #[error("the engine is gone from the bus")]
    Gone,
    /// The engine answers with an error.
    #[error("the engine on the bus does not tell its {name}; is it of this version?")]
    Property {
        /// What was asked for.
        name: &'static str,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// The engine answers with something else.
    #[error("the status that the engine on the bus tells cannot be read; is it of this version?")]
    Status(#[source] serde_json::Error),
    /// The name of the state folder is not text.
    #[error("the engine on the bus cannot tell its state folder: its name is not UTF-8")]
    Nameless,
}

/// There is nothing to connect to.
fn no_bus(error: &zbus::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        zbus::Error::Connection(error, _) | zbus::Error::InputOutput(error) => {
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
        }
        _ => false,
    }
}

/// Nobody has the name any more.
fn gone(error: &zbus::Error) -> bool {
    let name = match error {
        zbus::Error::MethodError(name, ..) => name.as_str(),
        zbus::Error::FDO(error) => match &**error {
            zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_) => return true,
            _ => return false,
        },
        _ => return false,
    };
    matches!(name, "org.freedesktop.DBus.Error.ServiceUnknown" | "org.freedesktop.DBus.Error.NameHasNoOwner")
}

/// What can be asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Check now.
    Check,
    /// Check now and install; the attempts spent are forgotten first where `force_retry`.
    Update {
        /// Forget them.
        force_retry: bool,
    },
    /// Reboot now.
    Reboot,
    /// Go back to the other slot.
    Rollback,
    /// Confirm the running release.
    MarkGood,
    /// Give up an update.
    Cancel,
    /// Forget quarantined releases: one by its digest, or all.
    QuarantineClear(Option<protocol::digest::Sha256>),
}

/// What the engine is doing, as the bus tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Seen {
    /// Its status.
    #[serde(flatten)]
    pub status: Status,
    /// An operation runs.
    pub busy: bool,
}

impl Remote {
    /// The engine on the system bus, or on the one that `DBUS_SYSTEM_BUS_ADDRESS` names; `None` where there is no bus
    /// or no engine on it.
    ///
    /// # Errors
    /// [`AskError`] where there is a bus, and it cannot be told whether an engine is on it.
    pub async fn find() -> Result<Option<Self>, AskError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, Self::connect()).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) if no_bus(&error) => {
                tracing::debug!("there is no bus: {error}");
                Ok(None)
            }
            Ok(Err(error)) => Err(AskError::Connect(error)),
            Err(_) => Err(AskError::TimedOut),
        }
    }

    async fn connect() -> zbus::Result<Option<Self>> {
        let connection = connection::Builder::system()?.method_timeout(ANSWER_TIMEOUT).build().await?;
        if !DBusProxy::new(&connection).await?.name_has_owner(NAME.try_into()?).await? {
            return Ok(None);
        }
        let proxy: Proxy<'static> = zbus::proxy::Builder::new(&connection)
            .destination(NAME)?
            .path(PATH)?
            .interface(INTERFACE)?
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok(Some(Self { connection, proxy }))
    }

    /// What the engine is doing.
    ///
    /// # Errors
    /// [`AskError`], also where it answers with something else than a status of this version.
    pub async fn seen(&self) -> Result<Seen, AskError> {
        serde_json::from_str(&self.property("Status").await?).map_err(AskError::Status)
    }

    /// The state folder that it works on.
    ///
    /// # Errors
    /// [`AskError`], also for an engine of a version that does not say.
    pub async fn state_dir(&self) -> Result<PathBuf, AskError> {
        let text = self.property("StateDirectory").await?;
        if text.is_empty() { Err(AskError::Nameless) } else { Ok(text.into()) }
    }

    async fn property(&self, name: &'static str) -> Result<String, AskError> {
        // Not the connection's time-out, which leaves a person time for a password.
        let read = tokio::select! {
            read = tokio::time::timeout(READ_TIMEOUT, self.proxy.get_property(name)) => read,
            () = self.connection.closed() => return Err(AskError::Gone),
        };
        match read {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) if gone(&error) => Err(AskError::Gone),
            Ok(Err(source)) => Err(AskError::Property { name, source }),
            Err(_) => Err(AskError::Silent),
        }
    }

    /// Puts a request to the engine, and returns its answer. With `interactive`, polkit may ask a person for a
    /// password.
    ///
    /// # Errors
    /// [`RequestError`]
    pub async fn ask(&self, request: &Request, interactive: bool) -> Result<String, RequestError> {
        match request {
            Request::Check => self.call("Check", &(), interactive).await,
            Request::Update { force_retry } => self.call("Update", &(*force_retry,), interactive).await,
            Request::Reboot => self.call("Reboot", &(), interactive).await,
            Request::Rollback => self.call("Rollback", &(), interactive).await,
            Request::MarkGood => self.call("MarkGood", &(), interactive).await,
            Request::Cancel => self.call("Cancel", &(), interactive).await,
            Request::QuarantineClear(release) => {
                let release = release.map(|digest| digest.to_string()).unwrap_or_default();
                self.call("QuarantineClear", &(release,), interactive).await
            }
        }
    }

    async fn call<B>(&self, method: &str, body: &B, interactive: bool) -> Result<String, RequestError>
    where
        B: serde::ser::Serialize + zbus::zvariant::DynamicType,
    {
        let mut flags = MethodFlags::NoAutoStart.into();
        if interactive {
            flags |= MethodFlags::AllowInteractiveAuth;
        }
        let answer = self.proxy.call_with_flags(method, flags, body).await.map_err(RequestError::from)?;
        answer.ok_or_else(|| RequestError::Unavailable("the engine did not answer".to_owned()))
    }

    /// Follows the engine from now on.
    ///
    /// # Errors
    /// [`AskError::Connect`] where the bus does not do its part.
    pub async fn follow(&self) -> Result<Following, AskError> {
        self.subscribe().await.map_err(AskError::Connect)
    }

    async fn subscribe(&self) -> zbus::Result<Following> {
        let properties = PropertiesProxy::builder(&self.connection)
            .destination(NAME)?
            .path(PATH)?
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        let changes = properties.receive_properties_changed().await?;
        let bus = DBusProxy::new(&self.connection).await?;
        let owners = bus.receive_name_owner_changed_with_args(&[(0, NAME)]).await?;
        Ok(Following { connection: self.connection.clone(), changes, owners })
    }
}

/// A running engine's changes.
#[derive(Debug)]
pub struct Following {
    connection: Connection,
    changes: PropertiesChangedStream,
    owners: NameOwnerChangedStream,
}

impl Following {
    /// Returns when something changed: true, or false where the engine, or the bus, is gone.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            change = self.changes.next() => change.is_some(),
            _ = self.owners.next() => false,
            () = self.connection.closed() => false,
        }
    }
}
