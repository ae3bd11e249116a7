//! Documents for the model: without what differs and means nothing, and as short keys.

use super::{at, number};
use jiff::Timestamp;
use protocol::lock::{Document, Phase};

/// A document without what no transition here goes by: times already spent, numbers of grants, records of operators.
pub fn plain(mut document: Document) -> Document {
    document.grants = 0;
    document.acts.clear();
    document.finished.sort_by(|a, b| (&a.node, &a.attempt).cmp(&(&b.node, &b.attempt)));
    for finished in &mut document.finished {
        finished.at = at(0);
    }
    document.holders.sort_by(|a, b| a.node.cmp(&b.node));
    for holder in &mut document.holders {
        holder.grant = 0;
        holder.granted_at = at(0);
        holder.phase_at = at(0);
        if holder.stuck_since.is_some() {
            holder.deadline = at(0);
            holder.stuck_since = Some(at(0));
        }
        if holder.phase == Phase::Failed {
            holder.deadline = Timestamp::MAX;
        }
    }
    for waiter in &mut document.queue {
        waiter.since = at(0);
    }
    document
}

/// All that [`plain`] leaves, as numbers.
pub fn key(document: &Document) -> Vec<u16> {
    let seconds = |time: Timestamp| {
        u16::try_from((time.as_second() - at(0).as_second()).clamp(-30_000, 30_000) + 30_000).unwrap()
    };
    let node = |id: &str| id[1..].split('.').next().unwrap().parse::<u16>().unwrap();
    let mut key = Vec::with_capacity(64);
    for holder in &document.holders {
        let boots = [&holder.boot_before, &holder.boot_after];
        key.extend([1, node(holder.node.as_str()), number(holder.attempt.as_ref().unwrap().as_str())]);
        // A mutation makes up a boot id without a number.
        key.extend(boots.map(|boot| {
            boot.as_ref()
                .map_or(1000, |boot| if boot.as_str() == "another" { 1001 } else { number(boot.as_str()) })
        }));
        key.extend([number(holder.to.as_ref().unwrap().as_str()), holder.phase as u16]);
        key.extend([seconds(holder.deadline), u16::from(holder.stuck_since.is_some())]);
    }
    for waiter in &document.queue {
        let attempt = number(waiter.attempt.as_ref().unwrap().as_str());
        key.extend([2, node(waiter.node.as_str()), attempt, seconds(waiter.seen)]);
    }
    for finished in &document.finished {
        key.extend([3, node(finished.node.as_str()), number(finished.attempt.as_str())]);
    }
    key
}
