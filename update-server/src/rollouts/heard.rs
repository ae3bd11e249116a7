//! Step 4, channel: what the events of nodes make of their grants.
//!
//! An event names a node and a version, not a grant, and a node may have several for one version: a channel may be pointed back at
//! a release that it had before, and a node may change its channel. Neither the node's clock nor this server's says which one is
//! meant, so this does ([`meant`]):
//!
//! 1. The node's open grant for that version. A node goes to one version at a time, so it has one; where a grant that was thought
//!    lost came to life again beside it, the one that was given last.
//! 2. Without one, its grant for that version in a rollout that still runs, though it is closed: the node was only slow, or goes on
//!    without asking again. Of several, the one that was given last.
//! 3. Without one, its last grant for that version in a rollout that is over. It takes no failure: what fails now says nothing
//!    about a rollout that is over, and what failed then is on record.
//!
//! So a grant of an old rollout takes nothing that is about the current one. An event that arrives late, after the node was let go
//! to the same version again, counts for its open grant: nothing in it tells the two tries apart, and a failure that is counted
//! once too often only halts a rollout.

use crate::store::rollouts::{self as stored, GrantKey};
use crate::store::{Connection, StoreError};
use crate::webhooks;
use jiff::Timestamp;
use protocol::id::{Channel, NodeId};
use protocol::rollout::{Counts, Grant, Rollout, Stage, advance};
use protocol::wire::{Event, EventKind};
use std::collections::BTreeMap;

/// The rollouts that run, by their channels.
type Running = BTreeMap<Channel, Rollout>;

/// What the events of a node make of its grants, in the change that stores them; a rollout that has now failed too often is
/// halted in the same change.
///
/// # Errors
/// [`StoreError`].
pub async fn heard(
    conn: &mut Connection,
    node: &NodeId,
    events: &[Event],
    now: Timestamp,
) -> Result<(), StoreError> {
    for event in events {
        webhooks::event(conn, node, event, now).await?;
        let grants = match &event.version {
            Some(version) => stored::grants_for(conn, node, version).await?,
            // A refusal of what the node could not even look into is about what it was let go to.
            None if matches!(event.kind, EventKind::Refused | EventKind::Failed) => {
                stored::open_grants(conn, node).await?
            }
            None => Vec::new(),
        };
        // Most events change nothing.
        if grants.iter().all(|(_, grant)| grant.phase.after(event.kind).is_none()) {
            continue;
        }
        let running = running(conn, &grants).await?;
        let Some((key, grant)) = meant(&grants, &running) else { continue };
        let Some(phase) = grant.phase.after(event.kind) else { continue };
        let current = running.get(&key.channel).filter(|rollout| rollout.number == key.number);
        if current.is_none() && phase.is_failure() && !grant.phase.is_open() {
            continue;
        }
        stored::set_phase(conn, key, grant, phase, current, now).await?;
        if let Some(rollout) = current.filter(|_| phase.is_failure()) {
            step(conn, rollout, now).await?;
        }
    }
    Ok(())
}

/// The rollouts that run in the channels of grants.
async fn running(conn: &mut Connection, grants: &[(GrantKey, Grant)]) -> Result<Running, StoreError> {
    let mut running = Running::new();
    for (key, _) in grants {
        if !running.contains_key(&key.channel)
            && let Some(rollout) = stored::find(conn, &key.channel).await?
        {
            running.insert(key.channel.clone(), rollout);
        }
    }
    Ok(running)
}

/// Which of a node's grants for a version, the last one first, an event about that version means.
fn meant<'a>(grants: &'a [(GrantKey, Grant)], running: &Running) -> Option<&'a (GrantKey, Grant)> {
    let is_open = |(_, grant): &&(GrantKey, Grant)| grant.phase.is_open();
    let runs = |(key, _): &&(GrantKey, Grant)| {
        running.get(&key.channel).is_some_and(|rollout| rollout.number == key.number)
    };
    grants.iter().find(is_open).or_else(|| grants.iter().find(runs)).or_else(|| grants.first())
}

/// Halts a rollout of which a node has failed, if it has failed too often.
async fn step(conn: &mut Connection, rollout: &Rollout, now: Timestamp) -> Result<(), StoreError> {
    let mut counts = Counts { since: super::failed_since(conn, rollout).await?, ..Counts::default() };
    if matches!(rollout.open(), Stage::Canary(_)) {
        counts.stage = super::stage(conn, rollout).await?;
    }
    let next = advance(rollout, &counts, now).filter(|next| next.halted.is_some());
    match next {
        Some(next) => super::write(conn, rollout, &next, now).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::rollout::{GrantPhase, RolloutPolicy};

    #[test]
    fn an_event_is_about_the_open_grant_then_one_of_a_rollout_that_runs_then_the_last_one() {
        use GrantPhase::{Confirmed, Failed, Granted, Lost};
        let (channels, version) =
            (["stable", "beta"], "1.1.0".parse::<protocol::version::Version>().unwrap());
        let running: Running = channels
            .iter()
            .map(|channel| {
                let begun = Rollout::begin(
                    channel.parse().unwrap(),
                    version.clone(),
                    RolloutPolicy::default(),
                    None,
                    Timestamp::UNIX_EPOCH,
                );
                (begun.channel.clone(), Rollout { number: 3, ..begun })
            })
            .collect();
        let meant = |given: &[(&str, u64, GrantPhase)]| {
            let grant = |(channel, number, phase): &(&str, u64, GrantPhase)| {
                let node = "00000000000000000000000000000001".parse().unwrap();
                let key = GrantKey { channel: channel.parse().unwrap(), number: *number, node };
                let at = Timestamp::UNIX_EPOCH;
                (key, Grant { version: version.clone(), granted_at: at, phase: *phase, phase_at: at })
            };
            let grants: Vec<_> = given.iter().map(grant).collect();
            super::meant(&grants, &running).map(|(key, _)| (key.channel.to_string(), key.number))
        };
        let is = |channel: &str, number| Some((channel.to_owned(), number));
        assert_eq!(meant(&[]), None);
        // The last one that was given comes first.
        assert_eq!(meant(&[("stable", 3, Granted), ("stable", 1, Failed)]), is("stable", 3));
        assert_eq!(
            meant(&[("stable", 3, Failed), ("stable", 1, Granted)]),
            is("stable", 1),
            "it came to life"
        );
        assert_eq!(meant(&[("stable", 3, Granted), ("stable", 1, Granted)]), is("stable", 3));
        assert_eq!(meant(&[("beta", 2, Lost), ("stable", 3, Lost)]), is("stable", 3), "it runs");
        assert_eq!(meant(&[("beta", 3, Lost), ("stable", 3, Lost)]), is("beta", 3));
        assert_eq!(meant(&[("stable", 2, Lost), ("stable", 1, Confirmed)]), is("stable", 2));
    }
}
