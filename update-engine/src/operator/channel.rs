//! Step 4, channel: `updatectl channel`.

use super::{Client, OperatorError, print_json, say};
use clap::Subcommand;
use protocol::id::Channel;
use protocol::status::Exit;
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
        ChannelCommand::Set { channel, version, leave_behind } => {
            let path = format!("api/v1/channels/{channel}");
            let body = ChannelSet { schema: SCHEMA, version: version.clone(), leave_behind };
            change(client, Method::PUT, &path, &body, find(&channel), Some(&version), json).await
        }
        ChannelCommand::Promote { from, to, leave_behind, despite_gate } => {
            let path = format!("api/v1/channels/{to}/promote");
            let version = find(&from).map(|info| info.version.clone());
            let body = ChannelPromote { schema: SCHEMA, from, leave_behind, despite_gate };
            change(client, Method::POST, &path, &body, find(&to), version.as_ref(), json).await
        }
    }
}

/// Makes a change unless the channel points at `wanted` already.
async fn change<B: Serialize>(
    client: &Client,
    method: Method,
    path: &str,
    body: &B,
    before: Option<&ChannelInfo>,
    wanted: Option<&Version>,
    json: bool,
) -> Result<Exit, OperatorError> {
    if let Some(info) = before.filter(|info| Some(&info.version) == wanted) {
        print_changed(info, false, json)?;
        return Ok(Exit::NothingToDo);
    }
    let info: ChannelInfo = client.change(method, path, body).await?;
    print_changed(&info, true, json)?;
    Ok(Exit::Done)
}

fn print_changed(info: &ChannelInfo, changed: bool, json: bool) -> Result<(), OperatorError> {
    if json {
        return print_json(&json!({
            "schema": SCHEMA, "changed": changed, "channel": info.channel, "version": info.version,
            "changed_at": info.changed_at, "changed_by": info.changed_by,
        }));
    }
    if changed {
        say(format_args!("{} points at {}", info.channel, info.version))?;
    } else {
        say(format_args!("nothing to do: {} points at {}", info.channel, info.version))?;
    }
    Ok(())
}

fn print(list: &ChannelList, json: bool) -> Result<(), OperatorError> {
    if json {
        return print_json(list);
    }
    say(format_args!("{:16} {:16} {:20}  BY", "CHANNEL", "VERSION", "SINCE"))?;
    for info in &list.channels {
        say(format_args!(
            "{:16} {:16} {:20}  {}",
            info.channel,
            info.version,
            info.changed_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            info.changed_by
        ))?;
    }
    Ok(())
}
