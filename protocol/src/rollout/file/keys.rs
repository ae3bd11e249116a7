//! The table of all keys of a rollout policy. `docs/rollouts.md` shows the same table, and a test compares the two.

use crate::policy_file::{Key, key};

/// All keys, table by table.
pub const ROLLOUT_KEYS: &[Key] = &[
    key("channel.NAME.waves", Some("[]"), "the waves, the smallest share first; none is all nodes at once"),
    key(
        "channel.NAME.waves.share",
        None,
        "the part of the nodes that may go, those of the waves before included, as in \"1%\" or \"0.25%\"; the last wave's is \"100%\"; required",
    ),
    key("channel.NAME.waves.hold", Some("\"1h\""), "how long at least before the next wave opens"),
    key(
        "channel.NAME.waves.confirmed",
        Some("\"90%\""),
        "what part of the nodes let go in this wave must have confirmed the release before the next one opens",
    ),
    key(
        "channel.NAME.waves.approve",
        Some("false"),
        "whether an operator must approve that the next wave opens, with updatectl rollout approve NAME --why TEXT",
    ),
    key("channel.NAME.canary.group", None, "the group whose nodes go before all others; required in canary"),
    key("channel.NAME.canary.hold", Some("\"1h\""), "how long at least they go alone"),
    key(
        "channel.NAME.canary.confirmed",
        Some("\"100%\""),
        "what part of those let go must have confirmed the release; one node at least must have",
    ),
    key(
        "channel.NAME.canary.approve",
        Some("false"),
        "whether an operator must approve that the others follow",
    ),
    key(
        "channel.NAME.in_flight",
        None,
        "how many nodes may be under way at once; 0 lets nobody go; without it there is no limit",
    ),
    key("channel.NAME.rate.max", None, "how many nodes may be let go in rate.per; required in rate"),
    key(
        "channel.NAME.rate.per",
        None,
        "the interval of the rate, as in \"1h\"; it moves with the time; required in rate",
    ),
    key("channel.NAME.windows", Some("[]"), "when nodes are let go; none is always"),
    key(
        "channel.NAME.windows.days",
        None,
        "the days on which a window opens: mon, tue, wed, thu, fri, sat, sun; without it every day",
    ),
    key("channel.NAME.windows.start", None, "when it opens, as in \"22:00\"; required"),
    key(
        "channel.NAME.windows.end",
        None,
        "when it closes, as in \"06:00\"; an end before the start is on the next day; this or length is required",
    ),
    key(
        "channel.NAME.windows.length",
        None,
        "how long it stays open, as in \"8h\", up to a week, instead of end",
    ),
    key("channel.NAME.freezes", Some("[]"), "days on which nobody is let go"),
    key("channel.NAME.freezes.from", None, "the first day, as in \"2026-12-20\"; required"),
    key("channel.NAME.freezes.to", None, "the last day; required"),
    key("channel.NAME.freezes.why", Some("\"\""), "for people"),
    key(
        "channel.NAME.time_zone",
        Some("\"UTC\""),
        "the time zone of windows and freezes: UTC or an IANA name such as \"Europe/Berlin\"",
    ),
    key(
        "channel.NAME.halt.failures",
        None,
        "so many nodes that failed or fell silent halt the rollout; without it only failure_rate does",
    ),
    key(
        "channel.NAME.halt.failure_rate",
        Some("\"10%\""),
        "such a part of the nodes whose update has ended halts it",
    ),
    key("channel.NAME.halt.least_failures", Some("3"), "failure_rate counts only from so many failures on"),
    key(
        "channel.NAME.silent_after",
        Some("\"90m\""),
        "a node that was about to reboot and was not heard of for so long counts as failed; more than a reboot, the health checks, and the nodes' poll interval",
    ),
    key(
        "channel.NAME.lost_after",
        Some("\"24h\""),
        "a node that was let go and was not heard of for so long before its reboot is no longer counted as under way; one that was activated counts as failed",
    ),
    key(
        "channel.NAME.promotion.soak",
        Some("\"0s\""),
        "how long another channel must have had a release before it is promoted to this one",
    ),
    key(
        "channel.NAME.promotion.healthy",
        Some("\"95%\""),
        "what part of that channel's nodes whose update has ended must have confirmed it",
    ),
    key(
        "channel.NAME.promotion.nodes",
        Some("1"),
        "how many nodes of that channel at least must have confirmed it",
    ),
    key(
        "channel.NAME.groups.GROUP.in_flight",
        None,
        "in_flight for the nodes of one group, beside the channel's",
    ),
    key("channel.NAME.groups.GROUP.rate.max", None, "rate for the nodes of one group, beside the channel's"),
    key("channel.NAME.groups.GROUP.rate.per", None, "its interval"),
    key(
        "channel.NAME.groups.GROUP.windows",
        Some("[]"),
        "windows of one group, beside the channel's: both must be open",
    ),
    key("channel.NAME.groups.GROUP.windows.days", None, "as above"),
    key("channel.NAME.groups.GROUP.windows.start", None, "as above"),
    key("channel.NAME.groups.GROUP.windows.end", None, "as above"),
    key("channel.NAME.groups.GROUP.windows.length", None, "as above"),
];
