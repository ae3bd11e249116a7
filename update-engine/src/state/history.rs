//! Steps 5 to 12: what happened on this node, kept for `updatectl history` after the server was told.
//!
//! One event of [`protocol::wire`] a line in `history.jsonl`; a full file becomes `history.old.jsonl`, and the one
//! before it is forgotten.

use machine::EventQueue;
use protocol::wire::Event;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const NAME: &str = "history.jsonl";
const OLD: &str = "history.old.jsonl";
/// The length at which a file is full, in bytes.
const FULL: u64 = 512 << 10;

/// Appends events to the history.
#[derive(Debug)]
pub struct History {
    dir: PathBuf,
    last: u64,
}

impl History {
    /// The history in a state folder.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let last = read(dir).unwrap_or_default().last().map_or(0, |event| event.seq);
        Self { dir: dir.to_owned(), last }
    }

    /// Appends what is new in the queue.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn record(&mut self, queue: &EventQueue) -> io::Result<()> {
        let mut lines = Vec::new();
        let mut last = self.last;
        for event in queue.iter().filter(|event| event.seq > self.last) {
            serde_json::to_writer(&mut lines, event)?;
            lines.push(b'\n');
            last = last.max(event.seq);
        }
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.dir.join(NAME);
        let mut file = File::options().append(true).create(true).open(&path)?;
        if file.metadata()?.len() > FULL {
            std::fs::rename(&path, self.dir.join(OLD))?;
            file = File::options().append(true).create(true).open(&path)?;
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        self.last = last;
        Ok(())
    }
}

/// All events that are kept, oldest first. A line that a power cut tore is left out.
///
/// # Errors
/// Where a file that is there cannot be read.
pub fn read(dir: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for name in [OLD, NAME] {
        match std::fs::read(dir.join(name)) {
            Ok(bytes) => {
                let lines = bytes.split(|byte| *byte == b'\n');
                events.extend(lines.filter_map(|line| serde_json::from_slice::<Event>(line).ok()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(events)
}
