//! Step 1: an initrd, the "newc" archive that the kernel unpacks (Documentation/driver-api/early-userspace).

use std::fmt::Write as _;

/// An archive in the making.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a folder; those above it must be there.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Adds a file that may be executed.
    pub fn program(&mut self, path: &str, bytes: &[u8]) {
        self.entry(path, FILE | 0o755, (0, 0), bytes);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let name_length = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let mut header = "070701".to_owned();
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        for field in [self.entries, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_length, 0] {
            // Writing to a String cannot fail.
            let _ = write!(header, "{field:08x}");
        }
        self.entries += 1;
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_of_newc() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.program("bin/a", b"#!x\n1");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(&bytes[..14], b"07070100000000");
        let second = 110 + 4 + 2;
        assert_eq!(second, 116, "header and \"bin\\0\" come to a multiple of 4");
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.contains("bin/a\0#!x\n1") || text.contains("bin/a\0\0\0#!x\n1"), "{text:?}");
        assert!(text.contains("TRAILER!!!"));
    }
}
