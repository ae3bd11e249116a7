//! The loader's sequence against a recording disk: what it starts, what it writes, and what a power cut or a failing or
//! misreported disk leaves.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

mod bench;
mod damage;
mod misreported;
mod power_cuts;

use bench::{Bench, Damage, attributes, confirmed};
use boot_select::ROOT_TYPE;
use disk::testing::Operation;
use proptest::prelude::*;
use protocol::gpt::Health;
use protocol::slot::{Attributes, Slot};

#[test]
fn the_root_type_is_the_one_that_everybody_uses() {
    assert_eq!(ROOT_TYPE.to_string(), disk::layout::ROOT_TYPE);
}

#[test]
fn a_confirmed_slot_starts_and_nothing_is_written() {
    for sector in [512, 4096] {
        for damage in Damage::ALL {
            let mut bench = Bench::new(sector, confirmed(1), Attributes::default());
            bench.damage(damage);
            assert_eq!(bench.boot(), Ok(Slot::A));
            assert_eq!(bench.disk.log, [], "{damage:?}");
            assert_eq!(bench.chosen(), ["chosen: A tries_left=0"]);
        }
    }
}

#[test]
fn a_try_is_spent_before_the_slot_starts() {
    for sector in [512, 4096] {
        let mut bench = Bench::new(sector, confirmed(1), attributes(2, 3, false));
        for tries in [2, 1, 0] {
            bench.disk.log.clear();
            assert_eq!(bench.boot(), Ok(Slot::B));
            assert_eq!(bench.chosen(), [format!("chosen: B tries_left={tries}")]);
            assert_eq!(bench.table().health(), Health::Intact);
            assert_eq!(bench.attributes(Slot::B), attributes(2, tries, false));
            assert_eq!(bench.attributes(Slot::A), confirmed(1));
            let last = bench.disk.real_sectors() - 1;
            let entries = last - 16384 / u64::from(sector);
            let at = |lba| Some(lba * u64::from(sector));
            let places: Vec<Option<u64>> = bench
                .disk
                .log
                .iter()
                .map(|operation| match operation {
                    Operation::Write { offset, .. } => Some(*offset),
                    Operation::Flush => None,
                })
                .collect();
            // ROOT-B is entry 5: in the second of the entries' sectors of 512 bytes, the first of 4096.
            let skipped = if sector == 512 { 1 } else { 0 };
            let order = [at(entries + skipped), at(last), None, at(2 + skipped), at(1), None];
            assert_eq!(places, order);
        }
        bench.disk.log.clear();
        assert_eq!(bench.boot(), Ok(Slot::A), "the tries are used up");
        assert_eq!(bench.disk.log, []);
    }
}

/// As gptprio does: a confirmed slot with tries left loses one.
#[test]
fn a_successful_slot_spends_its_tries_too() {
    let mut bench = Bench::new(512, attributes(1, 2, true), Attributes::default());
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert_eq!(bench.attributes(Slot::A), attributes(1, 1, true));
}

#[test]
fn a_slot_that_cannot_be_loaded_is_left_out_and_the_next_one_starts_at_once() {
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.broken = vec![Slot::B];
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert_eq!(bench.attributes(Slot::B), attributes(2, 2, false), "the try is spent, and no more");
    assert_eq!(bench.attributes(Slot::A), confirmed(1));
    let facts = ["chosen: B tries_left=2", "left out: B: no kernel on B", "chosen: A tries_left=0"];
    assert_eq!(bench.published.as_deref(), Some(facts.join("\n").as_str()));
    assert_eq!(bench.said, facts);
}

#[test]
fn the_next_candidate_spends_its_try_too() {
    let mut bench = Bench::new(4096, attributes(1, 5, false), attributes(2, 3, false));
    bench.broken = vec![Slot::B];
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert_eq!((bench.attributes(Slot::A).tries_left(), bench.attributes(Slot::B).tries_left()), (4, 2));
    assert_eq!(bench.table().health(), Health::Intact);
}

#[test]
fn where_no_slot_is_left_each_reason_is_said() {
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 1, false));
    bench.broken = vec![Slot::A, Slot::B];
    assert_eq!(bench.boot(), Err("no slot can be booted: A: no kernel on A; B: no kernel on B".to_owned()));
    assert_eq!(bench.tried, [Slot::B, Slot::A]);
    let mut bench = Bench::new(512, attributes(0, 0, true), attributes(1, 0, false));
    let reason = "no slot can be booted: A: priority=0 tries_left=0 successful=true; \
                  B: priority=1 tries_left=0 successful=false";
    assert_eq!(bench.boot(), Err(reason.to_owned()));
    assert_eq!((bench.disk.log.len(), bench.tried.len()), (0, 0));
}

#[test]
fn a_slot_without_its_partitions_is_left_out() {
    // ROOT-B: another name, another type; and a second ROOT-A.
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.rename("ROOT-B", "ROOT-X");
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert_eq!(bench.said[0], "left out: B: there is no partition ROOT-B");
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.retype("ROOT-B");
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert!(bench.said[0].starts_with("left out: B: ROOT-B has the type 00000000-"), "{:?}", bench.said);
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.rename("STATE", "ROOT-A");
    assert_eq!(bench.boot(), Ok(Slot::B));
    assert_eq!(bench.said[0], "left out: A: there are two partitions ROOT-A");
    assert_eq!(bench.attributes(Slot::B).tries_left(), 2);
    // Without BOOT-B there is a slot, which cannot be loaded.
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.rename("BOOT-B", "BOOT-X");
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert!(bench.said.contains(&"left out: B: there is no partition BOOT-B".to_owned()), "{:?}", bench.said);
}

/// A program that was started as a kernel and came back had the machine for itself.
#[test]
fn a_table_that_changed_meanwhile_is_not_written() {
    let mut bench = Bench::new(512, attributes(1, 3, false), attributes(2, 3, false));
    bench.broken = vec![Slot::B];
    bench.while_loading = Some(|disk| disk.change(Slot::A, attributes(1, 1, false)));
    assert!(
        bench.boot().unwrap_err().contains("A: priority=1 tries_left=3 successful=false, but no try can")
    );
    assert_eq!(bench.attributes(Slot::A), attributes(1, 1, false));
    // A successful one starts without.
    let mut bench = Bench::new(512, attributes(1, 3, true), attributes(2, 3, false));
    bench.broken = vec![Slot::B];
    bench.while_loading = Some(|disk| disk.change(Slot::B, attributes(1, 1, false)));
    assert_eq!(bench.boot(), Ok(Slot::A));
    assert!(bench.said.iter().any(|line| line.starts_with("try not recorded: the table was changed")));
}

#[test]
fn what_is_no_gpt_disk_boots_nothing_and_is_not_written() {
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.disk.image.fill(0x5a);
    assert!(bench.boot().unwrap_err().starts_with("no slot can be booted: no valid GPT"));
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.disk.image[446 + 4] = 0x83;
    assert!(bench.boot().unwrap_err().contains("MBR"));
    let mut bench = Bench::new(512, confirmed(1), attributes(2, 3, false));
    bench.disk.sector_size = 2048;
    assert!(bench.boot().is_err());
    assert_eq!(bench.disk.log, []);
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    (0_u8..4, 0_u8..4, any::<bool>()).prop_map(|(p, tries, successful)| attributes(p, tries, successful))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever the attributes, the damage and the slots that do not load: what starts is what the rule says, tries are
    /// spent once for each slot tried and for no other, and nothing but the table is written.
    #[test]
    fn the_rule_is_followed(
        a in any_attributes(),
        b in any_attributes(),
        broken in proptest::sample::subsequence(vec![Slot::A, Slot::B], 0..=2),
        damage in proptest::sample::select(Damage::ALL.to_vec()),
        sector in prop_oneof![Just(512_u32), Just(4096)],
    ) {
        let mut bench = Bench::new(sector, a, b);
        bench.broken.clone_from(&broken);
        bench.damage(damage);
        let before = bench.disk.image.clone();
        let started = bench.boot();

        // Said again in other words than the code's: by priority, A first, those that may be booted.
        let mut order: Vec<(Slot, Attributes)> = vec![(Slot::A, a), (Slot::B, b)];
        order.retain(|(_, bits)| bits.priority() > 0 && (bits.tries_left() > 0 || bits.successful()));
        order.sort_by_key(|(slot, bits)| (std::cmp::Reverse(bits.priority()), *slot));
        let tried = order.iter().position(|(slot, _)| !broken.contains(slot)).map_or(order.len(), |at| at + 1);
        let expected: Vec<Slot> = order[..tried].iter().map(|(slot, _)| *slot).collect();
        prop_assert_eq!(&bench.tried, &expected);
        prop_assert_eq!(started.ok(), order.get(tried.wrapping_sub(1)).map(|(slot, _)| *slot)
            .filter(|slot| !broken.contains(slot)));
        for (slot, bits) in [(Slot::A, a), (Slot::B, b)] {
            let spent = u8::from(expected.contains(&slot) && bits.tries_left() > 0);
            prop_assert_eq!(bench.attributes(slot), bits.with_tries_left(bits.tries_left() - spent));
        }
        let spends = order[..tried].iter().any(|(_, bits)| bits.tries_left() > 0);
        prop_assert_eq!(bench.disk.log.is_empty(), !spends);
        if spends {
            prop_assert_eq!(bench.table().health(), Health::Intact);
        }
        bench.assert_only_the_table_differs(&before);
    }
}
