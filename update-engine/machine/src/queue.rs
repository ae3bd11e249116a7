//! Step 12, and every step before: what the server has not yet been told, kept across restarts and bounded.

use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::version::Version;
use protocol::wire::{Event, EventKind};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Events in order of their `seq`, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventQueue {
    next_seq: u64,
    dropped: u64,
    pending: VecDeque<Event>,
}

impl EventQueue {
    /// Events not yet acknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether the server knows everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many events were dropped because the queue was full.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The events not yet acknowledged, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.pending.iter()
    }

    /// Adds an event, dropping the oldest ones beyond `max`.
    ///
    /// The first `seq` of an empty record is the Unix time in milliseconds: a node that lost its record but kept its
    /// id goes on above the numbers it used before, and the server does not take new events for repeated ones.
    pub(crate) fn push(&mut self, at: Timestamp, about: About<'_>, max: usize) {
        if self.next_seq == 0 {
            self.next_seq = u64::try_from(at.as_millisecond()).unwrap_or(0).max(1);
        }
        self.pending.push_back(Event {
            seq: self.next_seq,
            at,
            kind: about.kind,
            version: about.version.cloned(),
            release: about.release,
            detail: about.detail,
            evidence: String::new(),
        });
        self.next_seq += 1;
        while self.pending.len() > max.max(1) {
            self.pending.pop_front();
            self.dropped += 1;
        }
    }

    /// Forgets the events up to this `seq`, which the server stored. Says whether there were any.
    pub(crate) fn acknowledge(&mut self, up_to: u64) -> bool {
        let before = self.pending.len();
        self.pending.retain(|event| event.seq > up_to);
        self.pending.len() != before
    }

    pub(crate) fn batch(&self, max: usize) -> Vec<Event> {
        self.pending.iter().take(max.max(1)).cloned().collect()
    }
}

/// What an event is about.
pub(crate) struct About<'a> {
    pub(crate) kind: EventKind,
    pub(crate) version: Option<&'a Version>,
    pub(crate) release: Option<Sha256>,
    pub(crate) detail: String,
}
