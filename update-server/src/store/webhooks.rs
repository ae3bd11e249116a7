//! Steps 4, 9 and 12: who is told of what happens, and what is still to be told.

use super::{Connection, StoreError, from_micros, from_number, plain, to_micros, to_number};
use jiff::{SignedDuration, Timestamp};

/// How many deliveries of one webhook may wait. What comes then is not told.
pub const WAITING_MAX: u32 = 1000;
/// How long a delivery that was given up is shown.
const GIVEN_UP_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A receiver.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Where to.
    pub url: String,
    /// What deliveries are signed with.
    pub secret: String,
    /// The kinds of events that it wants.
    pub events: Vec<String>,
    /// Since when.
    pub created_at: Timestamp,
}

impl std::fmt::Debug for Webhook {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// One thing to tell one receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its number.
    pub id: u64,
    /// The receiver's name.
    pub webhook: String,
    /// What kind of event it is.
    pub kind: String,
    /// The document.
    pub body: String,
    /// When it happened.
    pub created_at: Timestamp,
    /// How often it was sent.
    pub attempts: u32,
    /// When it is sent next.
    pub due_at: Timestamp,
    /// Whether it is not sent any more.
    pub given_up: bool,
    /// What was wrong the last time.
    pub problem: String,
}

/// Adds a receiver. False where the name is taken.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn add(conn: &mut Connection, webhook: &Webhook) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO webhook (name, url, secret, events, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(&webhook.name)
    .bind(&webhook.url)
    .bind(&webhook.secret)
    .bind(webhook.events.join(","))
    .bind(to_micros(webhook.created_at))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// All receivers, by name.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(conn: &mut Connection) -> Result<Vec<Webhook>, StoreError> {
    let rows: Vec<(String, String, String, String, i64)> =
        sqlx::query_as("SELECT name, url, secret, events, created_at FROM webhook ORDER BY name")
            .fetch_all(conn)
            .await?;
    rows.into_iter()
        .map(|(name, url, secret, events, at)| {
            let events = events.split(',').map(str::to_owned).collect();
            Ok(Webhook { name, url, secret, events, created_at: from_micros(at)? })
        })
        .collect()
}

/// Removes a receiver and what it was to be told. False where there is none.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn remove(conn: &mut Connection, name: &str) -> Result<bool, StoreError> {
    sqlx::query("DELETE FROM webhook_delivery WHERE webhook = $1").bind(name).execute(&mut *conn).await?;
    let done = sqlx::query("DELETE FROM webhook WHERE name = $1").bind(name).execute(conn).await?;
    Ok(done.rows_affected() == 1)
}

/// Adds a delivery, unless too many wait for that receiver. False if so.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn enqueue(
    conn: &mut Connection,
    webhook: &str,
    kind: &str,
    body: &str,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let waiting: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM webhook_delivery WHERE webhook = $1 AND given_up = 0")
            .bind(webhook)
            .fetch_one(&mut *conn)
            .await?;
    if waiting >= i64::from(WAITING_MAX) {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO webhook_delivery (webhook, kind, body, created_at, attempts, due_at, given_up, problem)
         VALUES ($1, $2, $3, $4, 0, $4, 0, '')",
    )
    .bind(webhook)
    .bind(kind)
    .bind(plain(body))
    .bind(to_micros(at))
    .execute(conn)
    .await?;
    Ok(true)
}

/// Notes that something is told. False if it was before.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn tell_once(conn: &mut Connection, subject: &str, at: Timestamp) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO webhook_told (subject, at) VALUES ($1, $2) ON CONFLICT (subject) DO NOTHING",
    )
    .bind(subject)
    .bind(to_micros(at))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    webhook: String,
    kind: String,
    body: String,
    created_at: i64,
    attempts: i64,
    due_at: i64,
    given_up: i64,
    problem: String,
}

fn delivery(row: Row) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: from_number(row.id)?,
        webhook: row.webhook,
        kind: row.kind,
        body: row.body,
        created_at: from_micros(row.created_at)?,
        attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
        due_at: from_micros(row.due_at)?,
        given_up: row.given_up != 0,
        problem: row.problem,
    })
}

/// Up to `limit` deliveries that are due, oldest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn due(conn: &mut Connection, now: Timestamp, limit: u32) -> Result<Vec<Delivery>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, webhook, kind, body, created_at, attempts, due_at, given_up, problem FROM webhook_delivery
         WHERE given_up = 0 AND due_at <= $1 ORDER BY due_at, id LIMIT $2",
    )
    .bind(to_micros(now))
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(delivery).collect()
}

/// All deliveries that wait or were given up, oldest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn deliveries(conn: &mut Connection) -> Result<Vec<Delivery>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, webhook, kind, body, created_at, attempts, due_at, given_up, problem FROM webhook_delivery
         ORDER BY id",
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(delivery).collect()
}

/// Takes a delivery to send it: no other server does until `until`. False if another one has.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn claim(conn: &mut Connection, found: &Delivery, until: Timestamp) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE webhook_delivery SET due_at = $1, attempts = attempts + 1
         WHERE id = $2 AND due_at = $3 AND given_up = 0",
    )
    .bind(to_micros(until))
    .bind(to_number(found.id))
    .bind(to_micros(found.due_at))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets a delivery that was received.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn delivered(conn: &mut Connection, id: u64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM webhook_delivery WHERE id = $1").bind(to_number(id)).execute(conn).await?;
    Ok(())
}

/// Notes what was wrong, and when it is sent again; none to give it up.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn failed(
    conn: &mut Connection,
    id: u64,
    problem: &str,
    again: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE webhook_delivery SET problem = $1, due_at = $2, given_up = $3 WHERE id = $4")
        .bind(plain(problem))
        .bind(to_micros(again.unwrap_or(now)))
        .bind(if again.is_none() { to_micros(now) } else { 0 })
        .bind(to_number(id))
        .execute(&mut *conn)
        .await?;
    if again.is_none() {
        let old = now.saturating_sub(GIVEN_UP_KEPT).unwrap_or(Timestamp::MIN);
        sqlx::query("DELETE FROM webhook_delivery WHERE given_up > 0 AND given_up < $1")
            .bind(to_micros(old))
            .execute(conn)
            .await?;
    }
    Ok(())
}
