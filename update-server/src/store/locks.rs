//! Step 9, permit: the documents of the reboot lock, each changed only by compare-and-swap on its revision, and how many
//! nodes a group has.

use super::{Connection, StoreError, from_micros, from_number, parse, to_micros, to_number};
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{Caps, ClientId, Document, Population, Zone};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The row of the caps.
const CAPS: &str = "caps";
/// What the names of groups' rows begin with.
const GROUP: &str = "group/";

fn row_of(group: &Group) -> String {
    format!("{GROUP}{group}")
}

fn read<T: DeserializeOwned>(what: &'static str, text: String) -> Result<T, StoreError> {
    serde_json::from_str(&text).map_err(|_| StoreError::Corrupt { what, found: text })
}

fn document(revision: i64, text: String) -> Result<(u64, Document), StoreError> {
    let document: Document = read("a lock", text)?;
    if !document.is_known() {
        // A newer server wrote it. What is not understood is not changed.
        return Err(StoreError::Corrupt {
            what: "a lock of a newer server",
            found: document.schema.to_string(),
        });
    }
    Ok((from_number(revision)?, document))
}

/// A group's lock with its revision; none where the group is not known.
///
/// # Errors
/// [`StoreError`] where the database fails or the document cannot be read.
pub async fn find(conn: &mut Connection, group: &Group) -> Result<Option<(u64, Document)>, StoreError> {
    let row: Option<(i64, String)> =
        sqlx::query_as("SELECT revision, document FROM reboot_lock WHERE name = $1")
            .bind(row_of(group))
            .fetch_optional(conn)
            .await?;
    row.map(|(revision, text)| document(revision, text)).transpose()
}

/// All locks with their revisions, by group.
///
/// # Errors
/// [`StoreError`] where the database fails or a document cannot be read.
pub async fn list(conn: &mut Connection) -> Result<Vec<(u64, Document)>, StoreError> {
    let rows: Vec<(i64, String)> =
        sqlx::query_as("SELECT revision, document FROM reboot_lock WHERE name <> $1 ORDER BY name")
            .bind(CAPS)
            .fetch_all(conn)
            .await?;
    rows.into_iter().map(|(revision, text)| document(revision, text)).collect()
}

/// The caps over groups with their revision: none, with revision 0, where none were ever set.
///
/// # Errors
/// [`StoreError`] where the database fails or the document cannot be read.
pub async fn caps(conn: &mut Connection) -> Result<(u64, Caps), StoreError> {
    let row: Option<(i64, String)> =
        sqlx::query_as("SELECT revision, document FROM reboot_lock WHERE name = $1")
            .bind(CAPS)
            .fetch_optional(conn)
            .await?;
    match row {
        Some((revision, text)) => Ok((from_number(revision)?, read("the caps of locks", text)?)),
        None => Ok((0, Caps::default())),
    }
}

/// Writes a document as revision `revision + 1` if it still has `revision`, where 0 means that there is none. False if
/// it has not: then the document is another one than was read, and nothing is written.
async fn swap(
    conn: &mut Connection,
    name: &str,
    revision: u64,
    document: &impl Serialize,
) -> Result<bool, StoreError> {
    let text = serde_json::to_string(document)
        .map_err(|error| StoreError::Corrupt { what: "a lock to be written", found: error.to_string() })?;
    let done = if revision == 0 {
        sqlx::query(
            "INSERT INTO reboot_lock (name, revision, document) VALUES ($1, 1, $2)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(text)
        .execute(conn)
        .await?
    } else {
        sqlx::query(
            "UPDATE reboot_lock SET revision = revision + 1, document = $1 WHERE name = $2 AND revision = $3",
        )
        .bind(text)
        .bind(name)
        .bind(to_number(revision))
        .execute(conn)
        .await?
    };
    Ok(done.rows_affected() == 1)
}

/// Writes a group's lock if it is still the one that was read; with `revision` 0, if there is none. False if not.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn swap_document(
    conn: &mut Connection,
    revision: u64,
    document: &Document,
) -> Result<bool, StoreError> {
    swap(conn, &row_of(&document.group), revision, document).await
}

/// Writes the caps if they are still those that were read; with `revision` 0, if there are none. False if not.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn swap_caps(conn: &mut Connection, revision: u64, caps: &Caps) -> Result<bool, StoreError> {
    swap(conn, CAPS, revision, caps).await
}

/// How many nodes a group has that were heard of since `since`: those that asked its lock, and those that asked no lock and are in
/// the group, where operators placed them or by their own word. Revoked ones do not count. None where there is none.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn population(
    conn: &mut Connection,
    group: &Group,
    since: Timestamp,
) -> Result<Option<Population>, StoreError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT zone, COUNT(*) FROM (
           SELECT node, zone FROM lock_node WHERE grp = $1 AND last_seen >= $2
           UNION
           SELECT node.node, COALESCE(lock_node.zone, '') AS zone FROM node
           LEFT JOIN lock_node ON lock_node.node = node.node
           LEFT JOIN node_group ON node_group.node = node.node
           WHERE COALESCE(lock_node.grp, node_group.grp, node.grp) = $1 AND node.last_seen >= $2
         ) AS members WHERE NOT EXISTS (SELECT 1 FROM node_revocation AS r WHERE r.node = members.node)
         GROUP BY zone",
    )
    .bind(group.as_str())
    .bind(to_micros(since))
    .fetch_all(conn)
    .await?;
    let mut population = Population::default();
    for (zone, count) in rows {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        population.total = population.total.saturating_add(count);
        if !zone.is_empty() {
            population.zones.insert(parse("a zone", zone)?, count);
        }
    }
    Ok((population.total > 0).then_some(population))
}

/// Where a node stands, and when that was last noted.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn place(
    conn: &mut Connection,
    node: &ClientId,
) -> Result<Option<(Group, Option<Zone>, Timestamp)>, StoreError> {
    let row: Option<(String, String, i64)> =
        sqlx::query_as("SELECT grp, zone, last_seen FROM lock_node WHERE node = $1")
            .bind(node.as_str())
            .fetch_optional(conn)
            .await?;
    row.map(|(group, zone, at)| {
        let zone = if zone.is_empty() { None } else { Some(parse("a zone", zone)?) };
        Ok((parse("a group", group)?, zone, from_micros(at)?))
    })
    .transpose()
}

/// Notes where a node stands.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn set_place(
    conn: &mut Connection,
    node: &ClientId,
    group: &Group,
    zone: Option<&Zone>,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO lock_node (node, grp, zone, last_seen) VALUES ($1, $2, $3, $4)
         ON CONFLICT (node) DO UPDATE SET grp = excluded.grp, zone = excluded.zone,
         last_seen = excluded.last_seen",
    )
    .bind(node.as_str())
    .bind(group.as_str())
    .bind(zone.map_or("", Zone::as_str))
    .bind(to_micros(at))
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets where a node stands. False where nothing was known.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn forget_place(conn: &mut Connection, node: &ClientId) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM lock_node WHERE node = $1").bind(node.as_str()).execute(conn).await?;
    Ok(done.rows_affected() > 0)
}
