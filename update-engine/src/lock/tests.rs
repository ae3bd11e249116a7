//! The clients of the lock and servers that do what a test says.

mod etcd;
mod fleet_lock;
mod import;
mod scripted;
mod server;

use super::*;
use protocol::lock::Request;
use std::time::Duration;

/// A node's wish.
fn request(node: &str, attempt: &str) -> Command {
    Command::Request(Request {
        node: node.parse().unwrap(),
        attempt: attempt.parse().unwrap(),
        boot: format!("boot-of-{node}").parse().unwrap(),
        from: "1.0.0".parse().unwrap(),
        to: "1.1.0".parse().unwrap(),
        zone: None,
        etcd_member: None,
        priority: 0,
        reason: "update".to_owned(),
    })
}

fn verify(node: &str, attempt: &str) -> Command {
    Command::Verify {
        node: node.parse().unwrap(),
        attempt: attempt.parse().unwrap(),
        boot: format!("boot-of-{node}").parse().unwrap(),
    }
}

fn confirm(node: &str, attempt: &str) -> Command {
    Command::Confirm {
        node: node.parse().unwrap(),
        attempt: attempt.parse().unwrap(),
        boot: "another-boot".parse().unwrap(),
        version: "1.1.0".parse().unwrap(),
    }
}

/// How long is waited for an answer that does not come. Long enough for one that does come on a busy machine.
const SHORT: Duration = Duration::from_millis(1500);

fn settings(backend: LockBackend) -> Lock {
    Lock {
        backend,
        group: "default".parse().unwrap(),
        zone: None,
        priority: 0,
        etcd_member: None,
        timeout: Duration::from_secs(20),
        deadline: Duration::from_secs(60),
    }
}

const NODE: &str = "0123456789abcdef0123456789abcdef";

/// A client of the lock, with an update server at `server`.
fn client_of(settings: &Lock, server: reqwest::Url) -> LockClient {
    let text = "[server]\nurl = \"http://x\"\n[identity]\nchannel = \"a\"\n";
    let fragment = crate::config::fragment::Fragment::parse(std::path::Path::new("t.toml"), text).unwrap();
    let merged = crate::config::Merged::from_fragments([fragment]);
    let limits = crate::config::Settings::from_merged(&merged).unwrap().download;
    let server = network::Client::new(&server.into(), limits).unwrap();
    LockClient::new(settings, &server, &NODE.parse().unwrap()).unwrap()
}

/// A client of a lock that is not at the update server.
fn client_without_server(settings: &Lock) -> LockClient {
    client_of(settings, "http://127.0.0.1:1/".parse().unwrap())
}

fn line(error: &LockError) -> String {
    crate::error::chain(error)
}
