//! Step 9, permit: the reboot lock over HTTP, for nodes (v2) and for operators.

use super::{Segment, read_json, reason};
use crate::auth::{Actor, Role};
use crate::credentials::Need;
use crate::error::ApiError;
use crate::locks::{self, Found, LockFailure};
use crate::policies::{self, PolicyFailure};
use crate::server::App;
use crate::store::audit::{self, Change};
use crate::store::credentials;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use protocol::id::Group;
use protocol::lock::{ClientId, Command, Refusal, Reply};
use protocol::wire::{
    BODY_MAX, LOCK_BODY_MAX, LockAnswer, LockCommand, LockImport, LockInfo, LockList, LockRelease, LockView,
    NodeRemove, Policies, PolicySet, SCHEMA,
};

/// The longest name of an etcd member that a node may give, in bytes.
const MEMBER_MAX: usize = 256;

impl From<LockFailure> for ApiError {
    fn from(error: LockFailure) -> Self {
        match error {
            LockFailure::Store(error) => Self::internal(error),
            LockFailure::Contended { .. } => Self::Unavailable(error.to_string()),
            LockFailure::Revoked { .. } => Self::Forbidden(error.to_string()),
        }
    }
}

impl From<PolicyFailure> for ApiError {
    fn from(error: PolicyFailure) -> Self {
        match error {
            PolicyFailure::Invalid(message) => Self::Invalid(message),
            PolicyFailure::Missing(_) => Self::NotFound(error.to_string()),
            PolicyFailure::Changed | PolicyFailure::InUse { .. } => Self::Conflict(error.to_string()),
            PolicyFailure::Store(error) => Self::internal(error),
        }
    }
}

// --- nodes

/// `POST /v2/lock/<group>`.
pub(super) async fn command(
    State(app): State<App>,
    segment: Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LockAnswer>, ApiError> {
    let group: Group = segment.parse()?;
    let said: LockCommand = read_json(body, LOCK_BODY_MAX).await?;
    let Some(node) = said.node() else {
        return Err(ApiError::Invalid(
            "not a node's command: expected request, verify, abandon, booted, confirm or fail".to_owned(),
        ));
    };
    if let Command::Request(request) = &said.command
        && request.etcd_member.as_ref().is_some_and(|name| name.is_empty() || name.len() > MEMBER_MAX)
    {
        return Err(ApiError::Invalid(format!(
            "etcd_member is not valid: expected a name of at most {MEMBER_MAX} bytes"
        )));
    }
    app.credentials().check(&app, node, &headers, Need::Always).await?;
    let reply = locks::perform(&app, &group, &said.command).await?;
    let reply = reply.unwrap_or(Reply::Refused { because: Refusal::UnknownGroup { group } });
    Ok(Json(LockAnswer { schema: SCHEMA, reply }))
}

/// `GET /v2/lock/<group>?node=<id>`.
pub(super) async fn view(
    State(app): State<App>,
    segment: Segment,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Json<LockView>, ApiError> {
    let group: Group = segment.parse()?;
    let node: ClientId = super::query(&uri, "node")?.ok_or_else(|| {
        ApiError::Invalid("no node: expected ?node= with the id of the node that asks".to_owned())
    })?;
    app.credentials().check(&app, &node, &headers, Need::Always).await?;
    let found = locks::find(&mut *app.store().read().await?, &group, app.now()).await?;
    Ok(Json(as_view(&found.ok_or_else(|| unknown(&group))?)))
}

fn unknown(group: &Group) -> ApiError {
    ApiError::NotFound(Refusal::UnknownGroup { group: group.clone() }.to_string())
}

fn as_view(found: &Found) -> LockView {
    LockView {
        schema: SCHEMA,
        revision: found.revision,
        document: found.as_of_now(),
        population: found.context.population.clone(),
        caps: found.context.caps.clone(),
    }
}

// --- operators

fn info(found: &Found) -> LockInfo {
    LockInfo::new(as_view(found), &found.context)
}

/// `GET /api/v1/locks`.
pub(super) async fn list(State(app): State<App>, actor: Actor) -> Result<Json<LockList>, ApiError> {
    actor.require(Role::Viewer)?;
    app.checkins().flush(app.store()).await?;
    let found = locks::list(&mut *app.store().read().await?, app.now()).await?;
    Ok(Json(LockList { schema: SCHEMA, locks: found.iter().map(info).collect() }))
}

/// `GET /api/v1/locks/<group>`.
pub(super) async fn show(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<Json<LockInfo>, ApiError> {
    actor.require(Role::Viewer)?;
    let group: Group = segment.parse()?;
    app.checkins().flush(app.store()).await?;
    let found = locks::find(&mut *app.store().read().await?, &group, app.now()).await?;
    Ok(Json(info(&found.ok_or_else(|| unknown(&group))?)))
}

/// `POST /api/v1/locks/<group>/release`.
pub(super) async fn release(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<LockInfo>, ApiError> {
    actor.require(Role::Operator)?;
    let group: Group = segment.parse()?;
    let LockRelease { node, grant, why, .. } = read_json(body, BODY_MAX).await?;
    reason(&why)?;
    let command = Command::ForceRelease { node: node.clone(), grant, who: actor.name.clone(), why };
    match locks::perform(&app, &group, &command).await? {
        None => return Err(unknown(&group)),
        Some(Reply::Refused { because: Refusal::NotHeld { .. } }) => {
            return Err(ApiError::NotFound(format!("{node} holds no permit in group {group}")));
        }
        Some(Reply::Refused { because }) => return Err(ApiError::Conflict(because.to_string())),
        Some(_) => {}
    }
    let found = locks::find(&mut *app.store().read().await?, &group, app.now()).await?;
    Ok(Json(info(&found.ok_or_else(|| unknown(&group))?)))
}

/// `POST /api/v1/locks/<group>/import`.
pub(super) async fn import(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<LockInfo>, ApiError> {
    actor.require(Role::Operator)?;
    let group: Group = segment.parse()?;
    let LockImport { system, max, holders, why, .. } = read_json(body, BODY_MAX).await?;
    reason(&why)?;
    reason(&system)?;
    let lock = policies::Imported { system: &system, max, holders: &holders };
    policies::import(&app, &group, lock, &actor.name, &why).await?;
    let found = locks::find(&mut *app.store().read().await?, &group, app.now()).await?;
    Ok(Json(info(&found.ok_or_else(|| unknown(&group))?)))
}

/// `GET /api/v1/lock-policy`.
pub(super) async fn policy(State(app): State<App>, actor: Actor) -> Result<Json<Policies>, ApiError> {
    actor.require(Role::Viewer)?;
    let file = policies::current(&mut *app.store().read().await?).await?;
    Ok(Json(Policies::of(&file)))
}

/// `PUT /api/v1/lock-policy`.
pub(super) async fn set_policy(
    State(app): State<App>,
    actor: Actor,
    body: Body,
) -> Result<Json<Policies>, ApiError> {
    actor.require(Role::Operator)?;
    let PolicySet { replaces, file, why, .. } = read_json(body, BODY_MAX).await?;
    reason(&why)?;
    Ok(Json(Policies::of(&policies::set(&app, &file, &replaces, &actor.name, &why).await?)))
}

/// `POST /api/v1/nodes/<node>/remove`.
pub(super) async fn remove_node(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Operator)?;
    let node: ClientId = segment.parse()?;
    let NodeRemove { why, .. } = read_json(body, BODY_MAX).await?;
    reason(&why)?;
    if policies::remove_node(&app, &node, &actor.name, &why).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::NotFound(format!("nothing is known of a node {node}")))
    }
}

/// `DELETE /api/v1/nodes/<node>/credential`.
pub(super) async fn reset_credential(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Operator)?;
    let node: ClientId = segment.parse()?;
    let mut change = app.store().write().await?;
    if !credentials::forget(&mut change, &node).await? {
        return Err(ApiError::NotFound(format!("the node id {node} is bound to no credential")));
    }
    let entry =
        Change { actor: &actor.name, action: "node.reset-credential", subject: node.as_str(), detail: "" };
    audit::record(&mut change, app.now(), entry).await?;
    change.commit().await.map_err(ApiError::internal)?;
    app.credentials().forget(&node);
    Ok(StatusCode::NO_CONTENT)
}
