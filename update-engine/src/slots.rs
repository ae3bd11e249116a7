//! Steps 7, 8 and 12, slot, flip and confirm: the disk as the driver holds it, with the evidence gathered so far.
//!
//! The disk is open, and locked against other writers, from the first operation that writes until nothing is left
//! that depends on it; a boot loader's tool can get in between. Everything here blocks.

use disk::{
    Access, Disk, DiskError, DiskFile, FitError, InvalidatedSlot, Medium, OpenError, ReadBack, SlotLayout,
    StagedSlot, SystemMounts, TargetSlot, VerifyError,
};
use machine::PerSlot;
use protocol::digest::Sha256;
use protocol::manifest::{Manifest, PartitionImage};
use protocol::slot::{Attributes, Slot};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Something about the disk that stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be used, or a change is refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The slot does not hold what it should.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The release does not fit this disk.
    #[error("the release does not fit")]
    Misfit(#[source] FitError),
    /// An operation came without the one it builds on.
    #[error("slot {slot} has not been {what} in this run: it is done again")]
    NoEvidence {
        /// Which slot.
        slot: Slot,
        /// What is missing.
        what: &'static str,
    },
}

impl SlotsError {
    /// Whether the release is to blame, not this disk.
    #[must_use]
    pub const fn is_releases_fault(&self) -> bool {
        matches!(self, Self::Misfit(_) | Self::Verify(VerifyError::NoRoot | VerifyError::NoSuchPartition(_)))
    }
}

/// Where the node's disk is opened: a device or a file, or in tests a medium that records what is done to it.
pub trait Media: std::fmt::Debug + Send + Sync {
    /// Its name, for messages.
    fn path(&self) -> &Path;

    /// Opens it.
    ///
    /// # Errors
    /// [`OpenError`]
    fn open(&self, access: Access) -> Result<Arc<dyn Medium>, OpenError>;
}

impl Media for PathBuf {
    fn path(&self) -> &Path {
        self
    }

    fn open(&self, access: Access) -> Result<Arc<dyn Medium>, OpenError> {
        Ok(Arc::new(DiskFile::open(self, access)?))
    }
}

/// The node's disk.
#[derive(Debug)]
pub struct Slots {
    media: Arc<dyn Media>,
    layout: SlotLayout,
    disk: Option<Disk>,
    invalidated: Option<InvalidatedSlot>,
    staged: Option<StagedSlot>,
}

impl Slots {
    /// The disk at `media`; nothing is opened yet.
    #[must_use]
    pub const fn new(media: Arc<dyn Media>, layout: SlotLayout) -> Self {
        Self { media, layout, disk: None, invalidated: None, staged: None }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.media.path()
    }

    /// Forgets what was proved about the other slot.
    pub fn discard(&mut self) {
        self.invalidated = None;
        self.staged = None;
        self.disk = None;
    }

    /// Reads the table, without a lock and without writing.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn look(&self) -> Result<Disk, SlotsError> {
        Ok(Disk::open(self.media.open(Access::Read)?, &self.layout)?)
    }

    /// The attributes of both slots, read from the medium.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn attributes(&self) -> Result<PerSlot<Attributes>, SlotsError> {
        self.look().map(|disk| attributes_of(&disk))
    }

    fn open(&mut self) -> Result<&mut Disk, SlotsError> {
        let disk = match self.disk.take() {
            Some(disk) => disk,
            None => Disk::open(self.media.open(Access::Write)?, &self.layout)?,
        };
        Ok(self.disk.insert(disk))
    }

    /// Lets others at the disk again, unless evidence depends on it.
    fn close(&mut self) {
        if self.invalidated.is_none() && self.staged.is_none() {
            self.disk = None;
        }
    }

    /// Does one change of the table, and reads the attributes again afterwards.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Disk) -> Result<(), DiskError>,
    ) -> Result<PerSlot<Attributes>, SlotsError> {
        let disk = self.open()?;
        let done = change(disk);
        let attributes = attributes_of(disk);
        self.close();
        done?;
        Ok(attributes)
    }

    /// Everything about the disk that can be known before the first byte: the table (repaired if need be), the
    /// running slot confirmed, the target not in use, every partition there and long enough.
    ///
    /// # Errors
    /// [`SlotsError`] with the first thing that is wrong.
    pub fn preflight(&mut self, manifest: &Manifest, target: Slot, running: Slot) -> Result<(), SlotsError> {
        let checked = self.preflight_open(manifest, target, running);
        self.close();
        checked
    }

    fn preflight_open(&mut self, manifest: &Manifest, target: Slot, running: Slot) -> Result<(), SlotsError> {
        let disk = self.open()?;
        let health = disk.health();
        if disk.repair()? {
            tracing::warn!("the partition table was repaired: {health}");
        }
        if let Some(sector) = disk.backup_misplaced() {
            tracing::warn!(
                "the backup of the partition table stands at sector {sector}, not at the disk's end; it is kept there"
            );
        }
        let attributes = disk.attributes(running);
        if !(attributes.bootable() && attributes.successful()) {
            return Err(DiskError::NoFallback { running, attributes }.into());
        }
        TargetSlot::new(disk, target, running, &SystemMounts::new())?;
        disk.check_fit(&manifest.partitions, target, running).map_err(|error| match error {
            FitError::Disk(error) => SlotsError::Disk(error),
            misfit => SlotsError::Misfit(misfit),
        })
    }

    /// Makes the target one that boot selection cannot choose.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn invalidate(&mut self, target: Slot, running: Slot) -> Result<PerSlot<Attributes>, SlotsError> {
        self.discard();
        let disk = self.open()?;
        let invalidated = TargetSlot::new(disk, target, running, &SystemMounts::new())
            .and_then(|target| disk.invalidate(target));
        let attributes = attributes_of(disk);
        match invalidated {
            Ok(invalidated) => {
                self.invalidated = Some(invalidated);
                Ok(attributes)
            }
            Err(error) => {
                self.close();
                Err(error.into())
            }
        }
    }

    /// The invalidated target and its disk, to write to.
    ///
    /// # Errors
    /// [`SlotsError::NoEvidence`]
    pub fn target(&self, target: Slot) -> Result<(&Disk, &InvalidatedSlot), SlotsError> {
        let evidence = self.disk.as_ref().zip(self.invalidated.as_ref());
        evidence
            .filter(|(_, invalidated)| invalidated.slot() == target)
            .ok_or(SlotsError::NoEvidence { slot: target, what: "invalidated" })
    }

    /// Flushes the target, reads it back from the medium and compares; keeps the evidence.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn read_back(
        &mut self,
        images: &[PartitionImage],
        target: Slot,
        progress: &dyn Fn(u64),
    ) -> Result<ReadBack, SlotsError> {
        let invalidated = self
            .invalidated
            .take_if(|invalidated| invalidated.slot() == target)
            .ok_or(SlotsError::NoEvidence { slot: target, what: "invalidated" })?;
        match invalidated.verify(images, progress) {
            Ok(staged) => {
                let how = staged.read_back();
                self.staged = Some(staged);
                Ok(how)
            }
            Err(error) => {
                self.close();
                Err(error.into())
            }
        }
    }

    /// The flip to the release with this digest, with the evidence of its read-back.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn activate(
        &mut self,
        release: Sha256,
        target: Slot,
        running: Slot,
        tries: u8,
    ) -> Result<PerSlot<Attributes>, SlotsError> {
        let staged = self
            .staged
            .take_if(|staged| staged.slot() == target)
            .ok_or(SlotsError::NoEvidence { slot: target, what: "read back" })?;
        self.change(|disk| disk.activate(staged, release, running, tries))
    }

    /// The flip back to a slot that is bootable and successful.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn revert(
        &mut self,
        target: Slot,
        running: Slot,
        tries: u8,
    ) -> Result<PerSlot<Attributes>, SlotsError> {
        self.change(|disk| disk.revert(target, running, tries))
    }

    /// Undoes [`Self::revert`].
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn restore(&mut self, target: Slot, running: Slot) -> Result<PerSlot<Attributes>, SlotsError> {
        self.change(|disk| disk.restore(target, running))
    }

    /// Undoes a flip.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn deactivate(&mut self, target: Slot, running: Slot) -> Result<PerSlot<Attributes>, SlotsError> {
        self.change(|disk| disk.deactivate(target, running))
    }

    /// Confirms the running slot.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn confirm(&mut self, running: Slot) -> Result<PerSlot<Attributes>, SlotsError> {
        self.change(|disk| disk.confirm(running))
    }

    /// Zeroes a slot's attributes.
    ///
    /// # Errors
    /// [`SlotsError`]
    pub fn condemn(&mut self, slot: Slot) -> Result<PerSlot<Attributes>, SlotsError> {
        self.change(|disk| disk.condemn(slot))
    }
}

fn attributes_of(disk: &Disk) -> PerSlot<Attributes> {
    PerSlot { a: disk.attributes(Slot::A), b: disk.attributes(Slot::B) }
}
