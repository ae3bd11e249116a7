//! Prints policies as TOML: one form for each policy, whatever form it was read from.

use super::PolicyFile;
use crate::lock::policy::{Cap, Limit, OnTrouble, Policy};
use crate::window::{Window, day_name};
use jiff::SignedDuration;
use jiff::civil::Time;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

const DAY_S: u32 = 24 * 60 * 60;

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

/// A window: by its end where that says all, else by its length.
struct Opens<'a>(&'a Window);

impl Display for Opens<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Window { days, start, length_s } = self.0;
        if !days.is_empty() {
            let names = days.iter().map(|day| Quoted(day_name(*day)).to_string()).collect();
            write!(f, "days = {}, ", List(names))?;
        }
        write!(f, "start = \"{}\", ", Clock(*start))?;
        if (1..DAY_S).contains(length_s) {
            let end = start.wrapping_add(SignedDuration::from_secs((*length_s).into()));
            write!(f, "end = \"{}\"", Clock(end))
        } else {
            write!(f, "length = {}", Duration(*length_s))
        }
    }
}

struct Clock(Time);

impl Display for Clock {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.second() == 0 && self.0.subsec_nanosecond() == 0 {
            write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

struct Duration(u32);

impl Display for Duration {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        write!(f, "\"")?;
        for (count, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
            if count > 0 || (unit == 's' && self.0 == 0) {
                write!(f, "{count}{unit}")?;
            }
        }
        write!(f, "\"")
    }
}

/// An array, on several lines where one would be long.
struct List(Vec<String>);

impl Display for List {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = self.0.join(", ");
        if line.len() <= 80 {
            return write!(f, "[{line}]");
        }
        writeln!(f, "[")?;
        self.0.iter().try_for_each(|item| writeln!(f, "    {item},"))?;
        write!(f, "]")
    }
}

/// A key: bare where TOML allows.
struct Name<'a>(&'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !self.0.is_empty() && self.0.bytes().all(bare) {
            f.write_str(self.0)
        } else {
            write!(f, "{}", Quoted(self.0))
        }
    }
}

/// A string as TOML.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"")?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        write!(f, "\"")
    }
}
