//! Documents as locksmith and airlock leave them.

use crate::lock::import::{Imported, System};
use protocol::lock::{Command, Context, Limit, Reply, apply};

fn import(system: System, text: &str) -> Result<Imported, String> {
    let now = "2026-11-24T02:00:00Z".parse().unwrap();
    system.import(text, &"old".parse().unwrap(), now).map_err(|error| crate::error::chain(&error))
}

#[test]
fn numbers_and_holders_are_taken_over() {
    let cases = [
        (System::Locksmith, r#"{"semaphore":1,"max":1,"holders":null}"#, 1, 0),
        (System::Locksmith, r#"{"semaphore":2,"max":2,"holders":[]}"#, 2, 0),
        (
            System::Locksmith,
            r#"{"semaphore":1,"max":2,"holders":["0123456789abcdef0123456789abcdef"]}"#,
            2,
            1,
        ),
        (System::Airlock, r#"{"total_slots":1,"holders":["a"]}"#, 1, 1),
        (System::Airlock, r#"{"total_slots":3,"holders":null}"#, 3, 0),
        (System::Airlock, r#"{"total_slots":3}"#, 3, 0),
    ];
    for (system, text, max, holders) in cases {
        let Imported { document, notes } = import(system, text).unwrap();
        assert_eq!(document.policy.max, Limit::Count(max), "{text}");
        assert_eq!((document.holders.len(), notes.len()), (holders, holders), "{text}: {notes:?}");
        assert_eq!(document.group.as_str(), "old");
        assert_eq!(document.grants, holders as u64);
    }
}

#[test]
fn what_has_no_equal_is_told() {
    let cases = [
        (System::Locksmith, r#"{"semaphore":-1,"max":1,"holders":["a","b"]}"#, "2 hold permits and 1 may"),
        (
            System::Locksmith,
            r#"{"semaphore":1,"max":1,"holders":["a"]}"#,
            "semaphore is 1, and max less holders is 0",
        ),
        (System::Locksmith, r#"{"semaphore":0,"max":0,"holders":null}"#, "its number is 0"),
        (System::Locksmith, r#"{"semaphore":0,"max":1,"holders":["a"]}"#, "machine ids"),
        (System::Airlock, r#"{"total_slots":2,"holders":["a","a"]}"#, "holder a is listed twice"),
        (System::Airlock, r#"{"total_slots":2,"holders":["a"]}"#, "FleetLock v1 clients"),
    ];
    for (system, text, expected) in cases {
        let notes = import(system, text).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains(expected)), "{text}: {notes:?}");
    }
}

#[test]
fn what_is_no_such_document_is_refused() {
    let cases = [
        (System::Locksmith, "", "not a lock of locksmith: expected {\"semaphore\":1"),
        (System::Locksmith, r#"{"total_slots":1,"holders":[]}"#, "unknown field `total_slots`"),
        (
            System::Locksmith,
            r#"{"semaphore":1,"max":-1,"holders":[]}"#,
            "max: expected a number from 0 to 4294967295, found -1",
        ),
        (System::Airlock, r#"{"semaphore":1,"max":1,"holders":[]}"#, "not a lock of airlock"),
        (
            System::Airlock,
            r#"{"total_slots":1,"holders":["a b"]}"#,
            "holder \"a b\": expected up to 256 visible",
        ),
        (System::Airlock, r#"{"total_slots":1,"holders":[""]}"#, "holder \"\""),
    ];
    for (system, text, expected) in cases {
        let error = import(system, text).unwrap_err();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn an_imported_holder_counts_and_can_give_back() {
    let mut document = import(System::Airlock, r#"{"total_slots":1,"holders":["a"]}"#).unwrap().document;
    let now = "2026-11-24T02:01:00Z".parse().unwrap();
    let context = Context { now, population: None, caps: Vec::new(), quorum: None };
    let mut tell = |command| {
        let applied = apply(&document, &command, &context);
        document = applied.document.unwrap_or_else(|| document.clone());
        applied.reply
    };
    assert!(matches!(tell(super::request("n1", "a1")), Reply::Wait { .. }));
    let steady = Command::FleetLockSteady { node: "a".parse().unwrap() };
    assert_eq!(tell(steady), Reply::Released { was_held: true });
    assert!(matches!(tell(super::request("n1", "a1")), Reply::Granted { .. }));
}
