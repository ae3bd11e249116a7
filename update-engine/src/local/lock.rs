//! Step 9, permit, as a person on the node sees it: whether this node holds a permit or waits for one, who else does, and
//! what stands against each. The lock is asked as the engine asks it, and nothing is changed: not there, and not here.

use super::show::{Present, present, print};
use super::{LocalError, NodeOptions, SCHEMA, warn};
use crate::config::Settings;
use crate::config::settings::{Lock, LockBackend};
use crate::error::chain;
use crate::lock::shown::{Marks, holder_line, holders_reasons, shown, time, waiter_line, waiters_reasons};
use crate::lock::{LockClient, View};
use crate::network::Client;
use crate::state::StateFolder;
use jiff::Timestamp;
use machine::Strategy;
use protocol::id::Group;
use protocol::lock::{Candidate, ClientId, Context, Document, Holder, Policy, Wait, Waiter, admit};
use protocol::status::{Exit, Status, one_line};
use protocol::version::Version;
use protocol::window::{Opening, opening};
use protocol::wire::LockInfo;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What is known of the lock and of this node in it.
#[derive(Debug)]
struct Report {
    strategy: &'static str,
    group: Group,
    backend: &'static str,
    /// Where the lock is, for a person.
    kept: String,
    node: Option<ClientId>,
    /// What the engine says, if it ever said anything.
    engine: Option<Status>,
    running: bool,
    lock: Result<Seen, Unseen>,
}

/// The lock as it was read.
#[derive(Debug)]
struct Seen {
    info: LockInfo,
    /// The lock's own time.
    now: Timestamp,
    place: Place,
    /// What stands against this node, the first to be shown.
    because: Vec<String>,
    windows: Windows,
}

/// A lock that cannot be read.
#[derive(Debug)]
enum Unseen {
    /// It has nothing to show.
    Nothing(String),
    /// Something is wrong.
    Failed(String),
}

/// Where this node stands.
#[derive(Debug)]
enum Place {
    Holds(Box<Holder>),
    /// With the place in the queue, from 1.
    Waits(usize, Box<Waiter>),
    Neither,
}

/// When reboots may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Windows {
    /// There are none, so at any time.
    None,
    Open,
    Opens(Timestamp),
    Never,
    /// The name of a time zone that is not known here.
    Unknown(String),
}

/// `updatectl lock status`
pub(super) async fn status(options: &NodeOptions, why: bool, json: bool) -> Result<Exit, LocalError> {
    let settings = options.settings()?;
    let Present { status, dir, running } = present(options).await?;
    let engine = match status {
        Ok(status) => Some(status),
        Err(crate::status::StatusError::Missing { .. }) => None,
        Err(error) => {
            warn(&chain(&error));
            None
        }
    };
    let folder = StateFolder::view(&dir);
    let lock = look(&settings, &folder, engine.as_ref()).await;
    let report = Report {
        strategy: strategy(settings.policy.strategy),
        backend: backend(&settings.lock),
        kept: kept(&settings),
        group: settings.lock.group,
        node: folder.known_node().ok().map(|node| (&node).into()),
        engine,
        running,
        lock,
    };
    print(&if json { document(&report).to_string() } else { text(&report, why) })?;
    match &report.lock {
        Err(Unseen::Failed(line)) => {
            warn(line);
            Ok(Exit::Failed)
        }
        _ => Ok(Exit::Done),
    }
}

/// Asks the lock.
async fn look(settings: &Settings, folder: &StateFolder, engine: Option<&Status>) -> Result<Seen, Unseen> {
    if let LockBackend::FleetLock { .. } = settings.lock.backend {
        let line = "a FleetLock v1 server does not say who holds or waits";
        return Err(Unseen::Nothing(line.to_owned()));
    }
    let failed = |error: &dyn std::error::Error| Unseen::Failed(chain(error));
    let node = folder.known_node().map_err(|error| failed(&error))?;
    let server = Client::new(&settings.server, settings.download.clone());
    let mut server = server.map_err(|error| failed(&error))?.asking_once();
    if let LockBackend::Server = settings.lock.backend {
        server = server.with_credential(folder.known_credential().map_err(|error| failed(&error))?);
    }
    let client = LockClient::new(&settings.lock, &server, &node).map_err(|error| failed(&error))?;
    let view = client.view().await.map_err(|error| failed(&error))?;
    let to = engine.and_then(|status| status.staged.as_ref()).map(|staged| &staged.version);
    Ok(seen(view, &settings.lock, &(&node).into(), to))
}

/// What a lock says of this node, which would like to reboot into `to`.
fn seen(view: View, lock: &Lock, node: &ClientId, to: Option<&Version>) -> Seen {
    let context = view.context.clone();
    let info = view.info();
    let document = &info.view.document;
    let waits = document.queue.iter().position(|waiter| waiter.node == *node);
    let (place, because) = match (document.holder(node), waits) {
        (Some(holder), _) => (Place::Holds(Box::new(holder.clone())), holders_reasons(&info, node)),
        (None, Some(at)) => {
            (Place::Waits(at + 1, Box::new(document.queue[at].clone())), waiters_reasons(&info, node))
        }
        (None, None) => (Place::Neither, were_it_to_ask(document, lock, node, to, &context)),
    };
    let windows = windows(&document.policy, context.now);
    Seen { now: context.now, place, because, windows, info }
}

/// What would stand against a node that neither holds nor waits.
fn were_it_to_ask(
    document: &Document,
    lock: &Lock,
    node: &ClientId,
    to: Option<&Version>,
    context: &Context,
) -> Vec<String> {
    let etcd_member = lock.etcd_member.as_deref();
    let candidate = Candidate { node, to, zone: lock.zone.as_ref(), etcd_member, fleet_lock: false };
    let mut because = admit(document, &candidate, context).err().unwrap_or_default();
    let priority = document.policy.priorities.get(node).copied().unwrap_or(lock.priority);
    let ahead = document.queue.iter().filter(|waiter| waiter.priority >= priority).count();
    if ahead > 0 {
        because.push(Wait::Queue { ahead: u32::try_from(ahead).unwrap_or(u32::MAX) });
    }
    because.iter().map(ToString::to_string).collect()
}

fn windows(policy: &Policy, now: Timestamp) -> Windows {
    if policy.windows.is_empty() {
        return Windows::None;
    }
    let Some(zone) = policy.time_zone() else { return Windows::Unknown(policy.time_zone.clone()) };
    match opening(&policy.windows, &zone, now, policy.reboot_takes_s) {
        Opening::Open => Windows::Open,
        Opening::At(at) => Windows::Opens(at),
        Opening::Never => Windows::Never,
    }
}

const fn strategy(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Off => "off",
        Strategy::Immediate => "immediate",
        Strategy::Window => "window",
        Strategy::Lock => "lock",
    }
}

const fn backend(lock: &Lock) -> &'static str {
    match lock.backend {
        LockBackend::Server => "server",
        LockBackend::Etcd(_) => "etcd",
        LockBackend::FleetLock { .. } => "fleetlock",
    }
}

/// Where the lock is, for a person.
fn kept(settings: &Settings) -> String {
    match &settings.lock.backend {
        LockBackend::Server => format!("kept by the update server {}", settings.server.url),
        LockBackend::Etcd(etcd) => {
            let endpoints: Vec<_> = etcd.endpoints.iter().map(ToString::to_string).collect();
            format!("kept in etcd under {} at {}", etcd.prefix, endpoints.join(", "))
        }
        LockBackend::FleetLock { base_url } => format!("kept by the FleetLock v1 server {base_url}"),
    }
}

fn text(report: &Report, why: bool) -> String {
    let mut text = String::new();
    let no_lock =
        if report.strategy == "lock" { "" } else { ": this node asks for no permit; strategy lock does" };
    line(&mut text, "strategy", &format!("{}{no_lock}", report.strategy));
    line(&mut text, "lock", &format!("group {}, {}", report.group, report.kept));
    if let Some(node) = &report.node {
        line(&mut text, "node", &own_line(node, report.lock.as_ref().ok()));
    }
    if let Ok(seen) = &report.lock {
        let shown = if why { seen.because.len() } else { 1 };
        for reason in seen.because.iter().take(shown) {
            let _ = writeln!(text, "{:11}| {}", "", one_line(reason));
        }
        line(&mut text, "windows", &windows_line(&seen.windows));
    }
    line(&mut text, "engine", &engine_line(report));
    if let Some(permit) = report.engine.as_ref().and_then(|status| status.permit.as_ref()) {
        line(&mut text, "permit", permit);
    }
    match &report.lock {
        Ok(seen) => {
            let marks = Marks { reasons: why, own: report.node.as_ref() };
            let _ = write!(text, "\n{}", shown(&seen.info, marks, seen.now));
        }
        Err(Unseen::Nothing(reason)) => line(&mut text, "others", reason),
        Err(Unseen::Failed(_)) => line(&mut text, "others", "not known: the lock cannot be read"),
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{:<11}{}", format!("{name}:"), one_line(value));
}

/// This node's own line.
fn own_line(node: &ClientId, seen: Option<&Seen>) -> String {
    match seen {
        None => node.to_string(),
        Some(Seen { place: Place::Holds(holder), now, .. }) => holder_line(holder, *now),
        Some(Seen { place: Place::Waits(place, waiter), now, .. }) => waiter_line(*place, waiter, *now),
        Some(Seen { because, .. }) if because.is_empty() => {
            format!("{node}  neither holds a permit nor waits for one, and could get one now")
        }
        Some(_) => format!("{node}  neither holds a permit nor waits for one; if it asked now:"),
    }
}

fn windows_line(windows: &Windows) -> String {
    match windows {
        Windows::None => "none: a reboot can begin at any time".to_owned(),
        Windows::Open => "open now".to_owned(),
        Windows::Opens(at) => format!("closed; the next opens at {}", time(*at)),
        Windows::Never => "none is ever long enough for a reboot".to_owned(),
        Windows::Unknown(zone) => format!("not known: there is no time zone {zone:?} here"),
    }
}

fn engine_line(report: &Report) -> String {
    let running = if report.running { "" } else { "; no engine is running" };
    match &report.engine {
        None => format!("has not said anything yet{running}"),
        Some(status) if status.reason.is_empty() => format!("{}{running}", status.state),
        Some(status) => format!("{}: {}{running}", status.state, status.reason),
    }
}

fn document(report: &Report) -> Value {
    let engine = report.engine.as_ref();
    let mut document = json!({
        "schema": SCHEMA,
        "strategy": report.strategy,
        "backend": report.backend,
        "group": report.group,
        "node": report.node,
        "place": null,
        "permit": null,
        "queue_place": null,
        "because": null,
        "windows": null,
        "lock": null,
        "engine": {
            "running": report.running,
            "state": engine.map(|status| status.state),
            "reason": engine.map(|status| &status.reason),
            "permit": engine.and_then(|status| status.permit.as_ref()),
        },
        "note": null,
        "error": null,
    });
    match &report.lock {
        Ok(Seen { info, place, because, windows, .. }) => {
            document["place"] = match place {
                Place::Holds(_) => "holds",
                Place::Waits(..) => "waits",
                Place::Neither => "neither",
            }
            .into();
            if let Place::Holds(holder) = place {
                document["permit"] = json!(holder);
            }
            if let Place::Waits(place, _) = place {
                document["queue_place"] = json!(place);
            }
            document["because"] = json!(because);
            document["windows"] = match windows {
                Windows::None | Windows::Open => json!({ "open": true, "opens": null }),
                Windows::Opens(at) => json!({ "open": false, "opens": at }),
                Windows::Never | Windows::Unknown(_) => json!({ "open": false, "opens": null }),
            };
            document["lock"] = json!(info);
        }
        Err(Unseen::Nothing(reason)) => document["note"] = json!(reason),
        Err(Unseen::Failed(error)) => document["error"] = json!(error),
    }
    document
}

#[cfg(test)]
mod tests;
