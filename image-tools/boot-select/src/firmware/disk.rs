//! Step 11, boot: the whole disk through the firmware's block protocol.

use super::device::{OwnDisk, open};
use super::status;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use boot_select::Disk;
use uefi::boot::ScopedProtocol;
use uefi::proto::media::block::BlockIO;

/// The disk that this program was started from.
pub(super) struct WholeDisk {
    block_io: ScopedProtocol<BlockIO>,
}

impl WholeDisk {
    pub(super) fn new(device: &OwnDisk) -> Result<Self, String> {
        let block_io = open::<BlockIO>(device.handle)
            .map_err(|error| format!("the disk cannot be accessed: {}", status(&error)))?;
        if block_io.media().is_logical_partition() {
            return Err("the firmware gives access to a partition where the whole disk is needed".into());
        }
        Ok(Self { block_io })
    }

    /// Calls `access` with a buffer of `len` bytes that is aligned as the firmware asks for.
    fn aligned<T>(
        &mut self,
        len: usize,
        access: impl FnOnce(&mut BlockIO, u32, &mut [u8]) -> uefi::Result<T>,
    ) -> Result<T, String> {
        let media = self.block_io.media();
        let (id, align) = (media.media_id(), media.io_align().max(1) as usize);
        let mut buffer = vec![0; len + align];
        let start = buffer.as_ptr().align_offset(align);
        let bytes = buffer.get_mut(start..start.saturating_add(len)).ok_or("no aligned memory")?;
        access(&mut self.block_io, id, bytes).map_err(|error| status(&error))
    }
}

impl Disk for WholeDisk {
    fn sector_size(&self) -> u32 {
        self.block_io.media().block_size()
    }

    fn sectors(&self) -> u64 {
        self.block_io.media().last_block().saturating_add(1)
    }

    fn read(&mut self, lba: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.aligned(bytes.len(), |block_io, id, buffer| {
            block_io.read_blocks(id, lba, buffer)?;
            bytes.copy_from_slice(buffer);
            Ok(())
        })
    }

    fn write(&mut self, lba: u64, bytes: &[u8]) -> Result<(), String> {
        self.aligned(bytes.len(), |block_io, id, buffer| {
            buffer.copy_from_slice(bytes);
            block_io.write_blocks(id, lba, buffer)
        })
    }

    fn flush(&mut self) -> Result<(), String> {
        self.block_io.flush_blocks().map_err(|error| status(&error))
    }
}
