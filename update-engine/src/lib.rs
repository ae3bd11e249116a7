//! The node: what the state machine decides, done to disks, servers and processes.
//!
//! | module | step of the flow (DESIGN section 1) |
//! |---|---|
//! | [`config`] | all: fragments, merged, validated |
//! | [`boot`] | 11: which slot, version and boot this is |
//! | [`network`] | 5: one HTTP client and its bounds |
//! | [`state`], [`status`] | all: what outlives a boot, and what others see |
//! | [`node`], [`driver`], [`operations`] | all: the machine's effects, executed in order |
//! | [`check`] | 4, 5: the server asked, its answer judged |
//! | [`install`], [`slots`], [`preflight`] | 5 to 8: the release fetched and written, the slots changed |
//! | [`lock`] | 9: the reboot lock asked, wherever it is kept |
//! | [`health`], [`reboot`] | 12, 10 |
//! | [`system`] | 9 to 12: systemd, logind, hooks, what is known of a boot that failed |
//! | [`confirm`] | 12: goes back where the engine does not confirm |
//! | [`bus`], [`supervisor`] | all: what other programs and the service manager are told |
//! | [`cli`] | all: the command lines of both programs |
//! | [`local`] | all: `updatectl` on the node itself |
//! | [`operator`] | 3, 4: `updatectl` against a server |

pub mod boot;
pub mod bus;
pub mod check;
pub mod cli;
pub mod config;
pub mod confirm;
pub mod driver;
pub mod error;
pub mod health;
pub mod install;
pub mod local;
pub mod lock;
pub mod logging;
pub mod manners;
pub mod network;
pub mod node;
pub mod operations;
pub mod operator;
pub mod pause;
pub mod preflight;
pub mod reboot;
pub mod slots;
pub mod state;
pub mod status;
pub mod supervisor;
pub mod system;
