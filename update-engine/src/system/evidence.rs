//! Steps 11 and 12: what is known of a boot that failed: the tries it had, what the loader said, what the kernel left,
//! and the ends of the journals.

use super::program;
use machine::{Flip, PerSlot, Record};
use protocol::slot::{Attributes, Slot};
use protocol::wire::EVIDENCE_MAX;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// The variable in which the loader says what it chose and what it left out, with its attributes in the first 4 bytes.
const LOADER: &str = "sys/firmware/efi/efivars/FlipsideBoot-f11b51de-0b00-4d5e-8a3c-5e1ec7b00751";
/// Where the kernel's last words are: as the firmware keeps them, and where systemd puts them.
const LAST_WORDS: [&str; 2] = ["sys/fs/pstore", "var/lib/systemd/pstore"];
/// How many of those files are kept, and how much of the end of each, in bytes.
const LAST_WORDS_FILES: usize = 3;
const LAST_WORDS_MAX: usize = 3 * 1024;
/// How long one run of `journalctl` may take.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a journal is kept, in bytes.
const JOURNAL_MAX: usize = 4 * 1024;
/// How many boots between are looked at, the newest.
const BOOTS_MAX: usize = 2;

/// The last [`EVIDENCE_MAX`] bytes of a text, from the beginning of a line.
#[must_use]
pub fn bounded(text: &str) -> String {
    end_of(text, EVIDENCE_MAX).to_owned()
}

fn end_of(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let from = text.ceil_char_boundary(text.len() - max);
    let rest = &text[from..];
    rest.find('\n').map_or(rest, |line| &rest[line + 1..])
}

/// Where evidence is looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// `/`; none where the boots are no machine's.
    pub root: Option<PathBuf>,
    /// `journalctl`; none where the boots are no machine's.
    pub journal: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self { root: Some("/".into()), journal: Some("journalctl".into()) }
    }
}

impl Places {
    /// Nowhere but in the partition table: with `--disk`.
    #[must_use]
    pub const fn none() -> Self {
        Self { root: None, journal: None }
    }
}

/// What is known of the boots before this one, where the record has a slot activated which is not the one that runs;
/// else empty. Bounded in time and length.
pub async fn previous(
    record: &Record,
    running: Slot,
    attributes: &PerSlot<Attributes>,
    places: &Places,
) -> String {
    let activated = record.intent.as_ref().filter(|intent| intent.flip != Flip::Undoing);
    let Some(intent) = activated.filter(|intent| intent.target != running) else { return String::new() };
    let slot = attributes.get(intent.target);
    let mut text = format!(
        "slot {}: priority {}, {} of {} tries left, {}successful\n",
        intent.target,
        slot.priority(),
        slot.tries_left(),
        intent.tries,
        if slot.successful() { "" } else { "not " },
    );
    if let Some(root) = &places.root {
        if let Some(said) = loader(root) {
            let _ = writeln!(text, "-- the loader, in this boot\n{}", said.trim_end());
        }
        text.push_str(&last_words(root));
    }
    if let Some(program) = &places.journal {
        let flipped_in: String = intent.boot_id.as_str().chars().filter(|c| *c != '-').collect();
        for boot in boots_since(program, &flipped_in).await {
            let said = journal(program, &["-b", &boot, "-n", "60"]).await;
            let _ = writeln!(text, "-- the journal of boot {boot}\n{}", said.trim_end());
        }
    }
    bounded(&text)
}

/// What the loader said, one fact a line.
fn loader(root: &Path) -> Option<String> {
    let bytes = std::fs::read(root.join(LOADER)).ok()?;
    Some(String::from_utf8_lossy(bytes.get(4..)?).into_owned())
}

/// The kernel's last words, the newest first.
fn last_words(root: &Path) -> String {
    let mut files = Vec::new();
    for folder in LAST_WORDS {
        collect(&root.join(folder), 2, &mut files);
    }
    files.sort_by_key(|(at, path)| (std::cmp::Reverse(*at), path.clone()));
    let mut text = String::new();
    for (at, path) in files.into_iter().take(LAST_WORDS_FILES) {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let at = jiff::Timestamp::try_from(at).map_or_else(|_| String::new(), |at| format!(" of {at:.0}"));
        let words = String::from_utf8_lossy(&bytes);
        let shown = path.strip_prefix(root).unwrap_or(&path);
        let _ = writeln!(text, "-- /{}{at}\n{}", shown.display(), end_of(&words, LAST_WORDS_MAX).trim_end());
    }
    text
}

/// The files under a folder, with their times, so many folders deep.
fn collect(folder: &Path, depth: u32, files: &mut Vec<(std::time::SystemTime, PathBuf)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(data) if data.is_dir() && depth > 0 => collect(&path, depth - 1, files),
            Ok(data) if data.is_file() => files.extend(data.modified().map(|at| (at, path)).ok()),
            _ => {}
        }
    }
}

/// The boots that the journal has between the one that made the flip and this one, oldest first.
async fn boots_since(program: &Path, flipped_in: &str) -> Vec<String> {
    let listed = journal(program, &["--list-boots"]).await;
    // Number, id and times; the last one is this boot.
    let mut ids: Vec<_> = listed
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.next()?.parse::<i64>().ok()?;
            words.next().filter(|id| id.len() == 32).map(str::to_owned)
        })
        .collect();
    ids.pop();
    let Some(flip) = ids.iter().position(|id| id == flipped_in) else { return Vec::new() };
    let since = &ids[flip + 1..];
    since[since.len().saturating_sub(BOOTS_MAX)..].to_vec()
}

/// The end of a unit's journal of this boot, under a heading; nothing where there is none.
pub async fn journal_of_unit(unit: &str, lines: u32) -> String {
    let lines = lines.to_string();
    let said = journal(Path::new("journalctl"), &["-b", "-n", &lines, "-u", unit]).await;
    if said.trim().is_empty() { said } else { format!("-- the journal of {unit}\n{}\n", said.trim_end()) }
}

/// What `journalctl` prints; its trouble is logged and no more.
async fn journal(program: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(["--no-pager", "--quiet", "--output=short-iso"]).args(arguments);
    let outcome = program::run(command, Instant::now() + JOURNAL_TIMEOUT, JOURNAL_MAX).await;
    if !outcome.success() {
        tracing::info!("no journal as evidence: {}", outcome.tell("it took too long"));
    }
    end_of(&String::from_utf8_lossy(&outcome.stdout), JOURNAL_MAX - 1).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::{Content, Intent, Purpose};
    use std::os::unix::fs::PermissionsExt as _;

    const FLIP: &str = "11111111-1111-1111-1111-111111111111";

    fn record() -> Record {
        let content =
            Content { version: "1.1.0".parse().unwrap(), digest: None, reported: None, condemned: false };
        let intent = Intent {
            content,
            target: Slot::B,
            boot_id: FLIP.parse().unwrap(),
            tries: 3,
            purpose: Purpose::Update,
            flip: Flip::Activated,
        };
        Record { intent: Some(intent), ..Record::default() }
    }

    fn attributes() -> PerSlot<Attributes> {
        PerSlot {
            a: Attributes::default().confirmed().fallback(),
            b: Attributes::default().activated(3).with_tries_left(0),
        }
    }

    async fn told(record: &Record, running: Slot, root: &Path, journal: Option<PathBuf>) -> String {
        previous(record, running, &attributes(), &Places { root: Some(root.to_owned()), journal }).await
    }

    fn write(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[tokio::test]
    async fn without_a_fallback_there_is_nothing_to_tell() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(told(&Record::default(), Slot::A, root.path(), None).await, "");
        assert_eq!(told(&record(), Slot::B, root.path(), None).await, "");
        let nothing = told(&record(), Slot::A, root.path(), None).await;
        assert_eq!(nothing, "slot B: priority 2, 0 of 3 tries left, not successful\n");
    }

    #[tokio::test]
    async fn the_loader_and_the_kernel_are_heard() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), LOADER, b"\x06\0\0\0left out: B: \\vmlinuz: not found\nchosen: A\n");
        write(root.path(), "sys/fs/pstore/dmesg-efi-1", b"Kernel panic - not syncing: VFS\n");
        let long = [b"early\n".as_slice(), &b"x\n".repeat(5000), b"the end\n"].concat();
        write(root.path(), "var/lib/systemd/pstore/170000/dmesg.txt", &long);
        let text = told(&record(), Slot::A, root.path(), None).await;
        for part in
            ["left out: B: \\vmlinuz: not found", "Kernel panic", "/sys/fs/pstore/dmesg-efi-1", "the end"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{6}') && !text.contains("early"), "{text}");
        assert!(text.len() < EVIDENCE_MAX);
    }

    #[tokio::test]
    async fn the_journals_of_the_boots_between_are_read() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("journalctl");
        let boots = ["0", "1", "2", "3"].map(|digit| digit.repeat(32));
        let list = format!(
            "printf ' -3 {} old\\n -2 {} flip\\n -1 {} failed\\n  0 {} this\\n'",
            boots[0], boots[1], boots[2], boots[3]
        );
        let script =
            format!("#!/bin/sh\ncase \"$*\" in *--list-boots*) {list};; *) echo \"said: $*\";; esac\n");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let text = told(&record(), Slot::A, root.path(), Some(program.clone())).await;
        assert_eq!(text.matches("said: ").count(), 1, "{text}");
        assert!(text.contains(&format!("-b {} -n 60", boots[2])), "{text}");
        // The flip's boot is not in the journal: nothing says which boots were between.
        let mut other = record();
        other.intent.as_mut().unwrap().boot_id = "9999".parse().unwrap();
        assert!(!told(&other, Slot::A, root.path(), Some(program)).await.contains("said"));
        let missing = told(&record(), Slot::A, root.path(), Some("/no/such/journalctl".into())).await;
        assert!(missing.starts_with("slot B:"), "{missing}");
    }

    #[test]
    fn a_long_text_keeps_its_end_from_a_whole_line() {
        let text = format!("{}ä\nlast\n", "first\n".repeat(5000));
        let kept = bounded(&text);
        assert!(kept.len() <= EVIDENCE_MAX && kept.starts_with("first\n") && kept.ends_with("ä\nlast\n"));
        assert_eq!(end_of("short", 10), "short");
    }
}
