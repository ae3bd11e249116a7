//! Step 5, download: bytes to header and index. The head's digest was checked before, so what is wrong here was
//! signed by somebody; it is nevertheless taken apart without trust, in bounded memory.

use super::encode::{CUTTING_CONTENT, CUTTING_FIXED, KIND_RAW, KIND_REPEAT, KIND_ZERO, KIND_ZSTD};
use super::{
    Chunk, Content, Encoding, FORMAT_VERSION, FormatError, HEAD_MAX, HEADER_LEN, Header, INDEX_MAX, Index,
    MAGIC, PARTITIONS_MAX, Partition, SEGMENT_MAX, Stored, max_chunk_len,
};
use crate::chunker::{BLOCK, Cutting, ZERO_RUN_BLOCKS};
use crate::digest::Sha256;
use crate::id::PartitionRole;
use std::io::Read as _;

/// The shortest zero piece, in bytes.
const ZERO_RUN: u64 = ZERO_RUN_BLOCKS * BLOCK as u64;
/// The window that a compressed index may ask of its decoder: 8 MiB, the most that zstd's levels up to 19 use.
const INDEX_WINDOW_LOG: u32 = 23;

impl Header {
    /// Reads the header from the first bytes of a payload; more may follow.
    ///
    /// # Errors
    /// [`FormatError`] where the bytes are too few, not a payload, of another version, or name lengths above the
    /// limits.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(FormatError::Length {
                what: "header",
                expected: HEADER_LEN as u64,
                found: bytes.len() as u64,
            });
        };
        if bytes[..8] != MAGIC {
            return Err(FormatError::Magic { found: hex::encode(&bytes[..8]) });
        }
        let mut fields = Fields { rest: &bytes[8..], what: "header" };
        let (version, flags) = (fields.u32()?, fields.u32()?);
        if version != FORMAT_VERSION || flags != 0 {
            return Err(FormatError::Version { found: version, flags });
        }
        let header =
            Self { index_stored_len: fields.u64()?, index_len: fields.u64()?, data_len: fields.u64()? };
        if fields.rest.iter().any(|b| *b != 0) {
            return Err(FormatError::Index("the reserved bytes of the header are not zero".to_owned()));
        }
        limit("index length as stored", header.index_stored_len, HEAD_MAX - HEADER_LEN as u64)?;
        limit("index length", header.index_len, INDEX_MAX)?;
        limit("data length", header.data_len, u64::MAX - HEAD_MAX)?;
        Ok(header)
    }
}

impl Index {
    /// Reads header and index from exactly the head of a payload, whose digest was checked before.
    ///
    /// # Errors
    /// [`FormatError`] where the head does not have its own length, is above a limit or contradicts itself.
    pub fn parse_head(head: &[u8]) -> Result<(Header, Self), FormatError> {
        let header = Header::parse(head)?;
        if head.len() as u64 != header.head_len() {
            return Err(FormatError::Length {
                what: "head",
                expected: header.head_len(),
                found: head.len() as u64,
            });
        }
        let raw = decompress(&head[HEADER_LEN..], header.index_len)?;
        let index = Self::decode(&raw, &header)?;
        Ok((header, index))
    }

    fn decode(raw: &[u8], header: &Header) -> Result<Self, FormatError> {
        let mut fields = Fields { rest: raw, what: "index" };
        let cutting = match (fields.u32()?, [fields.u32()?, fields.u32()?, fields.u32()?]) {
            (CUTTING_CONTENT, [min, avg, max]) => Cutting::Content { min, avg, max },
            (CUTTING_FIXED, [len, avg, max]) if len == avg && len == max => Cutting::Fixed { len },
            (kind, lens) => return bad(format!("cutting {kind} with lengths {lens:?} is not known")),
        }
        .validate()?;
        let (segment_len, prefix_window) = (fields.u32()?, fields.u32()?);
        limit("segment length", segment_len.into(), SEGMENT_MAX.into())?;
        limit("prefix window", prefix_window.into(), segment_len.into())?;
        if segment_len == 0 {
            return bad("the segment length is 0");
        }
        let partition_count = fields.u32()?;
        limit("number of partitions", partition_count.into(), PARTITIONS_MAX.into())?;
        let mut partitions: Vec<Partition> = Vec::new();
        let mut chunk_counts = Vec::new();
        let mut total = 0_u32;
        for _ in 0..partition_count {
            let (partition, chunks) = fields.partition()?;
            if partitions.iter().any(|p| p.role == partition.role) {
                return bad(format!("it holds the partition {} twice", partition.role));
            }
            limit("number of chunks of a partition", chunks.into(), max_chunks(cutting, partition.size))?;
            total = match total.checked_add(chunks) {
                Some(total) if total as usize <= fields.rest.len() => total,
                _ => return bad("it is too short for its number of chunks"),
            };
            chunk_counts.push(chunks as usize);
            partitions.push(partition);
        }
        let mut columns = Columns::split(&mut fields, total as usize)?;
        columns.place(cutting, header)?;
        let mut chunks = columns.chunks.into_iter();
        for (partition, count) in partitions.iter_mut().zip(chunk_counts) {
            partition.chunks = chunks.by_ref().take(count).collect();
            let len: u64 = partition.chunks.iter().map(|c| u64::from(c.len)).sum();
            if len != partition.size {
                return bad(format!(
                    "the chunks of the partition {} hold {len} bytes: expected {}",
                    partition.role, partition.size
                ));
            }
        }
        Ok(Self { cutting, segment_len, prefix_window, partitions })
    }
}

/// The chunks of all partitions, first as columns, then one by one.
struct Columns<'a> {
    kinds: &'a [u8],
    lens: Planes<'a>,
    stored_lens: Planes<'a>,
    repeats: Planes<'a>,
    digests: &'a [[u8; 32]],
    chunks: Vec<Chunk>,
}

impl<'a> Columns<'a> {
    fn split(fields: &mut Fields<'a>, total: usize) -> Result<Self, FormatError> {
        let kinds = fields.take(total)?;
        if let Some(kind) = kinds.iter().find(|k| **k > KIND_REPEAT) {
            return bad(format!("chunk kind {kind} is not known"));
        }
        let count = |wanted: u8| kinds.iter().filter(|k| **k == wanted).count();
        let (zstd, raw, repeat) = (count(KIND_ZSTD), count(KIND_RAW), count(KIND_REPEAT));
        let columns = Self {
            kinds,
            lens: fields.planes(total)?,
            stored_lens: fields.planes(zstd)?,
            repeats: fields.planes(repeat)?,
            digests: fields.take((zstd + raw) * 32)?.as_chunks().0,
            chunks: Vec::with_capacity(total),
        };
        if fields.rest.is_empty() {
            Ok(columns)
        } else {
            bad(format!("{} bytes follow its end", fields.rest.len()))
        }
    }

    /// Puts the columns together to chunks, and gives each stored chunk its place.
    fn place(&mut self, cutting: Cutting, header: &Header) -> Result<(), FormatError> {
        let (mut stored_lens, mut repeats, mut digests) =
            (self.stored_lens.iter(), self.repeats.iter(), self.digests.iter());
        let mut offset = header.head_len();
        for (i, (&kind, len)) in self.kinds.iter().zip(self.lens.iter()).enumerate() {
            let longest = max_chunk_len(cutting, kind == KIND_ZERO);
            if len == 0 || u64::from(len) > longest {
                return bad(format!("chunk {i} is {len} bytes long: expected 1 to {longest}"));
            }
            let content = match kind {
                KIND_ZERO => Content::Zero,
                KIND_REPEAT => repeat(&self.chunks, repeats.next().unwrap_or(u32::MAX), i, len)?,
                _ => {
                    let (encoding, stored_len) = if kind == KIND_RAW {
                        (Encoding::Raw, len)
                    } else {
                        (Encoding::Zstd, stored_lens.next().unwrap_or(0))
                    };
                    if encoding == Encoding::Zstd && (stored_len == 0 || stored_len >= len) {
                        return bad(format!("chunk {i} of {len} bytes is stored in {stored_len}"));
                    }
                    let sha256 = Sha256::from_bytes(digests.next().copied().unwrap_or_default());
                    let stored = Stored { sha256, offset, len: stored_len, encoding };
                    // Cannot overflow: at most 2^32 chunks of at most 2^32 bytes, after a head of at most 2^29.
                    offset += u64::from(stored_len);
                    Content::Stored(stored)
                }
            };
            self.chunks.push(Chunk { len, content });
        }
        let data_len = offset - header.head_len();
        if data_len == header.data_len {
            Ok(())
        } else {
            Err(FormatError::Length { what: "data", expected: data_len, found: header.data_len })
        }
    }
}

fn repeat(earlier: &[Chunk], of: u32, i: usize, len: u32) -> Result<Content, FormatError> {
    match earlier.get(of as usize) {
        Some(Chunk { len: same, content: Content::Stored(stored) }) if *same == len => {
            Ok(Content::Repeat { of, sha256: stored.sha256 })
        }
        _ => {
            bad(format!("chunk {i} repeats chunk {of}, which is not an earlier stored chunk of {len} bytes"))
        }
    }
}

/// Decompresses without believing `len`: memory grows with what is really there.
fn decompress(stored: &[u8], len: u64) -> Result<Vec<u8>, FormatError> {
    let failed = |_| FormatError::Decompress { expected: len };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(failed)?.single_frame();
    decoder.window_log_max(INDEX_WINDOW_LOG).map_err(failed)?;
    let mut raw = Vec::new();
    decoder.by_ref().take(len + 1).read_to_end(&mut raw).map_err(failed)?;
    let rest = decoder.finish();
    if raw.len() as u64 == len && rest.is_empty() {
        Ok(raw)
    } else {
        Err(FormatError::Decompress { expected: len })
    }
}

/// The most chunks that an image of `size` bytes is cut into. Only the last chunk of a region is shorter than the
/// cutter's shortest, and regions have 64 KiB of zeros between them at least. An index takes much more memory than its
/// zero chunks take in the file, where they compress to nearly nothing: without a limit few bytes would take it all.
pub(super) fn max_chunks(cutting: Cutting, size: u64) -> u64 {
    let shortest = match cutting {
        Cutting::Content { min, .. } => min,
        Cutting::Fixed { len } => len,
    };
    size / u64::from(shortest) + size / (ZERO_RUN / 2) + 4
}

fn bad<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError::Index(what.into()))
}

fn limit(what: &'static str, found: u64, limit: u64) -> Result<(), FormatError> {
    if found <= limit { Ok(()) } else { Err(FormatError::Limit { what, limit, found }) }
}

/// A reader of little-endian fields that never reads past the end.
struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(FormatError::Length {
                what: self.what,
                expected: len as u64,
                found: self.rest.len() as u64,
            });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    fn planes(&mut self, count: usize) -> Result<Planes<'a>, FormatError> {
        let whole = self.take(count.saturating_mul(4))?;
        let (low, high) = whole.split_at(2 * count);
        let ((a, b), (c, d)) = (low.split_at(count), high.split_at(count));
        Ok(Planes([a, b, c, d]))
    }

    /// A partition without its chunks, and how many those are.
    fn partition(&mut self) -> Result<(Partition, u32), FormatError> {
        let role_len = self.u32()?;
        let role = self.take(role_len as usize)?;
        let role: PartitionRole = match std::str::from_utf8(role).map(str::parse) {
            Ok(Ok(role)) => role,
            _ => {
                return bad(format!(
                    "{:?} is not a partition role",
                    String::from_utf8_lossy(&role[..role.len().min(80)])
                ));
            }
        };
        let size = self.u64()?;
        if size == 0 {
            return bad(format!("the image of the partition {role} is empty"));
        }
        let sha256 = Sha256::from_bytes(self.array()?);
        let chunks = self.u32()?;
        Ok((Partition { role, size, sha256, chunks: Vec::new() }, chunks))
    }
}

/// Numbers of 32 bits, stored as four planes of bytes, the lowest first.
struct Planes<'a>([&'a [u8]; 4]);

impl Planes<'_> {
    fn iter(&self) -> impl Iterator<Item = u32> {
        let [a, b, c, d] = self.0;
        a.iter().zip(b).zip(c.iter().zip(d)).map(|((a, b), (c, d))| u32::from_le_bytes([*a, *b, *c, *d]))
    }
}
