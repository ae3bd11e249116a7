//! Steps 7, 8, 11 and 12 under power cuts: after any crash point, any reordering between two flushes and any torn
//! sector, a valid table, a bootable slot and its intact content are there, and what was interrupted can be done
//! again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows tests by their attribute, and these functions only serve them"
)]

mod check;
mod evidence;
mod mutations;
mod tiny;

use check::{Expected, prove};
use disk::Disk;
use protocol::slot::{Attributes, Slot};
use tiny::{Release, bits, image, open, update};

const SIZES: [u32; 2] = [512, 4096];

/// An operation on the attributes alone, from slot attributes `a` and `b`; `damage` is done to the disk before.
fn prove_change(
    block_size: u32,
    (a, b): (Attributes, Attributes),
    damage: &dyn Fn(&mut Vec<u8>),
    operation: &dyn Fn(&mut Disk) -> Result<(), disk::DiskError>,
) -> Result<usize, String> {
    let (old, new) = (Release::new(0x41), Release::new(0x82));
    let mut before = image(block_size, (&old, a), (&new, b));
    damage(&mut before);
    let (medium, mut disk) = open(before, block_size);
    let choice = |disk: &Disk| disk.select().expect("a slot can be booted").0;
    let first = choice(&disk);
    let run = |disk: &mut Disk| operation(disk).map_err(|error| format!("{error:?}"));
    run(&mut disk)?;
    let recording = medium.take_recording();
    assert!(!recording.log.is_empty(), "the operation did nothing");
    let after = medium.image();
    let choices = vec![first, choice(&disk)];
    // Idempotent: once done, doing it again writes nothing.
    run(&mut disk)?;
    assert!(medium.take_recording().log.is_empty(), "doing it again wrote something");
    prove(
        &recording,
        &Expected { contents: [&[&old], &[&new]], choices, free: Vec::new(), second_every: 23, after },
        &run,
    )
}

fn nothing(_: &mut Vec<u8>) {}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

fn each_size(name: &str, prove: impl Fn(u32) -> Result<usize, String>) {
    for block_size in SIZES {
        match prove(block_size) {
            Ok(states) => assert!(states > 150, "{name}, {block_size}: only {states} states"),
            Err(story) => panic!("{name}, sectors of {block_size}: {story}"),
        }
    }
}

#[test]
fn invalidating() {
    each_size("invalidate", |size| {
        // Slot B was confirmed once, or was activated and never booted.
        let mut fewest = usize::MAX;
        for b in [bits(1, 0, true), bits(3, 3, false)] {
            let states = prove_change(size, (bits(2, 0, true), b), &nothing, &|disk| {
                let target = disk::TargetSlot::new(disk, Slot::B, Slot::A, &disk::testing::NotMounted)?;
                disk.invalidate(target).map(|_| ())
            })?;
            fewest = fewest.min(states);
        }
        Ok(fewest)
    });
}

#[test]
fn activating() {
    each_size("activate", |size| {
        prove_change(size, (bits(7, 0, true), bits(0, 0, false)), &nothing, &|disk| {
            // Done already: an engine does not invalidate what it has activated.
            if disk.attributes(Slot::B) == activated_with_others() {
                return disk.repair().map(|_| ());
            }
            let target = disk::TargetSlot::new(disk, Slot::B, Slot::A, &disk::testing::NotMounted)?;
            let invalidated = disk.invalidate(target)?;
            let staged =
                invalidated.verify(&Release::new(0x82).images(), &|_| ()).expect("the content is there");
            disk.activate(staged, Release::new(0x82).digest(), Slot::A, 3)
        })
    });
}

/// The tiny disk's own bits are kept.
fn activated_with_others() -> Attributes {
    Attributes::from_bits(bits(2, 3, false).bits() | 1 << 60 | 4)
}

#[test]
fn undoing_the_flip() {
    each_size("deactivate", |size| {
        prove_change(size, (bits(1, 0, true), bits(2, 3, false)), &nothing, &|disk| {
            disk.deactivate(Slot::B, Slot::A)
        })
    });
}

#[test]
fn confirming() {
    each_size("confirm", |size| {
        prove_change(size, (bits(1, 0, true), bits(2, 2, false)), &nothing, &|disk| disk.confirm(Slot::B))
    });
}

#[test]
fn condemning() {
    each_size("condemn", |size| {
        prove_change(size, (bits(1, 0, true), bits(2, 1, false)), &nothing, &|disk| disk.condemn(Slot::B))
    });
}

#[test]
fn reverting_and_restoring() {
    each_size("revert", |size| {
        let from = (bits(1, 0, true), bits(2, 0, true));
        prove_change(size, from, &nothing, &|disk| disk.revert(Slot::A, Slot::B, 2))
    });
    each_size("restore", |size| {
        let from = (bits(2, 2, false), bits(1, 0, true));
        prove_change(size, from, &nothing, &|disk| disk.restore(Slot::A, Slot::B))
    });
}

/// Booting is not idempotent: each spends a try. So the state after is checked, and that the next boot works.
#[test]
fn spending_a_try() {
    let (old, new) = (Release::new(0x41), Release::new(0x82));
    for block_size in SIZES {
        for tries in [3, 1] {
            let before = image(block_size, (&old, bits(1, 0, true)), (&new, bits(2, tries, false)));
            let (medium, _) = open(before, block_size);
            assert_eq!(disk::testing::boot(medium.clone()), Ok(Slot::B));
            let recording = medium.take_recording();
            let (_, disk) = open(medium.image(), block_size);
            let choices = vec![Slot::B, disk.select().unwrap().0];
            let expected = Expected {
                contents: [&[&old], &[&new]],
                choices,
                free: Vec::new(),
                second_every: 1,
                after: Vec::new(),
            };
            let states = recording
                .crash_states(disk::testing::Sampling::default(), &mut |state| {
                    check::survives(state, block_size, &expected)?;
                    let (_, disk) = open(state.image.clone(), block_size);
                    let left = disk.attributes(Slot::B).tries_left();
                    if left == tries || left == tries - 1 {
                        Ok(())
                    } else {
                        Err(format!("{left} tries left"))
                    }
                })
                .unwrap();
            assert!(states > 150);
        }
    }
}

/// Every way in which one copy may be damaged, or the copies differ, before a repair is interrupted in turn.
#[test]
fn repairing() {
    let from = (bits(2, 0, true), bits(1, 0, true));
    each_size("repair", |size| {
        let sector = size as usize;
        let damages: [(&str, Damage<'_>); 6] = [
            ("primary header", &|image| image[sector + 20..sector + 60].fill(0xa5)),
            ("primary header gone", &|image| image[sector..2 * sector].fill(0)),
            ("primary entries", &|image| image[2 * sector + 200] ^= 1),
            ("backup header", &|image| {
                let end = image.len();
                image[end - sector + 7] ^= 0xff;
            }),
            ("backup entries", &|image| {
                let end = image.len();
                image[end - 2 * sector - 300] ^= 1;
            }),
            ("copies differ", &|image| {
                // The backup of an interrupted change: valid, and newer than the primary.
                let (medium, mut disk) = open(image.clone(), size);
                disk.condemn(Slot::B).unwrap();
                let log = medium.take_recording().log;
                let flush = log.iter().position(|op| *op == disk::testing::Operation::Flush).unwrap();
                for operation in &log[..flush] {
                    let disk::testing::Operation::Write { offset, bytes } = operation else { continue };
                    let start = usize::try_from(*offset).unwrap();
                    image[start..start + bytes.len()].copy_from_slice(bytes);
                }
            }),
        ];
        let mut states = 0;
        for (name, damage) in damages {
            states += prove_change(size, from, damage, &|disk| disk.repair().map(|_| ()))
                .map_err(|story| format!("{name}: {story}"))?;
            // A change repairs first, and is as safe.
            states += prove_change(size, from, damage, &|disk| disk.condemn(Slot::B))
                .map_err(|story| format!("{name}, then a change: {story}"))?;
        }
        Ok(states)
    });
}

/// A table behind an empty first sector is found by us and by nobody else.
#[test]
fn what_took_the_first_sector_is_made_good() {
    for size in [512, 4096] {
        let release = Release::new(0x41);
        let whole = image(size, (&release, bits(2, 0, true)), (&release, bits(1, 0, true)));
        let (_, mut disk) = open(whole.clone(), size);
        disk.repair().unwrap();
        assert!(disk.is_protected().unwrap());
        let mut wiped = disk_image(&disk);
        let good = wiped.clone();
        wiped[..2 * size as usize].fill(0);
        let (medium, mut disk) = open(wiped, size);
        assert!(!disk.is_protected().unwrap());
        assert!(disk.repair().unwrap());
        assert!(disk.is_protected().unwrap() && !disk.repair().unwrap());
        assert_eq!(medium.image(), good, "every byte is back");
    }
}

fn disk_image(disk: &Disk) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(disk.medium().len()).unwrap()];
    disk.medium().read_at(0, &mut image).unwrap();
    image
}

/// The whole update, with a slot that held an older release before: all of its partitions are of one release wherever
/// it can be booted.
#[test]
fn updating() {
    prove_update(&Release::new(0x41), &Release::new(0x17), &Release::new(0x82));
}

/// The same on a machine whose slots start from the root partition alone; what another release left in the other slot's
/// boot partition is gone before that slot can be booted.
#[test]
fn updating_without_a_boot_image() {
    prove_update(&Release::new(0x41).without_boot(), &Release::new(0x17), &Release::new(0x82).without_boot());
}

/// And the first update that brings a boot image.
#[test]
fn updating_to_the_first_boot_image() {
    prove_update(&Release::new(0x41).without_boot(), &Release::new(0x17).without_boot(), &Release::new(0x82));
}

fn prove_update(running: &Release, stale: &Release, new: &Release) {
    each_size("update", |size| {
        let before = image(size, (running, bits(2, 0, true)), (stale, bits(1, 0, true)));
        let (medium, mut disk) = open(before, size);
        update(&mut disk, new, Slot::A)?;
        let recording = medium.take_recording();
        let expected = Expected {
            contents: [&[running], &[stale, new]],
            choices: vec![Slot::A, Slot::B],
            free: new.behind(&disk, Slot::B),
            second_every: 397,
            after: medium.image(),
        };
        // The slot that is left over may be booted only if it holds a whole release: `survives` looks at that. Where B
        // is chosen it must be the new one, which `stale` never is, its priority being below that of A.
        prove(&recording, &expected, &|disk| {
            let choice = disk.select().map(|(slot, _)| slot);
            if choice == Some(Slot::B) && !new.is_on(disk, Slot::B) {
                return Err("slot B would boot without the new release".to_owned());
            }
            // As an engine does that starts anew: from the beginning, unless the flip is complete.
            if choice == Some(Slot::B) {
                disk.repair().map(|_| ()).map_err(|e| e.to_string())
            } else {
                update(disk, new, Slot::A)
            }
        })
    });
}

/// A write that fails, as the engine sees a power cut: the disk is still good, and so is the next attempt.
#[test]
fn failing_at_every_operation() {
    let (running, stale, new) = (Release::new(0x41), Release::new(0x17), Release::new(0x82));
    for size in SIZES {
        for operations in 0.. {
            let before = image(size, (&running, bits(2, 0, true)), (&stale, bits(1, 0, true)));
            let (medium, mut disk) = open(before, size);
            medium.cut_power_after(operations);
            let done = update(&mut disk, &new, Slot::A).is_ok();
            let (medium, mut disk) = open(medium.image(), size);
            let booted = disk::testing::boot(medium.clone()).unwrap();
            assert!(if booted == Slot::A { running.is_on(&disk, booted) } else { new.is_on(&disk, booted) });
            if done {
                assert!(operations > 10 && booted == Slot::B);
                break;
            }
            if booted == Slot::A {
                update(&mut disk, &new, Slot::A).unwrap();
                assert_eq!(disk::testing::boot(medium), Ok(Slot::B));
            }
            disk.confirm(Slot::B).unwrap();
            assert_eq!(disk.health(), disk::TableHealth::Intact);
        }
    }
}
