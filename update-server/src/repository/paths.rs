//! Step 4, channel: what is looked at before a channel is pointed at a release: whether its nodes have a way there, and whether
//! the release has proved itself where it is promoted from.

use crate::decision::{self, Published};
use crate::store::{Connection, StoreError, nodes, rollouts};
use jiff::{SignedDuration, Timestamp};
use protocol::id::Channel;
use protocol::rollout::Share;
use protocol::version::Version;
use protocol::wire::{Decision, OnDeadEnd};

/// Nodes not heard of for so long are not waited for.
pub const LIVE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How many versions are named before the rest is counted.
const NAMED: usize = 3;

/// Which live nodes of a channel would have no way to the release that it is about to point at, in one line; none where all
/// have. Nodes on dead ends are known to be left, and told apart.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn left_behind(
    conn: &mut Connection,
    next: &Published,
    channel: &Channel,
    now: Timestamp,
) -> Result<(Option<String>, Vec<OnDeadEnd>), StoreError> {
    let Some(target) = next.channels.get(channel) else { return Ok((None, Vec::new())) };
    let since = now.saturating_sub(LIVE).unwrap_or(Timestamp::MIN);
    let (mut left, mut on_dead_ends) = (Vec::new(), Vec::new());
    for (arch, version, nodes) in nodes::versions(conn, channel, since).await? {
        let answer = decision::decide(next, channel, &arch, &version);
        let runs_it = version.ranks_like(target);
        if let Some(why) = next.dead_end(&version, &arch).filter(|_| version != *target) {
            on_dead_ends.push(OnDeadEnd { why: why.to_owned(), version, arch, nodes });
        } else if answer.decision == Decision::None && !runs_it {
            left.push((nodes, format!("{nodes} on {version} for {arch} ({})", answer.reason)));
        }
    }
    let all: u32 = left.iter().map(|(nodes, _)| *nodes).fold(0, u32::saturating_add);
    if all == 0 {
        return Ok((None, on_dead_ends));
    }
    let named: Vec<&str> = left.iter().take(NAMED).map(|(_, line)| line.as_str()).collect();
    let more = left.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(", and {more} more versions") };
    let line = format!(
        "{all} nodes of {channel} would have no way to {target}: {}{more}; push what they need first, or leave them where they \
         are with --leave-behind",
        named.join(", ")
    );
    Ok((Some(line), on_dead_ends))
}

/// Why a release of `from` is not promoted to `to`: all that its promotion gate, if it has one, finds missing, and, whatever the
/// policy says, a halt or a pause of its rollout on `from`. Each in one line; nothing where it may be.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn closed_gate(
    conn: &mut Connection,
    from: &Channel,
    to: &Channel,
    version: &Version,
    now: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let gate = rollouts::policy(conn, to).await?.promotion;
    let rollout = rollouts::find(conn, from).await?.filter(|rollout| rollout.version == *version);
    let Some(rollout) = rollout else {
        return Ok(gate.map(|_| format!("{from} had no rollout of {version}")).into_iter().collect());
    };
    let mut closed = Vec::new();
    for (what, stop) in [("halted", &rollout.halted), ("paused", &rollout.paused)] {
        if let Some(stop) = stop {
            closed.push(format!("the rollout on {from} is {what} ({})", stop.why));
        }
    }
    let Some(gate) = gate else { return Ok(closed) };
    let (ended, _) = rollouts::ended(conn, &rollout, false).await?;
    let soaked = rollout.began_at.checked_add(SignedDuration::from_secs(gate.soak_s.into()));
    if let Some(until) = soaked.ok().filter(|until| *until > now) {
        closed.push(format!("{from} must have {version} until {until:.0}"));
    }
    if ended.confirmed < gate.nodes {
        let found = ended.confirmed;
        closed.push(format!("{found} nodes of {from} have confirmed {version}, and {} must", gate.nodes));
    }
    if !gate.healthy.is_reached_by(ended.confirmed, ended.ended()) {
        let healthy = Share::of(ended.confirmed, ended.ended());
        closed.push(format!(
            "{healthy} of the nodes of {from} are well with {version}, and {} must be",
            gate.healthy
        ));
    }
    Ok(closed)
}
