//! What becomes of each key; that every key of a source is either taken over or named; whole fragments as snapshots.

mod lock;

use super::{Format, ImportError, Imported, NoteKind, import};
use crate::config::fragment::Fragment;
use std::path::Path;

const CLOUD_CONFIG: &str = include_str!("samples/cloud-config.yml");
const UPDATE_CONF: &str = include_str!("samples/update.conf");
const LOCKSMITH: &str = include_str!("samples/locksmith.conf");
const ZINCATI: &str = include_str!("samples/zincati.toml");

fn value(imported: &Imported, key: &str) -> String {
    imported.settings.iter().find(|s| s.key == key).map_or("-".to_owned(), |s| s.value.to_string())
}

fn noted(imported: &Imported, key: &str) -> Option<NoteKind> {
    imported.notes.iter().find(|note| note.key == key).map(|note| note.kind)
}

#[test]
fn whole_fragments() {
    insta::assert_snapshot!(import(CLOUD_CONFIG).unwrap().fragment("user-data"));
    insta::assert_snapshot!(import(UPDATE_CONF).unwrap().fragment("update.conf"));
    insta::assert_snapshot!(import(ZINCATI).unwrap().fragment("55-site.toml"));
    insta::assert_snapshot!(import(LOCKSMITH).unwrap().fragment("locksmith.conf"));
}

#[test]
fn what_it_is_is_told_from_its_content() {
    let cases = [
        (CLOUD_CONFIG, Some(Format::CloudConfig)),
        (UPDATE_CONF, Some(Format::UpdateConf)),
        (ZINCATI, Some(Format::Zincati)),
        ("#cloud-config\n", Some(Format::CloudConfig)),
        ("coreos:\n  update:\n    group: alpha\n", Some(Format::CloudConfig)),
        ("\n# only this\nexport GROUP='alpha'\n", Some(Format::UpdateConf)),
        ("updates.strategy = \"immediate\"\n", Some(Format::Zincati)),
        // A mistake in one line does not hide what the others are.
        ("GROUP=beta\ngarbage line\n", Some(Format::UpdateConf)),
        ("[Unit]\nDescription=x\n", None),
        ("server:\n  url: x\n", None),
        // A fragment of our own needs no import.
        ("[identity]\nchannel = \"stable\"\n[server]\nurl = \"http://x\"\n", None),
    ];
    for (text, format) in cases {
        match (import(text), format) {
            (Ok(imported), Some(format)) => assert_eq!(imported.format, format, "{text}"),
            (Err(ImportError::Unknown), None) => {}
            (other, _) => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn a_line_that_is_no_entry_is_named_and_the_others_are_taken() {
    let imported =
        import("GROUP=beta\ngarbage line\nexport x=1\n\n# fine\nREBOOT_STRATEGY=reboot\n").unwrap();
    // It may have been the window.
    assert_eq!(value(&imported, "reboot.strategy"), "\"off\"");
    assert_eq!(value(&imported, "identity.channel"), "\"beta\"");
    let notes: Vec<_> = imported.notes.iter().map(ToString::to_string).collect();
    for expected in [
        "line 2: \"garbage line\" not taken over: expected KEY=VALUE",
        "line 3: x not taken over: no such key is known",
    ] {
        assert!(notes.iter().any(|note| note == expected), "{notes:?}");
    }
    for nothing in ["", "\n \t\n", "# nothing\n\n"] {
        assert!(matches!(import(nothing), Err(ImportError::Empty)), "{nothing:?}");
    }
}

#[test]
fn broken_syntax_names_its_line() {
    for (text, line) in [
        ("#cloud-config\ncoreos:\n  update: [\n", 4),
        ("#cloud-config\na: b: c\n", 2),
        ("[updates]\nstrategy = \n", 2),
    ] {
        match import(text) {
            Err(ImportError::Syntax { line: found, .. }) => {
                assert!(found.abs_diff(line) <= 1, "{text}: {found}");
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }
    let deep = format!("#cloud-config\na: {}", "[".repeat(10_000));
    assert!(matches!(import(&deep), Err(ImportError::Syntax { .. })));
}

fn text<'i>(imported: &'i Imported, key: &str) -> &'i str {
    imported.notes.iter().find(|note| note.key == key).map_or("-", |note| note.text.as_str())
}

/// Start and length of a window, and what is said of each: a mistake is told where it is, with what was found.
#[test]
fn only_the_half_of_a_window_that_is_wrong_is_blamed() {
    let start_too = "the start of its window, REBOOT_WINDOW_START in line 2, is not understood";
    let length_too = "the length of its window, REBOOT_WINDOW_LENGTH in line 3, is not understood";
    for (start, length, of_start, of_length) in [
        ("25:00", "1h", "expected a time like 02:00, found \"25:00\"", start_too),
        ("Tuesdei 14:00", "1h", "expected a day like Thu, found \"Tuesdei\"", start_too),
        ("14:00", "1d", length_too, "expected a length like 1h30m, found \"1d\""),
        ("14:00", "24h", length_too, "expected a daily window shorter than a day, found \"24h\""),
        ("Thu 14:00", "30s", length_too, "expected a length from a minute to a week, found \"30s\""),
        (
            "noon",
            "long",
            "expected a time like 02:00, found \"noon\"",
            "expected a length like 1h30m, found \"long\"",
        ),
    ] {
        let conf =
            format!("REBOOT_STRATEGY=reboot\nREBOOT_WINDOW_START={start}\nREBOOT_WINDOW_LENGTH={length}\n");
        let imported = import(&conf).unwrap();
        assert_eq!(text(&imported, "REBOOT_WINDOW_START"), of_start, "{conf}");
        assert_eq!(text(&imported, "REBOOT_WINDOW_LENGTH"), of_length, "{conf}");
    }
    let imported = import("REBOOT_STRATEGY=reboot\nREBOOT_WINDOW_START=14:00\n").unwrap();
    assert!(
        text(&imported, "REBOOT_WINDOW_START").ends_with("found \"14:00\" and no length"),
        "{imported:?}"
    );
}

#[test]
fn what_is_not_understood_is_told_with_what_was_found() {
    let conf = import("REBOOT_STRATEGY=later\n").unwrap();
    assert!(text(&conf, "REBOOT_STRATEGY").contains("best-effort, found \"later\";"), "{conf:?}");
    for (toml, key, expected) in [
        ("[updates]\nstrategy = \"later\"\n", "updates.strategy", "periodic, found \"later\";"),
        ("[updates]\nenabled = 3\n", "updates.enabled", "true or false, found \"3\""),
        (
            "[updates]\nstrategy = \"periodic\"\nperiodic.window = 7\n",
            "updates.periodic.window",
            "[[updates.periodic.window]], found \"7\"",
        ),
        (
            "[updates]\nstrategy = \"periodic\"\n[[updates.periodic.window]]\ndays = [\"Mon\"]\nstart_time = \"25:00\"\nlength_minutes = 60\n",
            "updates.periodic.window",
            "window 1: expected a time like 02:00, found \"25:00\"",
        ),
        (
            "[agent.timing]\nsteady_interval_secs = 3\n",
            "agent.timing.steady_interval_secs",
            "from 10 to 604800, found \"3\"",
        ),
    ] {
        let imported = import(toml).unwrap();
        assert!(text(&imported, key).contains(expected), "{toml}: {imported:?}");
    }
}

/// `(strategy, window start, window length)` and the strategy and windows that result. An update.conf and a
/// cloud-config must agree.
#[test]
fn strategies_and_windows() {
    let cases = [
        ("off", "", "", "\"off\"", "-"),
        // YAML 1.1 takes an unquoted off for a boolean, and so do tools that write YAML.
        ("false", "", "", "\"off\"", "-"),
        ("reboot", "", "", "\"immediate\"", "-"),
        ("etcd-lock", "", "", "\"lock\"", "-"),
        ("best-effort", "", "", "\"lock\"", "-"),
        ("later", "", "", "-", "-"),
        ("reboot", "14:00", "1h", "\"window\"", "[{ length_s = 3600, start = \"14:00\" }]"),
        ("reboot", "4:05", "90m", "\"window\"", "[{ length_s = 5400, start = \"04:05\" }]"),
        (
            "reboot",
            "Thu 23:00",
            "1h30m",
            "\"window\"",
            "[{ days = [\"thu\"], length_s = 5400, start = \"23:00\" }]",
        ),
        (
            "reboot",
            "thu 23:00",
            "167h",
            "\"window\"",
            "[{ days = [\"thu\"], length_s = 601200, start = \"23:00\" }]",
        ),
        ("off", "14:00", "1h", "\"off\"", "-"),
        ("etcd-lock", "14:00", "1h", "\"lock\"", "[{ length_s = 3600, start = \"14:00\" }]"),
        ("etcd-lock", "14:00", "1d", "\"off\"", "-"),
        ("best-effort", "", "1h", "\"off\"", "-"),
        // A window that is not understood must not become "at any time".
        ("reboot", "14:00", "", "\"off\"", "-"),
        ("reboot", "", "1h", "\"off\"", "-"),
        ("reboot", "14:00foo", "1h", "\"off\"", "-"),
        ("reboot", "25:00", "1h", "\"off\"", "-"),
        ("reboot", "14:60", "1h", "\"off\"", "-"),
        ("reboot", "Tuesdei 14:00", "1h", "\"off\"", "-"),
        ("reboot", "14:00", "1d", "\"off\"", "-"),
        ("reboot", "14:00", "30s", "\"off\"", "-"),
        ("reboot", "14:00", "24h", "\"off\"", "-"),
        ("reboot", "Thu 14:00", "169h", "\"off\"", "-"),
        ("reboot", "14:00", "-1h", "\"off\"", "-"),
        ("reboot", "14:00", "9999999999999999999999h", "\"off\"", "-"),
    ];
    for (strategy, start, length, expected, windows) in cases {
        let mut conf = format!("REBOOT_STRATEGY={strategy}\n");
        let mut yaml = format!("#cloud-config\ncoreos:\n  update:\n    reboot-strategy: {strategy}\n");
        if !start.is_empty() || !length.is_empty() {
            yaml.push_str("  locksmith:\n");
        }
        for (value, key, name) in [(start, "START", "start"), (length, "LENGTH", "length")] {
            if !value.is_empty() {
                conf.push_str(&format!("LOCKSMITHD_REBOOT_WINDOW_{key}=\"{value}\"\n"));
                yaml.push_str(&format!("    window-{name}: {value}\n"));
            }
        }
        for text in [conf, yaml] {
            let imported = import(&text).unwrap();
            assert_eq!(value(&imported, "reboot.strategy"), expected, "{text}");
            assert_eq!(value(&imported, "reboot.windows"), windows, "{text}");
            let zone = if windows == "-" { "-" } else { "\"system\"" };
            assert_eq!(value(&imported, "reboot.time_zone"), zone, "{text}");
            if !start.is_empty() && windows == "-" {
                let named = imported.notes.iter().any(|note| note.key.to_ascii_lowercase().contains("start"));
                assert!(named, "the window is dropped in silence: {text}: {:?}", imported.notes);
            }
        }
    }
}

#[test]
fn an_off_in_quotes_or_without_is_off() {
    for off in ["off", "\"off\"", "'off'", "false", "Off", "no"] {
        let imported =
            import(&format!("#cloud-config\ncoreos:\n  update:\n    reboot_strategy: {off}\n")).unwrap();
        assert_eq!(value(&imported, "reboot.strategy"), "\"off\"", "{off}");
    }
}

#[test]
fn zincatis_strategies_and_windows() {
    let window = |days: &str, start: &str, minutes: &str| {
        format!(
            "[updates]\nstrategy = \"periodic\"\n[[updates.periodic.window]]\ndays = {days}\nstart_time = \"{start}\"\nlength_minutes = {minutes}\n"
        )
    };
    let cases = [
        ("[updates]\nstrategy = \"immediate\"\n".to_owned(), "\"immediate\""),
        ("[updates]\nstrategy = \"fleet_lock\"\n".to_owned(), "\"off\""),
        (
            "[updates]\nstrategy = \"fleet_lock\"\nfleet_lock.base_url = \"http://lock:8080\"\n".to_owned(),
            "\"lock\"",
        ),
        ("[updates]\nstrategy = \"marker_file\"\n".to_owned(), "-"),
        ("[updates]\nenabled = true\n".to_owned(), "-"),
        ("[updates]\nenabled = false\n".to_owned(), "\"off\""),
        ("[updates]\nenabled = false\nstrategy = \"immediate\"\n".to_owned(), "\"off\""),
        ("[updates]\nstrategy = \"fleet_lock\"\nenabled = false\n".to_owned(), "\"off\""),
        ("[updates]\nstrategy = \"periodic\"\n".to_owned(), "\"off\""),
        (window("[\"Sat\"]", "23:30", "60"), "\"window\""),
        (window("[\"Tuesday\"]", "23:30", "60"), "\"window\""),
        (window("[\"Tuesady\"]", "23:30", "60"), "\"off\""),
        (window("[]", "23:30", "60"), "\"off\""),
        (window("[\"Sat\"]", "24:30", "60"), "\"off\""),
        (window("[\"Sat\"]", "23:30", "0"), "\"off\""),
        (window("[\"Sat\"]", "23:30", "99999"), "\"off\""),
        (
            format!(
                "{}[updates.periodic]\ntime_zone = \"Mars/Olympus\"\n",
                window("[\"Sat\"]", "23:30", "60")
            ),
            "\"off\"",
        ),
        (
            format!("{}[updates.periodic]\ntime_zone = \"localtime\"\n", window("[\"Sat\"]", "23:30", "60")),
            "\"window\"",
        ),
    ];
    for (text, strategy) in cases {
        // TOML wants a table before the tables in it.
        let text = match text.split_once("[updates.periodic]\n") {
            Some((before, zone)) => before.replacen("[[", &format!("[updates.periodic]\n{zone}[["), 1),
            None => text,
        };
        let imported = import(&text).unwrap();
        assert_eq!(value(&imported, "reboot.strategy"), strategy, "{text}\n{imported:?}");
        assert_eq!(value(&imported, "reboot.windows") != "-", strategy == "\"window\"", "{text}");
    }
}

/// Every key with a value of a sample is taken over or named, at its line.
#[test]
fn nothing_is_dropped_in_silence() {
    let cases: [(&str, &[(&str, usize)]); 3] = [
        (
            CLOUD_CONFIG,
            &[
                ("hostname", 3),
                ("ssh_authorized_keys", 5),
                ("users", 7),
                ("coreos.etcd2", 11),
                ("coreos.update.server", 14),
                ("coreos.locksmith.endpoint", 19),
                ("coreos.locksmith.group", 20),
                ("coreos.locksmith.etcd_cafile", 21),
                ("coreos.units", 23),
                ("write_files", 26),
            ],
        ),
        (
            UPDATE_CONF,
            &[
                ("SERVER", 3),
                ("LOCKSMITHD_ETCD_PASSWORD", 9),
                ("MACHINE_ALIAS", 10),
                ("FLATCAR_RELEASE_VERSION", 11),
                ("NEW_KEY", 12),
            ],
        ),
        (
            ZINCATI,
            &[
                ("identity.rollout_wariness", 3),
                ("updates.allow_downgrade", 10),
                ("updates.fleet_lock.base_url", 27),
                ("cincinnati.base_url", 30),
            ],
        ),
    ];
    for (text, keys) in cases {
        let imported = import(text).unwrap();
        for (key, line) in keys {
            let note = imported.notes.iter().find(|note| note.key == *key);
            let note = note.unwrap_or_else(|| panic!("{key} is not named: {:?}", imported.notes));
            assert_eq!((note.kind, note.line), (NoteKind::NotTaken, Some(*line)), "{key}");
        }
        let dropped = imported.notes.iter().filter(|note| note.kind == NoteKind::NotTaken).count();
        assert_eq!(dropped, keys.len(), "{:?}", imported.notes);
    }
    let secret = format!("{:?}", import(UPDATE_CONF).unwrap()) + &import(UPDATE_CONF).unwrap().fragment("x");
    assert!(!secret.contains("hunter2"), "a password is repeated");
}

/// `SERVER=disabled` is how Flatcar's updates are turned off.
#[test]
fn updates_that_were_turned_off_reboot_nothing() {
    for (strategy, start) in
        [("reboot", ""), ("etcd-lock", ""), ("best-effort", ""), ("off", ""), ("", ""), ("reboot", "14:00")]
    {
        let mut conf = "SERVER=disabled\n".to_owned();
        let mut yaml = "#cloud-config\ncoreos:\n  update:\n    server: disabled\n".to_owned();
        if !strategy.is_empty() {
            conf.push_str(&format!("REBOOT_STRATEGY={strategy}\n"));
            yaml.push_str(&format!("    reboot-strategy: {strategy}\n"));
        }
        if !start.is_empty() {
            conf.push_str(&format!("REBOOT_WINDOW_START={start}\nREBOOT_WINDOW_LENGTH=1h\n"));
            yaml.push_str(&format!("  locksmith:\n    window_start: {start}\n    window_length: 1h\n"));
        }
        for (text, server) in [(conf, "SERVER"), (yaml, "coreos.update.server")] {
            let imported = import(&text).unwrap();
            assert_eq!(value(&imported, "reboot.strategy"), "\"off\"", "{text}");
            assert_eq!(value(&imported, "reboot.windows"), "-", "{text}");
            assert_eq!(noted(&imported, server), Some(NoteKind::Changed), "{text}: {:?}", imported.notes);
            let named = imported.notes.iter().filter(|note| note.kind == NoteKind::NotTaken).count();
            let expected = usize::from(!strategy.is_empty()) + if start.is_empty() { 0 } else { 2 };
            assert_eq!(named, expected, "{text}: {:?}", imported.notes);
        }
    }
}

#[test]
fn what_means_something_else_is_named() {
    let imported = import(UPDATE_CONF).unwrap();
    assert_eq!(noted(&imported, "GROUP"), Some(NoteKind::Changed));
    assert_eq!(value(&imported, "identity.channel"), "\"stable\"");
    assert_eq!(value(&imported, "lock.group"), "\"rack-1\"");
    assert_eq!(value(&imported, "identity.group"), "-", "locksmith's group is nothing but that of the lock");
    assert_eq!(value(&imported, "server.url"), "-", "an Omaha server is no Flipside server");
    let nothing = import("GROUP=alpha\n").unwrap();
    assert_eq!(noted(&nothing, "REBOOT_STRATEGY"), Some(NoteKind::Default));
}

#[test]
fn a_key_given_twice_counts_as_there_and_is_named() {
    let imported = import("GROUP=alpha\nREBOOT_STRATEGY=reboot\nGROUP=beta\nREBOOT_STRATEGY=off\n").unwrap();
    assert_eq!(value(&imported, "identity.channel"), "\"beta\"");
    assert_eq!(value(&imported, "reboot.strategy"), "\"off\"");
    let lost: Vec<_> =
        imported.notes.iter().filter(|note| note.kind == NoteKind::NotTaken).map(|note| note.line).collect();
    assert_eq!(lost, [Some(1), Some(2)]);
}

#[test]
fn a_value_that_is_no_name_here_is_left_out() {
    for group in ["../../etc", "a b", "", "{8a3c7ff2-a13c}"] {
        let imported = import(&format!("GROUP={group}\nREBOOT_STRATEGY=off\n")).unwrap();
        assert_eq!(value(&imported, "identity.channel"), "-", "{group}");
        assert_eq!(noted(&imported, "GROUP"), Some(NoteKind::NotTaken), "{group}");
    }
}

proptest::proptest! {
    /// Whatever a source says, what comes out is a fragment that the engine reads, and no text of the source leaves its
    /// comment or its string.
    #[test]
    fn the_result_is_always_a_fragment(key in "[A-Z_]{1,12}", group in "\\PC{0,40}", name in "[ -~\\n\\r]{0,40}") {
        let text = format!("GROUP={}\n{key}=x\nLOCKSMITHD_GROUP={group}\n", group.replace('\n', " "));
        for text in [text, format!("#cloud-config\ncoreos:\n  update:\n    group: {name:?}\n    {name:?}: 1\n")] {
            if let Ok(imported) = import(&text) {
                let fragment = imported.fragment(&name);
                let parsed = Fragment::parse(Path::new("x"), &fragment);
                proptest::prop_assert!(parsed.is_ok(), "{fragment}\n{parsed:?}");
                proptest::prop_assert_eq!(parsed.unwrap().values.len(), imported.settings.len());
            }
        }
    }
}
