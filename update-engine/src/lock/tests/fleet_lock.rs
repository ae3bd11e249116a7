//! FleetLock v1 as its servers speak it: ours, airlock, poseidon, and what stands in front of them.

use super::scripted::{Says, Server};
use super::*;
use protocol::lock::{Refusal, Wait};
use serde_json::json;

fn client(server: &Server, path: &str) -> LockClient {
    let base_url = server.url().join(path).unwrap();
    client_without_server(&settings(LockBackend::FleetLock { base_url }))
}

fn no(kind: &str) -> String {
    json!({ "kind": kind, "value": "in words" }).to_string()
}

/// What a server answers, and what becomes of it for a request and for a confirmation.
#[tokio::test]
async fn answers_of_the_servers_there_are() {
    let cases = [
        ("granted, airlock", 200, String::new(), "Granted", "Released { was_held: true }"),
        (
            "granted, poseidon",
            200,
            "fleetlock: lock acquired".to_owned(),
            "Granted",
            "Released { was_held: true }",
        ),
        ("full, ours", 409, no("failed_lock_semaphore_full"), "Wait", "error"),
        ("full, airlock", 500, no("failed_lock"), "Wait", "passing error"),
        ("full, poseidon", 423, no("lock_held"), "Wait", "Released { was_held: false }"),
        ("store down, airlock", 500, no("failed_sem_init"), "passing error", "passing error"),
        ("store down, poseidon", 500, no("internal_error"), "passing error", "passing error"),
        ("unknown group, airlock", 400, no("unknown_group"), "Refused", "error"),
        ("bad id, airlock", 400, no("invalid_client_identity"), "error", "error"),
        ("no header, poseidon", 400, no("missing_header"), "error", "error"),
        ("accepted, which is no yes", 202, String::new(), "error", "error"),
        ("no content, which is no yes", 204, String::new(), "error", "error"),
        ("a proxy without its server", 502, "<html>".to_owned(), "passing error", "passing error"),
        ("a proxy that wants a login", 401, "<html>".to_owned(), "error", "error"),
        ("another server", 404, "not found".to_owned(), "error", "error"),
    ];
    for (case, status, body, request_is, confirm_is) in cases {
        let server = Server::start(move |_| Says::text(status, &body)).await;
        let lock = client(&server, "");
        for (command, expected) in [(request("n1", "a1"), request_is), (confirm("n1", "a1"), confirm_is)] {
            let found = match lock.perform(&command).await {
                Ok(reply) => format!("{reply:?}"),
                Err(error) => format!("{}error", if error.is_passing() { "passing " } else { "" }),
            };
            assert!(found.starts_with(expected), "{case}: {found}");
        }
    }
}

#[tokio::test]
async fn the_request_is_as_the_protocol_says_behind_any_base() {
    let server = Server::start(|_| Says::text(200, "")).await;
    for (base, prefix) in [("", ""), ("base/", "/base"), ("a/b//", "/a/b")] {
        let lock = client(&server, base);
        lock.perform(&request("n1", "a1")).await.unwrap();
        lock.perform(&confirm("n1", "a1")).await.unwrap();
        let asked = server.asked();
        let last = &asked[asked.len() - 2..];
        assert_eq!(last[0].path, format!("{prefix}/v1/pre-reboot"));
        assert_eq!(last[1].path, format!("{prefix}/v1/steady-state"));
        for asked in last {
            assert_eq!(asked.header("fleet-lock-protocol"), Some("true"));
            assert_eq!(asked.header("content-type"), Some("application/json"));
            assert_eq!(asked.body, json!({ "client_params": { "id": "n1", "group": "default" } }));
        }
    }
}

#[tokio::test]
async fn the_last_question_before_a_reboot_takes_the_lock_again() {
    let server = Server::start(|_| Says::text(200, "")).await;
    let lock = client(&server, "");
    assert!(matches!(lock.perform(&verify("n1", "a1")).await.unwrap(), Reply::Current { .. }));
    assert_eq!(server.asked()[0].path, "/v1/pre-reboot");
    let full = Server::start(|_| Says::text(409, &no("failed_lock_semaphore_full"))).await;
    assert!(matches!(client(&full, "").perform(&verify("n1", "a1")).await.unwrap(), Reply::Wait { .. }));
}

#[tokio::test]
async fn a_failed_reboot_keeps_the_permit() {
    let server = Server::start(|_| Says::text(200, "")).await;
    let fail = Command::Fail {
        node: "n1".parse().unwrap(),
        attempt: "a1".parse().unwrap(),
        boot: "other".parse().unwrap(),
        reason: "bad".to_owned(),
    };
    assert_eq!(client(&server, "").perform(&fail).await.unwrap(), Reply::Noted);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_redirect_to_a_page_that_says_200_is_no_permit() {
    let page = Server::start(|_| Says::text(200, "<html>welcome</html>")).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}", page.url());
        let server = Server::start(move |_| Says::text(status, "").with(&location)).await;
        let error = client(&server, "").perform(&request("n1", "a1")).await.unwrap_err();
        assert!(matches!(error, LockError::Redirect { .. }) && !error.is_passing(), "{}", line(&error));
    }
    assert!(page.asked().is_empty());
}

#[tokio::test]
async fn a_no_says_why_and_when_to_ask_again() {
    let hostile = json!({ "kind": "lock_held", "value": "x\n\u{1b}[2J" }).to_string();
    for (header, range) in
        [("X-Nothing: 1", 60..=90), ("Retry-After: 7", 7..=7), ("Retry-After: 99999", 900..=900)]
    {
        let body = hostile.clone();
        let server = Server::start(move |_| Says::text(423, &body).with(header)).await;
        let reply = client(&server, "").perform(&request("n1", "a1")).await.unwrap();
        let Reply::Wait { because, retry_after_s } = reply else { panic!("{reply:?}") };
        assert!(range.contains(&retry_after_s), "{header}: {retry_after_s}");
        assert_eq!(because, [Wait::FleetLock { kind: "lock_held".to_owned(), value: "x  [2J".to_owned() }]);
        assert_eq!(because[0].to_string(), "the FleetLock server said no: lock_held: x  [2J");
    }
}

#[tokio::test]
async fn an_unknown_group_is_refused_by_name() {
    let server = Server::start(|_| Says::text(400, &no("unknown_group"))).await;
    let reply = client(&server, "").perform(&request("n1", "a1")).await.unwrap();
    assert_eq!(
        reply,
        Reply::Refused { because: Refusal::UnknownGroup { group: "default".parse().unwrap() } }
    );
}

#[tokio::test]
async fn silence_is_no_permit() {
    let server = Server::start(|_| Says::Silence).await;
    let mut hasty = settings(LockBackend::FleetLock { base_url: server.url() });
    hasty.timeout = SHORT;
    let error = client_without_server(&hasty).perform(&request("n1", "a1")).await.unwrap_err();
    assert!(matches!(error, LockError::Slow { .. }) && error.is_passing(), "{}", line(&error));
    let view = client(&server, "").view().await.unwrap_err();
    assert_eq!(view.to_string(), "the fleetlock backend cannot show who holds or waits");
}
