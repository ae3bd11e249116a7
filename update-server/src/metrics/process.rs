//! All steps, from outside: what the process takes of the machine, under the names that all programs use.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Figures of the process. What the system does not show stays at zero.
#[derive(Debug, Default)]
pub(super) struct Process {
    cpu: Counter<f64, AtomicU64>,
    resident: Gauge,
    open_files: Gauge,
    files_max: Gauge,
    start: Gauge,
}

impl Process {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let made = Self::default();
        let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        made.start.set(i64::try_from(start.as_secs()).unwrap_or_default());
        registry.register("process_cpu_seconds", "Processor time that was used", made.cpu.clone());
        registry.register("process_resident_memory_bytes", "Memory that is in use", made.resident.clone());
        registry.register("process_open_fds", "Files and connections that are open", made.open_files.clone());
        registry.register(
            "process_max_fds",
            "Files and connections that may be open",
            made.files_max.clone(),
        );
        registry.register("process_start_time_seconds", "When the process began", made.start.clone());
        made
    }

    /// Looks again.
    pub(super) fn look(&self) {
        if let Some((ticks, pages)) =
            std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(used)
        {
            // Exact for longer than any process runs.
            #[allow(clippy::cast_precision_loss, reason = "see above")]
            let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            self.cpu.inner().store(seconds.to_bits(), Ordering::Relaxed);
            let bytes = pages.saturating_mul(rustix::param::page_size() as u64);
            self.resident.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        if let Ok(folder) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the folder itself.
            self.open_files.set(i64::try_from(folder.count()).unwrap_or(i64::MAX) - 1);
        }
        let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.files_max.set(max.and_then(|max| i64::try_from(max).ok()).unwrap_or(i64::MAX));
    }
}

/// Processor time in ticks and resident memory in pages, from proc_pid_stat(5).
fn used(stat: &str) -> Option<(u64, u64)> {
    // The program's name, in parentheses, may have anything in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let number = |field: usize| rest.split_whitespace().nth(field - 3)?.parse::<u64>().ok();
    Some((number(14)? + number(15)?, number(24)?))
}
