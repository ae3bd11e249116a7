//! Steps 7, 8 and 11 under power cuts: a medium that records what is done to it, and every state in which a power cut
//! may leave it. For tests, of this crate and of those above it (feature `testing`).
//!
//! The model of a power cut: everything before the last completed flush is on the medium. Of the writes after it, any
//! may be missing, whatever their order; a write of several sectors may have stopped after any 512 bytes, also where
//! sectors are larger; and the 512 bytes it stopped in may hold garbage. Nothing else changes.

mod loader;

pub use loader::boot;

use crate::medium::{Medium, ReadBack};
use crate::mounts::MountTable;
use crate::table::PartitionView;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The unit in which a write may be torn, in bytes.
const TORN: usize = 512;

/// A change of a medium.
#[derive(Clone, PartialEq, Eq)]
pub enum Operation {
    /// Whole sectors written.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A flush that returned.
    Flush,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, bytes } => write!(f, "Write({} bytes at {offset})", bytes.len()),
            Self::Flush => f.write_str("Flush"),
        }
    }
}

/// A disk in memory that records its writes and flushes.
pub struct RecordingMedium {
    block_size: u32,
    state: Mutex<State>,
}

struct State {
    before: Vec<u8>,
    image: Vec<u8>,
    log: Vec<Operation>,
    /// Operations until the power is cut.
    remaining: Option<usize>,
}

impl RecordingMedium {
    /// A disk that holds `image`, with sectors of `block_size` bytes.
    #[must_use]
    pub fn new(image: Vec<u8>, block_size: u32) -> Self {
        let state = State { before: image.clone(), image, log: Vec::new(), remaining: None };
        Self { block_size, state: Mutex::new(state) }
    }

    /// What the disk holds now, caches included.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.state().image.clone()
    }

    /// What was done since the disk was made or this was called last.
    #[must_use]
    pub fn take_recording(&self) -> Recording {
        let mut state = self.state();
        let image = state.image.clone();
        Recording {
            block_size: self.block_size,
            before: std::mem::replace(&mut state.before, image),
            log: std::mem::take(&mut state.log),
        }
    }

    /// After this many more writes and flushes everything fails: what a running program sees of a power cut.
    pub fn cut_power_after(&self, operations: usize) {
        self.state().remaining = Some(operations);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RecordingMedium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "RecordingMedium({} bytes, {} operations)", state.image.len(), state.log.len())
    }
}

impl State {
    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(len) {
            Some(end) if end <= self.image.len() => Ok(start..end),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "outside of the recorded disk")),
        }
    }

    fn powered(&self) -> io::Result<()> {
        if self.remaining == Some(0) { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    fn record(&mut self, operation: Operation) {
        self.log.push(operation);
        self.remaining = self.remaining.map(|left| left - 1);
    }
}

impl Medium for RecordingMedium {
    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn len(&self) -> u64 {
        self.state().image.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        state.powered()?;
        buf.copy_from_slice(&state.image[state.range(offset, buf.len())?]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.powered()?;
        let range = state.range(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        state.image[range.clone()].copy_from_slice(bytes);
        // A disk takes whole sectors: what is around the bytes is written with them.
        let sector = self.block_size as usize;
        let start = range.start / sector * sector;
        let end = range.end.next_multiple_of(sector).min(state.image.len());
        let bytes = state.image[start..end].to_vec();
        state.record(Operation::Write { offset: start as u64, bytes });
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.state().range(offset, len)?;
        self.write_at(offset, &vec![0; len])
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        state.powered()?;
        state.record(Operation::Flush);
        Ok(())
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> io::Result<ReadBack> {
        self.read_at(offset, buf).map(|()| ReadBack::Direct)
    }
}

/// A [`MountTable`] by which nothing is mounted.
#[derive(Clone, Copy, Debug)]
pub struct NotMounted;

impl MountTable for NotMounted {
    fn is_in_use(&self, _disk: &Path, _partition: &PartitionView) -> io::Result<Option<String>> {
        Ok(None)
    }
}

/// What was done to a disk, and what it held before.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The sector size in bytes.
    pub block_size: u32,
    /// What the disk held before.
    pub before: Vec<u8>,
    /// What was done.
    pub log: Vec<Operation>,
}

/// How many states to try where they are too many to try all.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// All subsets of up to this many writes between two flushes are tried, else some.
    pub exhaustive: usize,
    /// Up to this many places to tear each write in are tried, evenly spread.
    pub tears: usize,
    /// How many states at random are tried between two flushes.
    pub random: usize,
    /// The seed of what is random.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { exhaustive: 8, tears: 16, random: 64, seed: 1 }
    }
}

/// A disk as a power cut left it.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// What it holds.
    pub image: Vec<u8>,
    /// How it came about, for the message of a failing test.
    pub story: String,
}

/// What became of 512 written bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Old,
    New,
    /// The first half new, the second garbage.
    NewGarbage,
    /// The first half garbage, the second new.
    GarbageNew,
    /// The first half garbage, the second old.
    GarbageOld,
    Garbage,
}

const TORN_FATES: [Fate; 5] =
    [Fate::New, Fate::NewGarbage, Fate::GarbageNew, Fate::GarbageOld, Fate::Garbage];

/// 512 bytes of one write.
struct Piece<'a> {
    at: usize,
    bytes: &'a [u8],
}

impl Recording {
    /// Shows `visit` the states in which a power cut may leave the disk, until it answers with an error: all of them
    /// where they are few, a sample by seed where they are many. Answers with their number.
    ///
    /// # Errors
    /// The first error of `visit`, with the story of the state that caused it.
    pub fn crash_states(
        &self,
        sampling: Sampling,
        visit: &mut dyn FnMut(&CrashState) -> Result<(), String>,
    ) -> Result<usize, String> {
        let mut image = self.before.clone();
        let mut count = 0;
        let mut random = Random(sampling.seed);
        // One for all: there are tens of thousands of states.
        let mut state = CrashState { image: Vec::new(), story: String::new() };
        for (number, epoch) in self.log.split(|operation| *operation == Operation::Flush).enumerate() {
            let writes: Vec<Vec<Piece<'_>>> = epoch.iter().map(pieces).collect();
            let total: usize = writes.iter().map(Vec::len).sum();
            let mut show = |fates: &[Vec<Fate>], what: String, random: &mut Random| {
                state.image.clone_from(&image);
                state.story = format!("after {number} flushes: {what}");
                for (write, fates) in writes.iter().zip(fates) {
                    write
                        .iter()
                        .zip(fates)
                        .for_each(|(piece, fate)| apply(&mut state.image, piece, *fate, random));
                }
                count += 1;
                visit(&state).map_err(|error| format!("{}: {error}", state.story))
            };
            if total > 0 || number == 0 {
                subsets(&writes, sampling, &mut random, &mut show)?;
                tears(&writes, sampling, &mut random, &mut show)?;
            }
            for sample in 0..if total > 0 { sampling.random } else { 0 } {
                let fates: Vec<Vec<Fate>> =
                    writes.iter().map(|write| write.iter().map(|_| random.fate()).collect()).collect();
                show(&fates, format!("random state {sample}"), &mut random)?;
            }
            for piece in writes.iter().flatten() {
                apply(&mut image, piece, Fate::New, &mut random);
            }
        }
        visit(&CrashState { image, story: "everything written".to_owned() })?;
        Ok(count + 1)
    }
}

type Show<'a> = dyn FnMut(&[Vec<Fate>], String, &mut Random) -> Result<(), String> + 'a;

fn pieces(operation: &Operation) -> Vec<Piece<'_>> {
    match operation {
        Operation::Flush => Vec::new(),
        Operation::Write { offset, bytes } => {
            let start = usize::try_from(*offset).unwrap_or(usize::MAX);
            let piece = |(i, bytes)| Piece { at: start + i * TORN, bytes };
            bytes.chunks(TORN).enumerate().map(piece).collect()
        }
    }
}

fn apply(image: &mut [u8], piece: &Piece<'_>, fate: Fate, random: &mut Random) {
    let place = &mut image[piece.at..piece.at + piece.bytes.len()];
    let half = place.len() / 2;
    let (first, second) = place.split_at_mut(half);
    match fate {
        Fate::Old | Fate::GarbageOld | Fate::Garbage => {}
        Fate::New | Fate::NewGarbage => first.copy_from_slice(&piece.bytes[..half]),
        Fate::GarbageNew => {}
    }
    if matches!(fate, Fate::New | Fate::GarbageNew) {
        second.copy_from_slice(&piece.bytes[half..]);
    }
    if matches!(fate, Fate::GarbageNew | Fate::GarbageOld | Fate::Garbage) {
        random.fill(first);
    }
    if matches!(fate, Fate::NewGarbage | Fate::Garbage) {
        random.fill(second);
    }
}

/// Whole writes, each there or missing: every prefix, and every other subset where they are few.
fn subsets(
    writes: &[Vec<Piece<'_>>],
    sampling: Sampling,
    random: &mut Random,
    show: &mut Show<'_>,
) -> Result<(), String> {
    let count = writes.len();
    let mut present: Vec<Vec<bool>> = Vec::new();
    if count <= sampling.exhaustive.min(16) {
        present.extend((0..1_u32 << count).map(|set| (0..count).map(|i| set >> i & 1 == 1).collect()));
    } else {
        present.extend((0..=count).map(|prefix| (0..count).map(|i| i < prefix).collect()));
        present.extend((0..count).map(|missing| (0..count).map(|i| i != missing).collect()));
        present.extend((0..count).map(|_| (0..count).map(|_| random.next() & 1 == 1).collect()));
    }
    for set in present {
        let fates: Vec<Vec<Fate>> = writes
            .iter()
            .zip(&set)
            .map(|(write, there)| vec![if *there { Fate::New } else { Fate::Old }; write.len()])
            .collect();
        let there: Vec<usize> = (0..count).filter(|i| set[*i]).collect();
        show(&fates, format!("of {count} writes {there:?}"), random)?;
    }
    Ok(())
}

/// One write stopped half-way, the others missing, there, or there up to it.
fn tears(
    writes: &[Vec<Piece<'_>>],
    sampling: Sampling,
    random: &mut Random,
    show: &mut Show<'_>,
) -> Result<(), String> {
    for (torn, write) in writes.iter().enumerate() {
        for place in spread(write.len(), sampling.tears) {
            for fate in TORN_FATES {
                for (others, until) in [("missing", 0), ("there up to it", torn), ("there", writes.len())] {
                    let fates: Vec<Vec<Fate>> = (0..writes.len())
                        .map(|i| {
                            let mut fates =
                                vec![if i < until { Fate::New } else { Fate::Old }; writes[i].len()];
                            if i == torn {
                                fates[..place].fill(Fate::New);
                                fates[place..].fill(Fate::Old);
                                fates[place] = fate;
                            }
                            fates
                        })
                        .collect();
                    show(&fates, format!("write {torn} torn at {place}, others {others}"), random)?;
                }
            }
        }
    }
    Ok(())
}

/// Up to `most` of the numbers below `count`, the first and the last among them.
fn spread(count: usize, most: usize) -> Vec<usize> {
    if count <= most || most < 2 {
        return (0..count).collect();
    }
    (0..most).map(|i| i * (count - 1) / (most - 1)).collect()
}

/// Splitmix64: the same seed gives the same states everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    fn fate(&mut self) -> Fate {
        match self.next() % 20 {
            0..=8 => Fate::Old,
            9..=15 => Fate::New,
            16 => Fate::NewGarbage,
            17 => Fate::GarbageNew,
            18 => Fate::GarbageOld,
            _ => Fate::Garbage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn recorded(operations: &[Operation]) -> Recording {
        Recording { block_size: 512, before: vec![0; 4096], log: operations.to_vec() }
    }

    fn write(sector: u64, value: u8) -> Operation {
        Operation::Write { offset: sector * 512, bytes: vec![value; 512] }
    }

    fn states(recording: &Recording) -> HashSet<Vec<u8>> {
        let mut found = HashSet::new();
        recording
            .crash_states(Sampling::default(), &mut |state| {
                found.insert(state.image.iter().copied().step_by(512).take(4).collect());
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn writes_between_flushes_come_in_any_order_and_not_across_them() {
        let found = states(&recorded(&[write(0, 1), write(1, 1), Operation::Flush, write(2, 1)]));
        for reached in [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]] {
            assert!(found.contains(reached.as_slice()), "{reached:?}");
        }
        // The third write may not be there while one before the flush is missing.
        assert!(found.iter().all(|state| state[2] == 0 || (state[0], state[1]) == (1, 1)));
    }

    #[test]
    fn torn_sectors_hold_garbage() {
        let found = states(&recorded(&[write(0, 1)]));
        assert!(found.iter().any(|state| state[0] > 1));
    }

    #[test]
    fn partial_sectors_are_recorded_whole_and_the_power_can_be_cut() {
        let medium = RecordingMedium::new(vec![7; 4096], 512);
        medium.write_at(500, &[1; 24]).unwrap();
        medium.flush().unwrap();
        let recording = medium.take_recording();
        let Operation::Write { offset: 0, bytes } = &recording.log[0] else { panic!("{:?}", recording.log) };
        assert_eq!((bytes.len(), bytes[499], bytes[500], bytes[524]), (1024, 7, 1, 7));
        assert!(medium.take_recording().log.is_empty());
        medium.cut_power_after(1);
        medium.write_at(0, &[2]).unwrap();
        assert!(medium.write_at(0, &[3]).is_err() && medium.flush().is_err());
        assert!(medium.read_at(0, &mut [0]).is_err());
        assert_eq!(medium.image()[0], 2);
    }
}
