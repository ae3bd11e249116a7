//! Step 4, channel, with real engines: a canary group goes first, the others follow when it has confirmed the release, a
//! release that fails halts its rollout, and each node's `updatectl` says why it waits.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use protocol::status::StateName;
use protocol::wire::RolloutInfo;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};
use tests::node::{Node, Setup};
use tests::small::Small;
use tests::world::World;

const POLICY: &str = "[channel.alpha]\nin_flight = 1\n[channel.alpha.canary]\ngroup = \"canary\"\nhold = \"0s\"\n\
                      [channel.alpha.halt]\nfailures = 1\n";

/// A node of a group, whose health checks lie beside it.
fn node<'w>(small: &'w Small, name: &str, group: &str) -> Node<'w> {
    let health = small.world.folder().join(format!("{name}-health"));
    std::fs::create_dir_all(&health).unwrap();
    let config = format!("\n[health]\ndir = \"{}\"\n", health.display());
    let setup = Setup { config: &config, ..small.setup() };
    let node = Node::new(&small.world, name, small.world.address(), &setup).unwrap();
    let text = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), text.replace("group = \"lab\"", &format!("group = \"{group}\""))).unwrap();
    node
}

fn set_policy(world: &World) {
    let file = world.folder().join("rollout.toml");
    std::fs::write(&file, POLICY).unwrap();
    world.updatectl(&["rollout", "set", file.to_str().unwrap(), "--yes"]).unwrap().ok().unwrap();
}

fn rollout(world: &World) -> RolloutInfo {
    let said = world.updatectl(&["rollout", "show", "alpha", "--json"]).unwrap().ok().unwrap();
    serde_json::from_value(said.json().unwrap()).unwrap()
}

/// Waits until the server has opened a stage: it looks every few seconds.
fn wait_for_stage(world: &World, stage: u32) {
    let until = Instant::now() + Duration::from_secs(60);
    while rollout(world).rollout.stage < stage {
        assert!(Instant::now() < until, "{:?}", rollout(world));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The node updates, reboots and confirms.
fn goes(node: &mut Node<'_>) {
    node.engine(&[]).unwrap().ok().unwrap();
    node.boot().unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
}

/// The node is told to wait, and why; `updatectl` on it says the same.
fn waits(node: &Node<'_>, why: &str) {
    let said = node.engine(&[]).unwrap().expect_code(4).unwrap();
    assert!(said.stdout.contains(why) || said.stderr.contains(why), "{why}: {said}");
    let explained = node.updatectl(&["explain"]).unwrap();
    assert!(explained.stdout.contains(why), "{why}: {explained}");
}

#[test]
fn a_canary_first_then_the_others_one_by_one() {
    let small = Small::new().unwrap();
    set_policy(&small.world);
    let (next, _) = small.publish_next("1.2.0", 21).unwrap();
    assert_eq!(next.version, "1.2.0");
    let (mut canary, mut web, mut db) =
        (node(&small, "canary", "canary"), node(&small, "web", "web"), node(&small, "db", "db"));
    waits(&web, "the group canary goes first");
    goes(&mut canary);
    assert_eq!(canary.status().unwrap().booted.unwrap().version.to_string(), "1.2.0");
    wait_for_stage(&small.world, 1);
    // The first has its leave and is under way; the second waits until it has confirmed.
    web.engine(&[]).unwrap().ok().unwrap();
    waits(&db, "1 nodes are under way, and 1 may be");
    let explain = ["node", "explain", &node_id(&db)];
    let said = small.world.updatectl(&explain).unwrap().expect_code(4).unwrap();
    assert!(said.stdout.contains("1. 1 nodes are under way, and 1 may be"), "{said}");
    web.boot().unwrap();
    web.engine(&[]).unwrap().ok().unwrap();
    goes(&mut db);
    // What a node runs is what it said when it last asked.
    for node in [&canary, &web, &db] {
        node.engine(&[]).unwrap().expect_code(3).unwrap();
    }
    let RolloutInfo { counts, .. } = rollout(&small.world);
    assert_eq!((counts.all.confirmed, counts.in_flight, counts.at_version), (3, 0, 3), "{counts:?}");
}

/// A node's id, as its state folder has it.
fn node_id(node: &Node<'_>) -> String {
    std::fs::read_to_string(node.state().join("node-id")).unwrap().trim().to_owned()
}

#[test]
fn a_release_that_fails_halts_and_the_repaired_one_goes_on() {
    let small = Small::new().unwrap();
    set_policy(&small.world);
    small.publish_next("1.2.0", 22).unwrap();
    let (mut canary, web) = (node(&small, "canary", "canary"), node(&small, "web", "web"));
    let check = small.world.folder().join("canary-health/version");
    std::fs::write(&check, "#!/bin/sh\n[ \"$FLIPSIDE_VERSION\" != 1.2.0 ]\n").unwrap();
    std::fs::set_permissions(&check, std::fs::Permissions::from_mode(0o755)).unwrap();
    canary.engine(&[]).unwrap().ok().unwrap();
    canary.boot().unwrap();
    // Not well: back, which is told.
    canary.engine(&[]).unwrap();
    canary.boot().unwrap();
    canary.engine(&[]).unwrap();
    assert_eq!(canary.booted, Slot::A);
    let info = rollout(&small.world);
    assert_eq!(info.rollout.halted.unwrap().why, "1 of 1 nodes failed");
    waits(&web, "the rollout is halted since");
    assert!(web.status().unwrap().staged.is_none(), "nothing was downloaded");
    // The next release begins a rollout of its own.
    small.publish_next("1.3.0", 23).unwrap();
    let info = rollout(&small.world);
    assert_eq!((info.rollout.halted, info.rollout.version.as_str()), (None, "1.3.0"));
    goes(&mut canary);
    wait_for_stage(&small.world, 1);
    let mut web = web;
    goes(&mut web);
    assert_eq!(rollout(&small.world).counts.all.confirmed, 2);
}

#[test]
fn a_pause_holds_what_a_node_has_activated_and_lets_it_go_on() {
    let small = Small::new().unwrap();
    small.publish_next("1.2.0", 24).unwrap();
    let mut web = node(&small, "web", "web");
    web.engine(&[]).unwrap().ok().unwrap();
    assert!(web.status().unwrap().staged.is_some_and(|staged| staged.activated));
    let act = |act: &str| {
        small.world.updatectl(&["rollout", act, "alpha", "--why", "complaints"]).unwrap().ok().unwrap()
    };
    act("pause");
    waits(&web, "paused");
    let status = web.status().unwrap();
    assert_eq!(status.state, StateName::Waiting);
    assert!(status.reason.starts_with("rollout: 1.2.0 waits: "), "{}", status.reason);
    act("resume");
    web.engine(&[]).unwrap().expect_code(3).unwrap();
    assert_eq!(web.status().unwrap().state, StateName::Staged);
    web.boot().unwrap();
    web.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(web.status().unwrap().booted.unwrap().version.to_string(), "1.2.0");
}
