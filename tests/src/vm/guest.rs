//! Step 1: the small guest's images, good and bad: a boot image with the kernel and an initrd, a root file system with
//! the engine on busybox, and the first STATE.

use super::cpio::Archive;
use crate::images::text;
use crate::process::run;
use crate::programs::workspace;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `tests/run` had `tests/vm-images` put the kernel and its modules.
pub const IMAGES_VARIABLE: &str = "FLIPSIDE_VM_IMAGES";
/// Length of the root file system.
pub const ROOT_SIZE: u64 = 72 << 20;
/// Length of the boot image.
pub const BOOT_SIZE: &str = "16M";
/// Length of the state file system.
const STATE_SIZE: u64 = 32 << 20;
/// The certificates of this host's authorities: the engine's HTTP client asks for some, even where none is used.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The watchdog resets the machine after so many seconds in which nothing feeds it.
pub const HEARTBEAT: u32 = 40;

/// What is wrong with a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// The kernel crashes.
    Panic,
    /// The initrd has no driver for the disk.
    NoDriver,
    /// The root file system is in order and empty.
    EmptyRoot,
    /// The boot image is no file system.
    Garbage,
    /// The first program of the root file system waits for ever.
    Hang,
    /// A health check says no.
    Health,
}

/// A release to make.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// Its version.
    pub version: &'a str,
    /// What is wrong with it.
    pub flaw: Flaw,
    /// Bytes of data in it that no other version has.
    pub data: usize,
    /// The engine's configuration.
    pub config: &'a str,
}

/// Makes images of the small guest.
#[derive(Clone, Debug)]
pub struct Guest {
    parts: PathBuf,
    /// Files of every root file system, by path: those of the programs and their libraries.
    programs: BTreeMap<String, Vec<u8>>,
}

impl Guest {
    /// Takes the kernel from where `tests/vm-images` put it, having it made first where it is not there, and the
    /// node's programs without their debug information.
    ///
    /// # Errors
    /// Where that fails.
    pub fn new(update_engine: &Path, updatectl: &Path) -> Result<Self> {
        let parts = match std::env::var_os(IMAGES_VARIABLE) {
            Some(folder) => PathBuf::from(folder),
            None => workspace().join("target/vm-images"),
        };
        run(Command::new(workspace().join("tests/vm-images")).arg(&parts))?.ok()?;
        let certificates = std::fs::read(CERTIFICATES)
            .with_context(|| format!("{CERTIFICATES} is not there: install ca-certificates"))?;
        let programs = BTreeMap::from([(CERTIFICATES.trim_start_matches('/').to_owned(), certificates)]);
        let mut guest = Self { parts, programs };
        guest.add_program(update_engine)?;
        guest.add_program(updatectl)?;
        Ok(guest)
    }

    /// Puts a program of this host, without its debug information, and its libraries into the root file systems.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn add_program(&mut self, program: &Path) -> Result<()> {
        let name = program.file_name().context("a program without a name")?.to_string_lossy();
        let folder = tempfile::tempdir()?;
        let stripped = folder.path().join("program");
        run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?.ok()?;
        self.programs.insert(format!("usr/bin/{name}"), std::fs::read(&stripped)?);
        for library in libraries(program)? {
            self.programs.insert(library.trim_start_matches('/').to_owned(), std::fs::read(&library)?);
        }
        Ok(())
    }

    fn part(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.parts.join(name);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.parts.join("vmlinuz")
    }

    /// The kernel command line that comes with a release. `no_timer_check`: on a busy host the emulated timer is late,
    /// and the kernel would take it for a broken one and panic.
    #[must_use]
    pub fn command_line(version: &str) -> String {
        let rest = "loglevel=4 no_timer_check mitigations=off random.trust_cpu=on";
        format!("console=ttyS0,115200 panic=1 {rest} flipside.release={version}")
    }

    /// The initrd of a release.
    ///
    /// # Errors
    /// Where a part cannot be read.
    pub fn initrd(&self, flaw: Flaw) -> Result<Vec<u8>> {
        let extra = if flaw == Flaw::Panic { "say crashing\necho c > /proc/sysrq-trigger" } else { "" };
        let init = include_str!("guest/initrd-init")
            .replace("@HEARTBEAT@", &HEARTBEAT.to_string())
            .replace("@EXTRA@", extra);
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "modules", "proc", "root", "sys"] {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.program("bin/busybox", &self.part("busybox")?);
        let applets = "cat cut dd echo grep hexdump insmod mount sed sh sleep switch_root tail tr umount";
        for applet in applets.split(' ') {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        let mut modules: Vec<_> = std::fs::read_dir(self.parts.join("modules"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?;
        modules.sort();
        for module in modules {
            if flaw != Flaw::NoDriver || !module.ends_with("-virtio_blk.ko") {
                archive.program(&format!("modules/{module}"), &self.part(&format!("modules/{module}"))?);
            }
        }
        archive.program("init", init.as_bytes());
        Ok(archive.finish())
    }

    /// Writes the root file system of a release: ext4.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn write_root(&self, spec: &Spec<'_>, anchor: &[u8], image: &Path) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("flipside-root-").tempdir()?;
        if spec.flaw != Flaw::EmptyRoot {
            self.lay_out_root(spec, anchor, folder.path())?;
        }
        ext4(folder.path(), image, ROOT_SIZE, "^has_journal")
    }

    fn lay_out_root(&self, spec: &Spec<'_>, anchor: &[u8], folder: &Path) -> Result<()> {
        for empty in ["dev", "proc", "run", "state", "sys", "tmp", "bin", "sbin", "etc"] {
            std::fs::create_dir_all(folder.join(empty))?;
        }
        let inittab = include_str!("guest/inittab").replace("@HEARTBEAT@", &HEARTBEAT.to_string());
        let release = format!("ID=flipside-test\nIMAGE_VERSION={}\n", spec.version);
        let hang = "#!/bin/sh\necho 'guest: waits for what never comes' > /dev/console\nexec sleep 1000000\n";
        let init = if spec.flaw == Flaw::Hang { hang } else { "#!/bin/sh\nexec /bin/busybox init\n" };
        let unwell = "#!/bin/sh\necho the application does not answer\nexit 7\n";
        let mut files: Vec<(&str, &[u8], u32)> = vec![
            ("sbin/init", init.as_bytes(), 0o755),
            ("etc/inittab", inittab.as_bytes(), 0o644),
            ("etc/os-release", release.as_bytes(), 0o644),
            ("etc/init.d/rcS", include_bytes!("guest/rcS"), 0o755),
            ("etc/update-engine/config.d/10-node.toml", spec.config.as_bytes(), 0o644),
            ("usr/share/update-engine/root.json", anchor, 0o644),
            ("usr/lib/guest/agent", super::agent::SCRIPT.as_bytes(), 0o755),
            ("usr/lib/guest/engine", include_bytes!("guest/engine"), 0o755),
            ("bin/reboot-now", include_bytes!("guest/reboot-now"), 0o755),
        ];
        if spec.flaw == Flaw::Health {
            files.push(("etc/update-engine/health.d/50-application", unwell.as_bytes(), 0o755));
        }
        let data = text(seed(spec.version), spec.data);
        files.push(("usr/share/data", &data, 0o644));
        let busybox = self.part("busybox")?;
        files.push(("bin/busybox", &busybox, 0o755));
        files.extend(self.programs.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice(), 0o755)));
        for (path, bytes, mode) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().context("a file without a folder")?)?;
            std::fs::write(&path, bytes)?;
            std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
        }
        let applets = run(Command::new(self.parts.join("busybox")).arg("--list"))?.ok()?;
        for applet in applets.stdout.lines().filter(|name| !matches!(*name, "busybox" | "init")) {
            symlink("busybox", folder.join("bin").join(applet))?;
        }
        symlink("/state/machine-id", folder.join("etc/machine-id"))?;
        Ok(())
    }
}

/// Writes a state file system: empty, with a journal, for it is written to when the power goes.
///
/// # Errors
/// Where it cannot be made.
pub fn write_state(image: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    ext4(folder.path(), image, STATE_SIZE, "has_journal")
}

/// What is written over a boot image that is garbage.
#[must_use]
pub fn garbage(version: &str) -> Vec<u8> {
    text(seed(version) ^ 0xbad, 4 << 20)
}

/// Different versions, different data.
fn seed(version: &str) -> u64 {
    version.bytes().fold(7, |seed, byte| seed.wrapping_mul(131).wrapping_add(byte.into()))
}

fn ext4(tree: &Path, image: &Path, size: u64, journal: &str) -> Result<()> {
    File::create(image)?.set_len(size)?;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", journal]);
    command.args(["-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d"]).arg(tree).arg(image);
    run(&mut command)?.ok().map(drop)
}

/// The shared libraries that a program is started with, the loader among them.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let said = run(Command::new("ldd").arg(program))?.ok()?;
    let mut libraries = Vec::new();
    for line in said.stdout.lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        match path {
            Some(path) => libraries.push(path.to_owned()),
            None if line.contains("linux-vdso") || line.contains("statically linked") => {}
            None => bail!("{}: a library is missing: {line}", program.display()),
        }
    }
    Ok(libraries)
}
