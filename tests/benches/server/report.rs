//! The figures, as a table for people and as JSON.

use crate::client::Samples;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a run cost the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Its processor time.
    pub(crate) cpu: Duration,
    pub(crate) measured: Duration,
    /// What it holds at the end, in bytes.
    pub(crate) memory: u64,
}

/// The figures of one run: checks per second, latencies in milliseconds, microseconds of processor per check, MiB.
type Figures = BTreeMap<&'static str, f64>;

/// What was measured, by database and scene.
#[derive(Debug, Default)]
pub(crate) struct Report {
    runs: BTreeMap<(String, String), Vec<Figures>>,
}

impl Report {
    pub(crate) fn add(&mut self, database: &str, scene: &str, samples: &Samples, cost: &Cost) {
        let mut sorted: Vec<f64> =
            samples.latencies.iter().map(|taken| taken.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |permille: usize| sorted[(sorted.len() * permille / 1000).min(sorted.len() - 1)];
        let checks = sorted.len() as f64;
        let figures = [
            ("checks_per_s", checks / cost.measured.as_secs_f64()),
            ("p50_ms", at(500)),
            ("p99_ms", at(990)),
            ("p999_ms", at(999)),
            ("cpu_us_per_check", cost.cpu.as_secs_f64() * 1e6 / checks),
            ("cores", cost.cpu.as_secs_f64() / cost.measured.as_secs_f64()),
            ("memory_mib", cost.memory as f64 / f64::from(1 << 20)),
        ];
        self.runs.entry((database.to_owned(), scene.to_owned())).or_default().push(figures.into());
    }

    fn medians(runs: &[Figures]) -> Figures {
        let names = runs.first().into_iter().flat_map(BTreeMap::keys);
        let median = |name: &str| {
            let mut values: Vec<f64> = runs.iter().filter_map(|run| run.get(name)).copied().collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        names.map(|name| (*name, median(name))).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let rows = self.runs.iter().map(|((database, scene), runs)| {
            json!({ "database": database, "scene": scene, "median": Self::medians(runs), "runs": runs })
        });
        json!({ "rows": rows.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| database | nodes are | checks/s | p50 ms | p99 ms | p99.9 ms | µs CPU/check | cores | MiB |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for ((database, scene), runs) in &self.runs {
            let of = Self::medians(runs);
            let at = |name: &str| of.get(name).copied().unwrap_or_default();
            writeln!(
                f,
                "| {database} | {scene} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} |",
                at("checks_per_s"),
                at("p50_ms"),
                at("p99_ms"),
                at("p999_ms"),
                at("cpu_us_per_check"),
                at("cores"),
                at("memory_mib")
            )?;
        }
        Ok(())
    }
}
