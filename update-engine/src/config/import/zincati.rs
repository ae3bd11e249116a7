//! A TOML fragment of Zincati: identity, updates, cincinnati, agent.

use super::update_conf::{NO_LOCK, NO_UPDATES};
use super::window::zincati;
use super::{Entry, Format, ImportError, Imported, Value};
use protocol::id::Group;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

const TABLES: [&str; 5] = ["agent", "cincinnati", "feature", "identity", "updates"];

/// Its keys in order; none where it is not Zincati's.
pub(super) fn entries(text: &str) -> Result<Option<Vec<Entry>>, ImportError> {
    let line = |offset: usize| 1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count();
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        // Where a line looks like one of its tables, it is Zincati's with a mistake in it.
        Err(error) if text.lines().any(|line| TABLES.iter().any(|name| starts_table(line, name))) => {
            return Err(ImportError::Syntax {
                format: Format::Zincati,
                line: line(error.span().map_or(0, |span| span.start)),
                problem: error.message().replace('\n', " "),
            });
        }
        Err(_) => return Ok(None),
    };
    let own = |name: &str| TABLES.contains(&name);
    // [identity] is a table of ours too: `identity.channel` tells, as [server] does.
    let ours = table.contains_key("server")
        || table.get("identity").and_then(|t| t.get_ref().get("channel")).is_some();
    if ours || !table.keys().any(|name| own(name.get_ref())) {
        return Ok(None);
    }
    let mut entries = Vec::new();
    collect("", table, &line, &mut entries);
    entries.sort_by_key(|entry| entry.line);
    Ok(Some(entries))
}

fn starts_table(line: &str, name: &str) -> bool {
    let rest = line.trim_start().trim_start_matches('[').strip_prefix(name);
    line.trim_start().starts_with('[') && rest.is_some_and(|rest| rest.starts_with(['.', ']']))
}

fn collect(prefix: &str, table: DeTable<'_>, line: &impl Fn(usize) -> usize, entries: &mut Vec<Entry>) {
    for (name, value) in table {
        let at = line(name.span().start);
        let key = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        match value.into_inner() {
            DeValue::Table(table) => collect(&key, table, line, entries),
            value => entries.push(Entry { key, value: plain(value), line: at }),
        }
    }
}

fn plain(value: DeValue<'_>) -> Value {
    match value {
        DeValue::Array(values) if values.iter().any(|value| value.get_ref().is_table()) => {
            Value::Tables(values.into_iter().filter_map(tables).collect())
        }
        DeValue::Array(values) => {
            Value::List(values.into_iter().map(|value| scalar(value.into_inner())).collect())
        }
        value => Value::Text(scalar(value)),
    }
}

fn tables(value: Spanned<DeValue<'_>>) -> Option<Vec<(String, Value)>> {
    match value.into_inner() {
        DeValue::Table(table) => Some(
            table
                .into_iter()
                .map(|(name, value)| (name.get_ref().to_string(), plain(value.into_inner())))
                .collect(),
        ),
        _ => None,
    }
}

fn scalar(value: DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.into_owned(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        // Nested deeper than anything Zincati knows: shown as what it is, never taken over.
        DeValue::Array(_) => "(list)".to_owned(),
        DeValue::Table(_) => "(table)".to_owned(),
    }
}

pub(super) fn import(entries: Vec<Entry>) -> Imported {
    let mut imported = Imported::new(Format::Zincati);
    let mut plan = Plan::default();
    for entry in entries {
        match entry.key.as_str() {
            "identity.group" => {
                imported.name::<Group>("identity.group", &entry);
            }
            "identity.node_uuid" => imported.not_taken(&entry, "a node makes its own id, on STATE"),
            "identity.rollout_wariness" => {
                imported.not_taken(&entry, "a node's place in a rollout is fixed by the server from its id");
            }
            "updates.enabled" if entry.value.text() == Some("false") => plan.disabled = Some(entry),
            "updates.strategy" => plan.strategy = Some(entry),
            "updates.periodic.window" => plan.windows = Some(entry),
            "updates.periodic.time_zone" => plan.zone = Some(entry),
            "agent.timing.steady_interval_secs" => interval(&mut imported, &entry),
            key => {
                if let Some(text) = not_taken(key, entry.value.text()) {
                    let found = if text.starts_with("expected") {
                        format!(", found {}", entry.value)
                    } else {
                        String::new()
                    };
                    imported.not_taken(&entry, format!("{text}{found}"));
                }
            }
        }
    }
    plan.finish(&mut imported);
    imported
}

/// Why a key is left out; none where it says what is so here anyway.
fn not_taken(key: &str, value: Option<&str>) -> Option<&'static str> {
    Some(match (key, value) {
        ("updates.enabled" | "updates.allow_downgrade", Some("true" | "false"))
            if (key == "updates.enabled") == (value == Some("true")) =>
        {
            return None;
        }
        ("updates.enabled", _) => "expected true or false",
        ("updates.allow_downgrade", _) => {
            "a downgrade is authorised by the release's signed metadata, not by the node"
        }
        ("updates.fleet_lock.base_url", _) => {
            "the reboot lock is asked for from the update server; a FleetLock server elsewhere is no setting of this version"
        }
        ("cincinnati.base_url", _) => {
            "a Cincinnati graph is no Flipside server: set server.url and identity.channel"
        }
        ("feature.enabled", _) => "features have no switch here",
        _ => "no such key is known",
    })
}

fn interval(imported: &mut Imported, entry: &Entry) {
    let seconds = entry.value.text().and_then(|text| text.replace('_', "").parse::<i64>().ok());
    match seconds.filter(|seconds| (10..=604_800).contains(seconds)) {
        Some(seconds) => imported.set("policy.poll_interval_s", seconds, entry),
        None => imported.not_taken(
            entry,
            format!("expected a number of seconds from 10 to 604800, found {}", entry.value),
        ),
    }
}

/// What has to be seen together: strategy, windows, their time zone.
#[derive(Debug, Default)]
struct Plan {
    /// `updates.enabled = false`.
    disabled: Option<Entry>,
    strategy: Option<Entry>,
    windows: Option<Entry>,
    zone: Option<Entry>,
}

impl Plan {
    fn finish(self, imported: &mut Imported) {
        let rest = |imported: &mut Imported, why: &str| {
            for entry in [&self.windows, &self.zone].into_iter().flatten() {
                imported.not_taken(entry, why);
            }
        };
        if let Some(disabled) = &self.disabled {
            // No machine that was never updated may begin to reboot by itself.
            imported.set("reboot.strategy", "off", disabled);
            imported.changed(disabled, NO_UPDATES);
            if let Some(strategy) = &self.strategy {
                imported.not_taken(strategy, "updates are disabled, so reboot.strategy is off");
            }
            return rest(imported, "updates are disabled, so reboot.strategy is off");
        }
        let Some(strategy) = &self.strategy else {
            imported.default_differs(
                "updates.strategy",
                "not set: there the default is immediate, here off (activated, and the reboot is yours)",
            );
            return rest(imported, "it binds updates.strategy periodic, which is not set here");
        };
        match strategy.value.text() {
            Some("immediate") => {
                imported.set("reboot.strategy", "immediate", strategy);
                rest(imported, "it binds updates.strategy periodic only");
            }
            Some("fleet_lock") => {
                imported.set("reboot.strategy", "lock", strategy);
                let why = "the permit comes from the group's reboot lock on the update server";
                imported.changed(strategy, format!("{why}; {NO_LOCK}"));
                rest(imported, "it binds updates.strategy periodic only");
            }
            Some("periodic") => self.periodic(imported, strategy),
            _ => {
                let text = format!(
                    "expected immediate, fleet_lock or periodic, found {}; reboot.strategy is left at off",
                    strategy.value
                );
                imported.not_taken(strategy, text);
                rest(imported, "reboot.strategy is left at off");
            }
        }
    }

    fn periodic(&self, imported: &mut Imported, strategy: &Entry) {
        let windows =
            self.windows.as_ref().ok_or(None).and_then(|entry| read(entry).map_err(|p| Some((entry, p))));
        let zone = match self.zone.as_ref() {
            None => Ok(None),
            Some(entry) => {
                zone(entry).map(|name| Some((entry, name))).map_err(|problem| Some((entry, problem)))
            }
        };
        let problem = match (windows, zone) {
            (Ok((entry, windows)), Ok(zone)) => {
                imported.set("reboot.strategy", "window", strategy);
                imported.set("reboot.windows", windows, entry);
                if let Some((entry, name)) = zone {
                    imported.set("reboot.time_zone", name, entry);
                }
                return;
            }
            (Err(problem), _) | (_, Err(problem)) => problem,
        };
        // A machine that reboots at another time than it may is worse than one that waits for a person.
        imported.set("reboot.strategy", "off", strategy);
        imported.changed(strategy, "off instead of periodic: its windows are missing or not understood");
        let failed = problem.as_ref().map(|(entry, _)| entry.line);
        for entry in [&self.windows, &self.zone].into_iter().flatten() {
            match &problem {
                Some((_, text)) if failed == Some(entry.line) => imported.not_taken(entry, text.clone()),
                _ => imported.not_taken(entry, "reboot.strategy is left at off"),
            }
        }
    }
}

fn zone(entry: &Entry) -> Result<String, String> {
    match entry.value.text() {
        Some("localtime") => Ok("system".to_owned()),
        Some(name) if jiff::tz::TimeZone::get(name).is_ok() => Ok(name.to_owned()),
        _ => Err(format!("expected a time zone like Europe/Berlin, found {}", entry.value)),
    }
}

fn read(entry: &Entry) -> Result<(&Entry, toml::Value), String> {
    let Value::Tables(tables) = &entry.value else {
        return Err(format!("expected [[updates.periodic.window]], found {}", entry.value));
    };
    let mut windows = Vec::new();
    for table in tables {
        let (mut days, mut start, mut minutes) = (Vec::new(), "", "");
        for (name, value) in table {
            match (name.as_str(), value) {
                ("days", Value::List(names)) => days.clone_from(names),
                ("start_time", Value::Text(text)) => start = text,
                ("length_minutes", Value::Text(text)) => minutes = text,
                _ => {
                    return Err(format!(
                        "window {}: expected days, start_time and length_minutes, found {name}",
                        windows.len() + 1
                    ));
                }
            }
        }
        let window = zincati(&days, start, minutes);
        windows.push(window.map_err(|problem| format!("window {}: {problem}", windows.len() + 1))?);
    }
    Ok((entry, toml::Value::Array(windows)))
}
