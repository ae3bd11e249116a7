//! Step 5: what a node remembers, and what happens when its folder of trusted metadata is damaged or its clock is
//! wrong. Each test is a row of docs/trust.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

mod common;

use common::{Node, days, ready, refused};
use jiff::Timestamp;
use proptest::prelude::*;
use std::path::Path;
use trust::testing::Fixture;
use trust::{ErrorKind, SigningKey, TrustError};

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    // In the middle of the signature or content; never in white space, which would change nothing.
    let at = (bytes.len() / 2..bytes.len()).find(|i| bytes[*i].is_ascii_alphanumeric()).unwrap();
    bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
    std::fs::write(path, bytes).unwrap();
}

/// A node that has seen the newest files of a fixture, and the older ones that an attacker kept.
async fn seen() -> (Fixture, Node, trust::testing::Files) {
    let (mut fixture, node) = ready();
    let old = fixture.files();
    fixture.publish();
    node.refresh(&fixture).await.unwrap();
    (fixture, node, old)
}

#[tokio::test]
async fn tampered_cache_is_set_aside_and_forgets_nothing() {
    for name in ["timestamp.json", "snapshot.json"] {
        let (fixture, node, old) = seen().await;
        let newest = fixture.files();
        flip_a_bit(&node.metadata().join(name));
        fixture.serve(old);
        let error = refused(node.refresh(&fixture).await);
        assert!(matches!(error, TrustError::Rollback { .. }), "{name}: {error}");
        assert!(node.metadata().join(format!("{name}.damaged-1")).exists(), "{name}");
        // What the refused refresh left is no worse: the right files are accepted again.
        fixture.serve(newest);
        node.offered(&fixture, "1.1.0").await.unwrap();
    }
}

#[tokio::test]
async fn tampered_cache_is_reported() {
    for name in ["timestamp.json", "snapshot.json", "targets.json"] {
        let (fixture, node, _) = seen().await;
        flip_a_bit(&node.metadata().join(name));
        let refreshed = node.refresh(&fixture).await.unwrap();
        let paths: Vec<_> = refreshed.set_aside.iter().map(|file| file.path.clone()).collect();
        assert_eq!(paths, [node.metadata().join(format!("{name}.damaged-1"))]);
        assert!(!refreshed.set_aside[0].reason.is_empty());
        // Once.
        assert!(node.refresh(&fixture).await.unwrap().set_aside.is_empty());
    }
}

#[tokio::test]
async fn lost_cache_forgets_nothing() {
    let (fixture, node, old) = seen().await;
    for name in ["timestamp.json", "snapshot.json", "targets.json"] {
        std::fs::remove_file(node.metadata().join(name)).unwrap();
    }
    fixture.serve(old);
    for _ in 0..2 {
        let error = refused(node.refresh(&fixture).await);
        assert!(matches!(error, TrustError::Rollback { .. }), "{error}");
    }
}

#[tokio::test]
async fn lost_or_damaged_floor_forgets_nothing() {
    // One copy damaged: the other serves. Both damaged: the cache says it again.
    for damaged in [&["floor.json"][..], &["floor.backup.json"], &["floor.json", "floor.backup.json"]] {
        let (fixture, node, old) = seen().await;
        let newest = fixture.files();
        for name in damaged {
            flip_a_bit(&node.metadata().join("seen").join(name));
        }
        fixture.serve(old);
        assert!(matches!(refused(node.refresh(&fixture).await), TrustError::Rollback { .. }));
        for name in damaged {
            assert!(node.metadata().join("seen").join(format!("{name}.damaged-1")).exists());
        }
        fixture.serve(newest);
        node.refresh(&fixture).await.unwrap();
    }
}

#[tokio::test]
async fn lost_roots_forget_nothing() {
    let mut fixture = Fixture::default();
    let node = Node::new(fixture.anchor());
    let old = fixture.files();
    fixture.rotate(|f| f.targets_key = SigningKey::from_seed(110));
    node.refresh(&fixture).await.unwrap();
    let newest = fixture.files();
    std::fs::remove_dir_all(node.metadata().join("root_history")).unwrap();
    for name in ["timestamp.json", "snapshot.json", "targets.json"] {
        std::fs::remove_file(node.metadata().join(name)).unwrap();
    }
    // A mirror that hides root 2 would bring the old targets key back.
    fixture.serve(old);
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(error, TrustError::RootRollback { trusted: 2, found: 1, .. }), "{error}");
    fixture.serve(newest);
    assert_eq!(node.refresh(&fixture).await.unwrap().versions.root, 2);
}

#[tokio::test]
async fn damaged_root_history_is_fetched_again() {
    let mut fixture = Fixture::default();
    let node = Node::new(fixture.anchor());
    fixture.rotate(|_| {});
    fixture.rotate(|_| {});
    node.refresh(&fixture).await.unwrap();
    flip_a_bit(&node.metadata().join("root_history/2.root.json"));
    let refreshed = node.refresh(&fixture).await.unwrap();
    assert_eq!(refreshed.versions.root, 3);
    assert_eq!(refreshed.set_aside.len(), 1);
    assert!(node.refresh(&fixture).await.unwrap().set_aside.is_empty());
}

#[tokio::test]
async fn files_replaced_by_a_rotation_are_not_damage() {
    let (mut fixture, node) = ready();
    node.refresh(&fixture).await.unwrap();
    fixture.rotate(|f| {
        f.online.timestamp = SigningKey::from_seed(120);
        f.online.snapshot = SigningKey::from_seed(121);
        f.targets_key = SigningKey::from_seed(122);
    });
    // Power fails after the new root was stored and before the new timestamp was.
    let timestamp = fixture.get("timestamp.json");
    fixture.remove("timestamp.json");
    node.refresh(&fixture).await.unwrap_err();
    assert!(node.metadata().join("root_history/2.root.json").exists());
    fixture.put("timestamp.json", timestamp);
    assert!(node.refresh(&fixture).await.unwrap().set_aside.is_empty());
}

#[tokio::test]
async fn newer_anchor_of_the_same_trust() {
    let (mut fixture, node) = ready();
    node.refresh(&fixture).await.unwrap();
    fixture.rotate(|f| f.online.timestamp = SigningKey::from_seed(120));
    std::fs::write(node.anchor(), &fixture.roots()[1]).unwrap();
    assert!(node.refresh(&fixture).await.unwrap().set_aside.is_empty());
    // Back in the fallback slot with the older anchor: the chain leads on to what was seen.
    std::fs::write(node.anchor(), fixture.anchor()).unwrap();
    assert_eq!(node.refresh(&fixture).await.unwrap().versions.root, 2);
}

#[tokio::test]
async fn anchor_of_another_trust_starts_anew() {
    let (mut fixture, node) = ready();
    fixture.rotate(|_| {});
    node.refresh(&fixture).await.unwrap();
    let mut other = Fixture::new(2, 2);
    other.rotate(|f| {
        f.targets_key = SigningKey::from_seed(130);
        f.online.timestamp = SigningKey::from_seed(131);
        f.online.snapshot = SigningKey::from_seed(132);
    });
    std::fs::write(node.anchor(), &other.roots()[1]).unwrap();
    let refreshed = node.refresh(&other).await.unwrap();
    assert_eq!(refreshed.versions.root, 2);
    // The old server is a stranger now.
    refused(node.refresh(&fixture).await);
}

#[tokio::test]
async fn store_that_cannot_be_written_fails_the_refresh() {
    for name in ["timestamp.json", "targets.json", "root_history", "seen"] {
        let (fixture, node) = ready();
        std::fs::create_dir_all(node.metadata()).unwrap();
        let path = node.metadata().join(name);
        // A file where a folder must be, or the other way round: no permission would stop a test run by root.
        if name.ends_with(".json") {
            std::fs::create_dir(&path).unwrap();
        } else {
            std::fs::write(&path, "").unwrap();
        }
        let error = node.refresh(&fixture).await.unwrap_err();
        assert!(
            matches!(&error, TrustError::Store { path: found, .. } if found.starts_with(&path)),
            "{name}: {error}"
        );
        assert_eq!(error.kind(), ErrorKind::Local);
    }
}

#[tokio::test]
async fn clock_at_1970() {
    let (fixture, mut node) = ready();
    let now = node.clock;
    node.refresh(&fixture).await.unwrap();
    node.clock = Timestamp::UNIX_EPOCH;
    let refreshed = node.refresh(&fixture).await.unwrap();
    assert!(refreshed.clock_behind);
    assert_eq!(refreshed.time, now);
    // Nor does it bring expired metadata back.
    node.clock = now + days(2);
    refused(node.refresh(&fixture).await);
    let mut renewed = fixture;
    renewed.pass(days(2));
    let frozen = renewed.files();
    renewed.publish();
    node.refresh(&renewed).await.unwrap();
    renewed.serve(frozen);
    node.clock = Timestamp::UNIX_EPOCH;
    refused(node.refresh(&renewed).await);
}

#[tokio::test]
async fn clock_at_1970_at_first_contact() {
    // Nothing is on record yet, and unexpired is all that can be asked: an update is not refused for a dead battery.
    let (fixture, mut node) = ready();
    node.clock = Timestamp::UNIX_EPOCH;
    node.offered(&fixture, "1.1.0").await.unwrap();
}

#[tokio::test]
async fn clock_in_the_far_future_leaves_no_trace() {
    let (fixture, mut node) = ready();
    let now = node.clock;
    node.clock = now + days(36_500);
    assert!(matches!(refused(node.refresh(&fixture).await), TrustError::Expired { .. }));
    node.clock = now;
    assert!(!node.refresh(&fixture).await.unwrap().clock_behind);
}

#[tokio::test]
async fn nothing_piles_up() {
    let (mut fixture, node) = ready();
    for _ in 0..3 {
        fixture.renew_targets();
        node.offered(&fixture, "1.1.0").await.unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(node.metadata())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "channels.json",
        "root.json",
        "root_history",
        "seen",
        "snapshot.json",
        "targets.json",
        "timestamp.json",
    ];
    assert_eq!(names, expected);
}

/// What happens to a node and its server, in any order.
#[derive(Clone, Debug)]
enum Step {
    Publish,
    Renew,
    Keep,
    Replay,
    Rotate,
    Lose(usize),
    Damage(usize),
    Refresh,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Publish),
        1 => Just(Step::Renew),
        1 => Just(Step::Keep),
        2 => Just(Step::Replay),
        1 => Just(Step::Rotate),
        2 => (0..FILES.len()).prop_map(Step::Lose),
        2 => (0..FILES.len()).prop_map(Step::Damage),
        4 => Just(Step::Refresh),
    ]
}

const FILES: [&str; 6] = [
    "timestamp.json",
    "snapshot.json",
    "targets.json",
    "root.json",
    "seen/floor.json",
    "root_history/2.root.json",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is replayed, lost or damaged (one file between two refreshes), no accepted version ever goes down,
    /// and the newest files of the server are always accepted.
    #[test]
    fn versions_never_go_down(steps in proptest::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut fixture, node) = ready();
            let mut kept = fixture.files();
            let mut newest = fixture.files();
            let mut best = (0, 0, 0, 0);
            let mut harmed = false;
            for step in steps {
                match step {
                    Step::Publish | Step::Renew | Step::Rotate => {
                        fixture.serve(newest.clone());
                        match step {
                            Step::Publish => fixture.publish(),
                            Step::Renew => fixture.renew_targets(),
                            _ => fixture.rotate(|_| {}),
                        }
                        newest = fixture.files();
                    }
                    Step::Keep => kept = newest.clone(),
                    Step::Replay => fixture.serve(kept.clone()),
                    Step::Lose(_) | Step::Damage(_) if harmed => {}
                    Step::Lose(file) => {
                        harmed = std::fs::remove_file(node.metadata().join(FILES[file])).is_ok();
                    }
                    Step::Damage(file) => {
                        let path = node.metadata().join(FILES[file]);
                        harmed = path.exists();
                        if harmed {
                            flip_a_bit(&path);
                        }
                    }
                    Step::Refresh => {
                        let before = best;
                        match node.refresh(&fixture).await {
                            Ok(refreshed) => {
                                let v = refreshed.versions;
                                best = (v.root, v.timestamp, v.snapshot, v.targets);
                            }
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Refused, "{error}"),
                        }
                        assert!(
                            best.0 >= before.0 && best.1 >= before.1 && best.2 >= before.2 && best.3 >= before.3,
                            "{before:?} then {best:?}"
                        );
                        harmed = false;
                    }
                }
            }
            fixture.serve(newest);
            node.refresh(&fixture).await.unwrap();
        });
    }
}
