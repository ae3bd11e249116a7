//! Images to payloads, releases, disks and keys: what an operator does on their own machine.
//!
//! | module | step of the flow (DESIGN section 1) |
//! |---|---|
//! | `boot_image`, `fat`, `efi` | 1 image: a kernel as the image of a BOOT partition |
//! | `boot_volume`, `content` | 1 image: whether what is given can be started from, or mounted |
//! | `inputs` | all: an output that is one of the inputs |
//! | `output` | all: a file that comes out, and what it may replace |
//! | [`build`] | 2 payload: images to one payload file |
//! | [`release`] | 3 metadata: payload and manifest; inspecting and verifying them |
//! | [`apply`] | 5 to 7 offline: a payload into a file or a slot |
//! | `keys` | 3 metadata: the offline keys, and what they sign first |
//! | `disk` | 8 flip, 11 boot: GPT disks made, shown, changed |
//! | [`cli`] | the commands |

/// In place of the standard one, in every module: that one panics where nobody reads the output any more.
macro_rules! println {
    () => { crate::output::say(format_args!("")) };
    ($($line:tt)*) => { crate::output::say(format_args!($($line)*)) };
}

pub mod apply;
mod boot_image;
mod boot_volume;
pub mod build;
pub mod cli;
mod content;
mod disk;
mod efi;
mod fat;
mod inputs;
mod keys;
mod output;
pub mod release;

pub use cli::command;
