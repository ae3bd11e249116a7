//! Step 12, confirm: the checks that a new release must pass, all of them before one deadline.
//!
//! First what systemd says of the boot ([`crate::system::units`]), then every executable of the health folder, in the
//! order of their names, each within its own time; last, where it is asked for, that the server can be reached. What was
//! seen of a failure is the evidence. A check that ran out of its time, or was killed, may have been starved by a busy
//! boot: it is run once more, and counts then. The server being out of reach is no failure.

use crate::error::chain;
use crate::network::Client;
use crate::system::hooks::Subject;
use crate::system::program::{self, Ended, executables};
use crate::system::units::{self, Units};
use machine::{Evidence, Health};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How often the server is asked while it is out of reach.
const SERVER_EVERY: Duration = Duration::from_secs(10);
/// The most that is read of the server's answer, in bytes.
const SERVER_ANSWER_MAX: u64 = 1 << 20;

/// What a release must pass.
#[derive(Clone, Debug)]
pub struct Checks {
    /// The folder of executables, if any is to be used.
    pub dir: Option<PathBuf>,
    /// The time that each of them has.
    pub check_timeout: Duration,
    /// What systemd must say, where it runs this system.
    pub units: Option<Units>,
    /// The server that must be reached, if one must.
    pub server: Option<Client>,
}

/// Runs the checks.
pub async fn judge(checks: &Checks, subject: &Subject, deadline: Duration) -> Health {
    let end = Instant::now() + deadline;
    let programs = match checks.dir.as_deref().map_or_else(|| Ok(Vec::new()), executables) {
        Ok(programs) => programs,
        Err(error) => return Health::Unknown(chain(&error)),
    };
    let units = checks.units.as_ref().filter(|units| units.boot_complete || !units.required.is_empty());
    if programs.is_empty() && units.is_none() && checks.server.is_none() {
        let place = checks.dir.as_deref().map(|dir| format!(" in {}", dir.display())).unwrap_or_default();
        tracing::warn!(
            "release {} is confirmed without a health check: there is none{place} (health.dir), and systemd is not asked",
            subject.version
        );
    }
    if let Some(units) = units {
        match units::wait(units, end).await {
            units::Outcome::Good => tracing::info!("health: systemd says that the boot is complete"),
            units::Outcome::Stopping => return Health::NotYet("the system is going down".to_owned()),
            units::Outcome::Failed(evidence) => {
                tracing::error!("health: {}", evidence.summary);
                return Health::Failed(evidence);
            }
        }
    }
    for path in programs {
        if let Err(evidence) = run_again(&path, subject, checks.check_timeout, end).await {
            tracing::error!("{}", evidence.summary);
            return Health::Failed(evidence);
        }
        tracing::info!("health check {} passed", path.display());
    }
    match &checks.server {
        None => Health::Passed,
        Some(server) => reach(server, end).await,
    }
}

/// A check is run once, or twice where the first run says nothing of the release.
async fn run_again(path: &Path, subject: &Subject, time: Duration, end: Instant) -> Result<(), Evidence> {
    let limit = || end.min(Instant::now() + time);
    let first = limit();
    match run(path, subject, first, first == end).await {
        Err((evidence, true)) if Instant::now() < end => {
            tracing::warn!("{}; it is run once more", evidence.summary);
            let second = limit();
            run(path, subject, second, second == end).await.map_err(|(evidence, _)| evidence)
        }
        ended => ended.map_err(|(evidence, _)| evidence),
    }
}

/// One run of a check. A failure says whether the check was cut off, rather than having judged.
async fn run(
    path: &Path,
    subject: &Subject,
    limit: Instant,
    is_deadline: bool,
) -> Result<(), (Evidence, bool)> {
    let outcome = program::run(subject.command(path), limit, program::EVIDENCE_MAX).await;
    if outcome.success() {
        return Ok(());
    }
    let late = if is_deadline {
        "not finished at the deadline (health.deadline_s)"
    } else {
        "not finished in time (health.check_timeout_s)"
    };
    let mut log = String::new();
    for (name, bytes) in [("error output", &outcome.stderr), ("output", &outcome.stdout)] {
        if !bytes.is_empty() {
            let text = String::from_utf8_lossy(bytes);
            log.push_str(&format!("-- {name} of {}\n{}\n", path.display(), text.trim_end()));
        }
    }
    if let Ended::Exited(status) = &outcome.ended {
        log.push_str(&format!("{}: {status}\n", path.display()));
    }
    let summary = format!("health check {}: {}", path.display(), outcome.tell(late));
    let cut_off = match &outcome.ended {
        Ended::Exited(status) => status.signal().is_some(),
        Ended::TimedOut => true,
        Ended::Failed(_) => false,
    };
    Err((Evidence { summary, log }, cut_off))
}

/// Any answer of the server will do, that it has no such document included, but for an error of its own.
async fn reach(server: &Client, end: Instant) -> Health {
    loop {
        let asked = timeout_at(end, server.get("v1/metadata/timestamp.json", SERVER_ANSWER_MAX)).await;
        let why = match asked {
            Ok(Ok(_)) => return Health::Passed,
            Ok(Err(error)) => chain(&error),
            Err(_) => "it does not answer".to_owned(),
        };
        if Instant::now() + SERVER_EVERY >= end {
            return Health::NotYet(format!("the server cannot be reached (health.require_server): {why}"));
        }
        tracing::info!("health: the server cannot be reached yet: {why}");
        sleep_until(Instant::now() + SERVER_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(dir: &Path, name: &str, mode: u32, body: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn judged(dir: &Path, check: Duration) -> Health {
        let subject = Subject { slot: "B".to_owned(), version: "1.1.0".to_owned() };
        let checks = Checks { dir: Some(dir.to_owned()), check_timeout: check, units: None, server: None };
        judge(&checks, &subject, Duration::from_secs(60)).await
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

    /// How often a check that does this, after having noted that it runs, has run, and what came of it.
    async fn runs_of(body: &str, check: Duration) -> (usize, Health) {
        let dir = tempfile::tempdir().unwrap();
        script(
            dir.path(),
            "10-check",
            0o755,
            &format!("echo ran >> \"$0.runs\"; n=$(wc -l < \"$0.runs\")\n{body}"),
        );
        let health = judged(dir.path(), check).await;
        let runs = std::fs::read_to_string(dir.path().join("10-check.runs")).unwrap_or_default();
        (runs.lines().count(), health)
    }

    #[tokio::test]
    async fn a_check_that_was_cut_off_is_run_once_more() {
        let (runs, health) = runs_of("if [ $n = 1 ]; then kill -9 $$; fi", LONG).await;
        assert_eq!((runs, health), (2, Health::Passed));
        let (runs, health) = runs_of("kill -9 $$", LONG).await;
        assert!(
            runs == 2 && matches!(&health, Health::Failed(e) if e.summary.contains("signal: 9")),
            "{health:?}"
        );
        let (runs, health) = runs_of("if [ $n = 1 ]; then sleep 600; fi", Duration::from_secs(3)).await;
        assert_eq!((runs, health), (2, Health::Passed));
        // One that has judged is believed.
        let (runs, health) = runs_of("exit 7", LONG).await;
        assert!(runs == 1 && matches!(health, Health::Failed(_)), "{runs}");
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
        let Health::Failed(evidence) = judged(dir.path(), LONG).await else { panic!("expected a failure") };
        // By the engine, or by ionice, which starts it.
        let evidence = evidence.summary;
        assert!(evidence.contains("10-no-interpreter"), "{evidence}");
        assert!(evidence.contains("No such file or directory"), "{evidence}");
    }
}
