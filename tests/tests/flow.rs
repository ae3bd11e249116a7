//! The main job, end to end, over HTTP with the real programs: every command of the contract, `sgdisk -v` after each
//! step that touches the disk, the bytes of the slot compared with the image.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::payload::{Chunk, Content, Index};
use protocol::slot::Slot;
use protocol::status::StateName;
use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};
use tests::blockdev::LoopDevice;
use tests::images::text;
use tests::node::{Node, Setup};
use tests::small::{DISK, FAST, Small};
use tests::world::path;

/// `sgdisk -v` finds nothing wrong; a machine that runs all tests has it.
fn verify(node: &Node<'_>) {
    let checked = node.sgdisk_verify().unwrap();
    assert!(checked.is_some() || !complete(), "sgdisk is not installed");
}

/// Whether `tests/run` runs all of it, so that nothing may step aside.
fn complete() -> bool {
    std::env::var_os("FLIPSIDE_TESTS_COMPLETE").is_some_and(|value| value == "yes")
}

/// 1.0.0 to 1.1.0 on this node: staged, activated, booted, confirmed, and nothing new afterwards.
fn update_boot_confirm(small: &Small, node: &mut Node<'_>) {
    verify(node);
    node.compare(Slot::A, "root", &small.v1).unwrap();
    let staged = node.engine(&[]).unwrap().ok().unwrap();
    verify(node);
    node.compare(Slot::B, "root", &small.v2).unwrap();
    node.compare(Slot::A, "root", &small.v1).unwrap();
    let opened = node.open_disk().unwrap();
    let (a, b) = (opened.attributes(Slot::A), opened.attributes(Slot::B));
    assert_eq!((a.priority(), a.successful()), (1, true), "{staged}");
    assert_eq!((b.priority(), b.tries_left(), b.successful()), (2, 3, false), "{staged}");
    let status = node.status().unwrap();
    let release = status.staged.unwrap();
    assert!(release.activated);
    assert_eq!(release.version, "1.1.0".parse().unwrap());
    assert_eq!(release.release, small.release.manifest.release_digest());
    assert_eq!(status.progress.bytes_total, tests::small::IMAGE);
    assert_eq!(status.progress.bytes_done, tests::small::IMAGE);

    // Activated and not booted yet: there is nothing to do.
    node.engine(&[]).unwrap().expect_code(3).unwrap();

    assert_eq!(node.boot().unwrap(), Slot::B);
    verify(node);
    assert_eq!(node.open_disk().unwrap().attributes(Slot::B).tries_left(), 2);
    node.engine(&[]).unwrap().ok().unwrap();
    verify(node);
    let b = node.open_disk().unwrap().attributes(Slot::B);
    assert_eq!((b.priority(), b.tries_left(), b.successful()), (2, 0, true));

    node.engine(&[]).unwrap().expect_code(3).unwrap();
    let status = node.status().unwrap();
    let booted = status.booted.unwrap();
    assert_eq!((booted.slot, booted.version, booted.confirmed), (Slot::B, "1.1.0".parse().unwrap(), true));
    assert_eq!(status.state, StateName::Idle);
    assert!(status.staged.is_none() && status.quarantine.is_empty() && status.error.is_none());
    verify(node);
}

#[test]
fn a_file() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    update_boot_confirm(&small, &mut node);
}

#[test]
fn a_file_with_sectors_of_4096_bytes() {
    let small = Small::new().unwrap();
    let disk_arguments = [DISK, &["--sector-size", "4096"]].concat();
    let setup = Setup { disk_arguments: &disk_arguments, ..small.setup() };
    let mut node = Node::new(&small.world, "node", small.world.address(), &setup).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &small.v2).unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.engine(&[]).unwrap().ok().unwrap();
    assert!(node.open_disk().unwrap().attributes(Slot::B).successful());
    node.engine(&[]).unwrap().expect_code(3).unwrap();
    // sgdisk takes files to have sectors of 512 bytes; a loop device says otherwise.
    if LoopDevice::available() {
        let device = LoopDevice::attach(&node.disk, 4096).unwrap();
        node.disk = device.path().to_owned();
        verify(&node);
    }
}

/// The same on a block device; the disk file is made first and put behind it.
fn on_a_loop_device(sector_size: u32) {
    if !LoopDevice::available() {
        assert!(!complete(), "root and loop devices are needed");
        eprintln!("not run: loop devices need root");
        return;
    }
    let small = Small::new().unwrap();
    let size = sector_size.to_string();
    let disk_arguments = [DISK, &["--sector-size", &size]].concat();
    let setup = Setup { disk_arguments: &disk_arguments, ..small.setup() };
    let mut node = Node::new(&small.world, "node", small.world.address(), &setup).unwrap();
    let device = LoopDevice::attach(&node.disk, sector_size).unwrap();
    node.disk = device.path().to_owned();
    update_boot_confirm(&small, &mut node);
    device.detach().unwrap();
}

#[test]
fn a_loop_device() {
    on_a_loop_device(512);
}

#[test]
fn a_loop_device_with_sectors_of_4096_bytes() {
    on_a_loop_device(4096);
}

#[test]
fn a_release_with_a_boot_partition() {
    let world = WithBoot::new();
    assert_eq!(world.release.manifest.partitions.len(), 2);
    let mut node = world.node("node");
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &world.small.v2).unwrap();
    node.compare(Slot::B, "boot", &world.boots[1]).unwrap();
    world.together_or_not_at_all(&node);
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(node.status().unwrap().booted.unwrap().version, "1.2.0".parse().unwrap());
}

/// A world whose 1.0.0 and 1.2.0 have boot images, and a node that runs the former.
struct WithBoot {
    small: Small,
    /// The boot images of 1.0.0 and of 1.2.0.
    boots: [std::path::PathBuf; 2],
    release: tests::world::Release,
}

impl WithBoot {
    fn new() -> Self {
        Self::of(Small::new().unwrap())
    }

    fn of(small: Small) -> Self {
        let boots = [("boot1", 1), ("boot2", 2)].map(|(name, seed)| {
            let image = small.world.boot_image(name, &text(seed, 2_900_000), "3M").unwrap();
            // It ends within a sector.
            File::options().append(true).open(&image).unwrap().write_all(&[1]).unwrap();
            image
        });
        let more = [&["--boot", path(&boots[1]).unwrap()], FAST].concat();
        let release = small.world.publish("1.2.0", &small.v2, "alpha", &more).unwrap();
        Self { small, boots, release }
    }

    fn node(&self, name: &str) -> Node<'_> {
        let disk_arguments = [DISK, &["--boot", path(&self.boots[0]).unwrap()]].concat();
        let setup = Setup { disk_arguments: &disk_arguments, ..self.small.setup() };
        Node::new(&self.small.world, name, self.small.world.address(), &setup).unwrap()
    }

    /// What B would be started from is of 1.2.0, all of it, or B cannot be booted.
    fn together_or_not_at_all(&self, node: &Node<'_>) {
        let bootable = node.open_disk().unwrap().attributes(Slot::B).bootable();
        let root = node.compare(Slot::B, "root", &self.small.v2);
        let boot = node.compare(Slot::B, "boot", &self.boots[1]);
        assert!(!bootable || (root.is_ok() && boot.is_ok()), "B boots with {root:?} and {boot:?}");
        node.compare(Slot::A, "root", &self.small.v1).unwrap();
        node.compare(Slot::A, "boot", &self.boots[0]).unwrap();
        verify(node);
    }
}

/// How many bytes the payload holds for each partition.
fn stored_bytes(release: &tests::world::Release) -> [u64; 2] {
    let payload = release.payload().unwrap();
    let file = std::fs::read(release.folder.join(format!("{}.payload", payload.sha256))).unwrap();
    let head = usize::try_from(payload.head_size).unwrap();
    let (_, index) = Index::parse_head(&file[..head]).unwrap();
    let roles: Vec<&str> = index.partitions.iter().map(|partition| partition.role.as_str()).collect();
    assert_eq!(roles, ["root", "boot"]);
    let len = |chunk: &Chunk| match &chunk.content {
        Content::Stored(stored) => u64::from(stored.len),
        _ => 0,
    };
    [0, 1].map(|partition: usize| index.partitions[partition].chunks.iter().map(len).sum())
}

#[test]
fn root_and_boot_image_become_active_together_or_not_at_all() {
    let world = WithBoot::of(Small::all_new().unwrap());
    let [root_bytes, boot_bytes] = stored_bytes(&world.release);
    // Within the root image, and between it and the end of the boot image.
    for (fetched, root_is_whole) in [(root_bytes / 2, false), (root_bytes + boot_bytes / 2, true)] {
        let node = world.node(&format!("node-{fetched}"));
        let mut engine = node.start_engine(&["--pause-at", &format!("downloading={fetched}")]).unwrap();
        engine.wait_for("paused ").unwrap();
        let limit = Instant::now() + Duration::from_secs(120);
        // What was fetched is written by other threads.
        while root_is_whole && node.compare(Slot::B, "root", &world.small.v2).is_err() {
            assert!(Instant::now() < limit, "the root image is not written");
            std::thread::yield_now();
        }
        engine.kill().unwrap();
        engine.wait().unwrap();
        world.together_or_not_at_all(&node);
        assert_eq!(node.compare(Slot::B, "root", &world.small.v2).is_ok(), root_is_whole);
        assert!(node.compare(Slot::B, "boot", &world.boots[1]).is_err());
        assert!(!node.open_disk().unwrap().attributes(Slot::B).bootable());

        node.engine(&[]).unwrap().ok().unwrap();
        node.compare(Slot::B, "boot", &world.boots[1]).unwrap();
        world.together_or_not_at_all(&node);
        assert!(node.open_disk().unwrap().attributes(Slot::B).bootable());
        let downloaded = node.status().unwrap().progress.bytes_downloaded;
        assert!(
            !root_is_whole || downloaded < boot_bytes + root_bytes / 2,
            "{downloaded} bytes were fetched again: the root image stood already"
        );
    }
}

#[test]
fn a_release_without_a_boot_image_is_refused_where_slots_start_from_one() {
    let world = WithBoot::new();
    let mut node = world.node("node");
    world.small.world.set_channel("alpha", "1.1.0").unwrap();
    let before = std::fs::read(&node.disk).unwrap();
    let refused = node.engine(&[]).unwrap().expect_code(1).unwrap();
    let status = node.status().unwrap();
    let error = status.error.clone().unwrap_or_default();
    assert!(
        error.contains("the release does not fit: it has no image for the partition boot"),
        "{refused} {status:?}"
    );
    assert!(before == std::fs::read(&node.disk).unwrap(), "nothing was written");
    assert!(status.quarantine.is_empty(), "with another configuration it would fit");
    // The next release, with both, is taken.
    world.small.world.set_channel("alpha", "1.2.0").unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    world.together_or_not_at_all(&node);
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.engine(&[]).unwrap().ok().unwrap();
}

#[test]
fn what_another_release_left_in_the_boot_partition_is_not_started() {
    // Slots that start from the root partition alone; an installation of a release with a boot image was cut off.
    let world = WithBoot::new();
    let node = world.small.node("node", world.small.world.address()).unwrap();
    let mut engine = node.start_engine(&["--pause-at", "downloaded"]).unwrap();
    engine.wait_for("paused ").unwrap();
    engine.kill().unwrap();
    engine.wait().unwrap();
    node.compare(Slot::B, "boot", &world.boots[1]).unwrap();
    world.small.world.set_channel("alpha", "1.1.0").unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    let disk = node.open_disk().unwrap();
    assert!(disk.attributes(Slot::B).bootable());
    node.compare(Slot::B, "root", &world.small.v2).unwrap();
    let boot = disk.open_slot(&protocol::id::PartitionRole::boot(), Slot::B).unwrap();
    assert!(disk::fit::is_empty(&boot).unwrap(), "the kernel of 1.2.0 would start the root of 1.1.0");
}

#[test]
fn promoted_from_alpha_to_beta() {
    let small = Small::new().unwrap();
    let setup = Setup { channel: "beta", ..small.setup() };
    let mut node = Node::new(&small.world, "node", small.world.address(), &setup).unwrap();
    let before = node.engine(&[]).unwrap();
    assert_ne!(before.code, Some(0), "beta holds nothing yet: {before}");
    assert_eq!(node.open_disk().unwrap().attributes(Slot::B).priority(), 0);
    small.world.updatectl(&["channel", "promote", "alpha", "beta"]).unwrap().ok().unwrap();
    update_boot_confirm(&small, &mut node);
}

#[test]
fn three_updates_in_a_row_fetch_what_changed() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    update_boot_confirm(&small, &mut node);
    for (version, seed, slot) in [("1.2.0", 21, Slot::A), ("1.3.0", 22, Slot::B)] {
        let (release, image) = small.publish_next(version, seed).unwrap();
        node.engine(&[]).unwrap().ok().unwrap();
        node.compare(slot, "root", &image).unwrap();
        let progress = node.status().unwrap().progress;
        let whole = release.payload().unwrap().size;
        assert!(progress.bytes_downloaded < whole * 7 / 10, "{progress:?} of {whole}");
        assert!(progress.bytes_written < tests::small::IMAGE, "{progress:?}");
        assert_eq!(node.boot().unwrap(), slot);
        node.engine(&[]).unwrap().ok().unwrap();
        verify(&node);
    }
    assert_eq!(node.status().unwrap().booted.unwrap().version, "1.3.0".parse().unwrap());
}

#[test]
fn the_same_image_under_a_new_version_costs_nothing() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    update_boot_confirm(&small, &mut node);
    let release = small.world.publish("1.1.1", &small.v1, "alpha", FAST).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    let progress = node.status().unwrap().progress;
    let head = release.payload().unwrap().head_size;
    assert_eq!(progress.bytes_written, 0, "slot A already holds it: {progress:?}");
    assert!(progress.bytes_downloaded <= head, "only the head is needed: {progress:?}, head {head}");
    node.compare(Slot::A, "root", &small.v1).unwrap();
    assert_eq!(node.boot().unwrap(), Slot::A);
    node.engine(&[]).unwrap().ok().unwrap();
}

#[test]
fn a_boot_that_fails_falls_back_and_is_never_tried_again() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    node.boot_id = Some("boot-1".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    for tries_left in [2, 1, 0] {
        assert_eq!(node.boot().unwrap(), Slot::B);
        assert_eq!(node.open_disk().unwrap().attributes(Slot::B).tries_left(), tries_left);
    }
    assert_eq!(node.boot().unwrap(), Slot::A, "no try is left");
    node.boot_id = Some("boot-5".to_owned());
    node.engine(&[]).unwrap();
    verify(&node);
    let b = node.open_disk().unwrap().attributes(Slot::B);
    assert_eq!((b.priority(), b.tries_left(), b.successful()), (0, 0, false), "B is condemned");
    let status = node.status().unwrap();
    assert_eq!(status.quarantine.len(), 1);
    assert_eq!(status.quarantine[0].release, small.release.manifest.release_digest());
    assert!(!status.other.unwrap().bootable);
    node.engine(&[]).unwrap().expect_code(5).unwrap();
    node.engine(&[]).unwrap().expect_code(5).unwrap();
    assert_eq!(node.boot().unwrap(), Slot::A);

    // The same images under another version are the same release; a mended one is not.
    small.world.publish("1.1.1", &small.v2, "alpha", FAST).unwrap();
    node.engine(&[]).unwrap().expect_code(5).unwrap();
    let (_, image) = small.publish_next("1.1.2", 31).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    node.compare(Slot::B, "root", &image).unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.boot_id = Some("boot-7".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(node.status().unwrap().booted.unwrap().version, "1.1.2".parse().unwrap());
}

#[test]
fn without_boot_ids_a_spent_try_tells_of_the_fallback() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    for slot in [Slot::B, Slot::B, Slot::B, Slot::A] {
        assert_eq!(node.boot().unwrap(), slot);
    }
    node.engine(&[]).unwrap();
    assert_eq!(node.status().unwrap().quarantine.len(), 1);
    node.engine(&[]).unwrap().expect_code(5).unwrap();
}

#[test]
fn a_restart_before_the_reboot_is_not_a_failed_boot() {
    let small = Small::new().unwrap();
    let mut node = small.node("node", small.world.address()).unwrap();
    node.boot_id = Some("boot-1".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    for _ in 0..3 {
        node.engine(&[]).unwrap().expect_code(3).unwrap();
    }
    assert!(node.status().unwrap().quarantine.is_empty());
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.boot_id = Some("boot-2".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    assert!(node.open_disk().unwrap().attributes(Slot::B).successful());
}

#[test]
fn failing_health_checks_end_in_the_old_slot() {
    let small = Small::new().unwrap();
    let checks = small.world.folder().join("health.d");
    std::fs::create_dir(&checks).unwrap();
    let check = checks.join("10-database");
    std::fs::write(&check, "#!/bin/sh\necho 'the database does not answer'\nexit 1\n").unwrap();
    std::fs::set_permissions(&check, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("\n[health]\ndir = \"{}\"\ndeadline_s = 20\n", checks.display());
    let setup = Setup { config: &config, ..small.setup() };
    let mut node = Node::new(&small.world, "node", small.world.address(), &setup).unwrap();
    node.boot_id = Some("boot-1".to_owned());
    node.engine(&[]).unwrap().ok().unwrap();
    assert_eq!(node.boot().unwrap(), Slot::B);
    node.boot_id = Some("boot-2".to_owned());
    let judged = node.engine(&[]).unwrap();
    let disk = node.open_disk().unwrap();
    assert_eq!(disk.attributes(Slot::B).priority(), 0, "B cannot be chosen again: {judged}");
    let status = node.status().unwrap();
    assert_eq!(status.quarantine.len(), 1, "{judged}");
    assert!(status.quarantine[0].reason.contains("10-database"), "{:?}", status.quarantine);
    assert_eq!(node.boot().unwrap(), Slot::A);
    node.boot_id = Some("boot-3".to_owned());
    node.engine(&[]).unwrap();
    node.engine(&[]).unwrap().expect_code(5).unwrap();
}

#[test]
fn the_status_has_the_fields_of_the_contract() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    let status = node.updatectl(&["status", "--json"]).unwrap().ok().unwrap().json().unwrap();
    for key in [
        "schema",
        "state",
        "reason",
        "booted",
        "other",
        "staged",
        "progress",
        "last_check",
        "channel",
        "group",
        "permit",
        "quarantine",
        "error",
    ] {
        assert!(status.get(key).is_some(), "no {key} in {status}");
    }
    for (table, keys) in [
        ("booted", &["slot", "version", "confirmed"][..]),
        ("other", &["slot", "version", "bootable"]),
        ("progress", &["bytes_total", "bytes_done", "bytes_downloaded"]),
        ("last_check", &["at", "result"]),
    ] {
        for key in keys {
            assert!(status[table].get(key).is_some(), "no {table}.{key} in {status}");
        }
    }
    assert_eq!(status["schema"], 1);
    assert_eq!(status["booted"]["slot"], "A");
    assert_eq!(status["booted"]["version"], "1.0.0");
    assert_eq!(status["channel"], "alpha");
    assert_eq!(status["group"], "lab");
    assert!(status["quarantine"].as_array().unwrap().is_empty());
}

#[test]
fn every_verb_prints_json_with_a_schema() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    node.engine(&[]).unwrap().ok().unwrap();
    let world = &small.world;
    let disk = path(&node.disk).unwrap();
    let folder = path(&small.release.folder).unwrap();
    let documents = [
        world.updatectl(&["release", "list", "--json"]),
        world.updatectl(&["channel", "list", "--json"]),
        world.updatectl(&["channel", "promote", "alpha", "beta", "--json"]),
        world.updatectl(&["channel", "set", "stable", "1.1.0", "--json"]),
        world.updatectl(&["node", "list", "--json"]),
        world.image_tools(&["release", "inspect", folder, "--json"]),
        world.image_tools(&["disk", "show", disk, "--json"]),
        world.image_tools(&["disk", "boot", disk, "--json"]),
    ];
    for said in documents {
        let said = said.unwrap().ok().unwrap();
        assert!(said.json().unwrap()["schema"].is_u64(), "{said}");
    }
}

/// Where no engine runs, `updatectl` carries a request out itself: what the channel offers is no part of it.
#[test]
fn a_request_without_an_engine_installs_nothing_by_the_way() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    let (config, disk) = (node.config(), path(&node.disk).unwrap().to_owned());
    let ask = |verb: &[&str]| {
        let place = ["--config", path(&config).unwrap(), "--disk", &disk];
        let running = ["--booted", "A", "--version", "1.0.0"];
        node.updatectl(&[verb, &place, &running].concat()).unwrap()
    };
    let before = std::fs::read(&node.disk).unwrap();
    for (verb, code) in [
        (&["mark-good"][..], 3),
        (&["cancel"], 3),
        (&["rollback"], 5),
        (&["reboot"], 5),
        (&["rollback", "--json"], 5),
    ] {
        let said = ask(verb).expect_code(code).unwrap();
        assert!(std::fs::read(&node.disk).unwrap() == before, "the disk was changed: {said}");
    }
    let updated = ask(&["update"]).ok().unwrap();
    assert!(updated.stdout.starts_with("staged: "), "{updated}");
    node.compare(Slot::B, "root", &small.v2).unwrap();
    ask(&["update"]).expect_code(3).unwrap();
}

#[test]
fn a_slot_size_that_does_not_fit_is_said_before_the_first_byte() {
    let small = Small::new().unwrap();
    let node = small.node("node", small.world.address()).unwrap();
    let large = small.world.folder().join("large.img");
    small.tree.write_image(&large, 16 << 20, tests::images::Kind::Bytes).unwrap();
    small.world.publish("1.2.0", &large, "alpha", FAST).unwrap();
    let before = std::fs::read(&node.disk).unwrap();
    let said = node.engine(&[]).unwrap();
    assert!(said.code == Some(1) || said.code == Some(5), "{said}");
    assert!(said.stderr.contains("ROOT-B") || said.stderr.contains("root"), "{said}");
    assert!(std::fs::read(&node.disk).unwrap() == before, "the disk was touched: {said}");
}
