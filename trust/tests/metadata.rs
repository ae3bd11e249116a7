//! Step 5: metadata that a node must not believe. Each test is a row of docs/trust.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

mod common;

use common::{Node, days, ready, refused, repin};
use serde_json::json;
use trust::testing::{Fixture, manifest};
use trust::{ErrorKind, SigningKey, TrustError};

#[tokio::test]
async fn good_metadata_is_accepted() {
    let (fixture, node) = ready();
    let refreshed = node.refresh(&fixture).await.unwrap();
    let versions = refreshed.versions;
    assert_eq!((versions.root, versions.targets), (1, 2));
    assert_eq!(versions.snapshot, fixture.current().snapshot);
    assert_eq!(refreshed.expires, node.clock + days(1));
    assert!(refreshed.set_aside.is_empty() && !refreshed.clock_behind);
    let authorized = node.offered(&fixture, "1.1.0").await.unwrap();
    assert_eq!(authorized.manifest(), &manifest("1.1.0", "x86-64"));
}

#[tokio::test]
async fn wrong_key() {
    let stranger = SigningKey::from_seed(200);
    for name in ["timestamp.json", "3.snapshot.json", "2.targets.json", "3.channels.json"] {
        let (fixture, node) = ready();
        assert!(!fixture.get(name).is_empty(), "{name}");
        // Signed by a stranger; the files that pin it are made to fit, so that only the key is wrong.
        fixture.forge(name, &[&stranger], |_| {});
        repin(&fixture, name);
        let error = refused(node.offered(&fixture, "1.1.0").await.map_err(common::No::trust));
        assert!(
            matches!(&error, TrustError::Signatures { role, found: 0, threshold: 1 } if name.contains(role.as_str())),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn one_key_twice() {
    let mut fixture = Fixture::new(3, 2);
    fixture.release(&manifest("1.1.0", "x86-64"));
    let node = Node::new(fixture.anchor());
    node.refresh(&fixture).await.unwrap();
    fixture.rotate(|_| {});
    let key = fixture.root_keys[0].clone();
    fixture.forge("2.root.json", &[&key, &key], |_| {});
    let error = refused(node.refresh(&fixture).await);
    assert!(
        matches!(&error, TrustError::RepeatedSignature { role, key_id } if role == "root" && key_id == key.id())
    );
}

#[tokio::test]
async fn one_key_under_two_ids() {
    // A thief with one of two root keys lists it twice under different ids in a root of its own making.
    let fixture = Fixture::new(2, 2);
    let node = Node::new(fixture.anchor());
    let key = fixture.root_keys[0].clone();
    fixture.put("2.root.json", fixture.anchor().to_vec());
    fixture.forge("2.root.json", &[&key], |signed| {
        signed["version"] = 2.into();
        signed["keys"]["another-id"] = signed["keys"][key.id()].clone();
        signed["roles"]["root"]["keyids"] = json!([key.id(), "another-id"]);
    });
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(error, TrustError::Signatures { found: 1, threshold: 2, .. }), "{error}");
}

#[tokio::test]
async fn below_threshold() {
    let mut fixture = Fixture::new(3, 2);
    let node = Node::new(fixture.anchor());
    fixture.rotate(|_| {});
    let key = fixture.root_keys[2].clone();
    fixture.forge("2.root.json", &[&key], |_| {});
    let error = refused(node.refresh(&fixture).await);
    assert!(
        matches!(&error, TrustError::Signatures { role, found: 1, threshold: 2 } if role == "root"),
        "{error}"
    );
}

#[tokio::test]
async fn new_root_without_the_old_keys() {
    let fixture = Fixture::default();
    let node = Node::new(fixture.anchor());
    let thief = SigningKey::from_seed(201);
    fixture.put("2.root.json", fixture.anchor().to_vec());
    fixture.forge("2.root.json", &[&thief], |signed| {
        signed["version"] = 2.into();
        signed["keys"] = json!({ thief.id(): thief.public().to_json() });
        for role in ["root", "targets", "snapshot", "timestamp"] {
            signed["roles"][role]["keyids"] = json!([thief.id()]);
        }
    });
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(error, TrustError::Signatures { found: 0, threshold: 1, .. }), "{error}");
}

#[tokio::test]
async fn expired_timestamp_freezes_nobody_unnoticed() {
    let (fixture, mut node) = ready();
    node.refresh(&fixture).await.unwrap();
    // The same files for ever: the freeze attack.
    node.pass(days(1));
    node.refresh(&fixture).await.unwrap();
    node.pass(jiff::SignedDuration::from_secs(1));
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(&error, TrustError::Expired { role, .. } if role == "timestamp"), "{error}");
    assert!(error.to_string().contains("2026-11-24T12:00:00Z"), "{error}");
}

#[tokio::test]
async fn expired_snapshot_targets_channels_and_root() {
    // (the role whose lifetime is short, and for how long the others live)
    for role in ["snapshot", "targets", "channels", "root"] {
        let mut fixture = Fixture::default();
        let mut lifetimes = fixture.lifetimes;
        lifetimes.timestamp = days(400);
        lifetimes.snapshot = days(400);
        lifetimes.targets = days(400);
        lifetimes.channels = days(400);
        lifetimes.root = days(400);
        match role {
            "snapshot" => lifetimes.snapshot = days(2),
            "targets" => lifetimes.targets = days(2),
            "channels" => lifetimes.channels = days(2),
            _ => lifetimes.root = days(2),
        }
        fixture.lifetimes = lifetimes;
        fixture.rotate(|_| {});
        fixture.release(&manifest("1.1.0", "x86-64"));
        fixture.channel("alpha", &["1.1.0"]);
        let mut node = Node::new(fixture.anchor());
        node.offered(&fixture, "1.1.0").await.unwrap();
        node.pass(days(3));
        let error = refused(node.offered(&fixture, "1.1.0").await.map_err(common::No::trust));
        assert!(
            matches!(&error, TrustError::Expired { role: found, .. } if found == role),
            "{role}: {error}"
        );
    }
}

#[tokio::test]
async fn expired_anchor_does_not_count() {
    let mut fixture = Fixture::default();
    fixture.pass(days(800));
    fixture.rotate(|_| {});
    fixture.release(&manifest("1.1.0", "x86-64"));
    fixture.channel("alpha", &["1.1.0"]);
    let mut node = Node::new(fixture.anchor());
    node.pass(days(800));
    node.offered(&fixture, "1.1.0").await.unwrap();
}

#[tokio::test]
async fn older_timestamp() {
    let (mut fixture, node) = ready();
    let old = fixture.files();
    fixture.publish();
    node.refresh(&fixture).await.unwrap();
    fixture.serve(old);
    let error = refused(node.refresh(&fixture).await);
    let newest = fixture.current().timestamp;
    assert!(
        matches!(&error, TrustError::Rollback { role, trusted, found }
            if role == "timestamp" && *trusted == newest && *found == newest - 1),
        "{error}"
    );
}

#[tokio::test]
async fn older_snapshot() {
    let (mut fixture, node) = ready();
    let old = fixture.current();
    fixture.publish();
    node.refresh(&fixture).await.unwrap();
    // A captured timestamp key points back at the older snapshot.
    let bytes = fixture.get(&format!("{}.snapshot.json", old.snapshot));
    fixture.forge("timestamp.json", &[&fixture.online.timestamp], |signed| {
        signed["version"] = 99.into();
        signed["meta"]["snapshot.json"] = json!({ "version": old.snapshot, "length": bytes.len() });
    });
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(&error, TrustError::Rollback { role, .. } if role.starts_with("snapshot")), "{error}");
}

#[tokio::test]
async fn older_targets_and_channels() {
    for role in ["targets", "channels"] {
        let (mut fixture, node) = ready();
        fixture.renew_targets();
        node.refresh(&fixture).await.unwrap();
        fixture.publish();
        // A captured server signs a snapshot that points back at older files.
        let snapshot = format!("{}.snapshot.json", fixture.current().snapshot);
        fixture.forge(&snapshot, &[&fixture.online.snapshot], |signed| {
            signed["meta"][format!("{role}.json")] = json!({ "version": 2 });
        });
        repin(&fixture, &snapshot);
        let error = refused(node.refresh(&fixture).await);
        assert!(
            matches!(&error, TrustError::Rollback { role: found, found: 2, .. } if found.starts_with(role)),
            "{role}: {error}"
        );
    }
}

#[tokio::test]
async fn older_root() {
    let mut fixture = Fixture::default();
    let node = Node::new(fixture.anchor());
    fixture.rotate(|_| {});
    fixture.rotate(|_| {});
    let mut files = fixture.files();
    // Root 2 again in the place of root 3.
    files.insert("3.root.json".to_owned(), fixture.get("2.root.json"));
    fixture.serve(files);
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(error, TrustError::RootVersion { expected: 3, found: 2 }), "{error}");
}

#[tokio::test]
async fn mix_and_match() {
    let (mut fixture, node) = ready();
    let old_targets = fixture.get("2.targets.json");
    let old_snapshot = fixture.get(&format!("{}.snapshot.json", fixture.current().snapshot));
    fixture.release(&manifest("1.2.0", "x86-64"));
    let good = fixture.files();
    // Old targets under the new name.
    fixture.put("3.targets.json", old_targets);
    let error = refused(node.refresh(&fixture).await);
    assert!(matches!(&error, TrustError::Mismatch { name, .. } if name == "3.targets.json"), "{error}");
    // Old snapshot under the new name, for a node that has neither.
    let node = Node::new(fixture.anchor());
    fixture.serve(good);
    fixture.put(&format!("{}.snapshot.json", fixture.current().snapshot), old_snapshot);
    let error = refused(node.refresh(&fixture).await);
    assert!(
        matches!(&error, TrustError::Mismatch { name, .. } if name.ends_with("snapshot.json")),
        "{error}"
    );
}

#[tokio::test]
async fn oversize_metadata() {
    for (name, length) in [
        ("timestamp.json", 16_385),
        ("3.snapshot.json", 2_000_001),
        ("2.targets.json", 5_000_001),
        ("2.root.json", 512_001),
    ] {
        let (fixture, node) = ready();
        fixture.put(name, vec![b' '; length]);
        let error = refused(node.refresh(&fixture).await);
        assert!(
            matches!(&error, TrustError::Oversize { name: found, limit } if found == name && *limit + 1 == length as u64),
            "{error}"
        );
    }
}

/// A transport that ignores the limit it is given.
struct Careless(std::sync::Arc<dyn trust::Repository>);

type Fetch<'a> = std::pin::Pin<Box<dyn Future<Output = sigstore_tuf::Result<Option<Vec<u8>>>> + Send + 'a>>;

impl trust::Repository for Careless {
    fn fetch_metadata<'a>(&'a self, name: &'a str, _: u64) -> Fetch<'a> {
        self.0.fetch_metadata(name, u64::MAX)
    }

    fn fetch_target<'a>(&'a self, path: &'a str, _: u64) -> Fetch<'a> {
        self.0.fetch_target(path, u64::MAX)
    }
}

#[tokio::test]
async fn oversize_from_a_transport_that_does_not_look() {
    let (fixture, node) = ready();
    fixture.put("timestamp.json", vec![b' '; 16_385]);
    let repository = std::sync::Arc::new(Careless(fixture.repository()));
    let error = refused(node.open().unwrap().refresh(repository, node.clock).await);
    assert!(matches!(error, TrustError::Oversize { limit: 16_384, .. }), "{error}");
}

#[tokio::test]
async fn missing_or_garbage_root() {
    let (fixture, node) = ready();
    std::fs::remove_file(node.anchor()).unwrap();
    let error = node.open().unwrap_err();
    assert!(matches!(error, TrustError::AnchorMissing { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Local);

    let unsigned =
        String::from_utf8(fixture.anchor().to_vec()).unwrap().replace("\"version\": 1", "\"version\": 7");
    for garbage in ["", "{}", "not json", "{\"signed\":{},\"signatures\":[]}", &unsigned] {
        std::fs::write(node.anchor(), garbage).unwrap();
        let error = node.open().unwrap_err();
        assert!(matches!(error, TrustError::AnchorInvalid { .. }), "{garbage:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::Local);
    }
    // A directory in its place is unreadable, and so no root.
    std::fs::remove_file(node.anchor()).unwrap();
    std::fs::create_dir(node.anchor()).unwrap();
    assert!(matches!(node.open(), Err(TrustError::AnchorMissing { .. })));
}

#[tokio::test]
async fn garbage_metadata() {
    for name in ["timestamp.json", "3.snapshot.json", "2.targets.json"] {
        for garbage in ["", "<html>captive portal</html>", "{}", "null", "{\"signed\":1,\"signatures\":1}"] {
            let (fixture, node) = ready();
            fixture.put(name, garbage.as_bytes().to_vec());
            let error = refused(node.refresh(&fixture).await);
            assert!(
                matches!(error, TrustError::Malformed { .. } | TrustError::Mismatch { .. }),
                "{name} {garbage:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn unreachable_or_empty_server_is_no_refusal() {
    let (fixture, node) = ready();
    fixture.set_down(true);
    let error = node.refresh(&fixture).await.unwrap_err();
    assert!(matches!(error, TrustError::Network { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Network);
    fixture.set_down(false);
    fixture.remove("timestamp.json");
    let error = node.refresh(&fixture).await.unwrap_err();
    assert!(matches!(&error, TrustError::Missing { name } if name == "timestamp.json"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Network);
}

#[tokio::test]
async fn rotated_roots_are_followed() {
    let mut fixture = Fixture::new(3, 2);
    let node = Node::new(fixture.anchor());
    node.refresh(&fixture).await.unwrap();
    fixture.rotate(|f| f.root_keys = (20..23).map(SigningKey::from_seed).collect());
    fixture.rotate(|f| f.targets_key = SigningKey::from_seed(110));
    fixture.rotate(|f| f.online.timestamp = SigningKey::from_seed(111));
    fixture.release(&manifest("1.1.0", "x86-64"));
    fixture.channel("alpha", &["1.1.0"]);
    assert_eq!(node.refresh(&fixture).await.unwrap().versions.root, 4);
    node.offered(&fixture, "1.1.0").await.unwrap();
    // The old targets key is worth nothing any more.
    fixture.targets_key = SigningKey::from_seed(100);
    let name = format!("{}.targets.json", fixture.targets().version());
    fixture.forge(&name, &[&fixture.targets_key], |_| {});
    repin(&fixture, &name);
    let fresh = Node::new(fixture.anchor());
    assert!(matches!(refused(fresh.refresh(&fixture).await), TrustError::Signatures { .. }));
}

#[tokio::test]
async fn fast_forward_is_recovered_by_rotation() {
    let (mut fixture, node) = ready();
    // A thief with the server's keys publishes the last version there is.
    fixture
        .forge("timestamp.json", &[&fixture.online.timestamp], |signed| signed["version"] = u64::MAX.into());
    node.refresh(&fixture).await.unwrap();
    fixture.publish();
    assert!(matches!(refused(node.refresh(&fixture).await), TrustError::Rollback { .. }));
    fixture.rotate(|f| {
        f.online.timestamp = SigningKey::from_seed(120);
        f.online.snapshot = SigningKey::from_seed(121);
    });
    node.refresh(&fixture).await.unwrap();
    node.offered(&fixture, "1.1.0").await.unwrap();
}
