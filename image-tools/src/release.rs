//! Step 3, metadata: `image-tools release`. A release is a folder with `manifest.json` and `<sha256>.payload`; it is
//! signed when it is pushed (`updatectl release push`).

use crate::apply::install_to_file;
use crate::build::{self, ImageInput, Settings};
use crate::cli::progress_bar;
use crate::{boot_volume, content, inputs, output};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use protocol::chunker::Cutting;
use protocol::digest::{Hasher, Sha256};
use protocol::id::{Arch, PartitionRole};
use protocol::manifest::{Manifest, PartitionImage, PayloadFile, SCHEMA};
use protocol::payload::{Content, Encoding, Header, Index};
use protocol::version::Version;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The schema number of what `--json` prints.
const OUTPUT_SCHEMA: u32 = 1;

/// `image-tools release …`
#[derive(Debug, Subcommand)]
pub(crate) enum ReleaseCommand {
    /// Build a release folder from images
    Build(Box<BuildArgs>),
    /// Show what a release folder holds
    Inspect {
        /// The release folder
        dir: PathBuf,
    },
    /// Check a release folder: every digest, every chunk, every image. Needs disk space for the images in the folder
    Verify {
        /// The release folder
        dir: PathBuf,
    },
}

/// What a release is built from.
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The release's version, as in 1.2.0
    #[arg(long)]
    version: Version,
    /// The architecture, as in x86-64
    #[arg(long)]
    arch: Arch,
    /// The image of the root partition
    #[arg(long)]
    root: PathBuf,
    /// The image of the boot partition
    #[arg(long)]
    boot: Option<PathBuf>,
    /// Take any bytes as the boot image: for tests of the fallback, as no machine starts from it
    #[arg(long, requires = "boot")]
    unchecked_boot: bool,
    /// The release folder; made if it is not there
    #[arg(long)]
    out: PathBuf,
    /// Replace the release that the folder holds
    #[arg(long)]
    force: bool,
    /// The operating system's name
    #[arg(long, default_value = "linux")]
    os: String,
    /// A barrier: nodes below this version must go through another release first
    #[arg(long)]
    min_source: Option<Version>,
    /// Free-form, for people
    #[arg(long, default_value = "")]
    notes: String,
    /// zstd's level: 3 is fast, 19 small
    #[arg(long, default_value_t = Settings::default().level, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Average length of a chunk in KiB, cut by content; 16 if not given, 8 for a compressed file system
    #[arg(long, value_name = "KIB", value_parser = clap::value_parser!(u32).range(1..=256))]
    chunk: Option<u32>,
    /// Cut into blocks of this many KiB instead
    #[arg(long, value_name = "KIB", conflicts_with = "chunk", value_parser = clap::value_parser!(u32).range(1..=1024))]
    fixed_chunk: Option<u32>,
    /// How many KiB before a chunk serve as its dictionary
    #[arg(long, value_name = "KIB", default_value_t = Settings::default().prefix_window >> 10, value_parser = clap::value_parser!(u32).range(0..=4096))]
    prefix: u32,
    /// Compressing threads; one for each core if not given
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs `image-tools release …`.
pub(crate) fn run(command: &ReleaseCommand, json: bool) -> Result<()> {
    match command {
        ReleaseCommand::Build(args) => build_command(args, json),
        ReleaseCommand::Inspect { dir } => inspect_command(dir, json),
        ReleaseCommand::Verify { dir } => verify_command(dir, json),
    }
}

/// Whether the images are what a machine of the release's architecture can start from.
fn check_images(args: &BuildArgs) -> Result<()> {
    content::expect_file_system(&args.root, "root")?;
    match &args.boot {
        // The sector size differs from node to node.
        Some(boot) if !args.unchecked_boot => {
            boot_volume::check(boot, None, &boot_volume::machines(&args.arch))
        }
        _ => Ok(()),
    }
}

fn build_command(args: &BuildArgs, json: bool) -> Result<()> {
    check_images(args)?;
    let role_images =
        [(PartitionRole::root(), Some(&args.root)), (PartitionRole::boot(), args.boot.as_ref())];
    let images: Vec<ImageInput> = role_images
        .into_iter()
        .filter_map(|(role, path)| Some(ImageInput { role, path: path?.clone() }))
        .collect();
    let settings = Settings {
        level: args.level,
        cutting: match (args.fixed_chunk, args.chunk) {
            (Some(kib), _) => Cutting::Fixed { len: kib << 10 },
            (None, Some(kib)) => Cutting::content(kib << 10),
            // Measured: smaller chunks find 2 MB more of a squashfs, and there is no neighbour's dictionary to lose.
            (None, None) if compressed(&args.root)?.is_some() => Cutting::content(8 << 10),
            (None, None) => Cutting::DEFAULT,
        },
        prefix_window: args.prefix << 10,
        threads: args.threads.unwrap_or(Settings::default().threads),
        ..Settings::default()
    };
    let details = Details {
        os: args.os.clone(),
        version: args.version.clone(),
        arch: args.arch.clone(),
        min_source_version: args.min_source.clone(),
        notes: args.notes.clone(),
    };
    let total = images.iter().map(|i| std::fs::metadata(&i.path).map_or(0, |m| m.len())).sum();
    let bar = progress_bar("building", total);
    let release = build_release(&images, &args.out, details, settings, args.force, &|read| bar.inc(read))?;
    bar.finish_and_clear();
    for image in &images {
        if let Some(what) = compressed(&image.path)? {
            let role = &image.role;
            eprintln!(
                "image-tools: the {role} image is a {what}: an uncompressed file system (erofs, ext4) makes updates about half as large"
            );
        }
    }
    if json {
        println!("{}", release.to_json());
    } else {
        release.print();
    }
    Ok(())
}

/// What a manifest says beside images and payloads.
#[derive(Clone, Debug)]
pub struct Details {
    /// See [`Manifest::os`].
    pub os: String,
    /// See [`Manifest::version`].
    pub version: Version,
    /// See [`Manifest::arch`].
    pub arch: Arch,
    /// See [`Manifest::min_source_version`].
    pub min_source_version: Option<Version>,
    /// See [`Manifest::notes`].
    pub notes: String,
}

/// A release folder, read: the manifest, and the head of its full payload.
#[derive(Debug)]
pub struct Release {
    /// The folder.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its full payload.
    pub payload: PayloadFile,
    /// The payload's header.
    pub header: Header,
    /// The payload's index.
    pub index: Index,
}

/// Builds a release folder. `progress` is told how many bytes of the images were read, as they are.
///
/// # Errors
/// Where the folder holds another release and `force` is not given, or an image or the folder fails.
pub fn build_release(
    images: &[ImageInput],
    dir: &Path,
    details: Details,
    settings: Settings,
    force: bool,
    progress: &dyn Fn(u64),
) -> Result<Release> {
    let manifest_path = dir.join("manifest.json");
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    output::check(&manifest_path)?;
    let old = match File::open(&manifest_path) {
        Ok(_) if !force => {
            bail!("{} holds a release already: give --force to replace it, or another folder", dir.display())
        }
        // A broken release is replaced as well; then nothing is known of its payload.
        Ok(_) => Release::load(dir).ok().map(|old| old.payload_path()),
        Err(_) => None,
    };
    for output in old.iter().chain([&manifest_path]) {
        let given = images.iter().map(|image| ("an image for the release", image.path.as_path()));
        inputs::refuse_as_output(output, given)?;
    }
    let built = build::build(images, dir, settings, progress)?;
    let partition = |p: &protocol::payload::Partition| PartitionImage {
        role: p.role.clone(),
        size: p.size,
        sha256: p.sha256,
    };
    let manifest = Manifest {
        schema: SCHEMA,
        os: details.os,
        version: details.version,
        arch: details.arch,
        partitions: built.index.partitions.iter().map(partition).collect(),
        payloads: vec![built.file],
        min_source_version: details.min_source_version,
        notes: details.notes,
    };
    let mut text = serde_json::to_vec_pretty(&manifest).context("cannot write the manifest")?;
    text.push(b'\n');
    output::write(&manifest_path, |file, _| Ok(file.write_all(&text)?))?;
    if let Some(old) = old.filter(|old| *old != built.path) {
        std::fs::remove_file(&old)
            .with_context(|| format!("cannot remove the old payload {}", old.display()))?;
    }
    Release::load(dir)
}

impl Release {
    /// Reads a release folder and checks manifest and payload head against each other.
    ///
    /// # Errors
    /// Where something is missing, or not as the manifest says.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("manifest.json");
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let loose: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not a manifest", path.display()))?;
        let field = |name: &str| loose.get(name).and_then(Value::as_str).unwrap_or_default();
        let version: Version = field("version").parse().with_context(|| path.display().to_string())?;
        let arch: Arch = field("arch").parse().with_context(|| path.display().to_string())?;
        let manifest = Manifest::parse(&bytes, &version, &arch)?;
        let payload = manifest.full_payload().context("the manifest names no full payload")?.clone();
        let path = payload_path(dir, &payload.sha256);
        let mut file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let size = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
        ensure!(
            size == payload.size,
            "the payload {} has {size} bytes: expected {}",
            path.display(),
            payload.size
        );
        let head_len = usize::try_from(payload.head_size).context("the payload's head is too long")?;
        let mut head = vec![0; head_len];
        file.read_exact(&mut head).with_context(|| format!("cannot read {}", path.display()))?;
        let found = Sha256::of(&head);
        ensure!(
            found == payload.head_sha256,
            "the head of {} has sha256 {found}: expected {}",
            path.display(),
            payload.head_sha256
        );
        let (header, index) = Index::parse_head(&head).with_context(|| path.display().to_string())?;
        ensure!(
            header.file_len() == payload.size,
            "the payload {} says of itself {} bytes: expected {}",
            path.display(),
            header.file_len(),
            payload.size
        );
        let same = index.partitions.len() == manifest.partitions.len()
            && index
                .partitions
                .iter()
                .zip(&manifest.partitions)
                .all(|(a, b)| a.role == b.role && a.size == b.size && a.sha256 == b.sha256);
        ensure!(same, "manifest and payload of {} name different images", dir.display());
        Ok(Self { dir: dir.to_owned(), manifest, payload, header, index })
    }

    /// Where its full payload is.
    #[must_use]
    pub fn payload_path(&self) -> PathBuf {
        payload_path(&self.dir, &self.payload.sha256)
    }

    /// Checks the payload's digest, and installs it into a file that has no name: every chunk is decoded, and every
    /// image compared. `progress` is told how many bytes of the images are done.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn verify(&self, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let path = self.payload_path();
        let found = digest_of_file(&path)?;
        ensure!(
            found == self.payload.sha256,
            "the payload {} has sha256 {found}: expected {}",
            path.display(),
            self.payload.sha256
        );
        let folder = tempfile::tempdir_in(&self.dir)
            .with_context(|| format!("cannot write in {}", self.dir.display()))?;
        let out = |role: &PartitionRole| Some(folder.path().join(role.as_str()));
        install_to_file(self, &out, progress)?;
        Ok(())
    }

    fn to_json(&self) -> Value {
        let (mut zero, mut raw, mut zstd, mut repeat) = (0, 0, 0, 0);
        for chunk in self.index.partitions.iter().flat_map(|p| &p.chunks) {
            match &chunk.content {
                Content::Zero => zero += 1,
                Content::Repeat { .. } => repeat += 1,
                Content::Stored(stored) if stored.encoding == Encoding::Raw => raw += 1,
                Content::Stored(_) => zstd += 1,
            }
        }
        let cutting = match self.index.cutting {
            Cutting::Fixed { len } => json!({ "fixed": len }),
            Cutting::Content { min, avg, max } => json!({ "min": min, "avg": avg, "max": max }),
        };
        json!({
            "schema": OUTPUT_SCHEMA,
            "manifest": self.manifest,
            "release_digest": self.manifest.release_digest(),
            "payload": self.payload_path(),
            "bytes_image": self.index.image_bytes(),
            "bytes_payload": self.payload.size,
            "bytes_head": self.payload.head_size,
            "cutting": cutting,
            "segment_len": self.index.segment_len,
            "prefix_window": self.index.prefix_window,
            "segments": self.index.segments().len(),
            "chunks": { "zero": zero, "raw": raw, "zstd": zstd, "repeat": repeat },
        })
    }

    fn print(&self) {
        println!("{} {} for {}", self.manifest.os, self.manifest.version, self.manifest.arch);
        for partition in &self.manifest.partitions {
            println!("  {:<8} {:>13} bytes  sha256 {}", partition.role, partition.size, partition.sha256);
        }
        println!("  {:<8} {:>13} bytes  {}", "payload", self.payload.size, self.payload_path().display());
        println!("  {:<8} {:>13} bytes", "head", self.payload.head_size);
        println!("  release  {}", self.manifest.release_digest());
    }
}

fn payload_path(dir: &Path, sha256: &Sha256) -> PathBuf {
    dir.join(format!("{sha256}.payload"))
}

pub(crate) fn digest_of_file(path: &Path) -> Result<Sha256> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Hasher::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(hasher.finish()),
            len => hasher.update(&buf[..len]),
        }
    }
}

fn inspect_command(dir: &Path, json: bool) -> Result<()> {
    let release = Release::load(dir)?;
    if json {
        println!("{}", release.to_json());
    } else {
        release.print();
    }
    Ok(())
}

fn verify_command(dir: &Path, json: bool) -> Result<()> {
    let release = Release::load(dir)?;
    let bar = progress_bar("verifying", release.index.image_bytes());
    release.verify(&|done| bar.set_position(done))?;
    bar.finish_and_clear();
    if json {
        let digest = release.manifest.release_digest();
        println!("{}", json!({ "schema": OUTPUT_SCHEMA, "verified": true, "release_digest": digest }));
    } else {
        println!("{}: every chunk and every image is as the manifest says", dir.display());
    }
    Ok(())
}

/// Which compressed file system an image is, if that shows in its first bytes.
fn compressed(path: &Path) -> Result<Option<&'static str>> {
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(2048).read_to_end(&mut start))
        .with_context(|| format!("cannot read {}", path.display()))?;
    // squashfs begins with its magic number; erofs has its own at 1024 and, at 1024 + 84, the set of algorithms in
    // use, or for its oldest form the reach of lz4: not 0 where there is compression.
    Ok(if start.starts_with(b"hsqs") {
        Some("squashfs")
    } else if start.get(1024..1028) == Some(&[0xe2, 0xe1, 0xf5, 0xe0])
        && start.get(1024 + 84..1024 + 86).is_some_and(|algorithms| algorithms != [0, 0])
    {
        Some("compressed erofs")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_file_systems_are_told_by_their_first_bytes() {
        let erofs = |incompatible: u8, algorithms: [u8; 2]| {
            let mut bytes = vec![0; 4096];
            bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
            bytes[1104] = incompatible;
            bytes[1108..1110].copy_from_slice(&algorithms);
            bytes
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (bytes, expected) in [
            (b"hsqs and more".to_vec(), Some("squashfs")),
            (erofs(3, [1, 0]), Some("compressed erofs")),
            (erofs(1, [0xff, 0xff]), Some("compressed erofs")),
            (erofs(0, [0, 0]), None),
            (b"hsq".to_vec(), None),
            (vec![0; 4096], None),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(compressed(&path).unwrap(), expected);
        }
    }
}
