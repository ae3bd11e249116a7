//! What the model and the simulation of the reboot lock share: a node that keeps to the engine's protocol, the check of
//! one transition, and the ways to break things on purpose.
//!
//! The node trusts the lock for one thing on purpose: after a restart it does not compare boot ids itself, it goes by its
//! version and by what the lock answers. So the lock's own check of boot ids is all there is, and removing it shows.

#![allow(dead_code, unreachable_pub, reason = "each of the test programs uses its part")]

pub mod plain;

use jiff::{SignedDuration, Timestamp};
use protocol::id::BootId;
use protocol::lock::{
    Applied, AttemptId, ClientId, Command, Context, Document, Holder, Limit, OnTrouble, Phase, Refusal,
    Reply, Request, apply,
};
use protocol::version::Version;

/// A guard that is taken away, to see that its absence is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The store writes whatever revision it has.
    IgnoresRevision,
    /// Nodes reboot with the grant alone.
    SkipsVerify,
    /// Every boot id is what the lock wants to hear.
    BelievesBoots,
}

/// One node's engine, as far as the lock sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    pub id: u8,
    /// The boot it is in.
    pub boot: u16,
    /// The version that runs.
    pub runs: u16,
    /// Attempts made so far. Durable, so that no id is used twice.
    pub attempts: u16,
    /// Whether the last attempt was confirmed.
    pub done: bool,
    pub record: Record,
    pub doing: Doing,
}

/// What is durable: written before the message that follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Record {
    None,
    /// An attempt is made.
    Open {
        attempt: u16,
        to: u16,
    },
    /// It is given up. Recorded before the first word of it goes out: a late one must not find the node going on.
    Giving {
        attempt: u16,
        to: u16,
    },
}

/// What is lost in a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Doing {
    Start,
    Ask,
    /// Granted.
    Ready,
    /// Verified: it will go down.
    Go,
    Down,
    /// Up in the release, told so.
    Proving,
    /// The lock said that it rebooted, and it does not run the release.
    Failing,
}

/// A message to the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Message {
    pub node: u8,
    pub word: Word,
    pub attempt: u16,
    pub boot: u16,
    pub version: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word {
    Request,
    Verify,
    Abandon,
    Booted,
    Confirm,
    Fail,
}

/// As much of a reply as the node goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    Granted,
    Current,
    Wait,
    Noted,
    Released,
    Done,
    Over,
    NotHeld,
    SameBoot,
    Rebooted,
    OtherRefusal,
}

impl From<&Reply> for Answer {
    fn from(reply: &Reply) -> Self {
        match reply {
            Reply::Granted { .. } => Self::Granted,
            Reply::Current { .. } => Self::Current,
            Reply::Wait { .. } => Self::Wait,
            Reply::Noted => Self::Noted,
            Reply::Released { .. } => Self::Released,
            Reply::Done => Self::Done,
            Reply::Refused { because } => match because {
                Refusal::AttemptOver => Self::Over,
                Refusal::NotHeld { .. } => Self::NotHeld,
                Refusal::SameBoot => Self::SameBoot,
                Refusal::Rebooted => Self::Rebooted,
                _ => Self::OtherRefusal,
            },
        }
    }
}

pub fn client(node: u8) -> ClientId {
    format!("n{node}").parse().unwrap()
}

pub fn attempt(node: u8, number: u16) -> AttemptId {
    format!("a{node}.{number}").parse().unwrap()
}

pub fn boot(node: u8, number: u16) -> BootId {
    format!("b{node}.{number}").parse().unwrap()
}

pub fn version(number: u16) -> Version {
    format!("1.{number}.0").parse().unwrap()
}

/// The number at the end of an id that was made here.
pub fn number(id: &str) -> u16 {
    id.split('.').nth(1).unwrap().parse().unwrap()
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + seconds)
}

pub fn context(now: Timestamp) -> Context {
    Context { now, population: None, caps: Vec::new(), quorum: None }
}

pub fn is_holder(document: &Document, node: u8) -> bool {
    document.holder(&client(node)).is_some()
}

impl Node {
    pub const fn new(id: u8) -> Self {
        Self { id, boot: 0, runs: 0, attempts: 0, done: false, record: Record::None, doing: Doing::Start }
    }

    /// Verified, until it is back up.
    pub const fn is_down(&self) -> bool {
        matches!(self.doing, Doing::Go | Doing::Down)
    }

    pub const fn begin(mut self, to: u16) -> Self {
        self.attempts += 1;
        self.record = Record::Open { attempt: self.attempts, to };
        self.doing = Doing::Ask;
        self.done = false;
        self
    }

    /// What it says next, if there is something to say.
    pub fn message(&self) -> Option<Message> {
        let (word, attempt, version) = match (self.record, self.doing) {
            (_, Doing::Go | Doing::Down) | (Record::None, _) => return None,
            (Record::Giving { attempt, to }, _) => (Word::Abandon, attempt, to),
            (Record::Open { attempt, to }, doing) => match doing {
                Doing::Start if self.runs == to => (Word::Booted, attempt, self.runs),
                Doing::Start | Doing::Ask => (Word::Request, attempt, to),
                Doing::Ready => (Word::Verify, attempt, to),
                Doing::Proving => (Word::Confirm, attempt, self.runs),
                _ => (Word::Fail, attempt, self.runs),
            },
        };
        Some(Message { node: self.id, word, attempt, boot: self.boot, version })
    }

    /// What comes of the answer to [`Self::message`].
    pub fn told(mut self, word: Word, answer: Answer, mutation: Option<Mutation>) -> Self {
        let over = |node: &mut Self| {
            node.record = Record::None;
            node.doing = Doing::Start;
        };
        match (word, answer) {
            (Word::Request, Answer::Granted) if mutation == Some(Mutation::SkipsVerify) => {
                self.doing = Doing::Go;
            }
            (Word::Request, Answer::Granted) => self.doing = Doing::Ready,
            (Word::Request, Answer::Rebooted) => self.doing = Doing::Failing,
            (Word::Request, Answer::Wait) => self.doing = Doing::Ask,
            (Word::Verify, Answer::Current) => self.doing = Doing::Go,
            (Word::Verify, Answer::Wait) => {}
            (Word::Verify, _) | (Word::Booted | Word::Confirm, Answer::SameBoot) => self.doing = Doing::Ask,
            (Word::Booted, Answer::Noted | Answer::NotHeld) => self.doing = Doing::Proving,
            (Word::Abandon, Answer::Rebooted) => {
                // It went down by itself before it could give up, and is up again.
                let Record::Giving { attempt, to } = self.record else { return self };
                self.record = Record::Open { attempt, to };
                self.doing = Doing::Start;
            }
            (Word::Confirm, Answer::Released) => {
                self.done = true;
                over(&mut self);
            }
            (Word::Fail, Answer::SameBoot | Answer::NotHeld) => self.doing = Doing::Start,
            _ => over(&mut self),
        }
        self
    }

    /// An operator cancels, or it waited too long.
    pub fn give_up(mut self) -> Option<Self> {
        let Record::Open { attempt, to } = self.record else { return None };
        if !matches!(self.doing, Doing::Ask | Doing::Ready | Doing::Go) {
            return None;
        }
        self.record = Record::Giving { attempt, to };
        self.doing = Doing::Start;
        Some(self)
    }

    /// Reads the lock, and takes up a permit that it holds and knows nothing of.
    pub fn reconcile(mut self, holder: &Holder) -> Option<Self> {
        if self.record != Record::None || self.doing != Doing::Start || holder.phase == Phase::Failed {
            return None;
        }
        let attempt = number(holder.attempt.as_ref()?.as_str());
        let to = number(holder.to.as_ref()?.as_str());
        self.record = if holder.boot_before == Some(boot(self.id, self.boot)) {
            Record::Giving { attempt, to }
        } else {
            Record::Open { attempt, to }
        };
        Some(self)
    }

    pub const fn restart(mut self) -> Self {
        self.doing = Doing::Start;
        self
    }

    pub const fn go_down(mut self) -> Self {
        self.doing = Doing::Down;
        self
    }

    /// Up in another boot, by the loader's choice: the slot of the attempt was flipped before the attempt began.
    pub const fn come_up(mut self, boot: u16, into_release: bool) -> Self {
        if let (Record::Open { to, .. } | Record::Giving { to, .. }, true) = (self.record, into_release) {
            self.runs = to;
        }
        self.boot = boot;
        self.doing = Doing::Start;
        self
    }
}

impl Message {
    pub fn command(&self) -> Command {
        let (node, attempt, boot) =
            (client(self.node), attempt(self.node, self.attempt), boot(self.node, self.boot));
        let version = version(self.version);
        match self.word {
            Word::Request => Command::Request(Request {
                node,
                attempt,
                boot,
                from: "1.0.0".parse().unwrap(),
                to: version,
                zone: None,
                etcd_member: None,
                priority: 0,
                reason: String::new(),
            }),
            Word::Verify => Command::Verify { node, attempt, boot },
            Word::Abandon => Command::Abandon { node, attempt, boot },
            Word::Booted => Command::Booted { node, attempt, boot, version },
            Word::Confirm => Command::Confirm { node, attempt, boot, version },
            Word::Fail => Command::Fail { node, attempt, boot, reason: String::new() },
        }
    }
}

/// The lock without its check of boot ids: it hears the boot that passes.
fn without_boot_check(document: &Document, command: &Command) -> Command {
    let mut command = command.clone();
    let before = |node: &ClientId| document.holder(node).and_then(|holder| holder.boot_before.clone());
    let other: BootId = "another".parse().unwrap();
    match &mut command {
        Command::Request(request) => request.boot = before(&request.node).unwrap_or(request.boot.clone()),
        Command::Verify { node, boot, .. } | Command::Abandon { node, boot, .. } => {
            *boot = before(node).unwrap_or(boot.clone());
        }
        Command::Booted { boot, .. } | Command::Confirm { boot, .. } | Command::Fail { boot, .. } => {
            *boot = other;
        }
        _ => {}
    }
    command
}

/// [`apply`], or a broken one.
pub fn apply_with(
    document: &Document,
    command: &Command,
    context: &Context,
    mutation: Option<Mutation>,
) -> Applied {
    if mutation == Some(Mutation::BelievesBoots) {
        apply(document, &without_boot_check(document, command), context)
    } else {
        apply(document, command, context)
    }
}

/// What must hold of every single transition, whatever led to it.
pub fn check_step(
    before: &Document,
    command: &Command,
    context: &Context,
    applied: &Applied,
    mutation: Option<Mutation>,
) -> Result<(), String> {
    let after = applied.document.as_ref().unwrap_or(before);
    let newcomers = after.holders.iter().filter(|holder| before.holder(&holder.node).is_none()).count();
    if let Limit::Count(max) = before.policy.max
        && newcomers > 0
        && after.holders.len() > max as usize
    {
        return Err(format!("I1: {} hold after a grant, {max} may", after.holders.len()));
    }
    if newcomers > usize::from(matches!(applied.reply, Reply::Granted { .. })) {
        return Err("I1: a permit without a grant".to_owned());
    }
    for holder in &before.holders {
        let stays = after.holder(&holder.node).is_some();
        if !stays && !may_end(holder, before, command, context.now) {
            return Err(format!("I2, I4, I5: {command:?} frees {holder:?}"));
        }
    }
    if let (Reply::Current { .. }, Command::Verify { node, attempt, boot }) = (&applied.reply, command) {
        let holder = after.holder(node).filter(|holder| {
            holder.attempt.as_ref() == Some(attempt)
                && holder.boot_before.as_ref() == Some(boot)
                && holder.phase == Phase::Rebooting
        });
        let halt = after.policy.on_failed == OnTrouble::Halt;
        let repairs = after.holder(node).is_some_and(|holder| holder.instead_of.is_some());
        let unrepaired = |other: &Holder| other.phase == Phase::Failed || other.instead_of.is_some();
        let failed = |other: &&Holder| halt && !repairs && other.node != *node && unrepaired(other);
        if holder.is_none() || after.holders.iter().find(failed).is_some() {
            return Err(format!("I6: {command:?} is current in {after:?}"));
        }
    }
    // I3, by doing it again.
    let again = apply_with(after, command, context, mutation);
    let same = Answer::from(&again.reply) == Answer::from(&applied.reply);
    // A request that is given up and asked once more is over; so is a permit that was freed.
    if again.document.is_some() || !same {
        return Err(format!("I3: {command:?} twice: {:?}, then {:?}", applied.reply, again.reply));
    }
    Ok(())
}

/// Whether the command, by the true boot ids in it, may end this permit.
fn may_end(holder: &Holder, document: &Document, command: &Command, now: Timestamp) -> bool {
    let is_stuck = holder.stuck_since.is_some() || holder.phase != Phase::Failed && holder.deadline < now;
    let is_failed = holder.phase == Phase::Failed;
    let policy = match command {
        Command::SetPolicy { policy, .. } => policy,
        _ => &document.policy,
    };
    if is_stuck && policy.on_stuck == OnTrouble::Release
        || is_failed && policy.on_failed == OnTrouble::Release
    {
        return true;
    }
    let is_this = |node: &ClientId, attempt: &AttemptId| {
        holder.node == *node && holder.attempt.as_ref() == Some(attempt)
    };
    match command {
        Command::Confirm { node, attempt, boot, version } => {
            is_this(node, attempt)
                && !is_failed
                && holder.boot_before.as_ref() != Some(boot)
                && holder.to.as_ref() == Some(version)
        }
        Command::Abandon { node, attempt, boot } => {
            is_this(node, attempt)
                && holder.boot_before.as_ref() == Some(boot)
                && matches!(holder.phase, Phase::Granted | Phase::Rebooting)
        }
        Command::Fail { node, attempt, boot, .. } => {
            is_this(node, attempt)
                && policy.on_failed == OnTrouble::Release
                && holder.boot_before.as_ref() != Some(boot)
        }
        Command::ForceRelease { node, grant, .. } => holder.node == *node && holder.grant == *grant,
        Command::RemoveNode { node, .. } => holder.node == *node,
        Command::FleetLockSteady { node } => holder.node == *node && holder.attempt.is_none(),
        _ => false,
    }
}
