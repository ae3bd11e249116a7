//! Wall time, CPU time and peak memory of a program, by GNU time, so that ours and theirs are measured the same way.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use tests::process::run;

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
    /// Of the largest process.
    pub(crate) peak_mib: f64,
}

/// Runs a program under GNU time; it must end with exit code 0.
pub(crate) fn timed(work: &Path, command: &Command) -> Result<Cost> {
    let output = work.join("time.txt");
    let mut wrapped = Command::new("/usr/bin/time");
    wrapped.args(["-q", "-f", "%e %U %S %M", "-o"]).arg(&output);
    wrapped.arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    run(&mut wrapped)?.ok()?;
    let text = std::fs::read_to_string(&output)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [wall_s, user_s, system_s, peak_kib] = numbers[..] else {
        anyhow::bail!("GNU time said {text:?}");
    };
    Ok(Cost { wall_s, cpu_s: user_s + system_s, peak_mib: peak_kib / 1024.0 })
}

/// The run with the median wall time.
pub(crate) fn median(mut costs: Vec<Cost>) -> Result<Cost> {
    costs.sort_by(|a, b| a.wall_s.total_cmp(&b.wall_s));
    costs.get(costs.len() / 2).copied().context("nothing was measured")
}

/// Everything on the medium, nothing in the page cache but what is read next.
pub(crate) fn drop_caches() -> Result<()> {
    run(&mut Command::new("sync"))?.ok()?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("the page cache cannot be dropped")
}

/// Reads a file once, so that serving it does not wait for the disk.
pub(crate) fn warm(file: &Path) -> Result<()> {
    let read = std::io::copy(&mut std::fs::File::open(file)?, &mut std::io::sink())?;
    ensure!(read > 0, "{} is empty", file.display());
    Ok(())
}
