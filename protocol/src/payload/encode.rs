//! Step 2, payload: header and index to bytes. `decode` is the inverse; `docs/payload-format.md` says it in words.

use super::{Content, Encoding, FORMAT_VERSION, HEADER_LEN, Header, Index, MAGIC};
use crate::chunker::Cutting;

/// The level at which the index is compressed: it is small, and read by every node.
const INDEX_LEVEL: i32 = 19;

/// Kind of a chunk in the index's first column.
pub(super) const KIND_ZERO: u8 = 0;
/// See [`KIND_ZERO`].
pub(super) const KIND_RAW: u8 = 1;
/// See [`KIND_ZERO`].
pub(super) const KIND_ZSTD: u8 = 2;
/// See [`KIND_ZERO`].
pub(super) const KIND_REPEAT: u8 = 3;

/// How the index names the ways of cutting.
pub(super) const CUTTING_FIXED: u32 = 0;
/// See [`CUTTING_FIXED`].
pub(super) const CUTTING_CONTENT: u32 = 1;

impl Header {
    /// The header as it stands at the start of the file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        // 12..16 are the flags: none is defined.
        bytes[16..24].copy_from_slice(&self.index_stored_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index_len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.data_len.to_le_bytes());
        bytes
    }
}

impl Index {
    /// The index before compression. Offsets of stored chunks are not written: they follow from the order.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (kind, lens) = match self.cutting {
            Cutting::Fixed { len } => (CUTTING_FIXED, [len; 3]),
            Cutting::Content { min, avg, max } => (CUTTING_CONTENT, [min, avg, max]),
        };
        put(&mut out, kind);
        lens.iter().for_each(|len| put(&mut out, *len));
        put(&mut out, self.segment_len);
        put(&mut out, self.prefix_window);
        put(&mut out, count(self.partitions.len()));
        for partition in &self.partitions {
            let role = partition.role.as_str().as_bytes();
            put(&mut out, count(role.len()));
            out.extend_from_slice(role);
            out.extend_from_slice(&partition.size.to_le_bytes());
            out.extend_from_slice(partition.sha256.as_bytes());
            put(&mut out, count(partition.chunks.len()));
        }
        self.encode_columns(&mut out);
        out
    }

    fn encode_columns(&self, out: &mut Vec<u8>) {
        let (mut lens, mut stored_lens, mut repeats, mut digests) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for chunk in self.partitions.iter().flat_map(|p| &p.chunks) {
            lens.push(chunk.len);
            match &chunk.content {
                Content::Zero => out.push(KIND_ZERO),
                Content::Stored(stored) => {
                    digests.extend_from_slice(stored.sha256.as_bytes());
                    match stored.encoding {
                        Encoding::Raw => out.push(KIND_RAW),
                        Encoding::Zstd => {
                            out.push(KIND_ZSTD);
                            stored_lens.push(stored.len);
                        }
                    }
                }
                Content::Repeat { of, .. } => {
                    out.push(KIND_REPEAT);
                    repeats.push(*of);
                }
            }
        }
        put_planes(out, &lens);
        put_planes(out, &stored_lens);
        put_planes(out, &repeats);
        out.extend_from_slice(&digests);
    }

    /// The first bytes of the payload file, up to the first stored chunk.
    ///
    /// # Errors
    /// An [`std::io::Error`] where zstd fails, which it does only without memory.
    pub fn encode_head(&self) -> std::io::Result<Vec<u8>> {
        let raw = self.encode();
        let stored = zstd::bulk::compress(&raw, INDEX_LEVEL)?;
        let data_len = self
            .partitions
            .iter()
            .flat_map(|p| &p.chunks)
            .map(|chunk| match chunk.content {
                Content::Stored(stored) => u64::from(stored.len),
                _ => 0,
            })
            .sum();
        let header = Header { index_stored_len: stored.len() as u64, index_len: raw.len() as u64, data_len };
        let mut head = header.to_bytes().to_vec();
        head.extend_from_slice(&stored);
        Ok(head)
    }
}

fn put(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Four planes, the lowest bytes of all numbers first: the high bytes are nearly all alike and cost nothing so.
fn put_planes(out: &mut Vec<u8>, numbers: &[u32]) {
    for plane in 0..4 {
        out.extend(numbers.iter().map(|n| n.to_le_bytes()[plane]));
    }
}

/// Counts in the index are 32 bits wide; an index in memory never holds more.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
