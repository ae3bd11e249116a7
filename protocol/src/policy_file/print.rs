//! Steps 4 and 9: prints values as TOML that the reader beside it takes.

use crate::window::{Window, day_name};
use jiff::SignedDuration;
use jiff::civil::Time;
use std::fmt::{self, Display, Formatter};

const DAY_S: u32 = 24 * 60 * 60;

/// A window: by its end where that says all, else by its length.
pub(crate) struct Opens<'a>(pub(crate) &'a Window);

impl Display for Opens<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Window { days, start, length_s } = self.0;
        if !days.is_empty() {
            let names = days.iter().map(|day| Quoted(day_name(*day)).to_string()).collect();
            write!(f, "days = {}, ", List(names))?;
        }
        write!(f, "start = \"{}\", ", Clock(*start))?;
        if (1..DAY_S).contains(length_s) {
            let end = start.wrapping_add(SignedDuration::from_secs((*length_s).into()));
            write!(f, "end = \"{}\"", Clock(end))
        } else {
            write!(f, "length = {}", Duration(*length_s))
        }
    }
}

struct Clock(Time);

impl Display for Clock {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0.second() == 0 && self.0.subsec_nanosecond() == 0 {
            write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// Seconds, as `"1h30m"`.
pub(crate) struct Duration(pub(crate) u32);

impl Display for Duration {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        write!(f, "\"")?;
        for (count, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
            if count > 0 || (unit == 's' && self.0 == 0) {
                write!(f, "{count}{unit}")?;
            }
        }
        write!(f, "\"")
    }
}

/// An array, on several lines where one would be long.
pub(crate) struct List(pub(crate) Vec<String>);

impl Display for List {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = self.0.join(", ");
        if line.len() <= 80 {
            return write!(f, "[{line}]");
        }
        writeln!(f, "[")?;
        self.0.iter().try_for_each(|item| writeln!(f, "    {item},"))?;
        write!(f, "]")
    }
}

/// A key: bare where TOML allows.
pub(crate) struct Name<'a>(pub(crate) &'a str);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bare = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !self.0.is_empty() && self.0.bytes().all(bare) {
            f.write_str(self.0)
        } else {
            write!(f, "{}", Quoted(self.0))
        }
    }
}

/// A string as TOML.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\"")?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        write!(f, "\"")
    }
}
