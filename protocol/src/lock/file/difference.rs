//! What a new policy changes, for people who are about to set it, and for the audit log.

use super::PolicyFile;

/// The lines of a policy file below one table's header.
type Table = (String, Vec<String>);

impl PolicyFile {
    /// What changes from this to `after`, as lines of policy files: for each table that changes its header, the lines
    /// that go (`-`) and those that come (`+`). Nothing where both say the same.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let (before, after) = (tables(self), tables(after));
        let of = |all: &[Table], name: &str| {
            all.iter().find(|(table, _)| table == name).map(|(_, lines)| lines.clone())
        };
        let come = after.iter().filter(|(name, _)| of(&before, name).is_none());
        let mut changes = Vec::new();
        for (name, _) in before.iter().chain(come) {
            let (old, new) = (of(&before, name), of(&after, name));
            let mark = match (&old, &new) {
                (None, _) => '+',
                (_, None) => '-',
                _ => ' ',
            };
            let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
            let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}"));
            let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}"));
            let lines: Vec<String> = gone.chain(come).collect();
            if mark != ' ' || !lines.is_empty() {
                changes.push(format!("{mark} {name}"));
                changes.extend(lines);
            } else if old != new {
                // The same lines in another order: of windows, say.
                changes.push(format!("  {name} (in another order)"));
            }
        }
        changes
    }
}

/// A policy file by its tables.
fn tables(file: &PolicyFile) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in file.to_string().lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        match tables.last_mut() {
            Some((_, lines)) if !line.starts_with('[') => lines.push(line.to_owned()),
            _ => tables.push((line.to_owned(), Vec::new())),
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::policy::{Cap, Limit, Policy};

    fn file(max: u32) -> PolicyFile {
        let policy = Policy { max: Limit::Count(max), ..Policy::default() };
        PolicyFile { groups: [("default".parse().unwrap(), policy)].into(), ..PolicyFile::default() }
    }

    #[test]
    fn it_names_tables_and_lines() {
        assert!(file(1).difference(&file(1)).is_empty());
        assert_eq!(file(1).difference(&file(3)), ["  [group.default]", "- max = 1", "+ max = 3"]);
        let mut wider = file(1);
        wider.groups.insert("web".parse().unwrap(), Policy::default());
        let added = file(1).difference(&wider);
        assert_eq!(added[..2], ["+ [group.web]", "+ max = 1"], "{added:?}");
        let cap = Cap { groups: vec!["default".parse().unwrap()], max: 2 };
        wider.caps.caps.insert("all".to_owned(), cap);
        let removed = wider.difference(&file(1));
        assert!(removed.iter().any(|line| line == "- [cap.all]"), "{removed:?}");
        assert!(removed.iter().all(|line| line.starts_with('-')), "{removed:?}");
    }

    #[test]
    fn another_order_is_a_change_too() {
        let text = |windows: &str| format!("[group.default]\nwindows = [{windows}]\n");
        let (a, b) = ("{ start = \"01:00\", length = \"1h\" }", "{ start = \"03:00\", length = \"1h\" }");
        let parse = |text: &str| PolicyFile::parse("t.toml", text).unwrap();
        let (one, other) = (parse(&text(&format!("{a}, {b}"))), parse(&text(&format!("{b}, {a}"))));
        assert_eq!(one.difference(&other).is_empty(), one == other);
    }
}
