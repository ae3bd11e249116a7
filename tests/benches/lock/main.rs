//! Step 9, permit, measured: how many reboots the lock's backends let through, and how long a node waits for an answer,
//! with 1, 30 and 300 nodes that all want to reboot at once. Nothing here is checked against a clock; the figures go to
//! `docs/performance.md`.
//!
//! ```text
//! cargo bench --package tests --bench lock
//! ```
//!
//! Needs etcd and PostgreSQL. Server, cluster and nodes share one machine; a node is a task with an HTTP client of its
//! own, the engine's. A node that must wait asks again after a short fixed pause instead of the minutes that it is told: what is
//! measured is the lock and not the patience. The documents are as long as they get in life: 512 ended attempts.

mod fleet;
mod report;
mod stage;

use anyhow::{Context as _, Result};
use clap::Parser;
use fleet::{Fleet, Times};
use protocol::lock::Limit;
use report::Report;
use stage::{Kind, Stage};
use std::time::Duration;

/// Acquisitions per second and latency of each backend under contention
#[derive(Debug, Parser)]
struct Arguments {
    /// How many nodes, one figure for each
    #[arg(long, value_delimiter = ',', default_values_t = [1, 30, 300])]
    nodes: Vec<usize>,
    /// Which backends
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    backends: Vec<Kind>,
    /// How many may hold a permit: numbers and percentages
    #[arg(long, value_delimiter = ',', default_values_t = ["1".to_owned(), "10%".to_owned()])]
    max: Vec<String>,
    /// How long each run is measured, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often each measurement is taken, all of them in turn; the median is reported
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// When a node that must wait asks again, in milliseconds
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
    /// Another update-server on SQLite, to be measured beside this one
    #[arg(long)]
    other_server: Option<std::path::PathBuf>,
    /// Prints all figures as one JSON object as well, on the last line
    #[arg(long)]
    json: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn limit(text: &str) -> Result<Limit> {
    let wrong = || format!("not a limit: expected 1 or 10%, found {text:?}");
    Ok(match text.strip_suffix('%') {
        Some(percent) => Limit::Percent(percent.parse().with_context(wrong)?),
        None => Limit::Count(text.parse().with_context(wrong)?),
    })
}

// The main thread starts what ends with the thread that started it.
#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let times = Times {
        warm_up: Duration::from_secs(1),
        measured: Duration::from_secs(arguments.seconds),
        pause: Duration::from_millis(arguments.pause_ms),
    };
    let stage = Stage::set(&arguments.backends, arguments.other_server.as_deref()).await?;
    let mut report = Report::new(arguments.pause_ms);
    let mut fleets = Vec::new();
    for max in &arguments.max {
        for nodes in &arguments.nodes {
            for backend in &stage.backends {
                let group = format!("bench-{nodes}-{}", max.trim_end_matches('%')).parse()?;
                let fleet = Fleet::gather(backend, &group, limit(max)?, *nodes).await?;
                fleets.push(((backend.name(), *nodes, max.as_str()), fleet));
            }
        }
    }
    for _ in 0..arguments.runs {
        for (name, fleet) in &mut fleets {
            report.add(*name, &fleet.roll(times).await?, times.measured);
        }
    }
    println!("{report}");
    if arguments.json {
        println!("{}", report.to_json());
    }
    Ok(())
}
