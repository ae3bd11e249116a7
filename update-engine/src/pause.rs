//! A testing aid for all steps: `--pause-at POINT` stops the engine dead at one point, so that a test can end it there
//! with SIGKILL and see whether the next run ends right. It prints `paused POINT` on stderr and waits for ever.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;

/// Where the engine can be stopped. `…ing` is before the operation and after the record was saved, `…ed` after the
/// operation and before its result is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before the server is asked.
    Checking,
    /// A release was found; before the preflight.
    Available,
    /// Before the target is invalidated.
    Invalidating,
    /// The target is invalidated.
    Invalidated,
    /// At least so many bytes of the payload came, head not counted. On the command line `downloading` or
    /// `downloading=BYTES`.
    Downloading(u64),
    /// The release is written.
    Downloaded,
    /// Before the read-back.
    Verifying,
    /// The slot is read back.
    Staged,
    /// The intent is saved; before the flip.
    Activating,
    /// Flipped; before that is saved.
    Activated,
    /// The attempt is saved; before the lock is asked for a permit.
    Requesting,
    /// The lock answered a request; before that is saved.
    Requested,
    /// Before the lock is asked whether the grant is current.
    Rechecking,
    /// The lock answered that.
    Rechecked,
    /// That the attempt ended is saved; before the lock is told.
    Releasing,
    /// The lock was told; before that is saved.
    Released,
    /// Waiting for a window, a permit or an inhibitor.
    Waiting,
    /// Before the reboot command.
    Rebooting,
    /// Before the health checks.
    Confirming,
    /// Healthy; before the slot is marked good.
    MarkingGood,
    /// Marked good; before that is saved.
    MarkedGood,
    /// The quarantine is saved; before the slot is condemned.
    Quarantining,
    /// The slot is condemned; before that is saved.
    Quarantined,
    /// Before a flip is undone.
    Undoing,
    /// A flip is undone; before that is saved.
    Undone,
}

const NAMES: [(&str, Point); 25] = [
    ("checking", Point::Checking),
    ("available", Point::Available),
    ("invalidating", Point::Invalidating),
    ("invalidated", Point::Invalidated),
    ("downloading", Point::Downloading(1)),
    ("downloaded", Point::Downloaded),
    ("verifying", Point::Verifying),
    ("staged", Point::Staged),
    ("activating", Point::Activating),
    ("activated", Point::Activated),
    ("requesting", Point::Requesting),
    ("requested", Point::Requested),
    ("rechecking", Point::Rechecking),
    ("rechecked", Point::Rechecked),
    ("releasing", Point::Releasing),
    ("released", Point::Released),
    ("waiting", Point::Waiting),
    ("rebooting", Point::Rebooting),
    ("confirming", Point::Confirming),
    ("marking-good", Point::MarkingGood),
    ("marked-good", Point::MarkedGood),
    ("quarantining", Point::Quarantining),
    ("quarantined", Point::Quarantined),
    ("undoing", Point::Undoing),
    ("undone", Point::Undone),
];

impl Point {
    fn name(self) -> &'static str {
        let same = |point: Self| std::mem::discriminant(&point) == std::mem::discriminant(&self);
        NAMES.iter().find(|(_, point)| same(*point)).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(bytes) = text.strip_prefix("downloading=") {
            let bytes = bytes.parse().map_err(|_| format!("expected a number of bytes, found {bytes:?}"))?;
            return Ok(Self::Downloading(bytes));
        }
        NAMES.iter().find(|(name, _)| *name == text).map(|(_, point)| *point).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

/// Where to stop, if anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pause(Option<Point>);

impl Pause {
    /// Stops at this point; with `None`, nowhere.
    #[must_use]
    pub const fn new(point: Option<Point>) -> Self {
        Self(point)
    }

    /// Says that the engine is here. Does not return where it is to stop.
    pub fn at(self, here: Point) {
        let stop = match (self.0, here) {
            (Some(Point::Downloading(from)), Point::Downloading(bytes)) => bytes >= from,
            (stop, here) => stop == Some(here),
        };
        if stop {
            let _ = writeln!(std::io::stderr(), "paused {here}");
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        for (name, point) in NAMES {
            assert_eq!(name.parse(), Ok(point));
            assert_eq!(point.to_string(), name);
        }
        assert_eq!("downloading=4096".parse(), Ok(Point::Downloading(4096)));
        assert!("downloading=x".parse::<Point>().is_err());
        assert!("nowhere".parse::<Point>().unwrap_err().contains("marked-good"));
        Pause::default().at(Point::Checking);
        Pause::new(Some(Point::Downloading(10))).at(Point::Downloading(9));
    }
}
