//! What is asked of a backend, and in which form its answers are compared.

use crate::Seen;
use crate::script::Step;
use anyhow::Result;
use futures::future::BoxFuture;
use jiff::Timestamp;
use protocol::id::Group;
use protocol::lock::{Document, Reply};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// Something that keeps locks.
pub(crate) trait Backend {
    /// For messages.
    fn name(&self) -> &str;

    /// How this backend tells a reply: some of its ways have fewer words.
    fn told(&self, step: &Step, reply: &Reply) -> String;

    /// Carries a command out; what it said, in the form of [`Self::told`].
    fn take<'a>(&'a mut self, step: &'a Step) -> BoxFuture<'a, Result<String>>;

    /// A group's document with its revision.
    fn look<'a>(&'a mut self, group: &'a Group) -> BoxFuture<'a, Result<(Document, u64)>>;

    /// The groups whose names begin with `prefix`.
    fn groups<'a>(&'a mut self, prefix: &'a str) -> BoxFuture<'a, Result<BTreeSet<Group>>>;
}

/// The names of times in documents and replies. Not `opens`, which a policy says and not a clock.
const TIMES: [&str; 8] =
    ["at", "deadline", "granted_at", "phase_at", "seen", "since", "stuck_since", "asked_at"];

/// A document or reply as JSON, with all times the same.
pub(crate) fn timeless(told: &impl Serialize) -> Result<String> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match value {
                        Value::String(text) if TIMES.contains(&name.as_str()) => *text = "T".to_owned(),
                        value => strip(value),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(told)?;
    strip(&mut value);
    Ok(value.to_string())
}

/// A line for people, with all times the same.
pub(crate) fn timeless_line(line: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_end_matches([';', ',', ')']);
        if bare.parse::<Timestamp>().is_ok() { word.replace(bare, "T") } else { word.to_owned() }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The kinds of answers that all traces together must get to.
pub(crate) const ANSWERS: [&str; 25] = [
    "granted",
    "current",
    "noted",
    "released true",
    "released false",
    "done",
    "wait full",
    "wait zone-full",
    "wait no-zone",
    "wait cap-full",
    "wait window",
    "wait halted",
    "wait canary",
    "wait queue",
    "wait size-unknown",
    "refused attempt-over",
    "refused not-held",
    "refused same-boot",
    "refused other-boot",
    "refused other-version",
    "refused rebooted",
    "refused same-release",
    "refused held-by-attempt",
    "refused grant-changed",
    "refused unknown-group",
];

/// Counts an answer by its kind: with each reason of a wait, and with why it was refused.
pub(crate) fn count(reply: &Reply, seen: &mut Seen) {
    let value = serde_json::to_value(reply).unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kinds = match reply {
        Reply::Wait { because, .. } => {
            let named = because.iter().filter_map(|wait| serde_json::to_value(wait).ok());
            named.map(|wait| format!("wait {}", word(&wait["wait"]))).collect()
        }
        Reply::Refused { .. } => vec![format!("refused {}", word(&value["because"]["refusal"]))],
        Reply::Released { was_held } => vec![format!("released {was_held}")],
        _ => vec![word(&value["reply"])],
    };
    for kind in kinds {
        *seen.entry(kind).or_default() += 1;
    }
}
