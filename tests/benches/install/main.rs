//! Steps 2 and 5 to 8, measured: the real engine against curl, zstd and dd on the same images, the same disk, in the
//! same run. Nothing here is checked against a clock; the figures go to `docs/performance.md`.
//!
//! ```text
//! cargo bench --package tests --bench install -- --work /tmp/bench v1.ext4 v2.ext4 v3.ext4
//! ```
//!
//! Needs root (loop devices, dropping the page cache), GNU time, curl, zstd, dd and openssl; about five times the
//! image's length in the work folder. What is built there once (releases, the zstd stream) is used again.

mod measure;
mod peers;
mod report;
mod scenes;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::PathBuf;
use tests::blockdev::LoopDevice;

/// Full install, adaptive update, payload size, resume and rewrite, with the peers beside them
#[derive(Debug, Parser)]
struct Arguments {
    /// The OS images, oldest first: two or three
    #[arg(required = true, num_args = 2..=3)]
    images: Vec<PathBuf>,
    /// Where to work; kept, so that a second run does not build the releases again
    #[arg(long)]
    work: PathBuf,
    /// How often each measurement is taken; the median is reported
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The compression level of the releases; the builder's own if not given
    #[arg(long)]
    level: Option<i32>,
    /// Prints the figures as one JSON object as well, on the last line
    #[arg(long)]
    json: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(LoopDevice::available(), "loop devices need root");
    std::fs::create_dir_all(&arguments.work)?;
    let work = arguments.work.canonicalize().context("the work folder cannot be used")?;
    let images =
        arguments.images.iter().map(|image| image.canonicalize()).collect::<std::io::Result<Vec<_>>>()?;
    let mut report = report::Report::default();
    let stage = scenes::Stage::open(&work, &images, arguments.level, arguments.runs, &mut report)?;
    stage.payload_size(&mut report)?;
    stage.full_install(&mut report)?;
    stage.adaptive(&mut report)?;
    stage.resume(&mut report)?;
    stage.nothing_changed(&mut report)?;
    println!("{report}");
    if arguments.json {
        println!("{}", report.to_json());
    }
    Ok(())
}
