//! Steps 4 and 9, with real engines and a server that asks for tokens: a node without one says what it needs, enrols, is placed in
//! its token's group, updates, is revoked, and is heard again.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::wire::{EnrolmentCreated, EnrolmentList, NodeShow};
use std::path::Path;
use tests::node::Node;
use tests::small::Small;
use tests::world::World;

/// A world whose server hears nobody unknown without a token.
fn closed() -> Small {
    let world = World::with_environment(vec![("UPDATE_SERVER_ENROLMENT".to_owned(), "token".to_owned())]);
    Small::new_in(world.unwrap()).unwrap()
}

/// Tells a node where its token is.
fn name_token_file(node: &Node<'_>, file: &Path) {
    let text = std::fs::read_to_string(node.config()).unwrap();
    let key = format!("[server]\nenrolment_token_file = \"{}\"\n", file.display());
    std::fs::write(node.config(), text.replace("[server]\n", &key)).unwrap();
}

fn token(world: &World, more: &[&str]) -> EnrolmentCreated {
    let said = world.updatectl(&[&["enrolment", "create", "--json"], more].concat()).unwrap().ok().unwrap();
    serde_json::from_value(said.json().unwrap()).unwrap()
}

fn show(world: &World, id: &str) -> NodeShow {
    let said = world.updatectl(&["node", "show", id, "--json"]).unwrap().ok().unwrap();
    serde_json::from_value(said.json().unwrap()).unwrap()
}

/// The engine asks once and fails, and `updatectl status` on the node says why.
fn says(node: &Node<'_>, why: &str) {
    let said = node.engine(&[]).unwrap();
    assert_ne!(said.code, Some(0), "{said}");
    let status = node.updatectl(&["status"]).unwrap();
    assert!(status.stdout.contains(why), "{why}: {status}");
}

#[test]
fn a_node_enrols_updates_and_is_revoked() {
    let small = closed();
    let world = &small.world;
    let mut node = small.node("n", world.address()).unwrap();
    says(&node, "asks for an enrolment token: this node has none");
    let file = world.folder().join("enrolment-token");
    name_token_file(&node, &file);
    says(&node, "cannot read");
    let ended = token(world, &[]);
    world.updatectl(&["enrolment", "revoke", &ended.enrolment.id]).unwrap().ok().unwrap();
    std::fs::write(&file, &ended.token).unwrap();
    says(&node, "is revoked: an operator makes another");

    let made = token(world, &["--group", "web", "--expires", "30d", "--uses", "1", "--note", "rack 4"]);
    std::fs::write(&file, format!("{}\n", made.token)).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    node.boot().unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    let status = node.status().unwrap();
    assert_eq!(status.booted.unwrap().version.to_string(), "1.1.0");
    assert_eq!(status.error, None);
    let id = std::fs::read_to_string(node.state().join("node-id")).unwrap().trim().to_owned();
    let shown = show(world, &id).node;
    assert_eq!((shown.group.as_str(), shown.own_group.unwrap().as_str()), ("web", "lab"));
    assert_eq!(shown.enrolled_with, Some(made.enrolment.id));
    let said = world.updatectl(&["enrolment", "list", "--json"]).unwrap().ok().unwrap();
    let list: EnrolmentList = serde_json::from_value(said.json().unwrap()).unwrap();
    assert_eq!(list.enrolments.iter().map(|token| token.used).sum::<u32>(), 1, "not at each restart");
    // It is not needed any more.
    std::fs::remove_file(&file).unwrap();
    node.engine(&[]).unwrap().expect_code(3).unwrap();
    // And good for one node.
    std::fs::write(&file, &made.token).unwrap();
    let second = small.node("second", world.address()).unwrap();
    name_token_file(&second, &file);
    says(&second, "is used up: an operator makes another");

    world.updatectl(&["node", "revoke", &id, "--reason", "stolen", "--yes"]).unwrap().ok().unwrap();
    world.updatectl(&["node", "revoke", &id, "--reason", "stolen", "--yes"]).unwrap().expect_code(3).unwrap();
    says(&node, "(stolen)");
    let text = world.updatectl(&["node", "show", &id]).unwrap().ok().unwrap().stdout;
    for part in [
        "revoked since",
        "by admin: stolen",
        "placed in group web; it says lab itself",
        "enrolled with token",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = world.updatectl(&["node", "list"]).unwrap().ok().unwrap().stdout;
    assert!(text.contains(" revoked "), "{text}");
    world.updatectl(&["node", "reinstate", &id]).unwrap().ok().unwrap();
    node.engine(&[]).unwrap().expect_code(3).unwrap();
    world.updatectl(&["node", "set-group", &id, "db"]).unwrap().ok().unwrap();
    assert_eq!(show(world, &id).node.group.as_str(), "db");
    world.updatectl(&["node", "set-group", &id, "--clear"]).unwrap().ok().unwrap();
    assert_eq!(show(world, &id).node.group.as_str(), "lab");
}
