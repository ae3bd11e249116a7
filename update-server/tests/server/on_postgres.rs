//! Step 4, channel: the tests of the server again, with its data in PostgreSQL. It is the same code, compiled into a program
//! of another name: common/database.rs looks at that name.

mod common;

mod audit;
mod bad_input;
mod dead_ends;
mod enrolment;
mod http;
mod lock_fleetlock;
mod lock_updatectl;
mod lock_v2;
mod program;
mod publish;
mod retention;
mod rollouts;
mod rollouts_at_once;
mod rollouts_back;
mod rollouts_shown;
mod store;
mod updatectl;
mod webhooks;
