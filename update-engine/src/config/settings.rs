//! The last stage of configuration: domain types. What is here was checked once and is not checked again.

mod alerts;
mod lock;
mod server;

use super::keys::{self, Key};
use super::{ConfigError, Merged, Origin};
use crate::network::tls::Tls;
use disk::layout::{RoleLayout, SlotLayout};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use protocol::id::{Arch, Channel, Group, PartitionRole};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use alerts::Alerts;
pub use lock::{Etcd, Lock, LockBackend, Login, endpoint};

/// Everything an operator can set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[server]`
    pub server: Server,
    /// `[identity]`
    pub identity: Identity,
    /// `[trust] root`
    pub root: PathBuf,
    /// `[state] dir`
    pub state_dir: PathBuf,
    /// `[reboot]` but for when, which is in the policy.
    pub reboot: Reboot,
    /// `[lock]`
    pub lock: Lock,
    /// `[hooks]`
    pub hooks: Hooks,
    /// `[health]`
    pub health: Health,
    /// `[download]`
    pub download: Download,
    /// `[policy]`, and what `[reboot]` says of when.
    pub policy: machine::Policy,
    /// `[disk]`
    pub disk: Disk,
}

/// The server to ask.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its base address, ending in a slash.
    pub url: reqwest::Url,
    /// Certificates.
    pub tls: Tls,
    /// The file with an enrolment token; a line end at its end does not count.
    pub enrolment_token_file: Option<PathBuf>,
}

/// Who the node is to the server.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The channel it follows.
    pub channel: Channel,
    /// The set it belongs to.
    pub group: Group,
    /// The architecture it takes releases of.
    pub arch: Arch,
}

/// What a new release must prove.
#[derive(Clone, Debug)]
pub struct Health {
    /// The folder of executables.
    pub dir: PathBuf,
    /// Whether a file names the folder, rather than the default.
    pub dir_is_set: bool,
    /// For all checks together.
    pub deadline: Duration,
    /// For each check.
    pub check_timeout: Duration,
    /// Whether `boot-complete.target` must be reached.
    pub boot_complete: bool,
    /// Units that must be active.
    pub required_units: Vec<String>,
    /// How long they must be active without a restart; never more than half of the deadline.
    pub settle: Duration,
    /// Whether the server must be reached.
    pub require_server: bool,
}

/// How the node is rebooted.
#[derive(Clone, Debug)]
pub struct Reboot {
    /// A program and its arguments, never empty; logind where there is none.
    pub command: Option<Vec<String>>,
    /// Whether users are warned.
    pub warn: bool,
    /// `[reboot.alerts]`; none asked where not set.
    pub alerts: Option<Alerts>,
}

/// What the node's owner has run.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// The folder with a folder for each stage.
    pub dir: PathBuf,
    /// Whether a file names the folder, rather than the default.
    pub dir_is_set: bool,
    /// For each hook but those before a reboot.
    pub timeout: Duration,
    /// For each hook before a reboot.
    pub reboot_timeout: Duration,
}

/// How bytes are fetched.
#[derive(Clone, Debug)]
pub struct Download {
    /// For a connection.
    pub connect_timeout: Duration,
    /// The stretch in which [`Self::low_speed`] must be reached on average.
    pub stall_timeout: Duration,
    /// In bytes per second.
    pub low_speed: u64,
    /// Tries in a row without progress.
    pub retries: u32,
    /// The first pause.
    pub backoff_initial: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// The longest pause granted to a Retry-After.
    pub retry_after_max: Duration,
    /// Ranges closer than this are fetched as one, in bytes.
    pub gap: u64,
    /// Requests under way at once.
    pub parallel_requests: usize,
    /// Bytes dropped at most where Range is ignored.
    pub skip_max: u64,
    /// In bytes per second.
    pub rate_limit: Option<NonZeroU32>,
    /// In bytes, for one release.
    pub byte_budget: Option<u64>,
    /// Threads that decode and write.
    pub workers: usize,
}

/// Where the slots are.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The disk, if configured.
    pub device: Option<PathBuf>,
    /// The partitions of a slot.
    pub layout: SlotLayout,
}

impl Settings {
    /// Validates a merged configuration. A relative path counts from the folder of the file that names it.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] or [`ConfigError::Value`] for the first setting that cannot be used.
    pub fn from_merged(merged: &Merged) -> Result<Self, ConfigError> {
        let read = Reader { merged };
        Ok(Self {
            server: read.server()?,
            identity: Identity {
                channel: read.required("identity.channel")?,
                group: read.required("identity.group")?,
                arch: match read.optional("identity.arch")? {
                    Some(arch) => arch,
                    None => read.check("identity.arch", built_for().parse())?,
                },
            },
            root: read.path("trust.root")?,
            state_dir: state_dir(merged)?,
            reboot: Reboot {
                command: read.command()?,
                warn: read.required("reboot.warn")?,
                alerts: read.alerts()?,
            },
            lock: read.lock()?,
            hooks: Hooks {
                dir: read.path("hooks.dir")?,
                dir_is_set: merged.get("hooks.dir").is_some(),
                timeout: read.seconds("hooks.timeout_s", 1..=86_400)?,
                reboot_timeout: read.seconds("hooks.reboot_timeout_s", 1..=86_400)?,
            },
            health: Health {
                dir: read.path("health.dir")?,
                dir_is_set: merged.get("health.dir").is_some(),
                deadline: read.seconds("health.deadline_s", 1..=86_400)?,
                check_timeout: read.seconds("health.check_timeout_s", 1..=86_400)?,
                boot_complete: read.required("health.boot_complete")?,
                required_units: read.units()?,
                settle: read.settle()?,
                require_server: read.required("health.require_server")?,
            },
            download: read.download()?,
            policy: read.policy()?,
            disk: Disk::from_merged(merged)?,
        })
    }
}

impl Disk {
    /// Validates `[disk]` alone.
    ///
    /// # Errors
    /// As for [`Settings::from_merged`].
    pub fn from_merged(merged: &Merged) -> Result<Self, ConfigError> {
        let read = Reader { merged };
        Ok(Self { device: read.optional_path("disk.device")?, layout: read.layout()? })
    }
}

/// Validates `state.dir` alone.
///
/// # Errors
/// As for [`Settings::from_merged`].
pub fn state_dir(merged: &Merged) -> Result<PathBuf, ConfigError> {
    Reader { merged }.path("state.dir")
}

/// The architecture this engine was built for, in systemd's words, which release names use.
fn built_for() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x86-64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StrategyInput {
    Off,
    Immediate,
    Window,
    Lock,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowInput {
    #[serde(default)]
    days: Vec<Day>,
    start: String,
    length_s: u32,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl From<Day> for Weekday {
    fn from(day: Day) -> Self {
        match day {
            Day::Mon => Self::Monday,
            Day::Tue => Self::Tuesday,
            Day::Wed => Self::Wednesday,
            Day::Thu => Self::Thursday,
            Day::Fri => Self::Friday,
            Day::Sat => Self::Saturday,
            Day::Sun => Self::Sunday,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleInput {
    role: PartitionRole,
    a: String,
    b: String,
}

struct Reader<'a> {
    merged: &'a Merged,
}

impl Reader<'_> {
    fn key(path: &'static str) -> Key {
        debug_assert!(keys::find(path).is_some(), "{path} is not in the table of settings");
        keys::find(path).copied().unwrap_or(Key { path, default: None, doc: "" })
    }

    fn origin(&self, path: &str) -> Origin {
        self.merged.get(path).map_or(Origin::Default, |set| set.origin.clone())
    }

    fn bad(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value { origin: self.origin(key), key: key.to_owned(), problem: problem.into() }
    }

    fn check<T, E: ToString>(&self, key: &str, result: Result<T, E>) -> Result<T, ConfigError> {
        result.map_err(|problem| self.bad(key, problem.to_string()))
    }

    fn optional<T: DeserializeOwned>(&self, path: &'static str) -> Result<Option<T>, ConfigError> {
        let value = match (self.merged.get(path), Self::key(path).default) {
            (Some(set), _) => set.value.clone(),
            (None, None) => return Ok(None),
            (None, Some(default)) => {
                let parsed = toml::de::ValueDeserializer::parse(default).and_then(toml::Value::deserialize);
                self.check(path, parsed.map_err(|error| error.message().to_owned()))?
            }
        };
        let found = value.to_string();
        let typed = T::deserialize(value).map_err(|error| {
            let message = error.message().replace('\n', " ");
            if message.contains("found") { message } else { format!("{message}; found {found}") }
        });
        self.check(path, typed).map(Some)
    }

    fn required<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, ConfigError> {
        self.optional(path)?.ok_or_else(|| ConfigError::Missing {
            key: path,
            doc: Self::key(path).doc,
            searched: self.merged.searched(),
        })
    }

    fn number<T: TryFrom<i64>>(
        &self,
        path: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<T, ConfigError> {
        let number: i64 = self.required(path)?;
        let (low, high) = (range.start(), range.end());
        let outside = || self.bad(path, format!("expected a number from {low} to {high}, found {number}"));
        if !range.contains(&number) {
            return Err(outside());
        }
        T::try_from(number).map_err(|_| outside())
    }

    fn seconds(&self, path: &'static str, range: RangeInclusive<i64>) -> Result<Duration, ConfigError> {
        self.number(path, range).map(Duration::from_secs)
    }

    fn millis(&self, path: &'static str, range: RangeInclusive<i64>) -> Result<Duration, ConfigError> {
        self.number(path, range).map(Duration::from_millis)
    }

    fn optional_path(&self, path: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        let Some(value) = self.optional::<PathBuf>(path)? else { return Ok(None) };
        if value.as_os_str().is_empty() {
            return Err(self.bad(path, "expected a path, found an empty text"));
        }
        let folder = match self.origin(path) {
            Origin::File { path, .. } => path.parent().map(Path::to_owned),
            Origin::Default => None,
        };
        Ok(Some(folder.map_or_else(|| value.clone(), |folder| folder.join(&value))))
    }

    fn path(&self, path: &'static str) -> Result<PathBuf, ConfigError> {
        self.optional_path(path)?.ok_or_else(|| ConfigError::Missing {
            key: path,
            doc: Self::key(path).doc,
            searched: self.merged.searched(),
        })
    }

    fn url(&self, path: &'static str) -> Result<reqwest::Url, ConfigError> {
        let text: String = self.required(path)?;
        let expected =
            |found: &str| self.bad(path, format!("expected an http or https address, found {found:?}"));
        let mut url: reqwest::Url = text.parse().map_err(|_| expected(&text))?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            return Err(expected(&text));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(url)
    }

    fn command(&self) -> Result<Option<Vec<String>>, ConfigError> {
        let Some(command) = self.optional::<Vec<String>>("reboot.command")? else { return Ok(None) };
        if command.first().is_none_or(String::is_empty) {
            return Err(self.bad("reboot.command", "expected a program and its arguments, found nothing"));
        }
        Ok(Some(command))
    }

    /// A settle time as long as the deadline would condemn every release: half of it at most leaves time to boot.
    fn settle(&self) -> Result<Duration, ConfigError> {
        let deadline = self.seconds("health.deadline_s", 1..=86_400)?;
        Ok(self.seconds("health.settle_s", 0..=86_400)?.min(deadline / 2))
    }

    fn units(&self) -> Result<Vec<String>, ConfigError> {
        const KINDS: [&str; 8] = ["service", "target", "socket", "mount", "timer", "path", "swap", "device"];
        let units: Vec<String> = self.required("health.required_units")?;
        let is_unit = |name: &str| {
            name.rsplit_once('.').is_some_and(|(_, kind)| KINDS.contains(&kind)) && !name.contains('/')
        };
        match units.iter().find(|name| !is_unit(name)) {
            Some(name) => Err(self.bad(
                "health.required_units",
                format!("expected units with their kind, as in sshd.service, found {name:?}"),
            )),
            None => Ok(units),
        }
    }

    fn policy(&self) -> Result<machine::Policy, ConfigError> {
        const WEEK: i64 = 604_800;
        let strategy = match self.required("reboot.strategy")? {
            StrategyInput::Off => machine::Strategy::Off,
            StrategyInput::Immediate => machine::Strategy::Immediate,
            StrategyInput::Window => machine::Strategy::Window,
            StrategyInput::Lock => machine::Strategy::Lock,
        };
        let windows: Vec<WindowInput> = self.required("reboot.windows")?;
        if strategy == machine::Strategy::Window && windows.is_empty() {
            return Err(self.bad("reboot.windows", "strategy window needs at least one window, found none"));
        }
        Ok(machine::Policy {
            strategy,
            windows: windows.into_iter().map(|input| self.window(input)).collect::<Result<_, _>>()?,
            zone: self.zone()?,
            tries: self.number("policy.tries", 1..=15)?,
            health_deadline_s: self.number("health.deadline_s", 1..=86_400)?,
            hold_max_s: self.number("reboot.hold_max_s", 0..=86_400)?,
            poll_interval_s: self.number("policy.poll_interval_s", 10..=WEEK)?,
            poll_jitter_s: self.number("policy.poll_jitter_s", 0..=WEEK)?,
            first_check_s: self.number("policy.first_check_s", 0..=WEEK)?,
            attempts_max: self.number("policy.attempts_per_release", 1..=1000)?,
            interruptions_max: self.number("policy.interruptions_per_release", 1..=100_000)?,
            backoff_first_s: self.number("policy.backoff_first_s", 1..=WEEK)?,
            backoff_max_s: self.number("policy.backoff_max_s", 1..=WEEK)?,
            ..machine::Policy::default()
        })
    }

    fn window(&self, input: WindowInput) -> Result<protocol::window::Window, ConfigError> {
        let expected = |what: String| self.bad("reboot.windows", what);
        let start = jiff::civil::Time::strptime("%H:%M", &input.start)
            .map_err(|_| expected(format!("expected a start like 02:00, found {:?}", input.start)))?;
        if !(60..=604_800).contains(&input.length_s) {
            return Err(expected(format!("expected a length_s from 60 to 604800, found {}", input.length_s)));
        }
        let days = input.days.into_iter().map(Weekday::from).collect();
        Ok(protocol::window::Window { days, start, length_s: input.length_s })
    }

    fn zone(&self) -> Result<TimeZone, ConfigError> {
        let name: String = self.required("reboot.time_zone")?;
        match name.as_str() {
            "UTC" => Ok(TimeZone::UTC),
            "system" => Ok(TimeZone::system()),
            name => self.check("reboot.time_zone", TimeZone::get(name)),
        }
    }

    fn download(&self) -> Result<Download, ConfigError> {
        const MAX: i64 = i64::MAX;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let workers: usize = self.number("download.workers", 0..=64)?;
        let budget: u64 = self.number("download.byte_budget", 0..=MAX)?;
        Ok(Download {
            connect_timeout: self.seconds("download.connect_timeout_s", 1..=3600)?,
            stall_timeout: self.seconds("download.stall_timeout_s", 1..=3600)?,
            low_speed: self.number("download.low_speed_bytes_per_s", 1..=1 << 30)?,
            retries: self.number("download.retries", 0..=1000)?,
            backoff_initial: self.millis("download.backoff_initial_ms", 1..=3_600_000)?,
            backoff_max: self.millis("download.backoff_max_ms", 1..=86_400_000)?,
            retry_after_max: self.seconds("download.retry_after_max_s", 0..=86_400)?,
            gap: self.number("download.gap_bytes", 0..=1 << 30)?,
            parallel_requests: self.number("download.parallel_requests", 1..=32)?,
            skip_max: self.number("download.skip_max_bytes", 0..=MAX)?,
            rate_limit: NonZeroU32::new(
                self.number("download.rate_limit_bytes_per_s", 0..=i64::from(u32::MAX))?,
            ),
            byte_budget: (budget > 0).then_some(budget),
            workers: if workers == 0 { cores } else { workers },
        })
    }

    fn layout(&self) -> Result<SlotLayout, ConfigError> {
        let Some(inputs) = self.optional::<Vec<RoleInput>>("disk.roles")? else {
            return Ok(SlotLayout::default());
        };
        if !inputs.iter().any(|input| input.role == PartitionRole::root()) {
            return Err(self.bad("disk.roles", "expected a role \"root\", which carries the boot attributes"));
        }
        for (i, input) in inputs.iter().enumerate() {
            if inputs[..i].iter().any(|earlier| earlier.role == input.role) || input.a == input.b {
                return Err(self.bad(
                    "disk.roles",
                    format!("the role {} does not have one partition a and one b", input.role),
                ));
            }
        }
        let roles =
            inputs.into_iter().map(|input| RoleLayout { role: input.role, a: input.a, b: input.b }).collect();
        Ok(SlotLayout { roles, ..SlotLayout::default() })
    }
}
