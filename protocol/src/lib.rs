//! Flipside's words, formats and rules, as pure code.
//!
//! Nothing here reads a clock, a file, the network or a source of randomness: all of that is passed in. What the
//! engine, the server, the tools and the boot loader must agree on lives here, once.
//!
//! | module | step of the flow (DESIGN section 1) |
//! |---|---|
//! | [`slot`] | 8 flip, 11 boot: slots, GPT attribute bits, boot selection (builds without `std`) |
//! | [`gpt`] | 8 flip, 11 boot: the partition table as bytes, its repair and its commit order (builds without `std`) |
//! | [`id`], [`version`], [`digest`] | the newtypes that all steps share |
//! | [`chunker`] | 2 payload, 5 download: where an image is cut |
//! | [`payload`] | 2 payload, 5 download: the payload file, byte for byte |
//! | [`manifest`] | 3 metadata, 4 channel: what a release is and what a channel lists |
//! | [`wire`] | 4 channel, 5 download: what node, operator and server say to each other |
//! | [`lock`] | 9 permit: the reboot lock's document and its transitions |
//! | [`window`] | 9 permit, 10 reboot: when a reboot may begin |
//! | `openapi` | 4 channel: how text of checked kinds reads in the server's OpenAPI document (feature `openapi`) |
//! | [`status`] | 5 to 12: what `updatectl` prints, and the exit codes |
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

pub mod gpt;
pub mod slot;

#[cfg(feature = "std")]
pub mod chunker;
#[cfg(feature = "std")]
pub mod digest;
#[cfg(feature = "std")]
pub mod id;
#[cfg(feature = "std")]
pub mod lock;
#[cfg(feature = "std")]
pub mod manifest;
#[cfg(feature = "openapi")]
pub mod openapi;
#[cfg(feature = "std")]
pub mod payload;
#[cfg(feature = "std")]
pub mod policy_file;
#[cfg(feature = "std")]
pub mod rollout;
#[cfg(feature = "std")]
pub mod status;
#[cfg(feature = "std")]
pub mod version;
#[cfg(feature = "std")]
pub mod window;
#[cfg(feature = "std")]
pub mod wire;
