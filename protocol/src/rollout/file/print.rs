//! Prints rollout policies as TOML: one form for each policy, whatever form it was read from.

use super::RolloutFile;
use crate::policy_file::print::{Duration, Name, Opens, Quoted};
use crate::rollout::policy::{Limits, RolloutPolicy};
use std::fmt::{self, Formatter};

pub(super) fn file(f: &mut Formatter<'_>, file: &RolloutFile) -> fmt::Result {
    for (at, (name, policy)) in file.channels.iter().enumerate() {
        if at > 0 {
            writeln!(f)?;
        }
        channel(f, &format!("channel.{}", Name(name.as_str())), policy)?;
    }
    Ok(())
}

fn channel(f: &mut Formatter<'_>, table: &str, policy: &RolloutPolicy) -> fmt::Result {
    writeln!(f, "[{table}]")?;
    limits(f, &policy.limits)?;
    writeln!(f, "time_zone = {}", Quoted(&policy.time_zone))?;
    writeln!(f, "silent_after = {}", Duration(policy.silent_after_s))?;
    writeln!(f, "lost_after = {}", Duration(policy.lost_after_s))?;
    if !policy.waves.is_empty() {
        writeln!(f, "waves = [")?;
        for wave in &policy.waves {
            let (share, confirmed, hold) = (wave.share, wave.confirmed, Duration(wave.hold_s));
            let approve = wave.approve;
            writeln!(
                f,
                "    {{ share = \"{share}\", hold = {hold}, confirmed = \"{confirmed}\", approve = {approve} }},"
            )?;
        }
        writeln!(f, "]")?;
    }
    if !policy.freezes.is_empty() {
        writeln!(f, "freezes = [")?;
        for freeze in &policy.freezes {
            let (from, to, why) = (freeze.from, freeze.to, Quoted(&freeze.why));
            writeln!(f, "    {{ from = \"{from}\", to = \"{to}\", why = {why} }},")?;
        }
        writeln!(f, "]")?;
    }
    if let Some(canary) = &policy.canary {
        writeln!(f, "\n[{table}.canary]\ngroup = {}", Quoted(canary.group.as_str()))?;
        writeln!(f, "hold = {}\nconfirmed = \"{}\"", Duration(canary.hold_s), canary.confirmed)?;
        writeln!(f, "approve = {}", canary.approve)?;
    }
    writeln!(f, "\n[{table}.halt]")?;
    if let Some(failures) = policy.halt.failures {
        writeln!(f, "failures = {failures}")?;
    }
    let (rate, least) = (policy.halt.failure_rate, policy.halt.least_failures);
    writeln!(f, "failure_rate = \"{rate}\"\nleast_failures = {least}")?;
    if let Some(gate) = &policy.promotion {
        let (soak, healthy, nodes) = (Duration(gate.soak_s), gate.healthy, gate.nodes);
        writeln!(f, "\n[{table}.promotion]\nsoak = {soak}\nhealthy = \"{healthy}\"\nnodes = {nodes}")?;
    }
    for (name, group) in &policy.groups {
        writeln!(f, "\n[{table}.groups.{}]", Name(name.as_str()))?;
        limits(f, group)?;
    }
    Ok(())
}

fn limits(f: &mut Formatter<'_>, limits: &Limits) -> fmt::Result {
    if let Some(max) = limits.in_flight {
        writeln!(f, "in_flight = {max}")?;
    }
    if let Some(rate) = limits.rate {
        writeln!(f, "rate = {{ max = {}, per = {} }}", rate.max, Duration(rate.per_s))?;
    }
    if !limits.windows.is_empty() {
        writeln!(f, "windows = [")?;
        limits.windows.iter().try_for_each(|window| writeln!(f, "    {{ {} }},", Opens(window)))?;
        writeln!(f, "]")?;
    }
    Ok(())
}
