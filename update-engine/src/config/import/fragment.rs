//! The result as a fragment, with its notes as comments, and the check that it is one.

use super::Imported;
use crate::config::fragment::Fragment;
use crate::config::{ConfigError, Merged, Settings};
use std::fmt::Write as _;
use std::path::Path;

impl Imported {
    /// The fragment, for a file in `config.d`. `source` is named in its first line.
    #[must_use]
    pub fn fragment(&self, source: &str) -> String {
        let mut text = String::new();
        comment(
            &mut text,
            &format!("Imported by `updatectl config import` from {source} ({}).", self.format),
        );
        if self.settings.is_empty() {
            comment(&mut text, "No setting was found that has an equivalent.");
        }
        if !self.notes.is_empty() {
            comment(&mut text, "");
            comment(&mut text, "To be looked at:");
            for note in &self.notes {
                comment(&mut text, &format!("- {note}"));
            }
        }
        let mut table = "";
        for setting in &self.settings {
            let (place, name) = setting.place();
            if place != table {
                let _ = write!(text, "\n[{place}]\n");
                table = place;
            }
            let _ = writeln!(text, "# {} in line {}", setting.from, setting.line);
            let _ = writeln!(text, "{name} = {}", setting.value);
        }
        text
    }

    /// Would the engine take it, once it is part of a whole configuration?
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let own = Fragment::parse(Path::new("imported"), &self.fragment("(check)"))?;
        let mut merged = Merged::from_fragments([own]);
        merged.stand_in();
        Settings::from_merged(&merged).map(|_| ())
    }
}

/// A text of the source must not leave its comment.
fn comment(text: &mut String, line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = writeln!(text, "{}", format!("# {line}").trim_end());
}
