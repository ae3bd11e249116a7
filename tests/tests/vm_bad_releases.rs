//! Releases that cannot run: the machine is back on the old one with nobody's help, says why, and leaves them alone.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use protocol::status::Status;
use serde_json::Value;
use std::time::Duration;
use tests::vm::guest::Flaw;
use tests::vm::machine::Machine;
use tests::vm::site::{BOOT, Settings, Site, open_disk};

/// The longest that a download, the failing boots of a release, and the way back take together.
const BACK: Duration = Duration::from_secs(420);
/// Three polls lie within this.
const POLLS: Duration = Duration::from_secs(90);

/// A machine that ran 1.0.0, was offered a bad 1.1.0, and runs 1.0.0 again.
struct Returned {
    site: Site,
    machine: Machine,
    /// The boot after the fallback.
    boot_id: String,
    /// What the console said since the flip.
    console: Vec<String>,
    node: Value,
}

impl Returned {
    /// How often the console said this since the flip.
    fn said(&self, text: &str) -> usize {
        self.console.iter().filter(|line| line.contains(text)).count()
    }

    /// The server's newest event that tells of the quarantine.
    fn event(&self) -> &Value {
        let events = self.node["events"].as_array().unwrap();
        let found = events.iter().find(|event| event["version"] == "1.1.0" && is_failure(event));
        found.unwrap_or_else(|| panic!("no report of a failure: {:#}", self.node))
    }
}

fn is_failure(event: &Value) -> bool {
    event["kind"] == "rolled-back"
}

/// Has a machine take the bad release, and checks what is the same for all of them.
fn comes_back(name: &str, flaw: Flaw, tries: u8) -> Option<Returned> {
    let site = Site::new(name, Settings { tries, ..Settings::default() }).unwrap()?;
    let mut machine = site.machine().unwrap();
    machine.start().unwrap();
    let (first, _) = machine.wait_confirmed("1.0.0", BOOT).unwrap();
    site.report("1.0.0 runs");
    site.publish("1.1.0", flaw).unwrap();
    let (flipped, _) = machine.wait_console(0, "guest: rebooting with", BACK).unwrap();
    site.report("the flip is done");
    let boot = loop {
        let boot = machine.wait_boot(BACK).unwrap();
        if boot.version == "1.0.0" {
            break boot;
        }
    };
    site.report("1.0.0 runs again");
    assert_eq!(boot.slot, "A");
    assert_ne!(boot.boot_id, first.boot_id);
    let console = machine.console.since(flipped).into_iter().map(|line| line.text).collect();
    let status = machine.wait_status(BOOT, |status| !status.quarantine.is_empty()).unwrap();
    assert_eq!(status.quarantine.len(), 1);
    assert_eq!(status.quarantine[0].version.as_str(), "1.1.0");
    assert!(!status.quarantine[0].reason.is_empty());
    three_more_polls(&mut machine, &status);
    site.report("left alone for three polls");
    let running = machine.run("cat /proc/sys/kernel/random/boot_id").unwrap().ok().unwrap();
    assert_eq!(running.trim(), boot.boot_id, "it booted again");
    let node = site.node().unwrap();
    Some(Returned { site, machine, boot_id: boot.boot_id, console, node })
}

/// Three checks later nothing was fetched, written or activated.
fn three_more_polls(machine: &mut Machine, before: &Status) {
    let check = |status: &Status| status.last_check.as_ref().map(|check| check.at);
    let mut last = before.clone();
    let mut refused = 0;
    while refused < 3 {
        let next = machine
            .wait_status(POLLS, |status| check(status).is_some() && check(status) != check(&last))
            .unwrap();
        refused += usize::from(next.last_check.as_ref().unwrap().result == "refused");
        last = next;
    }
    assert_eq!(last.progress.bytes_downloaded, before.progress.bytes_downloaded);
    assert!(last.staged.is_none(), "{last:?}");
    let other = last.other.unwrap();
    assert_eq!((other.slot, other.bootable), (Slot::B, false));
    assert_eq!(last.quarantine, before.quarantine);
}

/// What is the same for all of them at the end: reported with evidence, and the disk in order.
fn reported(mut returned: Returned, evidence: &str) {
    let event = returned.event();
    println!("vm event: {event:#}");
    assert!(event["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{event:#}");
    assert!(
        event["evidence"].as_str().is_some_and(|told| told.contains(evidence)),
        "no {evidence:?}: {event:#}"
    );
    assert!(!returned.boot_id.is_empty());
    returned.machine.kill().unwrap();
    let disk = open_disk(&returned.machine.hardware.disk).unwrap();
    let (slot, _) = disk.select().unwrap();
    assert_eq!(slot, Slot::A);
    let bad = disk.attributes(Slot::B);
    assert_eq!((bad.priority(), bad.tries_left(), bad.successful()), (0, 0, false));
    returned.site.report("done");
}

#[test]
fn a_kernel_that_panics() {
    let Some(returned) = comes_back("panic", Flaw::Panic, 3) else { return };
    assert_eq!(returned.said("boot-select: chosen: B"), 3, "it is given all of its tries");
    assert!(returned.said("Kernel panic") >= 3);
    reported(returned, "0 of 3 tries left, not successful");
}

#[test]
fn an_initrd_that_does_not_find_the_root_file_system() {
    let Some(returned) = comes_back("no-driver", Flaw::NoDriver, 1) else { return };
    assert_eq!(returned.said("boot-select: chosen: B"), 1);
    assert_eq!(returned.said("initrd: no root"), 1);
    reported(returned, "0 of 1 tries left, not successful");
}

#[test]
fn a_root_file_system_that_is_empty() {
    let Some(returned) = comes_back("empty-root", Flaw::EmptyRoot, 1) else { return };
    assert_eq!(returned.said("boot-select: chosen: B"), 1);
    assert_eq!(returned.said("initrd: root is /dev/vda5"), 1);
    reported(returned, "0 of 1 tries left, not successful");
}

#[test]
fn a_boot_image_that_is_garbage() {
    let Some(returned) = comes_back("garbage", Flaw::Garbage, 2) else { return };
    assert!(returned.said("boot-select: left out: B") >= 1);
    assert_eq!(returned.said("switched on"), 0);
    reported(returned, "left out: B: BOOT-B");
}

#[test]
fn a_system_that_hangs_is_reset_by_the_watchdog() {
    let Some(mut returned) = comes_back("hang", Flaw::Hang, 1) else { return };
    assert_eq!(returned.said("guest: waits for what never comes"), 1);
    assert_eq!(returned.machine.qmp().unwrap().events("WATCHDOG"), 1);
    reported(returned, "0 of 1 tries left, not successful");
}

#[test]
fn a_health_check_that_fails() {
    let Some(returned) = comes_back("health", Flaw::Health, 3) else { return };
    assert_eq!(returned.said("boot-select: chosen: B"), 1, "the engine goes back at the first no");
    let event = returned.event().to_string();
    assert!(event.contains("50-application") && event.contains('7'), "{event}");
    reported(returned, "the application does not answer");
}
