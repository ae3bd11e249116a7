//! What a new policy changes, for people who are about to set it, and for the audit log.

use super::PolicyFile;
use crate::policy_file::difference;

impl PolicyFile {
    /// What changes from this to `after`, as lines of policy files: for each table that changes its header, the lines
    /// that go (`-`) and those that come (`+`). Nothing where both say the same.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        difference(&self.to_string(), &after.to_string())
    }
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
