//! Step 5, download: which part of a payload a `Range` header asks for.

use std::ops::Range;

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The whole file: no range, several ranges, or one that is not written as RFC 9110 section 14 says, which is to
    /// be ignored.
    Whole,
    /// One part.
    Part(Range<u64>),
    /// A part that the file does not have.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `len` bytes.
#[must_use]
pub fn wanted(header: Option<&str>, len: u64) -> Wanted {
    fn number(text: &str) -> Option<u64> {
        // A number too large to hold is still a valid position, beyond every file.
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().unwrap_or(u64::MAX))
    }
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let part = match (first, last) {
        ("", last) => match number(last) {
            Some(suffix) => len.saturating_sub(suffix)..len,
            None => return Wanted::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => first..len,
            None => return Wanted::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(len),
            _ => return Wanted::Whole,
        },
    };
    if part.start < part.end { Wanted::Part(part) } else { Wanted::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |range| Wanted::Part(range);
        let cases = [
            (None, Wanted::Whole),
            (Some("bytes=0-"), part(0..100)),
            (Some("bytes=0-0"), part(0..1)),
            (Some("bytes=10-19"), part(10..20)),
            (Some("bytes=90-200"), part(90..100)),
            (Some("bytes=-10"), part(90..100)),
            (Some("bytes=-200"), part(0..100)),
            (Some("bytes=99-"), part(99..100)),
            (Some("bytes=100-"), Wanted::Unsatisfiable),
            (Some("bytes=100-200"), Wanted::Unsatisfiable),
            (Some("bytes=-0"), Wanted::Unsatisfiable),
            (Some("bytes=18446744073709551615-18446744073709551615"), Wanted::Unsatisfiable),
            (Some("bytes=99999999999999999999999-"), Wanted::Unsatisfiable),
            (Some("bytes=5-99999999999999999999999"), part(5..100)),
            (Some("bytes=20-10"), Wanted::Whole),
            (Some("bytes=0-1,5-6"), Wanted::Whole),
            (Some("bytes=+1-2"), Wanted::Whole),
            (Some("bytes="), Wanted::Whole),
            (Some("bytes=-"), Wanted::Whole),
            (Some("chunks=0-1"), Wanted::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(wanted(header, 100), expected, "{header:?}");
        }
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }
}
