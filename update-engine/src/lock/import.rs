//! Step 9, permit: locks of other systems, read into a [`Document`]: locksmith's (etcd v2) and airlock's (etcd v3).
//!
//! Both know a number and a list of names and nothing else. The names become holders as FleetLock v1 clients are:
//! without attempt and boot. A Flipside node of the same name takes such a permit over with its first request; any other
//! stays until an operator releases it, and becomes stuck meanwhile.

use jiff::{SignedDuration, Timestamp};
use protocol::id::Group;
use protocol::lock::{ClientId, Document, Holder, Limit, Phase, Policy};
use serde::Deserialize;

/// Whose document is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// locksmith: the key `/coreos.com/updateengine/rebootlock/…/semaphore` of etcd v2.
    Locksmith,
    /// airlock: the key `com.coreos.airlock/groups/…/v1/semaphore` of etcd v3.
    Airlock,
}

/// A document that was read, and what of it has no equal here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The lock, with the number and the holders.
    pub document: Document,
    /// What an operator should know of it, a line each.
    pub notes: Vec<String>,
}

/// Text that is no such document.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not its JSON.
    #[error("not a lock of {system}: expected {expected}")]
    Json {
        /// Whose.
        system: &'static str,
        /// An example.
        expected: &'static str,
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// A number that is none of nodes.
    #[error("{field}: expected a number from 0 to {}, found {found}", u32::MAX)]
    Number {
        /// Which.
        field: &'static str,
        /// As found.
        found: i64,
    },
    /// A name that no client can have.
    #[error("holder {found:?}: expected up to 256 visible ASCII characters")]
    Holder {
        /// As found.
        found: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocksmithInput {
    semaphore: i64,
    max: i64,
    holders: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AirlockInput {
    total_slots: i64,
    #[serde(default)]
    holders: Option<Vec<String>>,
}

impl System {
    /// Reads a document of this system as the lock of `group`. Its holders count as granted at `now`: nothing tells
    /// since when they hold.
    ///
    /// # Errors
    /// [`ImportError`]
    pub fn import(self, text: &str, group: &Group, now: Timestamp) -> Result<Imported, ImportError> {
        let mut notes = Vec::new();
        let (max, names) = match self {
            Self::Locksmith => locksmith(text, &mut notes)?,
            Self::Airlock => airlock(text)?,
        };
        let policy = Policy { max: Limit::Count(max), ..Policy::default() };
        let mut document = Document::new(group.clone(), policy);
        for name in names {
            self.hold(&mut document, &name, now, &mut notes)?;
        }
        self.tell(&document, &mut notes);
        Ok(Imported { document, notes })
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Locksmith => "locksmith",
            Self::Airlock => "airlock",
        }
    }

    fn hold(
        self,
        document: &mut Document,
        name: &str,
        now: Timestamp,
        notes: &mut Vec<String>,
    ) -> Result<(), ImportError> {
        let node: ClientId =
            name.parse().map_err(|_| ImportError::Holder { found: name.chars().take(80).collect() })?;
        if document.holder(&node).is_some() {
            notes.push(format!("holder {node} is listed twice: it holds one permit"));
            return Ok(());
        }
        let Policy { granted_max_s, rebooting_max_s, .. } = document.policy;
        let time = SignedDuration::from_secs(i64::from(granted_max_s) + i64::from(rebooting_max_s));
        document.grants += 1;
        document.holders.push(Holder {
            node,
            attempt: None,
            boot_before: None,
            boot_after: None,
            from: None,
            to: None,
            zone: None,
            etcd_member: None,
            reason: format!("held in {} when it was imported", self.name()),
            grant: document.grants,
            phase: Phase::Granted,
            granted_at: now,
            phase_at: now,
            deadline: now.checked_add(time).unwrap_or(Timestamp::MAX),
            stuck_since: None,
            instead_of: None,
        });
        Ok(())
    }

    fn tell(self, document: &Document, notes: &mut Vec<String>) {
        let holders = document.holders.len();
        if holders > 0 {
            notes.push(match self {
                Self::Locksmith => {
                    "holders are machine ids, not Flipside node ids: release each one when its machine is up again".to_owned()
                }
                Self::Airlock => {
                    "holders are ids of FleetLock v1 clients: they give their permits back at the new address, or an operator releases them".to_owned()
                }
            });
        }
        if let Limit::Count(max) = document.policy.max {
            if usize::try_from(max).is_ok_and(|max| holders > max) {
                notes
                    .push(format!("{holders} hold permits and {max} may: nothing is granted until fewer do"));
            }
            if max == 0 {
                notes.push("its number is 0: nothing is granted until a policy says otherwise".to_owned());
            }
        }
    }
}

fn locksmith(text: &str, notes: &mut Vec<String>) -> Result<(u32, Vec<String>), ImportError> {
    let expected = r#"{"semaphore":1,"max":1,"holders":[]}"#;
    let input: LocksmithInput = serde_json::from_str(text).map_err(|source| ImportError::Json {
        system: "locksmith",
        expected,
        source,
    })?;
    let max = number("max", input.max)?;
    let holders = input.holders.unwrap_or_default();
    let free = i64::from(max) - i64::try_from(holders.len()).unwrap_or(i64::MAX);
    if input.semaphore != free {
        notes.push(format!(
            "semaphore is {}, and max less holders is {free}: the holders count here, there is no such number",
            input.semaphore
        ));
    }
    Ok((max, holders))
}

fn airlock(text: &str) -> Result<(u32, Vec<String>), ImportError> {
    let expected = r#"{"total_slots":1,"holders":[]}"#;
    let input: AirlockInput = serde_json::from_str(text).map_err(|source| ImportError::Json {
        system: "airlock",
        expected,
        source,
    })?;
    Ok((number("total_slots", input.total_slots)?, input.holders.unwrap_or_default()))
}

fn number(field: &'static str, found: i64) -> Result<u32, ImportError> {
    u32::try_from(found).map_err(|_| ImportError::Number { field, found })
}
