//! Steps 3 and 4, metadata and channel: what operators ask and change. Every change is in the audit log, with the
//! name of the token that made it.

use super::{Segment, query, read_json, reason};
use crate::auth::{Actor, Role};
use crate::error::ApiError;
use crate::repository::Wish;
use crate::server::App;
use crate::store::{audit as audit_log, nodes as node_store, standing};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use protocol::id::{Channel, NodeId};
use protocol::lock::ClientId;
use protocol::wire::{
    AuditLog, BODY_MAX, ChannelInfo, ChannelList, ChannelPromote, ChannelSet, NodeList, NodeShow, PUSH_MAX,
    Published, ReleaseInfo, ReleaseList, ReleasePush, RootPush, SCHEMA,
};

/// How many rows a list gives where the client does not say.
const ROWS: u32 = 1000;
/// How many rows a list gives at most.
const ROWS_MAX: u32 = 10_000;
/// How many events are shown of one node.
const EVENTS: u32 = 100;

/// `PUT /api/v1/root`.
pub(super) async fn push_root(
    State(app): State<App>,
    actor: Actor,
    body: Body,
) -> Result<Json<Published>, ApiError> {
    actor.require(Role::Operator)?;
    let push: RootPush = read_json(body, PUSH_MAX).await?;
    Ok(Json(app.repository().push_root(push, &actor.name, app.now()).await?))
}

/// `POST /api/v1/releases`.
pub(super) async fn push_release(
    State(app): State<App>,
    actor: Actor,
    body: Body,
) -> Result<Json<Published>, ApiError> {
    actor.require(Role::Publisher)?;
    let push: ReleasePush = read_json(body, PUSH_MAX).await?;
    Ok(Json(app.repository().push_release(push, &actor.name, app.now()).await?))
}

/// `GET /api/v1/releases`.
pub(super) async fn releases(State(app): State<App>, actor: Actor) -> Result<Json<ReleaseList>, ApiError> {
    actor.require(Role::Viewer)?;
    let view = app.repository().view();
    let info = |release: &crate::store::releases::Release| {
        let manifest = &release.manifest;
        let holds = |c: &&ChannelInfo| c.version == manifest.version;
        ReleaseInfo {
            version: manifest.version.clone(),
            arch: manifest.arch.clone(),
            pushed_at: release.pushed_at,
            image_bytes: manifest.partitions.iter().map(|p| p.size).sum(),
            payload_bytes: manifest.full_payload().map_or(0, |payload| payload.size),
            channels: view.channels.iter().filter(holds).map(|c| c.channel.clone()).collect(),
            dead_end: release.dead_end.clone(),
        }
    };
    Ok(Json(ReleaseList { schema: SCHEMA, releases: view.releases.iter().map(info).collect() }))
}

/// `GET /api/v1/channels`.
pub(super) async fn channels(State(app): State<App>, actor: Actor) -> Result<Json<ChannelList>, ApiError> {
    actor.require(Role::Viewer)?;
    Ok(Json(ChannelList { schema: SCHEMA, channels: app.repository().view().channels.clone() }))
}

/// `PUT /api/v1/channels/<channel>`.
pub(super) async fn set_channel(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<ChannelInfo>, ApiError> {
    actor.require(Role::Operator)?;
    let channel: Channel = segment.parse()?;
    let ChannelSet { version, leave_behind, to_dead_end, .. } = read_json(body, BODY_MAX).await?;
    // What nodes said last decides whether all have a way there.
    app.checkins().flush(app.store()).await?;
    let wish = Wish { actor: &actor.name, from: None, leave_behind, to_dead_end, despite_gate: None };
    Ok(Json(app.repository().set_channel(&channel, &version, wish, app.now()).await?))
}

/// `POST /api/v1/channels/<channel>/promote`.
pub(super) async fn promote(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
    body: Body,
) -> Result<Json<ChannelInfo>, ApiError> {
    actor.require(Role::Operator)?;
    let channel: Channel = segment.parse()?;
    let ChannelPromote { from, leave_behind, to_dead_end, despite_gate, .. } =
        read_json(body, BODY_MAX).await?;
    despite_gate.as_deref().map_or(Ok(()), reason)?;
    app.checkins().flush(app.store()).await?;
    let despite_gate = despite_gate.as_deref();
    let wish = Wish { actor: &actor.name, from: Some(&from), leave_behind, to_dead_end, despite_gate };
    Ok(Json(app.repository().promote(&from, &channel, wish, app.now()).await?))
}

pub(super) fn rows(uri: &Uri) -> Result<u32, ApiError> {
    Ok(query(uri, "limit")?.unwrap_or(ROWS).min(ROWS_MAX))
}

/// `GET /api/v1/nodes?channel=C&group=G&version=V&skip=N&limit=N`.
pub(super) async fn nodes(
    State(app): State<App>,
    actor: Actor,
    uri: Uri,
) -> Result<Json<NodeList>, ApiError> {
    actor.require(Role::Viewer)?;
    app.checkins().flush(app.store()).await?;
    let skip = query(&uri, "skip")?.unwrap_or(0);
    let wanted = node_store::Wanted {
        channel: query(&uri, "channel")?,
        group: query(&uri, "group")?,
        version: query(&uri, "version")?,
    };
    let nodes = node_store::list(&mut *app.store().read().await?, &wanted, skip, rows(&uri)?).await?;
    Ok(Json(NodeList { schema: SCHEMA, nodes }))
}

/// `GET /api/v1/nodes/<node>`.
pub(super) async fn node(
    State(app): State<App>,
    actor: Actor,
    segment: Segment,
) -> Result<Json<NodeShow>, ApiError> {
    actor.require(Role::Viewer)?;
    let id: NodeId = segment.parse()?;
    app.checkins().flush(app.store()).await?;
    let mut conn = app.store().read().await?;
    let Some(node) = node_store::find(&mut conn, &id).await? else {
        // It may have been removed, and is revoked all the same.
        let revoked = standing::revocation(&mut conn, &ClientId::from(&id)).await?;
        let revoked = revoked.map_or_else(String::new, |of| {
            format!("; the id is revoked since {:.0} by {}: {}", of.at, of.by, of.reason)
        });
        return Err(ApiError::NotFound(format!("no node {id} has ever asked this server{revoked}")));
    };
    let events = node_store::events(&mut conn, &id, EVENTS).await?;
    Ok(Json(NodeShow { schema: SCHEMA, node, events }))
}

/// `GET /api/v1/audit?before=N&limit=N`.
pub(super) async fn audit(
    State(app): State<App>,
    actor: Actor,
    uri: Uri,
) -> Result<Json<AuditLog>, ApiError> {
    actor.require(Role::Viewer)?;
    let before = query(&uri, "before")?.unwrap_or(u64::MAX);
    let entries = audit_log::list(&mut *app.store().read().await?, before, rows(&uri)?).await?;
    Ok(Json(AuditLog { schema: SCHEMA, entries }))
}
