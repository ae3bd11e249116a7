//! Step 1: OS images. A [`Tree`] of generated files, and updates of it, as an ext4 filesystem where `mke2fs` is
//! there and as the files one after the other where it is not. The same seed gives the same bytes on each machine.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs::{File, FileTimes};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Files start at multiples of this many bytes, as in a filesystem.
const BLOCK: usize = 4096;
/// The modification time of every file in an image, in seconds since 1970.
const EPOCH: u64 = 1_700_000_000;

/// Splitmix64: the same sequence for the same seed, for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.draw() % end as u64).unwrap_or(0)
    }
}

/// Text of made-up words: it compresses to about a third, as a system's files do.
#[must_use]
pub fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words: Vec<Vec<u8>> = (0..512)
        .map(|_| (0..2 + random.below(9)).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[random.below(26)]).collect())
        .collect();
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        // Two draws of which the smaller counts: some words are frequent, most are rare.
        bytes.extend_from_slice(&words[random.below(512).min(random.below(512))]);
        bytes.push(if random.below(12) == 0 { b'\n' } else { b' ' });
        if random.below(8) == 0 {
            bytes.extend_from_slice(&random.draw().to_le_bytes());
        }
    }
    bytes.truncate(length);
    bytes
}

/// Files by path.
#[derive(Clone, Debug)]
pub struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

/// What an image was made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ext4 filesystem.
    Ext4,
    /// The files one after the other.
    Bytes,
}

impl Kind {
    /// The best that this machine can make.
    #[must_use]
    pub fn best() -> Self {
        if find_program("mke2fs").is_some() { Self::Ext4 } else { Self::Bytes }
    }
}

impl Tree {
    /// Files of `total` bytes in all, most of them small, a few large.
    #[must_use]
    pub fn generate(seed: u64, total: usize) -> Self {
        let mut random = Random::new(seed);
        let mut files = BTreeMap::new();
        let mut made = 0;
        while made < total {
            let number = files.len();
            let length = if random.below(20) == 0 {
                300_000 + random.below(600_000)
            } else {
                500 + random.below(60_000)
            };
            let folder = ["usr/bin", "usr/lib", "usr/share/doc", "etc"][random.below(4)];
            files.insert(format!("{folder}/file-{number:04}"), text(random.draw(), length));
            made += length;
        }
        Self { files }
    }

    /// An update: of every hundred files, about `percent` change, most in a few places, some altogether; a new one
    /// comes and an old one goes.
    #[must_use]
    pub fn updated(&self, seed: u64, percent: usize) -> Self {
        let mut random = Random::new(seed);
        let mut files = self.files.clone();
        for bytes in files.values_mut() {
            if random.below(100) >= percent {
                continue;
            }
            if random.below(4) == 0 {
                *bytes = text(random.draw(), bytes.len() / 2 + random.below(bytes.len()));
                continue;
            }
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                let end = (at + random.below(100)).min(bytes.len());
                let new = text(random.draw(), random.below(120));
                bytes.splice(at..end, new);
            }
        }
        if let Some(name) = files.keys().nth(random.below(files.len())).cloned() {
            files.remove(&name);
        }
        files.insert(format!("usr/lib/new-{seed}"), text(random.draw(), 20_000));
        Self { files }
    }

    /// Also holds this file.
    #[must_use]
    pub fn with(mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(path.to_owned(), bytes.into());
        self
    }

    /// Writes an image of exactly `size` bytes to `path`.
    ///
    /// # Errors
    /// Where the files do not fit, or a file cannot be written.
    pub fn write_image(&self, path: &Path, size: u64, kind: Kind) -> Result<()> {
        match kind {
            Kind::Ext4 => self.write_ext4(path, size),
            Kind::Bytes => self.write_bytes(path, size),
        }
    }

    fn write_bytes(&self, path: &Path, size: u64) -> Result<()> {
        let mut image = Vec::new();
        for (name, bytes) in &self.files {
            image.extend_from_slice(name.as_bytes());
            image.resize(image.len().next_multiple_of(BLOCK), 0);
            image.extend_from_slice(bytes);
            image.resize(image.len().next_multiple_of(BLOCK), 0);
        }
        let size = usize::try_from(size)?;
        if image.len() > size {
            bail!("{} bytes of files do not fit into an image of {size}", image.len());
        }
        image.resize(size, 0);
        std::fs::write(path, image).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_ext4(&self, path: &Path, size: u64) -> Result<()> {
        let folder = tempfile::Builder::new().prefix("flipside-tree-").tempdir()?;
        for (name, bytes) in &self.files {
            let file_path = folder.path().join(name);
            std::fs::create_dir_all(file_path.parent().context("a file without a folder")?)?;
            let mut file = File::create(&file_path)?;
            file.write_all(bytes)?;
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH);
            file.set_times(FileTimes::new().set_accessed(time).set_modified(time))?;
        }
        let mke2fs = find_program("mke2fs").context("mke2fs is not there")?;
        File::create(path)?.set_len(size)?;
        let mut command = Command::new(mke2fs);
        command
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"])
            .args(["-U", "6f9c1a52-0b1f-4a0e-9f5c-2f4f0c0a5e11"])
            .args(["-E", "hash_seed=0d6bd1c4-55d3-4a3e-8f6f-4a8d3e1f7b22,lazy_itable_init=0,root_owner=0:0"])
            .arg("-d")
            .arg(folder.path())
            .arg(path)
            .env("E2FSPROGS_FAKE_TIME", EPOCH.to_string());
        crate::process::run(&mut command)?.ok().map(drop)
    }
}

/// A file that passes for an x86-64 kernel with an EFI stub: its headers, then `content` as its only section. The loader
/// would start it, and it would do nothing.
#[must_use]
pub fn kernel(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut image = vec![0; 0x400];
    for (at, bytes) in [
        (0, &b"MZ"[..]),
        (0x3c, &[0x40]),
        // PE header: x86-64, one section, an optional header of 0xf0 bytes.
        (0x40, b"PE\0\0"),
        (0x44, &[0x64, 0x86, 1]),
        (0x54, &[0xf0]),
        // PE32+, an EFI application.
        (0x58, &[0x0b, 0x02]),
        (0x58 + 68, &[10]),
        (0x148, b".text"),
        (0x148 + 8, &len),
        (0x148 + 16, &len),
        (0x148 + 20, &[0x00, 0x04]),
        (0x202, b"HdrS"),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image.extend_from_slice(content);
    image
}

/// Looks for a program in `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}
