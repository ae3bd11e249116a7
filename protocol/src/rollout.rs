//! Step 4, channel: the rollout of a release over a channel's nodes, as pure functions.
//!
//! Each time a channel is pointed at a release a [`Rollout`] begins: stages that open one after the other (a canary
//! group, then waves by percentage), limits on how many nodes go at once, windows, freezes, and halts. A server keeps the
//! document and a [`Grant`] per node, asks [`decide`] for each node that could update, and lets time pass by [`advance`].
//! It decides nothing itself. A grant counts from the moment it is written, in the transaction that counted the others, so
//! that no limit is ever exceeded.
//!
//! `docs/rollouts.md` says it for operators.

mod advance;
mod decide;
mod document;
mod file;
mod grant;
mod policy;
mod reason;
mod share;
pub mod simulate;
#[cfg(test)]
mod tests;

pub use advance::{advance, is_stuck, next_stage, wants_waiting};
pub use decide::{Asked, decide, decide_granted, holds_all};
pub use document::{Counts, Ended, Rollout, Stage, Stop, Used};
pub use file::{ROLLOUT_KEYS, RolloutFile};
pub use grant::{Grant, GrantPhase, Heard, Phases};
pub use policy::{Canary, Freeze, Gate, GroupPolicy, Halt, Limits, Rate, RolloutPolicy, Wave};
pub use reason::Reason;
pub use share::{InvalidShare, Share, place};
