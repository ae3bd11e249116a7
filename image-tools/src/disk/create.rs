//! Step 7, slot: lays out a new disk with two slots and puts a first release on slot A, and the loader where the firmware
//! looks for it.

use super::SCHEMA;
use super::size::Size;
use crate::fat::{self, FatFile, Preference, Volume};
use crate::{boot_volume, content, efi, inputs, output};
use ::disk::layout::ROOT_TYPE;
use ::disk::{
    Access, AlignedBuf, Disk, DiskFile, Medium, MountTable as _, PartitionView, SlotLayout, SystemMounts,
};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{LINUX_FS, OperatingSystem, Type};
use protocol::gpt::Guid;
use protocol::slot::Attributes;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// Partitions start and end at multiples of this.
const MIB: u64 = 1 << 20;
/// Where the firmware of an x86-64 machine looks for a loader that nobody has registered.
pub(super) const LOADER: &str = "EFI/BOOT/BOOTX64.EFI";

/// What the new disk is to be.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The new disk: a file that does not exist yet, or with --force a file or block device to lay out anew
    disk: PathBuf,
    /// Size of each root partition
    #[arg(long, default_value = "2G", value_name = "SIZE")]
    slot_size: Size,
    /// The root image to put on slot A
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// The boot image to put on slot A
    #[arg(long, value_name = "FILE")]
    boot: Option<PathBuf>,
    /// The loader, boot-select.efi: makes the EFI system partition a FAT volume and puts it there, where the firmware looks
    #[arg(long, value_name = "FILE")]
    boot_select: Option<PathBuf>,
    /// Take any bytes as the boot image: for tests of the fallback, as no machine starts from it
    #[arg(long, requires = "boot")]
    unchecked_boot: bool,
    /// The file system to put on the state partition
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Size of the EFI system partition
    #[arg(long, default_value = "64M", value_name = "SIZE")]
    esp_size: Size,
    /// Size of each boot partition
    #[arg(long, default_value = "128M", value_name = "SIZE")]
    boot_size: Size,
    /// Size of the state partition; on a block device it takes what is left
    #[arg(long, value_name = "SIZE")]
    state_size: Option<Size>,
    /// Logical sector size of a new file: 512 or 4096. A block device has its own
    #[arg(long, default_value_t = 512, value_parser = parse_sector_size, value_name = "BYTES")]
    sector_size: u32,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
}

pub(crate) fn parse_sector_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("expected 512 or 4096".to_owned()),
    }
}

/// A partition of the new disk: where it goes and what it holds.
struct Part<'a> {
    name: &'static str,
    kind: Type,
    attributes: Attributes,
    offset: u64,
    len: u64,
    image: Option<&'a Path>,
}

pub(super) fn run(args: &CreateArgs, json: bool) -> anyhow::Result<()> {
    let given = [
        ("--root", &args.root),
        ("--boot", &args.boot),
        ("--boot-select", &args.boot_select),
        ("--state", &args.state),
    ];
    let given = given.iter().filter_map(|(option, path)| Some((*option, path.as_deref()?)));
    inputs::refuse_as_output(&args.disk, given)?;
    let existing = std::fs::metadata(&args.disk).ok();
    let device = existing.as_ref().is_some_and(|m| m.file_type().is_block_device());
    if existing.is_some() && !args.force {
        bail!("{} exists: --force lays it out anew, losing what it holds", args.disk.display());
    }
    let (len, sector) = if device {
        create_on_device(args)?
    } else {
        ensure!(
            existing.is_none_or(|m| m.is_file()),
            "{} is neither a file nor a block device",
            args.disk.display()
        );
        create_file(args)?
    };
    if json {
        let disk = args.disk.display().to_string();
        let document = serde_json::json!(
            { "schema": SCHEMA, "disk": disk, "bytes": len, "sector_size": sector, "slot": "A" }
        );
        println!("{document}");
    } else {
        // Without a boot image it depends on a loader from elsewhere.
        let boots =
            if args.boot.is_some() { "slot A boots" } else { "slot A is chosen, without a boot image" };
        println!("{}: {}, slots of {}, {boots}", args.disk.display(), Size(len), args.slot_size);
    }
    Ok(())
}

/// Whether the images are what a machine can start from. `sector_size` is the disk's.
fn check_images(args: &CreateArgs, sector_size: u32) -> anyhow::Result<()> {
    for (image, what) in [(&args.root, "root"), (&args.state, "state")] {
        if let Some(path) = image {
            content::expect_file_system(path, what)?;
        }
    }
    match &args.boot {
        Some(path) if !args.unchecked_boot => {
            boot_volume::check(path, Some(sector_size), &[boot_select::kernel::X86_64])
        }
        _ => Ok(()),
    }
}

/// The EFI system partition as a file, with the loader where the firmware looks for one; none where no loader is given.
///
/// Its sectors are those of the disk: not every reader takes a volume whose sectors are smaller.
fn system_partition(args: &CreateArgs, sector_size: u32) -> anyhow::Result<Option<NamedTempFile>> {
    let Some(path) = &args.boot_select else { return Ok(None) };
    let bytes = fat::read_input(path)?;
    efi::check_loader(&bytes).with_context(|| format!("{} is no loader", path.display()))?;
    ensure!(
        args.boot.is_some() || !efi::is_boot_select(&bytes),
        "with {} as its loader the disk would not boot: boot-select starts slots from their boot images alone; give one \
         with --boot",
        path.display()
    );
    let size = partition_len(args.esp_size).context("--esp-size is too large")?;
    let volume = Volume { size, sector_size, label: *b"ESP        ", preference: Preference::Fat32 };
    let file = NamedTempFile::new().context("cannot make a temporary file")?;
    fat::write(file.as_file(), &volume, &[FatFile { path: LOADER, bytes }])
        .context("cannot make the EFI system partition (--esp-size)")?;
    Ok(Some(file))
}

/// Whole MiB; none where that is more than a disk has.
fn partition_len(size: Size) -> Option<u64> {
    size.0.checked_next_multiple_of(MIB).filter(|len| *len < 1 << 60)
}

/// A new file appears under its name only when it is complete.
fn create_file(args: &CreateArgs) -> anyhow::Result<(u64, u32)> {
    let state = args.state_size.unwrap_or(Size(256 * MIB));
    output::check(&args.disk)?;
    lay_out(args, state, None)?;
    check_images(args, args.sector_size)?;
    let esp = system_partition(args, args.sector_size)?;
    let (parts, len) = lay_out(args, state, esp.as_ref().map(NamedTempFile::path))?;
    output::write(&args.disk, |file, name| {
        file.set_len(len)?;
        write_table(file, args.sector_size, len, &parts)?;
        fill(name, args.sector_size, &parts)
    })?;
    Ok((len, args.sector_size))
}

fn create_on_device(args: &CreateArgs) -> anyhow::Result<(u64, u32)> {
    let path = &args.disk;
    let (len, sector) = {
        let medium = DiskFile::open(path, Access::Write)?;
        let whole = PartitionView {
            entry: 0,
            offset: 0,
            len: medium.len(),
            unique_guid: Guid::ZERO,
            name: "the whole disk".to_owned(),
        };
        if let Some(by) = SystemMounts::new().is_in_use(path, &whole)? {
            bail!("{} is in use ({by}): unmount it first", path.display());
        }
        (medium.len(), medium.block_size())
    };
    let (_, least) = lay_out(args, args.state_size.unwrap_or(Size(MIB)), None)?;
    ensure!(least <= len, "{} has {len} bytes: {least} are needed", path.display());
    let state = args.state_size.unwrap_or(Size((len - least) / MIB * MIB + MIB));
    check_images(args, sector)?;
    let esp = system_partition(args, sector)?;
    let (parts, _) = lay_out(args, state, esp.as_ref().map(NamedTempFile::path))?;
    let what = || format!("cannot lay out {}", path.display());
    let file = File::options().read(true).write(true).open(path).with_context(what)?;
    write_table(&file, sector, len, &parts).with_context(what)?;
    fill(path, sector, &parts)?;
    Ok((len, sector))
}

/// The partitions in order, each on whole MiB, and the length of the disk they need.
fn lay_out<'a>(
    args: &'a CreateArgs,
    state: Size,
    esp_image: Option<&'a Path>,
) -> anyhow::Result<(Vec<Part<'a>>, u64)> {
    let guid = |text: &str| -> anyhow::Result<Type> {
        Ok(Type { guid: text.parse().context("a built-in GUID")?, os: OperatingSystem::Linux })
    };
    let esp = gpt::partition_types::EFI;
    // Not XBOOTLDR: systemd would mount the first one it finds, which may be the inactive slot's.
    let boot = LINUX_FS;
    let root = guid(ROOT_TYPE)?;
    let none = Attributes::default();
    let good = none.with_priority(1).with_successful(true);
    let (boot_image, root_image) = (args.boot.as_deref(), args.root.as_deref());
    let sizes = [
        ("--esp-size", args.esp_size),
        ("--boot-size", args.boot_size),
        ("--slot-size", args.slot_size),
        ("--state-size", state),
    ];
    if let Some((option, _)) = sizes.iter().find(|(_, size)| size.0 == 0) {
        bail!("{option} is 0: a partition has at least 1M");
    }
    let wanted = [
        ("ESP", esp, none, args.esp_size, esp_image),
        ("BOOT-A", boot.clone(), none, args.boot_size, boot_image),
        ("ROOT-A", root.clone(), good, args.slot_size, root_image),
        ("BOOT-B", boot, none, args.boot_size, None),
        ("ROOT-B", root, none, args.slot_size, None),
        ("STATE", LINUX_FS, none, state, args.state.as_deref()),
    ];
    let mut offset = MIB;
    let mut parts = Vec::new();
    for (name, kind, attributes, size, image) in wanted {
        let len = partition_len(size);
        let end = len.and_then(|len| offset.checked_add(len)).filter(|end| *end < 1 << 60);
        let (Some(len), Some(end)) = (len, end) else { bail!("the partition {name} is too large: {size}") };
        if let Some(path) = image {
            let size =
                std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
            ensure!(
                size <= len,
                "{} has {size} bytes: the partition {name} holds {len}; give it a larger size",
                path.display()
            );
        }
        parts.push(Part { name, kind, attributes, offset, len, image });
        offset = end;
    }
    // The backup copy of the table.
    Ok((parts, offset + MIB))
}

fn write_table(file: &File, sector: u32, len: u64, parts: &[Part<'_>]) -> anyhow::Result<()> {
    let size = if sector == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let sectors = u32::try_from(len / u64::from(sector) - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut &*file)?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(size)
        .create_from_device(file.try_clone()?, None)?;
    for (number, part) in (1..).zip(parts) {
        let (first, count) = (part.offset / u64::from(sector), part.len / u64::from(sector));
        table.add_partition_at(part.name, number, first, count, part.kind.clone(), part.attributes.bits())?;
    }
    // Every byte of a new table is new: there is no valid copy to keep.
    table.write()?;
    Ok(file.sync_all()?)
}

/// Puts the images on slot A, then looks at the whole disk as the engine will.
fn fill(path: &Path, sector: u32, parts: &[Part<'_>]) -> anyhow::Result<()> {
    let medium = DiskFile::open(path, Access::Write)?;
    ensure!(medium.block_size() == sector, "the new table is not found again at its sector size");
    for part in parts {
        // The remains of old file systems on a device would be found by whoever probes the new partitions.
        if medium.is_block_device() {
            medium.write_zeroes(part.offset, part.len.min(MIB))?;
        }
        if let Some(image) = part.image {
            copy(image, &medium, part)
                .with_context(|| format!("cannot copy {} to {}", image.display(), part.name))?;
        }
    }
    medium.flush()?;
    let disk = Disk::open(Arc::new(medium), &SlotLayout::default())?;
    ensure!(disk.health() == ::disk::TableHealth::Intact, "the new table is not intact: {}", disk.health());
    Ok(())
}

/// Copies an image to the start of a partition. On a new file, stretches of zero stay holes.
fn copy(image: &Path, medium: &DiskFile, part: &Part<'_>) -> anyhow::Result<()> {
    let mut source = File::open(image)?;
    let progress = crate::cli::progress_bar(part.name, source.metadata()?.len());
    let mut buf = AlignedBuf::zeroed(usize::try_from(MIB)?);
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < buf.len() {
            match source.read(&mut buf[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            break;
        }
        let piece = &buf[..filled];
        ensure!(at + filled as u64 <= part.len, "it has grown while it was copied");
        if piece.iter().any(|byte| *byte != 0) {
            medium.write_at(part.offset + at, piece)?;
        } else if medium.is_block_device() {
            medium.write_zeroes(part.offset + at, filled as u64)?;
        }
        at += filled as u64;
        progress.set_position(at);
    }
    progress.finish_and_clear();
    Ok(())
}
