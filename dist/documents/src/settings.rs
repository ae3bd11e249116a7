//! Packages: the man page of the configuration, made from the table of settings.

use crate::Document;
use clap_mangen::roff::{Roff, bold, italic, roman};
use std::path::PathBuf;
use update_engine::config::FOLDERS;
use update_engine::config::keys::KEYS;

const EXAMPLE: &str = "[server]
url = \"https://updates.example.org\"

[identity]
channel = \"stable\"
";

/// `update-engine.toml(5)`; `date` as in 2026-11-30, or nothing.
///
/// # Errors
/// Where it cannot be rendered.
pub fn page(date: &str) -> std::io::Result<Document> {
    let title = crate::man::title("update-engine.toml", "5", env!("CARGO_PKG_VERSION"), date);
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]);
    roff.text([roman("update-engine.toml - configuration of update-engine and updatectl")]);
    roff.control("SH", ["SYNOPSIS"]);
    for (index, folder) in FOLDERS.iter().enumerate() {
        if index > 0 {
            roff.control("br", []);
        }
        roff.text([italic(format!("{folder}/*.toml"))]);
    }
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "Fragments of TOML. A file of a later folder replaces the file of the same name of an earlier one. What remains \
         is applied in the order of the file names, each overriding single values of those before it. A relative path \
         counts from the folder of the file that names it. An unknown key, or a value that does not fit, is an error \
         that names the file and the line. updatectl config prints every setting with its origin, updatectl config \
         import translates the configuration of other engines.",
    )]);
    roff.control("SH", ["SETTINGS"]);
    for key in KEYS {
        let default = match key.default {
            Some(default) => format!("Default: {default}."),
            None => "No default.".to_owned(),
        };
        roff.control("TP", []).text([bold(key.path)]);
        roff.text([roman(format!("{}.", key.doc.trim_end_matches('.')))]);
        roff.control("br", []).text([roman(default)]);
    }
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in EXAMPLE.lines() {
        roff.text([roman(if line.is_empty() { " " } else { line })]);
    }
    roff.control("fi", []);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("update-engine(1), updatectl(1), updatectl-config(1)")]);
    let mut content = title.into_bytes();
    roff.to_writer(&mut content)?;
    Ok(Document { path: PathBuf::from("update-engine.toml.5"), content })
}
