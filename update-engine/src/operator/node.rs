//! Steps 4 and 12: `updatectl node` and `updatectl audit`: what a server knows of its nodes and of its changes.

use super::{Client, OperatorError, print_json};
use clap::Subcommand;
use jiff::Timestamp;
use protocol::id::NodeId;
use protocol::status::Exit;
use protocol::status::one_line;
use protocol::wire::{AuditLog, Event, NodeInfo, NodeList, NodeShow};

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
    },
    /// Show one node and what it reported.
    Show {
        /// Its id: 32 hexadecimal digits.
        node: NodeId,
    },
}

pub(super) async fn run(command: NodeCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    match command {
        NodeCommand::List { limit, skip } => {
            let list: NodeList = client.get(&format!("api/v1/nodes?limit={limit}&skip={skip}")).await?;
            if json {
                print_json(&list)?;
            } else {
                println!(
                    "{:32}  {:10} {:10} {:14} {:4} {:12} {:20}",
                    "NODE", "CHANNEL", "GROUP", "VERSION", "SLOT", "STATE", "LAST SEEN"
                );
                list.nodes.iter().for_each(print_node);
            }
        }
        NodeCommand::Show { node } => {
            let show: NodeShow = client.get(&format!("api/v1/nodes/{node}")).await?;
            if json {
                print_json(&show)?;
            } else {
                print_node(&show.node);
                show.events.iter().for_each(print_event);
            }
        }
    }
    Ok(Exit::Done)
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn print_node(node: &NodeInfo) {
    println!(
        "{:32}  {:10} {:10} {:14} {:4} {:12} {:20}",
        node.node,
        node.channel,
        node.group,
        node.version,
        node.slot.as_str(),
        node.state,
        time(node.last_seen)
    );
}

fn print_event(event: &Event) {
    let version = event.version.as_ref().map_or("-", protocol::version::Version::as_str);
    println!("  {:20}  {:?} {version} {}", time(event.at), event.kind, one_line(&event.detail));
}

pub(super) async fn audit(client: &Client, limit: u32, json: bool) -> Result<Exit, OperatorError> {
    let log: AuditLog = client.get(&format!("api/v1/audit?limit={limit}")).await?;
    if json {
        print_json(&log)?;
        return Ok(Exit::Done);
    }
    for entry in &log.entries {
        println!(
            "{:6}  {:20}  {:16} {:16} {:24} {}",
            entry.seq,
            time(entry.at),
            entry.actor,
            entry.action,
            entry.subject,
            one_line(&entry.detail)
        );
    }
    Ok(Exit::Done)
}
