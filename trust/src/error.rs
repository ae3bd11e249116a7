//! Step 5, trust: what can be wrong with what a server says, each in one line.

use protocol::manifest::DocumentError;
use std::io;
use std::path::PathBuf;

/// What the caller should do about a [`TrustError`], for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The server could not be reached or lacks a file: try again later (exit 1).
    Network,
    /// Something is wrong on this machine: the trust anchor, the disk (exit 1).
    Local,
    /// What the server sent must not be believed (exit 5).
    Refused,
}

/// Why metadata or a target is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The trust anchor cannot be read. Never means "accept".
    #[error(
        "cannot read the trust anchor {}: expected the root.json that the operator made; \
         nothing is accepted without it, so install it there ([trust] root)", .path.display()
    )]
    AnchorMissing {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// The trust anchor is not a root signed by its own keys.
    #[error(
        "the trust anchor {what} is not a valid root.json: expected one signed by its own root keys; \
         nothing is accepted without it, so install a good copy"
    )]
    AnchorInvalid {
        /// Which file.
        what: String,
        /// What is wrong with it.
        #[source]
        source: sigstore_tuf::Error,
    },
    /// The folder of trusted metadata cannot be read or written.
    #[error("cannot use {} in the folder of trusted metadata; updates stop until it can be read and written", .path.display())]
    Store {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server has no such file.
    #[error(
        "the server has no {name}: expected it to be published; run `updatectl root push` or ask its operator"
    )]
    Missing {
        /// Which file.
        name: String,
    },
    /// The server cannot be reached, or broke off.
    #[error("cannot fetch {name} from the server")]
    Network {
        /// Which file.
        name: String,
        /// Why not.
        #[source]
        source: sigstore_tuf::Error,
    },
    /// A file is longer than any honest one.
    #[error("{name} is too long: expected at most {limit} bytes, found more; the rest was not read")]
    Oversize {
        /// Which file.
        name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Not metadata at all, or not of this kind.
    #[error("{name} is not valid TUF metadata; the server or a mirror serves something else in its place")]
    Malformed {
        /// Which file.
        name: String,
        /// What is wrong with it.
        #[source]
        source: sigstore_tuf::Error,
    },
    /// Wrong keys, or too few of them.
    #[error(
        "{role} metadata is not signed by enough trusted keys: expected {threshold}, found {found}; \
         check that the trust anchor is this server's root.json, else treat the server as hostile"
    )]
    Signatures {
        /// Which role.
        role: String,
        /// Valid signatures of distinct trusted keys found.
        found: usize,
        /// Signatures needed.
        threshold: usize,
    },
    /// One key's signature is there twice.
    #[error(
        "{role} metadata carries two signatures of key {key_id}: expected one of each key; treat the server as hostile"
    )]
    RepeatedSignature {
        /// Which role.
        role: String,
        /// The key that signed twice.
        key_id: String,
    },
    /// Metadata past its expiry: the server stands still or an attacker holds updates back.
    #[error(
        "{role} metadata expired at {expires}: expected metadata valid at {now}; \
         the server or a mirror serves old files, or this clock is wrong"
    )]
    Expired {
        /// Which role.
        role: String,
        /// When it expired.
        expires: jiff::Timestamp,
        /// The time it was judged by.
        now: jiff::Timestamp,
    },
    /// Metadata older than what this node has seen.
    #[error(
        "{role} metadata is older than seen before: expected version {trusted} or newer, found {found}; the server or a mirror serves old files"
    )]
    Rollback {
        /// Which role.
        role: String,
        /// The newest version seen.
        trusted: u64,
        /// The version offered.
        found: u64,
    },
    /// A root that is not the next one.
    #[error(
        "the next root has the wrong version: expected {expected}, found {found}; roots are accepted one by one"
    )]
    RootVersion {
        /// The version that must come next.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// Files that do not belong together.
    #[error(
        "{name} is not the file that signed metadata names ({problem}); the server mixes files of different versions, or someone changed one"
    )]
    Mismatch {
        /// Which file.
        name: String,
        /// What differs.
        problem: String,
    },
    /// The newest root known is older than one that was trusted before, which this folder lost.
    #[error(
        "the newest root found has version {found}: expected {trusted} or newer, as trusted before; \
         if trust was started anew on purpose, remove the folder {}", .folder.display()
    )]
    RootRollback {
        /// The newest root trusted so far.
        trusted: u64,
        /// The newest root found.
        found: u64,
        /// The folder of trusted metadata.
        folder: PathBuf,
    },
    /// No signed metadata lists this target.
    #[error(
        "no trusted metadata lists {path}: expected a published target; it was withdrawn, or never released"
    )]
    UnknownTarget {
        /// The target path.
        path: String,
    },
    /// Targets were asked for before a successful refresh.
    #[error("no trusted metadata yet: refresh must succeed before targets are looked up")]
    NotRefreshed,
    /// The manifest or channel file makes no sense, though signed.
    #[error("a signed document cannot be used")]
    Document(#[from] DocumentError),
}

impl TrustError {
    /// What to do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::Network { .. } => ErrorKind::Network,
            Self::AnchorMissing { .. }
            | Self::AnchorInvalid { .. }
            | Self::Store { .. }
            | Self::NotRefreshed => ErrorKind::Local,
            _ => ErrorKind::Refused,
        }
    }

    /// Translates the library's error about the file `name`, judged at `now`.
    pub(crate) fn from_library(error: sigstore_tuf::Error, name: &str, now: jiff::Timestamp) -> Self {
        use sigstore_tuf::Error;
        let name = name.to_owned();
        match error {
            Error::ThresholdNotMet { role, found, threshold } => Self::Signatures { role, found, threshold },
            Error::DuplicateSignature { role, key_id } => Self::RepeatedSignature { role, key_id },
            Error::Expired { role, expires } => Self::Expired { role, expires, now },
            Error::Rollback { role, trusted, new } => Self::Rollback { role, trusted, found: new },
            Error::BadRootVersion { trusted, new } => {
                Self::RootVersion { expected: trusted.saturating_add(1), found: new }
            }
            Error::IntegrityMismatch(problem) => Self::Mismatch { name, problem },
            Error::TargetNotFound(path) => Self::UnknownTarget { path },
            Error::NotRefreshed => Self::NotRefreshed,
            Error::Transport { .. } | Error::Io { .. } => Self::Network { name, source: error },
            source => Self::Malformed { name, source },
        }
    }
}
