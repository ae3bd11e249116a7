//! The locks of locksmith and Zincati: that the same lock is meant afterwards, and where that is not known, none is asked.

use super::{LOCKSMITH, NoteKind, import, noted, text, value};

const CONF: &str = "REBOOT_STRATEGY=etcd-lock\n";
const FLEET: &str = "[updates]\nstrategy = \"fleet_lock\"\n";

#[test]
fn locksmiths_etcd_is_asked_and_its_document_is_not_forgotten() {
    let yaml = "#cloud-config\ncoreos:\n  update:\n    reboot-strategy: best-effort\n";
    for (source, key) in [(CONF, "REBOOT_STRATEGY"), (yaml, "coreos.update.reboot-strategy")] {
        let imported = import(source).unwrap();
        assert_eq!(value(&imported, "reboot.strategy"), "\"lock\"", "{source}");
        assert_eq!(value(&imported, "lock.backend"), "\"etcd\"", "{source}");
        // What locksmith asks where nothing is said.
        assert_eq!(value(&imported, "lock.etcd.endpoints"), "[\"http://127.0.0.1:2379\"]", "{source}");
        assert_eq!(noted(&imported, key), Some(NoteKind::Changed), "{source}");
        let said = text(&imported, key);
        assert!(said.contains("`updatectl lock import FILE --group default`"), "{said}");
        assert!(said.contains(" /coreos.com/updateengine/rebootlock/semaphore"), "{said}");
        assert!(said.contains("stop locksmithd on all nodes"), "{said}");
    }
    let imported = import(LOCKSMITH).unwrap();
    let said = text(&imported, "REBOOT_STRATEGY");
    assert!(said.contains("`updatectl lock import FILE --group rack-1`"), "{said}");
    assert!(said.contains("/rebootlock/groups/rack-1/semaphore. Until then"), "{said}");
    // A path of a service is one from the root, a fragment's from its own folder.
    assert_eq!(value(&imported, "lock.etcd.key"), "\"/etc/ssl/etcd/node.key\"");
    let all = format!("{imported:?}") + &imported.fragment("x");
    assert!(!all.contains("hunter2"), "a password is repeated");
    assert_eq!(noted(&imported, "LOCKSMITHD_ETCD_PASSWORD"), Some(NoteKind::Changed));
    assert_eq!(value(&imported, "lock.etcd.password_file"), "\"/etc/update-engine/etcd-password\"");
}

#[test]
fn a_lock_that_would_be_another_one_is_not_asked() {
    for (line, key) in [
        ("LOCKSMITHD_GROUP=a b/c", "LOCKSMITHD_GROUP"),
        ("LOCKSMITHD_ENDPOINT=etcd.example.org:2379", "LOCKSMITHD_ENDPOINT"),
        // In part: it would ask fewer members than there are.
        ("LOCKSMITHD_ENDPOINT=http://10.0.0.1:2379,http://10.0.0.2:2379/v2", "LOCKSMITHD_ENDPOINT"),
        ("LOCKSMITHD_ENDPOINT=https://ann:hunter2@etcd:2379", "LOCKSMITHD_ENDPOINT"),
    ] {
        for rest in ["", "LOCKSMITHD_GROUP=rack-1\n", "LOCKSMITHD_REBOOT_WINDOW_START=1:00\n"] {
            let source = format!("{CONF}{rest}LOCKSMITHD_ETCD_CAFILE=/ca.pem\n{line}\n");
            let imported = import(&source).unwrap();
            assert_eq!(value(&imported, "reboot.strategy"), "\"off\"", "{source}");
            assert!(
                !imported.settings.iter().any(|setting| setting.key.starts_with("lock.")),
                "{imported:?}"
            );
            assert!(
                text(&imported, "REBOOT_STRATEGY").starts_with("off instead of lock: its "),
                "{imported:?}"
            );
            for lost in
                [key, "LOCKSMITHD_ETCD_CAFILE"].into_iter().chain(rest.split_once('=').map(|(key, _)| key))
            {
                assert_eq!(noted(&imported, lost), Some(NoteKind::NotTaken), "{source}: {imported:?}");
            }
            assert!(!format!("{imported:?}").contains("hunter2"), "{imported:?}");
        }
    }
}

#[test]
fn half_of_a_pair_is_named() {
    for (line, key) in [
        ("LOCKSMITHD_ETCD_CERTFILE=/c.pem", "LOCKSMITHD_ETCD_CERTFILE"),
        ("LOCKSMITHD_ETCD_KEYFILE=/c.key", "LOCKSMITHD_ETCD_KEYFILE"),
        ("LOCKSMITHD_ETCD_PASSWORD=hunter2", "LOCKSMITHD_ETCD_PASSWORD"),
        ("LOCKSMITHD_ETCD_KEYFILE=", "LOCKSMITHD_ETCD_KEYFILE"),
        ("LOCKSMITHD_GROUP=\"\"", "LOCKSMITHD_GROUP"),
    ] {
        let imported = import(&format!("{CONF}{line}\n")).unwrap();
        assert_eq!(noted(&imported, key), Some(NoteKind::NotTaken), "{imported:?}");
        assert_eq!(value(&imported, "reboot.strategy"), "\"lock\"", "{imported:?}");
        assert_eq!(imported.settings.len(), 3, "{imported:?}");
    }
    // A name alone: the file is for the password that is missing.
    let imported = import(&format!("{CONF}LOCKSMITHD_ETCD_USERNAME=ann\n")).unwrap();
    assert_eq!(noted(&imported, "LOCKSMITHD_ETCD_USERNAME"), Some(NoteKind::Changed));
    assert_eq!(value(&imported, "lock.etcd.password_file"), "\"/etc/update-engine/etcd-password\"");
}

#[test]
fn a_lock_that_no_strategy_asks_is_named() {
    for strategy in [
        "REBOOT_STRATEGY=reboot\n",
        "REBOOT_STRATEGY=off\n",
        "REBOOT_STRATEGY=later\n",
        "SERVER=disabled\n",
        "",
    ] {
        let imported =
            import(&format!("{strategy}LOCKSMITHD_ENDPOINT=http://e:2379\nLOCKSMITHD_GROUP=g\n")).unwrap();
        for key in ["LOCKSMITHD_ENDPOINT", "LOCKSMITHD_GROUP"] {
            assert_eq!(noted(&imported, key), Some(NoteKind::NotTaken), "{strategy}: {imported:?}");
        }
        assert!(!imported.settings.iter().any(|setting| setting.key.starts_with("lock.")), "{imported:?}");
    }
}

/// Locksmith's window binds its lock as well. One that is not understood must not become "at any time".
#[test]
fn a_window_beside_a_lock_is_kept() {
    let conf = |length: &str| {
        format!("{CONF}REBOOT_WINDOW_START=Thu 4:00\nREBOOT_WINDOW_LENGTH={length}\nLOCKSMITHD_GROUP=web\n")
    };
    for (length, strategy, windows) in [
        ("1h30m", "\"lock\"", "[{ days = [\"thu\"], length_s = 5400, start = \"04:00\" }]"),
        ("long", "\"off\"", "-"),
    ] {
        let imported = import(&conf(length)).unwrap();
        assert_eq!(value(&imported, "reboot.strategy"), strategy, "{imported:?}");
        assert_eq!(value(&imported, "reboot.windows"), windows, "{imported:?}");
        // Where the lock is stays known, for whoever mends the window.
        assert_eq!(value(&imported, "lock.group"), "\"web\"");
        assert_eq!(value(&imported, "lock.backend"), "\"etcd\"");
    }
}

/// Zincati joins its paths to the address as a link in a page: the same place must be asked.
#[test]
fn zincatis_server_is_asked_where_zincati_asked_it() {
    for (lines, url) in [
        ("base_url = \"http://lock:8080\"", "\"http://lock:8080/\""),
        ("base_url = \"https://lock/base/\"", "\"https://lock/base/\""),
        ("base_url = \"https://lock/base\"", "\"https://lock/\""),
        ("base_url = \"https://lock/${group}/\"", "\"https://lock/workers/\""),
    ] {
        let imported =
            import(&format!("[identity]\ngroup = \"workers\"\n{FLEET}[updates.fleet_lock]\n{lines}\n"))
                .unwrap();
        assert_eq!(value(&imported, "reboot.strategy"), "\"lock\"", "{lines}");
        assert_eq!(value(&imported, "lock.backend"), "\"fleetlock\"", "{lines}");
        assert_eq!(value(&imported, "lock.fleetlock.base_url"), url, "{lines}");
        assert_eq!(value(&imported, "identity.group"), "\"workers\"", "{lines}");
        assert_eq!(noted(&imported, "updates.strategy"), Some(NoteKind::Changed), "{lines}");
        let moved = !lines.contains(url.trim_matches(['"', '/']));
        let told = (lines.contains("base\"") || moved).then_some(NoteKind::Changed);
        assert_eq!(noted(&imported, "updates.fleet_lock.base_url"), told, "{lines}");
    }
    for (group, lines) in [
        ("workers", ""),
        ("workers", "base_url = \"lock:8080\""),
        ("workers", "base_url = \"https://lock/${stream}/\""),
        ("workers", "base_url = \"https://ann:hunter2@lock/\""),
        ("workers", "base_url = \"https://lock/?a=b\""),
        (".workers", "base_url = \"https://lock/\""),
    ] {
        let imported =
            import(&format!("[identity]\ngroup = \"{group}\"\n{FLEET}[updates.fleet_lock]\n{lines}\n"))
                .unwrap();
        assert_eq!(value(&imported, "reboot.strategy"), "\"off\"", "{lines}");
        assert_eq!(value(&imported, "lock.backend"), "-", "{lines}");
        let told = (!lines.is_empty()).then_some(NoteKind::NotTaken);
        assert_eq!(noted(&imported, "updates.fleet_lock.base_url"), told, "{lines}");
        assert!(!format!("{imported:?}").contains("hunter2"), "{imported:?}");
    }
}
