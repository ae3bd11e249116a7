//! Steps 5 to 12: the state folder, which outlives boots and slot changes (`docs/adr/0004-state-files.md`).
//!
//! | file | what |
//! |---|---|
//! | `state.json`, `state.backup.json` | the machine's record, twice, both written at each save |
//! | `status.json` | what `updatectl status` shows; may be lost without harm |
//! | `node-id` | made at random once |
//! | `node-credential` | made at random once; a secret (0600) that binds the id on the server |
//! | `trust/` | the trust module's metadata |
//! | `heads/<sha256>` | the last payload heads, so that a resumed download does not fetch them again |
//! | `history.jsonl` | what happened, for `updatectl history` |
//! | `lock` | held by the running engine; names its process id |

pub mod files;
pub mod history;
#[cfg(test)]
mod tests;

use files::{Copy, read_copy};
use machine::Record;
use protocol::id::NodeId;
use protocol::wire::NodeCredential;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A state folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder belongs to somebody else, as a node's does to root.
    #[error("this user may not {action} {}: run it as root, or name a folder of your own with --state-dir", path.display())]
    NotAllowed {
        /// What was tried.
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another engine works on this folder.
    #[error("another engine{} is using {}: wait for it or stop it", pid.map(|p| format!(" (process {p})")).unwrap_or_default(), dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// The other engine's process id, if known.
        pid: Option<u32>,
    },
    /// No copy of the record can be read. Nothing was changed.
    #[error(
        "the state in {} is unreadable ({problem}): refusing to go on, because the quarantine and the newest confirmed version would be lost; restore state.json from a backup, or remove all that {} holds to start as a new node",
        dir.display(),
        dir.display()
    )]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with each copy.
        problem: String,
    },
    /// Both copies of the record are gone, and the folder is not a new node's. Nothing was changed.
    #[error(
        "state.json and state.backup.json are missing in {} although {trace} is there: refusing to go on, because the quarantine and the newest confirmed version would be forgotten; restore state.json from a backup, or, if this is to be a new node, remove all that the folder holds",
        dir.display()
    )]
    Lost {
        /// The folder.
        dir: PathBuf,
        /// The file that shows that there was a record.
        trace: &'static str,
    },
    /// The record was written by a newer engine. Nothing was changed.
    #[error("{} has schema {found}: expected {expected}; a newer engine wrote it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema this engine reads.
        expected: u32,
        /// The schema found.
        found: u64,
    },
    /// The node id is not one.
    #[error("{} does not hold a node id: remove it, and the node gets a new one", path.display())]
    NodeId {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: protocol::id::InvalidId,
    },
    /// The node's credential is not one.
    #[error("{} does not hold the node's credential: the engine makes a new one when it starts", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: protocol::wire::InvalidCredential,
    },
    /// What an engine makes when it first starts is not there.
    #[error(
        "there is no {}: no engine has run with this state folder yet (--state-dir)",
        path.display()
    )]
    NoEngineYet {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness for a node id or credential.
    #[error("cannot make the node's id or credential: no randomness ({0})")]
    Randomness(getrandom::Error),
}

/// How often, and after how long each time, a lock that is held is tried again.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Files that are only written once there is a record.
const TRACES: [&str; 5] = [
    "node-id",
    "trust/seen/floor.json",
    "trust/seen/floor.backup.json",
    "history.jsonl",
    "history.old.jsonl",
];

/// The record as it was found.
#[derive(Debug)]
pub struct Loaded {
    /// The record; `None` on a new node.
    pub record: Option<Record>,
    /// What was wrong with the copies, and where they are now; for the operator.
    pub problems: Vec<String>,
}

/// The state folder of a node.
#[derive(Debug)]
pub struct StateFolder {
    dir: PathBuf,
    lock: Option<File>,
}

impl StateFolder {
    /// Opens the folder for an engine, making it if it is missing, and keeps others out until it is dropped.
    ///
    /// # Errors
    /// [`StateError::Locked`] where another engine has it, [`StateError::Io`]
    pub fn lock(dir: &Path) -> Result<Self, StateError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::PermissionDenied => StateError::NotAllowed { action, path, source },
                _ => StateError::Io { action, path, source },
            }
        };
        std::fs::create_dir_all(dir).map_err(io("make", dir))?;
        let path = dir.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open", &path))?;
        match try_lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::Locked { dir: dir.to_owned(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(io("write", &path))?;
        Ok(Self { dir: dir.to_owned(), lock: Some(file) })
    }

    /// Opens the folder for reading, beside an engine that may be running.
    #[must_use]
    pub fn view(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), lock: None }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where the trust module keeps its metadata.
    #[must_use]
    pub fn trust_dir(&self) -> PathBuf {
        self.dir.join("trust")
    }

    /// Where payload heads are kept.
    #[must_use]
    pub fn heads_dir(&self) -> PathBuf {
        self.dir.join("heads")
    }

    /// Where the status is.
    #[must_use]
    pub fn status_path(&self) -> PathBuf {
        self.dir.join("status.json")
    }

    /// The process id of the engine at work on this folder.
    #[must_use]
    pub fn engine(&self) -> Option<u32> {
        self.held().and_then(|mut file| read_pid(&mut file))
    }

    /// Whether an engine is at work on this folder.
    #[must_use]
    pub fn has_engine(&self) -> bool {
        self.held().is_some()
    }

    /// The lock, where an engine holds it. Told by the lock itself, which needs no right but to read the file: what
    /// another process has open is not shown to everybody who may ask.
    fn held(&self) -> Option<File> {
        let file = File::open(self.dir.join("lock")).ok()?;
        match file.try_lock_shared() {
            // Let go when the file is closed, at once; an engine that starts at this moment waits for it.
            Ok(()) | Err(TryLockError::Error(_)) => None,
            Err(TryLockError::WouldBlock) => Some(file),
        }
    }

    /// Reads the record: the newer of its readable copies. With the lock held, an unreadable copy beside a readable
    /// one is set aside under another name. Where there was a record and none is readable, nothing is touched.
    ///
    /// # Errors
    /// [`StateError::Unreadable`], [`StateError::Lost`], [`StateError::Newer`], [`StateError::Io`]
    pub fn load(&self) -> Result<Loaded, StateError> {
        // Looked for first: an engine beside this view that starts on a new node writes the record before them.
        let trace = TRACES.into_iter().find(|name| self.dir.join(name).exists());
        let mut best: Option<(u64, Record)> = None;
        let mut damaged = Vec::new();
        for name in files::COPIES {
            let path = self.dir.join(name);
            match read_copy(&path)? {
                Copy::Missing => {}
                Copy::Good { saved, record } => {
                    if best.as_ref().is_none_or(|(newest, _)| saved > *newest) {
                        best = Some((saved, *record));
                    }
                }
                Copy::Damaged(problem) => damaged.push((path, format!("{name}: {problem}"))),
            }
        }
        if best.is_none() {
            if !damaged.is_empty() {
                let problems: Vec<_> = damaged.into_iter().map(|(_, problem)| problem).collect();
                return Err(StateError::Unreadable { dir: self.dir.clone(), problem: problems.join("; ") });
            }
            if let Some(trace) = trace {
                return Err(StateError::Lost { dir: self.dir.clone(), trace });
            }
        }
        let mut problems = Vec::new();
        for (path, problem) in damaged {
            problems.push(match &self.lock {
                Some(_) => {
                    let aside = files::set_aside(&path)?;
                    format!("{problem}; set aside as {}, the other copy serves", aside.display())
                }
                None => problem,
            });
        }
        Ok(Loaded { record: best.map(|(_, record)| record), problems })
    }

    /// As [`Self::load`], and the id of the node. On a new node the record is made durable before anything else is
    /// written, so that a folder without one is either new or has lost it.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn start(&self) -> Result<(Record, NodeId, Vec<String>), StateError> {
        let Loaded { record, problems } = self.load()?;
        let record = match record {
            Some(record) => record,
            None => {
                let record = Record::default();
                self.save(&record)?;
                record
            }
        };
        Ok((record, self.node_id()?, problems))
    }

    /// Makes a record durable in both copies.
    ///
    /// # Errors
    /// [`StateError::Io`]; the copies then hold the old or the new record each.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let newest = files::COPIES.iter().filter_map(|name| match read_copy(&self.dir.join(name)) {
            Ok(Copy::Good { saved, .. }) => Some(saved),
            _ => None,
        });
        let saved = newest.max().unwrap_or(0) + 1;
        for name in files::COPIES {
            let path = self.dir.join(name);
            files::write_copy(&path, saved, record).map_err(|source| StateError::Io {
                action: "write",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// The node's id, made at random where there is none.
    ///
    /// # Errors
    /// [`StateError`]
    fn node_id(&self) -> Result<NodeId, StateError> {
        let path = self.dir.join("node-id");
        let parse = |text: &str| {
            text.trim().parse().map_err(|source| StateError::NodeId { path: path.clone(), source })
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes).map_err(StateError::Randomness)?;
                let text = hex::encode(bytes);
                disk::durable::write(&path, format!("{text}\n").as_bytes())
                    .map_err(|source| StateError::Io { action: "write", path: path.clone(), source })?;
                parse(&text)
            }
            Err(source) => Err(StateError::Io { action: "read", path, source }),
        }
    }
}

/// A file of the node's own, and the problem with it if it had to be made anew.
type Credential = (NodeCredential, Option<String>);

impl StateFolder {
    /// The node's own credential, made at random where there is none. One that cannot be used is set aside, and a new
    /// one made: the server refuses that until an operator resets the node's credential, but nothing else depends on it.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn credential(&self) -> Result<Credential, StateError> {
        let path = self.dir.join("node-credential");
        let problem = match std::fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(credential) => return Ok((credential, None)),
                Err(error) => Some(format!("{}: {error}", path.display())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Some(format!("{}: {error}", path.display()))
            }
            Err(source) => return Err(StateError::Io { action: "read", path, source }),
        };
        let problem = match problem {
            Some(problem) => {
                let aside = files::set_aside(&path)?;
                Some(format!(
                    "{problem}; set aside as {} and made anew: updatectl node reset-credential NODE lets the server hear this \
                     node again",
                    aside.display()
                ))
            }
            None => None,
        };
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(StateError::Randomness)?;
        let credential = NodeCredential::from_random(bytes);
        disk::durable::write_with_mode(&path, format!("{}\n", credential.reveal()).as_bytes(), 0o600)
            .map_err(|source| StateError::Io { action: "write", path, source })?;
        Ok((credential, problem))
    }
}

impl StateFolder {
    /// The node's id, for others than the engine: it is made by none of them.
    ///
    /// # Errors
    /// [`StateError::NoEngineYet`], [`StateError::NotAllowed`], [`StateError::NodeId`], [`StateError::Io`]
    pub fn known_node(&self) -> Result<NodeId, StateError> {
        let path = self.dir.join("node-id");
        let text = read_own(&path)?;
        text.trim().parse().map_err(|source| StateError::NodeId { path, source })
    }

    /// The node's credential, as [`Self::known_node`]. As a rule only root may read it.
    ///
    /// # Errors
    /// As [`Self::known_node`], with [`StateError::Credential`].
    pub fn known_credential(&self) -> Result<NodeCredential, StateError> {
        let path = self.dir.join("node-credential");
        let text = read_own(&path)?;
        text.trim().parse().map_err(|source| StateError::Credential { path, source })
    }
}

/// A file that the engine made, read by somebody else.
fn read_own(path: &Path) -> Result<String, StateError> {
    std::fs::read_to_string(path).map_err(|source| {
        let (action, path) = ("read", path.to_owned());
        match source.kind() {
            io::ErrorKind::NotFound => StateError::NoEngineYet { path },
            io::ErrorKind::PermissionDenied => StateError::NotAllowed { action, path, source },
            _ => StateError::Io { action, path, source },
        }
    })
}

/// Locks for an engine. Who only asks whether there is one holds a shared lock for a moment, so it is tried for a while.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            other => return other,
        }
    }
    file.try_lock()
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
