//! Steps 2 and 5, payload and download: the payload file, byte for byte (`docs/payload-format.md`).
//!
//! One immutable file holds all partitions of a release: a header, an index, and the stored bytes of every chunk in
//! order. Header and index together are the *head*; the manifest names its length and SHA-256, so a node fetches it
//! in one range and believes none of it before the digest is checked. Each chunk carries the SHA-256 of what it
//! decodes to, which is checked before a byte of it reaches a disk.
//!
//! Chunks are grouped into segments. A zstd chunk may refer to the [`Index::prefix_window`] bytes that precede it in
//! its segment, which the node holds by the time it decodes the chunk, whether they came from the network or from a
//! slot. So small chunks compress nearly as well together as one long stream does, and still each can be fetched
//! alone; segments are independent of each other and are worked on by all cores.

use crate::chunker::{Cutting, InvalidCutting, ZERO_PIECE_MAX};
use crate::digest::Sha256;
use crate::id::PartitionRole;

mod decode;
mod encode;
pub mod frame;
#[cfg(test)]
mod tests;

/// The first eight bytes of every payload. The first is not ASCII and a line end follows, so that a transfer that
/// rewrites text is noticed at once.
pub const MAGIC: [u8; 8] = *b"\x93FLIPPL\n";
/// The format version this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// The longest head that is accepted, in bytes: an image of about 400 GiB.
pub const HEAD_MAX: u64 = 512 << 20;
/// The longest index that is accepted once decompressed, in bytes.
pub const INDEX_MAX: u64 = 1 << 30;
/// The most partitions that an index may hold.
pub const PARTITIONS_MAX: u32 = 64;
/// A segment is closed once it holds this many bytes, unless the index says otherwise.
pub const SEGMENT_LEN: u32 = 4 << 20;
/// The longest segment that an index may ask for, in bytes: this bounds the node's memory.
pub const SEGMENT_MAX: u32 = 16 << 20;

/// What a payload holds: the decoded, checked index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// How the images were cut.
    pub cutting: Cutting,
    /// Bytes after which a segment is closed.
    pub segment_len: u32,
    /// How many bytes before a zstd chunk, in its segment, its decoder is given as prefix.
    pub prefix_window: u32,
    /// The partitions, in the order of their stored bytes.
    pub partitions: Vec<Partition>,
}

/// One partition's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Which partition of the slot it is for.
    pub role: PartitionRole,
    /// Length of the image in bytes.
    pub size: u64,
    /// SHA-256 of the image.
    pub sha256: Sha256,
    /// The chunks, in order and without gaps.
    pub chunks: Vec<Chunk>,
}

/// One piece of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// How many bytes of the image it is.
    pub len: u32,
    /// Where those bytes come from.
    pub content: Content,
}

/// Where the bytes of a [`Chunk`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// They are all zero.
    Zero,
    /// They are stored in the payload.
    Stored(Stored),
    /// They equal an earlier chunk, counted over all partitions from 0.
    Repeat {
        /// The number of that chunk, which is itself stored.
        of: u32,
        /// SHA-256 of the bytes.
        sha256: Sha256,
    },
}

/// A chunk's bytes as they are stored in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// SHA-256 of the decoded bytes.
    pub sha256: Sha256,
    /// Where the stored bytes begin, counted from the start of the payload file.
    pub offset: u64,
    /// How many bytes are stored.
    pub len: u32,
    /// How they are stored.
    pub encoding: Encoding,
}

/// How a chunk's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// One zstd frame, with the segment's preceding bytes as prefix.
    Zstd,
}

impl Chunk {
    /// SHA-256 of the chunk's bytes; `None` for zeros.
    #[must_use]
    pub const fn sha256(&self) -> Option<Sha256> {
        match &self.content {
            Content::Zero => None,
            Content::Stored(stored) => Some(stored.sha256),
            Content::Repeat { sha256, .. } => Some(*sha256),
        }
    }
}

/// A run of chunks of one partition that is decoded on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the partition in [`Index::partitions`].
    pub partition: usize,
    /// Index of the first chunk in [`Partition::chunks`], and one past the last.
    pub chunks: std::ops::Range<usize>,
    /// Where the segment begins in the image, in bytes.
    pub offset: u64,
    /// How many bytes of the image it covers.
    pub len: u64,
    /// Whether it is one [`Content::Zero`] chunk. Such a segment may be long; all others hold at most
    /// `segment_len + max chunk` bytes.
    pub zero: bool,
}

impl Index {
    /// Cuts the partitions into segments: the rule that fixes what a chunk's prefix is. A zero chunk is a segment of
    /// its own; another chunk begins a new segment after a zero chunk and where the segment so far holds
    /// `segment_len` bytes or more.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for (partition, part) in self.partitions.iter().enumerate() {
            let mut offset = 0;
            for (i, chunk) in part.chunks.iter().enumerate() {
                let zero = chunk.content == Content::Zero;
                match segments.last_mut() {
                    Some(last)
                        if last.partition == partition
                            && !zero
                            && !last.zero
                            && last.len < u64::from(self.segment_len) =>
                    {
                        last.chunks.end = i + 1;
                        last.len += u64::from(chunk.len);
                    }
                    _ => segments.push(Segment {
                        partition,
                        chunks: i..i + 1,
                        offset,
                        len: u64::from(chunk.len),
                        zero,
                    }),
                }
                offset += u64::from(chunk.len);
            }
        }
        segments
    }

    /// How many bytes precede the byte at `at` of a segment as its prefix.
    #[must_use]
    pub fn prefix_len(&self, at: usize) -> usize {
        at.min(self.prefix_window as usize)
    }

    /// Length of all images together, in bytes.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.partitions.iter().map(|p| p.size).sum()
    }

    /// The partition of a role.
    #[must_use]
    pub fn partition(&self, role: &PartitionRole) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.role == *role)
    }
}

/// The header at the start of a payload file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the compressed index, which follows the header, in bytes.
    pub index_stored_len: u64,
    /// Length of the index once decompressed, in bytes.
    pub index_len: u64,
    /// Length of the stored chunks, which follow the index, in bytes.
    pub data_len: u64,
}

impl Header {
    /// Length of header and index, in bytes: where the stored chunks begin.
    #[must_use]
    pub const fn head_len(&self) -> u64 {
        HEADER_LEN as u64 + self.index_stored_len
    }

    /// Length of the whole payload file in bytes.
    #[must_use]
    pub const fn file_len(&self) -> u64 {
        self.head_len() + self.data_len
    }
}

/// Bytes that are not a payload of this format, or a payload that nothing should be built from.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The first bytes are not [`MAGIC`].
    #[error("not a payload: expected the magic number {expected}, found {found}", expected = hex::encode(MAGIC))]
    Magic {
        /// What stands there, in hexadecimal.
        found: String,
    },
    /// Written by something newer.
    #[error(
        "payload format version {found} with flags {flags:#x}: expected version {FORMAT_VERSION} without flags; a newer engine is needed"
    )]
    Version {
        /// The version found.
        found: u32,
        /// The flags found.
        flags: u32,
    },
    /// The bytes end early, or go on.
    #[error("payload {what}: expected {expected} bytes, found {found}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Bytes expected.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A number is above what this code takes, so memory is not reserved for it.
    #[error("payload {what} is {found}: at most {limit} is accepted")]
    Limit {
        /// Which number.
        what: &'static str,
        /// The most that is accepted.
        limit: u64,
        /// What was found.
        found: u64,
    },
    /// The chunk lengths are unusable.
    #[error(transparent)]
    Cutting(#[from] InvalidCutting),
    /// The index contradicts itself.
    #[error("payload index: {0}")]
    Index(String),
    /// The index does not decompress.
    #[error("payload index does not decompress to {expected} bytes")]
    Decompress {
        /// The length that the header gives.
        expected: u64,
    },
}

/// The longest chunk of each kind, in bytes.
fn max_chunk_len(cutting: Cutting, zero: bool) -> u64 {
    if zero { ZERO_PIECE_MAX } else { u64::from(cutting.max_len()) }
}
