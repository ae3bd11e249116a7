//! `updatectl lock` without a server named: a node's own place in the lock of a server and in etcd, and the lock in etcd as
//! its operators meet it. Real server, real etcd, real programs.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::id::NodeId;
use protocol::lock::{ClientId, Command as Ask, Reply, Request};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::etcd::{Cluster, Setup};
use tests::process::{Run, run};
use tests::programs::Programs;
use tests::small::Small;
use update_engine::config::{Merged, Settings};
use update_engine::lock::LockClient;
use update_engine::network::Client;
use update_engine::state::StateFolder;

fn request(node: &ClientId) -> Ask {
    Ask::Request(Request {
        node: node.clone(),
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

/// The lock as a node with this configuration and state folder asks it.
fn client(config: &Path, state: &Path) -> (LockClient, ClientId) {
    let settings = Settings::from_merged(&Merged::from_file(config).unwrap()).unwrap();
    let folder = StateFolder::view(state);
    let node: NodeId = folder.known_node().unwrap();
    let server = Client::new(&settings.server, settings.download.clone()).unwrap();
    let server = server.with_credential(folder.known_credential().unwrap());
    (LockClient::new(&settings.lock, &server, &node).unwrap(), (&node).into())
}

/// A node's folder with a configuration and a state, and `updatectl` on it.
struct Here {
    updatectl: PathBuf,
    config: PathBuf,
    state: PathBuf,
}

impl Here {
    fn run(&self, arguments: &[&str]) -> Run {
        let mut command = Command::new(&self.updatectl);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus");
        command.env_remove("UPDATECTL_SERVER").env_remove("UPDATECTL_TOKEN");
        command.args(arguments).arg("--config").arg(&self.config).arg("--state-dir").arg(&self.state);
        run(&mut command).unwrap()
    }

    /// What `lock status` prints, which must end well.
    fn status(&self, more: &[&str]) -> String {
        let said = self.run(&[&["lock", "status"], more].concat()).ok().unwrap();
        assert!(said.stderr.is_empty(), "{said}");
        said.stdout
    }

    fn document(&self) -> Value {
        serde_json::from_str(&self.status(&["--json"])).unwrap()
    }

    /// What `lock status` prints where it cannot tell all, with the one line that says why.
    fn fails(&self, saying: &str) -> String {
        let said = self.run(&["lock", "status"]).expect_code(1).unwrap();
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
        assert!(said.stderr.starts_with("updatectl: ") && said.stderr.contains(saying), "{said}");
        let json = self.run(&["lock", "status", "--json"]).expect_code(1).unwrap();
        assert!(json.json().unwrap()["error"].as_str().unwrap().contains(saying), "{json}");
        said.stdout
    }

    /// The names and contents of the state folder's own files.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(&self.state).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.map(|path| (path.clone(), std::fs::read(path).unwrap_or_default())).collect();
        files.sort();
        files
    }
}

/// Asks by FleetLock v1.
async fn fleet_lock(server: &str, path: &str, id: &str) -> u16 {
    let body = json!({ "client_params": { "id": id, "group": "default" } });
    let request = reqwest::Client::new().post(format!("{server}/v1/{path}")).body(body.to_string());
    request.header("fleet-lock-protocol", "true").send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_node_sees_its_place_in_the_lock_of_a_server() {
    let mut small = Small::new().unwrap();
    let address = small.world.address().trim_end_matches('/').to_owned();
    let node = small.node("node", &address).unwrap();
    let here = Here {
        updatectl: small.world.programs.updatectl.clone(),
        config: node.config(),
        state: node.state(),
    };
    // The node's group has no lock, and no engine has run here.
    let said = here.fails("no engine has run with this state folder yet");
    assert!(said.contains("engine:    has not said anything yet; no engine is running\n"), "{said}");
    node.engine(&[]).unwrap().ok().unwrap();
    here.fails("there is no group lab");
    node.configure(&address, "alpha", "[lock]\ngroup = \"default\"\n").unwrap();

    let before = here.files();
    let said = here.status(&[]);
    assert!(said.starts_with("strategy:  off: this node asks for no permit; strategy lock does\n"), "{said}");
    assert!(said.contains("neither holds a permit nor waits for one, and could get one now\n"), "{said}");
    assert!(said.contains("windows:   none: a reboot can begin at any time\n"), "{said}");
    assert!(said.contains("engine:    staged"), "{said}");

    assert_eq!(fleet_lock(&address, "pre-reboot", "other").await, 200);
    let (lock, id) = client(&here.config, &here.state);
    assert!(matches!(lock.perform(&request(&id)).await.unwrap(), Reply::Wait { .. }));
    // An engine at work is no hindrance.
    let engine = StateFolder::lock(&here.state).unwrap();
    let said = here.status(&["--why"]);
    assert!(said.contains(&format!("node:      {id}  waits, place 1, since ")), "{said}");
    assert!(said.contains("\n           | 1 of 1 permits held by other\n"), "{said}");
    assert!(said.contains("\n  other  holds (FleetLock v1) since "), "{said}");
    assert!(said.contains(&format!("\n* {id}  waits, place 1, ")), "{said}");
    assert!(!said.contains("no engine is running"), "{said}");
    drop(engine);
    let document = here.document();
    assert_eq!(
        (&document["schema"], &document["strategy"], &document["backend"]),
        (&json!(1), &json!("off"), &json!("server"))
    );
    assert_eq!((&document["place"], &document["queue_place"]), (&json!("waits"), &json!(1)));
    assert_eq!(document["lock"]["waiting"][0]["because"], json!(["1 of 1 permits held by other"]));
    assert_eq!((&document["engine"]["state"], &document["error"]), (&json!("staged"), &Value::Null));

    let release = ["lock", "release", "other", "--group", "default", "--why", "scrapped", "--yes"];
    small.world.updatectl(&release).unwrap().ok().unwrap();
    assert!(
        here.status(&[])
            .contains("\n           | nothing stands against it: it gets a permit when it asks next\n")
    );
    assert!(matches!(lock.perform(&request(&id)).await.unwrap(), Reply::Granted { .. }));
    let said = here.status(&[]);
    assert!(said.contains(&format!("node:      {id}  makes ready since ")), "{said}");
    assert!(said.contains(", 1.0.0 -> 1.1.0, due by 20"), "{said}");
    let files = here.files();
    let changed = files.iter().zip(&before).find(|(now, then)| now != then && !now.0.ends_with("lock"));
    assert!(files.len() == before.len() && changed.is_none(), "looking changes nothing: {changed:?}");

    // FleetLock v1 shows nothing; the engine's word remains.
    let fleet = format!("[lock]\nbackend = \"fleetlock\"\nfleetlock.base_url = \"{address}\"\n");
    node.configure(&address, "alpha", &fleet).unwrap();
    let said = here.status(&[]);
    assert!(said.contains("others:    a FleetLock v1 server does not say who holds or waits\n"), "{said}");
    assert!(said.contains("engine:    staged"), "{said}");

    node.configure(&address, "alpha", "[lock]\ngroup = \"default\"\n").unwrap();
    let credential = here.state.join("node-credential");
    let own = std::fs::read_to_string(&credential).unwrap();
    std::fs::write(&credential, format!("flipside_node_{}\n", "0".repeat(64))).unwrap();
    here.fails("is bound to another credential");
    std::fs::write(&credential, own).unwrap();
    small.world.stop_server();
    let said = here.fails(&address);
    assert!(said.contains("engine:    staged"), "{said}");
    assert!(said.ends_with("others:    not known: the lock cannot be read\n"), "{said}");
}

const NODE: &str = "0123456789abcdef0123456789abcdef";

/// A machine whose configuration keeps the lock in a cluster of one member.
async fn with_etcd(folder: &Path) -> (Cluster, Here) {
    let setup = Setup { members: 1, election: Duration::from_secs(1), tls: None, wires: false };
    let cluster = Cluster::start(setup).await.unwrap();
    let (config, state) = (folder.join("desk.toml"), folder.join("state"));
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("node-id"), format!("{NODE}\n")).unwrap();
    std::fs::write(state.join("node-credential"), format!("flipside_node_{}\n", "1".repeat(64))).unwrap();
    let text = format!(
        "[server]\nurl = \"http://127.0.0.1:1\"\n[identity]\nchannel = \"stable\"\n[reboot]\nstrategy = \"lock\"\n\
         [lock]\nbackend = \"etcd\"\ntimeout_s = 2\ndeadline_s = 20\n[lock.etcd]\nendpoints = [\"{}\"]\n",
        cluster.endpoint(0)
    );
    std::fs::write(&config, text).unwrap();
    (cluster, Here { updatectl: Programs::find().unwrap().updatectl, config, state })
}

#[tokio::test]
async fn a_node_sees_its_place_in_a_lock_in_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let (mut cluster, here) = with_etcd(folder.path()).await;
    let before = here.files();
    let said = here.status(&[]);
    assert!(
        said.starts_with(&format!(
            "strategy:  lock\nlock:      group default, kept in etcd under /flipside at {}",
            cluster.endpoint(0)
        )),
        "{said}"
    );
    assert!(
        said.contains("and could get one now\n") && said.ends_with("default: 0 holding, 0 waiting\n"),
        "{said}"
    );
    let (lock, own) = client(&here.config, &here.state);
    let other: ClientId = "n1".parse().unwrap();
    assert!(matches!(lock.perform(&request(&other)).await.unwrap(), Reply::Granted { .. }));
    assert!(matches!(lock.perform(&request(&own)).await.unwrap(), Reply::Wait { .. }));
    let said = here.status(&["--why"]);
    assert!(said.contains(&format!("node:      {NODE}  waits, place 1, since ")), "{said}");
    assert!(said.contains("\n           | 1 of 1 permits held by n1\n"), "{said}");
    assert!(
        said.contains("\n  n1  makes ready since ") && said.contains(", 1.0.0 -> 1.1.0, due by "),
        "{said}"
    );
    let document = here.document();
    assert_eq!((&document["backend"], &document["queue_place"]), (&json!("etcd"), &json!(1)));
    assert_eq!(document["lock"]["document"]["holders"][0]["node"], "n1");
    assert_eq!(here.files(), before, "looking makes nothing");

    cluster.kill(0);
    let said = here.fails("no etcd endpoint answers");
    assert!(said.contains("engine:    has not said anything yet; no engine is running\n"), "{said}");
}

/// The lock's document of a group in etcd.
async fn stored(cluster: &Cluster, group: &str) -> Value {
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let key = engine.encode(format!("/flipside/v1/groups/{group}/lock"));
    let found = cluster.ask(0, "kv/range", &json!({ "key": key })).await.unwrap();
    serde_json::from_slice(&engine.decode(found["kvs"][0]["value"].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn operators_list_and_release_permits_in_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, here) = with_etcd(folder.path()).await;
    let (lock, own) = client(&here.config, &here.state);
    let other: ClientId = "n1".parse().unwrap();
    lock.perform(&request(&other)).await.unwrap();
    lock.perform(&request(&own)).await.unwrap();
    let said = here.run(&["lock", "list"]).ok().unwrap();
    assert!(said.stdout.starts_with("default: 1 holding, 1 waiting\n  n1  makes ready since "), "{said}");
    assert!(said.stdout.contains(&format!("\n  {NODE}  waits, place 1, ")), "{said}");
    assert!(said.stdout.ends_with("\n      | 1 of 1 permits held by n1\n"), "{said}");
    let locks = |arguments: &[&str]| here.run(arguments).ok().unwrap().json().unwrap()["locks"].clone();
    let one = locks(&["lock", "list", "default", "--json"]);
    assert_eq!((&one, one.as_array().unwrap().len()), (&locks(&["lock", "list", "--json"]), 1));
    let said = here.run(&["lock", "list", "web"]).expect_code(1).unwrap();
    assert!(said.stderr.contains("no group web"), "{said}");

    let release = ["lock", "release", "n1", "--group", "default", "--why", "scrapped"];
    here.run(&release).expect_code(2).unwrap();
    let said = here
        .run(&["lock", "release", "n1", "--group", "default", "--yes", "--why", "two\nlines"])
        .expect_code(1)
        .unwrap();
    assert!(said.stderr.contains("--why is not valid: expected a line"), "{said}");
    assert_eq!(stored(&cluster, "default").await["holders"].as_array().unwrap().len(), 1);
    let said = here.run(&[&release[..], &["--yes"]].concat()).ok().unwrap();
    assert_eq!(said.stdout, "released the permit of n1 in group default\n");
    here.run(&[&release[..], &["--yes"]].concat()).expect_code(3).unwrap();
    let document = stored(&cluster, "default").await;
    assert_eq!(document["holders"], json!([]));
    let act = &document["acts"][0];
    assert_eq!(
        (&act["act"], &act["node"], &act["why"]),
        (&json!("force-release"), &json!("n1"), &json!("scrapped"))
    );
    assert!(act["who"].as_str().unwrap().contains('@'), "{act}");

    // One group that cannot be read hides no other, and is left as it is.
    use base64::Engine as _;
    let engine = base64::engine::general_purpose::STANDARD;
    let damaged =
        json!({ "key": engine.encode("/flipside/v1/groups/web/lock"), "value": engine.encode("{}") });
    cluster.ask(0, "kv/put", &damaged).await.unwrap();
    let said = here.run(&["lock", "list"]).expect_code(1).unwrap();
    assert!(said.stdout.starts_with("default: 0 holding, 1 waiting\n"), "{said}");
    assert!(said.stderr.starts_with("web: ") && said.stderr.lines().count() == 1, "{said}");
    let json = here.run(&["lock", "list", "--json"]).expect_code(1).unwrap().json().unwrap();
    assert_eq!(
        (&json["unreadable"][0]["group"], &json["locks"][0]["document"]["group"]),
        (&json!("web"), &json!("default"))
    );
    here.run(&["lock", "policy", "show"]).expect_code(1).unwrap();

    // A server that is named goes before the configuration; one that is named as nothing does not.
    let mut elsewhere = Command::new(&here.updatectl);
    elsewhere.args(["lock", "list", "default", "--config"]).arg(&here.config);
    elsewhere.env("UPDATECTL_SERVER", "http://127.0.0.1:1").env("UPDATECTL_TOKEN", "x");
    let said = run(&mut elsewhere).unwrap().expect_code(1).unwrap();
    assert!(said.stderr.contains("cannot reach the server http://127.0.0.1:1/"), "{said}");
    run(elsewhere.args(["--server", ""])).unwrap().ok().unwrap();

    // Where the lock is elsewhere, a server has to be named.
    let text =
        std::fs::read_to_string(&here.config).unwrap().replace("backend = \"etcd\"", "backend = \"server\"");
    std::fs::write(&here.config, text).unwrap();
    let said = here.run(&["lock", "list"]).expect_code(2).unwrap();
    assert!(
        said.stderr.contains("no lock: expected --server URL") && said.stderr.contains("backend server in "),
        "{said}"
    );
}

#[tokio::test]
async fn operators_set_policies_and_take_over_locks_in_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, here) = with_etcd(folder.path()).await;
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let shown = here.run(&["lock", "policy", "show"]).ok().unwrap().stdout;
    assert!(shown.starts_with("[group.default]\nmax = 1\n"), "the group that exists from the start: {shown}");
    let same = write("same.toml", &shown);
    here.run(&["lock", "policy", "set", &same]).expect_code(3).unwrap();
    let text = "[group.default]\nmax = 2\n[group.web]\nmax = \"10%\"\n[cap.all]\ngroups = [\"default\", \"web\"]\nmax = 3\n";
    let more = write("more.toml", text);
    here.run(&["lock", "policy", "set", &more]).expect_code(2).unwrap();
    let said = here.run(&["lock", "policy", "set", &more, "--why", "larger", "--yes"]).ok().unwrap();
    assert!(
        said.stderr.contains("- max = 1\n+ max = 2\n") && said.stderr.contains("+ [cap.all]\n"),
        "{said}"
    );
    assert_eq!(said.stdout, "the policy is set; permits that are held stay held\n");
    for group in ["default", "web"] {
        let act = &stored(&cluster, group).await["acts"][0];
        assert_eq!((&act["act"], &act["why"]), (&json!("set-policy"), &json!("larger")), "{group}");
    }
    let web = here.run(&["lock", "policy", "show", "web"]).ok().unwrap().stdout;
    assert!(web.starts_with("[group.web]\nmax = \"10%\"\n") && web.contains("[cap.all]\n"), "{web}");
    let whole = here.run(&["lock", "policy", "show"]).ok().unwrap().stdout;
    let again = write("again.toml", &whole);
    here.run(&["lock", "policy", "set", &again, "--yes"]).expect_code(3).unwrap();
    // A file about groups alone leaves caps as they are, one with an empty table of them takes them away; a group that it
    // leaves out stays.
    let fewer = write("fewer.toml", "[group.default]\nmax = 1\n");
    here.run(&["lock", "policy", "set", &fewer, "--yes"]).ok().unwrap();
    let shown = here.run(&["lock", "policy", "show", "--json"]).ok().unwrap().json().unwrap();
    assert_eq!(shown["caps"]["all"]["max"], json!(3));
    let none = write("none.toml", "[group.default]\nmax = 1\n[cap]\n");
    here.run(&["lock", "policy", "set", &none, "--yes"]).ok().unwrap();
    let shown = here.run(&["lock", "policy", "show", "--json"]).ok().unwrap().json().unwrap();
    assert_eq!((&shown["caps"], &shown["groups"]["web"]["max"]), (&json!({}), &json!({ "percent": 10 })));
    assert_eq!(shown["groups"]["default"]["max"], json!({ "count": 1 }));

    let locksmith = write("semaphore.json", r#"{"semaphore":0,"max":2,"holders":["m1","m2"]}"#);
    let import = ["lock", "import", &locksmith, "--group", "old", "--yes", "--why", "moved"];
    let said = here.run(&import).ok().unwrap();
    assert_eq!(said.stdout, "the lock of locksmith is taken over into group old: 2 hold a permit\n");
    let old = stored(&cluster, "old").await;
    assert_eq!((&old["policy"]["max"], &old["holders"][1]["node"]), (&json!({ "count": 2 }), &json!("m2")));
    assert_eq!(old["acts"][0]["why"], "taken over from locksmith: moved");
    let said = here.run(&import).expect_code(1).unwrap();
    assert!(said.stderr.contains("group old has a lock already, with 2 holders"), "{said}");
    let said = here.run(&["lock", "list", "old"]).ok().unwrap();
    assert!(
        said.stdout.starts_with("old: 2 holding, 0 waiting\n  m1  holds (FleetLock v1) since "),
        "{said}"
    );
}
