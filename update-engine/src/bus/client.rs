//! All steps, from the other side of the bus: how `updatectl` asks a running engine and follows it.

use super::{INTERFACE, NAME, PATH, RequestError};
use futures::StreamExt as _;
use protocol::status::Status;
use serde::Deserialize;
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
    pub async fn find() -> Option<Self> {
        match tokio::time::timeout(CONNECT_TIMEOUT, Self::connect()).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!("the engine is not reached over the bus: {error}");
                None
            }
            Err(_) => {
                tracing::debug!("the bus does not answer within {} s", CONNECT_TIMEOUT.as_secs());
                None
            }
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
    /// Where it does not answer, or with something else than a status of this version.
    pub async fn seen(&self) -> zbus::Result<Seen> {
        // Not the connection's time-out, which leaves a person time for a password.
        let text: String = tokio::select! {
            text = tokio::time::timeout(READ_TIMEOUT, self.proxy.get_property("Status")) => {
                text.map_err(|_| zbus::Error::Failure("the engine does not answer".to_owned()))??
            }
            () = self.connection.closed() => return Err(zbus::Error::Failure("the bus is gone".to_owned())),
        };
        serde_json::from_str(&text)
            .map_err(|error| zbus::Error::Failure(format!("the engine's status cannot be read: {error}")))
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
    /// Where the bus does not answer.
    pub async fn follow(&self) -> zbus::Result<Following> {
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
