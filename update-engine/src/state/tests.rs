//! What becomes of a state folder that is new, damaged, newer, or in use.

use super::*;
use jiff::Timestamp;
use proptest::prelude::*;
use protocol::digest::Sha256;
use protocol::status::QuarantineEntry;

fn condemned(reason: &str) -> Record {
    let mut record = Record { newest_confirmed: Some("1.2.0".parse().unwrap()), ..Record::default() };
    record.quarantine.push(QuarantineEntry {
        release: Sha256::of(b"release"),
        version: "1.3.0".parse().unwrap(),
        reason: reason.to_owned(),
        at: Timestamp::UNIX_EPOCH,
    });
    record
}

fn saved(reason: &str) -> (tempfile::TempDir, StateFolder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = StateFolder::lock(dir.path()).unwrap();
    folder.save(&condemned("an older save")).unwrap();
    folder.save(&condemned(reason)).unwrap();
    (dir, folder)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_node_has_no_record_and_gets_an_id_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("var/lib/update-engine");
    let folder = StateFolder::lock(&path).unwrap();
    assert!(folder.load().unwrap().record.is_none());
    let (record, id, problems) = folder.start().unwrap();
    assert_eq!((record, problems), (Record::default(), Vec::new()));
    drop(folder);
    assert_eq!(StateFolder::lock(&path).unwrap().start().unwrap().1, id);
    std::fs::write(path.join("node-id"), "not an id").unwrap();
    assert!(matches!(StateFolder::view(&path).node_id(), Err(StateError::NodeId { .. })));
}

#[test]
fn a_credential_is_made_once_and_is_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let folder = StateFolder::lock(dir.path()).unwrap();
    let (first, problem) = folder.credential().unwrap();
    assert_eq!(problem, None);
    let path = dir.path().join("node-credential");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(folder.credential().unwrap(), (first.clone(), None));
    for damage in [&b""[..], b"flipside_node_", b"\xff\xfe"] {
        std::fs::write(&path, damage).unwrap();
        let (anew, problem) = folder.credential().unwrap();
        assert_ne!(anew, first);
        let problem = problem.unwrap();
        assert!(problem.contains("reset-credential") && !problem.contains('\n'), "{problem}");
        assert_eq!(folder.credential().unwrap(), (anew, None));
    }
}

#[test]
fn what_is_saved_is_loaded() {
    let (_dir, folder) = saved("it did not boot");
    let loaded = folder.load().unwrap();
    assert_eq!(loaded.record, Some(condemned("it did not boot")));
    assert!(loaded.problems.is_empty());
}

#[test]
fn one_damaged_copy_is_set_aside_and_the_other_serves() {
    for name in files::COPIES {
        for damage in [&b""[..], b"{", b"null", b"{\"schema\":1,\"saved\":9,\"record\":{}}", b"\0\0\0\0"] {
            let (dir, folder) = saved("kept");
            std::fs::write(dir.path().join(name), damage).unwrap();
            let loaded = folder.load().unwrap();
            assert_eq!(loaded.record, Some(condemned("kept")), "{name}");
            assert_eq!(loaded.problems.len(), 1);
            assert!(loaded.problems[0].contains(name), "{}", loaded.problems[0]);
            assert_eq!(std::fs::read(dir.path().join(format!("{name}.unreadable-1"))).unwrap(), damage);
            // The next save writes both again, and a second damage does not overwrite the evidence of the first.
            folder.save(&condemned("next")).unwrap();
            std::fs::write(dir.path().join(name), b"again").unwrap();
            assert_eq!(folder.load().unwrap().record, Some(condemned("next")));
            assert!(names(dir.path()).contains(&format!("{name}.unreadable-2")));
        }
    }
}

#[test]
fn a_missing_copy_beside_a_good_one_is_no_problem() {
    for name in files::COPIES {
        let (dir, folder) = saved("kept");
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let loaded = folder.load().unwrap();
        assert_eq!(loaded.record, Some(condemned("kept")));
        assert!(loaded.problems.is_empty());
    }
}

#[test]
fn with_no_readable_copy_the_engine_refuses_and_touches_nothing() {
    for missing in [None, Some(files::COPIES[0]), Some(files::COPIES[1])] {
        let (dir, folder) = saved("lost");
        for name in files::COPIES {
            std::fs::write(dir.path().join(name), b"damaged").unwrap();
        }
        if let Some(name) = missing {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let before = names(dir.path());
        for _ in 0..2 {
            let error = folder.load().unwrap_err();
            assert!(matches!(error, StateError::Unreadable { .. }), "{error}");
            assert!(error.to_string().contains("quarantine"), "{error}");
            assert_eq!(names(dir.path()), before);
        }
    }
}

#[test]
fn a_folder_that_lost_its_record_is_no_new_node() {
    for trace in TRACES {
        let (dir, folder) = saved("lost");
        std::fs::create_dir_all(dir.path().join("trust/seen")).unwrap();
        std::fs::write(dir.path().join(trace), b"x").unwrap();
        for name in files::COPIES {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let before = names(dir.path());
        for _ in 0..2 {
            let error = folder.start().unwrap_err();
            assert!(matches!(error, StateError::Lost { .. }), "{error}");
            for part in [trace, "quarantine", "newest confirmed version", "remove all"] {
                assert!(error.to_string().contains(part), "{part} is not in {error}");
            }
            assert_eq!(names(dir.path()), before);
        }
        // As an operator says that it is a new node.
        drop(folder);
        std::fs::remove_dir_all(dir.path()).unwrap();
        let folder = StateFolder::lock(dir.path()).unwrap();
        assert_eq!(folder.start().unwrap().0, Record::default());
    }
}

#[test]
fn a_first_start_that_is_cut_off_is_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let folder = StateFolder::lock(dir.path()).unwrap();
    // The node id cannot be written: what has been written before it is all that is there after a cut.
    std::os::unix::fs::symlink("node-id", dir.path().join("node-id")).unwrap();
    folder.start().unwrap_err();
    std::fs::remove_file(dir.path().join("node-id")).unwrap();
    assert_eq!(folder.load().unwrap().record, Some(Record::default()));
    folder.start().unwrap();
    assert_eq!(folder.start().unwrap().0, Record::default());
}

#[test]
fn the_newer_copy_counts() {
    let (dir, folder) = saved("old");
    let old = std::fs::read(dir.path().join(files::COPIES[1])).unwrap();
    folder.save(&condemned("new")).unwrap();
    // A crash between the two: the backup is still the one of the save before.
    std::fs::write(dir.path().join(files::COPIES[1]), old).unwrap();
    assert_eq!(folder.load().unwrap().record, Some(condemned("new")));
    // And the next save is newer than both.
    folder.save(&condemned("newest")).unwrap();
    assert_eq!(folder.load().unwrap().record, Some(condemned("newest")));
}

#[test]
fn a_newer_engines_record_is_left_alone() {
    let (dir, folder) = saved("x");
    let path = dir.path().join(files::COPIES[0]);
    let text = std::fs::read_to_string(&path).unwrap();
    // The envelope's schema is not under the checksum.
    let newer = text.replacen("\"schema\": 1,\n  \"sha256\"", "\"schema\": 2,\n  \"sha256\"", 1);
    let newer = if newer == text { text.replace("\n  \"schema\": 1", "\n  \"schema\": 2") } else { newer };
    assert_ne!(newer, text);
    std::fs::write(&path, newer).unwrap();
    assert!(matches!(folder.load(), Err(StateError::Newer { found: 2, .. })));
    assert!(path.exists());
}

#[test]
fn two_engines_never_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateFolder::lock(dir.path()).unwrap();
    let error = StateFolder::lock(dir.path()).unwrap_err();
    assert!(
        matches!(error, StateError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    assert_eq!(StateFolder::view(dir.path()).engine(), Some(std::process::id()));
    drop(first);
    assert_eq!(StateFolder::view(dir.path()).engine(), None);
    StateFolder::lock(dir.path()).unwrap();
}

#[test]
fn an_engine_is_who_holds_the_lock_and_not_who_has_the_file_open() {
    let dir = tempfile::tempdir().unwrap();
    let view = StateFolder::view(dir.path());
    assert!(!view.has_engine(), "there is no file yet");
    drop(StateFolder::lock(dir.path()).unwrap());
    let open = File::open(dir.path().join("lock")).unwrap();
    assert_eq!((view.engine(), view.has_engine()), (None, false), "open, by the process that it names");
    let engine = StateFolder::lock(dir.path()).unwrap();
    assert_eq!((view.engine(), view.has_engine()), (Some(std::process::id()), true));
    // As between locking and writing.
    std::fs::write(dir.path().join("lock"), "").unwrap();
    assert_eq!((view.engine(), view.has_engine()), (None, true));
    drop((engine, open));
    assert!(!view.has_engine());
}

#[test]
fn asking_for_an_engine_keeps_none_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    drop(StateFolder::lock(dir.path()).unwrap());
    // As if somebody asked all the time, and was slow in closing the file.
    let asking = File::open(dir.path().join("lock")).unwrap();
    asking.try_lock_shared().unwrap();
    let starting = std::thread::scope(|scope| {
        let starting = scope.spawn(|| StateFolder::lock(dir.path()));
        drop(asking);
        starting.join().unwrap()
    });
    drop(starting.unwrap());
    // One that is held for good is no such moment.
    let held = File::open(dir.path().join("lock")).unwrap();
    held.try_lock_shared().unwrap();
    assert!(matches!(StateFolder::lock(dir.path()), Err(StateError::Locked { .. })));
}

#[test]
fn looking_does_not_set_aside() {
    let (dir, folder) = saved("kept");
    drop(folder);
    std::fs::write(dir.path().join(files::COPIES[0]), b"damaged").unwrap();
    let before = names(dir.path());
    assert_eq!(StateFolder::view(dir.path()).load().unwrap().problems.len(), 1);
    assert_eq!(names(dir.path()), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a bit flip or a cut makes of a copy, it is either the same record or known to be damaged.
    #[test]
    fn no_damage_passes_for_a_record(at in 0.0..1.0_f64, bit in 0_u8..8, cut: bool) {
        let (dir, folder) = saved("kept");
        let path = dir.path().join(files::COPIES[0]);
        let mut bytes = std::fs::read(&path).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a small file")]
        let place = (bytes.len() as f64 * at) as usize;
        if cut { bytes.truncate(place) } else { bytes[place] ^= 1 << bit }
        std::fs::write(&path, &bytes).unwrap();
        match read_copy(&path) {
            Ok(Copy::Good { record, .. }) => prop_assert_eq!(*record, condemned("kept")),
            Ok(Copy::Damaged(_)) => prop_assert_eq!(folder.load().unwrap().record, Some(condemned("kept"))),
            Ok(Copy::Missing) => prop_assert!(false, "a file that is there is missing"),
            // The schema number itself was hit.
            Err(StateError::Newer { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
