//! Steps 8 and 11: both copies of the table together: which one is believed, what repairs the other, and the order
//! of writes that changes both.

use super::header::{Damage, ENTRIES_BYTES_MAX, Header, has_signature, hints};
use super::{Guid, le, put, u64_at};
use crate::slot::Attributes;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// The sector of the primary header, on every disk.
const PRIMARY_LBA: u64 = 1;
const ATTRIBUTES: usize = 48;

/// One step of a change on the disk. The steps are done in order, and stopped at the first error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write whole sectors.
    Write {
        /// The first sector.
        lba: u64,
        /// Their bytes.
        bytes: Vec<u8>,
    },
    /// Wait until everything written is on the medium.
    Flush,
}

/// A change of the attributes of one entry: the entry's number, from 1, and its new attributes.
pub type Change = (u32, Attributes);

/// How to change the table, and what it is afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// What to do, in order. Empty where nothing changes.
    pub steps: Vec<Step>,
    /// The table as it must read back afterwards.
    pub table: Table,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub number: u32,
    /// What it holds, by GPT type.
    pub type_guid: Guid,
    /// Its own GUID (`PARTUUID`).
    pub unique_guid: Guid,
    /// Its first sector.
    pub first_lba: u64,
    /// Its last sector.
    pub last_lba: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// Its name.
    pub name: String,
}

impl Entry {
    fn parse(number: u32, bytes: &[u8]) -> Option<Self> {
        let type_guid = Guid::from_bytes(le(bytes, 0));
        if type_guid == Guid::ZERO {
            return None;
        }
        let name = bytes.get(56..128).unwrap_or_default();
        let units =
            name.chunks_exact(2).map(|unit| u16::from_le_bytes(le(unit, 0))).take_while(|unit| *unit != 0);
        Some(Self {
            number,
            type_guid,
            unique_guid: Guid::from_bytes(le(bytes, 16)),
            first_lba: u64_at(bytes, 32),
            last_lba: u64_at(bytes, 40),
            attributes: Attributes::from_bits(u64_at(bytes, ATTRIBUTES)),
            name: char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect(),
        })
    }
}

/// The state of the two copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Both are valid and say the same.
    Intact,
    /// The primary copy cannot be used; the backup is believed.
    PrimaryDamaged(Damage),
    /// The backup copy cannot be used; the primary is believed.
    BackupDamaged(Damage),
    /// Both are valid and differ: a change was interrupted half-way. The primary is believed.
    Differ,
}

/// Why a table cannot be read or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Sectors of a size other than 512 or 4096 bytes, or too few of them.
    Disk,
    /// The first sector holds an MBR without the entry that protects a GPT: someone partitioned the disk anew, and
    /// what looks like a GPT is a leftover.
    ForeignMbr,
    /// Neither copy can be used.
    NoValidCopy {
        /// What is wrong with the primary.
        primary: Damage,
        /// What is wrong with the backup.
        backup: Damage,
    },
    /// The damaged copy cannot be rewritten: its place is unknown or outside of the disk.
    CannotRepair(Damage),
    /// A change was asked for while the copies are not intact: repair comes first.
    NotIntact,
    /// A change names an entry that holds no partition.
    NoSuchEntry(u32),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("too few sectors for a GPT, or sectors of an unknown size"),
            Self::ForeignMbr => f.write_str(
                "the first sector holds an MBR partition table that does not protect a GPT: the GPT found is a leftover",
            ),
            Self::NoValidCopy { primary, backup } => {
                write!(f, "no valid GPT: of the primary copy, {primary}; of the backup copy, {backup}")
            }
            Self::CannotRepair(damage) => write!(f, "a copy of the GPT is damaged and cannot be rewritten: {damage}"),
            Self::NotIntact => f.write_str("the copies of the GPT differ: they must be repaired before a change"),
            Self::NoSuchEntry(number) => write!(f, "the GPT has no partition {number}"),
        }
    }
}

impl core::error::Error for TableError {}

/// One valid copy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    header: Header,
    /// The entries, filled up to whole sectors with what stands behind them.
    entries: Vec<u8>,
}

impl Copy {
    fn entry_bytes(&self) -> &[u8] {
        let len = usize::try_from(self.header.entries_bytes()).unwrap_or(usize::MAX);
        &self.entries[..len.min(self.entries.len())]
    }

    fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        // At least 128: the header was checked.
        let size = usize::try_from(self.header.entry_size()).unwrap_or(usize::MAX);
        (1..)
            .zip(self.entry_bytes().chunks_exact(size))
            .filter_map(|(number, bytes)| Entry::parse(number, bytes))
    }

    fn check_entries(&self) -> Result<(), Damage> {
        if crc32fast::hash(self.entry_bytes()) != self.header.entries_crc() {
            return Err(Damage::EntriesChecksum);
        }
        let (first_usable, last_usable) = self.header.usable();
        let mut used: Vec<(u64, u64, u32)> =
            self.entries().map(|entry| (entry.first_lba, entry.last_lba, entry.number)).collect();
        used.sort_unstable();
        let mut before = None;
        for (first, last, number) in used {
            let problem = if first > last {
                "ends before it starts"
            } else if first < first_usable || last > last_usable {
                "lies outside of the range for partitions"
            } else if before.is_some_and(|end| first <= end) {
                "overlaps another one"
            } else {
                before = Some(last);
                continue;
            };
            return Err(Damage::Entry { number, problem });
        }
        Ok(())
    }

    /// All of this copy, entries first. Only together are they valid.
    fn writes(&self) -> [Step; 2] {
        [
            Step::Write { lba: self.header.entries_lba(), bytes: self.entries.clone() },
            Step::Write { lba: self.header.my_lba(), bytes: self.header.sector().to_vec() },
        ]
    }

    /// The sectors in which this copy differs from `old`, entries first.
    fn writes_over(&self, old: &Self) -> [Step; 2] {
        let sector = self.header.sector().len();
        let differs = |index: &usize| {
            let range = index * sector..(index + 1) * sector;
            self.entries.get(range.clone()) != old.entries.get(range)
        };
        let count = self.entries.len() / sector;
        let first = (0..count).find(differs).unwrap_or(0);
        let last = (0..count).rfind(differs).unwrap_or(0);
        [
            Step::Write {
                lba: self.header.entries_lba() + first as u64,
                bytes: self.entries[first * sector..(last + 1) * sector].to_vec(),
            },
            Step::Write { lba: self.header.my_lba(), bytes: self.header.sector().to_vec() },
        ]
    }

    fn with(&self, changes: &[Change]) -> Self {
        let mut entries = self.entries.clone();
        let size = usize::try_from(self.header.entry_size()).unwrap_or(usize::MAX);
        for (number, attributes) in changes {
            let start = usize::try_from(*number).unwrap_or(usize::MAX).saturating_sub(1).saturating_mul(size);
            put(&mut entries, start.saturating_add(ATTRIBUTES), &attributes.bits().to_le_bytes());
        }
        let changed = Self { header: self.header.clone(), entries };
        let crc = crc32fast::hash(changed.entry_bytes());
        Self { header: self.header.with_entries_crc(crc), entries: changed.entries }
    }
}

/// Both copies of a disk's GPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    sectors: u64,
    /// The copy that is believed.
    current: Copy,
    other: Other,
}

/// The copy that is not believed, or only confirms the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Other {
    Same(Copy),
    Differs(Copy),
    Damaged {
        damage: Damage,
        /// Where its broken header says that its entries are.
        entries_hint: Option<u64>,
        /// Where its broken header says that the believed copy is.
        alternate_hint: Option<u64>,
    },
}

impl Other {
    /// A damaged copy, with what is left of its header: the places of the other header and of its entries.
    fn damaged(damage: Damage, hints: Option<(u64, u64)>) -> Self {
        let (alternate_hint, entries_hint) = hints.unzip();
        Self::Damaged { damage, entries_hint, alternate_hint }
    }
}

impl Table {
    /// Reads both copies from a disk of `sectors` sectors of `sector_size` bytes. `read` fills a buffer of whole
    /// sectors from the given sector on.
    ///
    /// The backup copy is looked for where the primary header says, even a broken one, and then in the last sector.
    ///
    /// # Errors
    /// [`TableError`] where neither copy can be used, or the disk does not hold a GPT.
    pub fn read<E: fmt::Display>(
        sector_size: u32,
        sectors: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Self, TableError> {
        let (512 | 4096, 6..) = (sector_size, sectors) else { return Err(TableError::Disk) };
        let mut disk = Reader {
            sector: usize::try_from(sector_size).unwrap_or(4096),
            sectors,
            read: |lba, buf: &mut [u8]| read(lba, buf).map_err(|error| Damage::Unreadable(error.to_string())),
        };
        if disk.sectors_at(0, 1).is_ok_and(|mbr| is_foreign_mbr(&mbr)) {
            return Err(TableError::ForeignMbr);
        }
        let primary_sector = disk.sectors_at(PRIMARY_LBA, 1);
        let primary = disk.copy_at(PRIMARY_LBA, &primary_sector);
        let hint = primary_sector.ok().and_then(|sector| hints(&sector));
        let places: Vec<u64> = match &primary {
            Ok(copy) => vec![copy.header.alternate_lba()],
            // A header with a good checksum but bad entries is a hint as well.
            Err(_) => hint.map(|(alternate, _)| alternate).into_iter().chain([sectors - 1]).collect(),
        };
        let mut backup = Err(Damage::NoSignature);
        let mut backup_hint = None;
        for lba in places {
            let sector = disk.sectors_at(lba, 1);
            backup = disk.copy_at(lba, &sector).and_then(|copy| match copy.header.alternate_lba() {
                PRIMARY_LBA => Ok(copy),
                _ => Err(Damage::Geometry("it is not the backup of a header in the second sector")),
            });
            backup_hint = sector.ok().and_then(|sector| hints(&sector));
            if backup.is_ok() {
                break;
            }
        }
        let (current, other) = match (primary, backup) {
            (Ok(primary), Ok(backup)) => {
                let same = primary.header.agrees_with(&backup.header)
                    && primary.entry_bytes() == backup.entry_bytes();
                (primary, if same { Other::Same(backup) } else { Other::Differs(backup) })
            }
            (Ok(primary), Err(damage)) => (primary, Other::damaged(damage, backup_hint)),
            (Err(damage), Ok(backup)) => (backup, Other::damaged(damage, hint)),
            (Err(primary), Err(backup)) => return Err(TableError::NoValidCopy { primary, backup }),
        };
        Ok(Self { sectors, current, other })
    }

    /// The state of the two copies.
    #[must_use]
    pub fn health(&self) -> Health {
        match &self.other {
            Other::Same(_) => Health::Intact,
            Other::Differs(_) => Health::Differ,
            Other::Damaged { damage, .. } if self.current_is_primary() => {
                Health::BackupDamaged(damage.clone())
            }
            Other::Damaged { damage, .. } => Health::PrimaryDamaged(damage.clone()),
        }
    }

    fn current_is_primary(&self) -> bool {
        self.current.header.my_lba() == PRIMARY_LBA
    }

    /// The header of the copy that is believed.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.current.header
    }

    /// Where the backup header belongs.
    #[must_use]
    pub fn backup_lba(&self) -> u64 {
        if self.current_is_primary() {
            self.current.header.alternate_lba()
        } else {
            self.current.header.my_lba()
        }
    }

    /// Where the backup header belongs, if that is not the last sector: the disk grew, or its size is misreported.
    /// It is used where it is, and never moved.
    #[must_use]
    pub fn backup_misplaced(&self) -> Option<u64> {
        Some(self.backup_lba()).filter(|lba| *lba != self.sectors - 1)
    }

    /// Where the damaged primary header says that the backup is, if the backup was found elsewhere, in the last sector.
    /// Then either that header is damaged there, or the size of the disk is misreported and the backup found is one that
    /// an earlier, smaller layout left behind. Who cannot tell must not repair the primary from it.
    #[must_use]
    pub fn disputed_backup(&self) -> Option<u64> {
        match &self.other {
            Other::Damaged { alternate_hint, .. } if !self.current_is_primary() => {
                alternate_hint.filter(|lba| *lba != self.backup_lba())
            }
            _ => None,
        }
    }

    /// The partitions, in the order of their numbers.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.current.entries()
    }

    /// The partition with this number, from 1.
    #[must_use]
    pub fn entry(&self, number: u32) -> Option<Entry> {
        self.entries().find(|entry| entry.number == number)
    }

    /// What makes both copies valid and equal to the one that is believed. No steps where they are already.
    ///
    /// Only the copy that is not believed is written, so a valid copy stands at every point.
    ///
    /// # Errors
    /// [`TableError::CannotRepair`] where the other copy's place is outside of the disk or not free.
    pub fn repair(&self) -> Result<Commit, TableError> {
        let entries_hint = match &self.other {
            Other::Same(_) => return Ok(Commit { steps: Vec::new(), table: self.clone() }),
            Other::Differs(copy) => Some(copy.header.entries_lba()),
            Other::Damaged { entries_hint, .. } => *entries_hint,
        };
        let source = &self.current;
        let place = source.header.alternate_lba();
        if place >= self.sectors {
            return Err(TableError::CannotRepair(Damage::OutsideDisk { lba: place }));
        }
        let count = source.header.entries_sectors();
        let usual = if place == PRIMARY_LBA { PRIMARY_LBA + 1 } else { place.saturating_sub(count) };
        let header = source.header.mirrored(|header| {
            entries_hint.filter(|lba| header.is_plausible_entries_lba(*lba)).unwrap_or(usual)
        });
        if !header.is_plausible_entries_lba(header.entries_lba()) {
            return Err(TableError::CannotRepair(Damage::Geometry("there is no room for its entries")));
        }
        let other = Copy { header, entries: source.entries.clone() };
        let [entries, header] = other.writes();
        let table = Self { sectors: self.sectors, current: self.current.clone(), other: Other::Same(other) };
        // As `read` will see it: the primary is the one that is believed where both are valid.
        Ok(Commit { steps: vec![entries, header, Step::Flush], table: table.primary_first() })
    }

    fn primary_first(self) -> Self {
        match self.other {
            Other::Same(primary) if self.current.header.my_lba() != PRIMARY_LBA => {
                Self { sectors: self.sectors, current: primary, other: Other::Same(self.current) }
            }
            other => Self { other, ..self },
        }
    }

    /// What changes attributes in both copies: the backup's entries and header, flush, the primary's entries and
    /// header, flush. While the backup is being written the primary is valid and old; once the primary is touched the
    /// backup is valid and new. Only sectors that change are written.
    ///
    /// # Errors
    /// [`TableError::NotIntact`] where a repair must come first, [`TableError::NoSuchEntry`].
    pub fn commit(&self, changes: &[Change]) -> Result<Commit, TableError> {
        let Other::Same(backup) = &self.other else { return Err(TableError::NotIntact) };
        let mut really = false;
        for (number, attributes) in changes {
            let entry = self.entry(*number).ok_or(TableError::NoSuchEntry(*number))?;
            really |= entry.attributes != *attributes;
        }
        if !really {
            return Ok(Commit { steps: Vec::new(), table: self.clone() });
        }
        let primary = &self.current;
        let new_primary = primary.with(changes);
        let new_backup = backup.with(changes);
        let [backup_entries, backup_header] = new_backup.writes_over(backup);
        let [primary_entries, primary_header] = new_primary.writes_over(primary);
        let steps =
            vec![backup_entries, backup_header, Step::Flush, primary_entries, primary_header, Step::Flush];
        let table = Self { sectors: self.sectors, current: new_primary, other: Other::Same(new_backup) };
        Ok(Commit { steps, table })
    }
}

struct Reader<F> {
    sector: usize,
    sectors: u64,
    read: F,
}

impl<F: FnMut(u64, &mut [u8]) -> Result<(), Damage>> Reader<F> {
    /// `count` sectors from `lba` on; the caller has bounded `count`.
    fn sectors_at(&mut self, lba: u64, count: u64) -> Result<Vec<u8>, Damage> {
        let inside = lba.checked_add(count).is_some_and(|end| end <= self.sectors);
        let count = usize::try_from(count).ok().filter(|_| inside).ok_or(Damage::OutsideDisk { lba })?;
        let mut bytes = vec![0; count * self.sector];
        (self.read)(lba, &mut bytes)?;
        Ok(bytes)
    }

    fn copy_at(&mut self, lba: u64, sector: &Result<Vec<u8>, Damage>) -> Result<Copy, Damage> {
        let sector = sector.as_ref().map_err(Clone::clone)?;
        let header = Header::parse(sector, lba, self.sectors)?;
        debug_assert!(header.entries_bytes() <= ENTRIES_BYTES_MAX, "the header was checked");
        let entries = self.sectors_at(header.entries_lba(), header.entries_sectors())?;
        let copy = Copy { header, entries };
        copy.check_entries()?;
        Ok(copy)
    }
}

/// Whether a first sector is a used MBR that does not protect a GPT. An empty one is not: some tools write none.
fn is_foreign_mbr(sector: &[u8]) -> bool {
    const PROTECTIVE: u8 = 0xee;
    let types = || (0..4).filter_map(|i| sector.get(446 + i * 16 + 4).copied());
    sector.get(510..512) == Some(&[0x55, 0xaa]) && types().any(|t| t != 0) && types().all(|t| t != PROTECTIVE)
}

/// The first sector with the entry that protects a GPT put in, where it has none: without it Linux and most tools do
/// not look for a GPT at all (UEFI specification 2.10, section 5.2.3). `None` where nothing is missing, and where an
/// MBR partition table stands, which is not ours to change. `sector` is the first sector of a disk of `sectors`
/// sectors; boot code in it is kept.
#[must_use]
pub fn protected_first_sector(sector: &[u8], sectors: u64) -> Option<Vec<u8>> {
    let (entries, signature) = (sector.get(446..510)?, sector.get(510..512)?);
    // Without its signature (never written, or torn while it was) it is nobody's table.
    if signature == [0x55, 0xaa] && entries.iter().any(|byte| *byte != 0) {
        return None;
    }
    let mut protected = sector.to_vec();
    super::put(&mut protected, 446, &[0; 64]);
    let len = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
    super::put(&mut protected, 446, &[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    super::put(&mut protected, 458, &len.to_le_bytes());
    super::put(&mut protected, 510, &[0x55, 0xaa]);
    Some(protected)
}

/// The sector size, 512 or 4096, at which a disk image of `len` bytes holds a GPT; `None` where it holds none. `read`
/// fills a buffer from the given offset in bytes.
///
/// # Errors
/// That of `read`.
pub fn detect_sector_size<E>(
    len: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
) -> Result<Option<u32>, E> {
    // A sound header decides, the primary one first; a torn one is better than nothing.
    let mut torn = None;
    for primary in [true, false] {
        for size in [512_u32, 4096] {
            let sectors = len / u64::from(size);
            if sectors < 6 {
                continue;
            }
            let lba = if primary { PRIMARY_LBA } else { sectors - 1 };
            let mut sector = vec![0; usize::try_from(size).unwrap_or(0)];
            read(lba * u64::from(size), &mut sector)?;
            if Header::parse(&sector, lba, sectors).is_ok() {
                return Ok(Some(size));
            }
            if has_signature(&sector) && torn.is_none() {
                torn = Some(size);
            }
        }
    }
    Ok(torn)
}
