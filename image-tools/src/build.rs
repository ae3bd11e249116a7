//! Step 2, payload: images to one payload file.
//!
//! One thread reads, cuts and hashes; workers compress one segment each; one thread writes what they made, in order.
//! A fixed number of segments is under way at a time, so memory does not grow with the images (the index does, by
//! some 60 bytes for each chunk), and since every segment is compressed by itself from its start, the file is the same
//! whatever the number of threads.

use crossbeam_channel::{Receiver, Sender, bounded};
use protocol::chunker::{Chunker, Cutting, Piece};
use protocol::digest::{Hasher, Sha256};
use protocol::id::PartitionRole;
use protocol::manifest::PayloadFile;
use protocol::payload::frame::{Encoder, FrameError};
use protocol::payload::{Chunk, Content, Encoding, FormatError, Index, Partition, SEGMENT_LEN, Stored};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// How much of an image is read at once, in bytes.
const READ: usize = 1 << 20;

/// An image, and which partition of a slot it is for.
#[derive(Clone, Debug)]
pub struct ImageInput {
    /// Which partition.
    pub role: PartitionRole,
    /// A regular file or a block device.
    pub path: PathBuf,
}

/// How a payload is built.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// zstd's level, 1 to 22.
    pub level: i32,
    /// Where images are cut.
    pub cutting: Cutting,
    /// See [`Index::segment_len`].
    pub segment_len: u32,
    /// See [`Index::prefix_window`].
    pub prefix_window: u32,
    /// Compressing threads, at least 1.
    pub threads: usize,
}

impl Default for Settings {
    /// What was measured best for a Debian root filesystem (`docs/performance.md`), on all cores.
    fn default() -> Self {
        Self {
            level: 19,
            cutting: Cutting::DEFAULT,
            segment_len: SEGMENT_LEN,
            prefix_window: 128 << 10,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// A payload that was built.
#[derive(Debug)]
pub struct BuiltPayload {
    /// Where it is: `<sha256>.payload` in the folder asked for.
    pub path: PathBuf,
    /// What the manifest says about it.
    pub file: PayloadFile,
    /// What it holds.
    pub index: Index,
}

/// Why no payload was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An image cannot be read.
    #[error("cannot read the image {path}")]
    Image {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An image without a byte.
    #[error("the image {0} is empty")]
    Empty(PathBuf),
    /// The payload cannot be written.
    #[error("cannot write the payload in {dir}")]
    Write {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// zstd refused.
    #[error("cannot compress at level {level}")]
    Compress {
        /// The level asked for.
        level: i32,
        /// What zstd said.
        #[source]
        source: FrameError,
    },
    /// What was built breaks the format's own rules: too large, or settings out of range.
    #[error("the images do not make a payload")]
    Format(#[from] FormatError),
    /// More chunks than the format counts.
    #[error("the images have more than {} chunks: use larger ones", u32::MAX)]
    TooManyChunks,
    /// Another thread failed, which is reported in its own place.
    #[error("stopped")]
    Stopped,
}

/// Builds `<sha256>.payload` in `dir`. `progress` is told how many bytes of the images were read, as they are.
///
/// # Errors
/// [`BuildError`]. Nothing is left in `dir` then.
pub fn build(
    images: &[ImageInput],
    dir: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<BuiltPayload, BuildError> {
    let failed = |source| BuildError::Write { dir: dir.to_owned(), source };
    settings.cutting.validate().map_err(FormatError::from)?;
    let mut data = tempfile::tempfile_in(dir).map_err(failed)?;
    let (mut index, stored) = compress(images, &data, dir, settings, progress)?;
    place_stored(&mut index, &stored);
    let head = index.encode_head().map_err(failed)?;
    // What the nodes will read is what counts: this also gives every chunk its place.
    let (header, index) = Index::parse_head(&head)?;

    let mut file = tempfile::Builder::new().prefix(".payload-").tempfile_in(dir).map_err(failed)?;
    let sha256 = assemble(&head, &mut data, file.as_file_mut()).map_err(failed)?;
    let path = dir.join(format!("{sha256}.payload"));
    publish(file, &path, dir).map_err(failed)?;
    let file = PayloadFile {
        size: header.file_len(),
        sha256,
        head_size: header.head_len(),
        head_sha256: Sha256::of(&head),
        source_sha256: None,
    };
    Ok(BuiltPayload { path, file, index })
}

/// Head and data, one behind the other; returns the digest of the whole.
fn assemble(head: &[u8], data: &mut File, out: &mut File) -> io::Result<Sha256> {
    let mut hasher = Hasher::new();
    hasher.update(head);
    out.write_all(head)?;
    data.rewind()?;
    let mut buf = vec![0; READ];
    loop {
        match data.read(&mut buf)? {
            0 => break,
            len => {
                hasher.update(&buf[..len]);
                out.write_all(&buf[..len])?;
            }
        }
    }
    out.sync_all()?;
    Ok(hasher.finish())
}

fn publish(file: tempfile::NamedTempFile, path: &Path, dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    // Its name is its digest: a link of that name is replaced, not what it leads to.
    disk::durable::replaceable(path)?;
    file.persist(path).map_err(|error| error.error)?;
    disk::durable::sync_dir(dir)
}

/// A segment to be compressed.
struct Job {
    number: usize,
    bytes: Vec<u8>,
    /// The chunks to be stored: where each begins in `bytes`, and its length.
    chunks: Vec<(usize, usize)>,
}

/// A segment's chunks as they will be stored, end to end.
struct Packed {
    number: usize,
    bytes: Vec<u8>,
    chunks: Vec<StoredLen>,
}

/// One stored chunk's encoding and stored length.
type StoredLen = (Encoding, u32);

fn compress(
    images: &[ImageInput],
    data: &File,
    dir: &Path,
    settings: Settings,
    progress: &dyn Fn(u64),
) -> Result<(Index, Vec<StoredLen>), BuildError> {
    let threads = settings.threads.max(1);
    // Twice as many segments as threads are under way: a slow one does not hold up the others at once.
    let under_way = 2 * threads + 1;
    let (permit_back, permits) = bounded::<()>(under_way);
    for _ in 0..under_way {
        let _ = permit_back.send(());
    }
    let (to_workers, jobs) = bounded::<Job>(under_way);
    let (to_writer, packed) = bounded::<Result<Packed, BuildError>>(under_way);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (jobs, to_writer) = (jobs.clone(), to_writer.clone());
            scope.spawn(move || pack_all(&jobs, &to_writer, settings));
        }
        drop((jobs, to_writer));
        let writer = scope.spawn(move || write_all(&packed, &permit_back, data, dir));
        let mut reader = Reader::new(settings, to_workers, permits);
        let read = reader.images(images, progress);
        let index = reader.index();
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (read, written) {
            // The reader stops because the writer did: the writer knows why.
            (Err(BuildError::Stopped) | Ok(()), Err(error)) | (Err(error), _) => Err(error),
            (Ok(()), Ok(stored)) => Ok((index, stored)),
        }
    })
}

/// Reads, cuts and hashes images, and makes segments of their chunks by the rule of [`Index::segments`].
struct Reader {
    settings: Settings,
    to_workers: Sender<Job>,
    permits: Receiver<()>,
    partitions: Vec<Partition>,
    /// The first place of each stored chunk's content, by the chunk's number.
    seen: HashMap<Sha256, u32>,
    next_chunk: u32,
    next_segment: usize,
    bytes: Vec<u8>,
    to_store: Vec<(usize, usize)>,
    failed: Option<BuildError>,
}

impl Reader {
    fn new(settings: Settings, to_workers: Sender<Job>, permits: Receiver<()>) -> Self {
        Self {
            settings,
            to_workers,
            permits,
            partitions: Vec::new(),
            seen: HashMap::new(),
            next_chunk: 0,
            next_segment: 0,
            bytes: Vec::new(),
            to_store: Vec::new(),
            failed: None,
        }
    }

    fn images(&mut self, images: &[ImageInput], progress: &dyn Fn(u64)) -> Result<(), BuildError> {
        images.iter().try_for_each(|image| self.image(image, progress))
    }

    fn image(&mut self, image: &ImageInput, progress: &dyn Fn(u64)) -> Result<(), BuildError> {
        let failed = |source| BuildError::Image { path: image.path.clone(), source };
        let mut file = File::open(&image.path).map_err(failed)?;
        let mut hasher = Hasher::new();
        let mut size = 0;
        let mut buf = vec![0; READ];
        let mut chunker = Chunker::new(self.settings.cutting);
        self.partitions.push(Partition {
            role: image.role.clone(),
            size: 0,
            sha256: Sha256::from_bytes([0; 32]),
            chunks: Vec::new(),
        });
        loop {
            let len = file.read(&mut buf).map_err(failed)?;
            if len == 0 {
                break;
            }
            hasher.update(&buf[..len]);
            chunker.push(&buf[..len], &mut |piece| self.piece(piece));
            self.failed.take().map_or(Ok(()), Err)?;
            size += len as u64;
            progress(len as u64);
        }
        chunker.finish(&mut |piece| self.piece(piece));
        self.end_segment();
        self.failed.take().map_or(Ok(()), Err)?;
        if size == 0 {
            return Err(BuildError::Empty(image.path.clone()));
        }
        if let Some(partition) = self.partitions.last_mut() {
            partition.size = size;
            partition.sha256 = hasher.finish();
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece<'_>) {
        let (len, content) = match piece {
            Piece::Zero(len) => {
                self.end_segment();
                (len, Content::Zero)
            }
            Piece::Data(bytes) => {
                if self.bytes.len() >= self.settings.segment_len as usize {
                    self.end_segment();
                }
                (bytes.len() as u64, self.data(bytes))
            }
        };
        let Ok(len) = u32::try_from(len) else { return self.fail(BuildError::TooManyChunks) };
        if let Some(partition) = self.partitions.last_mut() {
            partition.chunks.push(Chunk { len, content });
        }
        match self.next_chunk.checked_add(1) {
            Some(next) => self.next_chunk = next,
            None => self.fail(BuildError::TooManyChunks),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Content {
        let sha256 = Sha256::of(bytes);
        let start = self.bytes.len();
        // A repeated chunk is not stored, but serves as prefix for what follows it.
        self.bytes.extend_from_slice(bytes);
        match self.seen.entry(sha256) {
            std::collections::hash_map::Entry::Occupied(first) => {
                Content::Repeat { of: *first.get(), sha256 }
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.next_chunk);
                self.to_store.push((start, bytes.len()));
                // Length and encoding are known once it is compressed.
                Content::Stored(Stored { sha256, offset: 0, len: 0, encoding: Encoding::Raw })
            }
        }
    }

    fn end_segment(&mut self) {
        let (bytes, chunks) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.to_store));
        if chunks.is_empty() {
            return;
        }
        let job = Job { number: self.next_segment, bytes, chunks };
        self.next_segment += 1;
        // Both fail only when the other threads ended.
        if self.permits.recv().is_err() || self.to_workers.send(job).is_err() {
            self.fail(BuildError::Stopped);
        }
    }

    fn fail(&mut self, error: BuildError) {
        self.failed.get_or_insert(error);
    }

    /// Ends the work of the other threads, and hands out the index.
    fn index(self) -> Index {
        Index {
            cutting: self.settings.cutting,
            segment_len: self.settings.segment_len,
            prefix_window: self.settings.prefix_window.min(self.settings.segment_len),
            partitions: self.partitions,
        }
    }
}

fn pack_all(jobs: &Receiver<Job>, to_writer: &Sender<Result<Packed, BuildError>>, settings: Settings) {
    for job in jobs {
        let packed =
            pack(&job, settings).map_err(|source| BuildError::Compress { level: settings.level, source });
        let last = packed.is_err();
        if to_writer.send(packed).is_err() || last {
            return;
        }
    }
}

fn pack(job: &Job, settings: Settings) -> Result<Packed, FrameError> {
    let window = settings.prefix_window.min(settings.segment_len);
    let mut encoder = Encoder::new(&job.bytes, window, settings.level)?;
    let mut packed = Packed { number: job.number, bytes: Vec::new(), chunks: Vec::new() };
    for &(at, len) in &job.chunks {
        let stored = encoder.encode(at, len)?;
        let (encoding, stored) = match &stored {
            Some(stored) => (Encoding::Zstd, stored.as_slice()),
            None => (Encoding::Raw, &job.bytes[at..at + len]),
        };
        packed.bytes.extend_from_slice(stored);
        // Never longer than a chunk, which is far below 4 GiB.
        packed.chunks.push((encoding, u32::try_from(stored.len()).unwrap_or(u32::MAX)));
    }
    Ok(packed)
}

fn write_all(
    packed: &Receiver<Result<Packed, BuildError>>,
    permit_back: &Sender<()>,
    data: &File,
    dir: &Path,
) -> Result<Vec<StoredLen>, BuildError> {
    let failed = |source| BuildError::Write { dir: dir.to_owned(), source };
    let mut out = BufWriter::with_capacity(READ, data);
    let mut stored = Vec::new();
    let mut early = BTreeMap::new();
    let mut next = 0;
    for segment in packed {
        let segment = segment?;
        early.insert(segment.number, segment);
        while let Some(segment) = early.remove(&next) {
            out.write_all(&segment.bytes).map_err(failed)?;
            stored.extend(segment.chunks);
            next += 1;
            let _ = permit_back.send(());
        }
    }
    out.flush().map_err(failed)?;
    Ok(stored)
}

/// Tells the index how its chunks were stored.
fn place_stored(index: &mut Index, stored: &[StoredLen]) {
    let mut stored = stored.iter();
    for chunk in index.partitions.iter_mut().flat_map(|p| &mut p.chunks) {
        if let Content::Stored(place) = &mut chunk.content
            && let Some((encoding, len)) = stored.next()
        {
            place.encoding = *encoding;
            place.len = *len;
        }
    }
}
