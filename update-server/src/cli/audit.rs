//! `audit verify`: whether the audit log is the one that was written.

use super::{DataDirArgs, SCHEMA, print_failure, say};
use crate::store::audit::{self, Verdict};
use anyhow::{Context as _, Result};
use clap::Subcommand;
use protocol::digest::Sha256;
use protocol::status::Exit;
use serde_json::json;
use std::io::{self, Write as _};

/// The audit log.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Check that no entry was changed, taken out, put in or moved: each one's hash covers the one before. Note the last hash
    /// elsewhere, and show it again later: who writes the whole log anew cannot bring it back.
    Verify {
        #[command(flatten)]
        data: DataDirArgs,
        /// The last hash of an earlier time: fail where no entry has it.
        #[arg(long, value_name = "HASH")]
        expect: Option<Sha256>,
    },
}

pub(super) async fn run(command: &AuditCommand, json: bool) -> Result<Exit> {
    let AuditCommand::Verify { data, expect } = command;
    let store = data.open_store().await?;
    let mut reading = store.read_at_once().await?;
    let verdict = audit::verify(&mut reading, expect.as_ref()).await?;
    drop(reading);
    store.close().await;
    let line = match (&verdict, expect) {
        (Verdict::Broken { entry, problem }, _) => {
            format!("the audit log is not sound: entry {entry}: {problem}")
        }
        (Verdict::Sound { entries, expected_at: None, .. }, Some(hash)) => format!(
            "the audit log is not the one that was seen: expected the hash {hash} in it, found {entries} other entries; it was \
             written anew, or cut off, or restored from an older backup"
        ),
        (Verdict::Sound { entries, head, expected_at }, _) => {
            let head = head.map(|head| head.to_string());
            if json {
                let document =
                    json!({ "schema": SCHEMA, "entries": entries, "head": head, "expected_at": expected_at });
                say(format_args!("{document}"))?;
            } else {
                say(format_args!("{entries} entries, head {}", head.as_deref().unwrap_or("none")))?;
            }
            return Ok(Exit::Done);
        }
    };
    if let (true, Verdict::Broken { entry, .. }) = (json, &verdict) {
        say(format_args!("{}", json!({ "schema": SCHEMA, "error": line, "entry": entry })))?;
    } else {
        print_failure(&line, json);
    }
    writeln!(io::stderr(), "update-server: {line}").context("cannot write to stderr")?;
    Ok(Exit::Failed)
}
