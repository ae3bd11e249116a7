//! The reboot lock in a real etcd cluster: never more permits than the policy allows, and everyone gets through, while
//! members are killed, frozen and compacted, and answers are lost.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::lock::{Command, Document, Limit, Policy, Reply, Request};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tests::etcd::{Certificates, Cluster, Setup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use update_engine::config::settings::{Etcd, Login};
use update_engine::lock::LockError;
use update_engine::lock::etcd::EtcdLock;

/// `/flipside/v1/groups/default/lock`, as the gateway writes it.
const LOCK: &str = "L2ZsaXBzaWRlL3YxL2dyb3Vwcy9kZWZhdWx0L2xvY2s=";
/// How long a node is patient with one request: some answers are lost on purpose.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// How often is looked whether something is so far.
const LOOK: Duration = Duration::from_millis(20);

fn three() -> Setup {
    Setup { members: 3, election: Duration::from_secs(1), tls: None, wires: false }
}

fn settings(endpoints: &[String]) -> Etcd {
    Etcd {
        endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
        ca: None,
        identity: None,
        login: None,
        prefix: "/flipside".to_owned(),
    }
}

fn lock(etcd: &Etcd) -> EtcdLock {
    EtcdLock::new(etcd, TIMEOUT, Duration::from_secs(20)).unwrap()
}

fn group() -> protocol::id::Group {
    "default".parse().unwrap()
}

fn request(node: &str) -> Command {
    Command::Request(Request {
        node: node.parse().unwrap(),
        attempt: format!("attempt-of-{node}").parse().unwrap(),
        boot: "before".parse().unwrap(),
        from: "1.0.0".parse().unwrap(),
        to: "1.1.0".parse().unwrap(),
        zone: None,
        etcd_member: None,
        priority: 0,
        reason: "update".to_owned(),
    })
}

fn verify(node: &str) -> Command {
    Command::Verify {
        node: node.parse().unwrap(),
        attempt: format!("attempt-of-{node}").parse().unwrap(),
        boot: "before".parse().unwrap(),
    }
}

fn booted(node: &str) -> Command {
    Command::Booted {
        node: node.parse().unwrap(),
        attempt: format!("attempt-of-{node}").parse().unwrap(),
        boot: "after".parse().unwrap(),
        version: "1.1.0".parse().unwrap(),
    }
}

fn confirm(node: &str) -> Command {
    Command::Confirm {
        node: node.parse().unwrap(),
        attempt: format!("attempt-of-{node}").parse().unwrap(),
        boot: "after".parse().unwrap(),
        version: "1.1.0".parse().unwrap(),
    }
}

async fn set_max(etcd: &Etcd, max: u32) {
    let policy = Box::new(Policy { max: Limit::Count(max), ..Policy::default() });
    let set = Command::SetPolicy { policy, who: "test".to_owned(), why: "test".to_owned() };
    assert_eq!(lock(etcd).perform(&group(), &set).await.unwrap(), Reply::Done);
}

/// The document as it is, once the cluster can say so: after what was done to it, it may be about to choose a leader.
async fn document_of(lock: &EtcdLock) -> Document {
    for _ in 0..40 {
        match lock.view(&group()).await {
            Ok(view) => return view.document,
            Err(error) => assert!(error.is_passing(), "{}", update_engine::error::chain(&error)),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("the cluster does not come back");
}

/// Nodes that all want to reboot.
#[derive(Debug, Default)]
struct Fleet {
    max: usize,
    holding: AtomicUsize,
    /// How many came through.
    through: AtomicUsize,
    /// How many questions had no answer.
    unanswered: AtomicUsize,
}

impl Fleet {
    /// Starts nodes that request, verify, reboot, come back, confirm.
    fn roll(max: usize, nodes: usize, etcd: &Etcd) -> (Arc<Self>, JoinSet<()>) {
        let fleet = Arc::new(Self { max, ..Self::default() });
        let mut tasks = JoinSet::new();
        for number in 0..nodes {
            let mut etcd = etcd.clone();
            let members = etcd.endpoints.len();
            etcd.endpoints.rotate_left(number % members);
            let fleet = Arc::clone(&fleet);
            tasks.spawn(async move { fleet.node(&format!("n{number}"), &lock(&etcd)).await });
        }
        (fleet, tasks)
    }

    async fn node(&self, name: &str, lock: &EtcdLock) {
        assert!(matches!(self.ask(lock, &request(name)).await, Reply::Granted { .. }));
        let holding = self.holding.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(holding <= self.max, "{holding} hold a permit and {} may", self.max);
        assert!(matches!(self.ask(lock, &verify(name)).await, Reply::Current { .. }));
        assert_eq!(self.ask(lock, &booted(name)).await, Reply::Noted);
        self.holding.fetch_sub(1, Ordering::SeqCst);
        assert!(matches!(self.ask(lock, &confirm(name)).await, Reply::Released { .. }));
        self.through.fetch_add(1, Ordering::SeqCst);
    }

    /// Asks as an engine does, a hundred times faster: until there is an answer other than to wait.
    async fn ask(&self, lock: &EtcdLock, command: &Command) -> Reply {
        loop {
            match lock.perform(&group(), command).await {
                Ok(Reply::Wait { retry_after_s, .. }) => {
                    tokio::time::sleep(Duration::from_millis(u64::from(retry_after_s) * 10)).await;
                }
                Ok(reply) => return reply,
                Err(error) => {
                    assert!(error.is_passing(), "{}", update_engine::error::chain(&error));
                    self.unanswered.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    /// Waits until so many nodes came through, or one of them failed.
    async fn until_through(&self, count: usize, tasks: &mut JoinSet<()>) {
        while self.through.load(Ordering::SeqCst) < count {
            while let Some(ended) = tasks.try_join_next() {
                ended.unwrap();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn all_through(&self, mut tasks: JoinSet<()>) {
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// The cluster's revision.
async fn revision(cluster: &Cluster, member: usize) -> u64 {
    let status = cluster.ask(member, "maintenance/status", &json!({})).await.unwrap();
    status["header"]["revision"].as_str().unwrap().parse().unwrap()
}

/// How many revisions of the document there were in a stretch of the store's history; each one holds at most `max`.
async fn check_history(
    cluster: &Cluster,
    member: usize,
    revisions: std::ops::Range<u64>,
    max: usize,
) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    for revision in revisions {
        let question = json!({ "key": LOCK, "revision": revision.to_string() });
        let answer = cluster.ask(member, "kv/range", &question).await.unwrap();
        let Some(pair) = answer["kvs"].get(0) else { continue };
        let document = document(&pair["value"]);
        assert!(document.holders.len() <= max, "at {revision}: {:?}", document.holders);
        seen.insert(pair["mod_revision"].as_str().unwrap().to_owned());
    }
    seen.len()
}

fn document(value: &serde_json::Value) -> Document {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_nodes_contend_and_each_gets_one_permit() {
    let cluster = Cluster::start(three()).await.unwrap();
    let etcd = settings(&cluster.endpoints());
    set_max(&etcd, 3).await;
    let (fleet, tasks) = Fleet::roll(3, 30, &etcd);
    fleet.all_through(tasks).await;
    let last = document_of(&lock(&etcd)).await;
    assert_eq!((last.holders.len(), last.queue.len(), last.finished.len()), (0, 0, 30));
    assert_eq!(last.grants, 30, "none was granted twice");
    // A policy, and for each node a grant, a verification, a boot and a confirmation: each written once.
    let revisions = check_history(&cluster, 0, 1..revision(&cluster, 0).await + 1, 3).await;
    assert!(revisions > 120, "{revisions}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_gets_through_while_members_die_freeze_and_compact() {
    let mut cluster = Cluster::start(three()).await.unwrap();
    let etcd = settings(&cluster.endpoints());
    set_max(&etcd, 2).await;
    let (fleet, mut tasks) = Fleet::roll(2, 30, &etcd);

    fleet.until_through(4, &mut tasks).await;
    let leader = cluster.leader().await.unwrap();
    cluster.kill(leader);
    fleet.until_through(9, &mut tasks).await;
    cluster.restart(leader).await.unwrap();

    // A minority that is cut off: whoever asks it first goes on to the others.
    let leader = cluster.leader().await.unwrap();
    let (minority, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.freeze(minority).unwrap();
    fleet.until_through(14, &mut tasks).await;
    cluster.thaw(minority).unwrap();

    let compacted = revision(&cluster, leader).await;
    assert!(check_history(&cluster, leader, 1..compacted + 1, 2).await > 40);
    let question = json!({ "revision": compacted.to_string(), "physical": true });
    cluster.ask(leader, "kv/compaction", &question).await.unwrap();
    fleet.until_through(18, &mut tasks).await;

    // Answers are lost: without its followers the leader neither reads nor writes, and what it was doing may or may
    // not come to pass when they are back.
    let before = fleet.unanswered.load(Ordering::SeqCst);
    let leader = cluster.leader().await.unwrap();
    let followers: Vec<_> = (0..3).filter(|at| *at != leader).collect();
    for at in &followers {
        cluster.freeze(*at).unwrap();
    }
    while fleet.unanswered.load(Ordering::SeqCst) < before + 3 {
        tokio::time::sleep(LOOK).await;
    }
    for at in &followers {
        cluster.thaw(*at).unwrap();
    }
    fleet.all_through(tasks).await;

    let last = document_of(&lock(&etcd)).await;
    assert_eq!((last.holders.len(), last.queue.len(), last.finished.len()), (0, 0, 30));
    assert_eq!(last.grants, 30, "none was granted twice");
    let end = revision(&cluster, other).await;
    assert!(check_history(&cluster, other, compacted..end + 1, 2).await > 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_cut_off_lets_nobody_reboot_though_nodes_still_ask_it() {
    let cluster = Cluster::start(Setup { wires: true, ..three() }).await.unwrap();
    let etcd = settings(&cluster.endpoints());
    set_max(&etcd, 2).await;
    let (fleet, mut tasks) = Fleet::roll(2, 30, &etcd);
    fleet.until_through(4, &mut tasks).await;
    // First the leader, which goes on as one until it misses the others; then a follower.
    for through in [12, 20] {
        let leader = cluster.leader().await.unwrap();
        let alone = if through == 12 { leader } else { (leader + 1) % 3 };
        cluster.cut_off(alone).await.unwrap();
        let short = Duration::from_secs(4);
        let only = settings(&[cluster.endpoint(alone)]);
        let ghost = EtcdLock::new(&only, TIMEOUT, short).unwrap();
        let error = ghost.perform(&group(), &request("ghost")).await.unwrap_err();
        assert!(error.is_passing(), "{}", update_engine::error::chain(&error));
        let error = ghost.view(&group()).await.unwrap_err();
        assert!(error.is_passing(), "{}", update_engine::error::chain(&error));
        // A third of the nodes asks it first, and goes on to the others.
        fleet.until_through(through, &mut tasks).await;
        cluster.mend().unwrap();
        fleet.until_through(through + 4, &mut tasks).await;
    }
    fleet.all_through(tasks).await;
    let last = document_of(&lock(&etcd)).await;
    assert_eq!((last.holders.len(), last.queue.len(), last.finished.len()), (0, 0, 30));
    assert_eq!(last.grants, 30, "none was granted twice, and the ghost got none");
    let leader = cluster.leader().await.unwrap();
    let revisions = check_history(&cluster, leader, 1..revision(&cluster, leader).await + 1, 2).await;
    assert!(revisions > 120, "{revisions}");
}

/// Stands between a client and a member. Once armed it rings as soon as a change of the lock has been passed on, so that
/// what follows happens while the change is under way.
#[derive(Debug, Default)]
struct Gate {
    armed: AtomicUsize,
    changes: AtomicUsize,
    passing: Notify,
    given_up: Notify,
    go_on: Notify,
}

impl Gate {
    async fn open(self: &Arc<Self>, member: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, gate) = (listener.local_addr().unwrap(), Arc::clone(self));
        let member = member.strip_prefix("http://").unwrap().to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (gate, member) = (Arc::clone(&gate), TcpStream::connect(&member).await.unwrap());
                tokio::spawn(async move { gate.pass(client, member).await });
            }
        });
        format!("http://{address}")
    }

    async fn pass(&self, client: TcpStream, member: TcpStream) {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_member, mut to_member) = member.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_member, &mut to_client).await });
        let (mut buffer, mut under_way) = (vec![0; 1 << 16], false);
        loop {
            let length = from_client.read(&mut buffer).await.unwrap_or(0);
            if length == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.contains("request_put") && text.contains(LOCK) {
                self.changes.fetch_add(1, Ordering::SeqCst);
                if self.armed.swap(0, Ordering::SeqCst) == 1 {
                    under_way = true;
                    self.passing.notify_one();
                    self.go_on.notified().await;
                }
            }
            if to_member.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        if under_way {
            self.given_up.notify_one();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_is_lost_is_found_again_and_made_once() {
    // So patient that the leader stays leader while its followers are frozen.
    let cluster = Cluster::start(Setup { election: Duration::from_secs(5), ..three() }).await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let gate = Arc::new(Gate::default());
    let address = gate.open(&cluster.endpoint(leader)).await;
    let (lock, group) = (lock(&settings(&[address])), group());
    let reply = lock.perform(&group, &request("n1")).await.unwrap();
    assert!(matches!(reply, Reply::Granted { holder } if holder.grant == 1));

    let followers: Vec<_> = (0..3).filter(|at| *at != leader).collect();
    for (command, expected) in
        [(verify("n1"), "Current"), (booted("n1"), "Noted"), (confirm("n1"), "Released")]
    {
        let before = gate.changes.swap(0, Ordering::SeqCst);
        assert!(before > 0);
        gate.armed.store(1, Ordering::SeqCst);
        let disturb = async {
            gate.passing.notified().await;
            for at in &followers {
                cluster.freeze(*at).unwrap();
            }
            // The member gets the change now, and cannot make it; the client gives up.
            gate.go_on.notify_one();
            gate.given_up.notified().await;
            for at in &followers {
                cluster.thaw(*at).unwrap();
            }
        };
        let (reply, ()) = tokio::join!(lock.perform(&group, &command), disturb);
        let reply = format!("{:?}", reply.unwrap());
        assert!(reply.starts_with(expected), "{reply}");
        assert_eq!(gate.changes.load(Ordering::SeqCst), 1, "{expected}: sent once, and then looked for");
    }
    let last = document_of(&lock).await;
    assert_eq!((last.holders.len(), last.finished.len(), last.grants), (0, 1, 1));
}

#[tokio::test]
async fn a_client_certificate_is_what_lets_a_node_in() {
    let folder = tempfile::tempdir().unwrap();
    let tls = Certificates::make(folder.path()).unwrap();
    let setup = Setup { members: 1, tls: Some(tls.clone()), ..three() };
    let cluster = Cluster::start(setup).await.unwrap();
    let bare = settings(&cluster.endpoints());
    let good = Etcd { ca: Some(tls.ca), identity: Some(tls.client), ..bare.clone() };
    let reply = lock(&good).perform(&group(), &request("n1")).await.unwrap();
    assert!(matches!(reply, Reply::Granted { .. }));
    let short = Duration::from_secs(2);
    for refused in [Etcd { identity: None, ..good.clone() }, Etcd { ca: None, ..good }] {
        let lock = EtcdLock::new(&refused, short, short).unwrap();
        let error = lock.perform(&group(), &verify("n1")).await.unwrap_err();
        let text = update_engine::error::chain(&error);
        assert!(text.to_lowercase().contains("certificate"), "{text}");
    }
}

fn with_password(etcd: &Etcd, folder: &Path, user: &str, password: &str) -> EtcdLock {
    let password_file = folder.join(user);
    std::fs::write(&password_file, format!("{password}\n")).unwrap();
    lock(&Etcd { login: Some(Login { user: user.to_owned(), password_file }), ..etcd.clone() })
}

#[tokio::test]
async fn a_user_and_a_password_let_a_node_in_also_after_etcd_forgot_the_token() {
    use base64::Engine as _;
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(Setup { members: 1, ..three() }).await.unwrap();
    let key = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let permission =
        json!({ "permType": "READWRITE", "key": key("/flipside/"), "range_end": key("/flipside0") });
    for (path, question) in [
        ("auth/user/add", json!({ "name": "root", "password": "of all" })),
        ("auth/user/grant", json!({ "user": "root", "role": "root" })),
        ("auth/role/add", json!({ "name": "nodes" })),
        ("auth/role/grant", json!({ "name": "nodes", "perm": permission })),
        ("auth/user/add", json!({ "name": "node", "password": "secret" })),
        ("auth/user/grant", json!({ "user": "node", "role": "nodes" })),
        ("auth/user/add", json!({ "name": "guest", "password": "guest" })),
        ("auth/enable", json!({})),
    ] {
        if path == "auth/user/grant" && question["role"] == "root" {
            cluster.ask(0, "auth/role/add", &json!({ "name": "root" })).await.unwrap();
        }
        cluster.ask(0, path, &question).await.unwrap();
    }
    let etcd = settings(&cluster.endpoints());
    let node = with_password(&etcd, folder.path(), "node", "secret");
    assert!(matches!(node.perform(&group(), &request("n1")).await.unwrap(), Reply::Granted { .. }));
    // Tokens live in the member's memory.
    cluster.kill(0);
    cluster.restart(0).await.unwrap();
    assert!(matches!(node.perform(&group(), &verify("n1")).await.unwrap(), Reply::Current { .. }));
    for lock in [
        lock(&etcd),
        with_password(&etcd, folder.path(), "guest", "guest"),
        with_password(&etcd, folder.path(), "node", "wrong"),
    ] {
        let error = lock.perform(&group(), &confirm("n1")).await.unwrap_err();
        assert!(matches!(error, LockError::Credentials { .. }), "{}", update_engine::error::chain(&error));
    }
    assert_eq!(node.view(&group()).await.unwrap().document.holders.len(), 1);
}
