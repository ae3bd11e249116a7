//! Nodes that all want to reboot, again and again.

use crate::stage::{Backend, node_id};
use anyhow::{Context as _, Result, bail, ensure};
use protocol::id::{BootId, Group};
use protocol::lock::{AttemptId, ClientId, Command, Limit, Policy, Reply, Request};
use protocol::version::Version;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use update_engine::lock::LockClient;

/// Ended attempts that a document remembers: then it is as long as it gets.
const REMEMBERED: usize = 512;

/// After this long a command that is not answered never is.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long a run takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Not measured.
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// Before a node that must wait asks again.
    pub(crate) pause: Duration,
}

/// How long the answers took, by what was asked.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// A `request` that was answered with *wait* is a `poll`.
    pub(crate) latencies: BTreeMap<&'static str, Vec<Duration>>,
    pub(crate) acquisitions: usize,
}

/// Nodes of one group.
pub(crate) struct Fleet {
    nodes: Vec<Node>,
    held: Arc<AtomicUsize>,
    /// How many may hold a permit.
    max: usize,
}

struct Node {
    client: LockClient,
    id: ClientId,
    from: Version,
    to: Version,
    held: Arc<AtomicUsize>,
    max: usize,
    /// Counts its boots, and with them its attempts.
    boots: usize,
    samples: Samples,
}

impl Fleet {
    /// Makes a group whose lock has a history, and nodes that are known and connected.
    pub(crate) async fn gather(backend: &Backend, group: &Group, max: Limit, count: usize) -> Result<Self> {
        backend.set_policy(group, Policy { max, ..Policy::default() }).await?;
        let held = Arc::new(AtomicUsize::new(0));
        let max = match max {
            Limit::Count(count) => count as usize,
            Limit::Percent(percent) => (count * usize::from(percent) / 100).max(1),
        };
        let mut nodes = Vec::new();
        for number in 0..count {
            let id = node_id(group, number)?;
            nodes.push(Node {
                client: backend.client(group, &id, number)?,
                id: ClientId::from(&id),
                from: "1.0.0".parse()?,
                to: "1.1.0".parse()?,
                held: Arc::clone(&held),
                max,
                boots: 0,
                samples: Samples::default(),
            });
        }
        for number in 0..REMEMBERED.max(count) {
            let node = &nodes[number % count];
            let (attempt, boot) = (format!("old-{number}").parse()?, boot(0)?);
            let gone = Command::Abandon { node: node.id.clone(), attempt, boot };
            let reply = node.client.perform(&gone).await?;
            ensure!(reply == Reply::Released { was_held: false }, "the lock is not new: {reply:?}");
        }
        // Each takes its place or its permit: to queue up is not what is measured.
        for node in &nodes {
            let wish = node.request("attempt-0".parse()?, boot(0)?);
            let reply = node.client.perform(&wish).await?;
            ensure!(matches!(reply, Reply::Granted { .. } | Reply::Wait { .. }), "a request: {reply:?}");
        }
        Ok(Self { nodes, held, max })
    }

    /// Lets them all reboot until the time is over. Who waits then keeps the place for the next time.
    pub(crate) async fn roll(&mut self, times: Times) -> Result<Samples> {
        let begin = Instant::now() + times.warm_up;
        let measured = (begin, begin + times.measured);
        let mut tasks = JoinSet::new();
        for mut node in std::mem::take(&mut self.nodes) {
            tasks.spawn(async move {
                node.reboot_until(measured, times.pause).await?;
                anyhow::Ok(node)
            });
        }
        let mut all = Samples::default();
        while let Some(ended) = tasks.join_next().await {
            let mut node = ended??;
            let one = std::mem::take(&mut node.samples);
            self.nodes.push(node);
            all.acquisitions += one.acquisitions;
            for (name, latencies) in one.latencies {
                all.latencies.entry(name).or_default().extend(latencies);
            }
        }
        ensure!(self.held.load(Ordering::SeqCst) <= self.max, "permits are left");
        Ok(all)
    }
}

fn boot(number: usize) -> Result<BootId> {
    Ok(format!("boot-{number}").parse()?)
}

impl Node {
    async fn reboot_until(&mut self, measured: (Instant, Instant), pause: Duration) -> Result<()> {
        while Instant::now() < measured.1 {
            let attempt: AttemptId = format!("attempt-{}", self.boots).parse()?;
            let before = boot(self.boots)?;
            let request = self.request(attempt.clone(), before.clone());
            loop {
                match self.ask(&request, measured).await? {
                    Reply::Granted { .. } => break,
                    Reply::Wait { .. } if Instant::now() < measured.1 => tokio::time::sleep(pause).await,
                    Reply::Wait { .. } => return Ok(()),
                    other => bail!("a request was answered {other:?}"),
                }
            }
            let holding = self.held.fetch_add(1, Ordering::SeqCst) + 1;
            ensure!(holding <= self.max, "{holding} hold a permit and {} may", self.max);
            let (node, version) = (self.id.clone(), self.to.clone());
            let verify = Command::Verify { node: node.clone(), attempt: attempt.clone(), boot: before };
            let reply = self.ask(&verify, measured).await?;
            ensure!(matches!(reply, Reply::Current { .. }), "a verification was answered {reply:?}");
            self.boots += 1;
            let after = boot(self.boots)?;
            let booted = Command::Booted {
                node: node.clone(),
                attempt: attempt.clone(),
                boot: after.clone(),
                version: version.clone(),
            };
            let reply = self.ask(&booted, measured).await?;
            ensure!(reply == Reply::Noted, "a boot was answered {reply:?}");
            self.held.fetch_sub(1, Ordering::SeqCst);
            let confirm = Command::Confirm { node, attempt, boot: after, version };
            let reply = self.ask(&confirm, measured).await?;
            ensure!(reply == Reply::Released { was_held: true }, "a confirmation was answered {reply:?}");
            if (measured.0..measured.1).contains(&Instant::now()) {
                self.samples.acquisitions += 1;
            }
        }
        Ok(())
    }

    fn request(&self, attempt: AttemptId, boot: BootId) -> Command {
        Command::Request(Request {
            node: self.id.clone(),
            attempt,
            boot,
            from: self.from.clone(),
            to: self.to.clone(),
            zone: None,
            etcd_member: None,
            priority: 0,
            reason: "update".to_owned(),
        })
    }

    /// Gives a command, and notes how long its answer took if that came in the time that is measured.
    async fn ask(&mut self, command: &Command, measured: (Instant, Instant)) -> Result<Reply> {
        let asked = Instant::now();
        // One that is not answered is given again, as an engine does; it counts with all the time that it took.
        let reply = loop {
            match self.client.perform(command).await {
                Err(error) if error.is_passing() && asked.elapsed() < PATIENCE => {}
                said => break said.context("a command was not answered")?,
            }
        };
        let answered = Instant::now();
        if asked >= measured.0 && answered < measured.1 {
            let name = match (command, &reply) {
                (Command::Request(_), Reply::Wait { .. }) => "poll",
                (Command::Request(_), _) => "request",
                (Command::Verify { .. }, _) => "verify",
                (Command::Booted { .. }, _) => "booted",
                _ => "confirm",
            };
            self.samples.latencies.entry(name).or_default().push(answered - asked);
        }
        Ok(reply)
    }
}
