//! Steps 8 and 11: GUIDs in the byte order of GPT, whose first three fields are little-endian.

use super::le;
use core::fmt;
use core::str::FromStr;

/// A GUID as its 16 bytes stand on the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; 16]);

impl Guid {
    /// All zero: the type of an unused entry.
    pub const ZERO: Self = Self([0; 16]);

    /// Takes the bytes as they stand on the disk.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as they stand on the disk.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = u32::from_le_bytes(le(&self.0, 0));
        let b = u16::from_le_bytes(le(&self.0, 4));
        let c = u16::from_le_bytes(le(&self.0, 6));
        let d = u16::from_be_bytes(le(&self.0, 8));
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-")?;
        self.0[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidGuid;

impl fmt::Display for InvalidGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a GUID: expected 8-4-4-4-12 hexadecimal digits")
    }
}

impl core::error::Error for InvalidGuid {}

/// Where the text's pairs of digits stand on the disk.
const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

impl FromStr for Guid {
    type Err = InvalidGuid;

    fn from_str(text: &str) -> Result<Self, InvalidGuid> {
        let text = text.as_bytes();
        if text.len() != 36 {
            return Err(InvalidGuid);
        }
        let mut bytes = [0; 16];
        let mut nibbles = 0;
        for (i, digit) in text.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if *digit != b'-' {
                    return Err(InvalidGuid);
                }
                continue;
            }
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                b'A'..=b'F' => digit - b'A' + 10,
                _ => return Err(InvalidGuid),
            };
            let byte = &mut bytes[ORDER[nibbles / 2]];
            *byte = *byte << 4 | value;
            nibbles += 1;
        }
        Ok(Self(bytes))
    }
}

#[cfg(feature = "std")]
impl serde::Serialize for Guid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "std")]
impl<'de> serde::Deserialize<'de> for Guid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <alloc::string::String as serde::Deserialize>::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
