//! Steps 3 to 12 with two servers on one PostgreSQL and one S3 bucket, behind a balancer: one of them is killed in the
//! middle of a download, and neither the node nor the operator has to know.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;
use tests::node::Node;
use tests::postgres::Cluster;
use tests::process::{Service, run};
use tests::s3::S3;
use tests::small::Small;
use tests::world::World;

/// How often is looked for what is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// A balancer of connections: each goes to the next server in turn that takes it.
struct Balancer {
    address: String,
    shared: Arc<Shared>,
    held: mpsc::Receiver<usize>,
}

struct Shared {
    servers: [SocketAddr; 2],
    turn: AtomicUsize,
    /// Connections that each server took.
    taken: [AtomicUsize; 2],
    /// Bytes that came from each server.
    delivered: [AtomicU64; 2],
    /// How many bytes may still pass to clients; where none are left, everybody waits.
    budget: Mutex<u64>,
    more: Condvar,
    /// Told of the server whose bytes are the first to wait.
    holds: mpsc::Sender<usize>,
}

impl Balancer {
    fn start(servers: [SocketAddr; 2]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (holds, held) = mpsc::channel();
        let shared = Arc::new(Shared {
            servers,
            turn: AtomicUsize::default(),
            taken: Default::default(),
            delivered: Default::default(),
            budget: Mutex::new(u64::MAX),
            more: Condvar::new(),
            holds,
        });
        let of_thread = Arc::clone(&shared);
        // It ends with the process of this test.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                of_thread.serve(client.unwrap());
            }
        });
        Self { address, shared, held }
    }

    /// After so many more bytes nothing passes to clients any more, until there is more budget.
    fn pass_only(&self, bytes: u64) {
        *self.shared.budget.lock().unwrap() = bytes;
        self.shared.more.notify_all();
    }

    /// What each server has delivered so far.
    fn delivered(&self) -> [u64; 2] {
        [0, 1].map(|server: usize| self.shared.delivered[server].load(Ordering::SeqCst))
    }

    fn taken(&self) -> [usize; 2] {
        [0, 1].map(|server: usize| self.shared.taken[server].load(Ordering::SeqCst))
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: TcpStream) {
        let first = self.turn.fetch_add(1, Ordering::SeqCst);
        let taker = [first % 2, (first + 1) % 2]
            .into_iter()
            .find_map(|server| Some((server, TcpStream::connect(self.servers[server]).ok()?)));
        // Without a server the connection ends.
        let Some((server, upstream)) = taker else { return };
        self.taken[server].fetch_add(1, Ordering::SeqCst);
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
        std::thread::spawn(move || {
            // How it ends shows at the other end.
            let _ = std::io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let shared = Arc::clone(self);
        std::thread::spawn(move || shared.answer(server, upstream, client));
    }

    fn answer(&self, server: usize, mut upstream: TcpStream, mut client: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = upstream.read(&mut buffer) {
            let bytes = u64::try_from(length).unwrap();
            self.pay(server, bytes);
            self.delivered[server].fetch_add(bytes, Ordering::SeqCst);
            if client.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // Both, so that the thread of the other direction ends too.
        let _ = client.shutdown(Shutdown::Both);
        let _ = upstream.shutdown(Shutdown::Both);
    }

    fn pay(&self, server: usize, bytes: u64) {
        let mut budget = self.budget.lock().unwrap();
        while *budget < bytes {
            // Whoever waits for it may have heard enough.
            let _ = self.holds.send(server);
            budget = self.more.wait(budget).unwrap();
        }
        *budget -= bytes;
    }
}

fn address(service: &Service) -> SocketAddr {
    service.address().unwrap().strip_prefix("http://").unwrap().parse().unwrap()
}

/// The version on `alpha`, as this server says.
fn alpha(small: &Small, server: &str) -> Option<String> {
    let mut command = small.world.operator(&["channel", "list", "--json"]).unwrap();
    let said = run(command.env("UPDATECTL_SERVER", server)).unwrap().ok().unwrap().json().unwrap();
    let channels = said["channels"].as_array().unwrap();
    let alpha = channels.iter().find(|channel| channel["channel"] == "alpha")?;
    Some(alpha["version"].as_str().unwrap().to_owned())
}

/// A copy of what a second server needs of the first one's folder.
fn copy_keys(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for name in ["online-keys", "online-keys.pub.json", "admin-token"] {
        let mut copy = std::process::Command::new("cp");
        copy.arg("--archive").arg(from.join(name)).arg(to.join(name));
        run(&mut copy).unwrap().ok().unwrap();
    }
}

/// Downloads what `alpha` offers, and has the server killed that is delivering when a third of it has passed.
fn update_with_a_kill(
    small: &Small,
    node: &Node<'_>,
    balancer: &Balancer,
    servers: &mut [Option<Service>; 2],
) -> usize {
    let size = small.release.payload().unwrap().size;
    balancer.pass_only(size / 3);
    let engine = node.start_engine(&[]).unwrap();
    let killed = balancer.held.recv_timeout(Duration::from_secs(120)).unwrap();
    let progress = node.status().unwrap().progress;
    assert!(progress.bytes_done < progress.bytes_total, "in the middle: {progress:?}");
    let before = balancer.delivered();
    servers[killed] = None;
    balancer.pass_only(u64::MAX);
    let said = engine.wait().unwrap().ok().unwrap();
    let after = balancer.delivered();
    assert!(
        after[1 - killed] > before[1 - killed] + size / 4,
        "the other one went on: {before:?}, {after:?}: {said}"
    );
    killed
}

fn boot_and_confirm(node: &mut Node<'_>, slot: Slot, version: &str) {
    assert_eq!(node.boot().unwrap(), slot);
    node.engine(&[]).unwrap().ok().unwrap();
    let booted = node.status().unwrap().booted.unwrap();
    assert_eq!((booted.slot, booted.version.to_string(), booted.confirmed), (slot, version.to_owned(), true));
}

#[test]
fn one_of_two_servers_is_killed_during_a_download() {
    let cluster = Cluster::start().unwrap();
    let s3 = S3::start().unwrap();
    let database = cluster.url(&cluster.create().unwrap());
    let mut environment = s3.variables();
    environment.push(("UPDATE_SERVER_DATABASE_URL".to_owned(), database));
    environment.push(("UPDATE_SERVER_PAYLOAD_STORE".to_owned(), s3.address()));
    let mut world = World::with_environment(environment).unwrap();
    world.stop_server();

    let folders = [world.server_data(), world.folder().join("second")];
    copy_keys(&folders[0], &folders[1]);
    let mut servers = folders.each_ref().map(|folder| Some(world.serve(folder, "127.0.0.1:0").unwrap()));
    let balancer = Balancer::start(servers.each_ref().map(|server| address(server.as_ref().unwrap())));
    world.reach(&balancer.address);
    // The operator's commands reach one server or the other, an upload and the push that needs it, too.
    let small = Small::large_in(world).unwrap();
    assert!(balancer.taken().iter().all(|taken| *taken > 0), "{:?}", balancer.taken());
    for server in servers.iter().flatten() {
        while alpha(&small, server.address().unwrap()).as_deref() != Some("1.1.0") {
            std::thread::sleep(LOOK);
        }
    }
    assert_eq!(s3.objects(), 1);
    for folder in &folders {
        let payloads = std::fs::read_dir(folder.join("payloads"));
        assert_eq!(payloads.map_or(0, Iterator::count), 0, "payloads are in the bucket only");
    }

    let mut node = small.node("node", &balancer.address).unwrap();
    let killed = update_with_a_kill(&small, &node, &balancer, &mut servers);
    node.compare(Slot::B, "root", &small.v2).unwrap();
    boot_and_confirm(&mut node, Slot::B, "1.1.0");

    // The operator and the node go on with the one that is left.
    let (_, image) = small.publish_next("1.2.0", 17).unwrap();
    let survivor = servers[1 - killed].as_ref().unwrap();
    assert_eq!(alpha(&small, survivor.address().unwrap()).as_deref(), Some("1.2.0"));
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::A, "root", &image).unwrap();
    boot_and_confirm(&mut node, Slot::A, "1.2.0");

    // The one that was killed comes back and knows what happened.
    let back = small.world.serve(&folders[killed], "127.0.0.1:0").unwrap();
    assert_eq!(alpha(&small, back.address().unwrap()).as_deref(), Some("1.2.0"));
}
