//! Steps 5 to 7, download to slot: one worker, which puts one segment after another together.

use super::{InstallError, Job, Round};
use crate::medium::{ALIGN, AlignedBuf};
use crate::plan::{Origin, SegmentPlan};
use crate::seeds::SeedPlace;
use protocol::digest::Sha256;
use protocol::payload::frame::Decoder;
use protocol::payload::{Chunk, Content, Encoding, Stored};
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// One worker thread's buffers.
pub(super) struct Worker<'a> {
    round: &'a Round<'a>,
    decoder: Decoder,
    buf: AlignedBuf,
}

/// The segment being put together. Offsets in it are *positions*: bytes from the segment's start.
struct Work<'a> {
    round: &'a Round<'a>,
    plan: &'a SegmentPlan,
    chunks: &'a [Chunk],
    /// Where in the buffer the segment begins: where bytes have the same alignment in memory as on the medium, so
    /// that they are written past the page cache without a copy.
    pad: usize,
    /// All bytes from here to the current position are known to be right.
    known_from: usize,
    /// For each chunk so far, whether the buffer holds its bytes, checked.
    known: Vec<bool>,
}

/// What became of one chunk.
enum Outcome {
    /// Its bytes are in the buffer and checked.
    Known,
    /// It is in place and nobody needs its bytes.
    Unread,
    /// What it depends on is no longer there.
    Stale,
}

impl<'a> Worker<'a> {
    pub(super) fn new(round: &'a Round<'a>) -> Result<Self, InstallError> {
        let decoder = Decoder::new().map_err(InstallError::Decompressor)?;
        let longest = round.plan.segments.iter().filter(|s| !s.segment.zero).map(|s| s.segment.len).max();
        let len = usize::try_from(longest.unwrap_or(0)).unwrap_or(usize::MAX - 2 * ALIGN);
        Ok(Self { round, decoder, buf: AlignedBuf::zeroed(len + ALIGN) })
    }

    pub(super) fn segment(&mut self, job: &Job) -> Result<(), InstallError> {
        let plan = &self.round.plan.segments[job.segment];
        let target = &self.round.targets[plan.segment.partition];
        let mut work = Work {
            round: self.round,
            plan,
            chunks: &self.round.index.partitions[plan.segment.partition].chunks[plan.segment.chunks.clone()],
            pad: usize::try_from((target.offset() + plan.segment.offset) % ALIGN as u64).unwrap_or(0),
            known_from: 0,
            known: Vec::with_capacity(plan.origins.len()),
        };
        if plan.segment.zero {
            return work.zero();
        }
        let mut stored = job.stored.as_slice();
        let unread = work.unread();
        let mut position = 0;
        for (i, unread) in unread.into_iter().enumerate() {
            let at = position..position + work.chunks[i].len as usize;
            position = at.end;
            let outcome = if unread {
                Outcome::Unread
            } else {
                work.chunk(i, at.clone(), &mut self.buf, &mut self.decoder, &mut stored)?
            };
            if matches!(outcome, Outcome::Stale) {
                self.round.lock().stale.push(plan.first_chunk + i);
            }
            let known = matches!(outcome, Outcome::Known);
            if !known {
                work.known_from = at.end;
            }
            work.known.push(known);
        }
        work.write(&self.buf)
    }
}

impl Work<'_> {
    /// Which chunks in place need not be read: those that no fetched chunk has in its prefix.
    fn unread(&self) -> Vec<bool> {
        let window = self.round.index.prefix_window as usize;
        let mut unread = vec![false; self.chunks.len()];
        let mut end = usize::try_from(self.plan.segment.len).unwrap_or(usize::MAX);
        let mut needed_from = end;
        for (i, chunk) in self.chunks.iter().enumerate().rev() {
            let start = end - chunk.len as usize;
            unread[i] = self.plan.origins[i] == Origin::InPlace && end <= needed_from;
            let prefixed = matches!(chunk.content, Content::Stored(Stored { encoding: Encoding::Zstd, .. }));
            if self.plan.origins[i] == Origin::Fetch && prefixed {
                needed_from = needed_from.min(start.saturating_sub(window));
            }
            end = start;
        }
        unread
    }

    fn chunk(
        &self,
        i: usize,
        at: Range<usize>,
        buf: &mut [u8],
        decoder: &mut Decoder,
        stored: &mut &[u8],
    ) -> Result<Outcome, InstallError> {
        let chunk = &self.chunks[i];
        let (before, rest) = buf.split_at_mut(self.pad + at.start);
        let (before, out) = (&before[self.pad..], &mut rest[..at.len()]);
        match self.plan.origins[i] {
            Origin::InPlace => self.read_target(at.start, out)?,
            Origin::Seed(place) => {
                if let Err(error) = self.read_seed(place, out) {
                    tracing::warn!(%error, "cannot read content that was found before: it is fetched instead");
                    return Ok(Outcome::Stale);
                }
            }
            Origin::Repeat => {
                if !self.repeat(chunk, before, out)? {
                    return Ok(Outcome::Stale);
                }
            }
            Origin::Zero => out.fill(0),
            Origin::Fetch => {
                let Content::Stored(info) = chunk.content else { return Ok(Outcome::Stale) };
                let (mine, others) = stored.split_at(info.len as usize);
                *stored = others;
                return self.fetched(i, at.start, &info, before, mine, out, decoder);
            }
        }
        Ok(match chunk.sha256() {
            Some(sha256) if Sha256::of(out) != sha256 => Outcome::Stale,
            _ => Outcome::Known,
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of the buffer are borrowed apart from each other"
    )]
    fn fetched(
        &self,
        i: usize,
        position: usize,
        info: &Stored,
        before: &[u8],
        stored: &[u8],
        out: &mut [u8],
        decoder: &mut Decoder,
    ) -> Result<Outcome, InstallError> {
        let content = |problem: String| InstallError::Content {
            role: self.role(),
            chunk: self.plan.first_chunk + i,
            offset: self.plan.segment.offset + position as u64,
            problem,
        };
        match info.encoding {
            Encoding::Raw => out.copy_from_slice(stored),
            Encoding::Zstd => {
                let prefix = position - self.round.index.prefix_len(position);
                if prefix < self.known_from {
                    return Ok(Outcome::Stale);
                }
                decoder.decode(&before[prefix..], stored, out).map_err(|e| content(e.to_string()))?;
            }
        }
        let found = Sha256::of(out);
        if found == info.sha256 {
            Ok(Outcome::Known)
        } else {
            Err(content(format!("expected sha256 {}, found {found}", info.sha256)))
        }
    }

    /// Copies the bytes of an earlier chunk; `false` if the round stopped meanwhile.
    fn repeat(&self, chunk: &Chunk, before: &[u8], out: &mut [u8]) -> Result<bool, InstallError> {
        let Content::Repeat { of, .. } = chunk.content else { return Ok(false) };
        let of = of as usize;
        let plan = self.round.plan;
        let segment = plan.segment_of(of);
        let source = &plan.segments[segment];
        let source_chunks =
            &self.round.index.partitions[source.segment.partition].chunks[source.segment.chunks.clone()];
        let nth = of - source.first_chunk;
        let position: u64 = source_chunks[..nth].iter().map(|c| u64::from(c.len)).sum();
        if source.first_chunk == self.plan.first_chunk && self.known[nth] {
            let position = usize::try_from(position).unwrap_or(usize::MAX);
            out.copy_from_slice(&before[position..position + out.len()]);
            return Ok(true);
        }
        if source.first_chunk != self.plan.first_chunk && !self.round.wait_for(segment) {
            return Ok(false);
        }
        let offset = source.segment.offset + position;
        let partition = source.segment.partition;
        self.round.targets[partition].read_at(offset, out).map_err(|source| InstallError::Disk {
            what: "read",
            role: self.round.index.partitions[partition].role.clone(),
            offset,
            source,
        })?;
        Ok(true)
    }

    fn read_seed(&self, place: SeedPlace, out: &mut [u8]) -> io::Result<()> {
        self.round.seeds.windows()[place.window].window.read_at(place.offset, out)
    }

    fn read_target(&self, position: usize, out: &mut [u8]) -> Result<(), InstallError> {
        let offset = self.plan.segment.offset + position as u64;
        let target = &self.round.targets[self.plan.segment.partition];
        target.read_at(offset, out).map_err(|e| self.disk_error("read", offset, e))
    }

    /// Writes what is known and not in place, in runs as long as possible.
    fn write(&self, buf: &[u8]) -> Result<(), InstallError> {
        let mut run = 0..0;
        let mut position = 0;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let end = position + chunk.len as usize;
            if self.known[i] && self.plan.origins[i] != Origin::InPlace {
                if run.end != position {
                    self.write_run(run, buf)?;
                    run = position..end;
                } else {
                    run.end = end;
                }
            }
            position = end;
        }
        self.write_run(run, buf)
    }

    fn write_run(&self, run: Range<usize>, buf: &[u8]) -> Result<(), InstallError> {
        if run.is_empty() {
            return Ok(());
        }
        let offset = self.plan.segment.offset + run.start as u64;
        let bytes = &buf[self.pad + run.start..self.pad + run.end];
        let target = &self.round.targets[self.plan.segment.partition];
        target.write_at(offset, bytes).map_err(|e| self.disk_error("write", offset, e))?;
        self.round.counters.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self) -> Result<(), InstallError> {
        let segment = &self.plan.segment;
        let target = &self.round.targets[segment.partition];
        for rest in self.round.seeds.not_zero(segment.partition, segment.offset..segment.offset + segment.len)
        {
            let len = rest.end - rest.start;
            target.write_zeroes(rest.start, len).map_err(|e| self.disk_error("write", rest.start, e))?;
            self.round.counters.zeroed.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    fn role(&self) -> protocol::id::PartitionRole {
        self.round.index.partitions[self.plan.segment.partition].role.clone()
    }

    fn disk_error(&self, what: &'static str, offset: u64, source: io::Error) -> InstallError {
        InstallError::Disk { what, role: self.role(), offset, source }
    }
}
