//! Step 4, channel: rollout policies as TOML that operators write and read.
//!
//! What is printed says every value, also those that were left out, and reads back as itself.

use super::policy::{Canary, Freeze, Gate, Halt, Limits, Rate, RolloutPolicy, Wave};
use super::share::Share;
use crate::id::Channel;
use crate::policy_file::{PolicyFileErrors, Reader, Value, difference};
use std::collections::BTreeMap;
use std::fmt;

mod check;
mod keys;
mod print;

pub use keys::ROLLOUT_KEYS;

/// What a file of rollout policies holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolloutFile {
    /// `[channel.NAME]`: whole policies.
    pub channels: BTreeMap<Channel, RolloutPolicy>,
}

impl RolloutFile {
    /// Reads the text of a file. The file's name is for the errors.
    ///
    /// # Errors
    /// All that is wrong: with the TOML; where that is right, with keys, values, and what they mean together.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyFileErrors> {
        let mut reader = Reader::new(file, text, ROLLOUT_KEYS);
        let channels = reader.document().map(|table| {
            let mut channels = BTreeMap::new();
            for (name, value) in &table {
                match name.get_ref().as_ref() {
                    "channel" => channels = read_channels(&mut reader, value),
                    other => {
                        let message = format!("{other}: no such table; known is [channel.NAME]");
                        reader.error(name.span().start, &message);
                    }
                }
            }
            if reader.count() == 0 && channels.is_empty() {
                reader.error(0, "expected a table [channel.NAME], found none");
            }
            channels
        });
        match (channels, reader.finish()) {
            (Some(channels), errors) if errors.is_empty() => Ok(Self { channels }),
            (_, errors) => Err(PolicyFileErrors(errors)),
        }
    }

    /// What changes from this to `after`, as lines of policy files. Nothing where both say the same.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        difference(&self.to_string(), &after.to_string())
    }
}

impl fmt::Display for RolloutFile {
    /// As TOML that [`RolloutFile::parse`] reads as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print::file(f, self)
    }
}

fn read_channels(reader: &mut Reader<'_>, value: &Value<'_>) -> BTreeMap<Channel, RolloutPolicy> {
    let mut channels = BTreeMap::new();
    for (name, value) in reader.entries("channel", value) {
        let path = format!("channel.{}", name.get_ref());
        let channel = reader.parsed::<Channel>(&path, &name);
        let policy = reader.checked(&path, |reader| policy(reader, &path, value), RolloutPolicy::problems);
        channels.extend(channel.zip(policy));
    }
    channels
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn policy(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<RolloutPolicy> {
    let fields = reader.fields(path, "channel.NAME", value)?;
    let limits_here = limits(reader, path, "channel.NAME", &fields);
    let mut policy = RolloutPolicy { limits: limits_here, ..RolloutPolicy::default() };
    for (name, value) in &fields {
        let path = format!("{path}.{name}");
        match *name {
            "waves" => {
                let waves = reader.list(&path, value);
                policy.waves = waves.iter().filter_map(|(path, value)| wave(reader, path, value)).collect();
            }
            "canary" => policy.canary = canary(reader, &path, value),
            "freezes" => {
                let list = reader.list(&path, value);
                policy.freezes =
                    list.iter().filter_map(|(path, value)| freeze(reader, path, value)).collect();
            }
            "time_zone" => set(&mut policy.time_zone, reader.string(&path, value).map(str::to_owned)),
            "halt" => set(&mut policy.halt, halt(reader, &path, value)),
            "silent_after" => set(&mut policy.silent_after_s, reader.duration(&path, value)),
            "lost_after" => set(&mut policy.lost_after_s, reader.duration(&path, value)),
            "promotion" => policy.promotion = gate(reader, &path, value),
            "groups" => {
                policy.groups = reader.map(&path, value, |reader, path, value| {
                    let fields = reader.fields(path, "channel.NAME.groups.GROUP", value)?;
                    Some(limits(reader, path, "channel.NAME.groups.GROUP", &fields))
                });
            }
            _ => {}
        }
    }
    Some(policy)
}

/// The limits among the fields of a table.
fn limits(reader: &mut Reader<'_>, path: &str, kind: &str, fields: &BTreeMap<&str, &Value<'_>>) -> Limits {
    let field = |name: &str| fields.get(name).map(|value| (format!("{path}.{name}"), *value));
    let in_flight = field("in_flight").and_then(|(path, value)| reader.number(&path, value));
    let rate = field("rate").and_then(|(path, value)| {
        let fields = reader.fields(&path, &format!("{kind}.rate"), value)?;
        let max = reader.required(&path, value, &fields, "max");
        let max = max.and_then(|value| reader.number(&format!("{path}.max"), value));
        let per = reader.required(&path, value, &fields, "per");
        let per_s = per.and_then(|value| reader.duration(&format!("{path}.per"), value));
        Some(Rate { max: max?, per_s: per_s? })
    });
    let windows = field("windows").map(|(path, value)| {
        let list = reader.list(&path, value);
        let kind = format!("{kind}.windows");
        list.iter().filter_map(|(path, value)| reader.window(path, &kind, value)).collect()
    });
    Limits { in_flight, rate, windows: windows.unwrap_or_default() }
}

fn wave(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Wave> {
    let fields = reader.fields(path, "channel.NAME.waves", value)?;
    let share = reader.required(path, value, &fields, "share");
    let share = share.and_then(|value| reader.share(&format!("{path}.share"), value));
    let mut wave = Wave::DEFAULT;
    waits(reader, path, &fields, &mut wave.hold_s, &mut wave.confirmed, &mut wave.approve);
    Some(Wave { share: share?, ..wave })
}

fn canary(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Canary> {
    let fields = reader.fields(path, "channel.NAME.canary", value)?;
    let group = reader.required(path, value, &fields, "group");
    let group = group.and_then(|value| {
        reader.word(&format!("{path}.group"), value, "the name of a group", |text| text.parse().ok())
    });
    let (mut hold_s, mut confirmed, mut approve) = (Wave::DEFAULT.hold_s, Share::ALL, false);
    waits(reader, path, &fields, &mut hold_s, &mut confirmed, &mut approve);
    Some(Canary { group: group?, hold_s, confirmed, approve })
}

/// What a stage waits for, before the next one opens.
fn waits(
    reader: &mut Reader<'_>,
    path: &str,
    fields: &BTreeMap<&str, &Value<'_>>,
    hold_s: &mut u32,
    confirmed: &mut Share,
    approve: &mut bool,
) {
    let field = |name: &str| fields.get(name).map(|value| (format!("{path}.{name}"), *value));
    set(hold_s, field("hold").and_then(|(path, value)| reader.duration(&path, value)));
    set(confirmed, field("confirmed").and_then(|(path, value)| reader.share(&path, value)));
    set(approve, field("approve").and_then(|(path, value)| reader.flag(&path, value)));
}

fn freeze(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Freeze> {
    let fields = reader.fields(path, "channel.NAME.freezes", value)?;
    let mut date = |name: &str| {
        let found = reader.required(path, value, &fields, name);
        found.and_then(|value| reader.date(&format!("{path}.{name}"), value))
    };
    let (from, to) = (date("from"), date("to"));
    let why =
        fields.get("why").and_then(|value| reader.string(&format!("{path}.why"), value).map(str::to_owned));
    Some(Freeze { from: from?, to: to?, why: why.unwrap_or_default() })
}

fn halt(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Halt> {
    let fields = reader.fields(path, "channel.NAME.halt", value)?;
    let field = |name: &str| fields.get(name).map(|value| (format!("{path}.{name}"), *value));
    let failures = field("failures").and_then(|(path, value)| reader.number(&path, value));
    let mut halt = Halt { failures, ..Halt::default() };
    set(&mut halt.failure_rate, field("failure_rate").and_then(|(path, value)| reader.share(&path, value)));
    set(
        &mut halt.least_failures,
        field("least_failures").and_then(|(path, value)| reader.number(&path, value)),
    );
    Some(halt)
}

fn gate(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Gate> {
    let fields = reader.fields(path, "channel.NAME.promotion", value)?;
    let field = |name: &str| fields.get(name).map(|value| (format!("{path}.{name}"), *value));
    let mut gate = Gate { soak_s: 0, healthy: Share::percent(95), nodes: 1 };
    set(&mut gate.soak_s, field("soak").and_then(|(path, value)| reader.duration(&path, value)));
    set(&mut gate.healthy, field("healthy").and_then(|(path, value)| reader.share(&path, value)));
    set(&mut gate.nodes, field("nodes").and_then(|(path, value)| reader.number(&path, value)));
    Some(gate)
}

#[cfg(test)]
mod tests;
