//! An `update.conf`, and what it has in common with a `#cloud-config`: CoreOS's update engine and locksmith.

use super::locksmith::{Semaphore, moved};
use super::window::{Halves, locksmith};
use super::{Entry, Format, Imported, Value};
use protocol::id::Channel;
use toml::Value as Toml;

/// Is it one? Lines of `KEY=VALUE` with upper-case keys, and comments; or any lines, where a key that is known is among
/// them: a mistake in one line does not hide what the others are.
pub(super) fn is(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| is_content(line)).peekable();
    let upper = |line: &str| {
        entry(line).is_some_and(|(key, _)| {
            key.starts_with(|c: char| c.is_ascii_uppercase())
                && key.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        })
    };
    let any_known = text.lines().any(|line| entry(line.trim()).is_some_and(|(key, _)| known(key).is_some()));
    any_known || (lines.peek().is_some() && lines.all(upper))
}

/// Neither blank nor a comment.
pub(super) fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

/// Key and value of a trimmed line.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=').filter(|_| is_content(line))?;
    let key = key.trim();
    Some((key.strip_prefix("export ").unwrap_or(key).trim(), value.trim()))
}

/// What is said to whoever had no updates at all.
pub(super) const NO_UPDATES: &str = "it turned updates off, for which there is no setting: with strategy off they are installed and activated, \
     and the reboot is yours. To have none, disable update-engine.service";

/// The keys that both formats know, under different names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// The release line.
    Group,
    Server,
    Strategy,
    LockGroup,
    WindowStart,
    WindowLength,
    Endpoint,
    EtcdCa,
    EtcdCert,
    EtcdPrivate,
    EtcdUser,
    EtcdPassword,
}

pub(super) fn import(text: &str) -> Imported {
    let mut imported = Imported::new(Format::UpdateConf);
    let mut locksmith = Locksmith::default();
    for (index, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| is_content(line)) {
        let Some((key, value)) = entry(line) else {
            let entry =
                Entry { key: format!("{line:?}"), value: Value::Text(String::new()), line: index + 1 };
            imported.not_taken(&entry, "expected KEY=VALUE");
            locksmith.missed = true;
            continue;
        };
        let value = Value::Text(unquoted(value).to_owned());
        let entry = Entry { key: key.to_owned(), value, line: index + 1 };
        match known(key) {
            Some(known) => locksmith.take(&mut imported, known, &entry),
            None => imported.not_taken(&entry, reason(key)),
        }
    }
    locksmith.finish(&mut imported, "REBOOT_STRATEGY");
    imported
}

fn unquoted(value: &str) -> &str {
    let quoted = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    quoted('"').or_else(|| quoted('\'')).unwrap_or(value)
}

fn known(key: &str) -> Option<Key> {
    Some(match key {
        "GROUP" => Key::Group,
        "SERVER" => Key::Server,
        "REBOOT_STRATEGY" => Key::Strategy,
        "LOCKSMITHD_GROUP" => Key::LockGroup,
        "LOCKSMITHD_REBOOT_WINDOW_START" | "REBOOT_WINDOW_START" => Key::WindowStart,
        "LOCKSMITHD_REBOOT_WINDOW_LENGTH" | "REBOOT_WINDOW_LENGTH" => Key::WindowLength,
        "LOCKSMITHD_ENDPOINT" => Key::Endpoint,
        "LOCKSMITHD_ETCD_CAFILE" => Key::EtcdCa,
        "LOCKSMITHD_ETCD_CERTFILE" => Key::EtcdCert,
        "LOCKSMITHD_ETCD_KEYFILE" => Key::EtcdPrivate,
        "LOCKSMITHD_ETCD_USERNAME" => Key::EtcdUser,
        "LOCKSMITHD_ETCD_PASSWORD" => Key::EtcdPassword,
        _ => return None,
    })
}

fn reason(key: &str) -> &'static str {
    match key {
        "MACHINE_ALIAS" => "a node is known by its own id: see updatectl node list on the server",
        "PCR_POLICY_SERVER" => "TPM policies are not supported",
        "DOWNLOAD_USER" | "DOWNLOAD_PASSWORD" => "downloads need no login: what is installed is signed",
        _ if key.starts_with("FLATCAR_RELEASE_") || key.starts_with("COREOS_RELEASE_") => {
            "the version that runs comes from os-release"
        }
        _ => "no such key is known",
    }
}

/// What has to be seen together before it can be translated: strategy, window and lock.
#[derive(Debug, Default)]
pub(super) struct Locksmith {
    strategy: Option<Entry>,
    start: Option<Entry>,
    length: Option<Entry>,
    semaphore: Semaphore,
    /// The server is `disabled`: Flatcar's way to say that nothing is to be updated.
    disabled: Option<Entry>,
    /// A line is not understood, which may have been its window, or its server.
    missed: bool,
}

impl Locksmith {
    pub(super) fn take(&mut self, imported: &mut Imported, key: Key, entry: &Entry) {
        let place = match key {
            Key::Strategy => &mut self.strategy,
            Key::WindowStart => &mut self.start,
            Key::WindowLength => &mut self.length,
            Key::Server if entry.value.text().is_some_and(|text| text.eq_ignore_ascii_case("disabled")) => {
                &mut self.disabled
            }
            Key::Group | Key::Server => return direct(imported, key, entry),
            _ => match self.semaphore.place(key) {
                // Locksmith takes an empty one as one that is not set.
                Some(_) if entry.value.text() == Some("") => {
                    return imported.not_taken(entry, "it is empty, which is as if it were not there");
                }
                Some(place) => place,
                None => return,
            },
        };
        if let Some(old) = place.replace(entry.clone()) {
            imported.not_taken(&old, format!("{} in line {} is used instead", entry.key, entry.line));
        }
    }

    /// Decides on the strategy, once everything was read.
    pub(super) fn finish(mut self, imported: &mut Imported, name: &str) {
        let window = self.window(imported);
        let semaphore = std::mem::take(&mut self.semaphore);
        if let Some(disabled) = self.disabled.take() {
            semaphore.leave(imported, "the server is disabled, so reboot.strategy is off");
            return self.no_updates(imported, &disabled, window);
        }
        let Some(strategy) = self.strategy.take() else {
            imported.default_differs(
                name,
                "not set: there a machine rebooted by itself, here the default is off (activated, and the reboot is yours)",
            );
            semaphore.leave(imported, NOT_ASKED);
            return drop_window(imported, window, "no strategy that it would bind");
        };
        let word = strategy.value.text().map(str::to_ascii_lowercase).unwrap_or_default();
        match word.as_str() {
            "etcd-lock" => return lock(imported, &strategy, window, semaphore, ""),
            "best-effort" => {
                let why =
                    "it rebooted without a lock where no etcd ran, and here the permit is always needed; ";
                return lock(imported, &strategy, window, semaphore, why);
            }
            _ => semaphore.leave(imported, NOT_ASKED),
        }
        match word.as_str() {
            // YAML 1.1 made a boolean of an unquoted off; false itself was once accepted.
            "off" | "false" | "no" => self.off(imported, &strategy, window),
            "reboot" => reboot(imported, &strategy, window),
            _ => {
                let text = format!(
                    "expected off, reboot, etcd-lock or best-effort, found {}; reboot.strategy is left at off",
                    strategy.value
                );
                imported.not_taken(&strategy, text);
                drop_window(imported, window, "reboot.strategy is left at off");
            }
        }
    }

    /// No machine that was never updated may begin to reboot by itself.
    fn no_updates(mut self, imported: &mut Imported, disabled: &Entry, window: Window) {
        imported.set("reboot.strategy", "off", disabled);
        imported.changed(disabled, NO_UPDATES);
        if let Some(strategy) = self.strategy.take() {
            imported.not_taken(&strategy, "the server is disabled, so reboot.strategy is off");
        }
        drop_window(imported, window, "the server is disabled, so reboot.strategy is off");
    }

    fn off(&self, imported: &mut Imported, strategy: &Entry, window: Window) {
        imported.set("reboot.strategy", "off", strategy);
        drop_window(imported, window, "with strategy off nothing reboots by itself");
    }

    fn window(&mut self, imported: &mut Imported) -> Window {
        let (start, length) = match (self.start.take(), self.length.take()) {
            (None, None) if self.missed => return Window::Unclear(Vec::new()),
            (None, None) => return Window::None,
            (start, length @ None) | (start @ None, length) => {
                let lacks = if length.is_none() { "length" } else { "start" };
                for one in [start, length].into_iter().flatten() {
                    let found = one.value.to_string();
                    imported.not_taken(
                        &one,
                        format!("a window needs both its start and its length: found {found} and no {lacks}"),
                    );
                }
                return Window::Unclear(Vec::new());
            }
            (Some(start), Some(length)) => (start, length),
        };
        let texts = (start.value.text().unwrap_or_default(), length.value.text().unwrap_or_default());
        match locksmith(texts.0, texts.1) {
            Ok(window) => Window::Some(vec![start, length], window),
            Err(Halves { start: of_start, length: of_length }) => {
                let other = |name: &str, other: &Entry| {
                    format!(
                        "the {name} of its window, {} in line {}, is not understood",
                        other.key, other.line
                    )
                };
                imported.not_taken(&start, of_start.unwrap_or_else(|| other("length", &length)));
                imported.not_taken(&length, of_length.unwrap_or_else(|| other("start", &start)));
                Window::Unclear(Vec::new())
            }
        }
    }
}

/// What the source says of when to reboot.
enum Window {
    None,
    Some(Vec<Entry>, Toml),
    /// It says something that cannot be translated: nothing may reboot at other times for that.
    Unclear(Vec<Entry>),
}

fn drop_window(imported: &mut Imported, window: Window, why: &str) {
    if let Window::Some(entries, _) | Window::Unclear(entries) = window {
        entries.iter().for_each(|entry| imported.not_taken(entry, why));
    }
}

/// It binds every strategy of locksmith's, the lock included.
fn set_window(imported: &mut Imported, window: Window) {
    if let Window::Some(entries, window) = window
        && let Some(start) = entries.first()
    {
        imported.set("reboot.windows", Toml::Array(vec![window]), start);
        imported.set("reboot.time_zone", "system", start);
    }
}

fn reboot(imported: &mut Imported, strategy: &Entry, window: Window) {
    match window {
        Window::None => imported.set("reboot.strategy", "immediate", strategy),
        window @ Window::Some(..) => {
            imported.set("reboot.strategy", "window", strategy);
            set_window(imported, window);
        }
        Window::Unclear(_) => {
            imported.set("reboot.strategy", "off", strategy);
            imported.changed(
                strategy,
                "off instead of reboot: its window, or a line that may be one, is not understood, and without a window \
                 it would reboot at any time",
            );
        }
    }
}

/// Why what belongs to the lock is left out.
const NOT_ASKED: &str = "only reboot-strategy etcd-lock asks this lock";

/// The lock, unless it would have the machine reboot when it may not.
fn lock(imported: &mut Imported, strategy: &Entry, window: Window, semaphore: Semaphore, why: &str) {
    let off = |imported: &mut Imported, problem: String| {
        imported.set("reboot.strategy", "off", strategy);
        imported.changed(strategy, format!("off instead of lock: {problem}"));
    };
    let group = match semaphore.take(imported, strategy) {
        Ok(group) => group,
        Err(problem) => {
            off(imported, problem);
            return drop_window(imported, window, "reboot.strategy is off");
        }
    };
    let moved = moved(&group);
    match window {
        Window::Unclear(_) => off(
            imported,
            format!(
                "its window, or a line that may be one, is not understood, and without a window it would reboot at any \
                 time; {why}{moved}"
            ),
        ),
        window => {
            imported.set("reboot.strategy", "lock", strategy);
            imported.changed(strategy, format!("{why}{moved}"));
            set_window(imported, window);
        }
    }
}

fn direct(imported: &mut Imported, key: Key, entry: &Entry) {
    match key {
        // One that is no name here is told already.
        Key::Group if imported.name::<Channel>("identity.channel", entry) => imported.changed(
            entry,
            "it names a release line, which is a channel here; identity.group, the set of nodes, is another setting",
        ),
        Key::Server => imported.not_taken(
            entry,
            "it speaks Omaha, which no Flipside server does: set server.url to your update server",
        ),
        _ => {}
    }
}
