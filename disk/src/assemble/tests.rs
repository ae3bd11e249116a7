//! Payloads made here are installed on media in memory that record what is written to them.

use super::*;
use crate::medium::{Medium, ReadBack};
use crate::plan::Plan;
use crate::seeds::{self, SeedWindow};
use protocol::chunker::{Chunker, Cutting, Piece};
use protocol::digest::Sha256;
use protocol::payload::frame::Encoder;
use protocol::payload::{Chunk, Encoding, Partition, Stored};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

mod cases;

/// A medium in memory: what was written where, and a limit after which writing fails.
#[derive(Debug)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    writes: Mutex<Vec<Range<u64>>>,
    writes_left: AtomicUsize,
    /// Reading at or behind this offset fails.
    readable: AtomicU64,
    /// Bytes read through what would be the page cache.
    cached: AtomicU64,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            writes: Mutex::default(),
            writes_left: AtomicUsize::new(usize::MAX),
            readable: AtomicU64::new(u64::MAX),
            cached: AtomicU64::new(0),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn take_writes(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err() {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.writes.lock().unwrap().push(offset..offset + bytes.len() as u64);
        let at = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn get(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset + buf.len() as u64 > self.readable.load(Ordering::SeqCst) {
            return Err(io::Error::other("a bad sector"));
        }
        let at = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.bytes.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }
}

impl Medium for Memory {
    fn block_size(&self) -> u32 {
        512
    }
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.cached.fetch_add(buf.len() as u64, Ordering::SeqCst);
        self.get(offset, buf)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.put(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.put(offset, &vec![0; usize::try_from(len).unwrap()])
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn read_back(&self, offset: u64, buf: &mut [u8]) -> io::Result<ReadBack> {
        self.get(offset, buf).map(|()| ReadBack::Direct)
    }
}

fn window(memory: &Arc<Memory>) -> SlotWindow {
    SlotWindow::whole_image(memory.clone())
}

/// How the payloads of these tests are cut: small, so that small images have many segments.
#[derive(Clone, Copy, Debug)]
struct Shape {
    cutting: Cutting,
    segment_len: u32,
    prefix_window: u32,
}

const SMALL: Shape = Shape { cutting: Cutting::content(1024), segment_len: 16 << 10, prefix_window: 4096 };

/// A payload file and its index.
fn payload(images: &[&[u8]], shape: Shape) -> (Vec<u8>, Index) {
    let roles = ["root", "boot"];
    let mut index = Index {
        cutting: shape.cutting,
        segment_len: shape.segment_len,
        prefix_window: shape.prefix_window,
        partitions: Vec::new(),
    };
    for (image, role) in images.iter().zip(roles) {
        let mut chunks = Vec::new();
        let mut chunker = Chunker::new(shape.cutting);
        let mut emit = |piece: Piece<'_>| {
            chunks.push(match piece {
                Piece::Zero(len) => Chunk { len: u32::try_from(len).unwrap(), content: Content::Zero },
                Piece::Data(bytes) => Chunk {
                    len: u32::try_from(bytes.len()).unwrap(),
                    content: Content::Stored(Stored {
                        sha256: Sha256::of(bytes),
                        offset: 0,
                        len: 0,
                        encoding: Encoding::Raw,
                    }),
                },
            });
        };
        chunker.push(image, &mut emit);
        chunker.finish(&mut emit);
        index.partitions.push(Partition {
            role: role.parse().unwrap(),
            size: image.len() as u64,
            sha256: Sha256::of(image),
            chunks,
        });
    }
    let mut data = Vec::new();
    let mut seen: Vec<(Sha256, u32)> = Vec::new();
    let mut number = 0;
    for segment in index.segments() {
        let start = usize::try_from(segment.offset).unwrap();
        let bytes = &images[segment.partition][start..start + usize::try_from(segment.len).unwrap()];
        let mut encoder = Encoder::new(bytes, shape.prefix_window, 1).unwrap();
        let mut at = 0;
        for chunk in &mut index.partitions[segment.partition].chunks[segment.chunks] {
            let len = chunk.len as usize;
            if let Content::Stored(stored) = &mut chunk.content {
                if let Some((sha256, of)) = seen.iter().find(|s| s.0 == stored.sha256) {
                    chunk.content = Content::Repeat { of: *of, sha256: *sha256 };
                } else {
                    seen.push((stored.sha256, number));
                    let packed = encoder.encode(at, len).unwrap();
                    if packed.is_some() {
                        stored.encoding = Encoding::Zstd;
                    }
                    let packed = packed.unwrap_or_else(|| bytes[at..at + len].to_vec());
                    stored.len = u32::try_from(packed.len()).unwrap();
                    data.extend(packed);
                }
            }
            at += len;
            number += 1;
        }
    }
    let head = index.encode_head().unwrap();
    let (_, index) = Index::parse_head(&head).unwrap();
    ([head, data].concat(), index)
}

/// A payload in memory, with all that a network may do wrong.
struct Source<'a> {
    file: &'a [u8],
    /// Length of the pieces it hands out.
    piece: usize,
    fault: Fault,
    given: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Breaks off after so many bytes.
    BreakAfter(u64),
    /// Ends without an error after so many bytes.
    EndAfter(u64),
    /// Leaves out a byte at this place of the file.
    Skip(u64),
    /// Flips a bit at this place of the file.
    Flip(u64),
}

impl<'a> Source<'a> {
    fn new(file: &'a [u8]) -> Self {
        Self { file, piece: 1000, fault: Fault::None, given: 0 }
    }

    fn with(fault: Fault, file: &'a [u8]) -> Self {
        Self { fault, ..Self::new(file) }
    }
}

impl StoredBytes for Source<'_> {
    fn read(&mut self, ranges: &[Range<u64>], sink: &mut Sink<'_>) -> Result<(), SourceError> {
        let mut last = 0;
        for range in ranges {
            assert!(range.start >= last && range.start < range.end, "{ranges:?}");
            last = range.end;
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(self.piece as u64);
                let from = usize::try_from(at).unwrap();
                let mut bytes = self.file[from..from + usize::try_from(len).unwrap()].to_vec();
                match self.fault {
                    Fault::BreakAfter(n) if self.given + len > n => {
                        return Err(SourceError::Failed("the line is cut".into()));
                    }
                    Fault::EndAfter(n) if self.given + len > n => return Ok(()),
                    Fault::Skip(place) if (at..at + len).contains(&place) => {
                        sink(at, &bytes[..usize::try_from(place - at).unwrap()])?;
                        at = place + 1;
                        continue;
                    }
                    Fault::Flip(place) if (at..at + len).contains(&place) => {
                        bytes[usize::try_from(place - at).unwrap()] ^= 0x10;
                    }
                    _ => {}
                }
                self.given += len;
                sink(at, &bytes)?;
                at += len;
            }
        }
        Ok(())
    }
}

/// Everything that a case varies.
struct Case<'a> {
    file: &'a [u8],
    index: &'a Index,
    targets: &'a [Arc<Memory>],
    /// Slots that stay as they are.
    others: &'a [Arc<Memory>],
    workers: usize,
}

impl Case<'_> {
    fn windows(&self) -> Vec<SeedWindow> {
        let other =
            |m: &Arc<Memory>| SeedWindow { name: "other".to_owned(), window: window(m), target: None };
        let target = |(i, m): (usize, &Arc<Memory>)| SeedWindow {
            name: "target".to_owned(),
            window: window(m),
            target: Some(i),
        };
        self.others.iter().map(other).chain(self.targets.iter().enumerate().map(target)).collect()
    }

    fn seeds(&self) -> SeedMap {
        seeds::scan(self.index, self.windows(), &|_| {})
    }

    fn install(&self, fault: Fault) -> Result<InstallReport, InstallError> {
        self.install_with(&self.seeds(), &mut Source::with(fault, self.file))
    }

    fn install_with(&self, seeds: &SeedMap, source: &mut Source<'_>) -> Result<InstallReport, InstallError> {
        let find = |role: &PartitionRole| {
            let i = self.index.partitions.iter().position(|p| p.role == *role)?;
            self.targets.get(i).map(window)
        };
        let targets = targets(self.index, find)?;
        let plan = Plan::new(self.index, seeds, 0);
        let last = Mutex::new(Progress::default());
        let progress = |p: Progress| {
            assert!(p.bytes_done <= p.bytes_total);
            *last.lock().unwrap() = p;
        };
        let settings = Settings { workers: self.workers, gap: 0 };
        let report = install(self.index, plan, &targets, seeds, source, &progress, settings)?;
        let last = last.into_inner().unwrap();
        assert!(last == Progress::default() || last.bytes_done == last.bytes_total, "{last:?}");
        Ok(report)
    }

    /// Whether each target begins with its image.
    fn holds(&self, images: &[&[u8]]) -> bool {
        images.iter().zip(self.targets).all(|(image, target)| target.bytes().starts_with(image))
    }
}

/// Pseudo-random bytes, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Bytes that compress, but do not repeat as a whole.
fn text(len: usize, seed: u64) -> Vec<u8> {
    noise(len, seed).into_iter().map(|b| b"etaoin shrdlu cm"[usize::from(b % 16)]).collect()
}
