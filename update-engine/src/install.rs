//! Steps 5 to 7, download, verify, slot: one release from the server into the target.
//!
//! The payload's head is fetched (or taken from the cache) and checked against the manifest; what both slots hold is
//! looked up; what is missing is fetched, checked and written. Nothing is remembered for a resume: the next attempt
//! looks at what stands in the target.

use crate::error::chain;
use crate::network::payload::Payload;
use crate::network::source::{Cancelled, NetworkBytes, aborted};
use crate::network::{Client, NetworkError};
use crate::pause::{Pause, Point};
use crate::slots::{Slots, SlotsError};
use disk::assemble::{self, InstallError, InstallReport, SourceError};
use disk::plan::Plan;
use disk::seeds::{self, SeedWindow};
use machine::{Failure, FailureKind};
use protocol::digest::Sha256;
use protocol::id::PartitionRole;
use protocol::manifest::{Manifest, PartitionImage, PayloadFile};
use protocol::payload::{FormatError, Index};
use protocol::slot::Slot;
use protocol::status::Progress;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many payload heads are kept.
const HEADS_KEPT: usize = 3;
/// How often bytes that are not what the signed manifest says are fetched again before they are refused.
const WRONG_BYTES_MAX: u32 = 3;

/// What went wrong while a release was installed.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The server did not deliver.
    #[error("cannot fetch the payload")]
    Network(#[from] NetworkError),
    /// The head is not the one that the manifest names.
    #[error("the payload's head has sha256 {found}: expected {expected}, as the manifest says")]
    Head {
        /// The digest in the manifest.
        expected: Sha256,
        /// The digest of what was fetched.
        found: Sha256,
    },
    /// The head is not one that this engine reads.
    #[error("the payload cannot be used")]
    Format(#[from] FormatError),
    /// Head and manifest disagree.
    #[error("the payload holds {found}: expected {expected}, as the manifest says")]
    Contents {
        /// What the manifest says.
        expected: String,
        /// What the payload says.
        found: String,
    },
    /// It would take more than may be fetched.
    #[error("{needed} bytes would have to be fetched: download.byte_budget allows {budget}")]
    Budget {
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The slots are not ready.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// A slot cannot be read.
    #[error(transparent)]
    Disk(#[from] disk::DiskError),
    /// Fetching, checking or writing failed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Someone asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl ReleaseError {
    /// Whose fault it is, for the state machine.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Network(_) => FailureKind::Network,
            // The release is what its digests say; other bytes are whoever's served them. That must not use up the
            // release's attempts: a bad mirror could then stop an update for good.
            Self::Head { .. } => FailureKind::Refused,
            Self::Format(_) | Self::Contents { .. } => FailureKind::Release,
            Self::Budget { .. } => FailureKind::Refused,
            Self::Slots(error) if error.is_releases_fault() => FailureKind::Release,
            Self::Slots(_) | Self::Disk(_) => FailureKind::Node,
            Self::Cancelled(_) => FailureKind::Cancelled,
            Self::Install(error) => match error {
                InstallError::Source(SourceError::Failed(source)) if source.is::<Cancelled>() => {
                    FailureKind::Cancelled
                }
                InstallError::Source(_) => FailureKind::Network,
                InstallError::Content { .. } => FailureKind::Refused,
                InstallError::NoTarget(_) | InstallError::TooSmall { .. } => FailureKind::Release,
                InstallError::Disk { .. } | InstallError::Unstable { .. } | InstallError::Decompressor(_) => {
                    FailureKind::Node
                }
            },
        }
    }

    /// What the state machine is told.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let retry_after = match self {
            Self::Network(error) => error.retry_after(),
            Self::Install(InstallError::Source(SourceError::Failed(source))) => {
                source.downcast_ref::<NetworkError>().and_then(NetworkError::retry_after)
            }
            _ => None,
        };
        Failure {
            kind: self.kind(),
            detail: chain(self),
            retry_after_s: retry_after.map(|pause| pause.as_secs()),
        }
    }
}

/// Progress of the running operation, written by its threads and read by the driver.
#[derive(Debug, Default)]
pub struct Meter {
    /// Length of the images, in bytes.
    pub total: AtomicU64,
    /// How many of them are in place.
    pub done: AtomicU64,
    /// Payload bytes that came over the network.
    pub downloaded: Arc<AtomicU64>,
    /// Bytes written to the slot.
    pub written: AtomicU64,
}

impl Meter {
    /// Where it stands.
    #[must_use]
    pub fn read(&self) -> Progress {
        Progress {
            bytes_total: self.total.load(Ordering::Relaxed),
            bytes_done: self.done.load(Ordering::Relaxed),
            bytes_downloaded: self.downloaded.load(Ordering::Relaxed),
            bytes_written: self.written.load(Ordering::Relaxed),
        }
    }

    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        for counter in [&self.done, &*self.downloaded, &self.written] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// Installs releases. Clones share everything.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The server.
    pub client: Client,
    /// The disk.
    pub slots: Arc<Mutex<Slots>>,
    /// Where heads are kept.
    pub heads: PathBuf,
    /// How far it is.
    pub meter: Arc<Meter>,
    /// Set to stop.
    pub abort: Arc<AtomicBool>,
    /// Where to stop for a test.
    pub pause: Pause,
}

impl Installer {
    /// Brings a release into `target`, which has been invalidated, while `running` runs.
    ///
    /// # Errors
    /// [`ReleaseError`]
    pub async fn install(
        &self,
        manifest: &Manifest,
        target: Slot,
        running: Slot,
    ) -> Result<Progress, ReleaseError> {
        // A manifest without a full payload does not parse.
        let Some(file) = manifest.full_payload() else {
            return Err(ReleaseError::Contents {
                expected: "a full payload".to_owned(),
                found: "none".to_owned(),
            });
        };
        self.meter.start(manifest.partitions.iter().map(|p| p.size).sum());
        let index = tokio::select! {
            index = self.index(manifest, file) => Arc::new(index?),
            () = aborted(&self.abort) => return Err(Cancelled.into()),
        };
        let mut wrong = 0;
        loop {
            let (this, index) = (self.clone(), Arc::clone(&index));
            let payload = Payload::new(
                self.client.clone(),
                &file.sha256,
                file.size,
                Arc::clone(&self.meter.downloaded),
            )?;
            let runtime = tokio::runtime::Handle::current();
            let images = manifest.partitions.clone();
            let work = tokio::task::spawn_blocking(move || {
                this.write(&index, &images, payload, runtime, target, running)
            });
            let result = match work.await {
                Ok(result) => result,
                Err(failure) => std::panic::resume_unwind(failure.into_panic()),
            };
            match result {
                Err(ReleaseError::Install(error @ InstallError::Content { .. }))
                    if wrong < WRONG_BYTES_MAX =>
                {
                    wrong += 1;
                    tracing::warn!("fetching what is missing again after: {}", chain(&error));
                }
                Err(error) => return Err(error),
                Ok(report) => {
                    tracing::info!(?report, "the release is written");
                    return Ok(self.meter.read());
                }
            }
        }
    }

    /// The payload's index, from a head with the digest that the manifest names.
    async fn index(&self, manifest: &Manifest, file: &PayloadFile) -> Result<Index, ReleaseError> {
        let path = self.heads.join(file.head_sha256.to_string());
        let cached = std::fs::read(&path).ok().filter(|head| Sha256::of(head) == file.head_sha256);
        let head = match cached {
            Some(head) => head,
            None => {
                let head = self.fetch_head(file).await?;
                keep_head(&path, &head);
                head
            }
        };
        let (header, index) = Index::parse_head(&head)?;
        let contents = |parts: &mut dyn Iterator<Item = String>, length: u64| {
            format!("{} in {length} bytes", parts.collect::<Vec<_>>().join(", "))
        };
        let expected = contents(
            &mut manifest.partitions.iter().map(|p| format!("{} {} {}", p.role, p.size, p.sha256)),
            file.size,
        );
        let found = contents(
            &mut index.partitions.iter().map(|p| format!("{} {} {}", p.role, p.size, p.sha256)),
            header.file_len(),
        );
        if expected == found { Ok(index) } else { Err(ReleaseError::Contents { expected, found }) }
    }

    async fn fetch_head(&self, file: &PayloadFile) -> Result<Vec<u8>, ReleaseError> {
        let mut wrong = 0;
        loop {
            let mut payload = Payload::new(
                self.client.clone(),
                &file.sha256,
                file.size,
                Arc::clone(&self.meter.downloaded),
            )?;
            let head = payload.fetch(0..file.head_size).await?;
            let found = Sha256::of(&head);
            if found == file.head_sha256 {
                return Ok(head);
            }
            let error = ReleaseError::Head { expected: file.head_sha256, found };
            if wrong == WRONG_BYTES_MAX {
                return Err(error);
            }
            wrong += 1;
            tracing::warn!("fetching the head again after: {}", chain(&error));
        }
    }

    /// Looks at both slots, then fetches and writes what is missing. Blocks.
    fn write(
        &self,
        index: &Index,
        images: &[PartitionImage],
        payload: Payload,
        runtime: tokio::runtime::Handle,
        target: Slot,
        running: Slot,
    ) -> Result<InstallReport, ReleaseError> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (disk, invalidated) = slots.target(target)?;
        invalidated.clear_unfilled(images)?;
        let targets = assemble::targets(index, |role| invalidated.window(role))?;
        let mut windows = Vec::new();
        // A partition that the release has no image for is not worth reading.
        let wanted = |role: &PartitionRole| index.partitions.iter().any(|partition| partition.role == *role);
        for (role, _) in disk.slot_partitions(running).filter(|(role, _)| wanted(role)) {
            let window = disk.open_slot(role, running)?;
            windows.push(SeedWindow { name: format!("{role} {running}"), window, target: None });
        }
        for (i, (partition, window)) in index.partitions.iter().zip(&targets).enumerate() {
            let name = format!("{} {target}", partition.role);
            windows.push(SeedWindow { name, window: window.clone(), target: Some(i) });
        }
        let seeds = seeds::scan(index, windows, &|_| {});
        if self.abort.load(Ordering::Relaxed) {
            return Err(Cancelled.into());
        }
        let limits = self.client.limits();
        let plan = Plan::new(index, &seeds, limits.gap);
        let needed = plan.bytes_to_fetch() + self.meter.downloaded.load(Ordering::Relaxed);
        if let Some(budget) = limits.byte_budget.filter(|budget| needed > *budget) {
            return Err(ReleaseError::Budget { needed, budget });
        }
        self.meter.done.store(plan.bytes_in_place, Ordering::Relaxed);
        tracing::info!(
            to_fetch = plan.bytes_to_fetch(),
            ranges = plan.fetch.len(),
            in_place = plan.bytes_in_place,
            from_slots = plan.bytes_seeded,
            total = plan.bytes_total,
            "looked at what is here already"
        );
        let (pause, mut passed) = (self.pause, 0);
        let mut source = NetworkBytes::new(payload, runtime, Arc::clone(&self.abort), move |bytes| {
            passed += bytes;
            pause.at(Point::Downloading(passed));
        });
        let settings = assemble::Settings { workers: limits.workers, gap: limits.gap };
        let meter = &self.meter;
        let progress =
            |progress: assemble::Progress| meter.done.store(progress.bytes_done, Ordering::Relaxed);
        let report = assemble::install(index, plan, &targets, &seeds, &mut source, &progress, settings)?;
        self.meter.written.fetch_add(report.bytes_written + report.bytes_zeroed, Ordering::Relaxed);
        self.meter.done.store(report.bytes_total, Ordering::Relaxed);
        Ok(report)
    }
}

/// Keeps a head for the next attempt, and the newest few only. Failing at that costs a download, not the update.
fn keep_head(path: &Path, head: &[u8]) {
    let kept = path.parent().map_or(Ok(()), |dir| {
        std::fs::create_dir_all(dir)?;
        disk::durable::write(path, head)?;
        let mut heads = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            heads.push((entry.metadata()?.modified()?, entry.path()));
        }
        heads.sort();
        let excess = heads.len().saturating_sub(HEADS_KEPT);
        heads.into_iter().take(excess).try_for_each(|(_, path)| std::fs::remove_file(path))
    });
    if let Err(error) = kept {
        tracing::warn!("cannot keep the payload's head in {}: {error}", path.display());
    }
}
