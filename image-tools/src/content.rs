//! Step 1, image: what a file is, told by its first bytes, so that a wrong one is named before it costs a boot.

use anyhow::Context as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// How much of a file tells what it is, in bytes: btrfs has its mark behind 64 KiB.
const HEAD: u64 = 0x11000;

/// The name of a disk's image, where a partition's is wanted or the other way round.
pub(crate) const GPT: &str = "a whole disk with a GPT";
/// The name of a kernel that stands alone.
const KERNEL: &str = "a Linux kernel";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A file system, or what a kernel mounts through device mapper.
    FileSystem(&'static str),
    /// Something else that has a name.
    Other(&'static str),
    /// Bytes that say nothing.
    Unknown,
}

/// The marks of file systems: place and bytes.
const FILE_SYSTEMS: [(usize, &[u8], &str); 15] = [
    (0x438, &[0x53, 0xef], "ext2, ext3 or ext4"),
    (0x400, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (0, b"hsqs", "squashfs"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (0, b"verity\0\0", "a dm-verity hash tree"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, &[0x45, 0x3d, 0xcd, 0x28], "cramfs"),
    (0, b"-rom1fs-", "romfs"),
    (0x8001, b"CD001", "iso9660"),
    (0x8000, b"JFS1", "jfs"),
    (0x406, &[0x34, 0x34], "nilfs2"),
    // The beginning of the magic number of bcachefs, and the physical volumes of LVM.
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6], "bcachefs"),
    (0x200, b"LABELONE", "an LVM volume"),
];

/// The marks of other files that are mistaken for images.
const OTHERS: [(usize, &[u8], &str); 18] = [
    (0x202, b"HdrS", KERNEL),
    (0x38, b"ARM\x64", KERNEL),
    // Compressed, behind a program that unpacks it (CONFIG_EFI_ZBOOT).
    (4, b"zimg", KERNEL),
    (0x200, b"EFI PART", GPT),
    (0x1000, b"EFI PART", GPT),
    (0, b"MZ", "a PE program"),
    (0, b"\x7fELF", "an ELF file"),
    (0x101, b"ustar", "a tar archive"),
    (0, &[0x1f, 0x8b], "a gzip file"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"070701", "a cpio archive"),
    (0, b"070702", "a cpio archive"),
    (0, b"070707", "a cpio archive in the format odc"),
    (0, &[0xc7, 0x71], "a cpio archive in the format bin"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"QFI\xfb", "a qcow2 disk"),
];

/// How the kernel's initial file systems begin: archives in the two formats that a kernel knows (`cpio -H newc`, and the
/// same with checksums), and what is compressed in the ways that a kernel unpacks.
const INITRDS: [&[u8]; 9] = [
    b"070701",
    b"070702",
    &[0x1f, 0x8b],
    b"BZh",
    &[0x5d, 0],
    b"\xfd7zXZ\0",
    b"\x89LZO\0",
    &[0x02, 0x21, 0x4c, 0x18],
    &[0x28, 0xb5, 0x2f, 0xfd],
];

/// The bytes of a file that tell what it is.
///
/// # Errors
/// Where it cannot be read.
pub(crate) fn head(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(HEAD).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn stands(head: &[u8], at: usize, mark: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(mark))
}

/// What these first bytes are of.
pub(crate) fn of(head: &[u8]) -> Content {
    let found = |marks: &[(usize, &[u8], &'static str)]| {
        marks.iter().find(|(at, mark, _)| stands(head, *at, mark)).map(|(_, _, name)| *name)
    };
    // A GPT comes first: its first partition may begin where a file system's mark is looked for.
    match (found(&OTHERS), found(&FILE_SYSTEMS)) {
        (Some(other @ (GPT | KERNEL)), _) => Content::Other(other),
        (_, Some(system)) => Content::FileSystem(system),
        (Some(other), None) => Content::Other(other),
        (None, None) if is_fat(head) => Content::FileSystem("FAT"),
        (None, None) => Content::Unknown,
    }
}

/// The boot sector of a FAT volume: a jump, sectors of a usual size, clusters, tables, the mark at its end.
fn is_fat(head: &[u8]) -> bool {
    let Some(sector) = head.get(..512) else { return false };
    let size = u16::from_le_bytes([sector[11], sector[12]]);
    matches!(sector[0], 0xeb | 0xe9)
        && matches!(size, 512 | 1024 | 2048 | 4096)
        && sector[13].is_power_of_two()
        && matches!(sector[16], 1 | 2)
        && sector[510..] == [0x55, 0xaa]
}

/// For messages: what was found.
pub(crate) fn name(head: &[u8]) -> String {
    match of(head) {
        Content::FileSystem(name) | Content::Other(name) => name.to_owned(),
        Content::Unknown if head.is_empty() => "an empty file".to_owned(),
        Content::Unknown if head.iter().all(|byte| *byte == 0) => "nothing but zeros".to_owned(),
        Content::Unknown if is_text(head) => "text".to_owned(),
        Content::Unknown => "bytes of no known format".to_owned(),
    }
}

fn is_text(head: &[u8]) -> bool {
    // A character may be cut at the end of what was read.
    let whole = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !whole.is_empty() && !whole.chars().any(|c| c.is_control() && !c.is_whitespace())
}

/// Whether a kernel finds an archive in an initial file system that begins like this. Zeros before it are skipped.
pub(crate) fn is_initrd(bytes: &[u8]) -> bool {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    INITRDS.iter().any(|mark| bytes[first..].starts_with(mark))
}

/// Says so where a file that is to be mounted holds no file system that is known here. Any bytes are accepted: kernels
/// know more of them.
///
/// # Errors
/// Where it is empty, or cannot be read.
pub(crate) fn expect_file_system(path: &Path, what: &str) -> anyhow::Result<()> {
    let head = head(path)?;
    anyhow::ensure!(
        !head.is_empty(),
        "{} is empty: expected a file system for the {what} partition",
        path.display()
    );
    if !matches!(of(&head), Content::FileSystem(_)) {
        tracing::warn!(
            "{} holds no file system that is known here (ext4, erofs, squashfs, btrfs, xfs, f2fs, …), found {}: a machine \
             whose kernel cannot mount it as its {what} does not come up",
            path.display(),
            name(&head)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_marks() {
        let with = |marks: &[(usize, &[u8])]| {
            let mut bytes = vec![0; 0x11000];
            for (at, mark) in marks {
                bytes[*at..at + mark.len()].copy_from_slice(mark);
            }
            bytes
        };
        for (at, mark, name) in FILE_SYSTEMS {
            assert_eq!(of(&with(&[(at, mark)])), Content::FileSystem(name));
        }
        for (at, mark, name) in OTHERS {
            assert_eq!(of(&with(&[(at, mark)])), Content::Other(name));
        }
        // A kernel begins as a program; what lies behind a GPT is not what the file is.
        assert_eq!(of(&with(&[(0, b"MZ"), (0x202, b"HdrS")])), Content::Other(KERNEL));
        let disk = with(&[(0x200, b"EFI PART"), (0x438, &[0x53, 0xef])]);
        assert_eq!(of(&disk), Content::Other(GPT));
        for (bytes, expected) in [
            (&b""[..], "an empty file"),
            (&[0; 4096], "nothing but zeros"),
            ("größe\n".as_bytes(), "text"),
            (&"größe".as_bytes()[..3], "text"),
            (&[0xff, 0xfe, 1, 2], "bytes of no known format"),
        ] {
            assert_eq!(name(bytes), expected);
        }
    }

    #[test]
    fn initial_file_systems_are_archives() {
        for mark in INITRDS {
            assert!(is_initrd(mark) && is_initrd(&[&[0; 8][..], mark].concat()));
        }
        // As a kernel does it, after two bytes.
        assert!(is_initrd(&[0x5d, 0, 0x80]));
        let odc =
            &b"0707070000000000001006440000000000000000010000000000000000000001300000000000TRAILER!!!\0"[..];
        let bin = [0xc7, 0x71, 0, 0, 0, 0, 0, 0];
        for (archive, found) in
            [(odc, "a cpio archive in the format odc"), (&bin, "a cpio archive in the format bin")]
        {
            assert!(!is_initrd(archive) && name(archive) == found, "{found}");
        }
        for bad in [&b""[..], b"text", &[0; 64], &[0x04, 0x22, 0x4d, 0x18], b"hsqs"] {
            assert!(!is_initrd(bad), "{bad:?}");
        }
    }
}
