//! The fleet's server (DESIGN section 9): it holds signed releases, points channels at them, answers nodes, and keeps
//! what they report.
//!
//! | module | what it does |
//! |---|---|
//! | [`data_dir`] | the folder: `init` makes it, `serve` opens it |
//! | [`server`] | the running server: its parts, background work, and end |
//! | [`routes`] | HTTP: for nodes, for operators, for payloads |
//! | [`auth`] | tokens and roles |
//! | [`repository`] | the TUF repository: checks what is pushed, publishes it whole, renews what expires |
//! | [`decision`] | whether a node should update, and to what; pure |
//! | [`payloads`] | the payload folder: streamed in and out |
//! | [`checkins`] | signs of life, gathered |
//! | [`store`] | the database; all SQL |
//! | [`cli`] | the commands and what they print |

pub mod auth;
pub mod checkins;
pub mod cli;
pub mod data_dir;
pub mod decision;
pub mod error;
pub mod payloads;
pub mod repository;
pub mod routes;
pub mod server;
pub mod store;
