//! Step 11, boot: which disk this program was started from, and the firmware's handles of its partitions.

use super::status;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use protocol::gpt::Guid;
use uefi::Handle;
use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams, ScopedProtocol};
use uefi::proto::ProtocolPointer;
use uefi::proto::device_path::media::{HardDrive, PartitionSignature};
use uefi::proto::device_path::{DevicePath, DevicePathNodeEnum};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::block::BlockIO;
use uefi::proto::media::fs::SimpleFileSystem;

/// The node that ends a device path.
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
/// Type and subtype of the node that names a file by its path.
const FILE_PATH: [u8; 2] = [4, 4];

/// The disk that holds the ESP this program was loaded from.
pub(super) struct OwnDisk {
    /// The firmware's handle of the whole disk.
    pub(super) handle: Handle,
    /// Its device path, without the node that ends it: partitions' paths begin with it.
    path: Vec<u8>,
}

/// Finds the disk that this program's own ESP is on: other disks may hold copies of the same partitions.
pub(super) fn own_disk() -> Result<OwnDisk, String> {
    let image = open::<LoadedImage>(boot::image_handle()).map_err(|error| {
        format!("the firmware does not say where boot-select was loaded from: {}", status(&error))
    })?;
    let esp = image.device().ok_or("boot-select was not loaded from a disk")?;
    let path =
        open::<DevicePath>(esp).map_err(|error| format!("the ESP has no device path: {}", status(&error)))?;
    let (disk, _) = partition(&path).ok_or("boot-select was not loaded from a partition")?;
    let whole = [disk.as_slice(), &END].concat();
    let mut rest: &DevicePath =
        whole.as_slice().try_into().map_err(|_| "the ESP's device path cannot be understood")?;
    let handle = boot::locate_device_path::<BlockIO>(&mut rest)
        .map_err(|error| format!("the firmware gives no access to the whole disk: {}", status(&error)))?;
    if rest.node_iter().next().is_some() {
        return Err("the firmware gives no access to the whole disk that the ESP is on".into());
    }
    // Fast boot may have connected no more than what it needed to find this program. Where it fails, the file systems
    // are not found, and that is said then.
    let _ = boot::connect_controller(handle, &[], None, true);
    Ok(OwnDisk { handle, path: disk })
}

impl OwnDisk {
    /// The handle of the file system in the partition of this disk with this GUID.
    pub(super) fn file_system(&self, partition_guid: Guid) -> Result<Handle, String> {
        let handles = boot::find_handles::<SimpleFileSystem>().map_err(|error| status(&error))?;
        let is_it = |handle: &Handle| {
            let path = open::<DevicePath>(*handle).ok();
            path.and_then(|path| partition(&path))
                .is_some_and(|(disk, guid)| disk == self.path && guid == partition_guid)
        };
        handles.into_iter().find(is_it).ok_or_else(|| "the firmware finds no file system in it".into())
    }
}

/// The device path of a file in the file system of a handle; what is loaded from there is told so.
pub(super) fn file_path(file_system: Handle, name: &str) -> Option<Vec<u8>> {
    let path = open::<DevicePath>(file_system).ok()?;
    let mut bytes = path.as_bytes().strip_suffix(&END)?.to_vec();
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    bytes.extend(FILE_PATH);
    bytes.extend(u16::try_from(4 + name.len()).ok()?.to_le_bytes());
    bytes.extend(name);
    bytes.extend(END);
    Some(bytes)
}

/// Takes a GPT partition's path apart: the disk's path without its end, and the partition's GUID.
fn partition(path: &DevicePath) -> Option<(Vec<u8>, Guid)> {
    let mut disk = Vec::new();
    let mut nodes = path.node_iter().peekable();
    while let Some(node) = nodes.next() {
        if nodes.peek().is_some() {
            disk.extend_from_slice(&node.length().to_le_bytes());
            let header = disk.len() - 2;
            disk.splice(header..header, [node.device_type().0, node.sub_type().0]);
            disk.extend_from_slice(node.data());
            continue;
        }
        let DevicePathNodeEnum::MediaHardDrive(node) = node.as_enum().ok()? else { return None };
        return Some((disk, gpt_guid(node)?));
    }
    None
}

fn gpt_guid(node: &HardDrive) -> Option<Guid> {
    match node.partition_signature() {
        PartitionSignature::Guid(guid) => Some(Guid::from_bytes(guid.to_bytes())),
        _ => None,
    }
}

/// Opens a protocol without taking it away from the firmware's own drivers.
pub(super) fn open<P: ProtocolPointer + ?Sized>(handle: Handle) -> uefi::Result<ScopedProtocol<P>> {
    let params = OpenProtocolParams { handle, agent: boot::image_handle(), controller: None };
    #[expect(
        unsafe_code,
        reason = "opening exclusively would stop the drivers of the disk and its partitions"
    )]
    // SAFETY: handles and protocols could vanish if a driver were stopped meanwhile. Nothing that this program calls
    // stops drivers, and nothing else runs before the kernel; disks that are pulled out are of the world's making.
    unsafe {
        boot::open_protocol::<P>(params, OpenProtocolAttributes::GetProtocol)
    }
}
