//! Step 9, permit: `updatectl lock` and `updatectl node` against a server: what they change, and what they do not.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use clap::Parser;
use common::Server;
use jiff::SignedDuration;
use protocol::lock::{ClientId, Limit};
use protocol::status::Exit;
use protocol::wire::{AuditLog, LockInfo, NodeCredential, Policies};
use reqwest::{Method, StatusCode};
use std::path::PathBuf;
use tempfile::TempDir;
use update_engine::cli::node::NodeOptions;
use update_engine::operator::{self, LockCommand, OperatorCommand, OperatorError, ServerOptions};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

/// As `updatectl` has them.
#[derive(Debug, clap::Subcommand)]
enum Verb {
    #[command(subcommand)]
    Lock(LockCommand),
    #[command(flatten)]
    Server(OperatorCommand),
}

struct Desk {
    server: Server,
    dir: TempDir,
}

impl Desk {
    async fn new() -> Self {
        Self { server: Server::start().await, dir: TempDir::new().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs a command line in which `@name` is a path in the folder.
    async fn run(&self, line: &str) -> Result<Exit, OperatorError> {
        let options = ServerOptions {
            server: Some(self.server.url.clone()),
            token: self.server.admin().token,
            ..ServerOptions::default()
        };
        let args = line.split(' ').map(|arg| match arg.strip_prefix('@') {
            Some(name) => self.dir.path().join(name).into_os_string(),
            None => arg.into(),
        });
        match Cli::try_parse_from(std::iter::once("updatectl".into()).chain(args)).unwrap().command {
            Verb::Lock(command) => operator::lock(command, &options, &NodeOptions::default(), true).await,
            Verb::Server(command) => operator::run(command, &options, true).await,
        }
    }

    async fn exits(&self, line: &str, exit: Exit) {
        assert_eq!(self.run(line).await.unwrap(), exit, "{line}");
    }

    async fn fails(&self, line: &str, exit: Exit, saying: &str) {
        let error = self.run(line).await.unwrap_err();
        let text = update_server::error::chain(&error);
        assert!(text.contains(saying) && !text.contains('\n'), "{line}: {text}");
        assert_eq!(error.exit(), exit, "{text}");
    }

    async fn lock(&self) -> LockInfo {
        self.server.admin().read("/api/v1/locks/default").await
    }

    async fn holders(&self) -> Vec<ClientId> {
        self.lock().await.view.document.holders.into_iter().map(|holder| holder.node).collect()
    }

    /// A v1 client asks.
    async fn hold(&self, id: &str) -> StatusCode {
        let request = self.server.anybody().request(Method::POST, "/v1/pre-reboot");
        let body = format!("{{\"client_params\":{{\"id\":\"{id}\",\"group\":\"default\"}}}}");
        request.header("fleet-lock-protocol", "true").body(body).send().await.unwrap().status()
    }
}

#[tokio::test]
async fn a_permit_is_taken_away_and_a_second_time_there_is_nothing_to_do() {
    let desk = Desk::new().await;
    assert_eq!(desk.hold("a").await, StatusCode::OK);
    for list in ["lock list", "lock list default"] {
        desk.exits(list, Exit::Done).await;
    }
    desk.fails("lock list web", Exit::Failed, "no group web").await;
    // Under the tests there is no terminal to ask on.
    desk.fails("lock release a --group default --why scrapped", Exit::Usage, "--yes").await;
    assert_eq!(desk.holders().await.len(), 1);
    desk.exits("lock release a --group default --why scrapped --yes", Exit::Done).await;
    assert!(desk.holders().await.is_empty());
    desk.exits("lock release a --group default --why scrapped --yes", Exit::NothingToDo).await;
    desk.fails("lock release a --group web --why scrapped --yes", Exit::Failed, "no group web").await;
    let log: AuditLog = desk.server.admin().read("/api/v1/audit").await;
    assert_eq!(log.entries[0].action, "lock.release");
    assert!(log.entries[0].detail.ends_with(": scrapped"), "{:?}", log.entries[0]);
}

#[tokio::test]
async fn a_file_about_groups_alone_leaves_caps_as_they_are() {
    let desk = Desk::new().await;
    desk.write("caps.toml", "[group.web]\nmax = 4\n[cap.front]\ngroups = [\"web\", \"default\"]\nmax = 2\n");
    desk.exits("lock policy set @caps.toml --yes", Exit::Done).await;
    desk.write("one.toml", "[group.default]\nmax = 3\n");
    desk.exits("lock policy set @one.toml --yes", Exit::Done).await;
    let policies = async || {
        let Policies { file, .. } = desk.server.admin().read("/api/v1/lock-policy").await;
        file
    };
    assert!(policies().await.contains("[cap.front]"), "{}", policies().await);
    desk.write("none.toml", "[group.default]\nmax = 3\n[cap]\n");
    desk.exits("lock policy set @none.toml --yes", Exit::Done).await;
    assert!(!policies().await.contains("[cap.front]"), "{}", policies().await);
}

#[tokio::test]
async fn a_policy_is_shown_changed_in_a_file_and_set() {
    let desk = Desk::new().await;
    desk.exits("lock policy show", Exit::Done).await;
    desk.fails("lock policy show web", Exit::Failed, "no group web").await;
    let Policies { file, .. } = desk.server.admin().read("/api/v1/lock-policy").await;
    desk.write("policy.toml", &file);
    desk.exits("lock policy set @policy.toml", Exit::NothingToDo).await;
    desk.write("policy.toml", &file.replace("max = 1", "max = 4"));
    desk.fails("lock policy set @policy.toml", Exit::Usage, "--yes").await;
    assert_eq!(desk.lock().await.view.document.policy.max, Limit::Count(1), "nothing was set");
    desk.exits("lock policy set @policy.toml --yes --why larger", Exit::Done).await;
    assert_eq!(desk.lock().await.view.document.policy.max, Limit::Count(4));
    let log: AuditLog = desk.server.admin().read("/api/v1/audit").await;
    assert_eq!(log.entries[0].detail, "[group.default]; - max = 1; + max = 4: larger");

    // A file that names another group only leaves this one as it is.
    desk.write("web.toml", "[group.web]\nmax = 2\n");
    desk.exits("lock policy set @web.toml --yes", Exit::Done).await;
    assert_eq!(desk.lock().await.view.document.policy.max, Limit::Count(4));
    desk.exits("lock policy show web", Exit::Done).await;
    desk.write("bad.toml", "[group.web]\nmax = \"many\"\nmin = 1\n");
    desk.fails("lock policy set @bad.toml --yes", Exit::Failed, "bad.toml:2:").await;
    desk.fails("lock policy set @missing.toml --yes", Exit::Failed, "missing.toml").await;
}

#[tokio::test]
async fn a_lowered_limit_takes_nothing_and_a_pause_holds_everybody() {
    let desk = Desk::new().await;
    desk.write("two.toml", "[group.default]\nmax = 2\n");
    desk.exits("lock policy set @two.toml --yes", Exit::Done).await;
    assert_eq!((desk.hold("a").await, desk.hold("b").await), (StatusCode::OK, StatusCode::OK));
    desk.write("pause.toml", "[group.default]\nmax = 0\n");
    desk.exits("lock policy set @pause.toml --yes", Exit::Done).await;
    assert_eq!(desk.holders().await.len(), 2);
    assert_eq!(desk.hold("c").await, StatusCode::CONFLICT);
    let info = desk.lock().await;
    assert!(info.waiting[0].because[0].contains("paused"), "{:?}", info.waiting);
    assert!(info.holding.iter().all(|reasons| reasons.because[0].contains("paused")), "{:?}", info.holding);
}

#[tokio::test]
async fn nodes_are_let_in_again_and_removed() {
    let desk = Desk::new().await;
    let id = common::check("alpha", "1.0.0").node;
    let said = common::check("alpha", "1.0.0");
    let check = async |n: u8| {
        let client = desk.server.client(NodeCredential::from_random([n; 32]).reveal());
        client.send(Method::POST, "/v1/update-check", &said).await.status()
    };
    assert_eq!((check(1).await, check(2).await), (StatusCode::OK, StatusCode::FORBIDDEN));
    desk.exits(&format!("node reset-credential {id}"), Exit::Done).await;
    assert_eq!((check(2).await, check(1).await), (StatusCode::OK, StatusCode::FORBIDDEN));
    desk.fails("node reset-credential 0123", Exit::Failed, "bound to no credential").await;

    assert_eq!(desk.hold(id.as_str()).await, StatusCode::OK);
    desk.server.advance(SignedDuration::from_mins(1));
    desk.fails(&format!("node remove {id} --why gone"), Exit::Usage, "--yes").await;
    desk.exits(&format!("node remove {id} --why gone --yes"), Exit::Done).await;
    assert!(desk.holders().await.is_empty());
    desk.fails(&format!("node show {id}"), Exit::Failed, "has ever asked").await;
    desk.fails(&format!("node remove {id} --why gone --yes"), Exit::Failed, "nothing is known").await;
    assert_eq!(check(1).await, StatusCode::OK, "its credential went with it");
    // A v1 client may call itself what it likes.
    assert_eq!(desk.hold("host/7?x#%41").await, StatusCode::OK);
    desk.exits("node remove host/7?x#%41 --why gone --yes", Exit::Done).await;
    assert!(desk.holders().await.is_empty());
}

#[tokio::test]
async fn locks_of_locksmith_and_airlock_are_taken_over() {
    let desk = Desk::new().await;
    desk.write("airlock.json", r#"{"total_slots":2,"holders":["z1","z2","z3"]}"#);
    desk.write("locksmith.json", r#"{"semaphore":1,"max":1,"holders":null}"#);
    desk.write("other.json", r#"{"slots":2}"#);
    desk.fails("lock import @airlock.json --group default", Exit::Usage, "--yes").await;
    assert!(desk.holders().await.is_empty(), "nothing was done");
    desk.exits("lock import @airlock.json --group default --yes", Exit::Done).await;
    let names: Vec<String> = desk.holders().await.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["z1", "z2", "z3"], "more than may: they hold all the same");
    assert_eq!(desk.lock().await.view.document.policy.max, Limit::Count(2));
    assert_eq!(desk.hold("z1").await, StatusCode::OK, "it holds still");
    assert_eq!(desk.hold("z4").await, StatusCode::CONFLICT);
    desk.fails("lock import @locksmith.json --group default --yes", Exit::Failed, "3 holders and 1 waiters")
        .await;
    desk.exits("lock import @locksmith.json --group web --yes", Exit::Done).await;
    desk.fails("lock import @other.json --group new --yes", Exit::Failed, "other.json cannot be taken over")
        .await;
    desk.fails("lock list new", Exit::Failed, "no group new").await;
    let log: AuditLog = desk.server.admin().read("/api/v1/audit").await;
    let actions: Vec<&str> = log.entries.iter().map(|entry| entry.action.as_str()).take(2).collect();
    assert_eq!(actions, ["lock.import", "lock.import"]);
}
