//! The real program on a data directory of its own.

use super::Client;
use super::database::Database;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Where a server's data is, and where it may be made.
pub struct Home {
    /// What holds it.
    pub dir: TempDir,
    /// Its data.
    pub database: Database,
}

impl Home {
    /// A new one.
    pub fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), database: Database::new() }
    }

    /// The server's folder.
    pub fn srv(&self) -> PathBuf {
        self.dir.path().join("new/srv")
    }

    /// The program, told where it is at home.
    pub fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
        command.args(args).arg("--data-dir").arg(self.srv()).env_remove("RUST_LOG");
        match self.database.address() {
            Some(address) => command.env("UPDATE_SERVER_DATABASE_URL", address),
            None => command.env_remove("UPDATE_SERVER_DATABASE_URL"),
        };
        command
    }
}

/// A data directory, and the server that runs on it.
pub struct Program {
    /// Where its data is.
    pub home: Home,
    /// The process.
    pub child: Child,
    /// Its address.
    pub url: String,
}

impl Program {
    /// Starts it where it was made.
    pub fn start(home: Home) -> Self {
        let mut child = home
            .program(&["serve", "--listen", "127.0.0.1:0", "--log", "warn"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.strip_prefix("listening on ").expect("the one line on stdout").trim().to_owned();
        Self { home, child, url }
    }

    /// A new one.
    pub fn new() -> Self {
        let home = Home::new();
        assert!(home.program(&["init"]).output().unwrap().status.success());
        Self::start(home)
    }

    /// The server's folder.
    pub fn srv(&self) -> PathBuf {
        self.home.srv()
    }

    /// A client with the first operator's token.
    pub fn client(&self) -> Client {
        let token = std::fs::read_to_string(self.srv().join("admin-token")).unwrap();
        Client { http: reqwest::Client::new(), url: self.url.clone(), token: Some(token.trim().to_owned()) }
    }

    /// Ends it the hard way and starts another on the same folder.
    pub fn kill_and_restart(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let database = self.home.database.clone();
        let dir = std::mem::replace(&mut self.home.dir, TempDir::new().unwrap());
        Self::start(Home { dir, database })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
