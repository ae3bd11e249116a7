//! Step 4, and every wait: when to check next, how long to back off, when a window is open.

use super::Turn;
use crate::policy::Policy;
use crate::state::Run;
use jiff::{Span, Timestamp};

impl Turn {
    /// This time, and so many seconds.
    pub(super) fn after(&self, seconds: u64) -> Timestamp {
        later(self.now, seconds)
    }

    /// Whether this time has yet to come; if so, the driver wakes the machine then. A time further away than any
    /// wait can be was noted before the clock was set back, and counts as come.
    pub(super) fn wait_until(&mut self, at: Timestamp) -> bool {
        if at <= self.now || at > self.after(longest_wait(&self.state.policy)) {
            return false;
        }
        self.wake(at);
        true
    }

    /// Has the driver wake the machine at this time, or earlier.
    pub(super) fn wake(&mut self, at: Timestamp) {
        let wake = &mut self.state.run.wake_at;
        *wake = Some(wake.map_or(at, |known| known.min(at)));
    }

    /// A number below `bound`, from the seed.
    pub(super) fn random(&mut self, bound: u64) -> u64 {
        next_random(&mut self.state.run) % bound.max(1)
    }

    /// Seconds to wait after so many failures in a row: doubling, bounded, with jitter of a quarter either way.
    pub(super) fn backoff(&mut self, failures: u32) -> u64 {
        let policy = &self.state.policy;
        let (first, max) = (u64::from(policy.backoff_first_s), u64::from(policy.backoff_max_s));
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(32)).min(max);
        let jitter = self.random(doubled / 2 + 1);
        (doubled - doubled / 4 + jitter).min(max)
    }

    pub(super) fn first_check(&mut self) -> Timestamp {
        let within = self.state.policy.first_check_s.into();
        let wait = self.random(within);
        self.after(wait)
    }

    /// The next check after one that went well: the server's wish within bounds, else the interval.
    pub(super) fn schedule_check(&mut self, retry_after_s: Option<u64>) {
        let wait = match retry_after_s {
            Some(wish) => self.bounded(wish),
            None => self.interval(),
        };
        self.state.run.next_check = Some(self.after(wait));
        self.state.run.interactive = false;
    }

    /// The next check after a failure: back-off, and not before the server wishes it.
    pub(super) fn schedule_retry(&mut self, retry_after_s: Option<u64>) {
        self.state.run.failures = self.state.run.failures.saturating_add(1);
        let backoff = self.backoff(self.state.run.failures);
        let wait = retry_after_s.map_or(backoff, |wish| self.bounded(wish).max(backoff));
        self.state.run.next_check = Some(self.after(wait));
        self.state.run.interactive = false;
    }

    pub(super) fn bounded(&self, wish: u64) -> u64 {
        let policy = &self.state.policy;
        wish.min(policy.retry_after_max_s.into()).max(policy.retry_after_min_s.into())
    }

    fn interval(&mut self) -> u64 {
        let policy = &self.state.policy;
        let (interval, jitter) = (u64::from(policy.poll_interval_s), u64::from(policy.poll_jitter_s));
        interval.saturating_sub(jitter) + self.random(2 * jitter + 1)
    }
}

/// The longest wait that this policy leads to, in seconds; windows aside.
fn longest_wait(policy: &Policy) -> u64 {
    let interval = u64::from(policy.poll_interval_s) + u64::from(policy.poll_jitter_s);
    let others = [
        policy.retry_after_max_s,
        policy.retry_after_min_s,
        policy.backoff_max_s,
        policy.first_check_s,
        policy.rejudge_s,
        policy.permit_retry_s,
        policy.permit_retry_max_s,
        policy.reboot_retry_s,
        policy.hold_retry_s,
    ];
    others.into_iter().map(u64::from).fold(interval, u64::max)
}

pub(super) fn later(at: Timestamp, seconds: u64) -> Timestamp {
    let span = Span::new().try_seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
    span.and_then(|span| at.checked_add(span)).unwrap_or(Timestamp::MAX)
}

/// `SplitMix64`: enough for jitter, and the same for the same seed.
fn next_random(run: &mut Run) -> u64 {
    run.random = run.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = run.random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
