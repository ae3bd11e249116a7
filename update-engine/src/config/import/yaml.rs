//! YAML, flattened: what a `#cloud-config` has, key by key, scalars as they were written.
//!
//! The events of the parser are enough for that, and keep what a tree of typed values loses: that `off` was written and
//! not `false`, and the line.

use super::{Entry, Format, ImportError, Value};
use saphyr_parser::{Event, Parser};

/// How deep a document may nest before it is refused.
const DEPTH: usize = 64;

/// A key, from the outermost mapping to the value.
pub(super) struct Leaf {
    /// The keys of all mappings around it, outermost first; a list has no keys of its own.
    pub(super) path: Vec<String>,
    pub(super) value: Value,
    pub(super) line: usize,
}

impl Leaf {
    pub(super) fn entry(&self) -> Entry {
        Entry { key: self.path.join("."), value: self.value.clone(), line: self.line }
    }
}

enum Level {
    /// In a mapping: the next scalar is a key.
    Key,
    /// In a mapping, after a key.
    Value,
    List,
}

/// All scalars of a document, in order. A scalar inside of a list has the path of the list.
pub(super) fn leaves(text: &str) -> Result<Vec<Leaf>, ImportError> {
    let mut reader = Reader { levels: Vec::new(), path: Vec::new(), leaves: Vec::new() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| syntax(error.marker().line(), error.info()))?;
        let line = span.start.line();
        match event {
            Event::Scalar(text, ..) => reader.scalar(&text, line),
            Event::Alias(_) => reader.scalar("*alias", line),
            Event::MappingStart(..) => reader.open(Level::Key, line)?,
            Event::SequenceStart(..) => reader.open(Level::List, line)?,
            Event::MappingEnd | Event::SequenceEnd => reader.close(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
            Event::DocumentEnd => {}
        }
    }
    Ok(reader.leaves)
}

fn syntax(line: usize, problem: &str) -> ImportError {
    ImportError::Syntax { format: Format::CloudConfig, line, problem: problem.to_owned() }
}

struct Reader {
    levels: Vec<Level>,
    path: Vec<String>,
    leaves: Vec<Leaf>,
}

impl Reader {
    fn scalar(&mut self, text: &str, line: usize) {
        match self.levels.last_mut() {
            Some(level @ Level::Key) => {
                self.path.push(text.to_owned());
                *level = Level::Value;
            }
            _ => {
                self.leaves.push(Leaf { path: self.path.clone(), value: Value::Text(text.to_owned()), line });
                self.after_value();
            }
        }
    }

    fn open(&mut self, level: Level, line: usize) -> Result<(), ImportError> {
        if self.levels.len() >= DEPTH {
            return Err(syntax(line, &format!("expected at most {DEPTH} levels")));
        }
        if matches!(self.levels.last(), Some(Level::Key)) {
            return Err(syntax(line, "expected a text as the key"));
        }
        self.levels.push(level);
        Ok(())
    }

    fn close(&mut self) {
        self.levels.pop();
        self.after_value();
    }

    /// A value of a mapping is complete: its key ends.
    fn after_value(&mut self) {
        if let Some(level @ Level::Value) = self.levels.last_mut() {
            *level = Level::Key;
            self.path.pop();
        }
    }
}
