//! Release versions: what `IMAGE_VERSION` holds and what ordering means for "newer" and "downgrade".

use serde::{Deserialize, Deserializer, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A release's version: one to four numbers with an optional pre-release, such as `1.1.0`, `12`, `3510.2.1` or
/// `2.0.0-rc.1`.
///
/// Ordering is that of Semantic Versioning 2.0 (clause 11), with missing numbers taken as 0, so that `12` from a
/// Debian `VERSION_ID` compares with `12.1.0`. Versions that rank alike but are written differently (`1.0`, `1.0.0`)
/// are ordered by their text: equality is always equality of text. Build metadata (`+…`) is refused, because two
/// releases that differ only in it would have no order.
#[derive(Clone, Debug)]
pub struct Version {
    text: String,
    numbers: [u64; 4],
    pre: Vec<Identifier>,
}

/// One dot-separated part of a pre-release. Numbers rank below words (clause 11.4.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(String),
}

/// Text that is not a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a version: expected one to four numbers and an optional pre-release, as in 1.2.0 or 2.0.0-rc.1, found {0:?}"
)]
pub struct InvalidVersion(String);

impl Version {
    /// The version as it was written; safe as a path component and in a URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether installing this version over `other` would be a downgrade: it ranks strictly below, whatever the
    /// texts.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.rank(other) == Ordering::Less
    }

    /// Whether neither is older: they may be spelled differently, as `1.1` and `1.1.0` are.
    #[must_use]
    pub fn ranks_like(&self, other: &Self) -> bool {
        self.rank(other) == Ordering::Equal
    }

    fn rank(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            // A pre-release comes before its release (clause 11.3).
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            _ => self.pre.cmp(&other.pre),
        })
    }
}

fn parse_number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn parse(text: &str) -> Option<Version> {
    if text.len() > 64 {
        return None;
    }
    let (release, pre) = text.split_once('-').map_or((text, None), |(release, pre)| (release, Some(pre)));
    let mut numbers = [0; 4];
    for (i, part) in release.split('.').enumerate() {
        *numbers.get_mut(i)? = parse_number(part)?;
    }
    let identifier = |part: &str| {
        let word = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        word.then(|| parse_number(part).map_or_else(|| Identifier::Word(part.to_owned()), Identifier::Number))
    };
    let pre = match pre {
        None => Vec::new(),
        Some(pre) => pre.split('.').map(identifier).collect::<Option<_>>()?,
    };
    Some(Version { text: text.to_owned(), numbers, pre })
}

impl FromStr for Version {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        parse(text).ok_or_else(|| InvalidVersion(text.chars().take(80).collect()))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank(other).then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Version {}

impl std::hash::Hash for Version {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn semver_precedence() {
        let ordered = [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "1.9",
            "1.10",
            "12",
            "12.1",
            "24.04",
            "3510.2.1",
            "3510.2.1.7",
        ];
        for pair in ordered.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
            assert!(version(pair[0]).is_older_than(&version(pair[1])), "{pair:?}");
        }
        assert!(!version("1.0").is_older_than(&version("1.0.0")));
        assert_ne!(version("1.0"), version("1.0.0"));
    }

    #[test]
    fn what_is_refused() {
        for bad in
            ["", ".", "..", "1.", "1..2", "v1", "1.2.3.4.5", "1+2", "1-", "1-a..b", "1/2", "1 ", "-1", "1-é"]
        {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
        assert!("9".repeat(65).parse::<Version>().is_err());
        assert!("99999999999999999999999".parse::<Version>().is_err());
    }

    proptest! {
        #[test]
        fn order_is_total_and_agrees_with_equality(
            texts in proptest::collection::vec("[0-2](\\.[0-2]){0,3}(-[a-b0-2](\\.[a-b0-2]){0,2})?", 3)
        ) {
            let v: Vec<Version> = texts.iter().map(|t| version(t)).collect();
            prop_assert_eq!(v[0].cmp(&v[1]), v[1].cmp(&v[0]).reverse());
            prop_assert_eq!(v[0] == v[1], v[0].cmp(&v[1]) == Ordering::Equal);
            if v[0] <= v[1] && v[1] <= v[2] { prop_assert!(v[0] <= v[2]); }
        }
    }
}
