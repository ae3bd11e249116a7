//! Step 9, permit: the reboot lock, one [`Document`] per group, and its transitions as pure functions.
//!
//! A backend (etcd, the server's database) reads a document with its revision, calls [`apply`] and writes the result by
//! compare-and-swap on that revision; where the outcome of a write is unknown it reads again and applies the same
//! command again, which does no harm: every command is idempotent on node and attempt. No backend decides anything.
//!
//! The invariants I1 to I7 are those of DESIGN section 10; `docs/lock.md` says how each one is kept.

mod admit;
mod apply;
mod check;
mod command;
mod document;
mod explain;
mod file;
mod policy;
mod queue;
mod wait;

pub use crate::policy_file::{Key, PolicyFileError, PolicyFileErrors, Problem};
pub use admit::{Candidate, admit, in_force};
pub use apply::{Applied, apply};
pub use command::{Command, Context, Population, QuorumHealth, Refusal, Reply, Request, Usage, Wait};
pub use document::{
    Act, ActKind, AttemptId, ClientId, Document, Finished, Holder, InvalidLockId, Phase, Proved, Waiter, Zone,
};
pub use explain::{holders_wait, waiters_wait};
pub use file::{KEYS, PolicyFile};
pub use policy::{Cap, Caps, Limit, OnTrouble, Policy, Quorum, Zones};
