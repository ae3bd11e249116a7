//! Step 4, channel: what looks like a mistake in the names that a policy or a pause has. A name that no node has yet may be right,
//! so nothing is refused for it; but a canary group that nobody is in never lets the others follow, and a group that is misspelled
//! is not paused.

use crate::store::{Connection, StoreError, channels, nodes};
use protocol::id::{Channel, Group};
use protocol::rollout::{Rollout, RolloutFile, RolloutPolicy};

/// Of one rollout: groups that are paused, or in its policy, and that no node of the channel is in.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn of_rollout(conn: &mut Connection, rollout: &Rollout) -> Result<Vec<String>, StoreError> {
    let mut named = in_policy(&rollout.policy);
    named.extend(rollout.paused_groups.keys().map(|group| (group, "it is paused")));
    groups(conn, &rollout.channel, named).await
}

/// Of policies: channels that no node follows and that point at no release, and groups that no node of their channel is in.
///
/// # Errors
/// [`StoreError`].
pub async fn of_policies(conn: &mut Connection, file: &RolloutFile) -> Result<Vec<String>, StoreError> {
    let pointed: Vec<Channel> = channels::list(conn).await?.into_iter().map(|info| info.channel).collect();
    let mut warnings = Vec::new();
    for (channel, policy) in &file.channels {
        if !pointed.contains(channel) && nodes::groups(conn, channel).await?.is_empty() {
            warnings.push(format!(
                "no channel {channel} is known: it points at no release, and no node follows it"
            ));
        } else {
            warnings.extend(groups(conn, channel, in_policy(policy)).await?);
        }
    }
    Ok(warnings)
}

fn in_policy(policy: &RolloutPolicy) -> Vec<(&Group, &'static str)> {
    let canary = policy.canary.iter().map(|canary| (&canary.group, "the policy's canary group"));
    canary.chain(policy.groups.keys().map(|group| (group, "the policy has limits for it"))).collect()
}

async fn groups(
    conn: &mut Connection,
    channel: &Channel,
    named: Vec<(&Group, &str)>,
) -> Result<Vec<String>, StoreError> {
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let known = nodes::groups(conn, channel).await?;
    let unknown = named.into_iter().filter(|(group, _)| !known.contains(*group));
    Ok(unknown
        .map(|(group, what)| format!("no node of group {group} is known on channel {channel} ({what})"))
        .collect())
}
