//! The commands about the data as a whole: moving it to PostgreSQL, and restoring it.

use super::{SCHEMA, now, print_failure, say};
use crate::retention::Retention;
use crate::store::DatabaseUrl;
use crate::{migrate, restore};
use anyhow::{Context as _, Result};
use clap::Args;
use jiff::SignedDuration;
use protocol::status::Exit;
use serde_json::json;
use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct MigrateArgs {
    /// The server's folder.
    #[arg(long)]
    data_dir: PathBuf,
    /// The empty database to move to: postgres://USER@HOST/DATABASE. A password is better in the environment (this variable
    /// or PGPASSWORD) or in ~/.pgpass: arguments show in the list of processes.
    #[arg(long, env = "UPDATE_SERVER_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    to: Option<String>,
}

impl fmt::Debug for MigrateArgs {
    /// Without what may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigrateArgs").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct KeepArgs {
    /// Delete events after so many days. The newest 32 of each node stay, and how many there were is known for good.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..))]
    keep_events: u16,
    /// Forget nodes that were not heard of for so many days, with their events and credentials; not those that hold a permit to
    /// reboot. Without it none is forgotten.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..))]
    forget_nodes: Option<u16>,
}

impl From<KeepArgs> for Retention {
    fn from(args: KeepArgs) -> Self {
        let days = |days: u16| SignedDuration::from_hours(i64::from(days) * 24);
        Self { events: days(args.keep_events), nodes: args.forget_nodes.map(days) }
    }
}

fn wrong_usage(line: &str, json: bool) -> Result<Exit> {
    print_failure(line, json);
    writeln!(io::stderr(), "update-server: {line}").context("cannot write to stderr")?;
    Ok(Exit::Usage)
}

pub(super) async fn migrate(args: &MigrateArgs, json: bool) -> Result<Exit> {
    let Some(url) = args.to.clone().filter(|url| !url.is_empty()).map(DatabaseUrl::from) else {
        return wrong_usage(
            "there is no address to move to: expected --to postgres://USER@HOST/DATABASE",
            json,
        );
    };
    let done = migrate::to_postgres(&args.data_dir, &url).await?;
    if json {
        let tables: Vec<_> = done
            .tables
            .iter()
            .map(|table| {
                json!({
                    "table": table.name, "rows": table.content.rows, "sha256": table.content.sha256,
                    "replaced": table.replaced,
                })
            })
            .collect();
        return say(format_args!(
            "{}",
            json!({ "schema": SCHEMA, "tables": tables, "moved_before": done.before, "kept": done.kept })
        ))
        .map(|()| Exit::Done);
    }
    for table in &done.tables {
        let replaced = match table.replaced {
            0 => String::new(),
            texts => format!(" ({texts} texts with a NUL, now U+FFFD)"),
        };
        say(format_args!("{:16} {:>8} rows{replaced}", table.name, table.content.rows))?;
    }
    let done_before = if done.before { "was moved before, and is compared" } else { "is moved and compared" };
    say(format_args!(
        "the data {done_before}: now in {url}; the SQLite file is kept as {}",
        done.kept.display()
    ))?;
    say(format_args!("next: update-server serve --data-dir {} --database-url URL", args.data_dir.display()))?;
    Ok(Exit::Done)
}

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The folder to make. online-keys/ and payloads/ may be in it already.
    #[arg(long)]
    data_dir: PathBuf,
    /// The file that update-server backup wrote.
    #[arg(long)]
    from: PathBuf,
    /// A copy of the folder online-keys/, to be copied from.
    #[arg(long, value_name = "DIR")]
    online_keys: Option<PathBuf>,
}

pub(super) async fn restore(args: &RestoreArgs, json: bool) -> Result<Exit> {
    let folder = &args.data_dir;
    let done = restore::restore(folder, &args.from, args.online_keys.as_deref(), now()).await?;
    if json {
        let missing: Vec<_> = done
            .missing
            .iter()
            .map(|missing| json!({ "payload": missing.payload, "bytes": missing.bytes, "version": missing.version }))
            .collect();
        return say(format_args!(
            "{}",
            json!({
                "schema": SCHEMA, "data_dir": folder, "admin_token": folder.join("admin-token"), "token": done.token,
                "online_keys": done.has_keys, "missing_payloads": missing,
            })
        ))
        .map(|()| Exit::Done);
    }
    say(format_args!("made {} from {}", folder.display(), args.from.display()))?;
    say(format_args!(
        "a new operator's token, {}, is in {}",
        done.token,
        folder.join("admin-token").display()
    ))?;
    if !done.has_keys {
        say(format_args!(
            "missing: {}, without which it does not serve",
            folder.join("online-keys").display()
        ))?;
    }
    for missing in &done.missing {
        say(format_args!(
            "missing: {} of {} ({} bytes)",
            folder.join("payloads").join(missing.payload.to_string()).display(),
            missing.version,
            missing.bytes
        ))?;
    }
    Ok(Exit::Done)
}
