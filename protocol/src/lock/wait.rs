//! Step 9, permit: the reasons to wait, as operators read them.

use super::command::Wait;
use super::document::ClientId;
use std::fmt;

/// How many nodes are named before the rest is counted.
const NAMED: usize = 3;

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { max: 0, .. } => write!(f, "paused: the policy's max is 0"),
            Self::Full { max, holders } => write!(f, "{}", Held { holders, max: *max }),
            Self::ZoneFull { zone, max: 0, .. } => {
                write!(f, "paused: the policy's limit for zone {zone} is 0")
            }
            Self::ZoneFull { zone, max, holders } => {
                write!(f, "zone {zone}: {}", Held { holders, max: *max })
            }
            Self::NoZone => {
                write!(f, "the policy has limits per zone, and this node names no zone: give it one")
            }
            Self::CapFull { cap, max: 0, .. } => write!(f, "paused: the max of cap {cap} is 0"),
            Self::CapFull { cap, max, held } => {
                write!(f, "cap {cap}: {held} of {max} permits held in its groups")
            }
            Self::Window { opens: Some(opens) } => {
                write!(f, "outside the windows in which a reboot can begin; the next opens at {opens:.0}")
            }
            Self::Window { opens: None } => {
                write!(
                    f,
                    "no window is ever long enough for a reboot: lengthen the windows or lower reboot_takes"
                )
            }
            Self::TimeZone { name } => {
                write!(
                    f,
                    "the time zone of the windows is not known here: found {name:?}; correct the policy"
                )
            }
            Self::Halted { node, stuck, since, reason } => {
                let what = if *stuck { "is silent past its deadline, stuck since" } else { "failed at" };
                write!(f, "halted: node {node} {what} {since:.0}")?;
                if !reason.is_empty() {
                    write!(f, " ({})", OneLine(reason))?;
                }
                write!(f, "; repair it, or release its permit")
            }
            Self::Quorum { left, needed } => {
                write!(f, "the etcd cluster needs {needed} members, and {left} would be left")
            }
            Self::QuorumUnknown => {
                write!(
                    f,
                    "it is not known which members the etcd cluster has: let it answer, or set quorum.members"
                )
            }
            Self::Canary { version } => write!(f, "no canary has confirmed {version} yet"),
            Self::Queue { ahead: 1 } => write!(f, "1 node is ahead in the queue"),
            Self::Queue { ahead } => write!(f, "{ahead} nodes are ahead in the queue"),
            Self::QueueFull => {
                write!(f, "the queue is full; a place comes free when others get their permits")
            }
            Self::SizeUnknown { zone: None } => {
                write!(f, "the limit is a percentage, and it is not known of how many nodes: set size")
            }
            Self::SizeUnknown { zone: Some(zone) } => {
                write!(
                    f,
                    "the limit of zone {zone} is a percentage, and it is not known of how many nodes: "
                )?;
                write!(f, "set its number in zones.sizes")
            }
            Self::FleetLock { kind, value } => {
                write!(f, "the FleetLock server said no: {}: {}", OneLine(kind), OneLine(value))
            }
        }
    }
}

/// Who holds how many of what may be held.
struct Held<'a> {
    holders: &'a [ClientId],
    max: u32,
}

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} permits held by ", self.holders.len(), self.max)?;
        for (place, holder) in self.holders.iter().take(NAMED).enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{holder}")?;
        }
        match self.holders.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Text of a node, which might hold line breaks or a terminal's escapes.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, if c.is_control() { ' ' } else { c }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<ClientId> {
        (0..count).map(|n| format!("n{n}").parse().unwrap()).collect()
    }

    #[test]
    fn holders_are_named_and_the_rest_is_counted() {
        assert_eq!(Wait::Full { max: 1, holders: ids(1) }.to_string(), "1 of 1 permits held by n0");
        let five = Wait::Full { max: 4, holders: ids(5) }.to_string();
        assert_eq!(five, "5 of 4 permits held by n0, n1, n2 and 2 more");
        let zone = Wait::ZoneFull { zone: "r1".parse().unwrap(), max: 3, holders: ids(3) }.to_string();
        assert_eq!(zone, "zone r1: 3 of 3 permits held by n0, n1, n2");
    }

    #[test]
    fn a_limit_of_zero_reads_as_a_pause() {
        assert_eq!(Wait::Full { max: 0, holders: ids(1) }.to_string(), "paused: the policy's max is 0");
        let cap = Wait::CapFull { cap: "all".to_owned(), max: 0, held: 2 }.to_string();
        assert_eq!(cap, "paused: the max of cap all is 0");
    }

    #[test]
    fn a_halt_names_node_time_and_reason_in_one_line() {
        let halted = |stuck, reason: &str| {
            let since = "2026-11-23T22:00:00.987Z".parse().unwrap();
            let reason = reason.to_owned();
            Wait::Halted { node: "n1".parse().unwrap(), stuck, since, reason }.to_string()
        };
        let failed = halted(false, "health check db.sh\nexit 1\u{1b}[2J");
        assert!(failed.starts_with("halted: node n1 failed at 2026-11-23T22:00:0"), "{failed}");
        assert!(
            failed.ends_with("Z (health check db.sh exit 1 [2J); repair it, or release its permit"),
            "{failed}"
        );
        assert!(halted(true, "").contains("stuck since 2026-11-23T22:00:0"), "{}", halted(true, ""));
    }
}
