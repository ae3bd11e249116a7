//! Step 4, channel: a server's data, moved from SQLite to PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::database::{Database, Postgres};
use common::fleet::{Node, act, set_policy};
use common::program::Program;
use common::{Client, Operator, Server, done};
use jiff::{SignedDuration, Timestamp};
use protocol::lock::{ClientId, Command as LockVerb, Reply, Request};
use protocol::wire::{
    AuditLog, EnrolmentCreate, EnrolmentCreated, EventKind, LockAnswer, LockCommand, LockInfo,
    NodeCredential, NodeGroup, NodeRevoke, NodeShow, SCHEMA,
};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use update_server::auth::Role;
use update_server::data_dir::create_token;
use update_server::retention;
use update_server::store::webhooks::{self, Webhook};
use update_server::store::{Place, Store};

/// What is odd about texts: several planes, marks on marks, right to left, controls, and what ends a string elsewhere.
const ODD: &str = "ä 漢 🦀 e\u{301}\u{323} \u{202e}abc \u{feff} \u{7f}\t'\"\\ \u{10ffff} NUL: \0 end";

fn migrate(srv: &Path, address: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
    command.args(["migrate", "--data-dir"]).arg(srv).args(args).env_remove("RUST_LOG");
    command.env("UPDATE_SERVER_DATABASE_URL", address);
    command
}

/// One line on stderr that says what is wrong.
fn refused(output: &Output, saying: &str) {
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.starts_with("update-server: ") && line.trim_end().lines().count() == 1, "{line}");
    assert!(line.contains(saying), "{line}");
}

fn moved(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The SQLite database under its old name, with the changes that lie beside it.
fn put_back(srv: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let from = srv.join(format!("server.db.migrated{suffix}"));
        if from.exists() {
            std::fs::rename(&from, srv.join(format!("server.db{suffix}"))).unwrap();
        }
    }
}

fn postgres(database: &Database) -> &Postgres {
    database.postgres.as_ref().unwrap()
}

/// How many rows all tables of a server have together.
fn rows(database: &Database) -> u64 {
    let Postgres { cluster, name } = postgres(database);
    let tables = cluster.sql(name, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'").unwrap();
    let count = |table| cluster.sql(name, &format!("SELECT COUNT(*) FROM {table}")).unwrap();
    tables
        .lines()
        .filter(|table| *table != "_sqlx_migrations")
        .map(|t| count(t).parse::<u64>().unwrap())
        .sum()
}

/// Commands of a node to the lock of the group default.
struct Holder {
    client: Client,
    id: ClientId,
}

impl Holder {
    fn new(server: &Server, number: u8) -> Self {
        let secret = NodeCredential::from_random([number; 32]);
        let id = common::fleet::id(number.into());
        Self { client: server.client(secret.reveal()), id: ClientId::from(&id) }
    }

    async fn tell(&self, command: LockVerb) -> Reply {
        let body = LockCommand { schema: SCHEMA, command };
        done::<LockAnswer>(self.client.send(Method::POST, "/v2/lock/default", &body).await).await.reply
    }

    async fn request(&self) -> Reply {
        self.tell(LockVerb::Request(Request {
            node: self.id.clone(),
            attempt: "first".parse().unwrap(),
            boot: "boot-1".parse().unwrap(),
            from: "1.0.0".parse().unwrap(),
            to: "1.1.0".parse().unwrap(),
            zone: Some("rack-1".parse().unwrap()),
            etcd_member: None,
            priority: 0,
            reason: ODD.replace(char::is_control, " "),
        }))
        .await
    }

    async fn confirm(&self) -> Reply {
        let (attempt, boot) = ("first".parse().unwrap(), "boot-2".parse().unwrap());
        let version = "1.1.0".parse().unwrap();
        self.tell(LockVerb::Confirm { node: self.id.clone(), attempt, boot, version }).await
    }
}

/// An enrolment token, a node that was placed in a group, and one that is revoked.
async fn said_by_operators(admin: &Client) {
    let wish = EnrolmentCreate {
        schema: SCHEMA,
        group: Some("web".parse().unwrap()),
        expires_in_s: Some(3600),
        uses: None,
        note: "rack 4".to_owned(),
    };
    let _: EnrolmentCreated = done(admin.send(Method::POST, "/api/v1/enrolment-tokens", &wish).await).await;
    let node = |number: u32, what: &str| format!("/api/v1/nodes/{}/{what}", common::fleet::id(number));
    let group = NodeGroup { schema: SCHEMA, group: "web".parse().unwrap() };
    assert!(admin.send(Method::PUT, &node(1, "group"), &group).await.status().is_success());
    let revoke = NodeRevoke { schema: SCHEMA, reason: "stolen".to_owned() };
    assert!(admin.send(Method::PUT, &node(9, "revocation"), &revoke).await.status().is_success());
}

/// A server with something in every table.
async fn full(server: &Server) -> Operator {
    let (admin, mut operator) = (server.admin(), server.operator());
    operator.push_root(&admin).await;
    operator.release(&admin, "1.0.0").await;
    operator.release(&admin, "1.1.0").await;
    set_policy(&admin, "in_flight = 10\n").await;
    assert_eq!(admin.set_channel("stable", "1.1.0").await.status(), StatusCode::OK);
    create_token(server.app.store(), "ci", Role::Publisher, None, "flipside_ci", server.now()).await.unwrap();
    let mut failing = Node::new(&admin, 1, "default");
    assert!(failing.may_go().await);
    let mut events = failing.events("1.1.0", &[EventKind::Activated, EventKind::RolledBack]);
    for event in &mut events.events {
        ODD.clone_into(&mut event.detail);
        event.evidence = ODD.replace('\0', "\u{2400}");
    }
    assert!(failing.try_send(&events).await);
    let mut fine = Node::new(&admin, 2, "workers");
    fine.says.quarantine = Some(vec!["1.0.7".parse().unwrap()]);
    assert!(fine.may_go().await);
    fine.confirm().await;
    act(&admin, "pause", Some("workers")).await;
    said_by_operators(&admin).await;
    retention::tick(&server.app).await.unwrap();
    let mut change = server.app.store().write().await.unwrap();
    let webhook = Webhook {
        name: "ops".to_owned(),
        url: "http://127.0.0.1:1/".to_owned(),
        secret: "whsec_test".to_owned(),
        events: vec!["node.failed".to_owned()],
        created_at: server.now(),
    };
    assert!(webhooks::add(&mut change, &webhook).await.unwrap());
    let later = server.now().saturating_add(SignedDuration::from_hours(1)).unwrap();
    assert!(webhooks::enqueue(&mut change, "ops", "node.failed", "{}", later).await.unwrap());
    assert!(webhooks::tell_once(&mut change, "root 1 expires", later).await.unwrap());
    change.commit().await.unwrap();
    operator
}

/// What every address says that only reads.
async fn answers(server: &Server, root: u64) -> BTreeMap<String, (StatusCode, String)> {
    let mut paths: Vec<String> = [
        "healthz",
        "readyz",
        "api/v1/releases",
        "api/v1/channels",
        "api/v1/rollouts",
        "api/v1/rollouts/stable",
        "api/v1/rollout-policy",
        "api/v1/nodes",
        "api/v1/enrolment-tokens",
        "api/v1/audit",
        "api/v1/stats/events",
        "api/v1/stats/versions?channel=stable",
        "api/v1/locks",
        "api/v1/locks/default",
        "api/v1/lock-policy",
        "v1/metadata/timestamp.json",
        "v2/lock/default?node=00000000000000000000000000000003",
    ]
    .iter()
    .map(|path| format!("/{path}"))
    .collect();
    paths.push(format!("/v1/metadata/{root}.root.json"));
    for number in 1..=4 {
        paths.push(format!("/api/v1/nodes/{number:032x}"));
        paths.push(format!("/api/v1/nodes/{number:032x}/explain"));
    }
    let admin = server.admin();
    let mut said = BTreeMap::new();
    for path in paths {
        let response = admin.get(&path).await;
        let status = response.status();
        said.insert(path, (status, response.text().await.unwrap()));
    }
    said
}

/// Every table of the SQLite database, by itself and not by the program that is tested.
async fn tables(store: &Store) -> BTreeSet<String> {
    let names: Vec<(String,)> = sqlx::query_as(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_'",
    )
    .fetch_all(&mut *store.read().await.unwrap())
    .await
    .unwrap();
    names.into_iter().map(|(name,)| name).filter(|name| name != "_sqlx_migrations").collect()
}

#[tokio::test]
async fn everything_is_there_afterwards() {
    let server = Server::start().await;
    let operator = full(&server).await;
    let holders = [Holder::new(&server, 3), Holder::new(&server, 4)];
    assert!(matches!(holders[0].request().await, Reply::Granted { .. }));
    assert!(matches!(holders[1].request().await, Reply::Wait { .. }));
    // An older server kept a NUL as it came; and the newest event is one that is not there any more.
    let nul = Node::new(&server.admin(), 5, "default");
    nul.ask().await;
    server.app.checkins().flush(server.app.store()).await.unwrap();
    let mut change = server.app.store().write().await.unwrap();
    for statement in [
        "INSERT INTO event (node, seq, at, document, received_at, evidence) SELECT '00000000000000000000000000000005',
         seq, at, document, received_at, 'a' || char(0) || 'b' FROM event ORDER BY id LIMIT 1",
        "INSERT INTO event (node, seq, at, document, received_at) VALUES ('x', 1, 'y', 'z', 0)",
        "DELETE FROM event WHERE node = 'x'",
    ] {
        sqlx::query(statement).execute(&mut *change).await.unwrap();
    }
    change.commit().await.unwrap();
    let names = tables(server.app.store()).await;
    let before = answers(&server, operator.root.version()).await;

    let mut report = Value::Null;
    let server = server
        .restart_after(|database, srv| {
            *database = Database::on_postgres();
            report = moved(&migrate(srv, &database.address().unwrap(), &["--json"]).output().unwrap());
            assert!(!srv.join("server.db").exists() && srv.join("server.db.migrated").exists());
        })
        .await;
    let tables = report["tables"].as_array().unwrap();
    let said: BTreeSet<String> = tables.iter().map(|t| t["table"].as_str().unwrap().to_owned()).collect();
    assert_eq!(said, names, "all tables");
    for table in tables {
        assert_ne!(table["rows"], 0, "a test of moving a table needs rows in it: {table}");
        assert_eq!(table["replaced"], u64::from(table["table"] == "event"), "{table}");
    }
    assert_eq!(answers(&server, operator.root.version()).await, before);

    // It goes on where it was.
    let admin = server.admin();
    let failing: NodeShow = admin.read(&format!("/api/v1/nodes/{:032x}", 1)).await;
    assert_eq!(failing.events[0].detail, ODD);
    let fine: NodeShow = admin.read(&format!("/api/v1/nodes/{:032x}", 2)).await;
    assert_eq!(fine.node.quarantine, Some(vec!["1.0.7".parse().unwrap()]));
    let old: NodeShow = admin.read(&format!("/api/v1/nodes/{:032x}", 5)).await;
    assert_eq!(old.events[0].evidence, "a\u{fffd}b");
    assert_eq!(server.client("flipside_ci").get("/api/v1/releases").await.status(), StatusCode::OK);
    let numbers = async || {
        let log: AuditLog = admin.read("/api/v1/audit").await;
        log.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    let last = numbers().await[0];
    act(&admin, "resume", Some("workers")).await;
    assert_eq!(numbers().await, (1..=last + 1).rev().collect::<Vec<_>>());
    let lock: LockInfo = admin.read("/api/v1/locks/default").await;
    assert_eq!(lock.view.document.holders[0].node, holders[0].id);
    let here = |holder: &Holder| Holder {
        client: Client { url: server.url.clone(), ..holder.client.clone() },
        id: holder.id.clone(),
    };
    assert!(matches!(here(&holders[0]).confirm().await, Reply::Released { .. }));
    assert!(matches!(here(&holders[1]).request().await, Reply::Granted { .. }));
    Node::new(&admin, 6, "default").tell(&[EventKind::Staged]).await;
    let Postgres { cluster, name } = postgres(&server.database);
    let ids = cluster.sql(name, "SELECT string_agg(id::text, ' ' ORDER BY id) FROM event").unwrap();
    assert_eq!(ids, "1 2 3 4 5 6 8", "7 was given before");
}

#[tokio::test]
async fn what_is_in_the_way_is_said_and_nothing_is_changed() {
    let database = Database::on_postgres();
    let (address, Postgres { cluster, name }) = (database.address().unwrap(), postgres(&database));
    let mut program = Program::new();
    let srv = program.srv();
    let tries = |args: &[&str]| migrate(&srv, &address, args).output().unwrap();
    refused(&tries(&[]), "another update-server runs");
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    assert_eq!(migrate(&srv, "", &[]).output().unwrap().status.code(), Some(2), "to where?");
    refused(&migrate(&srv, "mysql://x", &[]).output().unwrap(), "the address of the database is not valid");
    cluster.sql(name, "CREATE TABLE orders (id BIGINT PRIMARY KEY)").unwrap();
    refused(&tries(&[]), "it is not empty: it has a table orders");
    cluster.sql(name, "DROP TABLE orders; CREATE TABLE x (a INT)").unwrap();
    refused(&tries(&[]), "it is not empty: it has a table x");
    let none = "SELECT COUNT(*) FROM pg_class WHERE relname = 'node_credential'";
    assert_eq!(cluster.sql(name, none).unwrap().trim(), "0", "nothing was made beside it");
    cluster.sql(name, "DROP TABLE x").unwrap();
    // What an init that was interrupted has made is no stranger's.
    Store::open(&Place::Postgres(address.clone().into()), true).await.unwrap().close().await;
    cluster.sql(name, "INSERT INTO node_credential VALUES ('x', 'y', 1)").unwrap();
    refused(&tries(&[]), "the table node_credential has 1 rows");
    cluster.sql(name, "DELETE FROM node_credential").unwrap();
    std::fs::write(srv.join("server.db.migrated"), "").unwrap();
    refused(&tries(&[]), "server.db.migrated is there already");
    std::fs::remove_file(srv.join("server.db.migrated")).unwrap();
    assert_eq!(rows(&database), 0);

    // It ended between the commit and the new name: the second run finishes.
    assert_eq!(moved(&tries(&["--json"]))["moved_before"], false);
    refused(&tries(&[]), "is not a data directory: expected server.db");
    put_back(&srv);
    assert_eq!(moved(&tries(&["--json"]))["moved_before"], true);
    put_back(&srv);
    cluster.sql(name, "UPDATE token SET role = 'viewer'").unwrap();
    refused(&tries(&[]), "it holds a server's data already");
    assert!(srv.join("server.db").exists());
}

#[tokio::test]
async fn killed_before_it_is_committed_it_was_not() {
    let database = Database::on_postgres();
    let (address, Postgres { cluster, name }) = (database.address().unwrap(), postgres(&database));
    let program = Program::new();
    let operator = Operator::new(&program.srv(), Timestamp::now());
    operator.push_root(&program.client()).await;
    let (srv, mut program) = (program.srv(), program);
    program.child.kill().unwrap();
    program.child.wait().unwrap();

    // Somebody keeps the token's table from being written. It is the last but none.
    let store = Store::open(&Place::Postgres(database.url().unwrap()), true).await.unwrap();
    let mut other = store.read().await.unwrap();
    let lock = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE token IN SHARE MODE";
    sqlx::raw_sql(lock).execute(&mut *other).await.unwrap();
    let mut child = migrate(&srv, &address, &[]).stdout(Stdio::null()).spawn().unwrap();
    while cluster.sql(name, "SELECT COUNT(*) FROM pg_locks WHERE NOT granted").unwrap() != "1" {
        assert!(child.try_wait().unwrap().is_none(), "it waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut *other).await.unwrap();
    assert_eq!(rows(&database), 0, "documents were written, and are gone");
    let program = program.kill_and_restart();
    let log: AuditLog = program.client().read("/api/v1/audit").await;
    assert!(log.entries.iter().any(|entry| entry.action == "root.push"));
}
