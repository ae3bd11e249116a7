//! The engine as a service, on a private bus: properties and their signals, every method, who may call them, and what
//! happens when the engine, the bus or the service manager comes and goes.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use protocol::status::{StateName, Status};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;
use tests::bus::{Bus, Listener, Polkit, Told, Verdict};
use tests::node::{Node, Setup};
use tests::process::{Run, Running, run, start};
use tests::small::Small;
use tests::world::path;

const NAME: &str = "io.flipside.UpdateEngine1";
const OBJECT: &str = "/io/flipside/UpdateEngine1";

/// Whether `tests/run` runs all of it, so that nothing may step aside.
fn complete() -> bool {
    std::env::var_os("FLIPSIDE_TESTS_COMPLETE").is_some_and(|value| value == "yes")
}

/// A runtime for what a test itself does on the bus.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A node that only checks when it is asked to; `more` are further lines of its configuration.
fn quiet_node<'w>(small: &'w Small, name: &str, more: &str) -> Node<'w> {
    let state = small.world.folder().join(name).join("state");
    let config = format!(
        "\n[state]\ndir = \"{}\"\n\n[policy]\nfirst_check_s = 604800\npoll_interval_s = 604800\n{more}",
        state.display()
    );
    let setup = Setup { config: &config, ..small.setup() };
    Node::new(&small.world, name, small.world.address(), &setup).unwrap()
}

/// The engine as a service, once it is on the bus.
fn serve(node: &Node<'_>, bus: &Bus) -> Running {
    let mut engine = start(&mut node.service_command(bus, &[])).unwrap();
    engine.wait_for(&format!("on the bus as {NAME}")).unwrap();
    engine
}

fn updatectl(node: &Node<'_>, bus: &Bus, arguments: &[&str]) -> Run {
    run(&mut node.updatectl_on(bus, arguments)).unwrap()
}

fn end(engine: &Running) {
    let id = rustix::process::Pid::from_raw(i32::try_from(engine.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
}

#[test]
fn the_object_has_the_properties_and_methods_of_the_contract() {
    let (small, bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let node = quiet_node(&small, "node", "");
    let engine = serve(&node, &bus);
    let (properties, description) = runtime().block_on(async {
        let connection = bus.connect().await.unwrap();
        let proxy = zbus::Proxy::new(&connection, NAME, OBJECT, NAME).await.unwrap();
        let text = async |name: &str| proxy.get_property::<String>(name).await.unwrap();
        let number = async |name: &str| proxy.get_property::<u64>(name).await.unwrap();
        assert_eq!(number("BytesTotal").await + number("BytesDone").await, 0);
        assert_eq!(number("BytesDownloaded").await, 0);
        assert_eq!(text("StagedVersion").await, "");
        let texts = [
            text("State").await,
            text("BootedSlot").await,
            text("BootedVersion").await,
            text("Status").await,
        ];
        (texts, proxy.introspect().await.unwrap())
    });
    let [state, slot, version, status] = properties;
    assert_eq!((state.as_str(), slot.as_str(), version.as_str()), ("idle", "A", "1.0.0"));
    let status: Status = serde_json::from_str(&status).unwrap();
    assert_eq!(status.state, StateName::Idle);
    for (name, signature) in [
        ("State", "s"),
        ("Reason", "s"),
        ("Status", "s"),
        ("BytesTotal", "t"),
        ("BytesDone", "t"),
        ("BytesDownloaded", "t"),
        ("BootedSlot", "s"),
        ("BootedVersion", "s"),
        ("StagedVersion", "s"),
        ("StateDirectory", "s"),
    ] {
        let property = format!("<property name=\"{name}\" type=\"{signature}\" access=\"read\"");
        assert!(description.contains(&property), "no {property} in {description}");
    }
    for method in ["Check", "Update", "Reboot", "Rollback", "MarkGood", "Cancel", "QuarantineClear"] {
        assert!(description.contains(&format!("<method name=\"{method}\">")), "no {method} in {description}");
    }
    // An answer comes when what it follows from is written: the folder has its copy.
    updatectl(&node, &bus, &["cancel"]).expect_code(3).unwrap();
    // What updatectl shows is what the engine says: the folder's copy is gone.
    std::fs::remove_file(node.state().join("status.json")).unwrap();
    let said = updatectl(&node, &bus, &["status", "--json"]).ok().unwrap();
    assert_eq!(serde_json::from_value::<Status>(said.json().unwrap()).unwrap(), status);
    // Another state folder is another engine's business.
    let elsewhere = small.world.folder().join("elsewhere");
    let said = updatectl(&node, &bus, &["status", "--state-dir", path(&elsewhere).unwrap()]);
    assert!(said.code == Some(1) && said.stderr.contains("elsewhere"), "{said}");
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

#[test]
fn a_download_is_told_as_it_goes_on() {
    let (small, bus) = (Small::all_new().unwrap(), Bus::start().unwrap());
    let node = quiet_node(&small, "node", "\n[download]\nrate_limit_bytes_per_s = 400000\n");
    let engine = serve(&node, &bus);
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut listener = runtime.block_on(Listener::start(&bus, NAME, OBJECT)).unwrap();
    let update = start(&mut node.updatectl_on(&bus, &["update"])).unwrap();
    let told = runtime
        .block_on(listener.until(|told| told.text("Reason").is_some_and(|why| why.contains("next boot"))))
        .unwrap();
    let states: Vec<_> = told.iter().filter_map(|told| told.text("State")).collect();
    let expected = ["checking", "available", "downloading", "verifying", "staged"];
    let mut rest = expected.iter().peekable();
    for state in &states {
        rest.next_if(|next| **next == state);
    }
    // A state may pass between two signals; the long ones cannot.
    assert!(states.contains(&"downloading".to_owned()) && states.last().unwrap() == "staged", "{states:?}");
    assert_eq!(rest.count(), 0, "in this order: {states:?}");
    for name in ["BytesDone", "BytesDownloaded"] {
        let numbers: Vec<_> = told.iter().filter_map(|told| told.number(name)).collect();
        assert!(numbers.len() > 1 && numbers.is_sorted(), "{name}: {numbers:?}");
    }
    let progress = |told: &&Told| told.number("BytesDownloaded").is_some() && told.text("State").is_none();
    let ticks: Vec<_> = told.iter().filter(progress).map(|told| told.at).collect();
    let half_seconds = ticks[ticks.len() - 1].duration_since(ticks[0]).as_millis() / 500;
    assert!(
        ticks.len() as u128 <= half_seconds + 2,
        "{} signals in {half_seconds} half seconds",
        ticks.len()
    );
    let said = update.wait().unwrap().ok().unwrap();
    assert!(said.stdout.contains("staged"), "{said}");
    node.compare(Slot::B, "root", &small.v2).unwrap();
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

/// The boot that selection would choose now.
fn next_boot(node: &Node<'_>) -> Option<Slot> {
    node.open_disk().unwrap().select().map(|(slot, _)| slot)
}

#[test]
fn every_method_does_what_it_says() {
    let (small, bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let mut node = quiet_node(&small, "node", "");
    let engine = serve(&node, &bus);
    let ctl = |node: &Node<'_>, code: i32, arguments: &[&str]| {
        updatectl(node, &bus, arguments).expect_code(code).unwrap()
    };
    // Nothing to go back to, to cancel, to confirm, to forget; and a disk image is not rebooted.
    ctl(&node, 5, &["rollback"]);
    let said = ctl(&node, 5, &["reboot", "--json"]);
    let document = said.json().unwrap();
    assert!(document["schema"] == 1 && document["error"].as_str().unwrap().contains("disk image"), "{said}");
    assert_eq!(said.stderr.lines().count(), 1, "{said}");
    ctl(&node, 3, &["cancel"]);
    ctl(&node, 3, &["mark-good"]);
    ctl(&node, 3, &["quarantine", "clear"]);

    let said = ctl(&node, 0, &["check", "--json"]).json().unwrap();
    assert_eq!(said["status"]["last_check"]["result"], "update", "{said}");
    // What the check found is being installed, or is already; update says when it is through.
    let said = updatectl(&node, &bus, &["update"]);
    assert!(matches!(said.code, Some(0 | 3)), "{said}");
    assert_eq!(next_boot(&node), Some(Slot::B), "{said}");
    let said = ctl(&node, 3, &["check"]);
    assert!(said.stdout.contains("the next boot starts 1.1.0"), "{said}");
    ctl(&node, 0, &["cancel"]);
    assert_eq!(next_boot(&node), Some(Slot::A));
    ctl(&node, 0, &["update", "--force-retry"]);
    assert_eq!(next_boot(&node), Some(Slot::B));
    end(&engine);
    engine.wait().unwrap().ok().unwrap();

    // In the new slot it confirms by itself, and can be sent back.
    assert_eq!(node.boot().unwrap(), Slot::B);
    let engine = serve(&node, &bus);
    let said = updatectl(&node, &bus, &["mark-good"]);
    assert!(matches!(said.code, Some(0 | 3)), "confirmed now, or already: {said}");
    ctl(&node, 3, &["check"]);
    let status: Status =
        serde_json::from_value(ctl(&node, 0, &["status", "--json"]).json().unwrap()).unwrap();
    let booted = status.booted.unwrap();
    assert_eq!((booted.slot, booted.confirmed), (Slot::B, true));
    ctl(&node, 0, &["rollback"]);
    assert_eq!(next_boot(&node), Some(Slot::A));
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
    assert_eq!(node.boot().unwrap(), Slot::A);
    let engine = serve(&node, &bus);
    let said = updatectl(&node, &bus, &["mark-good"]);
    assert!(matches!(said.code, Some(0 | 3)), "confirmed now, or already: {said}");
    ctl(&node, 5, &["check"]);
    assert!(ctl(&node, 0, &["quarantine", "list", "--json"]).stdout.contains("1.1.0"));
    ctl(&node, 0, &["quarantine", "clear"]);
    ctl(&node, 0, &["update"]);
    assert_eq!(next_boot(&node), Some(Slot::B));
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

/// The same command as a user who is not root; none where this is not root.
fn as_nobody(bus: &Bus, command: &Command) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        assert!(!complete(), "root is needed");
        return None;
    }
    // Where every user may go.
    let program = bus.folder().join("updatectl");
    std::fs::copy(command.get_program(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    bus.serve(nobody.current_dir("/"));
    Some(nobody)
}

#[test]
fn who_is_not_root_may_read_and_needs_polkit_for_the_rest() {
    let (small, bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let node = quiet_node(&small, "node", "");
    let engine = serve(&node, &bus);
    let nobody = |arguments: &[&str]| {
        let mut command = as_nobody(&bus, &node.updatectl_on(&bus, &[]))?;
        Some(run(command.args(arguments)).unwrap())
    };
    let Some(said) = nobody(&["status", "--json"]) else {
        eprintln!("not run: another user needs root");
        return;
    };
    assert_eq!(said.ok().unwrap().json().unwrap()["booted"]["version"], "1.0.0");

    // Without polkit only root may.
    let said = nobody(&["rollback", "--json"]).unwrap().expect_code(5).unwrap();
    assert!(said.json().unwrap()["error"].as_str().unwrap().contains("polkit does not run"), "{said}");
    assert_eq!(said.stderr.lines().count(), 1, "{said}");
    updatectl(&node, &bus, &["cancel"]).expect_code(3).unwrap();

    let runtime = runtime();
    let _entered = runtime.enter();
    let (polkit, _connection) = runtime.block_on(Polkit::start(&bus, Verdict::No)).unwrap();
    for (arguments, action) in [
        (&["check"][..], "check"),
        (&["update"], "update"),
        (&["reboot"], "reboot"),
        (&["rollback"], "rollback"),
        (&["mark-good"], "mark-good"),
        (&["cancel"], "cancel"),
        (&["quarantine", "clear"], "quarantine-clear"),
    ] {
        let said = nobody(arguments).unwrap().expect_code(5).unwrap();
        assert!(said.stderr.contains("polkit does not allow"), "{said}");
        let asked = polkit.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!(asked[0].action, format!("io.flipside.update-engine.{action}"));
        assert_eq!(
            (asked[0].kind.as_str(), asked[0].flags),
            ("system-bus-name", 0),
            "no terminal, no password"
        );
        assert!(asked[0].name.starts_with(':'), "{asked:?}");
    }
    assert_eq!(node.status().unwrap().state, StateName::Idle, "nothing was done");

    polkit.answer(Verdict::Challenge);
    let said = nobody(&["check"]).unwrap().expect_code(5).unwrap();
    assert!(said.stderr.contains("password"), "{said}");

    polkit.answer(Verdict::Yes);
    nobody(&["check"]).unwrap().ok().unwrap();
    // Root is not asked about.
    drop(polkit.asked());
    updatectl(&node, &bus, &["quarantine", "clear"]).expect_code(3).unwrap();
    assert!(polkit.asked().is_empty());
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

#[test]
fn a_watcher_outlives_the_engine_and_the_bus() {
    let (small, mut bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let node = quiet_node(&small, "node", "");
    let mut engine = serve(&node, &bus);
    let mut watcher = start(&mut node.updatectl_on(&bus, &["status", "--watch", "--json"])).unwrap();
    watcher.wait_for("\"state\":\"idle\"").unwrap();

    engine.kill().unwrap();
    engine.wait().unwrap();
    watcher.wait_for("the engine is gone").unwrap();
    let mut engine = serve(&node, &bus);
    updatectl(&node, &bus, &["check", "--no-wait"]).ok().unwrap();
    let line = watcher.wait_for("\"activated\":true").unwrap();
    assert_eq!(serde_json::from_str::<Status>(&line).unwrap().schema, 1, "one document a line");

    // The watcher follows by the bus or by the folder, as it found the engine: it goes on in both cases.
    bus.stop();
    engine.wait_for("the connection to the bus is lost").unwrap();
    bus.go_on().unwrap();
    engine.wait_for(&format!("on the bus as {NAME}")).unwrap();
    updatectl(&node, &bus, &["cancel"]).ok().unwrap();
    watcher.wait_for("\"staged\":null").unwrap();
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

#[test]
fn without_a_bus_the_engine_goes_on_and_updatectl_uses_the_folder() {
    let (small, mut bus) = (Small::new().unwrap(), Bus::start().unwrap());
    bus.stop();
    let node = quiet_node(&small, "node", "");
    let mut engine = start(&mut node.service_command(&bus, &[])).unwrap();
    engine.wait_for("not on the bus, and going on without it").unwrap();
    assert_eq!(updatectl(&node, &bus, &["status", "--json"]).ok().unwrap().json().unwrap()["state"], "idle");
    let said = updatectl(&node, &bus, &["update"]).ok().unwrap();
    assert_eq!(next_boot(&node), Some(Slot::B), "{said}");
    updatectl(&node, &bus, &["check"]).expect_code(3).unwrap();
    // The folder is the engine's while it runs.
    let disk = path(&node.disk).unwrap();
    let said = updatectl(&node, &bus, &["cancel", "--disk", disk]).expect_code(1).unwrap();
    assert!(said.stderr.contains("another engine"), "{said}");
    // The bus comes later.
    bus.go_on().unwrap();
    engine.wait_for(&format!("on the bus as {NAME}")).unwrap();
    updatectl(&node, &bus, &["cancel"]).ok().unwrap();
    assert_eq!(next_boot(&node), Some(Slot::A));
    end(&engine);
    let said = engine.wait().unwrap().ok().unwrap();
    assert_eq!(said.stderr.matches("not on the bus").count(), 1, "one warning: {said}");

    // No engine at all: done here, on the folder and the disk.
    updatectl(&node, &bus, &["check"]).expect_code(1).unwrap();
    updatectl(&node, &bus, &["update", "--disk", disk]).ok().unwrap();
    assert_eq!(next_boot(&node), Some(Slot::B));
}

/// Runs `updatectl`, which has nothing to say beside its data.
fn without_a_word(node: &Node<'_>, bus: &Bus, arguments: &[&str]) -> Run {
    let said = updatectl(node, bus, arguments).ok().unwrap();
    assert!(said.stderr.is_empty(), "{said}");
    said
}

#[test]
fn an_engine_is_asked_for_its_folder() {
    let (small, bus) = (Small::new().unwrap(), Bus::start().unwrap());
    // Its configuration does not say where the state is: the engine's own command line does.
    let config = "\n[policy]\nfirst_check_s = 604800\npoll_interval_s = 604800\n";
    let setup = Setup { config, ..small.setup() };
    let node = Node::new(&small.world, "node", small.world.address(), &setup).unwrap();
    let engine = serve(&node, &bus);
    updatectl(&node, &bus, &["update"]).ok().unwrap();
    let history = without_a_word(&node, &bus, &["history", "--json"]).json().unwrap();
    assert!(!history["events"].as_array().unwrap().is_empty(), "{history}");
    assert!(without_a_word(&node, &bus, &["explain"]).stdout.contains("Version 1.1.0 is activated"));
    without_a_word(&node, &bus, &["quarantine", "list"]);
    // The engine knows it even where the configuration cannot be read.
    std::fs::write(node.config(), "[state]\ndir = 7\n").unwrap();
    without_a_word(&node, &bus, &["history"]);
    without_a_word(&node, &bus, &["explain"]);
    without_a_word(&node, &bus, &["status"]);
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

#[test]
fn a_configuration_that_names_another_folder_means_another_engine() {
    let (small, bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let (node, other) = (quiet_node(&small, "node", ""), quiet_node(&small, "other", ""));
    let engine = serve(&node, &bus);
    updatectl(&node, &bus, &["update"]).ok().unwrap();
    assert_eq!(
        updatectl(&node, &bus, &["status", "--json"]).ok().unwrap().json().unwrap()["state"],
        "staged"
    );
    // No engine has run on it.
    let said = updatectl(&other, &bus, &["status"]).expect_code(1).unwrap();
    assert!(said.stderr.contains("no engine has run"), "{said}");
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
}

#[test]
fn a_folder_that_serves_in_place_of_the_bus_is_told() {
    let (small, mut bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let node = quiet_node(&small, "node", "");
    let engine = serve(&node, &bus);
    end(&engine);
    engine.wait().unwrap().ok().unwrap();
    let verbs = [&["status"][..], &["explain"], &["history"], &["quarantine", "list"]];
    // No engine, then no bus: as it should be.
    for verb in verbs {
        without_a_word(&node, &bus, verb);
    }
    bus.stop();
    for verb in verbs {
        without_a_word(&node, &bus, verb);
    }
    bus.go_on().unwrap();
    // Something has the engine's name, and does not answer as this version does.
    let runtime = runtime();
    let _other = runtime.block_on(async {
        let connection = bus.connect().await.unwrap();
        // It answers, that it has no such object.
        connection.object_server();
        connection.request_name(NAME).await.unwrap();
        connection
    });
    for verb in verbs {
        let said = updatectl(&node, &bus, verb).ok().unwrap();
        assert!(said.stderr.contains("going by the state folder"), "{said}");
    }
    for verb in [&["history"][..], &["quarantine", "list"]] {
        assert_eq!(updatectl(&node, &bus, verb).stderr.lines().count(), 1);
    }
    // A bus that cannot be used.
    let mut command = node.updatectl_on(&bus, &["history"]);
    let said = run(command.env("DBUS_SYSTEM_BUS_ADDRESS", "nonsense")).unwrap().ok().unwrap();
    assert!(said.stderr.starts_with("updatectl: the system bus cannot be used: "), "{said}");
    assert_eq!(said.stderr.lines().count(), 1, "{said}");
}

#[test]
fn a_second_engine_does_not_take_the_name() {
    let (small, bus) = (Small::new().unwrap(), Bus::start().unwrap());
    let (first, second) = (quiet_node(&small, "first", ""), quiet_node(&small, "second", ""));
    let first_engine = serve(&first, &bus);
    let mut second_engine = start(&mut second.service_command(&bus, &[])).unwrap();
    let line = second_engine.wait_for("not on the bus, and going on without it").unwrap();
    assert!(line.contains("another program has the name"), "{line}");
    end(&first_engine);
    first_engine.wait().unwrap().ok().unwrap();
    second_engine.wait_for(&format!("on the bus as {NAME}")).unwrap();
    end(&second_engine);
    second_engine.wait().unwrap().ok().unwrap();
}

/// What the engine says to its service manager, up to the first message that contains `last`.
fn told(socket: &UnixDatagram, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length =
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {last:?} in {all:?}: {error}"));
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let end = text.contains(last);
        all.push(text);
        if end {
            return all;
        }
    }
}

#[test]
fn the_service_manager_hears_of_ready_status_watchdog_and_stopping() {
    let (small, bus) = (Small::all_new().unwrap(), Bus::start().unwrap());
    let mut node = quiet_node(&small, "node", "");
    let address = bus.folder().join("notify");
    let socket = UnixDatagram::bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let as_service = |node: &Node<'_>, more: &[&str]| {
        let mut command = node.service_command(&bus, more);
        command.env("NOTIFY_SOCKET", &address).env("WATCHDOG_USEC", "200000");
        start(&mut command).unwrap()
    };
    let engine = as_service(&node, &[]);
    let said = told(&socket, "READY=1");
    assert!(said.last().unwrap().contains("STATUS=idle"), "{said:?}");
    told(&socket, "WATCHDOG=1");
    updatectl(&node, &bus, &["update"]).ok().unwrap();
    let said = told(&socket, "STATUS=staged");
    assert!(said.iter().any(|text| text.contains("STATUS=downloading")), "{said:?}");
    assert!(said.iter().all(|text| !text.contains("READY=1")), "only once: {said:?}");
    told(&socket, "WATCHDOG=1");
    end(&engine);
    told(&socket, "STOPPING=1");
    engine.wait().unwrap().ok().unwrap();

    // An operation that blocks its thread does not silence the loop.
    while socket.set_nonblocking(true).is_ok() && socket.recv(&mut [0; 4096]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    node.boot_id = Some("boot-2".to_owned());
    assert_eq!(node.boot().unwrap(), Slot::B);
    let mut engine = as_service(&node, &["--pause-at", "confirming"]);
    engine.wait_for("paused confirming").unwrap();
    for _ in 0..3 {
        told(&socket, "WATCHDOG=1");
    }
    engine.kill().unwrap();
    engine.wait().unwrap();
}
