//! Steps 4 and 9, channel and permit: what policy files have in common, whatever the policy is about.
//!
//! A file is TOML and read as a whole: all that is wrong with it is reported, each with its line and column.

mod check;
mod difference;
pub(crate) mod print;
mod read;

pub(crate) use check::{problem, repeated, window_problems};
pub(crate) use difference::difference;
pub use read::duration;
pub(crate) use read::{Reader, Value};

use std::fmt;

/// One key of a policy file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path; `NAME` stands for a name that the operator chooses.
    pub path: &'static str,
    /// What holds where it is left out, as TOML. None where it is required, or optional and off.
    pub default: Option<&'static str>,
    /// What it means.
    pub doc: &'static str,
}

/// A key as the tables have it.
pub(crate) const fn key(path: &'static str, default: Option<&'static str>, doc: &'static str) -> Key {
    Key { path, default, doc }
}

/// Those of `keys` that are known in a table, by its path.
fn known(keys: &[Key], table: &str) -> Vec<&'static str> {
    let inside = |key: &Key| key.path.strip_prefix(table)?.strip_prefix('.')?.split('.').next();
    let mut names: Vec<_> = keys.iter().filter_map(inside).collect();
    names.dedup();
    names
}

/// What is wrong with a policy: where, what is allowed and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct Problem {
    /// The key, as in a policy file: `max`, `zones.limits.r1`, `windows.0`.
    pub key: String,
    /// What is allowed and what was found, in one line.
    pub message: String,
}

/// Something wrong with a policy file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct PolicyFileError {
    /// The file's name, as it was given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The key, what is allowed and what was found, in one line.
    pub message: String,
}

/// Everything wrong with a policy file, from its top to its end, at least one thing. Printed one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFileErrors(pub Vec<PolicyFileError>);

impl std::error::Error for PolicyFileErrors {}

impl fmt::Display for PolicyFileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
