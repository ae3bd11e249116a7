//! All steps: `updatectl config import`, which writes down what another engine's configuration means here.

use super::show::{print, print_json};
use super::{LocalError, SCHEMA};
use crate::config::import::{ImportError, Imported, import};
use clap::{Args, Subcommand};
use protocol::status::Exit;
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes: configurations are a few kilobytes.
const LONGEST: u64 = 4 << 20;

/// What to do with the configuration.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    /// Nothing: show it.
    #[command(subcommand)]
    pub command: Option<ConfigCommand>,
}

/// The commands about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Translate another engine's configuration: a #cloud-config, an update.conf, a Zincati TOML. What has no equivalent
    /// or means something else here is named on stderr and in the result. Exits 3 where there was nothing to translate.
    Import(ImportOptions),
}

/// What to translate, and where to.
#[derive(Debug, Args)]
pub struct ImportOptions {
    /// The configuration to translate; its content tells what it is.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The fragment to write, as in /etc/update-engine/config.d/50-imported.toml; standard output if not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file that is there.
    #[arg(long, requires = "out")]
    force: bool,
}

/// A configuration that was not translated.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not understood.
    #[error("cannot import {}", path.display())]
    Import {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImportError,
    },
    /// The result would replace a file.
    #[error("{} is there already: expected a new file; nothing was changed; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// The result cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs it.
pub(super) fn run(options: &ImportOptions, json: bool) -> Result<Exit, LocalError> {
    let text = read(&options.file)?;
    let imported =
        import(&text).map_err(|source| TranslateError::Import { path: options.file.clone(), source })?;
    let fragment = imported.fragment(&options.file.display().to_string());
    if let Some(out) = &options.out {
        write(out, &fragment, options.force)?;
    }
    if json {
        print_json(&json!({
            "schema": SCHEMA, "source": options.file, "format": imported.format, "settings": imported.settings,
            "notes": imported.notes, "fragment": fragment, "out": options.out,
        }))?;
    } else {
        tell(&imported);
        match &options.out {
            Some(out) => print(&format!("wrote {}", out.display()))?,
            None => print(fragment.trim_end())?,
        }
    }
    Ok(if imported.settings.is_empty() { Exit::NothingToDo } else { Exit::Done })
}

fn tell(imported: &Imported) {
    for note in &imported.notes {
        let line: String = note.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        eprintln!("updatectl: {line}");
    }
}

fn read(path: &Path) -> Result<String, TranslateError> {
    use io::Read as _;
    let error = |source| TranslateError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(error)?;
    let read = file.take(LONGEST + 1).read_to_string(&mut text).map_err(error)?;
    if read as u64 > LONGEST {
        let problem = format!("expected at most {LONGEST} bytes");
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, problem)));
    }
    Ok(text)
}

/// Whole or not at all: a fragment that is half written would keep the engine from starting.
fn write(path: &Path, fragment: &str, force: bool) -> Result<(), TranslateError> {
    if !force && path.symlink_metadata().is_ok() {
        return Err(TranslateError::Exists(path.to_owned()));
    }
    disk::durable::write_with_mode(path, fragment.as_bytes(), 0o644)
        .map_err(|source| TranslateError::Write { path: path.to_owned(), source })
}
