//! Steps 5 to 12: a virtual machine, q35 with UEFI firmware, on a disk that outlives it.
//!
//! It is emulated (TCG), so it runs anywhere and slowly. It ends as by a power cut: SIGKILL of the QEMU process. What
//! the guest had written by then is in the host's page cache and survives; writes under way may be torn. The order of
//! what a lost disk cache would leave behind is `disk/tests`' business, not this one's.

use super::agent::{self, Agent, Answer, Boot};
use super::lines::{Line, Lines};
use super::qmp::Qmp;
use crate::programs::workspace;
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How long QEMU takes to come up.
const START: Duration = Duration::from_secs(60);
/// How long an answer from the guest takes at most, unless said otherwise.
const ANSWER: Duration = Duration::from_secs(60);
/// Lines of the console that an error shows.
const TAIL: usize = 40;
/// UEFI firmware without Secure Boot, and the variables it starts with.
const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// The disk: a regular file.
    pub disk: PathBuf,
    /// Bytes in a sector of it: 512 or 4096.
    pub sector_size: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Whether it has a hardware watchdog (i6300esb), which resets the machine.
    pub watchdog: bool,
    /// Further arguments of QEMU.
    pub arguments: Vec<String>,
}

impl Hardware {
    /// The usual machine on a disk.
    #[must_use]
    pub fn new(disk: &Path) -> Self {
        Self {
            disk: disk.to_owned(),
            sector_size: 512,
            memory_mib: 512,
            watchdog: true,
            arguments: Vec::new(),
        }
    }
}

/// One run of QEMU.
#[derive(Debug)]
struct Run {
    child: Child,
    agent: Agent,
    qmp: Qmp,
}

/// A machine, switched on or off.
#[derive(Debug)]
pub struct Machine {
    /// Its parts; changes count from the next start.
    pub hardware: Hardware,
    /// What its first serial port says: firmware, loader, kernel, system.
    pub console: Lines,
    folder: PathBuf,
    log: PathBuf,
    agent_lines: Lines,
    qmp_lines: Lines,
    /// The line of the agent up to which boots were handed out.
    boots_seen: usize,
    run: Option<Run>,
}

impl Machine {
    /// A machine that is off. Its files lie in `folder`; its console goes to `target/vm-logs/NAME.log`, which stays.
    ///
    /// # Errors
    /// Where a file cannot be made or the firmware is not there.
    pub fn new(name: &str, folder: &Path, hardware: Hardware) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        std::fs::copy(VARIABLES, folder.join("variables.fd"))
            .with_context(|| format!("{VARIABLES} is not there: install ovmf"))?;
        let log = logs()?.join(format!("{name}.log"));
        let began = Instant::now();
        let file = Arc::new(File::create(&log)?);
        Ok(Self {
            hardware,
            console: Lines::new(began, Some(file)),
            folder: folder.to_owned(),
            log,
            agent_lines: Lines::new(began, None),
            qmp_lines: Lines::new(began, None),
            boots_seen: 0,
            run: None,
        })
    }

    fn command(&self) -> Result<Command> {
        let hardware = &self.hardware;
        let folder = self.folder.display();
        let sector = hardware.sector_size;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-name", "flipside", "-nodefaults", "-no-user-config", "-display", "none"]);
        // One processor: with two, the firmware at times waits for the other one for ever after a reset, on busy hosts
        // (edk2's WaitApWakeup has no end: tianocore/edk2#13164).
        command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1"]);
        command.arg("-m").arg(format!("{}M", hardware.memory_mib));
        command.args(["-boot", "menu=off", "-rtc", "base=utc"]);
        command.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}"));
        command.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={folder}/variables.fd"));
        let disk = hardware.disk.display();
        command.arg("-drive").arg(format!("if=none,id=disk,format=raw,cache=writeback,file={disk}"));
        command.arg("-device").arg(format!(
            "virtio-blk-pci,drive=disk,bootindex=0,logical_block_size={sector},physical_block_size={}",
            sector.max(4096)
        ));
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        if hardware.watchdog {
            command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
        }
        for (name, kind) in [("console", "-serial"), ("agent", "-serial"), ("qmp", "-qmp")] {
            let socket = self.folder.join(name);
            command.arg("-chardev").arg(format!("socket,id={name},path={}", socket.display()));
            match kind {
                "-qmp" => command.args(["-mon", "chardev=qmp,mode=control"]),
                _ => command.arg(kind).arg(format!("chardev:{name}")),
            };
        }
        let errors = File::options().create(true).append(true).open(self.folder.join("qemu.log"))?;
        command.args(&hardware.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        Ok(command)
    }

    /// Switches it on.
    ///
    /// # Errors
    /// Where it is on already, or QEMU does not start.
    pub fn start(&mut self) -> Result<()> {
        if self.run.is_some() {
            bail!("the machine is on already");
        }
        let mut listeners = Vec::new();
        for name in ["console", "agent", "qmp"] {
            let path = self.folder.join(name);
            let _ = std::fs::remove_file(&path);
            listeners
                .push(UnixListener::bind(&path).with_context(|| format!("no socket {}", path.display()))?);
        }
        self.console.note("== switched on");
        self.boots_seen = self.agent_lines.len();
        let mut child = self.command()?.spawn().context("qemu-system-x86_64 cannot be started")?;
        match self.connect(listeners) {
            Ok((agent, qmp)) => {
                self.run = Some(Run { child, agent, qmp });
                Ok(())
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
                Err(error.context(format!("QEMU does not start: {}", said.trim_end())))
            }
        }
    }

    fn connect(&self, listeners: Vec<UnixListener>) -> Result<(Agent, Qmp)> {
        let mut streams = listeners.into_iter().map(accept);
        let mut next = || streams.next().context("three sockets")?;
        self.console.listen(next()?);
        let agent = Agent::new(next()?, &self.agent_lines)?;
        Ok((agent, Qmp::new(next()?, &self.qmp_lines)?))
    }

    /// Cuts its power: ends the QEMU process by its id, with SIGKILL.
    ///
    /// # Errors
    /// Where it is off.
    pub fn kill(&mut self) -> Result<()> {
        let mut run = self.run.take().context("the machine is off")?;
        self.console.note("== power cut");
        run.child.kill()?;
        run.child.wait()?;
        Ok(())
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// Where it is off.
    pub fn reset(&mut self) -> Result<()> {
        self.console.note("== reset");
        self.qmp()?.command("system_reset", &serde_json::Value::Null).map(drop)
    }

    /// QEMU's monitor.
    ///
    /// # Errors
    /// Where it is off.
    pub fn qmp(&mut self) -> Result<&mut Qmp> {
        Ok(&mut self.run.as_mut().context("the machine is off")?.qmp)
    }

    /// Where the console's lines are kept.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An error that shows the console's last lines.
    fn failed(&self, what: &str) -> anyhow::Error {
        let tail = self.console.tail(TAIL);
        anyhow::anyhow!("{what}\nthe end of the console ({} has all of it):\n{tail}", self.log.display())
    }

    /// Waits for a line of the console from the one numbered `from` on that contains `text`.
    ///
    /// # Errors
    /// Where it does not come in time, with the end of the console.
    pub fn wait_console(&self, from: usize, text: &str, patience: Duration) -> Result<(usize, Line)> {
        self.console.wait(from, patience, |line| line.contains(text)).ok_or_else(|| {
            self.failed(&format!("no {text:?} on the console within {} s", patience.as_secs()))
        })
    }

    /// Waits for the next boot whose system comes up with an agent.
    ///
    /// # Errors
    /// Where none comes in time, with the end of the console.
    pub fn wait_boot(&mut self, patience: Duration) -> Result<Boot> {
        let found = self.agent_lines.wait(self.boots_seen, patience, |text| agent::boot(text).is_some());
        let Some((number, line)) = found else {
            return Err(self.failed(&format!("no system came up within {} s", patience.as_secs())));
        };
        self.boots_seen = number + 1;
        let (boot_id, slot, version) = agent::boot(&line.text).context("not a boot")?;
        Ok(Boot { boot_id, slot, version, at: line.at })
    }

    /// Runs a script in the guest.
    ///
    /// # Errors
    /// Where the machine is off or no answer comes in time, with the end of the console.
    pub fn run(&mut self, script: &str) -> Result<Answer> {
        let run = self.run.as_mut().context("the machine is off")?;
        run.agent.run(script, ANSWER).map_err(|error| self.failed(&format!("{error:#}")))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(run) = &mut self.run {
            let _ = run.child.kill();
            let _ = run.child.wait();
        }
    }
}

/// The folder of what machines said and how long tests took: `target/vm-logs`, or what `FLIPSIDE_VM_LOGS` says.
///
/// # Errors
/// Where it cannot be made.
pub fn logs() -> Result<PathBuf> {
    let folder = match std::env::var_os("FLIPSIDE_VM_LOGS") {
        Some(folder) => PathBuf::from(folder),
        None => workspace().join("target/vm-logs"),
    };
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The first connection to a socket.
fn accept(listener: UnixListener) -> Result<UnixStream> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Where nobody waits any more there is nothing to tell.
        let _ = sender.send(listener.accept());
    });
    let (stream, _) = receiver.recv_timeout(START).context("QEMU does not connect")??;
    Ok(stream)
}
