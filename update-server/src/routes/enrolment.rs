//! Step 4, channel: enrolment tokens, and what operators say about nodes: their groups, and that one is not heard any more.

use super::{Segment, read_json, reason_named};
use crate::auth::{Actor, Role};
use crate::enrolment;
use crate::error::ApiError;
use crate::server::App;
use crate::store::enrolment as stored;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use protocol::id::NodeId;
use protocol::lock::ClientId;
use protocol::wire::{
    BODY_MAX, EnrolmentCreate, EnrolmentCreated, EnrolmentList, NodeGroup, NodeRevoke, NodeRevoked, SCHEMA,
};

/// `GET /api/v1/enrolment-tokens`.
pub(super) async fn list(State(app): State<App>, actor: Actor) -> Result<Json<EnrolmentList>, ApiError> {
    actor.require(Role::Viewer)?;
    let enrolments = stored::list(&mut *app.store().read().await?, app.now()).await?;
    Ok(Json(EnrolmentList { schema: SCHEMA, enrolments }))
}

/// `POST /api/v1/enrolment-tokens`.
pub(super) async fn create(
    State(app): State<App>,
    actor: Actor,
    body: Body,
) -> Result<Json<EnrolmentCreated>, ApiError> {
    actor.require(Role::Operator)?;
    let wish: EnrolmentCreate = read_json(body, BODY_MAX).await?;
    if !wish.note.is_empty() {
        reason_named("note", &wish.note)?;
    }
    let (token, enrolment) = enrolment::create(&app, &wish, &actor.name).await?;
    Ok(Json(EnrolmentCreated { schema: SCHEMA, token: token.reveal().to_owned(), enrolment }))
}

/// `DELETE /api/v1/enrolment-tokens/<id>`.
pub(super) async fn revoke_token(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Operator)?;
    enrolment::revoke_token(&app, &segment.0, &actor.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /api/v1/nodes/<node>/group`.
pub(super) async fn set_group(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Operator)?;
    let node: NodeId = segment.parse()?;
    let NodeGroup { group, .. } = read_json(body, BODY_MAX).await?;
    enrolment::set_group(&app, &node, Some(&group), &actor.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /api/v1/nodes/<node>/group`.
pub(super) async fn clear_group(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Operator)?;
    let node: NodeId = segment.parse()?;
    enrolment::set_group(&app, &node, None, &actor.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /api/v1/nodes/<node>/revocation`.
pub(super) async fn revoke(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<NodeRevoked>, ApiError> {
    actor.require(Role::Operator)?;
    let node: ClientId = segment.parse()?;
    let NodeRevoke { reason: why, .. } = read_json(body, BODY_MAX).await?;
    reason_named("reason", &why)?;
    Ok(Json(enrolment::revoke(&app, &node, &why, &actor.name).await?))
}

/// `DELETE /api/v1/nodes/<node>/revocation`.
pub(super) async fn reinstate(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<StatusCode, ApiError> {
    actor.require(Role::Operator)?;
    let node: ClientId = segment.parse()?;
    enrolment::reinstate(&app, &node, &actor.name).await?;
    Ok(StatusCode::NO_CONTENT)
}
