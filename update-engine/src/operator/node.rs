//! Steps 4 and 12: `updatectl node` and `updatectl audit`: what a server knows of its nodes and of its changes.

use super::{Client, OperatorError, ask, print_json, say, tell};
use crate::lock::shown::holder_line;
use clap::Subcommand;
use jiff::Timestamp;
use protocol::id::{Channel, Group, NodeId};
use protocol::lock::ClientId;
use protocol::status::{Exit, lines, one_line};
use protocol::version::Version;
use protocol::wire::{
    AuditLog, Event, LockList, NodeGroup, NodeInfo, NodeList, NodeRemove, NodeRevoke, NodeRevoked, NodeShow,
    QUARANTINE_MAX, SCHEMA,
};
use reqwest::Method;
use serde_json::json;

/// Commands about nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes, by last contact.
    List {
        /// How many to show.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// How many to leave out before.
        #[arg(long, default_value_t = 0)]
        skip: u32,
        /// Only those that follow this channel.
        #[arg(long)]
        channel: Option<Channel>,
        /// Only those in this group.
        #[arg(long)]
        group: Option<Group>,
        /// Only those that run this version, as it is spelled.
        #[arg(long)]
        version: Option<Version>,
    },
    /// Show one node and what it reported.
    Show {
        /// Its id: 32 hexadecimal digits.
        node: NodeId,
    },
    /// Say why a node is or is not let go to its channel's release now: all reasons, what to act on first. Ends with 0 where
    /// it may go, 3 where it has nothing to do, 4 where it waits.
    Explain {
        /// Its id: 32 hexadecimal digits.
        node: NodeId,
    },
    /// Forget a node's credential: the next one that it shows counts. For a node that lost its state or was installed
    /// anew.
    ResetCredential {
        /// Its id.
        node: ClientId,
    },
    /// Place a node in a group, whatever it says itself: rollouts and lists go by it. Locks go by lock.group on the node.
    SetGroup {
        /// Its id: 32 hexadecimal digits.
        node: NodeId,
        /// The group.
        #[arg(required_unless_present = "clear")]
        group: Option<Group>,
        /// Let the node's own word count again, instead.
        #[arg(long, conflicts_with = "group")]
        clear: bool,
    },
    /// Hear a node no more, until it is reinstated: it gets no answer and no permit, and those that it has are freed.
    Revoke {
        /// Its id.
        node: ClientId,
        /// Why, for the node, for operators and for the audit log.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Hear a node again that was revoked, with the credential that it had.
    Reinstate {
        /// Its id.
        node: ClientId,
    },
    /// A node is gone for good: forget it, and free its permits and places in the queues of locks.
    Remove {
        /// Its id.
        node: ClientId,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(command: NodeCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    match command {
        NodeCommand::List { limit, skip, channel, group, version } => {
            let mut path = format!("api/v1/nodes?limit={limit}&skip={skip}");
            path.extend(channel.map(|channel| format!("&channel={channel}")));
            path.extend(group.map(|group| format!("&group={group}")));
            path.extend(version.map(|version| format!("&version={version}")));
            let list: NodeList = client.get(&path).await?;
            if json {
                print_json(&list)?;
            } else {
                print_heading()?;
                list.nodes.iter().try_for_each(print_node)?;
            }
        }
        NodeCommand::Show { node } => {
            let show: NodeShow = client.get(&format!("api/v1/nodes/{node}")).await?;
            if json {
                print_json(&show)?;
            } else {
                print_heading()?;
                print_node(&show.node)?;
                about(&show.node).iter().try_for_each(|line| say(format_args!("  {line}")))?;
                quarantine(&show.node).map_or(Ok(()), |line| say(format_args!("{line}")))?;
                if !show.events.is_empty() {
                    say(format_args!("  {:20}  EVENT", "AT"))?;
                }
                show.events.iter().try_for_each(|event| say(format_args!("{}", shown(event).trim_end())))?;
            }
        }
        NodeCommand::Explain { node } => return super::rollout::explain(client, &node, json).await,
        NodeCommand::ResetCredential { node } => {
            client.delete(&format!("api/v1/nodes/{}/credential", segment(&node))).await?;
            print_done(&node, "may show a new credential", json)?;
        }
        NodeCommand::SetGroup { node, group, clear: _ } => set_group(client, &node, group, json).await?,
        NodeCommand::Revoke { node, reason, yes } => return revoke(client, &node, reason, yes, json).await,
        NodeCommand::Reinstate { node } => {
            client.delete(&format!("api/v1/nodes/{}/revocation", segment(&node))).await?;
            print_done(&node, "is heard again", json)?;
        }
        NodeCommand::Remove { node, why, yes } => {
            tell_permits(client, &node).await?;
            tell(format_args!(
                "{node} will be forgotten, and its permits and places in queues freed: make sure that it is gone for good"
            ));
            ask("remove it?", yes)?;
            let body = NodeRemove { schema: SCHEMA, why };
            client.post(&format!("api/v1/nodes/{}/remove", segment(&node)), &body).await?;
            print_done(&node, "is removed", json)?;
        }
    }
    Ok(Exit::Done)
}

/// Shows the permits that a node holds, before they are taken away.
async fn tell_permits(client: &Client, node: &ClientId) -> Result<(), OperatorError> {
    let LockList { locks, .. } = client.get("api/v1/locks").await?;
    for holder in locks.iter().filter_map(|info| info.view.document.holder(node)) {
        tell(format_args!("{}", holder_line(holder, Timestamp::now())));
    }
    Ok(())
}

/// Places a node in a group; with none, lets its own word count again.
async fn set_group(
    client: &Client,
    node: &NodeId,
    group: Option<Group>,
    json: bool,
) -> Result<(), OperatorError> {
    let (path, id) = (format!("api/v1/nodes/{node}/group"), ClientId::from(node));
    match group {
        Some(group) => {
            let body = NodeGroup { schema: SCHEMA, group };
            client.put(&path, &body).await?;
            print_done(&id, &format!("is in group {}", body.group), json)
        }
        None => {
            client.delete(&path).await?;
            print_done(&id, "is in the group that it names itself", json)
        }
    }
}

/// Asks, and revokes a node.
async fn revoke(
    client: &Client,
    node: &ClientId,
    reason: String,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    tell_permits(client, node).await?;
    tell(format_args!(
        "{node} will not be heard any more, and its permits and places in queues freed: make sure that it is not in a reboot"
    ));
    ask("revoke it?", yes)?;
    let path = format!("api/v1/nodes/{}/revocation", segment(node));
    let revoked = client.change(Method::PUT, &path, &NodeRevoke { schema: SCHEMA, reason }).await;
    let NodeRevoked { known, permits, places, .. } = match revoked {
        Err(OperatorError::Server { status: 409, .. }) => {
            if json {
                print_json(&json!({ "schema": SCHEMA, "changed": false, "node": node }))?;
            } else {
                say(format_args!("{node} was revoked before"))?;
            }
            return Ok(Exit::NothingToDo);
        }
        revoked => revoked?,
    };
    if json {
        print_json(&json!({
            "schema": SCHEMA, "changed": true, "node": node, "known": known, "permits": permits, "places": places,
        }))?;
        return Ok(Exit::Done);
    }
    say(format_args!("{node} is revoked"))?;
    if !known {
        tell(format_args!("nothing else is known of it here: look at the id again"));
    }
    permits.iter().for_each(|group| tell(format_args!("its permit of group {group} is free")));
    places.iter().for_each(|group| tell(format_args!("its place in the queue of group {group} is free")));
    Ok(Exit::Done)
}

/// Says what was done to a node.
fn print_done(node: &ClientId, what: &str, json: bool) -> Result<(), OperatorError> {
    if json {
        return print_json(&json!({ "schema": SCHEMA, "changed": true, "node": node }));
    }
    say(format_args!("{node} {what}"))
}

/// A node id as a part of a path: an id of a FleetLock v1 client may have any visible characters.
fn segment(node: &ClientId) -> String {
    let safe = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    node.as_str()
        .bytes()
        .map(|b| if safe(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn print_heading() -> Result<(), OperatorError> {
    say(format_args!(
        "{:32}  {:10} {:10} {:14} {:4} {:12} LAST SEEN",
        "NODE", "CHANNEL", "GROUP", "VERSION", "SLOT", "STATE"
    ))
}

fn print_node(node: &NodeInfo) -> Result<(), OperatorError> {
    say(format_args!(
        "{:32}  {:10} {:10} {:14} {:4} {:12} {:20}",
        node.node,
        node.channel,
        node.group,
        node.version,
        node.slot.as_str(),
        if node.revoked.is_some() { "revoked".to_owned() } else { node.state.to_string() },
        time(node.last_seen)
    ))?;
    if let Some(why) = &node.dead_end {
        say(format_args!("  runs {}, a dead end: {}", node.version, one_line(why)))?;
    }
    Ok(())
}

/// What a node has in quarantine, where it says so.
fn quarantine(node: &NodeInfo) -> Option<String> {
    let versions: Vec<&str> = node.quarantine.as_ref()?.iter().map(Version::as_str).collect();
    if versions.is_empty() {
        return Some("  quarantine: nothing".to_owned());
    }
    // The server keeps so many and no more.
    let more = if versions.len() < QUARANTINE_MAX { "" } else { ", perhaps more" };
    Some(format!("  quarantine: {}{more}", versions.join(", ")))
}

/// What operators have said about a node.
fn about(node: &NodeInfo) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(of) = &node.revoked {
        lines.push(format!("revoked since {} by {}: {}", time(of.at), of.by, one_line(&of.reason)));
    }
    if let Some(own) = &node.own_group {
        lines.push(format!("placed in group {}; it says {own} itself", node.group));
    }
    if let Some(token) = &node.enrolled_with {
        lines.push(format!("enrolled with token {token}"));
    }
    lines
}

/// An event on a line, and what was seen of a failure below it.
fn shown(event: &Event) -> String {
    let version = event.version.as_ref().map_or("-", protocol::version::Version::as_str);
    let mut text =
        format!("  {:20}  {} {version} {}\n", time(event.at), event.kind.as_str(), one_line(&event.detail));
    for line in lines(&event.evidence).lines() {
        let line = format!("      | {line}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(super) async fn audit(
    client: &Client,
    limit: u32,
    before: Option<u64>,
    json: bool,
) -> Result<Exit, OperatorError> {
    let before = before.map(|seq| format!("&before={seq}")).unwrap_or_default();
    let log: AuditLog = client.get(&format!("api/v1/audit?limit={limit}{before}")).await?;
    if json {
        print_json(&log)?;
        return Ok(Exit::Done);
    }
    for entry in &log.entries {
        say(format_args!(
            "{:6}  {:20}  {:16} {:16} {:24} {}",
            entry.seq,
            time(entry.at),
            entry.actor,
            entry.action,
            entry.subject,
            one_line(&entry.detail)
        ))?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::wire::EventKind;

    #[test]
    fn evidence_is_shown_below_its_event_and_obeyed_by_no_terminal() {
        let event = Event {
            seq: 1,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            kind: EventKind::RolledBack,
            version: Some("1.1.0".parse().unwrap()),
            release: None,
            detail: "web.service failed".to_owned(),
            evidence: "web.service: failed\n\n\u{1b}[2Jexit 7\n".to_owned(),
        };
        assert_eq!(
            shown(&event),
            "  2026-01-01T00:00:00Z  rolled-back 1.1.0 web.service failed\n      | web.service: failed\n      |\n      | \\u{1b}[2Jexit 7\n"
        );
        assert_eq!(shown(&Event { evidence: String::new(), ..event }).lines().count(), 1);
    }
}
