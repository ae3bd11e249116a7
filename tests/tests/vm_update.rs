//! A machine that boots goes from 1.0.0 to 1.1.0 and on to 1.2.0 by itself: firmware, loader, kernel, engine.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use protocol::status::{StateName, Status};
use std::time::Duration;
use tests::vm::guest::Flaw;
use tests::vm::machine::Machine;
use tests::vm::site::{BOOT, Settings, Site};

/// The longest an update takes from publishing to the confirmation.
const UPDATE: Duration = Duration::from_secs(240);

/// The status that the engine's reboot command put on the console, the newest.
fn status_before_reboot(machine: &Machine) -> Status {
    let lines = machine.console.since(0);
    let text = lines.iter().rev().find_map(|line| line.text.strip_prefix("guest: rebooting with ")).unwrap();
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Kernel and root file system are of the same release.
fn boot_and_root_belong_together(machine: &mut Machine, version: &str) {
    let command_line = machine.run("cat /proc/cmdline").unwrap().ok().unwrap();
    assert!(command_line.contains(&format!("flipside.release={version} ")), "{command_line}");
}

fn update(site: &Site, machine: &mut Machine, version: &str, slot: Slot) {
    site.publish(version, Flaw::None).unwrap();
    site.report(&format!("{version} published"));
    let (boot, after) = machine.wait_confirmed(version, UPDATE).unwrap();
    site.report(&format!("{version} confirmed"));
    assert_eq!(boot.slot, slot.as_str());
    let before = status_before_reboot(machine);
    let staged = before.staged.unwrap();
    assert_eq!((staged.version.as_str(), staged.activated), (version, true));
    assert_eq!(before.state, StateName::Rebooting);
    assert_eq!(before.booted.unwrap().slot, slot.other());
    let booted = after.booted.unwrap();
    assert_eq!((booted.slot, booted.version.as_str(), booted.confirmed), (slot, version, true));
    assert!(after.quarantine.is_empty() && after.error.is_none(), "{:?} {:?}", after.quarantine, after.error);
    boot_and_root_belong_together(machine, version);
}

#[test]
fn from_1_0_to_1_2_by_itself() {
    let Some(site) = Site::new("update", Settings::default()).unwrap() else { return };
    let mut machine = site.machine().unwrap();
    site.report("images made");
    machine.start().unwrap();
    let (boot, _) = machine.wait_confirmed("1.0.0", BOOT).unwrap();
    site.report("1.0.0 runs");
    assert_eq!(boot.slot, "A");
    boot_and_root_belong_together(&mut machine, "1.0.0");
    let ids = "cat /etc/machine-id /state/update-engine/node-id";
    machine.run("echo kept > /state/note").unwrap().ok().unwrap();
    let id = machine.run(ids).unwrap().ok().unwrap();
    update(&site, &mut machine, "1.1.0", Slot::B);
    update(&site, &mut machine, "1.2.0", Slot::A);
    assert_eq!(machine.run(ids).unwrap().ok().unwrap(), id);
    assert_eq!(machine.run("cat /state/note").unwrap().ok().unwrap(), "kept\n");
    let node = site.node().unwrap();
    assert_eq!(node["node"]["version"], "1.2.0", "{node}");
}
