//! Steps 5 to 8 in a virtual machine: the engine's memory, and what a neighbour notices of an update.
//!
//! `cargo bench --package tests --bench vm`; docs/performance.md says how to repeat the figures.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tests::vm::guest::Flaw;
use tests::vm::machine::Machine;
use tests::vm::site::{BOOT, Settings, Site};

/// The longest an update takes.
const UPDATE: Duration = Duration::from_secs(300);

fn neighbour(machine: &mut Machine, seconds: u32) -> Result<Value> {
    let said = machine.run(&format!("rm -f /state/stop; neighbour /state {seconds}"))?.ok()?;
    serde_json::from_str(&said).with_context(|| format!("not a report: {said}"))
}

/// The most memory the engine has held so far, in KiB.
fn engine_memory(machine: &mut Machine) -> Result<u64> {
    let said =
        machine.run("sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pidof update-engine)/status")?;
    Ok(said.ok()?.trim().parse()?)
}

fn main() -> Result<()> {
    let settings = Settings { strategy: "off", data: 8 << 20, ..Settings::default() };
    let mut site = Site::new("bench", settings)?.context("the loader is not built: tests/run says how")?;
    site.add_program(Path::new(env!("CARGO_BIN_EXE_neighbour")))?;
    let mut machine = site.machine()?;
    machine.start()?;
    machine.wait_confirmed("1.0.0", BOOT)?;
    let idle_memory = engine_memory(&mut machine)?;
    let alone = neighbour(&mut machine, 30)?;
    let from = machine.console.len();
    site.publish("1.1.0", Flaw::None)?;
    let (_, began) = machine.wait_console(from, "driver: downloading", UPDATE)?;
    machine.run("rm -f /state/stop; (neighbour /state 300 > /run/beside.json) > /dev/null 2>&1 &")?.ok()?;
    let (_, staged) = machine.wait_console(from, "driver: staged", UPDATE)?;
    machine.run("touch /state/stop; while pidof neighbour > /dev/null; do sleep 0.1; done")?.ok()?;
    let beside = machine.run("cat /run/beside.json")?.ok()?;
    let status = machine.status()?;
    let figures = json!({
        "engine_memory_kib": { "before": idle_memory, "peak": engine_memory(&mut machine)? },
        "update_s": (staged.at - began.at).as_secs_f64(),
        "progress": status.progress,
        "neighbour_alone": alone,
        "neighbour_beside_update": serde_json::from_str::<Value>(&beside)?,
    });
    println!("{figures:#}");
    Ok(())
}
