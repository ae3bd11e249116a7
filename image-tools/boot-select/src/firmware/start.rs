//! Step 11, boot: one slot: its files, its kernel, its start.

use super::device::{OwnDisk, file_path, open};
use super::files::Folder;
use super::initrd::Initrd;
use super::{arm_watchdog, status};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use boot_select::{BootFiles, Loader, SlotPartitions, cmdline, kernel};
use core::convert::Infallible;
use protocol::gpt::Entry;
use uefi::boot::{self, LoadImageSource};
use uefi::proto::loaded_image::LoadedImage;
use uefi::{Handle, Status};

/// Starts slots of the disk that this program was started from.
pub(super) struct SlotLoader {
    device: OwnDisk,
}

impl SlotLoader {
    pub(super) fn new(device: OwnDisk) -> Self {
        Self { device }
    }

    /// The slot's files, and the device path of its kernel.
    fn read(&self, slot: &SlotPartitions, boot: &Entry) -> Result<(BootFiles, Option<Vec<u8>>), String> {
        let handle =
            self.device.file_system(boot.unique_guid).map_err(|why| format!("{}: {why}", boot.name))?;
        let mut folder = Folder::open(handle).map_err(|why| format!("{}: {why}", boot.name))?;
        let files = BootFiles::read(&mut folder, slot, &[kernel::MACHINE])?;
        let path = file_path(handle, files.name);
        Ok((files, path))
    }
}

impl Loader for SlotLoader {
    type Started = Infallible;

    fn start(&mut self, slot: &SlotPartitions) -> Result<Infallible, String> {
        arm_watchdog();
        let boot = slot.boot.as_ref().map_err(Clone::clone)?;
        let (files, path) = self.read(slot, boot)?;
        let image = load(&files.kernel, path.as_deref())
            .map_err(|why| format!("{}: the firmware does not load it: {why}", files.name))?;
        drop(files.kernel);
        let options = cmdline::load_options(&files.cmdline);
        let initrd = files.initrd.map(Initrd::offer).transpose()?;
        let started = set_options(image, &options).and_then(|()| boot::start_image(image));
        // Whatever comes back was not a kernel that runs.
        drop(initrd);
        let _ = boot::unload_image(image);
        let answer = started.map_or_else(|error| error.status(), |()| Status::SUCCESS);
        Err(format!("{}: came back: {answer}", files.name))
    }
}

fn load(kernel: &[u8], path: Option<&[u8]>) -> Result<Handle, String> {
    let file_path = path.and_then(|path| path.try_into().ok());
    let source = LoadImageSource::FromBuffer { buffer: kernel, file_path };
    boot::load_image(boot::image_handle(), source).map_err(|error| status(&error).to_string())
}

/// Gives an image its command line, which must stay where it is until the image has ended.
fn set_options(image: Handle, options: &[u16]) -> uefi::Result {
    let mut loaded = open::<LoadedImage>(image)?;
    let bytes = u32::try_from(size_of_val(options)).map_err(|_| Status::INVALID_PARAMETER)?;
    #[expect(unsafe_code, reason = "load options are a bare pointer in UEFI")]
    // SAFETY: the caller keeps the options until the image has come back.
    unsafe {
        loaded.set_load_options(options.as_ptr().cast(), bytes);
    }
    Ok(())
}
