//! Step 4, channel: how a node becomes one of the fleet's, and what operators say about it: enrolment tokens, groups that
//! operators assign, and nodes that are not heard any more.

use super::secret;
use crate::digest::Sha256;
use crate::id::Group;
use crate::lock::ClientId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a token begins with, for secret scanners, and so that it is never taken for another secret.
const PREFIX: &str = "flipside_enrol_";
/// How many hexadecimal digits of a token's hash name it.
const ID_DIGITS: usize = 12;

/// The header that a node shows an enrolment token in, beside its own credential.
pub const ENROLMENT_HEADER: &str = "flipside-enrolment";
/// The kind of error of a server that hears a node only with an enrolment token, and none was shown.
pub const NOT_ENROLLED: &str = "not-enrolled";

/// A secret that lets nodes enrol. The server keeps its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken(String);

/// Text that is not an enrolment token. It is not shown: it may be a secret all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an enrolment token: expected {PREFIX} and 64 lower-case hexadecimal digits")]
pub struct InvalidEnrolmentToken;

impl EnrolmentToken {
    /// A token of 32 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(secret::of(PREFIX, bytes))
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

    /// What it is called where it must not be shown: the first digits of its hash.
    #[must_use]
    pub fn id(&self) -> String {
        let mut id = self.hash().to_string();
        id.truncate(ID_DIGITS);
        id
    }
}

impl FromStr for EnrolmentToken {
    type Err = InvalidEnrolmentToken;

    fn from_str(text: &str) -> Result<Self, InvalidEnrolmentToken> {
        if secret::is_one(PREFIX, text) { Ok(Self(text.to_owned())) } else { Err(InvalidEnrolmentToken) }
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentToken(…)")
    }
}

/// Makes an enrolment token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolmentCreate {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The group that it places nodes in; none leaves them the one that they name themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// After how many seconds it ends by itself, by the server's clock; none for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u32>,
    /// How many nodes it enrols at most, 1 or more; none for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// What it is for, in a line of at most 256 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A new enrolment token: it is shown this once only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolmentCreated {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// The secret.
    pub token: String,
    /// What stays known of it.
    pub enrolment: EnrolmentInfo,
}

/// The enrolment tokens of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolmentList {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Newest first.
    pub enrolments: Vec<EnrolmentInfo>,
}

/// What is known of an enrolment token, which is everything but the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrolmentInfo {
    /// Names it: the first digits of its hash.
    pub id: String,
    /// Whether it enrols nodes now.
    pub state: EnrolmentState,
    /// The group that it places nodes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// How many nodes it has enrolled.
    pub used: u32,
    /// How many it enrols at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The name of the operator's token that made it.
    pub created_by: String,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// When it enrolled a node last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

/// Whether an enrolment token enrols nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EnrolmentState {
    /// It does.
    Valid,
    /// An operator has ended it.
    Revoked,
    /// Its time is over.
    Expired,
    /// It has enrolled as many nodes as it may.
    UsedUp,
}

impl EnrolmentState {
    /// What is wrong with such a token, or the word for one that is well.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::UsedUp => "used up",
        }
    }
}

/// Takes a node's leave to be heard away, until it is reinstated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRevoke {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Why, for the node, for operators and for the audit log.
    pub reason: String,
}

/// What a revocation took away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRevoked {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Which node.
    pub node: ClientId,
    /// Whether anything else was known of it.
    pub known: bool,
    /// The groups whose reboot permit it held.
    pub permits: Vec<Group>,
    /// The groups in whose queue it waited.
    pub places: Vec<Group>,
}

/// Places a node in a group, whatever it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeGroup {
    /// [`super::SCHEMA`].
    pub schema: u32,
    /// Which group.
    pub group: Group,
}

/// That a node is not heard any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revocation {
    /// Since when.
    pub at: Timestamp,
    /// The name of the token that did it.
    pub by: String,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_never_shown() {
        let token = EnrolmentToken::from_random([0xa5; 32]);
        assert_eq!(token.reveal().parse::<EnrolmentToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains("a5"));
        assert!(token.hash().to_string().starts_with(&token.id()) && token.id().len() == 12);
        for bad in ["", PREFIX, &token.reveal()[..70], &token.reveal().to_uppercase(), "flipside_node_07"] {
            let error = bad.parse::<EnrolmentToken>().unwrap_err().to_string();
            assert!(bad.len() < 20 || !error.contains(bad), "{error}");
        }
    }
}
