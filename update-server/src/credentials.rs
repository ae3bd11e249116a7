//! Steps 4 and 9: whether a node is who it says. The first credential heard for a node id binds it, where the server asks for
//! that only together with an enrolment token.

use crate::auth::bearer;
use crate::changes::{self, Change, Done};
use crate::enrolment::{self, Enrolment};
use crate::error::ApiError;
use crate::server::App;
use crate::store::{StoreError, credentials, standing};
use axum::http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::lock::ClientId;
use protocol::wire::NodeCredential;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long a check believes what the database said about a node where other servers may change it meanwhile. After a reset
/// at another server the old credential may be heard for so long.
const BELIEVED: SignedDuration = SignedDuration::from_secs(60);
/// How many nodes are remembered; it bounds the memory, at about 130 bytes each.
const KNOWN_MAX: usize = 1_000_000;

/// How sure a request must be of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A node without a credential is heard as long as its id is not bound. A minute's delay does no harm.
    IfBound,
    /// A credential must be shown, and the database is asked.
    Always,
}

/// What is known of nodes' credentials. Where no other server has the same database it is what the database holds, and a check
/// need not ask it.
#[derive(Debug, Default)]
pub struct Credentials {
    known: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    nodes: HashMap<u128, Known>,
    /// Counts what was forgotten: what was read before that may be wrong.
    forgotten: u64,
}

/// What a node id is bound to, and when the database said so, in microseconds. Half a hash each, to be small: 128 bits are
/// enough to tell a secret of 256 random bits from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    bound: Option<u128>,
    at: i64,
}

/// The first half of a hash.
fn half(hash: &Sha256) -> u128 {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_be_bytes(first)
}

/// What stands for a node id: FleetLock v1's may be of any length.
fn key(node: &ClientId) -> u128 {
    half(&Sha256::of(node.as_str().as_bytes()))
}

impl Credentials {
    fn known(&self) -> MutexGuard<'_, All> {
        // A map is whole at every point.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what was read when so many had been `forgotten`. A node that is revoked is not remembered.
    fn remember(&self, node: &ClientId, hash: Option<Sha256>, now: Timestamp, forgotten: u64) {
        let mut known = self.known();
        if known.forgotten != forgotten {
            return;
        }
        if known.nodes.len() >= KNOWN_MAX {
            known.nodes.clear();
        }
        // A request without a credential may have read before another one bound the id.
        if hash.is_none() && known.nodes.get(&key(node)).is_some_and(|known| known.bound.is_some()) {
            return;
        }
        known.nodes.insert(key(node), Known { bound: hash.as_ref().map(half), at: now.as_microsecond() });
    }

    /// Asks the database anew at the node's next word. To be called after what has changed is committed.
    pub fn forget(&self, node: &ClientId) {
        let mut known = self.known();
        known.nodes.remove(&key(node));
        known.forgotten += 1;
    }

    /// Goes on only if the request is `node`'s own, as far as `need` asks; binds its id at first use.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] without a credential where there must be one, [`ApiError::NotEnrolled`] without an enrolment
    /// token where there must be one, [`ApiError::Forbidden`] for another credential than the id is bound to, and where it is
    /// revoked.
    pub async fn check(
        &self,
        app: &App,
        node: &ClientId,
        headers: &HeaderMap,
        need: Need,
    ) -> Result<(), ApiError> {
        let now = app.now();
        let shown = shown(headers)?.map(|credential| credential.hash());
        if need == Need::IfBound {
            let believed = self.known().nodes.get(&key(node)).copied();
            let age = |at: i64| SignedDuration::from_micros(now.as_microsecond().saturating_sub(at)).abs();
            let fresh = |known: &Known| !app.store().is_shared() || age(known.at) < BELIEVED;
            if believed.filter(fresh).is_some_and(|known| known.bound == shown.as_ref().map(half)) {
                return Ok(());
            }
        }
        let forgotten = self.known().forgotten;
        let (mut bound, revoked) = {
            let mut conn = app.store().read().await?;
            (credentials::find(&mut conn, node).await?, standing::revocation(&mut conn, node).await?)
        };
        if let Some(of) = revoked {
            return Err(enrolment::revoked(node, &of, bound.is_some() && bound == shown));
        }
        if let (None, Some(hash)) = (&bound, &shown) {
            bound = Some(bind(app, node, *hash, headers).await?);
        }
        if bound.is_none() && app.enrolment() == Enrolment::Token {
            return Err(enrolment::needed(node));
        }
        if bound != shown {
            let again = match app.enrolment() {
                Enrolment::Open => "lets it be heard again",
                Enrolment::Token => "lets it be heard again, with an enrolment token",
            };
            return Err(ApiError::Forbidden(format!(
                "the node id {node} is bound to another credential: if this node lost its state, an operator's \
                 updatectl node reset-credential {node} {again}"
            )));
        }
        if bound.is_none() && need == Need::Always {
            return Err(ApiError::Unauthorized(
                "no credential: expected the header Authorization: Bearer with the node's own credential"
                    .to_owned(),
            ));
        }
        self.remember(node, bound, now, forgotten);
        Ok(())
    }
}

/// Binds a node id at first use, with the enrolment token that the request shows where one is needed.
async fn bind(app: &App, node: &ClientId, hash: Sha256, headers: &HeaderMap) -> Result<Sha256, ApiError> {
    let token = match app.enrolment() {
        Enrolment::Open => None,
        Enrolment::Token => {
            let token = enrolment::shown(headers)?.ok_or_else(|| enrolment::needed(node))?.hash();
            let looked = enrolment::look_at(&mut *app.store().read().await?, &token, app.now()).await?;
            looked.map_err(|why| why.told(node))?;
            Some(token)
        }
    };
    match changes::make(app, Change::Bind(node.clone(), hash, token)).await? {
        Done::Bound(bound) => bound.map_err(|why| why.told(node)),
        _ => Err(StoreError::Abandoned.into()),
    }
}

/// The credential that a request shows. An operator's token is none.
fn shown(headers: &HeaderMap) -> Result<Option<NodeCredential>, ApiError> {
    bearer(headers)
        .filter(|token| NodeCredential::is_meant_by(token))
        .map(|token| {
            token
                .parse()
                .map_err(|error: protocol::wire::InvalidCredential| ApiError::Unauthorized(error.to_string()))
        })
        .transpose()
}
