//! Step 9, permit, from the operator's side: who holds and who waits on reboot locks, permits taken away, and policies. The
//! locks are those of a server, or those in the etcd of this machine's configuration.

mod etcd;
mod keeper;

use super::{OperatorError, ServerOptions, ask, policies, print_json, say, tell};
use crate::cli::node::NodeOptions;
use crate::lock::import::{Imported, System};
use crate::lock::shown::{Marks, holder_line, shown};
use clap::Subcommand;
use jiff::Timestamp;
use keeper::{Change, Import, Keeper, Locks};
use protocol::id::Group;
use protocol::lock::{ClientId, Limit, PolicyFile};
use protocol::status::{Exit, one_line};
use protocol::wire::SCHEMA;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Commands about the reboot locks of a server, or of etcd.
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
    /// Set the policies of the groups that a file names, and all caps if it has a table of them. Other groups keep theirs.
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

pub(super) async fn run(
    command: LockCommand,
    server: &ServerOptions,
    node: &NodeOptions,
    json: bool,
) -> Result<Exit, OperatorError> {
    let keeper = Keeper::new(server, node)?;
    match command {
        LockCommand::List { group } => list(&keeper, group.as_ref(), json).await,
        LockCommand::Release { node, group, why, yes } => {
            release(&keeper, &node, &group, &why, yes, json).await
        }
        LockCommand::Import { file, group, why, yes } => {
            import(&keeper, &file, &group, &why, yes, json).await
        }
        LockCommand::Policy(PolicyCommand::Show { group }) => {
            show_policy(&keeper, group.as_ref(), json).await
        }
        LockCommand::Policy(PolicyCommand::Set { file, why, yes }) => {
            set_policy(&keeper, &file, &why, yes, json).await
        }
    }
}

async fn list(keeper: &Keeper, group: Option<&Group>, json: bool) -> Result<Exit, OperatorError> {
    let Locks { locks, unreadable } = match group {
        Some(group) => Locks { locks: vec![keeper.lock(group).await?], unreadable: Vec::new() },
        None => keeper.locks().await?,
    };
    if json {
        let errors: Vec<_> =
            unreadable.iter().map(|(group, error)| json!({ "group": group, "error": error })).collect();
        print_json(&json!({ "schema": SCHEMA, "locks": locks, "unreadable": errors }))?;
    } else {
        let now = Timestamp::now();
        let marks = Marks { reasons: true, own: None };
        locks.iter().try_for_each(|info| say(format_args!("{}", shown(info, marks, now).trim_end())))?;
    }
    unreadable.iter().for_each(|(group, error)| tell(format_args!("{group}: {}", one_line(error))));
    Ok(if unreadable.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Takes away exactly the permit that was shown: with another grant by then, the lock refuses.
async fn release(
    keeper: &Keeper,
    node: &ClientId,
    group: &Group,
    why: &str,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    let info = keeper.lock(group).await?;
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
    keeper.release(group, node, holder.grant, why).await?;
    if json {
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "group": group, "node": node, "released": holder,
        }))?;
    } else {
        say(format_args!("released the permit of {node} in group {group}"))?;
    }
    Ok(Exit::Done)
}

async fn show_policy(keeper: &Keeper, group: Option<&Group>, json: bool) -> Result<Exit, OperatorError> {
    let mut file = keeper.policies().await?.file;
    if let Some(group) = group {
        let policy = file.groups.remove(group).ok_or_else(|| {
            OperatorError::Wrong(format!("there is no group {group}: updatectl lock list shows all"))
        })?;
        file.groups = [(group.clone(), policy)].into();
        file.caps.caps.retain(|_, cap| cap.groups.contains(group));
    }
    let parts = json!({ "groups": file.groups, "caps": file.caps.caps });
    policies::show(&file.to_string(), parts, json)
}

async fn set_policy(
    keeper: &Keeper,
    path: &Path,
    why: &str,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    let (mut wanted, text) = policies::read(path, json, PolicyFile::parse)?;
    let before = keeper.policies().await?;
    // A file about groups alone says nothing of caps; one with any table of them has all.
    if !names_caps(&text) {
        wanted.caps = before.file.caps.clone();
    }
    // Groups that the file leaves out stay as they are.
    let mut after = PolicyFile { groups: before.file.groups.clone(), caps: wanted.caps.clone() };
    after.groups.extend(wanted.groups.clone());
    let changes = before.file.difference(&after);
    if !policies::agreed(&changes, keeper.name(), yes, json)? {
        return Ok(Exit::NothingToDo);
    }
    keeper.set_policies(&Change { before: &before, wanted: &wanted, why }).await?;
    policies::was_set(&changes, "permits that are held stay held", &[], json)
}

/// Whether a policy file has a table of caps, be it an empty one, which is how the last cap is removed.
fn names_caps(text: &str) -> bool {
    text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("cap"))
}

/// Whose lock a file holds: locksmith's has a counter beside the holders.
fn system(text: &str) -> System {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    if value.get("semaphore").is_some() { System::Locksmith } else { System::Airlock }
}

async fn import(
    keeper: &Keeper,
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
    let (system, holders) = (system.name(), &document.holders);
    tell(format_args!("{group}: max = {max}, {} holders of {system}", holders.len()));
    holders.iter().for_each(|holder| tell(format_args!("  {}", holder.node)));
    notes.iter().for_each(|note| tell(format_args!("note: {}", one_line(note))));
    ask("take this lock over?", yes)?;
    let held = keeper.import(&Import { document: &document, max, system, why }).await?;
    if json {
        let holders: Vec<_> = holders.iter().map(|holder| &holder.node).collect();
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "group": group, "system": system, "max": max,
            "holders": holders, "notes": notes,
        }))?;
    } else {
        say(format_args!("the lock of {system} is taken over into group {group}: {held} hold a permit"))?;
    }
    Ok(Exit::Done)
}
