//! Step 4, channel: the tests of the server, in one program: each file by itself would compile and link the whole server once
//! more. `on_postgres` is most of them again on another database.

mod common;

mod audit;
mod bad_input;
mod dead_ends;
mod enrolment;
mod http;
mod lock_fleetlock;
mod lock_updatectl;
mod lock_v2;
mod memory;
mod metrics;
mod migrate;
mod postgres;
mod program;
mod publish;
mod rates;
mod restore;
mod retention;
mod rollouts;
mod rollouts_at_once;
mod rollouts_back;
mod rollouts_shown;
mod s3;
mod slow_clients;
mod store;
mod tls;
mod updatectl;
mod webhooks;
