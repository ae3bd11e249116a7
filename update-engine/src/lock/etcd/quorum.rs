//! Step 9, permit: which voting members of the cluster answer, for policies that guard its quorum.

use super::gateway::Gateway;
use super::wire::{Member, MemberStatus, Members};
use crate::lock::error::LockError;
use futures::future::join_all;
use protocol::lock::QuorumHealth;
use reqwest::Url;
use std::collections::BTreeMap;

/// Asks the cluster for its voting members, and each of them whether it is well, all at once. One that cannot be reached
/// from here counts as down: it may be, and then it must not be made worse. None where there is no voting member at all.
pub(super) async fn health(gateway: &Gateway) -> Result<Option<QuorumHealth>, LockError> {
    let Members { members } = gateway.query("v3/cluster/member/list").await?;
    let voting: Vec<Member> = members.into_iter().filter(|member| !member.is_learner).collect();
    let answers = join_all(voting.iter().map(|member| answers(gateway, member))).await;
    let mut health = BTreeMap::new();
    for (member, answers) in voting.iter().zip(answers) {
        let is_unique = voting.iter().filter(|other| other.name == member.name).count() == 1;
        // A name that two members share tells nobody which of them a node is; it then counts as any member.
        let name = if is_unique && !member.name.is_empty() {
            member.name.clone()
        } else {
            format!("{} {:x}", member.name, member.id.0)
        };
        health.insert(name, answers);
    }
    Ok((!health.is_empty()).then_some(QuorumHealth { members: health }))
}

async fn answers(gateway: &Gateway, member: &Member) -> bool {
    for url in member.client_urls.iter().filter_map(|url| url.parse::<Url>().ok()) {
        match gateway.query_at::<MemberStatus>(&url, "v3/maintenance/status").await {
            Ok(status) if status.leader.0 != 0 && status.errors.is_empty() => return true,
            Ok(_) => tracing::info!("etcd member {} at {url} is not well", member.name),
            Err(error) => {
                tracing::info!("etcd member {} counts as down: {}", member.name, crate::error::chain(&error));
            }
        }
    }
    false
}
