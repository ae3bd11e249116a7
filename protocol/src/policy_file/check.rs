//! What no policy may say, whichever it is.

use super::Problem;
use crate::window::Window;
use std::collections::BTreeSet;

/// The longest window, in seconds: a week, after which it would open again.
const WINDOW_MOST_S: u32 = 7 * 24 * 60 * 60;

pub(crate) fn problem(key: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { key: key.into(), message: message.into() }
}

/// Everything that is wrong with the windows at a key, as far as windows are concerned.
pub(crate) fn window_problems(key: &str, windows: &[Window]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for (at, window) in windows.iter().enumerate() {
        let key = format!("{key}.{at}");
        if window.length_s == 0 {
            problems.push(problem(&key, "expected a window of at least 1s, found 0s"));
        }
        if window.length_s > WINDOW_MOST_S {
            problems.push(problem(&key, "expected a window of at most 168h, a week, found a longer one"));
        }
        if repeated(&window.days).next().is_some() {
            problems.push(problem(&key, "found a day twice; name each day once"));
        }
        if !seen.insert((days(window), window.start, window.length_s)) {
            problems.push(problem(&key, "found the same window twice; remove one of them"));
        }
    }
    problems
}

/// The places at which something stands that stood before.
pub(crate) fn repeated<T: PartialEq>(list: &[T]) -> impl Iterator<Item = usize> {
    (0..list.len()).filter(|at| list[..*at].contains(&list[*at]))
}

/// The days on which a window opens, in order; none named is all of them.
fn days(window: &Window) -> BTreeSet<i8> {
    if window.days.is_empty() {
        (0..7).collect()
    } else {
        window.days.iter().map(|day| day.to_monday_zero_offset()).collect()
    }
}
