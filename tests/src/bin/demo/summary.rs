//! What the demo showed.

use serde::Serialize;
use std::fmt;

/// Every part of the story, and whether it came out right.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// 1.
    pub(crate) schema: u32,
    /// A release came by its channel, booted and was confirmed.
    pub(crate) updated: bool,
    /// A download that was cut off went on where it was.
    pub(crate) resumed: bool,
    /// A release that does not boot ended in the old slot.
    pub(crate) rolled_back: bool,
    /// That release is never tried again.
    pub(crate) quarantined: bool,
    /// A payload with one changed byte was refused.
    pub(crate) tampered_refused: bool,
    /// Old metadata served again was refused.
    pub(crate) replay_refused: bool,
    /// Length of the second update's image.
    pub(crate) bytes_total: u64,
    /// What the second update fetched.
    pub(crate) bytes_downloaded: u64,
    /// Length of the second update's payload: what it would have fetched without the old slots.
    pub(crate) payload_bytes: u64,
    /// What the resumed download fetched the second time.
    pub(crate) resumed_bytes: u64,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            schema: 1,
            updated: false,
            resumed: false,
            rolled_back: false,
            quarantined: false,
            tampered_refused: false,
            replay_refused: false,
            bytes_total: 0,
            bytes_downloaded: 0,
            payload_bytes: 0,
            resumed_bytes: 0,
        }
    }
}

impl Summary {
    /// Whether everything that the story promises happened.
    pub(crate) fn is_complete(&self) -> bool {
        self.updated
            && self.resumed
            && self.rolled_back
            && self.quarantined
            && self.tampered_refused
            && self.replay_refused
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |done: bool| if done { "yes" } else { "NO" };
        writeln!(f, "updated and confirmed            {}", word(self.updated))?;
        writeln!(f, "resumed after kill -9            {}", word(self.resumed))?;
        writeln!(f, "fell back from a broken release  {}", word(self.rolled_back))?;
        writeln!(f, "quarantined it                   {}", word(self.quarantined))?;
        writeln!(f, "refused a tampered payload       {}", word(self.tampered_refused))?;
        writeln!(f, "refused replayed metadata        {}", word(self.replay_refused))?;
        write!(
            f,
            "second update fetched            {} of an image of {}",
            megabytes(self.bytes_downloaded),
            megabytes(self.bytes_total)
        )
    }
}

/// Bytes as megabytes with two digits.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000)
}
