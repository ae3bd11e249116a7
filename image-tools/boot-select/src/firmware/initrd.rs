//! Step 11, boot: the initrd, where Linux looks for it: a LoadFile2 protocol on the vendor media path
//! `5568e427-68fc-4f3d-ac74-ca555231cc68` (Linux, `drivers/firmware/efi/libstub/efi-stub-helper.c`).

use super::status;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_void;
use uefi::proto::device_path::DevicePath;
use uefi::{Guid, Handle, Identify as _, Status, boot};
use uefi_raw::Boolean;
use uefi_raw::protocol::device_path::DevicePathProtocol;
use uefi_raw::protocol::media::LoadFile2Protocol;

/// A vendor media node with Linux's GUID, and the end.
static PATH: [u8; 24] = [
    4, 3, 20, 0, 0x27, 0xe4, 0x68, 0x55, 0xfc, 0x68, 0x3d, 0x4f, 0xac, 0x74, 0xca, 0x55, 0x52, 0x31, 0xcc,
    0x68, 0x7f, 0xff, 4, 0,
];

/// What the firmware is given: its protocol first, then what we need to answer.
#[repr(C)]
struct Served {
    protocol: LoadFile2Protocol,
    bytes: Vec<u8>,
}

/// An initrd that the kernel can ask the firmware for, until this is dropped.
pub(super) struct Initrd {
    handle: Handle,
    served: *mut Served,
}

impl Initrd {
    /// Offers the initrd.
    pub(super) fn offer(bytes: Vec<u8>) -> Result<Self, String> {
        let served = Box::into_raw(Box::new(Served { protocol: LoadFile2Protocol { load_file }, bytes }));
        install(None, &DevicePath::GUID, PATH.as_ptr().cast())
            .and_then(|handle| {
                install(Some(handle), &LoadFile2Protocol::GUID, served.cast_const().cast())
                    .inspect_err(|_| uninstall(handle, &DevicePath::GUID, PATH.as_ptr().cast()))
            })
            .map(|handle| Self { handle, served })
            .map_err(|error| format!("\\initrd: cannot be offered to the kernel: {}", status(&error)))
    }
}

impl Drop for Initrd {
    /// Takes the offer back: the next slot has another initrd. Its memory is not: who asked for the protocol may hold
    /// it still.
    fn drop(&mut self) {
        uninstall(self.handle, &LoadFile2Protocol::GUID, self.served.cast_const().cast());
        uninstall(self.handle, &DevicePath::GUID, PATH.as_ptr().cast());
    }
}

fn install(handle: Option<Handle>, protocol: &Guid, interface: *const c_void) -> uefi::Result<Handle> {
    #[expect(unsafe_code, reason = "an initrd is offered by installing a protocol")]
    // SAFETY: the callers pass each protocol's GUID with what that protocol is, at an address that stays.
    unsafe {
        boot::install_protocol_interface(handle, protocol, interface)
    }
}

fn uninstall(handle: Handle, protocol: &Guid, interface: *const c_void) {
    #[expect(unsafe_code, reason = "an initrd that is not wanted any more must not be found")]
    // SAFETY: it was installed by us; what stands behind it stays in memory.
    let result = unsafe { boot::uninstall_protocol_interface(handle, protocol, interface) };
    // One that stays is found out when the next one is offered: it cannot be installed twice.
    let _ = result;
}

/// The firmware's way to ask for the initrd: first for its length, then for its bytes.
#[expect(unsafe_code, reason = "called by the kernel's EFI stub, which knows pointers only")]
unsafe extern "efiapi" fn load_file(
    this: *mut LoadFile2Protocol,
    _file_path: *const DevicePathProtocol,
    boot_policy: Boolean,
    buffer_size: *mut usize,
    buffer: *mut c_void,
) -> Status {
    if this.is_null() || buffer_size.is_null() {
        return Status::INVALID_PARAMETER;
    }
    if bool::from(boot_policy) {
        return Status::UNSUPPORTED;
    }
    // SAFETY: `this` is what `offer` installed, the first field of a `Served` that is never freed; the caller's
    // pointers are as the UEFI specification (13.2, EFI_LOAD_FILE2_PROTOCOL) has them.
    let (bytes, room) = unsafe { (&(*this.cast::<Served>()).bytes, buffer_size.replace(0)) };
    // SAFETY: as above.
    unsafe { buffer_size.write(bytes.len()) };
    if buffer.is_null() || room < bytes.len() {
        return Status::BUFFER_TOO_SMALL;
    }
    // SAFETY: the caller has `room` bytes at `buffer`, its own memory.
    unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    Status::SUCCESS
}
