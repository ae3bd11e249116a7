//! QEMU's own voice: what happened to the machine, and commands to it (QEMU Machine Protocol).

use super::lines::Lines;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long QEMU takes for a command.
const PATIENCE: Duration = Duration::from_secs(60);

/// The connection to one run of QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: Lines,
    began: usize,
}

impl Qmp {
    /// Talks over this stream; what QEMU says goes to `lines`.
    ///
    /// # Errors
    /// Where QEMU does not answer.
    pub fn new(stream: UnixStream, lines: &Lines) -> Result<Self> {
        let began = lines.len();
        lines.listen(stream.try_clone()?);
        let mut qmp = Self { stream, lines: lines.clone(), began };
        qmp.command("qmp_capabilities", &Value::Null)?;
        Ok(qmp)
    }

    /// Has QEMU do something, like `system_powerdown`, and returns its answer.
    ///
    /// # Errors
    /// Where it refuses, or does not answer.
    pub fn command(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        let from = self.lines.len();
        let mut command = serde_json::json!({ "execute": name });
        if !arguments.is_null() {
            command["arguments"] = arguments.clone();
        }
        writeln!(self.stream, "{command}").with_context(|| format!("QEMU does not take `{name}`"))?;
        let answers = |text: &str| text.starts_with("{\"return\"") || text.starts_with("{\"error\"");
        let (_, line) = self
            .lines
            .wait(from, PATIENCE, answers)
            .with_context(|| format!("QEMU does not answer `{name}`: {}", self.lines.tail(5)))?;
        let answer: Value = serde_json::from_str(&line.text)?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("QEMU refuses `{name}`: {answer}"),
        }
    }

    /// How many events of this name there were in this run of QEMU: `RESET`, `WATCHDOG`, `SHUTDOWN`.
    #[must_use]
    pub fn events(&self, name: &str) -> usize {
        let lines = self.lines.since(self.began);
        lines.iter().filter(|line| is_event(&line.text, name)).count()
    }
}

/// Whether a line of QEMU's tells of this event.
#[must_use]
pub fn is_event(text: &str, name: &str) -> bool {
    let event: Option<Value> = serde_json::from_str(text).ok();
    event.is_some_and(|event| event["event"] == name)
}
