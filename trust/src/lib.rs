//! Steps 3, 4 and 5, trust: one place signs TUF metadata, one place checks it (DESIGN section 6).
//!
//! | module | who uses it |
//! |---|---|
//! | [`key`] | everyone who signs: key files, public keys, the server's online keys |
//! | [`folder`] | `image-tools keys`, `updatectl root push`: the operator's folder of keys and signed roles |
//! | [`document`] | `image-tools`, `updatectl`, server: builds and signs metadata; deterministic, time is passed in |
//! | [`publish`] | server: the next channels, snapshot and timestamp from what is published now |
//! | [`verify`] | server and operator: roots and targets that someone else hands in |
//! | [`client`] | any TUF client: refresh from a repository and fetch targets by path, with durable rollback floors |
//! | [`node`] | engine: [`Trust`] over the client, and [`authorize`], which alone makes an [`Authorized`] |
//!
//! [`Verified`] is the evidence that all of them hand out: it has no public constructor, and this crate makes one
//! only after `sigstore-tuf` has checked the signatures.
//!
//! Deviations from the first draft of the interfaces: [`Trust::open`] only reads the anchor and checks it; cached
//! files are judged at each [`Trust::refresh`], whose [`Refreshed`] says what was set aside.

pub mod client;
pub mod document;
mod error;
mod floor;
pub mod folder;
pub mod key;
pub mod node;
pub mod publish;
mod repository;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod verify;

pub use client::{Client, Refreshed, SetAside, Target, Versions};
pub use error::{ErrorKind, TrustError};
pub use key::{OnlineKeys, OnlinePublicKeys, PublicKey, SigningKey};
pub use node::{Authorized, NodeFacts, Refusal, Trust, VerifiedManifest, authorize};
pub use repository::oversize;
pub use sigstore_tuf::{Error as RepositoryError, Repository};
pub use verify::{
    Root, Targets, Verified, verify_channels, verify_root_chain, verify_targets, verify_targets_signatures,
};
