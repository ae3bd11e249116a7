//! Step 5, download: what this node already holds, by content.
//!
//! Both slots are cut with the payload's own rule and hashed; every piece that the new image needs is remembered with
//! its place and so need not be fetched. On the target itself this also tells what already stands where it belongs,
//! which makes an interrupted update go on where it stopped, without any journal of progress.
//!
//! Nothing found here is believed later: whoever uses a place checks the digest of what stands there by then.
//!
//! It is all read past the page cache: slots are large and read once, which would push out what the node works with, and
//! a cached page of a block device may be older than what stands on the medium.

use crate::medium::AlignedBuf;
use crate::window::SlotWindow;
use protocol::chunker::{Chunker, Piece};
use protocol::digest::Sha256;
use protocol::payload::{Content, Index, Partition};
use std::collections::HashMap;
use std::ops::Range;

/// How much is read at once, in bytes.
const READ: usize = 1 << 20;

/// A stretch of disk that may hold content of the new image.
#[derive(Clone, Debug)]
pub struct SeedWindow {
    /// What it is, for messages: `root A`.
    pub name: String,
    /// Where its bytes are.
    pub window: SlotWindow,
    /// Which partition of the [`Index`] will be written to it; `None` for a slot that stays as it is.
    pub target: Option<usize>,
}

/// Where a chunk's bytes were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedPlace {
    /// Index in [`SeedMap::windows`].
    pub window: usize,
    /// Bytes from the start of the window.
    pub offset: u64,
}

/// What [`scan`] found.
#[derive(Debug)]
pub struct SeedMap {
    windows: Vec<SeedWindow>,
    places: HashMap<Sha256, SeedPlace>,
    /// One flag for each chunk of the index, counted over all partitions: it stands where it belongs.
    in_place: Vec<bool>,
    /// For each partition, what is known to be zero on its target, in order and apart.
    zeroes: Vec<Vec<Range<u64>>>,
}

impl SeedMap {
    /// Nothing is known: everything is fetched and written.
    #[must_use]
    pub fn none(index: &Index) -> Self {
        let chunks = index.partitions.iter().map(|p| p.chunks.len()).sum();
        Self {
            windows: Vec::new(),
            places: HashMap::new(),
            in_place: vec![false; chunks],
            zeroes: vec![Vec::new(); index.partitions.len()],
        }
    }

    /// The windows that were looked at.
    #[must_use]
    pub fn windows(&self) -> &[SeedWindow] {
        &self.windows
    }

    /// Where bytes with this digest were seen.
    #[must_use]
    pub fn place(&self, sha256: &Sha256) -> Option<SeedPlace> {
        self.places.get(sha256).copied()
    }

    /// Whether the chunk with this number stands where it belongs.
    #[must_use]
    pub fn is_in_place(&self, chunk: usize) -> bool {
        self.in_place[chunk]
    }

    /// What of `range` is not known to be zero on the target of a partition.
    #[must_use]
    pub fn not_zero(&self, partition: usize, range: Range<u64>) -> Vec<Range<u64>> {
        let known = &self.zeroes[partition];
        let mut rest = Vec::new();
        let mut at = range.start;
        for zero in &known[known.partition_point(|z| z.end <= range.start)..] {
            if zero.start >= range.end {
                break;
            }
            if at < zero.start {
                rest.push(at..zero.start);
            }
            at = zero.end;
        }
        if at < range.end {
            rest.push(at..range.end);
        }
        rest
    }
}

/// Cuts and hashes all windows at once and keeps what the image of `index` needs. A window that cannot
/// be read is left out from there on: seeds only save work. `progress` is told how many bytes were read, as they are.
#[must_use]
pub fn scan(index: &Index, windows: Vec<SeedWindow>, progress: &(dyn Fn(u64) + Sync)) -> SeedMap {
    let mut map = SeedMap::none(index);
    let wanted = Wanted::new(index);
    let found: Vec<Found> = std::thread::scope(|scope| {
        let threads: Vec<_> = windows
            .iter()
            .map(|window| scope.spawn(|| scan_window(index, &wanted, window, progress)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    // What stays as it is comes first: a place on the target may be overwritten before it is used.
    let (stays, changes): (Vec<_>, Vec<_>) = (0..windows.len()).partition(|w| windows[*w].target.is_none());
    for window in stays.into_iter().chain(changes) {
        for (sha256, offset) in &found[window].places {
            map.places.entry(*sha256).or_insert(SeedPlace { window, offset: *offset });
        }
    }
    for (window, found) in windows.iter().zip(found) {
        if let Some(partition) = window.target {
            let base = first_chunk(index, partition);
            for chunk in found.in_place {
                map.in_place[base + chunk] = true;
            }
            map.zeroes[partition] = found.zeroes;
        }
    }
    map.windows = windows;
    for window in 0..map.windows.len() {
        if let Some(partition) = map.windows[window].target {
            extend_in_place(index, partition, window, &mut map);
        }
    }
    map
}

/// The digests that the image needs. Most pieces of another image are not among them.
struct Wanted(HashMap<Sha256, ()>);

impl Wanted {
    fn new(index: &Index) -> Self {
        let stored = |content: &Content| match content {
            Content::Stored(stored) => Some((stored.sha256, ())),
            _ => None,
        };
        Self(index.partitions.iter().flat_map(|p| &p.chunks).filter_map(|c| stored(&c.content)).collect())
    }
}

#[derive(Default)]
struct Found {
    places: Vec<(Sha256, u64)>,
    /// Chunks of the target's partition that stand in their place.
    in_place: Vec<usize>,
    zeroes: Vec<Range<u64>>,
}

/// Pieces that are hashed together, end to end.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// The lengths of data pieces in `bytes`, and of zero pieces, which are not there.
    pieces: Vec<(u64, PieceKind)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PieceKind {
    Zero,
    Data,
    /// Not a piece: the next one begins at this offset.
    Jump,
}

/// Two threads for each window: one reads and cuts, one hashes, which takes longer.
fn scan_window(
    index: &Index,
    wanted: &Wanted,
    window: &SeedWindow,
    progress: &(dyn Fn(u64) + Sync),
) -> Found {
    let mut found = Found::default();
    let partition = window.target.map(|p| &index.partitions[p]);
    let (full, batches) = crossbeam_channel::bounded(2);
    std::thread::scope(|scope| {
        scope.spawn(move || cut_window(index, window, partition, progress, &full));
        let mut position = Position::new(partition);
        let mut at = 0;
        for batch in batches {
            found.batch(&batch, &mut at, wanted, &mut position);
        }
        position.zero_chunks_in_place(&mut found);
    });
    found
}

fn cut_window(
    index: &Index,
    window: &SeedWindow,
    partition: Option<&Partition>,
    progress: &(dyn Fn(u64) + Sync),
    full: &crossbeam_channel::Sender<Batch>,
) {
    // A target is cut anew where the image will end: what follows there is nothing of ours, and would otherwise
    // decide where the image's last chunk seems to end.
    let end = partition.map_or(window.window.len(), |p| p.size.min(window.window.len()));
    for stretch in [0..end, end..window.window.len()] {
        let mut batch = Batch { pieces: vec![(stretch.start, PieceKind::Jump)], ..Batch::default() };
        let mut take = |piece: Piece<'_>| {
            match piece {
                Piece::Zero(len) => batch.pieces.push((len, PieceKind::Zero)),
                Piece::Data(bytes) => {
                    batch.bytes.extend_from_slice(bytes);
                    batch.pieces.push((bytes.len() as u64, PieceKind::Data));
                }
            }
            if batch.bytes.len() >= READ {
                // Fails only if the other thread panicked, which ends the scan anyway.
                let next = Batch { bytes: Vec::with_capacity(READ + READ / 4), ..Batch::default() };
                let _ = full.send(std::mem::replace(&mut batch, next));
            }
        };
        if let Err(error) = cut_stretch(index, &window.window, stretch, progress, &mut take) {
            tracing::warn!(window = window.name, %error, "cannot look for content that need not be fetched");
            return;
        }
        let _ = full.send(batch);
    }
}

fn cut_stretch(
    index: &Index,
    window: &SlotWindow,
    stretch: Range<u64>,
    progress: &(dyn Fn(u64) + Sync),
    take: &mut impl FnMut(Piece<'_>),
) -> std::io::Result<()> {
    let mut chunker = Chunker::new(index.cutting);
    let mut buf = AlignedBuf::zeroed(READ);
    let mut at = stretch.start;
    while at < stretch.end {
        let len = usize::try_from(stretch.end - at).unwrap_or(READ).min(READ);
        window.read_back(at, &mut buf[..len])?;
        chunker.push(&buf[..len], take);
        at += len as u64;
        progress(len as u64);
    }
    chunker.finish(take);
    Ok(())
}

impl Found {
    fn batch(&mut self, batch: &Batch, at: &mut u64, wanted: &Wanted, position: &mut Position<'_>) {
        let mut bytes = batch.bytes.as_slice();
        for (len, kind) in &batch.pieces {
            match kind {
                PieceKind::Jump => {
                    *at = *len;
                    continue;
                }
                PieceKind::Zero => self.zero(*at..*at + len),
                PieceKind::Data => {
                    let (piece, rest) = bytes.split_at(usize::try_from(*len).unwrap_or(bytes.len()));
                    bytes = rest;
                    let sha256 = Sha256::of(piece);
                    if wanted.0.contains_key(&sha256) {
                        self.places.push((sha256, *at));
                        self.in_place.extend(position.chunk_at(*at, *len, &sha256));
                    }
                }
            }
            *at += len;
        }
    }

    fn zero(&mut self, range: Range<u64>) {
        match self.zeroes.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.zeroes.push(range),
        }
    }
}

/// Goes along a partition's chunks as its target is read.
struct Position<'a> {
    partition: Option<&'a Partition>,
    next: usize,
    start: u64,
}

impl<'a> Position<'a> {
    const fn new(partition: Option<&'a Partition>) -> Self {
        Self { partition, next: 0, start: 0 }
    }

    /// The chunk that begins at `at` and is that long, if those are its bytes.
    fn chunk_at(&mut self, at: u64, len: u64, sha256: &Sha256) -> Option<usize> {
        let chunks = &self.partition?.chunks;
        while self.start < at {
            self.start += u64::from(chunks.get(self.next)?.len);
            self.next += 1;
        }
        let chunk = chunks.get(self.next)?;
        (self.start == at && u64::from(chunk.len) == len && chunk.sha256() == Some(*sha256))
            .then_some(self.next)
    }

    fn zero_chunks_in_place(&self, found: &mut Found) {
        let Some(partition) = self.partition else { return };
        let mut start = 0;
        for (i, chunk) in partition.chunks.iter().enumerate() {
            let end = start + u64::from(chunk.len);
            if chunk.content == Content::Zero {
                let zero = found.zeroes.partition_point(|z| z.end < end);
                if found.zeroes.get(zero).is_some_and(|z| z.start <= start) {
                    found.in_place.push(i);
                }
            }
            start = end;
        }
    }
}

/// The number of a partition's first chunk, counted over all partitions.
fn first_chunk(index: &Index, partition: usize) -> usize {
    index.partitions[..partition].iter().map(|p| p.chunks.len()).sum()
}

/// After other content the cutter needs a few chunks to find the image's own cuts again. So the neighbours of what
/// stands in its place are compared by the image's cuts, on to the first that differs.
fn extend_in_place(index: &Index, partition: usize, window: usize, map: &mut SeedMap) {
    let base = first_chunk(index, partition);
    let chunks = &index.partitions[partition].chunks;
    let mut places = Vec::with_capacity(chunks.len());
    let mut start = 0;
    for chunk in chunks {
        places.push(start);
        start += u64::from(chunk.len);
    }
    let source = map.windows[window].window.clone();
    let mut buf = vec![0; index.cutting.max_len() as usize];
    let mut check = |i: usize, in_place: &mut [bool], places_found: &mut HashMap<Sha256, SeedPlace>| {
        let Some(sha256) = chunks[i].sha256() else { return };
        let bytes = &mut buf[..chunks[i].len as usize];
        if source.read_back(places[i], bytes).is_ok() && Sha256::of(bytes) == sha256 {
            in_place[base + i] = true;
            places_found.entry(sha256).or_insert(SeedPlace { window, offset: places[i] });
        }
    };
    for i in 1..chunks.len() {
        if map.in_place[base + i - 1] && !map.in_place[base + i] {
            check(i, &mut map.in_place, &mut map.places);
        }
    }
    for i in (1..chunks.len()).rev() {
        if map.in_place[base + i] && !map.in_place[base + i - 1] {
            check(i - 1, &mut map.in_place, &mut map.places);
        }
    }
}
