//! Step 3, metadata: `updatectl root push` gives a server the roots and the first targets metadata.

use super::{Client, OperatorError, print_json, say, targets};
use clap::Subcommand;
use protocol::status::Exit;
use protocol::wire::{Published, RootPush, SCHEMA};
use reqwest::Method;
use serde_json::json;
use std::path::{Path, PathBuf};
use trust::verify::claimed_version;
use trust::{folder, verify_root_chain};

/// Commands about the root of trust.
#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Give the server the roots and the targets metadata of a keys folder.
    Push {
        /// The folder that image-tools keys init made.
        dir: PathBuf,
    },
}

pub(super) async fn run(command: RootCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    match command {
        RootCommand::Push { dir } => push(&dir, client, json).await,
    }
}

fn peek_version(path: &Path, bytes: &[u8]) -> Result<u64, OperatorError> {
    claimed_version(bytes).map_err(|error| {
        OperatorError::Wrong(format!("{} holds metadata that is not valid: {error}", path.display()))
    })
}

/// Whether the server has all of the folder's roots, and targets metadata that is as new.
async fn has_all(
    client: &Client,
    dir: &Path,
    roots: &[Vec<u8>],
    targets: &[u8],
) -> Result<bool, OperatorError> {
    for root in roots {
        let name = folder::root_name(peek_version(dir, root)?);
        if client.metadata(&name).await?.as_ref() != Some(root) {
            return Ok(false);
        }
    }
    let version = peek_version(dir, targets)?;
    Ok(targets::fetch(client).await?.is_some_and(|(theirs, _)| theirs >= version))
}

async fn push(dir: &Path, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    let roots = folder::roots(dir)?;
    let targets = folder::targets(dir)?;
    // What is not a chain here is not sent: the server would refuse it with less to say.
    let what = format!("the chain of roots in {}", dir.display());
    let root = verify_root_chain(&roots).map_err(|source| OperatorError::Untrusted { what, source })?;
    if has_all(client, dir, &roots, &targets).await? {
        if json {
            print_json(&json!({ "schema": SCHEMA, "changed": false, "root": root.version() }))?;
        } else {
            say(format_args!("nothing to do: the server has root version {}", root.version()))?;
        }
        return Ok(Exit::NothingToDo);
    }
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes)
            .map_err(|_| OperatorError::Wrong(format!("{} holds metadata that is not UTF-8", dir.display())))
    };
    let push = RootPush {
        schema: SCHEMA,
        roots: roots.into_iter().map(text).collect::<Result<_, _>>()?,
        targets: Some(text(targets)?),
    };
    let published: Published = client.change(Method::PUT, "api/v1/root", &push).await?;
    print_published(&published, json)?;
    Ok(Exit::Done)
}

/// Prints what a change has published.
pub(super) fn print_published(published: &Published, json: bool) -> Result<(), OperatorError> {
    let Published { root, targets, snapshot, timestamp, .. } = published;
    if json {
        return print_json(&json!({
            "schema": SCHEMA, "changed": true, "root": root, "targets": targets, "snapshot": snapshot,
            "timestamp": timestamp,
        }));
    }
    say(format_args!(
        "published: root {root}, targets {targets}, snapshot {snapshot}, timestamp {timestamp}"
    ))?;
    Ok(())
}
