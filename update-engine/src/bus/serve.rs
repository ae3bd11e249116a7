//! All steps: the engine's connection to the bus. It is made, kept, told about every change, and made again when it
//! is lost; without it the engine goes on.

use super::service::{Properties, Service};
use super::{INTERFACE, NAME, PATH};
use crate::driver::{Shown, Signal};
use crate::error::chain;
use futures::StreamExt as _;
use protocol::status::Status;
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zbus::fdo::{DBusProxy, RequestNameFlags};
use zbus::{Connection, connection};

/// Progress is told at most once in this time; every other change at once.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long making the connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The first pause before the connection is tried again; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Why the engine is not on the bus.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the system bus cannot be reached")]
    Connect(#[source] zbus::Error),
    #[error("the system bus does not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    #[error("another program has the name {NAME}")]
    Taken,
    #[error("the bus does not give out the name {NAME}")]
    Name(#[source] zbus::Error),
}

/// Serves the engine on the system bus, or on the one that `DBUS_SYSTEM_BUS_ADDRESS` names, until the engine ends.
/// The name is taken once the engine's state is known. `state_dir` is the folder that the engine works on.
pub async fn serve(
    engine: mpsc::Sender<Signal>,
    mut shown: watch::Receiver<Option<Shown>>,
    state_dir: PathBuf,
) {
    // Who reads it has another working folder.
    let state_dir = std::path::absolute(&state_dir).unwrap_or(state_dir);
    if shown.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut pause = BACKOFF_FIRST;
    let mut warned = false;
    loop {
        let service = Service { engine: engine.clone(), shown: shown.clone(), state_dir: state_dir.clone() };
        let attached = tokio::time::timeout(CONNECT_TIMEOUT, attach(service)).await;
        match attached.unwrap_or(Err(ServeError::TimedOut)) {
            Ok(connection) => {
                tracing::info!("on the bus as {NAME}");
                (pause, warned) = (BACKOFF_FIRST, false);
                tokio::select! {
                    () = publish(&connection, shown.clone()) => return,
                    () = lost(&connection) => {}
                }
                tracing::warn!("the connection to the bus is lost: it is tried again");
            }
            Err(error) if warned => tracing::debug!("still not on the bus: {}", chain(&error)),
            Err(error) => {
                warned = true;
                tracing::warn!("not on the bus, and going on without it: {}", chain(&error));
            }
        }
        tokio::time::sleep(pause).await;
        pause = BACKOFF_MAX.min(pause * 2);
    }
}

async fn attach(service: Service) -> Result<Connection, ServeError> {
    let connection = connection::Builder::system()
        .and_then(|builder| builder.serve_at(PATH, service))
        .map_err(ServeError::Connect)?
        .build()
        .await
        .map_err(ServeError::Connect)?;
    match connection.request_name_with_flags(NAME, RequestNameFlags::DoNotQueue.into()).await {
        Ok(_) => Ok(connection),
        Err(zbus::Error::NameTaken) => Err(ServeError::Taken),
        Err(error) => Err(ServeError::Name(error)),
    }
}

/// Returns when the connection is closed, or the name is no longer ours.
async fn lost(connection: &Connection) {
    let name_lost = async {
        let bus = DBusProxy::new(connection).await?;
        let mut names = bus.receive_name_lost().await?;
        while let Some(signal) = names.next().await {
            if signal.args().is_ok_and(|lost| lost.name == NAME) {
                break;
            }
        }
        Ok::<(), zbus::Error>(())
    };
    tokio::select! {
        () = connection.closed() => {}
        _ = name_lost => {}
    }
}

/// Tells every change of the properties, until the engine ends.
async fn publish(connection: &Connection, mut shown: watch::Receiver<Option<Shown>>) {
    let Some(mut told) = shown.borrow_and_update().clone() else { return };
    let mut next = Instant::now();
    while shown.changed().await.is_ok() {
        let new = loop {
            let Some(new) = shown.borrow_and_update().clone() else { return };
            if Instant::now() >= next || !only_progress(&told, &new) {
                break new;
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                changed = shown.changed() => if changed.is_err() { break new },
            }
        };
        if let Err(error) = tell(connection, &Properties::from(&told), &Properties::from(&new)).await {
            tracing::debug!("a change cannot be told on the bus: {error}");
        }
        told = new;
        next = Instant::now() + PROGRESS_EVERY;
    }
}

fn only_progress(old: &Shown, new: &Shown) -> bool {
    let masked = Status { progress: old.status.progress, ..new.status.clone() };
    old.busy == new.busy && old.status == masked
}

/// One signal with all that changed, so that what belongs together arrives together.
async fn tell(connection: &Connection, old: &Properties, new: &Properties) -> zbus::Result<()> {
    let changes = new.changes(old);
    if changes.is_empty() {
        return Ok(());
    }
    let emitter = zbus::object_server::SignalEmitter::new(connection, PATH)?;
    let interface = zbus::names::InterfaceName::try_from(INTERFACE)?;
    zbus::fdo::Properties::properties_changed(&emitter, interface, changes, Cow::Borrowed(&[])).await?;
    Ok(())
}
