//! The documents about the reboot lock.

use super::super::*;
use super::{node, reads_back, time, version};
use crate::lock::{
    ClientId, Command, Document, Holder, Phase, Policy, Population, Reply, Usage, Wait, Waiter,
};

fn client() -> ClientId {
    ClientId::from(&node())
}

fn boot(name: &str) -> BootId {
    name.parse().unwrap()
}

fn holder() -> Holder {
    Holder {
        node: client(),
        attempt: Some("attempt-7".parse().unwrap()),
        boot_before: Some(boot("boot-1")),
        boot_after: None,
        from: Some(version("1.0.0")),
        to: Some(version("1.1.0")),
        zone: Some("rack-3".parse().unwrap()),
        etcd_member: None,
        reason: "update to 1.1.0".to_owned(),
        grant: 12,
        phase: Phase::Granted,
        granted_at: time(0),
        phase_at: time(0),
        deadline: time(3600),
        stuck_since: None,
        instead_of: None,
    }
}

fn view() -> LockView {
    let waiter = Waiter {
        node: "zincati-1".parse().unwrap(),
        attempt: None,
        to: None,
        zone: None,
        etcd_member: None,
        priority: 0,
        since: time(10),
        seen: time(20),
    };
    let document = Document {
        holders: vec![holder()],
        queue: vec![waiter],
        grants: 12,
        ..Document::new("workers".parse().unwrap(), Policy::default())
    };
    LockView {
        schema: SCHEMA,
        revision: 31,
        document,
        population: Some(Population { total: 40, zones: [("rack-3".parse().unwrap(), 20)].into() }),
        caps: vec![Usage { cap: "all".to_owned(), max: 3, held_elsewhere: 1 }],
    }
}

fn info() -> LockInfo {
    LockInfo {
        view: view(),
        holding: vec![LockReasons { node: client(), because: Vec::new() }],
        waiting: vec![LockReasons {
            node: "zincati-1".parse().unwrap(),
            because: vec!["1 of 1 permits held by 0123456789abcdef0123456789abcdef".to_owned()],
        }],
    }
}

document!(
    lock_command,
    LockCommand {
        schema: SCHEMA,
        command: Command::Verify {
            node: client(),
            attempt: "attempt-7".parse().unwrap(),
            boot: boot("boot-1")
        },
    }
);
document!(
    lock_answer_granted,
    LockAnswer { schema: SCHEMA, reply: Reply::Granted { holder: Box::new(holder()) } }
);
document!(
    lock_answer_wait,
    LockAnswer {
        schema: SCHEMA,
        reply: Reply::Wait {
            because: vec![Wait::Full { max: 1, holders: vec![client()] }, Wait::Queue { ahead: 2 }],
            retry_after_s: 45,
        },
    }
);

/// Not read back as from a newer peer: a policy's limit is an object of one key, and zones are a map.
#[test]
fn lock_view_and_list() {
    let list = LockList { schema: SCHEMA, locks: vec![info()] };
    insta::assert_json_snapshot!(list);
    let json = serde_json::to_string(&list).unwrap();
    assert_eq!(serde_json::from_str::<LockList>(&json).unwrap(), list);
    let mut newer = serde_json::to_value(view()).unwrap();
    newer["from_a_newer_version"] = true.into();
    newer["document"]["from_a_newer_version"] = true.into();
    newer["document"]["holders"][0]["from_a_newer_version"] = true.into();
    assert_eq!(serde_json::from_value::<LockView>(newer).unwrap(), view());
}

document!(
    lock_release,
    LockRelease { schema: SCHEMA, node: client(), grant: 12, why: "the machine was scrapped".to_owned() }
);
document!(
    policies,
    Policies {
        schema: SCHEMA,
        digest: Sha256::of(b"policy"),
        file: "[groups.default]\n".to_owned(),
        warnings: Vec::new(),
    }
);
document!(
    policy_set,
    PolicySet {
        schema: SCHEMA,
        replaces: Sha256::of(b"policy"),
        file: "[groups.default]\nmax = 2\n".to_owned(),
        why: "a larger fleet".to_owned(),
    }
);
document!(
    lock_import,
    LockImport {
        schema: SCHEMA,
        system: "airlock".to_owned(),
        max: 2,
        holders: vec!["c93c".parse().unwrap()],
        why: "moved from airlock".to_owned(),
    }
);
document!(node_remove, NodeRemove { schema: SCHEMA, why: "scaled in".to_owned() });
document!(
    fleet_lock_body,
    FleetLockBody { client_params: FleetLockClient { id: "c93c".to_owned(), group: "workers".to_owned() } }
);
document!(
    fleet_lock_error,
    FleetLockError {
        kind: "failed_lock_semaphore_full".to_owned(),
        value: "1 of 1 permits held by c93c".to_owned(),
    }
);

/// A FleetLock v1 client sends what it likes beside its id and group, and its JSON may be printed prettily.
#[test]
fn fleet_lock_as_zincati_sends_it() {
    let body = "{\n  \"client_params\": {\n    \"id\": \"c93c\",\n    \"group\": \"default\"\n  }\n}";
    let body: FleetLockBody = serde_json::from_str(body).unwrap();
    assert_eq!((body.client_params.id.as_str(), body.client_params.group.as_str()), ("c93c", "default"));
}

/// Operators' commands and those of FleetLock v1 name nobody whose credential could be asked for.
#[test]
fn only_nodes_commands_name_a_node() {
    let named = |command| LockCommand { schema: SCHEMA, command }.node().cloned();
    let (node, attempt, boot) = (client(), "a".parse().unwrap(), boot("b"));
    assert_eq!(named(Command::Abandon { node: node.clone(), attempt, boot }), Some(node.clone()));
    let (who, why) = (String::new(), String::new());
    for command in [
        Command::Tick,
        Command::FleetLockRequest { node: node.clone() },
        Command::FleetLockSteady { node: node.clone() },
        Command::ForceRelease { node: node.clone(), grant: 1, who: who.clone(), why: why.clone() },
        Command::RemoveNode { node, who: who.clone(), why: why.clone() },
        Command::SetPolicy { policy: Box::default(), who, why },
    ] {
        assert_eq!(named(command), None);
    }
}
