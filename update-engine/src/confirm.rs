//! Step 12, confirm: what guards a boot into a new release in case the engine does not.
//!
//! The engine judges a new release and goes back by itself. Where it never starts, cannot start or dies, nobody would:
//! `update-engine confirm` runs beside it from the beginning of every boot, waits for the running slot to be confirmed,
//! and exits 1 where that has not happened in time. Its unit answers that with a reboot, which spends a try; the loader
//! does the rest. It changes nothing itself, and without proof that there is a slot to fall back to it never exits 1.

use crate::boot;
use crate::config::{Merged, Settings};
use crate::error::chain;
use crate::local;
use crate::slots::{Slots, SlotsError};
use crate::state::StateFolder;
use crate::system::disk::{self as discovery, DiscoveryError, Root};
use clap::Args;
use disk::SlotLayout;
use protocol::slot::{Attributes, Slot};
use protocol::status::Exit;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the slots are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the engine may take to start, on top of its own deadline.
const MARGIN: Duration = Duration::from_secs(300);
/// `health.deadline_s` where the configuration cannot be used.
const DEADLINE: Duration = Duration::from_secs(300);
/// `state.dir` where the configuration cannot be used.
const STATE_DIR: &str = "/var/lib/update-engine";

/// `update-engine confirm`
#[derive(Clone, Debug, Args)]
pub struct ConfirmArgs {
    /// Seconds since the boot after which a slot that is not confirmed is given up; health.deadline_s and 300 more if
    /// not given.
    #[arg(long, value_name = "SECONDS")]
    pub after: Option<u64>,
    /// The only configuration file to read, instead of the config.d folders.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The disk with the slots; the configured one, or the one of the running slot, if not given.
    #[arg(long, value_name = "DISK")]
    pub disk: Option<PathBuf>,
    /// The state folder; overrides the configuration.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The slot that runs; told by the kernel command line if not given.
    #[arg(long, value_name = "SLOT")]
    pub booted: Option<Slot>,
    /// Print what came of it as one JSON document.
    #[arg(long)]
    pub json: bool,
}

/// What is known at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The running slot and the other one, where they can be read.
    pub slots: Option<(Attributes, Attributes)>,
    /// Time since the boot.
    pub elapsed: Duration,
    /// When the engine was first seen at work, since the boot.
    pub engine_since: Option<Duration>,
    /// The engine is at work.
    pub engine_runs: bool,
}

/// What does not change while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time since the boot after which a slot that is not confirmed is given up.
    pub after: Duration,
    /// The time that the engine gives itself.
    pub deadline: Duration,
    /// The engine waits for the server as long as it takes.
    pub require_server: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The running slot is confirmed.
    Confirmed,
    /// There is no other slot that could be booted: a reboot would help nobody.
    NoFallback,
    /// Look again later.
    Wait,
    /// Reboot: a try is spent, or the loader falls back.
    GoBack,
    /// It is too late, and nothing is known of the slots: a reboot could be wrong.
    Unknown,
}

/// Decides. Pure, so that every case can be read in a table.
#[must_use]
pub fn decide(facts: &Facts, limits: &Limits) -> Decision {
    // An engine at work decides by itself, and is given its time even where the boot was slow. One that hangs is ended
    // by its watchdog, and then works no more.
    let since = facts.engine_since.filter(|_| facts.engine_runs);
    let engines = since.map_or(Duration::ZERO, |since| since + limits.deadline + MARGIN);
    let in_time = facts.elapsed < limits.after.max(engines) || (facts.engine_runs && limits.require_server);
    match facts.slots {
        Some((running, _)) if running.successful() => Decision::Confirmed,
        Some((_, other)) if !other.bootable() => Decision::NoFallback,
        _ if in_time => Decision::Wait,
        Some(_) => Decision::GoBack,
        None => Decision::Unknown,
    }
}

/// Where to look, from a configuration or without one.
struct Places {
    disk: Option<PathBuf>,
    layout: SlotLayout,
    state_dir: PathBuf,
    limits: Limits,
}

impl Places {
    fn new(args: &ConfirmArgs) -> Self {
        let merged = local::merged(args.config.as_deref());
        let settings = merged.and_then(|merged: Merged| Settings::from_merged(&merged));
        if let Err(error) = &settings {
            tracing::warn!("the configuration cannot be used, so defaults are: {}", chain(error));
        }
        let settings = settings.ok();
        let deadline = settings.as_ref().map_or(DEADLINE, |settings| settings.health.deadline);
        let limits = Limits {
            after: args.after.map_or(deadline + MARGIN, Duration::from_secs),
            deadline,
            require_server: settings.as_ref().is_some_and(|settings| settings.health.require_server),
        };
        let configured = settings.as_ref().map(|settings| settings.state_dir.clone());
        Self {
            disk: args
                .disk
                .clone()
                .or_else(|| settings.as_ref().and_then(|settings| settings.disk.device.clone())),
            layout: settings.map(|settings| settings.disk.layout).unwrap_or_default(),
            state_dir: args.state_dir.clone().or(configured).unwrap_or_else(|| STATE_DIR.into()),
            limits,
        }
    }
}

/// Why the slots cannot be told.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Disk(#[from] DiscoveryError),
    #[error(transparent)]
    Slots(#[from] SlotsError),
    #[error(transparent)]
    Boot(#[from] boot::BootError),
}

/// The slot that runs, and what the table says of it and of the other one.
fn look(places: &Places, booted: Option<Slot>) -> Result<(Slot, Attributes, Attributes), LookError> {
    let device = match &places.disk {
        Some(device) => device.clone(),
        None => discovery::find(&places.layout)?,
    };
    let disk = Slots::new(Arc::new(device), places.layout.clone()).look()?;
    let root = Path::new("/");
    let of_root = |name: &Root| name.slot(&disk, &root.join("sys"));
    let slot = booted.map_or_else(|| boot::slot(root, of_root), Ok)?;
    Ok((slot, disk.attributes(slot), disk.attributes(slot.other())))
}

/// Time since the boot.
fn uptime(started: Instant) -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_else(|| started.elapsed())
}

/// Waits for the running slot to be confirmed. [`Exit::Failed`] says that the machine is to be rebooted, and nothing
/// else ends so.
#[must_use]
pub fn run(args: &ConfirmArgs) -> Exit {
    let (places, started) = (Places::new(args), Instant::now());
    let (mut engine_since, mut told) = (None, String::new());
    loop {
        let elapsed = uptime(started);
        let engine_runs = StateFolder::view(&places.state_dir).engine().is_some();
        if engine_runs {
            engine_since = engine_since.or(Some(elapsed));
        }
        let looked = look(&places, args.booted);
        let slots = looked.as_ref().ok().map(|(_, running, other)| (*running, *other));
        let decision = decide(&Facts { slots, elapsed, engine_since, engine_runs }, &places.limits);
        let problem = looked.as_ref().err().map(|error| chain(error)).unwrap_or_default();
        if decision != Decision::Wait {
            return end(args, decision, looked.ok().map(|(slot, ..)| slot), &problem);
        }
        if told != problem {
            tracing::warn!("the slots cannot be read yet: {problem}");
            told = problem;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Says what came of it.
fn end(args: &ConfirmArgs, decision: Decision, slot: Option<Slot>, problem: &str) -> Exit {
    let name = slot.map_or_else(|| "the running slot".to_owned(), |slot| format!("slot {slot}"));
    let (exit, text) = match decision {
        Decision::Confirmed => (Exit::Done, format!("{name} is confirmed")),
        Decision::NoFallback => {
            (Exit::Done, format!("{name} is not confirmed, and there is no slot to fall back to"))
        }
        Decision::GoBack => {
            (Exit::Failed, format!("{name} was not confirmed in time: the machine is to be rebooted"))
        }
        Decision::Unknown | Decision::Wait => {
            (Exit::Done, format!("nothing is done, as the slots cannot be told: {problem}"))
        }
    };
    if args.json {
        let confirmed = decision == Decision::Confirmed;
        println!("{}", json!({ "schema": 1, "slot": slot, "confirmed": confirmed, "reason": text }));
    } else if exit == Exit::Done {
        println!("{text}");
    }
    if exit != Exit::Done {
        eprintln!("update-engine: {text}");
    }
    exit
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn good() -> Attributes {
        Attributes::default().confirmed().fallback()
    }

    fn tried() -> Attributes {
        Attributes::default().activated(3).with_tries_left(2)
    }

    #[test]
    fn it_goes_back_only_late_unconfirmed_and_with_a_fallback() {
        let limits = Limits { after: s(600), deadline: s(300), require_server: false };
        let (good, tried, bad) = (good(), tried(), Attributes::default());
        for (slots, elapsed, engine_since, engine_runs, expected) in [
            (Some((good, good)), 1, None, false, Decision::Confirmed),
            (Some((good, good)), 9999, None, false, Decision::Confirmed),
            (Some((good, bad)), 9999, None, false, Decision::Confirmed),
            (Some((tried, good)), 0, None, false, Decision::Wait),
            (Some((tried, good)), 599, None, false, Decision::Wait),
            (Some((tried, good)), 600, None, false, Decision::GoBack),
            // Condemned while it runs.
            (Some((bad, good)), 600, None, false, Decision::GoBack),
            (Some((tried, bad)), 1, None, false, Decision::NoFallback),
            (Some((tried, bad)), 9999, None, false, Decision::NoFallback),
            // The engine came late: it has its own time.
            (Some((tried, good)), 700, Some(500), true, Decision::Wait),
            (Some((tried, good)), 1099, Some(500), true, Decision::Wait),
            (Some((tried, good)), 1100, Some(500), true, Decision::GoBack),
            // It came and died.
            (Some((tried, good)), 700, Some(500), false, Decision::GoBack),
            (None, 0, None, false, Decision::Wait),
            (None, 9999, None, false, Decision::Unknown),
            (None, 9999, Some(10), true, Decision::Unknown),
        ] {
            let facts = Facts { slots, elapsed: s(elapsed), engine_since: engine_since.map(s), engine_runs };
            assert_eq!(decide(&facts, &limits), expected, "{facts:?}");
        }
    }

    #[test]
    fn an_outage_of_the_server_condemns_nothing() {
        let limits = Limits { after: s(600), deadline: s(300), require_server: true };
        let facts = |engine_runs| Facts {
            slots: Some((tried(), good())),
            elapsed: s(90_000),
            engine_since: Some(s(20)),
            engine_runs,
        };
        assert_eq!(decide(&facts(true), &limits), Decision::Wait);
        assert_eq!(decide(&facts(false), &limits), Decision::GoBack, "nobody waits for the server");
    }
}
