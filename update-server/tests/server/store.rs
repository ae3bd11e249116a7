//! Step 4, channel: what the server expects of its database, whichever it is.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::database::Database;
use futures::future::join_all;
use jiff::Timestamp;
use protocol::lock::Document;
use std::path::PathBuf;
use tempfile::TempDir;
use update_server::store::audit::{self, Change};
use update_server::store::{Connection, Place, Store, StoreError, channels, locks};

/// A database, and how to open it.
struct Bench {
    _dir: TempDir,
    database: Database,
    file: PathBuf,
}

impl Bench {
    async fn new() -> (Self, Store) {
        let dir = TempDir::new().unwrap();
        // A name with everything that means something in an address.
        let file = dir.path().join("a b%41?#&=ä.db");
        let bench = Self { _dir: dir, database: Database::new(), file };
        let store = Store::open(&bench.place(), true).await.unwrap();
        // An `init` ends with a token.
        let text = "flipside_x";
        let role = update_server::auth::Role::Viewer;
        update_server::data_dir::create_token(&store, "first", role, None, text, now()).await.unwrap();
        (bench, store)
    }

    fn place(&self) -> Place {
        self.database.url().map_or_else(|| Place::Sqlite(self.file.clone()), Place::Postgres)
    }

    /// As another server opens it.
    async fn open(&self) -> Store {
        Store::open(&self.place(), false).await.unwrap()
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_900_000_000).unwrap()
}

async fn note(conn: &mut Connection, detail: &str) {
    let change = Change { actor: "test", action: "test", subject: "", detail };
    audit::record(conn, now(), change).await.unwrap();
}

async fn notes(store: &Store) -> Vec<(u64, String)> {
    let entries = audit::list(&mut store.read().await.unwrap(), u64::MAX, 100).await.unwrap();
    entries.into_iter().rev().map(|entry| (entry.seq, entry.detail)).collect()
}

fn lock() -> Document {
    Document::new("default".parse().unwrap(), Default::default())
}

#[tokio::test]
async fn the_audit_log_grows_without_gaps_and_never_changes() {
    let (_bench, store) = Bench::new().await;
    for (detail, stays) in [("first", true), ("came to nothing", false), ("second", true)] {
        let mut change = store.write().await.unwrap();
        note(&mut change, detail).await;
        if stays {
            change.commit().await.unwrap();
        }
    }
    let whole = notes(&store).await;
    assert_eq!(whole[1..], [(2, "first".to_owned()), (3, "second".to_owned())]);
    for statement in ["UPDATE audit SET detail = ''", "DELETE FROM audit"] {
        let mut change = store.write().await.unwrap();
        let refused = sqlx::query(statement).execute(&mut *change).await.unwrap_err();
        assert!(refused.to_string().contains("the audit log is append-only"), "{refused}");
    }
    assert_eq!(notes(&store).await, whole);
}

/// Without any turns: each connection writes at once, as servers would that do not know of each other.
#[tokio::test]
async fn of_all_who_saw_one_revision_one_writes() {
    let (bench, store) = Bench::new().await;
    assert!(locks::swap_document(&mut store.read().await.unwrap(), 0, &lock()).await.unwrap());
    let servers = join_all((0..4).map(|_| bench.open())).await;
    for revision in 1..=20 {
        let writes = servers.iter().cycle().take(8).map(async |server| {
            let mut conn = server.read().await.unwrap();
            locks::swap_document(&mut conn, revision, &lock()).await.unwrap()
        });
        let written = join_all(writes).await.into_iter().filter(|written| *written).count();
        assert_eq!(written, 1, "of revision {revision}");
    }
    let group = lock().group;
    let found = locks::find(&mut store.read().await.unwrap(), &group).await.unwrap();
    assert_eq!(found.unwrap().0, 21);
}

#[tokio::test]
async fn what_a_change_reads_stays_true_until_it_is_committed() {
    let (bench, store) = Bench::new().await;
    let group = lock().group;
    assert!(locks::swap_document(&mut store.read().await.unwrap(), 0, &lock()).await.unwrap());
    let servers = join_all((0..3).map(|_| bench.open())).await;
    let changes = servers.iter().cycle().take(30).map(async |server| {
        let mut change = server.write().await.unwrap();
        let (revision, document) = locks::find(&mut change, &group).await.unwrap().unwrap();
        note(&mut change, "").await;
        assert!(locks::swap_document(&mut change, revision, &document).await.unwrap());
        change.commit().await.unwrap();
    });
    join_all(changes).await;
    let found = locks::find(&mut store.read().await.unwrap(), &group).await.unwrap();
    assert_eq!(found.unwrap().0, 31);
}

#[tokio::test]
async fn several_things_are_read_as_they_were_at_one_moment() {
    let (bench, store) = Bench::new().await;
    let mut reading = store.read_at_once().await.unwrap();
    assert!(channels::list(&mut reading).await.unwrap().is_empty());
    let other = bench.open().await;
    let mut change = other.write().await.unwrap();
    let (channel, version) = ("alpha".parse().unwrap(), "1.0.0".parse().unwrap());
    channels::set(&mut change, &channel, &version, false, now(), "test").await.unwrap();
    change.commit().await.unwrap();
    assert!(channels::list(&mut reading).await.unwrap().is_empty());
    drop(reading);
    assert_eq!(channels::list(&mut store.read().await.unwrap()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn names_are_sorted_byte_by_byte() {
    let (_bench, store) = Bench::new().await;
    let mut change = store.write().await.unwrap();
    for channel in ["a-b", "B", "a_b", "ab", "a.c", "C", "a"] {
        let (channel, version) = (channel.parse().unwrap(), "1.0.0".parse().unwrap());
        channels::set(&mut change, &channel, &version, false, now(), "test").await.unwrap();
    }
    let found: Vec<String> =
        channels::list(&mut change).await.unwrap().iter().map(|info| info.channel.to_string()).collect();
    assert_eq!(found, ["B", "C", "a", "a-b", "a.c", "a_b", "ab"]);
}

#[tokio::test]
async fn tables_of_a_newer_server_are_left_alone() {
    let (bench, store) = Bench::new().await;
    let mut change = store.write().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 SELECT 9999, 'of the future', success, checksum, 0 FROM _sqlx_migrations WHERE version = 3";
    assert_eq!(sqlx::query(newer).execute(&mut *change).await.unwrap().rows_affected(), 1);
    change.commit().await.unwrap();
    let refused = Store::open(&bench.place(), false).await.unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 9999, known } if known < 9999), "{refused}");
}
