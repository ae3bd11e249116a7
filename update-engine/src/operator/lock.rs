//! Step 9, permit, from the operator's side: who holds and who waits on a server's reboot locks, permits taken away, and
//! policies.

use super::{Client, OperatorError, ask, print_json, say, tell};
use crate::lock::import::{Imported, System};
use clap::Subcommand;
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{ClientId, Holder, Limit, Phase, PolicyFile, PolicyFileErrors, Waiter};
use protocol::status::{Exit, one_line};
use protocol::wire::{
    LockImport, LockInfo, LockList, LockPolicies, LockPolicySet, LockReasons, LockRelease, SCHEMA,
};
use reqwest::Method;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Commands about the reboot locks of a server.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Who holds a permit, who waits, and why.
    List {
        /// Only this group.
        group: Option<Group>,
    },
    /// Take a permit away, if it is still the one that is shown. The node may be about to reboot, or down: look first.
    Release {
        /// The node that holds it.
        node: ClientId,
        /// The group of the lock.
        #[arg(long)]
        group: Group,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Policies: who may hold a permit, how many, and when.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Take over the lock of locksmith (etcd v2) or airlock (etcd v3): its number and its holders. Nobody may hold or wait
    /// in the group yet.
    Import {
        /// The value of its key, as JSON.
        file: PathBuf,
        /// The group to take it over into.
        #[arg(long)]
        group: Group,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", default_value = "updatectl lock import")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Commands about policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Print the policy as a file that policy set reads.
    Show {
        /// Only this group.
        group: Option<Group>,
    },
    /// Set the policies of the groups that a file names, and all caps. Other groups keep theirs.
    Set {
        /// The file (TOML); docs/lock-policy.md describes it.
        file: PathBuf,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", default_value = "updatectl lock policy set")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(command: LockCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    match command {
        LockCommand::List { group } => list(client, group.as_ref(), json).await,
        LockCommand::Release { node, group, why, yes } => {
            release(client, &node, &group, &why, yes, json).await
        }
        LockCommand::Import { file, group, why, yes } => import(client, &file, &group, &why, yes, json).await,
        LockCommand::Policy(PolicyCommand::Show { group }) => show_policy(client, group.as_ref(), json).await,
        LockCommand::Policy(PolicyCommand::Set { file, why, yes }) => {
            set_policy(client, &file, &why, yes, json).await
        }
    }
}

async fn list(client: &Client, group: Option<&Group>, json: bool) -> Result<Exit, OperatorError> {
    let list = match group {
        Some(group) => {
            let info: LockInfo = client.get(&format!("api/v1/locks/{group}")).await?;
            LockList { schema: SCHEMA, locks: vec![info] }
        }
        None => client.get("api/v1/locks").await?,
    };
    if json {
        print_json(&list)?;
    } else {
        let now = Timestamp::now();
        list.locks.iter().try_for_each(|info| say(format_args!("{}", shown(info, now).trim_end())))?;
    }
    Ok(Exit::Done)
}

/// A lock in lines: the group, its holders, its waiters.
fn shown(info: &LockInfo, now: Timestamp) -> String {
    let document = &info.view.document;
    let (holders, waiters) = (document.holders.len(), document.queue.len());
    let mut text = format!("{}: {holders} holding, {waiters} waiting", document.group);
    if let Some(population) = &info.view.population {
        let plural = if population.total == 1 { "" } else { "s" };
        text.push_str(&format!(", {} node{plural}", population.total));
    }
    text.push('\n');
    for holder in &document.holders {
        text.push_str(&format!("  {}\n", holder_line(holder, now)));
        because(&mut text, &info.holding, &holder.node);
    }
    for (place, waiter) in document.queue.iter().enumerate() {
        text.push_str(&format!("  {}\n", waiter_line(place + 1, waiter, now)));
        because(&mut text, &info.waiting, &waiter.node);
        if info.waiting.iter().any(|reasons| reasons.node == waiter.node && reasons.because.is_empty()) {
            text.push_str("      | nothing stands against it: it gets a permit when it asks next\n");
        }
    }
    text
}

/// What stands against a node, below its line.
fn because(text: &mut String, all: &[LockReasons], node: &ClientId) {
    for reason in all.iter().filter(|reasons| reasons.node == *node).flat_map(|reasons| &reasons.because) {
        text.push_str(&format!("      | {}\n", one_line(reason)));
    }
}

fn holder_line(holder: &Holder, now: Timestamp) -> String {
    let phase = match (holder.phase, holder.attempt.is_some()) {
        (Phase::Granted, false) => "holds (FleetLock v1)",
        (Phase::Granted, true) => "makes ready",
        (Phase::Rebooting, _) => "reboots",
        (Phase::Booted, _) => "proves its health",
        (Phase::Failed, _) => "FAILED",
    };
    let mut line = format!("{}  {phase} since {}", holder.node, ago(holder.phase_at, now));
    if let Some(to) = &holder.to {
        let from = holder.from.as_ref().map_or_else(String::new, |from| format!("{from} -> "));
        line.push_str(&format!(", {from}{to}"));
    }
    if let Some(zone) = &holder.zone {
        line.push_str(&format!(", zone {zone}"));
    }
    match holder.stuck_since {
        Some(since) => line.push_str(&format!(", STUCK: silent past its deadline since {}", ago(since, now))),
        None if holder.phase == Phase::Failed => {}
        None => line.push_str(&format!(", due by {}", time(holder.deadline))),
    }
    if !holder.reason.is_empty() {
        line.push_str(&format!(" ({})", one_line(&holder.reason)));
    }
    line
}

fn waiter_line(place: usize, waiter: &Waiter, now: Timestamp) -> String {
    let mut line = format!("{}  waits, place {place}, since {}", waiter.node, ago(waiter.since, now));
    if let Some(to) = &waiter.to {
        line.push_str(&format!(", to {to}"));
    }
    if let Some(zone) = &waiter.zone {
        line.push_str(&format!(", zone {zone}"));
    }
    if waiter.priority != 0 {
        line.push_str(&format!(", priority {}", waiter.priority));
    }
    line
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time, and how long ago it was.
fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    let span = match seconds {
        ..0 => "ahead of this clock".to_owned(),
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    };
    format!("{} ({span})", time(at))
}

/// Takes away exactly the permit that was shown: with another grant by then, the server refuses.
async fn release(
    client: &Client,
    node: &ClientId,
    group: &Group,
    why: &str,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    let path = format!("api/v1/locks/{group}");
    let info: LockInfo = client.get(&path).await?;
    let Some(holder) = info.view.document.holder(node) else {
        if json {
            print_json(&json!({ "schema": SCHEMA, "changed": false, "group": group, "node": node }))?;
        } else {
            say(format_args!("nothing to do: {node} holds no permit in group {group}"))?;
        }
        return Ok(Exit::NothingToDo);
    };
    tell(format_args!("{}", holder_line(holder, Timestamp::now())));
    ask("take this permit away?", yes)?;
    let body = LockRelease { schema: SCHEMA, node: node.clone(), grant: holder.grant, why: why.to_owned() };
    let _: LockInfo = client.change(Method::POST, &format!("{path}/release"), &body).await?;
    if json {
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "group": group, "node": node, "released": holder,
        }))?;
    } else {
        say(format_args!("released the permit of {node} in group {group}"))?;
    }
    Ok(Exit::Done)
}

async fn policies(client: &Client) -> Result<(LockPolicies, PolicyFile), OperatorError> {
    let policies: LockPolicies = client.get("api/v1/lock-policy").await?;
    let file = PolicyFile::parse(client.server(), &policies.file)
        .map_err(|errors| OperatorError::Policy(lines(&errors).join("; ")))?;
    Ok((policies, file))
}

async fn show_policy(client: &Client, group: Option<&Group>, json: bool) -> Result<Exit, OperatorError> {
    let (_, mut file) = policies(client).await?;
    if let Some(group) = group {
        let policy = file.groups.remove(group).ok_or_else(|| {
            OperatorError::Wrong(format!("there is no group {group}: updatectl lock list shows all"))
        })?;
        file.groups = [(group.clone(), policy)].into();
        file.caps.caps.retain(|_, cap| cap.groups.contains(group));
    }
    if json {
        print_json(&json!({
            "schema": SCHEMA, "groups": file.groups, "caps": file.caps.caps, "file": file.to_string(),
        }))?;
    } else {
        say(format_args!("{}", file.to_string().trim_end()))?;
    }
    Ok(Exit::Done)
}

fn lines(errors: &PolicyFileErrors) -> Vec<String> {
    errors.0.iter().map(ToString::to_string).collect()
}

/// A file with errors: all of them, a line each, or together in the one line of a JSON document.
fn unusable(path: &Path, errors: &PolicyFileErrors, json: bool) -> OperatorError {
    let lines = lines(errors);
    if json {
        return OperatorError::Policy(lines.join("; "));
    }
    lines.iter().for_each(|line| tell(format_args!("{}", one_line(line))));
    let plural = if lines.len() == 1 { "" } else { "s" };
    OperatorError::Policy(format!("{} has {} error{plural}; nothing was set", path.display(), lines.len()))
}

async fn set_policy(
    client: &Client,
    path: &Path,
    why: &str,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    let text = std::fs::read_to_string(path).map_err(OperatorError::file(path))?;
    let wanted = PolicyFile::parse(&path.display().to_string(), &text)
        .map_err(|errors| unusable(path, &errors, json))?;
    let (current, before) = policies(client).await?;
    // Groups that the file leaves out stay as they are.
    let mut after = PolicyFile { groups: before.groups.clone(), caps: wanted.caps.clone() };
    after.groups.extend(wanted.groups.clone());
    let changes = before.difference(&after);
    if changes.is_empty() {
        if json {
            print_json(&json!({ "schema": SCHEMA, "changed": false }))?;
        } else {
            say(format_args!("nothing to do: the server has these policies"))?;
        }
        return Ok(Exit::NothingToDo);
    }
    changes.iter().for_each(|line| tell(format_args!("{line}")));
    ask("set this policy?", yes)?;
    let body = LockPolicySet {
        schema: SCHEMA,
        replaces: current.digest,
        file: wanted.to_string(),
        why: why.to_owned(),
    };
    let _: LockPolicies = client.change(Method::PUT, "api/v1/lock-policy", &body).await?;
    if json {
        print_json(&json!({ "schema": SCHEMA, "changed": true, "changes": changes }))?;
    } else {
        say(format_args!("the policy is set; permits that are held stay held"))?;
    }
    Ok(Exit::Done)
}

/// Whose lock a file holds: locksmith's has a counter beside the holders.
fn system(text: &str) -> System {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    if value.get("semaphore").is_some() { System::Locksmith } else { System::Airlock }
}

async fn import(
    client: &Client,
    path: &Path,
    group: &Group,
    why: &str,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    let text = std::fs::read_to_string(path).map_err(OperatorError::file(path))?;
    let system = system(&text);
    let Imported { document, notes } = system
        .import(&text, group, Timestamp::now())
        .map_err(|source| OperatorError::Import { path: path.to_owned(), source })?;
    let Limit::Count(max) = document.policy.max else {
        return Err(OperatorError::Wrong("a lock of another system has no percentage".to_owned()));
    };
    let holders: Vec<ClientId> = document.holders.into_iter().map(|holder| holder.node).collect();
    tell(format_args!("{group}: max = {max}, {} holders of {}", holders.len(), system.name()));
    holders.iter().for_each(|node| tell(format_args!("  {node}")));
    notes.iter().for_each(|note| tell(format_args!("note: {}", one_line(note))));
    ask("take this lock over?", yes)?;
    let body =
        LockImport { schema: SCHEMA, system: system.name().to_owned(), max, holders, why: why.to_owned() };
    let info: LockInfo = client.change(Method::POST, &format!("api/v1/locks/{group}/import"), &body).await?;
    if json {
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "group": group, "system": body.system, "max": max,
            "holders": body.holders, "notes": notes,
        }))?;
    } else {
        let held = info.view.document.holders.len();
        say(format_args!(
            "the lock of {} is taken over into group {group}: {held} hold a permit",
            body.system
        ))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::lock::{Document, Policy};
    use protocol::wire::LockView;

    #[test]
    fn a_lock_shows_who_holds_who_waits_and_why_and_obeys_no_terminal() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let holder = Holder {
            node: "n1".parse().unwrap(),
            attempt: Some("a1".parse().unwrap()),
            boot_before: None,
            boot_after: None,
            from: Some("1.0".parse().unwrap()),
            to: Some("1.1".parse().unwrap()),
            zone: None,
            etcd_member: None,
            reason: "update\n\u{1b}[2J".to_owned(),
            grant: 4,
            phase: Phase::Rebooting,
            granted_at: now,
            phase_at: "2026-11-24T11:00:00Z".parse().unwrap(),
            deadline: "2026-11-24T11:30:00Z".parse().unwrap(),
            stuck_since: Some("2026-11-24T11:30:00Z".parse().unwrap()),
        };
        let waiter = Waiter {
            node: "n2".parse().unwrap(),
            attempt: None,
            to: None,
            zone: Some("rack-1".parse().unwrap()),
            etcd_member: None,
            priority: 5,
            since: "2026-11-24T11:59:00Z".parse().unwrap(),
            seen: now,
        };
        let document = Document {
            holders: vec![holder],
            queue: vec![waiter],
            ..Document::new("default".parse().unwrap(), Policy::default())
        };
        let view = LockView { schema: SCHEMA, revision: 3, document, population: None, caps: Vec::new() };
        let waiting =
            vec![LockReasons { node: "n2".parse().unwrap(), because: vec!["halted: node n1".to_owned()] }];
        let text = shown(&LockInfo { view, holding: Vec::new(), waiting }, now);
        assert_eq!(
            text,
            "default: 1 holding, 1 waiting\n  \
             n1  reboots since 2026-11-24T11:00:00Z (60 min ago), 1.0 -> 1.1, STUCK: silent past its deadline since \
             2026-11-24T11:30:00Z (30 min ago) (update \\u{1b}[2J)\n  \
             n2  waits, place 1, since 2026-11-24T11:59:00Z (60 s ago), zone rack-1, priority 5\n      \
             | halted: node n1\n"
        );
    }
}
