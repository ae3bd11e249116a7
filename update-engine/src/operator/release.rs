//! Steps 3 and 4, metadata and channel: `updatectl release`.

mod dead_end;

use super::root::print_published;
use super::targets::{SignOptions, Signer};
use super::upload::ReleaseFolder;
use super::{Client, OperatorError, ask, human, print_json, say, tell};
use clap::Subcommand;
use protocol::id::Arch;
use protocol::manifest::{Manifest, TargetCustom};
use protocol::status::{Exit, one_line};
use protocol::version::Version;
use protocol::wire::{ReleaseList, SCHEMA};
use serde_json::json;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use trust::document::TargetsChange;

/// Commands about releases.
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// Sign a release here and give it to the server. It reaches no node before a channel points at it.
    Push {
        /// The folder that image-tools release build made.
        dir: PathBuf,
        /// Let nodes that confirmed a version up to this one go back to the release. Without it, what was allowed
        /// before stays allowed.
        #[arg(long, value_name = "VERSION")]
        allow_downgrade_from: Option<Version>,
        /// Say that no release leads on from it, and why, as release dead-end does.
        #[arg(long, value_name = "REASON", value_parser = dead_end::reason)]
        dead_end: Option<String>,
        #[command(flatten)]
        sign: SignOptions,
    },
    /// List the releases that the server holds.
    List,
    /// Sign that a version is a release no more. No channel may point at it.
    Withdraw {
        /// Its version.
        version: Version,
        /// Only for this architecture.
        #[arg(long)]
        arch: Option<Arch>,
        #[command(flatten)]
        sign: SignOptions,
    },
    /// Sign that no release leads on from a version: nodes that run it are told so and offered nothing, and no node is sent
    /// to it or through it. Someone must install them anew, or go back on them.
    DeadEnd(dead_end::DeadEndOptions),
    /// Sign the releases anew, unchanged, before the metadata expires.
    Renew {
        #[command(flatten)]
        sign: SignOptions,
    },
}

pub(super) async fn run(command: ReleaseCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    match command {
        ReleaseCommand::Push { dir, allow_downgrade_from, dead_end, sign } => {
            let custom = TargetCustom { allow_downgrade_from, dead_end };
            push(&dir, custom, &sign, client, json).await
        }
        ReleaseCommand::List => list(client, json).await,
        ReleaseCommand::Withdraw { version, arch, sign } => {
            withdraw(&version, arch.as_ref(), &sign, client, json).await
        }
        ReleaseCommand::DeadEnd(options) => dead_end::run(&options, client, json).await,
        ReleaseCommand::Renew { sign } => renew(&sign, client, json).await,
    }
}

/// Asks on a terminal. Without one, the command itself is the answer.
fn confirm(yes: bool) -> Result<(), OperatorError> {
    ask("sign and publish?", yes || !std::io::stdin().is_terminal())
}

async fn push(
    dir: &Path,
    wanted: TargetCustom,
    sign: &SignOptions,
    client: &Client,
    json: bool,
) -> Result<Exit, OperatorError> {
    let folder = ReleaseFolder::open(dir)?;
    let (version, arch) = (folder.manifest.version.clone(), folder.manifest.arch.clone());
    let signer = Signer::open(sign)?;
    // Before gigabytes are sent: does the server know us?
    let _: ReleaseList = client.get("api/v1/releases").await?;
    let current = signer.current(client).await?;
    let path = Manifest::target_path(&version, &arch);
    let listed = current.target(&path);
    let before = listed.as_ref().map(|listed| listed.custom.clone()).unwrap_or_default();
    let custom = TargetCustom {
        allow_downgrade_from: wanted.allow_downgrade_from.or(before.allow_downgrade_from),
        dead_end: wanted.dead_end.or(before.dead_end),
    };
    let same_manifest = listed
        .as_ref()
        .is_some_and(|listed| listed.sha256 == Some(protocol::digest::Sha256::of(&folder.bytes)));
    if let Some(listed) = &listed {
        if !same_manifest {
            return Err(OperatorError::Wrong(format!(
                "the release {version} for {arch} exists with another manifest: a release never changes; build it \
                 with another --version"
            )));
        }
        if listed.custom == custom {
            if json {
                print_json(&json!({ "schema": SCHEMA, "changed": false, "version": version, "arch": arch }))?;
            } else {
                say(format_args!("nothing to do: the server has {version} for {arch}"))?;
            }
            return Ok(Exit::NothingToDo);
        }
    }
    folder.check_payloads()?;
    describe(&folder, current.version(), same_manifest, &custom);
    confirm(sign.yes)?;
    let uploaded = folder.upload(client).await?;
    let manifest = String::from_utf8(folder.bytes.clone()).map_err(|_| OperatorError::Release {
        path: dir.join("manifest.json"),
        problem: "expected UTF-8".to_owned(),
    })?;
    let manifests = if same_manifest { Vec::new() } else { vec![manifest] };
    let dead_end = custom.dead_end.is_some();
    let change = TargetsChange::Add { path, bytes: folder.bytes.clone(), custom };
    let published = signer.push(client, &current, &[change], manifests).await?;
    if json {
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "version": version, "arch": arch, "uploaded_bytes": uploaded,
            "targets": published.targets, "snapshot": published.snapshot, "timestamp": published.timestamp,
        }))?;
    } else {
        say(format_args!(
            "pushed {version} for {arch}: {} uploaded, targets version {}",
            human(uploaded),
            published.targets
        ))?;
        let insist = if dead_end { " --to-dead-end" } else { "" };
        say(format_args!("next: updatectl channel set CHANNEL {version}{insist}"))?;
    }
    Ok(Exit::Done)
}

/// Says on stderr what is about to be signed.
fn describe(folder: &ReleaseFolder, current: u64, same_manifest: bool, custom: &TargetCustom) {
    let manifest = &folder.manifest;
    let images: u64 = manifest.partitions.iter().map(|p| p.size).sum();
    tell(format_args!("targets version {current} -> {}", current.saturating_add(1)));
    let sign = if same_manifest { "~" } else { "+" };
    tell(format_args!("  {sign} {} ({}) for {}", manifest.version, manifest.os, manifest.arch));
    for partition in &manifest.partitions {
        tell(format_args!("      {} {} sha256 {}", partition.role, human(partition.size), partition.sha256));
    }
    let payloads: u64 = manifest.payloads.iter().map(|p| p.size).sum();
    tell(format_args!("      images {}, payloads {}", human(images), human(payloads)));
    if let Some(version) = &manifest.min_source_version {
        tell(format_args!("      nodes below {version} pass through another release first"));
    }
    if let Some(version) = &custom.allow_downgrade_from {
        tell(format_args!("      nodes up to {version} may go back to it"));
    }
    if let Some(why) = &custom.dead_end {
        tell(format_args!("      a dead end: {}", one_line(why)));
    }
}

async fn list(client: &Client, json: bool) -> Result<Exit, OperatorError> {
    let list: ReleaseList = client.get("api/v1/releases").await?;
    if json {
        print_json(&list)?;
        return Ok(Exit::Done);
    }
    say(format_args!(
        "{:16} {:10} {:>12} {:>12}  {:20}  CHANNELS",
        "VERSION", "ARCH", "IMAGES", "PAYLOAD", "PUSHED"
    ))?;
    for release in &list.releases {
        let mut notes: Vec<String> = release.channels.iter().map(ToString::to_string).collect();
        notes.extend(release.dead_end.as_ref().map(|why| format!("(a dead end: {})", one_line(why))));
        say(format_args!(
            "{:16} {:10} {:>12} {:>12}  {:20}  {}",
            release.version,
            release.arch,
            human(release.image_bytes),
            human(release.payload_bytes),
            release.pushed_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            notes.join(" ")
        ))?;
    }
    Ok(Exit::Done)
}

async fn withdraw(
    version: &Version,
    arch: Option<&Arch>,
    sign: &SignOptions,
    client: &Client,
    json: bool,
) -> Result<Exit, OperatorError> {
    let signer = Signer::open(sign)?;
    let current = signer.current(client).await?;
    let changes: Vec<TargetsChange> = current
        .releases()
        .filter(|(v, a, _)| v == version && arch.is_none_or(|arch| arch == a))
        .map(|(v, a, _)| TargetsChange::Remove { path: Manifest::target_path(&v, &a) })
        .collect();
    if changes.is_empty() {
        if json {
            print_json(&json!({ "schema": SCHEMA, "changed": false, "version": version }))?;
        } else {
            say(format_args!("nothing to do: the server has no release {version}"))?;
        }
        return Ok(Exit::NothingToDo);
    }
    tell(format_args!("targets version {} -> {}", current.version(), current.version().saturating_add(1)));
    for change in &changes {
        if let TargetsChange::Remove { path } = change {
            tell(format_args!("  - {path}"));
        }
    }
    confirm(sign.yes)?;
    let published = signer.push(client, &current, &changes, Vec::new()).await?;
    print_published(&published, json)?;
    Ok(Exit::Done)
}

async fn renew(sign: &SignOptions, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    let signer = Signer::open(sign)?;
    let current = signer.current(client).await?;
    tell(format_args!(
        "targets version {} -> {}: releases unchanged ({}), signed anew",
        current.version(),
        current.version().saturating_add(1),
        current.releases().count()
    ));
    confirm(sign.yes)?;
    let published = signer.push(client, &current, &[], Vec::new()).await?;
    print_published(&published, json)?;
    Ok(Exit::Done)
}
