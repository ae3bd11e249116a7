//! Step 4, channel: a dead end, end to end: what the node's own status and the operator are told, and that nothing is done.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use tests::process::Run;
use tests::small::Small;
use tests::world::path;

const WHY: &str = "its updater cannot write";

fn dead_end(small: &Small, version: &str, more: &[&str]) -> Run {
    let key = small.world.keys().join("targets.pem");
    let arguments = [&["release", "dead-end", version, "--key", path(&key).unwrap()][..], more].concat();
    small.world.updatectl(&arguments).unwrap()
}

#[test]
fn a_node_on_a_dead_end_says_so_and_goes_on_when_it_is_none_any_more() {
    let small = Small::new().unwrap();
    let (mut stuck, late) = (
        small.node("stuck", small.world.address()).unwrap(),
        small.node("late", small.world.address()).unwrap(),
    );
    stuck.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(stuck.boot().unwrap(), Slot::B);
    stuck.engine(&[]).unwrap().ok().unwrap();
    // What a node runs is what it said when it last asked.
    stuck.engine(&[]).unwrap().expect_code(3).unwrap();
    late.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(late.open_disk().unwrap().select().map(|(slot, _)| slot), Some(Slot::B), "activated");

    let marked = dead_end(&small, "1.1.0", &["--reason", WHY]).ok().unwrap();
    assert!(marked.stdout.starts_with("1.1.0 is a dead end, targets version "), "{marked}");
    assert!(marked.stderr.contains("  ~ 1.1.0 for x86-64: a dead end: its updater cannot write"), "{marked}");
    dead_end(&small, "1.1.0", &["--reason", WHY]).expect_code(3).unwrap();
    let list = small.world.updatectl(&["release", "list"]).unwrap().ok().unwrap();
    assert!(list.stdout.contains("alpha (a dead end: its updater cannot write)\n"), "{list}");

    // What has not booted yet is undone, though the channel still points there.
    late.engine(&[]).unwrap();
    assert_eq!(late.open_disk().unwrap().select().map(|(slot, _)| slot), Some(Slot::A));
    assert!(!late.open_disk().unwrap().attributes(Slot::B).bootable());

    let build = small.world.folder().join("v3.img");
    small.tree.updated(41, 20).write_image(&build, small.size, tests::images::Kind::Bytes).unwrap();
    let release = small.world.build("1.2.0", &build, tests::small::FAST).unwrap();
    small.world.push(&release).unwrap();
    let set = small.world.updatectl(&["channel", "set", "alpha", "1.2.0"]).unwrap().ok().unwrap();
    assert_eq!(
        set.stdout,
        "alpha points at 1.2.0\n  1 nodes on 1.1.0 for x86-64 stay there, a dead end: its updater cannot write\n"
    );
    stuck.engine(&[]).unwrap().expect_code(3).unwrap();
    let told = stuck.updatectl(&["status"]).unwrap().ok().unwrap();
    assert!(
        told.stdout.contains("the node runs 1.1.0, a dead end (its updater cannot write): no rel"),
        "{told}"
    );
    let nodes = small.world.updatectl(&["node", "list"]).unwrap().ok().unwrap();
    assert!(nodes.stdout.contains("\n  runs 1.1.0, a dead end: its updater cannot write\n"), "{nodes}");
    late.engine(&[]).unwrap().ok().unwrap();
    late.compare(Slot::B, "root", &build).unwrap();

    dead_end(&small, "1.1.0", &["--clear"]).ok().unwrap();
    dead_end(&small, "1.1.0", &["--clear"]).expect_code(3).unwrap();
    stuck.engine(&[]).unwrap().ok().unwrap();
    stuck.compare(Slot::A, "root", &build).unwrap();
}
