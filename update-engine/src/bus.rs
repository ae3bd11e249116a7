//! All steps, for other programs of the node: the engine on the system bus (`docs/adr/0009-bus.md`).
//!
//! | module | what |
//! |---|---|
//! | [`serve`](serve()) | the engine's side: a connection that comes back, properties and their signals |
//! | `service` | the methods, each a request to the state machine |
//! | `authority` | who may ask: polkit |
//! | [`client`] | the other side: what `updatectl` asks and follows |
//!
//! The bus is a guest: the engine updates without it.

mod authority;
pub mod client;
mod serve;
mod service;

pub use serve::serve;

/// The name that a running engine has on the system bus.
pub const NAME: &str = "io.flipside.UpdateEngine1";
/// Its one object.
pub const PATH: &str = "/io/flipside/UpdateEngine1";
/// The object's interface.
pub const INTERFACE: &str = "io.flipside.UpdateEngine1";

/// A request that did not succeed, as it goes over the bus: `io.flipside.UpdateEngine1.Error.…`, with one line.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "io.flipside.UpdateEngine1.Error")]
pub enum RequestError {
    /// The bus itself.
    #[zbus(error)]
    Bus(zbus::Error),
    /// The machine says no.
    Declined(String),
    /// What was asked for is so already.
    NothingToDo(String),
    /// The caller may not ask for this.
    NotAuthorized(String),
    /// The caller may ask once a person has given a password, and did not allow to be asked for it.
    InteractiveAuthorizationRequired(String),
    /// An argument is not what it should be.
    InvalidArgument(String),
    /// The engine is ending, or does not answer.
    Unavailable(String),
}
