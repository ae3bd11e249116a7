//! Step 9, permit: policy files, TOML that operators write and read.
//!
//! A file is read as a whole: all that is wrong with it is reported, each with its line and column. What is printed
//! says every value, also those that were left out, and reads back as itself.

use super::check::cap_name;
use super::policy::{Cap, Caps, OnTrouble, Policy, Quorum, Zones};
use crate::id::Group;
use crate::policy_file::{PolicyFileErrors, Reader, Value};
use std::collections::BTreeMap;
use std::fmt;

mod difference;
mod keys;
mod print;

pub use keys::KEYS;

/// What a policy file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFile {
    /// `[group.NAME]`: whole policies.
    pub groups: BTreeMap<Group, Policy>,
    /// `[cap.NAME]`: limits over several groups.
    pub caps: Caps,
}

impl PolicyFile {
    /// Reads the text of a file. The file's name is for the errors.
    ///
    /// # Errors
    /// All that is wrong: with the TOML; where that is right, with keys, values, and what they mean together.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyFileErrors> {
        let mut reader = Reader::new(file, text, KEYS);
        let read = reader.document().map(|table| {
            let (mut groups, mut caps) = (BTreeMap::new(), BTreeMap::new());
            for (name, value) in &table {
                match name.get_ref().as_ref() {
                    "group" => groups = read_groups(&mut reader, value),
                    "cap" => caps = read_caps(&mut reader, value),
                    other => {
                        let message =
                            format!("{other}: no such table; known are [group.NAME] and [cap.NAME]");
                        reader.error(name.span().start, &message);
                    }
                }
            }
            if reader.count() == 0 && groups.is_empty() && caps.is_empty() {
                reader.error(0, "expected a table [group.NAME] or [cap.NAME], found none");
            }
            Self { groups, caps: Caps { caps } }
        });
        match (read, reader.finish()) {
            (Some(read), errors) if errors.is_empty() => Ok(read),
            (_, errors) => Err(PolicyFileErrors(errors)),
        }
    }
}

impl fmt::Display for PolicyFile {
    /// As TOML that [`PolicyFile::parse`] reads as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print::file(f, self)
    }
}

fn read_groups(reader: &mut Reader<'_>, value: &Value<'_>) -> BTreeMap<Group, Policy> {
    let mut groups = BTreeMap::new();
    for (name, value) in reader.entries("group", value) {
        let path = format!("group.{}", name.get_ref());
        let group = reader.parsed::<Group>(&path, &name);
        let policy = reader.checked(&path, |reader| policy(reader, &path, value), Policy::problems);
        groups.extend(group.zip(policy));
    }
    groups
}

fn read_caps(reader: &mut Reader<'_>, value: &Value<'_>) -> BTreeMap<String, Cap> {
    let mut caps = BTreeMap::new();
    for (name, value) in reader.entries("cap", value) {
        let path = format!("cap.{}", name.get_ref());
        if let Some(message) = cap_name(name.get_ref()) {
            reader.error(name.span().start, &format!("{path}: {message}"));
        }
        let cap = reader.checked(&path, |reader| cap(reader, &path, value), Cap::problems);
        caps.extend(cap.map(|cap| (name.get_ref().to_string(), cap)));
    }
    caps
}

fn policy(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Policy> {
    let fields = reader.fields(path, "group.NAME", value)?;
    let mut policy = Policy::default();
    for (name, value) in &fields {
        let path = format!("{path}.{name}");
        match *name {
            "max" => set(&mut policy.max, reader.limit(&path, value)),
            "size" => policy.size = reader.number(&path, value),
            "zones" => policy.zones = zones(reader, &path, value),
            "windows" => {
                let windows = reader.list(&path, value);
                policy.windows = windows
                    .iter()
                    .filter_map(|(path, value)| reader.window(path, "group.NAME.windows", value))
                    .collect();
            }
            "time_zone" => set(&mut policy.time_zone, reader.string(&path, value).map(str::to_owned)),
            "reboot_takes" => set(&mut policy.reboot_takes_s, reader.duration(&path, value)),
            "granted_max" => set(&mut policy.granted_max_s, reader.duration(&path, value)),
            "rebooting_max" => set(&mut policy.rebooting_max_s, reader.duration(&path, value)),
            "on_stuck" => set(&mut policy.on_stuck, trouble(reader, &path, value)),
            "on_failed" => set(&mut policy.on_failed, trouble(reader, &path, value)),
            "quorum" => policy.quorum = quorum(reader, &path, value),
            "canaries" => policy.canaries = reader.names(&path, value),
            "priorities" => policy.priorities = reader.map(&path, value, Reader::number),
            _ => {}
        }
    }
    Some(policy)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn cap(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Cap> {
    let fields = reader.fields(path, "cap.NAME", value)?;
    let groups = reader.required(path, value, &fields, "groups");
    let groups = groups.map(|value| reader.names(&format!("{path}.groups"), value));
    let max = reader.required(path, value, &fields, "max");
    let max = max.and_then(|value| reader.number(&format!("{path}.max"), value));
    Some(Cap { groups: groups?, max: max? })
}

fn zones(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Zones> {
    let fields = reader.fields(path, "group.NAME.zones", value)?;
    let max = reader.required(path, value, &fields, "max");
    let max = max.and_then(|value| reader.limit(&format!("{path}.max"), value));
    let limits = fields.get("limits").map(|v| reader.map(&format!("{path}.limits"), v, Reader::limit));
    let sizes = fields.get("sizes").map(|v| reader.map(&format!("{path}.sizes"), v, Reader::number));
    Some(Zones { max: max?, limits: limits.unwrap_or_default(), sizes: sizes.unwrap_or_default() })
}

fn quorum(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<Quorum> {
    let fields = reader.fields(path, "group.NAME.quorum", value)?;
    let members = fields.get("members").and_then(|v| reader.number(&format!("{path}.members"), v));
    Some(Quorum { members })
}

fn trouble(reader: &mut Reader<'_>, path: &str, value: &Value<'_>) -> Option<OnTrouble> {
    let of = |text: &str| match text {
        "halt" => Some(OnTrouble::Halt),
        "hold" => Some(OnTrouble::Hold),
        "release" => Some(OnTrouble::Release),
        _ => None,
    };
    reader.word(path, value, "\"halt\", \"hold\" or \"release\"", of)
}

#[cfg(test)]
mod tests;
