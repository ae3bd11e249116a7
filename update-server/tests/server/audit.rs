//! The audit log's hashes: rows that were changed, taken out, put in or moved are found, and old logs get theirs.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::Server;
use common::database::Database;
use futures::future::join_all;
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::wire::AuditLog;
use sqlx::migrate::Migrator;
use sqlx::{AnyConnection, Connection as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use update_server::auth::Role;
use update_server::data_dir::{create_token, init};
use update_server::store::audit::{self, Change, Verdict};
use update_server::store::{Place, Store};

/// A data directory, and its log.
struct Bench {
    dir: TempDir,
    database: Database,
}

fn now() -> Timestamp {
    Timestamp::from_second(1_900_000_000).unwrap()
}

impl Bench {
    /// One with the entry of `init` and five more.
    async fn new() -> Self {
        let bench = Self { dir: TempDir::new().unwrap(), database: Database::new() };
        init(&bench.srv(), bench.database.url().as_ref(), now()).await.unwrap();
        bench.note(5).await;
        bench
    }

    fn srv(&self) -> PathBuf {
        self.dir.path().join("srv")
    }

    fn file(&self) -> PathBuf {
        self.srv().join("server.db")
    }

    fn place(&self) -> Place {
        self.database.url().map_or_else(|| Place::Sqlite(self.file()), Place::Postgres)
    }

    /// The address as sqlx has it.
    fn address(&self) -> String {
        self.database.address().unwrap_or_else(|| format!("sqlite:{}?mode=rwc", self.file().display()))
    }

    async fn open(&self) -> Store {
        Store::open(&self.place(), false).await.unwrap()
    }

    async fn note(&self, count: usize) {
        let store = self.open().await;
        let mut change = store.write().await.unwrap();
        for number in 0..count {
            let detail = format!("no. {number}");
            let entry = Change { actor: "test", action: "test", subject: "\0ä", detail: &detail };
            audit::record(&mut change, now(), entry).await.unwrap();
        }
        change.commit().await.unwrap();
        store.close().await;
    }

    /// What somebody does who has the database's password.
    async fn by_hand(&self, statement: &'static str) -> AnyConnection {
        sqlx::any::install_default_drivers();
        let mut conn = AnyConnection::connect(&self.address()).await.unwrap();
        let away = match self.database.postgres {
            Some(_) => "ALTER TABLE audit DISABLE TRIGGER USER",
            None => {
                "DROP TRIGGER IF EXISTS audit_is_append_only_update; DROP TRIGGER IF EXISTS audit_is_append_only_delete"
            }
        };
        for statement in [away, statement] {
            sqlx::raw_sql(statement).execute(&mut conn).await.unwrap();
        }
        conn
    }

    async fn verdict(&self) -> Verdict {
        let store = self.open().await;
        let verdict = audit::verify(&mut store.read().await.unwrap(), None).await.unwrap();
        store.close().await;
        verdict
    }

    fn verify(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
        command.args(["audit", "verify", "--data-dir"]).arg(self.srv()).args(args).env_remove("RUST_LOG");
        match self.database.address() {
            Some(address) => command.env("UPDATE_SERVER_DATABASE_URL", address),
            None => command.env_remove("UPDATE_SERVER_DATABASE_URL"),
        };
        command.output().unwrap()
    }

    /// The number of entries and the last hash, as the program prints them.
    fn head(&self) -> (u64, String) {
        let output = self.verify(&[]);
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line} {}", String::from_utf8_lossy(&output.stderr));
        let (count, head) = line.trim_end().split_once(" entries, head ").unwrap();
        (count.parse().unwrap(), head.parse::<Sha256>().unwrap().to_string())
    }
}

#[tokio::test]
async fn what_was_done_to_the_log_by_hand_is_found() {
    let bench = Bench::new().await;
    let mut conn = bench.by_hand("SELECT 1").await;
    let swap = "UPDATE audit SET seq = 100 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4;
                UPDATE audit SET seq = 4 WHERE seq = 100";
    let put_in = "UPDATE audit SET seq = 7 WHERE seq = 6; UPDATE audit SET seq = 6 WHERE seq = 5;
                  INSERT INTO audit (seq, at, actor, action, subject, detail, hash)
                  SELECT 5, at, actor, action, subject, detail, hash FROM audit WHERE seq = 4";
    let renumbered = "DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4;
                      UPDATE audit SET seq = 4 WHERE seq = 5; UPDATE audit SET seq = 5 WHERE seq = 6";
    for (statement, entry, saying) in [
        ("UPDATE audit SET detail = 'no. x' WHERE seq = 3", 3, "it was changed"),
        ("UPDATE audit SET actor = 'testt', action = 'est' WHERE seq = 3", 3, "it was changed"),
        ("UPDATE audit SET at = at + 1 WHERE seq = 6", 6, "it was changed"),
        ("UPDATE audit SET hash = 'x' WHERE seq = 2", 2, "its hash is x"),
        ("UPDATE audit SET hash = NULL WHERE seq = 4", 4, "it has no hash"),
        ("DELETE FROM audit WHERE seq = 3", 4, "it follows entry 2"),
        ("DELETE FROM audit WHERE seq = 1", 2, "it follows entry 0"),
        (renumbered, 3, "it was changed"),
        (put_in, 5, "it was changed"),
        (swap, 3, "it was changed"),
        (
            "INSERT INTO audit (seq, at, actor, action, subject, detail) VALUES (7, 0, 'x', 'x', 'x', 'x')",
            7,
            "it has no hash",
        ),
    ] {
        let mut change = conn.begin().await.unwrap();
        sqlx::raw_sql(statement).execute(&mut *change).await.unwrap();
        let verdict = audit::verify(&mut change, None).await.unwrap();
        change.rollback().await.unwrap();
        let Verdict::Broken { entry: found, problem } = verdict else { panic!("{statement}") };
        assert_eq!(found, entry, "{statement}: {problem}");
        assert!(problem.contains(saying), "{statement}: {problem}");
    }
}

#[tokio::test]
async fn the_program_says_whether_the_log_is_sound_and_a_noted_head_is_in_it() {
    let bench = Bench::new().await;
    let (count, noted) = bench.head();
    assert_eq!(count, 6);
    bench.note(1500).await;
    let (count, head) = bench.head();
    assert_eq!(count, 1506);
    assert_ne!(head, noted);
    let json = |output: &Output| serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    let output = bench.verify(&["--expect", &noted, "--json"]);
    assert_eq!((output.status.code(), &json(&output)["expected_at"]), (Some(0), &6.into()));
    assert_eq!(json(&output)["head"], head);

    // Cut off at the end: nothing but the noted head shows it.
    bench.by_hand("DELETE FROM audit WHERE seq > 1000").await.close().await.unwrap();
    assert_eq!(bench.head().0, 1000);
    assert!(bench.verify(&["--expect", &noted]).status.success());
    let output = bench.verify(&["--expect", &head]);
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        line.starts_with("update-server: the audit log is not the one") && line.lines().count() == 1,
        "{line}"
    );

    bench.by_hand("UPDATE audit SET subject = '' WHERE seq = 700").await.close().await.unwrap();
    let output = bench.verify(&["--json"]);
    assert_eq!((output.status.code(), &json(&output)["entry"]), (Some(1), &700.into()));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.contains("is not sound: entry 700: ") && line.lines().count() == 1, "{line}");
    assert_eq!(bench.verify(&["--expect", "x"]).status.code(), Some(2));
}

#[tokio::test]
async fn a_log_of_an_older_version_gets_its_hashes_once() {
    let bench = Bench { dir: TempDir::new().unwrap(), database: Database::new() };
    std::fs::create_dir(bench.srv()).unwrap();
    let kind = if bench.database.postgres.is_some() { "postgres" } else { "sqlite" };
    let old = bench.dir.path().join("old");
    std::fs::create_dir(&old).unwrap();
    for entry in
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(kind)).unwrap()
    {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap() < "0004" {
            std::fs::copy(entry.path(), old.join(entry.file_name())).unwrap();
        }
    }
    sqlx::any::install_default_drivers();
    let mut conn = AnyConnection::connect(&bench.address()).await.unwrap();
    Migrator::new(&*old).await.unwrap().run(&mut conn).await.unwrap();
    let token = "INSERT INTO token (name, hash, role, created_at) VALUES ('x', 'x', 'viewer', 0)";
    sqlx::raw_sql(token).execute(&mut conn).await.unwrap();
    for seq in 1..=2345 {
        let row =
            "INSERT INTO audit (seq, at, actor, action, subject, detail) VALUES ($1, 7, 'a', 'b', 'c', 'd')";
        sqlx::query(row).bind(seq).execute(&mut conn).await.unwrap();
    }
    // Several new servers start at once.
    if kind == "postgres" {
        join_all((0..4).map(async |_| bench.open().await.close().await)).await;
    }
    let Verdict::Sound { entries: 2345, head, .. } = bench.verdict().await else { panic!("not sound") };

    // One of the old version runs on, and writes as it always did.
    let row =
        "INSERT INTO audit (seq, at, actor, action, subject, detail) VALUES (2346, 7, 'a', 'b', 'c', 'd')";
    sqlx::query(row).execute(&mut conn).await.unwrap();
    let refused =
        sqlx::query("UPDATE audit SET detail = 'x', hash = 'x' WHERE seq = 2346").execute(&mut conn).await;
    assert!(refused.unwrap_err().to_string().contains("append-only"), "only the hash may be given");
    conn.close().await.unwrap();
    assert!(matches!(bench.verdict().await, Verdict::Broken { entry: 2346, .. }));
    let store = bench.open().await;
    assert!(create_token(&store, "y", Role::Viewer, None, "y", now()).await.unwrap());
    store.close().await;
    let store = bench.open().await;
    let verdict = audit::verify(&mut store.read().await.unwrap(), head.as_ref()).await.unwrap();
    store.close().await;
    let Verdict::Sound { entries: 2347, expected_at: Some(2345), .. } = verdict else {
        panic!("{verdict:?}")
    };
}

#[tokio::test]
async fn entries_are_listed_with_their_hashes() {
    let server = Server::start().await;
    let log: AuditLog = server.admin().read("/api/v1/audit").await;
    let verdict = audit::verify(&mut server.app.store().read().await.unwrap(), None).await.unwrap();
    let head = log.entries.first().unwrap().hash;
    assert!(head.is_some());
    assert_eq!(verdict, Verdict::Sound { entries: log.entries.len() as u64, head, expected_at: None });
}
