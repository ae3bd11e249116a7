//! Steps 5 to 12: every bound the machine keeps, in one place.

use jiff::tz::TimeZone;
use protocol::window::Window;

/// When a staged release is activated, and who reboots (DESIGN section 4, "When to activate").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Activated when staged; the engine never reboots by itself.
    Off,
    /// Activated when staged; reboots at once.
    Immediate,
    /// Activated when staged; reboots in the next window.
    Window,
    /// Activated only while holding the reboot permit; reboots then.
    Lock,
}

/// Every bound the machine keeps. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// When to activate and to reboot.
    pub strategy: Strategy,
    /// When [`Strategy::Window`] may reboot; with none it never does. [`Strategy::Lock`] keeps to them where there are
    /// any, beside those of the lock's own policy.
    pub windows: Vec<Window>,
    /// The time zone that the windows are given in.
    pub zone: TimeZone,
    /// Tries that an activated slot gets before the loader falls back, 1 to 15.
    pub tries: u8,
    /// Seconds a new release has to prove its health, counted by the driver's monotonic clock: the wall clock may
    /// jump while a node boots, and a jump must not condemn a release.
    pub health_deadline_s: u32,
    /// Seconds until health is judged again when it failed and there is no slot to fall back to.
    pub rejudge_s: u32,
    /// Judgements in a row that come to nothing before that counts as a failure.
    pub judgements_max: u32,
    /// Seconds between checks.
    pub poll_interval_s: u32,
    /// The most by which an interval differs from [`Self::poll_interval_s`], either way, in seconds.
    pub poll_jitter_s: u32,
    /// The first check comes within so many seconds of the start.
    pub first_check_s: u32,
    /// A server's wish for the next check is raised to so many seconds.
    pub retry_after_min_s: u32,
    /// A server's wish for the next check is lowered to so many seconds.
    pub retry_after_max_s: u32,
    /// Seconds to wait after the first failure; doubles with each one.
    pub backoff_first_s: u32,
    /// The longest wait after failures, in seconds.
    pub backoff_max_s: u32,
    /// Attempts per release that may fail by the release's or the node's fault.
    pub attempts_max: u32,
    /// Attempts per release that may be cut off by a crash, a power cut or a restart of the engine.
    pub interruptions_max: u32,
    /// Releases whose attempts are remembered; the oldest is forgotten first.
    pub attempts_kept: usize,
    /// Events kept for the server; the oldest is dropped first, and counted.
    pub events_max: usize,
    /// Events sent in one report.
    pub report_max: usize,
    /// The longest detail of an event, an error or a reason kept, in bytes.
    pub detail_max: usize,
    /// Seconds until the lock is asked again where it does not say when; the first wait after it gave no answer.
    pub permit_retry_s: u32,
    /// The longest wait after the lock gave no answer, in seconds.
    pub permit_retry_max_s: u32,
    /// Seconds between attempts to reboot, after a reboot or a hook failed, and how long a reboot that was accepted may
    /// take.
    pub reboot_retry_s: u32,
    /// Seconds until it is looked again whether an inhibitor or a session still holds the reboot.
    pub hold_retry_s: u32,
    /// Seconds for which inhibitors and sessions are respected together. Hooks are never forced.
    pub hold_max_s: u32,
    /// Seconds for which a preparation of the reboot holds good.
    pub prepared_max_s: u32,
    /// How often the post-confirm hooks are started before they are given up.
    pub post_confirm_max: u32,
    /// The longest evidence kept with an event, in bytes.
    pub evidence_max: usize,
    /// Events in the queue that keep their evidence, the newest ones.
    pub evidence_kept: usize,
}

/// For how long a node may hold a permit while its reboot is held, in seconds, before that needs a word: half of what a
/// lock's policy grants by default, as hooks take their time too.
const HELD_WITH_PERMIT_S: u32 = 30 * 60;

impl Policy {
    /// What an operator should know of these bounds together, if anything: no window is long enough for what holds a
    /// reboot to be respected to the end, so that it takes more than one.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if self.strategy == Strategy::Lock && self.hold_max_s > HELD_WITH_PERMIT_S {
            return Some(format!(
                "inhibitors and sessions may hold a reboot for {} s (reboot.hold_max_s) while this node holds the permit: \
                 with more than granted_max of the lock's policy, an hour by default, it counts as stuck and halts its group",
                self.hold_max_s
            ));
        }
        let longest = self.windows.iter().map(|window| window.length_s).max()?;
        (matches!(self.strategy, Strategy::Window | Strategy::Lock) && longest <= self.hold_max_s).then(|| {
            format!(
                "inhibitors and sessions may hold a reboot for {} s (reboot.hold_max_s), and the longest window is open \
                 for {longest} s: such a reboot is put off to a later window",
                self.hold_max_s
            )
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            strategy: Strategy::Off,
            windows: Vec::new(),
            zone: TimeZone::UTC,
            tries: 3,
            health_deadline_s: 300,
            rejudge_s: 10 * 60,
            judgements_max: 3,
            poll_interval_s: 45 * 60,
            poll_jitter_s: 5 * 60,
            first_check_s: 60,
            retry_after_min_s: 60,
            retry_after_max_s: 4 * 60 * 60,
            backoff_first_s: 60,
            backoff_max_s: 4 * 60 * 60,
            attempts_max: 10,
            interruptions_max: 100,
            attempts_kept: 16,
            events_max: 256,
            report_max: 64,
            detail_max: 4096,
            permit_retry_s: 60,
            permit_retry_max_s: 10 * 60,
            reboot_retry_s: 5 * 60,
            hold_retry_s: 30,
            hold_max_s: 10 * 60,
            prepared_max_s: 60,
            post_confirm_max: 3,
            evidence_max: protocol::wire::EVIDENCE_MAX,
            evidence_kept: 8,
        }
    }
}
