//! Step 4, channel: `updatectl channel`.

use super::{Client, OperatorError, print_json, say};
use clap::Subcommand;
use protocol::id::Channel;
use protocol::status::{Exit, one_line};
use protocol::version::Version;
use protocol::wire::{ChannelInfo, ChannelList, ChannelPromote, ChannelSet, SCHEMA};
use reqwest::Method;
use serde::Serialize;
use serde_json::json;

/// Commands about channels.
#[derive(Debug, Subcommand)]
pub enum ChannelCommand {
    /// List the channels and the releases they point at.
    List,
    /// Point a channel at a release.
    Set {
        /// The channel; it is made if it is new.
        channel: Channel,
        /// The release its nodes go to.
        version: Version,
        /// Do it although some of the channel's nodes have no way to that release.
        #[arg(long)]
        leave_behind: bool,
        /// Do it although that release is a dead end: nodes go there, and no further by themselves.
        #[arg(long)]
        to_dead_end: bool,
    },
    /// Point a channel at what another one points at.
    Promote {
        /// The channel to take the release from.
        from: Channel,
        /// The channel to point at it.
        to: Channel,
        /// Do it although some of the channel's nodes have no way to that release.
        #[arg(long)]
        leave_behind: bool,
        /// Do it although that release is a dead end: nodes go there, and no further by themselves.
        #[arg(long)]
        to_dead_end: bool,
        /// Do it although the policy's promotion gate is closed, and say why.
        #[arg(long, value_name = "WHY")]
        despite_gate: Option<String>,
    },
}

pub(super) async fn run(command: ChannelCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    let list: ChannelList = client.get("api/v1/channels").await?;
    let find = |channel: &Channel| list.channels.iter().find(|info| info.channel == *channel);
    match command {
        ChannelCommand::List => {
            print(&list, json)?;
            Ok(Exit::Done)
        }
        ChannelCommand::Set { channel, version, leave_behind, to_dead_end } => {
            let path = format!("api/v1/channels/{channel}");
            let body = ChannelSet { schema: SCHEMA, version: version.clone(), leave_behind, to_dead_end };
            let wanted = (Some(&version), to_dead_end);
            change(client, Method::PUT, &path, &body, find(&channel), wanted, json).await
        }
        ChannelCommand::Promote { from, to, leave_behind, to_dead_end, despite_gate } => {
            let path = format!("api/v1/channels/{to}/promote");
            let version = find(&from).map(|info| info.version.clone());
            let body = ChannelPromote { schema: SCHEMA, from, leave_behind, to_dead_end, despite_gate };
            let wanted = (version.as_ref(), to_dead_end);
            change(client, Method::POST, &path, &body, find(&to), wanted, json).await
        }
    }
}

/// Makes a change unless the channel points at the release already, and to it as a dead end where that is wanted.
async fn change<B: Serialize>(
    client: &Client,
    method: Method,
    path: &str,
    body: &B,
    before: Option<&ChannelInfo>,
    (wanted, to_dead_end): (Option<&Version>, bool),
    json: bool,
) -> Result<Exit, OperatorError> {
    let before = before.filter(|info| Some(&info.version) == wanted);
    if let Some(info) = before.filter(|info| info.to_dead_end || !to_dead_end) {
        print_changed(info, false, json)?;
        return Ok(Exit::NothingToDo);
    }
    let info: ChannelInfo = client.change(method, path, body).await?;
    // The release may be no dead end; then there was nothing to insist on.
    let changed = before.is_none_or(|before| before.to_dead_end != info.to_dead_end);
    print_changed(&info, changed, json)?;
    Ok(if changed { Exit::Done } else { Exit::NothingToDo })
}

fn print_changed(info: &ChannelInfo, changed: bool, json: bool) -> Result<(), OperatorError> {
    if json {
        return print_json(&json!({
            "schema": SCHEMA, "changed": changed, "channel": info.channel, "version": info.version,
            "changed_at": info.changed_at, "changed_by": info.changed_by, "to_dead_end": info.to_dead_end,
            "on_dead_ends": info.on_dead_ends,
        }));
    }
    if changed {
        say(format_args!("{} points at {}", info.channel, info.version))?;
    } else {
        say(format_args!("nothing to do: {} points at {}", info.channel, info.version))?;
    }
    info.on_dead_ends.iter().try_for_each(|on| {
        say(format_args!(
            "  {} nodes on {} for {} stay there, a dead end: {}",
            on.nodes,
            on.version,
            on.arch,
            one_line(&on.why)
        ))
    })
}

fn print(list: &ChannelList, json: bool) -> Result<(), OperatorError> {
    if json {
        return print_json(list);
    }
    say(format_args!("{:16} {:16} {:20}  BY", "CHANNEL", "VERSION", "SINCE"))?;
    for info in &list.channels {
        say(format_args!(
            "{:16} {:16} {:20}  {}{}",
            info.channel,
            info.version,
            info.changed_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            info.changed_by,
            if info.to_dead_end { "  (a dead end)" } else { "" }
        ))?;
    }
    Ok(())
}
