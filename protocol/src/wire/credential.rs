//! Steps 4 and 9: a node's own secret, which binds its id on the server to this one node.

use super::secret;
use crate::digest::Sha256;
use std::fmt;
use std::str::FromStr;

/// What a credential begins with, for secret scanners, and so that it is never taken for an operator's token.
const PREFIX: &str = "flipside_node_";

/// A secret that a node makes once and sends with what it says (`Authorization: Bearer`). The server takes the first one
/// that it hears for a node id, keeps its hash, and refuses others for that id from then on.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeCredential(String);

/// Text that is not a node's credential. It is not shown: it may be a secret all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a node's credential: expected {PREFIX} and 64 lower-case hexadecimal digits")]
pub struct InvalidCredential;

impl NodeCredential {
    /// A credential of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(secret::of(PREFIX, bytes))
    }

    /// Whether a bearer token means to be a node's credential, valid or not.
    #[must_use]
    pub fn is_meant_by(token: &str) -> bool {
        token.starts_with(PREFIX)
    }

    /// The secret, for the header and the file.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What a server keeps of it. It is 32 random bytes, so one round of SHA-256 is enough.
    #[must_use]
    pub fn hash(&self) -> Sha256 {
        Sha256::of(self.0.as_bytes())
    }
}

impl FromStr for NodeCredential {
    type Err = InvalidCredential;

    fn from_str(text: &str) -> Result<Self, InvalidCredential> {
        if secret::is_one(PREFIX, text) { Ok(Self(text.to_owned())) } else { Err(InvalidCredential) }
    }
}

impl fmt::Debug for NodeCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeCredential(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_never_shown() {
        let credential = NodeCredential::from_random([0xa5; 32]);
        assert_eq!(credential.reveal().parse::<NodeCredential>().unwrap(), credential);
        assert!(NodeCredential::is_meant_by(credential.reveal()));
        assert!(!format!("{credential:?}").contains("a5"));
    }

    #[test]
    fn others_are_refused_without_being_shown() {
        let good = NodeCredential::from_random([7; 32]);
        for bad in ["", "flipside_node_", &good.reveal()[..70], &good.reveal().to_uppercase(), "flipside_07"]
        {
            let error = bad.parse::<NodeCredential>().unwrap_err().to_string();
            assert!(bad.len() < 20 || !error.contains(bad), "{error}");
        }
    }
}
