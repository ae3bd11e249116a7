//! `documents OUT [DATE]`: writes man pages, which bear the date, and completions below OUT, for `dist/build-packages`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(out), date, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("usage: documents OUT [DATE]");
        return ExitCode::from(2);
    };
    let date = date.unwrap_or_default();
    // A page's first line is made of it.
    let Some(date) = date.to_str().filter(|date| date.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
    else {
        eprintln!("documents: expected a date like 2026-11-30, found {}", date.display());
        return ExitCode::from(2);
    };
    match write(&PathBuf::from(out), date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("documents: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(out: &std::path::Path, date: &str) -> std::io::Result<()> {
    for document in documents::documents(date)? {
        let path = out.join(&document.path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, document.content)?;
    }
    Ok(())
}
