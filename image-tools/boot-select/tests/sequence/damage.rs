//! A damaged copy is repaired where a try is spent; a disk that fails lets only confirmed slots start.

use super::bench::{Bench, Damage, attributes, confirmed};
use protocol::gpt::Health;
use protocol::slot::{Attributes, Slot};

#[test]
fn a_damaged_copy_is_repaired_in_the_commit_of_the_try() {
    for sector in [512, 4096] {
        for (damage, fact) in [
            (Damage::PrimaryWiped, "table: primary damaged"),
            (Damage::PrimaryHeaderTorn, "table: primary damaged"),
            (Damage::BackupWiped, "table: backup damaged"),
            (Damage::BackupEntriesTorn, "table: backup damaged"),
            (Damage::Differ, "table: copies differ"),
        ] {
            let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            let whole = bench.disk.image.clone();
            bench.damage(damage);
            assert_eq!(bench.boot(), Ok(Slot::B));
            let facts: Vec<&str> = bench.published.as_deref().unwrap().lines().collect();
            assert!(facts[0].starts_with(&format!("{fact} (")), "{facts:?}");
            assert_eq!(facts[1..], [format!("{fact}, repaired"), "chosen: B tries_left=2".to_owned()]);
            assert_eq!(bench.table().health(), Health::Intact);
            // As if there had been no damage.
            let mut undamaged = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            undamaged.disk.image = whole;
            undamaged.boot().unwrap();
            assert!(bench.disk.image == undamaged.disk.image, "{damage:?}");
        }
    }
}

#[test]
fn a_damaged_copy_is_left_to_the_system_where_no_try_is_spent() {
    let mut bench = Bench::new(512, confirmed(1), Attributes::default());
    bench.damage(Damage::PrimaryWiped);
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert_eq!(
        bench.published.as_deref(),
        Some("table: primary damaged (there is no GPT header)\nchosen: A tries_left=0")
    );
    assert!(bench.by_backup, "Linux would find no partitions");
}

#[test]
fn the_backup_table_is_named_to_the_kernel_only_where_the_primary_stays_damaged() {
    for (damage, tries, expected) in [
        (Damage::PrimaryWiped, 0, true),
        (Damage::PrimaryWiped, 3, false),
        (Damage::BackupWiped, 0, false),
        (Damage::BackupWiped, 3, false),
    ] {
        let mut bench = Bench::new(512, attributes(2, tries, true), Attributes::default());
        bench.damage(damage);
        bench.boot().unwrap();
        assert_eq!(bench.by_backup, expected, "{damage:?} with {tries} tries");
    }
}

/// Each write and each flush of the longest commit fails once, and everything after it.
#[test]
fn where_a_try_cannot_be_recorded_only_a_confirmed_slot_starts() {
    for sector in [512, 4096] {
        for damage in Damage::ALL {
            let mut whole = Bench::new(sector, confirmed(1), attributes(2, 3, false));
            whole.damage(damage);
            whole.boot().unwrap();
            let operations = whole.disk.log.len();
            assert!(operations >= 6);
            for fail_after in 0..operations {
                // A confirmed fallback starts, and so does a confirmed slot whose own try was to be spent.
                for (a, b, expected) in [
                    (confirmed(1), attributes(2, 3, false), Slot::A),
                    (attributes(1, 1, true), attributes(2, 3, true), Slot::B),
                ] {
                    let mut bench = Bench::new(sector, a, b);
                    bench.damage(damage);
                    let before = bench.disk.image.clone();
                    bench.disk.fail_after = Some(fail_after);
                    assert_eq!(bench.boot(), Ok(expected), "{damage:?}, {fail_after}");
                    assert_eq!(bench.tried, [expected]);
                    let facts = bench.published.clone().unwrap();
                    assert!(facts.contains("try not recorded: "), "{facts}");
                    // What was left half-way is a table, and boots once the disk works again.
                    bench.assert_only_the_table_differs(&before);
                    bench.disk.fail_after = None;
                    assert_eq!(bench.boot(), Ok(Slot::B));
                    assert_eq!(bench.table().health(), Health::Intact);
                }
                let mut bench = Bench::new(sector, attributes(1, 1, false), attributes(2, 3, false));
                bench.damage(damage);
                bench.disk.fail_after = Some(fail_after);
                let last_words = bench.boot().unwrap_err();
                assert!(last_words.contains("but no try can be recorded"), "{last_words}");
                assert_eq!(bench.tried, []);
            }
        }
    }
}

#[test]
fn a_disk_that_drops_writes_is_found_out() {
    for sector in [512, 4096] {
        let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
        bench.disk.drops_writes = true;
        assert_eq!(bench.boot(), Ok(Slot::A));
        assert_eq!(bench.said[0], "try not recorded: the disk does not give back what was written");
    }
}
