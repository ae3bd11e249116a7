//! Steps 7, 8 and 11 by hand, slot, flip and boot: lays out disks, shows and sets the attributes of their slots (as
//! cgpt does), and applies the boot rule as the loader would.
//!
//! Everything works on a regular file holding a GPT disk as well as on a block device.

mod create;
mod show;
mod size;
mod start;

pub(crate) use create::parse_sector_size;
pub(crate) use size::Size;

use ::disk::{Access, Disk, DiskFile, SlotLayout};
use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use protocol::slot::{Attributes, Slot};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The schema number of the documents that these commands print.
const SCHEMA: u32 = 1;

/// `image-tools disk …`
#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Lay out a new disk: ESP, BOOT-A, ROOT-A, BOOT-B, ROOT-B, STATE; slot A bootable and confirmed
    Create(create::CreateArgs),
    /// Print the partitions, the slots' attributes, the table's health and which slot boots next
    Show(DiskArgs),
    /// Set the boot attributes of a slot
    Set(SetArgs),
    /// Apply the boot rule as the loader would: choose a slot and spend a try
    Boot(DiskArgs),
    /// Compare a slot with a release, reading from the medium
    Verify(show::VerifyArgs),
    /// Make both copies of the partition table valid and equal
    Repair(DiskArgs),
}

/// Which disk.
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {
    /// The disk: a regular file or a block device
    disk: PathBuf,
}

/// What to set.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The disk: a regular file or a block device
    disk: PathBuf,
    /// The slot, A or B
    #[arg(long)]
    slot: Slot,
    /// Priority, 0 (never booted) to 15
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=15))]
    priority: Option<u8>,
    /// Boots to attempt until the slot must have been confirmed, 0 to 15
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=15))]
    tries: Option<u8>,
    /// Whether a boot from the slot was confirmed
    #[arg(long, value_parser = parse_flag, value_name = "0|1")]
    successful: Option<bool>,
}

fn parse_flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("expected 0 or 1".to_owned()),
    }
}

/// A slot and its attributes, and for a boot what would be started.
#[derive(Debug, Serialize)]
struct Booted {
    schema: u32,
    slot: Slot,
    priority: u8,
    tries_left: u8,
    successful: bool,
}

/// Does it. `json` prints documents instead of text.
///
/// # Errors
/// Where the disk cannot be used or the change is refused.
pub(crate) fn run(command: &DiskCommand, json: bool) -> anyhow::Result<()> {
    match command {
        DiskCommand::Create(args) => create::run(args, json),
        DiskCommand::Show(args) => show::run(&args.disk, json),
        DiskCommand::Set(args) => set(args, json),
        DiskCommand::Boot(args) => boot(&args.disk, json),
        DiskCommand::Verify(args) => show::verify(args, json),
        DiskCommand::Repair(args) => repair(&args.disk, json),
    }
}

fn open(path: &Path, access: Access) -> anyhow::Result<Disk> {
    let medium = DiskFile::open(path, access)?;
    Disk::open(Arc::new(medium), &SlotLayout::default()).with_context(|| path.display().to_string())
}

fn set(args: &SetArgs, json: bool) -> anyhow::Result<()> {
    if args.priority.is_none() && args.tries.is_none() && args.successful.is_none() {
        bail!("nothing to set: give --priority, --tries or --successful");
    }
    let mut disk = open(&args.disk, Access::Write)?;
    let old = disk.attributes(args.slot);
    let new = old
        .with_priority(args.priority.unwrap_or(old.priority()))
        .with_tries_left(args.tries.unwrap_or(old.tries_left()))
        .with_successful(args.successful.unwrap_or(old.successful()));
    disk.set_attributes(args.slot, new).with_context(|| args.disk.display().to_string())?;
    print_attributes(args.slot, new, None, json)?;
    Ok(())
}

fn boot(path: &Path, json: bool) -> anyhow::Result<()> {
    let mut disk = open(path, Access::Write)?;
    let Some(slot) = disk.boot().with_context(|| path.display().to_string())? else {
        let state = |slot| format!("slot {slot}: {:?}", disk.attributes(slot));
        bail!("no slot of {} can be booted ({}; {})", path.display(), state(Slot::A), state(Slot::B));
    };
    let start = start::find(&disk, slot);
    print_attributes(slot, disk.attributes(slot), Some(&start), json)?;
    Ok(())
}

fn print_attributes(
    slot: Slot,
    attributes: Attributes,
    start: Option<&Result<Option<start::Start>, String>>,
    json: bool,
) -> anyhow::Result<()> {
    let (priority, tries_left) = (attributes.priority(), attributes.tries_left());
    let booted = Booted { schema: SCHEMA, slot, priority, tries_left, successful: attributes.successful() };
    if json {
        let mut document = serde_json::to_value(&booted)?;
        if let Some(start) = start {
            document["start"] = serde_json::to_value(start.as_ref().ok())?;
            document["start_problem"] = serde_json::to_value(start.as_ref().err())?;
        }
        println!("{document}");
        return Ok(());
    }
    println!("slot {slot}: priority {priority}, tries left {tries_left}, {}", show::word(booted.successful));
    if let Some(start) = start {
        start::print(start, slot);
    }
    Ok(())
}

fn repair(path: &Path, json: bool) -> anyhow::Result<()> {
    let mut disk = open(path, Access::Write)?;
    let before = disk.health();
    let written = disk.repair().with_context(|| path.display().to_string())?;
    if json {
        let document =
            serde_json::json!({ "schema": SCHEMA, "health_before": before.as_str(), "written": written });
        println!("{document}");
    } else if written {
        println!("{}: repaired ({before})", path.display());
    } else {
        println!("{}: {before}", path.display());
    }
    Ok(())
}
