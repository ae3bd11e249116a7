//! Steps 4 and 12: what operators are told of a fleet over time.

use super::query;
use crate::auth::{Actor, Role};
use crate::error::ApiError;
use crate::server::App;
use crate::store::stats;
use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use jiff::ToSpan as _;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use protocol::id::Channel;
use protocol::wire::{EventStats, SCHEMA, VersionStats};

/// How many counts one answer has at most.
const COUNTS_MAX: u32 = 50_000;
/// How many days before the last one are shown of events and of versions where nobody says.
const EVENT_DAYS: i32 = 30;
const VERSION_DAYS: i32 = 7;

/// The days that are asked for.
fn days(app: &App, uri: &Uri, back: i32) -> Result<(Date, Date), ApiError> {
    let to = query(uri, "to")?.unwrap_or_else(|| TimeZone::UTC.to_datetime(app.now()).date());
    let from = query(uri, "from")?.unwrap_or_else(|| to.saturating_sub(back.days()));
    if from > to {
        return Err(ApiError::Invalid(format!(
            "the days are not valid: expected from before to, found {from} to {to}"
        )));
    }
    Ok((from, to))
}

fn whole<T>(counts: Vec<T>) -> Result<Vec<T>, ApiError> {
    if counts.len() > COUNTS_MAX as usize {
        return Err(ApiError::Invalid(format!(
            "there are more than {COUNTS_MAX} counts of these days: ask for fewer days at once"
        )));
    }
    Ok(counts)
}

/// `GET /api/v1/stats/events?from=DATE&to=DATE`.
pub(super) async fn events(
    State(app): State<App>,
    actor: Actor,
    uri: Uri,
) -> Result<Json<EventStats>, ApiError> {
    actor.require(Role::Viewer)?;
    let (from, to) = days(&app, &uri, EVENT_DAYS)?;
    let counts = stats::events(&mut *app.store().read().await?, from, to, COUNTS_MAX + 1).await?;
    Ok(Json(EventStats { schema: SCHEMA, from, to, counts: whole(counts)? }))
}

/// `GET /api/v1/stats/versions?channel=CHANNEL&from=DATE&to=DATE`.
pub(super) async fn versions(
    State(app): State<App>,
    actor: Actor,
    uri: Uri,
) -> Result<Json<VersionStats>, ApiError> {
    actor.require(Role::Viewer)?;
    let channel: Channel = query(&uri, "channel")?
        .ok_or_else(|| ApiError::Invalid("no channel is named: expected ?channel=CHANNEL".to_owned()))?;
    let (from, to) = days(&app, &uri, VERSION_DAYS)?;
    let counts = stats::versions(&mut *app.store().read().await?, &channel, from, to, COUNTS_MAX + 1).await?;
    Ok(Json(VersionStats { schema: SCHEMA, channel, from, to, counts: whole(counts)? }))
}
