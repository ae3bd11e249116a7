//! The test of the tests: orders of writing that are known to be wrong are found out, so the proofs can fail.

use crate::SIZES;
use crate::check::{Expected, prove, survives};
use crate::tiny::{Release, bits, image, open, update};
use disk::testing::{NotMounted, Operation, Recording, RecordingMedium, Sampling};
use disk::{Medium as _, TargetSlot};
use gpt::disk::LogicalBlockSize;
use protocol::slot::Slot;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

/// The steps of a correct commit: backup entries, backup header, flush, primary entries, primary header, flush.
fn recorded_commit(block_size: u32) -> (Recording, Vec<u8>) {
    let before =
        image(block_size, (&Release::new(1), bits(2, 0, true)), (&Release::new(2), bits(1, 0, true)));
    let (medium, mut disk) = open(before, block_size);
    disk.condemn(Slot::B).unwrap();
    (medium.take_recording(), medium.image())
}

fn verdict(recording: &Recording, after: Vec<u8>) -> Result<usize, String> {
    let (a, b) = (Release::new(1), Release::new(2));
    let expected = Expected {
        contents: [&[&a], &[&b]],
        choices: vec![Slot::A, Slot::B],
        free: Vec::new(),
        second_every: 23,
        after,
    };
    prove(recording, &expected, &|disk| disk.condemn(Slot::B).map_err(|error| format!("{error:?}")))
}

#[test]
fn the_order_of_a_commit_matters() {
    for size in SIZES {
        let (recording, after) = recorded_commit(size);
        let log = &recording.log;
        assert_eq!(log.len(), 6, "{log:?}");
        let reordered = |order: &[usize]| Recording {
            log: order.iter().map(|step| log[*step].clone()).collect(),
            ..recording.clone()
        };
        let (backup_entries, backup_header, flush, entries, header) = (0, 1, 2, 3, 4);
        verdict(&reordered(&[backup_entries, backup_header, flush, entries, header, flush]), after.clone())
            .unwrap();
        for (wrong, order) in [
            ("no flush between the copies", vec![backup_entries, backup_header, entries, header, flush]),
            (
                "the entries of both copies, then the headers",
                vec![entries, backup_entries, flush, backup_header, header, flush],
            ),
            (
                "the same with a flush after every write",
                vec![entries, flush, backup_entries, flush, backup_header, flush, header, flush],
            ),
            (
                "a header before the flush of its own copy's other half, and the other copy's entries with it",
                vec![backup_header, entries, flush, backup_entries, header, flush],
            ),
        ] {
            let story = verdict(&reordered(&order), after.clone()).expect_err(wrong);
            assert!(story.contains("no usable table"), "{wrong}: {story}");
        }
    }
}

/// What the `gpt` crate's own write does to a live disk.
#[test]
fn the_gpt_crate_is_not_power_cut_safe() {
    for (size, sectors) in [(512, LogicalBlockSize::Lb512), (4096, LogicalBlockSize::Lb4096)] {
        let before = image(size, (&Release::new(1), bits(2, 0, true)), (&Release::new(2), bits(1, 0, true)));
        let medium = Arc::new(RecordingMedium::new(before, size));
        let device = Device { medium: medium.clone(), at: 0 };
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(sectors)
            .open_from_device(device)
            .unwrap();
        let mut partitions = table.partitions().clone();
        partitions.get_mut(&5).unwrap().flags ^= 1 << 52;
        table.update_partitions(partitions).unwrap();
        table.write_inplace().unwrap();
        let (a, b) = (Release::new(1), Release::new(2));
        let choices = vec![Slot::A, Slot::B];
        let expected = Expected {
            contents: [&[&a], &[&b]],
            choices,
            free: Vec::new(),
            second_every: 1,
            after: medium.image(),
        };
        let story = medium
            .take_recording()
            .crash_states(Sampling::default(), &mut |state| survives(state, size, &expected))
            .unwrap_err();
        assert!(story.contains("no usable table"), "{story}");
    }
}

/// The crate's flushes count as real ones here, in its favour.
#[derive(Debug)]
struct Device {
    medium: Arc<RecordingMedium>,
    at: u64,
}

impl Read for Device {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.medium.len().saturating_sub(self.at)).unwrap();
        let count = buf.len().min(left);
        self.medium.read_at(self.at, &mut buf[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Write for Device {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.medium.write_at(self.at, bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.medium.flush()
    }
}

impl Seek for Device {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(by) => self.medium.len().checked_add_signed(by).unwrap(),
            SeekFrom::Current(by) => self.at.checked_add_signed(by).unwrap(),
        };
        Ok(self.at)
    }
}

/// Writing a slot that can still be booted.
#[test]
fn a_slot_that_was_not_invalidated_is_found_out() {
    let (running, stale, new) = (Release::new(0x41), Release::new(0x17), Release::new(0x82));
    for size in SIZES {
        let before = image(size, (&running, bits(2, 0, true)), (&stale, bits(1, 0, true)));
        let (medium, mut disk) = open(before.clone(), size);
        // The writes of the slot alone, recorded behind the invalidation and replayed without it.
        let target = TargetSlot::new(&disk, Slot::B, Slot::A, &NotMounted).unwrap();
        let invalidated = disk.invalidate(target).unwrap();
        let _ = medium.take_recording();
        new.write_to(&invalidated).unwrap();
        let recording = Recording { before, ..medium.take_recording() };
        assert!(recording.log.iter().all(|operation| matches!(operation, Operation::Write { .. })));
        let (complete, mut disk) = open(recording.before.clone(), size);
        update(&mut disk, &new, Slot::A).unwrap();
        let expected = Expected {
            contents: [&[&running], &[&stale, &new]],
            choices: vec![Slot::A, Slot::B],
            free: new.behind(&disk, Slot::B),
            second_every: 397,
            after: complete.image(),
        };
        let story = prove(&recording, &expected, &|disk| update(disk, &new, Slot::A)).unwrap_err();
        assert!(story.contains("slot B can be booted and is not intact"), "{story}");
    }
}
