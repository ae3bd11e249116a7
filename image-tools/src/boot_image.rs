//! Step 1, image: `image-tools boot-image build`, a kernel and what it needs as the image of a BOOT partition, from
//! which the loader starts it (step 11).

use crate::disk::Size;
use crate::fat::{self, FatFile, Preference, Volume};
use crate::{content, efi, inputs, output};
use anyhow::{Context as _, bail, ensure};
use boot_select::cmdline::{BELIEVE_BACKUP, TRYING};
use clap::{ArgGroup, Args, Subcommand};
use protocol::digest::Sha256;
use serde::Serialize;
use std::path::PathBuf;

/// The schema number of what `--json` prints.
const SCHEMA: u32 = 1;
/// The longest command line, in bytes: what the loader adds, ` root=PARTUUID=` with 36 characters, ` flipside.slot=` with
/// one, ` flipside.trying` and ` gpt`, must find room behind it.
const CMDLINE_MAX: usize =
    boot_select::cmdline::MAX_BYTES - (15 + 36) - (15 + 1) - (1 + TRYING.len()) - (1 + BELIEVE_BACKUP.len());
/// What the loader adds itself.
const RESERVED: [&str; 3] = ["root", "flipside.slot", TRYING];
/// The names on the volume. The loader looks for these.
const CMDLINE: &str = "cmdline";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd";
const UNIFIED: &str = "boot.efi";

/// `image-tools boot-image …`
#[derive(Debug, Subcommand)]
pub(crate) enum BootImageCommand {
    /// Make the image of a BOOT partition from a kernel, an initrd and a command line; the same files give the same image
    Build(BuildArgs),
}

/// What goes in.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("program").required(true).args(["kernel", "efi"])))]
pub(crate) struct BuildArgs {
    /// A Linux kernel with an EFI stub, as distributions ship it
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initial file system
    #[arg(long, value_name = "FILE", conflicts_with = "efi")]
    initrd: Option<PathBuf>,
    /// A unified kernel image without a command line of its own, instead of --kernel and --initrd
    #[arg(long, value_name = "FILE")]
    efi: Option<PathBuf>,
    /// The kernel's command line; root=, flipside.slot= and flipside.trying are added by the loader
    #[arg(long, value_name = "TEXT", conflicts_with = "cmdline_file")]
    cmdline: Option<String>,
    /// A file that holds the command line, one line
    #[arg(long, value_name = "FILE")]
    cmdline_file: Option<PathBuf>,
    /// The image to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Length of the image, whole MiB, at most that of the BOOT partitions; by default what the files need and a little
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Bytes in a sector of the file system: 512, or 4096 for disks whose logical sectors have 4096
    #[arg(long, default_value_t = 512, value_parser = crate::disk::parse_sector_size, value_name = "BYTES")]
    sector_size: u32,
    /// Overwrite the image
    #[arg(long)]
    force: bool,
}

/// What was built.
#[derive(Debug, Serialize)]
struct Built {
    schema: u32,
    image: String,
    bytes: u64,
    sha256: Sha256,
    sector_size: u32,
    /// `FAT12`, `FAT16` or `FAT32`.
    file_system: &'static str,
    /// As tools show it: `1A2B-3C4D`.
    volume_id: String,
    /// The architecture of the program.
    arch: String,
    cmdline: String,
    files: Vec<BuiltFile>,
}

#[derive(Debug, Serialize)]
struct BuiltFile {
    name: &'static str,
    bytes: usize,
    sha256: Sha256,
}

/// Does it. `json` prints documents instead of text.
///
/// # Errors
/// Where an input is not what it should be, or the image cannot be written.
pub(crate) fn run(command: &BootImageCommand, json: bool) -> anyhow::Result<()> {
    let BootImageCommand::Build(args) = command;
    let given = [
        ("--kernel", &args.kernel),
        ("--initrd", &args.initrd),
        ("--efi", &args.efi),
        ("--cmdline-file", &args.cmdline_file),
    ];
    let given = given.iter().filter_map(|(option, path)| Some((*option, path.as_deref()?)));
    inputs::refuse_as_output(&args.out, given)?;
    output::check(&args.out)?;
    if args.out.exists() && !args.force {
        bail!("{} exists: --force overwrites it", args.out.display());
    }
    let (cmdline, given) = command_line(args)?;
    let (files, arch) = files(args, &cmdline, given)?;
    let size = size(args, &files)?;
    let volume = Volume {
        size,
        sector_size: args.sector_size,
        label: *b"BOOT       ",
        preference: Preference::LargeClusters,
    };
    let made = output::write(&args.out, |file, _| fat::write(file, &volume, &files))?;
    let built = Built {
        schema: SCHEMA,
        image: args.out.display().to_string(),
        bytes: size,
        sha256: crate::release::digest_of_file(&args.out)?,
        sector_size: args.sector_size,
        file_system: made.kind,
        volume_id: format!("{:04X}-{:04X}", made.volume_id >> 16, made.volume_id & 0xffff),
        arch,
        cmdline,
        files: files
            .iter()
            .map(|file| BuiltFile {
                name: file.path,
                bytes: file.bytes.len(),
                sha256: Sha256::of(&file.bytes),
            })
            .collect(),
    };
    if json {
        println!("{}", serde_json::to_string(&built)?);
        return Ok(());
    }
    println!("{}: {}, {}, {}", built.image, Size(size), built.file_system, built.arch);
    for file in &built.files {
        println!("  \\{:<8} {:>12} bytes", file.name, file.bytes);
    }
    println!("command line: {}", if built.cmdline.is_empty() { "(empty)" } else { &built.cmdline });
    Ok(())
}

fn size(args: &BuildArgs, files: &[FatFile]) -> anyhow::Result<u64> {
    let Some(Size(size)) = args.size else { return Ok(fat::default_size(files)) };
    ensure!(
        size > 0 && size.is_multiple_of(1 << 20),
        "--size {size} is not a whole number of MiB, which partitions are made of"
    );
    Ok(size)
}

/// The command line, checked, and whether one was given at all.
fn command_line(args: &BuildArgs) -> anyhow::Result<(String, bool)> {
    let text = match (&args.cmdline, &args.cmdline_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        (None, None) => return Ok((String::new(), false)),
    };
    let line = check_command_line(&text).context("the command line cannot be used")?;
    let has_panic = line.split_ascii_whitespace().any(|word| word.starts_with("panic="));
    if !has_panic {
        tracing::warn!(
            "the command line has no panic=: a kernel that panics stays there instead of falling back (panic=10)"
        );
    }
    Ok((line, true))
}

fn check_command_line(text: &str) -> anyhow::Result<String> {
    let line = text.trim();
    ensure!(!line.contains(['\n', '\r']), "it has {} lines: expected one", line.lines().count());
    if let Some(odd) = line.chars().find(|c| !(' '..='~').contains(c)) {
        bail!("it holds the character {odd:?}: expected printable ASCII");
    }
    for word in line.split_ascii_whitespace() {
        let name = word.trim_start_matches('"').split('=').next().unwrap_or_default();
        if RESERVED.contains(&name) {
            bail!("it sets {name}, which the loader adds for the slot that it starts: leave it out ({word})");
        }
    }
    ensure!(
        line.len() <= CMDLINE_MAX,
        "it has {} bytes: at most {CMDLINE_MAX} leave room for what the loader adds (the kernel takes {} in all)",
        line.len(),
        boot_select::cmdline::MAX_BYTES
    );
    Ok(line.to_owned())
}

/// The files in the order in which they lie on the volume: what changes length least comes first.
fn files(args: &BuildArgs, cmdline: &str, given: bool) -> anyhow::Result<(Vec<FatFile>, String)> {
    let mut files = Vec::new();
    if given || args.efi.is_none() {
        files.push(FatFile { path: CMDLINE, bytes: format!("{cmdline}\n").into_bytes() });
    }
    let arch = if let Some(path) = &args.efi {
        let bytes = fat::read_input(path)?;
        let arch = efi::check_unified(&bytes)
            .with_context(|| format!("{} cannot be booted", path.display()))?
            .arch();
        files.push(FatFile { path: UNIFIED, bytes });
        arch
    } else if let Some(path) = &args.kernel {
        let bytes = fat::read_input(path)?;
        let arch =
            efi::check_kernel(&bytes).with_context(|| format!("{} cannot be booted", path.display()))?.arch();
        files.push(FatFile { path: KERNEL, bytes });
        arch
    } else {
        bail!("give --kernel or --efi");
    };
    if let Some(path) = &args.initrd {
        let bytes = fat::read_input(path)?;
        ensure!(
            content::is_initrd(&bytes),
            "{} is no initrd: expected a cpio archive (cpio -H newc), plain or compressed with gzip, zstd, xz, lz4 (lz4 -l), \
             lzma, bzip2 or lzo, found {}",
            path.display(),
            content::name(&bytes)
        );
        files.push(FatFile { path: INITRD, bytes });
    }
    Ok((files, arch))
}
