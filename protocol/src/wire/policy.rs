//! Steps 4 and 9: policy files, of the reboot locks and of rollouts, as a server gives and takes them.

use super::SCHEMA;
use crate::digest::Sha256;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// All policies of the reboot locks, with the caps over them, or all of rollouts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Policies {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Names this state of the policies, for [`PolicySet::replaces`].
    pub digest: Sha256,
    /// A policy file (TOML) that says all of them.
    pub file: String,
    /// What looks like a mistake in rollout policies: channels and groups that no node is in. Each in one line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Policies {
    /// What a policy file says.
    #[must_use]
    pub fn of(file: &impl Display) -> Self {
        let file = file.to_string();
        Self { schema: SCHEMA, digest: Sha256::of(file.as_bytes()), file, warnings: Vec::new() }
    }
}

/// Removes a channel's rollout policy, if the policies are still what the operator saw: the default one holds then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyRemove {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`Policies::digest`] as the operator saw it: the server refuses (409) if the policies are others by now.
    pub replaces: Sha256,
    /// Why.
    pub why: String,
}

/// Sets policies, if they are still what the operator saw. A group or channel that the file leaves out keeps its policy; the caps
/// over groups are those of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicySet {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`Policies::digest`] as the operator saw it: the server refuses (409) if the policies are others by now.
    pub replaces: Sha256,
    /// The policy file (TOML).
    pub file: String,
    /// Why.
    pub why: String,
}
