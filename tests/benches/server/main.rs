//! Step 4, channel, measured: how many update checks a server answers, how long they take, and what they cost it. Nothing here
//! is checked against a clock; the figures go to `docs/performance.md`.
//!
//! ```text
//! cargo bench --package tests --bench server
//! ```
//!
//! Server, database and nodes share one machine. Nodes are made up: each has an id of its own, asks in turn over a few
//! connections that stay open, and is asked for again only after all others, as nodes are in life: what a server remembers of the
//! last minute helps it little. The server's processor time per check is told too, which does not depend on who else uses the
//! machine.

mod client;
mod report;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use client::{Load, Samples};
use report::Report;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::images::{Kind as ImageKind, Tree};
use tests::postgres;
use tests::small::FAST;
use tests::world::{World, path};

/// Update checks per second, latency, processor time and memory of an update server
#[derive(Debug, Parser)]
struct Arguments {
    /// How many nodes ask in turn
    #[arg(long, default_value_t = 100_000)]
    nodes: u32,
    /// How many of them ask at once
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Which databases
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Database::ALL)]
    databases: Vec<Database>,
    /// What nodes are told
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Scene::ALL)]
    scenes: Vec<Scene>,
    /// How long each run is measured, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often each measurement is taken, all of them in turn; the median is reported
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Checks per second that are asked for, as many as the server answers if not given
    #[arg(long)]
    rate: Option<f64>,
    /// Prints all figures as one JSON object as well, on the last line
    #[arg(long)]
    json: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// Where the server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Database {
    /// In its folder
    Sqlite,
    /// In a PostgreSQL of its own
    Postgres,
}

impl Database {
    const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

/// What the nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scene {
    /// They run their channel's release: nothing to do
    Current,
    /// Their channel's rollout does not reach them yet
    Held,
    /// Each is let go, as fast as it asks
    Granted,
}

impl Scene {
    const ALL: [Self; 3] = [Self::Current, Self::Held, Self::Granted];

    /// The channel whose nodes they are, and the version that they run.
    const fn asks(self) -> (&'static str, &'static str) {
        match self {
            Self::Current => ("current", "1.1.0"),
            Self::Held => ("held", "1.0.0"),
            Self::Granted => ("granted", "1.0.0"),
        }
    }

    const fn decision(self) -> &'static str {
        match self {
            Self::Current => "none",
            Self::Held => "hold",
            Self::Granted => "update",
        }
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.asks().0)
    }
}

const POLICY: &str = "[channel.held]\nin_flight = 100\n[channel.held.canary]\ngroup = \"canary\"\n";

/// A server with a release that three channels point at.
struct Stage {
    database: Database,
    world: World,
    // The server goes before its database.
    _cluster: Option<postgres::Cluster>,
}

impl Stage {
    fn set(database: Database) -> Result<Self> {
        let cluster = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(postgres::Cluster::start_durable()?),
        };
        let mut environment = Vec::new();
        if let Some(cluster) = &cluster {
            environment.push(("UPDATE_SERVER_DATABASE_URL".to_owned(), cluster.url(&cluster.create()?)));
        }
        environment.push(("RUST_LOG".to_owned(), "warn".to_owned()));
        // All nodes of the bench have one address.
        environment.push(("UPDATE_SERVER_REQUESTS_PER_SECOND".to_owned(), "0".to_owned()));
        let world = World::with_environment(environment)?;
        let image = world.folder().join("root.img");
        Tree::generate(1, 1 << 20).write_image(&image, 2 << 20, ImageKind::Bytes)?;
        let release = world.build("1.1.0", &image, FAST)?;
        world.push(&release)?;
        let policy = world.folder().join("rollout.toml");
        fs::write(&policy, POLICY)?;
        world.updatectl(&["rollout", "set", path(&policy)?, "--yes"])?.ok()?;
        for scene in Scene::ALL {
            world.set_channel(scene.asks().0, "1.1.0")?;
        }
        Ok(Self { database, world, _cluster: cluster })
    }

    fn measure(&self, scene: Scene, arguments: &Arguments) -> Result<(Samples, report::Cost)> {
        let address = self.world.address().strip_prefix("http://").context("the server's address")?;
        let (channel, version) = scene.asks();
        let load = Load {
            address: address.to_owned(),
            channel,
            version,
            decision: scene.decision(),
            nodes: arguments.nodes,
            connections: arguments.connections,
            rate: arguments.rate,
        };
        client::run(&load, Duration::from_secs(1))?;
        let process = Process::of(self.world.server()?.id());
        let (before, began) = (process.cpu()?, Instant::now());
        let samples = client::run(&load, Duration::from_secs(arguments.seconds))?;
        let cpu = process.cpu()?.saturating_sub(before);
        ensure!(!samples.latencies.is_empty(), "no check was answered");
        let cost = report::Cost { cpu, measured: began.elapsed(), memory: process.memory()? };
        Ok((samples, cost))
    }
}

/// A process, as the kernel accounts for it.
struct Process(PathBuf);

impl Process {
    fn of(id: u32) -> Self {
        Self(Path::new("/proc").join(id.to_string()))
    }

    /// Processor time of all its threads.
    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(self.0.join("stat"))?;
        // proc(5): utime and stime are fields 14 and 15, in hundredths of a second; the name in parentheses may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).context("the processor times in /proc")?;
        Ok(Duration::from_millis((user + system) * 10))
    }

    /// The memory that it holds now, in bytes.
    fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(self.0.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS in /proc")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib << 10)
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let stages =
        arguments.databases.iter().map(|database| Stage::set(*database)).collect::<Result<Vec<_>>>()?;
    let mut report = Report::default();
    for run in 0..arguments.runs {
        for stage in &stages {
            for scene in &arguments.scenes {
                eprintln!("run {} of {}: {}, {scene}", run + 1, arguments.runs, stage.database);
                let (samples, cost) = stage.measure(*scene, &arguments)?;
                report.add(&stage.database.to_string(), &scene.to_string(), &samples, &cost);
            }
        }
    }
    println!(
        "{} nodes over {} connections, {} s a run, medians of {}",
        arguments.nodes, arguments.connections, arguments.seconds, arguments.runs
    );
    println!("{report}");
    if arguments.json {
        println!("{}", report.json());
    }
    Ok(())
}
