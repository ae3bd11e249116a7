//! Step 11, boot: a whole disk as the loader's sequence sees it (feature `loader`).

use crate::medium::Medium;
use std::sync::Arc;

/// A disk for [`boot_select::boot`], which reads and writes whole sectors by their numbers.
#[derive(Clone, Debug)]
pub struct WholeDisk(Arc<dyn Medium>);

impl WholeDisk {
    /// All of a medium.
    #[must_use]
    pub fn new(medium: Arc<dyn Medium>) -> Self {
        Self(medium)
    }

    fn place(&self, lba: u64) -> Result<u64, String> {
        lba.checked_mul(u64::from(self.0.block_size())).ok_or_else(|| format!("there is no sector {lba}"))
    }
}

impl boot_select::Disk for WholeDisk {
    fn sector_size(&self) -> u32 {
        self.0.block_size()
    }

    fn sectors(&self) -> u64 {
        self.0.len() / u64::from(self.0.block_size())
    }

    fn read(&mut self, lba: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.0.read_at(self.place(lba)?, bytes).map_err(|error| error.to_string())
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), String> {
        self.0.write_at(self.place(lba)?, bytes).map_err(|error| error.to_string())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.0.flush().map_err(|error| error.to_string())
    }
}
