//! Steps 10 and 12: one call over D-Bus, with a time-out.
//!
//! A connection is made for each piece of work and dropped after it: nothing is kept that a restart of the bus could
//! break.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::time::Duration;
use zbus::zvariant::{DynamicType, OwnedValue, Type};

/// How long a connection or a call may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// All properties of an interface.
pub type Properties = HashMap<String, OwnedValue>;

/// A bus that does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// It cannot be reached.
    #[error("cannot connect to D-Bus")]
    Connect(#[source] Box<zbus::Error>),
    /// It does not answer.
    #[error("{what} did not answer within {} s", after.as_secs())]
    Late {
        /// Who was asked what.
        what: String,
        /// For how long.
        after: Duration,
    },
    /// It answers with an error.
    #[error("{what} failed")]
    Call {
        /// Who was asked what.
        what: String,
        /// The answer.
        #[source]
        source: Box<zbus::Error>,
    },
}

impl BusError {
    /// The name of the error that was answered.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Call { source, .. } => match &**source {
                zbus::Error::MethodError(name, ..) => Some(name.as_str()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether nobody was there who could have answered.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Connect(_))
            || self.name().is_some_and(|name| {
                ["ServiceUnknown", "NameHasNoOwner", "Spawn.ServiceNotFound", "Spawn.ChildExited"]
                    .iter()
                    .any(|end| name.strip_prefix("org.freedesktop.DBus.Error.") == Some(*end))
            })
    }
}

/// Where a bus is.
#[derive(Clone, Debug)]
pub struct Bus {
    address: Address,
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Address {
    System,
    At(String),
    Direct(String),
}

impl Bus {
    /// The system bus, or what `DBUS_SYSTEM_BUS_ADDRESS` names.
    #[must_use]
    pub const fn system() -> Self {
        Self { address: Address::System, timeout: TIMEOUT }
    }

    /// A bus at a D-Bus address.
    #[must_use]
    pub const fn at(address: String, timeout: Duration) -> Self {
        Self { address: Address::At(address), timeout }
    }

    /// One program at a D-Bus address, with no bus in between.
    #[must_use]
    pub const fn direct(address: String, timeout: Duration) -> Self {
        Self { address: Address::Direct(address), timeout }
    }

    /// Connects.
    ///
    /// # Errors
    /// [`BusError::Connect`] and [`BusError::Late`].
    pub async fn connect(&self) -> Result<Connection, BusError> {
        let build = async {
            match &self.address {
                Address::System => zbus::connection::Builder::system()?.build().await,
                Address::At(address) => zbus::connection::Builder::address(address.as_str())?.build().await,
                Address::Direct(address) => {
                    zbus::connection::Builder::address(address.as_str())?.p2p().build().await
                }
            }
        };
        let connection = tokio::time::timeout(self.timeout, build)
            .await
            .map_err(|_| BusError::Late { what: "D-Bus".to_owned(), after: self.timeout })?
            .map_err(|error| BusError::Connect(Box::new(error)))?;
        Ok(Connection { connection, timeout: self.timeout })
    }
}

/// Somebody on a bus: a name, an object, an interface of it.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its well-known name.
    pub name: &'a str,
    /// The object.
    pub path: &'a str,
    /// The interface.
    pub interface: &'a str,
}

/// A connection to a bus.
#[derive(Clone, Debug)]
pub struct Connection {
    connection: zbus::Connection,
    timeout: Duration,
}

impl Connection {
    /// Calls a method and waits for its answer, for a bounded time.
    ///
    /// # Errors
    /// [`BusError::Call`] and [`BusError::Late`].
    pub async fn call<B, R>(&self, peer: Peer<'_>, method: &str, body: &B) -> Result<R, BusError>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let what = || format!("{} {method}", peer.interface);
        let failed = |error| BusError::Call { what: what(), source: Box::new(error) };
        let call =
            self.connection.call_method(Some(peer.name), peer.path, Some(peer.interface), method, body);
        let answer = tokio::time::timeout(self.timeout, call)
            .await
            .map_err(|_| BusError::Late { what: what(), after: self.timeout })?
            .map_err(failed)?;
        answer.body().deserialize::<R>().map_err(failed)
    }

    /// All properties of an interface.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub async fn properties(&self, peer: Peer<'_>) -> Result<Properties, BusError> {
        let of = Peer { interface: "org.freedesktop.DBus.Properties", ..peer };
        self.call(of, "GetAll", &(peer.interface,)).await
    }
}

/// A text among properties; empty where it is missing or of another type.
#[must_use]
pub fn text(properties: &Properties, name: &str) -> String {
    properties.get(name).and_then(|value| value.downcast_ref::<String>().ok()).unwrap_or_default()
}
