//! Step 11, boot: a boot as the loader does it, on a disk that no firmware sees: the loader's own sequence chooses,
//! records the try, and goes on to the next slot where one cannot be started; its own code reads the BOOT partition.
//!
//! The kernel is not started, and no firmware has a say in whether it may be. On a disk that has neither boot-select nor
//! anything on its BOOT partitions, whose boots are simulated by whoever asks, a slot is started by its attributes alone.

use super::SCHEMA;
use super::create::LOADER;
use crate::cli::Failure;
use crate::{efi, fat};
use ::disk::whole::WholeDisk;
use ::disk::{Access, DiskFile, Medium, SlotWindow};
use boot_select::{BootFiles, Console, Facts, Loader, SlotPartitions, kernel};
use protocol::gpt::{Entry, Table};
use protocol::slot::{Attributes, Slot};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// What would be started from a BOOT partition.
#[derive(Debug, Serialize)]
struct Start {
    /// The partition's name.
    partition: String,
    /// The kernel's file, `\vmlinuz` or `\boot.efi`.
    program: &'static str,
    program_bytes: usize,
    /// Length of `\initrd`; null where there is none.
    initrd_bytes: Option<usize>,
    /// The whole command line, with what the loader adds.
    cmdline: String,
}

/// A slot that is not started in this boot.
#[derive(Debug, Serialize)]
struct LeftOut {
    slot: Slot,
    reason: String,
}

/// The slot that starts, and how it came to that.
#[derive(Debug, Serialize)]
struct Booted {
    schema: u32,
    slot: Slot,
    priority: u8,
    tries_left: u8,
    successful: bool,
    /// Null where the boot is simulated.
    start: Option<Start>,
    left_out: Vec<LeftOut>,
    /// All that the loader would say on the console.
    messages: Vec<String>,
}

/// Reads what the slot starts from, and leaves it at that.
struct Reader {
    medium: Arc<dyn Medium>,
    /// Whether no BOOT partition holds anything, nor the system partition boot-select.
    simulated: bool,
}

impl Reader {
    fn window(&self, entry: &Entry) -> Result<SlotWindow, String> {
        let sector = u64::from(self.medium.block_size());
        let sectors = entry.last_lba.checked_sub(entry.first_lba).and_then(|count| count.checked_add(1));
        let place =
            entry.first_lba.checked_mul(sector).zip(sectors.and_then(|count| count.checked_mul(sector)));
        let (offset, len) = place.ok_or("it does not lie on the disk")?;
        SlotWindow::read_only(self.medium.clone(), offset, len).map_err(|error| error.to_string())
    }

    /// Whether the system partition has boot-select where the firmware looks for a loader: then it is asked at each boot.
    fn has_boot_select(&self, table: &Table) -> bool {
        table.entries().filter(|entry| entry.name == "ESP").any(|entry| {
            let volume = self.window(&entry).ok().and_then(|window| fat::Reader::open(window).ok());
            // What cannot be read here is not read by a firmware either.
            let program = volume.and_then(|volume| volume.contents(LOADER, kernel::MAX_BYTES).ok()?);
            program.is_some_and(|program| efi::is_boot_select(&program))
        })
    }

    /// Whether neither slot's BOOT partition holds anything.
    fn nothing_to_start(&self, table: &Table) -> bool {
        let mut boots =
            table.entries().filter(|entry| Slot::ALL.iter().any(|slot| entry.name == format!("BOOT-{slot}")));
        boots.all(|entry| {
            self.window(&entry).is_ok_and(|window| ::disk::fit::is_empty(&window).unwrap_or(false))
        })
    }
}

impl Loader for Reader {
    type Started = (Slot, Option<Start>);

    fn start(&mut self, slot: &SlotPartitions) -> Result<Self::Started, String> {
        if self.simulated {
            return Ok((slot.slot, None));
        }
        let boot = slot.boot.as_ref().map_err(Clone::clone)?;
        let said = |why: String| format!("{}: {why}", boot.name);
        let mut volume = fat::Reader::open(self.window(boot).map_err(said)?)
            .map_err(|error| said(format!("it holds no FAT volume that can be read: {error}")))?;
        let files = BootFiles::read(&mut volume, slot, &[kernel::X86_64])?;
        let start = Start {
            partition: boot.name.clone(),
            program: files.name,
            program_bytes: files.kernel.len(),
            initrd_bytes: files.initrd.map(|bytes| bytes.len()),
            cmdline: files.cmdline,
        };
        Ok((slot.slot, Some(start)))
    }
}

/// What the loader would say on the console.
#[derive(Debug, Default)]
struct Messages(Vec<String>);

impl Console for Messages {
    fn say(&mut self, message: &str) {
        self.0.push(message.to_owned());
    }
}

impl Facts for Messages {
    // The same lines as on the console, for a system that is not started here.
    fn publish(&mut self, _facts: &str) {}
}

impl Messages {
    fn left_out(&self) -> Vec<LeftOut> {
        let told = self.0.iter().filter_map(|line| line.strip_prefix("left out: ")?.split_once(": "));
        told.filter_map(|(slot, reason)| {
            Some(LeftOut { slot: slot.parse().ok()?, reason: reason.to_owned() })
        })
        .collect()
    }
}

/// `image-tools disk boot`.
pub(super) fn run(path: &Path, json: bool) -> anyhow::Result<()> {
    let medium: Arc<dyn Medium> = Arc::new(DiskFile::open(path, Access::Write)?);
    let mut disk = WholeDisk::new(medium.clone());
    let table = read_table(&mut disk, path)?;
    let mut loader = Reader { medium, simulated: false };
    loader.simulated = loader.nothing_to_start(&table) && !loader.has_boot_select(&table);
    let mut messages = Messages::default();
    let started = boot_select::boot(&mut disk, &mut loader, &mut messages);
    let left_out = messages.left_out();
    if started.is_err() && !json {
        messages.0.iter().for_each(|message| println!("{message}"));
    }
    let (slot, start) = started.map_err(|none| {
        let document = serde_json::json!({ "schema": SCHEMA, "slot": null, "left_out": left_out, "messages": messages.0 });
        Failure::new(document, format!("{}: {none}", path.display()))
    })?;
    let table = read_table(&mut disk, path)?;
    let root = format!("ROOT-{slot}");
    let attributes = table
        .entries()
        .find(|entry| entry.name == root)
        .map_or(Attributes::default(), |entry| entry.attributes);
    let booted = Booted {
        schema: SCHEMA,
        slot,
        priority: attributes.priority(),
        tries_left: attributes.tries_left(),
        successful: attributes.successful(),
        start,
        left_out,
        messages: messages.0,
    };
    if json {
        println!("{}", serde_json::to_string(&booted)?);
    } else {
        print(&booted);
    }
    Ok(())
}

fn read_table(disk: &mut WholeDisk, path: &Path) -> anyhow::Result<Table> {
    use boot_select::Disk as _;
    let (size, sectors) = (disk.sector_size(), disk.sectors());
    Table::read(size, sectors, |lba, bytes| disk.read(lba, bytes)).map_err(|error| {
        let what = super::not_a_disk(path, &error);
        anyhow::Error::new(::disk::DiskError::Table(error)).context(what)
    })
}

/// For people.
fn print(booted: &Booted) {
    // Which slot was chosen is said below.
    for message in booted.messages.iter().filter(|message| !message.starts_with("chosen: ")) {
        println!("{message}");
    }
    super::print_attributes(booted.slot, booted.priority, booted.tries_left, booted.successful);
    let Some(start) = &booted.start else {
        println!("starts nothing: the disk has no boot images, this boot is simulated");
        return;
    };
    let initrd = start.initrd_bytes.map_or("no initrd".to_owned(), |len| format!("\\initrd {len} bytes"));
    println!("starts {}: {} {} bytes, {initrd}", start.partition, start.program, start.program_bytes);
    println!("command line: {}", start.cmdline);
}
