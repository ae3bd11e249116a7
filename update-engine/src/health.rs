//! Step 12, confirm: the checks that a new release must pass.
//!
//! Every executable of the health folder is run, in the order of their names; each must exit 0 within its own time,
//! and all of them before the deadline. What a failing check printed is the evidence.

use futures::future::join;
use machine::{Evidence, Health};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

/// How much of the end of a check's output is kept as evidence, in bytes.
const EVIDENCE_MAX: usize = 1024;
/// How long the output of a check that has ended may still come. What a check left running can keep it open for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

/// What the checks are told about the system they judge, as environment variables.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `FLIPSIDE_SLOT`
    pub slot: String,
    /// `FLIPSIDE_VERSION`
    pub version: String,
}

/// Runs the checks of a folder, if there is one.
pub async fn judge(dir: Option<&Path>, subject: &Subject, deadline: Duration, check: Duration) -> Health {
    let end = Instant::now() + deadline;
    let checks = match dir.map_or_else(|| Ok(Vec::new()), executables) {
        Ok(checks) => checks,
        Err((path, error)) => return Health::Unknown(format!("cannot read {}: {error}", path.display())),
    };
    if let Some(dir) = dir.filter(|_| checks.is_empty()) {
        tracing::warn!(
            "release {} is confirmed without a health check: there is none in {} (health.dir)",
            subject.version,
            dir.display()
        );
    }
    for path in checks {
        let limit = end.min(Instant::now() + check);
        if let Err(evidence) = run(&path, subject, limit, limit == end).await {
            tracing::error!("health check {} failed: {evidence}", path.display());
            return Health::Failed(Evidence::summary(format!("health check {}: {evidence}", path.display())));
        }
        tracing::info!("health check {} passed", path.display());
    }
    Health::Passed
}

/// The executables of a folder, by name. A folder that is missing holds none.
fn executables(dir: &Path) -> Result<Vec<PathBuf>, (PathBuf, std::io::Error)> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(dir))?.path();
        // A dangling link is a check that cannot be run, not one to leave out.
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

/// Ends a check and all that it started, however it is left.
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

async fn run(path: &Path, subject: &Subject, limit: Instant, is_deadline: bool) -> Result<(), String> {
    let mut child = Command::new(path)
        .env("FLIPSIDE_SLOT", &subject.slot)
        .env("FLIPSIDE_VERSION", &subject.version)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let _group = group_of(&child);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
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
            _ = join(tail(stdout, &mut out), tail(stderr, &mut err)) => {}
            () = grace => {}
        }
    };
    let problem = match tokio::join!(status, output).0 {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) if is_deadline => "not finished at the deadline (health.deadline_s)".to_owned(),
        Err(_) => "not finished in time (health.check_timeout_s)".to_owned(),
    };
    let mut evidence = problem;
    for bytes in [&err, &out] {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim();
        if !text.is_empty() {
            evidence.push_str("; ");
            evidence.push_str(text);
        }
    }
    Err(evidence)
}

/// Reads all there is and keeps its end.
async fn tail(source: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(EVIDENCE_MAX);
        kept.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, name: &str, mode: u32, body: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn judged(dir: &Path, check: Duration) -> Health {
        let subject = Subject { slot: "B".to_owned(), version: "1.1.0".to_owned() };
        judge(Some(dir), &subject, Duration::from_secs(60), check).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn no_checks_pass() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(judged(dir.path(), LONG).await, Health::Passed);
        assert_eq!(judged(&dir.path().join("missing"), LONG).await, Health::Passed);
    }

    #[tokio::test]
    async fn a_confirmation_without_checks_is_warned_about() {
        let dir = tempfile::tempdir().unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        let writer = std::sync::Arc::new(log.reopen().unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let warned =
            || std::fs::read_to_string(log.path()).unwrap().matches("without a health check").count();
        judged(dir.path(), LONG).await;
        assert_eq!(warned(), 1);
        judged(&dir.path().join("missing"), LONG).await;
        assert_eq!(warned(), 2);
        script(dir.path(), "10-good", 0o755, "exit 0");
        judged(dir.path(), LONG).await;
        assert_eq!(warned(), 2);
    }

    #[tokio::test]
    async fn all_must_pass_and_the_evidence_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "10-good", 0o755, "test \"$FLIPSIDE_SLOT $FLIPSIDE_VERSION\" = \"B 1.1.0\"");
        script(dir.path(), "15-not-executable", 0o644, "exit 9");
        assert_eq!(judged(dir.path(), LONG).await, Health::Passed);
        script(dir.path(), "20-bad", 0o755, "echo out; echo the disk is on fire >&2; exit 7");
        script(dir.path(), "30-never-reached", 0o755, "touch \"$0.ran\"");
        let Health::Failed(evidence) = judged(dir.path(), LONG).await else { panic!("expected a failure") };
        let evidence = evidence.summary;
        for part in ["20-bad", "exit status: 7", "the disk is on fire", "out"] {
            assert!(evidence.contains(part), "{part} is not in {evidence}");
        }
        assert!(!dir.path().join("30-never-reached.ran").exists());
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        script(dir.path(), "10-hangs", 0o755, &format!("sleep 600 & echo $! > {}; wait", pid_file.display()));
        let verdict = judged(dir.path(), Duration::from_millis(700)).await;
        assert!(
            matches!(&verdict, Health::Failed(e) if e.summary.contains("check_timeout_s")),
            "{verdict:?}"
        );
        if let Ok(pid) = std::fs::read_to_string(&pid_file) {
            // A killed process may take a moment to be gone; one that was not killed stays for ten minutes.
            let limit = Instant::now() + LONG;
            while let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
                if stat.contains(") Z ") || stat.contains(") X ") {
                    break;
                }
                assert!(Instant::now() < limit, "{stat}");
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn a_check_is_judged_by_its_exit_not_by_what_it_leaves_running() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "10-leaves", 0o755, "sleep 300 & exit 0");
        assert_eq!(judged(dir.path(), LONG).await, Health::Passed);
        script(dir.path(), "10-leaves", 0o755, "echo broken; sleep 300 & exit 7");
        let Health::Failed(evidence) = judged(dir.path(), LONG).await else { panic!("expected a failure") };
        let evidence = evidence.summary;
        assert!(evidence.contains("exit status: 7") && evidence.contains("broken"), "{evidence}");
    }

    #[tokio::test]
    async fn a_check_that_cannot_be_run_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10-no-interpreter");
        std::fs::write(&path, "#!/no/such/interpreter\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(
            matches!(judged(dir.path(), LONG).await, Health::Failed(e) if e.summary.contains("cannot be run"))
        );
    }

    #[test]
    fn only_the_end_of_the_output_is_kept() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut kept = Vec::new();
        let source = [vec![b'x'; 100_000], b"end".to_vec()].concat();
        runtime.block_on(tail(Some(source.as_slice()), &mut kept));
        assert_eq!(kept.len(), EVIDENCE_MAX);
        assert!(kept.ends_with(b"end"));
    }
}
