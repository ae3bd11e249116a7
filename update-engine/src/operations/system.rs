//! Steps 5, 10 and 12: the operations that ask the system or its owner: hooks, what holds a reboot, the reboot, the
//! health of a release.

use super::{Context, Operations};
use crate::error::chain;
use crate::health;
use crate::reboot::reboot;
use crate::system::alerts::Alerts;
use crate::system::bus::Bus;
use crate::system::hooks::{self, Stage, Subject};
use crate::system::logind::{self, Holders, Warnings};
use machine::{Failure, FailureKind, Health, Hold, HoldKind, Release};
use protocol::slot::Slot;
use protocol::version::Version;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What the node's owner has run.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// The folder with a folder for each stage, if any is to be used.
    pub dir: Option<PathBuf>,
    /// For each hook but those before a reboot.
    pub timeout: Duration,
    /// For each hook before a reboot.
    pub reboot_timeout: Duration,
}

/// How the node is rebooted, and who is asked first.
#[derive(Debug)]
pub struct Rebooting {
    /// The command; logind where there is none.
    pub command: Option<Vec<String>>,
    /// Where logind is.
    pub bus: Bus,
    /// The alerts that hold a reboot, if any do.
    pub alerts: Option<Alerts>,
    /// Whether users are warned.
    pub warn: bool,
    /// How long the machine respects who holds a reboot.
    pub hold_max: Duration,
    /// Who was warned already.
    pub warnings: Mutex<Warnings>,
}

fn subject(slot: Slot, version: &Version) -> Subject {
    Subject { slot: slot.to_string(), version: version.to_string() }
}

impl Operations {
    pub(super) async fn pre_install(&self, release: &Release, target: Slot) -> Result<(), Failure> {
        let Hooks { dir, timeout, .. } = &self.hooks;
        let subject = subject(target, &release.version);
        let hooks = async {
            let ran = hooks::run(dir.as_deref(), Stage::PreInstall, &subject, *timeout).await;
            ran.map_err(|why| Failure::new(FailureKind::Held, why))
        };
        self.unless_stopped(hooks).await
    }

    pub(super) async fn post_confirm(&self, context: &Context, version: &Version) -> Result<(), Failure> {
        let Hooks { dir, timeout, .. } = &self.hooks;
        let subject = subject(context.facts.slot, version);
        let hooks = async {
            let ran = hooks::run(dir.as_deref(), Stage::PostConfirm, &subject, *timeout).await;
            ran.map_err(|why| Failure::new(FailureKind::Node, why))
        };
        self.unless_stopped(hooks).await
    }

    /// Runs the pre-reboot hooks, then asks logind who holds the reboot. With `force` those who do are told, and hold it
    /// no more. Alerts are looked for before the hooks, which would drain the node for nothing, and after them, as they take
    /// their time.
    pub(super) async fn prepare_reboot(
        &self,
        context: &Context,
        version: &Version,
        with_hooks: bool,
        force: bool,
    ) -> Result<(), Hold> {
        let running = context.facts.slot;
        let next = if *version == context.running { running } else { running.other() };
        let prepare = async {
            if let Err(hold) = self.rebooting.alerts().await {
                return Ok(Err(hold));
            }
            if with_hooks {
                let Hooks { dir, reboot_timeout, .. } = &self.hooks;
                let subject = subject(next, version);
                let ran = hooks::run(dir.as_deref(), Stage::PreReboot, &subject, *reboot_timeout).await;
                if let Err(why) = ran {
                    return Ok(Err(Hold::new(HoldKind::Hook, why)));
                }
                if let Err(hold) = self.rebooting.alerts().await {
                    return Ok(Err(hold));
                }
            }
            Ok(if self.own_disk { self.rebooting.holders(version, force).await } else { Ok(()) })
        };
        match self.unless_stopped(prepare).await {
            Ok(prepared) => prepared,
            Err(stopped) => Err(Hold::new(HoldKind::Stopped, stopped.detail)),
        }
    }

    pub(super) async fn reboot(&self) -> Result<(), Failure> {
        let Rebooting { command, bus, warn, .. } = &self.rebooting;
        let wall = if *warn { "update-engine reboots this machine for an update of the system." } else { "" };
        reboot(command.as_deref(), bus, wall).await
    }

    pub(super) async fn judge(&self, context: &Context, deadline_s: u32) -> Health {
        let subject = subject(context.facts.slot, &context.running);
        let deadline = Duration::from_secs(deadline_s.into());
        let judged = async { Ok(health::judge(&self.health, &subject, deadline).await) };
        match self.unless_stopped(judged).await {
            Ok(health) => health,
            Err(failure) => Health::NotYet(failure.detail),
        }
    }
}

impl Rebooting {
    async fn alerts(&self) -> Result<(), Hold> {
        match &self.alerts {
            Some(alerts) => alerts.blocking().await.map_err(|why| Hold::new(HoldKind::Alert, why)),
            None => Ok(()),
        }
    }

    async fn holders(&self, version: &Version, force: bool) -> Result<(), Hold> {
        let holders = match logind::holders(&self.bus).await {
            Ok(holders) => holders,
            Err(error) if error.is_absence() => {
                tracing::info!("no logind, so nobody is asked about the reboot: {}", chain(&error));
                return Ok(());
            }
            // Nobody can be asked, and updates must not end because of that.
            Err(error) => {
                tracing::warn!("logind cannot tell who holds the reboot: {}", chain(&error));
                return Ok(());
            }
        };
        if self.warn {
            self.warn_users(&holders, version, force);
        }
        let Some(hold) = hold(&holders) else { return Ok(()) };
        if force {
            tracing::warn!("the reboot goes ahead over {}", hold.detail);
            return Ok(());
        }
        Err(hold)
    }

    fn warn_users(&self, holders: &Holders, version: &Version, force: bool) {
        let minutes = self.hold_max.as_secs().div_ceil(60);
        let when = if force {
            "now".to_owned()
        } else {
            format!("when nobody is logged in any more, or in {minutes} minutes at the latest")
        };
        let line = format!("update-engine: this machine is rebooted {when}, for the update to {version}.");
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if force {
            // The last word, whoever heard the earlier ones.
            *warnings = Warnings::default();
        }
        for session in warnings.due(&holders.sessions, tokio::time::Instant::now()) {
            match logind::write_to(session, Path::new("/dev"), &line) {
                Ok(()) => tracing::info!("session {session} was warned of the reboot"),
                Err(error) => tracing::warn!("session {session} cannot be warned of the reboot: {error}"),
            }
        }
    }
}

/// What the machine is told of those who hold a reboot: inhibitors first.
fn hold(holders: &Holders) -> Option<Hold> {
    fn list<T: ToString>(holders: &[T]) -> String {
        holders.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
    if !holders.inhibitors.is_empty() {
        Some(Hold::new(HoldKind::Inhibitor, list(&holders.inhibitors)))
    } else if !holders.sessions.is_empty() {
        Some(Hold::new(HoldKind::Session, list(&holders.sessions)))
    } else {
        None
    }
}
