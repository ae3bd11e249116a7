//! Steps 5 to 12 as decisions: the engine's state machine. It decides; the driver in `update-engine` acts.
//!
//! [`step`] takes the state, one event and the time, and returns the state after it and the effects to execute, in
//! order. There is no IO, no clock and no randomness here: a test owns all three. The rules the driver keeps:
//!
//! - It executes a batch of effects in order. A batch holds at most one [`Effect::Run`], always last.
//! - Every [`Operation`] is answered by exactly one event, named in its documentation, also after [`Effect::Abort`].
//!   While it runs, other events (operator, timer, progress) may be delivered.
//! - [`Effect::Save`] has no event when it succeeds. When it fails, the driver drops the rest of the batch and
//!   delivers [`Event::SaveFailed`]. A batch starts with a `Save` whenever the record changed, so whatever an
//!   operation depends on is durable before it starts.
//! - When the clock reaches [`State::wake_at`], it delivers [`Event::Tick`]; one that comes early does no harm.
//! - After [`Effect::Finish`] it delivers nothing more.
//!
//! How the parts relate, with the table of transitions and the invariants: `docs/machine.md`.

mod effect;
mod event;
mod policy;
mod projection;
mod queue;
mod record;
mod state;
mod step;

pub use effect::{Ask, Effect, Operation, Outcome, Question, Reply};
pub use event::{
    Answer, Checked, Clear, Command, Event, Evidence, Facts, Failure, FailureKind, Health, Hold, HoldKind,
    Mode, Offer, Start,
};
pub use policy::{Policy, Strategy};
pub use projection::{Identity, status};
pub use queue::EventQueue;
pub use record::{
    Attempt, Content, Flip, HeldRelease, Intent, LastBoot, PerSlot, Permit, PermitStage, PostConfirm,
    Preparation, Purpose, Record, Refusal, Release, RolledBack,
};
pub use state::{State, Waiting};
pub use step::step;
