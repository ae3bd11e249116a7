//! All steps: an output that is one of the inputs. `--force` says that what an old run left may go, not that what goes
//! into this one may: it would be overwritten before or while it is read.

use anyhow::{Context as _, ensure};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Refuses an output that is one of the inputs under whatever name, a link included, or a device that an input lies on.
/// Comes before anything is opened for writing.
///
/// # Errors
/// Which input it is.
pub(crate) fn refuse_as_output<'a>(
    output: &Path,
    inputs: impl IntoIterator<Item = (&'static str, &'a Path)>,
) -> anyhow::Result<()> {
    for (option, input) in inputs {
        ensure!(
            !same(output, input).with_context(|| format!("cannot examine {}", input.display()))?,
            "{} is {option} as well, which writing it would destroy ({}): choose another output",
            output.display(),
            input.display()
        );
    }
    Ok(())
}

/// Whether writing `output` changes `input`. A file that is not there is the same as none but that of its own name.
fn same(output: &Path, input: &Path) -> std::io::Result<bool> {
    if output == input {
        return Ok(true);
    }
    let (Some(out), Some(given)) = (metadata(output)?, metadata(input)?) else { return Ok(false) };
    if out.file_type().is_block_device() && given.file_type().is_block_device() {
        return Ok(out.rdev() == given.rdev() || is_partition(given.rdev(), out.rdev()));
    }
    if out.file_type().is_block_device() {
        return Ok(backing_file(out.rdev()).is_some_and(|file| is(&file, &given)));
    }
    if given.file_type().is_block_device() {
        return Ok(backing_file(given.rdev()).is_some_and(|file| is(&file, &out)));
    }
    Ok((out.dev(), out.ino()) == (given.dev(), given.ino()))
}

fn metadata(path: &Path) -> std::io::Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is(path: &Path, file: &Metadata) -> bool {
    std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (file.dev(), file.ino()))
}

/// What the kernel knows of a block device.
fn sysfs(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Whether `part` is a partition of `whole`: in sysfs it lies in its disk's folder.
fn is_partition(part: u64, whole: u64) -> bool {
    let folder = |device| std::fs::canonicalize(sysfs(device)).ok();
    folder(part).zip(folder(whole)).is_some_and(|(part, whole)| part.parent() == Some(&whole))
}

/// The file behind a loop device, or behind a partition of one.
fn backing_file(device: u64) -> Option<PathBuf> {
    backing_file_of(&std::fs::canonicalize(sysfs(device)).ok()?)
}

/// The same by the device's folder in sysfs. A partition's lies in its disk's, where the file is named.
fn backing_file_of(folder: &Path) -> Option<PathBuf> {
    let named = |folder: &Path| std::fs::read_to_string(folder.join("loop/backing_file")).ok();
    let text = named(folder).or_else(|| named(folder.parent()?))?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_of_a_loop_device_lies_in_its_file() {
        let sys = tempfile::tempdir().unwrap();
        let (device, other) = (sys.path().join("block/loop0"), sys.path().join("block/vda/vda1"));
        for folder in [&device.join("loop"), &device.join("loop0p3"), &other] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(device.join("loop/backing_file"), "/images/my disk\n").unwrap();
        for folder in [&device, &device.join("loop0p3")] {
            assert_eq!(backing_file_of(folder).as_deref(), Some(Path::new("/images/my disk")));
        }
        assert_eq!(backing_file_of(&other), None);
    }

    #[test]
    fn a_file_is_itself_under_each_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("kernel"), "x").unwrap();
        std::fs::write(path("other"), "x").unwrap();
        std::fs::hard_link(path("kernel"), path("hard")).unwrap();
        std::os::unix::fs::symlink("kernel", path("soft")).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        for output in ["kernel", "hard", "soft", "folder/../kernel"] {
            let refused = refuse_as_output(&path(output), [("--kernel", &*path("kernel"))]).unwrap_err();
            assert!(refused.to_string().contains("is --kernel as well"), "{refused}");
        }
        for output in ["other", "missing", "folder"] {
            refuse_as_output(&path(output), [("--kernel", &*path("kernel")), ("--initrd", &*path("none"))])
                .unwrap();
        }
    }
}
