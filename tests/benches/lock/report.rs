//! The figures, as a table for people and as JSON.

use crate::fleet::Samples;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The commands of one acquisition.
const CYCLE: [&str; 4] = ["request", "verify", "booted", "confirm"];

/// One measurement: backend, nodes, max.
type Cell = (String, usize, String);

/// The figures of one run, or the medians of several.
#[derive(Clone, Debug)]
struct Figures {
    acquisitions_per_s: f64,
    commands_per_s: f64,
    /// Median and 99th percentile of the commands of acquisitions, in milliseconds.
    cycle_ms: [f64; 2],
    /// The same of requests that were told to wait; zeros where there was none.
    poll_ms: [f64; 2],
    /// The same by command.
    by_command: BTreeMap<&'static str, [f64; 2]>,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Report {
    pause_ms: u64,
    order: Vec<Cell>,
    runs: BTreeMap<Cell, Vec<Figures>>,
}

/// Median and 99th percentile, in milliseconds.
fn quantiles<'a>(latencies: impl Iterator<Item = &'a Duration>) -> [f64; 2] {
    let mut sorted: Vec<f64> = latencies.map(|latency| latency.as_secs_f64() * 1000.0).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
    [50, 99].map(|percent| at(percent).copied().unwrap_or(0.0))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl Figures {
    fn of(samples: &Samples, measured: Duration) -> Self {
        let per_s = |count: usize| count as f64 / measured.as_secs_f64();
        let named = |names: &[&str]| {
            let chosen = samples.latencies.iter().filter(|(name, _)| names.contains(name));
            quantiles(chosen.flat_map(|(_, latencies)| latencies))
        };
        Self {
            acquisitions_per_s: per_s(samples.acquisitions),
            commands_per_s: per_s(samples.latencies.values().map(Vec::len).sum()),
            cycle_ms: named(&CYCLE),
            poll_ms: named(&["poll"]),
            by_command: samples.latencies.iter().map(|(name, all)| (*name, quantiles(all.iter()))).collect(),
        }
    }

    fn median(runs: &[Self]) -> Self {
        let of = |figure: &dyn Fn(&Self) -> f64| median(runs.iter().map(figure).collect());
        let both = |figure: &dyn Fn(&Self) -> [f64; 2]| [0, 1].map(|at| of(&|run| figure(run)[at]));
        let names = runs.iter().flat_map(|run| run.by_command.keys().copied());
        let by_name = |name| both(&|run| run.by_command.get(name).copied().unwrap_or_default());
        Self {
            acquisitions_per_s: of(&|run| run.acquisitions_per_s),
            commands_per_s: of(&|run| run.commands_per_s),
            cycle_ms: both(&|run| run.cycle_ms),
            poll_ms: both(&|run| run.poll_ms),
            by_command: names.map(|name| (name, by_name(name))).collect(),
        }
    }
}

impl Report {
    pub(crate) const fn new(pause_ms: u64) -> Self {
        Self { pause_ms, order: Vec::new(), runs: BTreeMap::new() }
    }

    /// Adds a run, and says it at once: all of them take minutes.
    pub(crate) fn add(
        &mut self,
        (backend, nodes, max): (&str, usize, &str),
        samples: &Samples,
        measured: Duration,
    ) {
        let cell = (backend.to_owned(), nodes, max.to_owned());
        let figures = Figures::of(samples, measured);
        eprintln!("{}", row(&cell, &figures));
        if !self.order.contains(&cell) {
            self.order.push(cell.clone());
        }
        self.runs.entry(cell).or_default().push(figures);
    }

    fn medians(&self) -> impl Iterator<Item = (&Cell, Figures)> {
        self.order.iter().map(|cell| (cell, Figures::median(&self.runs[cell])))
    }

    /// All medians, each command by itself; latencies are medians and 99th percentiles in milliseconds.
    pub(crate) fn to_json(&self) -> Value {
        let cells = self.medians().map(|((backend, nodes, max), figures)| {
            json!({
                "backend": backend, "nodes": nodes, "max": max,
                "acquisitions_per_s": figures.acquisitions_per_s, "commands_per_s": figures.commands_per_s,
                "latency_ms": figures.by_command,
            })
        });
        json!({ "schema": 1, "pause_ms": self.pause_ms, "figures": cells.collect::<Vec<_>>() })
    }
}

fn row((backend, nodes, max): &Cell, figures: &Figures) -> String {
    let Figures { acquisitions_per_s, commands_per_s, cycle_ms: [half, most], poll_ms, .. } = figures;
    let poll = match poll_ms {
        [0.0, 0.0] => "none".to_owned(),
        [half, most] => format!("{half:.1}, {most:.1}"),
    };
    format!(
        "| {backend} | {max} | {nodes} | {acquisitions_per_s:.1} | {commands_per_s:.0} | {half:.1}, {most:.1} | {poll} |"
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        writeln!(
            f,
            "{cores} cores,{}; load at the end {}",
            model.trim_start_matches(['\t', ' ', ':']),
            load.trim()
        )?;
        writeln!(f, "a node that must wait asks again after {} ms\n", self.pause_ms)?;
        writeln!(
            f,
            "| backend | max | nodes | acquisitions/s | commands/s | commands of an acquisition: p50, p99 (ms) | told to wait: p50, p99 (ms) |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        self.medians().try_for_each(|(cell, figures)| writeln!(f, "{}", row(cell, &figures)))
    }
}
