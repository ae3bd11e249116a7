//! All steps: files that are either the old or the new ones after a power cut, never a mixture.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Permissions of the files that [`write()`] makes: the owner writes, everybody reads.
const MODE: u32 = 0o644;

/// Replaces the content of `path` by `bytes`: a temporary file in the same folder, fsync, rename, fsync of the folder.
///
/// # Errors
/// Any step's error. The file is then the old or the new one; a temporary file of this process is removed.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with_mode(path, bytes, MODE)
}

/// As [`write()`], with other permissions for the file: keys and tokens take `0o600`.
///
/// # Errors
/// As [`write()`].
pub fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_with(path, mode, |file, _| file.write_all(bytes))
}

/// As [`write_with_mode()`], where `fill` writes the content: into the file, or under the name that it has until it is
/// complete.
///
/// # Errors
/// What `fill` says, and as [`write()`].
pub fn write_with<T, E: From<io::Error>>(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File, &Path) -> Result<T, E>,
) -> Result<T, E> {
    let temporary = temporary_name(path)?;
    let result = fill_new(&temporary, mode, fill).and_then(|filled| {
        std::fs::rename(&temporary, path)?;
        Ok(filled)
    });
    if result.is_err() {
        // The first error is the one to report; a file that is left behind does no harm.
        let _ = std::fs::remove_file(&temporary);
        return result;
    }
    sync_dir(parent(path))?;
    result
}

/// The file whose place a new one at `path` takes, for outputs that a user names: `path` itself, or where that is a link
/// to a file, the file, so that the link stays. Only a regular file may be replaced: renaming over a device node would
/// destroy the node and leave the device as it was.
///
/// # Errors
/// Where something else is there, or no folder to write in; the error does not name `path`.
pub fn replaceable(path: &Path) -> io::Result<PathBuf> {
    let expected = "expected a regular file, or nothing there";
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => std::fs::canonicalize(path),
        Ok(found) => {
            let kind = found.file_type();
            let what = if kind.is_dir() {
                "a folder"
            } else if kind.is_block_device() {
                "a block device"
            } else if kind.is_char_device() {
                "a character device"
            } else if kind.is_fifo() {
                "a pipe"
            } else {
                "a socket"
            };
            Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("found {what}: {expected}")))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) if path.is_symlink() => {
            Err(io::Error::new(io::ErrorKind::NotFound, format!("found a link to nothing: {expected}")))
        }
        Err(_) if !parent(path).is_dir() => {
            let problem = format!("there is no folder {}: make it first", parent(path).display());
            Err(io::Error::new(io::ErrorKind::NotFound, problem))
        }
        Err(_) => Ok(path.to_owned()),
    }
}

/// Makes renames, creations and removals in this folder durable.
///
/// # Errors
/// Where the folder cannot be opened or synced.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn fill_new<T, E: From<io::Error>>(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File, &Path) -> Result<T, E>,
) -> Result<T, E> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::from_raw_mode(mode)).map_err(io::Error::from)?;
    let mut file = File::from(opened);
    let filled = fill(&mut file, path)?;
    file.sync_all()?;
    Ok(filled)
}

/// A name that no other writer uses: the process id and a count. The leading dot hides it from readers of `*.d`.
fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display())));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(temporary);
    // Left by a process of the same id before a power cut: nobody else may be using it now.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(temporary),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        write_with_mode(&dir.path().join("key"), b"k", 0o600).unwrap();
        let mode = std::fs::metadata(dir.path().join("key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn failing_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        // A folder in the file's place: the rename fails.
        let path = dir.path().join("occupied");
        std::fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x").is_err());
        assert!(path.is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write(Path::new("/"), b"x").is_err());
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().join(name);
        let refused = |path: &str| replaceable(&name(path)).unwrap_err().to_string();
        std::fs::write(name("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", name("link")).unwrap();
        std::os::unix::fs::symlink("none", name("dangling")).unwrap();
        std::os::unix::fs::symlink("/dev/null", name("null")).unwrap();
        std::fs::create_dir(name("folder")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(name("socket")).unwrap();
        let file = name("file").canonicalize().unwrap();
        assert_eq!(replaceable(&name("file")).unwrap(), file);
        assert_eq!(replaceable(&name("link")).unwrap(), file);
        assert_eq!(replaceable(&name("new")).unwrap(), name("new"));
        assert_eq!(replaceable(Path::new("not-there")).unwrap(), Path::new("not-there"));
        for (path, found) in [
            ("dangling", "found a link to nothing: expected a regular file"),
            ("null", "found a character device: expected"),
            ("folder", "found a folder: expected"),
            ("socket", "found a socket: expected"),
            ("missing/new", "there is no folder "),
        ] {
            assert!(refused(path).starts_with(found), "{path}: {}", refused(path));
        }
        assert!(replaceable(&name("file/new")).is_err());
    }

    #[test]
    fn what_fills_a_file_can_fail_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let failed = write_with(&path, 0o644, |file, name| {
            assert!(name.exists() && !path.exists());
            file.write_all(b"half")?;
            Err::<(), _>(io::Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
