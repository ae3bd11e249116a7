//! A TOML fragment of Zincati: identity, updates, cincinnati, agent.

use super::update_conf::NO_UPDATES;
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
                plan.group = match imported.name::<Group>("identity.group", &entry) {
                    true => Own::Is(entry.value.text().unwrap_or_default().to_owned()),
                    false => Own::Lost,
                };
            }
            "identity.node_uuid" => imported.not_taken(&entry, "a node makes its own id, on STATE"),
            "identity.rollout_wariness" => {
                imported.not_taken(&entry, "a node's place in a rollout is fixed by the server from its id");
            }
            "updates.enabled" if entry.value.text() == Some("false") => plan.disabled = Some(entry),
            "updates.strategy" => plan.strategy = Some(entry),
            "updates.fleet_lock.base_url" => plan.lock = Some(entry),
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

/// What has to be seen together: strategy, windows, their time zone, the lock and its group.
#[derive(Debug, Default)]
struct Plan {
    /// `updates.enabled = false`.
    disabled: Option<Entry>,
    strategy: Option<Entry>,
    windows: Option<Entry>,
    zone: Option<Entry>,
    /// Where its FleetLock server is.
    lock: Option<Entry>,
    group: Own,
}

/// The node's own group.
#[derive(Debug, Default)]
enum Own {
    /// Not said.
    #[default]
    Default,
    /// A name here, too.
    Is(String),
    /// No name here.
    Lost,
}

impl Plan {
    fn finish(self, imported: &mut Imported) {
        const PERIODIC: &str = "it binds updates.strategy periodic only";
        const FLEET_LOCK: &str = "only updates.strategy fleet_lock asks it";
        let all = [&self.windows, &self.zone, &self.lock];
        if let Some(disabled) = &self.disabled {
            // No machine that was never updated may begin to reboot by itself.
            imported.set("reboot.strategy", "off", disabled);
            imported.changed(disabled, NO_UPDATES);
            let why = "updates are disabled, so reboot.strategy is off";
            return leave(imported, [&self.strategy, &self.windows, &self.zone, &self.lock], why);
        }
        let Some(strategy) = &self.strategy else {
            imported.default_differs(
                "updates.strategy",
                "not set: there the default is immediate, here off (activated, and the reboot is yours)",
            );
            return leave(imported, all, "it binds an updates.strategy that is not set here");
        };
        match strategy.value.text() {
            Some("immediate") => {
                imported.set("reboot.strategy", "immediate", strategy);
                leave(imported, [&self.windows, &self.zone], PERIODIC);
                leave(imported, [&self.lock], FLEET_LOCK);
            }
            Some("fleet_lock") => {
                self.fleet_lock(imported, strategy);
                leave(imported, [&self.windows, &self.zone], PERIODIC);
            }
            Some("periodic") => {
                self.periodic(imported, strategy);
                leave(imported, [&self.lock], FLEET_LOCK);
            }
            _ => {
                let text = format!(
                    "expected immediate, fleet_lock or periodic, found {}; reboot.strategy is left at off",
                    strategy.value
                );
                imported.not_taken(strategy, text);
                leave(imported, all, "reboot.strategy is left at off");
            }
        }
    }

    /// The same server is asked as before; where it is not known for sure, nothing reboots.
    fn fleet_lock(&self, imported: &mut Imported, strategy: &Entry) {
        let problem = match (&self.lock, &self.group) {
            (_, Own::Lost) => Err("its group has no such name here".to_owned()),
            (None, _) => Err("updates.fleet_lock.base_url is not set".to_owned()),
            (Some(entry), group) => base_url(entry, group).map(|url| (entry, url)),
        };
        match problem {
            Ok((entry, url)) => {
                imported.set("reboot.strategy", "lock", strategy);
                imported.set("lock.backend", "fleetlock", strategy);
                if entry.value.text().map(|text| text.trim_end_matches('/'))
                    != Some(url.trim_end_matches('/'))
                {
                    let text =
                        format!("Zincati's requests go to {url}: it leaves away what follows the last slash");
                    imported.changed(entry, text);
                }
                imported.set("lock.fleetlock.base_url", url, entry);
                imported.changed(
                    strategy,
                    "the same server is asked, under the node's own id: a permit that this machine holds as Zincati's client \
                     stays held until Zincati gives it back, so let it end its own update first",
                );
            }
            Err(problem) => {
                imported.set("reboot.strategy", "off", strategy);
                imported.changed(strategy, format!("off instead of lock: {problem}"));
                leave(imported, [&self.lock], &problem);
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

fn leave<const N: usize>(imported: &mut Imported, entries: [&Option<Entry>; N], why: &str) {
    for entry in entries.into_iter().flatten() {
        imported.not_taken(entry, why);
    }
}

/// The address that Zincati's requests go to: it joins `v1/…` to it as a link in a page, so that what follows the last
/// slash is left away, and puts the group into it.
fn base_url(entry: &Entry, group: &Own) -> Result<String, String> {
    let group = match group {
        Own::Is(name) => name,
        Own::Default | Own::Lost => "default",
    };
    let text = entry.value.text().unwrap_or_default().replace("${group}", group);
    let expected = |found: &str| format!("expected an http or https address, found {found:?}");
    if text.contains("${") {
        return Err(expected(&text));
    }
    let url: reqwest::Url = text.parse().map_err(|_| expected(&text))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected an address without a user in it".to_owned());
    }
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err(expected(&text));
    }
    url.join(".").map(String::from).map_err(|_| expected(&text))
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
