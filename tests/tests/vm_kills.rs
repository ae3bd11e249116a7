//! Power cuts of a whole machine at random moments of an update, of the flip and of the loader: it always boots, and
//! the update completes.
//!
//! 10 of them, 100 with `FLIPSIDE_SOAK=1`. The seed is printed; `FLIPSIDE_SEED` sets it. It fixes what is cut when,
//! not what the machine was doing by then.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::slot::Slot;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::images::Random;
use tests::process::run;
use tests::vm::guest::Flaw;
use tests::vm::machine::Machine;
use tests::vm::site::{BOOT, Settings, Site, open_disk};

/// The longest from one moment of an update to the next.
const STEP: Duration = Duration::from_secs(240);

/// When the power goes: so many milliseconds at most after a line of the console.
struct Moment {
    name: &'static str,
    line: &'static str,
    within_ms: u64,
}

/// The flip is short: it lies between "staged" and the reboot. The loader writes its try within milliseconds of its
/// start, and reads the kernel for seconds.
const MOMENTS: [Moment; 4] = [
    Moment { name: "update", line: "driver: downloading", within_ms: 8_000 },
    Moment { name: "flip", line: "driver: staged", within_ms: 700 },
    Moment { name: "loader, spending the try", line: "BdsDxe: starting", within_ms: 60 },
    Moment { name: "loader and kernel", line: "boot-select: chosen", within_ms: 8_000 },
];

/// The versions published so far, and their images.
struct Published {
    site: Site,
    versions: Vec<(String, PathBuf, PathBuf)>,
}

impl Published {
    fn newest(&self) -> &str {
        &self.versions.last().unwrap().0
    }

    /// Makes the next release and offers it.
    fn publish_next(&mut self) {
        let version = format!("1.{}.0", self.versions.len());
        self.site.publish(&version, Flaw::None).unwrap();
        self.note(&version);
    }

    fn note(&mut self, version: &str) {
        let folder = self.site.world.folder();
        let (root, boot) = (folder.join(format!("{version}.root")), folder.join(format!("{version}.boot")));
        self.versions.push((version.to_owned(), root, boot));
    }

    /// What boots next is one of the releases, whole: root file system and boot image of the same version.
    fn what_boots_is_whole(&self, disk: &Path) -> (Slot, String) {
        let opened = open_disk(disk).unwrap();
        let (slot, _) = opened.select().unwrap_or_else(|| panic!("nothing boots: {}", opened.health()));
        let holds = |role: &str, image: &Path| {
            let view = opened.partition(slot, &role.parse().unwrap()).unwrap();
            same(disk, view.offset, image)
        };
        let found = self.versions.iter().find(|(_, root, boot)| holds("root", root) && holds("boot", boot));
        let (version, _, _) = found.unwrap_or_else(|| panic!("slot {slot} would boot and holds no release"));
        (slot, version.clone())
    }
}

/// Whether a disk holds the image at this offset.
fn same(disk: &Path, offset: u64, image: &Path) -> bool {
    let (disk, image) = (File::open(disk).unwrap(), File::open(image).unwrap());
    let length = image.metadata().unwrap().len();
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    (0..length).step_by(1 << 20).all(|at| {
        let part = usize::try_from((length - at).min(1 << 20)).unwrap();
        disk.read_exact_at(&mut ours[..part], offset + at).unwrap();
        image.read_exact_at(&mut theirs[..part], at).unwrap();
        ours[..part] == theirs[..part]
    })
}

/// Waits for the moment's line; where the machine has nothing left to do before, gives it the next release.
fn wait_for_moment(published: &mut Published, machine: &Machine, mut from: usize, moment: &Moment) {
    loop {
        let done = format!("the node runs {}, the release of the channel", published.newest());
        let found =
            machine.console.wait(from, STEP, |line| line.contains(moment.line) || line.contains(&done));
        let Some((number, line)) = found else {
            panic!(
                "no {:?} for {STEP:?}, {}: {}",
                moment.line,
                machine.log().display(),
                machine.console.tail(40)
            );
        };
        if line.text.contains(moment.line) {
            return;
        }
        published.publish_next();
        from = number + 1;
    }
}

/// The line after the loader's, of a machine that is up.
fn after_the_loader(machine: &Machine, from: usize) -> usize {
    let (number, _) = machine.wait_console(from, "boot-select: chosen", BOOT).unwrap();
    number + 1
}

fn seed() -> u64 {
    match std::env::var("FLIPSIDE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from(std::process::id()),
    }
}

#[test]
fn power_cuts_at_random_moments() {
    let settings = Settings { tries: 15, rate_limit: 1 << 20, data: 6 << 20, ..Settings::default() };
    let Some(site) = Site::new("kills", settings).unwrap() else { return };
    let soak = std::env::var("FLIPSIDE_SOAK").is_ok_and(|value| value == "1");
    let (kills, seed) = (if soak { 100 } else { 10 }, seed());
    println!("vm kills: FLIPSIDE_SEED={seed}, {kills} power cuts");
    let mut random = Random::new(seed);
    let mut machine = site.machine().unwrap();
    let mut published = Published { site, versions: Vec::new() };
    published.note("1.0.0");
    published.publish_next();
    let mut from = machine.console.len();
    machine.start().unwrap();
    let mut order = [0, 1, 2, 3];
    for kill in 0..kills {
        if kill % order.len() == 0 {
            // Every four cuts are one of each kind, in an order of their own.
            order.sort_by_cached_key(|_| random.draw());
        }
        let moment = &MOMENTS[order[kill % order.len()]];
        wait_for_moment(&mut published, &machine, from, moment);
        let delay = Duration::from_millis(random.draw() % (moment.within_ms + 1));
        // The only way to wait for a moment that nobody announces.
        std::thread::sleep(delay);
        machine.kill().unwrap();
        let (slot, version) = published.what_boots_is_whole(&machine.hardware.disk);
        published.site.report(&format!(
            "kill {}: {} + {delay:?}, next boots {version} in {slot}",
            kill + 1,
            moment.name
        ));
        from = machine.console.len();
        machine.start().unwrap();
        // A machine that was just switched on is in its loader soon. Once it is up, the loader runs when the next
        // update is in place.
        if random.below(3) > 0 {
            let boot = machine.wait_boot(BOOT).unwrap();
            assert_eq!((boot.slot.as_str(), boot.version), (slot.as_str(), version));
            from = after_the_loader(&machine, from);
        }
    }
    complete(&published, &mut machine, from);
}

/// The newest release runs in the end, confirmed, and nothing was condemned on the way.
fn complete(published: &Published, machine: &mut Machine, switched_on: usize) {
    let done = format!("idle: the node runs {}, the release of the channel", published.newest());
    machine.wait_console(switched_on, &done, STEP).unwrap();
    let status = machine.status().unwrap();
    let booted = status.booted.unwrap();
    assert_eq!((booted.version.as_str(), booted.confirmed), (published.newest(), true));
    assert!(status.quarantine.is_empty(), "{:?}", status.quarantine);
    published.site.report("complete");
    machine.kill().unwrap();
    let said = run(std::process::Command::new("sgdisk").arg("-v").arg(&machine.hardware.disk)).unwrap();
    assert!(said.stdout.contains("No problems found"), "{said}");
}
