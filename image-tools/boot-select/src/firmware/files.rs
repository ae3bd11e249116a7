//! Step 11, boot: files of a BOOT partition, read whole through the firmware's file system.

use super::device::open;
use super::status;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use boot_select::Files;
use uefi::proto::media::file::{Directory, File as _, FileAttribute, FileInfo, FileMode};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::{CString16, Handle, Status};

/// A file system, open for reading.
pub(super) struct Folder {
    root: Directory,
}

impl Folder {
    pub(super) fn open(handle: Handle) -> Result<Self, String> {
        let mut file_system = open::<SimpleFileSystem>(handle).map_err(|error| status(&error))?;
        let root = file_system.open_volume().map_err(|error| status(&error))?;
        Ok(Self { root })
    }

    fn contents(&mut self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
        let path = CString16::try_from(name).map_err(|_| "not a file name")?;
        let file = match self.root.open(&path, FileMode::Read, FileAttribute::empty()) {
            Ok(file) => file,
            Err(error) if error.status() == Status::NOT_FOUND => return Ok(None),
            Err(error) => return Err(format!("cannot be opened: {}", status(&error))),
        };
        let mut file = file.into_regular_file().ok_or("not a file")?;
        let info = file
            .get_boxed_info::<FileInfo>()
            .map_err(|error| format!("its length is unknown: {}", status(&error)))?;
        let size = info.file_size();
        let len = usize::try_from(size).ok().filter(|_| size <= max_bytes);
        let len = len.ok_or_else(|| format!("{size} bytes long: at most {max_bytes}"))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| format!("no memory for its {len} bytes"))?;
        bytes.resize(len, 0);
        let read = file.read(&mut bytes).map_err(|error| format!("cannot be read: {}", status(&error)))?;
        if read == len { Ok(Some(bytes)) } else { Err(format!("cut off: {read} of {len} bytes")) }
    }
}

impl Files for Folder {
    fn read(&mut self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
        self.contents(name, max_bytes).map_err(|problem| format!("{name}: {problem}"))
    }
}
