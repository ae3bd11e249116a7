//! Runs the real programs and keeps everything they said.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After this long a program hangs, and is ended.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a program did.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command line, for messages.
    pub command: String,
    /// How it ended: none where a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Run {
    /// Itself, where it ended with this exit code.
    ///
    /// # Errors
    /// Where it ended otherwise, with all that it said.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code == Some(code) { Ok(self) } else { bail!("expected exit code {code}: {self}") }
    }

    /// Itself, where it ended with exit code 0.
    ///
    /// # Errors
    /// Where it ended otherwise, with all that it said.
    pub fn ok(self) -> Result<Self> {
        self.expect_code(0)
    }

    /// What it printed, which must be one JSON document.
    ///
    /// # Errors
    /// Where it is not.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON on stdout: {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with ", self.command)?;
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => f.write_str("no code")?,
        }
        write!(f, "\nstdout: {}\nstderr: {}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

/// A child process that ends with its owner: a test that fails leaves nothing behind.
#[derive(Debug)]
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It has ended already, as a rule; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Owned,
    started: Instant,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
    lines: mpsc::Receiver<String>,
}

fn describe(command: &Command) -> String {
    let mut text =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Reads to the end on a thread; each line of it also goes to `lines`.
fn collect(stream: impl Read + Send + 'static, lines: mpsc::Sender<String>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut all = String::new();
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while let Ok(length) = reader.read_until(b'\n', &mut line) {
            if length == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            all.push_str(&text);
            // Nobody may be listening any more, which is fine.
            let _ = lines.send(text.trim_end().to_owned());
            line.clear();
        }
        all
    })
}

/// Starts a program.
///
/// # Errors
/// Where it cannot be started.
pub fn start(command: &mut Command) -> Result<Running> {
    let text = describe(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{text}` cannot be started"))?;
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().context("the program has no stdout")?;
    let stderr = child.stderr.take().context("the program has no stderr")?;
    Ok(Running {
        command: text,
        child: Owned(child),
        started: Instant::now(),
        stdout: collect(stdout, sender.clone()),
        stderr: collect(stderr, sender),
        lines,
    })
}

/// Runs a program to its end.
///
/// # Errors
/// Where it cannot be started, or hangs.
pub fn run(command: &mut Command) -> Result<Run> {
    start(command)?.wait()
}

impl Running {
    /// Waits until the program has said a line, on stdout or stderr, that contains `text`, and returns that line.
    ///
    /// # Errors
    /// Where it ends or falls silent before.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let mut said = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => said.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    self.kill()?;
                    bail!("`{}` hangs before it says {text:?}; it said: {}", self.command, said.join("\n"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("`{}` ended before it said {text:?}; it said: {}", self.command, said.join("\n"))
                }
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Ends the program as a power cut or the kernel would (SIGKILL), by its process id.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.0.kill().with_context(|| format!("`{}` cannot be killed", self.command))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Where the program hangs; it is ended then.
    pub fn wait(mut self) -> Result<Run> {
        // Both streams end with the program; waiting on them needs no polling.
        let mut hangs = false;
        let limit = self.started + PATIENCE;
        loop {
            match self.lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    hangs = true;
                    self.kill()?;
                    break;
                }
            }
        }
        let status: ExitStatus =
            self.child.0.wait().with_context(|| format!("`{}` is lost", self.command))?;
        let elapsed = self.started.elapsed();
        let stdout = self.stdout.join().unwrap_or_default();
        let stderr = self.stderr.join().unwrap_or_default();
        let run = Run {
            command: self.command,
            code: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            elapsed,
        };
        if hangs {
            bail!("hangs, ended after {} s: {run}", PATIENCE.as_secs());
        }
        Ok(run)
    }
}

/// A program that serves until it is dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
    /// The first line that it printed on stdout.
    pub greeting: String,
}

impl Service {
    /// Starts a program and waits for its first line on stdout; what it logs goes to the file `log`.
    ///
    /// # Errors
    /// Where it cannot be started or ends without a word.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let text = describe(command);
        let stderr = File::options().create(true).append(true).open(log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("`{text}` cannot be started"))?;
        let mut reader = BufReader::new(child.stdout.take().context("the program has no stdout")?);
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        if greeting.is_empty() {
            let status = child.wait()?;
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("`{text}` ended with {status} before it served: {}", said.trim_end());
        }
        // What it prints later must not block it.
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        Ok(Self { child, greeting: greeting.trim_end().to_owned() })
    }

    /// The address that it greeted with, as `http://127.0.0.1:1234`.
    ///
    /// # Errors
    /// Where there is none in its greeting.
    pub fn address(&self) -> Result<&str> {
        let start =
            self.greeting.find("http://").with_context(|| format!("no address in {:?}", self.greeting))?;
        let rest = &self.greeting[start..];
        let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
        Ok(rest[..end].trim_end_matches('/'))
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it has held so far, in bytes (`VmHWM`).
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn peak_memory(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in /proc")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
