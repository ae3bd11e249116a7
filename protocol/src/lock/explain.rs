//! Step 9, permit: what stands against each node, for operators.

use super::admit::{Candidate, admit, in_force};
use super::command::{Context, Wait};
use super::document::{ClientId, Document, Holder, Phase, Waiter};

/// What stands against the reboot of each holder that is to reboot yet, in the document's order; nothing means that its
/// grant would be verified now.
#[must_use]
pub fn holders_wait(document: &Document, context: &Context) -> Vec<(ClientId, Vec<Wait>)> {
    let to_reboot = document.holders.iter().filter(|holder| holder.phase == Phase::Granted);
    to_reboot
        .map(|holder| (holder.node.clone(), in_force(document, holder, context).err().unwrap_or_default()))
        .collect()
}

/// What each waiter waits for, in the document's order; nothing means that it gets a permit when it asks next.
#[must_use]
pub fn waiters_wait(document: &Document, context: &Context) -> Vec<(ClientId, Vec<Wait>)> {
    // As the queue decides: those ahead that could go are thought of as holders already.
    let mut thought =
        Document { queue: Vec::new(), finished: Vec::new(), acts: Vec::new(), ..document.clone() };
    let mut told = Vec::with_capacity(document.queue.len());
    for (ahead, waiter) in (0..).zip(&document.queue) {
        let candidate = Candidate::from(waiter);
        let queue = (ahead > 0).then_some(Wait::Queue { ahead });
        let because = match admit(document, &candidate, context) {
            Err(mut because) => {
                because.extend(queue);
                because
            }
            Ok(()) if admit(&thought, &candidate, context).is_err() => queue.into_iter().collect(),
            Ok(()) => {
                thought.holders.push(as_holder(waiter, document, context));
                Vec::new()
            }
        };
        told.push((waiter.node.clone(), because));
    }
    told
}

fn as_holder(waiter: &Waiter, document: &Document, context: &Context) -> Holder {
    Holder {
        node: waiter.node.clone(),
        attempt: waiter.attempt.clone(),
        boot_before: None,
        boot_after: None,
        from: None,
        to: waiter.to.clone(),
        zone: waiter.zone.clone(),
        etcd_member: waiter.etcd_member.clone(),
        reason: String::new(),
        grant: document.grants,
        phase: Phase::Granted,
        granted_at: context.now,
        phase_at: context.now,
        deadline: jiff::Timestamp::MAX,
        stuck_since: None,
        instead_of: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{Command, Limit, Policy, Request, apply};

    fn context() -> Context {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        Context { now, population: None, caps: Vec::new(), quorum: None }
    }

    fn ask(document: &Document, node: &str) -> Document {
        let request = Request {
            node: node.parse().unwrap(),
            attempt: format!("{node}-1").parse().unwrap(),
            boot: "boot-1".parse().unwrap(),
            from: "1.0.0".parse().unwrap(),
            to: "1.1.0".parse().unwrap(),
            zone: None,
            etcd_member: None,
            priority: 0,
            reason: String::new(),
        };
        apply(document, &Command::Request(request), &context()).document.unwrap()
    }

    #[test]
    fn those_who_may_go_are_told_apart_from_those_behind_them() {
        let document = Document::new("default".parse().unwrap(), Policy::default());
        let mut document = ["a", "b", "c", "d"].iter().fold(document, |document, node| ask(&document, node));
        let told = waiters_wait(&document, &context());
        assert_eq!(told.len(), 3);
        assert!(matches!(told[0].1[..], [Wait::Full { max: 1, .. }]), "{told:?}");
        assert!(matches!(told[2].1[..], [Wait::Full { .. }, Wait::Queue { ahead: 2 }]), "{told:?}");
        assert_eq!(holders_wait(&document, &context()), [("a".parse().unwrap(), Vec::new())]);
        document.policy.max = Limit::Count(3);
        let told = waiters_wait(&document, &context());
        let because: Vec<&[Wait]> = told.iter().map(|(_, because)| &because[..]).collect();
        assert_eq!(because, [&[][..], &[][..], &[Wait::Queue { ahead: 2 }][..]]);
        document.policy.max = Limit::Count(0);
        assert!(matches!(holders_wait(&document, &context())[0].1[..], [Wait::Full { max: 0, .. }]));
    }
}
