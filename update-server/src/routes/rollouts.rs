//! Step 4, channel: rollouts over HTTP, for operators.

use super::{Segment, query, read_json, reason};
use crate::auth::{Actor, Role};
use crate::error::ApiError;
use crate::rollouts::acts::{self, Act, ActFailure};
use crate::rollouts::{self, SimulationFailure};
use crate::server::App;
use crate::store::{Connection, StoreError, let_go, rollouts as stored};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use protocol::id::{Channel, NodeId};
use protocol::rollout::{Phases, RolloutFile};
use protocol::wire::{
    BODY_MAX, NodeExplain, Policies, PolicyRemove, PolicySet, RolloutAct, RolloutInfo, RolloutList,
    RolloutNodes, SCHEMA, SimulationReport, SimulationRequest,
};

impl From<ActFailure> for ApiError {
    fn from(error: ActFailure) -> Self {
        match error {
            ActFailure::NoRollout(_) => Self::NotFound(error.to_string()),
            ActFailure::Nothing(message) => Self::Conflict(message),
            ActFailure::Store(error) => Self::internal(error),
        }
    }
}

impl From<SimulationFailure> for ApiError {
    fn from(error: SimulationFailure) -> Self {
        match error {
            SimulationFailure::Invalid(message) => Self::Invalid(message),
            SimulationFailure::Missing(message) => Self::NotFound(message),
            SimulationFailure::Store(error) => Self::internal(error),
        }
    }
}

/// `GET /api/v1/rollouts`.
pub(super) async fn list(State(app): State<App>, actor: Actor) -> Result<Json<RolloutList>, ApiError> {
    actor.require(Role::Viewer)?;
    app.checkins().flush(app.store()).await?;
    let mut conn = app.store().read().await?;
    let mut infos = Vec::new();
    for rollout in stored::list(&mut conn).await? {
        infos.push(acts::info(&app, &mut conn, rollout).await?);
    }
    Ok(Json(RolloutList { schema: SCHEMA, rollouts: infos }))
}

/// `GET /api/v1/rollouts/<channel>`.
pub(super) async fn show(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<Json<RolloutInfo>, ApiError> {
    actor.require(Role::Viewer)?;
    let channel: Channel = segment.parse()?;
    app.checkins().flush(app.store()).await?;
    let mut conn = app.store().read().await?;
    let rollout = stored::find(&mut conn, &channel).await?.ok_or(ActFailure::NoRollout(channel))?;
    Ok(Json(acts::info(&app, &mut conn, rollout).await?))
}

/// `GET /api/v1/rollouts/<channel>/nodes?phase=P,P&limit=N&after=NODE`.
pub(super) async fn nodes(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    uri: Uri,
) -> Result<Json<RolloutNodes>, ApiError> {
    actor.require(Role::Viewer)?;
    let channel: Channel = segment.parse()?;
    let phases: Phases = query(&uri, "phase")?.unwrap_or_default();
    let after: Option<NodeId> = query(&uri, "after")?;
    let limit = super::admin::rows(&uri)?;
    app.checkins().flush(app.store()).await?;
    let mut conn = app.store().read().await?;
    let rollout = stored::find(&mut conn, &channel).await?.ok_or(ActFailure::NoRollout(channel))?;
    let nodes = let_go::list(&mut conn, &rollout, &phases, after.as_ref(), limit).await?;
    let full = u32::try_from(nodes.len()).is_ok_and(|given| given == limit);
    let next = nodes.last().filter(|_| full).map(|last| last.node.clone());
    let (number, version) = (rollout.number, rollout.version);
    Ok(Json(RolloutNodes { schema: SCHEMA, channel: rollout.channel, number, version, nodes, next }))
}

async fn act(
    app: &App,
    actor: &Actor,
    segment: &Segment,
    body: Body,
    what: Act,
) -> Result<Json<RolloutInfo>, ApiError> {
    actor.require(Role::Operator)?;
    let channel: Channel = segment.parse()?;
    let wish: RolloutAct = read_json(body, BODY_MAX).await?;
    reason(&wish.why)?;
    Ok(Json(acts::act(app, &channel, what, &wish, &actor.name).await?))
}

/// `POST /api/v1/rollouts/<channel>/pause`.
pub(super) async fn pause(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<RolloutInfo>, ApiError> {
    act(&app, &actor, &segment, body, Act::Pause).await
}

/// `POST /api/v1/rollouts/<channel>/resume`.
pub(super) async fn resume(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<RolloutInfo>, ApiError> {
    act(&app, &actor, &segment, body, Act::Resume).await
}

/// `POST /api/v1/rollouts/<channel>/approve`.
pub(super) async fn approve(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<RolloutInfo>, ApiError> {
    act(&app, &actor, &segment, body, Act::Approve).await
}

/// `POST /api/v1/rollouts/<channel>/simulate`. It changes nothing, so a viewer may.
pub(super) async fn simulate(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<SimulationReport>, ApiError> {
    actor.require(Role::Viewer)?;
    let channel: Channel = segment.parse()?;
    let request: SimulationRequest = read_json(body, BODY_MAX).await?;
    Ok(Json(rollouts::simulate(&app, &channel, &request).await?))
}

/// `GET /api/v1/rollout-policy`.
pub(super) async fn policy(State(app): State<App>, actor: Actor) -> Result<Json<Policies>, ApiError> {
    actor.require(Role::Viewer)?;
    let mut conn = app.store().read().await?;
    let file = acts::current(&mut conn).await?;
    Ok(Json(policies(&mut conn, &file).await?))
}

/// Policies, and what looks like a mistake in them.
async fn policies(conn: &mut Connection, file: &RolloutFile) -> Result<Policies, StoreError> {
    Ok(Policies { warnings: rollouts::of_policies(conn, file).await?, ..Policies::of(file) })
}

/// `PUT /api/v1/rollout-policy`.
pub(super) async fn set_policy(
    State(app): State<App>,
    actor: Actor,
    body: Body,
) -> Result<Json<Policies>, ApiError> {
    actor.require(Role::Operator)?;
    let PolicySet { replaces, file, why, .. } = read_json(body, BODY_MAX).await?;
    reason(&why)?;
    let file = acts::set_policies(&app, &file, &replaces, &actor.name, &why).await?;
    app.checkins().flush(app.store()).await?;
    Ok(Json(policies(&mut *app.store().read().await?, &file).await?))
}

/// `POST /api/v1/rollout-policy/<channel>/remove`.
pub(super) async fn remove_policy(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<Policies>, ApiError> {
    actor.require(Role::Operator)?;
    let channel: Channel = segment.parse()?;
    let PolicyRemove { replaces, why, .. } = read_json(body, BODY_MAX).await?;
    reason(&why)?;
    let file = acts::remove_policy(&app, &channel, &replaces, &actor.name, &why).await?;
    Ok(Json(policies(&mut *app.store().read().await?, &file).await?))
}

/// `GET /api/v1/nodes/<node>/explain`.
pub(super) async fn explain(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<Json<NodeExplain>, ApiError> {
    actor.require(Role::Viewer)?;
    let node: NodeId = segment.parse()?;
    let explained = acts::explain(&app, &node).await?;
    explained
        .map(Json)
        .ok_or_else(|| ApiError::NotFound(format!("no node {node} has ever asked this server")))
}
