//! Every public verb has a man page, no page has an empty section, every setting and every program is in them.

use clap::Command;
use documents::{Document, man};
use std::collections::BTreeMap;
use update_engine::config::keys::KEYS;

const DATE: &str = "2026-11-30";

fn made() -> BTreeMap<String, String> {
    let documents = match documents::documents(DATE) {
        Ok(documents) => documents,
        Err(error) => panic!("the documents cannot be made: {error}"),
    };
    let count = documents.len();
    let text = |d: Document| {
        let content = match String::from_utf8(d.content) {
            Ok(content) => content,
            Err(error) => panic!("{}: {error}", d.path.display()),
        };
        (d.path.display().to_string(), content)
    };
    let made: BTreeMap<_, _> = documents.into_iter().map(text).collect();
    assert_eq!(made.len(), count, "two documents of one name");
    made
}

/// The page names that a program must have, from the words a user types.
fn expected(command: &Command, typed: &str, names: &mut Vec<String>) {
    names.push(typed.to_owned());
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
        expected(verb, &format!("{typed}-{}", verb.get_name()), names);
    }
}

#[test]
fn every_public_verb_has_a_page_with_its_options() {
    let made = made();
    let mut pages = 0;
    for program in documents::programs() {
        let mut names = Vec::new();
        expected(&program, program.get_name(), &mut names);
        for name in names {
            let path = format!("{}/man/{name}.1", program.get_name());
            let page = made.get(&path).unwrap_or_else(|| panic!("no page {path}"));
            let title =
                format!(".TH {name} 1 \"{DATE}\" \"Flipside {}\" \"Flipside\"\n", env!("CARGO_PKG_VERSION"));
            assert!(page.contains(&title), "{path} has another title:\n{page}");
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
                assert!(page.contains(&format!(".SH {section}\n")), "{path} lacks {section}:\n{page}");
            }
            pages += 1;
        }
        for shell in ["bash", "zsh", "fish"] {
            let prefix = format!("{}/completions/{shell}/", program.get_name());
            let found: Vec<_> = made.iter().filter(|(path, _)| path.starts_with(&prefix)).collect();
            let [(path, text)] = found.as_slice() else { panic!("{prefix}: {found:?}") };
            for verb in program.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                assert!(text.contains(verb.get_name()), "{path} does not complete {}", verb.get_name());
            }
        }
    }
    // Fewer would mean that verbs were not looked into.
    assert!(pages > 20, "{pages}");
    assert!(
        made["updatectl/man/updatectl-release-push.1"].contains("\\-\\-server"),
        "global options belong to verbs"
    );
    assert!(!made["update-engine/man/update-engine-run.1"].contains("pause"), "hidden options stay hidden");
}

#[test]
fn no_section_is_empty() {
    for (path, page) in made().into_iter().filter(|(path, _)| path.contains("/man/")) {
        let mut sections: Vec<(&str, usize)> = Vec::new();
        for line in page.lines() {
            match line.strip_prefix(".SH ") {
                Some(name) => sections.push((name, 0)),
                None if line.starts_with('.') || line.trim().is_empty() => {}
                None => sections.iter_mut().last().into_iter().for_each(|(_, lines)| *lines += 1),
            }
        }
        assert!(sections.len() >= 4, "{path}: {sections:?}");
        for (name, lines) in sections {
            assert!(lines > 0, "{path}: section {name} is empty");
        }
        // "name - what it does": man-db and apropos need the dash and a text after it.
        let name = page.split(".SH NAME\n").nth(1).unwrap().lines().next().unwrap();
        let (_, what) =
            name.split_once(" \\- ").or(name.split_once(" - ")).unwrap_or_else(|| panic!("{path}: {name}"));
        assert!(!what.trim().is_empty(), "{path}: {name}");
    }
}

#[test]
fn the_page_of_the_configuration_has_every_setting() {
    let made = made();
    let page = &made["update-engine/man/update-engine.toml.5"];
    for key in KEYS {
        assert!(page.contains(&format!("\\fB{}\\fR", key.path)), "{} is missing", key.path);
    }
}

#[test]
fn a_page_is_called_as_it_is_typed() {
    for program in documents::programs() {
        assert_eq!(man::page_name(&program), program.get_name());
    }
}
