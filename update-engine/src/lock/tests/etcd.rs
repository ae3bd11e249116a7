//! The lock in an etcd that is slow, lies, forgets and is damaged.

use super::super::etcd::Release;
use super::scripted::{Asked, Memory, Says, Server, compared};
use super::*;
use crate::config::settings::{Etcd, Login};
use protocol::lock::{Limit, Policy, Quorum, Refusal, Wait};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const LOCK: &str = "/flipside/v1/groups/default/lock";

fn etcd(endpoints: Vec<reqwest::Url>) -> Etcd {
    Etcd { endpoints, ca: None, identity: None, login: None, prefix: "/flipside".to_owned() }
}

fn client_with(etcd: Etcd, change: impl FnOnce(&mut Lock)) -> LockClient {
    let mut settings = settings(LockBackend::Etcd(Box::new(etcd)));
    change(&mut settings);
    client_without_server(&settings)
}

fn client(server: &Server) -> LockClient {
    client_with(etcd(vec![server.url()]), |_| {})
}

/// A client that soon gives up on an answer that does not come.
fn hasty(server: &Server) -> LockClient {
    client_with(etcd(vec![server.url()]), |settings| settings.timeout = SHORT)
}

type Shared = Arc<Mutex<Memory>>;

/// A server on a store; `fault` may answer in its place, given the number of the putting transaction, from 0.
async fn server(
    fault: impl Fn(usize, &Asked, &mut Memory) -> Option<Says> + Send + Sync + 'static,
) -> (Server, Shared) {
    let memory = Shared::default();
    let (shared, puts) = (Arc::clone(&memory), AtomicUsize::new(0));
    let server = Server::start(move |asked| {
        let mut memory = shared.lock().unwrap();
        // A node that enters itself among those that are counted is no change of the lock.
        let is_lock = asked.puts() && compared(asked).iter().any(|key| key.ends_with("/lock"));
        let instead =
            is_lock.then(|| fault(puts.fetch_add(1, Ordering::Relaxed), asked, &mut memory)).flatten();
        instead.unwrap_or_else(|| memory.answer(asked))
    })
    .await;
    (server, memory)
}

async fn honest() -> (Server, Shared) {
    server(|_, _, _| None).await
}

/// The putting transactions on locks.
fn changes(server: &Server) -> usize {
    let is_lock = |asked: &&Asked| asked.puts() && compared(asked).iter().any(|key| key.ends_with("/lock"));
    server.asked().iter().filter(is_lock).count()
}

fn is_granted(reply: &Reply) -> bool {
    matches!(reply, Reply::Granted { .. })
}

#[tokio::test]
async fn a_permit_goes_through_its_life() {
    let (server, memory) = honest().await;
    let lock = client(&server);
    assert!(is_granted(&lock.perform(&request("n1", "a1")).await.unwrap()));
    assert!(is_granted(&lock.perform(&request("n1", "a1")).await.unwrap()), "the same again");
    assert_eq!(changes(&server), 1, "which is read and not written");
    let waits = client(&server).perform(&request("n2", "b1")).await.unwrap();
    assert!(matches!(&waits, Reply::Wait { because, .. } if matches!(because[0], Wait::Full { max: 1, .. })));
    assert!(matches!(lock.perform(&verify("n1", "a1")).await.unwrap(), Reply::Current { .. }));
    let seen = lock.view().await.unwrap();
    assert_eq!((seen.document.holders.len(), seen.document.queue.len()), (1, 1));
    assert!(seen.revision > 0);
    let released = lock.perform(&confirm("n1", "a1")).await.unwrap();
    assert_eq!(released, Reply::Released { was_held: true });
    assert!(is_granted(&client(&server).perform(&request("n2", "b1")).await.unwrap()));
    assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 2);
}

#[tokio::test]
async fn a_conflict_is_read_again_and_both_changes_stay() {
    let lost = Arc::new(Mutex::new(0));
    let count = Arc::clone(&lost);
    let (server, memory) = server(move |number, _, memory| {
        if number < 2 {
            // Another node is faster: it holds one of two permits.
            let mut document = Document::new(
                "default".parse().unwrap(),
                Policy { max: Limit::Count(2), ..Policy::default() },
            );
            document.grants = 7;
            memory.put(LOCK, serde_json::to_vec(&document).unwrap());
            *count.lock().unwrap() += 1;
        }
        None
    })
    .await;
    assert!(is_granted(&client(&server).perform(&request("n1", "a1")).await.unwrap()));
    assert_eq!((changes(&server), *lost.lock().unwrap()), (3, 2));
    assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 8, "on top of the other's, not over it");
}

#[tokio::test]
async fn a_change_whose_answer_is_lost_is_looked_for_and_not_sent_again() {
    let (server, memory) = server(|number, asked, memory| {
        (number == 0).then(|| {
            memory.answer(asked);
            Says::Silence
        })
    })
    .await;
    assert!(is_granted(&hasty(&server).perform(&request("n1", "a1")).await.unwrap()));
    assert_eq!(changes(&server), 1);
    assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 1);
}

#[tokio::test]
async fn a_change_that_was_given_up_and_not_made_is_made_anew() {
    for given_up in [
        Says::trouble(503, 14, "etcdserver: request timed out"),
        Says::trouble(504, 4, "context deadline exceeded"),
        Says::trouble(500, 2, "etcdserver: leader changed"),
        Says::trouble(429, 8, "etcdserver: too many requests"),
        Says::text(200, "<html>not etcd</html>"),
        Says::text(204, ""),
    ] {
        let answer = given_up.clone();
        let (server, memory) = server(move |number, _, _| (number == 0).then(|| answer.clone())).await;
        let reply = client(&server).perform(&request("n1", "a1")).await.unwrap();
        assert!(is_granted(&reply), "{given_up:?}");
        assert_eq!(changes(&server), 2, "{given_up:?}");
        assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 1);
    }
}

#[tokio::test]
async fn a_change_that_comes_through_late_fails_on_the_revision() {
    let late: Arc<Mutex<Option<Asked>>> = Arc::default();
    let held_back = Arc::clone(&late);
    let (server, memory) = server(move |number, asked, memory| {
        if number == 0 {
            *held_back.lock().unwrap() = Some(asked.clone());
            return Some(Says::Silence);
        }
        let answer = memory.answer(asked);
        let late = held_back.lock().unwrap().take().unwrap();
        memory.answer(&late);
        Some(answer)
    })
    .await;
    assert!(is_granted(&hasty(&server).perform(&request("n1", "a1")).await.unwrap()));
    assert!(late.lock().unwrap().is_none(), "it did come through");
    assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 1);
}

#[tokio::test]
async fn a_change_that_cannot_be_looked_for_is_said_to_be_unresolved() {
    let (memory, silent) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
    let (shared, flag) = (Arc::clone(&memory), Arc::clone(&silent));
    let server = Server::start(move |asked| {
        let was_silent = flag.load(Ordering::Relaxed) > 0;
        if asked.puts() && compared(asked).iter().any(|key| key == LOCK) {
            flag.store(1, Ordering::Relaxed);
            shared.lock().unwrap().answer(asked);
            return Says::Silence;
        }
        if was_silent { Says::Silence } else { shared.lock().unwrap().answer(asked) }
    })
    .await;
    let lock = client_with(etcd(vec![server.url()]), |settings| {
        (settings.timeout, settings.deadline) = (SHORT, SHORT * 2);
    });
    let error = lock.perform(&request("n1", "a1")).await.unwrap_err();
    assert!(matches!(error, LockError::Unresolved { .. }) && error.is_passing(), "{}", line(&error));
    assert!(line(&error).contains("it is not known whether the lock was changed"), "{}", line(&error));
    // Asked again once etcd answers, it is the grant of the first time.
    silent.store(0, Ordering::Relaxed);
    let Reply::Granted { holder } = lock.perform(&request("n1", "a1")).await.unwrap() else { panic!() };
    assert_eq!((holder.grant, changes(&server)), (1, 1));
}

#[tokio::test]
async fn a_document_that_never_holds_still_is_given_up() {
    let (server, memory) = server(|_, _, memory| {
        memory.touch(LOCK);
        None
    })
    .await;
    let document = Document::new("default".parse().unwrap(), Policy::default());
    memory.lock().unwrap().put(LOCK, serde_json::to_vec(&document).unwrap());
    let lock = client_with(etcd(vec![server.url()]), |settings| settings.deadline = SHORT * 2);
    // Where the time is up in the middle of a request, as may be on a busy machine, that is what is said.
    for _ in 0..5 {
        let error = lock.perform(&request("n1", "a1")).await.unwrap_err();
        assert!(error.is_passing(), "{}", line(&error));
        assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 0);
        if matches!(error, LockError::Contended { tries, .. } if tries > 1) {
            return;
        }
    }
    panic!("it never says why");
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_left_as_it_is() {
    let newer = json!({ "schema": 2, "anything": [] }).to_string();
    let other = Document::new("other".parse().unwrap(), Policy::default());
    let cases: [(&str, Vec<u8>, &str); 5] = [
        (LOCK, b"\xff\xfe".to_vec(), "holds no lock document"),
        (LOCK, b"{\"schema\":1}".to_vec(), "holds no lock document"),
        (LOCK, newer.into_bytes(), "has schema 2: expected 1; a newer Flipside wrote it"),
        (LOCK, serde_json::to_vec(&other).unwrap(), "holds the lock of group other: expected default"),
        ("/flipside/v1/caps", b"[]".to_vec(), "holds no caps"),
    ];
    for (key, value, expected) in cases {
        let (server, memory) = honest().await;
        memory.lock().unwrap().put(key, value.clone());
        let error = client(&server).perform(&request("n1", "a1")).await.unwrap_err();
        assert!(line(&error).starts_with(&format!("{key} {expected}")), "{}", line(&error));
        assert!(!error.is_passing());
        assert_eq!((changes(&server), memory.lock().unwrap().get(key)), (0, Some(&value[..])));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, _) = honest().await;
    let location = format!("Location: {}v3/kv/txn", elsewhere.url());
    let server = Server::start(move |_| Says::text(307, "").with(&location)).await;
    let error = client(&server).perform(&Command::Tick).await.unwrap_err();
    assert!(matches!(error, LockError::Redirect { .. }) && !error.is_passing(), "{}", line(&error));
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn a_body_without_end_is_not_read_to_its_end() {
    let server = Server::start(|_| Says::text(200, &" ".repeat(17 << 20))).await;
    let lock = client_with(etcd(vec![server.url()]), |settings| settings.timeout = Duration::from_secs(30));
    let error = lock.perform(&Command::Tick).await.unwrap_err();
    assert!(matches!(error, LockError::TooLong { .. }), "{}", line(&error));
}

/// An address where nobody listens.
fn nobody() -> reqwest::Url {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap()
}

#[tokio::test]
async fn endpoints_are_asked_in_turn_and_the_one_that_answers_comes_first() {
    let (server, _) = honest().await;
    let silent = Server::start(|_| Says::Silence).await;
    let endpoints = vec![nobody(), silent.url(), server.url()];
    let lock = client_with(etcd(endpoints), |settings| settings.timeout = SHORT);
    for _ in 0..3 {
        assert_eq!(lock.perform(&Command::Tick).await.unwrap(), Reply::Done);
    }
    assert_eq!(silent.asked().len(), 1, "only until another one answered");
    let lock =
        client_with(etcd(vec![nobody(), nobody()]), |settings| settings.deadline = Duration::from_secs(1));
    let error = lock.perform(&Command::Tick).await.unwrap_err();
    assert!(
        line(&error).contains("no etcd endpoint answers: no answer from http://127.0.0.1:"),
        "{}",
        line(&error)
    );
    assert!(error.is_passing());
}

/// An etcd that gives out tokens, of which each is good for `uses` requests.
async fn guarded(uses: usize) -> (Server, Shared) {
    let memory = Shared::default();
    let (shared, state) = (Arc::clone(&memory), Mutex::new((0, 0)));
    let server = Server::start(move |asked| {
        let (tokens, left) = &mut *state.lock().unwrap();
        if asked.path == "/v3/auth/authenticate" {
            if asked.body != json!({ "name": "flipside", "password": "se cret" }) {
                return Says::trouble(
                    400,
                    3,
                    "etcdserver: authentication failed, invalid user ID or password",
                );
            }
            (*tokens, *left) = (*tokens + 1, uses);
            return Says::json(200, &json!({ "token": format!("token.{tokens}") }));
        }
        match asked.header("authorization") {
            None => Says::trouble(400, 3, "etcdserver: user name is empty"),
            Some(token) if token == format!("token.{tokens}") && *left > 0 => {
                *left -= 1;
                shared.lock().unwrap().answer(asked)
            }
            Some(_) => Says::trouble(401, 16, "etcdserver: invalid auth token"),
        }
    })
    .await;
    (server, memory)
}

fn with_password(server: &Server, folder: &std::path::Path, password: &str) -> LockClient {
    let password_file = folder.join(password.trim_end());
    std::fs::write(&password_file, password).unwrap();
    let login = Some(Login { user: "flipside".to_owned(), password_file });
    client_with(Etcd { login, ..etcd(vec![server.url()]) }, |_| {})
}

#[tokio::test]
async fn a_token_that_expired_is_renewed_at_reading_and_at_writing() {
    let folder = tempfile::tempdir().unwrap();
    for uses in 1..4 {
        let (server, memory) = guarded(uses).await;
        let lock = with_password(&server, folder.path(), "se cret\n");
        assert!(is_granted(&lock.perform(&request("n1", "a1")).await.unwrap()), "{uses}");
        assert!(matches!(lock.perform(&verify("n1", "a1")).await.unwrap(), Reply::Current { .. }));
        assert_eq!(memory.lock().unwrap().json(LOCK)["grants"], 1);
        let logins = server.asked().iter().filter(|asked| asked.path == "/v3/auth/authenticate").count();
        assert!(logins > 1 || uses == 3, "{uses}: {logins}");
    }
}

#[tokio::test]
async fn credentials_that_are_wrong_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = guarded(100).await;
    let (useless, _) = guarded(0).await;
    for (lock, expected) in [
        (with_password(&server, folder.path(), "other"), "authentication failed"),
        (client(&server), "user name is empty"),
        (with_password(&useless, folder.path(), "se cret"), "invalid auth token"),
    ] {
        let error = lock.perform(&Command::Tick).await.unwrap_err();
        assert!(matches!(error, LockError::Credentials { .. }) && !error.is_passing(), "{}", line(&error));
        assert!(line(&error).contains(expected), "{}", line(&error));
    }
    let lock = with_password(&server, folder.path(), "se cret");
    std::fs::remove_file(folder.path().join("se cret")).unwrap();
    let error = lock.perform(&Command::Tick).await.unwrap_err();
    assert!(line(&error).starts_with("lock.etcd.password_file: cannot read "), "{}", line(&error));
    let denied = Server::start(|_| Says::trouble(403, 7, "etcdserver: permission denied")).await;
    let error = client(&denied).perform(&Command::Tick).await.unwrap_err();
    assert!(
        line(&error).contains("refuses these credentials (etcdserver: permission denied)"),
        "{}",
        line(&error)
    );
}

#[tokio::test]
async fn files_of_the_configuration_that_are_no_certificates_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let nonsense = folder.path().join("x.pem");
    std::fs::write(&nonsense, "nonsense").unwrap();
    let base = etcd(vec!["https://127.0.0.1:1".parse().unwrap()]);
    let missing = folder.path().join("missing");
    for (etcd, expected) in [
        (Etcd { ca: Some(missing.clone()), ..base.clone() }, "lock.etcd.ca: cannot read"),
        (Etcd { ca: Some(nonsense.clone()), ..base.clone() }, "does not hold certificates in PEM"),
        (Etcd { identity: Some((nonsense.clone(), missing)), ..base.clone() }, "lock.etcd.key: cannot read"),
        (
            Etcd { identity: Some((nonsense.clone(), nonsense.clone())), ..base.clone() },
            "a certificate with its private",
        ),
    ] {
        let short = Duration::from_secs(1);
        let error = EtcdLock::new(&etcd, short, short).unwrap_err();
        assert!(line(&error).contains(expected), "{}", line(&error));
    }
}

fn document(group: &str, policy: Policy) -> Document {
    Document::new(group.parse().unwrap(), policy)
}

fn store(memory: &Shared, document: &Document) {
    let key = format!("/flipside/v1/groups/{}/lock", document.group);
    memory.lock().unwrap().put(&key, serde_json::to_vec(document).unwrap());
}

#[tokio::test]
async fn a_cap_over_groups_counts_the_others_and_guards_them() {
    let (server, memory) = server(|number, _, memory| {
        // The other group changes after it was read.
        if number == 0 {
            memory.touch("/flipside/v1/groups/db/lock");
        }
        None
    })
    .await;
    let caps = json!({ "caps": { "all": { "groups": ["default", "db"], "max": 1 } } });
    memory.lock().unwrap().put("/flipside/v1/caps", caps.to_string());
    let mut db = document("db", Policy::default());
    store(&memory, &db);
    let lock = client(&server);
    assert!(is_granted(&lock.perform(&request("n1", "a1")).await.unwrap()));
    assert_eq!(changes(&server), 2, "the first one conflicted");
    lock.perform(&confirm("n1", "a1")).await.unwrap();
    let puts: Vec<_> = server.asked().iter().filter(|asked| asked.puts()).map(compared).collect();
    assert_eq!(puts[puts.len() - 2], [LOCK, "/flipside/v1/caps", "/flipside/v1/groups/db/lock"]);
    assert_eq!(puts[puts.len() - 1], [LOCK], "a confirmation frees a permit whatever the caps are");
    db.holders = vec![lock_holder("d1")];
    store(&memory, &db);
    let reply = lock.perform(&request("n2", "b1")).await.unwrap();
    let Reply::Wait { because, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(because, [Wait::CapFull { cap: "all".to_owned(), max: 1, held: 1 }]);
}

/// A holder as another system leaves one.
fn lock_holder(node: &str) -> protocol::lock::Holder {
    let text = json!({ "total_slots": 1, "holders": [node] }).to_string();
    let group = "db".parse().unwrap();
    let imported =
        crate::lock::import::System::Airlock.import(&text, &group, jiff::Timestamp::now()).unwrap();
    imported.document.holders[0].clone()
}

#[tokio::test]
async fn percentages_count_the_nodes_that_have_asked() {
    let (server, memory) = honest().await;
    let half = Policy { max: Limit::Percent(50), ..Policy::default() };
    store(&memory, &document("default", half));
    // Half of one to three nodes is one; with the fourth it is two, and the first that waits is next.
    for (node, expected) in
        [("n1", true), ("n2", false), ("n3", false), ("n4", false), ("n2", true), ("n3", false)]
    {
        let reply = client(&server).perform(&request(node, "a")).await.unwrap();
        assert_eq!(is_granted(&reply), expected, "{node}: {reply:?}");
    }
    let population = client(&server).view().await.unwrap().context.population.unwrap();
    assert_eq!(population.total, 4);
    let remove =
        Command::RemoveNode { node: "n3".parse().unwrap(), who: "op".to_owned(), why: "gone".to_owned() };
    assert_eq!(client(&server).perform(&remove).await.unwrap(), Reply::Done);
    assert_eq!(client(&server).view().await.unwrap().context.population.unwrap().total, 3);
}

#[tokio::test]
async fn zones_are_counted_by_what_the_nodes_say() {
    let (server, _) = honest().await;
    for (node, zone) in [("n1", Some("r1")), ("n2", Some("r1")), ("n3", None)] {
        let mut wish = request(node, "a");
        if let Command::Request(request) = &mut wish {
            request.zone = zone.map(|zone| zone.parse().unwrap());
        }
        client(&server).perform(&wish).await.unwrap();
    }
    let percent = Policy { max: Limit::Percent(10), ..Policy::default() };
    let set = Command::SetPolicy { policy: Box::new(percent), who: "op".to_owned(), why: "test".to_owned() };
    client(&server).perform(&set).await.unwrap();
    let population = client(&server).view().await.unwrap().context.population.unwrap();
    assert_eq!(population.zones.into_iter().collect::<Vec<_>>(), [("r1".parse().unwrap(), 2)]);
    assert_eq!(population.total, 3);
}

#[tokio::test]
async fn the_quorum_is_asked_of_every_voting_member() {
    let well = || Server::start(|_| Says::json(200, &json!({ "leader": "1" })));
    let (first, second) = (well().await, well().await);
    let leaderless =
        Server::start(|_| Says::json(200, &json!({ "errors": ["etcdserver: no leader"] }))).await;
    let members = json!({ "members": [
        { "ID": "1", "name": "m1", "clientURLs": [nobody().as_str(), first.url().as_str()] },
        { "ID": "2", "name": "m2", "clientURLs": [second.url().as_str()] },
        { "ID": "3", "name": "m3", "clientURLs": [leaderless.url().as_str()] },
        { "ID": "4", "name": "learner", "clientURLs": [nobody().as_str()], "isLearner": true },
    ] });
    let memory = Shared::default();
    let guarded = Policy { quorum: Some(Quorum { members: None }), ..Policy::default() };
    store(&memory, &document("default", guarded));
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/v3/cluster/member/list" => Says::json(200, &members),
        _ => memory.lock().unwrap().answer(asked),
    })
    .await;
    let health = client(&server).view().await.unwrap().context.quorum.unwrap();
    let expected = [("m1".to_owned(), true), ("m2".to_owned(), true), ("m3".to_owned(), false)];
    assert_eq!(health.members.into_iter().collect::<Vec<_>>(), expected);
    let mut wish = request("n1", "a1");
    if let Command::Request(request) = &mut wish {
        request.etcd_member = Some("m1".to_owned());
    }
    let reply = client(&server).perform(&wish).await.unwrap();
    assert!(
        matches!(&reply, Reply::Wait { because, .. } if because[0] == Wait::Quorum { left: 1, needed: 2 })
    );
    // A node that is no member reboots all the same.
    assert!(is_granted(&client(&server).perform(&request("n2", "b1")).await.unwrap()));
}

#[tokio::test]
async fn time_is_the_members_and_not_the_nodes() {
    let memory = Shared::default();
    let shared = Arc::clone(&memory);
    let server = Server::start(move |asked| {
        shared.lock().unwrap().answer(asked).with("Date: Sat, 01 Jan 2028 10:00:00 GMT")
    })
    .await;
    let Reply::Granted { holder } = client(&server).perform(&request("n1", "a1")).await.unwrap() else {
        panic!()
    };
    assert_eq!(holder.granted_at.to_string(), "2028-01-01T10:00:00Z");
}

#[tokio::test]
async fn only_the_default_group_is_there_before_a_policy() {
    let (server, memory) = honest().await;
    let other = client_with(etcd(vec![server.url()]), |settings| settings.group = "db".parse().unwrap());
    let refused = Reply::Refused { because: Refusal::UnknownGroup { group: "db".parse().unwrap() } };
    assert_eq!(other.perform(&request("n1", "a1")).await.unwrap(), refused);
    assert!(matches!(other.view().await.unwrap_err(), LockError::UnknownGroup { .. }));
    assert!(memory.lock().unwrap().get("/flipside/v1/groups/db/lock").is_none());
    let policy = Box::new(Policy::default());
    let set = Command::SetPolicy { policy, who: "op".to_owned(), why: "new".to_owned() };
    assert_eq!(other.perform(&set).await.unwrap(), Reply::Done);
    assert!(is_granted(&other.perform(&request("n1", "a1")).await.unwrap()));
}

#[tokio::test]
async fn operators_see_all_groups_and_take_away_only_what_they_saw() {
    let (server, memory) = honest().await;
    store(&memory, &document("default", Policy::default()));
    store(&memory, &document("db", Policy::default()));
    memory.lock().unwrap().put("/flipside/v1/groups/bad/lock", "x");
    memory.lock().unwrap().put("/flipside/v1/groups/default/nodes/db/lock", "");
    let settings = etcd(vec![server.url()]);
    let lock = EtcdLock::new(&settings, Duration::from_secs(1), Duration::from_secs(10)).unwrap();
    let groups = lock.groups().await.unwrap();
    let found: Vec<_> = groups.iter().map(|entry| (entry.group.as_str(), entry.view.is_ok())).collect();
    assert_eq!(found, [("bad", false), ("db", true), ("default", true)]);
    let by = || Operator { who: "op".to_owned(), why: "it is dead".to_owned() };
    let (group, node) = ("default".parse().unwrap(), "n1".parse::<protocol::lock::ClientId>().unwrap());
    client(&server).perform(&request("n1", "a1")).await.unwrap();
    for (grant, expected) in [(2, "Refused"), (1, "Done"), (1, "Done"), (2, "Refused")] {
        let release = Release { node: node.clone(), grant };
        let reply = lock.release(&group, release, by()).await.unwrap();
        assert!(format!("{reply:?}").starts_with(expected), "{grant}: {reply:?}");
    }
    assert_eq!(memory.lock().unwrap().json(LOCK)["acts"][0]["why"], "it is dead");
}

#[tokio::test]
async fn caps_are_set_only_over_those_that_were_seen_and_import_replaces_nothing() {
    let (server, memory) = honest().await;
    let settings = etcd(vec![server.url()]);
    let lock = EtcdLock::new(&settings, Duration::from_secs(1), Duration::from_secs(10)).unwrap();
    let (none, revision) = lock.caps().await.unwrap();
    assert_eq!((none.caps.len(), revision), (0, 0));
    let bad = serde_json::from_value(json!({ "caps": { "all": { "groups": [], "max": 1 } } })).unwrap();
    let error = lock.set_caps(&bad, revision).await.unwrap_err();
    assert!(matches!(error, LockError::Policy { .. }), "{}", line(&error));
    assert!(lock.set_caps(&none, revision).await.unwrap());
    assert!(!lock.set_caps(&none, revision).await.unwrap(), "somebody was faster");
    let (_, revision) = lock.caps().await.unwrap();
    assert!(lock.set_caps(&none, revision).await.unwrap());
    let mut old = document("default", Policy::default());
    old.holders = vec![lock_holder("m1")];
    lock.import(&old).await.unwrap();
    let before = memory.lock().unwrap().json(LOCK);
    let error = lock.import(&document("default", Policy::default())).await.unwrap_err();
    assert_eq!(error.to_string(), "group default has a lock already, with 1 holders: import replaces none");
    assert_eq!(memory.lock().unwrap().json(LOCK), before);
}
