//! The whole engine against a server, or a line to it, that does wrong: it survives and ends right, or says in one
//! line what is wrong; the running slot stays bootable in each case.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tests::hostile::{Action, Proxy, Request};
use tests::node::{Node, Setup};
use tests::process::Run;
use tests::small::Small;

/// Short pauses, so that many tries take little time.
const IMPATIENT: &str =
    "\n[download]\nbackoff_initial_ms = 1\nbackoff_max_ms = 5\nstall_timeout_s = 1\nretries = 3\n";

/// A node that fetches all of 1.1.0 through a proxy.
struct Scene {
    small: Small,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        Self::with(Small::all_new().unwrap())
    }

    fn with(small: Small) -> Self {
        let proxy = Proxy::start(small.world.address()).unwrap();
        Self { small, proxy }
    }

    fn node(&self) -> Node<'_> {
        let setup = Setup { config: IMPATIENT, ..self.small.setup() };
        Node::new(&self.small.world, "node", &self.proxy.address(), &setup).unwrap()
    }

    /// The update succeeds although the rule is in force.
    fn survives(&self, node: &Node<'_>, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) {
        self.proxy.set_rule(rule);
        node.engine(&[]).unwrap().ok().unwrap();
        node.compare(Slot::B, "root", &self.small.v2).unwrap();
        assert!(node.status().unwrap().staged.unwrap().activated);
    }

    /// The engine gives up, says why, and slot A still boots; with a good server it then succeeds.
    fn gives_up(&self, node: &Node<'_>, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Run {
        self.proxy.set_rule(rule);
        let failed = node.engine(&[]).unwrap();
        assert!(failed.code == Some(1) || failed.code == Some(5), "{failed}");
        let last = failed.stderr.trim_end().lines().next_back().unwrap_or("");
        assert!(last.starts_with("update-engine: "), "the last line is not the error: {failed}");
        let disk = node.open_disk().unwrap();
        assert_eq!(disk.select().map(|(slot, _)| slot), Some(Slot::A), "{failed}");
        assert!(!disk.attributes(Slot::B).bootable(), "{failed}");
        node.compare(Slot::A, "root", &self.small.v1).unwrap();
        assert!(node.status().unwrap().error.is_some(), "{failed}");
        self.proxy.behave();
        node.engine(&[]).unwrap().ok().unwrap();
        node.compare(Slot::B, "root", &self.small.v2).unwrap();
        failed
    }
}

fn on_payload(action: Action) -> impl Fn(&Request) -> Action + Send + Sync + 'static {
    move |request| if request.is_payload() { action.clone() } else { Action::Forward }
}

/// Only the first answers to each path.
fn at_first(times: usize, action: Action) -> impl Fn(&Request) -> Action + Send + Sync + 'static {
    move |request| if request.earlier < times { action.clone() } else { Action::Forward }
}

#[test]
fn range_is_ignored() {
    let scene = Scene::new();
    scene.survives(&scene.node(), on_payload(Action::IgnoreRange));
}

#[test]
fn range_is_lied_about() {
    let scene = Scene::new();
    let lying = |request: &Request| match &request.range {
        // The head starts at 0, where the lie would be the truth.
        Some(range) if request.is_payload() && !range.starts_with("bytes=0-") => Action::LieAboutRange,
        _ => Action::Forward,
    };
    scene.gives_up(&scene.node(), lying);
}

#[test]
fn connections_break_again_and_again() {
    let scene = Scene::new();
    let whole = scene.small.release.payload().unwrap().size;
    scene.survives(&scene.node(), on_payload(Action::CutAfter(whole / 7)));
}

#[test]
fn connections_break_without_a_byte() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), on_payload(Action::CutAfter(0)));
    assert_eq!(failed.code, Some(1), "{failed}");
}

#[test]
fn the_first_answers_are_errors() {
    let scene = Scene::new();
    scene.survives(&scene.node(), at_first(2, Action::status("500 Internal Server Error")));
}

#[test]
fn the_first_connections_drop() {
    let scene = Scene::new();
    scene.survives(&scene.node(), at_first(2, Action::Drop));
}

#[test]
fn always_500() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), on_payload(Action::status("500 Internal Server Error")));
    assert!(failed.code == Some(1) && failed.stderr.contains("500"), "{failed}");
}

#[test]
fn busy_with_retry_after() {
    let scene = Scene::new();
    let busy = Action::Answer {
        status: "503 Service Unavailable",
        headers: vec!["Retry-After: 1".to_owned()],
        body: Vec::new(),
    };
    let node = scene.node();
    scene.survives(&node, move |request| {
        if request.is_payload() && request.earlier == 0 { busy.clone() } else { Action::Forward }
    });
}

#[test]
fn redirects_are_not_followed() {
    let scene = Scene::new();
    let elsewhere = Proxy::start(scene.small.world.address()).unwrap();
    let location = format!("Location: {}/", elsewhere.address());
    let redirect = Action::Answer { status: "302 Found", headers: vec![location], body: Vec::new() };
    let failed = scene.gives_up(&scene.node(), on_payload(redirect));
    assert!(failed.stderr.contains("302"), "{failed}");
    assert!(elsewhere.take_seen().is_empty(), "it followed");
}

#[test]
fn a_stall_is_noticed_and_survived() {
    let scene = Scene::new();
    let whole = scene.small.release.payload().unwrap().size;
    scene.survives(&scene.node(), move |request| {
        if request.is_payload() && request.earlier == 1 {
            Action::StallAfter(whole / 3)
        } else {
            Action::Forward
        }
    });
}

#[test]
fn a_server_that_only_stalls_is_left() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), on_payload(Action::StallAfter(10)));
    assert_eq!(failed.code, Some(1), "{failed}");
}

#[test]
fn too_much_is_sent() {
    let scene = Scene::new();
    // More than a range asked for is an answer that cannot be believed, or one whose end can be left alone.
    scene.proxy.set_rule(on_payload(Action::Append(vec![7; 100_000])));
    let node = scene.node();
    let said = node.engine(&[]).unwrap();
    if said.code == Some(0) {
        node.compare(Slot::B, "root", &scene.small.v2).unwrap();
    } else {
        scene.gives_up(&node, on_payload(Action::Append(vec![7; 100_000])));
    }
}

#[test]
fn a_wrong_byte_in_the_data_is_refused() {
    let scene = Scene::new();
    let node = scene.node();
    let head = scene.small.release.payload().unwrap().head_size;
    let failed = scene.gives_up(&node, move |request| match &request.range {
        Some(range) if request.is_payload() && !range.starts_with("bytes=0-") => Action::Flip(1000),
        None if request.is_payload() => Action::Flip(head + 1000),
        _ => Action::Forward,
    });
    assert!(failed.stderr.contains("is not what the index says"), "{failed}");
}

#[test]
fn a_wrong_byte_in_the_head_is_refused() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), on_payload(Action::Flip(20)));
    assert!(failed.code == Some(1) || failed.code == Some(5), "{failed}");
}

#[test]
fn the_payload_is_missing() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), on_payload(Action::status("404 Not Found")));
    assert!(failed.stderr.contains("404"), "{failed}");
}

#[test]
fn an_endless_answer_to_the_check_is_not_read_to_its_end() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), |request| {
        if request.path == "/v1/update-check" {
            Action::Answer { status: "200 OK", headers: Vec::new(), body: vec![b' '; 8 << 20] }
        } else {
            Action::Forward
        }
    });
    assert_eq!(failed.code, Some(1), "{failed}");
}

#[test]
fn an_answer_that_is_no_json() {
    let scene = Scene::new();
    let failed = scene.gives_up(&scene.node(), |request| {
        if request.path == "/v1/update-check" {
            Action::Answer {
                status: "200 OK",
                headers: Vec::new(),
                body: b"<html>captive portal</html>".to_vec(),
            }
        } else {
            Action::Forward
        }
    });
    assert_eq!(failed.code, Some(1), "{failed}");
}

#[test]
fn nothing_listens() {
    let scene = Scene::new();
    let node = scene.node();
    let gone = Proxy::start(scene.small.world.address()).unwrap();
    let address = gone.address();
    drop(gone);
    node.configure(&address, "alpha", IMPATIENT).unwrap();
    let failed = node.engine(&[]).unwrap().expect_code(1).unwrap();
    assert!(failed.stderr.contains("update-engine: "), "{failed}");
    assert!(!node.open_disk().unwrap().attributes(Slot::B).bootable());
}

/// The line delivers so many bytes of payload and falls silent; then the engine is killed.
fn killed_after(scene: &Scene, node: &Node<'_>, bytes: u64) {
    let left = Arc::new(AtomicU64::new(bytes));
    scene.proxy.set_rule(move |request| {
        if request.is_payload() { Action::Budget(Arc::clone(&left)) } else { Action::Forward }
    });
    drop(scene.proxy.take_seen());
    let mut engine = node.start_engine(&[]).unwrap();
    scene.proxy.wait_for_stall().unwrap();
    node.wait_downloaded(scene.proxy.payload_bytes()).unwrap();
    engine.kill().unwrap();
    engine.wait().unwrap();
    assert_eq!(node.open_disk().unwrap().select().map(|(slot, _)| slot), Some(Slot::A));
    scene.proxy.behave();
    drop(scene.proxy.take_seen());
}

#[test]
fn a_killed_engine_fetches_only_the_rest() {
    let scene = Scene::with(Small::large().unwrap());
    let node = scene.node();
    let whole = scene.small.release.payload().unwrap().size;
    node.configure(&scene.proxy.address(), "alpha", "").unwrap();
    killed_after(&scene, &node, whole * 9 / 10);
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &scene.small.v2).unwrap();
    let again = scene.proxy.payload_bytes();
    assert!(again < whole * 3 / 10, "{again} of {whole} bytes were fetched after 90 % had come");
}

#[test]
fn an_engine_killed_again_and_again_gets_on() {
    let scene = Scene::with(Small::large().unwrap());
    let node = scene.node();
    let whole = scene.small.release.payload().unwrap().size;
    node.configure(&scene.proxy.address(), "alpha", "").unwrap();
    // Of each run only the segment in hand is lost, an eighth of this payload.
    for _ in 0..3 {
        killed_after(&scene, &node, whole * 3 / 10);
    }
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &scene.small.v2).unwrap();
    let again = scene.proxy.payload_bytes();
    assert!(again < whole / 2, "{again} of {whole} bytes were left after three runs");
}
