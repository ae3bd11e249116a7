//! All steps: the state machine's effects, executed in their order, and its events delivered.
//!
//! The driver decides nothing. It owns the clock, the state folder and the running operation; the rules it keeps are
//! in the documentation of `machine`.

use crate::check::network_failure;
use crate::error::chain;
use crate::network::Client;
use crate::operations::{Context, Operations};
use crate::pause::{Pause, Point};
use crate::state::StateFolder;
use crate::state::history::History;
use jiff::Timestamp;
use machine::{Command, Effect, Event, Identity, Operation, Reply, Start, State, step};
use protocol::id::NodeId;
use protocol::status::{Exit, Progress, StateName, Status};
use protocol::wire::{Events, SCHEMA};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

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

type Pending = Pin<Box<dyn Future<Output = Event>>>;

/// Runs the state machine.
pub struct Driver {
    state: State,
    identity: Identity,
    node: NodeId,
    folder: StateFolder,
    history: History,
    /// Reported with the status as long as nothing else is wrong.
    problems: Vec<String>,
    client: Client,
    operations: Arc<Operations>,
    pause: Pause,
    events: VecDeque<Event>,
    operation: Option<Pending>,
    report: Option<Pending>,
    reply_to: Option<oneshot::Sender<Reply>>,
    discard: bool,
    stopping: bool,
    shown: Option<Status>,
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
            history: History::open(folder.path()),
            folder,
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
            shown: None,
        }
    }

    /// Runs from the start to the machine's end, or until it is told to stop: then the running operation is stopped,
    /// and its outcome saved.
    pub async fn run(mut self, start: Start, mut signals: mpsc::Receiver<Signal>) -> (Exit, Status) {
        self.events.push_back(Event::Start(start));
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(exit) = self.deliver(event) {
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
                    self.operations.stop();
                }
            },
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
    fn deliver(&mut self, event: Event) -> Option<Exit> {
        tracing::debug!(?event, "event");
        let before = self.shown.as_ref().map_or(StateName::Idle, |status| status.state);
        let state = self.state.clone();
        let (state, effects) = step(state, event, Timestamp::now());
        self.state = state;
        let mut exit = None;
        for effect in effects {
            tracing::debug!(?effect, "effect");
            match effect {
                Effect::Save(record) => {
                    if let Err(error) = self.folder.save(&record) {
                        tracing::error!("{}", chain(&error));
                        self.events.push_front(Event::SaveFailed(chain(&error)));
                        break;
                    }
                    if let Err(error) = self.history.record(&record.events) {
                        tracing::warn!("cannot write the history: {error}");
                    }
                }
                Effect::Discard => self.discard = true,
                Effect::Abort => self.operations.stop(),
                Effect::Reply(reply) => {
                    if let Some(to) = self.reply_to.take() {
                        // Whoever asked may be gone.
                        let _ = to.send(reply);
                    }
                }
                Effect::Report(events) => self.start_report(events),
                Effect::Run(_) if self.stopping => {}
                Effect::Run(operation) => self.start(operation, before),
                Effect::Finish(code) => exit = Some(code),
            }
        }
        self.discard_if_idle();
        self.show();
        exit
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
        self.show();
        self.operation = Some(Box::pin(Arc::clone(&self.operations).perform(operation, context)));
    }

    fn start_report(&mut self, events: Vec<protocol::wire::Event>) {
        let (client, node) = (self.client.clone(), self.node.clone());
        self.report = Some(Box::pin(async move {
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

    /// Writes the status where it changed, and logs a change of state.
    fn show(&mut self) {
        let status = self.status();
        if self.shown.as_ref() == Some(&status) {
            return;
        }
        let old = self.shown.as_ref().map(|old| (old.state, old.reason.clone()));
        if old != Some((status.state, status.reason.clone())) {
            let reason = if status.reason.is_empty() { "" } else { ": " };
            tracing::info!("{}{reason}{}", status.state, status.reason);
        }
        if let Err(error) = crate::status::write(&self.folder.status_path(), &status) {
            tracing::warn!("cannot write {}: {error}", self.folder.status_path().display());
        }
        let waits = status.state == StateName::Waiting;
        self.shown = Some(status);
        if waits {
            self.pause.at(Point::Waiting);
        }
    }
}

/// The event of something that runs, which is then over; for ever nothing where nothing runs.
async fn wait_for(pending: &mut Option<Pending>) -> Event {
    match pending {
        Some(running) => {
            let event = running.await;
            *pending = None;
            event
        }
        None => std::future::pending().await,
    }
}
