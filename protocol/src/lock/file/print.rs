//! Prints policies as TOML: one form for each policy, whatever form it was read from.

use super::PolicyFile;
use crate::lock::policy::{Cap, Limit, OnTrouble, Policy};
use crate::policy_file::print::{Duration, List, Name, Opens, Quoted};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

pub(super) fn file(f: &mut Formatter<'_>, file: &PolicyFile) -> fmt::Result {
    let mut first = true;
    let mut gap = |f: &mut Formatter<'_>| if std::mem::take(&mut first) { Ok(()) } else { writeln!(f) };
    for (name, group) in &file.groups {
        gap(f)?;
        policy(f, &format!("group.{}", Name(name.as_str())), group)?;
    }
    for (name, cap) in &file.caps.caps {
        gap(f)?;
        let Cap { groups, max } = cap;
        writeln!(f, "[cap.{}]", Name(name))?;
        writeln!(
            f,
            "groups = {}",
            List(groups.iter().map(|group| Quoted(group.as_str()).to_string()).collect())
        )?;
        writeln!(f, "max = {max}")?;
    }
    Ok(())
}

fn policy(f: &mut Formatter<'_>, table: &str, policy: &Policy) -> fmt::Result {
    writeln!(f, "[{table}]\nmax = {}", Max(policy.max))?;
    if let Some(size) = policy.size {
        writeln!(f, "size = {size}")?;
    }
    if !policy.windows.is_empty() {
        writeln!(f, "windows = [")?;
        policy.windows.iter().try_for_each(|window| writeln!(f, "    {{ {} }},", Opens(window)))?;
        writeln!(f, "]")?;
    }
    writeln!(f, "time_zone = {}", Quoted(&policy.time_zone))?;
    writeln!(f, "reboot_takes = {}", Duration(policy.reboot_takes_s))?;
    writeln!(f, "granted_max = {}", Duration(policy.granted_max_s))?;
    writeln!(f, "rebooting_max = {}", Duration(policy.rebooting_max_s))?;
    writeln!(f, "on_stuck = \"{}\"", word(policy.on_stuck))?;
    writeln!(f, "on_failed = \"{}\"", word(policy.on_failed))?;
    match policy.quorum.map(|quorum| quorum.members) {
        None => {}
        Some(None) => writeln!(f, "quorum = {{}}")?,
        Some(Some(members)) => writeln!(f, "quorum = {{ members = {members} }}")?,
    }
    if !policy.canaries.is_empty() {
        let names = policy.canaries.iter().map(|node| Quoted(node.as_str()).to_string()).collect();
        writeln!(f, "canaries = {}", List(names))?;
    }
    if let Some(zones) = &policy.zones {
        writeln!(f, "\n[{table}.zones]\nmax = {}", Max(zones.max))?;
        map(f, &format!("{table}.zones.limits"), &zones.limits, |zone| zone.as_str(), |max| Max(*max))?;
        map(f, &format!("{table}.zones.sizes"), &zones.sizes, |zone| zone.as_str(), |size| *size)?;
    }
    map(f, &format!("{table}.priorities"), &policy.priorities, |node| node.as_str(), |priority| *priority)
}

fn map<K, V, D: Display>(
    f: &mut Formatter<'_>,
    table: &str,
    map: &BTreeMap<K, V>,
    name: impl Fn(&K) -> &str,
    value: impl Fn(&V) -> D,
) -> fmt::Result {
    if !map.is_empty() {
        writeln!(f, "\n[{table}]")?;
    }
    map.iter().try_for_each(|(key, known)| writeln!(f, "{} = {}", Name(name(key)), value(known)))
}

const fn word(trouble: OnTrouble) -> &'static str {
    match trouble {
        OnTrouble::Halt => "halt",
        OnTrouble::Hold => "hold",
        OnTrouble::Release => "release",
    }
}

struct Max(Limit);

impl Display for Max {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Limit::Count(count) => write!(f, "{count}"),
            Limit::Percent(percent) => write!(f, "\"{percent}%\""),
        }
    }
}
