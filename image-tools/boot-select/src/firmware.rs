//! Step 11, boot: UEFI behind the library's traits, and the program's start and end.

mod device;
mod disk;
mod files;
mod initrd;
mod start;

use alloc::format;
use alloc::string::{String, ToString as _};
use boot_select::{Console, Facts};
use core::convert::Infallible;
use core::fmt::Write as _;
use core::time::Duration;
use uefi::runtime::{ResetType, VariableAttributes, VariableVendor};
use uefi::{Status, boot, cstr16, guid, runtime, system, table};

/// The variable in which the started system finds the facts of this boot, one a line.
const VARIABLE: VariableVendor = VariableVendor(guid!("f11b51de-0b00-4d5e-8a3c-5e1ec7b00751"));
/// How long the last message stands on the console before the machine is reset, in seconds.
const RESET_AFTER_S: u64 = 30;
/// How long loading and starting one slot may take until the firmware resets the machine, in seconds.
const WATCHDOG_S: usize = 300;
/// What the firmware may log with that reset. Codes up to 0xffff are its own.
const WATCHDOG_CODE: u64 = 0x1_f11b;

#[uefi::entry]
fn main() -> Status {
    arm_watchdog();
    let reason = match run() {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    give_up(&format!("no slot can be booted: {reason}"))
}

fn run() -> Result<Infallible, String> {
    let device = device::own_disk()?;
    let mut disk = disk::WholeDisk::new(&device)?;
    let mut loader = start::SlotLoader::new(device);
    boot_select::boot(&mut disk, &mut loader, &mut Reporter).map_err(|error| error.reason)
}

/// Whatever hangs from now on, the machine comes back; the kernel ends the watchdog when it takes over.
fn arm_watchdog() {
    if let Err(error) = boot::set_watchdog_timer(WATCHDOG_S, WATCHDOG_CODE, None) {
        Reporter.say(&format!("the firmware's watchdog cannot be set: {}", error.status()));
    }
}

fn give_up(message: &str) -> ! {
    Reporter.say(&format!("{message}; resetting in {RESET_AFTER_S} s"));
    boot::stall(Duration::from_secs(RESET_AFTER_S));
    runtime::reset(ResetType::COLD, Status::ABORTED, None)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    give_up(&format!("an error of this program: {info}"))
}

/// The firmware's console, which is also the serial line where there is one, and its variables.
struct Reporter;

impl Console for Reporter {
    fn say(&mut self, message: &str) {
        if !has_console() {
            return;
        }
        system::with_stdout(|console| {
            // A machine whose console fails must boot all the same.
            let _ = console.write_str(&format!("boot-select: {message}\n"));
        });
    }
}

/// A machine without any console need not have even the interface to it.
fn has_console() -> bool {
    let Some(table) = table::system_table_raw() else { return false };
    #[expect(unsafe_code, reason = "the uefi crate panics where there is no console instead of asking")]
    // SAFETY: the firmware's system table lives as long as this program; the entry point was given it.
    let console = unsafe { table.as_ref() }.stdout;
    !console.is_null()
}

impl Facts for Reporter {
    fn publish(&mut self, facts: &str) {
        let attributes = VariableAttributes::BOOTSERVICE_ACCESS | VariableAttributes::RUNTIME_ACCESS;
        let set = runtime::set_variable(cstr16!("FlipsideBoot"), &VARIABLE, attributes, facts.as_bytes());
        if let Err(error) = set {
            self.say(&format!("the variable FlipsideBoot cannot be set: {}", error.status()));
        }
    }
}

/// What an error of the firmware says.
fn status(error: &uefi::Error) -> String {
    error.status().to_string()
}
