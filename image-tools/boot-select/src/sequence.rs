//! Step 11, boot: choose, spend the try, start; and what to do where one of them fails.

use crate::slots::SlotPartitions;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use protocol::gpt::{Health, Step, Table};
use protocol::slot::{Attributes, Choice, Slot, select};

/// The whole disk that the loader was started from.
pub trait Disk {
    /// Bytes of a sector.
    fn sector_size(&self) -> u32;
    /// Number of sectors, as the firmware reports it.
    fn sectors(&self) -> u64;
    /// Fills `bytes`, whole sectors, from the sector `lba` on.
    ///
    /// # Errors
    /// What the firmware says.
    fn read(&mut self, lba: u64, bytes: &mut [u8]) -> Result<(), String>;
    /// Writes whole sectors.
    ///
    /// # Errors
    /// What the firmware says; the sectors may hold anything then.
    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), String>;
    /// Waits until everything written is on the medium.
    ///
    /// # Errors
    /// What the firmware says.
    fn flush(&mut self) -> Result<(), String>;
}

/// What starts a slot.
pub trait Loader {
    /// What starting a slot gives: nothing that can exist under UEFI, where the kernel takes the machine over.
    type Started;
    /// Loads the slot's kernel and starts it.
    ///
    /// # Errors
    /// Why the slot could not be loaded, or that its kernel came back.
    fn start(&mut self, slot: &SlotPartitions) -> Result<Self::Started, String>;
}

/// What a person at the machine, or a serial line, is told.
pub trait Console {
    /// One message, without a line break.
    fn say(&mut self, message: &str);
}

/// What the started system is told.
pub trait Facts {
    /// Everything known of this boot, one fact a line. Replaces what was published before.
    fn publish(&mut self, facts: &str);
}

/// No slot could be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSlot {
    /// Why, in one line.
    pub reason: String,
}

impl fmt::Display for NoSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no slot can be booted: {}", self.reason)
    }
}

impl core::error::Error for NoSlot {}

/// Boots: returns only if no slot could be started, or with what [`Loader::start`] gave.
///
/// # Errors
/// [`NoSlot`] where the table cannot be read, or every slot that the rule allows was tried.
pub fn boot<L: Loader>(
    disk: &mut impl Disk,
    loader: &mut L,
    reporter: &mut (impl Console + Facts),
) -> Result<L::Started, NoSlot> {
    let table = read(disk).map_err(|error| NoSlot { reason: error })?;
    let mut boot = Boot::new(disk, reporter, table);
    loop {
        let Some((slot, choice)) = boot.choose() else { return Err(boot.give_up()) };
        let attributes = match choice.write {
            Some(attributes) if boot.recordable => match boot.record(choice.entry, attributes) {
                Ok(()) => attributes,
                // Chosen again, among the successful slots.
                Err(problem) => {
                    boot.not_recorded(&problem);
                    continue;
                }
            },
            _ => slot.root.attributes,
        };
        boot.chosen(slot.slot, attributes);
        // What was recorded was repaired as well.
        let by_backup = matches!(boot.table.health(), Health::PrimaryDamaged(_));
        let slot = SlotPartitions { by_backup, ..slot };
        match loader.start(&slot) {
            Ok(started) => return Ok(started),
            Err(problem) => boot.leave_out(slot.slot, &problem),
        }
    }
}

struct Boot<'a, D, R> {
    disk: &'a mut D,
    reporter: &'a mut R,
    table: Table,
    slots: Vec<SlotPartitions>,
    /// Whether tries can be recorded, as far as is known. Where not, only successful slots start.
    recordable: bool,
    /// Facts about the table and the slots, in the order in which they were found.
    facts: Vec<String>,
    /// Why each slot that is not started any more is not.
    reasons: Vec<(Slot, String)>,
}

impl<'a, D: Disk, R: Console + Facts> Boot<'a, D, R> {
    fn new(disk: &'a mut D, reporter: &'a mut R, table: Table) -> Self {
        let (mut slots, mut reasons) = (Vec::new(), Vec::new());
        for slot in Slot::ALL {
            match SlotPartitions::find(&table, slot) {
                Ok(partitions) => slots.push(partitions),
                Err(problem) => reasons.push((slot, problem)),
            }
        }
        let mut boot =
            Self { disk, reporter, table, slots, recordable: true, facts: Vec::new(), reasons: Vec::new() };
        if let Some(lba) = boot.table.backup_misplaced() {
            boot.fact(format!(
                "table: its backup is at LBA {lba}, the disk ends at LBA {}",
                boot.disk.sectors() - 1
            ));
        }
        if let Some((state, why)) = describe(&boot.table.health()) {
            boot.fact(format!("table: {state} ({why})"));
        }
        for (slot, problem) in reasons {
            boot.exclude(slot, &problem);
        }
        boot
    }

    /// The best slot that is left, by the one rule.
    fn choose(&self) -> Option<(SlotPartitions, Choice)> {
        let left = self.slots.iter().filter(|slot| self.reasons.iter().all(|(out, _)| *out != slot.slot));
        let allowed = left.filter(|slot| self.recordable || slot.root.attributes.successful());
        let choice = select(allowed.map(|slot| (slot.root.number, slot.root.attributes)))?;
        self.slots.iter().find(|slot| slot.root.number == choice.entry).map(|slot| (slot.clone(), choice))
    }

    /// Spends the try: both copies of the table hold the attributes afterwards, a damaged one is repaired by the way.
    fn record(&mut self, entry: u32, attributes: Attributes) -> Result<(), String> {
        // Where the copies stand is known for sure only if nobody contradicts: see `docs/boot.md`.
        if let Some(lba) = self.table.disputed_backup() {
            return Err(format!(
                "the damaged primary table puts its backup at LBA {lba}, where none was found"
            ));
        }
        let repair = self.table.repair().map_err(|error| error.to_string())?;
        let commit = repair.table.commit(&[(entry, attributes)]).map_err(|error| error.to_string())?;
        for step in repair.steps.iter().chain(&commit.steps) {
            match step {
                Step::Write { lba, bytes } => {
                    self.disk.write(*lba, bytes).map_err(|error| format!("writing LBA {lba}: {error}"))?;
                }
                Step::Flush => self.disk.flush().map_err(|error| format!("flush: {error}"))?,
            }
        }
        if read(self.disk)? != commit.table {
            return Err("the disk does not give back what was written".to_string());
        }
        if let Some((state, _)) = describe(&self.table.health()) {
            self.fact(format!("table: {state}, repaired"));
        }
        self.table = commit.table;
        Ok(())
    }

    fn not_recorded(&mut self, problem: &str) {
        self.recordable = false;
        self.fact(format!("try not recorded: {problem}"));
    }

    fn chosen(&mut self, slot: Slot, attributes: Attributes) {
        self.fact(format!("chosen: {slot} tries_left={}", attributes.tries_left()));
        self.reporter.publish(&self.facts.join("\n"));
    }

    fn leave_out(&mut self, slot: Slot, problem: &str) {
        self.exclude(slot, problem);
        // A program that came back may have changed the disk, the table included.
        match read(self.disk) {
            Ok(table) if table == self.table => {}
            Ok(_) => self.not_recorded("the table was changed meanwhile"),
            Err(error) => self.not_recorded(&error),
        }
    }

    fn exclude(&mut self, slot: Slot, problem: &str) {
        self.fact(format!("left out: {slot}: {problem}"));
        self.reasons.push((slot, problem.to_string()));
    }

    fn fact(&mut self, fact: String) {
        self.reporter.say(&fact);
        self.facts.push(fact);
    }

    fn give_up(&self) -> NoSlot {
        NoSlot { reason: Slot::ALL.map(|slot| format!("{slot}: {}", self.why_not(slot))).join("; ") }
    }

    fn why_not(&self, slot: Slot) -> String {
        if let Some((_, why)) = self.reasons.iter().find(|(out, _)| *out == slot) {
            return why.clone();
        }
        let found = self.slots.iter().find(|partitions| partitions.slot == slot);
        let attributes = found.map_or(Attributes::default(), |partitions| partitions.root.attributes);
        let (priority, tries) = (attributes.priority(), attributes.tries_left());
        let values = format!("priority={priority} tries_left={tries} successful={}", attributes.successful());
        // A candidate that was not even tried.
        if attributes.bootable() { format!("{values}, but no try can be recorded") } else { values }
    }
}

/// What is to be said of a table that is not as it should be, and why.
fn describe(health: &Health) -> Option<(&'static str, String)> {
    match health {
        Health::Intact => None,
        Health::PrimaryDamaged(damage) => Some(("primary damaged", damage.to_string())),
        Health::BackupDamaged(damage) => Some(("backup damaged", damage.to_string())),
        Health::Differ => {
            Some(("copies differ", "a change was interrupted; the primary is believed".to_string()))
        }
    }
}

fn read(disk: &mut impl Disk) -> Result<Table, String> {
    let (size, sectors) = (disk.sector_size(), disk.sectors());
    Table::read(size, sectors, |lba, bytes| disk.read(lba, bytes)).map_err(|error| error.to_string())
}
