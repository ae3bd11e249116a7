//! Steps 4, 9 and 12: receivers that an operator named are told what happens, signed.
//!
//! A delivery is a row written in the change that it tells of: what was not committed is never told, and what was survives a
//! crash. It is sent at least once, by one server at a time, until the receiver answers 2xx or a day has passed. Where it is
//! sent is the operator's own decision (a command on the server's machine), so no address is refused; redirects are not
//! followed, so that the receiver does not decide it.

use crate::server::App;
use crate::store::webhooks::{self as stored, Delivery, Webhook};
use crate::store::{Connection, StoreError, documents};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use protocol::lock::{Document, Holder, Phase};
use protocol::rollout::Rollout;
use protocol::wire::{Event, EventKind, SCHEMA};
use serde_json::{Value, json};
use sha2::Sha256;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

/// What can be told.
pub const KINDS: [&str; 8] = [
    "rollout.halted",
    "rollout.stage",
    "node.rolled-back",
    "node.failed",
    "node.silent",
    "lock.stuck",
    "lock.failed",
    "metadata.expiring",
];

/// How often is looked for what is due.
const EVERY: Duration = Duration::from_secs(2);
/// How long a receiver has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a delivery is a server's that sends it: longer than it takes.
const CLAIM: SignedDuration = SignedDuration::from_secs(60);
/// After the first failure it is sent again so much later, then twice that, and so on.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(10);
/// And at most so much later.
const LAST_RETRY: SignedDuration = SignedDuration::from_hours(4);
/// Then it is given up.
const PATIENCE: SignedDuration = SignedDuration::from_hours(24);
/// How many are sent at once.
const AT_ONCE: u32 = 16;
/// The longest text of a node's in a delivery, in bytes.
const TEXT_MAX: usize = 500;
/// From how long before its expiry metadata is told of that only an operator can renew.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(21 * 24);

/// Tells all receivers that want to know, in the change `conn` is in. `about` are the fields beside schema, kind and time.
///
/// # Errors
/// [`StoreError`].
pub async fn tell(
    conn: &mut Connection,
    kind: &'static str,
    about: &Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    for webhook in stored::list(conn).await? {
        if !webhook.events.iter().any(|wanted| wanted == kind) {
            continue;
        }
        let mut body = json!({ "schema": SCHEMA, "kind": kind, "at": now });
        if let (Some(body), Some(about)) = (body.as_object_mut(), about.as_object()) {
            body.extend(about.clone());
        }
        if !stored::enqueue(conn, &webhook.name, kind, &body.to_string(), now).await? {
            tracing::warn!(webhook = webhook.name, kind, "too many deliveries wait: it is not told");
        }
    }
    Ok(())
}

/// Tells of a rollout that has gone on.
///
/// # Errors
/// [`StoreError`].
pub async fn rollout(
    conn: &mut Connection,
    before: &Rollout,
    next: &Rollout,
    now: Timestamp,
) -> Result<(), StoreError> {
    let about = json!({
        "channel": next.channel, "version": next.version, "number": next.number, "stage": next.stage + 1,
        "stages": next.stages(), "why": next.halted.as_ref().map(|halted| &halted.why),
    });
    let halted = before.halted.is_none() && next.halted.is_some();
    tell(conn, if halted { "rollout.halted" } else { "rollout.stage" }, &about, now).await
}

/// Tells of an event of a node that is a failure.
///
/// # Errors
/// [`StoreError`].
pub async fn event(
    conn: &mut Connection,
    node: &protocol::id::NodeId,
    event: &Event,
    now: Timestamp,
) -> Result<(), StoreError> {
    let kind = match event.kind {
        EventKind::RolledBack => "node.rolled-back",
        EventKind::Failed => "node.failed",
        _ => return Ok(()),
    };
    let mut detail = event.detail.clone();
    detail.truncate(detail.floor_char_boundary(TEXT_MAX));
    tell(conn, kind, &json!({ "node": node, "version": event.version, "detail": detail }), now).await
}

/// Tells of holders that became stuck or failed.
///
/// # Errors
/// [`StoreError`].
pub async fn lock(
    conn: &mut Connection,
    before: &Document,
    after: &Document,
    now: Timestamp,
) -> Result<(), StoreError> {
    for holder in &after.holders {
        let old = before.holder(&holder.node);
        let new = |is: fn(&Holder) -> bool| is(holder) && !old.is_some_and(is);
        let about = json!({
            "group": after.group, "node": holder.node, "version": holder.to, "reason": holder.reason,
        });
        if new(|holder| holder.stuck_since.is_some()) {
            tell(conn, "lock.stuck", &about, now).await?;
        }
        if new(|holder| holder.phase == Phase::Failed) {
            tell(conn, "lock.failed", &about, now).await?;
        }
    }
    Ok(())
}

/// Tells of root and targets metadata that expires soon, once for each.
async fn expiring(app: &App) -> Result<(), StoreError> {
    let now = app.now();
    for role in ["root", "targets"] {
        let newest = documents::newest(&mut *app.store().read().await?, role).await?;
        let Some(document) = newest.filter(|document| document.expires.duration_since(now) < WARN_BEFORE)
        else {
            continue;
        };
        let mut change = app.store().write().await?;
        let subject = format!("{role} {} expires", document.version);
        if stored::tell_once(&mut change, &subject, now).await? {
            let about = json!({ "role": role, "version": document.version, "expires": document.expires });
            tell(&mut change, "metadata.expiring", &about, now).await?;
            change.commit().await?;
        }
    }
    Ok(())
}

/// The value of the header `Flipside-Signature`.
#[must_use]
pub fn signature(secret: &str, body: &str, at: Timestamp) -> String {
    let seconds = at.as_second();
    // A key of any length is valid.
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map(|mut mac| {
        mac.update(format!("{seconds}.{body}").as_bytes());
        hex::encode(mac.finalize().into_bytes())
    });
    format!("t={seconds},v1={}", mac.unwrap_or_default())
}

/// Sends what is due every few seconds, until the server ends.
pub async fn run(app: App, mut stopped: watch::Receiver<bool>) {
    let client =
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(TIMEOUT).build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return tracing::error!(error = crate::error::chain(&error), "no webhook is told"),
    };
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let work = async {
        loop {
            every.tick().await;
            if let Err(error) = tick(&app, &client).await {
                tracing::error!(error = crate::error::chain(&error), "webhooks were not told");
            }
        }
    };
    // What is cut off in the middle is sent again by the next server.
    tokio::select! {
        () = work => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

/// Sends what is due.
///
/// # Errors
/// [`StoreError`]; what was not sent is due again later.
pub async fn tick(app: &App, client: &reqwest::Client) -> Result<(), StoreError> {
    let webhooks = stored::list(&mut *app.store().read().await?).await?;
    if webhooks.is_empty() {
        return Ok(());
    }
    expiring(app).await?;
    let due = stored::due(&mut *app.store().read().await?, app.now(), AT_ONCE).await?;
    let sent = due.iter().map(|delivery| async {
        match webhooks.iter().find(|webhook| webhook.name == delivery.webhook) {
            Some(webhook) => send(app, client, webhook, delivery).await,
            // It was added this moment, and is sent the next time.
            None => Ok(()),
        }
    });
    futures::future::try_join_all(sent).await.map(drop)
}

async fn send(
    app: &App,
    client: &reqwest::Client,
    webhook: &Webhook,
    delivery: &Delivery,
) -> Result<(), StoreError> {
    let now = app.now();
    let mut change = app.store().write().await?;
    if !stored::claim(&mut change, delivery, now.saturating_add(CLAIM).unwrap_or(now)).await? {
        return Ok(());
    }
    change.commit().await?;
    let request = client
        .post(&webhook.url)
        .header("content-type", "application/json")
        .header("flipside-event", &delivery.kind)
        .header("flipside-delivery", delivery.id.to_string())
        .header("flipside-signature", signature(&webhook.secret, &delivery.body, now))
        .body(delivery.body.clone());
    let problem = match request.send().await {
        Ok(answer) if answer.status().is_success() => None,
        Ok(answer) => Some(format!("it answered {}", answer.status())),
        // Without the address, which may hold a password.
        Err(error) => Some(crate::error::chain(&error.without_url())),
    };
    let mut change = app.store().write().await?;
    match problem {
        None => stored::delivered(&mut change, delivery.id).await?,
        Some(problem) => {
            let again = retry(delivery, now);
            let next = again.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"));
            tracing::warn!(
                webhook = webhook.name,
                kind = delivery.kind,
                problem,
                again = next,
                "a webhook was not told"
            );
            stored::failed(&mut change, delivery.id, &problem, again, now).await?;
        }
    }
    Ok(change.commit().await?)
}

/// When a delivery that failed again is sent next; none to give it up.
fn retry(delivery: &Delivery, now: Timestamp) -> Option<Timestamp> {
    let doubled = FIRST_RETRY.saturating_mul(1 << delivery.attempts.min(16));
    let again = now.checked_add(doubled.min(LAST_RETRY)).ok()?;
    (again.duration_since(delivery.created_at) <= PATIENCE).then_some(again)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_any_other_hmac() {
        // As of: printf '1900000000.{"a":1}' | openssl dgst -sha256 -hmac whsec_x
        let at = Timestamp::from_second(1_900_000_000).unwrap();
        assert_eq!(signature("whsec_x", r#"{"a":1}"#, at), format!("t=1900000000,v1={EXPECTED}"));
    }

    const EXPECTED: &str = "336715ee5d8155ca8179b84574478980fc307c7c523594afc699aa2dde24231b";

    #[test]
    fn what_fails_is_sent_later_and_later_for_a_day() {
        let created_at = Timestamp::from_second(1_900_000_000).unwrap();
        let (mut now, mut waits) = (created_at, Vec::new());
        for attempts in 0.. {
            let delivery = Delivery {
                id: 1,
                webhook: String::new(),
                kind: String::new(),
                body: String::new(),
                created_at,
                attempts,
                due_at: now,
                given_up: false,
                problem: String::new(),
            };
            let Some(next) = retry(&delivery, now) else { break };
            waits.push(next.duration_since(now).as_secs());
            now = next;
        }
        assert_eq!(waits[..4], [10, 20, 40, 80]);
        assert_eq!(waits.iter().max(), Some(&(4 * 3600)));
        assert!(now.duration_since(created_at) > SignedDuration::from_hours(20), "{waits:?}");
    }
}
