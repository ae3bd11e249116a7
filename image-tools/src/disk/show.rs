//! Steps 8 and 11, flip and boot: what a disk holds, and which slot boots next.

use super::size::Size;
use super::{SCHEMA, open};
use crate::cli::Failure;
use ::disk::Access;
use ::disk::slots::digest_of;
use anyhow::{Context as _, ensure};
use clap::Args;
use protocol::digest::Sha256;
use protocol::gpt::{Entry, Guid};
use protocol::id::PartitionRole;
use protocol::manifest::Manifest;
use protocol::slot::Slot;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Serialize)]
struct Shown {
    schema: u32,
    disk: String,
    bytes: u64,
    sector_size: u32,
    disk_guid: Guid,
    /// `intact`, `primary-damaged`, `backup-damaged`, `differ`.
    health: &'static str,
    health_detail: String,
    /// Whether the first sector says that a GPT follows.
    protective_mbr: bool,
    /// The sector of the table's backup, if that is not the last one.
    backup_misplaced: Option<u64>,
    /// The slot that boots next; null where none can be booted.
    next_boot: Option<Slot>,
    slots: Vec<ShownSlot>,
    partitions: Vec<ShownPartition>,
}

#[derive(Debug, Serialize)]
struct ShownSlot {
    slot: Slot,
    priority: u8,
    tries_left: u8,
    successful: bool,
    bootable: bool,
}

#[derive(Debug, Serialize)]
struct ShownPartition {
    number: u32,
    name: String,
    slot: Option<Slot>,
    role: Option<PartitionRole>,
    offset: u64,
    bytes: u64,
    type_guid: Guid,
    unique_guid: Guid,
    /// All 64 attribute bits, hexadecimal.
    attributes: String,
}

/// A word for `successful`.
pub(super) fn word(successful: bool) -> &'static str {
    if successful { "successful" } else { "not confirmed" }
}

pub(super) fn run(path: &Path, json: bool) -> anyhow::Result<()> {
    let disk = open(path, Access::Read)?;
    let sector = disk.medium().block_size();
    let slot_of = |entry: &Entry| {
        Slot::ALL.into_iter().find_map(|slot| {
            let mut partitions = disk.slot_partitions(slot);
            partitions.find(|(_, view)| view.entry == entry.number).map(|(role, _)| (slot, role.clone()))
        })
    };
    let partition = |entry: Entry| {
        let (slot, role) = slot_of(&entry).unzip();
        ShownPartition {
            number: entry.number,
            slot,
            role,
            offset: entry.first_lba * u64::from(sector),
            bytes: (entry.last_lba - entry.first_lba + 1) * u64::from(sector),
            type_guid: entry.type_guid,
            unique_guid: entry.unique_guid,
            attributes: format!("{:#018x}", entry.attributes.bits()),
            name: entry.name,
        }
    };
    let slot = |slot| {
        let attributes = disk.attributes(slot);
        ShownSlot {
            slot,
            priority: attributes.priority(),
            tries_left: attributes.tries_left(),
            successful: attributes.successful(),
            bootable: attributes.bootable(),
        }
    };
    let shown = Shown {
        schema: SCHEMA,
        disk: path.display().to_string(),
        bytes: disk.medium().len(),
        sector_size: sector,
        disk_guid: disk.table().header().disk_guid(),
        health: disk.health().as_str(),
        health_detail: disk.health().to_string(),
        protective_mbr: disk.is_protected()?,
        backup_misplaced: disk.backup_misplaced(),
        next_boot: disk.select().map(|(slot, _)| slot),
        slots: Slot::ALL.map(slot).into(),
        partitions: disk.table().entries().map(partition).collect(),
    };
    if json {
        println!("{}", serde_json::to_string(&shown)?);
    } else {
        print(&shown);
    }
    Ok(())
}

fn print(shown: &Shown) {
    println!("{}: {}, sectors of {} bytes", shown.disk, Size(shown.bytes), shown.sector_size);
    println!("table: {}", shown.health_detail);
    if !shown.protective_mbr {
        println!("mbr:   the protective entry is missing: image-tools disk repair writes it");
    }
    if let Some(lba) = shown.backup_misplaced {
        println!("the table's backup stands in sector {lba}, not in the last one");
    }
    println!("\n{:>3}  {:<10} {:>12} {:>12}  {:<5} type", "nr", "name", "offset", "size", "slot");
    for part in &shown.partitions {
        let slot = part.slot.map_or("", Slot::as_str);
        let (offset, size) = (Size(part.offset).to_string(), Size(part.bytes).to_string());
        println!(
            "{:>3}  {:<10} {offset:>12} {size:>12}  {slot:<5} {}",
            part.number, part.name, part.type_guid
        );
    }
    println!();
    for slot in &shown.slots {
        println!(
            "slot {}: priority {}, tries left {}, {}{}",
            slot.slot,
            slot.priority,
            slot.tries_left,
            word(slot.successful),
            if slot.bootable { "" } else { ", cannot be booted" }
        );
    }
    match shown.next_boot {
        Some(slot) => println!("next boot: slot {slot}"),
        None => println!("next boot: no slot can be booted"),
    }
}

/// What to compare.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The disk: a regular file or a block device
    disk: PathBuf,
    /// The slot, A or B
    #[arg(long)]
    slot: Slot,
    /// The release's folder, as `release build` made it, or its manifest.json
    #[arg(long, value_name = "DIR")]
    release: PathBuf,
}

#[derive(Debug, Serialize)]
struct Verified {
    role: PartitionRole,
    bytes: u64,
    expected: Sha256,
    found: Sha256,
    read_back: String,
}

pub(super) fn verify(args: &VerifyArgs, json: bool) -> anyhow::Result<()> {
    let path = if args.release.is_dir() { args.release.join("manifest.json") } else { args.release.clone() };
    let expected = "expected a release's folder, as `release build` made it, or its manifest.json";
    let bytes =
        std::fs::read(&path).with_context(|| format!("cannot read {}, {expected}", path.display()))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no manifest, {expected}", path.display()))?;
    let disk = open(&args.disk, Access::Read)?;
    let mut results = Vec::new();
    for image in &manifest.partitions {
        let window = disk.open_slot(&image.role, args.slot)?;
        ensure!(
            image.size <= window.len(),
            "the {} image has {} bytes: the partition holds {}",
            image.role,
            image.size,
            window.len()
        );
        let progress = crate::cli::progress_bar("reading back", image.size);
        let (found, how) =
            digest_of(&window, image.size, &mut |bytes| progress.inc(bytes)).map_err(|(offset, error)| {
                anyhow::Error::new(error).context(format!("cannot read {} at byte {offset}", image.role))
            })?;
        progress.finish_and_clear();
        let (role, bytes, expected) = (image.role.clone(), image.size, image.sha256);
        results.push(Verified { role, bytes, expected, found, read_back: how.to_string() });
    }
    let wrong: Vec<String> =
        results.iter().filter(|r| r.found != r.expected).map(|r| r.role.to_string()).collect();
    let document = serde_json::json!({
        "schema": SCHEMA, "slot": args.slot, "version": manifest.version, "equal": wrong.is_empty(),
        "partitions": results,
    });
    if !json {
        for result in &results {
            println!("{}: sha256 {}, expected {}", result.role, result.found, result.expected);
        }
    } else if wrong.is_empty() {
        println!("{document}");
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let wrong = wrong.join(" and ");
    let reason = format!("slot {} does not hold release {}: {wrong} differ", args.slot, manifest.version);
    Err(Failure::new(document, reason).into())
}
