//! `kill -9` of the engine in every state, then a restart: it ends right, and at each moment there is a slot that
//! boots and is intact. The engine stops at a point by itself (`--pause-at`) and is killed there.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use tests::node::Node;
use tests::small::Small;

/// Every point on the way from 1.0.0 to an activated 1.1.0, in order.
const INSTALLING: &[&str] = &[
    "checking",
    "available",
    "invalidating",
    "invalidated",
    "downloading",
    "downloading=400000",
    "downloading=800000",
    "downloaded",
    "verifying",
    "staged",
    "activating",
    "activated",
];

/// Every point of the boot into 1.1.0.
const CONFIRMING: &[&str] = &["confirming", "marking-good", "marked-good"];

/// Every point of the boot after 1.1.0 did not come up.
const FALLING_BACK: &[&str] = &["quarantining", "quarantined"];

/// Runs the engine up to the point and kills it there.
fn kill_at(small: &Small, node: &Node<'_>, point: &str) {
    let mut engine = node.start_engine(&["--pause-at", point]).unwrap();
    engine.wait_for("paused ").unwrap();
    engine.kill().unwrap();
    assert_eq!(engine.wait().unwrap().signal, Some(9));
    let disk = node.open_disk().unwrap();
    assert!(disk.select().is_some(), "nothing boots after a kill at {point}");
    what_boots_is_whole(small, node);
}

fn node<'w>(small: &'w Small, name: &str) -> Node<'w> {
    let mut node = small.node(name, small.world.address()).unwrap();
    node.boot_id = Some("boot-1".to_owned());
    node
}

/// What the disk would boot is one of the two images, whole.
fn what_boots_is_whole(small: &Small, node: &Node<'_>) {
    let (slot, _) = node.open_disk().unwrap().select().unwrap();
    let image = if slot == Slot::A { &small.v1 } else { &small.v2 };
    node.compare(slot, "root", image).unwrap();
    node.sgdisk_verify().unwrap();
}

/// Boots into B and confirms; 1.1.0 runs in the end and nothing is left to do.
fn boot_and_confirm(node: &mut Node<'_>) {
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.boot_id = Some("boot-2".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    confirmed(node);
}

fn confirmed(node: &Node<'_>) {
    let b = node.open_disk().unwrap().attributes(Slot::B);
    assert_eq!((b.priority(), b.tries_left(), b.successful()), (2, 0, true));
    node.engine(&[]).unwrap().expect_code(3).unwrap();
    let status = node.status().unwrap();
    let booted = status.booted.unwrap();
    assert_eq!(
        (booted.slot, booted.version.to_string(), booted.confirmed),
        (Slot::B, "1.1.0".to_owned(), true)
    );
    assert!(status.quarantine.is_empty(), "{:?}", status.quarantine);
}

#[test]
fn once_at_each_point_of_an_installation() {
    let small = Small::all_new().unwrap();
    for point in INSTALLING {
        let mut node = node(&small, point);
        kill_at(&small, &node, point);
        let said = node.engine(&[]).unwrap();
        let activated = *point == "activated" && said.code == Some(3);
        assert!(said.code == Some(0) || activated, "after a kill at {point}: {said}");
        node.compare(Slot::B, "root", &small.v2).unwrap();
        what_boots_is_whole(&small, &node);
        boot_and_confirm(&mut node);
    }
}

#[test]
fn at_one_point_after_the_other_of_the_same_installation() {
    let small = Small::all_new().unwrap();
    let mut node = node(&small, "node");
    for point in INSTALLING {
        kill_at(&small, &node, point);
    }
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(0) || said.code == Some(3), "{said}");
    boot_and_confirm(&mut node);
}

#[test]
fn at_each_point_of_a_confirmation() {
    let small = Small::new().unwrap();
    for point in CONFIRMING {
        let mut node = node(&small, point);
        node.engine(&[]).unwrap().ok().unwrap();
        assert_eq!(node.boot().unwrap(), Slot::B);
        node.boot_id = Some("boot-2".to_owned());
        kill_at(&small, &node, point);
        let said = node.engine(&[]).unwrap();
        assert!(said.code == Some(0) || said.code == Some(3), "after a kill at {point}: {said}");
        confirmed(&node);
    }
}

#[test]
fn a_kill_while_confirming_and_a_reboot_is_another_try() {
    let small = Small::new().unwrap();
    let mut node = node(&small, "node");
    node.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.boot_id = Some("boot-2".to_owned());
    kill_at(&small, &node, "confirming");
    assert_eq!(node.boot().unwrap(), Slot::B, "two tries are left");
    node.boot_id = Some("boot-3".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    confirmed(&node);
}

#[test]
fn at_each_point_of_a_fallback() {
    let small = Small::new().unwrap();
    for point in FALLING_BACK {
        let mut node = node(&small, point);
        node.engine(&[]).unwrap().ok().unwrap();
        while node.boot().unwrap() == Slot::B {}
        node.boot_id = Some("boot-5".to_owned());
        kill_at(&small, &node, point);
        node.engine(&[]).unwrap();
        let status = node.status().unwrap();
        assert_eq!(status.quarantine.len(), 1, "after a kill at {point}: {status:?}");
        assert_eq!(node.open_disk().unwrap().attributes(Slot::B).priority(), 0, "after a kill at {point}");
        node.engine(&[]).unwrap().expect_code(5).unwrap();
        assert_eq!(node.boot().unwrap(), Slot::A);
    }
}
