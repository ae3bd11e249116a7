//! Step 4, channel: a PostgreSQL of its own for a test, with databases that nobody used before.
//!
//! Debian's package `postgresql` brings the programs and the user; the cluster that it starts itself is not touched. Each
//! cluster here is a copy of one that `initdb` made once, beside the test programs: that takes a tenth of a second. It
//! is told not to wait for the disk, which saves time and loses nothing where processes are killed and the machine is not.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, getuid, kill_process};
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// After this long, what is waited for does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked for what is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// How often a cluster is begun anew on another port: somebody may have taken it between looking and listening.
const STARTS: u32 = 3;

/// The user that the databases belong to.
pub const USER: &str = "flipside";
/// Its password: no log and no error may show it.
pub const PASSWORD: &str = "Pa55-w0rd";

/// A running PostgreSQL. It ends with its owner, and with the thread that started it, however that ends.
#[derive(Debug)]
pub struct Cluster {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
    made: AtomicU32,
    /// Whether it waits for the disk.
    durable: bool,
}

/// Where the programs are: in Debian not on the PATH.
fn programs() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin"))).filter(|(_, bin)| bin.join("initdb").exists())
        })
        .collect();
    found.sort();
    let (_, bin) = found.pop().context("there is no PostgreSQL: it is in Debian's postgresql")?;
    Ok(bin)
}

/// PostgreSQL refuses to run as root: then as the user that Debian made for it, by number.
fn user() -> Result<Option<(u32, u32)>> {
    if !getuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line =
        users.lines().find(|line| line.starts_with("postgres:")).context("there is no user postgres")?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) => Ok(Some((uid, gid))),
        _ => bail!("/etc/passwd has no numbers for the user postgres"),
    }
}

/// A program of the server side, as its user, which the system ends when the thread that starts it ends.
fn as_user(program: &Path) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if let Some((uid, gid)) = user()? {
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
    }
    command.arg(program).current_dir("/").stdin(Stdio::null());
    Ok(command)
}

fn owned_folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("flipside-postgres-").tempdir()?;
    if let Some((uid, gid)) = user()? {
        chown(folder.path(), Some(uid), Some(gid))?;
    }
    Ok(folder)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    said(&output).with_context(|| format!("{command:?}"))
}

fn said(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

/// The cluster that others are copied from.
fn template() -> Result<PathBuf> {
    let bin = programs()?;
    let version =
        bin.parent().and_then(Path::file_name).context("no version")?.to_string_lossy().into_owned();
    let beside = std::env::current_exe()?;
    let beside = beside.parent().context("a program is in a folder")?;
    let path = beside.join(format!("postgres-{version}-{}", getuid().as_raw()));
    let lock = File::create(path.with_extension("lock"))?;
    // Held until the end of this function: one test makes it, the others wait.
    lock.lock()?;
    if path.exists() {
        return Ok(path);
    }
    let folder = owned_folder()?;
    let data = folder.path().join("data");
    // Names sort here as people want it, which our tables must not depend on.
    run(as_user(&bin.join("initdb"))?
        .args(["--no-sync", "--wal-segsize=1", "--encoding=UTF8", "--locale=C.UTF-8"])
        .args(["--locale-provider=icu", "--icu-locale=en", "--username=postgres"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256", "--pgdata"])
        .arg(&data))?;
    let mut single = as_user(&bin.join("postgres"))?;
    single.args(["--single", "-D"]).arg(&data).arg("postgres");
    let mut single = single.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let role = format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}';\n");
    single.stdin.take().context("no stdin")?.write_all(role.as_bytes())?;
    ensure!(single.wait()?.success(), "the user was not made");
    let new = path.with_extension("new");
    if new.exists() {
        std::fs::remove_dir_all(&new)?;
    }
    copy(&data, &new)?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

impl Cluster {
    /// Starts a cluster and waits until it answers. The calling thread must live as long as it.
    ///
    /// # Errors
    /// Where PostgreSQL is missing or does not come up.
    pub fn start() -> Result<Self> {
        Self::start_as(false)
    }

    /// As [`Self::start`], and what it has committed is on the disk, for figures of what that costs.
    ///
    /// # Errors
    /// As there.
    pub fn start_durable() -> Result<Self> {
        Self::start_as(true)
    }

    fn start_as(durable: bool) -> Result<Self> {
        let template = template()?;
        let folder = owned_folder()?;
        copy(&template, &folder.path().join("data"))?;
        let mut cluster = Self { folder, port: 0, process: None, made: AtomicU32::new(0), durable };
        let mut failure = None;
        for _ in 0..STARTS {
            cluster.port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            match cluster.restart() {
                Ok(()) => return Ok(cluster),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no cluster was started")?)
    }

    /// Starts it again after [`Self::kill`], on the same port.
    ///
    /// # Errors
    /// Where it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = as_user(&programs()?.join("postgres"))?;
        command.arg("-D").arg(self.folder.path().join("data")).arg("-p").arg(self.port.to_string());
        command.arg("-c").arg(format!("unix_socket_directories={}", self.folder.path().display()));
        let quick = ["fsync=off", "full_page_writes=off", "autovacuum=off"];
        let all = ["listen_addresses=127.0.0.1", "shared_buffers=16MB", "max_connections=100"];
        for setting in all.iter().chain(quick.iter().filter(|_| !self.durable)) {
            command.args(["-c", setting]);
        }
        let process = command.stdout(log.try_clone()?).stderr(log).spawn().context("setpriv and postgres")?;
        let process = self.process.insert(process);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.try_wait()? {
                bail!("postgres ended with {status}: {}", last_words(&self.folder.path().join("log")));
            }
            let mut ask = client(&self.folder, self.port, "psql")?;
            if ask.args(["-U", "postgres", "-d", "postgres", "-c", "SELECT 1"]).output()?.status.success() {
                return Ok(());
            }
            ensure!(Instant::now() < until, "postgres does not answer: {}", last_words(&self.log()));
            std::thread::sleep(LOOK);
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it has logged.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub fn logged(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log())?)
    }

    /// Ends it at once, in the middle of whatever its sessions do; the next start recovers, as after a crash.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // It may be gone already; then there is nothing to end. Not SIGKILL, which its sessions would survive for a while.
        if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::QUIT);
        }
        let _ = process.wait();
    }

    /// Makes a new database that belongs to [`USER`], and says its name.
    ///
    /// # Errors
    /// Where the cluster does not.
    pub fn create(&self) -> Result<String> {
        let name = format!("d{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name} OWNER {USER}"))?;
        Ok(name)
    }

    /// The address of a database, with the password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Its port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Carries out SQL as the administrator; what it says, without titles.
    ///
    /// # Errors
    /// Where it fails.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let mut psql = self.client("psql")?;
        run(psql.args(["-U", "postgres", "-v", "ON_ERROR_STOP=1", "-Atc", statement, "-d", database]))
    }

    /// One of the client's programs, for this cluster.
    ///
    /// # Errors
    /// Where there is no PostgreSQL.
    pub fn client(&self, program: &str) -> Result<Command> {
        client(&self.folder, self.port, program)
    }
}

fn client(folder: &TempDir, port: u16, program: &str) -> Result<Command> {
    let mut command = Command::new(programs()?.join(program));
    command.env("PGHOST", folder.path()).env("PGPORT", port.to_string()).env("PGUSER", USER);
    command.stdin(Stdio::null());
    Ok(command)
}

fn last_words(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = log.lines().rev().take(5).collect();
    lines.join(" | ")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}
