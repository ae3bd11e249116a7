//! Step 12, confirm: what guards a boot into a new release in case the engine does not.
//!
//! The engine judges a new release and goes back by itself. Where it never starts, cannot start or dies, nobody would:
//! `update-engine confirm` runs beside it from the beginning of every boot into a slot that is not successful
//! (`flipside.trying` on the kernel command line), waits for the slot to be confirmed, and exits 1 where that has not
//! happened in time. Its unit answers that with a reboot, which spends a try; the loader does the rest. It changes nothing
//! itself, and without proof that there is a slot to fall back to it never exits 1: not where its output is lost, and not
//! by a mistake of its own.

use crate::boot;
use crate::cli::node::{BootedSlot, NodeOptions};
use crate::config::Merged;
use crate::config::settings::{self, Settings};
use crate::error::chain;
use crate::slots::{Slots, SlotsError};
use crate::state::StateFolder;
use crate::system::disk::{self as discovery, DiscoveryError, Place, Root};
use clap::Args;
use disk::SlotLayout;
use protocol::slot::{Attributes, Slot};
use protocol::status::Exit;
use serde_json::json;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the slots are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the engine may take to start, on top of its own deadline.
const MARGIN: Duration = Duration::from_secs(300);
/// How long the engine may be gone before it counts as gone: it is started again (a package, its watchdog, an operator).
const GONE: Duration = Duration::from_secs(120);
/// How long the engine must be at work without a break to count as back.
const STEADY: Duration = Duration::from_secs(60);
/// Where this file is, the machine is not rebooted.
const NO_GUARD: &str = "/run/update-engine/no-guard";
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
    /// Which node.
    #[command(flatten)]
    pub node: NodeOptions,
    /// The slot.
    #[command(flatten)]
    pub slot: BootedSlot,
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
    /// For how long it has not been at work, breaks of less than a minute's work included.
    pub engine_gone: Duration,
    /// Somebody asked for the machine not to be rebooted.
    pub paused: bool,
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
    let in_time = facts.elapsed < limits.after.max(engines)
        || if facts.engine_runs { limits.require_server } else { facts.engine_gone < GONE };
    match facts.slots {
        Some((running, _)) if running.successful() => Decision::Confirmed,
        Some((_, other)) if !other.bootable() => Decision::NoFallback,
        _ if in_time || facts.paused => Decision::Wait,
        Some(_) => Decision::GoBack,
        None => Decision::Unknown,
    }
}

/// What was seen of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Watch {
    /// When it was first seen.
    first: Option<Duration>,
    /// Since when it has been at work without a break.
    steady: Option<Duration>,
    /// Since when it has not been at work. Not forgotten for one that comes up only to die again.
    gone: Option<Duration>,
}

impl Watch {
    fn look(&mut self, now: Duration, runs: bool) {
        if runs {
            self.first = self.first.or(Some(now));
            self.steady = self.steady.or(Some(now));
            if self.steady.is_some_and(|since| now.saturating_sub(since) >= STEADY) {
                self.gone = None;
            }
        } else {
            self.steady = None;
            self.gone = self.gone.or(Some(now));
        }
    }

    fn gone_for(&self, now: Duration) -> Duration {
        self.gone.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// Where to look, from a configuration or without one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Places {
    disk: Option<PathBuf>,
    /// `--disk` names it, so no other one will do.
    named: bool,
    layout: SlotLayout,
    state_dir: PathBuf,
    limits: Limits,
}

impl Places {
    fn new(args: &ConfirmArgs) -> Self {
        caught(|| Self::configured(args)).unwrap_or_else(|| Self::by_options(args))
    }

    /// Without a configuration.
    fn by_options(args: &ConfirmArgs) -> Self {
        Self {
            disk: args.node.disk.clone(),
            named: args.node.disk.is_some(),
            layout: SlotLayout::default(),
            state_dir: args.node.state_dir.clone().unwrap_or_else(|| STATE_DIR.into()),
            limits: Limits::new(args.after, None, None),
        }
    }

    fn configured(args: &ConfirmArgs) -> Self {
        let merged = args.node.merged();
        let settings = merged
            .as_ref()
            .map_err(|error| chain(error))
            .and_then(|merged| Settings::from_merged(merged).map_err(|error| chain(&error)));
        if let Err(problem) = &settings {
            tracing::warn!(
                "the configuration cannot be used, so defaults are for what it does not say: {problem}"
            );
        }
        let settings = settings.ok();
        let limits = Limits::new(args.after, settings.as_ref(), merged.as_ref().ok());
        // Each counts by itself, whatever is wrong with the rest.
        let disk = merged.as_ref().ok().and_then(|merged| settings::Disk::from_merged(merged).ok());
        let configured = merged.as_ref().ok().and_then(|merged| settings::state_dir(merged).ok());
        let (device, layout) = disk.map(|disk| (disk.device, disk.layout)).unwrap_or_default();
        Self {
            disk: args.node.disk.clone().or(device),
            named: args.node.disk.is_some(),
            layout,
            state_dir: args.node.state_dir.clone().or(configured).unwrap_or_else(|| STATE_DIR.into()),
            limits,
        }
    }
}

impl Limits {
    /// From the settings. Where they cannot be had for the sake of another key, these keys count all the same.
    fn new(after: Option<u64>, settings: Option<&Settings>, merged: Option<&Merged>) -> Self {
        let value = |key| merged.and_then(|merged| merged.get(key)).map(|set| &set.value);
        let seconds = || value("health.deadline_s")?.as_integer().and_then(|s| u64::try_from(s).ok());
        let deadline = match settings {
            Some(settings) => settings.health.deadline,
            None => seconds().filter(|s| (1..=86_400).contains(s)).map_or(DEADLINE, Duration::from_secs),
        };
        let require_server = match settings {
            Some(settings) => settings.health.require_server,
            None => value("health.require_server").and_then(toml::Value::as_bool).unwrap_or(false),
        };
        let after = after.map_or(deadline + MARGIN, Duration::from_secs);
        Self { after, deadline, require_server }
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
    #[error("the root of the running system is in no slot of any disk")]
    NoRoot,
    #[error("the guard itself failed in looking at the slots; please report it with the lines above")]
    Panicked,
}

/// The running system, as far as the guard looks at it.
struct Here<'a, F> {
    /// `/`
    root: &'a Path,
    /// The slot that runs, where it is said.
    booted: Option<Slot>,
    /// Finds the disk of the running slot.
    find: F,
}

/// A disk, and the names of its partitions.
type Whereabouts = (PathBuf, SlotLayout);

/// A slot, and what the table says of it and of the other one.
type Seen = (Slot, Attributes, Attributes);

impl<F: Fn(&SlotLayout) -> Result<PathBuf, DiscoveryError>> Here<'_, F> {
    /// The slot that runs. `found` keeps what was looked for.
    ///
    /// A release that names a wrong disk, or partitions that are not there, is the very case that nobody else would end:
    /// its engine cannot start. So where the configured disk is not the running one, the running one is looked for, by
    /// the configured names of partitions and by the usual ones, and counts only if the root is on it.
    fn look(&self, places: &Places, found: &mut Option<Whereabouts>) -> Result<Seen, LookError> {
        let known = found.take();
        let mut error = None;
        if let Some(device) = &places.disk {
            match self.of(device, &places.layout) {
                Ok((seen, _)) => return Ok(seen),
                Err(problem) if places.named => return Err(problem),
                Err(problem) => error = Some(problem),
            }
        }
        let usual = SlotLayout::default();
        let other_names = (places.layout != usual).then_some(&usual);
        let search = |layout: &SlotLayout| (self.find)(layout).map(|device| (device, layout.clone()));
        let configured = places.disk.iter().zip(other_names).map(|(d, names)| Ok((d.clone(), names.clone())));
        let candidates = known.clone().map(Ok).into_iter();
        let candidates = candidates.chain(std::iter::once_with(|| search(&places.layout)));
        let candidates = candidates.chain(configured).chain(other_names.into_iter().map(search));
        for candidate in candidates {
            let looked = candidate.map_err(LookError::from).and_then(|candidate| {
                let (seen, is_here) = self.of(&candidate.0, &candidate.1)?;
                // With nothing configured but the names, the search by them is what is asked for.
                let is_asked_for = places.disk.is_none() && candidate.1 == places.layout;
                Ok((is_here || is_asked_for).then_some((candidate, seen)))
            });
            match looked {
                Ok(Some((candidate, seen))) => {
                    if let (None, Some(problem)) = (&known, &error) {
                        let (other, problem) = (candidate.0.display(), chain(problem));
                        tracing::warn!(
                            "the [disk] of the configuration cannot be used, the slots of {other} are looked at \
                             instead: {problem}"
                        );
                    }
                    *found = Some(candidate);
                    return Ok(seen);
                }
                Ok(None) => {}
                Err(problem) => error = error.or(Some(problem)),
            }
        }
        Err(error.unwrap_or(LookError::NoRoot))
    }

    /// What a disk says, and whether the root of the running system is in one of its slots.
    fn of(&self, device: &Path, layout: &SlotLayout) -> Result<(Seen, bool), LookError> {
        let disk = Slots::new(Arc::new(device.to_owned()), layout.clone()).look()?;
        let of_root = |name: &Root| name.place(&disk, &self.root.join("sys"));
        let slot = self.booted.map_or_else(|| boot::slot(self.root, of_root), Ok)?;
        let command_line = std::fs::read_to_string(self.root.join("proc/cmdline")).unwrap_or_default();
        let is_here = Root::of(&command_line, &self.root.join("dev"))
            .is_some_and(|root| matches!(of_root(&root), Place::Slot(_)));
        Ok(((slot, disk.attributes(slot), disk.attributes(slot.other())), is_here))
    }
}

/// Time since the boot, as far as it has passed before now.
fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default()
}

/// Waits for the running slot to be confirmed. [`Exit::Failed`] says that the machine is to be rebooted, and nothing
/// else ends so.
#[must_use]
pub fn run(args: &ConfirmArgs, json: bool) -> Exit {
    blameless(|| watch_over(args, json))
}

/// A mistake of the guard's own proves nothing against the release: it ends the guard, and reboots nothing.
fn blameless(guard: impl FnOnce() -> Exit) -> Exit {
    caught(guard).unwrap_or_else(|| {
        tracing::error!("nothing is done, as the guard itself failed; please report it with the lines above");
        Exit::Done
    })
}

/// What a part of the guard's work gives, nothing where it panicked. A mistake in code that the engine shares would end
/// both of them, so it costs the guard no more than that part.
fn caught<T>(part: impl FnOnce() -> T) -> Option<T> {
    // What is borrowed is places and paths, whole at every moment.
    std::panic::catch_unwind(AssertUnwindSafe(part)).ok()
}

fn watch_over(args: &ConfirmArgs, json: bool) -> Exit {
    let here = Here { root: Path::new("/"), booted: args.slot.booted, find: discovery::find };
    // From here on a clock that stands while the machine sleeps, as the engine's does.
    let (before, started) = (uptime(), Instant::now());
    let (mut places, mut found, mut told) = (Places::new(args), None, String::new());
    let mut watch = Watch { gone: Some(Duration::ZERO), ..Watch::default() };
    loop {
        let elapsed = before + started.elapsed();
        let engine_runs = StateFolder::view(&places.state_dir).has_engine();
        watch.look(elapsed, engine_runs);
        let looked = caught(|| here.look(&places, &mut found)).unwrap_or(Err(LookError::Panicked));
        let facts = Facts {
            slots: looked.as_ref().ok().map(|(_, running, other)| (*running, *other)),
            elapsed,
            engine_since: watch.first,
            engine_runs,
            engine_gone: watch.gone_for(elapsed),
            paused: Path::new(NO_GUARD).exists(),
        };
        let decision = decide(&facts, &places.limits);
        let problem = looked.as_ref().err().map(|error| chain(error)).unwrap_or_default();
        if decision == Decision::GoBack {
            // It was read at the beginning of the boot, perhaps before all of it was there, or was mended since.
            let now = Places::new(args);
            if now != places {
                if now.state_dir != places.state_dir {
                    watch = Watch { gone: Some(elapsed), ..Watch::default() };
                }
                (places, found) = (now, None);
                continue;
            }
        }
        if decision != Decision::Wait {
            return end(json, decision, looked.ok().map(|(slot, ..)| slot), &problem);
        }
        if told != problem && !problem.is_empty() {
            tracing::warn!("the slots cannot be read yet: {problem}");
        }
        told = problem;
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Says what came of it.
fn end(json: bool, decision: Decision, slot: Option<Slot>, problem: &str) -> Exit {
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
    // Its output may be lost (no journal, a full disk); that must not look like a release that failed.
    let (mut data, mut log) = (std::io::stdout(), std::io::stderr());
    let _ = match (json, exit) {
        (true, _) => {
            let confirmed = decision == Decision::Confirmed;
            let document = json!({ "schema": 1, "slot": slot, "confirmed": confirmed, "reason": text });
            writeln!(data, "{document}")
        }
        (false, Exit::Done) => writeln!(data, "{text}"),
        (false, _) => Ok(()),
    };
    if exit != Exit::Done {
        let _ = writeln!(log, "update-engine: {text}");
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

    /// Slots, seconds since the boot, when the engine was first seen, whether it is at work, for how long it has not been.
    fn facts(
        slots: Option<(Attributes, Attributes)>,
        elapsed: u64,
        engine_since: Option<u64>,
        engine_runs: bool,
        gone: u64,
    ) -> Facts {
        Facts {
            slots,
            elapsed: s(elapsed),
            engine_since: engine_since.map(s),
            engine_runs,
            engine_gone: s(gone),
            paused: false,
        }
    }

    #[test]
    fn it_goes_back_only_late_unconfirmed_and_with_a_fallback() {
        let limits = Limits { after: s(600), deadline: s(300), require_server: false };
        let (good, tried, bad) = (good(), tried(), Attributes::default());
        for (slots, elapsed, engine_since, engine_runs, gone, expected) in [
            (Some((good, good)), 1, None, false, 1, Decision::Confirmed),
            (Some((good, good)), 9999, None, false, 9999, Decision::Confirmed),
            (Some((good, bad)), 9999, None, false, 9999, Decision::Confirmed),
            (Some((tried, good)), 0, None, false, 0, Decision::Wait),
            (Some((tried, good)), 599, None, false, 599, Decision::Wait),
            (Some((tried, good)), 600, None, false, 600, Decision::GoBack),
            // Condemned while it runs.
            (Some((bad, good)), 600, None, false, 600, Decision::GoBack),
            (Some((tried, bad)), 1, None, false, 1, Decision::NoFallback),
            (Some((tried, bad)), 9999, None, false, 9999, Decision::NoFallback),
            // The engine came late: it has its own time.
            (Some((tried, good)), 700, Some(500), true, 0, Decision::Wait),
            (Some((tried, good)), 1099, Some(500), true, 0, Decision::Wait),
            (Some((tried, good)), 1100, Some(500), true, 0, Decision::GoBack),
            // It came and went: started again, or dead.
            (Some((tried, good)), 700, Some(500), false, 0, Decision::Wait),
            (Some((tried, good)), 700, Some(500), false, 119, Decision::Wait),
            (Some((tried, good)), 700, Some(500), false, 120, Decision::GoBack),
            (None, 0, None, false, 0, Decision::Wait),
            (None, 9999, None, false, 9999, Decision::Unknown),
            (None, 9999, Some(10), true, 0, Decision::Unknown),
        ] {
            let facts = facts(slots, elapsed, engine_since, engine_runs, gone);
            assert_eq!(decide(&facts, &limits), expected, "{facts:?}");
            let paused = decide(&Facts { paused: true, ..facts }, &limits);
            assert_ne!(paused, Decision::GoBack, "{facts:?}");
            assert!(paused == Decision::Wait || paused == expected, "{facts:?}");
        }
    }

    #[test]
    fn an_outage_of_the_server_condemns_nothing() {
        let limits = Limits { after: s(600), deadline: s(300), require_server: true };
        let after_a_day =
            |runs, gone| decide(&facts(Some((tried(), good())), 90_000, Some(20), runs, gone), &limits);
        assert_eq!(after_a_day(true, 0), Decision::Wait);
        assert_eq!(after_a_day(false, 15), Decision::Wait, "it is started again");
        assert_eq!(after_a_day(false, 120), Decision::GoBack, "nobody waits for the server");
    }

    /// For how long the engine counts as gone at the end, looked at every 5 s from 600 s on, after a day's good work.
    fn gone_after(looks: impl IntoIterator<Item = bool>) -> u64 {
        let mut watch = Watch { first: Some(s(20)), steady: Some(s(20)), gone: None };
        let mut now = s(600);
        for runs in looks {
            watch.look(now, runs);
            now += LOOK_EVERY;
        }
        watch.gone_for(now - LOOK_EVERY).as_secs()
    }

    #[test]
    fn an_engine_that_is_started_again_is_not_gone_and_one_that_always_dies_is() {
        assert_eq!(gone_after([true; 100]), 0);
        // 15 s without it, then a minute's work.
        let restart = [false, false, false].into_iter().chain([true; 13]);
        assert_eq!(gone_after(restart.clone()), 0);
        assert_eq!(gone_after(restart.clone().chain([false])), 0, "counted anew");
        assert_eq!(gone_after(restart.cycle().take(1600)), 0, "again and again");
        assert_eq!(gone_after([false; 25]), 120);
        // It comes up for 10 s each time: never back.
        let dying = [true, true, false, false, false].into_iter().cycle();
        assert!(gone_after(dying.take(40)) >= GONE.as_secs());
        let mut watch = Watch { gone: Some(Duration::ZERO), ..Watch::default() };
        watch.look(s(600), false);
        assert_eq!(watch.gone_for(s(600)), s(600), "it never came");
    }

    fn written(text: &str) -> (tempfile::TempDir, ConfirmArgs) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        let args = ConfirmArgs {
            after: None,
            node: NodeOptions { config: Some(path), ..NodeOptions::default() },
            slot: BootedSlot::default(),
        };
        (dir, args)
    }

    #[test]
    fn its_limits_count_even_where_the_rest_of_the_configuration_is_wrong() {
        for (text, deadline, require_server) in [
            ("[health]\ndeadline_s = 1200\nrequire_server = true\n[server]\nurl = 7\n", 1200, true),
            ("[health]\ndeadline_s = 0\n", 300, false),
            ("[health]\ndeadline_s = \"soon\"\n", 300, false),
            ("not TOML", 300, false),
        ] {
            let (_dir, args) = written(text);
            let expected = Limits { after: s(deadline) + MARGIN, deadline: s(deadline), require_server };
            assert_eq!(Places::new(&args).limits, expected, "{text}");
        }
    }

    #[test]
    fn a_mistake_of_its_own_reboots_nothing() {
        assert_eq!(blameless(|| panic!("a mistake")), Exit::Done);
        assert_eq!(blameless(|| Exit::Failed), Exit::Failed);
    }

    #[test]
    fn a_mistake_in_one_part_ends_no_other() {
        assert_eq!(caught(|| panic!("a mistake")), None::<u8>);
        let (_dir, args) = written("");
        assert_eq!(
            Places::by_options(&args),
            Places::new(&args),
            "defaults are the same without a configuration"
        );
        // A panic in looking is no end: the guard waits, and looks again.
        let system = system(1, "root=PARTUUID=@");
        let find = |_: &SlotLayout| -> Result<PathBuf, DiscoveryError> { panic!("a mistake") };
        let here = Here { root: system.path(), booted: None, find };
        let looked = caught(|| here.look(&Places::new(&args), &mut None)).unwrap_or(Err(LookError::Panicked));
        assert!(matches!(looked, Err(LookError::Panicked)), "{looked:?}");
    }

    /// A system whose root is in slot B of a disk made with `seed`.
    fn system(seed: u8, root: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = root.replace("@", &format!("{seed:02x}040000-0000-4000-8000-000000000000"));
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/cmdline"), format!("{root} flipside.slot=B flipside.trying\n"))
            .unwrap();
        dir
    }

    #[test]
    fn a_release_that_names_a_wrong_disk_is_left_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let layout = SlotLayout::default();
        let [own, foreign, junk] = ["own", "foreign", "junk"].map(|name| dir.path().join(name));
        discovery::tests::image(&own, 1, &layout);
        discovery::tests::image(&foreign, 2, &layout);
        std::fs::write(&junk, vec![0; 1 << 20]).unwrap();
        let found_by = |disk: Option<&PathBuf>, named: bool, found: &PathBuf, root: &str| {
            let system = system(1, root);
            let find = |_: &SlotLayout| Ok(found.clone());
            let here = Here { root: system.path(), booted: None, find };
            let (_dir, args) = written("");
            let places = Places { disk: disk.cloned(), named, ..Places::new(&args) };
            let mut kept = None;
            let looked = here.look(&places, &mut kept).map(|(slot, ..)| slot).map_err(|error| chain(&error));
            let again = here.look(&places, &mut kept).map(|(slot, ..)| slot).map_err(|error| chain(&error));
            assert_eq!(looked, again);
            (looked.ok(), kept.map(|(disk, _)| disk))
        };
        let (by_id, unknown) = ("root=PARTUUID=@", "root=LABEL=ROOT");
        assert_eq!(
            found_by(Some(&own), false, &foreign, by_id),
            (Some(Slot::B), None),
            "it is the right one"
        );
        assert_eq!(found_by(None, false, &own, by_id), (Some(Slot::B), Some(own.clone())));
        let missing = dir.path().join("missing");
        for wrong in [&missing, &junk, &foreign] {
            assert_eq!(
                found_by(Some(wrong), false, &own, by_id),
                (Some(Slot::B), Some(own.clone())),
                "{wrong:?}"
            );
            // A person named it.
            assert_eq!(found_by(Some(wrong), true, &own, by_id), (None, None), "{wrong:?}");
        }
        // No foreign disk condemns: the root must be on it.
        assert_eq!(found_by(Some(&missing), false, &foreign, by_id), (None, None));
        assert_eq!(found_by(Some(&missing), false, &own, unknown), (None, None));
    }

    #[test]
    fn a_release_that_names_wrong_partitions_is_left_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [own, foreign] = ["own", "foreign"].map(|name| dir.path().join(name));
        discovery::tests::image(&own, 1, &SlotLayout::default());
        discovery::tests::image(&foreign, 2, &SlotLayout::default());
        let (_config, args) =
            written("[disk]\nroles = [{ role = \"root\", a = \"SYSTEM-A\", b = \"SYSTEM-B\" }]\n");
        let wrong = Places::new(&args);
        assert_ne!(wrong.layout, SlotLayout::default());
        let system = system(1, "root=PARTUUID=@");
        // By the names of the configuration no disk is found.
        let look = |disk: Option<&PathBuf>, named: bool, there: &PathBuf| {
            let find = |layout: &SlotLayout| match *layout == SlotLayout::default() {
                true => Ok(there.clone()),
                false => Err(DiscoveryError::None { wanted: "x".to_owned(), looked_at: "y".to_owned() }),
            };
            let here = Here { root: system.path(), booted: None, find };
            let places = Places { disk: disk.cloned(), named, ..wrong.clone() };
            let mut kept = None;
            let slot = here.look(&places, &mut kept).map(|(slot, ..)| slot);
            (slot.ok(), kept.map(|(disk, _)| disk))
        };
        assert_eq!(look(None, false, &own), (Some(Slot::B), Some(own.clone())));
        assert_eq!(look(Some(&own), false, &foreign), (Some(Slot::B), Some(own.clone())));
        assert_eq!(look(Some(&foreign), false, &own), (Some(Slot::B), Some(own.clone())));
        assert_eq!(look(Some(&foreign), true, &own), (None, None), "a person named it");
        assert_eq!(look(None, false, &foreign), (None, None), "the root is not on it");
        assert_eq!(look(Some(&foreign), false, &foreign), (None, None), "the root is not on it");
    }

    #[test]
    fn so_do_its_disk_and_state_folder() {
        let (dir, args) = written("[disk]\ndevice = \"d\"\n[state]\ndir = \"s\"\n[policy]\ntries = 99\n");
        let places = Places::new(&args);
        assert_eq!(places.disk.as_deref(), Some(&*dir.path().join("d")));
        assert_eq!(places.state_dir, dir.path().join("s"));
    }

    #[test]
    fn a_configuration_that_was_mended_meanwhile_is_another_one() {
        let (_dir, args) = written("[health]\ndeadline_s = 100\n");
        let before = Places::new(&args);
        assert_eq!(Places::new(&args), before, "read twice");
        std::fs::write(args.node.config.as_ref().unwrap(), "[health]\ndeadline_s = 900\n").unwrap();
        assert_ne!(Places::new(&args), before);
    }
}
