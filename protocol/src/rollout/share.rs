//! Step 4, channel: parts of a fleet, and a node's place in it.

use crate::digest::Sha256;
use crate::id::NodeId;
use crate::version::Version;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The whole, in hundredths of a percent.
const WHOLE: u32 = 10_000;

/// A part of a whole, in hundredths of a percent: `0.25%`, `100%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

/// Text that is no [`Share`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a share: expected a percentage from \"0%\" to \"100%\", with up to two decimals, found {0:?}")]
pub struct InvalidShare(String);

impl Share {
    /// All of it.
    pub const ALL: Self = Self(WHOLE);
    /// Nothing of it.
    pub const NONE: Self = Self(0);

    /// So many of a hundred; more than a hundred is all.
    #[must_use]
    pub const fn percent(percent: u32) -> Self {
        Self(if percent >= 100 { WHOLE } else { percent * 100 })
    }

    /// What share of `whole` is `part`; of nothing it is all. Rounded down.
    #[must_use]
    pub fn of(part: u32, whole: u32) -> Self {
        let parts = u64::from(part) * u64::from(WHOLE);
        let share = parts.checked_div(whole.into()).unwrap_or(WHOLE.into());
        Self(u32::try_from(share).unwrap_or(WHOLE).min(WHOLE))
    }

    /// Whether a place (see [`place`]) is within the first so many of all places.
    #[must_use]
    pub fn covers(self, place: u64) -> bool {
        let scaled = u128::from(place) * u128::from(WHOLE);
        scaled >> 64 < u128::from(self.0)
    }

    /// Whether `part` is at least this share of `whole`.
    #[must_use]
    pub fn is_reached_by(self, part: u32, whole: u32) -> bool {
        u64::from(part) * u64::from(WHOLE) >= u64::from(whole) * u64::from(self.0)
    }
}

/// A node's place in the order of a release's rollout, over the whole range of numbers. It depends on the release, so that
/// it is not always the same nodes that go first, and on nothing that changes, so that a node keeps its place.
///
/// The first eight bytes, big-endian, of the SHA-256 of `flipside rollout`, the version and the node id, each ended by a
/// line feed.
#[must_use]
pub fn place(version: &Version, node: &NodeId) -> u64 {
    hashed(&format!("flipside rollout\n{version}\n{node}\n"))
}

/// The first eight bytes of a text's SHA-256, as a number: even over the whole range.
pub(super) fn hashed(text: &str) -> u64 {
    let digest = Sha256::of(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(first)
}

impl Share {
    /// The share that a place is the end of, for people: "at 43.21%".
    #[must_use]
    pub fn at(place: u64) -> Self {
        Self(u32::try_from((u128::from(place) * u128::from(WHOLE)) >> 64).unwrap_or(WHOLE))
    }
}

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let read = || {
            let number = text.strip_suffix('%')?;
            let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
            let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
            if whole.is_empty()
                || whole.len() > 3
                || decimals.len() > 2
                || !digits(whole)
                || !digits(decimals)
            {
                return None;
            }
            if number.ends_with('.') {
                return None;
            }
            let share = whole.parse::<u32>().ok()? * 100 + format!("{decimals:0<2}").parse::<u32>().ok()?;
            (share <= WHOLE).then_some(Self(share))
        };
        read().ok_or_else(|| InvalidShare(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, decimals) = (self.0 / 100, self.0 % 100);
        let text = match decimals {
            0 => format!("{whole}%"),
            tenths if tenths % 10 == 0 => format!("{whole}.{}%", tenths / 10),
            _ => format!("{whole}.{decimals:02}%"),
        };
        f.pad(&text)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
