//! Steps 1 to 12: a world with an operator and a server, and a full Debian with systemd that follows it.
//!
//! The images come from `tests/debian-vm`, with our package installed as an operator installs it. What each fleet's
//! image builder adds is added here: the server's address and the trusted root.json.

use super::machine::{Hardware, Machine, logs};
use super::site::{CHANNEL, loader};
use crate::images::find_program;
use crate::process::run;
use crate::world::{Release, World, path};
use anyhow::{Context as _, Result, bail};
use protocol::id::NodeId;
use protocol::wire::NodeShow;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// Set by `tests/run` to the folder that `tests/debian-vm` filled.
pub const FOLDER_VARIABLE: &str = "FLIPSIDE_DEBIAN_VM";
/// Memory of the machine, in MiB.
const MEMORY_MIB: u32 = 1024;
/// Length of a root partition; the images are as long.
const SLOT_SIZE: &str = "320M";
const BOOT_SIZE: &str = "32M";
const STATE_SIZE: &str = "96M";

/// A world with a Debian machine.
#[derive(Debug)]
pub struct DebianSite {
    /// The operator and the server.
    pub world: World,
    name: String,
    images: PathBuf,
    config: PathBuf,
    began: Instant,
    times: File,
}

impl DebianSite {
    /// A site; `name` names the test in the logs, `config` is added to the node's own configuration. Nothing where
    /// nobody made the images.
    ///
    /// # Errors
    /// Where a program is missing or fails.
    pub fn new(name: &str, config: &str) -> Result<Option<Self>> {
        let Some(images) = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from) else { return Ok(None) };
        let began = Instant::now();
        let world = World::new()?;
        let port = world.address().rsplit(':').next().context("an address has a port")?;
        let file = world.folder().join("60-site.toml");
        // 10.0.2.2 is the host as QEMU's user network shows it.
        let text = format!(
            "[server]\nurl = \"http://10.0.2.2:{port}\"\n\n[identity]\nchannel = \"{CHANNEL}\"\n\n{config}"
        );
        std::fs::write(&file, text)?;
        let times = File::create(logs()?.join(format!("{name}.times")))?;
        Ok(Some(Self { world, name: name.to_owned(), images, config: file, began, times }))
    }

    /// The root image of a version, made for this site.
    fn root(&self, version: &str) -> Result<PathBuf> {
        let made = self.images.join(format!("root-{version}.ext4"));
        let root = self.world.folder().join(format!("root-{version}.ext4"));
        run(Command::new("cp").arg("--sparse=always").arg(&made).arg(&root))?.ok()?;
        let anchor = self.world.keys().join("root.json");
        let commands = self.world.folder().join("debugfs");
        let text = format!(
            "cd /etc/update-engine/config.d\nwrite {} 60-site.toml\ncd /usr/share/update-engine\nwrite {} root.json\n",
            path(&self.config)?,
            path(&anchor)?
        );
        std::fs::write(&commands, text)?;
        let debugfs = find_program("debugfs").context("debugfs is not there: install e2fsprogs")?;
        let said = run(Command::new(debugfs).arg("-w").arg("-f").arg(&commands).arg(&root))?.ok()?;
        // It ends with 0 whatever happens; beside its name it says on stderr what did not work.
        if said.stderr.lines().any(|line| !line.starts_with("debugfs ")) {
            bail!("the site's files do not go into the image: {said}");
        }
        Ok(root)
    }

    /// Makes a release of a version, signs and uploads it, and points the channel at it.
    ///
    /// # Errors
    /// Where a step fails.
    pub fn publish(&self, version: &str) -> Result<Release> {
        let root = self.root(version)?;
        let boot = self.images.join("boot.img");
        let release =
            self.world.publish(version, &root, CHANNEL, &["--boot", path(&boot)?, "--level", "3"])?;
        std::fs::remove_file(root)?;
        Ok(release)
    }

    /// A machine that is off, with 1.0.0 on slot A and an empty STATE.
    ///
    /// # Errors
    /// Where its disk cannot be made.
    pub fn machine(&self) -> Result<Machine> {
        let folder = self.world.folder().join("machine");
        std::fs::create_dir_all(&folder)?;
        let (disk, state) = (folder.join("disk.img"), folder.join("state.img"));
        File::create(&state)?.set_len(64 << 20)?;
        let mke2fs = find_program("mke2fs").context("mke2fs is not there: install e2fsprogs")?;
        run(Command::new(mke2fs).args(["-q", "-F", "-t", "ext4"]).arg(&state))?.ok()?;
        let root = self.root("1.0.0")?;
        let (boot, loader) = (self.images.join("boot.img"), loader()?);
        let mut arguments = vec!["disk", "create", path(&disk)?, "--boot-select", path(&loader)?];
        arguments.extend(["--root", path(&root)?, "--boot", path(&boot)?, "--state", path(&state)?]);
        arguments.extend(["--slot-size", SLOT_SIZE, "--boot-size", BOOT_SIZE, "--state-size", STATE_SIZE]);
        self.world.image_tools(&arguments)?.ok()?;
        std::fs::remove_file(root)?;
        let hardware = Hardware { memory_mib: MEMORY_MIB, ..Hardware::new(&disk) };
        Machine::new(&self.name, &folder, hardware)
    }

    /// Notes what was reached after how long: on stdout, and in `target/vm-logs/NAME.times`.
    pub fn report(&self, what: &str) {
        let line = format!("vm {}: {what} at {:.1} s", self.name, self.began.elapsed().as_secs_f64());
        println!("{line}");
        // Where this cannot be written the test is no less right.
        let _ = writeln!(&self.times, "{line}");
    }

    /// What the server knows of a node.
    ///
    /// # Errors
    /// Where it does not know it.
    pub fn node(&self, id: &NodeId) -> Result<NodeShow> {
        let said = self.world.updatectl(&["node", "show", &id.to_string(), "--json"])?.ok()?;
        serde_json::from_value(said.json()?).with_context(|| format!("not a node: {said}"))
    }
}

/// The node's id, as its state folder has it.
///
/// # Errors
/// Where there is none.
pub fn node_id(machine: &mut Machine) -> Result<NodeId> {
    let text = machine.run("cat /var/lib/update-engine/node-id")?.ok()?;
    text.trim().parse().with_context(|| format!("not a node id: {text}"))
}
