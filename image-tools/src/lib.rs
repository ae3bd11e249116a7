//! Images to payloads, releases, disks and keys: what an operator does on their own machine.
//!
//! | module | step of the flow (DESIGN section 1) |
//! |---|---|
//! | `boot_image`, `fat`, `efi` | 1 image: a kernel as the image of a BOOT partition |
//! | `boot_volume`, `content` | 1 image: whether what is given can be started from, or mounted |
//! | `inputs` | all: an output that is one of the inputs |
//! | [`build`] | 2 payload: images to one payload file |
//! | [`release`] | 3 metadata: payload and manifest; inspecting and verifying them |
//! | [`apply`] | 5 to 7 offline: a payload into a file or a slot |
//! | `keys` | 3 metadata: the offline keys, and what they sign first |
//! | `disk` | 8 flip, 11 boot: GPT disks made, shown, changed |
//! | [`cli`] | the commands |

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
pub mod release;

pub use cli::command;
