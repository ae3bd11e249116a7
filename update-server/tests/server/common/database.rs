//! Where the data of a test's server is: SQLite in its folder, or, in the program `on_postgres`, a new database of a
//! PostgreSQL that only this test has.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use tests::postgres::Cluster;
use update_server::store::{DatabaseUrl, Store};

/// A database that nobody used before.
#[derive(Clone, Debug)]
pub struct Database {
    /// None for SQLite.
    pub postgres: Option<Postgres>,
}

/// A database of PostgreSQL.
#[derive(Clone, Debug)]
pub struct Postgres {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its name there.
    pub name: String,
}

/// The files of SQLite.
const FILES: [&str; 3] = ["server.db", "server.db-wal", "server.db-shm"];

fn ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Database {
    /// A new one, of the kind that this program tests.
    pub fn new() -> Self {
        if env!("CARGO_CRATE_NAME") == "on_postgres" { Self::on_postgres() } else { Self { postgres: None } }
    }

    /// A new one in PostgreSQL.
    pub fn on_postgres() -> Self {
        let cluster = Arc::new(Cluster::start().unwrap());
        let name = cluster.create().unwrap();
        Self { postgres: Some(Postgres { cluster, name }) }
    }

    /// Its address, with the password.
    pub fn address(&self) -> Option<String> {
        self.postgres.as_ref().map(|postgres| postgres.cluster.url(&postgres.name))
    }

    /// Its address.
    pub fn url(&self) -> Option<DatabaseUrl> {
        self.address().map(DatabaseUrl::from)
    }

    /// Everything that is in it, as bytes to look for something in.
    pub fn bytes(&self, srv: &Path) -> Vec<u8> {
        let Some(Postgres { cluster, name }) = &self.postgres else {
            let files = FILES.iter().filter_map(|file| std::fs::read(srv.join(file)).ok());
            let bytes: Vec<u8> = files.flatten().collect();
            assert!(!bytes.is_empty(), "there is a database to look into");
            return bytes;
        };
        let dump = cluster.client("pg_dump").unwrap().arg(name).output().unwrap();
        ok(&dump);
        dump.stdout
    }

    /// A backup, as docs/server.md says.
    pub async fn save(&self, store: &Store, to: &Path) {
        let Some(Postgres { cluster, name }) = &self.postgres else {
            return store.copy_to(to.to_str().unwrap()).await.unwrap();
        };
        let mut dump = cluster.client("pg_dump").unwrap();
        ok(&dump.args(["--format=custom", "--file"]).arg(to).arg(name).output().unwrap());
    }

    /// A backup put in place of what there is.
    pub fn restore(&mut self, srv: &Path, from: &Path) {
        let Some(Postgres { cluster, name }) = &mut self.postgres else {
            for path in FILES.map(|file| srv.join(file)) {
                if path.exists() {
                    std::fs::remove_file(path).unwrap();
                }
            }
            std::fs::copy(from, srv.join(FILES[0])).unwrap();
            return;
        };
        *name = cluster.create().unwrap();
        let mut restore = cluster.client("pg_restore").unwrap();
        ok(&restore.args(["--exit-on-error", "--dbname", name]).arg(from).output().unwrap());
    }
}
