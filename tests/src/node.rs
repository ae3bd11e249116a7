//! Steps 5 to 12: a machine with a disk, an engine and a boot loader.

use crate::bus::Bus;
use crate::process::{Run, Running, run, start};
use crate::world::{World, path};
use anyhow::{Context, Result, bail};
use protocol::slot::Slot;
use protocol::status::Status;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A machine: what it booted is what its loader last said.
#[derive(Debug)]
pub struct Node<'w> {
    world: &'w World,
    folder: PathBuf,
    /// The disk: a file, or the device that the file is behind.
    pub disk: PathBuf,
    /// The slot that runs.
    pub booted: Slot,
    /// The version on the kernel command line's os-release, where a test gives one.
    pub version: Option<String>,
    /// The boot id, where a test gives one.
    pub boot_id: Option<String>,
    /// Further arguments of every engine run.
    pub arguments: Vec<String>,
    strategy: String,
}

/// How a node is made.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The image in slot A.
    pub root: &'a Path,
    /// Its version.
    pub version: &'a str,
    /// The length of each root partition, as `image-tools` reads it.
    pub slot_size: &'a str,
    /// Further arguments of `image-tools disk create`.
    pub disk_arguments: &'a [&'a str],
    /// The channel it follows.
    pub channel: &'a str,
    /// When it reboots: `reboot.strategy`.
    pub strategy: &'a str,
    /// Further lines of its configuration file; the first of them are in `[reboot]`.
    pub config: &'a str,
}

impl<'w> Node<'w> {
    /// A machine whose slot A runs, confirmed, in a folder of its own; it talks to `server`.
    ///
    /// # Errors
    /// Where the disk cannot be made.
    pub fn new(world: &'w World, name: &str, server: &str, setup: &Setup<'_>) -> Result<Self> {
        let folder = world.folder().join(name);
        std::fs::create_dir_all(&folder)?;
        let disk = folder.join("disk.img");
        let mut arguments =
            vec!["disk", "create", path(&disk)?, "--slot-size", setup.slot_size, "--root", path(setup.root)?];
        arguments.extend_from_slice(setup.disk_arguments);
        world.image_tools(&arguments)?.ok()?;
        let node = Self {
            world,
            folder,
            disk,
            booted: Slot::A,
            version: Some(setup.version.to_owned()),
            boot_id: None,
            arguments: Vec::new(),
            strategy: setup.strategy.to_owned(),
        };
        node.configure(server, setup.channel, setup.config)?;
        Ok(node)
    }

    /// Writes the configuration file anew.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn configure(&self, server: &str, channel: &str, more: &str) -> Result<()> {
        let root = self.world.keys().join("root.json");
        let text = format!(
            "[server]\nurl = \"{server}\"\n\n[identity]\nchannel = \"{channel}\"\ngroup = \"lab\"\n\n\
             [trust]\nroot = \"{}\"\n\n[reboot]\nstrategy = \"{}\"\n{more}",
            root.display(),
            self.strategy
        );
        std::fs::write(self.config(), text).context("cannot write the configuration")
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("node.toml")
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The command that runs the engine once; `more` are further arguments.
    #[must_use]
    pub fn engine_command(&self, more: &[&str]) -> Command {
        self.run_command("--once", more)
    }

    fn run_command(&self, how: &str, more: &[&str]) -> Command {
        let mut command = Command::new(&self.world.programs.update_engine);
        command.args(["run", how, "--config"]).arg(self.config());
        command.arg("--disk").arg(&self.disk).arg("--state-dir").arg(self.state());
        command.args(["--booted", self.booted.as_str()]);
        if let Some(version) = &self.version {
            command.args(["--version", version]);
        }
        if let Some(boot_id) = &self.boot_id {
            command.args(["--boot-id", boot_id]);
        }
        command.args(&self.arguments).args(more);
        command
    }

    /// The command that runs the engine as a service, on the bus; `more` are further arguments.
    #[must_use]
    pub fn service_command(&self, bus: &Bus, more: &[&str]) -> Command {
        let mut command = self.run_command("--bus", more);
        bus.serve(&mut command);
        command
    }

    /// The command that runs `updatectl` as a user of this node's bus would.
    #[must_use]
    pub fn updatectl_on(&self, bus: &Bus, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.world.programs.updatectl);
        bus.serve(command.args(arguments).arg("--config").arg(self.config()));
        command
    }

    /// Runs the engine once, to its end.
    ///
    /// # Errors
    /// Where it cannot be run; how it ends is the caller's business.
    pub fn engine(&self, more: &[&str]) -> Result<Run> {
        run(&mut self.engine_command(more))
    }

    /// Starts the engine.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_engine(&self, more: &[&str]) -> Result<Running> {
        start(&mut self.engine_command(more))
    }

    /// What `updatectl status --json` says of it.
    ///
    /// # Errors
    /// Where it fails or prints something else than a status.
    pub fn status(&self) -> Result<Status> {
        let said = self.updatectl(&["status", "--json"])?.ok()?;
        serde_json::from_value(said.json()?).with_context(|| format!("not a status: {said}"))
    }

    /// Waits until the status says that a running engine has taken in so many bytes of payload: what a line
    /// delivered may still be in the kernel's buffers.
    ///
    /// # Errors
    /// Where that does not happen within two minutes.
    pub fn wait_downloaded(&self, bytes: u64) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let progress = self.status()?.progress;
            if progress.bytes_downloaded >= bytes {
                return Ok(());
            }
            if Instant::now() > limit {
                bail!("{bytes} bytes were delivered, the status says {progress:?}");
            }
        }
    }

    /// Runs `updatectl` on the node.
    ///
    /// # Errors
    /// Where it cannot be run; how it ends is the caller's business.
    pub fn updatectl(&self, arguments: &[&str]) -> Result<Run> {
        let mut command = Command::new(&self.world.programs.updatectl);
        run(command.args(arguments).arg("--state-dir").arg(self.state()))
    }

    /// Boots: the loader's rule picks a slot and spends a try, and that slot runs.
    ///
    /// # Errors
    /// Where no slot can be booted.
    pub fn boot(&mut self) -> Result<Slot> {
        let said = self.world.image_tools(&["disk", "boot", path(&self.disk)?, "--json"])?.ok()?.json()?;
        let slot = said["slot"].as_str().with_context(|| format!("no slot was chosen: {said}"))?;
        self.booted = slot.parse().map_err(|_| anyhow::anyhow!("not a slot: {slot}"))?;
        // From here on the engine knows from its state folder what runs where.
        self.version = None;
        Ok(self.booted)
    }

    /// What `image-tools disk show --json` says of its disk.
    ///
    /// # Errors
    /// Where it fails.
    pub fn disk_json(&self) -> Result<Value> {
        self.world.image_tools(&["disk", "show", path(&self.disk)?, "--json"])?.ok()?.json()
    }

    /// The disk, opened as the engine does, to read only.
    ///
    /// # Errors
    /// Where it cannot be read as a GPT disk with two slots.
    pub fn open_disk(&self) -> Result<disk::Disk> {
        let medium = disk::DiskFile::open(&self.disk, disk::Access::Read)?;
        Ok(disk::Disk::open(std::sync::Arc::new(medium), &disk::SlotLayout::default())?)
    }

    /// Compares a partition of a slot, byte by byte, with an image, which may be shorter.
    ///
    /// # Errors
    /// Where they differ, saying where.
    pub fn compare(&self, slot: Slot, role: &str, image: &Path) -> Result<()> {
        let opened = self.open_disk()?;
        let view = opened
            .partition(slot, &role.parse()?)
            .with_context(|| format!("no {role} partition in {slot}"))?;
        let disk = File::open(&self.disk)?;
        let expected = File::open(image)?;
        let length = expected.metadata()?.len();
        let mut ours = vec![0; 1 << 20];
        let mut theirs = vec![0; 1 << 20];
        let mut at = 0;
        while at < length {
            let part = usize::try_from((length - at).min(1 << 20))?;
            disk.read_exact_at(&mut ours[..part], view.offset + at)?;
            expected.read_exact_at(&mut theirs[..part], at)?;
            if ours[..part] != theirs[..part] {
                let byte = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(0);
                bail!("{role} of slot {slot} differs from {} at byte {}", image.display(), at + byte as u64);
            }
            at += part as u64;
        }
        Ok(())
    }

    /// Whether `sgdisk -v` finds the partition table in order; none where `sgdisk` is not there.
    ///
    /// # Errors
    /// Where it finds problems.
    pub fn sgdisk_verify(&self) -> Result<Option<()>> {
        let Some(sgdisk) = crate::images::find_program("sgdisk") else { return Ok(None) };
        let said = run(Command::new(sgdisk).arg("-v").arg(&self.disk))?;
        if said.code == Some(0) && said.stdout.contains("No problems found") {
            Ok(Some(()))
        } else {
            bail!("the partition table has problems: {said}")
        }
    }
}
