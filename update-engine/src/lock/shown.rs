//! Step 9, permit: a lock in lines, the same for operators and for the node itself.

use jiff::Timestamp;
use protocol::lock::{ClientId, Holder, Phase, Waiter};
use protocol::status::one_line;
use protocol::wire::{LockInfo, LockReasons};

/// What is said beside holders and waiters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks<'a> {
    /// What stands against each of them.
    pub(crate) reasons: bool,
    /// This node, which is marked with a star.
    pub(crate) own: Option<&'a ClientId>,
}

/// A lock in lines: the group, its holders, its waiters.
pub(crate) fn shown(info: &LockInfo, marks: Marks<'_>, now: Timestamp) -> String {
    let document = &info.view.document;
    let (holders, waiters) = (document.holders.len(), document.queue.len());
    let mut text = format!("{}: {holders} holding, {waiters} waiting", document.group);
    if let Some(population) = &info.view.population {
        let plural = if population.total == 1 { "" } else { "s" };
        text.push_str(&format!(", {} node{plural}", population.total));
    }
    text.push('\n');
    let mark = |node: &ClientId| if marks.own == Some(node) { '*' } else { ' ' };
    for holder in &document.holders {
        text.push_str(&format!("{} {}\n", mark(&holder.node), holder_line(holder, now)));
        if marks.reasons {
            text.push_str(&below(&holders_reasons(info, &holder.node)));
        }
    }
    for (place, waiter) in document.queue.iter().enumerate() {
        text.push_str(&format!("{} {}\n", mark(&waiter.node), waiter_line(place + 1, waiter, now)));
        if marks.reasons {
            text.push_str(&below(&waiters_reasons(info, &waiter.node)));
        }
    }
    text
}

/// Reasons below the line of a node.
fn below(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("      | {}\n", one_line(reason))).collect()
}

fn of(all: &[LockReasons], node: &ClientId) -> Vec<String> {
    let own = all.iter().filter(|reasons| reasons.node == *node);
    own.flat_map(|reasons| reasons.because.iter().cloned()).collect()
}

/// What stands against a holder's reboot.
pub(crate) fn holders_reasons(info: &LockInfo, node: &ClientId) -> Vec<String> {
    of(&info.holding, node)
}

/// What a waiter waits for; that it is nothing is said as well.
pub(crate) fn waiters_reasons(info: &LockInfo, node: &ClientId) -> Vec<String> {
    let reasons = of(&info.waiting, node);
    if reasons.is_empty() && info.waiting.iter().any(|reasons| reasons.node == *node) {
        return vec!["nothing stands against it: it gets a permit when it asks next".to_owned()];
    }
    reasons
}

/// A holder in a line.
pub(crate) fn holder_line(holder: &Holder, now: Timestamp) -> String {
    let phase = match (holder.phase, holder.attempt.is_some()) {
        (Phase::Granted, false) => "holds (FleetLock v1)",
        (Phase::Granted, true) => "makes ready",
        (Phase::Rebooting, _) => "reboots",
        (Phase::Booted, _) => "proves its health",
        (Phase::Failed, _) => "FAILED",
    };
    let mut line = format!("{}  {phase} since {}", holder.node, ago(holder.phase_at, now));
    if let Some(to) = &holder.to {
        let from = holder.from.as_ref().map_or_else(String::new, |from| format!("{from} -> "));
        line.push_str(&format!(", {from}{to}"));
    }
    if let Some(zone) = &holder.zone {
        line.push_str(&format!(", zone {zone}"));
    }
    match holder.stuck_since {
        Some(since) => line.push_str(&format!(", STUCK: silent past its deadline since {}", ago(since, now))),
        None if holder.phase == Phase::Failed => {}
        None => line.push_str(&format!(", due by {}", time(holder.deadline))),
    }
    if !holder.reason.is_empty() {
        line.push_str(&format!(" ({})", one_line(&holder.reason)));
    }
    line
}

/// A waiter in a line, with its place in the queue, from 1.
pub(crate) fn waiter_line(place: usize, waiter: &Waiter, now: Timestamp) -> String {
    let mut line = format!("{}  waits, place {place}, since {}", waiter.node, ago(waiter.since, now));
    if let Some(to) = &waiter.to {
        line.push_str(&format!(", to {to}"));
    }
    if let Some(zone) = &waiter.zone {
        line.push_str(&format!(", zone {zone}"));
    }
    if waiter.priority != 0 {
        line.push_str(&format!(", priority {}", waiter.priority));
    }
    line
}

/// A time in UTC, to the second.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time, and how long ago it was.
fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    let span = match seconds {
        ..0 => "ahead of this clock".to_owned(),
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    };
    format!("{} ({span})", time(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::lock::{Document, Policy};
    use protocol::wire::{LockView, SCHEMA};

    #[test]
    fn a_lock_shows_who_holds_who_waits_and_why_and_obeys_no_terminal() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let holder = Holder {
            node: "n1".parse().unwrap(),
            attempt: Some("a1".parse().unwrap()),
            boot_before: None,
            boot_after: None,
            from: Some("1.0".parse().unwrap()),
            to: Some("1.1".parse().unwrap()),
            zone: None,
            etcd_member: None,
            reason: "update\n\u{1b}[2J".to_owned(),
            grant: 4,
            phase: Phase::Rebooting,
            granted_at: now,
            phase_at: "2026-11-24T11:00:00Z".parse().unwrap(),
            deadline: "2026-11-24T11:30:00Z".parse().unwrap(),
            stuck_since: Some("2026-11-24T11:30:00Z".parse().unwrap()),
            instead_of: None,
        };
        let waiter = Waiter {
            node: "n2".parse().unwrap(),
            attempt: None,
            to: None,
            zone: Some("rack-1".parse().unwrap()),
            etcd_member: None,
            priority: 5,
            since: "2026-11-24T11:59:00Z".parse().unwrap(),
            seen: now,
        };
        let document = Document {
            holders: vec![holder],
            queue: vec![waiter],
            ..Document::new("default".parse().unwrap(), Policy::default())
        };
        let view = LockView { schema: SCHEMA, revision: 3, document, population: None, caps: Vec::new() };
        let waiting =
            vec![LockReasons { node: "n2".parse().unwrap(), because: vec!["halted: node n1".to_owned()] }];
        let info = LockInfo { view, holding: Vec::new(), waiting };
        let text = shown(&info, Marks { reasons: true, own: None }, now);
        assert_eq!(
            text,
            "default: 1 holding, 1 waiting\n  \
             n1  reboots since 2026-11-24T11:00:00Z (60 min ago), 1.0 -> 1.1, STUCK: silent past its deadline since \
             2026-11-24T11:30:00Z (30 min ago) (update \\u{1b}[2J)\n  \
             n2  waits, place 1, since 2026-11-24T11:59:00Z (60 s ago), zone rack-1, priority 5\n      \
             | halted: node n1\n"
        );
    }
}
