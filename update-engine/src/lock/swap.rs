//! Step 9, permit: read, apply, compare-and-swap, for any store of documents.
//!
//! A write whose outcome is not known is never repeated: the document is read again and the same command applied
//! again. That is right whatever happened, because every command is idempotent on node and attempt: where the write got
//! through, the second application changes nothing and gives the same answer; where it comes through later still, it
//! fails on the revision.

use super::error::LockError;
use crate::network::backoff::random_fraction;
use protocol::id::Group;
use protocol::lock::{Command, Context, Document, Refusal, Reply, apply};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// The first pause after a conflict; doubled each time, a random part of it is taken.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A document as it was read, with what a decision about it needs to know.
pub(super) struct Read<G> {
    pub(super) document: Document,
    /// It is not stored yet.
    pub(super) is_new: bool,
    pub(super) context: Context,
    /// What must be unchanged when it is written.
    pub(super) guard: G,
}

/// What came of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// It is stored.
    Done,
    /// Something that the decision rests on was changed meanwhile; nothing is stored.
    Conflict,
    /// It may be stored or not.
    Unknown(LockError),
    /// It is not stored.
    Failed(LockError),
}

/// Where documents are.
pub(super) trait Store {
    /// See [`Read::guard`].
    type Guard;

    /// Reads the group's document; none where there is no such group.
    fn read(
        &self,
        group: &Group,
        command: &Command,
    ) -> impl Future<Output = Result<Option<Read<Self::Guard>>, LockError>> + Send;

    /// Writes the document if all of the guard is as it was read. Sends it once.
    fn write(&self, document: &Document, guard: &Self::Guard) -> impl Future<Output = Written> + Send;
}

/// Carries out a command on a group's lock, within `limit`.
///
/// # Errors
/// [`LockError::Unresolved`] where a write may have been made and could not be looked for since; else what failed. In
/// every case the same command may be given again.
pub(super) async fn perform<S: Store>(
    store: &S,
    group: &Group,
    command: &Command,
    limit: Duration,
) -> Result<Reply, LockError> {
    let until = Instant::now() + limit;
    let mut unresolved = false;
    let mut last = None;
    let mut tries = 0;
    loop {
        match timeout_at(until, attempt(store, group, command, &mut unresolved)).await {
            Ok(Tried::Reply(reply)) => return Ok(reply),
            Ok(Tried::Conflict) => last = None,
            Ok(Tried::Error(error)) if !error.is_passing() => {
                return Err(if unresolved {
                    LockError::Unresolved { source: Box::new(error) }
                } else {
                    error
                });
            }
            Ok(Tried::Error(error)) => {
                tracing::debug!("trying the lock again after: {}", crate::error::chain(&error));
                last = Some(error);
            }
            Err(_) => return Err(out_of_time(limit, unresolved, last, tries)),
        }
        tries += 1;
        let pause = Instant::now() + pause(tries);
        if pause >= until {
            return Err(out_of_time(limit, unresolved, last, tries));
        }
        sleep_until(pause).await;
    }
}

enum Tried {
    Reply(Reply),
    Conflict,
    Error(LockError),
}

/// One round. `unresolved` is set from before a write goes out until it is known what came of it; a round that is cut
/// off by the deadline leaves it as it is.
async fn attempt<S: Store>(store: &S, group: &Group, command: &Command, unresolved: &mut bool) -> Tried {
    let read = match store.read(group, command).await {
        Ok(Some(read)) => read,
        Ok(None) => {
            return Tried::Reply(Reply::Refused { because: Refusal::UnknownGroup { group: group.clone() } });
        }
        Err(error) => return Tried::Error(error),
    };
    *unresolved = false;
    let applied = apply(&read.document, command, &read.context);
    // The first use of a group stores its document, whatever the command.
    let document = applied.document.or_else(|| read.is_new.then_some(read.document));
    let Some(document) = document else { return Tried::Reply(applied.reply) };
    *unresolved = true;
    match store.write(&document, &read.guard).await {
        Written::Done => Tried::Reply(applied.reply),
        Written::Unknown(error) => Tried::Error(error),
        Written::Conflict => {
            *unresolved = false;
            Tried::Conflict
        }
        Written::Failed(error) => {
            *unresolved = false;
            Tried::Error(error)
        }
    }
}

fn pause(tries: u32) -> Duration {
    let full = PAUSE_FIRST.saturating_mul(1 << (tries - 1).min(10)).min(PAUSE_MAX);
    full.mul_f64(random_fraction())
}

fn out_of_time(after: Duration, unresolved: bool, last: Option<LockError>, tries: u32) -> LockError {
    match last {
        last if unresolved => {
            let source = last.unwrap_or(LockError::Deadline { after, source: None });
            LockError::Unresolved { source: Box::new(source) }
        }
        None if tries > 0 => LockError::Contended { tries, after },
        last => LockError::Deadline { after, source: last.map(Box::new) },
    }
}
