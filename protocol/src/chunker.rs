//! Steps 2 and 5, payload and download: where an image is cut into chunks.
//!
//! The builder cuts the new image, the node cuts what its slots hold, and a chunk that both find is not fetched. Both
//! use this one streaming cutter; `docs/payload-format.md` describes it so that another implementation finds the same
//! cuts:
//!
//! 1. The input is looked at in blocks of [`BLOCK`] bytes from its start. A run of at least [`ZERO_RUN_BLOCKS`]
//!    blocks that hold only zeros is a zero piece (several, above [`ZERO_PIECE_MAX`]).
//! 2. What lies between two zero pieces is a region. Each region is cut by itself, by content (FastCDC 2020 with
//!    normalisation level 1, gear table of the `fastcdc` crate) or into blocks of fixed length.

use fastcdc::v2020::{Normalization, select_masks};

/// The unit in which zeros are looked for, in bytes.
pub const BLOCK: usize = 4096;
/// How many zero blocks in a row make a zero piece.
pub const ZERO_RUN_BLOCKS: u64 = 16;
/// The longest zero piece, in bytes.
pub const ZERO_PIECE_MAX: u64 = 1 << 30;
/// The longest data piece that any [`Cutting`] may ask for, in bytes.
pub const CHUNK_MAX: u32 = 1 << 20;

/// How regions are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutting {
    /// By content: FastCDC with these lengths in bytes.
    Content {
        /// No chunk but a region's last is shorter.
        min: u32,
        /// The usual length.
        avg: u32,
        /// No chunk is longer.
        max: u32,
    },
    /// Every `len` bytes from the start of the region.
    Fixed {
        /// The length in bytes.
        len: u32,
    },
}

/// Lengths that the cutter does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unusable chunk lengths: expected 64 <= min <= avg <= max <= {CHUNK_MAX}, avg >= 256, max >= 1024, all even"
)]
pub struct InvalidCutting;

impl Cutting {
    /// What `image-tools release build` uses unless told otherwise.
    pub const DEFAULT: Self = Self::content(16 << 10);

    /// By content, around `avg` bytes: a quarter of it at least, four times as much at most.
    #[must_use]
    pub const fn content(avg: u32) -> Self {
        Self::Content { min: avg / 4, avg, max: avg * 4 }
    }

    /// Checks lengths that come from a file.
    ///
    /// # Errors
    /// [`InvalidCutting`] for lengths that the cutter does not take.
    pub fn validate(self) -> Result<Self, InvalidCutting> {
        let good = match self {
            Self::Content { min, avg, max } => {
                64 <= min
                    && min <= avg
                    && avg <= max
                    && max <= CHUNK_MAX
                    && avg >= 256
                    && max >= 1024
                    && [min, avg, max].iter().all(|n| n.is_multiple_of(2))
            }
            Self::Fixed { len } => (256..=CHUNK_MAX).contains(&len) && len.is_multiple_of(2),
        };
        if good { Ok(self) } else { Err(InvalidCutting) }
    }

    /// The longest data piece, in bytes.
    #[must_use]
    pub const fn max_len(self) -> u32 {
        match self {
            Self::Content { max, .. } => max,
            Self::Fixed { len } => len,
        }
    }
}

/// One piece of the input; pieces come in order and leave nothing out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// So many bytes of zeros.
    Zero(u64),
    /// A chunk of data, at most [`Cutting::max_len`] bytes.
    Data(&'a [u8]),
}

/// Cuts a stream into [`Piece`]s. Holds a few times [`Cutting::max_len`] in memory, however long the stream.
#[derive(Debug)]
pub struct Chunker {
    cutting: Cutting,
    /// Bytes of the current region that are not cut yet.
    region: Vec<u8>,
    /// Zero blocks seen since the region's last byte; they join the region if the run stays short.
    zero_blocks: u64,
    /// The start of a block that is not complete yet.
    partial: Vec<u8>,
}

static ZERO_BLOCK: [u8; BLOCK] = [0; BLOCK];

impl Chunker {
    /// A cutter at the start of its input.
    #[must_use]
    pub fn new(cutting: Cutting) -> Self {
        Self { cutting, region: Vec::new(), zero_blocks: 0, partial: Vec::with_capacity(BLOCK) }
    }

    /// Takes the next bytes of the input, of any number, and hands out the pieces that are now certain.
    pub fn push(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if !self.partial.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.partial.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            if self.partial.len() < BLOCK {
                return;
            }
            let block = std::mem::replace(&mut self.partial, Vec::with_capacity(BLOCK));
            self.block(&block, emit);
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in &mut blocks {
            self.block(block, emit);
        }
        self.partial.extend_from_slice(blocks.remainder());
    }

    /// Ends the input: hands out all that is left.
    pub fn finish(mut self, emit: &mut impl FnMut(Piece<'_>)) {
        let tail = std::mem::take(&mut self.partial);
        if tail.is_empty() && self.zero_blocks >= ZERO_RUN_BLOCKS {
            self.end_region(emit);
            self.end_zeros(emit);
            return;
        }
        if !tail.is_empty() {
            self.data(&tail, emit);
        } else {
            self.keep_short_zeros();
        }
        self.end_region(emit);
    }

    fn block(&mut self, block: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if block == ZERO_BLOCK {
            self.zero_blocks += 1;
        } else {
            self.data(block, emit);
        }
    }

    fn data(&mut self, bytes: &[u8], emit: &mut impl FnMut(Piece<'_>)) {
        if self.zero_blocks >= ZERO_RUN_BLOCKS {
            self.end_region(emit);
            self.end_zeros(emit);
        } else {
            self.keep_short_zeros();
        }
        self.region.extend_from_slice(bytes);
        // A cut is certain once the longest chunk fits into what is known; cutting many at a time keeps the move of
        // the rest to the front cheap.
        if self.region.len() >= 16 * self.cutting.max_len() as usize {
            self.cut(false, emit);
        }
    }

    fn keep_short_zeros(&mut self) {
        for _ in 0..std::mem::take(&mut self.zero_blocks) {
            self.region.extend_from_slice(&ZERO_BLOCK);
        }
    }

    fn end_region(&mut self, emit: &mut impl FnMut(Piece<'_>)) {
        self.cut(true, emit);
    }

    fn end_zeros(&mut self, emit: &mut impl FnMut(Piece<'_>)) {
        let mut left = std::mem::take(&mut self.zero_blocks) * BLOCK as u64;
        while left > 0 {
            let len = left.min(ZERO_PIECE_MAX);
            emit(Piece::Zero(len));
            left -= len;
        }
    }

    fn cut(&mut self, to_end: bool, emit: &mut impl FnMut(Piece<'_>)) {
        let max = self.cutting.max_len() as usize;
        let mut start = 0;
        while start < self.region.len() && (to_end || self.region.len() - start >= max) {
            let len = next_cut(self.cutting, &self.region[start..]);
            emit(Piece::Data(&self.region[start..start + len]));
            start += len;
        }
        self.region.drain(..start);
    }
}

/// The length of the first chunk of `bytes`, at least 1.
fn next_cut(cutting: Cutting, bytes: &[u8]) -> usize {
    match cutting {
        Cutting::Fixed { len } => bytes.len().min(len as usize),
        Cutting::Content { min, avg, max } => {
            let (mask_s, mask_l) = select_masks(avg as usize, Normalization::Level1);
            let (_, len) = fastcdc::v2020::cut(
                bytes,
                min as usize,
                avg as usize,
                max as usize,
                mask_s,
                mask_l,
                mask_s << 1,
                mask_l << 1,
            );
            len
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;
    use proptest::prelude::*;

    fn pieces(cutting: Cutting, input: &[u8], steps: &[usize]) -> Vec<(u64, Option<Sha256>)> {
        let mut found = Vec::new();
        let mut emit = |piece: Piece<'_>| {
            found.push(match piece {
                Piece::Zero(len) => (len, None),
                Piece::Data(bytes) => (bytes.len() as u64, Some(Sha256::of(bytes))),
            });
        };
        let mut chunker = Chunker::new(cutting);
        let (mut rest, mut step) = (input, steps.iter().cycle());
        while !rest.is_empty() {
            let len = step.next().map_or(rest.len(), |n| (*n).clamp(1, rest.len()));
            chunker.push(&rest[..len], &mut emit);
            rest = &rest[len..];
        }
        chunker.finish(&mut emit);
        found
    }

    /// Pseudo-random bytes that never depend on a crate's version.
    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        (0..len)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed.to_le_bytes()[3]
            })
            .collect()
    }

    /// The cuts are part of the format: another version of the `fastcdc` crate must find the same ones.
    #[test]
    fn cuts_are_stable() {
        let lengths: Vec<u64> =
            pieces(Cutting::DEFAULT, &noise(200_000, 42), &[]).iter().map(|p| p.0).collect();
        assert_eq!(lengths, [17111, 23075, 13908, 32265, 17243, 24790, 24058, 20300, 20721, 6529]);
    }

    #[test]
    fn long_zeros_stand_alone_and_short_ones_do_not() {
        let mut image = noise(5000, 1);
        image.resize(8192 + 15 * BLOCK, 0);
        image.extend(noise(BLOCK, 2));
        let short = pieces(Cutting::DEFAULT, &image, &[]);
        assert!(short.iter().all(|p| p.1.is_some()), "{short:?}");
        image.resize(image.len() + 40 * BLOCK, 0);
        let long = pieces(Cutting::DEFAULT, &image, &[]);
        assert_eq!(long.last(), Some(&(40 * BLOCK as u64, None)));
        assert_eq!(pieces(Cutting::DEFAULT, &[], &[]), []);
        // A tail that is not a whole block ends a zero run as data.
        image.push(0);
        assert_eq!(pieces(Cutting::DEFAULT, &image, &[]).last().unwrap().0, 1);
    }

    #[test]
    fn lengths_are_checked() {
        assert!(Cutting::DEFAULT.validate().is_ok());
        for bad in [
            Cutting::Fixed { len: 0 },
            Cutting::Fixed { len: 2 << 20 },
            Cutting::Content { min: 0, avg: 1 << 14, max: 1 << 16 },
            Cutting::Content { min: 1 << 15, avg: 1 << 14, max: 1 << 16 },
            Cutting::Content { min: 1 << 12, avg: 1 << 14, max: 1 << 24 },
        ] {
            assert_eq!(bad.validate(), Err(InvalidCutting), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// However the input arrives, the pieces are the same and together they are the input.
        #[test]
        fn pieces_do_not_depend_on_arrival(
            parts in proptest::collection::vec((0_usize..100_000, any::<bool>()), 0..5),
            steps in proptest::collection::vec(1_usize..70_000, 1..6),
            fixed: bool,
        ) {
            let mut image = Vec::new();
            for (i, (len, zero)) in parts.into_iter().enumerate() {
                if zero { image.resize(image.len() + len, 0) } else { image.extend(noise(len, i as u64 + 7)) }
            }
            let cutting = if fixed { Cutting::Fixed { len: 4096 } } else { Cutting::content(4096) };
            let whole = pieces(cutting, &image, &[]);
            prop_assert_eq!(&whole, &pieces(cutting, &image, &steps));
            let mut at = 0;
            for (len, digest) in whole {
                let bytes = &image[at..at + usize::try_from(len).unwrap()];
                match digest {
                    Some(digest) => prop_assert_eq!(digest, Sha256::of(bytes)),
                    None => prop_assert!(bytes.iter().all(|b| *b == 0)),
                }
                at += bytes.len();
            }
            prop_assert_eq!(at, image.len());
        }
    }
}
