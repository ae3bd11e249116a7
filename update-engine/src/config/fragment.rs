//! The first stage of configuration: one TOML file, each value with the line it stands on.

use super::keys::KEYS;
use super::{ConfigError, Origin};
use serde::Deserialize as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The value as it stands in the file.
    pub value: toml::Value,
    /// The file and line.
    pub origin: Origin,
}

/// The values of one file, by dotted key.
#[derive(Clone, Debug)]
pub struct Fragment {
    /// The file.
    pub path: PathBuf,
    /// Its values.
    pub values: BTreeMap<String, Sourced>,
}

impl Fragment {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`] where it cannot be read, is not TOML, or has a key that no setting has.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// [`ConfigError`] where it is not TOML or has a key that no setting has.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let place = Place { path, text };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            origin: place.origin(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', " "),
        })?;
        let mut values = BTreeMap::new();
        collect(&place, "", table.into_inner(), &mut values)?;
        Ok(Self { path: path.to_owned(), values })
    }
}

struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        Origin::File { path: self.path.to_owned(), line }
    }
}

fn collect(
    place: &Place<'_>,
    prefix: &str,
    table: DeTable<'_>,
    values: &mut BTreeMap<String, Sourced>,
) -> Result<(), ConfigError> {
    for (name, value) in table {
        let origin = place.origin(name.span().start);
        let key = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        let inner = format!("{key}.");
        let is_setting = KEYS.iter().any(|known| known.path == key);
        let is_table = KEYS.iter().any(|known| known.path.starts_with(&inner));
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) if is_table => collect(place, &key, table, values)?,
            value if is_setting => {
                let value = toml::Value::deserialize(ValueDeserializer::from(Spanned::new(span, value)))
                    .map_err(|error| ConfigError::Value {
                        origin: origin.clone(),
                        key: key.clone(),
                        problem: error.message().replace('\n', " "),
                    })?;
                values.insert(key, Sourced { value, origin });
            }
            _ => return Err(ConfigError::UnknownKey { origin, hint: hint(prefix), key }),
        }
    }
    Ok(())
}

/// The names that are known in a table.
fn hint(table: &str) -> String {
    let prefix = if table.is_empty() { String::new() } else { format!("{table}.") };
    let mut names: Vec<&str> = KEYS
        .iter()
        .filter_map(|known| known.path.strip_prefix(prefix.as_str()))
        .map(|rest| rest.split('.').next().unwrap_or(rest))
        .collect();
    names.dedup();
    let place = if table.is_empty() { "known tables".to_owned() } else { format!("known in [{table}]") };
    format!("{place}: {}", names.join(", "))
}
