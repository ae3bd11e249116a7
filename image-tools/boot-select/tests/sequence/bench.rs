//! A disk in memory that records and fails as asked, and a loader and a console that remember.

use boot_select::{Console, Disk, Facts, Loader, SlotPartitions, boot};
use disk::testing::Operation;
use gpt::disk::LogicalBlockSize;
use gpt::partition_types::{EFI, LINUX_FS, OperatingSystem, Type};
use protocol::gpt::{Step, Table};
use protocol::slot::{Attributes, Slot};
use std::convert::Infallible;
use std::io::Cursor;

/// Sectors of the disks here.
pub(crate) const SECTORS: u64 = 256;
const NAMES: [&str; 6] = ["ESP", "BOOT-A", "ROOT-A", "BOOT-B", "ROOT-B", "STATE"];

pub(crate) fn attributes(priority: u8, tries: u8, successful: bool) -> Attributes {
    // With a bit that is not ours, which must survive.
    Attributes::from_bits(1 << 60).with_priority(priority).with_tries_left(tries).with_successful(successful)
}

pub(crate) fn confirmed(priority: u8) -> Attributes {
    attributes(priority, 0, true)
}

/// What may have happened to the table before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    None,
    PrimaryWiped,
    BackupWiped,
    PrimaryHeaderTorn,
    BackupEntriesTorn,
    /// A commit of the same attributes was cut between its two halves: both copies are valid and differ.
    Differ,
}

impl Damage {
    pub(crate) const ALL: [Self; 6] = [
        Self::None,
        Self::PrimaryWiped,
        Self::BackupWiped,
        Self::PrimaryHeaderTorn,
        Self::BackupEntriesTorn,
        Self::Differ,
    ];
}

pub(crate) struct TestDisk {
    pub(crate) image: Vec<u8>,
    pub(crate) sector_size: u32,
    /// What the firmware says, where it lies.
    pub(crate) reported: Option<u64>,
    pub(crate) log: Vec<Operation>,
    /// Writes and flushes until one fails, and then all do.
    pub(crate) fail_after: Option<usize>,
    /// Writes are answered well and dropped.
    pub(crate) drops_writes: bool,
}

impl TestDisk {
    pub(crate) fn real_sectors(&self) -> u64 {
        self.image.len() as u64 / u64::from(self.sector_size)
    }

    pub(crate) fn table(&self) -> Table {
        Table::read(self.sector_size, self.real_sectors(), |lba, bytes| {
            bytes.copy_from_slice(&self.image[self.range(lba, bytes.len()).unwrap()]);
            Ok::<_, Infallible>(())
        })
        .unwrap()
    }

    /// Changes a slot's attributes as a whole commit would, past the recording.
    pub(crate) fn change(&mut self, slot: Slot, attributes: Attributes) {
        let table = self.table();
        let number = table.entries().find(|entry| entry.name == format!("ROOT-{slot}")).unwrap().number;
        let commit = table.commit(&[(number, attributes)]).unwrap();
        self.apply(&commit.steps);
    }

    fn apply(&mut self, steps: &[Step]) {
        for step in steps {
            if let Step::Write { lba, bytes } = step {
                let range = self.range(*lba, bytes.len()).unwrap();
                self.image[range].copy_from_slice(bytes);
            }
        }
    }

    fn range(&self, lba: u64, len: usize) -> Result<std::ops::Range<usize>, String> {
        assert!(len.is_multiple_of(self.sector_size as usize), "whole sectors");
        let start = usize::try_from(lba).unwrap().saturating_mul(self.sector_size as usize);
        match start.checked_add(len) {
            Some(end) if end <= self.image.len() => Ok(start..end),
            _ => Err("DEVICE_ERROR".to_owned()),
        }
    }

    fn works(&mut self) -> Result<(), String> {
        match &mut self.fail_after {
            Some(0) => Err("DEVICE_ERROR".to_owned()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Disk for TestDisk {
    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn sectors(&self) -> u64 {
        self.reported.unwrap_or_else(|| self.real_sectors())
    }

    fn read(&mut self, lba: u64, bytes: &mut [u8]) -> Result<(), String> {
        assert!(lba < self.sectors(), "the firmware refuses that, and some hang");
        let range = self.range(lba, bytes.len())?;
        bytes.copy_from_slice(&self.image[range]);
        Ok(())
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), String> {
        assert!(lba > 0 && lba < self.sectors(), "the MBR and what is behind the end are not ours");
        self.works()?;
        let range = self.range(lba, bytes.len())?;
        self.log.push(Operation::Write { offset: range.start as u64, bytes: bytes.to_vec() });
        if !self.drops_writes {
            self.image[range].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.works()?;
        self.log.push(Operation::Flush);
        Ok(())
    }
}

/// A machine: its disk, and what is seen of it.
pub(crate) struct Bench {
    pub(crate) disk: TestDisk,
    /// Slots that do not load.
    pub(crate) broken: Vec<Slot>,
    /// What a slot that does not load does to the disk.
    pub(crate) while_loading: Option<fn(&mut TestDisk)>,
    /// Slots that were to be started, in order.
    pub(crate) tried: Vec<Slot>,
    /// Whether the slot that was started last was found by the backup table alone.
    pub(crate) by_backup: bool,
    pub(crate) said: Vec<String>,
    pub(crate) published: Option<String>,
}

impl Bench {
    pub(crate) fn new(sector_size: u32, a: Attributes, b: Attributes) -> Self {
        Self::on(TestDisk {
            image: image(sector_size, SECTORS, a, b),
            sector_size,
            reported: None,
            log: Vec::new(),
            fail_after: None,
            drops_writes: false,
        })
    }

    pub(crate) fn on(disk: TestDisk) -> Self {
        Self {
            disk,
            broken: Vec::new(),
            while_loading: None,
            tried: Vec::new(),
            by_backup: false,
            said: Vec::new(),
            published: None,
        }
    }

    /// Switches the machine on: the slot that was started, or the loader's last words.
    pub(crate) fn boot(&mut self) -> Result<Slot, String> {
        (self.tried, self.said, self.published) = (Vec::new(), Vec::new(), None);
        // The loader's two sides see the same disk.
        let disk = std::cell::RefCell::new(&mut self.disk);
        let mut loader = TestLoader {
            disk: &disk,
            broken: &self.broken,
            while_loading: self.while_loading,
            tried: &mut self.tried,
            by_backup: &mut self.by_backup,
        };
        let mut reporter = Reporter { said: &mut self.said, published: &mut self.published };
        boot(&mut Shared(&disk), &mut loader, &mut reporter).map_err(|error| error.to_string())
    }

    pub(crate) fn table(&self) -> Table {
        self.disk.table()
    }

    pub(crate) fn attributes(&self, slot: Slot) -> Attributes {
        self.table().entries().find(|entry| entry.name == format!("ROOT-{slot}")).unwrap().attributes
    }

    /// The facts that say what was chosen.
    pub(crate) fn chosen(&self) -> Vec<&str> {
        let facts = self.published.as_deref().unwrap_or_default();
        facts.lines().filter(|fact| fact.starts_with("chosen")).collect()
    }

    pub(crate) fn damage(&mut self, damage: Damage) {
        let sector = self.disk.sector_size as usize;
        let len = self.disk.image.len();
        match damage {
            Damage::None => {}
            Damage::PrimaryWiped => self.disk.image[sector..sector * 2 + 16384].fill(0),
            Damage::BackupWiped => self.disk.image[len - sector - 16384..].fill(0),
            Damage::PrimaryHeaderTorn => self.disk.image[sector + 16] ^= 1,
            Damage::BackupEntriesTorn => self.disk.image[len - sector - 16384 + 300] ^= 1,
            Damage::Differ => {
                let table = self.table();
                let number = table.entries().find(|entry| entry.name == "ROOT-B").unwrap().number;
                let commit = table.commit(&[(number, attributes(7, 7, true))]).unwrap();
                self.disk.apply(&commit.steps[..2]);
            }
        }
    }

    /// Gives a partition another name, in both copies.
    pub(crate) fn rename(&mut self, old: &str, new: &str) {
        self.edit(|entry| {
            if entry[56..56 + old.len() * 2] == utf16(old) {
                entry[56..128].fill(0);
                entry[56..56 + new.len() * 2].copy_from_slice(&utf16(new));
            }
        });
    }

    /// Gives a partition another type, in both copies.
    pub(crate) fn retype(&mut self, name: &str) {
        self.edit(|entry| {
            if entry[56..56 + name.len() * 2] == utf16(name) {
                entry[..16].fill(0);
                entry[15] = 1;
            }
        });
    }

    fn edit(&mut self, change: impl Fn(&mut [u8])) {
        let sector = self.disk.sector_size as usize;
        let len = self.disk.image.len();
        for (header, entries) in [(sector, 2 * sector), (len - sector, len - sector - 16384)] {
            let array = &mut self.disk.image[entries..entries + 16384];
            array.chunks_exact_mut(128).for_each(&change);
            let crc = crc32(array);
            let header = &mut self.disk.image[header..header + 92];
            header[88..92].copy_from_slice(&crc.to_le_bytes());
            header[16..20].fill(0);
            let crc = crc32(header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
        }
    }

    /// Everything but the headers and entries of the two copies is as it was.
    pub(crate) fn assert_only_the_table_differs(&self, before: &[u8]) {
        let sector = self.disk.sector_size as usize;
        let end = usize::try_from(SECTORS).unwrap() * sector;
        let (first, last) = (2 * sector + 16384, end - sector - 16384);
        let image = &self.disk.image;
        assert!(image[..sector] == before[..sector], "the first sector");
        assert!(image[first..last] == before[first..last], "the partitions");
        assert!(image[end..] == before[end..], "behind the table's end");
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The CRC of GPT, said again, slowly.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A disk with the usual six partitions, made by the `gpt` crate, its partitions full of something.
pub(crate) fn image(sector_size: u32, sectors: u64, a: Attributes, b: Attributes) -> Vec<u8> {
    let size = if sector_size == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let len = usize::try_from(sectors * u64::from(sector_size)).unwrap();
    let mut image: Vec<u8> = (0_u8..251).cycle().take(len).collect();
    image[..512].fill(0);
    let mut cursor = Cursor::new(&mut image);
    gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(sectors).unwrap() - 1)
        .overwrite_lba0(&mut cursor)
        .unwrap();
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(size)
        .create_from_device(cursor, None)
        .unwrap();
    let root = Type { guid: disk::layout::ROOT_TYPE.parse().unwrap(), os: OperatingSystem::None };
    for (number, name) in (1_u32..).zip(NAMES) {
        let (kind, attributes) = match name {
            "ESP" => (EFI, 0),
            "ROOT-A" => (root.clone(), a.bits()),
            "ROOT-B" => (root.clone(), b.bits()),
            _ => (LINUX_FS, 0),
        };
        table.add_partition_at(name, number, 26 + u64::from(number) * 8, 8, kind, attributes).unwrap();
    }
    table.write().unwrap();
    image
}

struct Shared<'a, 'b>(&'a std::cell::RefCell<&'b mut TestDisk>);

impl Disk for Shared<'_, '_> {
    fn sector_size(&self) -> u32 {
        self.0.borrow().sector_size()
    }

    fn sectors(&self) -> u64 {
        self.0.borrow().sectors()
    }

    fn read(&mut self, lba: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.0.borrow_mut().read(lba, bytes)
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), String> {
        self.0.borrow_mut().write(lba, bytes)
    }

    fn flush(&mut self) -> Result<(), String> {
        self.0.borrow_mut().flush()
    }
}

struct TestLoader<'a, 'b> {
    disk: &'a std::cell::RefCell<&'b mut TestDisk>,
    broken: &'a [Slot],
    while_loading: Option<fn(&mut TestDisk)>,
    tried: &'a mut Vec<Slot>,
    by_backup: &'a mut bool,
}

impl Loader for TestLoader<'_, '_> {
    type Started = Slot;

    fn start(&mut self, slot: &SlotPartitions) -> Result<Slot, String> {
        self.tried.push(slot.slot);
        *self.by_backup = slot.by_backup;
        slot.boot.clone()?;
        if !self.broken.contains(&slot.slot) {
            return Ok(slot.slot);
        }
        if let Some(act) = self.while_loading {
            act(&mut self.disk.borrow_mut());
        }
        Err(format!("no kernel on {}", slot.slot))
    }
}

struct Reporter<'a> {
    said: &'a mut Vec<String>,
    published: &'a mut Option<String>,
}

impl Console for Reporter<'_> {
    fn say(&mut self, message: &str) {
        self.said.push(message.to_owned());
    }
}

impl Facts for Reporter<'_> {
    fn publish(&mut self, facts: &str) {
        *self.published = Some(facts.to_owned());
    }
}
