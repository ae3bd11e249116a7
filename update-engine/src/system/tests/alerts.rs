//! A Prometheus that answers what a test says: only its clear word that nothing fires lets a reboot go ahead.

use super::LONG;
use crate::config::settings;
use crate::network::tests::hostile::{Answer, Request, Server};
use crate::system::alerts::Alerts;
use serde_json::{Value, json};
use std::time::Duration;

/// How long is waited for what never comes.
const SHORT: Duration = Duration::from_secs(1);

fn settings(server: &Server) -> settings::Alerts {
    settings::Alerts {
        url: server.url().join("prometheus/").unwrap(),
        query: "ALERTS{alertstate=\"firing\"}".to_owned(),
        ignore: ["Watchdog".to_owned()].into(),
        timeout: LONG,
        token_file: None,
        ca: None,
    }
}

fn vector(samples: &[Value]) -> Value {
    let sample = |metric: &Value| json!({ "metric": metric, "value": [1_795_500_000.5, "1"] });
    let result: Vec<_> = samples.iter().map(sample).collect();
    json!({ "status": "success", "data": { "resultType": "vector", "result": result } })
}

fn alert(name: &str) -> Value {
    json!({ "__name__": "ALERTS", "alertname": name, "alertstate": "firing", "instance": "db1" })
}

async fn serving(answer: Answer) -> Server {
    Server::start(move |_, _: &Request| answer.clone()).await
}

/// What comes of one answer.
async fn asked(answer: Answer) -> Result<(), String> {
    let server = serving(answer).await;
    let said = Alerts::new(settings(&server)).blocking().await;
    assert_eq!(server.requests().len(), 1, "it is asked once: {said:?}");
    said.map_err(|line| line.replace(server.url().as_str(), "http://p/"))
}

async fn said(answer: &Value) -> Result<(), String> {
    asked(Answer::json(200, &answer.to_string())).await
}

#[tokio::test]
async fn nothing_holds_where_nothing_fires() {
    assert_eq!(said(&vector(&[])).await, Ok(()));
    assert_eq!(said(&vector(&[alert("Watchdog")])).await, Ok(()), "it is ignored");
}

#[tokio::test]
async fn what_fires_is_named_and_counted() {
    let cases: [(&[&str], &str); 4] = [
        (&["DiskFull"], "alerts: DiskFull"),
        (&["Watchdog", "NodeDown", "DiskFull", "NodeDown"], "alerts: DiskFull, NodeDown (2)"),
        (&["C", "B", "A"], "alerts: A, B, C"),
        (&["E", "D", "C", "B", "A", "E"], "alerts: A, B, C and 2 more"),
    ];
    for (names, line) in cases {
        let samples: Vec<_> = names.iter().map(|name| alert(name)).collect();
        assert_eq!(said(&vector(&samples)).await, Err(line.to_owned()));
    }
}

#[tokio::test]
async fn a_sample_of_another_query_holds_too_and_what_is_ignored_is_only_an_alerts_name() {
    let samples = [json!({ "__name__": "up", "job": "Watchdog" }), json!({ "job": "etcd" })];
    let line = said(&vector(&samples)).await.unwrap_err();
    assert_eq!(line, "alerts: a sample without alertname, up");
    let zero = json!({
        "status": "success",
        "data": { "resultType": "vector", "result": [{ "metric": { "__name__": "Watchdog" }, "value": [1, "0"] }] },
    });
    assert_eq!(said(&zero).await.unwrap_err(), "alerts: Watchdog");
}

#[tokio::test]
async fn a_name_obeys_no_terminal_and_is_short() {
    let line = said(&vector(&[alert(&format!("\u{1b}[2J\n{}", "x".repeat(500)))])).await.unwrap_err();
    assert!(line.starts_with("alerts: \\u{1b}[2J xxx") && line.ends_with("x…"), "{line}");
    assert!(line.chars().count() < 80 && !line.contains(char::is_control), "{line}");
}

/// Each would let the reboot go ahead if its answer were taken for an empty vector.
#[tokio::test]
async fn what_is_no_clear_answer_holds() {
    let cases = [
        (
            json!({ "status": "error", "errorType": "bad_data", "error": "parse error" }),
            "says error (bad_data: parse error)",
        ),
        (json!({ "status": "success" }), "is not that of a Prometheus: missing field `data`"),
        (json!({ "status": "success", "data": null }), "is not that of a Prometheus: invalid type: null"),
        (json!({ "status": "success", "data": { "resultType": "vector" } }), "missing field `result`"),
        (
            json!({ "status": "success", "data": { "resultType": "vector", "result": null } }),
            "invalid type: null",
        ),
        (
            json!({ "status": "success", "data": { "resultType": "vector", "result": [{}] } }),
            "missing field `metric`",
        ),
        (
            json!({ "status": "success", "data": { "resultType": "scalar", "result": [1, "0"] } }),
            "gives a scalar: expected a vector",
        ),
        (
            json!({ "status": "success", "data": { "resultType": "matrix", "result": [] } }),
            "gives a matrix: expected a vector",
        ),
        (json!({ "data": { "resultType": "vector", "result": [] } }), "missing field `status`"),
        (json!([]), "is not that of a Prometheus"),
        (
            json!({ "status": "success", "data": { "resultType": "vector", "result": [] }, "warnings": ["store-2\nis away"] }),
            "http://p/prometheus says that its answer may not be whole: store-2 is away",
        ),
    ];
    for (answer, part) in cases {
        let line = said(&answer).await.unwrap_err();
        assert!(line.starts_with("alerts cannot be checked: ") && line.contains(part), "{line}");
    }
    for answer in [Answer::json(200, ""), Answer::json(200, "<html>"), Answer::json(204, "")] {
        let line = asked(answer).await.unwrap_err();
        assert!(line.starts_with("alerts cannot be checked: "), "{line}");
    }
}

#[tokio::test]
async fn another_status_holds_whatever_comes_with_it() {
    let empty = vector(&[]).to_string();
    for status in [201, 206, 400, 401, 404, 500, 503] {
        let line = asked(Answer::json(status, &empty)).await.unwrap_err();
        assert!(line.contains(&format!("http://p/prometheus answered {status}")), "{line}");
    }
    let error =
        json!({ "status": "error", "errorType": "bad_data", "error": "1:1: parse error" }).to_string();
    let line = asked(Answer::json(400, &error)).await.unwrap_err();
    assert!(line.ends_with("answered 400 Bad Request (bad_data: 1:1: parse error)"), "{line}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = serving(Answer::json(200, &vector(&[]).to_string())).await;
    let to = elsewhere.url().to_string();
    let line = asked(Answer::status(302, &[("Location", &to)])).await.unwrap_err();
    assert!(line.contains(&format!("answered 302 Found to {to}: redirects are not followed")), "{line}");
    assert_eq!(elsewhere.requests().len(), 0);
}

#[tokio::test]
async fn an_answer_that_does_not_come_or_breaks_off_or_has_no_end_holds() {
    let whole = || Answer::json(200, &vector(&[]).to_string());
    for answer in [Answer::silence(), whole().hang_after(20)] {
        let server = serving(answer).await;
        let alerts = Alerts::new(settings::Alerts { timeout: SHORT, ..settings(&server) });
        let line = alerts.blocking().await.unwrap_err();
        assert!(
            line.contains("no whole answer from http://127.0.0.1:") && line.ends_with(" in 1 s"),
            "{line}"
        );
    }
    let line = asked(whole().cut_after(20)).await.unwrap_err();
    assert!(line.contains("no answer from http://p/prometheus: "), "{line}");
    // Valid but for its length.
    let long = format!("{}{}", vector(&[]), " ".repeat(4 << 20));
    let line = asked(Answer::json(200, &long)).await.unwrap_err();
    assert!(line.contains("sent more than the 4194304 bytes"), "{line}");
}

#[tokio::test]
async fn nobody_there_holds() {
    let server = serving(Answer::silence()).await;
    // Port 1 of the loopback answers nobody.
    let gone = settings::Alerts { url: "http://127.0.0.1:1/".parse().unwrap(), ..settings(&server) };
    let line = Alerts::new(gone).blocking().await.unwrap_err();
    assert!(line.starts_with("alerts cannot be checked: no answer from http://127.0.0.1:1: "), "{line}");
    assert!(!line.contains("ALERTS"), "the query is in no line: {line}");
}

#[tokio::test]
async fn the_query_and_the_token_are_sent_as_they_are() {
    let server = serving(Answer::json(200, &vector(&[]).to_string())).await;
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, "first\n").unwrap();
    let alerts = Alerts::new(settings::Alerts {
        query: "a + b & c{d=\"é\"}".to_owned(),
        token_file: Some(token_file.clone()),
        ..settings(&server)
    });
    alerts.blocking().await.unwrap();
    std::fs::write(&token_file, "second").unwrap();
    alerts.blocking().await.unwrap();
    let asked = server.requests();
    let path = "/prometheus/api/v1/query?query=a+%2B+b+%26+c%7Bd%3D%22%C3%A9%22%7D&timeout=60s";
    assert_eq!((asked[0].method.as_str(), asked[0].path.as_str()), ("GET", path));
    let tokens: Vec<_> = asked.iter().map(|request| request.authorization.as_deref().unwrap()).collect();
    assert_eq!(tokens, ["Bearer first", "Bearer second"], "it is read for each question");
    for (text, part) in [(&b"\n"[..], "one line with a token"), (b"a\nb", "one line"), (b"\xff", "one line")]
    {
        std::fs::write(&token_file, text).unwrap();
        let line = alerts.blocking().await.unwrap_err();
        assert!(line.contains("reboot.alerts.token_file: ") && line.contains(part), "{line}");
    }
    std::fs::remove_file(&token_file).unwrap();
    assert!(alerts.blocking().await.unwrap_err().contains("reboot.alerts.token_file: cannot read "));
    assert_eq!(server.requests().len(), 2, "nothing is asked without it");
}

#[tokio::test]
async fn authorities_that_cannot_be_used_hold() {
    let server = serving(Answer::json(200, &vector(&[]).to_string())).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let alerts = Alerts::new(settings::Alerts { ca: Some(ca.clone()), ..settings(&server) });
    assert!(alerts.blocking().await.unwrap_err().contains("reboot.alerts.ca: cannot read "));
    std::fs::write(&ca, "no PEM\n").unwrap();
    assert!(alerts.blocking().await.unwrap_err().ends_with("does not hold certificates in PEM"));
    assert_eq!(server.requests().len(), 0);
}
