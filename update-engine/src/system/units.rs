//! Step 12, confirm: what systemd says of this boot: whether `boot-complete.target` is reached and the required units
//! run.
//!
//! Two kinds of answers end the waiting before the deadline: all is well, or something has failed for good. A service is
//! active from the moment it was forked, one that crashes at once included: the required units must stay so, in one and
//! the same run, for the settle time. A unit that systemd starts again (`Restart=`) is `activating` until systemd gives it up, and one that is `failed` counts only
//! when it is still so a second later with no job to start it.

use super::bus::{Bus, BusError, Connection, Peer, Properties, text};
use super::evidence;
use crate::error::chain;
use machine::Evidence;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use zbus::zvariant::OwnedObjectPath;

/// The target that stands for a finished boot.
pub const BOOT_COMPLETE: &str = "boot-complete.target";

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: Peer<'static> =
    Peer { name: NAME, path: "/org/freedesktop/systemd1", interface: "org.freedesktop.systemd1.Manager" };
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// How often systemd is asked.
const POLL: Duration = Duration::from_secs(1);
/// How often the target is started where nothing else does, before that counts as a failure.
const STARTS_MAX: u32 = 3;
/// Lines of the journal that are kept of each unit.
const JOURNAL_LINES: u32 = 30;
/// Units whose states and journals are kept.
const UNITS_MAX: usize = 8;

/// Whether systemd runs this system, as `sd_booted` tells. `root` is `/`.
#[must_use]
pub fn systemd_runs(root: &Path) -> bool {
    root.join("run/systemd/system").is_dir()
}

/// What a boot must have brought.
#[derive(Clone, Debug)]
pub struct Units {
    /// Where systemd is asked, the first that answers.
    pub buses: Vec<Bus>,
    /// `boot-complete.target` is waited for.
    pub boot_complete: bool,
    /// The units that must be active.
    pub required: Vec<String>,
    /// How long they must be so without a restart. It counts within the deadline.
    pub settle: Duration,
}

impl Units {
    /// Asks systemd over the system bus, and by its own socket where there is no bus.
    #[must_use]
    pub fn of_this_system(boot_complete: bool, required: Vec<String>, settle: Duration) -> Self {
        let private = "unix:path=/run/systemd/private".to_owned();
        let buses = vec![Bus::system(), Bus::direct(private, super::bus::TIMEOUT)];
        Self { buses, boot_complete, required, settle }
    }
}

/// A unit as systemd sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// Its name.
    pub name: String,
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `inactive`, `activating`, `failed`, …
    pub active: String,
    /// The finer state.
    pub sub: String,
    /// Of a service: `success`, `exit-code`, `timeout`, …
    pub result: String,
    /// Of a service: the exit code of its main process.
    pub exit_status: i32,
    /// A job to start or stop it waits or runs.
    pub job: bool,
    /// What it needs to be started.
    pub needs: Vec<String>,
    /// Its `InvocationID`: another one with each start.
    pub invocation: Vec<u8>,
    /// Of a service: how often systemd has started it again by itself.
    pub restarts: u32,
}

impl UnitState {
    fn failed(&self) -> bool {
        self.active == "failed" && !self.job
    }

    fn line(&self) -> String {
        let mut line = format!("{}: {} ({})", self.name, self.active, self.sub);
        if self.load != "loaded" {
            line.push_str(&format!(", {}", self.load));
        }
        if !self.result.is_empty() && self.result != "success" {
            line.push_str(&format!(", result {}, exit code {}", self.result, self.exit_status));
        }
        if self.restarts > 0 {
            line.push_str(&format!(", started again {} times", self.restarts));
        }
        if self.job {
            line.push_str(", a job is under way");
        }
        line
    }
}

/// What was seen at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `boot-complete.target`, where it is asked for.
    pub target: Option<UnitState>,
    /// The units that the target needs.
    pub needed: Vec<UnitState>,
    /// The units that must be active.
    pub required: Vec<UnitState>,
    /// How often the engine had the target started, as nothing else did.
    pub starts: u32,
    /// `starting`, `running`, `degraded`, `stopping`, …
    pub system: String,
}

/// What follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it must be.
    Good,
    /// Not yet, in a line.
    Wait(String),
    /// Nothing has the target started: have it started.
    Start,
    /// It will not get better, in a line; these units are to blame.
    Failed(String, BTreeSet<String>),
    /// The system is on its way down.
    Stopping,
}

/// Judges what was seen.
#[must_use]
pub fn judge(seen: &Seen) -> Verdict {
    if seen.system == "stopping" {
        return Verdict::Stopping;
    }
    let blame = |states: Vec<&UnitState>| states.into_iter().map(|state| state.name.clone()).collect();
    let failed: Vec<_> = seen.required.iter().filter(|state| state.failed()).collect();
    if !failed.is_empty() {
        let lines: Vec<_> = failed.iter().map(|state| state.line()).collect();
        return Verdict::Failed(format!("a required unit failed: {}", lines.join("; ")), blame(failed));
    }
    match seen.target.as_ref().map_or(Verdict::Good, |target| judge_target(target, seen)) {
        Verdict::Good => {}
        verdict => return verdict,
    }
    match seen.required.iter().find(|state| state.active != "active") {
        None => Verdict::Good,
        Some(state) => Verdict::Wait(format!("a required unit is not active: {}", state.line())),
    }
}

fn judge_target(target: &UnitState, seen: &Seen) -> Verdict {
    if target.active == "active" || matches!(target.load.as_str(), "not-found" | "masked") {
        return Verdict::Good;
    }
    if target.job {
        return Verdict::Wait(format!("{BOOT_COMPLETE} is not reached yet"));
    }
    let failed: Vec<_> = seen.needed.iter().filter(|state| state.failed()).collect();
    if !failed.is_empty() {
        let names = failed.iter().map(|state| state.name.clone()).collect();
        let lines: Vec<_> = failed.iter().map(|state| state.line()).collect();
        return Verdict::Failed(format!("{BOOT_COMPLETE} is not reached: needs {}", lines.join("; ")), names);
    }
    // A first failure ends the target's job, even where systemd starts the unit again by itself.
    let on_its_way = |state: &&UnitState| state.job || !matches!(&*state.active, "active" | "inactive");
    if let Some(state) = seen.needed.iter().find(on_its_way) {
        return Verdict::Wait(format!("{BOOT_COMPLETE} needs {}", state.line()));
    }
    if seen.starts < STARTS_MAX {
        return Verdict::Start;
    }
    Verdict::Failed(format!("{BOOT_COMPLETE} is not reached: {}", target.line()), BTreeSet::new())
}

/// The runs of the required units that are watched for the settle time.
#[derive(Debug, Default)]
struct Settling {
    /// Since when they are the same; `None` while not all is well.
    since: Option<Instant>,
    /// Name, `InvocationID` and `NRestarts` of each, as they were last seen.
    runs: Vec<(String, Vec<u8>, u32)>,
    /// The units that were seen in more than one run.
    restarted: BTreeSet<String>,
}

impl Settling {
    /// All is well at this moment. Whether it has been so in the same runs for the settle time.
    fn is_settled(&mut self, required: &[UnitState], settle: Duration, now: Instant) -> bool {
        self.note(required);
        now >= *self.since.get_or_insert(now) + settle
    }

    /// Something is amiss at this moment: the time begins anew.
    fn amiss(&mut self, required: &[UnitState]) {
        self.note(required);
        self.since = None;
    }

    fn note(&mut self, required: &[UnitState]) {
        let run = |unit: &UnitState| (unit.name.clone(), unit.invocation.clone(), unit.restarts);
        let runs: Vec<_> = required.iter().map(run).collect();
        for (before, after) in self.runs.iter().zip(&runs) {
            if before != after {
                self.since = None;
                // One that was not running before was merely started.
                if !before.1.is_empty() {
                    self.restarted.insert(after.0.clone());
                }
            }
        }
        self.runs = runs;
    }
}

/// What came of waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for is there.
    Good,
    /// It failed, or was not there at the deadline.
    Failed(Evidence),
    /// It cannot be judged: the system is going down.
    Stopping,
}

/// Waits until everything asked for is there, something failed for good, or the deadline.
pub async fn wait(units: &Units, deadline: Instant) -> Outcome {
    let mut watch =
        Watch { units, starts: 0, suspect: None, settling: Settling::default(), told: String::new() };
    loop {
        let last = match watch.look(deadline).await {
            Ok(Some(outcome)) => return outcome,
            Ok(None) => watch.told.clone(),
            Err(error) => {
                let told = format!("systemd cannot be asked: {}", chain(&error));
                if told != watch.told {
                    tracing::warn!("{told}");
                    watch.told.clone_from(&told);
                }
                told
            }
        };
        if Instant::now() >= deadline {
            let summary = format!("not there at the deadline (health.deadline_s): {last}");
            let restarted = watch.settling.restarted.clone();
            return Outcome::Failed(watch.evidence(summary, restarted).await);
        }
        sleep_until(deadline.min(Instant::now() + POLL)).await;
    }
}

struct Watch<'a> {
    units: &'a Units,
    /// How often the target was started by us.
    starts: u32,
    /// What failed at the last look: it counts if it still does at the next.
    suspect: Option<BTreeSet<String>>,
    settling: Settling,
    /// What was logged last.
    told: String,
}

impl Watch<'_> {
    /// One look; `None` to wait on.
    async fn look(&mut self, deadline: Instant) -> Result<Option<Outcome>, BusError> {
        let connection = self.connect().await?;
        let seen = see(&connection, self.units, self.starts).await?;
        let verdict = judge(&seen);
        let before = self.suspect.take();
        if verdict == Verdict::Good {
            return Ok(self.settle(&seen.required));
        }
        self.settling.amiss(&seen.required);
        match verdict {
            Verdict::Good => {}
            Verdict::Stopping => return Ok(Some(Outcome::Stopping)),
            Verdict::Wait(why) => self.tell(why),
            Verdict::Start => {
                tracing::info!("nothing has {BOOT_COMPLETE} started: the engine does");
                let body = (BOOT_COMPLETE, "replace");
                let _: OwnedObjectPath = connection.call(MANAGER, "StartUnit", &body).await?;
                self.starts += 1;
            }
            Verdict::Failed(why, names) => {
                if before.as_ref() == Some(&names) || Instant::now() >= deadline {
                    return Ok(Some(Outcome::Failed(self.evidence(why, names).await)));
                }
                self.tell(why);
                self.suspect = Some(names);
            }
        }
        Ok(None)
    }

    /// All is well: whether that has lasted.
    fn settle(&mut self, required: &[UnitState]) -> Option<Outcome> {
        // Nothing but the target is asked for, and that one does not crash.
        if required.is_empty() || self.settling.is_settled(required, self.units.settle, Instant::now()) {
            return Some(Outcome::Good);
        }
        let seconds = self.units.settle.as_secs_f32();
        let mut why = format!("the required units do not run for {seconds} s yet (health.settle_s)");
        if !self.settling.restarted.is_empty() {
            let again = |unit: &&UnitState| self.settling.restarted.contains(&unit.name);
            let lines: Vec<_> = required.iter().filter(again).map(UnitState::line).collect();
            why = format!("a required unit does not stay up (health.settle_s): {}", lines.join("; "));
        }
        self.tell(why);
        None
    }

    fn tell(&mut self, why: String) {
        if self.told != why {
            tracing::info!("health: {why}");
            self.told = why;
        }
    }

    async fn connect(&self) -> Result<Connection, BusError> {
        let mut first = None;
        for bus in &self.units.buses {
            match bus.connect().await {
                Ok(connection) => return Ok(connection),
                Err(error) => first = first.or(Some(error)),
            }
        }
        let nowhere = || BusError::Late { what: "nobody".to_owned(), after: Duration::ZERO };
        Err(first.unwrap_or_else(nowhere))
    }

    /// The states of the units that matter and the ends of their journals. Bounded in time and length.
    async fn evidence(&self, summary: String, mut names: BTreeSet<String>) -> Evidence {
        let mut log = String::new();
        if let Ok(connection) = self.connect().await {
            names.extend(failed_units(&connection).await);
            if let Ok(seen) = see(&connection, self.units, self.starts).await {
                log.push_str(&format!("the system is {}\n", seen.system));
                for state in seen.required.iter().chain(&seen.target) {
                    log.push_str(&format!("{}\n", state.line()));
                    if state.active != "active" && state.name != BOOT_COMPLETE {
                        names.insert(state.name.clone());
                    }
                }
            }
            for name in names.iter().take(UNITS_MAX) {
                if let Ok(state) = state_of(&connection, name).await {
                    log.push_str(&format!("{}\n", state.line()));
                }
            }
        }
        for name in names.iter().take(UNITS_MAX) {
            log.push_str(&evidence::journal_of_unit(name, JOURNAL_LINES).await);
        }
        Evidence { summary, log: evidence::bounded(&log) }
    }
}

async fn see(connection: &Connection, units: &Units, starts: u32) -> Result<Seen, BusError> {
    let mut seen =
        Seen { starts, system: text(&manager(connection).await?, "SystemState"), ..Seen::default() };
    if units.boot_complete {
        let target = state_of(connection, BOOT_COMPLETE).await?;
        if target.active != "active" {
            for name in &target.needs {
                seen.needed.push(state_of(connection, name).await?);
            }
        }
        seen.target = Some(target);
    }
    for name in &units.required {
        seen.required.push(state_of(connection, name).await?);
    }
    Ok(seen)
}

async fn manager(connection: &Connection) -> Result<Properties, BusError> {
    connection.properties(MANAGER).await
}

/// The state of a unit, loaded if need be. One that does not exist is `not-found`.
async fn state_of(connection: &Connection, name: &str) -> Result<UnitState, BusError> {
    let path: OwnedObjectPath = connection.call(MANAGER, "LoadUnit", &(name,)).await?;
    let unit = Peer { name: NAME, path: path.as_str(), interface: UNIT };
    let of_unit = connection.properties(unit).await?;
    let of_service = if name.ends_with(".service") {
        connection.properties(Peer { interface: SERVICE, ..unit }).await?
    } else {
        Properties::new()
    };
    let list = |name: &str| -> Vec<String> {
        let value = of_unit.get(name).and_then(|value| value.try_clone().ok());
        value.and_then(|value| value.try_into().ok()).unwrap_or_default()
    };
    let job = of_unit.get("Job").and_then(|value| value.try_clone().ok());
    let job: Option<(u32, OwnedObjectPath)> = job.and_then(|value| value.try_into().ok());
    Ok(UnitState {
        name: name.to_owned(),
        load: text(&of_unit, "LoadState"),
        active: text(&of_unit, "ActiveState"),
        sub: text(&of_unit, "SubState"),
        result: text(&of_service, "Result"),
        exit_status: of_service
            .get("ExecMainStatus")
            .and_then(|value| value.downcast_ref::<i32>().ok())
            .unwrap_or_default(),
        job: job.is_some_and(|(id, _)| id != 0),
        invocation: of_unit
            .get("InvocationID")
            .and_then(|value| value.try_clone().ok())
            .and_then(|value| value.try_into().ok())
            .unwrap_or_default(),
        restarts: of_service
            .get("NRestarts")
            .and_then(|value| value.downcast_ref::<u32>().ok())
            .unwrap_or_default(),
        needs: ["Requires", "Requisite", "BindsTo"].into_iter().flat_map(list).collect(),
    })
}

/// The names of the units that have failed, of the whole system.
async fn failed_units(connection: &Connection) -> Vec<String> {
    type Listed =
        Vec<(String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath)>;
    let listed: Result<Listed, _> = connection.call(MANAGER, "ListUnitsFiltered", &(vec!["failed"],)).await;
    listed.map(|units| units.into_iter().map(|unit| unit.0).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, active: &str, job: bool) -> UnitState {
        UnitState {
            name: name.to_owned(),
            load: "loaded".to_owned(),
            active: active.to_owned(),
            sub: "x".to_owned(),
            job,
            ..UnitState::default()
        }
    }

    fn seen(target: (&str, bool), needed: &[(&str, bool)], required: &[(&str, bool)]) -> Seen {
        let units = |list: &[(&str, bool)], name: &str| {
            list.iter().map(|(active, job)| unit(name, active, *job)).collect()
        };
        Seen {
            target: Some(unit(BOOT_COMPLETE, target.0, target.1)),
            needed: units(needed, "needed.service"),
            required: units(required, "required.service"),
            starts: 0,
            system: "starting".to_owned(),
        }
    }

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Good => "good",
            Verdict::Wait(_) => "wait",
            Verdict::Start => "start",
            Verdict::Failed(..) => "failed",
            Verdict::Stopping => "stopping",
        }
    }

    #[test]
    fn the_target_and_the_units_decide() {
        let no: &[(&str, bool)] = &[];
        for (seen, expected) in [
            (seen(("active", false), no, no), "good"),
            (seen(("active", false), no, &[("active", false)]), "good"),
            (seen(("inactive", true), no, no), "wait"),
            // Its dependencies are still being started.
            (seen(("inactive", true), &[("failed", false)], no), "wait"),
            (seen(("inactive", false), &[("failed", false)], no), "failed"),
            // A job will start it again, or systemd itself.
            (seen(("inactive", false), &[("failed", true)], no), "wait"),
            (seen(("inactive", false), &[("activating", false)], no), "wait"),
            (seen(("inactive", false), &[("active", false)], no), "start"),
            (seen(("inactive", false), no, no), "start"),
            // Restart=on-failure: not failed until systemd says so.
            (seen(("active", false), no, &[("activating", false)]), "wait"),
            (seen(("active", false), no, &[("failed", false)]), "failed"),
            (seen(("active", false), no, &[("failed", true)]), "wait"),
            (seen(("inactive", true), no, &[("failed", false)]), "failed"),
            // A one-shot service that has done its work, or one that nothing starts: the deadline tells.
            (seen(("active", false), no, &[("inactive", false)]), "wait"),
            (seen(("active", false), no, &[("active", false), ("inactive", true)]), "wait"),
        ] {
            assert_eq!(word(&judge(&seen)), expected, "{seen:?}");
        }
    }

    #[test]
    fn a_target_that_was_started_in_vain_has_failed() {
        let mut seen = seen(("inactive", false), &[("active", false)], &[]);
        seen.starts = STARTS_MAX;
        assert_eq!(word(&judge(&seen)), "failed");
        seen.system = "stopping".to_owned();
        assert_eq!(judge(&seen), Verdict::Stopping, "an operator's shutdown condemns nothing");
    }

    #[test]
    fn a_systemd_without_the_target_is_not_waited_for() {
        let mut seen = seen(("inactive", false), &[], &[]);
        for load in ["not-found", "masked"] {
            seen.target.as_mut().unwrap().load = load.to_owned();
            assert_eq!(judge(&seen), Verdict::Good);
        }
        seen.target = None;
        assert_eq!(judge(&seen), Verdict::Good, "not asked for");
    }

    #[test]
    fn only_runs_that_last_are_settled() {
        let (start, settle) = (Instant::now(), Duration::from_secs(20));
        let at = |seconds| start + Duration::from_secs(seconds);
        let run = |invocation: u8, restarts| {
            let web =
                UnitState { invocation: vec![invocation], restarts, ..unit("web.service", "active", false) };
            [web, unit("db.service", "active", false)]
        };
        let mut settling = Settling::default();
        assert!(Settling::default().is_settled(&run(1, 0), Duration::ZERO, at(0)), "0: one look is enough");
        for (seconds, invocation, restarts, settled) in [
            (0, 1, 0, false),
            (19, 1, 0, false),
            // Crashed and started again between two looks.
            (20, 2, 1, false),
            (39, 2, 1, false),
            // Systemd counts it, even where the invocation is not told.
            (40, 2, 2, false),
            (59, 2, 2, false),
            (60, 2, 2, true),
        ] {
            assert_eq!(
                settling.is_settled(&run(invocation, restarts), settle, at(seconds)),
                settled,
                "{seconds}"
            );
        }
        settling.amiss(&run(2, 2));
        assert!(!settling.is_settled(&run(2, 2), settle, at(61)), "the time begins anew");
        assert!(settling.is_settled(&run(2, 2), settle, at(81)));
        assert_eq!(settling.restarted, BTreeSet::from(["web.service".to_owned()]));
    }

    #[test]
    fn a_failure_names_the_unit_and_its_exit() {
        let mut seen = seen(("inactive", false), &[("failed", false)], &[]);
        seen.needed[0].result = "exit-code".to_owned();
        seen.needed[0].exit_status = 3;
        let Verdict::Failed(why, names) = judge(&seen) else { panic!("expected a failure") };
        let expected = "boot-complete.target is not reached: needs needed.service: failed (x), result exit-code, exit code 3";
        assert_eq!(why, expected);
        assert_eq!(names, BTreeSet::from(["needed.service".to_owned()]));
    }
}
