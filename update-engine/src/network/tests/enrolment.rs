//! A server that asks for an enrolment token: when it is shown, and what a person reads where that does not help.

use super::*;
use crate::config::settings::Server as Settings;
use protocol::lock::ClientId;
use std::path::PathBuf;

const ASKS: &str = "{\"kind\":\"not-enrolled\",\"message\":\"the node id is not enrolled\"}";

fn node() -> NodeId {
    "0123456789abcdef0123456789abcdef".parse().unwrap()
}

fn events() -> wire::Events {
    wire::Events { schema: 1, node: node(), events: Vec::new() }
}

fn token() -> wire::EnrolmentToken {
    wire::EnrolmentToken::from_random([7; 32])
}

fn node_client(server: &Server, file: Option<PathBuf>) -> Client {
    let settings = Settings { enrolment_token_file: file, ..server.url().into() };
    let credential = wire::NodeCredential::from_random([1; 32]);
    Client::new(&settings, limits()).unwrap().with_credential(credential)
}

fn written(folder: &tempfile::TempDir, text: &str) -> Option<PathBuf> {
    let path = folder.path().join("token");
    std::fs::write(&path, text).unwrap();
    Some(path)
}

/// What each request showed.
fn shown(server: &Server) -> Vec<Option<String>> {
    server.requests().into_iter().map(|request| request.enrolment).collect()
}

async fn refusal(server: &Server, file: Option<PathBuf>) -> String {
    let error = node_client(server, file).send_events(&events()).await.unwrap_err();
    assert!(!error.is_passing(), "it would not change by itself in a second");
    let line = network_failure(&error).detail;
    assert!(!line.contains('\n') && !line.contains(token().reveal()), "{line}");
    line
}

#[tokio::test]
async fn the_token_is_shown_where_it_is_asked_for_and_nowhere_else() {
    // Enrolled by the second request; from the third on it is known.
    let server = Server::start(|number, _| match number {
        0 => Answer::json(401, ASKS),
        _ => Answer::json(200, "{}"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let client = node_client(&server, written(&folder, &format!("{}\n", token().reveal())));
    client.send_events(&events()).await.unwrap();
    client.send_events(&events()).await.unwrap();
    client.get("v1/metadata/1.root.json", 10).await.unwrap();
    let token = Some(token().reveal().to_owned());
    assert_eq!(shown(&server), [None, token, None, None]);
    assert!(server.requests()[1].authorization.as_ref().unwrap().contains("flipside_node_"), "with its own");
    assert!(!format!("{client:?}").contains("flipside_enrol"), "nor into a log");
}

/// The server bound the id, and its answer was lost: the same is sent again, and is taken.
#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_token() {
    let server = Server::start(|number, _| match number {
        0 => Answer::json(401, ASKS),
        1 => Answer::json(200, "{}").cut_after(0),
        _ => Answer::json(200, "{}"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let client = node_client(&server, written(&folder, token().reveal()));
    let path = format!("v2/lock/default?node={}", ClientId::from(&node()));
    client.get_as_node(&path, 10).await.unwrap();
    let token = Some(token().reveal().to_owned());
    assert_eq!(shown(&server), [None, token.clone(), token]);
}

#[tokio::test]
async fn what_a_person_reads() {
    let server = Server::start(|_, _| Answer::json(401, ASKS)).await;
    let folder = tempfile::tempdir().unwrap();
    let line = refusal(&server, None).await;
    assert!(line.contains("asks for an enrolment token: this node has none"), "{line}");
    assert!(
        line.contains("updatectl enrolment create") && line.contains("server.enrolment_token_file"),
        "{line}"
    );
    assert_eq!(server.requests().len(), 1);
    let line = refusal(&server, Some(folder.path().join("missing"))).await;
    assert!(line.contains("cannot read") && line.contains("missing (server.enrolment_token_file)"), "{line}");
    for (text, saying) in [
        ("flipside_07", "expected flipside_enrol_"),
        (&*"x".repeat(2000), "found more than 1024 bytes"),
        ("", "expected"),
    ] {
        let line = refusal(&server, written(&folder, text)).await;
        assert!(line.contains("is wrong") && line.contains(saying), "{saying}: {line}");
    }
    assert!(shown(&server).iter().all(Option::is_none), "what is no token is not sent");
    let line = refusal(&server, written(&folder, token().reveal())).await;
    assert!(line.contains("did not arrive"), "{line}");

    // What the server says of a token, and of a node, is told as it is, and the token is not tried again and again.
    let over =
        "{\"kind\":\"unauthorized\",\"message\":\"the enrolment token 0123 is used up: ask for another\"}";
    let server =
        Server::start(move |number, _| Answer::json(401, if number == 0 { ASKS } else { over })).await;
    let line = refusal(&server, written(&folder, token().reveal())).await;
    assert!(line.contains("401") && line.contains("the enrolment token 0123 is used up"), "{line}");
    assert_eq!(server.requests().len(), 2);
    let revoked = "{\"kind\":\"forbidden\",\"message\":\"the node id 01 is revoked since 2026 (stolen)\"}";
    let server = Server::start(move |_, _| Answer::json(403, revoked)).await;
    let line = refusal(&server, written(&folder, token().reveal())).await;
    assert!(line.contains("403") && line.contains("is revoked since 2026 (stolen)"), "{line}");
    assert_eq!(shown(&server), [None]);
}
