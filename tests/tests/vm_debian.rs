//! A full Debian with systemd, our package installed as an operator installs it, follows an operator's server: it takes
//! good releases by itself, and comes back by itself from releases that only a whole system can spoil.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something fails, its own functions included"
)]

use protocol::slot::Slot;
use protocol::status::{Exit, StateName, Status};
use protocol::wire::{Event, EventKind};
use std::time::{Duration, Instant};
use tests::vm::debian::{DebianSite, node_id};
use tests::vm::machine::Machine;

/// The longest from power, or from a reset, to a confirmed system.
const BOOT: Duration = Duration::from_secs(300);
/// The longest from publishing to the reboot: download, both read-backs, everything emulated.
const STAGE: Duration = Duration::from_secs(300);
/// The longest that a bad release takes from publishing to the old one: with the watchdog's 180 s.
const BACK: Duration = Duration::from_secs(900);
/// How long the configuration has inhibitors respected (`reboot.hold_max_s` in tests/debian-vm.files).
const HOLD: Duration = Duration::from_secs(60);

/// A site and its machine, running 1.0.0; nothing where nobody made the images.
fn running(name: &str, config: &str) -> Option<(DebianSite, Machine)> {
    let Some(site) = DebianSite::new(name, config).unwrap() else {
        assert!(std::env::var_os("FLIPSIDE_TESTS_COMPLETE").is_none_or(|value| value != "yes"));
        eprintln!("not run: FLIPSIDE_DEBIAN_VM is not set; tests/run sets it");
        return None;
    };
    let mut machine = site.machine().unwrap();
    site.report("the disk is made");
    machine.start().unwrap();
    let (boot, _) = machine.wait_confirmed("1.0.0", BOOT).unwrap();
    assert_eq!(boot.slot, "A");
    site.report("1.0.0 runs");
    Some((site, machine))
}

/// What a script in the guest prints; it has to succeed.
fn told(machine: &mut Machine, script: &str) -> String {
    machine.run(script).unwrap().ok().unwrap_or_else(|error| panic!("`{script}`: {error:#}"))
}

/// Asks the server for the newest event of this kind about a version until there is one.
fn reported(site: &DebianSite, machine: &mut Machine, version: &str, kind: EventKind) -> Event {
    let id = node_id(machine).unwrap();
    let limit = Instant::now() + BOOT;
    loop {
        let node = site.node(&id).unwrap();
        let about = |event: &&Event| {
            event.kind == kind && event.version.as_ref().is_some_and(|it| it.as_str() == version)
        };
        if let Some(event) = node.events.iter().find(about) {
            return event.clone();
        }
        assert!(Instant::now() < limit, "the server was not told: {node:?}");
        told(machine, "sleep 1");
    }
}

fn booted(status: &Status) -> (Slot, &str, bool) {
    let booted = status.booted.as_ref().unwrap();
    (booted.slot, booted.version.as_str(), booted.confirmed)
}

/// What an ordinary user may do: look. `rollback` is the administrators'.
fn an_ordinary_user_looks_and_does_not_touch(machine: &mut Machine) {
    let text = told(machine, "runuser -u tester -- updatectl status --json");
    let status: Status = serde_json::from_str(&text).unwrap();
    assert_eq!(booted(&status), (Slot::B, "1.1.0", true));
    let before = told(machine, "updatectl slots --json");
    let refused = machine.run("runuser -u tester -- updatectl rollback").unwrap();
    assert_eq!(refused.code, i32::from(Exit::Refused.code()), "{refused:?}");
    assert!(refused.output.contains("io.flipside.update-engine.rollback"), "{refused:?}");
    assert_eq!(told(machine, "updatectl slots --json"), before, "the slots were changed");
    let version = told(
        machine,
        "busctl --system get-property io.flipside.UpdateEngine1 /io/flipside/UpdateEngine1 \
         io.flipside.UpdateEngine1 BootedVersion",
    );
    assert_eq!(version.trim(), "s \"1.1.0\"");
}

#[test]
fn from_1_0_to_1_2_as_a_service() {
    let Some((site, mut machine)) = running("debian-update", "") else { return };
    let ids = "cat /etc/machine-id /var/lib/update-engine/node-id";
    let id = told(&mut machine, ids);
    told(
        &mut machine,
        "systemd-run --quiet --unit=backup systemd-inhibit --what=shutdown --mode=block --who=backup \
         --why='copies to tape' sleep infinity",
    );

    site.publish("1.1.0").unwrap();
    site.report("1.1.0 published");
    let before = machine
        .wait_status(STAGE, |status| {
            status.state == StateName::Waiting && status.reason.starts_with("inhibitor:")
        })
        .unwrap();
    let held = Instant::now();
    site.report("1.1.0 is held");
    println!("vm before: {}", serde_json::to_string(&before).unwrap());
    assert!(
        before.reason.contains("backup") && before.reason.contains("copies to tape"),
        "{}",
        before.reason
    );
    assert_eq!(booted(&before), (Slot::A, "1.0.0", true));
    let staged = before.staged.as_ref().unwrap();
    assert_eq!((staged.version.as_str(), staged.activated), ("1.1.0", true));
    println!("vm engine: {}", told(&mut machine, "grep -h VmHWM /proc/$(pidof update-engine)/status"));
    machine.wait_console(0, "reboot: Restarting system", HOLD + STAGE).unwrap();
    site.report(&format!("it reboots all the same, {} s later", held.elapsed().as_secs()));

    let (boot, after) = machine.wait_confirmed("1.1.0", BOOT).unwrap();
    site.report("1.1.0 confirmed");
    println!("vm after: {}", serde_json::to_string(&after).unwrap());
    assert_eq!(boot.slot, "B");
    assert_eq!(booted(&after), (Slot::B, "1.1.0", true));
    assert!(after.quarantine.is_empty() && after.error.is_none(), "{after:?}");
    assert_eq!(told(&mut machine, ids), id, "another machine or node");
    assert_eq!(told(&mut machine, "systemctl is-active boot-complete.target").trim(), "active");
    // The hook of the first boot, and its journal, are still there.
    let drained = told(&mut machine, "cat /var/lib/update-engine/app.log");
    assert!(drained.contains("slot=") && drained.contains("version=1.1.0"), "{drained}");
    let journal = told(&mut machine, "journalctl --quiet --boot=-1 --unit=app.service --output=cat");
    assert!(journal.contains("app: serving"), "{journal}");
    an_ordinary_user_looks_and_does_not_touch(&mut machine);

    site.publish("1.2.0").unwrap();
    site.report("1.2.0 published");
    let (boot, after) = machine.wait_confirmed("1.2.0", STAGE + BOOT).unwrap();
    site.report("1.2.0 confirmed");
    assert_eq!(boot.slot, "A");
    assert_eq!(booted(&after), (Slot::A, "1.2.0", true));
    assert_eq!(told(&mut machine, ids), id, "another machine or node");
    reported(&site, &mut machine, "1.2.0", EventKind::Confirmed);
    let state = told(&mut machine, "systemctl --failed --no-legend --plain");
    assert!(state.trim().is_empty(), "units failed: {state}");
}

/// Publishes a bad release, waits for the machine to be back on 1.0.0, and checks what is the same for all of them.
/// Returns what the server was told, and what the console said meanwhile.
fn comes_back(site: &DebianSite, machine: &mut Machine, version: &str) -> (Event, Vec<String>) {
    let from = machine.console.len();
    site.publish(version).unwrap();
    site.report(&format!("{version} published"));
    let boot = loop {
        let boot = machine.wait_boot(BACK).unwrap();
        if boot.version == "1.0.0" {
            break boot;
        }
        assert_eq!((boot.version.as_str(), boot.slot.as_str()), (version, "B"));
        site.report(&format!("{version} boots"));
    };
    site.report("1.0.0 runs again");
    assert_eq!(boot.slot, "A");
    let console: Vec<String> = machine.console.since(from).into_iter().map(|line| line.text).collect();
    assert!(console.iter().any(|line| line.contains("boot-select: chosen: B")), "it was never tried");
    let condemned = |status: &Status| status.quarantine.iter().any(|entry| entry.version.as_str() == version);
    let status = machine.wait_status(BOOT, condemned).unwrap();
    let event = reported(site, machine, version, EventKind::RolledBack);
    println!("vm {version}: {}\nvm evidence:\n{}", event.detail, event.evidence);
    left_alone(machine, &boot.boot_id, &status);
    site.report(&format!("{version} is left alone"));
    (event, console)
}

/// Three checks later nothing was fetched, written, activated or booted.
fn left_alone(machine: &mut Machine, boot_id: &str, before: &Status) {
    let check = |status: &Status| status.last_check.as_ref().map(|check| check.at);
    let mut last = before.clone();
    for _ in 0..3 {
        // The engine says no to the release; that is not what is waited for here.
        machine.run("updatectl check").unwrap();
        last = machine.wait_status(STAGE, |status| check(status) > check(&last)).unwrap();
        assert_eq!(last.last_check.as_ref().unwrap().result, "refused", "{last:?}");
    }
    assert_eq!(last.quarantine, before.quarantine);
    assert!(last.staged.is_none() && !last.other.as_ref().unwrap().bootable, "{last:?}");
    assert_eq!(last.progress.bytes_downloaded, before.progress.bytes_downloaded);
    assert_eq!(told(machine, "cat /proc/sys/kernel/random/boot_id").trim(), boot_id, "it booted again");
}

fn count(console: &[String], text: &str) -> usize {
    console.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn releases_whose_service_or_health_check_fails() {
    let Some((site, mut machine)) = running("debian-health", "") else { return };
    let (event, console) = comes_back(&site, &mut machine, "1.3.0");
    assert_eq!(count(&console, "boot-select: chosen: B"), 1, "the engine goes back at the first no");
    assert!(event.detail.contains("app.service"), "{event:?}");
    assert!(event.evidence.contains("app.service") && event.evidence.contains("failed"), "{event:?}");
    assert!(event.evidence.contains("cannot bind port 80"), "the journal is missing: {event:?}");

    let (event, console) = comes_back(&site, &mut machine, "1.4.0");
    assert_eq!(count(&console, "boot-select: chosen: B"), 1, "the engine goes back at the first no");
    assert!(event.detail.contains("50-app"), "{event:?}");
    let all = format!("{}\n{}", event.detail, event.evidence);
    assert!(all.contains("last year's data") && all.contains('3'), "{event:?}");
}

#[test]
fn releases_whose_engine_is_missing_or_that_hang() {
    let Some((site, mut machine)) = running("debian-hang", "[policy]\ntries = 1\n") else { return };
    let (event, console) = comes_back(&site, &mut machine, "1.5.0");
    assert_eq!(count(&console, "boot-select: chosen: B"), 1, "it was given one try");
    // The guard goes back before that boot's journal is on STATE: the spent try is all there is.
    assert!(event.evidence.contains("0 of 1 tries left"), "{event:?}");

    let (event, console) = comes_back(&site, &mut machine, "1.6.0");
    assert_eq!(count(&console, "boot-select: chosen: B"), 1, "it was given one try");
    assert_eq!(count(&console, "init: this release does nothing"), 1, "it hung elsewhere");
    assert_eq!(machine.qmp().unwrap().events("WATCHDOG"), 1, "something else reset it");
    assert!(!event.evidence.is_empty(), "{event:?}");
}
