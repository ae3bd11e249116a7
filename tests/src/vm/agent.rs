//! Commands to a guest over its second serial port, apart from the console, where the kernel interrupts.
//!
//! The guest says `READY BOOT-ID SLOT VERSION` when its agent starts. It reads lines `NUMBER SCRIPT`, the script in
//! base64, runs each with `sh` and answers `DONE NUMBER CODE OUTPUT`, the output of both kinds in base64. `guest/agent`
//! is such an agent, in shell.

use super::lines::Lines;
use anyhow::{Context as _, Result, bail, ensure};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The agent's program, a shell script for busybox or coreutils.
pub const SCRIPT: &str = include_str!("guest/agent");

/// A boot, as the guest's agent says when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's boot id.
    pub boot_id: String,
    /// The slot on the kernel command line.
    pub slot: String,
    /// `IMAGE_VERSION` of os-release.
    pub version: String,
    /// When, since the machine was made.
    pub at: Duration,
}

/// What a command in the guest did.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit code.
    pub code: i32,
    /// What it wrote, to stdout and stderr.
    pub output: String,
}

impl Answer {
    /// The output, where the exit code is 0.
    ///
    /// # Errors
    /// Where it is not.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "exit code {} in the guest: {}", self.code, self.output);
        Ok(self.output)
    }
}

/// The connection to the agent of one run of QEMU.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    lines: Lines,
    next: u64,
}

impl Agent {
    /// Talks over this stream; what the agent says goes to `lines`.
    ///
    /// # Errors
    /// Where the stream cannot be shared.
    pub fn new(stream: UnixStream, lines: &Lines) -> Result<Self> {
        lines.listen(stream.try_clone()?);
        Ok(Self { stream, lines: lines.clone(), next: 1 })
    }

    /// Runs a script in the guest.
    ///
    /// # Errors
    /// Where no answer comes in time, or the guest boots instead.
    pub fn run(&mut self, script: &str, patience: Duration) -> Result<Answer> {
        let number = self.next;
        self.next += 1;
        let from = self.lines.len();
        writeln!(self.stream, "{number} {}", base64(script.as_bytes()))
            .with_context(|| format!("the guest does not take `{script}`"))?;
        let prefix = format!("DONE {number} ");
        let found = self.lines.wait(from, patience, |text| text.starts_with(&prefix) || boot(text).is_some());
        let Some((_, line)) = found else {
            bail!("no answer to `{script}` from the guest within {} s", patience.as_secs());
        };
        let Some(answer) = line.text.strip_prefix(&prefix) else {
            bail!("the guest booted instead of answering `{script}`");
        };
        let (code, output) = answer.split_once(' ').unwrap_or((answer, ""));
        let code = code.parse().with_context(|| format!("not an exit code: {}", line.text))?;
        let output = from_base64(output).with_context(|| format!("not base64: {}", line.text))?;
        Ok(Answer { code, output: String::from_utf8_lossy(&output).into_owned() })
    }
}

/// What a line of the agent's says of a boot.
pub(super) fn boot(text: &str) -> Option<(String, String, String)> {
    let mut words = text.strip_prefix("READY ")?.split_whitespace().map(str::to_owned);
    Some((words.next()?, words.next()?, words.next()?))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0);
    for character in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = DIGITS.iter().position(|digit| *digit == character)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 255).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_everyone() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(from_base64(coded).unwrap(), plain.as_bytes());
        }
        assert_eq!(from_base64("Zm9v!"), None);
    }

    #[test]
    fn a_boot_is_told_from_other_lines() {
        let told = boot("READY 12-ab A 1.0.0").unwrap();
        assert_eq!(told, ("12-ab".to_owned(), "A".to_owned(), "1.0.0".to_owned()));
        assert_eq!(boot("READY 12-ab"), None);
        assert_eq!(boot("DONE 1 0 "), None);
    }
}
