//! What can go wrong for an operator, each in one line.

use protocol::status::Exit;
use std::io;
use std::path::{Path, PathBuf};

/// Why a command against a server failed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No server was named.
    #[error("no server: expected --server URL or UPDATECTL_SERVER in the environment")]
    NoServer,
    /// Neither a server was named nor a configuration that keeps the lock where operators can reach it by themselves.
    #[error(
        "no lock: expected --server URL, UPDATECTL_SERVER in the environment, or lock.backend = \"etcd\" in the configuration (--config FILE); found no server, and backend {found} in {searched}"
    )]
    NoLock {
        /// The backend that is configured.
        found: &'static str,
        /// Where the configuration was looked for.
        searched: String,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The lock in etcd.
    #[error(transparent)]
    Lock(#[from] crate::lock::LockError),
    /// The server's address is not one.
    #[error("not a server's address: expected a URL such as http://127.0.0.1:8400, found {0:?}")]
    Address(String),
    /// No token was given.
    #[error(
        "no token: expected --token TOKEN or UPDATECTL_TOKEN in the environment; update-server token create makes one"
    )]
    NoToken,
    /// A certificate without its key, or the other way round.
    #[error(
        "a client certificate needs its private key: expected both --client-cert and --client-key, found one"
    )]
    HalfAnIdentity,
    /// A file of the connection cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::network::tls::TlsError),
    /// The HTTP client cannot be made.
    #[error("cannot start the HTTP client")]
    Http(#[source] reqwest::Error),
    /// The server cannot be reached, or broke off.
    #[error("cannot reach the server {server}")]
    Unreachable {
        /// Its address.
        server: String,
        /// Why not.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("the server answers {status}: {message}")]
    Server {
        /// The HTTP status.
        status: u16,
        /// What it says, one line.
        message: String,
    },
    /// The server's answer cannot be read.
    #[error("the server's answer to {what} is not valid; is {server} an update-server of this version?")]
    Answer {
        /// What was asked.
        what: String,
        /// Its address.
        server: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The server's answer is longer than any honest one.
    #[error("the server's answer to {what} is too long: expected at most {limit} bytes")]
    TooLong {
        /// What was asked.
        what: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The release folder is not whole.
    #[error("{} is not a usable release: {problem}", .path.display())]
    Release {
        /// The folder or a file of it.
        path: PathBuf,
        /// What is wrong, expected, found.
        problem: String,
    },
    /// The manifest is not valid.
    #[error("{} is not a usable manifest", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: protocol::manifest::DocumentError,
    },
    /// A key cannot be used.
    #[error("cannot sign with {}", .path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: trust::key::KeyError,
    },
    /// The keys folder cannot be read.
    #[error("cannot read the keys folder")]
    Folder(#[from] trust::folder::FolderError),
    /// The metadata cannot be signed.
    #[error("cannot sign the targets metadata")]
    Sign(#[from] trust::document::BuildError),
    /// What the server serves is not to be believed; nothing is signed on top of it.
    #[error("{what} is not trusted; nothing was signed")]
    Untrusted {
        /// Which document.
        what: String,
        /// Why not.
        #[source]
        source: trust::TrustError,
    },
    /// The server shows something else than what was seen or signed here.
    #[error("{0}")]
    Refused(String),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Wrong(String),
    /// The operator said no.
    #[error("nothing was done: the answer was not yes")]
    Declined,
    /// There is nobody to ask.
    #[error("nothing was done: there is no terminal to ask on; say --yes")]
    NobodyToAsk,
    /// A lock of another system cannot be used.
    #[error("{} cannot be taken over", .path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: crate::lock::import::ImportError,
    },
    /// A policy file cannot be used.
    #[error("the policy cannot be used: {0}")]
    Policy(String),
    /// The answer cannot be written as JSON.
    #[error("cannot print the answer")]
    Output(#[source] serde_json::Error),
    /// The answer cannot be printed.
    #[error("cannot write to stdout")]
    Print(#[source] io::Error),
}

impl OperatorError {
    /// The exit code (DESIGN section 8).
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Untrusted { .. } | Self::Refused(_) => Exit::Refused,
            Self::NoServer
            | Self::NoLock { .. }
            | Self::NoToken
            | Self::Address(_)
            | Self::HalfAnIdentity
            | Self::NobodyToAsk => Exit::Usage,
            _ => Exit::Failed,
        }
    }

    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::File { path, source }
    }
}
