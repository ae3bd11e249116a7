//! What `keys init` and `keys rotate` make, as servers and nodes see it.

use super::*;
use clap::Parser;
use std::os::unix::fs::PermissionsExt;
use trust::{ErrorKind, OnlineKeys, TrustError};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: KeysCommand,
}

struct Operator {
    folder: tempfile::TempDir,
    now: Timestamp,
}

impl Operator {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        OnlineKeys::generate().unwrap().public().save(&folder.path().join("online.json")).unwrap();
        Self { folder, now: "2026-11-23T12:00:00Z".parse().unwrap() }
    }

    fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    fn run(&self, args: &[&str]) -> Result<Made> {
        let (keys, online) = (self.keys(), self.folder.path().join("online.json"));
        let mut all = vec!["image-tools", args[0], "--dir", keys.to_str().unwrap()];
        if args[0] == "init" {
            all.extend(["--online", online.to_str().unwrap()]);
        }
        all.extend(&args[1..]);
        match Cli::try_parse_from(all)?.command {
            KeysCommand::Init(args) => init(&args, self.now),
            KeysCommand::Rotate(args) => rotate(&args, self.now),
        }
    }

    fn chain(&self) -> Verified<Root> {
        verify_root_chain(&folder::roots(&self.keys()).unwrap()).unwrap()
    }

    fn targets(&self) -> Verified<Targets> {
        verify_targets_signatures(&folder::targets(&self.keys()).unwrap(), &self.chain()).unwrap()
    }
}

#[test]
fn init_makes_what_a_server_needs() {
    let operator = Operator::new();
    let made = operator.run(&["init"]).unwrap();
    let online = OnlinePublicKeys::load(&operator.folder.path().join("online.json")).unwrap();
    let (root, targets) = (operator.chain(), operator.targets());
    assert_eq!((root.version(), targets.version()), (1, 1));
    assert_eq!(root.expires().to_string(), "2027-11-23T12:00:00Z");
    assert_eq!(targets.expires().to_string(), "2027-02-21T12:00:00Z");
    assert_eq!(root.key_ids("snapshot"), [online.snapshot.id()]);
    assert_eq!(root.key_ids("timestamp"), [online.timestamp.id()]);
    assert_eq!(targets.channels_key_ids(), [online.channels.id()]);
    assert_eq!(std::fs::read(operator.keys().join("root.json")).unwrap(), root.bytes());
    for name in ["root.pem", "targets.pem"] {
        let mode = std::fs::metadata(operator.keys().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let json = made.to_json();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["root"]["roles"]["root"]["threshold"], 1);
    assert_eq!(json["files"].as_array().unwrap().len(), 5);
}

#[test]
fn init_never_overwrites() {
    for kept in ["root.pem", "root-3.pem", "targets.pem", "root.json", "targets.json"] {
        let operator = Operator::new();
        std::fs::create_dir(operator.keys()).unwrap();
        std::fs::write(operator.keys().join(kept), "precious").unwrap();
        let error = operator.run(&["init"]).unwrap_err().to_string();
        assert!(error.contains(kept) && error.contains("exists"), "{error}");
        assert_eq!(std::fs::read_dir(operator.keys()).unwrap().count(), 1, "{kept}");
    }
}

#[test]
fn threshold_of_several_root_keys() {
    let operator = Operator::new();
    let error = operator.run(&["init", "--root-keys", "2", "--threshold", "3"]).unwrap_err().to_string();
    assert!(error.contains("cannot be met"), "{error}");
    operator.run(&["init", "--root-keys", "3", "--threshold", "2"]).unwrap();
    assert_eq!((operator.chain().key_ids("root").len(), operator.chain().threshold("root")), (3, 2));
    // Any two of the three are enough for the next root, one is not.
    std::fs::remove_file(operator.keys().join("root.pem")).unwrap();
    operator.run(&["rotate"]).unwrap();
    assert_eq!(operator.chain().version(), 2);
    std::fs::remove_file(operator.keys().join("root-2.pem")).unwrap();
    let error = operator.run(&["rotate"]).unwrap_err().to_string();
    assert!(error.contains("too few root keys") && error.contains("expected 2, found 1"), "{error}");
    assert_eq!(operator.chain().version(), 2);
}

#[test]
fn rotate_renews_with_the_same_keys() {
    let mut operator = Operator::new();
    operator.run(&["init"]).unwrap();
    let before = operator.chain();
    operator.now = operator.now.checked_add(days(300)).unwrap();
    let made = operator.run(&["rotate"]).unwrap();
    let after = operator.chain();
    assert_eq!(after.version(), 2);
    assert_eq!(after.key_ids("root"), before.key_ids("root"));
    assert!(after.expires() > before.expires());
    assert!(made.targets.is_none());
    assert_eq!(operator.targets().version(), 1);
}

#[test]
fn rotate_replaces_root_keys() {
    let operator = Operator::new();
    operator.run(&["init"]).unwrap();
    let before = operator.chain();
    operator.run(&["rotate", "--replace", "root", "--root-keys", "3", "--threshold", "2"]).unwrap();
    let after = operator.chain();
    assert_eq!((after.key_ids("root").len(), after.threshold("root")), (3, 2));
    assert!(!after.key_ids("root").contains(&before.key_ids("root")[0]));
    for name in ["root.pem", "root-2.pem", "root-3.pem", "root-4.pem"] {
        assert!(operator.keys().join(name).exists(), "{name}");
    }
    // The old key is not needed any more.
    std::fs::remove_file(operator.keys().join("root.pem")).unwrap();
    operator.run(&["rotate"]).unwrap();
    assert_eq!(operator.chain().version(), 3);
    let error = operator.run(&["rotate", "--root-keys", "2"]).unwrap_err().to_string();
    assert!(error.contains("--replace root"), "{error}");
}

#[test]
fn rotate_replaces_the_targets_key() {
    let operator = Operator::new();
    operator.run(&["init"]).unwrap();
    let old_root = operator.chain();
    operator.run(&["rotate", "--replace", "targets"]).unwrap();
    let targets = operator.targets();
    assert_eq!(targets.version(), 2);
    let error = verify_targets_signatures(targets.bytes(), &old_root).unwrap_err();
    assert!(matches!(error, TrustError::Signatures { found: 0, .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Refused);
    let key = SigningKey::load(&operator.keys().join("targets-2.pem")).unwrap();
    assert_eq!(operator.chain().key_ids("targets"), [key.id()]);
}

#[test]
fn rotate_to_another_server() {
    let operator = Operator::new();
    operator.run(&["init"]).unwrap();
    let other = OnlineKeys::generate().unwrap();
    let path = operator.folder.path().join("other.json");
    other.public().save(&path).unwrap();
    operator.run(&["rotate", "--online", path.to_str().unwrap()]).unwrap();
    assert!(trust::publish::check_keys(&operator.chain(), &operator.targets(), &other).unwrap());
    assert_eq!(operator.targets().version(), 2);
}

#[test]
fn offline_channels_key_stays_offline() {
    let operator = Operator::new();
    let key = operator.folder.path().join("channels.pem");
    operator.run(&["init", "--channels-key", key.to_str().unwrap()]).unwrap();
    let offline = SigningKey::load(&key).unwrap();
    assert_eq!(operator.targets().channels_key_ids(), [offline.id()]);
    let channels = std::fs::read(operator.keys().join("channels.json")).unwrap();
    trust::verify_channels(&channels, &operator.targets(), operator.now).unwrap();
    // Moving to another server does not hand it over.
    let other = OnlineKeys::generate().unwrap();
    let path = operator.folder.path().join("other.json");
    other.public().save(&path).unwrap();
    operator.run(&["rotate", "--online", path.to_str().unwrap()]).unwrap();
    assert_eq!(operator.targets().channels_key_ids(), [offline.id()]);
}

#[test]
fn a_crash_between_root_and_targets_is_mended() {
    let operator = Operator::new();
    operator.run(&["init"]).unwrap();
    let old = folder::targets(&operator.keys()).unwrap();
    operator.run(&["rotate", "--replace", "targets"]).unwrap();
    // The new root was written, the new targets.json was not.
    std::fs::write(operator.keys().join("targets.json"), old).unwrap();
    operator.run(&["rotate"]).unwrap();
    assert_eq!(operator.chain().version(), 3);
    assert_eq!(operator.targets().version(), 2);
}
