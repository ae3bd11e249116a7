//! Packages: man pages and shell completions, made from the command lines that the programs parse with and from the
//! table of settings. A crate of its own, so that the delivered programs do not carry what makes them.

pub mod man;
pub mod settings;

use clap::Command;
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// A file to be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it goes, below the output folder.
    pub path: PathBuf,
    /// What it holds.
    pub content: Vec<u8>,
}

/// The command lines of all delivered programs.
#[must_use]
pub fn programs() -> Vec<Command> {
    let mut programs = Vec::from(update_engine::cli::commands());
    programs.extend([update_server::cli::command(), image_tools::cli::command()]);
    for program in &mut programs {
        let name = program.get_name().to_owned();
        *program = std::mem::take(program).disable_help_subcommand(true).bin_name(name);
        program.build();
    }
    programs
}

/// Everything: `PROGRAM/man/NAME.SECTION`, `PROGRAM/completions/SHELL/FILE`. `date` is what the pages bear, as in
/// 2026-11-30, or nothing.
///
/// # Errors
/// Where a page cannot be rendered.
pub fn documents(date: &str) -> std::io::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for program in programs() {
        let folder = PathBuf::from(program.get_name());
        for page in man::pages(&program, date)? {
            documents.push(Document { path: folder.join("man").join(page.path), content: page.content });
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            documents.push(completion(&program, shell, &folder));
        }
    }
    let page = settings::page(date)?;
    documents.push(Document { path: Path::new("update-engine/man").join(page.path), content: page.content });
    Ok(documents)
}

/// A completion under the name that its shell looks for.
fn completion(program: &Command, shell: Shell, folder: &Path) -> Document {
    let name = program.get_name().to_owned();
    let mut content = Vec::new();
    clap_complete::generate(shell, &mut program.clone(), name.clone(), &mut content);
    let file = match shell {
        Shell::Zsh => format!("_{name}"),
        Shell::Fish => format!("{name}.fish"),
        _ => name,
    };
    Document { path: folder.join("completions").join(shell.to_string()).join(file), content }
}
