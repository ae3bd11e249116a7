//! Step 4, channel: the running server: its parts, its background work, and its end.

use crate::changes::Changes;
use crate::checkins::CheckIns;
use crate::credentials::Credentials;
use crate::data_dir::DataDir;
use crate::enrolment::Enrolment;
use crate::listen::{Listener, ended};
use crate::locks;
use crate::metrics::Metrics;
use crate::payloads::Payloads;
use crate::repository::Repository;
use crate::retention::{self, Retention};
use crate::rollouts::{self, Waiters};
use crate::routes;
use crate::store::{Store, StoreError};
use crate::webhooks;
use axum::Router;
use jiff::Timestamp;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{MutexGuard, watch};
use tokio::time::MissedTickBehavior;

/// How often metadata is looked at for renewal, and locks for holders that are overdue.
const RENEWAL: Duration = Duration::from_secs(60);
/// How often signs of life are written, and on a shared database is looked for what other servers have published.
const FLUSH: Duration = Duration::from_secs(1);
/// How often rollouts are looked at: for nodes that fell silent, and stages that may open.
const ROLLOUTS: Duration = Duration::from_secs(5);
/// How long running transfers may go on after the server was told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Where the time comes from: tests own it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// The server's parts, shared by all requests.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    payloads: Payloads,
    repository: Repository,
    checkins: CheckIns,
    changes: Changes,
    credentials: Credentials,
    metrics: Metrics,
    /// Held while a lock's document is changed: changes take turns here instead of fighting over the database.
    lock_turn: tokio::sync::Mutex<()>,
    simulation_turn: tokio::sync::Mutex<()>,
    waiters: Waiters,
    retention: OnceLock<Retention>,
    enrolment: OnceLock<Enrolment>,
    clock: Clock,
    /// When it began to listen.
    began: Timestamp,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("store", &self.inner.store).finish_non_exhaustive()
    }
}

impl App {
    /// A server on a data directory.
    ///
    /// # Errors
    /// [`StoreError`] where what is published cannot be read.
    pub async fn new(data: &DataDir, clock: Clock) -> Result<Self, StoreError> {
        let (store, payloads) = (data.store.clone(), data.payloads.clone());
        let repository = Repository::open(store.clone(), payloads.clone(), data.keys.clone()).await?;
        let inner = Inner {
            store,
            payloads,
            repository,
            checkins: CheckIns::default(),
            changes: Changes::default(),
            credentials: Credentials::default(),
            metrics: Metrics::default(),
            lock_turn: tokio::sync::Mutex::default(),
            simulation_turn: tokio::sync::Mutex::default(),
            waiters: Waiters::default(),
            retention: OnceLock::new(),
            enrolment: OnceLock::new(),
            began: clock(),
            clock,
        };
        let app = Self { inner: Arc::new(inner) };
        locks::ensure_default(&app).await?;
        rollouts::ensure(&app).await?;
        Ok(app)
    }

    /// The time. The database keeps microseconds, so it has no finer parts.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = (self.inner.clock)();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// When this server began: what happened before, it did not hear.
    #[must_use]
    pub fn began(&self) -> Timestamp {
        self.inner.began
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Where the payloads are.
    #[must_use]
    pub fn payloads(&self) -> &Payloads {
        &self.inner.payloads
    }

    /// The repository.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// The signs of life that are not written yet.
    #[must_use]
    pub fn checkins(&self) -> &CheckIns {
        &self.inner.checkins
    }

    /// The changes that wait to be made.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.inner.changes
    }

    /// What is known of nodes' credentials.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.inner.credentials
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// How long is kept what nodes said.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.inner.retention.get().copied().unwrap_or_default()
    }

    /// Sets that, before it serves. Only the first time counts.
    pub fn set_retention(&self, retention: Retention) {
        self.inner.retention.get_or_init(|| retention);
    }

    /// The nodes that were found to wait in rollouts.
    #[must_use]
    pub fn waiters(&self) -> &Waiters {
        &self.inner.waiters
    }

    /// Which nodes are heard that were never heard before.
    #[must_use]
    pub fn enrolment(&self) -> Enrolment {
        self.inner.enrolment.get().copied().unwrap_or_default()
    }

    /// Sets that, before it serves. Only the first time counts.
    pub fn set_enrolment(&self, enrolment: Enrolment) {
        self.inner.enrolment.get_or_init(|| enrolment);
    }

    /// A turn at a simulation.
    pub async fn simulation_turn(&self) -> MutexGuard<'_, ()> {
        self.inner.simulation_turn.lock().await
    }

    /// A turn at changing a lock's document.
    pub async fn lock_turn(&self) -> MutexGuard<'_, ()> {
        self.inner.lock_turn.lock().await
    }

    /// All routes.
    pub fn router(&self) -> Router {
        routes::router(self.clone())
    }

    /// Renews what is due. A failure is logged and tried again a minute later: until the metadata expires there is
    /// half of its life left.
    pub async fn renew(&self) {
        if let Err(error) = self.repository().renew(self.now()).await {
            tracing::error!(error = crate::error::chain(&error), "metadata was not renewed");
        }
    }

    /// Lets time pass in the reboot locks. A failure is logged: whoever asks a lock lets time pass in it first.
    async fn tick_locks(&self) {
        if let Err(error) = locks::tick(self).await {
            tracing::error!(error = crate::error::chain(&error), "the reboot locks were not looked at");
        }
    }

    /// Lets time pass in the rollouts. A failure is logged and tried again.
    async fn tick_rollouts(&self) {
        if let Err(error) = rollouts::tick(self).await {
            tracing::error!(error = crate::error::chain(&error), "the rollouts were not looked at");
        }
    }

    async fn flush(&self) {
        if let Err(error) = self.checkins().flush(self.store()).await {
            tracing::error!(error = crate::error::chain(&error), "signs of life were not written");
        }
    }

    /// Looks for what other servers on the same database have published. A failure is logged and tried again.
    async fn follow(&self) {
        if !self.store().is_shared() {
            return;
        }
        if let Err(error) = self.repository().follow().await {
            tracing::error!(error = crate::error::chain(&error), "what other servers published was not seen");
        }
    }

    /// Serves on `listener` until `stop` resolves; then running transfers get some seconds, and what waits is
    /// written.
    pub async fn serve(
        &self,
        listener: impl Into<Listener>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let (stopping, stopped) = watch::channel(false);
        let background = tokio::spawn(self.clone().background(stopped.clone()));
        let tending = tokio::spawn(retention::run(self.clone(), stopped.clone()));
        let telling = tokio::spawn(webhooks::run(self.clone(), stopped.clone()));
        tokio::spawn(async move {
            stop.await;
            stopping.send_replace(true);
        });
        let serving = listener.into().serve(self.router(), stopped.clone());
        let overdue = async {
            ended(stopped).await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = serving => {}
            () = overdue => tracing::warn!("transfers were still running; they are cut off"),
        }
        // It ends by itself, and not in the middle of a write.
        if background.await.is_err() || tending.await.is_err() || telling.await.is_err() {
            tracing::error!("the background work had failed");
        }
        self.flush().await;
        // A transfer that was cut off may still hold a connection; what is committed is on the disk anyway.
        if tokio::time::timeout(GRACE, self.store().close()).await.is_err() {
            tracing::warn!("the database was still in use");
        }
    }

    async fn background(self, stopped: watch::Receiver<bool>) {
        let mut renewal = tokio::time::interval(RENEWAL);
        let mut flush = tokio::time::interval(FLUSH);
        let mut advance = tokio::time::interval(ROLLOUTS);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        advance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = renewal.tick() => {
                    self.renew().await;
                    self.tick_locks().await;
                }
                _ = flush.tick() => {
                    self.flush().await;
                    self.follow().await;
                }
                _ = advance.tick() => self.tick_rollouts().await,
                () = ended(stopped.clone()) => return,
            }
        }
    }
}
