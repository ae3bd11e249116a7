//! The audit log: who changed what, when. Rows are added and never changed; the database itself refuses it. Each row's hash
//! covers the hash of the row before, so that who goes around the database must write all later rows anew, and then the
//! last hash is another one than was noted elsewhere (docs/adr/0019-audit-chain.md).

use super::{Connection, Store, StoreError, from_micros, from_number, parse, plain, to_micros, to_number};
use jiff::Timestamp;
use protocol::digest::{Hasher, Sha256};
use protocol::wire::AuditEntry;

/// What the hash of every row begins with, so that it is the hash of nothing else.
const DOMAIN: &[u8] = b"flipside audit 1";
/// How many rows are in memory at once while the log is walked.
const PAGE: i64 = 1000;

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

/// A row as it is kept.
#[derive(sqlx::FromRow)]
struct Row {
    seq: i64,
    at: i64,
    actor: String,
    action: String,
    subject: String,
    detail: String,
    hash: Option<String>,
}

impl Row {
    /// What its hash must be, given the one before; the first one follows 32 zeros. Numbers are 8 bytes, the highest first, and
    /// before each text stands its length in bytes, so that no two different rows are the same bytes.
    fn hash_after(&self, previous: &Sha256) -> Sha256 {
        let mut hasher = Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(previous.as_bytes());
        hasher.update(&self.seq.to_be_bytes());
        hasher.update(&self.at.to_be_bytes());
        for text in [&self.actor, &self.action, &self.subject, &self.detail] {
            hasher.update(&(text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.finish()
    }
}

/// What the first row follows.
const BEGINNING: Sha256 = Sha256::from_bytes([0; 32]);

/// Records a change, in the transaction that makes it.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn record(conn: &mut Connection, at: Timestamp, change: Change<'_>) -> Result<(), StoreError> {
    // The number after the last: changes take turns.
    let (last, previous) = end(conn).await?;
    let mut row = Row {
        seq: last + 1,
        at: to_micros(at),
        actor: plain(change.actor),
        action: plain(change.action),
        subject: plain(change.subject),
        detail: plain(change.detail),
        hash: None,
    };
    row.hash = Some(row.hash_after(&previous).to_string());
    sqlx::query(
        "INSERT INTO audit (seq, at, actor, action, subject, detail, hash) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(row.seq)
    .bind(row.at)
    .bind(row.actor)
    .bind(row.action)
    .bind(row.subject)
    .bind(row.detail)
    .bind(row.hash)
    .execute(conn)
    .await?;
    Ok(())
}

/// The last row's number and hash. A server of an older version writes rows without: those at the end get theirs now.
async fn end(conn: &mut Connection) -> Result<(i64, Sha256), StoreError> {
    let last: Option<(i64, Option<String>)> =
        sqlx::query_as("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *conn)
            .await?;
    match last {
        None => Ok((0, BEGINNING)),
        Some((seq, Some(hash))) => Ok((seq, parse("a hash of the audit log", hash)?)),
        Some((seq, None)) => {
            tracing::warn!(
                "the audit log's last entries have no hash; a server of an older version writes them so"
            );
            Ok((seq, complete(conn).await?))
        }
    }
}

/// Gives the rows after the last one that has a hash theirs; returns the last.
async fn complete(conn: &mut Connection) -> Result<Sha256, StoreError> {
    let hashed: Option<(i64, String)> =
        sqlx::query_as("SELECT seq, hash FROM audit WHERE hash IS NOT NULL ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *conn)
            .await?;
    let (mut last, mut head) = match hashed {
        None => (0, BEGINNING),
        Some((seq, hash)) => (seq, parse("a hash of the audit log", hash)?),
    };
    loop {
        let rows = page(conn, last).await?;
        let Some(end) = rows.last() else { return Ok(head) };
        last = end.seq;
        for row in &rows {
            head = row.hash_after(&head);
            sqlx::query("UPDATE audit SET hash = $1 WHERE seq = $2")
                .bind(head.to_string())
                .bind(row.seq)
                .execute(&mut *conn)
                .await?;
        }
    }
}

/// The next rows after a number, oldest first; none at the end.
async fn page(conn: &mut Connection, after: i64) -> Result<Vec<Row>, StoreError> {
    let rows = sqlx::query_as(
        "SELECT seq, at, actor, action, subject, detail, hash FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2",
    );
    Ok(rows.bind(after).bind(PAGE).fetch_all(conn).await?)
}

/// Gives all rows of a log that was begun before there were hashes theirs. Of several servers that start, one does it.
pub(super) async fn begin_chain(store: &Store) -> Result<(), StoreError> {
    let begun: Option<(Option<String>,)> = sqlx::query_as("SELECT hash FROM audit ORDER BY seq LIMIT 1")
        .fetch_optional(&mut *store.read().await?)
        .await?;
    if !matches!(begun, Some((None,))) {
        return Ok(());
    }
    let mut change = store.write().await?;
    complete(&mut change).await?;
    Ok(change.commit().await?)
}

/// What a walk through the log found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Each row follows from the one before.
    Sound {
        /// How many there are.
        entries: u64,
        /// The last one's hash; none where there is no entry.
        head: Option<Sha256>,
        /// The number of the entry with the hash that was looked for.
        expected_at: Option<u64>,
    },
    /// A row does not.
    Broken {
        /// The number of the first one.
        entry: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// Walks the whole log, and looks for the row with the hash `expected`.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn verify(conn: &mut Connection, expected: Option<&Sha256>) -> Result<Verdict, StoreError> {
    let (mut last, mut head, mut expected_at) = (0, None, None);
    loop {
        let rows = page(conn, last).await?;
        if rows.is_empty() {
            return Ok(Verdict::Sound { entries: from_number(last)?, head, expected_at });
        }
        for row in rows {
            let hash = row.hash_after(&head.unwrap_or(BEGINNING));
            let problem = match &row.hash {
                _ if row.seq != last + 1 => {
                    Some(format!("it follows entry {last}: those between were taken away"))
                }
                None => Some(
                    "it has no hash: a server of an older version wrote it, or somebody by hand".to_owned(),
                ),
                Some(found) if *found != hash.to_string() => Some(format!(
                    "its hash is {found:.64}, expected {hash}: it was changed, moved or put in, or the one before was"
                )),
                Some(_) => None,
            };
            if let Some(problem) = problem {
                return Ok(Verdict::Broken { entry: from_number(row.seq)?, problem });
            }
            (last, head) = (row.seq, Some(hash));
            if expected == Some(&hash) {
                expected_at = Some(from_number(last)?);
            }
        }
    }
}

/// Up to `limit` entries below number `before`, newest first.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn list(conn: &mut Connection, before: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT seq, at, actor, action, subject, detail, hash FROM audit WHERE seq < $1 ORDER BY seq DESC LIMIT $2",
    )
    .bind(to_number(before))
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    let entry = |row: Row| {
        Ok(AuditEntry {
            seq: from_number(row.seq)?,
            at: from_micros(row.at)?,
            actor: row.actor,
            action: row.action,
            subject: row.subject,
            detail: row.detail,
            // Whether it is the right one is for `audit verify` to say.
            hash: row.hash.and_then(|hash| hash.parse().ok()),
        })
    };
    rows.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_the_decision_says() {
        // printf of docs/adr/0019-audit-chain.md, through sha256sum.
        let (text, empty) = ("ci".to_owned(), String::new());
        let row = Row {
            seq: 1,
            at: 1_000_000,
            actor: text,
            action: "root.push".to_owned(),
            subject: empty.clone(),
            detail: empty,
            hash: None,
        };
        let expected = "64c2ed1d0752cb5269cdd7c8c9dc0160e1438a307a69d421c2eadf9661602ac4";
        assert_eq!(row.hash_after(&BEGINNING).to_string(), expected);
        let moved = Row { actor: "cir".to_owned(), action: "oot.push".to_owned(), ..row };
        assert_ne!(moved.hash_after(&BEGINNING).to_string(), expected, "a letter in another field");
    }
}
