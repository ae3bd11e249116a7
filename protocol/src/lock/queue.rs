//! Step 9, permit: who is next, and when to ask again.

#![allow(
    clippy::result_large_err,
    reason = "to wait is an answer, made once for each command, not a rare error"
)]

use super::admit::{Candidate, admit};
use super::command::{Context, Reply, Wait};
use super::document::{ClientId, Document, Holder, QUEUE_MAX, Waiter};
use jiff::Timestamp;
use std::cmp::Reverse;

/// A waiter that was not seen for so long loses its place, in seconds.
const WAITER_MAX_S: i64 = 15 * 60;
/// How often [`Waiter::seen`] is written at most, in seconds: asking again does not write each time.
const SEEN_EVERY_S: i64 = 5 * 60;
/// When the head of the queue asks again, and how much later each one behind it, in seconds.
const HINT_STEP_S: u64 = 15;
/// The longest hint while others are ahead, in seconds.
const HINT_MAX_S: u64 = 4 * 60;
/// The longest hint while no window is open, in seconds. With the spread it stays well below [`WAITER_MAX_S`], so that
/// who does as it is told keeps its place.
const HINT_WINDOW_MAX_S: u64 = 8 * 60;

/// A wish as a place in the queue: from now on, or with the time it has waited already.
fn place_of(document: &Document, wish: &Holder, priority: i32, now: Timestamp) -> Waiter {
    let known = document.queue.iter().find(|waiter| waiter.node == wish.node);
    Waiter {
        node: wish.node.clone(),
        attempt: wish.attempt.clone(),
        to: wish.to.clone(),
        zone: wish.zone.clone(),
        etcd_member: wish.etcd_member.clone(),
        priority: document.policy.priorities.get(&wish.node).copied().unwrap_or(priority),
        since: known.map_or(now, |known| known.since),
        seen: known.map_or(now, |known| known.seen),
    }
}

/// What a wish is told: nothing if it may hold a permit now, or else why it waits, with its place taken or kept.
///
/// Those before it come first, each one that could itself be granted: they are thought of as holders already, one by one.
/// So nobody passes a waiter that could go, and nobody waits for one that could not.
pub(super) fn turn(
    document: &mut Document,
    wish: &Holder,
    priority: i32,
    context: &Context,
) -> Result<(), Reply> {
    let waiter = place_of(document, wish, priority, context.now);
    let has_place = take_place(document, waiter.clone(), context.now);
    let is_ahead = |other: &&Waiter| other.priority >= waiter.priority;
    let ahead: Vec<&Waiter> =
        document.queue.iter().take_while(|other| other.node != waiter.node).filter(is_ahead).collect();
    let verdict = admit(document, &Candidate::from(&waiter), context)
        .and_then(|()| leave_for_those_ahead(document, &ahead, &waiter, wish, context));
    let Err(mut because) = verdict else {
        document.queue.retain(|other| other.node != waiter.node);
        return Ok(());
    };
    let ahead = count(&ahead);
    if ahead > 0 && !because.iter().any(|wait| matches!(wait, Wait::Queue { .. })) {
        because.push(Wait::Queue { ahead });
    }
    if !has_place {
        because.push(Wait::QueueFull);
    }
    let retry_after_s = hint(&because, ahead, &wish.node, context.now);
    Err(Reply::Wait { because, retry_after_s })
}

fn count(ahead: &[&Waiter]) -> u32 {
    u32::try_from(ahead.len()).unwrap_or(u32::MAX)
}

/// Whether a permit is left when those ahead have taken theirs.
fn leave_for_those_ahead(
    document: &Document,
    ahead: &[&Waiter],
    waiter: &Waiter,
    wish: &Holder,
    context: &Context,
) -> Result<(), Vec<Wait>> {
    if ahead.is_empty() {
        return Ok(());
    }
    let mut thought =
        Document { queue: Vec::new(), finished: Vec::new(), acts: Vec::new(), ..document.clone() };
    for other in ahead {
        if admit(&thought, &Candidate::from(*other), context).is_err() {
            continue;
        }
        thought.holders.push(Holder {
            node: other.node.clone(),
            attempt: other.attempt.clone(),
            to: other.to.clone(),
            zone: other.zone.clone(),
            etcd_member: other.etcd_member.clone(),
            ..wish.clone()
        });
        if admit(&thought, &Candidate::from(waiter), context).is_err() {
            return Err(vec![Wait::Queue { ahead: count(ahead) }]);
        }
    }
    Ok(())
}

/// Takes or keeps the place: behind all that came before, of the same priority or a higher one. That is the queue's own
/// order and not one by time, which a clock that goes back would turn around. False: there is no place left.
fn take_place(document: &mut Document, mut waiter: Waiter, now: Timestamp) -> bool {
    if now.duration_since(waiter.seen).as_secs() >= SEEN_EVERY_S {
        waiter.seen = now;
    }
    let known = document.queue.iter().position(|known| known.node == waiter.node);
    if let Some(known) = known {
        if document.queue[known].priority == waiter.priority {
            document.queue[known] = waiter;
            return true;
        }
        document.queue.remove(known);
    }
    if document.queue.len() >= QUEUE_MAX {
        return false;
    }
    let behind = document.queue.iter().rposition(|other| other.priority >= waiter.priority);
    document.queue.insert(behind.map_or(0, |behind| behind + 1), waiter);
    true
}

/// Puts the waiters in the order that a new policy gives them. One whose priority it no longer names keeps its place until
/// it asks again, with a priority of its own.
pub(super) fn rank_by_policy(document: &mut Document) {
    for waiter in &mut document.queue {
        if let Some(priority) = document.policy.priorities.get(&waiter.node) {
            waiter.priority = *priority;
        }
    }
    document.queue.sort_by_key(|waiter| Reverse(waiter.priority));
}

/// Takes away the places of those that stopped asking. A time that lies ahead, after the clock went back, counts from
/// now: it would keep a place for as long as the clock needs to catch up.
pub(super) fn forget_the_gone(document: &mut Document, now: Timestamp) {
    document.queue.retain(|waiter| now.duration_since(waiter.seen).as_secs() <= WAITER_MAX_S);
    for waiter in &mut document.queue {
        waiter.seen = waiter.seen.min(now);
    }
}

/// When to ask again, in seconds: the head soon, the others later by their place, each node a little apart from others.
pub(super) fn hint(because: &[Wait], ahead: u32, node: &ClientId, now: Timestamp) -> u32 {
    let by_place = HINT_STEP_S.saturating_mul(u64::from(ahead) + 1).min(HINT_MAX_S);
    let until_open = |opens: &Option<Timestamp>| {
        let wait_s =
            opens.map_or(HINT_WINDOW_MAX_S, |at| at.duration_since(now).as_secs().max(0).unsigned_abs());
        (wait_s + by_place - HINT_STEP_S).min(HINT_WINDOW_MAX_S)
    };
    let opening = because.iter().find_map(|wait| match wait {
        Wait::Window { opens } => Some(until_open(opens)),
        _ => None,
    });
    let base = opening.map_or(by_place, |until| until.max(HINT_STEP_S));
    u32::try_from(base + spread(node) % (base / 4)).unwrap_or(u32::MAX)
}

/// A number that differs between nodes and stays the same for each (FNV-1a).
fn spread(node: &ClientId) -> u64 {
    node.as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
