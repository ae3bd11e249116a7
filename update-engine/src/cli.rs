//! All steps: the command lines of both programs, and what the two have in common: how they begin and how they end.

pub mod ctl;
pub mod engine;
pub mod node;

use crate::error::chain;
use crate::logging;
use clap::{Args, CommandFactory, Parser};
use protocol::status::Exit;
use serde_json::json;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;

/// What a program says, and how.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log, as in `info` or `update_engine=debug`; RUST_LOG does the same.
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
}

/// A program's command line.
pub trait Program: Parser {
    /// What is logged where nobody says what.
    const LOG: &'static str;

    /// What is said of its output.
    fn output(&self) -> &Output;
}

/// Why a program ends without having done what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One line with the whole chain.
    pub line: String,
    /// How it ends.
    pub exit: Exit,
}

impl Failure {
    /// From an error with its sources.
    #[must_use]
    pub fn new(error: &dyn Error, exit: Exit) -> Self {
        Self { line: chain(error), exit }
    }
}

/// Both programs' command lines as values, for man pages and completions.
#[must_use]
pub fn commands() -> [clap::Command; 2] {
    [engine::Cli::command(), ctl::Cli::command()]
}

/// A whole program: reads the command line, logs, works, and says once what went wrong.
pub fn main<P: Program>(work: impl FnOnce(P) -> Result<Exit, Failure>) -> ExitCode {
    let program = match P::try_parse() {
        Ok(program) => program,
        Err(error) => return usage(&error, asks_for_json(std::env::args_os().skip(1))),
    };
    let json = program.output().json;
    logging::start(program.output().log.as_deref(), P::LOG);
    match work(program) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            print_failure(&failure.line, json);
            let _ = writeln!(std::io::stderr(), "{}: {}", P::command().get_name(), failure.line);
            failure.exit.into()
        }
    }
}

/// Wrong usage, or help that was asked for.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if error.use_stderr() {
        print_failure(&usage_line(error), json);
    }
    let printed = error.print().is_ok();
    match u8::try_from(error.exit_code()) {
        Ok(code) if printed || code != 0 => code.into(),
        _ => Exit::Failed.into(),
    }
}

/// What is wrong, without the usage that follows it on a terminal.
fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.split("\n\n").next().unwrap_or_default();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// Told before the command line is understood.
fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let options = arguments.take_while(|argument| argument != OsStr::new("--"));
    options.into_iter().any(|argument| argument == OsStr::new("--json"))
}

/// A failure as data. Where nobody takes it, the line on stderr remains.
fn print_failure(line: &str, json: bool) {
    if json {
        let _ = writeln!(std::io::stdout(), "{}", json!({ "schema": 1, "error": line }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_consistent() {
        commands().into_iter().for_each(clap::Command::debug_assert);
    }

    #[test]
    fn wrong_usage_is_one_line() {
        for (arguments, line) in [
            (&["updatectl", "slots", "--bogus"][..], "unexpected argument '--bogus' found"),
            (
                &["updatectl", "config", "import"],
                "the following required arguments were not provided: <FILE>",
            ),
        ] {
            assert_eq!(usage_line(&ctl::Cli::try_parse_from(arguments).unwrap_err()), line);
        }
    }

    #[test]
    fn what_follows_two_dashes_is_no_option() {
        let asks =
            |arguments: &[&str]| asks_for_json(arguments.iter().map(|&argument| OsString::from(argument)));
        assert!(asks(&["slots", "--json", "--bogus"]));
        assert!(!asks(&["slots", "--", "--json"]) && !asks(&["slots", "json"]));
    }
}
