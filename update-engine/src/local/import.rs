//! All steps: `updatectl config import`, which writes down what another engine's configuration means here.

use super::show::{print, print_json};
use super::{LocalError, SCHEMA, warn};
use crate::config::import::{ImportError, Imported, import};
use clap::{Args, Subcommand};
use protocol::status::Exit;
use serde_json::json;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
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
    /// or means something else here is named on stderr and in the result. Exits 3, and writes no file, where there was
    /// nothing to translate.
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
    /// The result would replace its source.
    #[error("{} is the file to import: expected another file for the result; nothing was changed", .0.display())]
    Source(PathBuf),
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

/// Runs it. Where there is nothing to translate, no file is written: a fragment of comments alone would only look like
/// a configuration.
pub(super) fn run(options: &ImportOptions, json: bool) -> Result<Exit, LocalError> {
    let (text, source) = read(&options.file)?;
    let imported =
        import(&text).map_err(|source| TranslateError::Import { path: options.file.clone(), source })?;
    let fragment = imported.fragment(&options.file.display().to_string());
    let nothing = imported.settings.is_empty();
    let out = options.out.as_ref().filter(|_| !nothing);
    if let Some(out) = out {
        write(out, &source, &fragment, options.force)?;
    }
    if json {
        print_json(&json!({
            "schema": SCHEMA, "source": options.file, "format": imported.format, "settings": imported.settings,
            "notes": imported.notes, "fragment": fragment, "out": out,
        }))?;
    } else {
        tell(&imported);
        match (&options.out, nothing) {
            (None, _) => print(fragment.trim_end())?,
            (Some(out), false) => print(&format!("wrote {}", out.display()))?,
            (Some(out), true) => warn(&format!(
                "nothing in {} has an equivalent: {} was not written",
                options.file.display(),
                out.display()
            )),
        }
    }
    Ok(if nothing { Exit::NothingToDo } else { Exit::Done })
}

fn tell(imported: &Imported) {
    imported.notes.iter().for_each(|note| warn(&note.to_string()));
}

/// The text, and what tells the file from every other one, under whatever name.
fn read(path: &Path) -> Result<(String, Metadata), TranslateError> {
    use io::Read as _;
    let error = |source| TranslateError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    let read = file.take(LONGEST + 1).read_to_string(&mut text).map_err(error)?;
    if read as u64 > LONGEST {
        let problem = format!("expected at most {LONGEST} bytes");
        return Err(error(io::Error::new(io::ErrorKind::FileTooLarge, problem)));
    }
    Ok((text, metadata))
}

/// Whole or not at all: a fragment that is half written would keep the engine from starting.
fn write(path: &Path, source: &Metadata, fragment: &str, force: bool) -> Result<(), TranslateError> {
    if path.metadata().is_ok_and(|there| (there.dev(), there.ino()) == (source.dev(), source.ino())) {
        return Err(TranslateError::Source(path.to_owned()));
    }
    let error = |source| TranslateError::Write { path: path.to_owned(), source };
    // Before the offer of --force, which is none where something else than a file would be replaced.
    let place = disk::durable::replaceable(path).map_err(error)?;
    if !force && path.symlink_metadata().is_ok() {
        return Err(TranslateError::Exists(path.to_owned()));
    }
    disk::durable::write(&place, fragment.as_bytes()).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "GROUP=beta\nREBOOT_STRATEGY=reboot\n";

    fn import(file: &Path, out: &Path, force: bool) -> Result<Exit, String> {
        let options = ImportOptions { file: file.to_owned(), out: Some(out.to_owned()), force };
        run(&options, true).map_err(|error| crate::error::chain(&error))
    }

    #[test]
    fn the_source_is_never_replaced_under_whatever_name() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().join(name);
        let file = name("update.conf");
        std::fs::write(&file, SOURCE).unwrap();
        std::os::unix::fs::symlink("update.conf", name("symbolic")).unwrap();
        std::fs::hard_link(&file, name("hard")).unwrap();
        for (from, to) in [
            ("update.conf", "update.conf"),
            ("update.conf", "./update.conf"),
            ("update.conf", "symbolic"),
            ("symbolic", "update.conf"),
            ("hard", "update.conf"),
        ] {
            for force in [true, false] {
                let error = import(&name(from), &name(to), force).unwrap_err();
                assert!(error.contains("is the file to import"), "{from} to {to}: {error}");
                assert_eq!(std::fs::read_to_string(&file).unwrap(), SOURCE, "{from} to {to}");
            }
        }
        let out = name("50-imported.toml");
        assert_eq!(import(&file, &out, false), Ok(Exit::Done));
        assert!(import(&file, &out, false).unwrap_err().contains("--force replaces it"));
        assert_eq!(import(&file, &out, true), Ok(Exit::Done));
        assert!(std::fs::read_to_string(&out).unwrap().contains("channel = \"beta\""));
    }

    /// The machine's own devices are left alone: a node needs root, so a link to a device and a socket stand for it.
    #[test]
    fn only_a_regular_file_is_replaced_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().join(name);
        std::fs::write(name("update.conf"), SOURCE).unwrap();
        std::fs::write(name("kept.toml"), "# mine\n").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(name("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/null", name("null")).unwrap();
        std::os::unix::fs::symlink("kept.toml", name("link")).unwrap();
        for (out, found) in [("socket", "a socket"), ("null", "a character device"), (".", "a folder")] {
            for force in [true, false] {
                let error = import(&name("update.conf"), &name(out), force).unwrap_err();
                let expected = format!("found {found}: expected a regular file, or nothing there");
                assert!(error.ends_with(&expected), "{error}");
            }
        }
        assert!(name("null").is_symlink() && name("socket").symlink_metadata().is_ok());
        assert_eq!(import(&name("update.conf"), &name("link"), true), Ok(Exit::Done));
        assert!(name("link").is_symlink());
        assert!(std::fs::read_to_string(name("kept.toml")).unwrap().contains("channel = \"beta\""));
    }

    #[test]
    fn where_there_is_nothing_to_translate_no_file_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (file, out) = (dir.path().join("update.conf"), dir.path().join("50-imported.toml"));
        std::fs::write(&file, "SERVER=https://omaha.example/\n").unwrap();
        assert_eq!(import(&file, &out, false), Ok(Exit::NothingToDo));
        assert!(!out.exists());
        std::fs::write(&out, "# mine\n").unwrap();
        assert_eq!(import(&file, &out, true), Ok(Exit::NothingToDo));
        // A file that says nothing ends in the same way.
        for empty in ["", " \n", "# only this\n"] {
            std::fs::write(&file, empty).unwrap();
            let options = ImportOptions { file: file.clone(), out: Some(out.clone()), force: true };
            let error = run(&options, true).unwrap_err();
            assert!(crate::error::chain(&error).contains("nothing to import"), "{error}");
            assert_eq!(error.exit(), Exit::NothingToDo);
        }
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "# mine\n");
    }
}
