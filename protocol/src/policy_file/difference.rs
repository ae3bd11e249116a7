//! What one policy file changes against another, for people and for the audit log.

/// The lines of a policy file below one table's header.
type Table = (String, Vec<String>);

/// What changes from one printed policy file to another: for each table that changes its header, the lines that go (`-`) and
/// those that come (`+`). Nothing where both say the same.
pub(crate) fn difference(before: &str, after: &str) -> Vec<String> {
    let (before, after) = (tables(before), tables(after));
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

/// A policy file by its tables.
fn tables(text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
        match tables.last_mut() {
            Some((_, lines)) if !line.starts_with('[') => lines.push(line.to_owned()),
            _ => tables.push((line.to_owned(), Vec::new())),
        }
    }
    tables
}
