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

use crate::content;
use ::disk::{Access, Disk, DiskError, DiskFile, SlotLayout};
use anyhow::Context as _;
use clap::{ArgGroup, Args, Subcommand};
use protocol::gpt::TableError;
use protocol::slot::Slot;
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
    /// Boot as the loader would: choose a slot, spend a try, read what it starts from; leave a slot out and go on to the
    /// next where that cannot be started
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
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["priority", "tries", "successful"])))]
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

/// Does it. `json` prints documents instead of text.
///
/// # Errors
/// Where the disk cannot be used or the change is refused.
pub(crate) fn run(command: &DiskCommand, json: bool) -> anyhow::Result<()> {
    match command {
        DiskCommand::Create(args) => create::run(args, json),
        DiskCommand::Show(args) => show::run(&args.disk, json),
        DiskCommand::Set(args) => set(args, json),
        DiskCommand::Boot(args) => start::run(&args.disk, json),
        DiskCommand::Verify(args) => show::verify(args, json),
        DiskCommand::Repair(args) => repair(&args.disk, json),
    }
}

fn open(path: &Path, access: Access) -> anyhow::Result<Disk> {
    let medium = DiskFile::open(path, access)?;
    Disk::open(Arc::new(medium), &SlotLayout::default()).map_err(|error| {
        let what = match &error {
            DiskError::Table(table) => not_a_disk(path, table),
            _ => path.display().to_string(),
        };
        anyhow::Error::new(error).context(what)
    })
}

/// What to say before a table that cannot be used: where there never was one, what the file is instead.
fn not_a_disk(path: &Path, error: &TableError) -> String {
    let shown = path.display();
    let head = content::head(path).unwrap_or_default();
    let never = matches!(error, TableError::Disk | TableError::NoValidCopy { .. })
        && content::of(&head) != content::Content::Other(content::GPT);
    if never {
        let found = content::name(&head);
        format!(
            "{shown} is no disk with a GPT: expected one as `image-tools disk create` makes it, found {found}"
        )
    } else {
        shown.to_string()
    }
}

fn set(args: &SetArgs, json: bool) -> anyhow::Result<()> {
    let mut disk = open(&args.disk, Access::Write)?;
    let old = disk.attributes(args.slot);
    let new = old
        .with_priority(args.priority.unwrap_or(old.priority()))
        .with_tries_left(args.tries.unwrap_or(old.tries_left()))
        .with_successful(args.successful.unwrap_or(old.successful()));
    disk.set_attributes(args.slot, new).with_context(|| args.disk.display().to_string())?;
    let (priority, tries_left, successful) = (new.priority(), new.tries_left(), new.successful());
    if json {
        let document = serde_json::json!({
            "schema": SCHEMA, "slot": args.slot, "priority": priority, "tries_left": tries_left, "successful": successful,
        });
        println!("{document}");
    } else {
        print_attributes(args.slot, priority, tries_left, successful);
    }
    Ok(())
}

fn print_attributes(slot: Slot, priority: u8, tries_left: u8, successful: bool) {
    println!("slot {slot}: priority {priority}, tries left {tries_left}, {}", show::word(successful));
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
