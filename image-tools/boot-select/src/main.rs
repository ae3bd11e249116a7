//! Step 11, boot: the UEFI program. The decisions are the library's; here is the firmware.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
extern crate alloc;

#[cfg(target_os = "uefi")]
mod firmware;

#[cfg(not(target_os = "uefi"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "boot-select is a UEFI program: build it with image-tools/boot-select/build and put it on the ESP as \
         \\EFI\\BOOT\\BOOTX64.EFI"
    );
    std::process::ExitCode::from(2)
}
