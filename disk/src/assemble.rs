//! Steps 5 to 7, download to slot: the chunks of a payload, from the network and from this node's slots, put together
//! on the target.
//!
//! One thread (the caller's) takes stored bytes from their source in the order of the payload and deals out segments;
//! worker threads decode, check and write them. Every chunk's SHA-256 is checked before a byte of it is written. A
//! place that was found by [`seeds`](crate::seeds) may be overwritten before it is used, because the target's old
//! content serves as well: such a chunk is *stale*, is left out, and is fetched in a second round.
//!
//! Memory: two buffers of a segment for each worker and for each place in the queue, whatever the image size.

use crate::plan::{GAP, Origin, Plan};
use crate::seeds::SeedMap;
use crate::window::SlotWindow;
use protocol::id::PartitionRole;
use protocol::payload::{Content, Index, Partition};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

#[cfg(test)]
mod tests;
mod worker;

/// How many rounds are made before a target that does not keep what is written to it is given up.
const ROUNDS_MAX: u32 = 4;

/// Where the stored bytes of a payload come from: a file, or the network.
pub trait StoredBytes {
    /// Hands all of `ranges` to `sink`, in their order and each from its start, in pieces of any length, each with
    /// its place in the payload file.
    ///
    /// # Errors
    /// [`SourceError::Failed`] where the bytes cannot be had; [`SourceError::Stopped`] when `sink` says so, and then
    /// at once.
    fn read(&mut self, ranges: &[Range<u64>], sink: &mut Sink<'_>) -> Result<(), SourceError>;
}

/// Takes bytes of the payload file with their offset in it.
pub type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Stopped> + 'a;

/// No more bytes are wanted: something else failed, which is reported in its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// Why stored bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The sink wanted no more.
    #[error("the installation stopped for another reason")]
    Stopped,
    /// The source failed; another try may help.
    #[error("cannot read the payload")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The source did not keep to what was asked.
    #[error("the payload's source gave bytes from {found}: expected them from {expected}")]
    Order {
        /// Offset expected.
        expected: u64,
        /// Offset found.
        found: u64,
    },
}

impl From<Stopped> for SourceError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// How far an installation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Length of the images in bytes.
    pub bytes_total: u64,
    /// How many of them stand in their place.
    pub bytes_done: u64,
    /// Bytes that came from the source so far.
    pub bytes_downloaded: u64,
}

/// What an installation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstallReport {
    /// Length of the images in bytes.
    pub bytes_total: u64,
    /// Bytes that came from the source.
    pub bytes_downloaded: u64,
    /// Bytes written, zeroes not counted.
    pub bytes_written: u64,
    /// Bytes made zero.
    pub bytes_zeroed: u64,
    /// Bytes that already stood in their place.
    pub bytes_in_place: u64,
    /// Chunks whose seed was overwritten before it was used, and what depended on them.
    pub chunks_stale: usize,
    /// Rounds made: 1, and more where seeds were stale.
    pub rounds: u32,
}

/// Why an installation failed. The target holds a mixture; a further try goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The network or the file with the payload: worth another try.
    #[error("cannot fetch the payload")]
    Source(#[source] SourceError),
    /// The stored bytes are not what the signed index says. Nothing of the chunk was written.
    #[error("chunk {chunk} of the partition {role} (at {offset}) is not what the index says: {problem}")]
    Content {
        /// The partition.
        role: PartitionRole,
        /// Number of the chunk, counted over all partitions.
        chunk: usize,
        /// Where it belongs, in bytes from the start of the partition.
        offset: u64,
        /// Expected and found.
        problem: String,
    },
    /// The target or a seed cannot be read or written.
    #[error("cannot {what} the partition {role} at {offset}")]
    Disk {
        /// What was tried.
        what: &'static str,
        /// The partition.
        role: PartitionRole,
        /// Where, in bytes from its start.
        offset: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The target cannot hold the image.
    #[error("the image of the partition {role} has {needed} bytes: the target has {found}")]
    TooSmall {
        /// The partition.
        role: PartitionRole,
        /// Length of the image in bytes.
        needed: u64,
        /// Length of the target in bytes.
        found: u64,
    },
    /// The slot lacks a partition.
    #[error("the payload has a partition {0}, for which there is no target")]
    NoTarget(PartitionRole),
    /// What was written there reads differently.
    #[error("the target does not keep what is written to it: {chunks} chunks changed after {rounds} rounds")]
    Unstable {
        /// How many.
        chunks: usize,
        /// Rounds made.
        rounds: u32,
    },
    /// No memory for a decompressor.
    #[error("cannot decompress")]
    Decompressor(#[source] protocol::payload::frame::FrameError),
}

/// How to install.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// See [`GAP`].
    pub gap: u64,
}

impl Default for Settings {
    /// One worker for each core, up to 4: then the disk or the network is the limit.
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        Self { workers, gap: GAP }
    }
}

/// The windows that the partitions of `index` are written to, in its order; `window` gives them by role.
///
/// # Errors
/// [`InstallError::NoTarget`] and [`InstallError::TooSmall`].
pub fn targets(
    index: &Index,
    window: impl Fn(&PartitionRole) -> Option<SlotWindow>,
) -> Result<Vec<SlotWindow>, InstallError> {
    let target = |partition: &Partition| {
        let role = &partition.role;
        let window = window(role).ok_or_else(|| InstallError::NoTarget(role.clone()))?;
        check_size(partition, &window)?;
        Ok(window)
    };
    index.partitions.iter().map(target).collect()
}

fn check_size(partition: &Partition, window: &SlotWindow) -> Result<(), InstallError> {
    if window.len() < partition.size {
        return Err(InstallError::TooSmall {
            role: partition.role.clone(),
            needed: partition.size,
            found: window.len(),
        });
    }
    Ok(())
}

/// Installs a payload: `targets` as [`targets`] gives them, `plan` as [`Plan::new`] made it from the same index and
/// seeds. Returns when everything is written; flushing and reading back is the caller's next step.
///
/// # Errors
/// [`InstallError`], by whose fault it is.
pub fn install(
    index: &Index,
    plan: Plan,
    targets: &[SlotWindow],
    seeds: &SeedMap,
    source: &mut dyn StoredBytes,
    progress: &(dyn Fn(Progress) + Sync),
    settings: Settings,
) -> Result<InstallReport, InstallError> {
    for (partition, target) in index.partitions.iter().zip(targets) {
        check_size(partition, target)?;
    }
    let counters = Counters { total: plan.bytes_total, ..Counters::default() };
    counters.done.store(plan.bytes_in_place, Ordering::Relaxed);
    let bytes_in_place = plan.bytes_in_place;
    let (mut plan, mut rounds, mut chunks_stale) = (plan, 1, 0);
    loop {
        let round = Round::new(index, &plan, targets, seeds, &counters, progress);
        let stale = round.run(source, settings)?;
        if stale.is_empty() {
            // The threads' reports may have overtaken each other: the last one must be the last state.
            round.report();
            break;
        }
        chunks_stale += stale.len();
        if rounds == ROUNDS_MAX {
            return Err(InstallError::Unstable { chunks: stale.len(), rounds });
        }
        plan = Plan::again(index, &stale, settings.gap);
        rounds += 1;
    }
    Ok(InstallReport {
        bytes_total: counters.total,
        bytes_downloaded: counters.downloaded.into_inner(),
        bytes_written: counters.written.into_inner(),
        bytes_zeroed: counters.zeroed.into_inner(),
        bytes_in_place,
        chunks_stale,
        rounds,
    })
}

#[derive(Debug, Default)]
struct Counters {
    total: u64,
    done: AtomicU64,
    downloaded: AtomicU64,
    written: AtomicU64,
    zeroed: AtomicU64,
}

/// What a worker is to do: a segment, and the stored bytes of those of its chunks that were fetched, end to end.
#[derive(Debug)]
struct Job {
    segment: usize,
    stored: Vec<u8>,
}

/// What the threads of a round share.
struct Round<'a> {
    index: &'a Index,
    plan: &'a Plan,
    targets: &'a [SlotWindow],
    seeds: &'a SeedMap,
    counters: &'a Counters,
    progress: &'a (dyn Fn(Progress) + Sync),
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// For each segment: nothing more is written to it in this round.
    finished: Vec<bool>,
    stale: Vec<usize>,
    /// The round ends, because of `error` or because a thread panicked.
    stopped: bool,
    error: Option<InstallError>,
}

impl<'a> Round<'a> {
    fn new(
        index: &'a Index,
        plan: &'a Plan,
        targets: &'a [SlotWindow],
        seeds: &'a SeedMap,
        counters: &'a Counters,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        let untouched = |s: &crate::plan::SegmentPlan| s.origins.iter().all(|o| *o == Origin::InPlace);
        let finished = plan.segments.iter().map(untouched).collect();
        let state = Mutex::new(State { finished, ..State::default() });
        Self { index, plan, targets, seeds, counters, progress, state, changed: Condvar::new() }
    }

    /// Does it all, and returns the numbers of the stale chunks, sorted.
    fn run(&self, source: &mut dyn StoredBytes, settings: Settings) -> Result<Vec<usize>, InstallError> {
        let todo: Vec<usize> = {
            let state = self.lock();
            (0..self.plan.segments.len()).filter(|s| !state.finished[*s]).collect()
        };
        let workers = settings.workers.max(1);
        let (sender, receiver) = crossbeam_channel::bounded(workers);
        let fed = std::thread::scope(|scope| {
            for _ in 0..workers {
                let receiver = receiver.clone();
                scope.spawn(move || self.work(&receiver));
            }
            // Sending must fail, not wait, once all workers ended.
            drop(receiver);
            let mut feeder = Feeder::new(self, &todo, sender);
            feeder.run(source)
        });
        let state = std::mem::take(&mut *self.lock());
        match (state.error, fed) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(InstallError::Source(error)),
            (None, Ok(())) => {
                let mut stale = state.stale;
                stale.sort_unstable();
                Ok(stale)
            }
        }
    }

    fn work(&self, jobs: &crossbeam_channel::Receiver<Job>) {
        // Whoever waits for a segment of this worker must not wait for ever should it panic.
        let mut ended = Ended { round: self, well: false };
        match worker::Worker::new(self) {
            Err(error) => self.fail(error),
            Ok(mut worker) => {
                while let Ok(job) = jobs.recv() {
                    if self.is_stopped() {
                        break;
                    }
                    if let Err(error) = worker.segment(&job) {
                        self.fail(error);
                        break;
                    }
                    self.finish(job.segment);
                }
            }
        }
        ended.well = true;
    }

    fn finish(&self, segment: usize) {
        self.lock().finished[segment] = true;
        self.changed.notify_all();
        self.counters.done.fetch_add(self.plan.segments[segment].todo_len(self.index), Ordering::Relaxed);
        self.report();
    }

    /// Waits until nothing more is written to a segment; `false` if the round stopped.
    fn wait_for(&self, segment: usize) -> bool {
        let mut state = self.lock();
        while !state.finished[segment] && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopped
    }

    fn fail(&self, error: InstallError) {
        let mut state = self.lock();
        state.stopped = true;
        state.error.get_or_insert(error);
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) {
        (self.progress)(Progress {
            bytes_total: self.counters.total,
            bytes_done: self.counters.done.load(Ordering::Relaxed).min(self.counters.total),
            bytes_downloaded: self.counters.downloaded.load(Ordering::Relaxed),
        });
    }
}

impl crate::plan::SegmentPlan {
    /// How many bytes of the segment are not in place yet.
    fn todo_len(&self, index: &Index) -> u64 {
        let chunks = &index.partitions[self.segment.partition].chunks[self.segment.chunks.clone()];
        let todo = chunks.iter().zip(&self.origins).filter(|(_, origin)| **origin != Origin::InPlace);
        todo.map(|(chunk, _)| u64::from(chunk.len)).sum()
    }
}

struct Ended<'a> {
    round: &'a Round<'a>,
    well: bool,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if !self.well {
            self.round.lock().stopped = true;
            self.round.changed.notify_all();
        }
    }
}

/// Collects stored bytes and deals out segments, in order.
struct Feeder<'a> {
    round: &'a Round<'a>,
    jobs: crossbeam_channel::Sender<Job>,
    /// Segments not dealt out yet.
    todo: &'a [usize],
    /// What the first of them still needs, the next last; the bytes before are in `stored`.
    needed: Vec<Range<u64>>,
    stored: Vec<u8>,
    /// Where the bytes that came last ended.
    at: u64,
}

impl<'a> Feeder<'a> {
    fn new(round: &'a Round<'a>, todo: &'a [usize], jobs: crossbeam_channel::Sender<Job>) -> Self {
        let mut feeder = Self { round, jobs, todo, needed: Vec::new(), stored: Vec::new(), at: 0 };
        feeder.look_at_first();
        feeder
    }

    fn run(&mut self, source: &mut dyn StoredBytes) -> Result<(), SourceError> {
        let ready = self.deal();
        let fetch = &self.round.plan.fetch;
        let read = if ready.is_ok() && !fetch.is_empty() {
            source.read(fetch, &mut |offset, bytes| self.take(offset, bytes))
        } else {
            Ok(())
        };
        match (read, self.needed.last()) {
            (Err(error @ (SourceError::Failed(_) | SourceError::Order { .. })), _) => Err(error),
            // The source left something out, or ended early without a word.
            (_, Some(next)) if !self.round.is_stopped() => {
                Err(SourceError::Order { expected: next.start, found: self.at })
            }
            (read, _) => read,
        }
    }

    fn take(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Stopped> {
        self.round.counters.downloaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let (mut at, mut bytes) = (offset, bytes);
        self.at = offset + bytes.len() as u64;
        while let Some(next) = self.needed.last_mut() {
            // What is skipped is the gap between two ranges that were fetched as one.
            let skip = usize::try_from(next.start.saturating_sub(at)).unwrap_or(usize::MAX);
            if skip >= bytes.len() {
                break;
            }
            if at > next.start {
                // The source left something out. `run` reports it, as what is needed stays needed.
                self.at = at;
                return Err(Stopped);
            }
            let len = usize::try_from(next.end - next.start).unwrap_or(usize::MAX).min(bytes.len() - skip);
            self.stored.extend_from_slice(&bytes[skip..skip + len]);
            next.start += len as u64;
            at += (skip + len) as u64;
            bytes = &bytes[skip + len..];
            if next.start == next.end {
                self.needed.pop();
                self.deal()?;
            }
        }
        self.round.report();
        if self.round.is_stopped() { Err(Stopped) } else { Ok(()) }
    }

    /// Deals out all segments that need no more bytes, up to the first that does.
    fn deal(&mut self) -> Result<(), Stopped> {
        while self.needed.is_empty() {
            let Some((segment, rest)) = self.todo.split_first() else { return Ok(()) };
            let job = Job { segment: *segment, stored: std::mem::take(&mut self.stored) };
            self.jobs.send(job).map_err(|_| Stopped)?;
            self.todo = rest;
            self.look_at_first();
        }
        Ok(())
    }

    fn look_at_first(&mut self) {
        let Some(first) = self.todo.first() else { return };
        let plan = &self.round.plan.segments[*first];
        let chunks = &self.round.index.partitions[plan.segment.partition].chunks[plan.segment.chunks.clone()];
        for (chunk, origin) in chunks.iter().zip(&plan.origins).rev() {
            if let (Origin::Fetch, Content::Stored(stored)) = (origin, chunk.content) {
                self.needed.push(stored.offset..stored.offset + u64::from(stored.len));
            }
        }
        self.stored.reserve_exact(
            self.needed.iter().map(|r| usize::try_from(r.end - r.start).unwrap_or(0)).sum::<usize>(),
        );
    }
}
