//! Step 4, channel: a data directory from a backup.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

use crate::common;

use common::program::{Home, Program};
use common::{Client, Operator, Release, node_sees};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::wire::ReleaseList;
use reqwest::StatusCode;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use update_server::store::{Place, Store};

fn restore(to: &Path, from: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
    command.args(["restore", "--data-dir"]).arg(to).arg("--from").arg(from).args(args);
    command.env_remove("RUST_LOG").env_remove("UPDATE_SERVER_DATABASE_URL").output().unwrap()
}

fn refused(output: &Output, saying: &str) {
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.starts_with("update-server: ") && line.trim_end().lines().count() == 1, "{line}");
    assert!(line.contains(saying), "{line}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A backup of the server's database.
fn backup(program: &Program) -> PathBuf {
    let path = program.home.dir.path().join("backup.db");
    let done = program.home.program(&["backup", "--out", path.to_str().unwrap()]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    path
}

#[tokio::test]
async fn a_server_goes_on_from_a_backup() {
    let program = Program::new();
    let mut operator = Operator::new(&program.srv(), Timestamp::now());
    let client = program.client();
    operator.push_root(&client).await;
    operator.release(&client, "1.1.0").await;
    assert_eq!(client.set_channel("stable", "1.1.0").await.status(), StatusCode::OK);
    let backup = backup(&program);
    assert_eq!(mode(&backup), 0o600, "hashes of tokens are in it");

    // Into a folder that nobody made.
    let home = Home::new();
    let keys = program.srv().join("online-keys");
    let made = restore(&home.srv(), &backup, &["--online-keys", keys.to_str().unwrap(), "--json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let payload = Release::new("1.1.0", None).payload;
    let digest = Sha256::of(&payload).to_string();
    assert_eq!(made["missing_payloads"][0]["payload"], digest.as_str());
    assert_eq!(made["missing_payloads"][0]["bytes"], payload.len());
    assert_eq!(made["online_keys"], true);
    for (file, expected) in [("server.db", 0o600), ("admin-token", 0o600), ("online-keys", 0o700)] {
        assert_eq!(mode(&home.srv().join(file)), expected, "{file}");
    }
    std::fs::create_dir(home.srv().join("payloads")).unwrap();
    std::fs::write(home.srv().join("payloads").join(&digest), &payload).unwrap();

    let restored = Program::start(home);
    let new = restored.client();
    assert_eq!(new.read::<ReleaseList>("/api/v1/releases").await.releases.len(), 1);
    let old = Client { url: new.url.clone(), ..client };
    assert_eq!(old.get("/api/v1/releases").await.status(), StatusCode::OK, "tokens of before are good");
    let seen = node_sees(&new, &operator.root, "stable", Timestamp::now()).await.unwrap();
    assert_eq!(seen, ["1.1.0"]);
    assert_eq!(new.get(&format!("/v1/payloads/{digest}")).await.bytes().await.unwrap(), payload);

    refused(&restore(&restored.srv(), &backup, &[]), "is a data directory already (server.db is there)");
}

#[tokio::test]
async fn keys_and_payloads_may_be_there_first() {
    let program = Program::new();
    let mut operator = Operator::new(&program.srv(), Timestamp::now());
    operator.push_root(&program.client()).await;
    operator.release(&program.client(), "1.1.0").await;
    let backup = backup(&program);
    let home = Home::new();
    for folder in ["online-keys", "payloads"] {
        let target = home.srv().join(folder);
        std::fs::create_dir_all(&target).unwrap();
        for entry in std::fs::read_dir(program.srv().join(folder)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
        }
    }
    let keys = program.srv().join("online-keys");
    let twice = restore(&home.srv(), &backup, &["--online-keys", keys.to_str().unwrap()]);
    refused(&twice, "online-keys is there");
    let made = restore(&home.srv(), &backup, &[]);
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success() && !said.contains("missing"), "{said}");
    // A payload that was cut off is one that is missing.
    let other = Home::new();
    let payload = Sha256::of(&Release::new("1.1.0", None).payload).to_string();
    std::fs::create_dir_all(other.srv().join("payloads")).unwrap();
    std::fs::write(other.srv().join("payloads").join(&payload), "cut").unwrap();
    let said = restore(&other.srv(), &backup, &[]).stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains(&payload) && said.contains("online-keys"), "{said}");
}

#[tokio::test]
async fn what_is_no_good_backup_is_refused_and_nothing_is_made() {
    let program = Program::new();
    let mut operator = Operator::new(&program.srv(), Timestamp::now());
    operator.push_root(&program.client()).await;
    operator.release(&program.client(), "1.1.0").await;
    let backup = backup(&program);
    let dir = program.home.dir.path();
    let to = dir.join("restored");
    let tries = |from: &Path, saying: &str| {
        refused(&restore(&to, from, &[]), saying);
        assert!(!to.exists(), "nothing is left of it");
    };
    tries(&dir.join("nothing"), "No such file");
    let file = dir.join("text");
    std::fs::write(&file, "not a database".repeat(1000)).unwrap();
    tries(&file, "file is not a database");
    std::fs::write(&file, "").unwrap();
    tries(&file, "it is not a server's database");

    // A page that the disk has lost.
    let mut bytes = std::fs::read(&backup).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&file, &bytes).unwrap();
    tries(&file, "damaged");
    tries(&program.srv().join("server.db"), "beside it");

    for (statement, saying) in [
        ("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 3", "written by a newer server"),
        ("PRAGMA foreign_keys = OFF; DELETE FROM target", "release names what is not in target"),
    ] {
        std::fs::copy(&backup, &file).unwrap();
        let store = Store::open(&Place::Sqlite(file.clone()), false).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut *store.read().await.unwrap()).await.unwrap();
        store.close().await;
        tries(&file, saying);
    }
    assert!(restore(&to, &backup, &[]).status.success(), "the backup itself is good");
}
