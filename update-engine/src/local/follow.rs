//! All steps: the status as it changes, from the engine on the bus, or else from the state folder.

use super::{LocalError, NodeOptions, warn};
use crate::bus::client::{AskError, Following, Remote, Seen};
use crate::error::chain;
use crate::state::StateFolder;
use crate::status::StatusSource;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often the state folder is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often an engine is looked for on the bus while there is none.
const FIND_EVERY: Duration = Duration::from_secs(2);

/// What following brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The status is now this.
    Seen(Box<Seen>),
    /// The engine that was followed is gone.
    Gone,
}

/// Follows an engine, and one after it.
#[derive(Debug)]
pub(super) struct Follow {
    folder: StateFolder,
    /// Which engine on the bus may be asked.
    meant: Meant,
    remote: Option<(Remote, Following)>,
    find_at: Instant,
    last: Option<Seen>,
    /// Whether an engine ran when the folder was last looked at.
    ran: bool,
    /// Why the bus was not used the last time that it was not.
    warned: String,
}

/// Which engine on the bus is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meant {
    /// None: the options name a state folder or a disk.
    Nobody,
    /// The one that is there.
    Any,
    /// The one of this state folder, which the configuration that was named names.
    Of(PathBuf),
}

impl Meant {
    fn by(options: &NodeOptions) -> Self {
        if !options.by_bus() {
            return Self::Nobody;
        }
        options.folder_of_config().map_or(Self::Any, Self::Of)
    }

    /// Whether it is the engine of this folder.
    fn is(&self, dir: &Path) -> bool {
        let real = |dir: &Path| std::fs::canonicalize(dir).or_else(|_| std::path::absolute(dir)).ok();
        match self {
            Self::Nobody => false,
            Self::Any => true,
            Self::Of(wanted) => real(wanted) == real(dir),
        }
    }

    /// The engine on the bus and its state folder, as far as it says, if it may be asked.
    async fn find(&self, warned: &mut String) -> Option<(Remote, Option<PathBuf>)> {
        if *self == Self::Nobody {
            return None;
        }
        let remote = told(Remote::find().await, warned).flatten()?;
        let dir = told(remote.state_dir().await, warned);
        // One that does not say is believed to be the one.
        dir.as_deref().is_none_or(|dir| self.is(dir)).then_some((remote, dir))
    }
}

/// The state folder of the engine on the bus, where one is meant; else the configured one.
pub(super) async fn folder(options: &NodeOptions) -> Result<PathBuf, LocalError> {
    match Meant::by(options).find(&mut String::new()).await {
        Some((_, Some(dir))) => Ok(dir),
        _ => Ok(options.folder()?),
    }
}

/// What the bus told. That the state folder serves instead is said where something is wrong, and once; an engine that
/// went is nothing wrong.
fn told<T>(answer: Result<T, AskError>, warned: &mut String) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(AskError::Gone) => None,
        Err(error) => {
            let line = chain(&error);
            if line != *warned {
                warn(&format!("{line}; going by the state folder"));
                *warned = line;
            }
            None
        }
    }
}

impl Follow {
    /// Begins with the engine on the bus, if there is one and the options do not name another.
    pub(super) async fn begin(options: &NodeOptions) -> Result<Self, LocalError> {
        let mut warned = String::new();
        let meant = Meant::by(options);
        let (remote, dir) = meant.find(&mut warned).await.unzip();
        let dir = dir.flatten();
        // The configuration may be missing or wrong where the engine itself says what is to be known.
        let dir = dir.map_or_else(|| options.folder(), Ok)?;
        let mut follow = Self {
            folder: StateFolder::view(&dir),
            meant,
            remote: None,
            find_at: Instant::now() + FIND_EVERY,
            last: None,
            ran: false,
            warned,
        };
        if let Some(remote) = remote {
            follow.attach(remote).await;
        }
        Ok(follow)
    }

    /// The state folder.
    pub(super) fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Whether an engine is at work on the folder, or on the bus.
    pub(super) fn has_engine(&self) -> bool {
        self.remote.is_some() || self.folder.has_engine()
    }

    /// The engine on the bus.
    pub(super) fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref().map(|(remote, _)| remote)
    }

    /// The process id of the engine that works on the state folder.
    pub(super) fn engine(&self) -> Option<u32> {
        self.folder.engine()
    }

    /// Has [`Self::next`] give the present status, whether it differs or not.
    pub(super) fn afresh(&mut self) {
        self.last = None;
    }

    /// The next status that differs from the last one: the first time, the present one.
    pub(super) async fn next(&mut self) -> Result<Change, LocalError> {
        loop {
            let change = match &mut self.remote {
                Some((remote, following)) => {
                    // A connection that is closed is not asked: nothing would answer.
                    let alive = self.last.is_none() || following.changed().await;
                    let seen = if alive { remote.seen().await } else { Err(AskError::Gone) };
                    match told(seen, &mut self.warned) {
                        Some(seen) => Some(seen),
                        None => {
                            self.remote = None;
                            self.find_at = Instant::now() + FIND_EVERY;
                            return Ok(Change::Gone);
                        }
                    }
                }
                None => match self.look().await? {
                    Change::Gone => return Ok(Change::Gone),
                    Change::Seen(seen) => Some(*seen),
                },
            };
            if let Some(seen) = change.filter(|seen| self.last.as_ref() != Some(seen)) {
                self.last = Some(seen.clone());
                return Ok(Change::Seen(Box::new(seen)));
            }
        }
    }

    async fn find(&mut self) {
        self.find_at = Instant::now() + FIND_EVERY;
        if let Some((remote, dir)) = self.meant.find(&mut self.warned).await {
            if let Some(dir) = dir {
                self.folder = StateFolder::view(&dir);
            }
            self.attach(remote).await;
        }
    }

    async fn attach(&mut self, remote: Remote) {
        if let Some(following) = told(remote.follow().await, &mut self.warned) {
            self.remote = Some((remote, following));
        }
    }

    /// Looks at the folder; not for the first time only after a while.
    async fn look(&mut self) -> Result<Change, LocalError> {
        if self.last.is_some() {
            sleep(LOOK_EVERY).await;
            if Instant::now() >= self.find_at {
                self.find().await;
            }
            if let Some((remote, _)) = &self.remote
                && let Ok(seen) = remote.seen().await
            {
                return Ok(Change::Seen(Box::new(seen)));
            }
        }
        let running = self.folder.has_engine();
        if std::mem::replace(&mut self.ran, running) && !running {
            return Ok(Change::Gone);
        }
        match (self.folder.status(), &self.last) {
            // The folder does not tell whether an operation runs: a status that stays is taken to be at rest.
            (Ok(status), last) => {
                let busy = running && last.as_ref().is_none_or(|last| last.status != status);
                Ok(Change::Seen(Box::new(Seen { status, busy })))
            }
            // The engine is replacing it.
            (Err(_), Some(last)) => Ok(Change::Seen(Box::new(last.clone()))),
            (Err(error), None) => Err(error.into()),
        }
    }
}
