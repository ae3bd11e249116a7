//! Trust, end to end: what is not signed, not listed, not newer or not whole is refused with exit code 5, one clear
//! line, and a disk on which the running slot is the only one that boots.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use tests::hostile::{Action, Proxy, Request, fetch};
use tests::images::{Kind, Tree};
use tests::node::{Node, Setup};
use tests::process::Run;
use tests::small::{FAST, IMAGE, Small};
use tests::world::{World, flip_byte};

fn untouched(node: &Node<'_>) {
    let disk = node.open_disk().unwrap();
    assert_eq!(disk.select().map(|(slot, _)| slot), Some(node.booted));
    assert!(!disk.attributes(node.booted.other()).bootable());
}

fn refused(node: &Node<'_>) -> Run {
    let said = node.engine(&[]).unwrap().expect_code(5).unwrap();
    let errors = said.stderr.lines().filter(|line| line.starts_with("update-engine: ")).count();
    assert_eq!(errors, 1, "one line says what is wrong: {said}");
    untouched(node);
    assert!(node.status().unwrap().error.is_some(), "{said}");
    said
}

fn answer(body: Vec<u8>) -> Action {
    Action::Answer { status: "200 OK", headers: Vec::new(), body }
}

#[test]
fn a_payload_changed_on_the_server() {
    let small = Small::all_new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    let payload = small.release.payload().unwrap();
    let stored = small.world.stored_payload(&small.release).unwrap();
    let place = payload.head_size + (payload.size - payload.head_size) / 2;
    flip_byte(&stored, place).unwrap();
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(1) || said.code == Some(5), "{said}");
    untouched(&node);
    assert!(node.compare(Slot::B, "root", &small.v2).is_err());
    // The same release, whole again, is not condemned.
    flip_byte(&stored, place).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &small.v2).unwrap();
}

#[test]
fn old_metadata_is_replayed() {
    let small = Small::new().unwrap();
    let proxy = Proxy::start(small.world.address()).unwrap();
    let mut node = small.node("node", &proxy.address()).unwrap();
    let old = fetch(small.world.address(), "/v1/metadata/timestamp.json").unwrap();
    let (_, image) = small.publish_next("1.2.0", 41).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &image).unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.engine(&[]).unwrap().ok().unwrap();
    proxy.set_rule(move |request: &Request| {
        if request.path.ends_with("/timestamp.json") { answer(old.clone()) } else { Action::Forward }
    });
    let said = node.engine(&[]).unwrap().expect_code(5).unwrap();
    assert!(said.stderr.contains("timestamp"), "{said}");
    assert_eq!(node.open_disk().unwrap().select().map(|(slot, _)| slot), Some(Slot::B));
    proxy.behave();
    node.engine(&[]).unwrap().expect_code(3).unwrap();
}

#[test]
fn metadata_of_another_repository() {
    let small = Small::new().unwrap();
    let other = World::new().unwrap();
    let image = other.folder().join("v9.img");
    Tree::generate(9, 1 << 20).write_image(&image, IMAGE, Kind::Bytes).unwrap();
    other.publish("9.0.0", &image, "alpha", FAST).unwrap();
    let node = small.node("node", other.address()).unwrap();
    refused(&node);
}

#[test]
fn a_changed_signature() {
    let small = Small::new().unwrap();
    let proxy = Proxy::start(small.world.address()).unwrap();
    let node = small.node("node", &proxy.address()).unwrap();
    let upstream = small.world.address().to_owned();
    proxy.set_rule(move |request: &Request| {
        if !request.path.ends_with("/timestamp.json") {
            return Action::Forward;
        }
        let text = String::from_utf8(fetch(&upstream, &request.path).unwrap()).unwrap();
        let (before, rest) = text.split_once("\"sig\":").unwrap();
        let digit = rest.find(|c: char| c.is_ascii_hexdigit()).unwrap();
        let new = if rest.as_bytes()[digit] == b'0' { "1" } else { "0" };
        answer(format!("{before}\"sig\":{}{new}{}", &rest[..digit], &rest[digit + 1..]).into_bytes())
    });
    refused(&node);
    proxy.behave();
    node.engine(&[]).unwrap().ok().unwrap();
}

#[test]
fn a_channel_that_does_not_list_what_the_server_offers() {
    let small = Small::new().unwrap();
    let proxy = Proxy::start(small.world.address()).unwrap();
    let node = small.node("node", &proxy.address()).unwrap();
    // 1.2.0 is signed and on beta; the server, or the line, offers it to a node of alpha.
    let image = small.world.folder().join("v3.img");
    small.tree.updated(51, 10).write_image(&image, IMAGE, Kind::Bytes).unwrap();
    small.world.publish("1.2.0", &image, "beta", FAST).unwrap();
    proxy.set_rule(|request: &Request| {
        if request.path == "/v1/update-check" {
            answer(br#"{"schema":1,"decision":"update","version":"1.2.0","reason":"take it"}"#.to_vec())
        } else {
            Action::Forward
        }
    });
    let said = refused(&node);
    assert!(said.stderr.contains("1.2.0") && said.stderr.contains("alpha"), "{said}");
}

#[test]
fn a_release_that_nobody_signed() {
    let small = Small::new().unwrap();
    let proxy = Proxy::start(small.world.address()).unwrap();
    let node = small.node("node", &proxy.address()).unwrap();
    proxy.set_rule(|request: &Request| {
        if request.path == "/v1/update-check" {
            answer(br#"{"schema":1,"decision":"update","version":"6.6.6","reason":"take it"}"#.to_vec())
        } else {
            Action::Forward
        }
    });
    let said = refused(&node);
    assert!(said.stderr.contains("6.6.6"), "{said}");
}

#[test]
fn a_downgrade() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    let old = small.world.folder().join("v0.img");
    small.tree.updated(61, 10).write_image(&old, IMAGE, Kind::Bytes).unwrap();
    let release = small.world.build("0.9.0", &old, FAST).unwrap();
    small.world.push(&release).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.engine(&[]).unwrap().ok().unwrap();
    // The operator is told that the node would not follow, and insists.
    let set = ["channel", "set", "alpha", "0.9.0"];
    let said = small.world.updatectl(&set).unwrap().expect_code(1).unwrap();
    assert!(said.stderr.contains("1 nodes of alpha would have no way to 0.9.0"), "{said}");
    small.world.updatectl(&[&set[..], &["--leave-behind"]].concat()).unwrap().ok().unwrap();
    // Whether the server does not offer it or the engine refuses it: the node stays where it is.
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(3) || said.code == Some(5), "{said}");
    assert_eq!(node.open_disk().unwrap().select().map(|(slot, _)| slot), Some(Slot::B));
    node.compare(Slot::B, "root", &small.v2).unwrap();
}

#[test]
fn a_downgrade_that_the_line_insists_on() {
    let small = Small::new().unwrap();
    let proxy = Proxy::start(small.world.address()).unwrap();
    let old = small.world.folder().join("v0.img");
    small.tree.updated(62, 10).write_image(&old, IMAGE, Kind::Bytes).unwrap();
    small.world.publish("0.9.0", &old, "alpha", FAST).unwrap();
    let node = small.node("node", &proxy.address()).unwrap();
    proxy.set_rule(|request: &Request| {
        if request.path == "/v1/update-check" {
            answer(br#"{"schema":1,"decision":"update","version":"0.9.0","reason":"go back"}"#.to_vec())
        } else {
            Action::Forward
        }
    });
    let said = refused(&node);
    assert!(said.stderr.contains("0.9.0"), "{said}");
}

#[test]
fn a_missing_or_broken_root() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    let root = small.world.keys().join("root.json");
    let good = std::fs::read(&root).unwrap();
    std::fs::remove_file(&root).unwrap();
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(1) || said.code == Some(5), "{said}");
    assert!(said.stderr.contains("root.json"), "{said}");
    untouched(&node);
    std::fs::write(&root, b"{}").unwrap();
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(1) || said.code == Some(5), "{said}");
    untouched(&node);
    std::fs::write(&root, good).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
}

#[test]
fn another_architecture() {
    let small = Small::new().unwrap();
    let setup = Setup { config: "", ..small.setup() };
    let node = Node::new(&small.world, "node", small.world.address(), &setup).unwrap();
    let text = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), text.replace("[identity]\n", "[identity]\narch = \"arm64\"\n")).unwrap();
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(3) || said.code == Some(5), "{said}");
    untouched(&node);
}

#[test]
fn an_operator_without_the_key_cannot_publish() {
    let small = Small::new().unwrap();
    let other = World::new().unwrap();
    let image = small.world.folder().join("evil.img");
    Tree::generate(71, 1 << 20).write_image(&image, IMAGE, Kind::Bytes).unwrap();
    let release = small.world.build("1.3.0", &image, FAST).unwrap();
    let key = other.keys().join("targets.pem");
    let said = small
        .world
        .updatectl(&["release", "push", release.folder.to_str().unwrap(), "--key", key.to_str().unwrap()])
        .unwrap();
    assert_ne!(said.code, Some(0), "{said}");
    let list = small.world.updatectl(&["release", "list", "--json"]).unwrap().ok().unwrap().json().unwrap();
    assert!(!list.to_string().contains("1.3.0"), "{list}");
}

#[test]
fn a_wrong_token_changes_nothing() {
    let small = Small::new().unwrap();
    let mut command = std::process::Command::new(&small.world.programs.updatectl);
    command
        .args(["channel", "set", "alpha", "1.1.0"])
        .env("UPDATECTL_SERVER", small.world.address())
        .env("UPDATECTL_TOKEN", "not-the-token");
    let said = tests::process::run(&mut command).unwrap();
    assert_ne!(said.code, Some(0), "{said}");
    assert!(said.stderr.contains("401") || said.stderr.contains("token"), "{said}");
}
