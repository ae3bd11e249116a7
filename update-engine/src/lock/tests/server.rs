//! The update server's lock: commands go and replies come as they are.

use super::scripted::{Says, Server};
use super::*;
use serde_json::json;

fn lock(server: &Server) -> LockClient {
    client_of(&settings(LockBackend::Server), server.url())
}

#[tokio::test]
async fn commands_and_replies_are_carried_as_they_are() {
    let reply = Reply::Wait { because: vec![protocol::lock::Wait::QueueFull], retry_after_s: 15 };
    let answer = json!({ "schema": 1, "reply": reply });
    let server = Server::start(move |_| Says::json(200, &answer)).await;
    assert_eq!(lock(&server).perform(&request("n1", "a1")).await.unwrap(), reply);
    let asked = &server.asked()[0];
    assert_eq!(asked.path, "/v2/lock/default");
    let command: protocol::wire::LockCommand = serde_json::from_value(asked.body.clone()).unwrap();
    assert_eq!((command.schema, command.command), (1, request("n1", "a1")));
    let error = lock(&server).perform(&Command::Tick).await.unwrap_err();
    assert!(matches!(error, LockError::Unsupported { .. }), "{}", line(&error));
    assert_eq!(server.asked().len(), 1, "which the server is not even asked");
}

#[tokio::test]
async fn a_view_says_what_decisions_are_made_with() {
    let document = Document::new("default".parse().unwrap(), protocol::lock::Policy::default());
    let view = json!({ "schema": 1, "revision": 7, "document": &document, "population": { "total": 3, "zones": {} } });
    let server = Server::start(move |_| Says::json(200, &view)).await;
    let seen = lock(&server).view().await.unwrap();
    assert_eq!((seen.revision, seen.document), (7, document));
    assert_eq!(seen.context.population.unwrap().total, 3);
    assert_eq!(server.asked()[0].path, format!("/v2/lock/default?node={NODE}"));
    let without = Server::start(|_| Says::text(404, "")).await;
    assert!(matches!(lock(&without).view().await.unwrap_err(), LockError::UnknownGroup { .. }));
}

#[tokio::test]
async fn whatever_else_the_server_says_is_no_permit() {
    let granted = json!({ "schema": 2, "reply": Reply::Done });
    for (says, expected) in [
        (Says::text(200, "ok"), "is not what was expected"),
        (Says::text(204, ""), "is not what was expected"),
        (Says::json(200, &granted), "has schema 2: expected 1"),
        (Says::text(307, "").with("Location: http://elsewhere/"), "redirects are not followed"),
        (
            Says::json(403, &json!({ "kind": "forbidden", "message": "another machine has this id" })),
            "another machine",
        ),
    ] {
        let server = Server::start(move |_| says.clone()).await;
        let error = lock(&server).perform(&request("n1", "a1")).await.unwrap_err();
        assert!(line(&error).contains(expected), "{}", line(&error));
        assert!(matches!(error, LockError::Server(_)) && !error.is_passing());
    }
    let mut hurried = settings(LockBackend::Server);
    hurried.deadline = SHORT;
    let silent = Server::start(|_| Says::Silence).await;
    let error = client_of(&hurried, silent.url()).perform(&request("n1", "a1")).await.unwrap_err();
    assert!(matches!(error, LockError::Deadline { .. }) && error.is_passing(), "{}", line(&error));
}
