//! The table against the `gpt` crate, against damage, and against tables made to harm.

use super::header::has_signature;
use super::*;
use crate::slot::Attributes;
use ::gpt::disk::LogicalBlockSize;
use ::gpt::partition_types::{EFI, LINUX_FS};
use proptest::prelude::*;
use std::convert::Infallible;
use std::io::Cursor;

const SECTORS: u64 = 256;

fn attributes(priority: u8, tries: u8) -> Attributes {
    Attributes::default().with_priority(priority).with_tries_left(tries)
}

/// Three partitions, made by the `gpt` crate.
fn disk(sector: u32) -> Vec<u8> {
    let size = if sector == 4096 { LogicalBlockSize::Lb4096 } else { LogicalBlockSize::Lb512 };
    let mut image = vec![0; usize::try_from(SECTORS * u64::from(sector)).unwrap()];
    let mut cursor = Cursor::new(&mut image);
    ::gpt::mbr::ProtectiveMBR::with_lb_size(u32::try_from(SECTORS).unwrap() - 1)
        .overwrite_lba0(&mut cursor)
        .unwrap();
    let mut table = ::gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(size)
        .create_from_device(cursor, None)
        .unwrap();
    table.add_partition_at("ESP", 1, 40, 8, EFI, 4).unwrap();
    table.add_partition_at("ROOT-A", 2, 48, 100, LINUX_FS, attributes(2, 3).bits() | 1 << 60).unwrap();
    table.add_partition_at("Wurzel-ß-🦀", 3, 148, 50, LINUX_FS, 0).unwrap();
    table.write().unwrap();
    image
}

fn read(image: &[u8], sector: u32) -> Result<Table, TableError> {
    let at = |lba: u64| usize::try_from(lba * u64::from(sector)).unwrap();
    Table::read(sector, image.len() as u64 / u64::from(sector), |lba, buf| {
        buf.copy_from_slice(&image[at(lba)..at(lba) + buf.len()]);
        Ok::<_, Infallible>(())
    })
}

fn apply(image: &mut [u8], sector: u32, steps: &[Step]) {
    for step in steps {
        if let Step::Write { lba, bytes } = step {
            let at = usize::try_from(lba * u64::from(sector)).unwrap();
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// Seals a header that a test has changed, entries and header checksums alike.
fn reseal(image: &mut [u8], sector: u32, lba: u64) {
    let at = usize::try_from(lba * u64::from(sector)).unwrap();
    let size = u32_at(image, at + 12) as usize;
    let entries =
        usize::try_from(u64_at(image, at + 72).saturating_mul(u64::from(sector))).unwrap_or(usize::MAX);
    let len = (u32_at(image, at + 80) as usize).saturating_mul(u32_at(image, at + 84) as usize);
    if let Some(bytes) = entries.checked_add(len).and_then(|end| image.get(entries..end)) {
        let crc = crc32fast::hash(bytes);
        put(image, at + 88, &crc.to_le_bytes());
    }
    put(image, at + 16, &[0; 4]);
    let Some(header) = image.get(at..at.saturating_add(size)) else { return };
    let crc = crc32fast::hash(header);
    put(image, at + 16, &crc.to_le_bytes());
}

#[test]
fn reads_what_the_gpt_crate_writes() {
    for (sector, size) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
        let image = disk(sector);
        let theirs = ::gpt::GptConfig::new()
            .logical_block_size(size)
            .open_from_device(Cursor::new(image.clone()))
            .unwrap();
        let ours = read(&image, sector).unwrap();
        assert_eq!(ours.health(), Health::Intact);
        assert_eq!(ours.header().disk_guid().to_string(), theirs.guid().to_string());
        assert_eq!(ours.backup_misplaced(), None);
        let entries: Vec<Entry> = ours.entries().collect();
        assert_eq!(entries.len(), theirs.partitions().iter().filter(|(_, p)| p.is_used()).count());
        for entry in entries {
            let their = &theirs.partitions()[&entry.number];
            assert_eq!(entry.name, their.name);
            assert_eq!(entry.type_guid.to_string(), their.part_type_guid.guid.to_string());
            assert_eq!(entry.unique_guid.to_string(), their.part_guid.to_string());
            assert_eq!((entry.first_lba, entry.last_lba), (their.first_lba, their.last_lba));
            assert_eq!(entry.attributes.bits(), their.flags);
        }
    }
}

#[test]
fn a_commit_changes_the_attributes_and_nothing_else() {
    for (sector, size) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
        let mut image = disk(sector);
        let len = image.len();
        // What no other tool writes, in the sectors of the headers behind them, and in unused entries.
        let s = sector as usize;
        image[s + 300..s + 310].fill(0x5a);
        image[len - 100..len - 90].fill(0xa5);
        for lba in [2, SECTORS - 1 - 16384 / u64::from(sector)] {
            let at = usize::try_from(lba).unwrap() * s;
            image[at + 127 * 128 + 60] = 0x77;
        }
        reseal(&mut image, sector, 1);
        reseal(&mut image, sector, SECTORS - 1);
        let table = read(&image, sector).unwrap();
        assert_eq!(table.health(), Health::Intact);
        let entry = table.entry(2).unwrap();
        let new = entry.attributes.invalidated();
        let commit = table.commit(&[(2, new)]).unwrap();
        let mut changed = image.clone();
        apply(&mut changed, sector, &commit.steps);
        assert_eq!(read(&changed, sector).unwrap(), commit.table);
        assert_eq!(commit.table.health(), Health::Intact);
        assert_eq!(commit.table.entry(2).unwrap(), Entry { attributes: new, ..entry });
        // Two fields of each header and one of each copy's entries: at most 2 x (4 + 4 + 8) bytes.
        let differing: Vec<usize> = (0..len).filter(|at| image[*at] != changed[*at]).collect();
        assert!(differing.len() <= 32 && differing.len() >= 6, "{differing:?}");
        // And others read the same.
        let theirs = ::gpt::GptConfig::new()
            .logical_block_size(size)
            .only_valid_headers(true)
            .open_from_device(Cursor::new(changed.clone()))
            .unwrap();
        assert_eq!(theirs.partitions()[&2].flags, new.bits());
        assert_eq!(new.bits() >> 57, 1 << 3, "the bit that is not ours is kept");
        // The order of DESIGN section 4.
        let places: Vec<Option<u64>> = commit
            .steps
            .iter()
            .map(|step| if let Step::Write { lba, .. } = step { Some(*lba) } else { None })
            .collect();
        let backup_entries = SECTORS - 1 - 16384 / u64::from(sector);
        assert_eq!(places, [Some(backup_entries), Some(SECTORS - 1), None, Some(2), Some(1), None]);
    }
}

#[test]
fn a_commit_without_a_change_writes_nothing() {
    let table = read(&disk(512), 512).unwrap();
    let same = table.entry(2).unwrap().attributes;
    assert!(table.commit(&[(2, same)]).unwrap().steps.is_empty());
    assert!(table.commit(&[]).unwrap().steps.is_empty());
    assert_eq!(table.commit(&[(4, same)]), Err(TableError::NoSuchEntry(4)));
    assert_eq!(table.commit(&[(0, same)]), Err(TableError::NoSuchEntry(0)));
    assert_eq!(table.commit(&[(u32::MAX, same)]), Err(TableError::NoSuchEntry(u32::MAX)));
}

#[test]
fn either_copy_is_rebuilt_from_the_other() {
    for sector in [512_u32, 4096] {
        let whole = disk(sector);
        let table = read(&whole, sector).unwrap();
        let s = sector as usize;
        let len = whole.len();
        let primary = [s, s + 40, 2 * s, 2 * s + 16383];
        let backup = [len - s, len - s + 91, len - s - 1, len - s - 16384];
        for at in primary.into_iter().chain(backup) {
            let mut image = whole.clone();
            image[at] ^= 0x10;
            let damaged = read(&image, sector).unwrap();
            let on_primary = primary.contains(&at);
            match damaged.health() {
                Health::PrimaryDamaged(_) => assert!(on_primary, "{at}"),
                Health::BackupDamaged(_) => assert!(!on_primary, "{at}"),
                other => panic!("byte {at}: {other:?}"),
            }
            assert_eq!(damaged.commit(&[(1, Attributes::default())]), Err(TableError::NotIntact));
            let repair = damaged.repair().unwrap();
            assert_eq!(repair.steps.last(), Some(&Step::Flush));
            apply(&mut image, sector, &repair.steps);
            assert_eq!(image, whole, "byte {at}");
            assert_eq!(repair.table, table);
        }
    }
}

#[test]
fn where_both_are_valid_and_differ_the_primary_wins() {
    for sector in [512, 4096] {
        let whole = disk(sector);
        let table = read(&whole, sector).unwrap();
        let commit = table.commit(&[(2, attributes(1, 1))]).unwrap();
        let mut image = whole.clone();
        apply(&mut image, sector, &commit.steps[..2]);
        let half = read(&image, sector).unwrap();
        assert_eq!(half.health(), Health::Differ);
        assert_eq!(half.entry(2), table.entry(2));
        apply(&mut image, sector, &half.repair().unwrap().steps);
        assert_eq!(image, whole);
    }
}

/// A disk that grew: the backup stands where the header says, is found there though the primary is damaged, and is
/// never moved.
#[test]
fn a_misplaced_backup_stays_where_it_is() {
    for sector in [512, 4096] {
        let mut image = disk(sector);
        image.resize(image.len() * 2, 0);
        let whole = image.clone();
        let table = read(&image, sector).unwrap();
        assert_eq!((table.health(), table.backup_misplaced()), (Health::Intact, Some(SECTORS - 1)));
        // The checksums of the primary's header and of the backup's entries are the usual victims of a cut.
        image[sector as usize + 16] ^= 1;
        let damaged = read(&image, sector).unwrap();
        assert_eq!(damaged.health(), Health::PrimaryDamaged(Damage::HeaderChecksum));
        apply(&mut image, sector, &damaged.repair().unwrap().steps);
        assert_eq!(image, whole);
        let at = usize::try_from(SECTORS * u64::from(sector)).unwrap() - 5;
        let backup_entries = at - sector as usize;
        image[backup_entries] ^= 1;
        let damaged = read(&image, sector).unwrap();
        assert!(matches!(damaged.health(), Health::BackupDamaged(Damage::EntriesChecksum)));
        apply(&mut image, sector, &damaged.repair().unwrap().steps);
        assert_eq!(image, whole);
    }
}

/// A disk whose size is reported too small: the table is read, and nothing is written anywhere.
#[test]
fn a_backup_outside_of_the_disk_is_reported_and_not_replaced() {
    let image = disk(512);
    let cut = &image[..image.len() - 10 * 512];
    let table = read(cut, 512).unwrap();
    assert_eq!(table.health(), Health::BackupDamaged(Damage::OutsideDisk { lba: SECTORS - 1 }));
    assert!(matches!(table.repair(), Err(TableError::CannotRepair(Damage::OutsideDisk { .. }))));
    assert_eq!(table.commit(&[(2, Attributes::default())]), Err(TableError::NotIntact));
}

/// A damaged primary that names another place for its backup than where one was found: a leftover in the last sector of a
/// disk that is reported too small, or a damaged address. It is read, and said.
#[test]
fn a_backup_that_the_damaged_primary_does_not_know_is_disputed() {
    for sector in [512_u32, 4096] {
        let whole = disk(sector);
        let s = sector as usize;
        assert_eq!(read(&whole, sector).unwrap().disputed_backup(), None);
        let mut image = whole.clone();
        image[s + 16] ^= 1;
        assert_eq!(read(&image, sector).unwrap().disputed_backup(), None, "it names the right place");
        put(&mut image, s + 32, &(SECTORS * 2).to_le_bytes());
        let table = read(&image, sector).unwrap();
        assert_eq!(table.disputed_backup(), Some(SECTORS * 2));
        assert_eq!(table.health(), Health::PrimaryDamaged(Damage::HeaderChecksum));
        // Without a header nobody contradicts; neither does a damaged backup, whose place the primary knows.
        image[s..2 * s].fill(0);
        assert_eq!(read(&image, sector).unwrap().disputed_backup(), None);
        let mut image = whole.clone();
        let last = image.len() - s;
        put(&mut image, last + 32, &77_u64.to_le_bytes());
        assert!(matches!(read(&image, sector).unwrap().health(), Health::BackupDamaged(_)));
        assert_eq!(read(&image, sector).unwrap().disputed_backup(), None);
    }
}

/// Entries that do not start in the usual sector (`sgdisk --move-main-table`) are found again there, because
/// something else stands in the usual one: a boot loader.
#[test]
fn moved_entries_stay_moved() {
    let mut image = disk(512);
    let (from, to) = (2 * 512, 3 * 512);
    // One sector on: partitions start at 40 and the usable range is moved with it.
    image.copy_within(from..from + 16384, to);
    image[from..to].fill(0xbb);
    for lba in [1, SECTORS - 1] {
        let at = usize::try_from(lba).unwrap() * 512;
        put(&mut image, at + 40, &36_u64.to_le_bytes());
        if lba == 1 {
            put(&mut image, at + 72, &3_u64.to_le_bytes());
        }
        reseal(&mut image, 512, lba);
    }
    let whole = image.clone();
    assert_eq!(read(&image, 512).unwrap().health(), Health::Intact);
    image[512 + 16] ^= 1;
    let damaged = read(&image, 512).unwrap();
    apply(&mut image, 512, &damaged.repair().unwrap().steps);
    assert_eq!(image, whole, "the boot loader is still there");
}

#[test]
fn a_leftover_behind_an_mbr_is_not_a_gpt() {
    let mut image = disk(512);
    image[446 + 4] = 0x83;
    assert_eq!(read(&image, 512), Err(TableError::ForeignMbr));
    // A hybrid one has a protecting entry as well.
    image[446 + 16 + 4] = 0xee;
    assert!(read(&image, 512).is_ok());
    // Without any MBR it is a GPT still.
    image[..512].fill(0);
    assert!(read(&image, 512).is_ok());
}

#[test]
fn a_missing_protective_entry_is_put_in_and_nothing_else_is_touched() {
    for sector in [512, 4096] {
        let whole = disk(sector);
        let size = usize::try_from(sector).unwrap();
        assert_eq!(protected_first_sector(&whole[..size], SECTORS), None, "it is there");
        let mut bare = whole[..size].to_vec();
        bare[446..512].fill(0);
        bare[100] = 0x90;
        let protected = protected_first_sector(&bare, SECTORS).unwrap();
        assert_eq!(protected[446..], whole[446..size], "as the gpt crate writes it");
        assert_eq!(protected[..446], bare[..446], "boot code stays");
        let mut torn = bare.clone();
        torn[480..512].fill(0xa5);
        assert_eq!(protected_first_sector(&torn, SECTORS), Some(protected), "torn while it was written");
        bare[446 + 4] = 0x83;
        bare[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(protected_first_sector(&bare, SECTORS), None, "a table of somebody else's");
        assert_eq!(protected_first_sector(&[0; 100], SECTORS), None);
    }
}

#[test]
fn unreadable_sectors_are_damage() {
    let image = disk(512);
    let mut reads = 0;
    let table = Table::read(512, SECTORS, |lba, buf| {
        reads += 1;
        if lba == 1 {
            return Err("bad sector");
        }
        let at = usize::try_from(lba).unwrap() * 512;
        buf.copy_from_slice(&image[at..at + buf.len()]);
        Ok(())
    })
    .unwrap();
    assert_eq!(table.health(), Health::PrimaryDamaged(Damage::Unreadable("bad sector".to_owned())));
    assert!(matches!(
        Table::read(512, SECTORS, |_, _| Err("gone")),
        Err(TableError::NoValidCopy { primary: Damage::Unreadable(_), .. })
    ));
}

#[test]
fn the_sector_size_is_found() {
    let detect = |image: &[u8]| {
        detect_sector_size(image.len() as u64, |offset, buf| {
            let at = usize::try_from(offset).unwrap();
            buf.copy_from_slice(&image[at..at + buf.len()]);
            Ok::<_, Infallible>(())
        })
        .unwrap()
    };
    for sector in [512, 4096] {
        let mut image = disk(sector);
        assert_eq!(detect(&image), Some(sector));
        image[sector as usize..sector as usize + 512].fill(0xee);
        assert_eq!(detect(&image), Some(sector), "by the backup");
    }
    // An old header of the other size does not outweigh a sound one.
    let mut image = disk(4096);
    image[512..520].copy_from_slice(b"EFI PART");
    assert_eq!(detect(&image), Some(4096));
    assert_eq!(detect(&[0; 65536]), None);
    assert_eq!(detect(&[]), None);
}

/// A field of the primary header, and what is to be said of a value that cannot be, with checksums that match.
#[test]
fn hostile_headers_are_refused() {
    type Check = fn(&Damage) -> bool;
    let geometry: Check = |damage| matches!(damage, Damage::Geometry(_));
    let count: Check = |damage| matches!(damage, Damage::EntryCount(_));
    let size: Check = |damage| matches!(damage, Damage::EntrySize(_));
    let header: Check = |damage| matches!(damage, Damage::HeaderSize(_));
    let cases: [(usize, Vec<u8>, Check); 24] = [
        (8, 0x0002_0000_u32.to_le_bytes().into(), |damage| matches!(damage, Damage::Revision(_))),
        (12, 91_u32.to_le_bytes().into(), header),
        (12, 513_u32.to_le_bytes().into(), header),
        (12, u32::MAX.to_le_bytes().into(), header),
        (24, 2_u64.to_le_bytes().into(), |damage| matches!(damage, Damage::WrongPlace { .. })),
        (32, 1_u64.to_le_bytes().into(), geometry),
        (32, 0_u64.to_le_bytes().into(), geometry),
        (32, 100_u64.to_le_bytes().into(), geometry),
        (40, 1_u64.to_le_bytes().into(), geometry),
        (40, u64::MAX.to_le_bytes().into(), geometry),
        (48, 0_u64.to_le_bytes().into(), geometry),
        (48, u64::MAX.to_le_bytes().into(), geometry),
        (72, 0_u64.to_le_bytes().into(), geometry),
        (72, 1_u64.to_le_bytes().into(), geometry),
        (72, 3_u64.to_le_bytes().into(), geometry),
        (72, u64::MAX.to_le_bytes().into(), geometry),
        (72, (u64::MAX - 31).to_le_bytes().into(), geometry),
        (80, 0_u32.to_le_bytes().into(), count),
        (80, u32::MAX.to_le_bytes().into(), count),
        (80, 8193_u32.to_le_bytes().into(), count),
        (84, 0_u32.to_le_bytes().into(), size),
        (84, 64_u32.to_le_bytes().into(), size),
        (84, 129_u32.to_le_bytes().into(), size),
        (84, 8192_u32.to_le_bytes().into(), size),
    ];
    for (at, value, expected) in cases {
        let mut image = disk(512);
        put(&mut image, 512 + at, &value);
        reseal(&mut image, 512, 1);
        let table = read(&image, 512).unwrap();
        match table.health() {
            Health::PrimaryDamaged(damage) => assert!(expected(&damage), "{at} {value:?}: {damage:?}"),
            other => panic!("{at} {value:?}: {other:?}"),
        }
        // The backup is believed, and mends it.
        apply(&mut image, 512, &table.repair().unwrap().steps);
        assert_eq!(read(&image, 512).unwrap().health(), Health::Intact);
    }
}

#[test]
fn hostile_entries_are_refused() {
    let second = 2 * 512 + 128;
    for (first, last, expected) in [
        (48_u64, 47_u64, "ends before it starts"),
        (33, 100, "lies outside of the range for partitions"),
        (48, SECTORS, "lies outside of the range for partitions"),
        (48, u64::MAX, "lies outside of the range for partitions"),
        (u64::MAX, u64::MAX, "lies outside of the range for partitions"),
        (47, 100, "overlaps another one"),
        (150, 160, "overlaps another one"),
    ] {
        let mut image = disk(512);
        put(&mut image, second + 32, &first.to_le_bytes());
        put(&mut image, second + 40, &last.to_le_bytes());
        reseal(&mut image, 512, 1);
        match read(&image, 512).unwrap().health() {
            Health::PrimaryDamaged(Damage::Entry { problem, .. }) => assert_eq!(problem, expected),
            other => panic!("{first} to {last}: {other:?}"),
        }
    }
}

#[test]
fn guids_as_text() {
    let text = "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6";
    let guid: Guid = text.parse().unwrap();
    assert_eq!(guid.to_string(), text);
    assert_eq!(guid.as_bytes()[..8], [0xf4, 0xf5, 0xfb, 0x5d, 0x48, 0x28, 0xac, 0x4b]);
    assert_eq!(text.to_uppercase().parse(), Ok(guid));
    for bad in
        ["", "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a", "5dfbf5f428484bacaa5e0d9a20b745a6xxxx", &"ä".repeat(18)]
    {
        assert_eq!(bad.parse::<Guid>(), Err(InvalidGuid), "{bad}");
    }
    assert!("5dfbf5f4-2848-4bac-aa5e+0d9a20b745a6".parse::<Guid>().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever stands in the header and in the entries, with checksums that match: no panic, no reading outside of
    /// the disk, no taking of more memory than a table may need, no writing outside of the two copies.
    #[test]
    fn nothing_that_is_read_does_harm(
        fields in proptest::collection::vec((prop_oneof![8_usize..92, 1024_usize..1536], any::<u64>(), 0_u8..64), 1..6),
        both: bool,
        sector in prop_oneof![Just(512_u32), Just(4096)],
    ) {
        let mut image = disk(sector);
        let s = sector as usize;
        let last = image.len() - s;
        for (at, value, shift) in fields {
            // Small numbers as often as large ones.
            let bytes = (value >> shift).to_le_bytes();
            // In the header, or in the entries of the primary copy.
            put(&mut image, if at < 92 { s + at } else { 2 * s + at - 1024 }, &bytes);
            if both && at < 92 {
                put(&mut image, last + at, &bytes);
            }
        }
        put(&mut image, s, b"EFI PART");
        reseal(&mut image, sector, 1);
        reseal(&mut image, sector, SECTORS - 1);
        if let Ok(table) = read(&image, sector) {
            for entry in table.entries() {
                prop_assert!(entry.first_lba <= entry.last_lba);
            }
            let (first, last) = table.header().usable();
            if let Ok(repair) = table.repair() {
                for step in &repair.steps {
                    if let Step::Write { lba, bytes } = step {
                        let end = lba + bytes.len() as u64 / u64::from(sector);
                        prop_assert!(end <= SECTORS && *lba > 0);
                        prop_assert!(end <= first || *lba > last, "{lba} to {end} is among the partitions");
                    }
                }
                apply(&mut image, sector, &repair.steps);
                let again = read(&image, sector).unwrap();
                prop_assert_eq!(again.health(), Health::Intact);
                prop_assert_eq!(&again, &repair.table);
            }
        }
    }

    /// Bytes at random, with and without a signature.
    #[test]
    fn noise_is_not_a_table(mut image in proptest::collection::vec(any::<u8>(), 8192..16384), signature: bool) {
        if signature {
            put(&mut image, 512, b"EFI PART");
        }
        image.truncate(image.len() / 512 * 512);
        prop_assert!(has_signature(&image[512..]) == signature);
        prop_assert!(read(&image, 512).is_err());
    }

    /// Any change of attributes of any partitions reads back, and only they change.
    #[test]
    fn changes_read_back(one: u64, two: u64, sector in prop_oneof![Just(512_u32), Just(4096)]) {
        let mut image = disk(sector);
        let table = read(&image, sector).unwrap();
        let changes = [(1, Attributes::from_bits(one)), (3, Attributes::from_bits(two))];
        let commit = table.commit(&changes).unwrap();
        apply(&mut image, sector, &commit.steps);
        let after = read(&image, sector).unwrap();
        prop_assert_eq!(&after, &commit.table);
        for entry in table.entries() {
            let new = changes.iter().find(|(n, _)| *n == entry.number).map_or(entry.attributes, |c| c.1);
            prop_assert_eq!(after.entry(entry.number).unwrap(), Entry { attributes: new, ..entry });
        }
    }
}
