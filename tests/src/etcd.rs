//! Step 9, permit: an etcd cluster of real members on loopback, which tests freeze, kill, cut off and bring back.

mod wires;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wires::Wires;

/// After this long, what is waited for does not come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked for what is waited for.
const LOOK: Duration = Duration::from_millis(25);
/// How often a cluster is begun anew on other ports: somebody may have taken one between looking and listening.
const STARTS: u32 = 3;

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many members.
    pub members: usize,
    /// How long a member waits for its leader before it elects another one.
    pub election: Duration,
    /// Certificates, if clients are to come with TLS and a certificate.
    pub tls: Option<Certificates>,
    /// Whether members can be cut off from each other; what they say to each other then takes a detour.
    pub wires: bool,
}

/// The PEM files of a test.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority of both sides.
    pub ca: PathBuf,
    /// The members' certificate and key.
    pub member: (PathBuf, PathBuf),
    /// A client's certificate and key.
    pub client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Makes an authority, and certificates of it for 127.0.0.1 and for a client, with `openssl`.
    ///
    /// # Errors
    /// Where `openssl` is missing or fails.
    pub fn make(folder: &Path) -> Result<Self> {
        let file = |name: &str| folder.join(name);
        let made = Self {
            ca: file("ca.pem"),
            member: (file("member.pem"), file("member.key")),
            client: (file("client.pem"), file("client.key")),
        };
        let ca_key = file("ca.key");
        let new_key =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let mut ca = Command::new("openssl");
        ca.args(new_key).args(["-subj", "/CN=test authority"]);
        ca.args(["-addext", "keyUsage=critical,keyCertSign", "-keyout"])
            .arg(&ca_key)
            .arg("-out")
            .arg(&made.ca);
        openssl(&mut ca)?;
        for ((certificate, key), name) in [(&made.member, "member"), (&made.client, "client")] {
            let mut leaf = Command::new("openssl");
            leaf.args(new_key).arg("-CA").arg(&made.ca).arg("-CAkey").arg(&ca_key);
            leaf.args(["-subj", &format!("/CN={name}")]);
            leaf.args([
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ]);
            // The JSON gateway of a member is itself a client of that member.
            leaf.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth", "-keyout"]).arg(key);
            leaf.arg("-out").arg(certificate);
            openssl(&mut leaf)?;
        }
        Ok(made)
    }
}

fn openssl(command: &mut Command) -> Result<()> {
    let output = command.output().context("openssl cannot be started")?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A running cluster; its members are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    folder: tempfile::TempDir,
    setup: Setup,
    members: Vec<Member>,
    http: reqwest::Client,
    wires: Option<Wires>,
}

#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    /// Where the others find it: at its own port, or at the other end of its wire.
    advertised_port: u16,
    process: Option<Child>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may be gone already; then there is nothing to end.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn advertised(&self) -> String {
        format!("http://127.0.0.1:{}", self.advertised_port)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("this member does not run")?;
        let id = Pid::from_raw(i32::try_from(process.id())?).context("no process id")?;
        Ok(kill_process(id, signal)?)
    }
}

impl Cluster {
    /// Starts a cluster and waits until it has a leader.
    ///
    /// # Errors
    /// Where `etcd` is missing or does not come up.
    pub async fn start(setup: Setup) -> Result<Self> {
        let mut failure = None;
        for _ in 0..STARTS {
            let mut cluster = Self::new(setup.clone())?;
            match cluster.bring_up().await {
                Ok(()) => return Ok(cluster),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no cluster was started")?)
    }

    fn new(setup: Setup) -> Result<Self> {
        // All at once, so that no two are the same.
        let listeners: Vec<_> =
            (0..setup.members * 3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let ports = listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
        let (client_ports, peer_ports) = ports.split_at(setup.members);
        let (peer_ports, wire_ports) = peer_ports.split_at(setup.members);
        let wires = match setup.wires {
            true => Some(Wires::lay(listeners.into_iter().skip(2 * setup.members).collect(), peer_ports)?),
            false => None,
        };
        let member = |at: usize| {
            let advertised_port = if setup.wires { wire_ports[at] } else { peer_ports[at] };
            Member {
                client_port: client_ports[at],
                peer_port: peer_ports[at],
                advertised_port,
                process: None,
            }
        };
        let members = (0..setup.members).map(member).collect();
        let mut http = reqwest::Client::builder().timeout(Duration::from_secs(10)).http1_only();
        if let Some(tls) = &setup.tls {
            let pem = [std::fs::read(&tls.client.0)?, std::fs::read(&tls.client.1)?].concat();
            http = http
                .tls_certs_only(reqwest::Certificate::from_pem_bundle(&std::fs::read(&tls.ca)?)?)
                .identity(reqwest::Identity::from_pem(&pem)?);
        }
        let folder = tempfile::Builder::new().prefix("flipside-etcd-").tempdir()?;
        Ok(Self { folder, setup, members, http: http.build()?, wires })
    }

    async fn bring_up(&mut self) -> Result<()> {
        for at in 0..self.members.len() {
            self.spawn(at)?;
        }
        for at in 0..self.members.len() {
            self.wait_until_well(at).await?;
        }
        Ok(())
    }

    fn spawn(&mut self, at: usize) -> Result<()> {
        let peer = |(at, member): (usize, &Member)| format!("m{at}={}", member.advertised());
        let cluster: Vec<_> = self.members.iter().enumerate().map(peer).collect();
        let (client, own) = (self.endpoint(at), format!("http://127.0.0.1:{}", self.members[at].peer_port));
        let log = File::options().create(true).append(true).open(self.log(at))?;
        let heartbeat = (self.setup.election / 10).as_millis().to_string();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{at}"), "--data-dir"])
            .arg(self.folder.path().join(format!("m{at}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &own])
            .args(["--initial-advertise-peer-urls", &self.members[at].advertised()])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .args(["--heartbeat-interval", &heartbeat])
            .args(["--election-timeout", &self.setup.election.as_millis().to_string()]);
        if let Some(tls) = &self.setup.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.member.0).arg("--key-file").arg(&tls.member.1);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().context("etcd cannot be started: it is in Debian's etcd-server")?;
        self.members[at].process = Some(process);
        Ok(())
    }

    fn log(&self, at: usize) -> PathBuf {
        self.folder.path().join(format!("m{at}.log"))
    }

    /// The client address of a member.
    #[must_use]
    pub fn endpoint(&self, at: usize) -> String {
        let scheme = if self.setup.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[at].client_port)
    }

    /// The client addresses of all members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|at| self.endpoint(at)).collect()
    }

    /// Asks one member through its JSON gateway.
    ///
    /// # Errors
    /// Where it does not answer with 200 and JSON.
    pub async fn ask(&self, at: usize, path: &str, question: &Value) -> Result<Value> {
        let url = format!("{}/v3/{path}", self.endpoint(at));
        let answer = self.http.post(&url).body(question.to_string()).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if status.as_u16() != 200 {
            bail!("{url} answered {status}: {text}");
        }
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until a member knows a leader.
    ///
    /// # Errors
    /// Where it ends, or does not within a minute.
    pub async fn wait_until_well(&mut self, at: usize) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Ok(status) = self.ask(at, "maintenance/status", &json!({})).await
                && status["leader"].is_string()
            {
                return Ok(());
            }
            let process = self.members[at].process.as_mut().context("this member does not run")?;
            if let Some(status) = process.try_wait()? {
                bail!("etcd ended with {status}: {}", self.last_words(at));
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("member {at} knows no leader after {} s: {}", PATIENCE.as_secs(), self.last_words(at))
    }

    fn last_words(&self, at: usize) -> String {
        let log = std::fs::read_to_string(self.log(at)).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        lines.join(" | ")
    }

    /// The member that leads.
    ///
    /// # Errors
    /// Where none does within a minute.
    pub async fn leader(&self) -> Result<usize> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            for at in 0..self.members.len() {
                if let Ok(status) = self.ask(at, "maintenance/status", &json!({})).await
                    && status["leader"].is_string()
                    && status["leader"] == status["header"]["member_id"]
                {
                    return Ok(at);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("no leader after {} s", PATIENCE.as_secs())
    }

    /// Kills a member with SIGKILL.
    pub fn kill(&mut self, at: usize) {
        self.members[at].kill();
    }

    /// Starts a member that was killed, and waits until it knows a leader.
    ///
    /// # Errors
    /// Where it does not come up.
    pub async fn restart(&mut self, at: usize) -> Result<()> {
        self.spawn(at)?;
        self.wait_until_well(at).await
    }

    /// Stops a member with SIGSTOP: its connections stay, and nothing comes of them.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn freeze(&self, at: usize) -> Result<()> {
        self.members[at].signal(Signal::STOP)
    }

    /// Lets a frozen member go on.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn thaw(&self, at: usize) -> Result<()> {
        self.members[at].signal(Signal::CONT)
    }

    /// Cuts a member off from the others; clients still reach it.
    ///
    /// # Errors
    /// Where the cluster was set up without wires, or the member does not answer.
    pub async fn cut_off(&self, at: usize) -> Result<()> {
        let wires = self.wires.as_ref().context("the cluster was set up without wires")?;
        let status = self.ask(at, "maintenance/status", &json!({})).await?;
        let id = status["header"]["member_id"].as_str().context("the member does not say who it is")?;
        // Decimal here, and hexadecimal among members.
        wires.cut(Some((at, format!("{:x}", id.parse::<u64>()?))));
        Ok(())
    }

    /// Mends all wires.
    ///
    /// # Errors
    /// Where the cluster was set up without any.
    pub fn mend(&self) -> Result<()> {
        self.wires.as_ref().context("the cluster was set up without wires")?.cut(None);
        Ok(())
    }
}
