//! Step 9, permit: what can go wrong with a lock, each with what was expected and found, and what to do.

use crate::network::NetworkError;
use protocol::id::Group;
use reqwest::StatusCode;
use std::path::PathBuf;
use std::time::Duration;

/// A lock that did not answer. Whatever it is, no permit was granted and no reboot allowed by it.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The HTTP client cannot be made.
    #[error("cannot set up the client of the reboot lock")]
    Setup {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A file of the configuration cannot be read.
    #[error("{key}: cannot read {}", path.display())]
    File {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the configuration is no PEM of its kind.
    #[error("{key}: {} does not hold {expected} in PEM", path.display())]
    Pem {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// Why not; none where it is simply empty.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// No answer from one address.
    #[error("no answer from {url}")]
    Request {
        /// What was asked.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// No answer from one address in time.
    #[error("no answer from {url} in {} ms", after.as_millis())]
    Slow {
        /// What was asked.
        url: String,
        /// How long was waited.
        after: Duration,
    },
    /// None of the endpoints answers.
    #[error("no etcd endpoint answers: {failures}")]
    NoEndpoint {
        /// Each endpoint with its failure.
        failures: String,
    },
    /// No answer in all the time there was.
    #[error("the reboot lock gave no answer in {} s", after.as_secs_f32())]
    Deadline {
        /// How long it was tried.
        after: Duration,
        /// What failed last, if anything did.
        #[source]
        source: Option<Box<LockError>>,
    },
    /// Others changed the document each time, for as long as there was.
    #[error("the lock's document changed under each of {tries} tries in {} s; ask again", after.as_secs_f32())]
    Contended {
        /// How often.
        tries: u32,
        /// For how long.
        after: Duration,
    },
    /// A change was sent, and nothing could be read since. It may be done or not: asking again tells.
    #[error("it is not known whether the lock was changed; ask again, which does no harm")]
    Unresolved {
        /// What failed last.
        #[source]
        source: Box<LockError>,
    },
    /// The store does not take us.
    #[error("{url} refuses these credentials ({message}); correct them in [lock] and in the store")]
    Credentials {
        /// What was asked.
        url: String,
        /// What it says.
        message: String,
    },
    /// A redirect.
    #[error(
        "{url} answered {status} to {location}: redirects are not followed; name the server itself in [lock]"
    )]
    Redirect {
        /// What was asked.
        url: String,
        /// 3xx.
        status: StatusCode,
        /// Where it points.
        location: String,
    },
    /// Another status than asked for.
    #[error("{url} answered {status}{}", if message.is_empty() { String::new() } else { format!(" ({message})") })]
    Status {
        /// What was asked.
        url: String,
        /// Anything but 200.
        status: StatusCode,
        /// What it says about it.
        message: String,
        /// Whether the same question may be answered later.
        passing: bool,
    },
    /// More bytes than are taken.
    #[error("{url} sent more than the {limit} bytes that are accepted")]
    TooLong {
        /// What was asked.
        url: String,
        /// The bound.
        limit: usize,
    },
    /// Not the answer expected.
    #[error("the answer of {url} is not what was expected")]
    Answer {
        /// What was asked.
        url: String,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// An answer that lacks what was asked for.
    #[error("the answer of {url} is not what was expected: {found}")]
    Incomplete {
        /// What was asked.
        url: String,
        /// What is missing.
        found: String,
    },
    /// A stored document that cannot be read. It is left as it is.
    #[error(
        "{key} holds no {expected}: nobody gets a permit until it is repaired; look at it with etcdctl get, then write a good one back or delete it while no node reboots"
    )]
    Corrupt {
        /// The key in the store.
        key: String,
        /// What should be there.
        expected: &'static str,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// A stored document of another schema. It is left as it is.
    #[error(
        "{key} has schema {found}: expected {expected}; a newer Flipside wrote it, so this one has to be updated first"
    )]
    Schema {
        /// The key in the store.
        key: String,
        /// As stored.
        found: u64,
        /// As this program writes it.
        expected: u32,
    },
    /// A stored document of another group. It is left as it is.
    #[error("{key} holds the lock of group {found}: expected {expected}; delete it while no node reboots")]
    OtherGroup {
        /// The key in the store.
        key: String,
        /// As stored.
        found: Group,
        /// By the key.
        expected: Group,
    },
    /// No such group.
    #[error("there is no group {group}: set a policy for it first")]
    UnknownGroup {
        /// The name.
        group: Group,
    },
    /// A group that is there already.
    #[error("group {group} has a lock already, with {holders} holders: import replaces none")]
    GroupExists {
        /// The name.
        group: Group,
        /// How many hold a permit there.
        holders: usize,
    },
    /// A policy that contradicts itself.
    #[error("{what} cannot be set: {problems}")]
    Policy {
        /// Whose.
        what: String,
        /// All that is wrong with it.
        problems: String,
    },
    /// What this backend has not.
    #[error("the {backend} backend cannot {what}")]
    Unsupported {
        /// Which.
        backend: &'static str,
        /// What was asked of it.
        what: &'static str,
    },
    /// The update server did not answer.
    #[error(transparent)]
    Server(#[from] NetworkError),
}

impl LockError {
    /// Whether asking again later may help, with nothing changed by a person.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Request { source, .. } => !source.is_builder(),
            Self::Status { passing, .. } => *passing,
            Self::Slow { .. }
            | Self::NoEndpoint { .. }
            | Self::Deadline { .. }
            | Self::Contended { .. }
            | Self::Unresolved { .. }
            | Self::Answer { .. }
            | Self::Incomplete { .. } => true,
            Self::Server(error) => error.is_passing(),
            _ => false,
        }
    }
}
