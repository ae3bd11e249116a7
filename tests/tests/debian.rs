//! The main job on real Debian root filesystems (`tests/debian-images`): v1 to v2, which has the security updates, and
//! on to v3, which has one more package; on a file and on a loop device, over HTTP, with a boot partition.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails, its own functions included"
)]

use protocol::slot::Slot;
use std::path::PathBuf;
use tests::blockdev::LoopDevice;
use tests::node::{Node, Setup};
use tests::world::{Release, World, path};

/// Set by `tests/run` to the folder that `tests/debian-images` filled.
const IMAGES: &str = "FLIPSIDE_TEST_IMAGES";

struct Debian {
    folder: PathBuf,
    world: World,
    /// The boot images of 1.0.0, and of the others.
    boots: [PathBuf; 2],
    v2: Release,
    v3: Release,
}

impl Debian {
    /// The images as releases, or nothing where nobody made them.
    fn new() -> Option<Self> {
        let Some(folder) = std::env::var_os(IMAGES).map(PathBuf::from) else {
            assert!(std::env::var_os("FLIPSIDE_TESTS_COMPLETE").is_none_or(|value| value != "yes"));
            eprintln!("not run: {IMAGES} is not set; tests/run sets it");
            return None;
        };
        let world = World::new().unwrap();
        let boots = ["boot1", "boot2"].map(|name| {
            let content = std::fs::read(folder.join(format!("{name}.img"))).unwrap();
            world.boot_image(name, &content, "7M").unwrap()
        });
        let build = |version: &str, root: &str| {
            let boot = &boots[1];
            let more = ["--boot", path(boot).unwrap(), "--level", "9"];
            world.build(version, &folder.join(root), &more).unwrap()
        };
        let v2 = build("1.1.0", "v2.ext4");
        let v3 = build("1.2.0", "v3.ext4");
        world.push(&v2).unwrap();
        world.push(&v3).unwrap();
        Some(Self { folder, world, boots, v2, v3 })
    }

    fn node(&self, name: &str) -> Node<'_> {
        let root = self.folder.join("v1.ext4");
        let disk_arguments = ["--boot", path(&self.boots[0]).unwrap(), "--boot-size", "16M"];
        let setup = Setup {
            root: &root,
            version: "1.0.0",
            slot_size: "400M",
            disk_arguments: &disk_arguments,
            channel: "stable",
            strategy: "off",
            config: "",
        };
        Node::new(&self.world, name, self.world.address(), &setup).unwrap()
    }

    /// Takes the node to a release, boots and confirms; returns what was fetched.
    fn update(&self, node: &mut Node<'_>, release: &Release, slot: Slot, root: &str) -> u64 {
        self.world.set_channel("stable", &release.version).unwrap();
        node.engine(&[]).unwrap().ok().unwrap();
        node.sgdisk_verify().unwrap().expect("sgdisk is installed");
        node.compare(slot, "root", &self.folder.join(root)).unwrap();
        node.compare(slot, "boot", &self.boots[1]).unwrap();
        let progress = node.status().unwrap().progress;
        assert_eq!(node.boot().unwrap(), slot);
        node.engine(&[]).unwrap().ok().unwrap();
        node.sgdisk_verify().unwrap().expect("sgdisk is installed");
        node.engine(&[]).unwrap().expect_code(3).unwrap();
        let booted = node.status().unwrap().booted.unwrap();
        assert_eq!(
            (booted.slot, booted.version.to_string(), booted.confirmed),
            (slot, release.version.clone(), true)
        );
        println!(
            "{}: {} of {} bytes of payload fetched, {} written",
            release.version,
            progress.bytes_downloaded,
            release.payload().unwrap().size,
            progress.bytes_written
        );
        progress.bytes_downloaded
    }
}

#[test]
fn a_file_goes_from_v1_to_v3() {
    let Some(debian) = Debian::new() else { return };
    let mut node = debian.node("node");
    let fetched = debian.update(&mut node, &debian.v2, Slot::B, "v2.ext4");
    assert!(fetched < debian.v2.payload().unwrap().size, "nothing of v1 was used");
    let fetched = debian.update(&mut node, &debian.v3, Slot::A, "v3.ext4");
    let whole = debian.v3.payload().unwrap().size;
    assert!(fetched < whole / 3, "one small package cost {fetched} of {whole} bytes");
}

#[test]
fn a_loop_device_goes_from_v1_to_v2() {
    let Some(debian) = Debian::new() else { return };
    let mut node = debian.node("node");
    let device = LoopDevice::attach(&node.disk, 512).unwrap();
    node.disk = device.path().to_owned();
    debian.update(&mut node, &debian.v2, Slot::B, "v2.ext4");
    device.detach().unwrap();
}
