//! Steps 7, 8 and 12 under power cuts, for the whole engine: it runs in this process, over HTTP against the real
//! server, on a disk that records each write and flush and what the state file held at that moment. Then the power is
//! cut everywhere: before each flush any of the writes may be missing, torn or out of order. In each such state the
//! boot rule finds a slot that is whole; in a sample of them the engine is started again, and the update completes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails, its own functions included"
)]

use disk::testing::{CrashState, Operation, Recording, RecordingMedium, Sampling};
use disk::{Access, Disk, Medium, OpenError, ReadBack, SlotLayout};
use machine::Mode;
use protocol::id::PartitionRole;
use protocol::slot::Slot;
use protocol::status::{Exit, Status};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tests::images::{Kind, Tree, text};
use tests::node::{Node, Setup};
use tests::small::{DISK, FAST};
use tests::world::{World, path};
use update_engine::boot::Given;
use update_engine::config::{Merged, Settings};
use update_engine::node::{Engine, Options};
use update_engine::slots::Media;

/// Length of an image: small, as every crash state is compared whole.
const IMAGE: u64 = 512 << 10;
/// Length of a boot image.
const BOOT_IMAGE: usize = 70_001;
/// About how many crash states of a recording the engine is restarted in.
const RESTARTS: usize = 40;

/// A disk in memory that records, and beside each operation what the state file held.
#[derive(Debug)]
struct Recorder {
    medium: RecordingMedium,
    /// A regular file, which nothing has mounted.
    path: PathBuf,
    state_file: PathBuf,
    states: Mutex<Vec<Option<Vec<u8>>>>,
}

impl Recorder {
    fn new(image: Vec<u8>, state: &Path) -> Arc<Self> {
        let state_file = state.join("state.json");
        let path = state.with_file_name("node").join("disk.img");
        Arc::new(Self {
            medium: RecordingMedium::new(image, 512),
            path,
            state_file,
            states: Mutex::default(),
        })
    }

    /// Holds the lock over both, so that the two lists stay in step.
    fn noted<T>(&self, operation: impl FnOnce() -> T) -> T {
        let mut states = self.states.lock().unwrap();
        states.push(std::fs::read(&self.state_file).ok());
        operation()
    }
}

impl Medium for Recorder {
    fn block_size(&self) -> u32 {
        self.medium.block_size()
    }

    fn len(&self) -> u64 {
        self.medium.len()
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.medium.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.noted(|| self.medium.write_at(offset, bytes))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.noted(|| self.medium.write_zeroes(offset, len))
    }

    fn flush(&self) -> std::io::Result<()> {
        self.noted(|| self.medium.flush())
    }

    fn read_back(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<ReadBack> {
        self.medium.read_back(offset, buf)
    }
}

/// The engine opens the recorder as it opens a device.
#[derive(Debug)]
struct Recorded(Arc<Recorder>);

impl Media for Recorded {
    fn path(&self) -> &Path {
        &self.0.path
    }

    fn open(&self, _access: Access) -> Result<Arc<dyn Medium>, OpenError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Medium>)
    }
}

/// A world where 1.0.0 runs and 1.1.0, which shares half of it, is on the channel.
struct Scene {
    world: World,
    /// For each version, its images by role.
    images: [[(PartitionRole, Vec<u8>); 2]; 2],
    config: PathBuf,
    disk: Vec<u8>,
}

/// Everything that a node keeps when the power is cut.
#[derive(Clone)]
struct Durable {
    disk: Vec<u8>,
    state: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let world = World::new().unwrap();
        let (v1, v2) = (world.folder().join("v1.img"), world.folder().join("v2.img"));
        let old = Tree::generate(81, 300_000);
        old.write_image(&v1, IMAGE, Kind::Bytes).unwrap();
        old.updated(82, 60).write_image(&v2, IMAGE, Kind::Bytes).unwrap();
        let boots = ["boot1.img", "boot2.img"].map(|name| world.folder().join(name));
        for (seed, boot) in (83..).zip(&boots) {
            std::fs::write(boot, text(seed, BOOT_IMAGE)).unwrap();
        }
        let boots = boots.each_ref().map(|boot| path(boot).unwrap());
        world
            .publish("1.1.0", &v2, "alpha", &[FAST, &["--boot", boots[1], "--unchecked-boot"]].concat())
            .unwrap();
        let disk_arguments = [DISK, &["--boot", boots[0], "--unchecked-boot"]].concat();
        let setup = Setup {
            root: &v1,
            version: "1.0.0",
            slot_size: "1M",
            disk_arguments: &disk_arguments,
            channel: "alpha",
            strategy: "off",
            config: "",
        };
        let node = Node::new(&world, "node", world.address(), &setup).unwrap();
        let disk = std::fs::read(&node.disk).unwrap();
        let images = [(v1, boots[0]), (v2, boots[1])].map(|(root, boot)| {
            [
                (PartitionRole::root(), std::fs::read(root).unwrap()),
                (PartitionRole::boot(), std::fs::read(boot).unwrap()),
            ]
        });
        let config = node.config();
        Self { world, images, config, disk }
    }

    /// The slot that the boot rule picks, which must hold the images of its release, all of them and whole.
    fn bootable(&self, image: &[u8]) -> Result<Slot, String> {
        let medium = Arc::new(RecordingMedium::new(image.to_vec(), 512));
        let disk = Disk::open(medium, &SlotLayout::default()).map_err(|error| error.to_string())?;
        let (slot, _) = disk.select().ok_or("no slot boots")?;
        for (role, expected) in &self.images[usize::from(slot == Slot::B)] {
            let view = disk.partition(slot, role).ok_or("the slot lacks a partition")?;
            let start = usize::try_from(view.offset).unwrap();
            if image[start..start + expected.len()] != expected[..] {
                return Err(format!("slot {slot} would boot and its {role} is not of its release"));
            }
        }
        Ok(slot)
    }

    /// Boots as the loader does, then runs the engine once.
    fn boot_and_run(&self, recorder: &Arc<Recorder>, state: &Path, boot: u32) -> (Slot, Exit, Status) {
        let slot = disk::testing::boot(Arc::clone(recorder) as Arc<dyn Medium>).unwrap();
        let (exit, status) = self.run(recorder, state, slot, boot);
        (slot, exit, status)
    }

    fn run(&self, recorder: &Arc<Recorder>, state: &Path, slot: Slot, boot: u32) -> (Exit, Status) {
        let settings = Settings::from_merged(&Merged::from_file(&self.config).unwrap()).unwrap();
        let version = if slot == Slot::A { "1.0.0" } else { "1.1.0" };
        let options = Options {
            disk: Some("recorded".into()),
            state_dir: Some(state.to_owned()),
            booted: Given {
                slot: Some(slot),
                version: Some(version.parse().unwrap()),
                boot_id: Some(format!("boot-{boot}").parse().unwrap()),
            },
            ..Options::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let media = Arc::new(Recorded(Arc::clone(recorder)));
            let engine = Engine::on(media, settings, &options).unwrap();
            // Nobody sends, and nobody hangs up, which would be a request to stop.
            let (_signals, inbox) = tokio::sync::mpsc::channel(1);
            engine.run(Mode::Once, inbox).await
        })
    }

    /// A fresh state folder.
    fn state(&self, name: &str) -> PathBuf {
        let state = self.world.folder().join(name);
        std::fs::create_dir(&state).unwrap();
        state
    }

    /// Power comes back: boots and runs until 1.1.0 is confirmed; few boots must do.
    fn completes(&self, durable: &Durable) -> Result<(), String> {
        let recorder = Recorder::new(durable.disk.clone(), &durable.state);
        for boot in 10..15 {
            let (slot, exit, status) = self.boot_and_run(&recorder, &durable.state, boot);
            if exit == Exit::Failed || exit == Exit::Refused || !status.quarantine.is_empty() {
                return Err(format!("slot {slot} booted, {exit:?}: {status:?}"));
            }
            if slot == Slot::B && status.booted.is_some_and(|booted| booted.confirmed) {
                return self.bootable(&recorder.medium.image()).map(drop);
            }
        }
        Err("five boots were not enough".to_owned())
    }

    /// Cuts the power everywhere in what the recorder recorded, and restarts in some of the states.
    fn cut_everywhere(
        &self,
        recorder: &Recorder,
        state: &Path,
        restarted: impl Fn(&Durable) -> Result<(), String>,
    ) -> usize {
        let recording = recorder.medium.take_recording();
        let mut states = std::mem::take(&mut *recorder.states.lock().unwrap());
        assert_eq!(states.len(), recording.log.len());
        // After the last operation: what the file holds in the end.
        states.push(std::fs::read(&recorder.state_file).ok());
        let moments = moments(&recording, &states);
        let sampling = Sampling { exhaustive: 3, tears: 2, random: 6, seed: 7 };
        let count = |moments: &[Moment]| -> usize {
            let visits = |m: &Moment| m.recording.crash_states(sampling, &mut |_| Ok(())).unwrap();
            moments.iter().map(visits).sum()
        };
        let every = (count(&moments) / RESTARTS).max(1);
        let mut number = 0;
        for moment in &moments {
            let mut first = true;
            let mut visit = |crash: &CrashState| {
                self.bootable(&crash.image)?;
                number += 1;
                // The first state of each moment, and a sample of the others.
                if !std::mem::take(&mut first) && number % every != 0 {
                    return Ok(());
                }
                let folder = self.world.folder().join(format!("crash-{number}"));
                copy_folder(state, &folder);
                for copy in ["state.json", "state.backup.json"] {
                    match &moment.state {
                        Some(bytes) => std::fs::write(folder.join(copy), bytes).unwrap(),
                        None => drop(std::fs::remove_file(folder.join(copy))),
                    }
                }
                let durable = Durable { disk: crash.image.clone(), state: folder.clone() };
                restarted(&durable)?;
                std::fs::remove_dir_all(folder).map_err(|error| error.to_string())
            };
            if let Err(error) = moment.recording.crash_states(sampling, &mut visit) {
                panic!("{}: {error}", moment.story);
            }
        }
        number
    }
}

/// A span of time in which the state file did not change and nothing was flushed.
struct Moment {
    recording: Recording,
    state: Option<Vec<u8>>,
    story: String,
}

/// Splits a recording where the state file changed and at each flush. Each part has all writes since the last flush
/// in its log, for any of them may still be missing.
fn moments(recording: &Recording, states: &[Option<Vec<u8>>]) -> Vec<Moment> {
    let mut moments = Vec::new();
    let mut before = recording.before.clone();
    let mut log = Vec::new();
    for (place, operation) in recording.log.iter().enumerate() {
        log.push(operation.clone());
        let flushed = *operation == Operation::Flush;
        if flushed || states[place] != states[place + 1] || place + 1 == recording.log.len() {
            let part = Recording {
                block_size: recording.block_size,
                before: before.clone(),
                log: log.iter().filter(|operation| **operation != Operation::Flush).cloned().collect(),
            };
            let story = format!("power cut by operation {place} of {}", recording.log.len());
            moments.push(Moment { recording: part, state: states[place].clone(), story });
        }
        if flushed {
            for operation in log.drain(..) {
                if let Operation::Write { offset, bytes } = operation {
                    let start = usize::try_from(offset).unwrap();
                    before[start..start + bytes.len()].copy_from_slice(&bytes);
                }
            }
            // All of it is there, and the state file is as it will be next.
            let part =
                Recording { block_size: recording.block_size, before: before.clone(), log: Vec::new() };
            let story = format!("power cut after operation {place} of {}", recording.log.len());
            moments.push(Moment { recording: part, state: states[place + 1].clone(), story });
        }
    }
    moments
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[test]
fn an_update_survives_a_power_cut_anywhere() {
    let scene = Scene::new();
    let state = scene.state("state");
    let recorder = Recorder::new(scene.disk.clone(), &state);
    let (exit, status) = scene.run(&recorder, &state, Slot::A, 1);
    assert_eq!(exit, Exit::Done, "{status:?}");
    assert_eq!(scene.bootable(&recorder.medium.image()), Ok(Slot::B));
    let states = scene.cut_everywhere(&recorder, &state, |durable| scene.completes(durable));
    println!("{states} crash states of the installation");
    assert!(states > 100, "{states} states are too few to mean anything");
}

#[test]
fn a_confirmation_survives_a_power_cut_anywhere() {
    let scene = Scene::new();
    let state = scene.state("state");
    let recorder = Recorder::new(scene.disk.clone(), &state);
    assert_eq!(scene.run(&recorder, &state, Slot::A, 1).0, Exit::Done);
    drop(recorder.medium.take_recording());
    recorder.states.lock().unwrap().clear();
    let (slot, exit, _) = scene.boot_and_run(&recorder, &state, 2);
    assert_eq!((slot, exit), (Slot::B, Exit::Done));
    let states = scene.cut_everywhere(&recorder, &state, |durable| scene.completes(durable));
    println!("{states} crash states of the boot and the confirmation");
    assert!(states > 30, "{states} states are too few to mean anything");
}

#[test]
fn a_fallback_survives_a_power_cut_anywhere() {
    let scene = Scene::new();
    let state = scene.state("state");
    let recorder = Recorder::new(scene.disk.clone(), &state);
    assert_eq!(scene.run(&recorder, &state, Slot::A, 1).0, Exit::Done);
    let slot = loop {
        let slot = disk::testing::boot(Arc::clone(&recorder) as Arc<dyn Medium>).unwrap();
        if slot == Slot::A {
            break slot;
        }
    };
    drop(recorder.medium.take_recording());
    recorder.states.lock().unwrap().clear();
    scene.run(&recorder, &state, slot, 5);
    let states = scene.cut_everywhere(&recorder, &state, |durable| {
        let recorder = Recorder::new(durable.disk.clone(), &durable.state);
        for boot in 10..12 {
            let (slot, _, status) = scene.boot_and_run(&recorder, &durable.state, boot);
            if slot != Slot::A || status.quarantine.len() != 1 {
                return Err(format!("slot {slot} booted: {status:?}"));
            }
        }
        let (_, exit, status) = scene.boot_and_run(&recorder, &durable.state, 12);
        if exit == Exit::Refused { Ok(()) } else { Err(format!("{exit:?}: {status:?}")) }
    });
    println!("{states} crash states of the fallback");
    assert!(states > 10, "{states} states are too few to mean anything");
}
