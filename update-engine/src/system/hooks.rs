//! Steps 5, 10 and 12: what the node's owner wants done before an installation, before a reboot and after a
//! confirmation.
//!
//! Every executable of `DIR/pre-install.d`, `DIR/pre-reboot.d` or `DIR/post-confirm.d` is run, in the order of their
//! names, until one does not exit 0.

use super::program::{self, executables};
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// When hooks are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the first byte of a release is fetched. A failure holds the installation.
    PreInstall,
    /// Before a reboot. A failure holds the reboot.
    PreReboot,
    /// After a release was confirmed. A failure changes nothing and is reported.
    PostConfirm,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreInstall => "pre-install",
            Self::PreReboot => "pre-reboot",
            Self::PostConfirm => "post-confirm",
        })
    }
}

/// What a program is told, as environment variables.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `FLIPSIDE_SLOT`: the slot that it is about.
    pub slot: String,
    /// `FLIPSIDE_VERSION`: the version that is or will be in it.
    pub version: String,
}

impl Subject {
    /// A command with the variables set.
    #[must_use]
    pub fn command(&self, path: &Path) -> Command {
        let mut command = program::with_usual_io(path);
        command.env("FLIPSIDE_SLOT", &self.slot).env("FLIPSIDE_VERSION", &self.version);
        command
    }
}

/// Runs the hooks of a stage, each within `timeout`. Without a folder there are none.
///
/// # Errors
/// The name of the first hook that failed, how it ended and the end of what it printed, in one text.
pub async fn run(
    dir: Option<&Path>,
    stage: Stage,
    subject: &Subject,
    timeout: Duration,
) -> Result<(), String> {
    let Some(dir) = dir else { return Ok(()) };
    let hooks = executables(&dir.join(format!("{stage}.d"))).map_err(|error| crate::error::chain(&error))?;
    for path in hooks {
        tracing::info!("{stage} hook {} runs", path.display());
        let mut command = subject.command(&path);
        command.env("FLIPSIDE_HOOK", stage.to_string());
        let outcome = program::run(command, Instant::now() + timeout, program::EVIDENCE_MAX).await;
        if !outcome.success() {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let told = outcome.tell(&format!("not finished after {} s", timeout.as_secs()));
            tracing::warn!("{stage} hook {name} failed: {told}");
            return Err(format!("{stage} {name}: {told}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn hook(dir: &Path, stage: &str, name: &str, body: &str) {
        let folder = dir.join(format!("{stage}.d"));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn ran(dir: &Path, stage: Stage, timeout: Duration) -> Result<(), String> {
        let subject = Subject { slot: "B".to_owned(), version: "1.1.0".to_owned() };
        run(Some(dir), stage, &subject, timeout).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn hooks_run_in_order_and_know_what_for() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ran(dir.path(), Stage::PreInstall, LONG).await, Ok(()), "none at all");
        let log = dir.path().join("log");
        let tell =
            format!("echo \"$0 $FLIPSIDE_HOOK $FLIPSIDE_SLOT $FLIPSIDE_VERSION\" >> {}", log.display());
        hook(dir.path(), "pre-reboot", "20-second", &tell);
        hook(dir.path(), "pre-reboot", "10-first", &tell);
        hook(dir.path(), "post-confirm", "10-other", "exit 1");
        assert_eq!(ran(dir.path(), Stage::PreReboot, LONG).await, Ok(()));
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].ends_with("10-first pre-reboot B 1.1.0"), "{text}");
        assert!(lines[1].ends_with("20-second pre-reboot B 1.1.0"), "{text}");
        assert_eq!(
            run(None, Stage::PostConfirm, &Subject { slot: String::new(), version: String::new() }, LONG)
                .await,
            Ok(())
        );
    }

    #[tokio::test]
    async fn the_first_failure_ends_the_stage_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        hook(dir.path(), "pre-install", "10-no", "echo not on a Friday >&2; exit 5");
        hook(dir.path(), "pre-install", "20-never", "touch \"$0.ran\"");
        let told = ran(dir.path(), Stage::PreInstall, LONG).await.unwrap_err();
        assert_eq!(told, "pre-install 10-no: exit status: 5; not on a Friday");
        assert!(!dir.path().join("pre-install.d/20-never.ran").exists());
        hook(dir.path(), "pre-install", "10-no", "sleep 300");
        let late = ran(dir.path(), Stage::PreInstall, Duration::from_millis(100)).await.unwrap_err();
        assert!(late.contains("10-no: not finished after 0 s"), "{late}");
    }
}
