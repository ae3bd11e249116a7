//! Configuration, for every step: fragments -> merged input -> validated settings (DESIGN section 7).
//!
//! [`fragment`] reads TOML files and keeps the file and line of every value, [`merge`](Merged) puts them on top of
//! each other, [`settings`] turns the result into domain types. Nothing downstream validates again.

pub mod fragment;
pub mod import;
pub mod keys;
pub mod settings;
#[cfg(test)]
mod tests;

use fragment::{Fragment, Sourced};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

pub use settings::Settings;

/// The folders that fragments are read from, each overriding the ones before it.
pub const FOLDERS: [&str; 3] =
    ["/usr/lib/update-engine/config.d", "/run/update-engine/config.d", "/etc/update-engine/config.d"];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser found.
        message: String,
    },
    /// A key that no setting has.
    #[error("{origin}: unknown key {key}: {hint}")]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The key, with its tables.
        key: String,
        /// What would be known.
        hint: String,
    },
    /// A value that its setting does not take.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key, with its tables.
        key: String,
        /// What was expected and found.
        problem: String,
    },
    /// A setting without a default that nothing sets.
    #[error("{key} is not set: {doc}; searched {searched}")]
    Missing {
        /// The key, with its tables.
        key: &'static str,
        /// What it is for.
        doc: &'static str,
        /// The files that were read.
        searched: String,
    },
}

/// All values, each from the strongest file that sets it.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    values: BTreeMap<String, Sourced>,
    files: Vec<PathBuf>,
}

impl Merged {
    /// Reads one file, and nothing else.
    ///
    /// # Errors
    /// [`ConfigError`] where it cannot be read, is not TOML, or has a key that no setting has.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::from_fragments([Fragment::read(path)?]))
    }

    /// Reads the fragments (`*.toml`) of several folders, where they exist. A file of a later folder replaces the
    /// file of the same name of an earlier one as a whole; what remains is applied in the order of the file names,
    /// so that `20-site.toml` overrides single values of `10-vendor.toml` wherever the two lie.
    ///
    /// # Errors
    /// [`ConfigError`], as for [`Self::from_file`].
    pub fn from_folders(folders: &[impl AsRef<Path>]) -> Result<Self, ConfigError> {
        let mut by_name = BTreeMap::new();
        for folder in folders {
            for path in toml_files(folder.as_ref())? {
                if let Some(name) = path.file_name() {
                    by_name.insert(name.to_owned(), path.clone());
                }
            }
        }
        let fragments: Result<Vec<_>, _> = by_name.values().map(|path| Fragment::read(path)).collect();
        Ok(Self::from_fragments(fragments?))
    }

    /// Applies fragments in order, later ones winning value by value.
    pub fn from_fragments(fragments: impl IntoIterator<Item = Fragment>) -> Self {
        let mut merged = Self::default();
        for fragment in fragments {
            merged.files.push(fragment.path);
            merged.values.extend(fragment.values);
        }
        merged
    }

    /// The value of a key, if a file sets it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Sourced> {
        self.values.get(key)
    }

    /// Puts a stand-in, which no engine could work with, for every required setting that no file sets, so that the
    /// rest can be validated and used. Returns the settings that are missing.
    pub fn stand_in(&mut self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        for (key, value) in keys::STAND_INS {
            let value = toml::Value::String(value.to_owned());
            self.values.entry(key.to_owned()).or_insert_with(|| {
                missing.push(key);
                Sourced { value, origin: Origin::Default }
            });
        }
        missing
    }

    /// What keeps an engine from using it, each setting by itself.
    #[must_use]
    pub fn problems(&self) -> Problems {
        let mut rest = self.clone();
        let mut problems = Problems { missing: rest.stand_in(), invalid: Vec::new() };
        let mut seen = BTreeSet::new();
        while let Err(error) = Settings::from_merged(&rest) {
            let key = match &error {
                ConfigError::Value { key, .. } => key.clone(),
                _ => String::new(),
            };
            // A setting that lacks one which was just left out is not a problem of its own.
            if !seen.insert(key.clone()) {
                break;
            }
            problems.invalid.push(error);
            if rest.values.remove(&key).is_none() {
                break;
            }
            rest.stand_in();
        }
        problems
    }

    /// The files that were read, weakest first, for a message.
    #[must_use]
    pub fn searched(&self) -> String {
        if self.files.is_empty() {
            return FOLDERS.join(", ");
        }
        let names: BTreeSet<_> = self.files.iter().map(|path| path.display().to_string()).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }

    /// Every known key with its value and origin, as `updatectl config` prints them.
    #[must_use]
    pub fn effective(&self) -> Vec<Effective> {
        keys::KEYS
            .iter()
            .map(|key| match self.values.get(key.path) {
                Some(set) => Effective {
                    key: key.path,
                    value: Some(set.value.to_string()),
                    origin: Some(set.origin.clone()),
                },
                None => Effective {
                    key: key.path,
                    value: key.default.map(str::to_owned),
                    origin: key.default.map(|_| Origin::Default),
                },
            })
            .collect()
    }
}

/// What is wrong with a configuration whose files could be read.
#[derive(Debug)]
pub struct Problems {
    /// Required settings that no file sets.
    pub missing: Vec<&'static str>,
    /// Values that their settings do not take.
    pub invalid: Vec<ConfigError>,
}

/// One setting as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key, with its tables.
    pub key: &'static str,
    /// The value, as TOML; `None` where nothing sets it and there is no default.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: Option<Origin>,
}

fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let error = |source| ConfigError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    Ok(files)
}
