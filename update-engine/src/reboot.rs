//! Step 10, reboot: by the configured command, else by logind, else by `systemctl reboot`. With `--disk` the machine
//! never asks for it.

use crate::error::chain;
use crate::system::bus::Bus;
use crate::system::logind;
use crate::system::program;
use machine::{Failure, FailureKind};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// How long a reboot command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// Asks for the reboot. `wall` is what logind tells the users with it; empty for nothing.
///
/// # Errors
/// A [`Failure`] of the node where nobody reboots it.
pub async fn reboot(command: Option<&[String]>, bus: &Bus, wall: &str) -> Result<(), Failure> {
    if let Some(command) = command {
        return run(command).await;
    }
    match logind::reboot(bus, wall).await {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::warn!("logind does not reboot, so systemctl is run: {}", chain(&error));
            run(&["systemctl", "reboot"].map(str::to_owned)).await
        }
    }
}

async fn run(command: &[String]) -> Result<(), Failure> {
    let line = command.join(" ");
    let failure =
        |why: String| Failure::new(FailureKind::Node, format!("cannot reboot with `{line}`: {why}"));
    let (program, arguments) =
        command.split_first().ok_or_else(|| failure("no command is set".to_owned()))?;
    let mut command = Command::new(program);
    command.args(arguments);
    let outcome = program::run(command, Instant::now() + COMMAND_TIMEOUT, program::EVIDENCE_MAX).await;
    if outcome.success() {
        return Ok(());
    }
    Err(failure(outcome.tell(&format!("not finished after {} s", COMMAND_TIMEOUT.as_secs()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_of_a_command_are_told() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let nowhere = Bus::at("unix:path=/no/such/bus".to_owned(), Duration::from_secs(1));
        let reboot = async |command: &[&str]| reboot(Some(&words(command)), &nowhere, "").await;
        assert_eq!(reboot(&["true"]).await, Ok(()));
        let failed = reboot(&["sh", "-c", "echo inhibited >&2; exit 4"]).await.unwrap_err();
        assert!(failed.detail.contains("inhibited") && failed.detail.contains('4'), "{}", failed.detail);
        assert!(reboot(&["/no/such/program"]).await.is_err());
        assert!(reboot(&[]).await.is_err());
    }
}
