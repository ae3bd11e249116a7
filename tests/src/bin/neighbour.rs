//! The workload next door: synchronous writes and direct reads of 4 KiB, one after the other, and how long each took.
//!
//! usage: neighbour FOLDER SECONDS; a file FOLDER/stop ends it before.

use anyhow::{Context as _, Result};
use disk::AlignedBuf;
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::images::Random;

const BLOCK: usize = 4096;
const BLOCKS: usize = 1024;

fn open(path: &Path, flags: OFlags) -> Result<File> {
    let flags = i32::try_from(flags.bits())?;
    let file =
        File::options().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// Microseconds that a share of the times do not exceed.
fn percentile(sorted: &[Duration], share: f64) -> u128 {
    // A share of at most 1 of a length stays below the length.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(at).map_or(0, Duration::as_micros)
}

fn report(name: &str, mut times: Vec<Duration>) -> serde_json::Value {
    times.sort();
    serde_json::json!({
        "what": name, "count": times.len(), "p50_us": percentile(&times, 0.5), "p99_us": percentile(&times, 0.99),
        "max_us": percentile(&times, 1.0),
    })
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.next().context("usage: neighbour FOLDER SECONDS")?;
    let folder = Path::new(&folder);
    let seconds: u64 = arguments.next().and_then(|text| text.to_str()?.parse().ok()).context("no SECONDS")?;
    let path = folder.join("neighbour");
    std::fs::write(&path, vec![1; BLOCKS * BLOCK])?;
    File::open(&path)?.sync_all()?;
    let writer = open(&path, OFlags::DSYNC)?;
    let reader = open(&path, OFlags::DIRECT)?;
    let mut buffer = AlignedBuf::zeroed(BLOCK);
    let limit = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random::new(1);
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    while Instant::now() < limit && !folder.join("stop").exists() {
        buffer.fill(u8::try_from(writes.len() & 255)?);
        let began = Instant::now();
        writer.write_all_at(&buffer, (random.below(BLOCKS) * BLOCK) as u64)?;
        writes.push(began.elapsed());
        let began = Instant::now();
        reader.read_exact_at(&mut buffer, (random.below(BLOCKS) * BLOCK) as u64)?;
        reads.push(began.elapsed());
    }
    anyhow::ensure!(!writes.is_empty(), "ended before the first write");
    std::fs::remove_file(&path)?;
    println!("{}", serde_json::json!([report("write", writes), report("read", reads)]));
    Ok(())
}
