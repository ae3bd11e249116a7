//! A folder with small files that serve as kernel, initrd and loader, and the commands run in it.

#![allow(dead_code, reason = "each of the tests takes what it needs")]

use assert_cmd::Command;
use serde_json::Value;

/// A PE file for x86-64 with one section, and with the mark of a Linux kernel.
pub(crate) fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664u16.to_le_bytes());
    put(0x46, &1u16.to_le_bytes());
    put(0x54, &0xf0u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    put(0x58 + 68, &10u16.to_le_bytes());
    put(0x148, b".text");
    put(0x148 + 8, &50_000u32.to_le_bytes());
    put(0x148 + 16, &50_000u32.to_le_bytes());
    put(0x148 + 20, &0x400u32.to_le_bytes());
    put(0x202, b"HdrS");
    image.extend((0..50_000u32).map(|i| (i * 7 + i / 256).to_le_bytes()[0]));
    image
}

/// The same without the mark, and with a section of another name.
pub(crate) fn unified(section: &[u8]) -> Vec<u8> {
    let mut image = kernel();
    image[0x202..0x206].fill(0);
    image[0x148..0x150].fill(0);
    image[0x148..0x148 + section.len()].copy_from_slice(section);
    image
}

/// A cpio archive, as far as its beginning tells.
pub(crate) fn initrd() -> Vec<u8> {
    [&b"070701"[..], &[0xa7; 69_994]].concat()
}

/// A folder with files that serve.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("vmlinuz", &kernel());
        folder.write("initrd", &initrd());
        folder.write("boot.efi", &unified(b".linux"));
        folder.write("loader.efi", &unified(b".text"));
        folder.write("own-cmdline.efi", &unified(b".cmdline"));
        folder
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub(crate) fn tool(&self, arguments: &str) -> Command {
        let mut command = Command::cargo_bin("image-tools").unwrap();
        command.current_dir(self.0.path()).env_remove("RUST_LOG").args(arguments.split(' '));
        command
    }

    pub(crate) fn json(&self, arguments: &str) -> Value {
        let said = self.tool(arguments).arg("--json").assert().success();
        serde_json::from_slice(&said.get_output().stdout).unwrap()
    }

    /// What it says on stderr when it fails; the error is the last line, and nothing else is on stdout.
    pub(crate) fn refused(&self, arguments: &str) -> String {
        let said = self.tool(arguments).assert().failure().code(1);
        let text = String::from_utf8(said.get_output().stderr.clone()).unwrap();
        assert!(said.get_output().stdout.is_empty(), "{text}");
        assert_eq!(text.matches("image-tools: ").count(), 1, "{text}");
        assert!(text.lines().last().unwrap().starts_with("image-tools: "), "{text}");
        text
    }
}
