//! All steps: the status, live. On a terminal a bar with what is under way, and a line for each change of state above
//! it; elsewhere one line per change.

use super::follow::{Change, Follow};
use super::show::print;
use super::{LocalError, NodeOptions, warn};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use protocol::status::{Exit, Progress, Status, one_line};
use std::io::IsTerminal as _;
use std::time::Duration;

/// `updatectl status --watch`
pub(super) async fn watch(options: &NodeOptions, json: bool) -> Result<Exit, LocalError> {
    let mut follow = Follow::begin(options).await?;
    let mut screen = Screen::new(json);
    loop {
        match follow.next().await? {
            Change::Seen(seen) => screen.show(&seen.status)?,
            Change::Gone => screen.say("the engine is gone; waiting for it to come back"),
        }
    }
}

/// Where a status that changes is shown.
#[derive(Debug)]
pub(super) struct Screen {
    json: bool,
    bar: Option<ProgressBar>,
    /// The last line, without its progress where there is a bar.
    last: String,
}

impl Screen {
    /// A bar on a terminal, lines elsewhere, lines of JSON where `json` says so.
    pub(super) fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let bar = (terminal && !json).then(|| {
            let bar = ProgressBar::new(0).with_style(style(false));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { json, bar, last: String::new() }
    }

    /// A bar on a terminal, and nothing elsewhere: for commands whose data is something else.
    pub(super) fn bar_only(json: bool) -> Option<Self> {
        Some(Self::new(json)).filter(|screen| screen.bar.is_some())
    }

    pub(super) fn show(&mut self, status: &Status) -> Result<(), LocalError> {
        if self.json {
            return print(&serde_json::to_string(status).unwrap_or_default());
        }
        let state = state_line(status);
        let Some(bar) = &self.bar else { return print(&format!("{state}{}", progress_text(status))) };
        let progress = &status.progress;
        bar.set_style(style(progress.bytes_total > 0));
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
        bar.set_message(status.state.to_string());
        bar.set_prefix(format!("{} fetched", indicatif::HumanBytes(progress.bytes_downloaded)));
        if state != self.last {
            bar.println(format!("{:.0}  {state}", Timestamp::now()));
            self.last = state;
        }
        Ok(())
    }

    /// Says something that is no status, on stderr.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| warn(text)),
            None => warn(text),
        }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(with_bytes: bool) -> ProgressStyle {
    let template = if with_bytes {
        "{spinner} {msg:<12} [{wide_bar}] {bytes}/{total_bytes}, {bytes_per_sec}, {prefix}"
    } else {
        "{spinner} {msg}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// State, reason and error on one line.
pub(super) fn state_line(status: &Status) -> String {
    let mut line = status.state.to_string();
    if !status.reason.is_empty() {
        line.push_str(": ");
        line.push_str(&one_line(&status.reason));
    }
    if let Some(error) = status.error.as_ref().filter(|error| **error != status.reason) {
        line.push_str("; error: ");
        line.push_str(&one_line(error));
    }
    line
}

fn progress_text(status: &Status) -> String {
    let Progress { bytes_total, bytes_done, bytes_downloaded, .. } = status.progress;
    if bytes_total == 0 {
        return String::new();
    }
    let human = indicatif::HumanBytes;
    format!(
        " ({} of {} in place, {} downloaded)",
        human(bytes_done),
        human(bytes_total),
        human(bytes_downloaded)
    )
}
