//! Step 5, download: where each chunk of the new image comes from, and which ranges of the payload are fetched.
//! Pure: it reads the index and what [`seeds`](crate::seeds) found, nothing else.

use crate::seeds::{SeedMap, SeedPlace};
use protocol::payload::{Content, Index, Segment};
use std::ops::Range;

/// Stored bytes that are not needed are fetched all the same if they part two needed ranges by no more than this:
/// another range of one request costs about as much. With chunks of 16 KiB, 32 KiB here would fetch 8 % (v1 to v2 of the
/// measured pair) to 49 % (v2 to v3) more than is needed. In bytes.
pub const GAP: u64 = 4 << 10;

/// Where a chunk's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// They already stand where they belong.
    InPlace,
    /// They are zero.
    Zero,
    /// They were seen elsewhere on this node.
    Seed(SeedPlace),
    /// They are those of an earlier chunk of the new image.
    Repeat,
    /// They are fetched.
    Fetch,
}

/// What is done about one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlan {
    /// The segment.
    pub segment: Segment,
    /// Number of its first chunk, counted over all partitions.
    pub first_chunk: usize,
    /// Where each of its chunks comes from.
    pub origins: Vec<Origin>,
}

/// What is done about a whole payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All segments, in order.
    pub segments: Vec<SegmentPlan>,
    /// What is fetched of the payload file, in order, apart by more than the gap.
    pub fetch: Vec<Range<u64>>,
    /// Length of the images, in bytes.
    pub bytes_total: u64,
    /// Bytes of the images that already stand in their place.
    pub bytes_in_place: u64,
    /// Bytes of the images that come from elsewhere on this node.
    pub bytes_seeded: u64,
}

impl Plan {
    /// Decides for every chunk; `gap` as [`GAP`].
    #[must_use]
    pub fn new(index: &Index, seeds: &SeedMap, gap: u64) -> Self {
        Self::build(index, gap, |number, content| {
            if seeds.is_in_place(number) {
                return Origin::InPlace;
            }
            let seed = |sha256| seeds.place(sha256).map(Origin::Seed);
            match content {
                Content::Zero => Origin::Zero,
                Content::Stored(stored) => seed(&stored.sha256).unwrap_or(Origin::Fetch),
                Content::Repeat { sha256, .. } => seed(sha256).unwrap_or(Origin::Repeat),
            }
        })
    }

    /// The next round: the chunks whose numbers are `stale` (sorted) are fetched, everything else is in place.
    #[must_use]
    pub fn again(index: &Index, stale: &[usize], gap: u64) -> Self {
        Self::build(index, gap, |number, content| match content {
            _ if stale.binary_search(&number).is_err() => Origin::InPlace,
            Content::Zero => Origin::Zero,
            Content::Stored(_) => Origin::Fetch,
            Content::Repeat { .. } => Origin::Repeat,
        })
    }

    fn build(index: &Index, gap: u64, origin: impl Fn(usize, &Content) -> Origin) -> Self {
        let mut plan = Self {
            segments: Vec::new(),
            fetch: Vec::new(),
            bytes_total: index.image_bytes(),
            bytes_in_place: 0,
            bytes_seeded: 0,
        };
        let mut number = 0;
        for segment in index.segments() {
            let chunks = &index.partitions[segment.partition].chunks[segment.chunks.clone()];
            let mut origins = Vec::with_capacity(chunks.len());
            let first_chunk = number;
            for chunk in chunks {
                let origin = origin(number, &chunk.content);
                match (origin, &chunk.content) {
                    (Origin::InPlace, _) => plan.bytes_in_place += u64::from(chunk.len),
                    (Origin::Seed(_) | Origin::Repeat, _) => plan.bytes_seeded += u64::from(chunk.len),
                    (Origin::Fetch, Content::Stored(stored)) => {
                        plan.fetch_range(stored.offset..stored.offset + u64::from(stored.len), gap);
                    }
                    _ => {}
                }
                origins.push(origin);
                number += 1;
            }
            plan.segments.push(SegmentPlan { segment, first_chunk, origins });
        }
        plan
    }

    fn fetch_range(&mut self, range: Range<u64>, gap: u64) {
        match self.fetch.last_mut() {
            Some(last) if range.start - last.end <= gap => last.end = range.end,
            _ => self.fetch.push(range),
        }
    }

    /// How many bytes of the payload are fetched.
    #[must_use]
    pub fn bytes_to_fetch(&self) -> u64 {
        self.fetch.iter().map(|r| r.end - r.start).sum()
    }

    /// The segment that holds a chunk.
    #[must_use]
    pub fn segment_of(&self, chunk: usize) -> usize {
        self.segments.partition_point(|s| s.first_chunk <= chunk).saturating_sub(1)
    }
}
