//! Step 12, and every step before: what the server has not yet been told, kept across restarts and bounded.

use crate::policy::Policy;
use jiff::Timestamp;
use protocol::digest::Sha256;
use protocol::version::Version;
use protocol::wire::{BODY_MAX, Event, EventKind};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The length that a report does not exceed by more than one event, in bytes.
const BATCH_BYTES: usize = BODY_MAX / 2;

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

    /// Adds an event, dropping the oldest ones and the oldest evidence beyond the policy's bounds.
    ///
    /// The first `seq` of an empty record is the Unix time in milliseconds: a node that lost its record but kept its
    /// id goes on above the numbers it used before, and the server does not take new events for repeated ones.
    pub(crate) fn push(&mut self, at: Timestamp, about: About<'_>, policy: &Policy) {
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
            evidence: about.evidence,
        });
        self.next_seq += 1;
        while self.pending.len() > policy.events_max.max(1) {
            self.pending.pop_front();
            self.dropped += 1;
        }
        let with_evidence = self.pending.iter_mut().rev().filter(|event| !event.evidence.is_empty());
        for event in with_evidence.skip(policy.evidence_kept) {
            event.evidence = String::new();
        }
    }

    /// Forgets the events up to this `seq`, which the server stored. Says whether there were any.
    pub(crate) fn acknowledge(&mut self, up_to: u64) -> bool {
        let before = self.pending.len();
        self.pending.retain(|event| event.seq > up_to);
        self.pending.len() != before
    }

    /// The oldest events, as many as one report takes: at most `max`, and no more than the server reads at once.
    pub(crate) fn batch(&self, max: usize) -> Vec<Event> {
        let mut left = BATCH_BYTES;
        let fits = |event: &&Event| {
            let fitted = left > 0;
            left = left.saturating_sub(length_max(event));
            fitted
        };
        self.pending.iter().take(max.max(1)).take_while(fits).cloned().collect()
    }
}

/// What an event is about.
pub(crate) struct About<'a> {
    pub(crate) kind: EventKind,
    pub(crate) version: Option<&'a Version>,
    pub(crate) release: Option<Sha256>,
    pub(crate) detail: String,
    pub(crate) evidence: String,
}

/// The most bytes that this event has as JSON: text grows where quotes and ends of lines are written out.
const fn length_max(event: &Event) -> usize {
    512 + 2 * (event.detail.len() + event.evidence.len())
}
