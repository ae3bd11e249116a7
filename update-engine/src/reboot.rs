//! Step 10, reboot: the configured command. With `--disk` the machine never asks for it.

use machine::{Failure, FailureKind};
use std::process::Stdio;
use tokio::process::Command;

/// Runs the reboot command: a program and its arguments.
///
/// # Errors
/// A [`Failure`] of the node where it cannot be run or exits with something else than 0.
pub async fn reboot(command: &[String]) -> Result<(), Failure> {
    let line = command.join(" ");
    let failure =
        |why: String| Failure::new(FailureKind::Node, format!("cannot reboot with `{line}`: {why}"));
    let (program, arguments) =
        command.split_first().ok_or_else(|| failure("no command is set".to_owned()))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| failure(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failure(format!("{}; {}", output.status, text.trim().chars().take(300).collect::<String>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_are_told() {
        let command = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(reboot(&command(&["true"])).await, Ok(()));
        let failed = reboot(&command(&["sh", "-c", "echo inhibited >&2; exit 4"])).await.unwrap_err();
        assert!(failed.detail.contains("inhibited") && failed.detail.contains('4'), "{}", failed.detail);
        assert!(reboot(&command(&["/no/such/program"])).await.is_err());
        assert!(reboot(&[]).await.is_err());
    }
}
