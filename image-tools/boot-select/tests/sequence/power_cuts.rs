//! The power is cut at every point of the loader's writes, sectors torn, writes between two flushes in any order.

use super::bench::{Bench, Damage, attributes, confirmed};
use disk::testing::{Recording, Sampling};
use protocol::gpt::Health;
use protocol::slot::{Attributes, Slot};

/// Every state that a cut can leave boots: the same slot as before with its old or its new number of tries, and once it
/// has booted both copies are whole.
fn every_state_boots(sector: u32, damage: Damage, a: Attributes, b: Attributes, broken: &[Slot]) -> usize {
    let mut bench = Bench::new(sector, a, b);
    bench.damage(damage);
    bench.broken = broken.to_vec();
    let before = bench.disk.image.clone();
    let _ = bench.boot();
    let after = [bench.attributes(Slot::A), bench.attributes(Slot::B)];
    let recording = Recording { block_size: sector, before: before.clone(), log: bench.disk.log.clone() };
    // One for all: there are thousands of states.
    let mut bench = Bench::new(sector, a, b);
    recording
        .crash_states(Sampling { tears: 6, random: 16, ..Sampling::default() }, &mut |state| {
            bench.disk.image.clone_from(&state.image);
            bench.assert_only_the_table_differs(&before);
            let left = [bench.attributes(Slot::A), bench.attributes(Slot::B)];
            for (left, ends) in left.into_iter().zip([(a, after[0]), (b, after[1])]) {
                if left != ends.0 && left != ends.1 {
                    return Err(format!("{left:?} is neither {:?} nor {:?}", ends.0, ends.1));
                }
            }
            let started = bench.boot()?;
            let spent = left[1].tries_left() > 0;
            if started != if left[1].bootable() { Slot::B } else { Slot::A } {
                return Err(format!("{started} was started of {left:?}"));
            }
            match bench.table().health() {
                Health::Intact => Ok(()),
                // Nothing was written: the tries were used up by the try that was cut.
                _ if !spent => Ok(()),
                other => Err(format!("{other:?} after the next boot")),
            }
        })
        .unwrap()
}

#[test]
fn every_state_that_a_power_cut_leaves_boots() {
    let mut states = 0;
    for sector in [512, 4096] {
        for damage in Damage::ALL {
            for tries in [1, 3] {
                let b = attributes(2, tries, false);
                states += every_state_boots(sector, damage, confirmed(1), b, &[]);
            }
        }
    }
    assert!(states > 2000, "{states}");
}

/// Two tries are spent in one boot, one after the other.
#[test]
fn a_power_cut_while_the_second_slot_spends_its_try() {
    for sector in [512, 4096] {
        every_state_boots(sector, Damage::None, attributes(1, 2, true), attributes(2, 2, false), &[Slot::B]);
    }
}
