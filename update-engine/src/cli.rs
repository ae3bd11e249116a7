//! All steps: the command lines of both programs, as types. The programs parse with them, and man pages and
//! completions are made from them.

pub mod ctl;
pub mod engine;
