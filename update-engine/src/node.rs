//! All steps: an engine put together from its configuration, and run once or until it is stopped.

use crate::boot::{self, BootError, Booted, Given};
use crate::check::Checker;
use crate::config::Settings;
use crate::driver::{Driver, Parts, Shown, Signal};
use crate::health::Checks;
use crate::install::{Installer, Meter};
use crate::network::{Client, NetworkError};
use crate::operations::{Hooks, Locking, Operations, Rebooting};
use crate::pause::Pause;
use crate::slots::{Media, Slots, SlotsError};
use crate::state::{StateError, StateFolder};
use crate::system::alerts::Alerts;
use crate::system::bus::Bus;
use crate::system::disk::{DiscoveryError, Root, find};
use crate::system::evidence::{self, Places};
use crate::system::logind::Warnings;
use crate::system::units::{Units, systemd_runs};
use machine::{Facts, Mode, Record, Start, State};
use protocol::status::{Exit, Status};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// What the command line adds to the configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--disk`: a disk other than this machine's own, on which nothing is rebooted.
    pub disk: Option<PathBuf>,
    /// `--state-dir`
    pub state_dir: Option<PathBuf>,
    /// `--booted`, `--version`, `--boot-id`
    pub booted: Given,
    /// `--pause-at`
    pub pause: Pause,
}

/// An engine that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The disk.
    #[error("cannot read the slots{}", of_disk(disk, source))]
    Slots {
        /// The disk.
        disk: PathBuf,
        /// Why.
        #[source]
        source: SlotsError,
    },
    /// The running system.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The HTTP client.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No disk is configured, and none is found.
    #[error(transparent)]
    Disk(#[from] DiscoveryError),
}

/// The disk's name and what is expected of it, unless it could not even be opened, which is said with its name.
fn of_disk(disk: &Path, error: &SlotsError) -> String {
    match error {
        SlotsError::Open(_) => String::new(),
        _ => format!(" of {}, expected a disk with a GPT and two slots", disk.display()),
    }
}

impl StartError {
    /// How a program ends whose engine cannot start.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Boot(error) => error.exit(),
            _ => Exit::Failed,
        }
    }
}

/// An engine ready to start.
#[derive(Debug)]
pub struct Engine {
    /// Boxed: it is large, and whoever awaits the engine would carry it.
    driver: Box<Driver>,
    facts: Facts,
    seed: u64,
    state_dir: PathBuf,
    /// The record as it was found, for what is known of the boots before this one.
    found: Record,
}

impl Engine {
    /// Locks the state folder, reads the record and the slots, finds out what is running.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn new(settings: Settings, options: &Options) -> Result<Self, StartError> {
        let device = match options.disk.clone().or_else(|| settings.disk.device.clone()) {
            Some(device) => device,
            None => find(&settings.disk.layout)?,
        };
        Self::on(Arc::new(device), settings, options)
    }

    /// The same on a disk that is opened by other means.
    ///
    /// # Errors
    /// [`StartError`]
    pub fn on(media: Arc<dyn Media>, settings: Settings, options: &Options) -> Result<Self, StartError> {
        let state_dir = options.state_dir.clone().unwrap_or_else(|| settings.state_dir.clone());
        let folder = StateFolder::lock(&state_dir)?;
        let (record, node, mut problems) = folder.start()?;
        let (credential, problem) = folder.credential()?;
        problems.extend(problem);
        for problem in &problems {
            tracing::error!("{problem}");
        }
        if let Some(warning) = settings.policy.warning() {
            tracing::warn!("{warning}");
        }
        let seed = getrandom::u64().unwrap_or_else(|_| std::process::id().into());
        let slots = Slots::new(media, settings.disk.layout.clone());
        let facts = facts(&slots, &record, options, seed)?;
        let client = Client::new(&settings.server, settings.download.clone())?.with_credential(credential);
        let parts = Parts {
            identity: machine::Identity {
                channel: settings.identity.channel.clone(),
                group: settings.identity.group.clone(),
            },
            node: node.clone(),
            problems,
            client: client.clone(),
            operations: operations(&settings, options, &folder, &client, slots, node),
            folder,
            pause: options.pause,
            state: State::new(settings.policy, record.clone()),
        };
        Ok(Self { driver: Box::new(Driver::new(parts)), facts, seed, state_dir, found: record })
    }

    /// What the engine shows, from when it runs.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Shown>> {
        self.driver.watch()
    }

    /// The state folder, as it was named.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Runs, and returns the exit code and the last status.
    pub async fn run(self, mode: Mode, signals: mpsc::Receiver<Signal>) -> (Exit, Status) {
        let Self { driver, facts, seed, found, .. } = self;
        // Only the boots of this machine have left traces on it.
        let places = if facts.reboot_allowed { Places::default() } else { Places::none() };
        let previous = Box::pin(evidence::previous(&found, facts.slot, &facts.attributes, &places)).await;
        let start = Start { facts, mode, seed, previous };
        // Boxed for the same reason.
        Box::pin(driver.run(start, signals)).await
    }
}

fn facts(slots: &Slots, record: &Record, options: &Options, random: u64) -> Result<Facts, StartError> {
    let unread = |source| StartError::Slots { disk: slots.path().to_owned(), source };
    let disk = slots.look().map_err(unread)?;
    let attributes = slots.attributes().map_err(unread)?;
    let own_disk = options.disk.is_none();
    let Booted { slot, version, boot_id } = if own_disk {
        boot::running(Path::new("/"), &options.booted, |root: &Root| root.place(&disk, Path::new("/sys")))?
    } else {
        boot::simulated(&options.booted, record, |slot| *attributes.get(slot), random)?
    };
    Ok(Facts { boot_id, slot, version, attributes, reboot_allowed: own_disk })
}

fn operations(
    settings: &Settings,
    options: &Options,
    folder: &StateFolder,
    client: &Client,
    slots: Slots,
    node: protocol::id::NodeId,
) -> Operations {
    let abort = Arc::new(AtomicBool::new(false));
    let (health, own_disk) = (&settings.health, options.disk.is_none());
    Operations {
        checker: Checker {
            client: client.clone(),
            node: node.clone(),
            identity: settings.identity.clone(),
            trust_dir: folder.trust_dir(),
            anchor: settings.root.clone(),
        },
        installer: Installer {
            client: client.clone(),
            slots: Arc::new(Mutex::new(slots)),
            heads: folder.heads_dir(),
            meter: Arc::new(Meter::default()),
            abort: Arc::clone(&abort),
            pause: options.pause,
        },
        health: Checks {
            dir: (own_disk || health.dir_is_set).then(|| health.dir.clone()),
            check_timeout: health.check_timeout,
            units: (own_disk && systemd_runs(Path::new("/"))).then(|| {
                Units::of_this_system(health.boot_complete, health.required_units.clone(), health.settle)
            }),
            server: health.require_server.then(|| client.clone()),
        },
        hooks: Hooks {
            dir: (own_disk || settings.hooks.dir_is_set).then(|| settings.hooks.dir.clone()),
            timeout: settings.hooks.timeout,
            reboot_timeout: settings.hooks.reboot_timeout,
        },
        lock: Locking::new(settings.lock.clone(), client.clone(), node),
        rebooting: Rebooting {
            command: settings.reboot.command.clone(),
            bus: Bus::system(),
            alerts: settings.reboot.alerts.clone().map(Alerts::new),
            warn: settings.reboot.warn,
            hold_max: Duration::from_secs(settings.policy.hold_max_s.into()),
            warnings: Mutex::new(Warnings::default()),
        },
        state_dir: folder.path().to_owned(),
        own_disk,
        authorized: Mutex::new(None),
        abort,
        wake: Notify::new(),
        pause: options.pause,
    }
}
