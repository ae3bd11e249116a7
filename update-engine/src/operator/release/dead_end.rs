//! Step 3, metadata: `updatectl release dead-end`: that no release leads on from one, signed with the release.

use super::super::targets::{SignOptions, Signer};
use super::{Client, OperatorError, confirm, print_json, say, tell};
use clap::Args;
use protocol::id::Arch;
use protocol::manifest::{Manifest, check_dead_end};
use protocol::status::{Exit, one_line};
use protocol::version::Version;
use protocol::wire::SCHEMA;
use serde_json::json;
use trust::document::TargetsChange;

/// Which release, and whether it is a dead end.
#[derive(Args, Debug)]
pub struct DeadEndOptions {
    /// Its version.
    version: Version,
    /// Why, for operators and for who looks at a node that runs it.
    #[arg(long, value_name = "TEXT", value_parser = reason, required_unless_present = "clear")]
    reason: Option<String>,
    /// It is none any more: nodes that run it go on.
    #[arg(long, conflicts_with = "reason")]
    clear: bool,
    /// Only for this architecture.
    #[arg(long)]
    arch: Option<Arch>,
    #[command(flatten)]
    sign: SignOptions,
}

/// Reads the reason of a dead end from the command line.
pub(super) fn reason(text: &str) -> Result<String, String> {
    check_dead_end(text).map(|()| text.to_owned())
}

pub(super) async fn run(
    options: &DeadEndOptions,
    client: &Client,
    json: bool,
) -> Result<Exit, OperatorError> {
    let DeadEndOptions { version, reason, clear, arch, sign } = options;
    let signer = Signer::open(sign)?;
    let current = signer.current(client).await?;
    let releases: Vec<_> = current
        .releases()
        .filter(|(v, a, _)| v == version && arch.as_ref().is_none_or(|arch| arch == a))
        .collect();
    if releases.is_empty() && !clear {
        let of = arch.as_ref().map(|arch| format!(" for {arch}")).unwrap_or_default();
        return Err(OperatorError::Wrong(format!(
            "the server has no release {version}{of}: expected one that it has; updatectl release list shows them"
        )));
    }
    let changed: Vec<_> =
        releases.into_iter().filter(|(.., listed)| listed.custom.dead_end != *reason).collect();
    if changed.is_empty() {
        if json {
            print_json(&json!({ "schema": SCHEMA, "changed": false, "version": version }))?;
        } else {
            let what = if reason.is_some() { "a dead end for this reason" } else { "no dead end" };
            say(format_args!("nothing to do: {version} is {what}"))?;
        }
        return Ok(Exit::NothingToDo);
    }
    tell(format_args!("targets version {} -> {}", current.version(), current.version().saturating_add(1)));
    for (version, arch, _) in &changed {
        match reason {
            Some(why) => tell(format_args!("  ~ {version} for {arch}: a dead end: {}", one_line(why))),
            None => tell(format_args!("  ~ {version} for {arch}: a dead end no more")),
        }
    }
    confirm(sign.yes)?;
    let changes: Vec<TargetsChange> = changed
        .iter()
        .map(|(version, arch, _)| TargetsChange::DeadEnd {
            path: Manifest::target_path(version, arch),
            why: reason.clone(),
        })
        .collect();
    let published = signer.push(client, &current, &changes, Vec::new()).await?;
    if json {
        let arches: Vec<&Arch> = changed.iter().map(|(_, arch, _)| arch).collect();
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "version": version, "arches": arches, "dead_end": reason,
            "targets": published.targets, "snapshot": published.snapshot, "timestamp": published.timestamp,
        }))?;
    } else if reason.is_some() {
        say(format_args!(
            "{version} is a dead end, targets version {}: nodes that run it are offered nothing, and none is sent there",
            published.targets
        ))?;
    } else {
        say(format_args!("{version} is a dead end no more, targets version {}", published.targets))?;
    }
    Ok(Exit::Done)
}
