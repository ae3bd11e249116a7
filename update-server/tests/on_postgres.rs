//! Step 4, channel: the tests of the server again, with its data in PostgreSQL. It is the same code, compiled into a program
//! of another name: common/database.rs looks at that name.

#![allow(
    clippy::duplicate_mod,
    reason = "each of these is a program of its own as well, with what it shares"
)]

#[path = "audit.rs"]
mod audit;
#[path = "bad_input.rs"]
mod bad_input;
#[path = "http.rs"]
mod http;
#[path = "lock_fleetlock.rs"]
mod lock_fleetlock;
#[path = "lock_updatectl.rs"]
mod lock_updatectl;
#[path = "lock_v2.rs"]
mod lock_v2;
#[path = "program.rs"]
mod program;
#[path = "publish.rs"]
mod publish;
#[path = "retention.rs"]
mod retention;
#[path = "rollouts.rs"]
mod rollouts;
#[path = "rollouts_at_once.rs"]
mod rollouts_at_once;
#[path = "rollouts_back.rs"]
mod rollouts_back;
#[path = "store.rs"]
mod store;
#[path = "updatectl.rs"]
mod updatectl;
#[path = "webhooks.rs"]
mod webhooks;
