//! All steps, from outside: what is counted, for Prometheus. Names and units are those of its conventions; labels have few
//! values whatever clients send.

mod process;

use crate::server::App;
use crate::store::StoreError;
use crate::store::figures::{self, Figures, RolloutFigures};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use process::Process;
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use protocol::wire::{Decision, EventKind};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long figures from the database are good for.
const FRESH: Duration = Duration::from_secs(15);
/// How long the database has for them: Prometheus waits ten seconds by default, and is to learn that the database is away.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a request takes, in seconds: from an answer out of memory to one that waits for a database that is away.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// How many pairs of channel and version are told apart.
const VERSIONS: u32 = 50;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: String,
    method: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Asked {
    route: String,
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Decided {
    decision: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Happened {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Running {
    channel: String,
    version: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfVersion {
    version: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfRole {
    role: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfGroup {
    group: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfChannel {
    channel: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InPhase {
    channel: String,
    phase: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// What is counted.
pub struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, fn() -> Histogram>,
    decisions: Family<Decided, Counter>,
    events: Family<Happened, Counter>,
    stored: Stored,
    pending: Gauge,
    connections: Gauge,
    connections_max: Gauge,
    process: Process,
    /// When the figures of the database were read; held while they are read and told.
    read: Mutex<Option<Instant>>,
}

/// Figures of the database.
#[derive(Default)]
struct Stored {
    nodes: Family<Running, Gauge>,
    dead_ends: Family<OfVersion, Gauge>,
    expiry: Family<OfRole, Seconds>,
    holders: Family<OfGroup, Gauge>,
    waiters: Family<OfGroup, Gauge>,
    stuck: Family<OfGroup, Gauge>,
    rollouts: Rollouts,
    up: Gauge,
}

/// Figures of the rollout of each channel.
#[derive(Default)]
struct Rollouts {
    halted: Family<OfChannel, Gauge>,
    paused: Family<OfChannel, Gauge>,
    stage: Family<OfChannel, Gauge>,
    stages: Family<OfChannel, Gauge>,
    nodes: Family<InPhase, Gauge>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let durations: fn() -> Histogram = || Histogram::new(BUCKETS);
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("flipside_build", "The program that runs", version);
        let mut made = Self {
            process: Process::register(&mut registry),
            registry,
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            decisions: Family::default(),
            events: Family::default(),
            stored: Stored::default(),
            pending: Gauge::default(),
            connections: Gauge::default(),
            connections_max: Gauge::default(),
            read: Mutex::default(),
        };
        made.register();
        made
    }
}

impl Metrics {
    fn register(&mut self) {
        let Self { registry, requests, durations, decisions, events, stored, .. } = self;
        // The library puts _total behind the names of counters, and a stop behind each text.
        registry.register("flipside_http_requests", "Requests that were answered", requests.clone());
        registry.register(
            "flipside_http_request_duration_seconds",
            "Time from a request's head to its answer's head",
            durations.clone(),
        );
        registry.register("flipside_update_checks", "Update checks that were answered", decisions.clone());
        registry.register("flipside_events", "Events that nodes reported", events.clone());
        registry.register(
            "flipside_nodes",
            "Nodes by what they said at their last check",
            stored.nodes.clone(),
        );
        registry.register(
            "flipside_dead_end_nodes",
            "Nodes that said at their last check that they run a release which is a dead end",
            stored.dead_ends.clone(),
        );
        registry.register(
            "flipside_metadata_expiry_timestamp_seconds",
            "When the newest metadata of a role expires",
            stored.expiry.clone(),
        );
        registry.register("flipside_lock_holders", "Nodes that hold a reboot permit", stored.holders.clone());
        registry.register(
            "flipside_lock_waiters",
            "Nodes that wait for a reboot permit",
            stored.waiters.clone(),
        );
        registry.register("flipside_lock_stuck", "Holders whose time is up", stored.stuck.clone());
        stored.rollouts.register(registry);
        registry.register(
            "flipside_database_up",
            "Whether the figures above could be read",
            stored.up.clone(),
        );
        registry.register(
            "flipside_database_connections",
            "Connections to the database that are in use",
            self.connections.clone(),
        );
        registry.register(
            "flipside_database_connections_max",
            "Connections to the database that may be in use",
            self.connections_max.clone(),
        );
        registry.register(
            "flipside_checkins_pending",
            "Signs of life that are not in the database yet",
            self.pending.clone(),
        );
    }

    /// An update check was answered.
    pub fn decided(&self, decision: Decision) {
        self.decisions.get_or_create(&Decided { decision: word(&decision) }).inc();
    }

    /// Events were stored.
    pub fn happened(&self, kinds: &[EventKind]) {
        for kind in kinds {
            self.events.get_or_create(&Happened { kind: word(kind) }).inc();
        }
    }

    /// Everything as text.
    async fn text(&self, app: &App) -> Result<String, fmt::Error> {
        let mut read = self.read.lock().await;
        if read.is_none_or(|at| at.elapsed() >= FRESH) {
            match figures(app).await {
                Ok(found) => self.stored.set(found),
                Err(error) => {
                    tracing::error!(
                        error = crate::error::chain(&error),
                        "the figures for /metrics were not read"
                    );
                    self.stored.clear();
                }
            }
            *read = Some(Instant::now());
        }
        let gauge = |gauge: &Gauge, number: usize| {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        let (used, max) = app.store().connections();
        gauge(&self.connections, used);
        gauge(&self.connections_max, max);
        gauge(&self.pending, app.checkins().waiting_count());
        self.process.look();
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// How a value is spelled in JSON.
fn word<T: serde::Serialize>(value: &T) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or("other").to_owned()
}

async fn figures(app: &App) -> Result<Figures, StoreError> {
    let read = async { figures::read(&mut *app.store().read().await?, VERSIONS).await };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or(Err(StoreError::Away(PATIENCE)))
}

impl Rollouts {
    fn register(&self, registry: &mut Registry) {
        let mut of_channel = |name, help, family: &Family<OfChannel, Gauge>| {
            registry.register(name, help, family.clone());
        };
        of_channel("flipside_rollout_halted", "Whether the rollout is halted", &self.halted);
        of_channel(
            "flipside_rollout_paused",
            "Whether the rollout is paused for all of its nodes",
            &self.paused,
        );
        of_channel("flipside_rollout_stage", "Which stage is open, from 1", &self.stage);
        of_channel("flipside_rollout_stages", "How many stages there are", &self.stages);
        registry.register(
            "flipside_rollout_nodes",
            "Nodes that were let go in the rollout, by what came of it",
            self.nodes.clone(),
        );
    }

    fn clear(&self) {
        for family in [&self.halted, &self.paused, &self.stage, &self.stages] {
            family.clear();
        }
        self.nodes.clear();
    }

    fn set(&self, RolloutFigures { rollout, nodes }: RolloutFigures) {
        let channel = rollout.channel.to_string();
        let of = OfChannel { channel: channel.clone() };
        let stages = rollout.stages();
        self.halted.get_or_create(&of).set(rollout.halted.is_some().into());
        self.paused.get_or_create(&of).set(rollout.paused.is_some().into());
        self.stage.get_or_create(&of).set(rollout.stage.saturating_add(1).min(stages).into());
        self.stages.get_or_create(&of).set(stages.into());
        for (phase, count) in nodes {
            let in_phase = InPhase { channel: channel.clone(), phase: phase.as_str() };
            self.nodes.get_or_create(&in_phase).set(count);
        }
    }
}

impl Stored {
    fn clear(&self) {
        self.nodes.clear();
        self.dead_ends.clear();
        self.expiry.clear();
        for family in [&self.holders, &self.waiters, &self.stuck] {
            family.clear();
        }
        self.rollouts.clear();
        self.up.set(0);
    }

    fn set(&self, figures: Figures) {
        self.clear();
        self.up.set(1);
        for (channel, version, count) in figures.nodes {
            self.nodes.get_or_create(&Running { channel, version }).set(count);
        }
        for (version, count) in figures.dead_ends {
            self.dead_ends.get_or_create(&OfVersion { version }).set(count);
        }
        for (role, expires) in figures.expiry {
            // Whole seconds are exact in a float for some more years.
            #[allow(clippy::cast_precision_loss, reason = "see above")]
            self.expiry.get_or_create(&OfRole { role }).set(expires.as_second() as f64);
        }
        for lock in figures.locks {
            let of = OfGroup { group: lock.group };
            self.holders.get_or_create(&of).set(lock.holders);
            self.waiters.get_or_create(&of).set(lock.waiters);
            self.stuck.get_or_create(&of).set(lock.stuck);
        }
        figures.rollouts.into_iter().for_each(|of| self.rollouts.set(of));
    }
}

/// Counts a request and takes its time.
pub async fn count(State(app): State<App>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        // Addresses that anyone can make up.
        None if crate::routes::fleetlock::is_asked(request.uri().path()) => "fleetlock".to_owned(),
        None => "other".to_owned(),
    };
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let response = next.run(request).await;
    let status = match response.status().as_u16() / 100 {
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    let metrics = app.metrics();
    metrics
        .durations
        .get_or_create(&Asked { route: route.clone(), method })
        .observe(begin.elapsed().as_secs_f64());
    metrics.requests.get_or_create(&Answered { route, method, status }).inc();
    response
}

/// `GET /metrics`, for who may read it.
pub async fn show(app: &App) -> Response {
    match app.metrics().text(app).await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response(),
        Err(error) => crate::error::ApiError::internal(error).into_response(),
    }
}
