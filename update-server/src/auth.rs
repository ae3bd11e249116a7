//! Step 4, channel: who may change what. Tokens, their roles, and the check that every request under `/api/` passes.

use crate::error::ApiError;
use crate::server::App;
use crate::store::tokens;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use protocol::digest::Sha256;
use std::fmt;
use std::str::FromStr;

/// What the bearer of a token may do. Each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads everything.
    Viewer,
    /// Uploads payloads and pushes signed releases, which reach no node yet.
    Publisher,
    /// Decides what nodes get: channels, and the root of trust; and who may reboot: policies, permits taken away.
    Operator,
}

impl Role {
    /// The name as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Publisher => "publisher",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Text that names no role.
#[derive(Clone, Debug, thiserror::Error)]
#[error("not a role: expected viewer, publisher or operator, found {0:?}")]
pub struct InvalidRole(String);

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "publisher" => Ok(Self::Publisher),
            "operator" => Ok(Self::Operator),
            _ => Err(InvalidRole(text.chars().take(80).collect())),
        }
    }
}

/// A new token: 256 random bits behind a prefix that secret scanners can look for.
///
/// # Errors
/// Where the system has no randomness.
pub fn generate() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("flipside_{}", hex::encode(bytes)))
}

fn bearer_of(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The bearer token that a request shows, whatever it is good for.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION).and_then(bearer_of)
}

/// The bearer of a valid token.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The token's name, as the audit log says it.
    pub name: String,
    role: Role,
}

impl Actor {
    /// Goes on only if the token's role is at least `needed`.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`].
    pub fn require(&self, needed: Role) -> Result<(), ApiError> {
        if self.role >= needed {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!(
            "the token {} has the role {}: this needs {needed}; ask for a token with that role",
            self.name, self.role
        )))
    }
}

impl FromRequestParts<App> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let refused = |why: &str| Err(ApiError::Unauthorized(why.to_owned()));
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
            return refused("no token: expected the header Authorization: Bearer TOKEN");
        };
        let Some(token) = bearer_of(value) else {
            return refused("not a bearer token: expected the header Authorization: Bearer TOKEN");
        };
        let now = app.now();
        match tokens::find(&mut *app.store().read().await?, &Sha256::of(token.as_bytes())).await? {
            None => refused("the token is unknown: make one with update-server token create"),
            Some(token) if token.revoked_at.is_some() => {
                refused(&format!("the token {} was revoked", token.name))
            }
            Some(token) if token.expires_at.is_some_and(|at| at <= now) => {
                refused(&format!("the token {} has expired", token.name))
            }
            Some(token) => Ok(Self { name: token.name, role: token.role }),
        }
    }
}
