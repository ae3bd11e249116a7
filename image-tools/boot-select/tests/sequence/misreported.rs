//! Firmware that says that the disk is smaller or larger than it is, or that has only a part of it in reach.

use super::bench::{Bench, Damage, SECTORS, attributes, confirmed, image};
use proptest::prelude::*;
use protocol::gpt::Health;
use protocol::slot::{Attributes, Slot};

/// The backup is out of reach: writing the primary alone would risk the only copy that the firmware can see.
#[test]
fn a_backup_out_of_reach_means_that_nothing_is_written() {
    for sector in [512, 4096] {
        for reported in [SECTORS - 1, SECTORS - 10, 100] {
            let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            bench.disk.reported = Some(reported);
            assert_eq!(bench.boot(), Ok(Slot::A));
            assert_eq!(bench.disk.log, []);
            let facts = bench.published.clone().unwrap();
            let expected = format!("belongs at LBA {}, behind the end of the disk", SECTORS - 1);
            assert!(facts.contains("try not recorded: ") && facts.contains(&expected), "{facts}");
            // The firmware tells the truth again: nothing was lost.
            bench.disk.reported = None;
            assert_eq!(bench.boot(), Ok(Slot::B));
            assert_eq!(bench.attributes(Slot::B).tries_left(), 2);
        }
    }
}

/// The backup is where the primary says, and stays there.
#[test]
fn a_disk_reported_larger_is_written_in_the_right_places() {
    for sector in [512, 4096] {
        for (reported, grown) in
            [(SECTORS + 1, 0), (SECTORS * 1000, 0), (u64::MAX, 0), (SECTORS * 2, SECTORS)]
        {
            let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            let mut expected = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            expected.disk.image.clone_from(&bench.disk.image);
            expected.boot().unwrap();
            let grown = usize::try_from(grown).unwrap() * sector as usize;
            bench.disk.image.resize(bench.disk.image.len() + grown, 0x77);
            expected.disk.image.resize(bench.disk.image.len(), 0x77);
            bench.disk.reported = Some(reported);
            assert_eq!(bench.boot(), Ok(Slot::B));
            assert!(bench.disk.image == expected.disk.image, "{reported}");
            assert_eq!(
                bench.said[0],
                format!("table: its backup is at LBA {}, the disk ends at LBA {}", SECTORS - 1, reported - 1)
            );
        }
    }
}

/// Without a primary the backup of a disk that is reported too large is not where it is looked for: there is no table,
/// and none is made up.
#[test]
fn without_a_primary_a_wrong_size_finds_no_table_and_writes_none() {
    for sector in [512, 4096] {
        for reported in [SECTORS - 1, SECTORS + 1, SECTORS * 2] {
            let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            bench.damage(Damage::PrimaryWiped);
            let before = bench.disk.image.clone();
            bench.disk.reported = Some(reported);
            assert!(bench.boot().unwrap_err().contains("no valid GPT"));
            assert!(bench.disk.log.is_empty() && bench.disk.image == before);
        }
    }
}

/// A disk that grew: an old backup, whole and consistent in itself, stands where the disk ended then. Firmware that
/// reports that old size shows it as the last sector. The damaged primary still says where the real one is.
fn with_a_leftover_backup(sector: u32) -> Bench {
    let old = image(sector, SECTORS / 2, confirmed(1), attributes(2, 1, true));
    let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
    let end = old.len();
    let start = end - sector as usize - 16384;
    bench.disk.image[start..end].copy_from_slice(&old[start..]);
    bench.disk.reported = Some(SECTORS / 2);
    bench
}

#[test]
fn a_leftover_backup_is_not_written_over_the_primary() {
    for sector in [512, 4096] {
        let mut bench = with_a_leftover_backup(sector);
        bench.damage(Damage::PrimaryHeaderTorn);
        let before = bench.disk.image.clone();
        // By the leftover B is confirmed and has a try to spend.
        assert_eq!(bench.boot(), Ok(Slot::B));
        assert!(bench.disk.log.is_empty() && bench.disk.image == before);
        let refused =
            format!("try not recorded: the damaged primary table puts its backup at LBA {}", SECTORS - 1);
        assert!(bench.said.iter().any(|line| line.starts_with(&refused)), "{:?}", bench.said);
        // With the whole disk in sight the real backup is found, and the primary repaired from it.
        bench.disk.reported = None;
        assert_eq!(bench.boot(), Ok(Slot::B));
        assert_eq!(bench.table().health(), Health::Intact);
        assert_eq!(bench.attributes(Slot::B), attributes(2, 2, false));
        // With a sound primary the leftover is not even looked at.
        let mut bench = with_a_leftover_backup(sector);
        assert_eq!(bench.boot(), Ok(Slot::A));
        assert_eq!(bench.disk.log, []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever size is reported: no table is damaged, nothing is written outside of the table's own sectors, and where
    /// the whole disk is seen again everything is as it should be.
    #[test]
    fn no_reported_size_does_harm(
        reported in prop_oneof![0..SECTORS * 3, Just(u64::MAX), SECTORS - 40..SECTORS + 4],
        damage in proptest::sample::select(Damage::ALL.to_vec()),
        tries in 0_u8..3,
        grown in any::<bool>(),
        sector in prop_oneof![Just(512_u32), Just(4096)],
    ) {
        let mut bench = Bench::new(sector, confirmed(1), attributes(2, tries, false));
        bench.damage(damage);
        if grown {
            bench.disk.image.resize(bench.disk.image.len() * 2, 0x77);
        }
        let before = bench.disk.image.clone();
        bench.disk.reported = Some(reported);
        let started = bench.boot();
        bench.assert_only_the_table_differs(&before);
        if reported < SECTORS {
            prop_assert!(bench.disk.log.is_empty());
            prop_assert_ne!(started.clone(), Ok(Slot::B));
        }
        if started == Ok(Slot::B) {
            prop_assert_eq!(bench.attributes(Slot::B), attributes(2, tries - 1, false));
        }
        bench.disk.reported = Some(SECTORS);
        bench.disk.image.truncate(usize::try_from(SECTORS).unwrap() * sector as usize);
        let left: Attributes = bench.attributes(Slot::B);
        prop_assert_eq!(bench.boot(), Ok(if left.bootable() { Slot::B } else { Slot::A }));
    }
}
