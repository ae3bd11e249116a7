//! What a virtual machine says, line by line with the time, for those who wait for a line.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One line.
#[derive(Clone, Debug)]
pub struct Line {
    /// When it was complete, since the machine was made.
    pub at: Duration,
    /// What it says, without colours and cursor movements.
    pub text: String,
}

#[derive(Debug, Default)]
struct Heard {
    lines: Vec<Line>,
    /// Readers at work: without any, nothing more will come.
    readers: usize,
}

/// All lines of one voice of a machine, over all its restarts. Clones hear the same.
#[derive(Clone, Debug)]
pub struct Lines {
    heard: Arc<(Mutex<Heard>, Condvar)>,
    began: Instant,
    log: Option<Arc<File>>,
}

impl Lines {
    /// Nothing heard yet; each line will also go to `log`.
    #[must_use]
    pub fn new(began: Instant, log: Option<Arc<File>>) -> Self {
        Self { heard: Arc::default(), began, log }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears this stream, on a thread, until it ends.
    pub fn listen(&self, mut stream: impl Read + Send + 'static) {
        self.lock().readers += 1;
        let own = self.clone();
        std::thread::spawn(move || {
            let mut partial = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                for byte in &buffer[..count] {
                    match byte {
                        b'\n' | b'\r' => own.complete(&mut partial),
                        _ => partial.push(*byte),
                    }
                }
            }
            own.complete(&mut partial);
            own.lock().readers -= 1;
            own.heard.1.notify_all();
        });
    }

    fn complete(&self, partial: &mut Vec<u8>) {
        let text = plain(&String::from_utf8_lossy(partial));
        partial.clear();
        if !text.trim().is_empty() {
            self.note(&text);
        }
    }

    /// Adds a line of one's own.
    pub fn note(&self, text: &str) {
        let line = Line { at: self.began.elapsed(), text: text.to_owned() };
        if let Some(log) = &self.log {
            // A full disk must not end the test in this thread.
            let _ = writeln!(&**log, "[{:9.3}] {}", line.at.as_secs_f64(), line.text);
        }
        self.lock().lines.push(line);
        self.heard.1.notify_all();
    }

    /// How many lines there are: where waiting for later ones begins.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lines from the one numbered `from` on.
    #[must_use]
    pub fn since(&self, from: usize) -> Vec<Line> {
        self.lock().lines.iter().skip(from).cloned().collect()
    }

    /// The last lines, for messages.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let heard = self.lock();
        let start = heard.lines.len().saturating_sub(count);
        let lines = heard.lines[start..].iter();
        lines.map(|line| format!("[{:9.3}] {}\n", line.at.as_secs_f64(), line.text)).collect()
    }

    /// Waits for a line from the one numbered `from` on that `wanted` likes, and returns it with its number. Nothing
    /// where it does not come in time, or nobody is left who could say it.
    pub fn wait(
        &self,
        from: usize,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Option<(usize, Line)> {
        let limit = Instant::now() + patience;
        let mut next = from;
        let mut heard = self.lock();
        loop {
            while let Some(line) = heard.lines.get(next) {
                if wanted(&line.text) {
                    return Some((next, line.clone()));
                }
                next += 1;
            }
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() || heard.readers == 0 {
                return None;
            }
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Without the escape sequences that firmware sends, and without other control characters.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ESC [ parameters letter; other sequences are two characters long.
            if characters.next() == Some('[') {
                for parameter in characters.by_ref() {
                    if ('@'..='~').contains(&parameter) {
                        break;
                    }
                }
            }
        } else if !character.is_control() || character == '\t' {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_escape_sequences() {
        let lines = Lines::new(Instant::now(), None);
        lines.listen(&b"\x1b[2J\x1b[01;01HBdsDxe: starting\r\n\r\nboot-select: slot A\nno end"[..]);
        let (number, line) = lines.wait(0, Duration::from_secs(60), |text| text.contains("slot A")).unwrap();
        assert_eq!((number, line.text.as_str()), (1, "boot-select: slot A"));
        let (_, line) = lines.wait(2, Duration::from_secs(60), |_| true).unwrap();
        assert_eq!(line.text, "no end");
        assert_eq!(lines.since(0)[0].text, "BdsDxe: starting");
        assert!(lines.wait(3, Duration::from_secs(60), |_| true).is_none(), "nobody is left to say anything");
        assert!(lines.tail(1).ends_with("] no end\n"));
    }
}
