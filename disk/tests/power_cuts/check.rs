//! What must hold after a power cut, and after what was interrupted is done again.

use crate::tiny::{Release, open};
use disk::testing::{CrashState, Recording, Sampling};
use disk::{Disk, TableHealth};
use protocol::slot::Slot;
use std::ops::Range;

/// What an operation may leave behind.
pub(crate) struct Expected<'a> {
    /// For each slot, the releases that it may hold whenever it can be booted.
    pub(crate) contents: [&'a [&'a Release]; 2],
    /// The slots that boot selection may choose: the old choice and the new one.
    pub(crate) choices: Vec<Slot>,
    /// Bytes that nobody reads, where a torn sector may have left anything.
    pub(crate) free: Vec<Range<usize>>,
    /// A second power cut is tried from each state of this step.
    pub(crate) second_every: usize,
    /// What the disk holds after the operation, uninterrupted.
    pub(crate) after: Vec<u8>,
}

/// The sampling of power cuts during the recovery from a power cut: there are many of them.
const SECOND: Sampling = Sampling { exhaustive: 2, tears: 2, random: 4, seed: 2 };

/// Checks every state that a power cut during `recording` may leave, and that `again`, run on it, ends as if nothing
/// had happened, also when a second power cut interrupts that.
///
/// Answers with the number of states, or with the story of the first one that is wrong.
pub(crate) fn prove(
    recording: &Recording,
    expected: &Expected<'_>,
    again: &dyn Fn(&mut Disk) -> Result<(), String>,
) -> Result<usize, String> {
    let block_size = recording.block_size;
    let mut seen = 0;
    let mut count = recording.crash_states(Sampling::default(), &mut |state| {
        survives(state, block_size, expected)?;
        let recovery = recovers(state, block_size, expected, again)?;
        seen += 1;
        // Two cuts in a row are the square of the states: only from some is a second one tried. The step shares no
        // factor with the harness's loops, so that all kinds of states have their turn.
        if seen % expected.second_every == 0 {
            recovery.crash_states(SECOND, &mut |second| {
                survives(second, block_size, expected)?;
                recovers(second, block_size, expected, again).map(|_| ())
            })?;
        }
        Ok(())
    })?;
    count += seen / expected.second_every;
    Ok(count)
}

/// The disk boots, as it is: a valid table, an allowed choice, an intact slot; also after the loader spent a try.
pub(crate) fn survives(state: &CrashState, block_size: u32, expected: &Expected<'_>) -> Result<(), String> {
    let medium = std::sync::Arc::new(disk::testing::RecordingMedium::new(state.image.clone(), block_size));
    let disk = Disk::open(medium.clone(), &disk::SlotLayout::default())
        .map_err(|e| format!("no usable table: {e:?}"))?;
    for slot in Slot::ALL {
        if disk.attributes(slot).bootable() && !intact(&disk, slot, expected) {
            return Err(format!("slot {slot} can be booted and is not intact"));
        }
    }
    let choice = disk.select().ok_or("no slot can be booted")?.0;
    if !expected.choices.contains(&choice) {
        return Err(format!("slot {choice} would boot: expected one of {:?}", expected.choices));
    }
    let booted = disk::testing::boot(medium).map_err(|none| format!("the loader fails: {none}"))?;
    if booted != choice {
        return Err(format!("the loader boots slot {booted}: expected slot {choice}"));
    }
    Ok(())
}

fn intact(disk: &Disk, slot: Slot, expected: &Expected<'_>) -> bool {
    let allowed = match slot {
        Slot::A => expected.contents[0],
        Slot::B => expected.contents[1],
    };
    allowed.iter().any(|release| release.is_on(disk, slot))
}

/// Doing it again ends where an uninterrupted run ends, byte for byte. Answers with what that did.
fn recovers(
    state: &CrashState,
    block_size: u32,
    expected: &Expected<'_>,
    again: &dyn Fn(&mut Disk) -> Result<(), String>,
) -> Result<Recording, String> {
    let (medium, mut disk) = open(state.image.clone(), block_size);
    again(&mut disk).map_err(|error| format!("doing it again fails: {error}"))?;
    if disk.health() != TableHealth::Intact {
        return Err(format!("doing it again leaves the table damaged: {}", disk.health()));
    }
    let recording = medium.take_recording();
    let image = medium.image();
    let free = |at: usize| {
        behind_a_header(at, image.len(), block_size) || expected.free.iter().any(|range| range.contains(&at))
    };
    for (i, (found, after)) in image.chunks(512).zip(expected.after.chunks(512)).enumerate() {
        // Whole sectors first: there are very many bytes.
        if found != after
            && let Some(at) = (0..found.len()).find(|at| found[*at] != after[*at] && !free(i * 512 + at))
        {
            return Err(format!("doing it again ends otherwise at byte {}", i * 512 + at));
        }
    }
    Ok(recording)
}

/// Whether a byte lies in the sector of a header, behind the header itself: nothing reads it and no checksum covers
/// it, so garbage that a torn write left there is as good as what was there.
fn behind_a_header(at: usize, len: usize, block_size: u32) -> bool {
    let sector = block_size as usize;
    [sector, len - sector].iter().any(|header| (header + 92..header + sector).contains(&at))
}
