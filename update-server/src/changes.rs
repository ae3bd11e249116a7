//! Steps 4 and 12: what nodes ask and report that must be durable before it is answered, made together: whoever finds that
//! others wait as well makes their changes with its own, in one transaction and one commit. With one commit each, a disk would
//! let a few hundred nodes a second go; together it is thousands.

use crate::enrolment::{self, NotBound};
use crate::rollouts::{self, Ask, Told};
use crate::server::App;
use crate::store::{Connection, StoreError, nodes, standing};
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::id::NodeId;
use protocol::lock::ClientId;
use protocol::wire::{Event, EventKind};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The most changes in one transaction: who comes after waits for the next one.
const TOGETHER_MAX: usize = 512;
/// How many changes may wait; it bounds the memory.
const WAITING_MAX: usize = 20_000;
/// How often a transaction is tried again that the database ended in favour of another one.
const TRIES: u32 = 32;

/// One node's change.
#[derive(Clone, Debug)]
pub enum Change {
    /// It asks to be let go.
    Ask(Ask),
    /// It reports.
    Events(NodeId, Vec<Event>),
    /// It shows its first credential, and the enrolment token that it must have, by their hashes.
    Bind(ClientId, Sha256, Option<Sha256>),
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Of an [`Change::Ask`].
    Told(Told),
    /// Of [`Change::Events`]: they are on the disk. Of what kinds those are that were not there before.
    Stored(Vec<EventKind>),
    /// Of a [`Change::Bind`]: what the id is bound to now, or why it is not.
    Bound(Result<Sha256, NotBound>),
}

type Answer = oneshot::Sender<Result<Done, Arc<StoreError>>>;

/// The changes that wait to be made.
#[derive(Debug, Default)]
pub struct Changes {
    waiting: Mutex<VecDeque<(Change, Answer)>>,
    /// Held by who makes changes for all.
    turn: tokio::sync::Mutex<()>,
}

impl Changes {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<(Change, Answer)>> {
        // A queue is whole at every point.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a change, with those of others that wait at the same time. When this returns it is durable.
///
/// # Errors
/// [`StoreError`]; whether the change was made is then not known, and the node says it again.
pub async fn make(app: &App, change: Change) -> Result<Done, StoreError> {
    let (answer, mut answered) = oneshot::channel();
    {
        let mut waiting = app.changes().waiting();
        if waiting.len() >= WAITING_MAX {
            return Err(StoreError::Busy);
        }
        waiting.push_back((change, answer));
    }
    let _turn = app.changes().turn.lock().await;
    loop {
        match answered.try_recv() {
            Ok(done) => return done.map_err(StoreError::Together),
            Err(oneshot::error::TryRecvError::Closed) => return Err(StoreError::Abandoned),
            Err(oneshot::error::TryRecvError::Empty) => {}
        }
        let together: Vec<_> = {
            let mut waiting = app.changes().waiting();
            let many = waiting.len().min(TOGETHER_MAX);
            // Who has gone in the meantime says it again.
            waiting.drain(..many).filter(|(_, answer)| !answer.is_closed()).collect()
        };
        // It goes on though this node's connection may end meanwhile: the others wait for it.
        let making = tokio::spawn(all(app.clone(), together));
        if making.await.is_err() {
            return Err(StoreError::Abandoned);
        }
    }
}

async fn all(app: App, together: Vec<(Change, Answer)>) {
    let (changes, answers): (Vec<Change>, Vec<Answer>) = together.into_iter().unzip();
    // Who is gone needs no answer.
    match try_hard(&app, &changes).await {
        Ok(done) => answers.into_iter().zip(done).for_each(|(answer, done)| drop(answer.send(Ok(done)))),
        Err(error) if changes.len() == 1 || !is_of_one_row(&error) => {
            let error = Arc::new(error);
            answers.into_iter().for_each(|answer| drop(answer.send(Err(Arc::clone(&error)))));
        }
        Err(error) => {
            // What is wrong with one node's rows is no reason to hold up the others.
            tracing::warn!(
                error = crate::error::chain(&error),
                "changes of several nodes failed together: they are made one by one"
            );
            for (change, answer) in changes.iter().zip(answers) {
                let done = try_hard(&app, std::slice::from_ref(change)).await;
                let done = done
                    .map_err(Arc::new)
                    .and_then(|done| done.into_iter().next().ok_or_else(|| Arc::new(StoreError::Abandoned)));
                drop(answer.send(done));
            }
        }
    }
}

/// Whether it may be the fault of one node's rows: a statement was refused, or something cannot be read. A database that is gone or
/// busy is nobody's.
fn is_of_one_row(error: &StoreError) -> bool {
    matches!(error, StoreError::Corrupt { .. } | StoreError::Sql(sqlx::Error::Database(_)))
        && !error.is_away()
}

/// One commit, again where the database ended it in favour of another one.
async fn try_hard(app: &App, changes: &[Change]) -> Result<Vec<Done>, StoreError> {
    let mut made = Err(StoreError::Abandoned);
    for _ in 0..TRIES {
        made = one_commit(app, changes).await;
        if !made.as_ref().is_err_and(StoreError::is_conflict) {
            break;
        }
    }
    made
}

async fn one_commit(app: &App, changes: &[Change]) -> Result<Vec<Done>, StoreError> {
    let now = app.now();
    let mut transaction = app.store().write().await?;
    let mut done = Vec::with_capacity(changes.len());
    for change in changes {
        done.push(one(&mut transaction, change, now).await?);
    }
    transaction.commit().await?;
    Ok(done)
}

async fn one(conn: &mut Connection, change: &Change, now: Timestamp) -> Result<Done, StoreError> {
    Ok(match change {
        // Who checked it may have believed what another server has changed since.
        Change::Ask(ask) if standing::revocation(conn, &ClientId::from(&ask.node)).await?.is_some() => {
            Done::Told(Told::Revoked)
        }
        Change::Ask(ask) => Done::Told(rollouts::grant(conn, ask, now).await?),
        Change::Events(node, events) => {
            let new = nodes::add_events(conn, node, events, now).await?;
            // What it does after that it was revoked counts for no release.
            if standing::revocation(conn, &ClientId::from(node)).await?.is_none() {
                rollouts::heard(conn, node, &new, now).await?;
            }
            Done::Stored(new.iter().map(|event| event.kind).collect())
        }
        Change::Bind(node, credential, token) => {
            Done::Bound(enrolment::bind(conn, node, credential, token.as_ref(), now).await?)
        }
    })
}
