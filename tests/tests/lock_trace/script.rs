//! The commands of a trace: of nodes that mostly do what comes next, of some that do not, of operators, and of messages
//! that come twice or late. All follows from a seed.

use crate::memory::Memory;
use jiff::civil::time;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use protocol::id::{BootId, Group};
use protocol::lock::{
    AttemptId, Cap, Caps, ClientId, Command, Holder, Limit, OnTrouble, Phase, Policy, Request, Zone, Zones,
};
use protocol::version::Version;
use protocol::window::Window;
use tests::images::Random;
use tests::lock_server::OPERATOR;

/// Nodes in each group that speak v2.
const NODES: usize = 6;
/// How far back a late copy goes, in commands.
const LATE: usize = 60;

/// What is given to all backends at once.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A command on a group's lock.
    Command(Group, Box<Command>),
    /// The caps over groups, all of them.
    Caps(Caps),
}

/// A node as it knows itself.
#[derive(Clone)]
struct Node {
    id: ClientId,
    group: Group,
    zone: Option<Zone>,
    attempt: u32,
    boot: u32,
    to: Version,
}

impl Node {
    fn attempt(&self) -> AttemptId {
        made(&format!("attempt-{}", self.attempt))
    }

    fn boot(&self) -> BootId {
        made(&format!("boot-{}", self.boot))
    }

    fn request(&self, priority: i32) -> Command {
        Command::Request(Request {
            node: self.id.clone(),
            attempt: self.attempt(),
            boot: self.boot(),
            from: made("1.0.0"),
            to: self.to.clone(),
            zone: self.zone.clone(),
            etcd_member: None,
            priority,
            reason: "update".to_owned(),
        })
    }

    fn verify(&self) -> Command {
        Command::Verify { node: self.id.clone(), attempt: self.attempt(), boot: self.boot() }
    }

    fn abandon(&self) -> Command {
        Command::Abandon { node: self.id.clone(), attempt: self.attempt(), boot: self.boot() }
    }

    fn booted(&self) -> Command {
        let (node, version) = (self.id.clone(), self.to.clone());
        Command::Booted { node, attempt: self.attempt(), boot: self.boot(), version }
    }

    fn confirm(&self) -> Command {
        let (node, version) = (self.id.clone(), self.to.clone());
        Command::Confirm { node, attempt: self.attempt(), boot: self.boot(), version }
    }

    fn fail(&self) -> Command {
        let reason = "health check: exit code 1".to_owned();
        Command::Fail { node: self.id.clone(), attempt: self.attempt(), boot: self.boot(), reason }
    }
}

/// Text of this file as what it stands for.
fn made<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

/// A trace as it is made up.
pub(crate) struct Script {
    random: Random,
    prefix: String,
    groups: [Group; 2],
    nodes: Vec<Node>,
    /// Nodes of another world, who ask a lock that is not there.
    stranger: Node,
    pub(crate) given: Vec<Step>,
}

impl Script {
    pub(crate) fn new(seed: u64) -> Self {
        let prefix = format!("trace{seed}-");
        let groups: [Group; 2] = [made(&format!("{prefix}web")), made(&format!("{prefix}db"))];
        let node = |number: usize, group: &Group| Node {
            id: made(&format!("{seed:016x}{number:016x}")),
            group: group.clone(),
            zone: [Some("r1"), Some("r2"), None][number % 3].map(made),
            attempt: 1,
            boot: 1,
            to: made("1.1.0"),
        };
        let nodes = (0..2 * NODES).map(|number| node(number, &groups[number / NODES])).collect();
        let stranger = node(2 * NODES, &made(&format!("{prefix}nowhere")));
        Self { random: Random::new(seed), prefix, groups, nodes, stranger, given: Vec::new() }
    }

    /// What the names of its groups begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.random.below(many) == 0
    }

    /// The next command. The groups are made first.
    pub(crate) fn next(&mut self, memory: &Memory) -> Step {
        let made = memory.locks.len();
        let step = if made < self.groups.len() {
            let max = [Limit::Count(2), Limit::Percent(50)][made];
            command(&self.groups[made], set_policy(Policy { max, ..Policy::default() }))
        } else if self.given.len() == self.groups.len() {
            // Half of how many: none has asked yet, and a v1 client is not counted.
            let node = self.zincati(1, 1);
            command(&self.groups[1], Command::FleetLockRequest { node })
        } else {
            match self.random.below(100) {
                0..12 => self.late_copy(),
                12..19 => self.new_policy(),
                19..22 => self.new_caps(),
                22..27 => self.operator(memory),
                27..37 => self.fleet_lock(memory),
                37..39 => self.strange(),
                _ => self.node(memory),
            }
        };
        self.given.push(step.clone());
        step
    }

    /// A client that speaks only v1.
    fn zincati(&self, group: usize, number: usize) -> ClientId {
        made(&format!("{}zincati-{group}-{number}", self.prefix))
    }

    fn late_copy(&mut self) -> Step {
        let back = 1 + self.random.below(self.given.len().min(LATE));
        self.given[self.given.len() - back].clone()
    }

    fn strange(&mut self) -> Step {
        let node = &self.stranger;
        let commands = [
            node.request(0),
            node.verify(),
            node.confirm(),
            Command::FleetLockRequest { node: node.id.clone() },
            Command::FleetLockSteady { node: node.id.clone() },
        ];
        let at = self.random.below(commands.len());
        command(&node.group, commands[at].clone())
    }

    fn group(&mut self) -> usize {
        self.random.below(self.groups.len())
    }

    fn new_policy(&mut self) -> Step {
        let group = self.group();
        let ids = self.nodes[group * NODES..][..NODES].iter().map(|node| node.id.clone()).collect::<Vec<_>>();
        let drawn = self.random.below(14);
        command(&self.groups[group], set_policy(policy(drawn, &ids)))
    }

    fn new_caps(&mut self) -> Step {
        let cap = |max| Cap { groups: self.groups.to_vec(), max };
        let alone = Cap { groups: vec![self.groups[0].clone()], max: 1 };
        let both = |max| [(format!("{}all", self.prefix), cap(max))].into_iter().collect();
        let caps = [
            Caps::default(),
            Caps { caps: both(3) },
            Caps { caps: both(5) },
            Caps { caps: [(format!("{}one", self.prefix), alone)].into_iter().chain(both(6)).collect() },
        ];
        let at = self.random.below(caps.len());
        Step::Caps(caps[at].clone())
    }

    /// Takes a permit, which may be another one by now or nobody's; or removes a node.
    fn operator(&mut self, memory: &Memory) -> Step {
        let group = self.group();
        let name = self.groups[group].clone();
        let (who, why) = (OPERATOR.to_owned(), "it is gone".to_owned());
        let at = group * NODES + self.random.below(NODES);
        let holders = memory.locks.get(&name).map_or(&[][..], |lock| &lock.holders);
        let drawn = self.random.below(6);
        let act = match holders.get(self.random.below(holders.len().max(1))) {
            Some(Holder { node, grant, .. }) if drawn < 3 => {
                // One in three is of an operator whose page is old.
                let grant = if drawn == 0 { grant.saturating_sub(1) } else { *grant };
                Command::ForceRelease { node: node.clone(), grant, who, why }
            }
            _ if drawn < 4 => Command::ForceRelease { node: self.nodes[at].id.clone(), grant: 1, who, why },
            _ => Command::RemoveNode { node: self.nodes[at].id.clone(), who, why },
        };
        command(&name, act)
    }

    /// A client that speaks only v1, or a node that speaks both. One that holds gives back, as a rule.
    fn fleet_lock(&mut self, memory: &Memory) -> Step {
        let group = self.group();
        let node = match self.random.below(4) {
            0 => self.nodes[group * NODES + self.random.below(NODES)].id.clone(),
            number => self.zincati(group, number),
        };
        let name = self.groups[group].clone();
        let holds = memory.locks.get(&name).is_some_and(|lock| lock.holder(&node).is_some());
        let said = if holds != self.one_in(5) {
            Command::FleetLockSteady { node }
        } else {
            Command::FleetLockRequest { node }
        };
        command(&name, said)
    }

    fn node(&mut self, memory: &Memory) -> Step {
        let at = self.random.below(self.nodes.len());
        let astray = self.one_in(5);
        let drawn = self.random.below(12);
        let priority = if drawn == 0 { 5 } else { 0 };
        let node = &mut self.nodes[at];
        let said =
            if astray { astray_command(node, drawn) } else { next_command(node, memory, drawn, priority) };
        command(&self.nodes[at].group, said)
    }
}

fn command(group: &Group, command: Command) -> Step {
    Step::Command(group.clone(), Box::new(command))
}

fn set_policy(policy: Policy) -> Command {
    Command::SetPolicy { policy: Box::new(policy), who: OPERATOR.to_owned(), why: "test".to_owned() }
}

/// What a node does that keeps to `docs/lock.md`, by what the lock says of it.
fn next_command(node: &mut Node, memory: &Memory, drawn: usize, priority: i32) -> Command {
    let holder = memory.locks.get(&node.group).and_then(|lock| lock.holder(&node.id));
    let phase = holder.filter(|holder| holder.attempt.is_some()).map(|holder| holder.phase);
    match (phase, drawn) {
        (Some(Phase::Granted), 0) => node.abandon(),
        (Some(Phase::Granted), _) => node.verify(),
        (Some(Phase::Rebooting), 0..3) => {
            node.boot += 1;
            node.fail()
        }
        (Some(Phase::Rebooting), _) => {
            node.boot += 1;
            node.booted()
        }
        (Some(Phase::Booted), 0) => node.fail(),
        (Some(Phase::Booted), 1) => Node { to: made("1.3.0"), ..node.clone() }.confirm(),
        (Some(Phase::Booted), _) => node.confirm(),
        (Some(Phase::Failed), _) => {
            // A repaired release, as a rule.
            node.attempt += 1;
            if drawn > 3 {
                node.to = if node.to == made("1.1.0") { made("1.2.0") } else { made("1.1.0") };
            }
            node.request(priority)
        }
        (None, _) => {
            let over = memory.locks.get(&node.group).is_some_and(|lock| {
                lock.finished.iter().any(|one| one.node == node.id && one.attempt == node.attempt())
            });
            // One that keeps its number asks for what is over.
            if over && drawn > 0 {
                node.attempt += 1;
            }
            node.request(priority)
        }
    }
}

/// What a node says that is confused, restored from a backup, or two machines.
fn astray_command(node: &Node, drawn: usize) -> Command {
    let other = Node {
        attempt: if drawn.is_multiple_of(2) { node.attempt } else { node.attempt + 1 },
        boot: if drawn.is_multiple_of(3) { node.boot } else { node.boot.saturating_sub(1) },
        to: if drawn < 4 { made("1.3.0") } else { node.to.clone() },
        ..node.clone()
    };
    match drawn % 6 {
        0 => other.confirm(),
        1 => other.fail(),
        2 => other.verify(),
        3 => other.booted(),
        4 => other.abandon(),
        _ => other.request(1),
    }
}

/// A policy that can be kept, of each kind that counts here.
fn policy(drawn: usize, nodes: &[ClientId]) -> Policy {
    let count = |max| Policy { max: Limit::Count(max), ..Policy::default() };
    let percent = |max| Policy { max: Limit::Percent(max), ..Policy::default() };
    let zones = |max| Zones { max, limits: [(made("r2"), Limit::Count(2))].into(), sizes: [].into() };
    match drawn {
        0 => count(1),
        1 => Policy { on_failed: OnTrouble::Hold, ..count(2) },
        2 => Policy { on_failed: OnTrouble::Release, ..count(3) },
        3 => percent(50),
        4 => Policy { size: Some(4), on_failed: OnTrouble::Hold, ..percent(60) },
        5 => Policy { zones: Some(zones(Limit::Count(1))), ..count(4) },
        6 => Policy {
            zones: Some(Zones { sizes: [(made("r1"), 6)].into(), ..zones(Limit::Percent(34)) }),
            ..count(4)
        },
        7 => Policy { canaries: vec![nodes[0].clone(), nodes[1].clone()], ..count(3) },
        8 => {
            let priorities = [(nodes[1].clone(), 5), (nodes[2].clone(), -3)].into();
            Policy { priorities, ..count(1) }
        }
        9 => Policy { windows: vec![closed_window()], ..count(2) },
        10 => {
            let windows = vec![Window { days: Vec::new(), start: time(0, 0, 0, 0), length_s: 7 * 24 * 3600 }];
            Policy { windows, time_zone: "Europe/Berlin".to_owned(), ..count(2) }
        }
        11 => count(0),
        12 => Policy { size: Some(30), ..percent(10) },
        _ => count(3),
    }
}

/// It opens in three days: no trace takes so long.
fn closed_window() -> Window {
    let then = Timestamp::now().saturating_add(SignedDuration::from_hours(72)).unwrap();
    let day = then.to_zoned(TimeZone::UTC).weekday();
    Window { days: vec![day], start: time(12, 0, 0, 0), length_s: 3600 }
}
