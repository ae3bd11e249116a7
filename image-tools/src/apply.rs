//! Steps 5 to 7 without a network: `image-tools payload apply`, a release into files or into a slot of a disk.
//!
//! The same code as on a node does it ([`disk::assemble`]); only the payload comes from a file.

use crate::cli::progress_bar;
use crate::inputs;
use crate::release::{Release, digest_of_file};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use disk::assemble::{self, InstallReport, Settings, Sink, SourceError, StoredBytes};
use disk::plan::{GAP, Plan};
use disk::seeds::{self, SeedWindow};
use disk::{Access, Disk, DiskFile, SlotLayout, SlotWindow, SystemMounts, TargetSlot};
use protocol::id::PartitionRole;
use protocol::slot::Slot;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The schema number of what `--json` prints.
const OUTPUT_SCHEMA: u32 = 1;
/// How much of a payload is read at once, in bytes.
const READ: u64 = 256 << 10;
/// How often a slot that was activated is tried.
const TRIES: u8 = 3;

/// `image-tools payload …`
#[derive(Debug, Subcommand)]
pub(crate) enum PayloadCommand {
    /// Install a release folder into files, or into a slot of a disk that is not running
    Apply(ApplyArgs),
}

/// From where to where.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The release folder
    #[arg(long)]
    release: PathBuf,
    /// A disk: a regular file or a block device
    #[arg(long, requires = "slot", conflicts_with_all = ["out_root", "out_boot"], required_unless_present = "out_root")]
    disk: Option<PathBuf>,
    /// The slot to be written, A or B; the other one is taken to be in use
    #[arg(long)]
    slot: Option<Slot>,
    /// Let the slot be booted next
    #[arg(long, requires = "disk")]
    activate: bool,
    /// A file or device for the root image
    #[arg(long)]
    out_root: Option<PathBuf>,
    /// A file or device for the boot image
    #[arg(long, requires = "out_root")]
    out_boot: Option<PathBuf>,
}

/// Runs `image-tools payload …`.
pub(crate) fn run(command: &PayloadCommand, json: bool) -> Result<()> {
    let PayloadCommand::Apply(args) = command;
    let release = Release::load(&args.release)?;
    let bar = progress_bar("installing", release.index.image_bytes());
    let progress = |done| bar.set_position(done);
    let report = match (&args.disk, args.slot) {
        (Some(disk), Some(slot)) => install_to_slot(&release, disk, slot, args.activate, &progress)?,
        _ => {
            let out = |role: &PartitionRole| {
                let files =
                    [(PartitionRole::root(), &args.out_root), (PartitionRole::boot(), &args.out_boot)];
                files.into_iter().find(|(r, _)| r == role).and_then(|(_, file)| file.clone())
            };
            install_to_file(&release, &out, &progress)?
        }
    };
    bar.finish_and_clear();
    if json {
        println!(
            "{}",
            json!({
                "schema": OUTPUT_SCHEMA,
                "version": release.manifest.version,
                "bytes_total": report.bytes_total,
                "bytes_read": report.bytes_downloaded,
                "bytes_written": report.bytes_written,
                "bytes_zeroed": report.bytes_zeroed,
                "bytes_in_place": report.bytes_in_place,
            })
        );
    } else {
        println!(
            "{} installed: {} bytes written, {} were in place",
            release.manifest.version,
            report.bytes_written + report.bytes_zeroed,
            report.bytes_in_place
        );
    }
    Ok(())
}

/// A payload in a file.
#[derive(Debug)]
pub struct PayloadSource {
    file: File,
}

impl PayloadSource {
    /// Opens a payload file.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file })
    }
}

impl StoredBytes for PayloadSource {
    fn read(&mut self, ranges: &[Range<u64>], sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let mut buf = Vec::new();
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(READ);
                buf.resize(usize::try_from(len).unwrap_or(0), 0);
                self.file.read_exact_at(&mut buf, at).map_err(|e| SourceError::Failed(Box::new(e)))?;
                sink(at, &buf)?;
                at += len;
            }
        }
        Ok(())
    }
}

/// Installs a release into the files that `out` names for its partitions; they are made if they are not there, and
/// what they hold already is not written again. Each image is compared with the manifest afterwards. `progress` is
/// told how many bytes of the images are done.
///
/// # Errors
/// Where a partition has no file, the payload is damaged, or a file cannot be written.
pub fn install_to_file(
    release: &Release,
    out: &dyn Fn(&PartitionRole) -> Option<PathBuf>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<InstallReport> {
    let (manifest, payload) = (release.dir.join("manifest.json"), release.payload_path());
    let paths: Vec<_> =
        release.index.partitions.iter().filter_map(|partition| out(&partition.role)).collect();
    for (i, path) in paths.iter().enumerate() {
        let read = [("the release's manifest", &*manifest), ("the release's payload", &*payload)];
        let others = paths[..i].iter().map(|path| ("the file of another partition", path.as_path()));
        inputs::refuse_as_output(path, read.into_iter().chain(others))?;
    }
    let mut files = Vec::new();
    for partition in &release.index.partitions {
        let role = &partition.role;
        let Some(path) = out(role) else {
            bail!("the release has an image for the partition {role}: name a file for it with --out-{role}")
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if file.metadata().is_ok_and(|m| m.is_file()) {
            file.set_len(partition.size).with_context(|| format!("cannot resize {}", path.display()))?;
        }
        drop(file);
        let medium = DiskFile::open(&path, Access::Write)?;
        files.push((role.clone(), path, SlotWindow::whole_image(Arc::new(medium))));
    }
    let window = |role: &PartitionRole| files.iter().find(|(r, _, _)| r == role).map(|(_, _, w)| w.clone());
    let targets = assemble::targets(&release.index, window)?;
    let report = install(release, &targets, Vec::new(), progress)?;
    for ((partition, target), (_, path, _)) in release.index.partitions.iter().zip(&targets).zip(&files) {
        target.flush().with_context(|| format!("cannot write {}", path.display()))?;
        // On a device the image may be followed by something else.
        if target.len() == partition.size {
            let found = digest_of_file(path)?;
            ensure!(
                found == partition.sha256,
                "{} has sha256 {found} after installing: expected {}",
                path.display(),
                partition.sha256
            );
        }
    }
    Ok(report)
}

/// Installs a release into a slot of a disk, reads it back, and activates it if asked to. The other slot is taken to
/// be the running one. `progress` is told how many bytes of the images are done.
///
/// # Errors
/// Where the slot is in use or too small, the payload is damaged, or the disk cannot be written.
pub fn install_to_slot(
    release: &Release,
    disk: &Path,
    slot: Slot,
    activate: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<InstallReport> {
    let medium = Arc::new(DiskFile::open(disk, Access::Write)?);
    let mut disk = Disk::open(medium, &SlotLayout::default())?;
    let running = slot.other();
    let target = TargetSlot::new(&disk, slot, running, &SystemMounts::new())?;
    let images = &release.manifest.partitions;
    disk.check_fit(images, slot, running).context("the release does not fit")?;
    let mut others = Vec::new();
    for partition in &release.index.partitions {
        let window = disk.open_slot(&partition.role, running)?;
        others.push(SeedWindow { name: format!("{} {running}", partition.role), window, target: None });
    }
    let invalidated = disk.invalidate(target)?;
    invalidated.clear_unfilled(images)?;
    let targets = assemble::targets(&release.index, |role| invalidated.window(role))?;
    let report = install(release, &targets, others, progress)?;
    let staged = invalidated.verify(images, &|_| {})?;
    if activate {
        disk.activate(staged, release.manifest.release_digest(), running, TRIES)?;
    }
    Ok(report)
}

fn install(
    release: &Release,
    targets: &[SlotWindow],
    mut windows: Vec<SeedWindow>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<InstallReport> {
    for (i, (partition, window)) in release.index.partitions.iter().zip(targets).enumerate() {
        let name = format!("{} (target)", partition.role);
        windows.push(SeedWindow { name, window: window.clone(), target: Some(i) });
    }
    let seeds = seeds::scan(&release.index, windows, &|_| {});
    let plan = Plan::new(&release.index, &seeds, GAP);
    let mut source = PayloadSource::open(&release.payload_path())?;
    let report = |p: assemble::Progress| progress(p.bytes_done);
    Ok(assemble::install(&release.index, plan, targets, &seeds, &mut source, &report, Settings::default())?)
}
