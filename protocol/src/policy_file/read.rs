//! Steps 4 and 9: reads values of TOML by their kind, and keeps what is wrong and where.

use super::{Key, PolicyFileError, Problem, known};
use crate::lock::Limit;
use crate::rollout::Share;
use crate::window::{DAYS, Window, day_named};
use jiff::civil::{Date, Time};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(crate) type Value<'t> = Spanned<DeValue<'t>>;
type Name<'t> = Spanned<Cow<'t, str>>;

/// One file being read.
pub(crate) struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    keys: &'static [Key],
    /// Offset in the text and message.
    errors: Vec<(usize, String)>,
    /// Where each value stands, by its path.
    places: BTreeMap<String, usize>,
}

impl<'t> Reader<'t> {
    /// Reads `text`, whose tables may have `keys`.
    pub(crate) const fn new(file: &'t str, text: &'t str, keys: &'static [Key]) -> Self {
        Self { file, text, keys, errors: Vec::new(), places: BTreeMap::new() }
    }

    /// The file as TOML, if it is that.
    pub(crate) fn document(&mut self) -> Option<DeTable<'t>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let message = format!("not TOML: {}", error.message().replace('\n', " "));
            self.error(error.span().map_or(0, |span| span.start), &message);
        }
        errors.is_empty().then(|| table.into_inner())
    }

    /// All errors, from the top of the file to its end.
    pub(crate) fn finish(mut self) -> Vec<PolicyFileError> {
        self.errors.sort();
        self.errors.dedup();
        let located = |(offset, message): &(usize, String)| {
            let before = self.text.get(..*offset).unwrap_or(self.text);
            let line = 1 + before.matches('\n').count();
            let column = 1 + before.rsplit('\n').next().map_or(0, |start| start.chars().count());
            // A name in quotes may hold line breaks, and a message is one line.
            let message = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            PolicyFileError { file: self.file.to_owned(), line, column, message }
        };
        self.errors.iter().map(located).collect()
    }

    pub(crate) fn error(&mut self, offset: usize, message: &str) {
        self.errors.push((offset, message.to_owned()));
    }

    /// How many errors there are so far.
    pub(crate) const fn count(&self) -> usize {
        self.errors.len()
    }

    /// Something wrong with what was read, at the value or the nearest table that holds it.
    pub(crate) fn problem(&mut self, path: &str, message: &str) {
        let mut place = path;
        let offset = loop {
            match (self.places.get(place), place.rsplit_once('.')) {
                (Some(offset), _) => break *offset,
                (None, Some((table, _))) => place = table,
                (None, None) => break 0,
            }
        };
        self.error(offset, &format!("{path}: {message}"));
    }

    fn expected<T>(&mut self, path: &str, value: &Value<'_>, expected: &str) -> Option<T> {
        self.error(value.span().start, &format!("{path}: expected {expected}, found {}", Found(value)));
        None
    }

    /// The values of a table of `kind`, as the table of keys has it, by name. Names that no key has are errors.
    pub(crate) fn fields<'v>(
        &mut self,
        path: &str,
        kind: &str,
        value: &'v Value<'v>,
    ) -> Option<BTreeMap<&'v str, &'v Value<'v>>> {
        let names = known(self.keys, kind);
        let mut fields = BTreeMap::new();
        for (name, value) in self.table(path, value)? {
            let path = format!("{path}.{}", name.get_ref());
            if names.contains(&name.get_ref().as_ref()) {
                self.places.insert(path, value.span().start);
                fields.insert(name.get_ref().as_ref(), value);
            } else {
                let known = names.join(", ");
                self.error(name.span().start, &format!("{path}: no such key; known here: {known}"));
            }
        }
        Some(fields)
    }

    fn table<'v>(&mut self, path: &str, value: &'v Value<'v>) -> Option<&'v DeTable<'v>> {
        match value.get_ref() {
            DeValue::Table(table) => {
                self.places.insert(path.to_owned(), value.span().start);
                Some(table)
            }
            _ => self.expected(path, value, "a table"),
        }
    }

    /// A table of names that the operator chose.
    pub(crate) fn entries<'v>(&mut self, path: &str, value: &'v Value<'v>) -> Vec<(Name<'v>, &'v Value<'v>)> {
        let table = self.table(path, value);
        table.into_iter().flatten().map(|(name, value)| (name.clone(), value)).collect()
    }

    /// A name that must be of a kind.
    pub(crate) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, path: &str, name: &Name<'_>) -> Option<T> {
        name.get_ref()
            .parse()
            .map_err(|error| self.error(name.span().start, &format!("{path}: {error}")))
            .ok()
    }

    /// A table of one kind of names and one kind of values.
    pub(crate) fn map<K: FromStr<Err: fmt::Display> + Ord, V>(
        &mut self,
        path: &str,
        value: &Value<'_>,
        read: impl Fn(&mut Self, &str, &Value<'_>) -> Option<V>,
    ) -> BTreeMap<K, V> {
        let mut map = BTreeMap::new();
        for (name, value) in self.entries(path, value) {
            let path = format!("{path}.{}", name.get_ref());
            self.places.insert(path.clone(), value.span().start);
            let key = self.parsed(&path, &name);
            let value = read(self, &path, value);
            map.extend(key.zip(value));
        }
        map
    }

    /// An array's values, each with its path.
    pub(crate) fn list<'v>(&mut self, path: &str, value: &'v Value<'v>) -> Vec<(String, &'v Value<'v>)> {
        let DeValue::Array(array) = value.get_ref() else {
            self.expected::<()>(path, value, "an array");
            return Vec::new();
        };
        let list: Vec<_> =
            array.iter().enumerate().map(|(at, value)| (format!("{path}.{at}"), value)).collect();
        self.places.extend(list.iter().map(|(path, value)| (path.clone(), value.span().start)));
        list
    }

    /// An array of names.
    pub(crate) fn names<T: FromStr<Err: fmt::Display>>(&mut self, path: &str, value: &Value<'_>) -> Vec<T> {
        let mut names = Vec::new();
        for (path, value) in self.list(path, value) {
            let Some(text) = self.string(&path, value) else { continue };
            match text.parse() {
                Ok(name) => names.push(name),
                Err(error) => self.error(value.span().start, &format!("{path}: {error}")),
            }
        }
        names
    }

    pub(crate) fn string<'v>(&mut self, path: &str, value: &'v Value<'_>) -> Option<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => self.expected(path, value, "a string"),
        }
    }

    /// One of some words.
    pub(crate) fn word<T>(
        &mut self,
        path: &str,
        value: &Value<'_>,
        expected: &str,
        of: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(text) => of(text),
            _ => None,
        };
        found.or_else(|| self.expected(path, value, expected))
    }

    pub(crate) fn number<T: TryFrom<i64> + Bounds>(&mut self, path: &str, value: &Value<'_>) -> Option<T> {
        let number = integer(value).and_then(|number| T::try_from(number).ok());
        number.or_else(|| self.expected(path, value, T::BOUNDS))
    }

    pub(crate) fn limit(&mut self, path: &str, value: &Value<'_>) -> Option<Limit> {
        let percent = |text: &str| {
            let digits = text.strip_suffix('%')?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let limit = match value.get_ref() {
            DeValue::String(text) => percent(text).map(Limit::Percent),
            _ => integer(value).and_then(|number| u32::try_from(number).ok()).map(Limit::Count),
        };
        limit.or_else(|| {
            self.expected(path, value, "a number of nodes or a percentage from \"1%\" to \"100%\"")
        })
    }

    /// A share of nodes.
    pub(crate) fn share(&mut self, path: &str, value: &Value<'_>) -> Option<Share> {
        self.word(path, value, "a percentage from \"0%\" to \"100%\", with up to two decimals", |text| {
            text.parse().ok()
        })
    }

    pub(crate) fn flag(&mut self, path: &str, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(*flag),
            _ => self.expected(path, value, "true or false"),
        }
    }

    /// A date.
    pub(crate) fn date(&mut self, path: &str, value: &Value<'_>) -> Option<Date> {
        let date = match value.get_ref() {
            DeValue::String(text) => text.parse().ok(),
            // TOML's own date, without quotes.
            DeValue::Datetime(datetime) => datetime.to_string().parse().ok(),
            _ => None,
        };
        date.or_else(|| self.expected(path, value, "a date as in \"2026-12-24\""))
    }

    pub(crate) fn duration(&mut self, path: &str, value: &Value<'_>) -> Option<u32> {
        self.word(path, value, "a duration as in \"90s\", \"10m\" or \"1h30m\"", duration)
    }

    pub(crate) fn time(&mut self, path: &str, value: &Value<'_>) -> Option<Time> {
        let time = match value.get_ref() {
            DeValue::String(text) => time(text),
            // TOML's own time of day, without quotes.
            DeValue::Datetime(datetime) => time(&datetime.to_string()),
            _ => None,
        };
        time.or_else(|| self.expected(path, value, "a time of day from \"00:00\" to \"23:59\""))
    }

    /// A value that must be there.
    pub(crate) fn required<'a>(
        &mut self,
        path: &str,
        value: &Value<'_>,
        fields: &BTreeMap<&str, &'a Value<'a>>,
        name: &str,
    ) -> Option<&'a Value<'a>> {
        let found = fields.get(name).copied();
        if found.is_none() {
            self.error(value.span().start, &format!("{path}: expected the key {name}, found none"));
        }
        found
    }

    /// What `read` makes of a table, and what is wrong with that as a whole, if each value was right.
    pub(crate) fn checked<T>(
        &mut self,
        path: &str,
        read: impl FnOnce(&mut Self) -> Option<T>,
        problems: impl FnOnce(&T) -> Vec<Problem>,
    ) -> Option<T> {
        let before = self.count();
        let read = read(self)?;
        if self.count() == before {
            for Problem { key, message } in problems(&read) {
                self.problem(&format!("{path}.{key}"), &message);
            }
        }
        Some(read)
    }

    /// A window, a table of `kind`.
    pub(crate) fn window(&mut self, path: &str, kind: &str, value: &Value<'_>) -> Option<Window> {
        let fields = self.fields(path, kind, value)?;
        let days = fields.get("days").map(|value| {
            let expected = DAYS.map(|day| format!("{day:?}")).join(", ");
            let days = self.list(&format!("{path}.days"), value);
            if days.is_empty() {
                self.error(
                    value.span().start,
                    &format!("{path}.days: expected a day, found none; leave the key out for every day"),
                );
            }
            days.iter().filter_map(|(path, day)| self.word(path, day, &expected, day_named)).collect()
        });
        let start = self.required(path, value, &fields, "start");
        let start = start.and_then(|value| self.time(&format!("{path}.start"), value));
        let length_s = match (fields.get("end"), fields.get("length")) {
            (Some(end), None) => {
                self.time(&format!("{path}.end"), end).zip(start).and_then(|(closes, start)| {
                    let length_s = until(start, closes);
                    if length_s.is_none() {
                        let message =
                            "expected another time than start; for a whole day write length = \"24h\"";
                        self.error(end.span().start, &format!("{path}.end: {message}"));
                    }
                    length_s
                })
            }
            (None, Some(length)) => self.duration(&format!("{path}.length"), length),
            (end, _) => {
                let found = if end.is_some() { "both" } else { "neither" };
                self.error(
                    value.span().start,
                    &format!("{path}: expected either end or length, found {found}"),
                );
                None
            }
        };
        Some(Window { days: days.unwrap_or_default(), start: start?, length_s: length_s? })
    }
}

/// The whole numbers that a type holds, in words.
pub(crate) trait Bounds {
    const BOUNDS: &str;
}

impl Bounds for u32 {
    const BOUNDS: &str = "a number from 0 to 4294967295";
}

impl Bounds for i32 {
    const BOUNDS: &str = "a number from -2147483648 to 2147483647";
}

fn integer(value: &Value<'_>) -> Option<i64> {
    match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// Seconds of a text such as `1h30m`: each unit once, the larger first; none where it is no such text.
#[must_use]
pub fn duration(text: &str) -> Option<u32> {
    let mut total: u32 = 0;
    let mut rest = text;
    for (unit, seconds) in [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((digits, after)) = rest.split_once(unit) {
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            total = total.checked_add(digits.parse::<u32>().ok()?.checked_mul(seconds)?)?;
            rest = after;
        }
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

/// Seconds from one time of day to the next time that a clock shows the other; none for the same time.
fn until(start: Time, end: Time) -> Option<u32> {
    let seconds = end.duration_since(start).as_secs().rem_euclid(24 * 60 * 60);
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

/// A time of day, with two digits each for hour and minute, and seconds if need be.
fn time(text: &str) -> Option<Time> {
    let shaped = text.bytes().enumerate().all(|(at, b)| match at {
        2 | 5 => b == b':',
        8 => b == b'.',
        _ => b.is_ascii_digit(),
    });
    (shaped && text.len() >= 5).then(|| text.parse().ok())?
}

/// A value as an error shows it.
struct Found<'a>(&'a Value<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get_ref() {
            DeValue::String(text) => write!(f, "{:?}", text.chars().take(80).collect::<String>()),
            DeValue::Integer(number) => write!(f, "{number}"),
            DeValue::Float(number) => write!(f, "{number}"),
            DeValue::Boolean(value) => write!(f, "{value}"),
            DeValue::Datetime(time) => write!(f, "{time}"),
            DeValue::Array(_) => write!(f, "an array"),
            DeValue::Table(_) => write!(f, "a table"),
        }
    }
}
