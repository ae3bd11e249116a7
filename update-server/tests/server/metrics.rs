//! `/metrics`: its form, to the letter, and what it tells.

#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that does not work")]

use crate::common;

use common::fleet::{Node, act, set_policy};
use common::{Server, check};
use jiff::Timestamp;
use protocol::wire::{Event, EventKind, Events, SCHEMA};
use reqwest::{Method, StatusCode};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use update_server::auth::Role;
use update_server::data_dir::create_token;

/// Samples by name and labels as they are written.
type Samples = BTreeMap<String, f64>;

fn is_name(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Reads the labels of a sample, `a="b",c="d"`; panics where they are not well formed.
fn labels(text: &str) -> BTreeMap<String, String> {
    let (mut found, mut rest) = (BTreeMap::new(), text);
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap();
        assert!(is_name(name), "{text}");
        let (mut end, mut escaped) = (None, false);
        for (at, c) in value.char_indices() {
            match c {
                _ if escaped => {
                    assert!(matches!(c, '\\' | '"' | 'n'), "{text}");
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    end = Some(at);
                    break;
                }
                _ => assert_ne!(c, '\n'),
            }
        }
        let end = end.unwrap();
        assert!(found.insert(name.to_owned(), value[..end].to_owned()).is_none(), "a label twice: {text}");
        rest = &value[end + 1..];
        rest = if rest.is_empty() { rest } else { rest.strip_prefix(',').unwrap() };
    }
    found
}

/// Reads the text format 0.0.4 and stops at everything that it does not allow or that Prometheus advises against.
fn strictly(text: &str) -> Samples {
    let (mut samples, mut families) = (Samples::new(), BTreeSet::new());
    let mut family = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty() && families.insert(name.to_owned()), "{line}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}: {kind}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            family = (name.to_owned(), kind.to_owned());
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labelled) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels(labelled.strip_suffix('}').unwrap());
        let of = match family.1.as_str() {
            "histogram" => name.rsplit_once('_').unwrap().0,
            _ => name,
        };
        assert_eq!(of, family.0, "below its own HELP: {line}");
        assert_eq!(name.ends_with("_bucket"), labels.contains_key("le"), "{line}");
        let value: f64 = value.parse().unwrap();
        assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {line}");
    }
    // Buckets grow, and the last one is the count.
    for (sample, count) in &samples {
        let Some((name, labels)) = sample.split_once("_count{") else { continue };
        let prefix = format!("{name}_bucket{{");
        let mut buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter(|(bucket, _)| {
                bucket.starts_with(&prefix) && bucket.contains(labels.trim_end_matches('}'))
            })
            .map(|(bucket, count)| {
                let le = bucket.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
                (le.parse().unwrap(), *count)
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{sample}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{sample}");
    }
    samples
}

#[tokio::test]
async fn what_happens_is_counted_in_the_form_that_prometheus_reads() {
    let server = Server::start().await;
    let (admin, node) = (server.admin(), server.anybody());
    let mut operator = server.operator();
    operator.push_root(&admin).await;
    for version in ["0.9.0", "1.0.0", "1.1.0"] {
        operator.release(&admin, version).await;
    }
    for end in ["0.9.0", "1.0.0"] {
        assert_eq!(operator.dead_end(&admin, end, Some("w")).await.status(), StatusCode::OK);
    }
    node.check("stable", "1.0.0").await;
    node.check("stable", "1.0.0").await;
    for made_up in 0..60 {
        let id = format!("{made_up:032x}").parse().unwrap();
        let check = protocol::wire::UpdateCheck { node: id, ..check(&format!("c{made_up}"), "1.0.0") };
        assert_eq!(node.send(Method::POST, "/v1/update-check", &check).await.status(), StatusCode::OK);
    }
    let event = |seq, kind| Event {
        seq,
        at: server.now(),
        kind,
        version: None,
        detail: String::new(),
        evidence: String::new(),
        release: None,
    };
    let events = Events {
        schema: SCHEMA,
        node: check("a", "1").node,
        events: vec![event(1, EventKind::RolledBack), event(2, EventKind::Failed)],
    };
    // Sent again because the answer was lost, an event is counted once.
    for _ in 0..2 {
        assert_eq!(node.send(Method::POST, "/v1/events", &events).await.status(), StatusCode::NO_CONTENT);
    }
    for path in ["/made/up", "/v1/payloads/x", "/a/v1/pre-reboot"] {
        assert!(node.get(path).await.status().is_client_error());
    }
    // It is written once a second; asking for the nodes does it at once.
    assert_eq!(admin.get("/api/v1/nodes").await.status(), StatusCode::OK);

    let answer = admin.get("/metrics").await;
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let samples = strictly(&answer.text().await.unwrap());
    let is = |name: &str, value: f64| assert_eq!(samples.get(name), Some(&value), "{name}: {samples:#?}");
    is("flipside_update_checks_total{decision=\"none\"}", 62.0);
    is("flipside_events_total{kind=\"rolled-back\"}", 1.0);
    is("flipside_events_total{kind=\"failed\"}", 1.0);
    let requests = |route: &str, method: &str, status: &str, count| {
        let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
        is(&format!("flipside_http_requests_total{{{labels}}}"), count);
    };
    requests("/v1/update-check", "POST", "2xx", 62.0);
    requests("/v1/payloads/{digest}", "GET", "4xx", 1.0);
    requests("other", "GET", "4xx", 1.0);
    requests("fleetlock", "GET", "4xx", 1.0);
    is("flipside_http_request_duration_seconds_count{route=\"/v1/update-check\",method=\"POST\"}", 62.0);
    // Sixty-one pairs of channel and version are fifty and the rest, however many are made up.
    let nodes: Vec<_> = samples.iter().filter(|(name, _)| name.starts_with("flipside_nodes{")).collect();
    assert_eq!((nodes.len(), nodes.iter().map(|(_, count)| **count).sum::<f64>()), (51, 61.0));
    is("flipside_nodes{channel=\"other\",version=\"other\"}", 11.0);
    let ends: Vec<_> =
        samples.iter().filter(|(name, _)| name.starts_with("flipside_dead_end_nodes{")).collect();
    assert_eq!(ends.len(), 2, "of dead ends alone: {ends:?}");
    is("flipside_dead_end_nodes{version=\"1.0.0\"}", 61.0);
    is("flipside_dead_end_nodes{version=\"0.9.0\"}", 0.0);
    for role in ["root", "targets", "snapshot", "timestamp", "channels"] {
        let at = samples[&format!("flipside_metadata_expiry_timestamp_seconds{{role=\"{role}\"}}")];
        assert!(at > server.now().as_second() as f64, "{role}");
    }
    for family in ["holders", "waiters", "stuck"] {
        is(&format!("flipside_lock_{family}{{group=\"default\"}}"), 0.0);
    }
    is("flipside_database_up", 1.0);
    is("flipside_checkins_pending", 0.0);
    assert!(samples["flipside_database_connections_max"] >= 4.0);
    is(&format!("flipside_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0);
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
        assert!(samples[name] > 0.0, "{name}");
    }
    let start = samples["process_start_time_seconds"];
    assert!((Timestamp::now().as_second() as f64 - start) < 3600.0, "{start}");
}

#[tokio::test]
async fn rollouts_are_told_by_channel_and_a_halt_among_them() {
    let server = Server::start().await;
    let admin = server.admin();
    let mut operator = server.operator();
    operator.push_root(&admin).await;
    operator.release(&admin, "1.1.0").await;
    let waves =
        "waves = [{ share = \"100%\", hold = \"0s\" }]\n[channel.stable.canary]\ngroup = \"canary\"\n";
    set_policy(&admin, waves).await;
    assert_eq!(admin.set_channel("stable", "1.1.0").await.status(), StatusCode::OK);
    let samples = async || strictly(&admin.get("/metrics").await.text().await.unwrap());
    let mut canary = Node::new(&admin, 1, "canary");
    assert!(canary.may_go().await);
    canary.tell(&[EventKind::RolledBack]).await;
    assert_eq!(act(&admin, "pause", None).await.status(), StatusCode::OK);
    let samples = samples().await;
    let is = |name: &str, value: f64| assert_eq!(samples.get(name), Some(&value), "{name}: {samples:#?}");
    for (name, value) in [("halted", 1.0), ("paused", 1.0), ("stage", 1.0), ("stages", 2.0)] {
        is(&format!("flipside_rollout_{name}{{channel=\"stable\"}}"), value);
    }
    for (phase, value) in [("rolled-back", 1.0), ("granted", 0.0), ("confirmed", 0.0), ("lost", 0.0)] {
        is(&format!("flipside_rollout_nodes{{channel=\"stable\",phase=\"{phase}\"}}"), value);
    }
}

#[tokio::test]
async fn who_has_no_token_sees_no_figures() {
    let server = Server::start().await;
    assert_eq!(server.anybody().get("/metrics").await.status(), StatusCode::UNAUTHORIZED);
    let store = server.app.store();
    assert!(create_token(store, "prometheus", Role::Viewer, None, "t", server.now()).await.unwrap());
    assert_eq!(server.client("t").get("/metrics").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_listener_of_its_own_needs_no_token_and_shows_nothing_else() {
    let dir = TempDir::new().unwrap();
    let program = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_update-server"));
        command.args(args).arg("--data-dir").arg(dir.path().join("srv"));
        command.env_remove("RUST_LOG").env_remove("UPDATE_SERVER_DATABASE_URL");
        command
    };
    assert!(program(&["init"]).output().unwrap().status.success());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    let mut child = program(&serve).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("metrics on ")).unwrap();
    let url = line.split("metrics on ").nth(1).unwrap().trim().to_owned();
    let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
    assert!(strictly(&text).contains_key("flipside_database_up"), "{text}");
    let elsewhere = reqwest::get(url.replace("/metrics", "/v1/metadata/1.root.json")).await.unwrap();
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND);
    child.kill().unwrap();
    child.wait().unwrap();
}
