//! All steps, as a person on the node sees them: the state folder, the disk and the configuration, printed.

use super::follow::{Change, Follow};
use super::{LocalError, NodeOptions, SCHEMA, warn};
use crate::config::Problems;
use crate::config::settings::Disk;
use crate::error::chain;
use crate::node::StartError;
use crate::slots::Slots;
use crate::state::{Loaded, StateError, StateFolder, history};
use crate::status::{StatusError, StatusSource as _};
use jiff::Timestamp;
use machine::Record;
use protocol::slot::Slot;
use protocol::status::{Exit, Status, one_line};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prints one line, or several, on stdout.
pub(super) fn print(text: &str) -> Result<(), LocalError> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).map_err(LocalError::Output)
}

pub(super) fn print_json(document: &Value) -> Result<Exit, LocalError> {
    print(&document.to_string()).map(|()| Exit::Done)
}

/// The node at this moment.
pub(super) struct Present {
    /// The status, from the engine on the bus, else from the state folder.
    pub(super) status: Result<Status, StatusError>,
    /// The folder of the engine that was asked, else the one of the options.
    pub(super) dir: PathBuf,
    /// Whether an engine runs.
    pub(super) running: bool,
}

pub(super) async fn present(options: &NodeOptions) -> Result<Present, LocalError> {
    let mut follow = Follow::begin(options).await?;
    let change = follow.next().await;
    let (dir, running) = (follow.dir().to_owned(), follow.has_engine());
    let status = match change {
        Ok(Change::Seen(seen)) => Ok(seen.status),
        // It went this moment.
        Ok(Change::Gone) => StateFolder::view(&dir).status(),
        Err(LocalError::Status(error)) => Err(error),
        Err(error) => return Err(error),
    };
    Ok(Present { status, dir, running })
}

/// `updatectl status`
pub(super) async fn status(options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    let Present { status, dir, .. } = present(options).await?;
    let status = status?;
    let text = if json { serde_json::to_string(&status).unwrap_or_default() } else { status_text(&status) };
    print(&text)?;
    tell_damage(&dir);
    Ok(Exit::Done)
}

fn status_text(status: &Status) -> String {
    let mut text = format!("state:    {}", status.state);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = write!(text, "\n{:<10}{value}", format!("{name}:"));
        }
    };
    line("reason", status.reason.clone());
    if let Some(booted) = &status.booted {
        let confirmed = if booted.confirmed { "confirmed" } else { "not confirmed" };
        line("booted", format!("slot {}, version {}, {confirmed}", booted.slot, booted.version));
    }
    if let Some(other) = &status.other {
        let version = other.version.as_ref().map_or("unknown version".to_owned(), |v| format!("version {v}"));
        let bootable = if other.bootable { "bootable" } else { "not bootable" };
        line("other", format!("slot {}, {version}, {bootable}", other.slot));
    }
    if let Some(staged) = &status.staged {
        let when = if staged.activated { "boots next" } else { "not activated" };
        line("staged", format!("version {}, {when}", staged.version));
    }
    let progress = &status.progress;
    if progress.bytes_total > 0 {
        line(
            "progress",
            format!(
                "{} of {} in place, {} downloaded",
                indicatif::HumanBytes(progress.bytes_done),
                indicatif::HumanBytes(progress.bytes_total),
                indicatif::HumanBytes(progress.bytes_downloaded)
            ),
        );
    }
    if let Some(check) = &status.last_check {
        line("checked", format!("{}: {}", check.at, check.result));
    }
    let names =
        [status.channel.as_ref().map(ToString::to_string), status.group.as_ref().map(ToString::to_string)];
    line("follows", names.into_iter().flatten().collect::<Vec<_>>().join(", group "));
    line("permit", status.permit.clone().unwrap_or_default());
    for entry in &status.quarantine {
        line("quarantine", format!(" {} since {}: {}", entry.version, entry.at, entry.reason));
    }
    line("error", status.error.clone().unwrap_or_default());
    text
}

/// `updatectl slots`
pub(super) async fn slots(options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    // Nothing else of the configuration matters, and with --disk only one that is named does.
    let Disk { device, layout } = match (&options.disk, &options.config) {
        (Some(_), None) => Disk::default(),
        _ => Disk::from_merged(&options.merged()?)?,
    };
    let device = match options.disk.clone().or(device) {
        Some(device) => device,
        None => crate::system::disk::find(&layout).map_err(StartError::from)?,
    };
    let folder = StateFolder::view(&super::follow::folder(options).await?);
    let record = record(folder.path())?;
    let slots = Slots::new(Arc::new(device), layout);
    let disk = slots.look().map_err(|source| StartError::Slots { disk: slots.path().to_owned(), source })?;
    let next = disk.select().map(|(slot, _)| slot);
    let mut documents = Vec::new();
    let mut text = String::new();
    for slot in Slot::ALL {
        let (attributes, content) = (disk.attributes(slot), record.slots.get(slot).as_ref());
        let version = content.map(|content| content.version.to_string());
        let partitions: Vec<_> = disk
            .slot_partitions(slot)
            .map(|(role, view)| json!({ "role": role, "name": view.name, "entry": view.entry, "size": view.len }))
            .collect();
        documents.push(json!({
            "slot": slot,
            "version": version,
            "release": content.and_then(|content| content.digest),
            "priority": attributes.priority(),
            "tries_left": attributes.tries_left(),
            "successful": attributes.successful(),
            "bootable": attributes.bootable(),
            "boots_next": next == Some(slot),
            "running": record.last_boot.as_ref().map(|boot| boot.slot == slot),
            "partitions": partitions,
        }));
        let mark = if next == Some(slot) { " (boots next)" } else { "" };
        let version = version.unwrap_or_else(|| "unknown".to_owned());
        let _ = writeln!(text, "{slot}: version {version}, {attributes:?}{mark}");
    }
    if json {
        return print_json(&json!({ "schema": SCHEMA, "table": disk.health().as_str(), "slots": documents }));
    }
    print(&text)?;
    Ok(Exit::Done)
}

/// `updatectl history`
pub(super) fn history(dir: &Path, limit: usize, evidence: bool, json: bool) -> Result<Exit, LocalError> {
    known(dir)?;
    tell_damage(dir);
    let events = history::read(dir).map_err(|source| LocalError::History { dir: dir.to_owned(), source })?;
    let newest = &events[events.len().saturating_sub(limit)..];
    if json {
        return print_json(&json!({ "schema": SCHEMA, "events": newest }));
    }
    for event in newest {
        let kind = json!(event.kind);
        let version = event.version.as_ref().map(ToString::to_string).unwrap_or_default();
        print(&format!(
            "{}  {:<16} {version:<12} {}",
            event.at,
            kind.as_str().unwrap_or_default(),
            event.detail
        ))?;
        for line in event.evidence.lines().filter(|_| evidence) {
            print(&format!("    {}", one_line(line)))?;
        }
    }
    Ok(Exit::Done)
}

/// Refuses a folder that no engine has run with: a wrong `--state-dir` must not look like a node where all is well.
/// A status that is damaged or was lost is no reason to hide the rest.
fn known(dir: &Path) -> Result<(), LocalError> {
    let folder = StateFolder::view(dir);
    match folder.status() {
        Ok(_) => Ok(()),
        // What the folder holds beside it is read where it is needed.
        Err(StatusError::Missing { .. }) if !matches!(folder.load(), Ok(Loaded { record: None, .. })) => {
            Ok(())
        }
        Err(error @ StatusError::Missing { .. }) => Err(error.into()),
        Err(error) => {
            warn(&chain(&error));
            Ok(())
        }
    }
}

fn record(dir: &Path) -> Result<Record, LocalError> {
    let loaded = StateFolder::view(dir).load()?;
    tell_problems(&loaded);
    Ok(loaded.record.unwrap_or_default())
}

/// Says what is wrong with the record, for verbs that do without it: the engine will refuse to start, or has not
/// noticed yet. A folder that this user may not read is no damage.
fn tell_damage(dir: &Path) {
    match StateFolder::view(dir).load() {
        Ok(loaded) => tell_problems(&loaded),
        Err(StateError::Io { .. }) => {}
        Err(error) => warn(&chain(&error)),
    }
}

fn tell_problems(loaded: &Loaded) {
    for problem in &loaded.problems {
        warn(&format!("one copy of the record is damaged ({problem}): the other one serves"));
    }
}

/// `updatectl quarantine list`
pub(super) fn quarantine(dir: &Path, json: bool) -> Result<Exit, LocalError> {
    known(dir)?;
    let record = record(dir)?;
    if json {
        return print_json(&json!({ "schema": SCHEMA, "quarantine": record.quarantine }));
    }
    for entry in &record.quarantine {
        print(&format!("{}  {}  {}  {}", entry.release, entry.version, entry.at, entry.reason))?;
    }
    Ok(Exit::Done)
}

/// `updatectl explain`
pub(super) async fn explain(options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    let Present { status, dir, running } = present(options).await?;
    if status.is_err() {
        known(&dir)?;
    }
    let record = record(&dir)?;
    let status = status.ok();
    let lines = reasons(status.as_ref(), &record, running);
    if json {
        let state = status.map(|status| status.state);
        return print_json(&json!({ "schema": SCHEMA, "state": state, "reasons": lines }));
    }
    print(&lines.join("\n"))?;
    Ok(Exit::Done)
}

/// Why the node is or is not updating now, the most important thing first.
fn reasons(status: Option<&Status>, record: &Record, running: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(status) = status {
        lines.push(if status.reason.is_empty() {
            format!("The node is {}.", status.state)
        } else {
            format!("The node is {}: {}.", status.state, status.reason.trim_end_matches('.'))
        });
        if let Some(error) = &status.error {
            lines.push(format!("Something is wrong: {error}"));
        }
    }
    if !running {
        lines.push("No engine is running, so nothing happens until one is started.".to_owned());
    }
    lines.extend(status.into_iter().flat_map(of_status));
    lines.extend(of_record(record));
    lines
}

/// What the reason of a node begins with that waits for a permit.
const PERMIT: &str = "permit: ";

/// What the status says beside state and error.
fn of_status(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(booted) = status.booted.as_ref().filter(|booted| !booted.confirmed) {
        lines.push(format!(
            "Version {} in slot {} is not confirmed yet: nothing is installed before it is.",
            booted.version, booted.slot
        ));
    }
    if let Some(staged) = &status.staged {
        lines.push(if staged.activated {
            format!("Version {} is activated: the next boot starts it.", staged.version)
        } else {
            format!("Version {} is staged and waits to be activated.", staged.version)
        });
    }
    if let Some(permit) = &status.permit {
        lines.push(format!("Its permit of the reboot lock is {}.", one_line(permit).trim_end_matches('.')));
    }
    if status.permit.is_some() || status.reason.starts_with(PERMIT) {
        lines.push(
            "`updatectl lock status --why` asks the lock who holds a permit, who waits, and what stands against each."
                .to_owned(),
        );
    }
    match &status.last_check {
        Some(check) => lines.push(format!("The last check ended at {} with: {}.", check.at, check.result)),
        None => lines.push("The server has not been asked yet.".to_owned()),
    }
    lines
}

/// What the record says.
fn of_record(record: &Record) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(refusal) = &record.refusal {
        lines.push(format!("The last offer was refused: {}", refusal.reason));
    }
    for attempt in record.attempts.iter().filter(|attempt| attempt.failed > 0) {
        lines.push(format!(
            "Version {} was tried {} times in vain, last: {}",
            attempt.release.version, attempt.failed, attempt.last_error
        ));
    }
    for entry in &record.quarantine {
        lines.push(format!(
            "Version {} is quarantined since {} and not tried again: {}; `updatectl quarantine clear` lifts it.",
            entry.version, entry.at, entry.reason
        ));
    }
    if let Some(newest) = &record.newest_confirmed {
        lines.push(format!("Nothing older than {newest} is installed, unless the targets key allows it."));
    }
    if record.events.dropped() > 0 {
        lines.push(format!("{} events were never reported to the server.", record.events.dropped()));
    }
    lines
}

/// `updatectl config`: what the files say, also where an engine could not work with it. Exit 1 where a value cannot be
/// used; a required one that is missing is named, and may be for another fragment to set.
pub(super) fn config(options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    let merged = options.merged()?;
    let Problems { missing, invalid } = merged.problems();
    let invalid: Vec<_> = invalid.iter().map(|problem| chain(problem)).collect();
    let effective = merged.effective();
    if json {
        let settings: Vec<_> = effective
            .iter()
            .map(|e| json!({ "key": e.key, "value": e.value, "origin": e.origin.as_ref().map(ToString::to_string) }))
            .collect();
        let error = (!invalid.is_empty()).then(|| invalid.join("; "));
        print_json(&json!({
            "schema": SCHEMA, "at": Timestamp::now(), "settings": settings, "missing": missing, "error": error,
        }))?;
    } else {
        for setting in effective {
            let value = setting.value.unwrap_or_else(|| "(not set)".to_owned());
            let origin = setting.origin.map(|origin| format!("  # {origin}")).unwrap_or_default();
            print(&format!("{} = {value}{origin}", setting.key))?;
        }
    }
    if !missing.is_empty() {
        warn(&format!("not set, and required by the engine: {}", missing.join(", ")));
    }
    for problem in &invalid {
        warn(problem);
    }
    Ok(if invalid.is_empty() { Exit::Done } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::status::{Progress, SCHEMA as STATUS_SCHEMA, StateName};

    #[test]
    fn a_permit_is_told_where_it_is_held_or_waited_for() {
        let told = |reason: &str, permit: Option<&str>| {
            let status = Status {
                schema: STATUS_SCHEMA,
                state: StateName::Waiting,
                reason: reason.to_owned(),
                booted: None,
                other: None,
                staged: None,
                progress: Progress::default(),
                last_check: None,
                channel: None,
                group: None,
                permit: permit.map(str::to_owned),
                quarantine: Vec::new(),
                error: None,
            };
            reasons(Some(&status), &Record::default(), true)
        };
        let asks =
            |lines: &[String]| lines.iter().any(|line| line.starts_with("`updatectl lock status --why`"));
        let waits = told("permit: 1 of 1 permits held by n1", None);
        assert_eq!(waits[0], "The node is waiting: permit: 1 of 1 permits held by n1.");
        assert!(asks(&waits) && !waits.iter().any(|line| line.contains("Its permit")), "{waits:?}");
        let holds = told("inhibitor: backup", Some("held for the reboot\ninto 1.1.0"));
        assert_eq!(holds[1], "Its permit of the reboot lock is held for the reboot into 1.1.0.");
        assert!(asks(&holds), "{holds:?}");
        assert!(!asks(&told("window: opens at 22:00", None)));
    }
}
