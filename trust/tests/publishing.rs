//! Steps 3 and 4: what operator and server sign, and what they check of each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

mod common;

use common::{days, ready, refused};
use protocol::manifest::TargetCustom;
use trust::document::{self, BuildError, RoleKeys, RootContent, TargetsChange};
use trust::publish::{self, Current};
use trust::testing::{Fixture, manifest};
use trust::{
    OnlineKeys, SigningKey, TrustError, verify_channels, verify_root_chain, verify_targets,
    verify_targets_signatures,
};

#[test]
fn documents_are_reproducible() {
    let files = || {
        let (mut fixture, _) = ready();
        fixture.rotate(|_| {});
        fixture.files()
    };
    assert_eq!(files(), files());
}

#[test]
fn versions_rise_by_one_and_renewal_keeps_the_content() {
    let (mut fixture, _) = ready();
    let (before, now) = (fixture.targets(), fixture.current());
    fixture.pass(days(10));
    fixture.renew_targets();
    let after = fixture.targets();
    assert_eq!(after.version(), before.version() + 1);
    assert_eq!(after.expires(), before.expires() + days(10));
    assert!(after.targets().eq(before.targets()));
    let then = fixture.current();
    assert_eq!((then.snapshot, then.timestamp), (now.snapshot + 1, now.timestamp + 1));
}

#[test]
fn releases_are_listed_and_withdrawn() {
    let (mut fixture, _) = ready();
    let releases = |fixture: &Fixture| -> Vec<String> {
        fixture.targets().releases().map(|(version, arch, _)| format!("{version}/{arch}")).collect()
    };
    fixture.release(&manifest("1.1.0", "arm64"));
    assert_eq!(releases(&fixture), ["1.1.0/arm64", "1.1.0/x86-64"]);
    fixture.withdraw(&"1.1.0".parse().unwrap(), &"x86-64".parse().unwrap());
    assert_eq!(releases(&fixture), ["1.1.0/arm64"]);
}

#[test]
fn fields_of_a_newer_tool_survive() {
    let (fixture, _) = ready();
    let name = format!("{}.targets.json", fixture.targets().version());
    fixture.forge(&name, &[&fixture.targets_key], |signed| {
        signed["x-from-the-future"] = "kept".into();
        signed["targets"]["releases/1.1.0/x86-64/manifest.json"]["custom"] = serde_json::json!({ "x": 1 });
    });
    let targets = verify_targets_signatures(&fixture.get(&name), &fixture.root()).unwrap();
    let change = TargetsChange::Add {
        path: "releases/1.2.0/x86-64/manifest.json".to_owned(),
        bytes: b"{}".to_vec(),
        custom: TargetCustom::default(),
    };
    let next = document::next_targets(&targets, &[change], fixture.now, &[&fixture.targets_key]).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&next).unwrap();
    assert_eq!(value["signed"]["x-from-the-future"], "kept");
    assert_eq!(value["signed"]["targets"]["releases/1.1.0/x86-64/manifest.json"]["custom"]["x"], 1);
    assert_eq!(verify_targets(&next, &fixture.root(), fixture.now).unwrap().version(), targets.version() + 1);
}

#[test]
fn a_dead_end_is_said_beside_what_is_said_already() {
    let (fixture, _) = ready();
    let name = format!("{}.targets.json", fixture.targets().version());
    let path = "releases/1.1.0/x86-64/manifest.json";
    let before = serde_json::json!({ "allow_downgrade_from": "1.2.0", "x": 1 });
    fixture.forge(&name, &[&fixture.targets_key], |signed| {
        signed["targets"][path]["custom"] = before.clone();
    });
    let targets = verify_targets_signatures(&fixture.get(&name), &fixture.root()).unwrap();
    let next = |from, path: &str, why: Option<&str>| {
        let change = TargetsChange::DeadEnd { path: path.to_owned(), why: why.map(str::to_owned) };
        let bytes = document::next_targets(from, &[change], fixture.now, &[&fixture.targets_key]).unwrap();
        verify_targets_signatures(&bytes, &fixture.root()).unwrap()
    };
    let marked = next(&targets, path, Some("it cannot write"));
    let custom = marked.target(path).unwrap().custom;
    assert_eq!(custom.dead_end.as_deref(), Some("it cannot write"));
    assert_eq!(custom.allow_downgrade_from.unwrap().as_str(), "1.2.0");
    let cleared = next(&marked, path, None);
    let value: serde_json::Value = serde_json::from_slice(cleared.bytes()).unwrap();
    assert_eq!(value["signed"]["targets"][path]["custom"], before, "and all else is as it was");
    let unknown = next(&targets, "releases/9.9.9/x86-64/manifest.json", Some("w"));
    assert_eq!(unknown.releases().count(), targets.releases().count(), "nothing is released by that");
}

#[test]
fn pushed_targets_are_checked() {
    let (fixture, _) = ready();
    let root = fixture.root();
    let name = format!("{}.targets.json", fixture.targets().version());
    let good = fixture.get(&name);
    verify_targets(&good, &root, fixture.now).unwrap();
    let error = refused(verify_targets(&good, &root, fixture.now + days(91)));
    assert!(matches!(error, TrustError::Expired { .. }), "{error}");
    verify_targets_signatures(&good, &root).unwrap();
    let stranger = SigningKey::from_seed(200);
    fixture.forge(&name, &[&stranger], |_| {});
    assert!(matches!(
        refused(verify_targets(&fixture.get(&name), &root, fixture.now)),
        TrustError::Signatures { .. }
    ));
    fixture.forge(&name, &[&fixture.targets_key, &fixture.targets_key], |_| {});
    let error = refused(verify_targets(&fixture.get(&name), &root, fixture.now));
    assert!(matches!(error, TrustError::RepeatedSignature { .. }), "{error}");
    let changed = String::from_utf8(good).unwrap().replace("1.1.0", "1.1.1");
    assert!(matches!(
        refused(verify_targets(changed.as_bytes(), &root, fixture.now)),
        TrustError::Signatures { found: 0, .. }
    ));
    // Metadata of another role under the same key.
    assert!(matches!(
        refused(verify_targets(fixture.anchor(), &root, fixture.now)),
        TrustError::Malformed { .. }
    ));
}

#[test]
fn pushed_roots_are_checked() {
    let mut fixture = Fixture::new(3, 2);
    fixture.rotate(|f| f.root_keys = (20..23).map(SigningKey::from_seed).collect());
    fixture.rotate(|_| {});
    let chain = fixture.roots().to_vec();
    assert_eq!(verify_root_chain(&chain).unwrap().version(), 3);
    assert!(matches!(verify_root_chain(&[]), Err(TrustError::Missing { .. })));
    let skipped = [chain[0].clone(), chain[2].clone()];
    assert!(matches!(
        refused(verify_root_chain(&skipped)),
        TrustError::RootVersion { expected: 2, found: 3 }
    ));
    let backwards = [chain[1].clone(), chain[0].clone()];
    assert!(matches!(
        refused(verify_root_chain(&backwards)),
        TrustError::RootVersion { expected: 3, found: 1 }
    ));
    let mut foreign = Fixture::default();
    foreign.rotate(|f| f.root_keys = vec![SigningKey::from_seed(60)]);
    let mixed = [foreign.roots()[1].clone(), chain[2].clone()];
    assert!(matches!(refused(verify_root_chain(&mixed)), TrustError::Signatures { found: 0, .. }));
}

#[test]
fn offline_channels_key() {
    let (fixture, _) = ready();
    let offline = SigningKey::from_seed(150);
    let change = TargetsChange::Delegate { channels: RoleKeys::one(offline.public().clone()) };
    let bytes =
        document::next_targets(&fixture.targets(), &[change], fixture.now + days(9), &[&fixture.targets_key])
            .unwrap();
    let targets = verify_targets(&bytes, &fixture.root(), fixture.now).unwrap();
    assert!(!publish::check_keys(&fixture.root(), &targets, &fixture.online).unwrap());
    assert!(publish::check_keys(&fixture.root(), &fixture.targets(), &fixture.online).unwrap());
    let signed = document::channels(1, [], fixture.now + days(9), &[&offline]).unwrap();
    verify_channels(&signed, &targets, fixture.now).unwrap();
    let by_the_server =
        document::channels(1, [], fixture.now + days(9), &[&fixture.online.channels]).unwrap();
    assert!(matches!(
        refused(verify_channels(&by_the_server, &targets, fixture.now)),
        TrustError::Signatures { found: 0, .. }
    ));
}

#[test]
fn foreign_online_keys_are_noticed() {
    let (fixture, _) = ready();
    let other = OnlineKeys::generate().unwrap();
    let error = publish::check_keys(&fixture.root(), &fixture.targets(), &other).unwrap_err().to_string();
    assert!(error.contains("snapshot") && error.contains(other.snapshot.id()), "{error}");
}

#[test]
fn thresholds_that_cannot_be_met_are_refused() {
    let key = SigningKey::from_seed(1);
    let one = RoleKeys::one(key.public().clone());
    for root in [
        RoleKeys { keys: one.keys.clone(), threshold: 2 },
        RoleKeys { keys: one.keys.clone(), threshold: 0 },
        // One key twice is one key.
        RoleKeys { keys: vec![key.public().clone(), key.public().clone()], threshold: 2 },
    ] {
        let content = RootContent {
            version: 1,
            expires: jiff::Timestamp::UNIX_EPOCH,
            root,
            targets: one.clone(),
            snapshot: one.clone(),
            timestamp: one.clone(),
        };
        assert!(matches!(document::root(&content, &[&key]), Err(BuildError::Threshold { .. })));
    }
}

#[test]
fn the_last_version_is_not_wrapped() {
    let (fixture, _) = ready();
    let current = Current { snapshot: u64::MAX, ..fixture.current() };
    let none = std::collections::BTreeMap::new();
    let error =
        publish::next(current, &fixture.targets(), &none, &fixture.online, &fixture.lifetimes, fixture.now)
            .unwrap_err();
    assert!(matches!(error, BuildError::LastVersion { role: "snapshot", .. }), "{error}");
}
