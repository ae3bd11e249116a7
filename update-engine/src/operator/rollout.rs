//! Step 4, channel: `updatectl rollout`: how far a release has got, what holds it back, and what an operator does about it.

mod drawn;
#[cfg(test)]
mod tests;

use super::enrolment::duration;
use super::{Client, OperatorError, ask, policies, print_json, say, tell};
use clap::{Args, Subcommand};
use drawn::{NODES_HEADING, draw, explained, node_line, shown};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::{Channel, Group, NodeId};
use protocol::rollout::{Phases, RolloutFile, RolloutPolicy, Share};
use protocol::status::{Exit, one_line};
use protocol::version::Version;
use protocol::wire::{
    Decision, NodeExplain, Policies, PolicyRemove, PolicySet, RolloutAct, RolloutInfo, RolloutList,
    RolloutNodes, SCHEMA, SimulationReport, SimulationRequest,
};
use reqwest::Method;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Commands about rollouts.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Show how far the rollouts are, what holds everybody now, and what the next stage waits for.
    Show {
        /// Only this channel's.
        channel: Option<Channel>,
        /// Print the policy as a file that rollout set reads, instead.
        #[arg(long)]
        policy: bool,
    },
    /// List the nodes that were let go in a channel's rollout, and those that are still under way in one before, by id: what became
    /// of each, since when, and the last thing that it reported.
    Nodes {
        /// The channel.
        channel: Channel,
        /// Only in these phases, such as failed,rolled-back,silent: granted, activated, rebooting, confirmed, failed,
        /// rolled-back, silent, lost.
        #[arg(long, value_name = "PHASES")]
        phase: Option<Phases>,
        /// How many to show.
        #[arg(long, default_value_t = 1000)]
        limit: u32,
        /// Only nodes after this one, to go on where the last list ended.
        #[arg(long, value_name = "NODE")]
        after: Option<NodeId>,
    },
    /// The policies that are set: show, remove. rollout set sets them.
    #[command(subcommand)]
    Policy(RolloutPolicyCommand),
    /// Set the policies of the channels that a file names. Other channels keep theirs.
    Set {
        /// The file (TOML); docs/rollouts.md describes it.
        file: PathBuf,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", default_value = "updatectl rollout set")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Let no further node go, until resumed. Nodes that have taken the release up do not reboot into it by themselves meanwhile, once
    /// they have heard of it.
    Pause(ActOptions),
    /// Go on after a pause or a halt. Nodes that failed before count no more.
    Resume(ActOptions),
    /// Open the next stage, whatever it waits for. After a halt or a pause it opens once resumed.
    Approve {
        /// The channel.
        channel: Channel,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
    /// Show how a rollout would go over the nodes that the server knows, in virtual time. Changes nothing.
    Simulate(SimulateOptions),
}

/// Commands about the policies of rollouts.
#[derive(Debug, Subcommand)]
pub enum RolloutPolicyCommand {
    /// Print the policies as a file that rollout set reads.
    Show {
        /// Only this channel's: the default one, where none was set.
        channel: Option<Channel>,
    },
    /// Remove a channel's policy: the default one holds, for the rollout that runs, too, as if an empty one were set.
    Remove {
        /// The channel.
        channel: Channel,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", default_value = "updatectl rollout policy remove")]
        why: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Whose rollout is paused or resumed, and why.
#[derive(Args, Debug)]
pub struct ActOptions {
    /// The channel.
    channel: Channel,
    /// Only for this group.
    #[arg(long)]
    group: Option<Group>,
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT")]
    why: String,
}

/// What a simulation assumes.
#[derive(Args, Debug)]
pub struct SimulateOptions {
    /// The channel.
    channel: Channel,
    /// The release; without it the one that the channel points at.
    #[arg(long)]
    version: Option<Version>,
    /// A policy file (TOML) with the channel's policy, instead of the one that is set.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What share of the nodes fails, as in 2%.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    failing: Share,
    /// What share of the nodes falls silent in its reboot.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    silent: Share,
    /// Chooses which nodes fail, and when nodes ask.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often nodes ask, in minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 45, value_parser = clap::value_parser!(u32).range(1..))]
    poll_interval: u32,
    /// How long a node takes from its leave to its confirmation, in minutes.
    #[arg(long, value_name = "MINUTES", default_value_t = 15)]
    update_takes: u32,
    /// Assume that an operator approves the next stage so long after it waits for nothing else, as in 1h. Without it nobody does.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    approve_after: Option<u32>,
    /// How many days to go on at most.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=366))]
    days: u64,
}

pub(super) async fn run(command: RolloutCommand, client: &Client, json: bool) -> Result<Exit, OperatorError> {
    match command {
        RolloutCommand::Show { channel, policy: true } => show_policy(client, channel.as_ref(), json).await,
        RolloutCommand::Show { channel, policy: false } => show(client, channel.as_ref(), json).await,
        RolloutCommand::Nodes { channel, phase, limit, after } => {
            nodes(client, &channel, phase.as_ref(), limit, after, json).await
        }
        RolloutCommand::Policy(RolloutPolicyCommand::Show { channel }) => {
            show_policy(client, channel.as_ref(), json).await
        }
        RolloutCommand::Policy(RolloutPolicyCommand::Remove { channel, why, yes }) => {
            remove_policy(client, &channel, why, yes, json).await
        }
        RolloutCommand::Set { file, why, yes } => set(client, &file, &why, yes, json).await,
        RolloutCommand::Pause(options) => act(client, options, "pause", json).await,
        RolloutCommand::Resume(options) => act(client, options, "resume", json).await,
        RolloutCommand::Approve { channel, why } => {
            act(client, ActOptions { channel, group: None, why }, "approve", json).await
        }
        RolloutCommand::Simulate(options) => simulate(client, options, json).await,
    }
}

async fn show(client: &Client, channel: Option<&Channel>, json: bool) -> Result<Exit, OperatorError> {
    let list = match channel {
        Some(channel) => {
            let info: RolloutInfo = client.get(&format!("api/v1/rollouts/{channel}")).await?;
            if json {
                print_json(&info)?;
                return Ok(Exit::Done);
            }
            vec![info]
        }
        None => {
            let list: RolloutList = client.get("api/v1/rollouts").await?;
            if json {
                print_json(&list)?;
                return Ok(Exit::Done);
            }
            list.rollouts
        }
    };
    if list.is_empty() {
        say(format_args!(
            "no channel points at a release: updatectl channel set CHANNEL VERSION begins a rollout"
        ))?;
    }
    let now = Timestamp::now();
    for info in &list {
        say(format_args!("{}", shown(info, now).trim_end()))?;
        warn(&info.warnings);
    }
    Ok(Exit::Done)
}

/// Tells what looks like a mistake.
fn warn(warnings: &[String]) {
    warnings.iter().for_each(|line| tell(format_args!("warning: {}", one_line(line))));
}

/// How many nodes are asked for at once.
const PAGE: u32 = 1000;

async fn nodes(
    client: &Client,
    channel: &Channel,
    phases: Option<&Phases>,
    limit: u32,
    mut after: Option<NodeId>,
    json: bool,
) -> Result<Exit, OperatorError> {
    let phase = phases.map(|phases| format!("&phase={phases}")).unwrap_or_default();
    let (mut left, mut nodes) = (limit, Vec::new());
    let all = loop {
        let from = after.as_ref().map(|node| format!("&after={node}")).unwrap_or_default();
        let path = format!("api/v1/rollouts/{channel}/nodes?limit={}{phase}{from}", left.min(PAGE));
        let mut page: RolloutNodes = client.get(&path).await?;
        nodes.append(&mut page.nodes);
        left = left.saturating_sub(PAGE);
        after.clone_from(&page.next);
        if left == 0 || page.next.is_none() {
            break RolloutNodes { nodes, ..page };
        }
    };
    if json {
        print_json(&all)?;
        return Ok(Exit::Done);
    }
    say(format_args!("{NODES_HEADING}"))?;
    all.nodes.iter().try_for_each(|node| say(format_args!("{}", node_line(node, all.number))))?;
    if let Some(next) = &all.next {
        tell(format_args!("there may be more: --after {next} goes on"));
    }
    Ok(Exit::Done)
}

/// The server says that it is as the operator wants it.
fn as_wanted(message: &str, json: bool) -> Result<Exit, OperatorError> {
    if json {
        print_json(&json!({ "schema": SCHEMA, "changed": false, "reason": message }))?;
    } else {
        say(format_args!("nothing to do: {}", one_line(message)))?;
    }
    Ok(Exit::NothingToDo)
}

async fn act(client: &Client, options: ActOptions, verb: &str, json: bool) -> Result<Exit, OperatorError> {
    let ActOptions { channel, group, why } = options;
    // What is done is done to the rollout and the stage that are seen now, and to no later ones.
    let RolloutInfo { rollout, .. } = client.get(&format!("api/v1/rollouts/{channel}")).await?;
    let (number, stage) = (Some(rollout.number), Some(rollout.stage));
    let body = RolloutAct { schema: SCHEMA, group, why, number, stage };
    let path = format!("api/v1/rollouts/{channel}/{verb}");
    let info: RolloutInfo = match client.change(Method::POST, &path, &body).await {
        // It is as the operator wants it.
        Err(OperatorError::Server { status: 409, message }) => {
            return as_wanted(&message, json);
        }
        answer => answer?,
    };
    if json {
        print_json(&json!({ "schema": SCHEMA, "changed": true, "rollout": info }))?;
    } else {
        say(format_args!("{}", shown(&info, Timestamp::now()).trim_end()))?;
        warn(&info.warnings);
    }
    Ok(Exit::Done)
}

/// All policies that were set, what names them, and what looks like a mistake in them.
async fn current(client: &Client) -> Result<(RolloutFile, Sha256, Vec<String>), OperatorError> {
    let Policies { digest, file, warnings, .. } = client.get("api/v1/rollout-policy").await?;
    if file.is_empty() {
        return Ok((RolloutFile::default(), digest, warnings));
    }
    let file = RolloutFile::parse(client.server(), &file).map_err(|errors| policies::unreadable(&errors))?;
    Ok((file, digest, warnings))
}

async fn show_policy(client: &Client, channel: Option<&Channel>, json: bool) -> Result<Exit, OperatorError> {
    let (mut file, _, warnings) = current(client).await?;
    if let Some(channel) = channel {
        // A channel that nobody set a policy for has the default one.
        let policy = file.channels.remove(channel).unwrap_or_default();
        file.channels = [(channel.clone(), policy)].into();
    }
    if !json {
        warn(&warnings);
    }
    let parts = json!({ "channels": file.channels, "warnings": warnings });
    policies::show(&file.to_string(), parts, json)
}

async fn remove_policy(
    client: &Client,
    channel: &Channel,
    why: String,
    yes: bool,
    json: bool,
) -> Result<Exit, OperatorError> {
    let (before, replaces, _) = current(client).await?;
    let one = |policy: RolloutPolicy| RolloutFile { channels: [(channel.clone(), policy)].into() };
    let old = before.channels.get(channel).cloned().unwrap_or_default();
    let changes = one(old).difference(&one(RolloutPolicy::default()));
    changes.iter().for_each(|line| tell(format_args!("{line}")));
    ask("let the default policy hold?", yes)?;
    let body = PolicyRemove { schema: SCHEMA, replaces, why };
    let path = format!("api/v1/rollout-policy/{channel}/remove");
    match client.change::<_, Policies>(Method::POST, &path, &body).await {
        Err(OperatorError::Server { status: 404, message }) => {
            return as_wanted(&message, json);
        }
        answer => answer?,
    };
    if json {
        print_json(&json!({ "schema": SCHEMA, "changed": true, "changes": changes }))?;
    } else {
        say(format_args!(
            "the policy of {channel} is removed: the default holds; nodes that were let go stay let go"
        ))?;
    }
    Ok(Exit::Done)
}

async fn set(client: &Client, path: &Path, why: &str, yes: bool, json: bool) -> Result<Exit, OperatorError> {
    let (wanted, _) = policies::read(path, json, RolloutFile::parse)?;
    let (before, replaces, _) = current(client).await?;
    let mut after = before.clone();
    after.channels.extend(wanted.channels.clone());
    let changes = before.difference(&after);
    if !policies::agreed(&changes, "the server", yes, json)? {
        return Ok(Exit::NothingToDo);
    }
    let body = PolicySet { schema: SCHEMA, replaces, file: wanted.to_string(), why: why.to_owned() };
    let set: Policies = client.change(Method::PUT, "api/v1/rollout-policy", &body).await?;
    // Those of the channels that the file names were looked at, and so were all others.
    if !json {
        warn(&set.warnings);
    }
    policies::was_set(&changes, "nodes that were let go stay let go", &set.warnings, json)
}

async fn simulate(client: &Client, options: SimulateOptions, json: bool) -> Result<Exit, OperatorError> {
    let file = match &options.policy {
        Some(path) => Some(policies::read(path, json, RolloutFile::parse)?.0.to_string()),
        None => None,
    };
    let body = SimulationRequest {
        schema: SCHEMA,
        version: options.version,
        file,
        failing: options.failing,
        silent: options.silent,
        seed: options.seed,
        poll_interval_s: options.poll_interval.saturating_mul(60),
        update_takes_s: options.update_takes.saturating_mul(60),
        approve_after_s: options.approve_after,
        span_s: options.days * 24 * 60 * 60,
    };
    let path = format!("api/v1/rollouts/{}/simulate", options.channel);
    let report: SimulationReport = client.change(Method::POST, &path, &body).await?;
    if json {
        print_json(&report)?;
    } else {
        say(format_args!("{}", draw(&report).trim_end()))?;
    }
    Ok(Exit::Done)
}

/// `updatectl node explain`.
pub(super) async fn explain(client: &Client, node: &NodeId, json: bool) -> Result<Exit, OperatorError> {
    let explain: NodeExplain = client.get(&format!("api/v1/nodes/{node}/explain")).await?;
    if json {
        print_json(&explain)?;
    } else {
        say(format_args!("{}", explained(&explain).trim_end()))?;
    }
    Ok(match explain.decision {
        Decision::Update => Exit::Done,
        Decision::None => Exit::NothingToDo,
        Decision::Hold => Exit::Deferred,
    })
}
