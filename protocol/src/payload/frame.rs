//! Steps 2 and 5, payload and download: one chunk's bytes to what is stored, and back.
//!
//! A zstd chunk is one frame without its magic number, without checksum (the chunk's SHA-256 is stronger) and with
//! its content size. Its dictionary is the bytes that precede it in its segment, as raw content.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, FrameFormat, compress_bound, get_error_name};

/// What a formatted zstd dictionary begins with.
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];

/// The part of the preceding bytes that serves as prefix. Decoders tell a formatted dictionary from raw content by its
/// first bytes; preceding bytes that happen to begin like one lose their first byte, so that they never are one.
#[must_use]
pub fn prefix(preceding: &[u8]) -> &[u8] {
    if preceding.starts_with(&DICTIONARY_MAGIC) { &preceding[1..] } else { preceding }
}

/// zstd failed, with its own name for why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zstd: {0}")]
pub struct FrameError(String);

fn failed(code: usize) -> FrameError {
    FrameError(get_error_name(code).to_owned())
}

/// Compresses the chunks of one segment, whose bytes it refers to. What comes out depends only on the segment, the
/// calls made and the level, so a segment is worked on by one encoder from its start.
pub struct Encoder<'a> {
    context: CCtx<'a>,
    segment: &'a [u8],
    window: usize,
}

impl std::fmt::Debug for Encoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("window", &self.window).finish_non_exhaustive()
    }
}

impl<'a> Encoder<'a> {
    /// An encoder at a zstd `level` that uses up to `window` bytes before a chunk.
    ///
    /// # Errors
    /// [`FrameError`] for a level that zstd does not take, or without memory.
    pub fn new(segment: &'a [u8], window: u32, level: i32) -> Result<Self, FrameError> {
        let mut context =
            CCtx::try_create().ok_or_else(|| FrameError("no memory for a context".to_owned()))?;
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::Format(FrameFormat::Magicless),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            context.set_parameter(parameter).map_err(failed)?;
        }
        Ok(Self { context, segment, window: window as usize })
    }

    /// Compresses the segment's bytes `at..at + len`; `None` if that does not make them shorter.
    ///
    /// # Errors
    /// [`FrameError`] where zstd runs out of memory.
    pub fn encode(&mut self, at: usize, len: usize) -> Result<Option<Vec<u8>>, FrameError> {
        let segment = self.segment;
        let before = prefix(&segment[at.saturating_sub(self.window)..at]);
        self.context.ref_prefix(before).map_err(failed)?;
        let mut stored = Vec::with_capacity(compress_bound(len));
        self.context.compress2(&mut stored, &segment[at..at + len]).map_err(failed)?;
        Ok((stored.len() < len).then_some(stored))
    }
}

/// Decompresses chunks; one per worker, used for any number of them.
pub struct Decoder {
    context: DCtx<'static>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// [`FrameError`] without memory.
    pub fn new() -> Result<Self, FrameError> {
        let mut context =
            DCtx::try_create().ok_or_else(|| FrameError("no memory for a context".to_owned()))?;
        context.set_parameter(DParameter::Format(FrameFormat::Magicless)).map_err(failed)?;
        Ok(Self { context })
    }

    /// Decompresses `stored` into exactly `out`; `preceding` are the bytes before it in its segment, as many as the
    /// index's prefix window says.
    ///
    /// # Errors
    /// [`FrameError`] where the frame is damaged, or does not decompress to that length.
    pub fn decode(&mut self, preceding: &[u8], stored: &[u8], out: &mut [u8]) -> Result<(), FrameError> {
        let len = self.context.decompress_using_dict(out, stored, prefix(preceding)).map_err(failed)?;
        if len == out.len() {
            Ok(())
        } else {
            Err(FrameError(format!("decompresses to {len} bytes, expected {}", out.len())))
        }
    }
}
