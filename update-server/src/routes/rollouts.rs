//! Step 4, channel: rollouts over HTTP, for operators.

use super::{Segment, read_json, reason};
use crate::auth::{Actor, Role};
use crate::error::ApiError;
use crate::rollouts::acts::{self, Act, ActFailure};
use crate::rollouts::{self, SimulationFailure};
use crate::server::App;
use crate::store::rollouts as stored;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use protocol::id::{Channel, NodeId};
use protocol::wire::{
    BODY_MAX, NodeExplain, Policies, PolicySet, RolloutAct, RolloutInfo, RolloutList, SCHEMA,
    SimulationReport, SimulationRequest,
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
    let file = acts::current(&mut *app.store().read().await?).await?;
    Ok(Json(Policies::of(&file)))
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
    Ok(Json(Policies::of(&acts::set_policies(&app, &file, &replaces, &actor.name, &why).await?)))
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
