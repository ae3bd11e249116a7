//! The audit log: who changed what, when. Rows are added and never changed; the database itself refuses it.

use super::{Connection, StoreError, from_micros, from_number, to_micros, to_number};
use jiff::Timestamp;
use protocol::wire::AuditEntry;

/// One change, before it has a number.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The name of the token, or `server`.
    pub actor: &'a str,
    /// What was done: `channel.set`.
    pub action: &'a str,
    /// To what.
    pub subject: &'a str,
    /// From what to what.
    pub detail: &'a str,
}

/// Records a change, in the transaction that makes it.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn record(conn: &mut Connection, at: Timestamp, change: Change<'_>) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5)")
        .bind(to_micros(at))
        .bind(change.actor)
        .bind(change.action)
        .bind(change.subject)
        .bind(change.detail)
        .execute(conn)
        .await?;
    Ok(())
}

/// Up to `limit` entries below number `before`, newest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(conn: &mut Connection, before: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let rows: Vec<(i64, i64, String, String, String, String)> = sqlx::query_as(
        "SELECT seq, at, actor, action, subject, detail FROM audit WHERE seq < $1 ORDER BY seq DESC LIMIT $2",
    )
    .bind(to_number(before))
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(seq, at, actor, action, subject, detail)| {
            Ok(AuditEntry { seq: from_number(seq)?, at: from_micros(at)?, actor, action, subject, detail })
        })
        .collect()
}
