//! The commands about webhooks.

use super::{DataDirArgs, SCHEMA, now, say};
use crate::store::audit::{self, Change};
use crate::store::webhooks::{self as stored, Webhook};
use crate::webhooks::KINDS;
use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use protocol::status::Exit;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(super) enum WebhookCommand {
    /// Add a receiver and print the secret that its deliveries are signed with: it is shown this once only.
    Add {
        #[command(flatten)]
        data: DataDirArgs,
        /// Its name.
        #[arg(long)]
        name: String,
        /// Where to POST: http:// or https://. Any address is taken, those of your own network too.
        #[arg(long)]
        url: String,
        /// What to tell of, with commas between.
        #[arg(long, required = true, value_delimiter = ',', value_parser = KINDS)]
        events: Vec<String>,
    },
    /// List receivers, and what waits for them or was given up.
    List(DataDirArgs),
    /// Remove a receiver with what waits for it.
    Remove {
        #[command(flatten)]
        data: DataDirArgs,
        /// Its name.
        #[arg(long)]
        name: String,
    },
}

pub(super) async fn run(command: WebhookCommand, json: bool) -> Result<Exit> {
    match command {
        WebhookCommand::Add { data, name, url, events } => add(&data, &name, &url, events, json).await,
        WebhookCommand::List(data) => list(&data, json).await,
        WebhookCommand::Remove { data, name } => remove(&data, &name, json).await,
    }
}

async fn add(data: &DataDirArgs, name: &str, url: &str, events: Vec<String>, json: bool) -> Result<Exit> {
    ensure!(
        name.parse::<protocol::id::Group>().is_ok(),
        "not a valid name: expected up to 64 letters, digits, '.', '_' or '-', found {name:?}"
    );
    let valid =
        reqwest::Url::parse(url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    // It may hold a password, so it is not shown.
    ensure!(valid, "the address is not valid: expected http://HOST/… or https://HOST/…");
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(std::io::Error::other)
        .context("the system gives no random bytes")?;
    let secret = format!("whsec_{}", hex::encode(random));
    let store = data.open_store().await?;
    let mut change = store.write().await?;
    let events: std::collections::BTreeSet<String> = events.into_iter().collect();
    let webhook = Webhook {
        name: name.to_owned(),
        url: url.to_owned(),
        secret: secret.clone(),
        events: events.into_iter().collect(),
        created_at: now(),
    };
    ensure!(
        stored::add(&mut change, &webhook).await?,
        "the webhook {name} exists already: remove it first, or choose another name"
    );
    let detail = webhook.events.join(",");
    let entry = Change { actor: "server", action: "webhook.add", subject: name, detail: &detail };
    audit::record(&mut change, now(), entry).await?;
    change.commit().await?;
    store.close().await;
    if json {
        say(format_args!(
            "{}",
            json!({ "schema": SCHEMA, "name": name, "events": webhook.events, "secret": secret })
        ))?;
    } else {
        say(format_args!("{secret}"))?;
    }
    Ok(Exit::Done)
}

async fn list(data: &DataDirArgs, json: bool) -> Result<Exit> {
    let store = data.open_store().await?;
    let mut conn = store.read().await?;
    let (webhooks, deliveries) = (stored::list(&mut conn).await?, stored::deliveries(&mut conn).await?);
    drop(conn);
    store.close().await;
    if json {
        let hooks: Vec<_> = webhooks
            .iter()
            .map(|hook| json!({ "name": hook.name, "url": hook.url, "events": hook.events, "created_at": hook.created_at }))
            .collect();
        let rows: Vec<_> = deliveries
            .iter()
            .map(|row| {
                json!({
                    "id": row.id, "webhook": row.webhook, "kind": row.kind, "created_at": row.created_at,
                    "attempts": row.attempts, "due_at": row.due_at, "given_up": row.given_up, "problem": row.problem,
                })
            })
            .collect();
        return say(format_args!("{}", json!({ "schema": SCHEMA, "webhooks": hooks, "deliveries": rows })))
            .map(|()| Exit::Done);
    }
    for hook in &webhooks {
        say(format_args!("{:24} {} for {}", hook.name, hook.url, hook.events.join(",")))?;
    }
    for row in &deliveries {
        let state = if row.given_up { "given up" } else { "waits" };
        say(format_args!(
            "{:24} {} of {}: {state} after {} attempts; {}",
            row.webhook, row.kind, row.created_at, row.attempts, row.problem
        ))?;
    }
    Ok(Exit::Done)
}

async fn remove(data: &DataDirArgs, name: &str, json: bool) -> Result<Exit> {
    let store = data.open_store().await?;
    let mut change = store.write().await?;
    ensure!(
        stored::remove(&mut change, name).await?,
        "there is no webhook {name}: see update-server webhook list"
    );
    let entry = Change { actor: "server", action: "webhook.remove", subject: name, detail: "" };
    audit::record(&mut change, now(), entry).await?;
    change.commit().await?;
    store.close().await;
    if json {
        say(format_args!("{}", json!({ "schema": SCHEMA, "name": name, "removed": true })))?;
    } else {
        say(format_args!("{name} is removed"))?;
    }
    Ok(Exit::Done)
}
