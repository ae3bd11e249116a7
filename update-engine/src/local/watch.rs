//! All steps: the status, live. On a terminal a bar with what is under way, and a line for each change of state above
//! it; elsewhere one line per change.

use super::follow::{Change, Follow};
use super::show::print;
use super::{LocalError, NodeOptions, warn};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use protocol::status::{Exit, Progress, StateName, Status, one_line};
use std::io::IsTerminal as _;
use std::time::Duration;
use tokio::time::Instant;

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
    speed: Speed,
}

/// How fast bytes are fetched: what lies in the slots already is in place at once, and says nothing of it.
#[derive(Debug, Default)]
struct Speed {
    /// When it was seen first, and how much had been fetched by then.
    since: Option<(Instant, u64)>,
}

impl Speed {
    /// Bytes per second on average since the download was seen first, once that was a second ago.
    fn of(&mut self, fetched: u64, now: Instant) -> Option<u64> {
        let (since, before) = *self.since.get_or_insert((now, fetched));
        if fetched < before {
            // Another download.
            self.since = Some((now, fetched));
            return None;
        }
        let seconds = now.duration_since(since).as_secs();
        (seconds > 0).then(|| (fetched - before) / seconds)
    }

    /// Nothing is fetched now.
    fn rest(&mut self) {
        self.since = None;
    }
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
        Self { json, bar, last: String::new(), speed: Speed::default() }
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
        let Some(bar) = &self.bar else {
            let line = format!("{state}{}", progress_text(status));
            // What changed is nothing that a line shows.
            return if line == self.last {
                Ok(())
            } else {
                self.last.clone_from(&line);
                print(&line)
            };
        };
        let progress = &status.progress;
        let speed = match status.state {
            StateName::Downloading => self.speed.of(progress.bytes_downloaded, Instant::now()),
            _ => {
                self.speed.rest();
                None
            }
        };
        let speed = speed.map_or_else(String::new, |speed| format!(", {}/s", indicatif::HumanBytes(speed)));
        // The words before the bar that they stand in, which is drawn at once.
        bar.set_message(status.state.to_string());
        bar.set_prefix(format!("{} fetched{speed}", indicatif::HumanBytes(progress.bytes_downloaded)));
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
        bar.set_style(style(progress.bytes_total > 0));
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
        "{spinner} {msg:<12} [{wide_bar}] {bytes}/{total_bytes}, {prefix}"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_what_is_fetched() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        // What had been fetched when it was first seen does not count.
        assert_eq!(speed.of(1000, start), None);
        assert_eq!(speed.of(1100, start + Duration::from_millis(900)), None);
        assert_eq!(speed.of(1300, at(1)), Some(300));
        assert_eq!(speed.of(3000, at(4)), Some(500));
        assert_eq!(speed.of(3000, at(10)), Some(200));
        // Another release.
        assert_eq!(speed.of(50, at(11)), None);
        assert_eq!(speed.of(150, at(13)), Some(50));
        speed.rest();
        assert_eq!(speed.of(150, at(100)), None);
        assert_eq!(speed.of(250, at(110)), Some(10));
    }
}
