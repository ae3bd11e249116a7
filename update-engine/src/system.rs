//! Steps 9 to 12, permit to confirm: what the engine asks of the system it runs on.
//!
//! | module | step of the flow (DESIGN section 1) |
//! |---|---|
//! | [`program`] | all: a program run with a time-out, ended with all that it started |
//! | [`bus`] | 10, 12: a call over D-Bus, with a time-out |
//! | [`disk`] | 11: the disk that holds the running slot |
//! | [`hooks`] | 5, 10, 12: what the node's owner wants done before an installation, before a reboot, after a confirmation |
//! | [`alerts`] | 10: the alerts that hold a reboot |
//! | [`logind`] | 10: who holds a reboot, who is warned of it, and the reboot itself |
//! | [`units`] | 12: what systemd says of this boot |
//! | [`evidence`] | 11, 12: what is known of a boot that failed |
//!
//! Whatever is not there (systemd, a bus, a journal) is left out with one line in the log.

pub mod alerts;
pub mod bus;
pub mod disk;
pub mod evidence;
pub mod hooks;
pub mod logind;
pub mod program;
#[cfg(test)]
mod tests;
pub mod units;
