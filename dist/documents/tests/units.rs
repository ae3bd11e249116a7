//! The files in `dist` that a service manager reads agree with the programs and with the packages.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The values of a key, in all sections.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn only_a_boot_that_has_to_prove_itself_has_a_guard() {
    let guard = text("dist/systemd/update-engine-confirm.service");
    assert_eq!(values(&guard, "ConditionKernelCommandLine"), [boot_select::cmdline::TRYING]);
    assert_eq!(values(&guard, "FailureAction"), ["reboot"]);
    // A word that the program does not know is no fault of the release; a start after the end must not run it again.
    let wrong = protocol::status::Exit::Usage.code();
    assert_eq!(values(&guard, "SuccessExitStatus"), [wrong.to_string()]);
    assert_eq!(values(&guard, "RemainAfterExit"), ["yes"]);
    assert!(values(&guard, "ConditionPathExists").contains(&"!/run/update-engine/no-guard"));
}

#[test]
fn the_package_has_every_unit_and_its_scripts_know_them() {
    let package = text("update-engine/Cargo.toml");
    let mut units = 0;
    for entry in std::fs::read_dir(root().join("dist/systemd")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let unit = name.ends_with(".service") || name.ends_with(".timer");
        if !unit || !name.starts_with("update-engine") {
            continue;
        }
        units += 1;
        assert!(package.contains(&format!("dist/systemd/{name}\"")), "{name} is not packaged");
        for script in ["prerm", "postrm", "postinst"] {
            assert!(text(&format!("dist/debian/node/{script}")).contains(&name), "{script} lacks {name}");
        }
    }
    assert_eq!(units, 3);
}

#[test]
fn nobody_but_an_administrator_may_ask_for_anything() {
    let policy = text("dist/polkit/io.flipside.update-engine.policy");
    let allowed: Vec<_> = policy.lines().map(str::trim).filter(|line| line.starts_with("<allow_")).collect();
    assert_eq!(allowed.len(), 3 * policy.matches("<action ").count());
    assert!(allowed.iter().all(|line| line.contains(">auth_admin<") || line.contains(">auth_admin_keep<")));
}

/// What the generator makes for a kernel command line: names and contents.
fn generated(command_line: &str) -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    let (line, units) = (dir.path().join("cmdline"), dir.path().join("units"));
    std::fs::write(&line, command_line).unwrap();
    std::fs::create_dir(&units).unwrap();
    let run = Command::new("sh")
        .arg(root().join("dist/systemd/flipside-state-generator"))
        .arg(&units)
        .env("FLIPSIDE_CMDLINE", &line)
        .env_remove("SYSTEMD_VIRTUALIZATION")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let files = std::fs::read_dir(&units).unwrap().map(|entry| entry.unwrap().path());
    let mut made: Vec<_> = files
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    made.sort();
    made
}

#[test]
fn the_state_is_repaired_without_asking_and_a_check_that_fails_stops_nothing() {
    let made = generated("quiet root=PARTUUID=none flipside.slot=A\n");
    let [(fsck, check), (state, mount), (journal, _)] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!(fsck, "flipside-state-fsck.service");
    assert_eq!(
        (state.as_str(), journal.as_str()),
        ("var-lib-update\\x2dengine.mount", "var-log-journal.mount")
    );
    let [device] = values(mount, "What")[..] else { panic!("{mount}") };
    let [command] = values(check, "ExecStart")[..] else { panic!("{check}") };
    assert!(command.ends_with(&format!("/fsck -T -M -y {device}")), "{command}");
    assert_eq!((values(mount, "Wants"), values(mount, "After")), (vec![fsck.as_str()], vec![fsck.as_str()]));
    assert!(values(mount, "Requires").is_empty(), "{mount}");
    assert!(generated("quiet root=/dev/vda3\n").is_empty(), "no slots");
    assert!(generated("flipside.slot=A flipside.state=off\n").iter().all(|(name, _)| name != state));
}
