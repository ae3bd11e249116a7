//! `updatectl` on a node as its operator meets it: where the configuration is a part of one, where a file is damaged, where a
//! command fails.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use std::fs::File;
use std::process::{Command, Stdio};
use tests::process::{Run, run};
use tests::small::Small;
use tests::world::path;

/// A program of the world on no bus, from a folder.
fn program(small: &Small, name: &str, arguments: &[&str]) -> Run {
    let programs = &small.world.programs;
    let mut command = Command::new(match name {
        "updatectl" => &programs.updatectl,
        "update-engine" => &programs.update_engine,
        other => panic!("not a program of the node: {other}"),
    });
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus");
    command.env_remove("UPDATECTL_SERVER").env_remove("UPDATECTL_TOKEN");
    run(command.args(arguments).current_dir(small.world.folder())).unwrap()
}

fn updatectl(small: &Small, arguments: &[&str]) -> Run {
    program(small, "updatectl", arguments)
}

#[test]
fn a_part_of_a_configuration_is_shown_and_is_enough_for_what_it_says() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    let part = small.world.folder().join("50-imported.toml");
    let config = ["--config", path(&part).unwrap()];
    let text = format!(
        "[reboot]\nstrategy = \"immediate\"\n[disk]\ndevice = \"{}\"\n[state]\ndir = \"state\"\n",
        node.disk.display()
    );
    std::fs::write(&part, &text).unwrap();
    let shown = updatectl(&small, &[&["config"], &config[..]].concat()).ok().unwrap();
    assert!(shown.stdout.contains("reboot.strategy = \"immediate\"  # "), "{shown}");
    assert!(shown.stdout.contains("50-imported.toml:2\n"), "{shown}");
    assert_eq!(
        shown.stderr,
        "updatectl: not set, and required by the engine: server.url, identity.channel\n"
    );
    let document =
        updatectl(&small, &[&["config", "--json"], &config[..]].concat()).ok().unwrap().json().unwrap();
    assert_eq!(document["missing"], serde_json::json!(["server.url", "identity.channel"]));
    assert!(document["error"].is_null(), "{document}");

    let slots = updatectl(&small, &[&["slots", "--json"], &config[..]].concat()).ok().unwrap();
    assert!(slots.stderr.is_empty(), "{slots}");
    assert_eq!(slots.json().unwrap()["slots"][0]["boots_next"], true, "{slots}");

    // A value that no engine could use is shown as well, and is an error.
    std::fs::write(&part, format!("{text}[policy]\ntries = 99\n")).unwrap();
    let shown = updatectl(&small, &[&["config", "--json"], &config[..]].concat()).expect_code(1).unwrap();
    let document = shown.json().unwrap();
    assert!(
        document["error"].as_str().unwrap().contains("policy.tries: expected a number from 1 to 15"),
        "{shown}"
    );
    let tries = document["settings"].as_array().unwrap().iter().find(|s| s["key"] == "policy.tries").unwrap();
    assert_eq!(tries["value"], "99");
    assert!(shown.stderr.contains("50-imported.toml:8: policy.tries"), "{shown}");
    updatectl(&small, &[&["slots"], &config[..]].concat()).ok().unwrap();
    updatectl(&small, &[&["status"], &config[..]].concat()).expect_code(1).unwrap();
}

#[test]
fn a_damaged_status_hides_nothing_else() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    let verbs = [&["history"][..], &["explain"], &["quarantine", "list"]];
    let whole: Vec<_> = verbs.iter().map(|verb| node.updatectl(verb).unwrap().ok().unwrap().stdout).collect();
    let status = node.state().join("status.json");
    std::fs::write(&status, "{\"schema\": 1, \"sta").unwrap();
    for (verb, whole) in verbs.iter().zip(&whole) {
        let said = node.updatectl(verb).unwrap().ok().unwrap();
        assert!(said.stderr.starts_with("updatectl: ") && said.stderr.contains("status.json"), "{said}");
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
        if verb[0] == "explain" {
            assert!(said.stdout.contains("Nothing older than 1.0.0 is installed"), "{said}");
        } else {
            assert_eq!(said.stdout, *whole);
        }
    }
    let document = node.updatectl(&["explain", "--json"]).unwrap().ok().unwrap().json().unwrap();
    assert!(document["state"].is_null() && !document["reasons"].as_array().unwrap().is_empty(), "{document}");
    node.updatectl(&["status"]).unwrap().expect_code(1).unwrap();
    // It may be lost without harm.
    std::fs::remove_file(&status).unwrap();
    let said = node.updatectl(&["history"]).unwrap().ok().unwrap();
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), (whole[0].as_str(), ""));
    // Another folder is no node where all is well.
    let elsewhere = small.world.folder().join("elsewhere");
    let said =
        updatectl(&small, &["history", "--state-dir", path(&elsewhere).unwrap()]).expect_code(1).unwrap();
    assert!(said.stderr.contains("no engine has run"), "{said}");
}

#[test]
fn a_failure_is_a_document_where_documents_are_asked_for() {
    let small = Small::new().unwrap();
    let nowhere = ["--state-dir", "nowhere"];
    for (name, arguments, code) in [
        ("updatectl", &["status", "--json"][..], 1),
        ("updatectl", &["history", "--json"], 1),
        ("updatectl", &["--json", "config", "import", "no-such-file"], 1),
        ("updatectl", &["release", "list", "--json"], 2),
        ("updatectl", &["node", "list", "--json", "--server", "http://127.0.0.1:1", "--token", "x"], 1),
        ("updatectl", &["slots", "--json", "--bogus"], 2),
        ("updatectl", &["config", "import", "--json"], 2),
        ("update-engine", &["run", "--once", "--json", "--config", "no-such-file"], 1),
        ("update-engine", &["run", "--json", "--bogus"], 2),
    ] {
        let more = if code == 2 || arguments.contains(&"--config") || arguments.contains(&"list") {
            &[]
        } else {
            &nowhere[..]
        };
        let said = program(&small, name, &[arguments, more].concat()).expect_code(code).unwrap();
        let document = said.json().unwrap();
        let error = document["error"].as_str().unwrap();
        assert!(document["schema"] == 1 && said.stdout.lines().count() == 1, "{said}");
        // Wrong usage is told with the usage.
        let usage = said.stderr.contains("Usage:");
        let line = if usage { format!("error: {}", &error[..10]) } else { format!("{name}: {error}\n") };
        assert!(said.stderr.starts_with(&line) && !error.is_empty(), "{said}");
        // Text is asked for: data is not mixed with it.
        let text: Vec<_> = arguments.iter().copied().filter(|argument| *argument != "--json").collect();
        let said = program(&small, name, &[&text[..], more].concat()).expect_code(code).unwrap();
        assert!(said.stdout.is_empty() && !said.stderr.is_empty(), "{said}");
    }
}

/// The first run on a new disk has nothing to hold the command line against but the partition table. Believed, a slip of
/// the hand would confirm an empty slot, and the next update would overwrite the only system there is.
#[test]
fn a_slot_that_no_loader_starts_is_not_taken_for_the_running_one() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    node.booted = Slot::B;
    let disk = std::fs::read(&node.disk).unwrap();
    for _ in 0..2 {
        let said = node.engine(&[]).unwrap().expect_code(5).unwrap();
        let expected = "update-engine: slot B has priority 0 in the partition table, so no loader starts it";
        assert!(said.stderr.lines().last().unwrap().starts_with(expected), "{said}");
        assert!(said.stderr.contains("did you mean --booted A?") && said.stdout.is_empty(), "{said}");
        assert!(disk == std::fs::read(&node.disk).unwrap(), "the disk was written to");
    }
    node.booted = Slot::A;
    node.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.engine(&[]).unwrap();
    assert!(node.open_disk().unwrap().attributes(Slot::B).successful());
}

#[test]
fn a_damaged_record_is_told_by_what_only_reads() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    assert!(node.updatectl(&["status"]).unwrap().ok().unwrap().stderr.is_empty());
    let copies = ["state.json", "state.backup.json"].map(|name| node.state().join(name));
    std::fs::write(&copies[0], "garbage").unwrap();
    for verb in [&["status"][..], &["history"], &["quarantine", "list"], &["explain"]] {
        let said = node.updatectl(verb).unwrap().ok().unwrap();
        let told = said.stderr.matches("one copy of the record is damaged (state.json: ").count();
        assert_eq!(told, 1, "{said}");
    }
    std::fs::write(&copies[1], "garbage").unwrap();
    let said = node.updatectl(&["status"]).unwrap().ok().unwrap();
    assert!(said.stdout.starts_with("state:") && said.stderr.contains("is unreadable"), "{said}");
    copies.iter().for_each(|copy| std::fs::remove_file(copy).unwrap());
    let said = node.updatectl(&["status", "--json"]).unwrap().ok().unwrap();
    assert!(said.json().is_ok() && said.stderr.contains("are missing in"), "{said}");
}

/// A device that takes nothing: `ENOSPC`, always.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn the_guard_reboots_nothing_because_its_output_is_lost() {
    let small = Small::new().unwrap();
    let programs = &small.world.programs;
    for arguments in [
        &["confirm", "--after", "0", "--disk", "/nonexistent"][..],
        &["confirm", "--after", "0", "--disk", "/nonexistent", "--json"],
        &["confirm", "--after", "0", "--disk", "/nonexistent", "--log", "trace"],
        &["confirm", "--after", "0", "--disk", "/nonexistent", "--log", "a=nonsense"],
    ] {
        let mut command = Command::new(&programs.update_engine);
        let status = command.args(arguments).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
    // Wrong usage, which its unit excuses.
    let mut command = Command::new(&programs.update_engine);
    let status = command.args(["confirm", "--bogus"]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn an_output_that_takes_nothing_is_an_error_and_no_panic() {
    let small = Small::new().unwrap();
    for arguments in [["release", "list"], ["channel", "list"], ["node", "list"]] {
        let mut command = small.world.operator(&arguments).unwrap();
        command.stdout(full()).stderr(Stdio::piped());
        let said = command.output().unwrap();
        let line = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(1), "{arguments:?}: {line}");
        assert!(
            line.contains("No space left on device") && !line.contains("panicked"),
            "{arguments:?}: {line}"
        );
        // Nor where that cannot be said.
        assert_eq!(command.stdout(full()).stderr(full()).status().unwrap().code(), Some(1), "{arguments:?}");
    }
}

/// On a terminal (`script` makes one) there is a bar with the state before it; where the output goes elsewhere, a line and
/// no control character.
#[test]
fn watching_draws_on_a_terminal_and_nowhere_else() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    node.engine(&[]).unwrap().expect_code(0).unwrap();
    let watch = format!(
        "{} status --watch --state-dir {}",
        path(&small.world.programs.updatectl).unwrap(),
        path(&node.state()).unwrap()
    );
    let first = |command: &mut Command, end: &str| {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (mut seen, mut byte) = (Vec::new(), [0]);
        let mut screen = child.stdout.take().unwrap();
        while !String::from_utf8_lossy(&seen).contains(end) {
            let read = std::io::Read::read(&mut screen, &mut byte).unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        String::from_utf8(seen).unwrap()
    };
    let drawn = first(
        Command::new("script").args(["--quiet", "--command", &watch, "/dev/null"]).env("TERM", "xterm"),
        "fetched",
    );
    assert!(drawn.contains("\u{1b}[2K") && drawn.contains("staged       ["), "{drawn:?}");
    let plain = first(Command::new("sh").args(["-c", &format!("exec {watch}")]), "\n");
    assert!(plain.starts_with("staged: the next boot starts 1.1.0 in slot B"), "{plain:?}");
    assert!(!plain.contains(['\u{1b}', '\r']), "{plain:?}");
}
