//! The commands of `update-server` and what they print.

mod audit;
mod serve;

use crate::auth::{self, Role};
use crate::data_dir::{self, DataDir, DataDirError};
use crate::payloads::BucketPlace;
use crate::routes::{metrics_router, openapi};
use crate::server::{App, system_clock};
use crate::store::audit::{Change, record};
use crate::store::{DatabaseUrl, Store, tokens};
use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use jiff::Timestamp;
use protocol::status::Exit;
use serde_json::json;
use serve::ServeArgs;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

mod data;
mod webhook;

/// The schema number of what `--json` prints.
const SCHEMA: u32 = 1;

/// The fleet's server: holds signed releases, points channels at them, answers nodes.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log on stderr, as in `info` or `update_server=debug`.
    #[arg(long, global = true, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a data directory: database, online keys, and a token for the first operator.
    Init(DataDirArgs),
    /// Serve nodes and operators.
    Serve {
        #[command(flatten)]
        data: DataDirArgs,
        /// Keep the payloads in an S3 bucket instead of the folder: s3://BUCKET/PREFIX. Keys, region and server come from the
        /// environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP.
        #[arg(long, env = "UPDATE_SERVER_PAYLOAD_STORE", hide_env_values = true, value_name = "ADDRESS")]
        payload_store: Option<String>,
        #[command(flatten)]
        serve: ServeArgs,
        #[command(flatten)]
        keep: data::KeepArgs,
    },
    /// Tokens of operators.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The audit log.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Write a consistent copy of the SQLite database, while the server may run. Copy online-keys/ and, if
    /// they are there, payloads/ as files.
    Backup {
        #[command(flatten)]
        data: DataDirArgs,
        /// The file to write; it must not exist.
        #[arg(long)]
        out: PathBuf,
    },
    /// Move a data directory's data from SQLite to an empty PostgreSQL database. No server may run on it.
    Migrate(data::MigrateArgs),
    /// Make a data directory from a backup of its SQLite database, after looking at the whole of it.
    Restore(data::RestoreArgs),
    /// Receivers that are told what happens, by signed HTTP requests. A running server heeds a change at once.
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
    /// Print the description of the API (OpenAPI 3.1), as the server has it at /openapi.json.
    Openapi,
}

#[derive(Args)]
struct DataDirArgs {
    /// The server's folder.
    #[arg(long)]
    data_dir: PathBuf,
    /// Keep the data in PostgreSQL instead of SQLite in the folder: postgres://USER@HOST/DATABASE. A password is better in
    /// the environment (this variable or PGPASSWORD) or in ~/.pgpass: arguments show in the list of processes.
    #[arg(long, env = "UPDATE_SERVER_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
}

impl DataDirArgs {
    /// The address, if there is one; an empty variable is none.
    fn database(&self) -> Option<DatabaseUrl> {
        self.database_url.clone().filter(|url| !url.is_empty()).map(DatabaseUrl::from)
    }

    async fn open_store(&self) -> Result<Store, DataDirError> {
        data_dir::open_store(&self.data_dir, self.database().as_ref()).await
    }
}

impl fmt::Debug for DataDirArgs {
    /// Without what may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDirArgs")
            .field("data_dir", &self.data_dir)
            .field("database", &self.database())
            .finish()
    }
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it: it is shown this once only.
    Create {
        #[command(flatten)]
        data: DataDirArgs,
        /// Its name, which the audit log shows.
        #[arg(long)]
        name: String,
        /// viewer reads; publisher also uploads and pushes releases; operator also sets channels and roots.
        #[arg(long)]
        role: Role,
        /// When it ends by itself, as in 2027-01-31T00:00:00Z.
        #[arg(long)]
        expires: Option<Timestamp>,
    },
    /// List all tokens, without their secrets.
    List(DataDirArgs),
    /// End a token for ever; a running server refuses it from now on.
    Revoke {
        #[command(flatten)]
        data: DataDirArgs,
        /// Its name.
        #[arg(long)]
        name: String,
    },
}

/// The command line as clap sees it, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// A failure as data, where that is asked for. Where nobody takes it, the line on stderr remains.
pub fn print_failure(line: &str, json: bool) {
    if json {
        let _ = writeln!(std::io::stdout(), "{}", json!({ "schema": SCHEMA, "error": line }));
    }
}

/// Wrong usage as data. The command line was not understood: whether it asks for JSON shows in its words only.
pub fn print_usage_error(error: &clap::Error) {
    let asks = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    let text = error.to_string();
    // What is wrong; after an empty line follow usage and hints.
    let line = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    print_failure(line.strip_prefix("error: ").unwrap_or(&line), asks && error.use_stderr());
}

/// Runs a command.
///
/// # Errors
/// Where the command fails; the caller prints the whole chain.
pub async fn run(cli: Cli) -> Result<Exit> {
    let json = cli.json;
    match cli.command {
        Command::Init(data) => init(&data, json).await,
        Command::Serve { data, payload_store, serve: args, keep } => {
            serve(&data, payload_store.as_deref(), &args, keep, json).await
        }
        Command::Token(TokenCommand::Create { data, name, role, expires }) => {
            create_token(&data, &name, role, expires, json).await
        }
        Command::Token(TokenCommand::List(data)) => list_tokens(&data, json).await,
        Command::Token(TokenCommand::Revoke { data, name }) => revoke_token(&data, &name, json).await,
        Command::Audit(command) => audit::run(&command, json).await,
        Command::Backup { data, out } => backup(&data, &out, json).await,
        Command::Migrate(args) => data::migrate(&args, json).await,
        Command::Restore(args) => data::restore(&args, json).await,
        Command::Webhook(command) => webhook::run(command, json).await,
        Command::Openapi => {
            say(format_args!("{}", openapi::text().trim_end()))?;
            Ok(Exit::Done)
        }
    }
}

/// Prints a line of data.
fn say(line: fmt::Arguments<'_>) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to stdout")
}

fn now() -> Timestamp {
    system_clock()()
}

async fn init(data: &DataDirArgs, json: bool) -> Result<Exit> {
    let folder = &data.data_dir;
    data_dir::init(folder, data.database().as_ref(), now()).await?;
    let (keys, token) = (folder.join("online-keys.pub.json"), folder.join("admin-token"));
    if json {
        say(format_args!(
            "{}",
            json!({ "schema": SCHEMA, "data_dir": folder, "online_keys": keys, "admin_token": token })
        ))?;
    } else {
        say(format_args!("made {}", folder.display()))?;
        say(format_args!("next: image-tools keys init --dir keys --online {}", keys.display()))?;
        say(format_args!("the first operator's token is in {}", token.display()))?;
    }
    Ok(Exit::Done)
}

async fn serve(
    data: &DataDirArgs,
    payload_store: Option<&str>,
    args: &ServeArgs,
    keep: data::KeepArgs,
    json: bool,
) -> Result<Exit> {
    // First, because it is what is easily wrong and quickly said.
    let tls = args.tls()?;
    // Not std::env::vars, which panics where one of them is not UTF-8.
    let variables =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    // An empty variable is none.
    let address = payload_store.filter(|address| !address.is_empty());
    let bucket = address.map(|address| BucketPlace::new(address, variables)).transpose()?;
    let data = DataDir::open(&data.data_dir, data.database().as_ref(), bucket.as_ref()).await?;
    let app = App::new(&data, system_clock()).await.context("cannot read what is published")?;
    app.set_retention(keep.into());
    app.set_enrolment(args.enrolment);
    app.renew().await;
    let (listener, address) = args.listener(tls.clone()).await?;
    let (ending, ended) = watch::channel(false);
    let metrics =
        args.metrics_listener().await?.map(|socket| socket.serve(metrics_router(app.clone()), ended));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    let said = if json {
        say(format_args!("{}", json!({ "schema": SCHEMA, "listening": address })))
    } else {
        say(format_args!("listening on {address}"))
    };
    // Nodes are served all the same.
    if let Err(error) = said {
        tracing::warn!("listening on {address}; {error:#}");
    }
    let metrics = metrics.map(tokio::spawn);
    let keeping = tokio::spawn(serve::keep_tls(tls, hangup));
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending");
    };
    app.serve(listener, stop).await;
    keeping.abort();
    drop(ending);
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    Ok(Exit::Done)
}

async fn create_token(
    data: &DataDirArgs,
    name: &str,
    role: Role,
    expires: Option<Timestamp>,
    json: bool,
) -> Result<Exit> {
    // A token's name is shown in tables and logs, so it is a name like all others.
    let valid = name.parse::<protocol::id::Group>().is_ok() && name != "server";
    anyhow::ensure!(
        valid,
        "not a valid token name: expected up to 64 letters, digits, '.', '_' or '-', and not \"server\", found {name:?}"
    );
    if let Some(at) = expires.filter(|at| *at <= now()) {
        anyhow::bail!("a token that ends at {at:.0} would be dead from the start: expected a time to come");
    }
    let store = data.open_store().await?;
    let text = auth::generate().context("the system gives no random bytes")?;
    let made = data_dir::create_token(&store, name, role, expires, &text, now()).await?;
    anyhow::ensure!(
        made,
        "the token {name} exists already: choose another name; revoked names are not used again"
    );
    store.close().await;
    if json {
        say(format_args!(
            "{}",
            json!({ "schema": SCHEMA, "name": name, "role": role.as_str(), "token": text })
        ))?;
    } else {
        say(format_args!("{text}"))?;
    }
    Ok(Exit::Done)
}

async fn list_tokens(data: &DataDirArgs, json: bool) -> Result<Exit> {
    let store = data.open_store().await?;
    let tokens = tokens::list(&mut *store.read().await?).await?;
    store.close().await;
    let now = now();
    let state = |token: &tokens::Token| match token.expires_at {
        _ if token.revoked_at.is_some() => "revoked",
        Some(at) if at <= now => "expired",
        _ => "valid",
    };
    if json {
        let rows: Vec<_> = tokens
            .iter()
            .map(|t| {
                json!({
                    "name": t.name, "role": t.role.as_str(), "state": state(t), "created_at": t.created_at,
                    "expires_at": t.expires_at, "revoked_at": t.revoked_at,
                })
            })
            .collect();
        say(format_args!("{}", json!({ "schema": SCHEMA, "tokens": rows })))?;
    } else {
        for token in &tokens {
            let ends = token.expires_at.map_or_else(String::new, |at| format!(", ends {at:.0}"));
            say(format_args!(
                "{:24} {:10} {:8} made {:.0}{ends}",
                token.name,
                token.role,
                state(token),
                token.created_at
            ))?;
        }
    }
    Ok(Exit::Done)
}

async fn revoke_token(data: &DataDirArgs, name: &str, json: bool) -> Result<Exit> {
    let store = data.open_store().await?;
    let now = now();
    let mut change = store.write().await?;
    let found = tokens::list(&mut change).await?.into_iter().find(|token| token.name == name);
    let found = found.with_context(|| format!("there is no token {name}: see update-server token list"))?;
    let revoked = found.revoked_at.is_none() && tokens::revoke(&mut change, name, now).await?;
    if revoked {
        let entry = Change { actor: "server", action: "token.revoke", subject: name, detail: "" };
        record(&mut change, now, entry).await?;
    }
    // Also where nothing changed: an open change keeps the database from being closed.
    change.commit().await?;
    store.close().await;
    if json {
        say(format_args!("{}", json!({ "schema": SCHEMA, "name": name, "revoked": revoked })))?;
    } else {
        say(format_args!("{name} {}", if revoked { "is revoked" } else { "was revoked before" }))?;
    }
    Ok(if revoked { Exit::Done } else { Exit::NothingToDo })
}

async fn backup(data: &DataDirArgs, out: &Path, json: bool) -> Result<Exit> {
    if data.database().is_some() {
        // It does that better, and backup systems know it.
        let line = "backup copies SQLite only: expected no --database-url; with PostgreSQL use pg_dump --format=custom, and copy \
                    online-keys/ and, if they are there, payloads/ as files";
        print_failure(line, json);
        writeln!(io::stderr(), "update-server: {line}").context("cannot write to stderr")?;
        return Ok(Exit::Usage);
    }
    anyhow::ensure!(!out.exists(), "{} is there already: expected a new file", out.display());
    let path = out.to_str().context("the backup's name is not UTF-8")?;
    let store = data.open_store().await?;
    // It has hashes of tokens in it. SQLite writes into an empty file as it is.
    std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    let copied = store.copy_to(path).await;
    if copied.is_err() {
        // It was made here, and is no backup.
        drop(std::fs::remove_file(out));
    }
    copied?;
    store.close().await;
    // The copy is on the disk before anyone is told that there is one.
    std::fs::File::open(out)?.sync_all()?;
    disk::durable::sync_dir(out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let bytes = std::fs::metadata(out)?.len();
    if json {
        say(format_args!("{}", json!({ "schema": SCHEMA, "out": out, "bytes": bytes })))?;
    } else {
        say(format_args!("wrote {} ({bytes} bytes)", out.display()))?;
    }
    Ok(Exit::Done)
}
