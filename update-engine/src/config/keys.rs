//! The table of all settings: what exists, its default, what it means. `docs/operating.md` shows the same table, and
//! a test compares the two.

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its key, with its tables: `server.url`.
    pub path: &'static str,
    /// Its default, as TOML. `None` where there is none: the setting is required, or optional and off.
    pub default: Option<&'static str>,
    /// What it means, with its unit.
    pub doc: &'static str,
}

const fn key(path: &'static str, default: Option<&'static str>, doc: &'static str) -> Key {
    Key { path, default, doc }
}

/// All settings, table by table.
pub const KEYS: &[Key] = &[
    key("server.url", None, "the update server, as in https://updates.example.org; required"),
    key(
        "server.ca",
        None,
        "a PEM file with the authorities that sign the server's certificate; those of the system, if not set",
    ),
    key(
        "server.cert",
        None,
        "a PEM file with this node's client certificate, for a server that asks for one",
    ),
    key("server.key", None, "a PEM file with its private key, not encrypted"),
    key(
        "server.enrolment_token_file",
        None,
        "the file with an enrolment token, read when a server asks for one before it hears this node; also a systemd credential",
    ),
    key("identity.channel", None, "the channel this node follows; required"),
    key(
        "identity.group",
        Some("\"default\""),
        "the set of nodes it belongs to: rollouts go by it, unless the server places the node in another, and reboot locks",
    ),
    key(
        "identity.arch",
        None,
        "the architecture of the releases it takes; what the engine was built for, if not set",
    ),
    key(
        "trust.root",
        Some("\"/usr/share/update-engine/root.json\""),
        "the trusted root.json that came with the image",
    ),
    key("state.dir", Some("\"/var/lib/update-engine\""), "the state folder; it must survive a slot change"),
    key(
        "reboot.strategy",
        Some("\"off\""),
        "off: activate when staged, the reboot is yours; immediate: and reboot at once; window: reboot in the next window; lock: activate and reboot only while holding the reboot permit",
    ),
    key(
        "reboot.windows",
        Some("[]"),
        "when strategy window may reboot, and strategy lock where there are any: [{ days = [\"sat\"], start = \"02:00\", length_s = 7200 }]; no days is every day",
    ),
    key(
        "reboot.time_zone",
        Some("\"UTC\""),
        "the zone of the windows, as in Europe/Berlin; system is this machine's",
    ),
    key(
        "reboot.command",
        None,
        "a program and its arguments that reboot this machine, instead of logind; never run with --disk",
    ),
    key(
        "reboot.hold_max_s",
        Some("600"),
        "seconds for which inhibitors and sessions may hold a reboot; after that it goes ahead all the same",
    ),
    key(
        "reboot.warn",
        Some("true"),
        "whether users who are logged in are warned of a reboot on their terminals",
    ),
    key(
        "reboot.alerts.url",
        None,
        "the base address of a Prometheus HTTP API, as in https://prometheus.example.org; alerts that fire hold a reboot, and so does no answer; nothing is asked if not set",
    ),
    key(
        "reboot.alerts.query",
        Some("'ALERTS{alertstate=\"firing\"}'"),
        "what is asked, in PromQL: every sample of the answer holds the reboot, whatever its value",
    ),
    key("reboot.alerts.ignore", Some("[]"), "names of alerts that hold no reboot, as in [\"Watchdog\"]"),
    key("reboot.alerts.timeout_s", Some("10"), "seconds in which the whole answer must have come"),
    key("reboot.alerts.token_file", None, "the file with a bearer token for it, read for each question"),
    key(
        "reboot.alerts.ca",
        None,
        "a PEM file with the authorities that sign its certificate; those of the system, if not set",
    ),
    key(
        "lock.backend",
        Some("\"server\""),
        "who keeps the reboot lock for strategy lock: server (the update server), etcd or fleetlock",
    ),
    key("lock.group", None, "the group whose permits this node asks for; identity.group, if not set"),
    key("lock.zone", None, "where this node stands, for limits per zone: a rack, a data centre"),
    key(
        "lock.priority",
        Some("0"),
        "its place among those that wait: higher goes first; the policy's word counts more",
    ),
    key(
        "lock.etcd_member",
        None,
        "the name of the etcd member that runs on this node, for policies that guard the quorum",
    ),
    key(
        "lock.timeout_s",
        Some("5"),
        "seconds after which one request to etcd or a FleetLock server is given up",
    ),
    key(
        "lock.deadline_s",
        Some("30"),
        "seconds for one question to the lock, with all that is tried for it; the engine asks again later",
    ),
    key(
        "lock.etcd.endpoints",
        Some("[]"),
        "the client addresses of the members, as in [\"https://etcd1.example.org:2379\"]; name all of them",
    ),
    key(
        "lock.etcd.ca",
        None,
        "a PEM file with the authorities that sign the members' certificates; those of the system, if not set",
    ),
    key("lock.etcd.cert", None, "a PEM file with this node's client certificate"),
    key("lock.etcd.key", None, "a PEM file with its private key, not encrypted"),
    key("lock.etcd.user", None, "a user of etcd"),
    key("lock.etcd.password_file", None, "the file with the user's password"),
    key("lock.etcd.prefix", Some("\"/flipside\""), "what all keys in etcd begin with"),
    key(
        "lock.fleetlock.base_url",
        None,
        "the FleetLock v1 server, as in https://lock.example.org; /v1/pre-reboot is put behind it",
    ),
    key(
        "hooks.dir",
        Some("\"/etc/update-engine/hooks\""),
        "the folder with pre-install.d, pre-reboot.d and post-confirm.d; with --disk only where it is set",
    ),
    key(
        "hooks.timeout_s",
        Some("300"),
        "seconds after which one pre-install or post-confirm hook is ended and counts as failed",
    ),
    key(
        "hooks.reboot_timeout_s",
        Some("1800"),
        "seconds after which one pre-reboot hook is ended and counts as failed",
    ),
    key(
        "health.dir",
        Some("\"/etc/update-engine/health.d\""),
        "executables that must all exit 0 before a new release is confirmed; with --disk only where it is set",
    ),
    key("health.deadline_s", Some("300"), "seconds in which all health checks must have passed"),
    key(
        "health.check_timeout_s",
        Some("60"),
        "seconds after which one health check is ended and counts as failed",
    ),
    key(
        "health.boot_complete",
        Some("true"),
        "where systemd runs, boot-complete.target must be reached before a new release is confirmed",
    ),
    key(
        "health.required_units",
        Some("[]"),
        "units that must be active before a new release is confirmed, as in [\"sshd.service\"]",
    ),
    key(
        "health.settle_s",
        Some("20"),
        "seconds for which required_units must be active without a restart, within deadline_s and at most half of it; 0 is one look",
    ),
    key(
        "health.require_server",
        Some("false"),
        "whether a new release is confirmed only once the server can be reached; an outage delays, and never condemns",
    ),
    key("download.connect_timeout_s", Some("30"), "seconds to wait for a connection"),
    key(
        "download.stall_timeout_s",
        Some("60"),
        "seconds in which at least low_speed_bytes_per_s must arrive on average",
    ),
    key("download.low_speed_bytes_per_s", Some("100"), "the speed below which a transfer counts as stalled"),
    key("download.retries", Some("8"), "how often in a row a transfer that makes no progress is tried again"),
    key(
        "download.backoff_initial_ms",
        Some("1000"),
        "the first pause before trying again; doubled each time, halved at random",
    ),
    key("download.backoff_max_ms", Some("60000"), "the longest such pause"),
    key(
        "download.retry_after_max_s",
        Some("300"),
        "the longest pause that a server's Retry-After is granted",
    ),
    key(
        "download.gap_bytes",
        Some("4096"),
        "stored bytes not needed are fetched all the same where they lie between two needed pieces and are fewer than this: one request costs more",
    ),
    key("download.parallel_requests", Some("4"), "how many ranges are asked for ahead of the one being read"),
    key(
        "download.skip_max_bytes",
        Some("1073741824"),
        "how many bytes are read and dropped where a server ignores Range, per request",
    ),
    key("download.rate_limit_bytes_per_s", Some("0"), "the most to fetch per second; 0 is no limit"),
    key(
        "download.byte_budget",
        Some("0"),
        "the most to fetch for one release; the engine stops and says so if it would take more; 0 is no limit",
    ),
    key("download.workers", Some("0"), "threads that decode and write; 0 is one for each core, at most 8"),
    key("policy.poll_interval_s", Some("2700"), "seconds between two checks"),
    key(
        "policy.poll_jitter_s",
        Some("300"),
        "the most by which a poll is moved at random, so that a fleet does not ask all at once",
    ),
    key("policy.first_check_s", Some("60"), "the first check comes within so many seconds of the start"),
    key(
        "policy.attempts_per_release",
        Some("10"),
        "how many attempts at a release may fail by its own or the node's fault before the node leaves it alone",
    ),
    key(
        "policy.interruptions_per_release",
        Some("100"),
        "how many attempts at a release may be cut off by a crash or restart",
    ),
    key("policy.backoff_first_s", Some("60"), "the pause after a failed attempt; doubled each time"),
    key("policy.backoff_max_s", Some("14400"), "the longest such pause"),
    key("policy.tries", Some("3"), "boots that a new release is given before the loader falls back: 1 to 15"),
    key(
        "disk.device",
        None,
        "the disk with the slots, as in /dev/nvme0n1; the one that holds the running slot, if not set; --disk wins over it",
    ),
    key(
        "disk.roles",
        None,
        "the partitions of a slot, [{ role, a, b }]; BOOT-A/BOOT-B and ROOT-A/ROOT-B if not set",
    ),
];

/// The required settings, each with a value that is valid and of no use: the name never resolves (RFC 6761).
pub(super) const STAND_INS: [(&str, &str); 2] =
    [("server.url", "http://not-configured.invalid/"), ("identity.channel", "not-configured")];

/// The table's row of a key.
///
/// # Panics
/// Never for a key of this crate: a test asks for each of them.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}
