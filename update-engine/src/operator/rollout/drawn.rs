//! Step 4, channel: rollouts as text for people.

use jiff::{SignedDuration, Timestamp};
use protocol::rollout::{Ended, Phases, Reason, Rollout, Share, Stage, Stop};
use protocol::status::one_line;
use protocol::wire::{Decision, NodeExplain, RolloutCounts, RolloutInfo, RolloutNode, SimulationReport};
use std::fmt::Write as _;

/// How wide a full bar is, in characters.
const BAR: u32 = 40;

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time that has passed, in its two largest units.
fn ago(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes:02}m"),
        (days, hours, _) => format!("{days}d{hours:02}h"),
    }
}

/// What is open, in words.
fn stage(rollout: &Rollout) -> String {
    let (now, of) = (rollout.stage.saturating_add(1).min(rollout.stages()), rollout.stages());
    match rollout.open() {
        Stage::Canary(canary) => format!("stage {now} of {of}: the group {} alone", canary.group),
        Stage::Wave(wave) if wave.share == Share::ALL => format!("stage {now} of {of}: all nodes"),
        Stage::Wave(wave) => format!("stage {now} of {of}: {} of the nodes", wave.share),
    }
}

fn stopped(what: &str, stop: &Stop) -> String {
    format!("  {what} since {} by {}: {}\n", time(stop.at), stop.by, one_line(&stop.why))
}

/// A rollout, in a few lines.
pub(super) fn shown(info: &RolloutInfo, now: Timestamp) -> String {
    let RolloutInfo { rollout, counts, next_stage, .. } = info;
    let share = Share::of(counts.at_version, counts.nodes);
    let mut text = format!(
        "{} -> {}  rollout {}, began {} ({} ago)\n",
        rollout.channel,
        rollout.version,
        rollout.number,
        time(rollout.began_at),
        ago(rollout.began_at, now)
    );
    // Writing to a string does not fail.
    text.push_str(&stops(rollout));
    match counts.nodes {
        0 => text.push_str("  no node of this channel was heard of in the last 30 days\n"),
        nodes => {
            let (bar, at_version) = (bar(counts.at_version, nodes), counts.at_version);
            let _ = writeln!(text, "  {bar}  {at_version} of {nodes} nodes run it ({share})");
        }
    }
    if counts.dead_ends > 0 {
        let _ = writeln!(text, "  {} of them are on dead ends and stay there", counts.dead_ends);
    }
    let _ = writeln!(text, "  {}, open for {}", stage(rollout), ago(rollout.stage_at, now));
    text.push_str(&let_go(counts));
    // A halt and a pause stand above.
    let is_stop = |reason: &&Reason| matches!(reason, Reason::Halted { .. } | Reason::Paused { .. });
    for reason in info.holds_all.iter().filter(|reason| !is_stop(reason)) {
        let _ = writeln!(text, "  nobody is let go now: {}", one_line(&reason.to_string()));
    }
    text.push_str(&waits("  ", next_stage));
    text
}

/// What the next stage waits for, after a margin.
fn waits(margin: &str, next_stage: &[String]) -> String {
    let mut text = String::new();
    for (at, line) in next_stage.iter().enumerate() {
        let begin = if at == 0 { "next stage waits for" } else { "                 and" };
        let _ = writeln!(text, "{margin}{begin} {}", one_line(line));
    }
    text
}

/// What stopped a rollout, and the commands that come next.
fn stops(rollout: &Rollout) -> String {
    let channel = &rollout.channel;
    let resume = format!("  to go on:    updatectl rollout resume {channel}");
    let mut text = String::new();
    if let Some(halted) = &rollout.halted {
        text.push_str(&stopped("HALTED", halted));
        let failures = Phases::failures();
        let _ = writeln!(text, "  which nodes: updatectl rollout nodes {channel} --phase {failures}");
    }
    if let Some(paused) = &rollout.paused {
        text.push_str(&stopped("PAUSED", paused));
    }
    if rollout.halted.is_some() || rollout.paused.is_some() {
        let _ = writeln!(text, "{resume} --why TEXT");
    }
    for (group, paused) in &rollout.paused_groups {
        text.push_str(&stopped(&format!("PAUSED for group {group}"), paused));
        let _ = writeln!(text, "{resume} --group {group} --why TEXT");
    }
    text
}

/// What has come of those that were let go.
fn let_go(counts: &RolloutCounts) -> String {
    let Ended { granted, confirmed, failed, silent } = counts.all;
    let own = counts.in_flight.saturating_sub(counts.in_flight_before);
    let forgiven = match counts.forgiven {
        0 => String::new(),
        forgiven => format!(" ({forgiven} of these no longer counted)"),
    };
    let mut text = format!(
        "  let go {granted}: {own} under way, {confirmed} confirmed, {failed} failed, {silent} silent{forgiven}, {} lost\n",
        counts.lost
    );
    if counts.in_flight_before > 0 {
        let _ = writeln!(text, "  and {} under way in a rollout before this one", counts.in_flight_before);
    }
    text
}

/// What stands above [`node_line`]s.
pub(super) const NODES_HEADING: &str = "NODE                              GROUP      VERSION        STAGE \
                                        PHASE       SINCE                 LAST EVENT";

/// A node that was let go, in one line; `number` is the rollout that runs.
pub(super) fn node_line(node: &RolloutNode, number: u64) -> String {
    let stage = node.stage.map_or_else(|| "-".to_owned(), |stage| stage.saturating_add(1).to_string());
    let mut notes = Vec::new();
    if node.rollout != number {
        notes.push(format!("(rollout {})", node.rollout));
    }
    if node.forgiven {
        notes.push("(no longer counted)".to_owned());
    }
    if let Some(event) = &node.last_event {
        notes.push(format!("{} {}", event.kind.as_str(), one_line(&event.detail)).trim_end().to_owned());
    }
    let grant = &node.grant;
    let line = format!(
        "{:32}  {:10} {:14} {stage:5} {:11} {:20}  {}",
        node.node,
        node.group,
        grant.version,
        grant.phase,
        time(grant.phase_at),
        notes.join(" ")
    );
    line.trim_end().to_owned()
}

/// A bar of a share of a whole.
fn bar(part: u32, whole: u32) -> String {
    let filled = u64::from(part) * u64::from(BAR) / u64::from(whole.max(1));
    let filled = usize::try_from(filled.min(BAR.into())).unwrap_or(0);
    let width = usize::try_from(BAR).unwrap_or(0);
    format!("[{}{}]", "#".repeat(filled), ".".repeat(width - filled))
}

/// A simulation: a bar for each point of time, and what happened.
pub(super) fn draw(report: &SimulationReport) -> String {
    let mut text = format!(
        "{} -> {}: {} nodes would go, from {} on\n",
        report.channel,
        report.version,
        report.nodes,
        time(report.began_at)
    );
    if report.left_behind > 0 {
        let _ =
            writeln!(text, "{} nodes have no way to it: updatectl channel set says why", report.left_behind);
    }
    if report.dead_ends > 0 {
        let _ = writeln!(text, "{} nodes are on dead ends and stay there", report.dead_ends);
    }
    if report.nodes == 0 {
        text.push_str("nothing to simulate: no node that the server knows would go\n");
        return text;
    }
    let _ = writeln!(
        text,
        "{:>9}  {:42} {:>8} {:>8} {:>7}  HELD BACK BY",
        "AFTER", "CONFIRMED", "", "UNDERWAY", "FAILED"
    );
    for point in &report.points {
        let line = format!(
            "{:>9}  {} {:>8} {:>8} {:>7}  {}",
            ago(report.began_at, point.at),
            bar(point.ended.confirmed, report.nodes),
            point.ended.confirmed,
            point.in_flight,
            point.ended.failed + point.ended.silent,
            one_line(&point.held_by)
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for event in &report.events {
        let _ = writeln!(text, "{}", one_line(event));
    }
    match (&report.halted, report.done_at, report.points.last()) {
        (Some(why), _, Some(last)) => {
            let _ = writeln!(
                text,
                "halts with {} of {} nodes let go: {}",
                last.ended.granted,
                report.nodes,
                one_line(why)
            );
        }
        (_, Some(done), _) => {
            let _ = writeln!(text, "done after {}", ago(report.began_at, done));
        }
        (_, None, Some(last)) => {
            let after = last.at.duration_since(report.began_at);
            let days = after.as_secs() / SignedDuration::from_hours(24).as_secs();
            let _ = writeln!(
                text,
                "not done after {days} days: {} of {} nodes were let go",
                last.ended.granted, report.nodes
            );
            if let Some(since) = report.waits_for_approval {
                let _ = writeln!(
                    text,
                    "it waits for an operator's approval since {}; --approve-after 1h assumes one",
                    time(since)
                );
            }
        }
        (_, None, None) => {}
    }
    text
}

/// Why a node is or is not let go.
pub(super) fn explained(explain: &NodeExplain) -> String {
    let node = &explain.node;
    let mut text = format!(
        "{}  {} of group {} on {}, {}, last heard of {}\n",
        node.node,
        node.version,
        node.group,
        node.channel,
        node.state,
        time(node.last_seen)
    );
    if let Some(of) = &node.revoked {
        let _ = writeln!(text, "is revoked since {}: {}", time(of.at), one_line(&of.reason));
    }
    let version = explain.version.as_ref().map_or_else(|| "the release".to_owned(), ToString::to_string);
    match explain.decision {
        Decision::Update => {
            let _ = writeln!(text, "may go to {version}: {}", one_line(&explain.reason));
        }
        Decision::None => {
            let _ = writeln!(text, "has nothing to do: {}", one_line(&explain.reason));
        }
        Decision::Hold if explain.because.is_empty() => {
            let _ = writeln!(text, "waits to go to {version}: {}", one_line(&explain.reason));
        }
        Decision::Hold => {
            let _ = writeln!(text, "waits to go to {version}:");
            for (at, reason) in explain.because.iter().enumerate() {
                let _ = writeln!(text, "  {}. {}", at + 1, one_line(&reason.to_string()));
            }
        }
    }
    text.push_str(&waits("", &explain.next_stage));
    if let Some(grant) = &explain.grant {
        let (phase, at) = (grant.phase, time(grant.phase_at));
        let _ =
            writeln!(text, "let go to {} at {}: {phase} since {at}", grant.version, time(grant.granted_at));
    }
    if let Some(place) = explain.place {
        let _ = writeln!(text, "stands at {place} of the nodes in this rollout");
    }
    text
}
