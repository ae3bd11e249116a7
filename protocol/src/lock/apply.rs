//! Step 9, permit: the lock's transitions.

use super::command::{Command, Context, Reply};
use super::document::Document;

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The document to write by compare-and-swap, where the command changed it.
    pub document: Option<Document>,
    /// The answer, which holds once that write succeeded.
    pub reply: Reply,
}
