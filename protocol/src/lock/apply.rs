//! Step 9, permit: the lock's transitions.

#![allow(
    clippy::result_large_err,
    reason = "a refusal is an answer, made once for each command, not a rare error"
)]

use super::admit::{in_force, window};
use super::command::{Command, Context, Refusal, Reply, Request};
use super::document::{
    ACTS_MAX, Act, ActKind, AttemptId, ClientId, Document, FINISHED_MAX, Finished, Holder, PROVED_MAX, Phase,
    Proved, TEXT_MAX,
};
use super::policy::{OnTrouble, Policy};
use super::queue;
use crate::id::BootId;
use crate::version::Version;
use jiff::{SignedDuration, Timestamp};

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The document to write by compare-and-swap, where the command changed it.
    pub document: Option<Document>,
    /// The answer, which holds once that write succeeded.
    pub reply: Reply,
}

/// Carries a command out. The one transition function of the lock: whoever stores documents reads one, applies, and
/// writes the result only if the stored one is still the one it read; if it is not, or the outcome of the write is
/// unknown, it reads again and applies the same command again.
///
/// The passing of time is part of every command: first the overdue holders become stuck ([`Command::Tick`] alone does
/// nothing else).
#[must_use]
pub fn apply(document: &Document, command: &Command, context: &Context) -> Applied {
    if let Command::FleetLockSteady { node } = command
        && document.holder(node).is_none()
        && document.queue.iter().all(|waiter| waiter.node != *node)
    {
        // Every v1 client says this after every boot: a whole fleet that does so writes nothing.
        return Applied { document: None, reply: Reply::Released { was_held: false } };
    }
    let mut after = document.clone();
    if !matches!(command, Command::SetPolicy { .. }) {
        expire(&mut after, context.now);
    }
    let reply = carry_out(&mut after, command, context).unwrap_or_else(|because| Reply::Refused { because });
    Applied { document: (after != *document).then_some(after), reply }
}

fn carry_out(document: &mut Document, command: &Command, context: &Context) -> Result<Reply, Refusal> {
    let now = context.now;
    match command {
        Command::Request(wish) => request(document, wish, context),
        Command::Verify { node, attempt, boot } => verify(document, node, attempt, boot, context),
        Command::Abandon { node, attempt, boot } => abandon(document, node, attempt, boot, now),
        Command::Booted { node, attempt, boot, version } => {
            booted(document, &Boot { node, attempt, boot, version }, now)
        }
        Command::Confirm { node, attempt, boot, version } => {
            confirm(document, &Boot { node, attempt, boot, version }, now)
        }
        Command::Fail { node, attempt, boot, reason } => fail(document, node, attempt, boot, reason, now),
        Command::FleetLockRequest { node } => fleet_lock_request(document, node, context),
        Command::FleetLockSteady { node } => fleet_lock_steady(document, node, now),
        Command::ForceRelease { node, grant, who, why } => {
            force_release(document, node, *grant, &Signed { who, why, now })
        }
        Command::RemoveNode { node, who, why } => {
            remove_node(document, node, &Signed { who, why, now });
            Ok(Reply::Done)
        }
        Command::SetPolicy { policy, who, why } => {
            set_policy(document, policy, &Signed { who, why, now });
            Ok(Reply::Done)
        }
        Command::Tick => Ok(Reply::Done),
    }
}

/// A node's word on a boot.
struct Boot<'a> {
    node: &'a ClientId,
    attempt: &'a AttemptId,
    boot: &'a BootId,
    version: &'a Version,
}

/// Who acts, why and when.
struct Signed<'a> {
    who: &'a str,
    why: &'a str,
    now: Timestamp,
}

// --- time

/// Marks the overdue as stuck, frees what the policy frees, and takes away the places of those that left.
///
/// A clock that jumps forward makes holders stuck that are not; they are well again with their next word. A clock that
/// jumps back makes nothing. Neither frees a permit (I4), unless the policy says that silence does.
fn expire(document: &mut Document, now: Timestamp) {
    let Policy { on_stuck, on_failed, .. } = document.policy;
    for holder in &mut document.holders {
        if holder.phase != Phase::Failed && holder.stuck_since.is_none() && holder.deadline < now {
            holder.stuck_since = Some(holder.deadline);
        }
    }
    let is_freed = |holder: &Holder| {
        (holder.stuck_since.is_some() && on_stuck == OnTrouble::Release)
            || (holder.phase == Phase::Failed && on_failed == OnTrouble::Release)
    };
    while let Some(at) = document.holders.iter().position(is_freed) {
        release(document, at, now);
    }
    queue::forget_the_gone(document, now);
}

fn after_s(now: Timestamp, seconds: u32) -> Timestamp {
    now.checked_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX)
}

/// How long a holder may be silent in a phase, in seconds. A v1 client is heard of only when it is done.
fn time_for(phase: Phase, fleet_lock: bool, policy: &Policy) -> u32 {
    match phase {
        Phase::Granted if fleet_lock => policy.granted_max_s.saturating_add(policy.rebooting_max_s),
        Phase::Granted => policy.granted_max_s,
        Phase::Rebooting | Phase::Booted | Phase::Failed => policy.rebooting_max_s,
    }
}

/// Brings a holder into a phase. One that is there already and not stuck keeps its deadline.
fn enter(document: &mut Document, at: usize, phase: Phase, now: Timestamp) {
    let holder = &mut document.holders[at];
    if holder.phase != phase || holder.stuck_since.is_some() {
        let time_s = time_for(phase, holder.attempt.is_none(), &document.policy);
        holder.deadline = after_s(now, time_s);
        holder.stuck_since = None;
    }
    if holder.phase != phase {
        holder.phase = phase;
        holder.phase_at = now;
    }
}

/// A word of a holder: it is not stuck.
fn heard(document: &mut Document, at: usize, now: Timestamp) {
    let phase = document.holders[at].phase;
    enter(document, at, phase, now);
}

// --- looking up

fn position(document: &Document, node: &ClientId) -> Option<usize> {
    document.holders.iter().position(|holder| holder.node == *node)
}

/// Where the permit for an attempt is.
fn held(document: &Document, node: &ClientId, attempt: &AttemptId) -> Result<usize, Refusal> {
    let at = position(document, node).ok_or(Refusal::NotHeld { holder: None })?;
    match &document.holders[at].attempt {
        Some(known) if known == attempt => Ok(at),
        other => Err(Refusal::NotHeld { holder: other.clone() }),
    }
}

fn is_finished(document: &Document, node: &ClientId, attempt: &AttemptId) -> bool {
    document.finished.iter().any(|finished| finished.node == *node && finished.attempt == *attempt)
}

impl Holder {
    /// Whether the node is still in the boot in which it was granted, by the boot that it names and by the record.
    fn is_before_reboot(&self, boot: &BootId) -> bool {
        matches!(self.phase, Phase::Granted | Phase::Rebooting) && self.boot_before.as_ref() == Some(boot)
    }

    /// I5: only another boot than that of the grant ends the reboot.
    fn must_be_rebooted(&self, boot: &BootId) -> Result<(), Refusal> {
        if self.boot_before.as_ref() == Some(boot) { Err(Refusal::SameBoot) } else { Ok(()) }
    }

    /// The permit of this node whose release failed, and was not made good since.
    fn failed_permit(&self) -> Option<&Self> {
        if self.phase == Phase::Failed { Some(self) } else { self.instead_of.as_deref() }
    }

    fn must_run(&self, version: &Version) -> Result<(), Refusal> {
        match &self.to {
            Some(expected) if expected != version => {
                Err(Refusal::OtherVersion { expected: expected.clone(), found: version.clone() })
            }
            _ => Ok(()),
        }
    }
}

// --- records

/// Ends an attempt, and its place in the queue.
fn finish(document: &mut Document, node: &ClientId, attempt: Option<&AttemptId>, now: Timestamp) {
    document.queue.retain(|waiter| waiter.node != *node || waiter.attempt.as_ref() != attempt);
    if let Some(attempt) = attempt {
        remember(document, node, attempt, now);
    }
}

/// Remembers that an attempt is over, so that no late request for it acquires again.
fn remember(document: &mut Document, node: &ClientId, attempt: &AttemptId, now: Timestamp) {
    if !is_finished(document, node, attempt) {
        document.finished.push(Finished { node: node.clone(), attempt: attempt.clone(), at: now });
        keep_last(&mut document.finished, FINISHED_MAX);
    }
}

fn release(document: &mut Document, at: usize, now: Timestamp) -> Holder {
    let holder = document.holders.remove(at);
    finish(document, &holder.node, holder.attempt.as_ref(), now);
    holder
}

fn record(document: &mut Document, kind: ActKind, signed: &Signed<'_>) {
    document.acts.push(Act { at: signed.now, who: shortened(signed.who), kind, why: shortened(signed.why) });
    keep_last(&mut document.acts, ACTS_MAX);
}

fn keep_last<T>(list: &mut Vec<T>, max: usize) {
    list.drain(..list.len().saturating_sub(max));
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_MAX)].to_owned()
}

// --- commands of nodes

/// The permit that a request would become.
fn wanted(request: &Request, policy: &Policy, now: Timestamp) -> Holder {
    Holder {
        node: request.node.clone(),
        attempt: Some(request.attempt.clone()),
        boot_before: Some(request.boot.clone()),
        boot_after: None,
        from: Some(request.from.clone()),
        to: Some(request.to.clone()),
        zone: request.zone.clone(),
        etcd_member: request.etcd_member.clone(),
        reason: shortened(&request.reason),
        grant: 0,
        phase: Phase::Granted,
        granted_at: now,
        phase_at: now,
        deadline: after_s(now, time_for(Phase::Granted, false, policy)),
        stuck_since: None,
        instead_of: None,
    }
}

fn request(document: &mut Document, request: &Request, context: &Context) -> Result<Reply, Refusal> {
    if is_finished(document, &request.node, &request.attempt) {
        return Err(Refusal::AttemptOver);
    }
    let wanted = wanted(request, &document.policy, context.now);
    match position(document, &request.node) {
        Some(at) => request_by_holder(document, at, wanted, context),
        None => Ok(ask(document, wanted, request.priority, context)),
    }
}

/// A node that does not hold asks. An attempt for which it waited before is over: the new one inherits its place.
fn ask(document: &mut Document, wanted: Holder, priority: i32, context: &Context) -> Reply {
    let place = document.queue.iter().find(|waiter| waiter.node == wanted.node);
    let superseded =
        place.and_then(|waiter| waiter.attempt.clone()).filter(|old| wanted.attempt.as_ref() != Some(old));
    if let Some(superseded) = &superseded {
        remember(document, &wanted.node, superseded, context.now);
    }
    match queue::turn(document, &wanted, priority, context) {
        Ok(()) => grant(document, None, wanted),
        Err(wait) => wait,
    }
}

/// Makes a permit, a new one or in place of the one that the node holds.
fn grant(document: &mut Document, instead_of: Option<usize>, wanted: Holder) -> Reply {
    document.grants += 1;
    let holder = Holder { grant: document.grants, ..wanted };
    match instead_of {
        Some(at) => document.holders[at] = holder.clone(),
        None => document.holders.push(holder.clone()),
    }
    Reply::Granted { holder: Box::new(holder) }
}

/// A node that holds a permit asks.
fn request_by_holder(
    document: &mut Document,
    at: usize,
    wanted: Holder,
    context: &Context,
) -> Result<Reply, Refusal> {
    let now = context.now;
    let holder = &document.holders[at];
    let is_before_reboot = wanted.boot_before.as_ref().is_some_and(|boot| holder.is_before_reboot(boot));
    if holder.attempt == wanted.attempt {
        if !is_before_reboot {
            return Err(Refusal::Rebooted);
        }
        heard(document, at, now);
        return Ok(Reply::Granted { holder: Box::new(document.holders[at].clone()) });
    }
    let failed = holder.failed_permit().and_then(|failed| failed.to.as_ref());
    if let Some(failed) = failed.filter(|failed| wanted.to.as_ref() == Some(failed)) {
        return Err(Refusal::SameRelease { version: failed.clone() });
    }
    if holder.phase == Phase::Failed {
        if let Some(closed) = window(&document.policy, context) {
            let because = vec![closed];
            let retry_after_s = queue::hint(&because, 0, &wanted.node, now);
            return Ok(Reply::Wait { because, retry_after_s });
        }
    } else if !is_before_reboot && holder.attempt.is_some() {
        return Err(Refusal::Rebooted);
    }
    // A failed permit goes over to another release. Or the node lost its record in the same boot; or it was a v1 client.
    // It is the same permit of the same node, so nothing is counted again; but the old attempt's reboot is no longer
    // covered. That it failed stays known until another release is confirmed.
    let instead_of = holder.failed_permit().cloned().map(Box::new);
    let wanted = Holder { instead_of, ..wanted };
    let holder = &document.holders[at];
    if let Some(old) = holder.attempt.clone() {
        remember(document, &wanted.node, &old, now);
    }
    Ok(grant(document, Some(at), wanted))
}

/// I6: the last question before a reboot.
fn verify(
    document: &mut Document,
    node: &ClientId,
    attempt: &AttemptId,
    boot: &BootId,
    context: &Context,
) -> Result<Reply, Refusal> {
    let at = held(document, node, attempt)?;
    let holder = &document.holders[at];
    if let Some(expected) = holder.boot_before.as_ref().filter(|expected| *expected != boot) {
        return Err(Refusal::OtherBoot { expected: expected.clone(), found: boot.clone() });
    }
    if !holder.is_before_reboot(boot) {
        return Err(Refusal::Rebooted);
    }
    let verdict = in_force(document, holder, context);
    if let Err(because) = verdict {
        heard(document, at, context.now);
        let retry_after_s = queue::hint(&because, 0, node, context.now);
        return Ok(Reply::Wait { because, retry_after_s });
    }
    enter(document, at, Phase::Rebooting, context.now);
    Ok(Reply::Current { deadline: document.holders[at].deadline })
}

fn abandon(
    document: &mut Document,
    node: &ClientId,
    attempt: &AttemptId,
    boot: &BootId,
    now: Timestamp,
) -> Result<Reply, Refusal> {
    let Ok(at) = held(document, node, attempt) else { return Ok(over(document, node, attempt, now)) };
    if !document.holders[at].is_before_reboot(boot) {
        return Err(Refusal::Rebooted);
    }
    if let Some(failed) = document.holders[at].instead_of.take() {
        // Nothing was confirmed: the node's failure halts its group as before. Of this attempt nothing is held, which is
        // also what it hears if it says so again.
        document.holders[at] = *failed;
        return Ok(over(document, node, attempt, now));
    }
    release(document, at, now);
    Ok(Reply::Released { was_held: true })
}

/// The node says that an attempt is over for which it holds nothing: it waited, or an operator took the permit.
fn over(document: &mut Document, node: &ClientId, attempt: &AttemptId, now: Timestamp) -> Reply {
    finish(document, node, Some(attempt), now);
    Reply::Released { was_held: false }
}

/// The permit that a node's word on a new boot is about.
fn rebooted(document: &Document, word: &Boot<'_>) -> Result<usize, Refusal> {
    let at = held(document, word.node, word.attempt)?;
    let holder = &document.holders[at];
    holder.must_be_rebooted(word.boot)?;
    if holder.phase == Phase::Failed {
        return Err(Refusal::AttemptOver);
    }
    holder.must_run(word.version)?;
    Ok(at)
}

fn booted(document: &mut Document, word: &Boot<'_>, now: Timestamp) -> Result<Reply, Refusal> {
    let at = rebooted(document, word)?;
    enter(document, at, Phase::Booted, now);
    document.holders[at].boot_after = Some(word.boot.clone());
    Ok(Reply::Noted)
}

fn confirm(document: &mut Document, word: &Boot<'_>, now: Timestamp) -> Result<Reply, Refusal> {
    let reply = match rebooted(document, word) {
        Ok(at) => {
            release(document, at, now);
            Reply::Released { was_held: true }
        }
        Err(Refusal::NotHeld { .. }) => over(document, word.node, word.attempt, now),
        Err(refusal) => return Err(refusal),
    };
    prove(document, word, now);
    Ok(reply)
}

/// A canary's confirmation opens the release to the others. It counts without a permit too: a canary that lost its own,
/// or came up in the release before it had one, will not ask for that release again.
fn prove(document: &mut Document, word: &Boot<'_>, now: Timestamp) {
    let is_known = document.proved.iter().any(|proved| proved.version == *word.version);
    if document.policy.canaries.contains(word.node) && !is_known {
        document.proved.push(Proved { version: word.version.clone(), node: word.node.clone(), at: now });
        keep_last(&mut document.proved, PROVED_MAX);
    }
}

fn fail(
    document: &mut Document,
    node: &ClientId,
    attempt: &AttemptId,
    boot: &BootId,
    reason: &str,
    now: Timestamp,
) -> Result<Reply, Refusal> {
    let Ok(at) = held(document, node, attempt) else { return Ok(over(document, node, attempt, now)) };
    document.holders[at].must_be_rebooted(boot)?;
    if document.policy.on_failed == OnTrouble::Release {
        release(document, at, now);
        return Ok(Reply::Released { was_held: true });
    }
    if document.holders[at].phase != Phase::Failed {
        enter(document, at, Phase::Failed, now);
        let holder = &mut document.holders[at];
        holder.boot_after = Some(boot.clone());
        holder.reason = shortened(reason);
        holder.instead_of = None;
    }
    Ok(Reply::Noted)
}

// --- FleetLock v1

fn fleet_lock_request(document: &mut Document, node: &ClientId, context: &Context) -> Result<Reply, Refusal> {
    let Some(at) = position(document, node) else {
        let wanted = Holder {
            node: node.clone(),
            attempt: None,
            boot_before: None,
            boot_after: None,
            from: None,
            to: None,
            zone: None,
            etcd_member: None,
            reason: "FleetLock v1".to_owned(),
            grant: 0,
            phase: Phase::Granted,
            granted_at: context.now,
            phase_at: context.now,
            deadline: after_s(context.now, time_for(Phase::Granted, true, &document.policy)),
            stuck_since: None,
            instead_of: None,
        };
        return Ok(ask(document, wanted, 0, context));
    };
    if document.holders[at].attempt.is_some() {
        return Err(Refusal::HeldByAttempt);
    }
    heard(document, at, context.now);
    Ok(Reply::Granted { holder: Box::new(document.holders[at].clone()) })
}

fn fleet_lock_steady(document: &mut Document, node: &ClientId, now: Timestamp) -> Result<Reply, Refusal> {
    let Some(at) = position(document, node) else {
        finish(document, node, None, now);
        return Ok(Reply::Released { was_held: false });
    };
    if document.holders[at].attempt.is_some() {
        return Err(Refusal::HeldByAttempt);
    }
    release(document, at, now);
    Ok(Reply::Released { was_held: true })
}

// --- commands of operators

fn force_release(
    document: &mut Document,
    node: &ClientId,
    grant: u64,
    signed: &Signed<'_>,
) -> Result<Reply, Refusal> {
    let is_this = |act: &Act| matches!(&act.kind, ActKind::ForceRelease { node: n, grant: g, .. } if n == node && *g == grant);
    if document.acts.iter().any(is_this) {
        return Ok(Reply::Done);
    }
    let at = position(document, node).ok_or(Refusal::NotHeld { holder: None })?;
    let found = document.holders[at].grant;
    if found != grant {
        return Err(Refusal::GrantChanged { expected: grant, found });
    }
    let Holder { attempt, phase, .. } = release(document, at, signed.now);
    record(document, ActKind::ForceRelease { node: node.clone(), attempt, grant, phase }, signed);
    Ok(Reply::Done)
}

fn remove_node(document: &mut Document, node: &ClientId, signed: &Signed<'_>) {
    let holder = position(document, node).map(|at| release(document, at, signed.now));
    let place =
        document.queue.iter().position(|waiter| waiter.node == *node).map(|at| document.queue.remove(at));
    if let Some(attempt) = place.as_ref().and_then(|place| place.attempt.as_ref()) {
        remember(document, node, attempt, signed.now);
    }
    if holder.is_some() || place.is_some() {
        let phase = holder.as_ref().map(|holder| holder.phase);
        let attempt =
            holder.and_then(|holder| holder.attempt).or_else(|| place.and_then(|place| place.attempt));
        record(document, ActKind::RemoveNode { node: node.clone(), attempt, phase }, signed);
    }
}

/// Holders stay above a lower limit, which grants nothing until their number is below it (I1). Those in trouble go at once
/// where the new policy says so; the old one has nothing to say any more.
fn set_policy(document: &mut Document, policy: &Policy, signed: &Signed<'_>) {
    if document.policy != *policy {
        document.policy = policy.clone();
        queue::rank_by_policy(document);
        record(document, ActKind::SetPolicy, signed);
    }
    expire(document, signed.now);
}
