//! The fleet's server (DESIGN section 9): it holds signed releases, points channels at them, answers nodes, and keeps
//! what they report.
//!
//! | module | what it does |
//! |---|---|
//! | [`data_dir`] | the folder: `init` makes it, `serve` opens it |
//! | [`migrate`] | a folder's data, moved from SQLite to PostgreSQL |
//! | [`restore`] | a folder from a backup |
//! | [`server`] | the running server: its parts, background work, and end |
//! | [`listen`] | connections, and how long a client may take |
//! | [`tls`] | certificates, read anew while the server runs |
//! | [`rates`] | how often an address may ask |
//! | [`routes`] | HTTP: for nodes, for operators, for payloads |
//! | [`auth`] | tokens and roles |
//! | [`repository`] | the TUF repository: checks what is pushed, publishes it whole, renews what expires |
//! | [`decision`] | whether a node should update, and to what; pure |
//! | [`rollouts`] | which node may go to it now: grants counted and written in one change, halts, stages |
//! | [`locks`] | the reboot locks: each command applied and written by compare-and-swap |
//! | [`policies`] | the locks' policies as a whole, and nodes that are gone for good |
//! | [`credentials`] | whether a node is who it says |
//! | [`payloads`] | where the payloads are: streamed in and out |
//! | [`changes`] | what must be durable before it is answered: many nodes' changes in one commit |
//! | [`retention`] | what is old is deleted, and counted before |
//! | [`webhooks`] | who is told what happens, signed, from rows written with it |
//! | [`checkins`] | signs of life, gathered |
//! | [`store`] | the database; all SQL |
//! | [`metrics`] | figures for Prometheus |
//! | [`cli`] | the commands and what they print |

pub mod auth;
pub mod changes;
pub mod checkins;
pub mod cli;
pub mod credentials;
pub mod data_dir;
pub mod decision;
pub mod enrolment;
pub mod error;
pub mod listen;
pub mod locks;
pub mod metrics;
pub mod migrate;
pub mod payloads;
pub mod policies;
pub mod rates;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod rollouts;
pub mod routes;
pub mod server;
pub mod store;
pub mod tls;
pub mod webhooks;
