//! Step 4, channel: why a node is not let go, as operators read it.

use super::share::Share;
use crate::id::Group;
use crate::version::Version;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One thing that stands against a node's update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// Too many nodes failed.
    Halted {
        /// Since when.
        since: Timestamp,
        /// What failed.
        why: String,
    },
    /// An operator paused the rollout, for everyone or for a group.
    Paused {
        /// Only for this group.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<Group>,
        /// Since when.
        since: Timestamp,
        /// Who.
        by: String,
        /// Why.
        why: String,
    },
    /// This node came back without the release.
    RolledBack {
        /// From which.
        version: Version,
        /// When.
        at: Timestamp,
    },
    /// The node itself refuses the release, because it failed there.
    Quarantined {
        /// Which.
        version: Version,
    },
    /// The canary group goes first.
    Canary {
        /// Which.
        group: Group,
    },
    /// The waves that are open do not reach the node.
    Wave {
        /// Which wave is open, from 1.
        wave: u32,
        /// Of how many.
        of: u32,
        /// How far it reaches.
        share: Share,
        /// Where the node stands.
        place: Share,
    },
    /// A freeze holds.
    Frozen {
        /// When it is over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
        /// Why.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// No window is open, of the channel or of the group.
    Window {
        /// The group's own windows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<Group>,
        /// When the next one opens.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opens: Option<Timestamp>,
    },
    /// The policy's time zone is not known to this server.
    TimeZone {
        /// Its name.
        name: String,
    },
    /// As many are under way as may be, of the channel or of the group.
    InFlight {
        /// The group's own limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<Group>,
        /// How many are.
        now: u32,
        /// How many may be.
        max: u32,
    },
    /// As many were let go in this interval as may be, of the channel or of the group.
    Rate {
        /// The group's own limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<Group>,
        /// How many were.
        #[serde(default)]
        now: u32,
        /// How many may be.
        max: u32,
        /// In so many seconds.
        per_s: u32,
        /// When the next may be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<Timestamp>,
    },
}

impl Reason {
    /// When this one will no longer stand, as far as that is known.
    #[must_use]
    pub const fn until(&self) -> Option<Timestamp> {
        match self {
            Self::Frozen { until, .. } => *until,
            Self::Window { opens, .. } => *opens,
            Self::Rate { next, .. } => *next,
            _ => None,
        }
    }
}

/// "group web: ", where it is about a group.
struct Of<'a>(&'a Option<Group>);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |group| write!(f, "group {group}: "))
    }
}

/// ": why", on one line, where there is a why.
struct Why<'a>(&'a str);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str(": ")?;
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, if c.is_control() { ' ' } else { c }))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Halted { since, why } => write!(f, "the rollout is halted since {since:.0}{}", Why(why)),
            Self::Paused { group, since, by, why } => {
                write!(f, "{}the rollout is paused by {by} since {since:.0}{}", Of(group), Why(why))
            }
            Self::RolledBack { version, at } => {
                write!(f, "this node came back from {version} at {at:.0} and is not let go to it again")
            }
            Self::Quarantined { version } => {
                write!(
                    f,
                    "{version} is quarantined on this node; updatectl quarantine clear there allows it again"
                )
            }
            Self::Canary { group } => write!(f, "the group {group} goes first"),
            Self::Wave { wave, of, share, place } => {
                write!(f, "wave {wave} of {of} reaches {share} of the nodes, and this one stands at {place}")
            }
            Self::Frozen { until: Some(until), why } => write!(f, "frozen until {until:.0}{}", Why(why)),
            Self::Frozen { until: None, why } => write!(f, "frozen{}", Why(why)),
            Self::Window { group, opens: Some(opens) } => {
                write!(f, "{}outside the windows; the next opens at {opens:.0}", Of(group))
            }
            Self::Window { group, opens: None } => write!(f, "{}no window ever opens", Of(group)),
            Self::TimeZone { name } => {
                write!(
                    f,
                    "the policy's time zone is not known to this server: found {name:?}; correct the policy"
                )
            }
            Self::InFlight { group, max: 0, .. } => {
                write!(f, "{}in_flight is 0: nobody is let go", Of(group))
            }
            Self::InFlight { group, now, max } => {
                write!(f, "{}{now} nodes are under way, and {max} may be", Of(group))
            }
            Self::Rate { group, now, max, per_s, next } => {
                // A policy that has become stricter, and servers of before that did not say how many.
                if now > max {
                    write!(f, "{}{now} nodes were let go in {per_s} s, and {max} may be", Of(group))?;
                } else {
                    write!(f, "{}{max} nodes were let go in {per_s} s, as many as may be", Of(group))?;
                }
                next.map_or(Ok(()), |next| write!(f, "; the next may go at {next:.0}"))
            }
        }
    }
}
