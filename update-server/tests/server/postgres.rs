//! Steps 4 and 9 with the data in PostgreSQL: what only that can do, and what can only go wrong with it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::database::{Database, Postgres};
use common::{Client, done};
use futures::future::join_all;
use protocol::id::NodeId;
use protocol::lock::{ClientId, Command as LockVerb, Reply, Request};
use protocol::wire::{
    ChannelList, Decision, LockAnswer, LockCommand, LockInfo, NodeCredential, Policies, PolicySet, SCHEMA,
};
use reqwest::{Method, StatusCode};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tests::postgres::{Cluster, PASSWORD, USER};
use update_server::store::{Place, Store};

/// How often is looked for what is waited for.
const LOOK: Duration = Duration::from_millis(20);

fn program(args: &[&str], srv: &Path, address: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
    command.args(args).arg("--data-dir").arg(srv).env_remove("RUST_LOG");
    command.env("UPDATE_SERVER_DATABASE_URL", address);
    command
}

/// One line on stderr that says what is wrong, and not the password.
fn fails(command: &mut Command, saying: &str) {
    let output = command.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.starts_with("update-server: ") && line.trim_end().lines().count() == 1, "{line}");
    assert!(line.contains(saying) && !line.contains(PASSWORD), "{line}");
}

/// A server's process on a folder of its own.
struct Program {
    child: Child,
    url: String,
    srv: PathBuf,
}

impl Program {
    fn start(srv: &Path, address: &str) -> Self {
        let mut child = program(&["serve", "--listen", "127.0.0.1:0", "--log", "warn"], srv, address)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.strip_prefix("listening on ").expect("the one line on stdout").trim().to_owned();
        Self { child, url, srv: srv.to_owned() }
    }

    fn admin(&self) -> Client {
        let token = std::fs::read_to_string(self.srv.join("admin-token")).unwrap();
        Client { http: reqwest::Client::new(), url: self.url.clone(), token: Some(token.trim().to_owned()) }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two servers on one database, the second with a copy of the first one's folder.
fn two(dir: &TempDir, address: &str) -> [Program; 2] {
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert!(program(&["init"], &a, address).status().unwrap().success());
    assert!(Command::new("cp").arg("-a").arg(&a).arg(&b).status().unwrap().success());
    [Program::start(&a, address), Program::start(&b, address)]
}

fn cluster(database: &Database) -> &Postgres {
    database.postgres.as_ref().unwrap()
}

#[test]
fn what_is_wrong_is_one_line_without_the_password() {
    let dir = TempDir::new().unwrap();
    let srv = dir.path().join("srv");
    let cluster = Cluster::start().unwrap();
    let (port, name) = (cluster.port(), cluster.create().unwrap());
    let good = cluster.url(&name);
    let init = |address: &str| program(&["init"], &srv, address);
    let at = |rest: &str| format!("postgres://{USER}:{PASSWORD}@{rest}");
    for (address, saying) in [
        (at("127.0.0.1:1/x"), "PostgreSQL x at 127.0.0.1:1: it cannot be reached"),
        (format!("postgres://{USER}:not{PASSWORD}@127.0.0.1:{port}/{name}"), "does not let this user in"),
        (at(&format!("127.0.0.1:{port}/missing")), "there is no such database"),
        (at("127.0.0.1:port/x"), "the address of the database is not valid"),
        (format!("mysql://{USER}:{PASSWORD}@127.0.0.1/x"), "expected postgres://USER@HOST/DATABASE"),
        (PASSWORD.to_owned(), "the address of the database is not valid"),
        (
            at(&format!("127.0.0.1:{port}/{name}?sslmode={PASSWORD}")),
            "the address of the database is not valid",
        ),
        (at(&format!("127.0.0.1:{port}/{name}?sslmode=require")), "cannot be reached"),
    ] {
        fails(&mut init(&address), saying);
        assert!(!srv.exists(), "nothing was made");
    }
    let serve = |srv: &Path| program(&["serve", "--listen", "127.0.0.1:0"], srv, &good);
    fails(&mut serve(&srv), "update-server init");
    assert!(init(&good).status().unwrap().success());
    // A second folder on the same data, and the folder on other data.
    fails(&mut program(&["init"], &dir.path().join("second"), &good), "holds a server's data already");
    let others = cluster.create().unwrap();
    for table in [
        "y (a TEXT)",
        "x (a INT)",
        "_sqlx_migrations (version BIGINT, checksum BYTEA); CREATE TABLE z (a INT)",
    ] {
        cluster.sql(&others, &format!("CREATE TABLE {table}")).unwrap();
        let saying = "it is not empty: it has a table";
        fails(&mut program(&["init"], &dir.path().join("third"), &cluster.url(&others)), saying);
    }
    let empty = cluster.url(&cluster.create().unwrap());
    fails(&mut program(&["token", "list"], &srv, &empty), "holds no data of a server");
    fails(&mut program(&["token", "list"], &srv, ""), "give --database-url");
    let sqlite = dir.path().join("sqlite");
    assert!(program(&["init"], &sqlite, "").status().unwrap().success());
    fails(&mut serve(&sqlite), "expected no --database-url");
    cluster.sql(&name, "UPDATE _sqlx_migrations SET version = 9999 WHERE version = 3").unwrap();
    fails(&mut serve(&srv), "written by a newer server");
    for args in [&["serve", "--help"][..], &["serve", "--bogus"]] {
        let output = program(args, &srv, &good).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8_lossy(&said).contains(PASSWORD));
    }
}

#[tokio::test]
async fn a_commit_is_on_the_disk_whatever_the_databases_setting() {
    let database = Database::on_postgres();
    let Postgres { cluster, name } = cluster(&database);
    cluster.sql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = off")).unwrap();
    cluster
        .sql("postgres", &format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"))
        .unwrap();
    let store = Store::open(&Place::Postgres(database.url().unwrap()), true).await.unwrap();
    let mut change = store.write().await.unwrap();
    for (setting, value) in [("synchronous_commit", "on"), ("transaction_isolation", "read committed")] {
        let show = sqlx::query_scalar("SELECT current_setting($1)").bind(setting);
        let found: String = show.fetch_one(&mut *change).await.unwrap();
        assert_eq!(found, value);
    }
}

#[tokio::test]
async fn the_audit_log_is_not_emptied_either() {
    let database = Database::on_postgres();
    let Postgres { cluster, name } = cluster(&database);
    Store::open(&Place::Postgres(database.url().unwrap()), true).await.unwrap();
    let refused = cluster.sql(name, "TRUNCATE audit").unwrap_err();
    assert!(format!("{refused:#}").contains("the audit log is append-only"), "{refused:#}");
}

/// As of a server that is frozen, or whose network is gone, in the middle of a change.
#[tokio::test]
async fn a_change_that_does_not_go_on_loses_its_turn() {
    let database = Database::on_postgres();
    let place = Place::Postgres(database.url().unwrap());
    let frozen = Store::open(&place, true).await.unwrap();
    let other = Store::open(&place, true).await.unwrap();
    let change = frozen.write().await.unwrap();
    other.write().await.unwrap().commit().await.unwrap();
    change.commit().await.unwrap_err();
    frozen.write().await.unwrap().commit().await.unwrap();
}

/// A permit that was told is there after a crash of the database, and the servers go on by themselves.
#[tokio::test]
async fn the_database_may_crash_and_come_back() {
    let mut cluster = Cluster::start().unwrap();
    let address = cluster.url(&cluster.create().unwrap());
    let dir = TempDir::new().unwrap();
    let [a, b] = two(&dir, &address);
    let node = Node::new(1);
    let urls = [a.url.clone(), b.url.clone()];
    assert!(matches!(node.tell(&urls[0], node.wish()).await, Some(Reply::Granted { .. })));
    cluster.kill();
    assert_eq!(node.tell(&urls[1], node.wish()).await.map(drop), None, "nothing is said that nobody knows");
    assert_eq!(a.admin().get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Nodes and operators learn that it is for now, and no fault of theirs or the server's.
    let answers = [
        a.admin().get("/api/v1/channels").await,
        a.admin().get("/metrics").await,
        a.admin().send(Method::POST, "/v1/update-check", &common::check("stable", "1.0.0")).await,
    ];
    for answer in answers {
        assert_eq!(answer.headers()["retry-after"], "30");
        let body = common::error(answer, StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(body.message.starts_with("the database does not answer"), "{}", body.message);
    }
    cluster.restart().unwrap();
    for program in [&a, &b] {
        let lock: LockInfo = program.admin().read("/api/v1/locks/default").await;
        assert_eq!(lock.view.document.holders.len(), 1);
        assert_eq!(program.admin().get("/readyz").await.status(), StatusCode::OK);
    }
    assert!(matches!(node.tell(&urls[1], node.wish()).await, Some(Reply::Granted { .. })));
}

#[tokio::test]
async fn what_one_server_publishes_the_other_shows() {
    let database = Database::on_postgres();
    let dir = TempDir::new().unwrap();
    let [a, b] = two(&dir, &database.address().unwrap());
    let mut operator = common::Operator::new(&a.srv, jiff::Timestamp::now());
    operator.push_root(&a.admin()).await;
    operator.release(&a.admin(), "1.1.0").await;
    // What is written is decided by the database, not by what a server shows.
    let set = b.admin().set_channel("alpha", "1.1.0").await;
    assert_eq!(set.status(), StatusCode::OK);
    while a.admin().read::<ChannelList>("/api/v1/channels").await.channels.is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    for program in [&a, &b] {
        assert_eq!(program.admin().check("alpha", "1.0.0").await.decision, Decision::Update);
        let now = jiff::Timestamp::now();
        let seen = common::node_sees(&program.admin(), &operator.root, "alpha", now).await.unwrap();
        assert_eq!(seen, ["1.1.0"]);
    }
}

/// A node that speaks v2 with whichever server answers.
struct Node {
    id: ClientId,
    secret: String,
    http: reqwest::Client,
}

impl Node {
    fn new(n: u8) -> Self {
        let id: NodeId = format!("{n:032x}").parse().unwrap();
        let secret = NodeCredential::from_random([n; 32]).reveal().to_owned();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { id: ClientId::from(&id), secret, http }
    }

    /// None where the server is not there, or does not know.
    async fn tell(&self, url: &str, command: LockVerb) -> Option<Reply> {
        let body = LockCommand { schema: SCHEMA, command };
        let request = self.http.post(format!("{url}/v2/lock/default")).bearer_auth(&self.secret).json(&body);
        let answer = request.send().await.ok()?;
        if answer.status().is_server_error() {
            return None;
        }
        assert_eq!(answer.status(), StatusCode::OK);
        Some(answer.json::<LockAnswer>().await.ok()?.reply)
    }

    fn wish(&self) -> LockVerb {
        LockVerb::Request(Request {
            node: self.id.clone(),
            attempt: "first".parse().unwrap(),
            boot: "boot-1".parse().unwrap(),
            from: "1.0.0".parse().unwrap(),
            to: "1.1.0".parse().unwrap(),
            zone: None,
            etcd_member: None,
            priority: 0,
            reason: "update to 1.1.0".to_owned(),
        })
    }

    fn verify(&self) -> LockVerb {
        let (attempt, boot) = ("first".parse().unwrap(), "boot-1".parse().unwrap());
        LockVerb::Verify { node: self.id.clone(), attempt, boot }
    }

    fn confirm(&self) -> LockVerb {
        let (attempt, boot) = ("first".parse().unwrap(), "boot-2".parse().unwrap());
        LockVerb::Confirm { node: self.id.clone(), attempt, boot, version: "1.1.0".parse().unwrap() }
    }
}

/// What is seen of all nodes at once.
#[derive(Default)]
struct Seen {
    holding: AtomicUsize,
    most: AtomicUsize,
    through: AtomicUsize,
    /// Whose turns there were, to see that both servers granted.
    granted_by: Mutex<[usize; 2]>,
}

impl Seen {
    /// One node's way to the permit, through it and back, with each question at the other server.
    async fn walk(&self, node: &Node, servers: &[String; 2]) {
        let mut at = usize::from(node.secret.as_bytes().last().unwrap() % 2);
        let mut ask = async |command: LockVerb, until: fn(&Reply) -> bool| loop {
            at = 1 - at;
            match node.tell(&servers[at], command.clone()).await {
                Some(reply) if until(&reply) => return at,
                Some(Reply::Refused { because }) => panic!("{:?} was refused: {because:?}", node.id),
                _ => tokio::time::sleep(LOOK).await,
            }
        };
        let by = ask(node.wish(), |reply| matches!(reply, Reply::Granted { .. })).await;
        self.granted_by.lock().unwrap()[by] += 1;
        self.most.fetch_max(self.holding.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        ask(node.verify(), |reply| matches!(reply, Reply::Current { .. })).await;
        tokio::time::sleep(LOOK).await;
        // It is given back from the moment on at which that is asked for.
        self.holding.fetch_sub(1, Ordering::SeqCst);
        ask(node.confirm(), |reply| matches!(reply, Reply::Released { .. })).await;
        self.through.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn two_servers_never_grant_more_than_may_and_one_is_killed() {
    let database = Database::on_postgres();
    let dir = TempDir::new().unwrap();
    let [mut a, b] = two(&dir, &database.address().unwrap());
    let Policies { digest, .. } = a.admin().read("/api/v1/lock-policy").await;
    let file = "[group.default]\nmax = 2\n".to_owned();
    let policy = PolicySet { schema: SCHEMA, replaces: digest, file, why: "test".to_owned() };
    let _: Policies = done(a.admin().send(Method::PUT, "/api/v1/lock-policy", &policy).await).await;

    let seen = Seen::default();
    let servers = [a.url.clone(), b.url.clone()];
    let nodes: Vec<Node> = (1..=30).map(Node::new).collect();
    let over = AtomicBool::new(false);
    let walks = async {
        join_all(nodes.iter().map(|node| seen.walk(node, &servers))).await;
        over.store(true, Ordering::SeqCst);
    };
    let look = async {
        let admin = b.admin();
        let mut killed = false;
        while !over.load(Ordering::SeqCst) {
            let lock: LockInfo = admin.read("/api/v1/locks/default").await;
            let holders = lock.view.document.holders;
            assert!(holders.len() <= 2, "{holders:?}");
            if !killed && seen.through.load(Ordering::SeqCst) >= 10 {
                a.kill();
                killed = true;
            }
            tokio::time::sleep(LOOK).await;
        }
        assert!(killed, "in the middle");
    };
    futures::future::join(walks, look).await;
    assert_eq!(seen.through.into_inner(), 30);
    assert_eq!(seen.most.into_inner(), 2, "and two at once");
    let granted_by = seen.granted_by.into_inner().unwrap();
    assert!(granted_by.iter().all(|granted| *granted > 0), "{granted_by:?}");
    let lock: LockInfo = b.admin().read("/api/v1/locks/default").await;
    assert!(lock.view.document.holders.is_empty() && lock.view.document.queue.is_empty());
}
