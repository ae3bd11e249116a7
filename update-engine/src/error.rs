//! Errors at the edge: one line with the whole chain, printed once.

use std::error::Error;
use std::fmt;

/// An error and its sources, separated by `": "`. A source that its error already shows is not repeated.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = one_line(error);
    let mut last = line.clone();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = one_line(cause);
        if !last.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        last = text;
        source = cause.source();
    }
    line
}

fn one_line(error: &dyn fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
