//! Damaged partition tables, disks that nothing can be booted from, and sectors of 4096 bytes, before the loader.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;
use tests::vm::machine::Machine;
use tests::vm::site::{BOOT, Settings, Site, open_disk};

/// Sectors of a table beside its protective MBR: header and entries.
const TABLE: u64 = 33;

fn wipe(disk: &Path, offset: u64, length: u64) {
    let file = File::options().write(true).open(disk).unwrap();
    file.write_all_at(&vec![0; usize::try_from(length).unwrap()], offset).unwrap();
}

/// Boots, off as it is, and is confirmed on slot A.
fn boots(machine: &mut Machine) {
    machine.start().unwrap();
    let (boot, status) = machine.wait_confirmed("1.0.0", BOOT).unwrap();
    assert_eq!(boot.slot, "A");
    assert!(status.error.is_none(), "{:?}", status.error);
}

/// Cuts the power and looks at the table, which somebody has repaired by now.
fn repaired(machine: &mut Machine) {
    machine.kill().unwrap();
    let health = open_disk(&machine.hardware.disk).unwrap().health();
    assert_eq!(health.to_string(), disk::TableHealth::Intact.to_string());
}

#[test]
fn either_table_may_be_gone() {
    let Some(site) = Site::new("tables", Settings::default()).unwrap() else { return };
    let mut machine = site.machine().unwrap();
    let disk = machine.hardware.disk.clone();
    let length = std::fs::metadata(&disk).unwrap().len();
    wipe(&disk, 512, TABLE * 512);
    assert_ne!(open_disk(&disk).unwrap().health().to_string(), disk::TableHealth::Intact.to_string());
    boots(&mut machine);
    site.report("booted without a primary table");
    repaired(&mut machine);
    wipe(&disk, length - TABLE * 512, TABLE * 512);
    assert_ne!(open_disk(&disk).unwrap().health().to_string(), disk::TableHealth::Intact.to_string());
    boots(&mut machine);
    site.report("booted without a backup table");
    repaired(&mut machine);
}

#[test]
fn with_nothing_to_boot_the_loader_says_so_and_tries_again() {
    let Some(site) = Site::new("no-slot", Settings::default()).unwrap() else { return };
    let mut machine = site.machine().unwrap();
    let disk = machine.hardware.disk.clone();
    let slot_a = open_disk(&disk).unwrap();
    let boot = slot_a.partition(protocol::slot::Slot::A, &"boot".parse().unwrap()).unwrap();
    // Slot B was never written.
    wipe(&disk, boot.offset, boot.len);
    machine.start().unwrap();
    let message = "boot-select: no slot can be booted: ";
    let (first, line) = machine.wait_console(0, message, BOOT).unwrap();
    assert!(line.text.contains("A: ") && line.text.contains("B: "), "{}", line.text);
    assert!(line.text.ends_with("; resetting in 30 s"), "{}", line.text);
    machine.wait_console(0, "boot-select: left out: A: ", BOOT).unwrap();
    machine.wait_console(first + 1, message, BOOT + Duration::from_secs(30)).unwrap();
    site.report("said twice");
}

#[test]
fn a_disk_with_sectors_of_4096_bytes() {
    let Some(site) = Site::new("4096", Settings { sector_size: 4096, ..Settings::default() }).unwrap() else {
        return;
    };
    let mut machine = site.machine().unwrap();
    boots(&mut machine);
    let size = machine.run("cat /sys/block/vda/queue/logical_block_size").unwrap().ok().unwrap();
    assert_eq!(size, "4096\n");
    site.report("booted");
}
