//! Steps 8, 11 and 12, flip, boot and confirm: a GPT disk with two slots, and the changes of its attributes.
//!
//! Every change reads both copies of the table from the medium anew, repairs what an interrupted change left, checks
//! that some slot can be booted afterwards, and is one commit in the order of [`protocol::gpt`]. Doing it again does
//! nothing.

use crate::error::DiskError;
use crate::layout::{RoleLayout, SlotLayout};
use crate::medium::{ALIGN, AlignedBuf, Medium};
use crate::slots::{InvalidatedSlot, StagedSlot, TargetSlot};
use crate::window::{SlotWindow, WriteAccess};
use protocol::digest::Sha256;
use protocol::gpt::{Change, Commit, Damage, Entry, Guid, Health, Step, Table, protected_first_sector};
use protocol::id::PartitionRole;
use protocol::slot::{Attributes, Choice, Slot, select};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The state of the two copies of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableHealth {
    /// Both are valid and say the same.
    Intact,
    /// The primary copy cannot be used; the backup is believed.
    PrimaryDamaged(Damage),
    /// The backup copy cannot be used; the primary is believed.
    BackupDamaged(Damage),
    /// Both are valid and differ: a change was interrupted. The primary is believed.
    Differ,
}

impl TableHealth {
    /// One word for scripts: `intact`, `primary-damaged`, `backup-damaged`, `differ`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Intact => "intact",
            Self::PrimaryDamaged(_) => "primary-damaged",
            Self::BackupDamaged(_) => "backup-damaged",
            Self::Differ => "differ",
        }
    }
}

impl fmt::Display for TableHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intact => f.write_str("both copies are valid and equal"),
            Self::PrimaryDamaged(damage) => write!(f, "the primary copy is damaged: {damage}"),
            Self::BackupDamaged(damage) => write!(f, "the backup copy is damaged: {damage}"),
            Self::Differ => f.write_str("both copies are valid and differ: a change was interrupted"),
        }
    }
}

/// A slot's partition, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Its number in the table, from 1.
    pub entry: u32,
    /// Where it starts on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its own GUID (`PARTUUID`).
    pub unique_guid: Guid,
    /// Its name.
    pub name: String,
}

/// A GPT disk with two slots.
#[derive(Debug)]
pub struct Disk {
    medium: Arc<dyn Medium>,
    layout: SlotLayout,
    table: Table,
    /// For each role of the layout, in its order: the partitions of slots A and B.
    partitions: Vec<(PartitionRole, [PartitionView; 2])>,
}

impl Disk {
    /// Reads both copies of the table and finds the slots' partitions. Writes nothing.
    ///
    /// # Errors
    /// [`DiskError`] where there is no usable table, or it does not hold what the layout asks for.
    pub fn open(medium: Arc<dyn Medium>, layout: &SlotLayout) -> Result<Self, DiskError> {
        let table = read_table(&*medium)?;
        let partitions = find_partitions(&*medium, &table, layout)?;
        Ok(Self { medium, layout: layout.clone(), table, partitions })
    }

    /// The medium under it.
    #[must_use]
    pub fn medium(&self) -> &Arc<dyn Medium> {
        &self.medium
    }

    /// Where it is, if it has a place in the file system.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.medium.path()
    }

    /// The layout it was opened with.
    #[must_use]
    pub fn layout(&self) -> &SlotLayout {
        &self.layout
    }

    /// The table as it was last read or written.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The state of the table's two copies when it was last read or written.
    #[must_use]
    pub fn health(&self) -> TableHealth {
        match self.table.health() {
            Health::Intact => TableHealth::Intact,
            Health::PrimaryDamaged(damage) => TableHealth::PrimaryDamaged(damage),
            Health::BackupDamaged(damage) => TableHealth::BackupDamaged(damage),
            Health::Differ => TableHealth::Differ,
        }
    }

    /// The sector where the table's backup stands, if that is not the disk's last one: the disk grew, or its size is
    /// misreported. It is kept there.
    #[must_use]
    pub fn backup_misplaced(&self) -> Option<u64> {
        self.table.backup_misplaced()
    }

    /// The partition of a role in a slot; `None` for a role that the layout does not have.
    #[must_use]
    pub fn partition(&self, slot: Slot, role: &PartitionRole) -> Option<&PartitionView> {
        self.partitions.iter().find(|(r, _)| r == role).map(|(_, views)| &views[index(slot)])
    }

    /// All partitions of a slot with their roles, in the order of the layout.
    pub fn slot_partitions(&self, slot: Slot) -> impl Iterator<Item = (&PartitionRole, &PartitionView)> {
        self.partitions.iter().map(move |(role, views)| (role, &views[index(slot)]))
    }

    /// The attributes of a slot, which stand on its root partition.
    #[must_use]
    pub fn attributes(&self, slot: Slot) -> Attributes {
        self.entry(slot).map_or(Attributes::default(), |entry| entry.attributes)
    }

    fn entry(&self, slot: Slot) -> Option<Entry> {
        self.table.entry(self.entry_number(slot))
    }

    fn entry_number(&self, slot: Slot) -> u32 {
        // Zero names no entry, and `open` saw to it that there is a root.
        self.partition(slot, &PartitionRole::root()).map_or(0, |view| view.entry)
    }

    /// What boot selection would choose now, and what it would write.
    #[must_use]
    pub fn select(&self) -> Option<(Slot, Choice)> {
        let entries = Slot::ALL.map(|slot| (self.entry_number(slot), self.attributes(slot)));
        let choice = select(entries)?;
        Slot::ALL.into_iter().find(|slot| self.entry_number(*slot) == choice.entry).map(|slot| (slot, choice))
    }

    /// A read-only view of a slot's partition.
    ///
    /// # Errors
    /// [`DiskError::Layout`] where the layout has no such role.
    pub fn open_slot(&self, role: &PartitionRole, slot: Slot) -> Result<SlotWindow, DiskError> {
        let view = self
            .partition(slot, role)
            .ok_or_else(|| DiskError::Layout(format!("has no partition for the role {role}")))?;
        SlotWindow::read_only(self.medium.clone(), view.offset, view.len)
            .map_err(DiskError::io("open a partition for reading"))
    }

    /// Makes both copies of the table valid and equal. True if something was written.
    ///
    /// # Errors
    /// [`DiskError`] where the table is unusable or the medium fails.
    pub fn repair(&mut self) -> Result<bool, DiskError> {
        self.reload()?;
        self.repair_only()
    }

    fn repair_only(&mut self) -> Result<bool, DiskError> {
        let protected = self.protect()?;
        let commit = self.table.repair().map_err(DiskError::Table)?;
        if !commit.steps.is_empty() {
            tracing::warn!(health = %self.health(), "repairing the partition table");
        }
        Ok(self.apply(commit)? || protected)
    }

    /// The first sector as it should be, where it lacks the entry that protects the table.
    fn missing_protection(&self) -> Result<Option<Vec<u8>>, DiskError> {
        let sector = u64::from(self.medium.block_size());
        let mut first = AlignedBuf::zeroed(self.medium.block_size() as usize);
        self.medium.read_back(0, &mut first).map_err(DiskError::io("read the first sector"))?;
        Ok(protected_first_sector(&first, self.medium.len() / sector))
    }

    /// Whether the disk has the MBR entry without which Linux does not look for a GPT.
    ///
    /// # Errors
    /// [`DiskError`] where the first sector cannot be read.
    pub fn is_protected(&self) -> Result<bool, DiskError> {
        Ok(self.missing_protection()?.is_none())
    }

    /// Puts the MBR entry in that protects the table, where it is missing: whatever took the first sector took the
    /// primary copy as well, and a table that only we find boots nothing. One sector, flushed before the table.
    fn protect(&self) -> Result<bool, DiskError> {
        let Some(first) = self.missing_protection()? else { return Ok(false) };
        tracing::warn!("the disk has no protective MBR: writing one");
        self.medium
            .write_at(0, &first)
            .and_then(|()| self.medium.flush())
            .map_err(DiskError::io("write the protective MBR"))?;
        Ok(true)
    }

    /// Step 7: makes sure that boot selection cannot choose the slot that is about to be written.
    ///
    /// # Errors
    /// [`DiskError::NoFallback`] where the running slot is not a confirmed one, else where the change failed.
    // Evidence is used up: a slot is invalidated once per look at the mounts.
    #[expect(clippy::needless_pass_by_value, reason = "the evidence must not be used twice")]
    pub fn invalidate(&mut self, target: TargetSlot) -> Result<InvalidatedSlot, DiskError> {
        let (slot, running) = (target.slot(), target.running());
        if !Arc::ptr_eq(target.medium(), &self.medium) {
            return Err(DiskError::ForeignEvidence(slot));
        }
        self.reload()?;
        let fallback = self.attributes(running);
        if !(fallback.bootable() && fallback.successful()) {
            return Err(DiskError::NoFallback { running, attributes: fallback });
        }
        self.change(&[(slot, self.attributes(slot).invalidated())])?;
        let access = WriteAccess::new();
        let windows = self
            .slot_partitions(slot)
            .map(|(role, view)| {
                SlotWindow::writable(self.medium.clone(), view.offset, view.len, &access)
                    .map(|w| (role.clone(), w))
            })
            .collect::<Result<_, _>>()
            .map_err(DiskError::io("open a partition for writing"))?;
        Ok(InvalidatedSlot::new(self.medium.clone(), slot, running, windows, access))
    }

    /// Step 8, the flip: the next boot starts the staged slot, which holds `release` (by
    /// [`protocol::manifest::release_digest`]), `tries` times at most until it is confirmed.
    ///
    /// # Errors
    /// [`DiskError`] where the evidence is not about this disk or this release, the running slot could not be fallen back to, or the
    /// change failed.
    #[expect(clippy::needless_pass_by_value, reason = "the evidence must not be used twice")]
    pub fn activate(
        &mut self,
        staged: StagedSlot,
        release: Sha256,
        running: Slot,
        tries: u8,
    ) -> Result<(), DiskError> {
        let slot = staged.slot();
        if slot == running {
            return Err(DiskError::Running(slot));
        }
        if !Arc::ptr_eq(staged.medium(), &self.medium) || staged.running() != running {
            return Err(DiskError::ForeignEvidence(slot));
        }
        if staged.release() != release {
            return Err(DiskError::OtherRelease { slot, expected: release, found: staged.release() });
        }
        self.reload()?;
        let fallback = self.attributes(running).fallback();
        if !(fallback.bootable() && fallback.successful()) {
            return Err(DiskError::NoFallback { running, attributes: fallback });
        }
        let activated = self.attributes(slot).activated(tries.max(1));
        self.change(&[(slot, activated), (running, fallback)])
    }

    /// Undoes the flip: the slot cannot be chosen any more, the running one is kept.
    ///
    /// # Errors
    /// [`DiskError`] where the slot is the running one, is the only one that boots, or the change failed.
    pub fn deactivate(&mut self, slot: Slot, running: Slot) -> Result<(), DiskError> {
        if slot == running {
            return Err(DiskError::Running(slot));
        }
        self.condemn(slot)
    }

    /// The rollback: the next boot starts `slot` again, which holds a release that was confirmed here, `tries` times at
    /// most until it is confirmed anew. What runs becomes the fallback, if it was confirmed itself; otherwise `slot`
    /// stays successful, so that some slot can always be booted.
    ///
    /// # Errors
    /// [`DiskError::NotConfirmed`] where the slot does not hold a confirmed release, else where the change failed.
    pub fn revert(&mut self, slot: Slot, running: Slot, tries: u8) -> Result<(), DiskError> {
        if slot == running {
            return Err(DiskError::Running(slot));
        }
        self.reload()?;
        let (target, fallback) = (self.attributes(slot), self.attributes(running).fallback());
        let reverted = target.activated(tries.max(1)).with_successful(!fallback.successful());
        // Done already, and asked for again after a crash.
        let again = target == reverted && self.attributes(running) == fallback;
        let confirmed = target.bootable() && target.successful();
        if !(again || confirmed) {
            return Err(DiskError::NotConfirmed { slot, attributes: target });
        }
        self.change(&[(slot, reverted), (running, fallback)])
    }

    /// Undoes [`Self::revert`] before it was booted: what runs is kept, and `slot` is a confirmed slot again.
    ///
    /// # Errors
    /// [`DiskError::NotConfirmed`] where the slot is not one that was reverted to, else where the change failed.
    pub fn restore(&mut self, slot: Slot, running: Slot) -> Result<(), DiskError> {
        if slot == running {
            return Err(DiskError::Running(slot));
        }
        self.reload()?;
        let target = self.attributes(slot);
        // `successful` is given back on the word of the caller, who recorded the revert; here at least the slot must
        // look like one: it can be booted, and an invalidated or condemned one cannot.
        if !target.bootable() {
            return Err(DiskError::NotConfirmed { slot, attributes: target });
        }
        let restored = target.fallback().confirmed();
        self.change(&[(slot, restored), (running, self.attributes(running).with_priority(2))])
    }

    /// Step 12: the boot of the running slot was good; it is kept until something else is activated.
    ///
    /// # Errors
    /// [`DiskError`] where the change failed.
    pub fn confirm(&mut self, running: Slot) -> Result<(), DiskError> {
        self.reload()?;
        let confirmed = self.attributes(running).confirmed();
        // Priority 0 while it runs: somebody started it by hand. Good is good, and good slots can be booted.
        let confirmed = confirmed.with_priority(confirmed.priority().max(1));
        self.change(&[(running, confirmed)])
    }

    /// Makes a slot whose release failed unbootable: priority, tries and successful are zero.
    ///
    /// # Errors
    /// [`DiskError::LastBootable`] where no other slot could be booted, else where the change failed.
    pub fn condemn(&mut self, slot: Slot) -> Result<(), DiskError> {
        self.reload()?;
        if self.attributes(slot).bootable() && !self.attributes(slot.other()).bootable() {
            return Err(DiskError::LastBootable(slot));
        }
        self.change(&[(slot, self.attributes(slot).invalidated())])
    }

    /// Sets a slot's attributes to anything, as cgpt does: for `image-tools disk set` alone.
    ///
    /// # Errors
    /// [`DiskError`] where the change failed.
    pub fn set_attributes(&mut self, slot: Slot, attributes: Attributes) -> Result<(), DiskError> {
        self.reload()?;
        self.change(&[(slot, attributes)])
    }

    /// Reads the table again from the medium: an earlier change may have failed half-way.
    fn reload(&mut self) -> Result<(), DiskError> {
        self.table = read_table(&*self.medium)?;
        let partitions = find_partitions(&*self.medium, &self.table, &self.layout)?;
        if partitions != self.partitions {
            // Someone repartitioned the disk under us: what was checked about the slots does not hold any more.
            return Err(DiskError::Layout(
                "does not fit any more: the partition table was changed".to_owned(),
            ));
        }
        Ok(())
    }

    fn change(&mut self, changes: &[(Slot, Attributes)]) -> Result<(), DiskError> {
        self.repair_only()?;
        self.commit(changes)
    }

    fn commit(&mut self, changes: &[(Slot, Attributes)]) -> Result<(), DiskError> {
        let changes: Vec<Change> =
            changes.iter().map(|(slot, attributes)| (self.entry_number(*slot), *attributes)).collect();
        let commit = self.table.commit(&changes).map_err(DiskError::Table)?;
        self.apply(commit).map(|_| ())
    }

    fn apply(&mut self, commit: Commit) -> Result<bool, DiskError> {
        if commit.steps.is_empty() {
            return Ok(false);
        }
        let sector = u64::from(self.medium.block_size());
        for step in &commit.steps {
            match step {
                Step::Write { lba, bytes } => self.medium.write_at(lba * sector, bytes),
                Step::Flush => self.medium.flush(),
            }
            .map_err(DiskError::io("write the partition table"))?;
        }
        // Both copies, from the medium: a disk that drops writes is found out now, not at the next boot.
        if read_table(&*self.medium)? != commit.table {
            return Err(DiskError::NotReadBack);
        }
        self.table = commit.table;
        Ok(true)
    }
}

const fn index(slot: Slot) -> usize {
    match slot {
        Slot::A => 0,
        Slot::B => 1,
    }
}

fn read_table(medium: &dyn Medium) -> Result<Table, DiskError> {
    let sector = medium.block_size();
    Table::read(sector, medium.len() / u64::from(sector), |lba, buf| {
        medium.read_back(lba * u64::from(sector), buf).map(|_| ())
    })
    .map_err(DiskError::Table)
}

type Partitions = Vec<(PartitionRole, [PartitionView; 2])>;

fn find_partitions(medium: &dyn Medium, table: &Table, layout: &SlotLayout) -> Result<Partitions, DiskError> {
    let root = PartitionRole::root();
    if !layout.roles.iter().any(|role| role.role == root) {
        return Err(DiskError::Layout("has no root partition, which carries the boot attributes".to_owned()));
    }
    let root_type: Guid = layout
        .root_type
        .parse()
        .map_err(|error| DiskError::Layout(format!("has the root type {:?}: {error}", layout.root_type)))?;
    let mut names: Vec<&str> =
        layout.roles.iter().flat_map(|role| [role.a.as_str(), role.b.as_str()]).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(DiskError::Layout(format!("names the partition {} twice", twice[0])));
    }
    let find = |role: &RoleLayout, slot| {
        let (entry, view) = find_partition(medium, table, role.name(slot))?;
        if role.role == root && entry.type_guid != root_type {
            return Err(DiskError::WrongType {
                name: view.name,
                expected: root_type.to_string(),
                found: entry.type_guid.to_string(),
            });
        }
        Ok(view)
    };
    let both = |role| Ok((RoleLayout::role(role), [find(role, Slot::A)?, find(role, Slot::B)?]));
    layout.roles.iter().map(both).collect()
}

impl RoleLayout {
    fn role(&self) -> PartitionRole {
        self.role.clone()
    }
}

fn find_partition(
    medium: &dyn Medium,
    table: &Table,
    name: &str,
) -> Result<(Entry, PartitionView), DiskError> {
    let mut found = table.entries().filter(|entry| entry.name == name);
    let entry = found.next().ok_or_else(|| DiskError::NoPartition(name.to_owned()))?;
    if found.next().is_some() {
        return Err(DiskError::DuplicatePartition(name.to_owned()));
    }
    let sector = u64::from(medium.block_size());
    // Sector numbers of a believed table lie within its range, but the range may be longer than the disk.
    let end = entry.last_lba.checked_add(1).and_then(|end| end.checked_mul(sector));
    let (Some(end), Some(offset)) =
        (end.filter(|end| *end <= medium.len()), entry.first_lba.checked_mul(sector))
    else {
        return Err(DiskError::OutsideDisk { name: name.to_owned(), len: medium.len() });
    };
    // The page cache writes whole pages: what a neighbour has of one would be written as it was when it was cached.
    let len = end - offset;
    if !(offset | len).is_multiple_of(ALIGN as u64) {
        return Err(DiskError::Misaligned { name: name.to_owned(), offset, len });
    }
    let view = PartitionView {
        entry: entry.number,
        offset,
        len,
        unique_guid: entry.unique_guid,
        name: entry.name.clone(),
    };
    Ok((entry, view))
}
