//! Steps 4 and 9: which nodes are heard at all: those that enrolled with a token, where that is asked for, and none that is
//! revoked; and what operators say about nodes that stands over the nodes' own word.

use crate::error::ApiError;
use crate::policies::{self, Took};
use crate::server::App;
use crate::store::audit::{self, Change};
use crate::store::{Connection, StoreError, credentials, enrolment, rollouts, standing};
use axum::http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use protocol::digest::Sha256;
use protocol::id::{Group, NodeId};
use protocol::lock::ClientId;
use protocol::wire::{
    ENROLMENT_HEADER, EnrolmentCreate, EnrolmentInfo, EnrolmentState, EnrolmentToken, NodeRevoked,
    Revocation, SCHEMA,
};

/// Which nodes are heard that were never heard before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Enrolment {
    /// Every one: the first credential heard for an id binds it. Tokens are not looked at.
    #[default]
    Open,
    /// Those that show an enrolment token beside their credential.
    Token,
}

/// Why a node was not bound to the credential that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotBound {
    /// There is no such token.
    Unknown,
    /// The token with this id enrols nobody, because of what it is now.
    Over(String, EnrolmentState),
    /// The node is revoked.
    Revoked(Revocation),
}

/// The enrolment token that a request shows.
///
/// # Errors
/// [`ApiError::Unauthorized`] where it is none.
pub fn shown(headers: &HeaderMap) -> Result<Option<EnrolmentToken>, ApiError> {
    let Some(value) = headers.get(ENROLMENT_HEADER) else { return Ok(None) };
    let token = value.to_str().unwrap_or_default().trim().parse();
    let invalid = |error: protocol::wire::InvalidEnrolmentToken| {
        ApiError::Unauthorized(format!("the header {ENROLMENT_HEADER} is wrong: {error}"))
    };
    token.map(Some).map_err(invalid)
}

/// What a node is told that shows no token where one is needed.
#[must_use]
pub fn needed(node: &ClientId) -> ApiError {
    ApiError::NotEnrolled(format!(
        "the node id {node} is not enrolled: expected its own credential and an enrolment token; an operator makes one with \
         updatectl enrolment create, and server.enrolment_token_file names the file with it on the node"
    ))
}

/// What a node is told that is revoked. Only itself hears why.
#[must_use]
pub fn revoked(node: &ClientId, of: &Revocation, itself: bool) -> ApiError {
    let why = if itself { format!(" ({})", of.reason) } else { String::new() };
    ApiError::Forbidden(format!(
        "the node id {node} is revoked since {:.0}{why}: an operator's updatectl node reinstate {node} lets it be heard again",
        of.at
    ))
}

impl NotBound {
    /// What the node is told.
    #[must_use]
    pub fn told(&self, node: &ClientId) -> ApiError {
        let again = "an operator makes another with updatectl enrolment create";
        match self {
            Self::Unknown => ApiError::Unauthorized(format!("the enrolment token is unknown here: {again}")),
            // Not 401, which counts as guessing: who shows it was given it.
            Self::Over(id, state) => {
                ApiError::Forbidden(format!("the enrolment token {id} is {}: {again}", state.as_str()))
            }
            Self::Revoked(of) => revoked(node, of, false),
        }
    }
}

/// Whether a token is good. Asked before a change is begun for it too: whoever makes tokens up takes no turn of those that write.
///
/// # Errors
/// [`StoreError`].
pub async fn look_at(
    conn: &mut Connection,
    token: &Sha256,
    now: Timestamp,
) -> Result<Result<EnrolmentInfo, NotBound>, StoreError> {
    Ok(match enrolment::find(conn, token, now).await? {
        None => Err(NotBound::Unknown),
        Some(found) if found.state != EnrolmentState::Valid => Err(NotBound::Over(found.id, found.state)),
        Some(found) => Ok(found),
    })
}

/// Binds a node id that is not bound to the credential that it shows, in the change that the caller commits. With `token` it must
/// be valid, and its use is counted. Says what the id is bound to then.
///
/// # Errors
/// [`StoreError`].
pub async fn bind(
    conn: &mut Connection,
    node: &ClientId,
    credential: &Sha256,
    token: Option<&Sha256>,
    now: Timestamp,
) -> Result<Result<Sha256, NotBound>, StoreError> {
    // What was told when an answer was lost is told again, and counted once.
    if let Some(bound) = credentials::find(conn, node).await? {
        return Ok(Ok(bound));
    }
    if let Some(of) = standing::revocation(conn, node).await? {
        return Ok(Err(NotBound::Revoked(of)));
    }
    let Some(hash) = token else {
        credentials::bind(conn, node, credential, now, None).await?;
        tracing::info!(%node, "a node id is bound to its first credential");
        return Ok(Ok(*credential));
    };
    let token = match look_at(conn, hash, now).await? {
        Ok(token) => token,
        Err(why) => return Ok(Err(why)),
    };
    enrolment::count_use(conn, hash, now).await?;
    credentials::bind(conn, node, credential, now, Some(&token.id)).await?;
    let mut detail = format!("with token {}", token.id);
    // Where an operator has placed it before, it stays.
    if let Some(group) = &token.group
        && standing::group_of(conn, node).await?.is_none()
    {
        standing::set_group(conn, node, group).await?;
        detail = format!("{detail}, into group {group}");
    }
    audit::record(
        conn,
        now,
        Change { actor: "server", action: "node.enrol", subject: node.as_str(), detail: &detail },
    )
    .await?;
    tracing::info!(%node, token = token.id, "a node is enrolled");
    Ok(Ok(*credential))
}

/// Makes a token, and says it.
///
/// # Errors
/// [`ApiError`].
pub async fn create(
    app: &App,
    wish: &EnrolmentCreate,
    who: &str,
) -> Result<(EnrolmentToken, EnrolmentInfo), ApiError> {
    if wish.uses == Some(0) || wish.expires_in_s == Some(0) {
        return Err(ApiError::Invalid(
            "a token that enrols nobody: expected 1 or more for uses and expires_in_s, found 0".to_owned(),
        ));
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(ApiError::internal)?;
    let (token, now) = (EnrolmentToken::from_random(bytes), app.now());
    let ends = |seconds: u32| now.saturating_add(SignedDuration::from_secs(seconds.into()));
    let info = EnrolmentInfo {
        id: token.id(),
        state: EnrolmentState::Valid,
        group: wish.group.clone(),
        note: wish.note.clone(),
        used: 0,
        uses: wish.uses,
        created_at: now,
        created_by: who.to_owned(),
        expires_at: wish.expires_in_s.map(ends).transpose().map_err(ApiError::internal)?,
        revoked_at: None,
        last_used_at: None,
    };
    let mut change = app.store().write().await?;
    if !enrolment::create(&mut change, &info, &token.hash()).await? {
        return Err(ApiError::Unavailable("another token has the same id by chance: ask again".to_owned()));
    }
    let group = wish.group.as_ref().map_or_else(String::new, |group| format!("group {group}, "));
    let uses = wish.uses.map_or_else(|| "any number".to_owned(), |uses| uses.to_string());
    let ends = info.expires_at.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"));
    let detail = format!("{group}uses {uses}, ends {ends}: {}", wish.note);
    let entry = Change { actor: who, action: "enrolment.create", subject: &info.id, detail: &detail };
    audit::record(&mut change, now, entry).await?;
    change.commit().await.map_err(ApiError::internal)?;
    Ok((token, info))
}

/// Ends a token for ever. Nodes that came with it stay.
///
/// # Errors
/// [`ApiError::NotFound`], [`ApiError::Conflict`] where it was revoked before.
pub async fn revoke_token(app: &App, id: &str, who: &str) -> Result<(), ApiError> {
    let now = app.now();
    let mut change = app.store().write().await?;
    let all = enrolment::list(&mut change, now).await?;
    let Some(found) = all.into_iter().find(|token| token.id == id) else {
        let id: String = id.chars().take(80).collect();
        return Err(ApiError::NotFound(format!(
            "there is no enrolment token {id:?}: see updatectl enrolment list"
        )));
    };
    if !enrolment::revoke(&mut change, id, now).await? {
        return Err(ApiError::Conflict(format!("the enrolment token {id} was revoked before")));
    }
    let detail = format!("after {} uses", found.used);
    let entry = Change { actor: who, action: "enrolment.revoke", subject: id, detail: &detail };
    audit::record(&mut change, now, entry).await?;
    change.commit().await.map_err(ApiError::internal)
}

/// Places a node in a group; with none, lets its own word count again.
///
/// # Errors
/// [`ApiError::NotFound`] where nothing is known of the node, or it was placed nowhere.
pub async fn set_group(app: &App, node: &NodeId, group: Option<&Group>, who: &str) -> Result<(), ApiError> {
    let (id, now) = (ClientId::from(node), app.now());
    app.checkins().flush(app.store()).await?;
    let mut change = app.store().write().await?;
    let before = standing::group(&mut change, node).await?;
    match group {
        Some(_) if !standing::is_known(&mut change, &id).await? => {
            return Err(ApiError::NotFound(format!("nothing is known of a node {node}")));
        }
        Some(group) => standing::set_group(&mut change, &id, group).await?,
        None if !standing::clear_group(&mut change, &id).await? => {
            return Err(ApiError::NotFound(format!(
                "the node {node} is placed in no group: its own word counts"
            )));
        }
        None => {}
    }
    let name = |group: Option<&Group>| group.map_or_else(|| "its own word".to_owned(), ToString::to_string);
    let detail = format!("{} -> {}", name(before.as_ref()), name(group));
    let entry = Change { actor: who, action: "node.set-group", subject: node.as_str(), detail: &detail };
    audit::record(&mut change, now, entry).await?;
    change.commit().await.map_err(ApiError::internal)
}

/// Hears a node no more. Its grants are given up; its permits and places in queues go as with a node that is removed, each on
/// record.
///
/// # Errors
/// [`ApiError::Conflict`] where it is revoked already.
pub async fn revoke(app: &App, node: &ClientId, reason: &str, who: &str) -> Result<NodeRevoked, ApiError> {
    let _turn = app.lock_turn().await;
    let now = app.now();
    let mut change = app.store().write().await?;
    let of = Revocation { at: now, by: who.to_owned(), reason: reason.to_owned() };
    if !standing::revoke(&mut change, node, &of).await? {
        return Err(ApiError::Conflict(format!("the node id {node} is revoked already")));
    }
    let mut known = standing::is_known(&mut change, node).await?;
    rollouts::give_up(&mut change, node, now).await?;
    let mut taken = NodeRevoked {
        schema: SCHEMA,
        node: node.clone(),
        known: false,
        permits: Vec::new(),
        places: Vec::new(),
    };
    for (group, took) in policies::take_from_locks(&mut change, node, who, reason, now).await? {
        known = true;
        match took {
            Took::Permit => taken.permits.push(group),
            Took::Place => taken.places.push(group),
        }
    }
    let entry = Change { actor: who, action: "node.revoke", subject: node.as_str(), detail: reason };
    audit::record(&mut change, now, entry).await?;
    change.commit().await.map_err(ApiError::internal)?;
    // After it: who has read the database before must not go on believing it.
    app.credentials().forget(node);
    Ok(NodeRevoked { known, ..taken })
}

/// Hears a node again, with the credential that its id is bound to.
///
/// # Errors
/// [`ApiError::NotFound`] where it is not revoked.
pub async fn reinstate(app: &App, node: &ClientId, who: &str) -> Result<(), ApiError> {
    let now = app.now();
    let mut change = app.store().write().await?;
    let Some(before) = standing::revocation(&mut change, node).await? else {
        return Err(ApiError::NotFound(format!("the node id {node} is not revoked")));
    };
    standing::reinstate(&mut change, node).await?;
    let detail = format!("was revoked since {:.0}: {}", before.at, before.reason);
    let entry = Change { actor: who, action: "node.reinstate", subject: node.as_str(), detail: &detail };
    audit::record(&mut change, now, entry).await?;
    change.commit().await.map_err(ApiError::internal)?;
    app.credentials().forget(node);
    Ok(())
}
