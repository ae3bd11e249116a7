//! All steps: a file that comes out. It appears under its name when it is complete, and takes the place of a regular file
//! only, whatever `--force` says: a device node would be replaced by a file, not written to. And the lines on stdout.

use ::disk::durable;
use anyhow::Context as _;
use std::fmt::Arguments;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::exit;

/// Who may read what is made, and who may write it.
const MODE: u32 = 0o644;

/// Refuses early what [`write`] would refuse after all the work.
///
/// # Errors
/// What is there instead of a regular file or nothing.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    durable::replaceable(path).map(drop).with_context(|| what(path))
}

/// Makes the file, or replaces it; a link to a file stays one. `fill` writes the content: into the file, or under the
/// name that it has until then.
///
/// # Errors
/// What is there instead of a regular file, and what goes wrong.
pub(crate) fn write<T>(
    path: &Path,
    fill: impl FnOnce(&mut File, &Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let place = durable::replaceable(path).with_context(|| what(path))?;
    durable::write_with(&place, MODE, fill).with_context(|| what(path))
}

fn what(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// A line on stdout. Where it cannot be written, as with `| head -1`, the program ends: the work is done by then, and
/// there is nobody to tell what came of it.
pub(crate) fn say(line: Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        eprintln!("image-tools: cannot write to stdout: {error}");
        exit(1);
    }
}
