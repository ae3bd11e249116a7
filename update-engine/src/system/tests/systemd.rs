//! What systemd says of a boot, as it changes.

use super::{LONG, PrivateBus, nowhere};
use crate::system::units::{BOOT_COMPLETE, Outcome, Units, wait};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use zbus::zvariant::{ObjectPath, OwnedObjectPath};
use zbus::{fdo, interface};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";

/// What a unit is.
#[derive(Clone, Default)]
struct Unit {
    load: &'static str,
    /// The active state at each look, the last one for ever.
    active: Vec<&'static str>,
    job: bool,
    requires: Vec<String>,
    looks: usize,
    /// It is another run at each of this many first looks.
    crashes: usize,
}

#[derive(Default)]
struct State {
    units: HashMap<String, Unit>,
    system: &'static str,
    /// What a start makes of a unit.
    start_makes: Vec<&'static str>,
    started: Vec<String>,
}

type Shared = Arc<Mutex<State>>;

struct Systemd(Shared);

fn path_of(unit: &str) -> OwnedObjectPath {
    let name: String = unit.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    ObjectPath::try_from(format!("{PATH}/unit/{name}")).unwrap().into()
}

type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn load_unit(&self, name: &str) -> OwnedObjectPath {
        path_of(name)
    }

    fn start_unit(&self, name: &str, _mode: &str) -> OwnedObjectPath {
        let mut state = self.0.lock().unwrap();
        state.started.push(name.to_owned());
        let active = state.start_makes.clone();
        if let Some(unit) = state.units.get_mut(name) {
            (unit.active, unit.looks) = (active, 0);
        }
        path_of("job")
    }

    fn list_units_filtered(&self, _states: Vec<String>) -> Vec<Listed> {
        Vec::new()
    }

    #[zbus(property)]
    fn system_state(&self) -> &str {
        self.0.lock().unwrap().system
    }
}

struct OneUnit(Shared, String);

impl OneUnit {
    fn unit(&self) -> Unit {
        self.0.lock().unwrap().units[&self.1].clone()
    }
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl OneUnit {
    #[zbus(property)]
    fn load_state(&self) -> &str {
        self.unit().load
    }

    #[zbus(property)]
    fn active_state(&self) -> &str {
        let mut state = self.0.lock().unwrap();
        let unit = state.units.get_mut(&self.1).unwrap();
        unit.looks += 1;
        unit.active[(unit.looks - 1).min(unit.active.len() - 1)]
    }

    #[zbus(property)]
    fn sub_state(&self) -> &str {
        "sub"
    }

    #[zbus(property)]
    fn job(&self) -> (u32, OwnedObjectPath) {
        (u32::from(self.unit().job), path_of("job"))
    }

    #[zbus(property, name = "InvocationID")]
    fn invocation_id(&self) -> Vec<u8> {
        let unit = self.unit();
        vec![u8::try_from(unit.looks.min(unit.crashes)).unwrap(); 16]
    }

    #[zbus(property)]
    fn requires(&self) -> Vec<String> {
        self.unit().requires
    }
}

struct OneService;

#[interface(name = "org.freedesktop.systemd1.Service")]
impl OneService {
    #[zbus(property)]
    fn result(&self) -> &str {
        "exit-code"
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> fdo::Result<i32> {
        Ok(17)
    }
}

fn unit(active: &[&'static str]) -> Unit {
    Unit { load: "loaded", active: active.to_vec(), ..Unit::default() }
}

fn needs(mut unit: Unit, name: &str) -> Unit {
    unit.requires.push(name.to_owned());
    unit
}

/// A systemd with these units.
async fn systemd(private: &PrivateBus, units: &[(&str, Unit)]) -> (Shared, zbus::Connection) {
    let state = Shared::default();
    state.lock().unwrap().system = "starting";
    let mut builder = private.serve().serve_at(PATH, Systemd(state.clone())).unwrap();
    for (name, unit) in units {
        state.lock().unwrap().units.insert((*name).to_owned(), unit.clone());
        builder = builder.serve_at(path_of(name), OneUnit(state.clone(), (*name).to_owned())).unwrap();
        if name.ends_with(".service") {
            builder = builder.serve_at(path_of(name), OneService).unwrap();
        }
    }
    (state, builder.name(NAME).unwrap().build().await.unwrap())
}

async fn judged(private: &PrivateBus, required: &[&str], time: Duration) -> Outcome {
    settled(private, required, time, Duration::ZERO).await
}

async fn settled(private: &PrivateBus, required: &[&str], time: Duration, settle: Duration) -> Outcome {
    let units = Units {
        // The first one is not there: the second serves.
        buses: vec![nowhere(), private.bus(LONG)],
        boot_complete: true,
        required: required.iter().map(|name| (*name).to_owned()).collect(),
        settle,
    };
    wait(&units, Instant::now() + time).await
}

fn failure(outcome: Outcome) -> machine::Evidence {
    match outcome {
        Outcome::Failed(evidence) => evidence,
        other => panic!("expected a failure, found {other:?}"),
    }
}

#[tokio::test]
async fn a_slow_boot_is_waited_for() {
    let private = PrivateBus::start();
    let slow = [
        (BOOT_COMPLETE, Unit { job: true, ..unit(&["inactive", "inactive", "active"]) }),
        // Restart=on-failure.
        ("web.service", unit(&["activating", "activating", "active"])),
    ];
    let (state, _systemd) = systemd(&private, &slow).await;
    assert_eq!(judged(&private, &["web.service"], LONG).await, Outcome::Good);
    assert_eq!(state.lock().unwrap().started, [""; 0]);
}

#[tokio::test]
async fn a_unit_that_crashes_and_is_started_again_is_not_good() {
    let private = PrivateBus::start();
    // `Type=simple` with `Restart=always`: active at each look, and never `failed`.
    let units = [
        (BOOT_COMPLETE, unit(&["active"])),
        ("web.service", Unit { crashes: 200, ..unit(&["active"]) }),
        ("db.service", unit(&["active"])),
    ];
    let _systemd = systemd(&private, &units).await;
    let both = ["web.service", "db.service"];
    let evidence = failure(settled(&private, &both, Duration::from_secs(3), Duration::from_millis(1)).await);
    assert!(
        evidence.summary.contains("a required unit does not stay up (health.settle_s): web.service: active"),
        "{evidence:?}"
    );
    assert!(!evidence.summary.contains("db.service"), "{evidence:?}");
}

#[tokio::test]
async fn a_unit_that_stays_up_after_a_crash_is_good_once_it_has_settled() {
    let private = PrivateBus::start();
    let units =
        [(BOOT_COMPLETE, unit(&["active"])), ("web.service", Unit { crashes: 2, ..unit(&["active"]) })];
    let (state, _systemd) = systemd(&private, &units).await;
    assert_eq!(settled(&private, &["web.service"], LONG, Duration::from_millis(1500)).await, Outcome::Good);
    let looks = state.lock().unwrap().units["web.service"].looks;
    assert!(looks >= 4, "two runs, then two looks at the same one: found {looks}");
    // Good at the deadline, but not for long enough.
    let evidence = failure(settled(&private, &["web.service"], Duration::from_millis(100), LONG).await);
    assert!(evidence.summary.contains("health.settle_s"), "{evidence:?}");
}

#[tokio::test]
async fn a_required_unit_that_failed_ends_the_waiting_with_evidence() {
    let private = PrivateBus::start();
    let units = [(BOOT_COMPLETE, unit(&["active"])), ("web.service", unit(&["activating", "failed"]))];
    let _systemd = systemd(&private, &units).await;
    let evidence = failure(judged(&private, &["web.service"], LONG * 60).await);
    assert!(
        evidence.summary.contains("web.service: failed (sub), result exit-code, exit code 17"),
        "{evidence:?}"
    );
    assert!(evidence.log.contains("the system is starting\n"), "{evidence:?}");
}

#[tokio::test]
async fn a_failure_of_a_moment_is_none() {
    let private = PrivateBus::start();
    let units =
        [(BOOT_COMPLETE, unit(&["active"])), ("web.service", unit(&["failed", "activating", "active"]))];
    let _systemd = systemd(&private, &units).await;
    assert_eq!(judged(&private, &["web.service"], LONG).await, Outcome::Good);
}

#[tokio::test]
async fn a_target_whose_dependency_failed_is_not_started_again() {
    let private = PrivateBus::start();
    let units =
        [(BOOT_COMPLETE, needs(unit(&["inactive"]), "db.service")), ("db.service", unit(&["failed"]))];
    let (state, _systemd) = systemd(&private, &units).await;
    let evidence = failure(judged(&private, &[], LONG * 60).await);
    assert!(
        evidence.summary.starts_with("boot-complete.target is not reached: needs db.service: failed"),
        "{evidence:?}"
    );
    assert_eq!(state.lock().unwrap().started, [""; 0]);
}

#[tokio::test]
async fn a_dependency_that_systemd_starts_again_is_waited_for() {
    let private = PrivateBus::start();
    let restarted = unit(&["activating", "activating", "active"]);
    let units = [(BOOT_COMPLETE, needs(unit(&["inactive"]), "db.service")), ("db.service", restarted)];
    let (state, _systemd) = systemd(&private, &units).await;
    state.lock().unwrap().start_makes = vec!["active"];
    assert_eq!(judged(&private, &[], LONG).await, Outcome::Good);
    assert_eq!(state.lock().unwrap().started, [BOOT_COMPLETE]);
}

#[tokio::test]
async fn a_target_that_nothing_started_is_started_a_few_times() {
    let private = PrivateBus::start();
    let units = [(BOOT_COMPLETE, unit(&["inactive"]))];
    let (state, _systemd) = systemd(&private, &units).await;
    state.lock().unwrap().start_makes = vec!["active"];
    assert_eq!(judged(&private, &[], LONG).await, Outcome::Good);
    assert_eq!(state.lock().unwrap().started, [BOOT_COMPLETE]);

    let private = PrivateBus::start();
    let (state, _systemd) = systemd(&private, &units).await;
    state.lock().unwrap().start_makes = vec!["inactive"];
    let evidence = failure(judged(&private, &[], LONG * 60).await);
    assert!(evidence.summary.contains("boot-complete.target: inactive"), "{evidence:?}");
    assert_eq!(state.lock().unwrap().started, [BOOT_COMPLETE; 3]);
}

#[tokio::test]
async fn the_deadline_ends_the_waiting() {
    let private = PrivateBus::start();
    let units =
        [(BOOT_COMPLETE, Unit { job: true, ..unit(&["inactive"]) }), ("web.service", unit(&["inactive"]))];
    let (state, _systemd) = systemd(&private, &units).await;
    let short = Duration::from_millis(1500);
    let evidence = failure(judged(&private, &["web.service"], short).await);
    assert!(
        evidence.summary.contains("health.deadline_s") && evidence.summary.contains("not reached yet"),
        "{evidence:?}"
    );
    assert!(evidence.log.contains("web.service: inactive"), "{evidence:?}");
    state.lock().unwrap().system = "stopping";
    assert_eq!(judged(&private, &["web.service"], short).await, Outcome::Stopping);
    drop(private);
    let nobody = Units { buses: vec![nowhere()], boot_complete: true, required: Vec::new(), settle: LONG };
    let evidence = failure(wait(&nobody, Instant::now() + short).await);
    assert!(evidence.summary.contains("systemd cannot be asked: cannot connect to D-Bus"), "{evidence:?}");
}
