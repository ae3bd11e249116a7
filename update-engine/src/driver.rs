//! All steps: the state machine's effects, executed in their order, and its events delivered.
//!
//! The driver decides nothing. It owns the clock, the state folder and the running operation; the rules it keeps are
//! in the documentation of `machine`. Nothing that may block runs on its thread: operations are tasks of their own, and
//! the state folder is written on another thread, while the service manager hears that the loop runs.

use crate::check::network_failure;
use crate::error::chain;
use crate::network::Client;
use crate::operations::{Context, Operations};
use crate::pause::{Pause, Point};
use crate::state::StateFolder;
use crate::state::history::History;
use crate::supervisor::Supervisor;
use jiff::Timestamp;
use machine::{
    Command, Effect, Event, Identity, Mode, Operation, Outcome, Record, Reply, Start, State, step,
};
use protocol::id::NodeId;
use protocol::status::{Exit, Progress, StateName, Status};
use protocol::wire::{Events, SCHEMA};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// How often progress is told while an operation runs.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// The longest sleep: the wall clock may be set while the engine sleeps.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// A person's request, with the place for its answer.
pub type Request = (Command, oneshot::Sender<Reply>);

/// What reaches a running engine from outside.
#[derive(Debug)]
pub enum Signal {
    /// A request.
    Request(Request),
    /// End as soon as nothing is half done.
    Stop,
}

/// What a running engine shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The status.
    pub status: Status,
    /// An operation runs: what the status says is about to change by itself.
    pub busy: bool,
}

/// What is written in the state folder.
#[derive(Debug)]
struct Files {
    folder: StateFolder,
    history: History,
}

/// Runs the state machine.
pub struct Driver {
    state: State,
    identity: Identity,
    node: NodeId,
    files: Arc<Mutex<Files>>,
    supervisor: Supervisor,
    /// Reported with the status as long as nothing else is wrong.
    problems: Vec<String>,
    client: Client,
    operations: Arc<Operations>,
    pause: Pause,
    events: VecDeque<Event>,
    operation: Option<JoinHandle<Event>>,
    report: Option<JoinHandle<Event>>,
    reply_to: Option<oneshot::Sender<Reply>>,
    discard: bool,
    stopping: bool,
    shown: watch::Sender<Option<Shown>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// The machine before its start.
    pub state: State,
    /// What the status says of the node.
    pub identity: Identity,
    /// The node's id.
    pub node: NodeId,
    /// The state folder, locked.
    pub folder: StateFolder,
    /// What was wrong with the state folder.
    pub problems: Vec<String>,
    /// For reports.
    pub client: Client,
    /// For operations.
    pub operations: Operations,
    /// Where to stop for a test.
    pub pause: Pause,
}

impl Driver {
    /// A driver that has not started.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { state, identity, node, folder, problems, client, operations, pause } = parts;
        Self {
            state,
            identity,
            node,
            files: Arc::new(Mutex::new(Files { history: History::open(folder.path()), folder })),
            supervisor: Supervisor::nobody(),
            problems,
            client,
            operations: Arc::new(operations),
            pause,
            events: VecDeque::new(),
            operation: None,
            report: None,
            reply_to: None,
            discard: false,
            stopping: false,
            shown: watch::Sender::new(None),
        }
    }

    /// What the engine shows, from when it has started.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Shown>> {
        self.shown.subscribe()
    }

    /// Runs from the start to the machine's end, or until it is told to stop: then the running operation is stopped,
    /// and its outcome saved.
    pub async fn run(mut self, start: Start, mut signals: mpsc::Receiver<Signal>) -> (Exit, Status) {
        if start.mode == Mode::Daemon {
            self.supervisor = Supervisor::of_this_process();
        }
        self.events.push_back(Event::Start(start));
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(exit) = self.deliver(event).await {
                    return (exit, self.status());
                }
            }
            if self.stopping && self.operation.is_none() {
                return (Exit::Done, self.status());
            }
            self.wait(&mut signals).await;
        }
    }

    /// Waits for the next event.
    async fn wait(&mut self, signals: &mut mpsc::Receiver<Signal>) {
        let sleep = match self.state.wake_at() {
            Some(at) => {
                let left = at.duration_since(Timestamp::now());
                Duration::try_from(left).unwrap_or(Duration::ZERO).min(SLEEP_MAX)
            }
            None => SLEEP_MAX,
        };
        let busy = self.operation.is_some();
        tokio::select! {
            biased;
            signal = signals.recv(), if !self.stopping => match signal {
                Some(Signal::Request((command, reply))) => {
                    self.reply_to = Some(reply);
                    self.events.push_back(Event::Operator(command));
                }
                Some(Signal::Stop) | None => {
                    tracing::info!("stopping");
                    self.stopping = true;
                    self.supervisor.stopping();
                    self.operations.stop();
                }
            },
            () = self.supervisor.due() => self.supervisor.alive(),
            event = wait_for(&mut self.operation) => self.events.push_back(event),
            event = wait_for(&mut self.report) => self.events.push_back(event),
            () = tokio::time::sleep(PROGRESS_EVERY), if busy => {
                let progress = self.operations.installer.meter.read();
                let installing = matches!(self.state.operation(), Some(Operation::Install { .. }));
                if installing && progress != Progress::default() {
                    self.events.push_back(Event::Progress(progress));
                }
            }
            () = tokio::time::sleep(sleep), if !busy => self.events.push_back(Event::Tick),
        }
    }

    /// One step of the machine, and what follows from it; the exit code once it is finished.
    async fn deliver(&mut self, event: Event) -> Option<Exit> {
        tracing::debug!(?event, "event");
        let before = self.shown.borrow().as_ref().map_or(StateName::Idle, |shown| shown.status.state);
        let state = self.state.clone();
        let (state, effects) = step(state, event, Timestamp::now());
        self.state = state;
        let mut exit = None;
        let mut answer = None;
        for effect in effects {
            tracing::debug!(?effect, "effect");
            match effect {
                Effect::Save(record) => {
                    if let Err(problem) = self.save(record).await {
                        answer = Some(Reply { outcome: Outcome::Declined, text: problem.clone() });
                        self.events.push_front(Event::SaveFailed(problem));
                        break;
                    }
                }
                Effect::Discard => self.discard = true,
                Effect::Abort => self.operations.stop(),
                Effect::Reply(reply) => answer = Some(reply),
                Effect::Report(events) => self.start_report(events),
                Effect::Run(_) if self.stopping => {}
                Effect::Run(operation) => self.start(operation, before),
                Effect::Finish(code) => exit = Some(code),
            }
        }
        self.discard_if_idle();
        self.show().await;
        // Whoever asked reads a status that knows of it. They may be gone.
        if let Some((to, reply)) = answer.and_then(|reply| Some((self.reply_to.take()?, reply))) {
            let _ = to.send(reply);
        }
        exit
    }

    /// Makes a record durable, or says why that failed.
    async fn save(&mut self, record: Box<Record>) -> Result<(), String> {
        self.aside(move |files| {
            files.folder.save(&record).map_err(|error| {
                tracing::error!("{}", chain(&error));
                chain(&error)
            })?;
            if let Err(error) = files.history.record(&record.events) {
                tracing::warn!("cannot write the history: {error}");
            }
            Ok(())
        })
        .await
    }

    /// Does something with the state folder on another thread: a busy disk can hold it up for long. One that holds it up for
    /// ever ends in a restart, by the watchdog.
    async fn aside<T: Send + 'static>(&mut self, work: impl FnOnce(&mut Files) -> T + Send + 'static) -> T {
        let files = Arc::clone(&self.files);
        let mut work = tokio::task::spawn_blocking(move || {
            work(&mut files.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let begun = tokio::time::Instant::now();
        loop {
            tokio::select! {
                done = &mut work => return done.unwrap_or_else(|lost| std::panic::resume_unwind(lost.into_panic())),
                () = self.supervisor.due_since(begun) => self.supervisor.alive(),
            }
        }
    }

    /// Drops evidence; not under a running operation, which may be using it.
    fn discard_if_idle(&mut self) {
        if self.discard && self.operation.is_none() {
            self.discard = false;
            self.operations.installer.slots.lock().unwrap_or_else(PoisonError::into_inner).discard();
        }
    }

    fn start(&mut self, operation: Operation, before: StateName) {
        self.discard_if_idle();
        self.operations.abort.store(false, Ordering::Relaxed);
        let (Some(facts), Some(running)) = (self.state.facts(), self.state.running_version()) else { return };
        let context = Context::new(facts.clone(), running.clone(), self.state.record(), before);
        self.operation = Some(tokio::spawn(Arc::clone(&self.operations).perform(operation, context)));
    }

    fn start_report(&mut self, events: Vec<protocol::wire::Event>) {
        let (client, node) = (self.client.clone(), self.node.clone());
        self.report = Some(tokio::spawn(async move {
            let last = events.iter().map(|event| event.seq).max().unwrap_or_default();
            let sent = client.send_events(&Events { schema: SCHEMA, node, events }).await;
            Event::Reported(sent.map(|()| last).map_err(|error| network_failure(&error)))
        }));
    }

    fn status(&self) -> Status {
        let mut status = machine::status(&self.state, &self.identity);
        if status.error.is_none() && !self.problems.is_empty() {
            status.error = Some(self.problems.join("; "));
        }
        status
    }

    /// Writes the status where it changed, tells it, and logs a change of state. It is in the folder before it is told,
    /// so that who heard of it, or of an engine without a bus, finds it there.
    async fn show(&mut self) {
        let shown = Shown { status: self.status(), busy: self.operation.is_some() };
        let old = self.shown.borrow().clone();
        if old.as_ref() == Some(&shown) {
            return;
        }
        let status = shown.status.clone();
        let old = old.map(|old| old.status);
        self.supervisor.show(&status);
        let changed = old.as_ref() != Some(&status);
        if changed {
            if old.map(|old| (old.state, old.reason)) != Some((status.state, status.reason.clone())) {
                let reason = if status.reason.is_empty() { "" } else { ": " };
                tracing::info!("{}{reason}{}", status.state, status.reason);
            }
            let status = status.clone();
            self.aside(move |files| {
                let path = files.folder.status_path();
                if let Err(error) = crate::status::write(&path, &status) {
                    tracing::warn!("cannot write {}: {error}", path.display());
                }
            })
            .await;
        }
        self.shown.send_replace(Some(shown));
        let waits = changed && status.state == StateName::Waiting;
        if waits {
            self.pause.at(Point::Waiting);
        }
    }
}

/// The event of something that runs, which is then over; for ever nothing where nothing runs.
async fn wait_for(running: &mut Option<JoinHandle<Event>>) -> Event {
    match running {
        Some(task) => {
            let event = task.await;
            *running = None;
            // Nobody aborts it: it can only have panicked.
            event.unwrap_or_else(|lost| std::panic::resume_unwind(lost.into_panic()))
        }
        None => std::future::pending().await,
    }
}
