//! Step 9, permit, with real engines: a group of three nodes that go one by one, a release that fails on the first of them,
//! and engines that are killed at each word with the lock; against the server's own lock, the same server by FleetLock v1,
//! and etcd.
//!
//! A machine is a disk in a file, and its reboot is the loader's choice, made when its engine has switched the next boot:
//! who has done so is down for the others until its engine confirmed.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::lock::{Document, Phase};
use protocol::slot::Slot;
use protocol::status::{StateName, Status};
use std::time::Duration;
use tests::etcd::{Cluster, Setup as EtcdSetup};
use tests::node::{Node, Setup};
use tests::process::Run;
use tests::small::Small;
use update_engine::config::settings::{Etcd, endpoint};
use update_engine::lock::etcd::EtcdLock;

/// Who keeps the lock.
enum Keeper {
    Server,
    FleetLock,
    Etcd(Box<InEtcd>),
}

struct InEtcd {
    cluster: Cluster,
    lock: EtcdLock,
    runtime: tokio::runtime::Runtime,
}

const GROUP: &str = "default";

impl Keeper {
    fn etcd() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let setup = EtcdSetup { members: 1, election: Duration::from_secs(1), tls: None, wires: false };
        let cluster = runtime.block_on(Cluster::start(setup)).unwrap();
        let endpoints = cluster.endpoints().iter().map(|text| endpoint(text).unwrap()).collect();
        let prefix = "/flipside".to_owned();
        let settings = Etcd { endpoints, ca: None, identity: None, login: None, prefix };
        let lock = EtcdLock::new(&settings, Duration::from_secs(5), Duration::from_secs(30)).unwrap();
        Self::Etcd(Box::new(InEtcd { cluster, lock, runtime }))
    }

    /// The lines of a node's configuration.
    fn config(&self, small: &Small) -> String {
        match self {
            Self::Server => format!("[lock]\ngroup = \"{GROUP}\"\n"),
            Self::FleetLock => format!(
                "[lock]\ngroup = \"{GROUP}\"\nbackend = \"fleetlock\"\nfleetlock.base_url = \"{}\"\n",
                small.world.address()
            ),
            Self::Etcd(etcd) => format!(
                "[lock]\ngroup = \"{GROUP}\"\nbackend = \"etcd\"\netcd.endpoints = {:?}\n",
                etcd.cluster.endpoints()
            ),
        }
    }

    fn document(&self, small: &Small) -> Document {
        match self {
            Self::Server | Self::FleetLock => {
                let said = small.world.updatectl(&["lock", "list", GROUP, "--json"]).unwrap().ok().unwrap();
                let value = said.json().unwrap();
                serde_json::from_value(value["locks"][0]["document"].clone())
                    .unwrap_or_else(|error| panic!("{error}: {value}"))
            }
            Self::Etcd(etcd) => {
                etcd.runtime.block_on(etcd.lock.view(&GROUP.parse().unwrap())).unwrap().document
            }
        }
    }

    /// v1 knows of no failure: a node whose release failed just keeps its permit.
    fn knows_failures(&self) -> bool {
        !matches!(self, Self::FleetLock)
    }
}

/// A machine with its count of boots.
struct Machine<'w> {
    node: Node<'w>,
    boots: u32,
}

impl<'w> Machine<'w> {
    fn new(small: &'w Small, keeper: &Keeper, name: &str) -> Self {
        let health = small.world.folder().join(format!("{name}-health"));
        std::fs::create_dir_all(&health).unwrap();
        let config = format!("{}[health]\ndir = \"{}\"\n", keeper.config(small), health.display());
        let setup = Setup { strategy: "lock", config: &config, ..small.setup() };
        let node = Node::new(&small.world, name, small.world.address(), &setup).unwrap();
        let mut machine = Self { node, boots: 0 };
        machine.count();
        machine
    }

    fn count(&mut self) {
        self.boots += 1;
        self.node.boot_id = Some(format!("boot-{}", self.boots));
    }

    /// One pass of the engine.
    fn pass(&self) -> Run {
        let said = self.node.engine(&[]).unwrap();
        assert!(said.code != Some(2) && said.code.is_some(), "{said}");
        said
    }

    fn status(&self) -> Status {
        self.node.status().unwrap()
    }

    fn version(&self) -> String {
        self.status().booted.unwrap().version.to_string()
    }

    /// The next boot starts the other slot, or this one is not confirmed: it counts as down.
    fn is_down(&self) -> bool {
        let disk = self.node.open_disk().unwrap();
        let (next, _) = disk.select().unwrap();
        next != self.node.booted || !disk.attributes(self.node.booted).successful()
    }

    /// Reboots if its next boot is another slot.
    fn reboot_if_switched(&mut self) -> bool {
        if self.node.open_disk().unwrap().select().unwrap().0 == self.node.booted {
            return false;
        }
        self.node.boot().unwrap();
        self.count();
        true
    }

    /// From now on this version is sick here.
    fn is_sick_of(&self, version: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let name = self.node.config().parent().unwrap().file_name().unwrap().to_owned();
        let mut folder = name.clone();
        folder.push("-health");
        let check = self.node.config().parent().unwrap().with_file_name(folder).join("version");
        std::fs::write(&check, format!("#!/bin/sh\n[ \"$FLIPSIDE_VERSION\" != {version} ]\n")).unwrap();
        std::fs::set_permissions(&check, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

struct Group<'w> {
    small: &'w Small,
    keeper: &'w Keeper,
    machines: Vec<Machine<'w>>,
}

impl<'w> Group<'w> {
    fn new(small: &'w Small, keeper: &'w Keeper) -> Self {
        let machines = ["n1", "n2", "n3"].map(|name| Machine::new(small, keeper, name)).into();
        Self { small, keeper, machines }
    }

    /// One pass of every engine, and the reboots that follow; never is more than one node down, and who is down holds.
    fn round(&mut self) {
        for at in 0..self.machines.len() {
            self.machines[at].pass();
            let down = self.machines.iter().filter(|machine| machine.is_down()).count();
            let holders = self.keeper.document(self.small).holders.len();
            assert!(down <= 1 && holders <= 1, "{down} nodes are down, {holders} hold a permit");
            assert!(down <= holders, "a node is down without a permit");
            self.machines[at].reboot_if_switched();
        }
    }

    fn versions(&self) -> Vec<String> {
        self.machines.iter().map(Machine::version).collect()
    }

    /// Rounds until all run this version, confirmed, and nobody holds.
    fn rolls_to(&mut self, version: &str) {
        for _ in 0..10 {
            self.round();
            let there =
                self.machines.iter().all(|machine| machine.version() == version && !machine.is_down());
            if there && self.keeper.document(self.small).holders.is_empty() {
                return;
            }
        }
        panic!("not all got to {version}: {:?}, {:?}", self.versions(), self.keeper.document(self.small));
    }
}

fn one_by_one_and_a_bad_release_stops_at_the_first(keeper: &Keeper) {
    let small = Small::new().unwrap();
    let mut group = Group::new(&small, keeper);
    group.rolls_to("1.1.0");

    // 1.2.0 is sick everywhere. Whoever gets the permit falls back and keeps it, and nobody else ever reboots.
    small.publish_next("1.2.0", 31).unwrap();
    group.machines.iter().for_each(|machine| machine.is_sick_of("1.2.0"));
    let boots: Vec<u32> = group.machines.iter().map(|machine| machine.boots).collect();
    for _ in 0..4 {
        group.round();
    }
    assert_eq!(group.versions(), ["1.1.0", "1.1.0", "1.1.0"]);
    let now: Vec<u32> = group.machines.iter().map(|machine| machine.boots).collect();
    assert_eq!(now, [boots[0] + 2, boots[1], boots[2]], "there and back on the first, and nowhere else");
    let document = keeper.document(&small);
    assert_eq!(document.holders.len(), 1);
    let first = group.machines[0].status();
    assert_eq!((first.state, first.quarantine.len()), (StateName::RolledBack, 1));
    assert!(first.permit.as_ref().unwrap().contains("1.2.0 failed here"), "{:?}", first.permit);
    let said = group.machines[1].pass().expect_code(4).unwrap();
    if keeper.knows_failures() {
        assert_eq!(document.holders[0].phase, Phase::Failed);
        assert!(document.holders[0].reason.contains("was not confirmed"), "{:?}", document.holders[0].reason);
        assert!(said.stderr.contains("halted: node "), "{said}");
    }
    let waits = group.machines[1].status();
    assert!(waits.reason.starts_with("permit: "), "{}", waits.reason);

    // The repaired one is confirmed on the node that failed, which frees its permit, and then on the others.
    small.publish_next("1.3.0", 32).unwrap();
    group.rolls_to("1.3.0");
    assert!(group.machines.iter().all(|machine| machine.status().permit.is_none()));
}

#[test]
fn with_the_server() {
    one_by_one_and_a_bad_release_stops_at_the_first(&Keeper::Server);
}

#[test]
fn with_fleet_lock_v1() {
    one_by_one_and_a_bad_release_stops_at_the_first(&Keeper::FleetLock);
}

#[test]
fn with_etcd() {
    one_by_one_and_a_bad_release_stops_at_the_first(&Keeper::etcd());
}

/// Before and after each word with the lock, on the way to the flip and after the confirmation.
const POINTS: &[&str] = &["requesting", "requested", "rechecking", "rechecked", "activating", "activated"];

#[test]
fn killed_at_any_word_with_the_lock_an_engine_takes_up_its_attempt_or_gives_it_back() {
    let (small, keeper) = (Small::new().unwrap(), Keeper::Server);
    for point in POINTS {
        let mut machine = Machine::new(&small, &keeper, point);
        for _ in 0..2 {
            let mut engine = machine.node.start_engine(&["--pause-at", point]).unwrap();
            engine.wait_for("paused ").unwrap();
            engine.kill().unwrap();
            engine.wait().unwrap();
            assert!(keeper.document(&small).holders.len() <= 1);
        }
        for _ in 0..3 {
            machine.pass();
            machine.reboot_if_switched();
        }
        assert_eq!((machine.version().as_str(), machine.is_down()), ("1.1.0", false), "killed at {point}");
        let document = keeper.document(&small);
        assert!(document.holders.is_empty() && document.queue.is_empty(), "killed at {point}: {document:?}");
    }
}

#[test]
fn killed_while_it_tells_of_its_confirmation_the_engine_tells_it_again() {
    let (small, keeper) = (Small::new().unwrap(), Keeper::Server);
    for point in ["marked-good", "releasing", "released"] {
        let mut machine = Machine::new(&small, &keeper, point);
        machine.pass();
        assert!(machine.reboot_if_switched());
        let mut engine = machine.node.start_engine(&["--pause-at", point]).unwrap();
        engine.wait_for("paused ").unwrap();
        engine.kill().unwrap();
        engine.wait().unwrap();
        machine.pass();
        assert!(keeper.document(&small).holders.is_empty(), "killed at {point}");
        assert_eq!((machine.node.booted, machine.status().permit), (Slot::B, None));
    }
}

#[test]
fn a_lock_that_is_gone_allows_no_reboot_and_keeps_no_release_from_its_confirmation() {
    let mut small = Small::new().unwrap();
    let keeper = Keeper::etcd();
    {
        let mut machine = Machine::new(&small, &keeper, "n1");
        machine.pass();
        assert!(machine.reboot_if_switched(), "{:?}", machine.status());
        let Keeper::Etcd(etcd) = &keeper else { unreachable!() };
        let cluster = &etcd.cluster;
        cluster.freeze(0).unwrap();
        machine.pass().ok().unwrap();
        assert!(!machine.is_down(), "confirmed without the lock");
        let permit = machine.status().permit.unwrap();
        assert!(permit.contains("until the lock hears that 1.1.0 is confirmed"), "{permit}");
        cluster.thaw(0).unwrap();
        machine.pass();
        assert!(keeper.document(&small).holders.is_empty());
        small.publish_next("1.2.0", 41).unwrap();
        cluster.freeze(0).unwrap();
        let said = machine.pass().expect_code(4).unwrap();
        assert!(said.stderr.contains("the lock cannot be asked"), "{said}");
        assert!(!machine.reboot_if_switched());
        cluster.thaw(0).unwrap();
    }
    small.world.stop_server();
}
