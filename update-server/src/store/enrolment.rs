//! Step 4, channel: tokens that let nodes enrol: only a hash is kept, and each use is counted in the change that binds the node.

use super::{Connection, StoreError, from_micros, parse, to_micros};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::Group;
use protocol::wire::{EnrolmentInfo, EnrolmentState};

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    grp: String,
    note: String,
    uses: i64,
    uses_max: Option<i64>,
    created_at: i64,
    created_by: String,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
}

fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn info(row: Row, now: Timestamp) -> Result<EnrolmentInfo, StoreError> {
    let expires_at = row.expires_at.map(from_micros).transpose()?;
    let state = if row.revoked_at.is_some() {
        EnrolmentState::Revoked
    } else if expires_at.is_some_and(|at| at <= now) {
        EnrolmentState::Expired
    } else if row.uses_max.is_some_and(|max| row.uses >= max) {
        EnrolmentState::UsedUp
    } else {
        EnrolmentState::Valid
    };
    Ok(EnrolmentInfo {
        id: row.id,
        state,
        group: if row.grp.is_empty() { None } else { Some(parse("a group", row.grp)?) },
        note: row.note,
        used: count(row.uses),
        uses: row.uses_max.map(count),
        created_at: from_micros(row.created_at)?,
        created_by: row.created_by,
        expires_at,
        revoked_at: row.revoked_at.map(from_micros).transpose()?,
        last_used_at: row.last_used_at.map(from_micros).transpose()?,
    })
}

/// Stores a new token. False where another one has its id.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn create(conn: &mut Connection, token: &EnrolmentInfo, hash: &Sha256) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO enrolment_token (id, hash, grp, note, uses, uses_max, created_at, created_by, expires_at)
         VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
    )
    .bind(&token.id)
    .bind(hash.to_string())
    .bind(token.group.as_ref().map_or("", Group::as_str))
    .bind(&token.note)
    .bind(token.uses.map(i64::from))
    .bind(to_micros(token.created_at))
    .bind(&token.created_by)
    .bind(token.expires_at.map(to_micros))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// All tokens as they are at `now`, newest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(conn: &mut Connection, now: Timestamp) -> Result<Vec<EnrolmentInfo>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, grp, note, uses, uses_max, created_at, created_by, expires_at, revoked_at, last_used_at
         FROM enrolment_token ORDER BY created_at DESC, id",
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|row| info(row, now)).collect()
}

/// The token with this hash, as it is at `now`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn find(
    conn: &mut Connection,
    hash: &Sha256,
    now: Timestamp,
) -> Result<Option<EnrolmentInfo>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT id, grp, note, uses, uses_max, created_at, created_by, expires_at, revoked_at, last_used_at
         FROM enrolment_token WHERE hash = $1",
    )
    .bind(hash.to_string())
    .fetch_optional(conn)
    .await?;
    row.map(|row| info(row, now)).transpose()
}

/// Counts a use of a token. Who does that has seen in the same change that it is valid.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn count_use(conn: &mut Connection, hash: &Sha256, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query("UPDATE enrolment_token SET uses = uses + 1, last_used_at = $1 WHERE hash = $2")
        .bind(to_micros(now))
        .bind(hash.to_string())
        .execute(conn)
        .await?;
    Ok(())
}

/// Revokes a token for ever. False where there is none of that id that is not revoked yet.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn revoke(conn: &mut Connection, id: &str, at: Timestamp) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE enrolment_token SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL")
        .bind(to_micros(at))
        .bind(id)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
