//! Each document has one JSON form, kept here as a snapshot: a change of it is a change of the protocol, and shows.
//! Each is also read back with fields that it does not know, as a newer peer would send it.

use super::*;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_900_000_000 + second).unwrap()
}

fn node() -> NodeId {
    "0123456789abcdef0123456789abcdef".parse().unwrap()
}

fn channel(name: &str) -> Channel {
    name.parse().unwrap()
}

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn event() -> Event {
    Event {
        seq: 7,
        at: time(0),
        kind: EventKind::RolledBack,
        version: Some(version("1.1.0")),
        release: Some(Sha256::of(b"release")),
        detail: "the unit web.service failed".to_owned(),
        evidence: "web.service: failed\nexit status: 7".to_owned(),
    }
}

fn node_info() -> NodeInfo {
    NodeInfo {
        node: node(),
        channel: channel("alpha"),
        group: "workers".parse().unwrap(),
        own_group: None,
        arch: "x86-64".parse().unwrap(),
        version: version("1.0.0"),
        slot: Slot::A,
        state: StateName::RolledBack,
        last_seen: time(60),
        last_event: Some(event()),
        enrolled_with: None,
        revoked: None,
        quarantine: Some(vec![version("1.1.0")]),
        dead_end: Some("its updater cannot write".to_owned()),
    }
}

fn channel_info() -> ChannelInfo {
    ChannelInfo {
        schema: SCHEMA,
        channel: channel("alpha"),
        version: version("1.1.0"),
        changed_at: time(1),
        changed_by: "admin".to_owned(),
        to_dead_end: true,
        on_dead_ends: vec![OnDeadEnd {
            version: version("1.0.0"),
            arch: "x86-64".parse().unwrap(),
            nodes: 3,
            why: "its updater cannot write".to_owned(),
        }],
    }
}

#[test]
fn of_a_long_quarantine_what_is_not_kept_is_not_known() {
    let mut node = node_info();
    let (in_it, other) = (version("1.1.0"), version("1.2.0"));
    assert_eq!((node.quarantined(&in_it), node.quarantined(&other)), (Some(true), Some(false)));
    node.quarantine = Some(vec![in_it.clone(); QUARANTINE_MAX]);
    assert_eq!((node.quarantined(&in_it), node.quarantined(&other)), (Some(true), None));
    node.quarantine = None;
    assert_eq!(node.quarantined(&in_it), None);
}

/// Adds a field that nobody knows to every object.
fn newer(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.values_mut().for_each(newer);
            fields
                .insert("from_a_newer_version".to_owned(), serde_json::json!({ "any": ["thing", 1, null] }));
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(newer),
        _ => {}
    }
}

/// Snapshots a document and reads it back: as it is, and from a newer peer.
macro_rules! document {
    ($name:ident, $document:expr) => {
        #[test]
        fn $name() {
            let document = $document;
            insta::assert_json_snapshot!(document);
            reads_back(&document);
        }
    };
}

fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(document: &T) {
    let mut value = serde_json::to_value(document).unwrap();
    assert_eq!(&serde_json::from_value::<T>(value.clone()).unwrap(), document);
    newer(&mut value);
    assert_eq!(&serde_json::from_value::<T>(value).unwrap(), document);
}

mod enrolment;
mod lock;

document!(
    update_check,
    UpdateCheck {
        schema: SCHEMA,
        node: node(),
        channel: channel("alpha"),
        group: "workers".parse().unwrap(),
        arch: "x86-64".parse().unwrap(),
        version: version("1.0.0"),
        slot: Slot::A,
        boot_id: "3f0c8a3e-1111-4222-8333-444455556666".parse().unwrap(),
        state: StateName::Checking,
        interactive: true,
        quarantine: None,
    }
);
document!(
    update_answer,
    UpdateAnswer {
        schema: SCHEMA,
        decision: Decision::Update,
        version: Some(version("1.1.0")),
        reason: "the channel alpha points at 1.1.0".to_owned(),
        retry_after_s: None,
    }
);
document!(
    update_answer_hold,
    UpdateAnswer {
        schema: SCHEMA,
        decision: Decision::Hold,
        version: None,
        reason: "the rollout is paused".to_owned(),
        retry_after_s: Some(600),
    }
);
document!(events, Events { schema: SCHEMA, node: node(), events: vec![event()] });
document!(
    root_push,
    RootPush { schema: SCHEMA, roots: vec!["{}\n".to_owned()], targets: Some("{}\n".to_owned()) }
);
document!(
    release_push,
    ReleasePush {
        schema: SCHEMA,
        replaces: 3,
        targets: "{}\n".to_owned(),
        manifests: vec!["{\"schema\":1}".to_owned()],
    }
);
document!(published, Published { schema: SCHEMA, root: 1, targets: 4, snapshot: 9, timestamp: 30 });
document!(
    release_list,
    ReleaseList {
        schema: SCHEMA,
        releases: vec![ReleaseInfo {
            version: version("1.1.0"),
            arch: "x86-64".parse().unwrap(),
            pushed_at: time(0),
            image_bytes: 1 << 30,
            payload_bytes: 300_000_000,
            channels: vec![channel("alpha"), channel("beta")],
            dead_end: Some("its updater cannot write".to_owned()),
        }],
    }
);
document!(
    channel_set,
    ChannelSet { schema: SCHEMA, version: version("1.1.0"), leave_behind: false, to_dead_end: false }
);
document!(
    channel_promote,
    ChannelPromote {
        schema: SCHEMA,
        from: channel("alpha"),
        leave_behind: false,
        to_dead_end: false,
        despite_gate: None
    }
);
document!(channel_list, ChannelList { schema: SCHEMA, channels: vec![channel_info()] });
document!(node_list, NodeList { schema: SCHEMA, nodes: vec![node_info()] });
document!(node_show, NodeShow { schema: SCHEMA, node: node_info(), events: vec![event()] });
document!(
    audit_log,
    AuditLog {
        schema: SCHEMA,
        entries: vec![AuditEntry {
            seq: 12,
            at: time(2),
            actor: "admin".to_owned(),
            action: "channel.set".to_owned(),
            subject: "alpha".to_owned(),
            detail: "1.0.0 -> 1.1.0".to_owned(),
            hash: Some(Sha256::of(b"audit")),
        }],
    }
);
document!(
    event_stats,
    EventStats {
        schema: SCHEMA,
        from: "2030-03-01".parse().unwrap(),
        to: "2030-03-17".parse().unwrap(),
        counts: vec![EventCount {
            day: "2030-03-17".parse().unwrap(),
            channel: Some(channel("alpha")),
            version: Some(version("1.1.0")),
            kind: EventKind::RolledBack,
            events: 3,
        }],
    }
);
document!(
    version_stats,
    VersionStats {
        schema: SCHEMA,
        channel: channel("alpha"),
        from: "2030-03-17".parse().unwrap(),
        to: "2030-03-17".parse().unwrap(),
        counts: vec![
            VersionCount { hour: time(800), version: Some(version("1.1.0")), nodes: 120 },
            VersionCount { hour: time(800), version: None, nodes: 2 },
        ],
    }
);
document!(
    error_body,
    ErrorBody { kind: "conflict".to_owned(), message: "the server has targets version 4".to_owned() }
);

/// Optional fields may be absent, as an older peer leaves them.
#[test]
fn what_may_be_absent() {
    let answer: UpdateAnswer =
        serde_json::from_str(r#"{"schema":1,"decision":"none","reason":"current"}"#).unwrap();
    assert_eq!((answer.decision, answer.version, answer.retry_after_s), (Decision::None, None, None));
    let event: Event =
        serde_json::from_str(r#"{"seq":1,"at":"2030-03-17T17:46:40Z","kind":"staged"}"#).unwrap();
    assert_eq!((event.kind, event.version, event.release), (EventKind::Staged, None, None));
}

/// A kind or a name that is not valid is refused, not guessed.
#[test]
fn what_is_refused() {
    for event in [
        r#"{"seq":1,"at":"2030-03-17T17:46:40Z","kind":"exploded"}"#,
        r#"{"seq":-1,"at":"2030-03-17T17:46:40Z","kind":"staged"}"#,
        r#"{"seq":1,"at":"yesterday","kind":"staged"}"#,
        r#"{"seq":1,"at":"2030-03-17T17:46:40Z","kind":"staged","version":"../1"}"#,
    ] {
        assert!(serde_json::from_str::<Event>(event).is_err(), "{event}");
    }
    assert!(serde_json::from_str::<ChannelPromote>(r#"{"schema":1,"from":"../root"}"#).is_err());
}
