//! Tokens of operators: only a hash is kept. A token is 32 random bytes, so one round of SHA-256 is enough.

use super::{Connection, StoreError, from_micros, parse, to_micros};
use crate::auth::Role;
use jiff::Timestamp;
use protocol::digest::Sha256;

/// What is known of a token, which is everything but the token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its name: the actor in the audit log.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

type Row = (String, String, i64, Option<i64>, Option<i64>);

fn token((name, role, created_at, expires_at, revoked_at): Row) -> Result<Token, StoreError> {
    Ok(Token {
        name,
        role: parse("a role", role)?,
        created_at: from_micros(created_at)?,
        expires_at: expires_at.map(from_micros).transpose()?,
        revoked_at: revoked_at.map(from_micros).transpose()?,
    })
}

/// Stores a new token. False where the name is taken.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn create(conn: &mut Connection, token: &Token, hash: &Sha256) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "INSERT INTO token (name, hash, role, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO NOTHING",
    )
    .bind(&token.name)
    .bind(hash.to_string())
    .bind(token.role.as_str())
    .bind(to_micros(token.created_at))
    .bind(token.expires_at.map(to_micros))
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The token with this hash, revoked and expired ones included.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn find(conn: &mut Connection, hash: &Sha256) -> Result<Option<Token>, StoreError> {
    let row: Option<Row> =
        sqlx::query_as("SELECT name, role, created_at, expires_at, revoked_at FROM token WHERE hash = $1")
            .bind(hash.to_string())
            .fetch_optional(conn)
            .await?;
    row.map(token).transpose()
}

/// All tokens, by name.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(conn: &mut Connection) -> Result<Vec<Token>, StoreError> {
    let rows: Vec<Row> =
        sqlx::query_as("SELECT name, role, created_at, expires_at, revoked_at FROM token ORDER BY name")
            .fetch_all(conn)
            .await?;
    rows.into_iter().map(token).collect()
}

/// Revokes a token for ever. False where there is none of that name that is not revoked yet.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn revoke(conn: &mut Connection, name: &str, at: Timestamp) -> Result<bool, StoreError> {
    let done = sqlx::query("UPDATE token SET revoked_at = $1 WHERE name = $2 AND revoked_at IS NULL")
        .bind(to_micros(at))
        .bind(name)
        .execute(conn)
        .await?;
    Ok(done.rows_affected() == 1)
}
