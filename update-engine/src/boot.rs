//! Step 11, boot: which slot was booted, what it calls itself, and which boot this is.
//!
//! On a node the kernel command line, os-release and the kernel say so. With `--disk` the command line of the engine
//! does, and what it leaves out comes from the state folder.

use crate::system::disk::{Place, Root};
use machine::{Flip, Record};
use protocol::id::BootId;
use protocol::slot::{Attributes, Slot};
use protocol::status::Exit;
use protocol::version::Version;
use std::io;
use std::path::{Path, PathBuf};

/// The running system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// The slot it was booted from.
    pub slot: Slot,
    /// The version it says it is.
    pub version: Version,
    /// The boot.
    pub boot_id: BootId,
}

/// What the engine's command line says about the running system.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--booted`
    pub slot: Option<Slot>,
    /// `--version`
    pub version: Option<Version>,
    /// `--boot-id`
    pub boot_id: Option<BootId>,
}

/// The running system cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file that says so cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The slot is unknown.
    #[error("which slot is running is unknown: {0}")]
    Slot(String),
    /// The running system is not on the disk that was opened, or not in the slot it names.
    #[error(
        "{root} on the kernel command line is {}, but flipside.slot={said} is said to run: expected a partition of \
         that slot; let disk.device name the disk that this system runs from, or leave it out",
        found.map_or_else(|| "in neither slot of the disk".to_owned(), |slot| format!("in slot {slot} of the disk"))
    )]
    OtherDisk {
        /// The root file system that runs.
        root: Root,
        /// The slot that is said to run.
        said: Slot,
        /// The slot of the disk that the root is in.
        found: Option<Slot>,
    },
    /// The slot is unknown since the flip: a loader has started the new one, which may run or have failed.
    #[error(
        "which slot runs is not known: slot {0} was started since the flip; say --booted A or --booted B"
    )]
    StartedSinceFlip(Slot),
    /// With `--disk`, what the record does not tell either was not said.
    #[error("which {what} is running is unknown: {ask}")]
    NotSaid {
        /// What is missing.
        what: &'static str,
        /// The option that says it.
        ask: String,
    },
    /// With `--disk`, no loader can have started the slot that is said to run: believed, what it holds would be
    /// confirmed, and the next update would overwrite the slot that really runs.
    #[error(
        "slot {slot} has priority 0 in the partition table, so no loader starts it, and it did not run before: expected \
         --booted to name the slot that runs{}", hint(*slot, *other)
    )]
    NeverStarted {
        /// The slot that is said to run.
        slot: Slot,
        /// The attributes of the other one.
        other: Attributes,
    },
    /// The version is unknown.
    #[error("which version is running is unknown: {0}")]
    Version(String),
    /// The version given is not the one the slot had: believed, a slip of the hand would be what downgrades are
    /// measured against from then on, and a condemned slot would pass for a new one.
    #[error(
        "slot {slot} ran {known} when it last ran: found --version {given}; leave --version out, or begin with an \
         empty state folder if the slot was written by other means"
    )]
    Contradiction {
        /// The slot.
        slot: Slot,
        /// The version on record.
        known: Box<Version>,
        /// The version given.
        given: Box<Version>,
    },
    /// The boot is unknown.
    #[error("which boot this is is unknown: {0}")]
    BootId(String),
}

/// The other slot, where a loader can start that one.
fn hint(slot: Slot, other: Attributes) -> String {
    if other.priority() > 0 { format!("; did you mean --booted {}?", slot.other()) } else { String::new() }
}

impl BootError {
    /// How a program ends that cannot tell what runs.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::NotSaid { .. } | Self::StartedSinceFlip(_) => Exit::Usage,
            Self::NeverStarted { .. } => Exit::Refused,
            _ => Exit::Failed,
        }
    }
}

/// The running system, with `--disk`: what is given, else what the record knows. `tries_left` are those of a slot on
/// the disk.
///
/// Without a boot id, this is the boot of the last run, unless another slot is said to be running than then, or the
/// boot rule has spent a try since the flip: then it is a new one, made from `random`. Which slot runs must then be
/// said: taking the old one for it would take a release that runs well for one that fell back.
///
/// A slot with priority 0 is believed to run only where the record has it running last: it lost its priority then, as a
/// slot that could not be confirmed. (A slot without tries and not successful may run: its last try was just spent.)
///
/// # Errors
/// [`BootError::NotSaid`] and [`BootError::StartedSinceFlip`], where neither the command line nor the record tells;
/// [`BootError::Contradiction`] where both do, differently; [`BootError::NeverStarted`].
pub fn simulated(
    given: &Given,
    record: &Record,
    attributes: impl Fn(Slot) -> Attributes,
    random: u64,
) -> Result<Booted, BootError> {
    let last = record.last_boot.as_ref();
    let started = record.intent.as_ref().map(|intent| intent.target).filter(|_| tried(record, &attributes));
    let slot = match (given.slot, started, last) {
        (Some(slot), _, _) => slot,
        (None, Some(started), _) => return Err(BootError::StartedSinceFlip(started)),
        (None, None, Some(boot)) => boot.slot,
        (None, None, None) => {
            return Err(BootError::NotSaid { what: "slot", ask: "say --booted A or --booted B".to_owned() });
        }
    };
    if attributes(slot).priority() == 0 && last.is_none_or(|boot| boot.slot != slot) {
        return Err(BootError::NeverStarted { slot, other: attributes(slot.other()) });
    }
    let known = record.slots.get(slot).as_ref().and_then(|content| content.reported.as_ref());
    if let (Some(known), Some(given)) = (known, given.version.as_ref())
        && known != given
    {
        return Err(BootError::Contradiction {
            slot,
            known: Box::new(known.clone()),
            given: Box::new(given.clone()),
        });
    }
    let version = given
        .version
        .clone()
        .or_else(|| {
            let content = record.slots.get(slot).as_ref()?;
            Some(content.reported.clone().unwrap_or_else(|| content.version.clone()))
        })
        .ok_or_else(|| BootError::NotSaid {
            what: "version",
            ask: format!("nothing is known of slot {slot} yet; say --version"),
        })?;
    let same = last.filter(|boot| boot.slot == slot && started.is_none()).map(|boot| boot.boot_id.clone());
    let boot_id = match given.boot_id.clone().or(same) {
        Some(boot_id) => boot_id,
        None => format!("disk-{random:016x}").parse().map_err(|_| BootError::BootId(String::new()))?,
    };
    Ok(Booted { slot, version, boot_id })
}

/// Whether a try was spent since the flip, and no engine has run in a later boot.
fn tried(record: &Record, attributes: impl Fn(Slot) -> Attributes) -> bool {
    record.intent.as_ref().is_some_and(|intent| {
        let last = record.last_boot.as_ref();
        let since_the_flip = last.is_none_or(|boot| boot.boot_id == intent.boot_id);
        let target = attributes(intent.target);
        let spent = target.priority() > 0 && target.tries_left() < intent.tries;
        intent.flip == Flip::Activated && since_the_flip && spent
    })
}

/// The running system as it tells itself; `root` is `/`. `of_root` finds the slot of a root partition.
///
/// # Errors
/// [`BootError`]
pub fn running(root: &Path, given: &Given, of_root: impl Fn(&Root) -> Place) -> Result<Booted, BootError> {
    let slot = match given.slot {
        Some(slot) => slot,
        None => self::slot(root, of_root)?,
    };
    let version = match &given.version {
        Some(version) => version.clone(),
        None => version_of(root)?,
    };
    let boot_id = match &given.boot_id {
        Some(boot_id) => boot_id.clone(),
        None => {
            let text = read(&root.join("proc/sys/kernel/random/boot_id"))?;
            text.trim().parse().map_err(|error| BootError::BootId(format!("{error}")))?
        }
    };
    Ok(Booted { slot, version, boot_id })
}

fn read(path: &Path) -> Result<String, BootError> {
    std::fs::read_to_string(path).map_err(|source| BootError::Read { path: path.to_owned(), source })
}

/// The slot that runs: `flipside.slot=A` of the kernel command line, else the slot of `root=PARTUUID=…` or of
/// `root=/dev/…`. The last one counts, as for the kernel. `root` is `/`.
///
/// Where the command line has both, `of_root` must agree, unless the root is a mapped device, which may be on top of any
/// partition: a configuration that names another disk with slots would have that one's attributes read and changed in
/// place of the running one's, and a loader's entry with the root of one slot and the name of the other would have a slot
/// confirmed that never ran.
///
/// # Errors
/// [`BootError::Read`], [`BootError::Slot`] and [`BootError::OtherDisk`].
pub fn slot(root: &Path, of_root: impl Fn(&Root) -> Place) -> Result<Slot, BootError> {
    let command_line = read(&root.join("proc/cmdline"))?;
    let mut words = command_line.split_whitespace().rev();
    let partition = Root::of(&command_line, &root.join("dev"));
    if let Some(name) = words.find_map(|word| word.strip_prefix("flipside.slot=")) {
        let said = name.parse().map_err(|_| {
            BootError::Slot(format!("the kernel command line says flipside.slot={name}: expected A or B"))
        })?;
        if let Some(root) = partition {
            let found = match of_root(&root) {
                Place::NoPartition => Some(said),
                Place::Slot(found) => Some(found),
                Place::NoSlot => None,
            };
            if found != Some(said) {
                return Err(BootError::OtherDisk { root, said, found });
            }
        }
        return Ok(said);
    }
    let Some(partition) = partition else {
        return Err(BootError::Slot(
            "the kernel command line has neither flipside.slot= nor root=PARTUUID= nor root=/dev/".to_owned(),
        ));
    };
    match of_root(&partition) {
        Place::Slot(slot) => Ok(slot),
        Place::NoSlot | Place::NoPartition => Err(BootError::Slot(format!(
            "{partition} on the kernel command line is in neither slot of the disk"
        ))),
    }
}

/// `IMAGE_VERSION` of os-release, else `VERSION_ID`.
fn version_of(root: &Path) -> Result<Version, BootError> {
    let text = read(&root.join("etc/os-release")).or_else(|_| read(&root.join("usr/lib/os-release")))?;
    let value = |name: &str| {
        text.lines().rev().find_map(|line| {
            let value = line.trim().strip_prefix(name)?.strip_prefix('=')?;
            Some(value.trim_matches(['"', '\'']).to_owned())
        })
    };
    let Some(found) = value("IMAGE_VERSION").or_else(|| value("VERSION_ID")) else {
        return Err(BootError::Version("os-release has neither IMAGE_VERSION nor VERSION_ID".to_owned()));
    };
    found.parse().map_err(|error| BootError::Version(format!("os-release: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::{Content, Intent, LastBoot, Purpose};

    fn content(version: &str) -> Content {
        Content { version: version.parse().unwrap(), digest: None, reported: None, condemned: false }
    }

    fn record(slot: Slot, boot_id: &str) -> Record {
        let mut record = Record {
            last_boot: Some(LastBoot { boot_id: boot_id.parse().unwrap(), slot }),
            ..Record::default()
        };
        *record.slots.get_mut(Slot::A) = Some(content("1.0.0"));
        *record.slots.get_mut(Slot::B) = Some(content("1.1.0"));
        record
    }

    fn flipped(record: &mut Record, boot_id: &str) {
        record.intent = Some(Intent {
            content: content("1.1.0"),
            target: Slot::B,
            boot_id: boot_id.parse().unwrap(),
            tries: 3,
            purpose: Purpose::Update,
            flip: Flip::Activated,
        });
    }

    fn tries(left: u8) -> impl Fn(Slot) -> Attributes {
        move |slot| match slot {
            Slot::A => Attributes::default().confirmed().fallback(),
            Slot::B => Attributes::default().activated(3).with_tries_left(left),
        }
    }

    fn boot_id(given: &Given, record: &Record, left: u8) -> String {
        simulated(given, record, tries(left), 7).unwrap().boot_id.to_string()
    }

    #[test]
    fn a_boot_is_new_when_the_slot_is_or_a_try_was_spent() {
        let on = |slot| Given { slot: Some(slot), ..Given::default() };
        let new = format!("disk-{:016x}", 7);
        let mut record = record(Slot::A, "one");
        assert_eq!(boot_id(&on(Slot::A), &record, 3), "one");
        assert_eq!(boot_id(&Given::default(), &record, 3), "one");
        assert_eq!(boot_id(&on(Slot::B), &record, 3), new);
        flipped(&mut record, "one");
        assert_eq!(boot_id(&on(Slot::A), &record, 3), "one");
        assert_eq!(boot_id(&on(Slot::A), &record, 2), new);
        assert_eq!(boot_id(&on(Slot::A), &record, 0), new);
        // The engine has run in a later boot since: that one goes on.
        flipped(&mut record, "zero");
        assert_eq!(boot_id(&on(Slot::A), &record, 2), "one");
        let given = Given { boot_id: Some("said".parse().unwrap()), ..on(Slot::A) };
        assert_eq!(boot_id(&given, &record, 2), "said");
    }

    #[test]
    fn after_a_start_since_the_flip_the_slot_must_be_said() {
        let mut record = record(Slot::A, "one");
        flipped(&mut record, "one");
        assert_eq!(simulated(&Given::default(), &record, tries(3), 7).unwrap().slot, Slot::A);
        let error = simulated(&Given::default(), &record, tries(2), 7).unwrap_err().to_string();
        assert_eq!(
            error,
            "which slot runs is not known: slot B was started since the flip; say --booted A or --booted B"
        );
        // A boot id does not say which slot it was.
        let given = Given { boot_id: Some("two".parse().unwrap()), ..Given::default() };
        assert!(simulated(&given, &record, tries(2), 7).is_err());
        // Once an engine has run in the later boot, the record knows.
        flipped(&mut record, "zero");
        assert_eq!(simulated(&Given::default(), &record, tries(2), 7).unwrap().slot, Slot::A);
    }

    /// What the state machine asks for first in a system booted so.
    fn first_operations(slot: Slot) -> String {
        let mut record = record(Slot::A, "one");
        flipped(&mut record, "one");
        let given = Given { slot: Some(slot), ..Given::default() };
        let Booted { slot, version, boot_id } = simulated(&given, &record, tries(2), 7).unwrap();
        let attributes = machine::PerSlot { a: tries(2)(Slot::A), b: tries(2)(Slot::B) };
        let facts = machine::Facts { boot_id, slot, version, attributes, reboot_allowed: false };
        let state = machine::State::new(machine::Policy::default(), record);
        let start = machine::Start { facts, mode: machine::Mode::Once, seed: 1, previous: String::new() };
        let (_, effects) = machine::step(state, machine::Event::Start(start), jiff::Timestamp::UNIX_EPOCH);
        format!("{effects:?}")
    }

    #[test]
    fn the_slot_that_is_said_decides_between_confirming_and_falling_back() {
        let on_b = first_operations(Slot::B);
        assert!(on_b.contains("RunHealth") && !on_b.contains("Condemn"), "{on_b}");
        let on_a = first_operations(Slot::A);
        assert!(on_a.contains("Condemn") && !on_a.contains("RunHealth"), "{on_a}");
    }

    #[test]
    fn slot_and_version_come_from_the_record_or_are_asked_for() {
        let booted = simulated(&Given::default(), &record(Slot::B, "one"), tries(3), 7).unwrap();
        assert_eq!((booted.slot, booted.version.as_str()), (Slot::B, "1.1.0"));
        let nothing = Record::default();
        let slot = simulated(&Given::default(), &nothing, tries(3), 7).unwrap_err().to_string();
        assert!(slot.contains("--booted"), "{slot}");
        let given = Given { slot: Some(Slot::A), ..Given::default() };
        let version = simulated(&given, &nothing, tries(3), 7).unwrap_err().to_string();
        assert!(version.contains("--version"), "{version}");
    }

    /// Over all attributes of both slots and all that the record can know: refused is just the slot that no loader
    /// starts and that did not run before, and what is refused is never what the loader's own rule has chosen.
    #[test]
    fn a_slot_that_no_loader_starts_is_not_believed_to_run() {
        let all = || {
            (0..=2).flat_map(|priority| {
                [0, 1, 3].into_iter().flat_map(move |tries| {
                    [false, true].map(move |successful| {
                        let bits = Attributes::default().with_priority(priority).with_tries_left(tries);
                        bits.with_successful(successful)
                    })
                })
            })
        };
        let records = [Record::default(), record(Slot::A, "one"), record(Slot::B, "one")];
        for (a, b) in all().flat_map(|a| all().map(move |b| (a, b))) {
            let of = |slot| if slot == Slot::A { a } else { b };
            for (record, slot) in records.iter().flat_map(|record| Slot::ALL.map(|slot| (record, slot))) {
                let version = record.slots.get(slot).as_ref().map_or("1.0.0", |known| known.version.as_str());
                let given = Given { slot: Some(slot), version: version.parse().ok(), boot_id: None };
                let ran = record.last_boot.as_ref().is_some_and(|boot| boot.slot == slot);
                let found = simulated(&given, record, of, 7);
                let refused = matches!(found, Err(BootError::NeverStarted { .. }));
                assert_eq!(refused, of(slot).priority() == 0 && !ran, "{slot}: {a:?} {b:?} {record:?}");
                assert!(refused || found.is_ok_and(|booted| booted.slot == slot));
                let chosen = protocol::slot::select([(0, a), (1, b)]).map(|choice| choice.entry);
                let entry = u32::from(slot == Slot::B);
                assert!(!refused || chosen != Some(entry), "{slot}: {a:?} {b:?}");
            }
        }
        let on_b = Given { slot: Some(Slot::B), version: "1.0.0".parse().ok(), boot_id: None };
        let new = |slot| match slot {
            Slot::A => Attributes::default().confirmed().fallback(),
            Slot::B => Attributes::default(),
        };
        let error = simulated(&on_b, &Record::default(), new, 7).unwrap_err();
        assert_eq!(error.exit(), Exit::Refused);
        assert_eq!(
            error.to_string(),
            "slot B has priority 0 in the partition table, so no loader starts it, and it did not run before: expected \
             --booted to name the slot that runs; did you mean --booted A?"
        );
        let nothing = simulated(&Given::default(), &Record::default(), new, 7).unwrap_err();
        assert_eq!(nothing.exit(), Exit::Usage);
    }

    #[test]
    fn a_version_that_contradicts_the_record_is_not_believed() {
        let mut record = record(Slot::B, "one");
        if let Some(content) = record.slots.get_mut(Slot::B) {
            content.reported = Some("1.1.0".parse().unwrap());
        }
        let given = |version: &str| Given { version: Some(version.parse().unwrap()), ..Given::default() };
        assert_eq!(simulated(&given("1.1.0"), &record, tries(3), 7).unwrap().version.as_str(), "1.1.0");
        let error = simulated(&given("99.0.0"), &record, tries(3), 7).unwrap_err().to_string();
        assert!(error.starts_with("slot B ran 1.1.0 when it last ran: found --version 99.0.0"), "{error}");
    }

    fn system(cmdline: &str, os_release: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/cmdline", cmdline),
            ("etc/os-release", os_release),
            ("proc/sys/kernel/random/boot_id", "b-1\n"),
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_running_system_tells_itself() {
        let by_partition = |root: &Root| match root {
            Root::PartUuid(id) if id == "1111-22" => Place::Slot(Slot::B),
            Root::Device(name) if name == "vda3" => Place::Slot(Slot::A),
            Root::Device(name) if name == "mapper/root" => Place::NoPartition,
            _ => Place::NoSlot,
        };
        let told = |cmdline: &str, os_release: &str| {
            let root = system(cmdline, os_release);
            running(root.path(), &Given::default(), by_partition)
                .map(|b| format!("{} {} {}", b.slot, b.version, b.boot_id))
                .map_err(|e| e.to_string())
        };
        let both = "ID=debian\nVERSION_ID=\"12\"\nIMAGE_VERSION=1.1.0\n";
        assert_eq!(told("quiet flipside.slot=A ro", both).unwrap(), "A 1.1.0 b-1");
        assert_eq!(told("flipside.slot=A flipside.slot=B", "VERSION_ID='12'").unwrap(), "B 12 b-1");
        assert_eq!(told("root=PARTUUID=1111-22 ro", both).unwrap(), "B 1.1.0 b-1");
        assert_eq!(told("root=PARTUUID=1111-22 flipside.slot=B", both).unwrap(), "B 1.1.0 b-1");
        assert_eq!(told("root=/dev/mapper/root flipside.slot=B", both).unwrap(), "B 1.1.0 b-1");
        assert_eq!(told("root=/dev/vda3 ro", both).unwrap(), "A 1.1.0 b-1");
        assert_eq!(told("root=/dev/vda3 flipside.slot=A", both).unwrap(), "A 1.1.0 b-1");
        for (cmdline, os_release, part) in [
            ("quiet", both, "flipside.slot="),
            ("root=/dev/sdb1", both, "root=/dev/sdb1 on the kernel command line is in neither slot"),
            ("root=PARTUUID=other", both, "neither slot"),
            ("flipside.slot=C", both, "expected A or B"),
            // disk.device names another disk, or the loader's words were changed.
            (
                "root=PARTUUID=3333-44 flipside.slot=B",
                both,
                "root=PARTUUID=3333-44 on the kernel command line is in neither slot of the disk, but flipside.slot=B",
            ),
            ("flipside.slot=A root=PARTUUID=1111-22", both, "is in slot B of the disk, but flipside.slot=A"),
            ("root=/dev/sdb1 flipside.slot=B", both, "is in neither slot of the disk, but flipside.slot=B"),
            (
                "root=/dev/vda3 flipside.slot=B",
                both,
                "root=/dev/vda3 on the kernel command line is in slot A of the disk, but flipside.slot=B",
            ),
            ("flipside.slot=A", "ID=debian", "IMAGE_VERSION"),
            ("flipside.slot=A", "VERSION_ID=sid", "not a version"),
        ] {
            let error = told(cmdline, os_release).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
