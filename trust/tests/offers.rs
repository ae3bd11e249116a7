//! Step 5: offers that a node must refuse, and the few it may take. Each test is a row of docs/trust.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that does not work"
)]

mod common;

use common::{No, Node, ready, refused, repin};
use protocol::manifest::{DocumentError, Manifest, TargetCustom};
use protocol::version::Version;
use trust::testing::{Fixture, manifest};
use trust::{Refusal, TrustError};

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

#[tokio::test]
async fn release_that_the_channel_does_not_list() {
    let (mut fixture, node) = ready();
    fixture.release(&manifest("1.2.0", "x86-64"));
    fixture.channel("beta", &["1.2.0"]);
    let refusal = node.offered(&fixture, "1.2.0").await.unwrap_err().refusal();
    assert!(matches!(&refusal, Refusal::NotInChannel { listed, .. } if listed == "1.1.0"), "{refusal}");
}

#[tokio::test]
async fn manifest_of_another_channel() {
    // The node follows alpha; what beta lists is nothing to it.
    let (mut fixture, mut node) = ready();
    fixture.channel("alpha", &[]);
    fixture.channel("beta", &["1.1.0"]);
    let refusal = node.offered(&fixture, "1.1.0").await.unwrap_err().refusal();
    assert!(matches!(&refusal, Refusal::NotInChannel { listed, .. } if listed == "none"), "{refusal}");
    node.facts.channel = "beta".parse().unwrap();
    node.offered(&fixture, "1.1.0").await.unwrap();
}

#[tokio::test]
async fn channel_file_of_another_channel() {
    // A captured channels key signs beta's file under alpha's name.
    let (mut fixture, node) = ready();
    let beta = br#"{"schema":1,"channel":"beta","versions":["1.1.0"]}"#;
    fixture.channel_bytes("alpha", beta.to_vec());
    let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
    assert!(matches!(&error, TrustError::Document(DocumentError::Mismatch { .. })), "{error}");
}

#[tokio::test]
async fn verified_file_of_another_channel() {
    let (mut fixture, node) = ready();
    fixture.channel("beta", &["1.1.0"]);
    let mut trust = node.open().unwrap();
    trust.refresh(fixture.repository(), node.clock).await.unwrap();
    let beta = trust.channel(&"beta".parse().unwrap()).await.unwrap();
    let manifest = trust.manifest(&version("1.1.0"), &node.facts.arch).await.unwrap();
    let refusal = trust::authorize(manifest, &beta, &node.facts).unwrap_err();
    assert!(matches!(refusal, Refusal::Channel { .. }), "{refusal}");
}

#[tokio::test]
async fn channel_that_does_not_exist() {
    let (fixture, mut node) = ready();
    node.facts.channel = "stable".parse().unwrap();
    let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
    assert!(
        matches!(&error, TrustError::UnknownTarget { path } if path == "channels/stable.json"),
        "{error}"
    );
}

#[tokio::test]
async fn manifest_of_another_architecture() {
    let (mut fixture, mut node) = ready();
    // Only released for x86-64.
    node.facts.arch = "arm64".parse().unwrap();
    let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
    assert!(matches!(error, TrustError::UnknownTarget { .. }), "{error}");
    // The x86-64 manifest under arm64's name, signed by the right key by mistake.
    let path = Manifest::target_path(&version("1.1.0"), &node.facts.arch);
    fixture.release_as(&path, &manifest("1.1.0", "x86-64"), TargetCustom::default());
    let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
    assert!(matches!(error, TrustError::Document(DocumentError::Mismatch { .. })), "{error}");
}

#[tokio::test]
async fn verified_manifest_of_another_architecture() {
    let (fixture, mut node) = ready();
    let mut trust = node.open().unwrap();
    trust.refresh(fixture.repository(), node.clock).await.unwrap();
    let channel = trust.channel(&node.facts.channel).await.unwrap();
    let manifest = trust.manifest(&version("1.1.0"), &node.facts.arch).await.unwrap();
    node.facts.arch = "arm64".parse().unwrap();
    let refusal = trust::authorize(manifest, &channel, &node.facts).unwrap_err();
    assert!(matches!(refusal, Refusal::Arch { .. }), "{refusal}");
}

#[tokio::test]
async fn manifest_of_another_version() {
    let (mut fixture, node) = ready();
    let path = Manifest::target_path(&version("1.2.0"), &node.facts.arch);
    fixture.release_as(&path, &manifest("1.1.0", "x86-64"), TargetCustom::default());
    fixture.channel("alpha", &["1.2.0"]);
    let error = refused(node.offered(&fixture, "1.2.0").await.map_err(No::trust));
    assert!(matches!(error, TrustError::Document(DocumentError::Mismatch { .. })), "{error}");
}

#[tokio::test]
async fn downgrade() {
    let (mut fixture, mut node) = ready();
    fixture.release(&manifest("0.9.0", "x86-64"));
    fixture.channel("alpha", &["0.9.0", "1.1.0"]);
    let refusal = node.offered(&fixture, "0.9.0").await.unwrap_err().refusal();
    assert!(
        matches!(&refusal, Refusal::Downgrade { newest, .. } if **newest == version("1.0.0")),
        "{refusal}"
    );
    // Having once confirmed 1.2.0 counts, though 1.0.0 runs.
    node.facts.newest_confirmed = Some(version("1.2.0"));
    let refusal = node.offered(&fixture, "1.1.0").await.unwrap_err().refusal();
    assert!(
        matches!(&refusal, Refusal::Downgrade { newest, .. } if **newest == version("1.2.0")),
        "{refusal}"
    );
    // So does running 1.2.0 when nothing was ever confirmed, or something older was.
    for confirmed in [None, Some(version("1.0.0"))] {
        node.facts.running = version("1.2.0");
        node.facts.newest_confirmed = confirmed;
        let refusal = node.offered(&fixture, "1.1.0").await.unwrap_err().refusal();
        assert!(matches!(refusal, Refusal::Downgrade { .. }), "{refusal}");
    }
}

#[tokio::test]
async fn authorised_downgrade() {
    let (mut fixture, mut node) = ready();
    let old = manifest("0.9.0", "x86-64");
    let custom = TargetCustom { allow_downgrade_from: Some(version("1.1.0")), dead_end: None };
    fixture.release_as(&Manifest::target_path(&old.version, &old.arch), &old, custom);
    fixture.channel("alpha", &["0.9.0"]);
    node.offered(&fixture, "0.9.0").await.unwrap();
    node.facts.newest_confirmed = Some(version("1.1.0"));
    node.offered(&fixture, "0.9.0").await.unwrap();
    // Up to and including 1.1.0, no further.
    node.facts.newest_confirmed = Some(version("1.1.1"));
    let refusal = node.offered(&fixture, "0.9.0").await.unwrap_err().refusal();
    assert!(matches!(refusal, Refusal::Downgrade { .. }), "{refusal}");
}

#[tokio::test]
async fn downgrade_allowed_by_anyone_but_the_targets_key() {
    // The channels role says that the downgrade is allowed, for the channel file and even for the manifest's path.
    let (mut fixture, node) = ready();
    let old = manifest("0.9.0", "x86-64");
    fixture.release(&old);
    fixture.channel("alpha", &["0.9.0"]);
    let name = format!("{}.channels.json", fixture.current().channels);
    let path = Manifest::target_path(&old.version, &old.arch);
    let listed = fixture.targets().target(&path).unwrap();
    let custom = serde_json::json!({ "allow_downgrade_from": "9.0.0" });
    fixture.forge(&name, &[&fixture.online.channels], |signed| {
        signed["targets"]["channels/alpha.json"]["custom"] = custom.clone();
        signed["targets"][&path] = serde_json::json!({
            "length": listed.size, "hashes": { "sha256": listed.sha256.unwrap().to_string() }, "custom": custom,
        });
    });
    let bytes = fixture.get(&name);
    let snapshot = format!("{}.snapshot.json", fixture.current().snapshot);
    let pin = |bytes: &[u8], version: u64| serde_json::json!({ "version": version, "length": bytes.len() });
    fixture.forge(&snapshot, &[&fixture.online.snapshot], |signed| {
        signed["meta"]["channels.json"] = pin(&bytes, fixture.current().channels);
    });
    let bytes = fixture.get(&snapshot);
    fixture.forge("timestamp.json", &[&fixture.online.timestamp], |signed| {
        signed["meta"]["snapshot.json"] = pin(&bytes, fixture.current().snapshot);
    });
    let refusal = node.offered(&fixture, "0.9.0").await.unwrap_err().refusal();
    assert!(matches!(refusal, Refusal::Downgrade { .. }), "{refusal}");
}

#[tokio::test]
async fn release_listed_only_by_the_channels_role() {
    // Whoever holds the server's keys cannot release: the path is not delegated.
    let (fixture, node) = ready();
    let name = format!("{}.channels.json", fixture.current().channels);
    fixture.forge(&name, &[&fixture.online.channels], |signed| {
        signed["targets"]["releases/6.6.6/x86-64/manifest.json"] =
            signed["targets"]["channels/alpha.json"].clone();
    });
    let mut trust = node.open().unwrap();
    trust.refresh(fixture.repository(), node.clock).await.unwrap();
    let error = refused(trust.manifest(&version("6.6.6"), &node.facts.arch).await);
    assert!(matches!(error, TrustError::UnknownTarget { .. }), "{error}");
}

#[tokio::test]
async fn release_through_a_delegation() {
    // Even where targets hands releases/ on to another role: that role cannot release, nor allow a downgrade.
    let (mut fixture, node) = ready();
    let path = "releases/0.9.0/x86-64/manifest.json";
    fixture.release(&manifest("0.9.0", "x86-64"));
    fixture.channel("alpha", &["0.9.0"]);
    let listed = fixture.targets().target(path).unwrap();
    fixture.withdraw(&version("0.9.0"), &node.facts.arch);
    let targets = format!("{}.targets.json", fixture.targets().version());
    fixture.forge(&targets, &[&fixture.targets_key], |signed| {
        signed["delegations"]["roles"][0]["paths"] = serde_json::json!(["channels/*", "releases/*/*/*"]);
    });
    repin(&fixture, &targets);
    let channels = format!("{}.channels.json", fixture.current().channels);
    fixture.forge(&channels, &[&fixture.online.channels], |signed| {
        signed["targets"][path] = serde_json::json!({
            "length": listed.size, "hashes": { "sha256": listed.sha256.unwrap().to_string() },
            "custom": { "allow_downgrade_from": "9.0.0" },
        });
    });
    repin(&fixture, &channels);
    let error = refused(node.offered(&fixture, "0.9.0").await.map_err(No::trust));
    assert!(matches!(&error, TrustError::UnknownTarget { path: found } if found == path), "{error}");
}

#[tokio::test]
async fn barrier() {
    let (mut fixture, mut node) = ready();
    let mut behind = manifest("2.0.0", "x86-64");
    behind.min_source_version = Some(version("1.1.0"));
    fixture.release(&behind);
    fixture.channel("alpha", &["1.1.0", "2.0.0"]);
    let refusal = node.offered(&fixture, "2.0.0").await.unwrap_err().refusal();
    assert!(matches!(&refusal, Refusal::Barrier { needs, .. } if **needs == version("1.1.0")), "{refusal}");
    node.facts.running = version("1.1.0");
    node.offered(&fixture, "2.0.0").await.unwrap();
}

#[tokio::test]
async fn withdrawn_release() {
    let (mut fixture, node) = ready();
    node.offered(&fixture, "1.1.0").await.unwrap();
    fixture.withdraw(&version("1.1.0"), &node.facts.arch);
    // The channel still lists it, and its file is still served.
    let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
    assert!(matches!(error, TrustError::UnknownTarget { .. }), "{error}");
}

#[tokio::test]
async fn tampered_or_oversize_documents() {
    let (fixture, node) = ready();
    let good = fixture.files();
    let names: Vec<_> = good.keys().filter(|name| name.starts_with("targets/")).cloned().collect();
    assert_eq!(names.len(), 2);
    for name in names {
        let mut bytes = fixture.get(&name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fixture.put(&name, bytes);
        let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
        assert!(matches!(error, TrustError::Mismatch { .. }), "{name}: {error}");
        let mut longer = good[&name].clone();
        longer.push(b' ');
        fixture.put(&name, longer);
        let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
        assert!(matches!(error, TrustError::Oversize { .. }), "{name}: {error}");
        fixture.serve(good.clone());
    }
    node.offered(&fixture, "1.1.0").await.unwrap();
}

#[tokio::test]
async fn signed_manifest_that_is_absurdly_long() {
    let (mut fixture, node) = ready();
    let mut long = manifest("1.2.0", "x86-64");
    long.notes = "x".repeat(2 << 20);
    fixture.release(&long);
    fixture.channel("alpha", &["1.2.0"]);
    let error = refused(node.offered(&fixture, "1.2.0").await.map_err(No::trust));
    assert!(matches!(error, TrustError::Oversize { limit: 1_048_576, .. }), "{error}");
}

#[tokio::test]
async fn signed_manifest_that_makes_no_sense() {
    for change in [
        (|m: &mut Manifest| m.partitions.clear()) as fn(&mut Manifest),
        |m| m.payloads.clear(),
        |m| m.schema = 2,
    ] {
        let mut fixture = Fixture::default();
        let mut wrong = manifest("1.1.0", "x86-64");
        change(&mut wrong);
        fixture.release(&wrong);
        fixture.channel("alpha", &["1.1.0"]);
        let node = Node::new(fixture.anchor());
        let error = refused(node.offered(&fixture, "1.1.0").await.map_err(No::trust));
        assert!(matches!(error, TrustError::Document(_)), "{error}");
    }
}

#[tokio::test]
async fn nothing_is_found_before_a_refresh_or_after_a_failed_one() {
    let (fixture, node) = ready();
    let mut trust = node.open().unwrap();
    assert!(matches!(trust.channel(&node.facts.channel).await, Err(TrustError::NotRefreshed)));
    trust.refresh(fixture.repository(), node.clock).await.unwrap();
    trust.channel(&node.facts.channel).await.unwrap();
    fixture.set_down(true);
    trust.refresh(fixture.repository(), node.clock).await.unwrap_err();
    assert!(matches!(trust.channel(&node.facts.channel).await, Err(TrustError::NotRefreshed)));
}
