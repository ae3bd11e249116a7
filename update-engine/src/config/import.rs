//! Configuration, for every step: the configuration of other engines, translated (`updatectl config import`).
//!
//! Source text -> entries with their lines (one reader for each syntax) -> [`Imported`]: settings, and a note for every
//! entry that has no equivalent or does not mean quite the same. What no rule takes is named: nothing is dropped in
//! silence.

mod cloud_config;
mod fragment;
mod locksmith;
#[cfg(test)]
mod tests;
mod update_conf;
mod window;
mod yaml;
mod zincati;

use super::ConfigError;
use serde::Serialize;
use std::fmt;

/// What kind of configuration was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A `#cloud-config` with `coreos.update` and `coreos.locksmith`.
    CloudConfig,
    /// An `update.conf` of CoreOS or Flatcar.
    UpdateConf,
    /// A TOML fragment of Zincati.
    Zincati,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CloudConfig => "cloud-config",
            Self::UpdateConf => "update.conf",
            Self::Zincati => "Zincati configuration",
        })
    }
}

/// A file that cannot be translated at all.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Nothing tells what it is.
    #[error(
        "not a configuration that can be imported: expected a #cloud-config, an update.conf (KEY=VALUE), or a Zincati TOML (tables identity, updates, cincinnati, agent or feature)"
    )]
    Unknown,
    /// It says nothing.
    #[error("nothing to import: no line but blank ones and comments")]
    Empty,
    /// Its syntax is broken.
    #[error("line {line}: not a valid {format}: {problem}")]
    Syntax {
        /// What it was taken for.
        format: Format,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The result would not be accepted: a mistake of the translation, never written.
    #[error("the translation is not a valid configuration; please report it")]
    Result(#[source] ConfigError),
}

/// A value of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// A scalar, as it was written, without quotes.
    Text(String),
    /// A list of scalars.
    List(Vec<String>),
    /// A list of tables: the windows of Zincati.
    Tables(Vec<Vec<(String, Value)>>),
}

impl Value {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::List(_) | Self::Tables(_) => None,
        }
    }
}

/// As a message shows what was found.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(items) => write!(f, "a list of {}", items.len()),
            Self::Tables(tables) => write!(f, "{} tables", tables.len()),
        }
    }
}

/// A key of the source with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// As it is shown to the user: with its tables.
    key: String,
    value: Value,
    /// From 1.
    line: usize,
}

/// What became of a key that was not simply taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// It was taken over, and means something else here.
    Changed,
    /// It has no equivalent, or no value that is understood.
    NotTaken,
    /// It is not in the source, and the default there is not the default here.
    Default,
}

impl NoteKind {
    /// As it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::NotTaken => "not taken over",
            Self::Default => "other default",
        }
    }
}

/// Something to know about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The line of the source, from 1; none where the source does not have the key.
    pub line: Option<usize>,
    /// The key, as the source has it.
    pub key: String,
    /// What became of it.
    pub kind: NoteKind,
    /// Why, and what to do.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{} {}: {}", self.key, self.kind.as_str(), self.text)
    }
}

/// A setting that was translated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Its key, with its table.
    pub key: &'static str,
    /// Its value.
    pub value: toml::Value,
    /// The key of the source.
    pub from: String,
    /// The line of the source, from 1.
    pub line: usize,
}

impl Setting {
    /// The table of its key, and its name there: in this order a fragment has each table once.
    fn place(&self) -> (&'static str, &'static str) {
        self.key.rsplit_once('.').unwrap_or(("", self.key))
    }
}

/// A translated configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Imported {
    /// What the source is.
    pub format: Format,
    /// What was taken over.
    pub settings: Vec<Setting>,
    /// What was not, or means something else.
    pub notes: Vec<Note>,
}

impl Imported {
    fn new(format: Format) -> Self {
        Self { format, settings: Vec::new(), notes: Vec::new() }
    }

    fn set(&mut self, key: &'static str, value: impl Into<toml::Value>, entry: &Entry) {
        // The last one wins, as it does there, and the user is told.
        if let Some(at) = self.settings.iter().position(|setting| setting.key == key) {
            let old = self.settings.remove(at);
            let text = format!("{} in line {} is used instead", entry.key, entry.line);
            self.notes.push(Note { line: Some(old.line), key: old.from, kind: NoteKind::NotTaken, text });
        }
        self.settings.push(Setting { key, value: value.into(), from: entry.key.clone(), line: entry.line });
    }

    fn note(&mut self, entry: &Entry, kind: NoteKind, text: impl Into<String>) {
        self.notes.push(Note { line: Some(entry.line), key: entry.key.clone(), kind, text: text.into() });
    }

    fn not_taken(&mut self, entry: &Entry, text: impl Into<String>) {
        self.note(entry, NoteKind::NotTaken, text);
    }

    fn changed(&mut self, entry: &Entry, text: impl Into<String>) {
        self.note(entry, NoteKind::Changed, text);
    }

    fn default_differs(&mut self, key: &str, text: &str) {
        self.notes.push(Note {
            line: None,
            key: key.to_owned(),
            kind: NoteKind::Default,
            text: text.to_owned(),
        });
    }

    /// Sets a name where it is one here, too.
    fn name<T: std::str::FromStr<Err: fmt::Display>>(&mut self, key: &'static str, entry: &Entry) -> bool {
        match entry.value.text().map(str::parse::<T>) {
            Some(Ok(_)) => {
                self.set(key, entry.value.text().unwrap_or_default(), entry);
                true
            }
            Some(Err(problem)) => {
                self.not_taken(entry, format!("{key} would be {problem}"));
                false
            }
            None => {
                self.not_taken(entry, format!("expected a text, found {}", entry.value));
                false
            }
        }
    }
}

/// Translates a configuration; what it is shows in its content. The result is valid once `server.url` and
/// `identity.channel` are set beside it where the source has none.
///
/// # Errors
/// [`ImportError`]
pub fn import(text: &str) -> Result<Imported, ImportError> {
    let mut imported = if cloud_config::is(text) {
        cloud_config::import(text)?
    } else if update_conf::is(text) {
        update_conf::import(text)
    } else if let Some(entries) = zincati::entries(text)? {
        zincati::import(entries)
    } else if !text.lines().any(update_conf::is_content) {
        return Err(ImportError::Empty);
    } else {
        return Err(ImportError::Unknown);
    };
    imported.settings.sort_by_key(Setting::place);
    imported.notes.sort_by_key(|note| (note.line.is_none(), note.line));
    imported.check().map_err(ImportError::Result)?;
    Ok(imported)
}
