//! Steps 8 and 11: one GPT header, and what is wrong with a copy of the table.

use super::{Guid, le, put, u32_at, u64_at};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

const SIGNATURE: &[u8] = b"EFI PART";
/// The header fields that UEFI defines; a header may say that it is longer, up to its sector.
const HEADER_SIZE_MIN: u32 = 92;
/// The longest array of entries that is read, in bytes: 64 times what every disk has.
pub const ENTRIES_BYTES_MAX: u64 = 1 << 20;

const HEADER_CRC: usize = 16;
const MY_LBA: usize = 24;
const ALTERNATE_LBA: usize = 32;
const ENTRIES_LBA: usize = 72;
const ENTRIES_CRC: usize = 88;

/// Why one copy of the table cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The disk did not give its sectors.
    Unreadable(String),
    /// It should stand where the disk has no sectors: the disk was cut, or its size is misreported.
    OutsideDisk {
        /// Where it should stand.
        lba: u64,
    },
    /// There is no header.
    NoSignature,
    /// The header is of a version that this code does not know.
    Revision(u32),
    /// The header says that it is shorter than its fields or longer than its sector.
    HeaderSize(u32),
    /// The header's checksum does not match: a torn or interrupted write.
    HeaderChecksum,
    /// The header belongs elsewhere.
    WrongPlace {
        /// Where it stands.
        stands: u64,
        /// Where it says that it stands.
        says: u64,
    },
    /// Entries of a size that is not a power of two from 128 to 4096 bytes.
    EntrySize(u32),
    /// No entries, or more than fit in [`ENTRIES_BYTES_MAX`].
    EntryCount(u32),
    /// Its parts overlap, or lie outside of the disk.
    Geometry(&'static str),
    /// The entries' checksum does not match: a torn or interrupted write.
    EntriesChecksum,
    /// A partition that cannot be.
    Entry {
        /// The entry's number, from 1.
        number: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "it cannot be read ({error})"),
            Self::OutsideDisk { lba } => {
                write!(f, "it belongs at LBA {lba}, behind the end of the disk as the system reports it")
            }
            Self::NoSignature => f.write_str("there is no GPT header"),
            Self::Revision(found) => write!(f, "its revision is {found:#x}: expected 0x10000"),
            Self::HeaderSize(found) => write!(f, "its header size is {found} bytes"),
            Self::HeaderChecksum => f.write_str("the checksum of its header does not match"),
            Self::WrongPlace { stands, says } => {
                write!(f, "the header at LBA {stands} says that it belongs at LBA {says}")
            }
            Self::EntrySize(found) => write!(f, "its entries are {found} bytes long"),
            Self::EntryCount(found) => write!(f, "it has {found} entries"),
            Self::Geometry(problem) => f.write_str(problem),
            Self::EntriesChecksum => f.write_str("the checksum of its entries does not match"),
            Self::Entry { number, problem } => write!(f, "partition {number} {problem}"),
        }
    }
}

/// A header whose checksum and own fields were checked, with the whole of its sector.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    sector: Vec<u8>,
}

impl Header {
    /// Takes apart the sector that stands at `lba` of a disk of `sectors` sectors.
    ///
    /// # Errors
    /// The [`Damage`] found. The entries are not looked at.
    pub fn parse(sector: &[u8], lba: u64, sectors: u64) -> Result<Self, Damage> {
        if !has_signature(sector) {
            return Err(Damage::NoSignature);
        }
        let revision = u32_at(sector, 8);
        if revision >> 16 != 1 {
            return Err(Damage::Revision(revision));
        }
        let size = u32_at(sector, 12);
        let covered = usize::try_from(size).ok().filter(|_| size >= HEADER_SIZE_MIN);
        let Some(covered) = covered.and_then(|size| sector.get(..size)) else {
            return Err(Damage::HeaderSize(size));
        };
        if checksum(covered) != u32_at(sector, HEADER_CRC) {
            return Err(Damage::HeaderChecksum);
        }
        let header = Self { sector: sector.to_vec() };
        header.check(lba, sectors)?;
        Ok(header)
    }

    fn check(&self, lba: u64, sectors: u64) -> Result<(), Damage> {
        if self.my_lba() != lba {
            return Err(Damage::WrongPlace { stands: lba, says: self.my_lba() });
        }
        let size = self.entry_size();
        if !(128..=4096).contains(&size) || !size.is_power_of_two() {
            return Err(Damage::EntrySize(size));
        }
        if self.entry_count() == 0 || self.entries_bytes() > ENTRIES_BYTES_MAX {
            return Err(Damage::EntryCount(self.entry_count()));
        }
        let (first, last) = self.usable();
        if first < 2 || first > last {
            return Err(Damage::Geometry("the range of its partitions is empty or covers its header"));
        }
        let alternate = self.alternate_lba();
        let outside = |place: u64| place != 0 && !(first..=last).contains(&place);
        if alternate == lba || !outside(lba) || !outside(alternate) || lba >= sectors {
            return Err(Damage::Geometry("one of its headers lies among the partitions or is both headers"));
        }
        if self.is_plausible_entries_lba(self.entries_lba()) {
            Ok(())
        } else {
            Err(Damage::Geometry("its entries overlap the partitions or a header"))
        }
    }

    /// Whether the entries may stand at `lba`: the primary copy's between its header and the partitions, the backup
    /// copy's between the partitions and its header. Everything that lays out disks does so, and it keeps the two
    /// copies apart whatever else they claim.
    pub(super) fn is_plausible_entries_lba(&self, lba: u64) -> bool {
        let (first, last) = self.usable();
        let Some(end) = lba.checked_add(self.entries_sectors()) else { return false };
        if self.my_lba() < first {
            lba > self.my_lba() && end <= first
        } else {
            lba > last && end <= self.my_lba()
        }
    }

    /// Where this copy's header stands.
    #[must_use]
    pub fn my_lba(&self) -> u64 {
        u64_at(&self.sector, MY_LBA)
    }

    /// Where the other copy's header stands.
    #[must_use]
    pub fn alternate_lba(&self) -> u64 {
        u64_at(&self.sector, ALTERNATE_LBA)
    }

    /// The first and last sector that partitions may use.
    #[must_use]
    pub fn usable(&self) -> (u64, u64) {
        (u64_at(&self.sector, 40), u64_at(&self.sector, 48))
    }

    /// The disk's own GUID.
    #[must_use]
    pub fn disk_guid(&self) -> Guid {
        Guid::from_bytes(le(&self.sector, 56))
    }

    /// Where this copy's entries start.
    #[must_use]
    pub fn entries_lba(&self) -> u64 {
        u64_at(&self.sector, ENTRIES_LBA)
    }

    /// How many entries there are, used or not.
    #[must_use]
    pub fn entry_count(&self) -> u32 {
        u32_at(&self.sector, 80)
    }

    /// Length of one entry in bytes.
    #[must_use]
    pub fn entry_size(&self) -> u32 {
        u32_at(&self.sector, 84)
    }

    /// CRC32 of the entries.
    #[must_use]
    pub fn entries_crc(&self) -> u32 {
        u32_at(&self.sector, ENTRIES_CRC)
    }

    /// Length of all entries in bytes.
    pub(super) fn entries_bytes(&self) -> u64 {
        u64::from(self.entry_count()) * u64::from(self.entry_size())
    }

    /// How many sectors the entries take.
    pub(super) fn entries_sectors(&self) -> u64 {
        self.entries_bytes().div_ceil(self.sector.len() as u64)
    }

    /// The whole sector.
    #[must_use]
    pub fn sector(&self) -> &[u8] {
        &self.sector
    }

    /// The same header over other entries.
    pub(super) fn with_entries_crc(&self, crc: u32) -> Self {
        let mut header = self.clone();
        put(&mut header.sector, ENTRIES_CRC, &crc.to_le_bytes());
        header.seal()
    }

    /// This header as the other copy's, its entries at `entries_lba`.
    pub(super) fn mirrored(&self, entries_lba: impl FnOnce(&Self) -> u64) -> Self {
        let mut header = self.clone();
        put(&mut header.sector, MY_LBA, &self.alternate_lba().to_le_bytes());
        put(&mut header.sector, ALTERNATE_LBA, &self.my_lba().to_le_bytes());
        let lba = entries_lba(&header);
        put(&mut header.sector, ENTRIES_LBA, &lba.to_le_bytes());
        header.seal()
    }

    fn seal(mut self) -> Self {
        let size = usize::try_from(u32_at(&self.sector, 12)).unwrap_or(usize::MAX).min(self.sector.len());
        let crc = checksum(&self.sector[..size]);
        put(&mut self.sector, HEADER_CRC, &crc.to_le_bytes());
        self
    }

    /// Whether two headers, of whichever copy, describe the same table.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        self.my_lba() == other.alternate_lba()
            && self.alternate_lba() == other.my_lba()
            && self.usable() == other.usable()
            && self.disk_guid() == other.disk_guid()
            && self.entry_count() == other.entry_count()
            && self.entry_size() == other.entry_size()
            && self.entries_crc() == other.entries_crc()
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("my_lba", &self.my_lba())
            .field("alternate_lba", &self.alternate_lba())
            .field("usable", &self.usable())
            .field("entries_lba", &self.entries_lba())
            .field("entry_count", &self.entry_count())
            .field("entry_size", &self.entry_size())
            .field("disk_guid", &self.disk_guid())
            .finish_non_exhaustive()
    }
}

/// CRC32 of a header, its own checksum counted as zero.
fn checksum(header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..HEADER_CRC]);
    crc.update(&[0; 4]);
    crc.update(&header[HEADER_CRC + 4..]);
    crc.finalize()
}

pub(super) fn has_signature(sector: &[u8]) -> bool {
    sector.starts_with(SIGNATURE)
}

/// What a header whose checksum fails says about the place of the other header and of its entries. A torn write
/// leaves these mostly intact, but they are hints only: what stands there must prove itself.
pub(super) fn hints(sector: &[u8]) -> Option<(u64, u64)> {
    has_signature(sector).then(|| (u64_at(sector, ALTERNATE_LBA), u64_at(sector, ENTRIES_LBA)))
}
