//! Packages: one man page for each program and each of its verbs.

use crate::Document;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::path::PathBuf;

/// What the exit codes of `protocol::status::Exit` mean, for every verb.
const EXIT: [(&str, &str); 6] = [
    ("0", "done"),
    ("1", "failed; one line on standard error says what, what was expected and found, and what to do"),
    ("2", "wrong usage"),
    ("3", "nothing to do"),
    ("4", "deferred: by the rollout, a window, a permit, or somebody who holds the reboot"),
    ("5", "refused: trust, quarantine or a downgrade"),
];

/// The pages of a program and all its public verbs; `date` as in 2026-11-30, or nothing.
///
/// # Errors
/// Where one cannot be rendered.
pub fn pages(program: &Command, date: &str) -> std::io::Result<Vec<Document>> {
    let mut pages = Vec::new();
    collect(program, program, date, &mut pages)?;
    Ok(pages)
}

fn collect(
    program: &Command,
    command: &Command,
    date: &str,
    pages: &mut Vec<Document>,
) -> std::io::Result<()> {
    pages.push(page(program, command, date)?);
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        collect(program, verb, date, pages)?;
    }
    Ok(())
}

/// The name of a command's page: `updatectl-release-push`.
#[must_use]
pub fn page_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(program: &Command, command: &Command, date: &str) -> std::io::Result<Document> {
    let version = program.get_version().unwrap_or_default();
    let man = Man::new(command.clone());
    let mut text = title(page_name(command), "1", version, date).into_bytes();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    if command.get_after_long_help().or(command.get_after_help()).is_some() {
        man.render_extra_section(&mut text)?;
    }
    endings(program, command).to_writer(&mut text)?;
    Ok(Document { path: PathBuf::from(man.get_filename()), content: text })
}

/// The line that gives a page its name, date, source and manual. Written here because an empty word is left out by what
/// writes the others, and then the rest moves up: the source would stand where the date belongs.
#[must_use]
pub fn title(name: &str, section: &str, version: &str, date: &str) -> String {
    format!(".TH {name} {section} \"{date}\" \"Flipside {version}\" \"Flipside\"\n")
}

/// Exit status, and where to read on.
fn endings(program: &Command, command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT {
        // image-tools knows only success, failure and wrong usage.
        if program.get_name() == "image-tools" && code > "2" {
            continue;
        }
        roff.control("TP", []).text([bold(code)]).text([roman(meaning)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut others: Vec<String> =
        crate::programs().iter().map(|other| format!("{}(1)", page_name(other))).collect();
    others.push("update-engine.toml(5)".to_owned());
    others.retain(|other| *other != format!("{}(1)", page_name(command)));
    roff.text([roman(others.join(", "))]);
    roff
}
