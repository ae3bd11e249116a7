//! The audit log: who changed what, when. Rows are added and never changed; the database itself refuses it.

use super::{Connection, StoreError, from_micros, from_number, plain, to_micros, to_number};
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
    // The number after the last: changes take turns.
    sqlx::query(
        "INSERT INTO audit (seq, at, actor, action, subject, detail)
         VALUES ((SELECT COALESCE(MAX(seq), 0) + 1 FROM audit), $1, $2, $3, $4, $5)",
    )
    .bind(to_micros(at))
    .bind(plain(change.actor))
    .bind(plain(change.action))
    .bind(plain(change.subject))
    .bind(plain(change.detail))
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
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|(seq, at, actor, action, subject, detail)| {
            Ok(AuditEntry { seq: from_number(seq)?, at: from_micros(at)?, actor, action, subject, detail })
        })
        .collect()
}
