//! Steps 1 to 12: a world with an operator and a server, and small guests that follow it.

use super::agent::Boot;
use super::guest::{BOOT_SIZE, Flaw, Guest, ROOT_SIZE, Spec, garbage, write_state};
use super::machine::{Hardware, Machine, logs};
use crate::world::{Release, World, path};
use anyhow::{Context as _, Result};
use protocol::id::NodeId;
use protocol::status::Status;
use serde_json::Value;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The channel that the machines follow.
pub const CHANNEL: &str = "stable";
/// The longest a machine takes from power to its agent, boots of bad releases aside.
pub const BOOT: Duration = Duration::from_secs(150);
/// The loader, where `tests/run` had it built.
pub const LOADER_VARIABLE: &str = "FLIPSIDE_BOOT_SELECT";

/// How the engine of the guests is set beside what every guest has.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Boots that a release is given.
    pub tries: u8,
    /// The reboot strategy.
    pub strategy: &'static str,
    /// The most to fetch, in bytes per second; 0 is no limit.
    pub rate_limit: u64,
    /// Bytes that differ from release to release.
    pub data: usize,
    /// Bytes in a sector of the disk.
    pub sector_size: u32,
    /// Further tables of the configuration.
    pub config: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tries: 2,
            strategy: "immediate",
            rate_limit: 0,
            data: 4 << 20,
            sector_size: 512,
            config: String::new(),
        }
    }
}

/// A world with guests.
#[derive(Debug)]
pub struct Site {
    /// The operator and the server.
    pub world: World,
    name: String,
    guest: Guest,
    config: String,
    settings: Settings,
    began: Instant,
    times: File,
}

impl Site {
    /// A site; `name` names the test in the logs. Nothing where nobody built a loader, so that tests of other things
    /// do not need QEMU, a cross compiler and a kernel.
    ///
    /// # Errors
    /// Where a program is missing or fails; where tests have to be complete, also where nobody built a loader.
    pub fn new(name: &str, settings: Settings) -> Result<Option<Self>> {
        if std::env::var_os(LOADER_VARIABLE).is_none() {
            let complete = std::env::var_os("FLIPSIDE_TESTS_COMPLETE").is_some_and(|value| value == "yes");
            anyhow::ensure!(!complete, "{LOADER_VARIABLE} is not set");
            eprintln!("not run: {LOADER_VARIABLE} is not set; tests/run sets it");
            return Ok(None);
        }
        Self::make(name, settings).map(Some)
    }

    fn make(name: &str, settings: Settings) -> Result<Self> {
        let began = Instant::now();
        let world = World::new()?;
        let guest = Guest::new(&world.programs.update_engine, &world.programs.updatectl)?;
        let port = world.address().rsplit(':').next().context("an address has a port")?;
        let config = format!(
            "[server]\nurl = \"http://10.0.2.2:{port}\"\n\n[identity]\nchannel = \"{CHANNEL}\"\n\n\
             [state]\ndir = \"/state/update-engine\"\n\n[disk]\ndevice = \"/dev/vda\"\n\n\
             [reboot]\nstrategy = \"{}\"\ncommand = [\"/bin/reboot-now\"]\n\n\
             [policy]\npoll_interval_s = 10\npoll_jitter_s = 0\nfirst_check_s = 1\nbackoff_first_s = 2\n\
             tries = {}\n\n[download]\nrate_limit_bytes_per_s = {}\n\n[health]\ndeadline_s = 120\n\n{}",
            settings.strategy, settings.tries, settings.rate_limit, settings.config
        );
        let times = File::create(logs()?.join(format!("{name}.times")))?;
        Ok(Self { world, name: name.to_owned(), guest, config, settings, began, times })
    }

    /// Puts a program into all images made from now on.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn add_program(&mut self, program: &Path) -> Result<()> {
        self.guest.add_program(program)
    }

    /// Makes the images of a version: its root file system and its boot image.
    ///
    /// # Errors
    /// Where a program fails.
    pub fn images(&self, version: &str, flaw: Flaw) -> Result<(PathBuf, PathBuf)> {
        let folder = self.world.folder();
        let root = folder.join(format!("{version}.root"));
        let boot = folder.join(format!("{version}.boot"));
        let spec = Spec { version, flaw, data: self.settings.data, config: &self.config };
        let anchor = std::fs::read(self.world.keys().join("root.json"))?;
        self.guest.write_root(&spec, &anchor, &root)?;
        if flaw == Flaw::Garbage {
            std::fs::write(&boot, garbage(version))?;
            return Ok((root, boot));
        }
        let initrd = folder.join(format!("{version}.initrd"));
        std::fs::write(&initrd, self.guest.initrd(flaw)?)?;
        let kernel = self.guest.kernel();
        let command_line = Guest::command_line(version);
        let mut arguments =
            vec!["boot-image", "build", "--kernel", path(&kernel)?, "--initrd", path(&initrd)?];
        arguments.extend(["--cmdline", &command_line, "--size", BOOT_SIZE, "--out", path(&boot)?]);
        self.world.image_tools(&arguments)?.ok()?;
        Ok((root, boot))
    }

    /// Makes a release, signs and uploads it, and points the channel at it.
    ///
    /// # Errors
    /// Where a step fails.
    pub fn publish(&self, version: &str, flaw: Flaw) -> Result<Release> {
        let (root, boot) = self.images(version, flaw)?;
        let mut more = vec!["--boot", path(&boot)?, "--level", "3"];
        // What release build refuses: here the machine has to find out.
        more.extend((flaw == Flaw::Garbage).then_some("--unchecked-boot"));
        self.world.publish(version, &root, CHANNEL, &more)
    }

    /// A machine that is off, with 1.0.0 on slot A.
    ///
    /// # Errors
    /// Where its disk cannot be made.
    pub fn machine(&self) -> Result<Machine> {
        let images = self.images("1.0.0", Flaw::None)?;
        self.machine_of(&images, "machine", &self.name)
    }

    /// So many machines that are off, each a node of its own, with 1.0.0 on slot A.
    ///
    /// # Errors
    /// Where a disk cannot be made.
    pub fn machines(&self, count: usize) -> Result<Vec<Machine>> {
        let images = self.images("1.0.0", Flaw::None)?;
        let one = |number| {
            self.machine_of(&images, &format!("machine-{number}"), &format!("{}-{number}", self.name))
        };
        (1..=count).map(one).collect()
    }

    /// A machine with these images of root file system and boot partition; `name` names its logs.
    fn machine_of(&self, (root, boot): &(PathBuf, PathBuf), folder: &str, name: &str) -> Result<Machine> {
        let folder = self.world.folder().join(folder);
        std::fs::create_dir_all(&folder)?;
        let (disk, state) = (folder.join("disk.img"), folder.join("state.img"));
        write_state(&state)?;
        let loader = loader()?;
        let (sector, slot) = (self.settings.sector_size.to_string(), format!("{}M", ROOT_SIZE >> 20));
        let mut arguments = vec!["disk", "create", path(&disk)?, "--boot-select", path(&loader)?];
        arguments.extend(["--root", path(root)?, "--boot", path(boot)?, "--state", path(&state)?]);
        arguments.extend(["--slot-size", &slot, "--boot-size", BOOT_SIZE, "--state-size", "32M"]);
        arguments.extend(["--sector-size", &sector]);
        self.world.image_tools(&arguments)?.ok()?;
        let hardware = Hardware { sector_size: self.settings.sector_size, ..Hardware::new(&disk) };
        Machine::new(name, &folder, hardware)
    }

    /// Notes what was reached after how long: on stdout, and in `target/vm-logs/NAME.times`.
    pub fn report(&self, what: &str) {
        let line = format!("vm {}: {what} at {:.1} s", self.name, self.began.elapsed().as_secs_f64());
        println!("{line}");
        // Where this cannot be written the test is no less right.
        let _ = writeln!(&self.times, "{line}");
    }

    /// What the server knows of the only node.
    ///
    /// # Errors
    /// Where it does not know exactly one.
    pub fn node(&self) -> Result<Value> {
        let list = self.world.updatectl(&["node", "list", "--json"])?.ok()?.json()?;
        let nodes = list["nodes"].as_array().context("no list of nodes")?;
        anyhow::ensure!(nodes.len() == 1, "one node reports, the server knows {}", nodes.len());
        let id: NodeId = serde_json::from_value(nodes[0]["node"].clone())?;
        self.world.updatectl(&["node", "show", &id.to_string(), "--json"])?.ok()?.json()
    }
}

/// The loader that was built.
///
/// # Errors
/// Where nobody built it.
pub fn loader() -> Result<PathBuf> {
    let path = std::env::var_os(LOADER_VARIABLE).map(PathBuf::from);
    let path = path.with_context(|| format!("{LOADER_VARIABLE} is not set"))?;
    anyhow::ensure!(path.is_file(), "{} is not there: run image-tools/boot-select/build", path.display());
    Ok(path)
}

impl Machine {
    /// What `updatectl status --json` says in the guest.
    ///
    /// # Errors
    /// Where it fails.
    pub fn status(&mut self) -> Result<Status> {
        let text = self.run("updatectl status --json")?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
    }

    /// Asks for the status until it is as wanted.
    ///
    /// # Errors
    /// Where it is not in time.
    pub fn wait_status(&mut self, patience: Duration, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        let limit = Instant::now() + patience;
        loop {
            // Right after the boot there may be no status yet.
            let told = self.status();
            match told {
                Ok(status) if wanted(&status) => return Ok(status),
                _ if Instant::now() < limit => {
                    self.run("sleep 0.3")?;
                }
                Ok(status) => anyhow::bail!("after {} s the status is {status:?}", patience.as_secs()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the guest has booted a version and confirmed it.
    ///
    /// # Errors
    /// Where another version comes up, or it is not confirmed in time.
    pub fn wait_confirmed(&mut self, version: &str, patience: Duration) -> Result<(Boot, Status)> {
        let boot = self.wait_boot(patience)?;
        anyhow::ensure!(boot.version == version, "expected {version} to boot, found {boot:?}");
        let status = self.wait_status(patience, |status| {
            status
                .booted
                .as_ref()
                .is_some_and(|booted| booted.confirmed && booted.version.as_str() == version)
        })?;
        Ok((boot, status))
    }
}

/// The disk as it is while the machine is off.
///
/// # Errors
/// Where it cannot be read as a disk with two slots.
pub fn open_disk(image: &Path) -> Result<disk::Disk> {
    let medium = disk::DiskFile::open(image, disk::Access::Read)?;
    Ok(disk::Disk::open(std::sync::Arc::new(medium), &disk::SlotLayout::default())?)
}
