//! The table of all keys of a policy file. `docs/lock-policy.md` shows the same table, and a test compares the two.

use crate::policy_file::{Key, key};

/// All keys, table by table.
pub const KEYS: &[Key] = &[
    key(
        "group.NAME.max",
        Some("1"),
        "how many nodes of the group may hold a permit at once: a number, or a percentage such as \"10%\" of the group, rounded down but at least one; 0 pauses the group: no permit is granted and no granted node begins its reboot",
    ),
    key(
        "group.NAME.size",
        None,
        "how many nodes the group has, for a percentage; where the backend counts them too, the lesser number counts",
    ),
    key(
        "group.NAME.zones.max",
        None,
        "how many nodes of one zone may hold a permit at once, a number or a percentage of the zone; required in zones; 0 pauses",
    ),
    key(
        "group.NAME.zones.limits",
        Some("{}"),
        "zones with a limit of their own instead of zones.max, as in { rack-7 = 2 }",
    ),
    key(
        "group.NAME.zones.sizes",
        Some("{}"),
        "how many nodes a zone has, for a percentage; where the backend counts them too, the lesser number counts, as in { rack-7 = 40 }",
    ),
    key("group.NAME.windows", Some("[]"), "when permits are granted and reboots begin; none is always"),
    key(
        "group.NAME.windows.days",
        None,
        "the days on which a window opens: mon, tue, wed, thu, fri, sat, sun; without it every day",
    ),
    key("group.NAME.windows.start", None, "when it opens, as in \"22:00\"; required"),
    key(
        "group.NAME.windows.end",
        None,
        "when it closes, as in \"06:00\"; an end before the start is on the next day; this or length is required",
    ),
    key(
        "group.NAME.windows.length",
        None,
        "how long it stays open, as in \"8h\", up to a week, instead of end",
    ),
    key(
        "group.NAME.time_zone",
        Some("\"UTC\""),
        "the time zone of the windows: UTC or an IANA name such as \"Europe/Berlin\"",
    ),
    key(
        "group.NAME.reboot_takes",
        Some("\"10m\""),
        "how long a node is down for a reboot; no reboot begins later than this before its window closes",
    ),
    key(
        "group.NAME.granted_max",
        Some("\"1h\""),
        "how long a node may hold a permit before it reboots; then it is stuck; at least 60s",
    ),
    key(
        "group.NAME.rebooting_max",
        Some("\"30m\""),
        "how long a node may take from its reboot until it confirms the release; then it is stuck; at least reboot_takes",
    ),
    key(
        "group.NAME.on_stuck",
        Some("\"halt\""),
        "what a stuck holder does: halt: nobody else gets a permit or begins a reboot; hold: it keeps its permit and the others go on with the rest; release: its permit is freed",
    ),
    key(
        "group.NAME.on_failed",
        Some("\"halt\""),
        "what a node that came back without the release does, in the same words",
    ),
    key(
        "group.NAME.quorum.members",
        None,
        "how many voting members the guarded etcd cluster has, at least 3, where the backend cannot ask the cluster; quorum = {} guards it by asking alone",
    ),
    key(
        "group.NAME.canaries",
        Some("[]"),
        "ids of the nodes that go first: others get a permit for a release only when one of these has confirmed it",
    ),
    key(
        "group.NAME.priorities",
        Some("{}"),
        "priorities by node id, instead of what the node asks for; higher goes first, as in { db-1 = -10 }",
    ),
    key("cap.NAME.groups", None, "the groups that share the cap; required"),
    key(
        "cap.NAME.max",
        None,
        "how many nodes of these groups together may hold a permit at once, a number; required; 0 pauses them all",
    ),
];
