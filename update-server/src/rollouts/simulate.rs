//! Step 4, channel: how a rollout would go over the real fleet, before anything is pushed.

use crate::decision;
use crate::repository::paths::LIVE;
use crate::server::App;
use crate::store::{StoreError, nodes, rollouts as stored};
use jiff::Timestamp;
use protocol::id::Channel;
use protocol::rollout::simulate::{Assumed, simulate as run};
use protocol::rollout::{Rollout, RolloutFile};
use protocol::version::Version;
use protocol::wire::{Decision, SCHEMA, SimulationPoint, SimulationReport, SimulationRequest};

/// The shortest poll interval that is simulated, in seconds.
const POLL_LEAST_S: u32 = 60;
/// The longest time that is simulated, in seconds.
const SPAN_MOST_S: u64 = 366 * 24 * 60 * 60;

/// How often nodes ask in one simulation, all together: some ten seconds of work.
const ASKS_MOST: u64 = 1_000_000_000;

/// Why there is no simulation.
#[derive(Debug, thiserror::Error)]
pub enum SimulationFailure {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The channel or the release is not there.
    #[error("{0}")]
    Missing(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs a rollout of `channel` over its live nodes, in virtual time from now on. Nothing is changed.
///
/// # Errors
/// [`SimulationFailure`].
pub async fn simulate(
    app: &App,
    channel: &Channel,
    request: &SimulationRequest,
) -> Result<SimulationReport, SimulationFailure> {
    let now = app.now();
    let assumed = assumed(request)?;
    app.checkins().flush(app.store()).await?;
    let mut next = app.repository().view().published.clone();
    let version = target(&next, channel, request)?;
    next.channels.insert(channel.clone(), version.clone());
    // Of a dead end too: as it would go where somebody insisted on it.
    next.to_dead_ends.insert(channel.clone());
    let mut conn = app.store().read().await?;
    let policy = match &request.file {
        None => stored::policy(&mut conn, channel).await?,
        Some(text) => {
            let file = RolloutFile::parse("the policy file", text)
                .map_err(|errors| SimulationFailure::Invalid(errors.to_string().replace('\n', "; ")))?;
            file.channels.get(channel).cloned().ok_or_else(|| {
                SimulationFailure::Invalid(format!("the policy file has no table [channel.{channel}]"))
            })?
        }
    };
    let since = now.saturating_sub(LIVE).unwrap_or(Timestamp::MIN);
    let members = nodes::members(&mut conn, channel, since).await?;
    drop(conn);
    let (mut going, mut left_behind, mut dead_ends) = (Vec::new(), 0, 0);
    for member in members {
        let runs_it = member.version.ranks_like(&version);
        match decision::decide(&next, channel, &member.arch, &member.version).decision {
            Decision::Update => going.push((member.node, member.group)),
            _ if runs_it => {}
            _ if next.dead_end(&member.version, &member.arch).is_some() => dead_ends += 1,
            _ => left_behind += 1,
        }
    }
    let nodes = u32::try_from(going.len()).unwrap_or(u32::MAX);
    let polls = request.span_s / u64::from(assumed.poll_interval_s) + 1;
    if polls.saturating_mul(nodes.into()) > ASKS_MOST {
        let message = format!(
            "{nodes} nodes that ask {polls} times are too many: ask for fewer days, or a longer poll interval"
        );
        return Err(SimulationFailure::Invalid(message));
    }
    // One at a time: it takes a core.
    let _turn = app.simulation_turn().await;
    let rollout = Rollout::begin(channel.clone(), version.clone(), policy, None, now);
    // It may take seconds over a large fleet.
    let simulated = tokio::task::spawn_blocking(move || run(rollout, going, &assumed))
        .await
        .map_err(|error| SimulationFailure::Invalid(format!("the simulation failed: {error}")))?;
    Ok(SimulationReport {
        schema: SCHEMA,
        channel: channel.clone(),
        version,
        began_at: now,
        nodes,
        left_behind,
        dead_ends,
        points: simulated.points.into_iter().map(point).collect(),
        events: simulated.events.into_iter().map(|(at, line)| format!("{at:.0} {line}")).collect(),
        done_at: simulated.done_at,
        waits_for_approval: simulated.waits_for_approval,
        halted: simulated.rollout.halted.map(|halted| halted.why),
    })
}

fn assumed(request: &SimulationRequest) -> Result<Assumed, SimulationFailure> {
    if request.poll_interval_s < POLL_LEAST_S {
        let found = request.poll_interval_s;
        let message = format!("poll_interval_s: expected at least {POLL_LEAST_S}, found {found}");
        return Err(SimulationFailure::Invalid(message));
    }
    if request.span_s == 0 || request.span_s > SPAN_MOST_S {
        let message =
            format!("span_s: expected 1 to {SPAN_MOST_S} seconds, a year, found {}", request.span_s);
        return Err(SimulationFailure::Invalid(message));
    }
    let SimulationRequest { failing, silent, seed, poll_interval_s, update_takes_s, span_s, .. } = *request;
    let approve_after_s = request.approve_after_s;
    Ok(Assumed { failing, silent, seed, poll_interval_s, update_takes_s, approve_after_s, span_s })
}

fn target(
    published: &decision::Published,
    channel: &Channel,
    request: &SimulationRequest,
) -> Result<Version, SimulationFailure> {
    let Some(version) = request.version.clone().or_else(|| published.channels.get(channel).cloned()) else {
        let message = format!("the channel {channel} points at no release: name one to simulate");
        return Err(SimulationFailure::Missing(message));
    };
    if published.releases.iter().any(|release| release.version == version) {
        return Ok(version);
    }
    Err(SimulationFailure::Missing(format!(
        "there is no release {version}: push it first with updatectl release push"
    )))
}

fn point(point: protocol::rollout::simulate::Point) -> SimulationPoint {
    SimulationPoint {
        at: point.at,
        stage: point.stage,
        in_flight: point.in_flight,
        ended: point.ended,
        held_by: point.held_by.unwrap_or_default(),
    }
}
