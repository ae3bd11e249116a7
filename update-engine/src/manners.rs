//! All steps: the workload next door must not notice. The engine's disk and processor time come last; those of hooks and
//! health checks do not (`system::program`).
//!
//! The idle I/O class needs a system call that has no safe wrapper here; the systemd unit sets it
//! (`IOSchedulingClass=idle`), and bulk data goes past the page cache (`disk::device`).

/// How much nicer than others.
const NICER: i32 = 10;

/// Lowers this process's priority. Failing at it is no reason not to update.
pub fn behave() {
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::debug!("cannot lower the priority: {error}");
    }
}
