//! All steps, as the service manager sees them: ready, status, alive, stopping (`sd_notify`). Without a service
//! manager that listens, nothing is said.

use protocol::status::Status;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::time::Instant;

/// How long the engine counts as alive while it waits for its state folder: a disk that is busy answers before, one that
/// hangs may answer an engine that was started again.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the service manager is told.
#[derive(Debug)]
pub struct Supervisor {
    listens: bool,
    /// Half of the time after which it takes a silent engine to hang.
    every: Option<Duration>,
    next: Instant,
    ready: bool,
    said: String,
    failed: bool,
}

impl Supervisor {
    /// The service manager that this process's environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`), if any.
    #[must_use]
    pub fn of_this_process() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        let every = sd_notify::watchdog_enabled().filter(|_| listens).map(|limit| limit / 2);
        Self { listens, every, ..Self::nobody() }
    }

    /// Nobody to tell: for an engine that is no service.
    #[must_use]
    pub fn nobody() -> Self {
        Self {
            listens: false,
            every: None,
            next: Instant::now(),
            ready: false,
            said: String::new(),
            failed: false,
        }
    }

    /// Tells the status, the first time that the engine is ready.
    pub fn show(&mut self, status: &Status) {
        let line = line(status);
        if self.ready && line == self.said {
            return;
        }
        let mut what = vec![NotifyState::Status(&line)];
        if !self.ready {
            what.push(NotifyState::Ready);
        }
        self.tell(&what);
        self.ready = true;
        self.said = line;
    }

    /// Tells that the engine is about to end.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Returns when the service manager wants to hear that the engine is alive.
    pub async fn due(&self) {
        match self.every {
            Some(_) => tokio::time::sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// As [`Self::due`] while the engine waits for one thing since `begun`; no more once that takes too long, so that the
    /// service manager ends it.
    pub async fn due_since(&self, begun: Instant) {
        if !self.is_patient(begun) {
            std::future::pending::<()>().await;
        }
        self.due().await;
    }

    fn is_patient(&self, begun: Instant) -> bool {
        self.next <= begun + PATIENCE
    }

    /// Tells that the engine is alive.
    pub fn alive(&mut self) {
        if let Some(every) = self.every {
            self.tell(&[NotifyState::Watchdog]);
            self.next = Instant::now() + every;
        }
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        if !self.listens {
            return;
        }
        match sd_notify::notify(what) {
            Ok(()) => self.failed = false,
            Err(error) if self.failed => tracing::debug!("still cannot tell the service manager: {error}"),
            Err(error) => {
                self.failed = true;
                tracing::warn!("cannot tell the service manager how things are (NOTIFY_SOCKET): {error}");
            }
        }
    }
}

/// One line for `systemctl status`; progress in whole percents, so that it is not told twice a second.
fn line(status: &Status) -> String {
    let progress = &status.progress;
    let percent = progress.bytes_done.saturating_mul(100).checked_div(progress.bytes_total);
    let mut line = status.state.to_string();
    if let (protocol::status::StateName::Downloading, Some(percent)) = (status.state, percent) {
        line.push_str(&format!(", {percent} % in place"));
    }
    if !status.reason.is_empty() {
        line.push_str(": ");
        line.push_str(&protocol::status::one_line(&status.reason));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_for_ever_is_not_alive_for_ever() {
        let begun = Instant::now();
        for (next, is_patient) in
            [(begun, true), (begun + PATIENCE, true), (begun + PATIENCE + Duration::from_secs(1), false)]
        {
            assert_eq!(Supervisor { next, ..Supervisor::nobody() }.is_patient(begun), is_patient);
        }
    }
}
