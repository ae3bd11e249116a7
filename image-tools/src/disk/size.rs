//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

/// What is said of everything else.
const EXPECTED: &str = "expected a whole number of bytes, or one with the unit K, M, G or T";

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    /// A whole number with an optional unit: `K`, `M`, `G` or `T`, powers of 1024.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text[digits.len()..].trim() {
            "" | "B" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(EXPECTED.to_owned()),
        };
        let number: u64 = digits.parse().map_err(|_| EXPECTED.to_owned())?;
        number.checked_mul(1 << unit).map(Self).ok_or_else(|| "too large".to_owned())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return f.pad(&format!("{} {unit}", self.0 >> shift));
            }
        }
        f.pad(&format!("{} bytes", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("1200M", 1200 << 20), ("2G", 2 << 30), ("64 KiB", 65536)]
        {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "M", "1.5G", "-1", "1X", "99999999999T", "M1"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(Size(1200 << 20).to_string(), "1200 MiB");
        assert_eq!(Size(2 << 30).to_string(), "2 GiB");
        assert_eq!(Size(1000).to_string(), "1000 bytes");
    }
}
