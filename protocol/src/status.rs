//! Steps 5 to 12 as an operator sees them: the names of the states, the document that `updatectl status --json`
//! prints, and the exit codes that all commands share (DESIGN section 8).

use crate::digest::Sha256;
use crate::id::{Channel, Group};
use crate::slot::Slot;
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The schema number of [`Status`].
pub const SCHEMA: u32 = 1;

/// The states shown to the world (DESIGN section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StateName {
    /// Nothing to do until the next check.
    Idle,
    /// Asking the server and checking the trust chain.
    Checking,
    /// A release was found and may be installed; nothing was written yet.
    Available,
    /// Fetching and writing the inactive slot.
    Downloading,
    /// Reading the inactive slot back.
    Verifying,
    /// The inactive slot holds a verified release.
    Staged,
    /// Ready to go on, but something must happen first; the reason says what.
    Waiting,
    /// The next boot is switched and the reboot asked for.
    Rebooting,
    /// The new release runs and its health is being judged.
    Confirming,
    /// The new release failed and the node runs the old one again.
    RolledBack,
    /// Something is wrong that another try may mend; the error says what.
    Error,
}

impl StateName {
    /// The name as it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Checking => "checking",
            Self::Available => "available",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Staged => "staged",
            Self::Waiting => "waiting",
            Self::Rebooting => "rebooting",
            Self::Confirming => "confirming",
            Self::RolledBack => "rolled-back",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What `updatectl status --json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What the engine is doing.
    pub state: StateName,
    /// Why it is in that state, for a person.
    pub reason: String,
    /// The slot that runs.
    pub booted: Option<BootedSlot>,
    /// The slot that does not run.
    pub other: Option<OtherSlot>,
    /// The release that the other slot holds, verified, and that is not yet confirmed.
    pub staged: Option<StagedRelease>,
    /// How far the present or last transfer got.
    pub progress: Progress,
    /// The last check.
    pub last_check: Option<LastCheck>,
    /// The channel the node follows.
    pub channel: Option<Channel>,
    /// The group the node belongs to.
    pub group: Option<Group>,
    /// The reboot permit that the node holds.
    pub permit: Option<String>,
    /// The releases that this node never retries.
    pub quarantine: Vec<QuarantineEntry>,
    /// What is wrong, in one line.
    pub error: Option<String>,
}

/// The slot that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootedSlot {
    /// Which.
    pub slot: Slot,
    /// The version it runs.
    pub version: Version,
    /// Whether its attributes say successful.
    pub confirmed: bool,
}

/// The slot that does not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSlot {
    /// Which.
    pub slot: Slot,
    /// The version it holds, as far as the engine knows.
    pub version: Option<Version>,
    /// Whether boot selection may choose it.
    pub bootable: bool,
}

/// A release in the inactive slot, written, flushed and read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRelease {
    /// Its version.
    pub version: Version,
    /// Its digest.
    pub release: Sha256,
    /// Whether the next boot is switched to it.
    pub activated: bool,
}

/// How far a transfer got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Length of the release's images together.
    pub bytes_total: u64,
    /// How much of them is in place.
    pub bytes_done: u64,
    /// How much came over the network for it: payload bytes, its head included.
    pub bytes_downloaded: u64,
    /// How much was written to the slot.
    #[serde(default)]
    pub bytes_written: u64,
}

/// The last check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheck {
    /// When it ended.
    pub at: Timestamp,
    /// What came of it: `update`, `no-update`, `deferred`, `refused`, `failed`.
    pub result: String,
}

/// A release that this node never retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineEntry {
    /// The release's digest.
    pub release: Sha256,
    /// Its version, when it was condemned.
    pub version: Version,
    /// Why.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// Text from elsewhere (a health check's output, another machine's report) as it may be shown on a terminal: on one
/// line, with control characters written out instead of obeyed.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => line.push(' '),
            control if control.is_control() => line.extend(control.escape_default()),
            other => line.push(other),
        }
    }
    line
}

/// As [`one_line`], with its lines kept.
#[must_use]
pub fn lines(text: &str) -> String {
    text.lines().map(one_line).collect::<Vec<_>>().join("\n")
}

/// The exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was done.
    Done,
    /// It failed.
    Failed,
    /// It was asked for wrongly.
    Usage,
    /// There was nothing to do: no update.
    NothingToDo,
    /// Not now: window, permit, rollout.
    Deferred,
    /// Not at all: trust, quarantine, downgrade.
    Refused,
}

impl Exit {
    /// The process exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NothingToDo => 3,
            Self::Deferred => 4,
            Self::Refused => 5,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::{lines, one_line};

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        assert_eq!(one_line("plain \u{e9}\u{1f600}"), "plain \u{e9}\u{1f600}");
        assert_eq!(one_line("a\nb\tc"), "a b c");
        assert_eq!(lines("a\r\n\u{1b}[2Jb\tc\n\nd\n"), "a\n\\u{1b}[2Jb c\n\nd");
        assert_eq!(one_line("\u{1b}[31mred\u{7}\r\u{9b}"), "\\u{1b}[31mred\\u{7}\\r\\u{9b}");
    }
}
