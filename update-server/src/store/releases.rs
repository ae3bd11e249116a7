//! Step 4, channel: the releases that the current targets metadata names.

use super::{Connection, StoreError, from_micros, parse, to_micros};
use jiff::Timestamp;
use protocol::id::Arch;
use protocol::manifest::Manifest;
use protocol::version::Version;

/// A release for one architecture.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its manifest.
    pub manifest: Manifest,
    /// The consistent-snapshot name of its manifest.
    pub target: String,
    /// From which confirmed version a node may go back to it.
    pub allow_downgrade_from: Option<Version>,
    /// Why it is a dead end, if it is.
    pub dead_end: Option<String>,
    /// When it was pushed.
    pub pushed_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    version: String,
    arch: String,
    target: String,
    allow_downgrade_from: Option<String>,
    dead_end: Option<String>,
    pushed_at: i64,
    bytes: Vec<u8>,
}

fn release(row: Row) -> Result<Release, StoreError> {
    let version: Version = parse("a version", row.version)?;
    let arch: Arch = parse("an architecture", row.arch)?;
    let manifest = Manifest::parse(&row.bytes, &version, &arch)
        .map_err(|error| StoreError::Corrupt { what: "a manifest", found: error.to_string() })?;
    Ok(Release {
        manifest,
        target: row.target,
        allow_downgrade_from: row.allow_downgrade_from.map(|v| parse("a version", v)).transpose()?,
        dead_end: row.dead_end,
        pushed_at: from_micros(row.pushed_at)?,
    })
}

/// All releases, newest version first.
///
/// # Errors
/// [`StoreError`] where the database fails or holds a manifest that does not parse.
pub async fn list(conn: &mut Connection) -> Result<Vec<Release>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT release.version, release.arch, release.target, release.allow_downgrade_from, release.dead_end,
         release.pushed_at, target.bytes FROM release JOIN target ON target.name = release.target",
    )
    .fetch_all(conn)
    .await?;
    let mut releases = rows.into_iter().map(release).collect::<Result<Vec<_>, _>>()?;
    releases.sort_by(|a, b| {
        b.manifest.version.cmp(&a.manifest.version).then_with(|| a.manifest.arch.cmp(&b.manifest.arch))
    });
    Ok(releases)
}

/// Adds a release or changes what is said about it.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn put(conn: &mut Connection, release: &Release) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO release (version, arch, target, allow_downgrade_from, dead_end, pushed_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (version, arch) DO UPDATE SET target = excluded.target,
         allow_downgrade_from = excluded.allow_downgrade_from, dead_end = excluded.dead_end",
    )
    .bind(release.manifest.version.as_str())
    .bind(release.manifest.arch.as_str())
    .bind(&release.target)
    .bind(release.allow_downgrade_from.as_ref().map(Version::as_str))
    .bind(release.dead_end.as_deref())
    .bind(to_micros(release.pushed_at))
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets a release. Its manifest stays among the target files, for nodes that are in the middle of reading it.
///
/// # Errors
/// [`StoreError`] where the database fails.
pub async fn remove(conn: &mut Connection, version: &Version, arch: &Arch) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM release WHERE version = $1 AND arch = $2")
        .bind(version.as_str())
        .bind(arch.as_str())
        .execute(conn)
        .await?;
    Ok(())
}
