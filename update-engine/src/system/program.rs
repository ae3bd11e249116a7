//! All steps: a program run with a time-out, ended with all that it started, the end of its output kept.
//!
//! Health checks, hooks, the reboot command and `journalctl` all go through here. The engine's manners are not theirs: with
//! its idle I/O class and its niceness, a check on a busy machine runs out of its time, and a good release is condemned.

use futures::future::join;
use rustix::process::{Pid, Signal, kill_process_group, setpriority_pgrp};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// How much of the end of a program's output is kept as evidence, in bytes.
pub const EVIDENCE_MAX: usize = 1024;
/// How long the output of a program that has ended may still come. What it left running can keep it open for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

/// How a program ended.
#[derive(Debug)]
pub enum Ended {
    /// By itself.
    Exited(ExitStatus),
    /// It was ended when its time was over.
    TimedOut,
    /// It could not be started, or waited for.
    Failed(std::io::Error),
}

/// What became of a program.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// The end of what it printed.
    pub stdout: Vec<u8>,
    /// The end of its error output.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Whether it ended by itself with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        matches!(&self.ended, Ended::Exited(status) if status.success())
    }

    /// How it ended in a few words, then what it printed, errors first. `late` says which time-out it missed.
    #[must_use]
    pub fn tell(&self, late: &str) -> String {
        let mut told = match &self.ended {
            Ended::Exited(status) => status.to_string(),
            Ended::TimedOut => late.to_owned(),
            Ended::Failed(error) => format!("cannot be run: {error}"),
        };
        for bytes in [&self.stderr, &self.stdout] {
            let text = String::from_utf8_lossy(bytes);
            let text = text.trim();
            if !text.is_empty() {
                told.push_str("; ");
                told.push_str(text);
            }
        }
        told
    }
}

/// Ends a program and all that it started, however it is left.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // The group may be gone already, which is what is wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

fn group_of(child: &Child) -> Group {
    Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
}

/// Best effort, the middle of it; where that is not permitted, the program runs all the same.
const USUAL_IO: [&str; 5] = ["-t", "-c", "2", "-n", "4"];

/// A command that runs with the usual I/O class, where there is an `ionice` to set it.
#[must_use]
pub fn with_usual_io(program: &Path) -> Command {
    // Tried once: one that cannot run, or does not know these options, must not be taken for a check that failed.
    static IONICE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = || std::env::var_os("PATH").unwrap_or_default();
    let Some(ionice) = IONICE.get_or_init(|| working_ionice(&path())) else { return Command::new(program) };
    let mut command = Command::new(ionice);
    command.args(USUAL_IO).arg(program);
    command
}

/// The first `ionice` of a search path, if it can start a program.
fn working_ionice(path: &OsStr) -> Option<PathBuf> {
    let mut files = std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join("ionice"));
    let ionice = files.find(|file| is_program(file))?;
    let mut trial = std::process::Command::new(&ionice);
    trial.args(USUAL_IO).args(["/bin/sh", "-c", ":"]);
    trial.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    trial.status().is_ok_and(|status| status.success()).then_some(ionice)
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Takes the engine's niceness off a program and what it has started. Without the right to, it stays as nice.
fn usual_niceness(group: &Group) {
    if let Err(error) = group.0.map_or(Ok(()), |pid| setpriority_pgrp(Some(pid), 0)) {
        tracing::debug!("cannot set the priority of a program: {error}");
    }
}

/// Runs a program until `limit`, without input, and keeps the last `keep` bytes of either output. When this is left,
/// the program has ended, and with it everything it started.
pub async fn run(mut command: Command, limit: Instant, keep: usize) -> Outcome {
    // A program that spoke to systemd in the engine's name would be taken for the engine.
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Outcome { ended: Ended::Failed(error), stdout, stderr },
    };
    let group = group_of(&child);
    usual_niceness(&group);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ended = Notify::new();
    let status = async {
        let status = timeout_at(limit, child.wait()).await;
        ended.notify_one();
        status
    };
    let output = async {
        let grace = async {
            ended.notified().await;
            sleep(OUTPUT_GRACE).await;
        };
        tokio::select! {
            _ = join(tail(out, &mut stdout, keep), tail(err, &mut stderr, keep)) => {}
            () = grace => {}
        }
    };
    let ended = match tokio::join!(status, output).0 {
        Ok(Ok(status)) => Ended::Exited(status),
        Ok(Err(error)) => Ended::Failed(error),
        Err(_) => Ended::TimedOut,
    };
    drop(group);
    Outcome { ended, stdout, stderr }
}

/// Reads all there is and keeps its end.
async fn tail(source: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, keep: usize) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(keep);
        kept.drain(..excess);
    }
}

/// A folder of programs that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct FolderError {
    /// What cannot be read.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// The executables of a folder, by name. A folder that is missing holds none; names that begin with a dot are left out.
///
/// # Errors
/// [`FolderError`]
pub fn executables(dir: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let failed = |source| FolderError { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // A dangling link is a program that cannot be run, not one to leave out.
        let runs =
            std::fs::metadata(&path).map_or(true, |m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if runs && !hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_the_output_is_kept() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut kept = Vec::new();
        let source = [vec![b'x'; 100_000], b"end".to_vec()].concat();
        runtime.block_on(tail(Some(source.as_slice()), &mut kept, EVIDENCE_MAX));
        assert_eq!(kept.len(), EVIDENCE_MAX);
        assert!(kept.ends_with(b"end"));
    }

    /// Prints its niceness and its I/O class, in which both have become the usual ones.
    const USUAL: &str = "until [ \"$(nice)\" = 0 ]; do :; done; ionice";

    #[tokio::test]
    async fn the_manners_of_the_engine_are_not_those_of_a_program() {
        // On this thread, which starts the program. Whoever may not undo it begins with none.
        if rustix::process::geteuid().is_root() {
            rustix::process::nice(10).unwrap();
            let own = format!("{}", std::process::id());
            let idle = std::process::Command::new("ionice").args(["-c", "3", "-p", &own]).status().unwrap();
            assert!(idle.success());
        }
        let dir = tempfile::tempdir().unwrap();
        let check = dir.path().join("check");
        std::fs::write(&check, format!("#!/bin/sh\n{USUAL}\n")).unwrap();
        std::fs::set_permissions(&check, std::fs::Permissions::from_mode(0o755)).unwrap();
        let outcome = run(with_usual_io(&check), Instant::now() + Duration::from_secs(30), 99).await;
        assert!(outcome.success(), "{}", outcome.tell("still nice"));
        assert_eq!(String::from_utf8_lossy(&outcome.stdout).trim(), "best-effort: prio 4");
    }

    #[test]
    fn an_ionice_that_cannot_start_programs_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let ionice = dir.path().join("ionice");
        let as_it_is = |script: &str, mode: u32| {
            std::fs::write(&ionice, script).unwrap();
            std::fs::set_permissions(&ionice, std::fs::Permissions::from_mode(mode)).unwrap();
            working_ionice(dir.path().as_os_str())
        };
        assert_eq!(as_it_is("#!/bin/sh\nshift 5; exec \"$@\"\n", 0o755), Some(ionice.clone()));
        assert_eq!(as_it_is("#!/bin/sh\nexit 1\n", 0o755), None, "it does not know the options");
        assert_eq!(as_it_is("#!/no/such/interpreter\n", 0o755), None);
        assert_eq!(as_it_is("#!/bin/sh\nexit 0\n", 0o644), None);
        assert_eq!(working_ionice(OsStr::new("")), None, "no search in the working folder");
    }

    #[tokio::test]
    async fn how_it_ended_is_told() {
        let ended = async |script: &str, time: Duration| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run(command, Instant::now() + time, 3).await
        };
        let long = Duration::from_secs(30);
        let good = ended("echo abcdef; exit 0", long).await;
        assert!(good.success() && good.stdout == b"ef\n", "{good:?}");
        assert_eq!(ended("echo no >&2; exit 3", long).await.tell(""), "exit status: 3; no");
        assert_eq!(ended("sleep 300", Duration::from_millis(50)).await.tell("too late"), "too late");
        let missing = run(Command::new("/no/such/program"), Instant::now() + long, 3).await;
        assert!(missing.tell("").starts_with("cannot be run: "), "{missing:?}");
    }
}
