//! Where a value comes from, and what is said about one that cannot be used.

use super::*;
use machine::Strategy;

const NEEDED: &str = "[server]\nurl = \"https://u.example\"\n[identity]\nchannel = \"stable\"\n";

fn fragment(path: &str, text: &str) -> Fragment {
    Fragment::parse(Path::new(path), text).unwrap()
}

fn settings(text: &str) -> Result<Settings, String> {
    let merged = Fragment::parse(Path::new("/etc/node.toml"), text).map(|f| Merged::from_fragments([f]));
    merged.and_then(|merged| Settings::from_merged(&merged)).map_err(|error| crate::error::chain(&error))
}

/// Files as `(folder, name, group)`, and the group that results with the file it comes from.
#[test]
fn precedence() {
    type Case = (&'static [(usize, &'static str, &'static str)], &'static str, &'static str);
    let cases: &[Case] = &[
        (&[], "default", "default"),
        (&[(0, "10-a.toml", "vendor")], "vendor", "0/10-a.toml:2"),
        // The same name: the later folder's file replaces the earlier one.
        (&[(0, "10-a.toml", "vendor"), (1, "10-a.toml", "runtime")], "runtime", "1/10-a.toml:2"),
        (&[(0, "10-a.toml", "vendor"), (2, "10-a.toml", "site")], "site", "2/10-a.toml:2"),
        (&[(0, "a.toml", "1"), (1, "a.toml", "2"), (2, "a.toml", "3")], "3", "2/a.toml:2"),
        // Different names: the later name wins, wherever it lies.
        (&[(0, "20-b.toml", "vendor"), (2, "10-a.toml", "site")], "vendor", "0/20-b.toml:2"),
        (&[(0, "10-a.toml", "vendor"), (1, "20-b.toml", "runtime")], "runtime", "1/20-b.toml:2"),
        // Other endings are no fragments.
        (&[(0, "10-a.toml", "vendor"), (2, "20-b.toml.bak", "site")], "vendor", "0/10-a.toml:2"),
    ];
    for (files, group, origin) in cases {
        let root = tempfile::tempdir().unwrap();
        let folders: Vec<_> = (0..3).map(|i| root.path().join(i.to_string())).collect();
        for (folder, name, group) in *files {
            std::fs::create_dir_all(&folders[*folder]).unwrap();
            std::fs::write(folders[*folder].join(name), format!("[identity]\ngroup = \"{group}\"\n"))
                .unwrap();
        }
        let merged = Merged::from_folders(&folders).unwrap();
        let effective = merged.effective().into_iter().find(|e| e.key == "identity.group").unwrap();
        assert_eq!(effective.value.unwrap(), format!("\"{group}\""), "{files:?}");
        let found = effective.origin.unwrap().to_string();
        assert!(found.ends_with(origin), "{files:?}: {found}");
    }
}

#[test]
fn a_replaced_file_leaves_nothing_behind_but_single_values_are_overridden_one_by_one() {
    let root = tempfile::tempdir().unwrap();
    let folders: Vec<_> = (0..3).map(|i| root.path().join(i.to_string())).collect();
    for (folder, name, text) in [
        (0, "10-a.toml", "[health]\ndeadline_s = 10\ncheck_timeout_s = 5\n"),
        (0, "20-b.toml", "[policy]\ntries = 5\npoll_interval_s = 60\n"),
        (2, "10-a.toml", "[health]\ndeadline_s = 20\n"),
        (1, "30-c.toml", "[policy]\ntries = 7\n"),
    ] {
        std::fs::create_dir_all(&folders[folder]).unwrap();
        std::fs::write(folders[folder].join(name), text).unwrap();
    }
    std::fs::write(folders[0].join("05-needed.toml"), NEEDED).unwrap();
    let settings = Settings::from_merged(&Merged::from_folders(&folders).unwrap()).unwrap();
    assert_eq!(settings.health.deadline.as_secs(), 20);
    assert_eq!(settings.health.check_timeout.as_secs(), 60, "the default: the replaced file does not count");
    assert_eq!((settings.policy.tries, settings.policy.poll_interval_s), (7, 60));
}

#[test]
fn the_issues_configuration_is_enough() {
    let text = format!(
        "{NEEDED}group = \"default\"\n[trust]\nroot = \"keys/root.json\"\n[reboot]\nstrategy = \"off\"\n"
    );
    let settings = settings(&text).unwrap();
    assert_eq!(settings.server.url.as_str(), "https://u.example/");
    assert_eq!(settings.root, Path::new("/etc/keys/root.json"), "relative to the file that names it");
    assert_eq!(settings.policy.strategy, Strategy::Off);
    assert_eq!(settings.disk.layout, disk::SlotLayout::default());
    assert!(!settings.health.dir_is_set && !settings.hooks.dir_is_set);
    assert_eq!(settings.reboot.command, None, "logind reboots where no command is set");
    assert!(settings.health.boot_complete && !settings.health.require_server && settings.reboot.warn);
}

#[test]
fn the_settle_time_leaves_time_to_boot() {
    for (health, expected) in [
        ("", 20_000),
        ("settle_s = 0", 0),
        ("settle_s = 90", 90_000),
        ("settle_s = 400", 150_000),
        ("deadline_s = 15", 7500),
    ] {
        let settings = settings(&format!("{NEEDED}[health]\n{health}\n")).unwrap();
        assert_eq!(settings.health.settle.as_millis(), expected, "{health}");
    }
}

/// What is wrong with each of these files, completed where they lack what is required, is told with this.
fn each_is_told(cases: &[(&str, &str)]) {
    for &(text, part) in cases {
        let text = if text.contains("[server]") || text.contains("server =") {
            text.to_owned()
        } else {
            format!("{text}{NEEDED}")
        };
        let error = settings(&text).unwrap_err();
        assert!(error.contains(part), "{text:?}: {error}");
    }
}

#[test]
fn every_mistake_names_its_place() {
    let cases = [
        (
            "[server]\nurll = \"x\"\n",
            "/etc/node.toml:2: unknown key server.urll: known in [server]: url, ca, cert, key",
        ),
        ("[sever]\nurl = \"x\"\n", "/etc/node.toml:1: unknown key sever: known tables: server, identity"),
        ("server = 3\n", "/etc/node.toml:1: unknown key server"),
        ("[server]\nurl = [\n", "/etc/node.toml:"),
        (
            "\n\n[policy]\n\ntries = 16\n",
            "/etc/node.toml:5: policy.tries: expected a number from 1 to 15, found 16",
        ),
        (
            "[policy]\ntries = \"3\"\n",
            "/etc/node.toml:2: policy.tries: invalid type: string \"3\", expected i64",
        ),
        ("[reboot]\nstrategy = \"later\"\n", "/etc/node.toml:2: reboot.strategy: unknown variant `later`"),
        ("[reboot]\nstrategy = \"window\"\n", "reboot.windows: strategy window needs at least one window"),
        ("[reboot]\nwindows = [{ start = \"25:00\", length_s = 60 }]\n", "expected a start like 02:00"),
        ("[reboot]\ncommand = []\n", "/etc/node.toml:2: reboot.command: expected a program"),
        (
            "[health]\nrequired_units = [\"sshd\"]\n",
            "/etc/node.toml:2: health.required_units: expected units with",
        ),
        ("[hooks]\ntimeout_s = 0\n", "hooks.timeout_s: expected a number from 1 to 86400, found 0"),
        ("[disk]\nroles = [{ role = \"boot\", a = \"A\", b = \"B\" }]\n", "expected a role \"root\""),
        (
            "[disk]\nroles = [{ role = \"root\", a = \"R\", b = \"R\" }]\n",
            "does not have one partition a and one b",
        ),
        ("[lock]\nbackend = \"etcd\"\n", "lock.etcd.endpoints: backend etcd needs it, found nothing"),
        (
            "[lock]\nbackend = \"fleetlock\"\n",
            "lock.fleetlock.base_url: backend fleetlock needs it, found nothing",
        ),
        ("[lock]\nbackend = \"zookeeper\"\n", "/etc/node.toml:2: lock.backend: unknown variant `zookeeper`"),
        (
            "[lock]\nbackend = \"etcd\"\n[lock.etcd]\nendpoints = [\"http://a:1/x\"]\n",
            "/etc/node.toml:4: lock.etcd.endpoints: expected addresses like https://etcd1.example.org:2379, found \"http://a:1/x\"",
        ),
        (
            "[lock]\nbackend = \"etcd\"\netcd = { endpoints = [\"http://a:1\"], cert = \"c\" }\n",
            "lock.etcd.key: lock.etcd.cert needs it",
        ),
        (
            "[lock]\nbackend = \"etcd\"\netcd = { endpoints = [\"http://a:1\"], user = \"u\" }\n",
            "lock.etcd.password_file: lock.etcd.user needs it",
        ),
        (
            "[lock]\ntimeout_s = 10\ndeadline_s = 9\n",
            "/etc/node.toml:3: lock.deadline_s: expected at least lock.timeout_s (10), found 9",
        ),
        ("[lock]\nzone = \"a b\"\n", "/etc/node.toml:2: lock.zone: not a valid zone"),
        ("[trust]\nroot = \"\"\n", "/etc/node.toml:2: trust.root: expected a path"),
        ("[download]\nstall_timeout_s = 0\n", "expected a number from 1 to 3600, found 0"),
    ];
    each_is_told(&cases);
    for url in ["ftp://x/", "x", "http://x/?a=b", "http://x/#a"] {
        let error = settings(&format!("[server]\nurl = {url:?}\n[identity]\nchannel = \"a\"\n")).unwrap_err();
        assert!(error.contains("expected an http or https address"), "{error}");
    }
    assert!(
        settings("[identity]\nchannel = \"a/b\"\n[server]\nurl = \"http://x\"\n")
            .unwrap_err()
            .contains(":2: ")
    );
}

#[test]
fn every_mistake_about_alerts_names_its_place() {
    each_is_told(&[
        (
            "[reboot.alerts]\nignore = [\"Watchdog\"]\n",
            "/etc/node.toml:2: reboot.alerts.ignore: it needs reboot.alerts.url, found nothing there",
        ),
        (
            "[reboot.alerts]\nurl = \"http://u:secret@p\"\n",
            "/etc/node.toml:2: reboot.alerts.url: expected an address without user and password",
        ),
        (
            "[reboot.alerts]\nurl = \"http://p\"\nquery = \" \"\n",
            "/etc/node.toml:3: reboot.alerts.query: expected a query in PromQL",
        ),
        (
            "[reboot.alerts]\nurl = \"http://p\"\nignore = [\"\"]\n",
            "/etc/node.toml:3: reboot.alerts.ignore: expected names of alerts",
        ),
        (
            "[reboot.alerts]\nurl = \"http://p\"\ntimeout_s = 0\n",
            "/etc/node.toml:3: reboot.alerts.timeout_s: expected a number from 1 to 300, found 0",
        ),
    ]);
}

#[test]
fn what_is_missing_is_told_with_its_meaning() {
    let error = settings("[server]\nurl = \"http://x\"\n").unwrap_err();
    assert!(error.contains("identity.channel is not set: the channel this node follows"), "{error}");
    assert!(error.contains("/etc/node.toml"), "{error}");
    let nothing = Settings::from_merged(&Merged::default()).unwrap_err().to_string();
    assert!(nothing.contains("server.url") && nothing.contains(FOLDERS[2]), "{nothing}");
}

#[test]
fn a_part_can_be_judged_and_shown_without_the_rest() {
    let merged = |text: &str| Merged::from_fragments([fragment("/etc/part.toml", text)]);
    let problems = |text: &str| {
        let Problems { missing, invalid } = merged(text).problems();
        (missing, invalid.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let both = vec!["server.url", "identity.channel"];
    assert_eq!(problems(""), (both.clone(), vec![]));
    assert_eq!(problems("[server]\nurl = \"http://x\"\n"), (vec!["identity.channel"], vec![]));
    assert_eq!(problems(NEEDED), (vec![], vec![]));
    let (missing, invalid) = problems("[policy]\ntries = 99\n[health]\nsettle_s = -1\n[server]\nurl = 3\n");
    assert_eq!(missing, ["identity.channel"]);
    assert_eq!(invalid.len(), 3, "each of them: {invalid:?}");
    for part in
        ["/etc/part.toml:2: policy.tries", "/etc/part.toml:4: health.settle_s", "part.toml:6: server.url"]
    {
        assert!(invalid.iter().any(|line| line.contains(part)), "{part}: {invalid:?}");
    }
    // The window that was left out is not missed.
    let (_, invalid) =
        problems("[reboot]\nstrategy = \"window\"\nwindows = [{ start = \"9\", length_s = 60 }]\n");
    assert_eq!(invalid.len(), 1, "{invalid:?}");

    let part = merged("[state]\ndir = \"s\"\n[disk]\ndevice = \"d\"\n[policy]\ntries = 99\n");
    assert_eq!(settings::state_dir(&part).unwrap(), Path::new("/etc/s"));
    assert_eq!(settings::Disk::from_merged(&part).unwrap().device.unwrap(), Path::new("/etc/d"));
    let wrong = merged("[state]\ndir = \"\"\n[disk]\nroles = []\n");
    assert!(settings::state_dir(&wrong).is_err() && settings::Disk::from_merged(&wrong).is_err());
}

#[test]
fn every_required_setting_has_a_stand_in() {
    for key in keys::KEYS {
        let required = key.default.is_none() && key.doc.ends_with("required");
        assert_eq!(keys::STAND_INS.iter().any(|(name, _)| *name == key.path), required, "{}", key.path);
    }
}

#[test]
fn windows_and_roles_are_read() {
    let text = format!(
        "{NEEDED}[reboot]\nstrategy = \"window\"\ntime_zone = \"Europe/Berlin\"\n\
         windows = [{{ days = [\"sat\", \"sun\"], start = \"02:30\", length_s = 3600 }}]\n\
         [disk]\nroles = [{{ role = \"root\", a = \"USR-A\", b = \"USR-B\" }}]\n"
    );
    let settings = settings(&text).unwrap();
    assert_eq!(settings.policy.windows[0].days.len(), 2);
    assert_eq!(settings.policy.windows[0].start.to_string(), "02:30:00");
    assert_eq!(settings.disk.layout.roles[0].b, "USR-B");
}

#[test]
fn a_lock_is_read_with_what_its_backend_needs() {
    use settings::LockBackend;
    let plain = settings(NEEDED).unwrap().lock;
    assert!(matches!(plain.backend, LockBackend::Server));
    assert_eq!((plain.group.as_str(), plain.zone, plain.priority), ("default", None, 0));
    let etcd = settings(&format!(
        "{NEEDED}group = \"web\"\n[lock]\nbackend = \"etcd\"\nzone = \"r1\"\n\
         [lock.etcd]\nendpoints = [\"http://a:1\", \"https://[::1]:2\"]\nprefix = \"/x/\"\nca = \"ca.pem\"\n\
         user = \"u\"\npassword_file = \"/run/p\"\n"
    ))
    .unwrap()
    .lock;
    assert_eq!((etcd.group.as_str(), etcd.zone.unwrap().as_str()), ("web", "r1"));
    let LockBackend::Etcd(etcd) = etcd.backend else { panic!() };
    assert_eq!((etcd.endpoints.len(), etcd.prefix.as_str()), (2, "/x"));
    assert_eq!(etcd.ca.unwrap(), Path::new("/etc/ca.pem"));
    assert_eq!(etcd.login.unwrap().user, "u");
    let text = format!(
        "{NEEDED}[lock]\nbackend = \"fleetlock\"\ngroup = \"g\"\nfleetlock.base_url = \"http://l/b\"\n"
    );
    let fleet_lock = settings(&text).unwrap().lock;
    assert_eq!(fleet_lock.group.as_str(), "g");
    let LockBackend::FleetLock { base_url } = fleet_lock.backend else { panic!() };
    assert_eq!(base_url.as_str(), "http://l/b/");
}

#[test]
fn alerts_are_asked_for_where_a_server_is_set() {
    assert!(settings(NEEDED).unwrap().reboot.alerts.is_none());
    let alerts = |rest: &str| {
        let text = format!("{NEEDED}[reboot.alerts]\nurl = \"https://p.example/prometheus\"\n{rest}");
        settings(&text).unwrap().reboot.alerts.unwrap()
    };
    let plain = alerts("");
    assert_eq!(plain.url.as_str(), "https://p.example/prometheus/");
    assert_eq!(plain.query, "ALERTS{alertstate=\"firing\"}");
    assert_eq!(
        (plain.ignore.len(), plain.timeout.as_secs(), plain.token_file, plain.ca),
        (0, 10, None, None)
    );
    let all = alerts(
        "query = 'up == 0'\nignore = [\"Watchdog\"]\ntimeout_s = 3\ntoken_file = \"t\"\nca = \"/c\"\n",
    );
    assert_eq!((all.query.as_str(), all.timeout.as_secs()), ("up == 0", 3));
    assert!(all.ignore.contains("Watchdog"));
    assert_eq!((all.token_file.unwrap(), all.ca.unwrap()), ("/etc/t".into(), "/c".into()));
}

#[test]
fn defaults_are_valid_and_later_fragments_win() {
    let merged = Merged::from_fragments([
        fragment("/usr/a.toml", NEEDED),
        fragment("/etc/b.toml", "[identity]\nchannel = \"beta\"\n"),
    ]);
    let settings = Settings::from_merged(&merged).unwrap();
    assert_eq!(settings.identity.channel.as_str(), "beta");
    let beta = merged.effective().into_iter().find(|e| e.key == "identity.channel").unwrap();
    assert_eq!(beta.origin.unwrap().to_string(), "/etc/b.toml:2");
}

#[test]
fn the_documentation_has_the_same_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let text = std::fs::read_to_string(&path).unwrap();
    for key in keys::KEYS {
        let default = key.default.map_or(String::new(), |default| format!("`{default}`"));
        let row = format!("| `{}` | {default} | {} |", key.path, key.doc);
        assert!(text.contains(&row), "docs/operating.md lacks this row:\n{row}");
    }
}
