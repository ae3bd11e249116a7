//! The reboot lock of the miniature world: the real document and its transitions, and what a node may say to it when.

use super::{Outcome, Violation, World};
use machine::{Ask, PermitStage, Question, Strategy};
use protocol::lock::{AttemptId, ClientId, Command, Context, Document, Limit, Policy, Reply, Request, apply};
use protocol::slot::{Slot, select};
use protocol::version::Version;
use std::collections::{BTreeMap, BTreeSet};

/// A lock for this node and nobody else; its policy's number says whether it may.
pub struct Lock {
    pub document: Document,
    /// It answers.
    pub reachable: bool,
    /// What each attempt was for, and in which boot it was begun.
    begun: BTreeMap<AttemptId, (Version, u32)>,
    /// Attempts whose end was told.
    over: BTreeSet<AttemptId>,
}

impl Default for Lock {
    fn default() -> Self {
        let document = Document::new("default".parse().unwrap(), Policy::default());
        Self { document, reachable: true, begun: BTreeMap::new(), over: BTreeSet::new() }
    }
}

fn node() -> ClientId {
    "this".parse().unwrap()
}

impl World {
    /// Applies a command to the document, by the world's clock.
    pub fn tell_lock(&mut self, command: &Command) -> Reply {
        let context = Context { now: self.now, population: None, caps: Vec::new(), quorum: None };
        let applied = apply(&self.lock.document, command, &context);
        if let Some(document) = applied.document {
            self.lock.document = document;
        }
        applied.reply
    }

    /// Grants from now on, or to nobody.
    pub fn set_lock(&mut self, grants: bool) {
        let policy = Policy { max: Limit::Count(u32::from(grants)), ..Policy::default() };
        let (who, why) = ("operator".to_owned(), String::new());
        self.tell_lock(&Command::SetPolicy { policy: Box::new(policy), who, why });
    }

    /// An operator takes the permit away, if it is held.
    pub fn take_permit(&mut self) {
        let Some(grant) = self.lock.document.holder(&node()).map(|holder| holder.grant) else { return };
        let (who, why) = ("operator".to_owned(), String::new());
        self.tell_lock(&Command::ForceRelease { node: node(), grant, who, why });
    }

    /// Whether the lock counts this node among its holders.
    pub fn is_holder(&self) -> bool {
        self.lock.document.holder(&node()).is_some()
    }

    /// A question before it is asked.
    pub(super) fn check_question(&mut self, question: &Question) -> Outcome {
        let deny = |what: &str| Err(Violation(format!("{what}: {question:?}")));
        let record = self.record();
        let Some(permit) = record.permit.filter(|permit| permit.attempt == question.attempt) else {
            return deny("the lock is asked about an attempt that is not on record");
        };
        let running_is = *self.table.get(self.booted);
        // Of an attempt that was taken over without its record, only the lock knows the boot.
        let is_own = self.lock.begun.contains_key(&question.attempt);
        let in_new_boot = permit.boot_id != self.facts().boot_id || !is_own;
        match (&question.ask, &permit.stage) {
            (Ask::Request, PermitStage::Asked) | (Ask::Verify, PermitStage::Held)
                if permit.boot_id != self.facts().boot_id =>
            {
                deny("an attempt goes on in another boot")
            }
            (Ask::Request, PermitStage::Asked) => {
                let wanted = (question.version.clone(), self.boots);
                let begun = self.lock.begun.entry(question.attempt.clone()).or_insert_with(|| wanted.clone());
                if *begun != wanted || self.lock.over.contains(&question.attempt) {
                    return deny("the id of an attempt is used again");
                }
                Ok(())
            }
            (Ask::Verify, PermitStage::Held) => Ok(()),
            // Where the strategy needs no permit any more, what was switched under one may stay.
            (Ask::Abandon, PermitStage::GivenUp) if self.policy.strategy != Strategy::Lock => Ok(()),
            (Ask::Abandon, PermitStage::GivenUp) => self.stays_here(),
            (Ask::Booted, PermitStage::Held | PermitStage::Unknown) if in_new_boot => Ok(()),
            (Ask::Booted, PermitStage::Unknown) => Ok(()),
            (Ask::Confirm, PermitStage::Confirmed) if running_is.successful() => Ok(()),
            (Ask::Fail { .. }, PermitStage::Failed { .. }) if in_new_boot => Ok(()),
            (_, stage) => deny(&format!("the lock is told what the record does not say ({stage:?})")),
        }
    }

    /// Who gives up stays in what runs: the flip is undone by then.
    fn stays_here(&self) -> Outcome {
        let next = select([(1, *self.table.get(Slot::A)), (2, *self.table.get(Slot::B))]);
        let next = next.map(|choice| if choice.entry == 1 { Slot::A } else { Slot::B });
        if next == Some(self.booted) {
            Ok(())
        } else {
            Err(Violation(format!("the permit is given back, and slot {next:?} boots next")))
        }
    }

    /// The lock's answer to a question.
    pub(super) fn ask_lock(&mut self, question: &Question) -> Reply {
        let (node, attempt, boot) = (node(), question.attempt.clone(), question.boot_id.clone());
        let version = question.version.clone();
        if !matches!(question.ask, Ask::Request | Ask::Verify | Ask::Booted) {
            self.lock.over.insert(attempt.clone());
        }
        let reply = self.tell_lock(&match &question.ask {
            Ask::Request => Command::Request(Request {
                node,
                attempt,
                boot,
                from: question.running.clone(),
                to: version,
                zone: None,
                etcd_member: None,
                priority: 0,
                reason: String::new(),
            }),
            Ask::Verify => Command::Verify { node, attempt, boot },
            Ask::Abandon => Command::Abandon { node, attempt, boot },
            Ask::Booted => Command::Booted { node, attempt, boot, version },
            Ask::Confirm => Command::Confirm { node, attempt, boot, version },
            Ask::Fail { reason } => Command::Fail { node, attempt, boot, reason: reason.clone() },
        });
        self.reached.insert(format!("answer {}", word(&reply)));
        if matches!((&question.ask, &reply), (Ask::Verify, Reply::Current { .. })) {
            let now = self.now;
            if let Some(process) = &mut self.process {
                process.verified = Some((question.version.clone(), now));
            }
        }
        reply
    }

    /// Under the lock: what goes down now was verified, for this version and a moment ago.
    pub(super) fn is_verified(&self, version: &Version) -> Outcome {
        if self.policy.strategy != Strategy::Lock {
            return Ok(());
        }
        let verified = self.process.as_ref().and_then(|process| process.verified.as_ref());
        let age = verified
            .filter(|(known, _)| known == version)
            .map(|(_, at)| self.now.duration_since(*at).as_secs());
        match age {
            Some(age) if (0..i64::from(self.policy.prepared_max_s)).contains(&age) => Ok(()),
            _ => Err(Violation(format!(
                "{version} is to boot without a permit that was just verified: {verified:?}"
            ))),
        }
    }

    /// The lock heard all that there is to tell, and counts this node only where its release failed.
    pub(super) fn lock_is_told(&self) -> bool {
        match self.record().permit.map(|permit| permit.stage) {
            None => !self.is_holder(),
            Some(PermitStage::Halting) => true,
            Some(_) => false,
        }
    }
}

/// The first word of a reply.
fn word(reply: &Reply) -> String {
    let text = format!("{reply:?}");
    let word = text.split([' ', '(', '{']).next().unwrap_or_default();
    match reply {
        Reply::Refused { because } => {
            let because = format!("{because:?}");
            format!("{word}-{}", because.split([' ', '{']).next().unwrap_or_default())
        }
        _ => word.to_owned(),
    }
}
