//! Boot images and first disks, by the commands: what is built, what is refused, and what the loader would find.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use assert_cmd::Command;
use serde_json::Value;
use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// A PE file for x86-64 with one section, and with the mark of a Linux kernel.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &0x8664u16.to_le_bytes());
    put(0x46, &1u16.to_le_bytes());
    put(0x54, &0xf0u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    put(0x58 + 68, &10u16.to_le_bytes());
    put(0x148, b".text");
    put(0x148 + 8, &50_000u32.to_le_bytes());
    put(0x148 + 16, &50_000u32.to_le_bytes());
    put(0x148 + 20, &0x400u32.to_le_bytes());
    put(0x202, b"HdrS");
    image.extend((0..50_000u32).map(|i| (i * 7 + i / 256).to_le_bytes()[0]));
    image
}

/// The same without the mark, and with a section of another name.
fn unified(section: &[u8]) -> Vec<u8> {
    let mut image = kernel();
    image[0x202..0x206].fill(0);
    image[0x148..0x150].fill(0);
    image[0x148..0x148 + section.len()].copy_from_slice(section);
    image
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("vmlinuz", &kernel());
        folder.write("initrd", &vec![0xa7; 70_000]);
        folder.write("boot.efi", &unified(b".linux"));
        folder.write("own-cmdline.efi", &unified(b".cmdline"));
        folder
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn tool(&self, arguments: &str) -> Command {
        let mut command = Command::cargo_bin("image-tools").unwrap();
        command.current_dir(self.0.path()).env_remove("RUST_LOG").args(arguments.split(' '));
        command
    }

    fn json(&self, arguments: &str) -> Value {
        let said = self.tool(arguments).arg("--json").assert().success();
        serde_json::from_slice(&said.get_output().stdout).unwrap()
    }

    /// What it says on stderr, in one line, when it fails.
    fn refused(&self, arguments: &str) -> String {
        let said = self.tool(arguments).assert().failure();
        let text = String::from_utf8(said.get_output().stderr.clone()).unwrap();
        assert!(said.get_output().stdout.is_empty(), "{text}");
        text
    }
}

fn file_in(volume: &[u8], path: &str) -> Option<Vec<u8>> {
    let system = fatfs::FileSystem::new(Cursor::new(volume.to_vec()), fatfs::FsOptions::new()).unwrap();
    let mut bytes = Vec::new();
    let root = system.root_dir();
    let mut file = root.open_file(path).ok()?;
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    Some(bytes)
}

const BUILD: &str = "boot-image build --kernel vmlinuz --initrd initrd --cmdline-file cmdline --out boot.img";

#[test]
fn an_image_holds_what_went_in() {
    let folder = Folder::new();
    folder.write("cmdline", b" console=ttyS0  panic=10 \n");
    for sector in ["512", "4096"] {
        let built = folder.json(&format!("{BUILD} --force --sector-size {sector}"));
        assert_eq!((&built["schema"], &built["arch"]), (&1.into(), &"x86-64".into()));
        assert_eq!(built["cmdline"], "console=ttyS0  panic=10");
        let image = folder.read("boot.img");
        assert_eq!(built["bytes"], image.len());
        assert!(image.len().is_multiple_of(1 << 20));
        assert_eq!(file_in(&image, "vmlinuz").unwrap(), folder.read("vmlinuz"));
        assert_eq!(file_in(&image, "INITRD").unwrap(), folder.read("initrd"));
        assert_eq!(file_in(&image, "cmdline").unwrap(), b"console=ttyS0  panic=10\n");
        assert!(file_in(&image, "boot.efi").is_none());
        // Again, with a little change: little is different.
        folder.json(&format!("{BUILD} --force --sector-size {sector}"));
        assert!(image == folder.read("boot.img"), "the same files give the same image");
    }
    folder.write("cmdline", b"console=tty0 panic=10\n");
    let old = folder.read("boot.img");
    folder.json(&format!("{BUILD} --force --sector-size 4096"));
    let new = folder.read("boot.img");
    let changed = old.chunks(4096).zip(new.chunks(4096)).filter(|(old, new)| old != new).count();
    // The boot sector, for its id; the directory, for the file's length; the file.
    assert!(old.len() == new.len() && (1..=3).contains(&changed), "{changed} blocks changed");

    folder.json("boot-image build --efi boot.efi --cmdline panic=5 --out unified.img --size 8M");
    let image = folder.read("unified.img");
    assert_eq!(image.len(), 8 << 20);
    assert_eq!(file_in(&image, "boot.efi").unwrap(), folder.read("boot.efi"));
    assert_eq!(file_in(&image, "cmdline").unwrap(), b"panic=5\n");
}

#[test]
fn what_a_machine_could_not_boot_is_refused() {
    let folder = Folder::new();
    folder.write("empty", b"");
    folder.write("two-lines", b"quiet\npanic=10\n");
    folder.write("elf", b"\x7fELF and so on");
    folder.write("gzip", &[0x1f, 0x8b, 8, 0]);
    folder.write("text", b"a text");
    folder.write("mz", b"MZ and nothing more");
    folder.write("cut", &kernel()[..20_000]);
    let changed = |name: &str, at: usize, bytes: &[u8]| {
        let mut image = kernel();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        folder.write(name, &image);
    };
    changed("no-pe", 0x40, b"XX");
    changed("far-pe", 0x3c, &[0xff; 4]);
    changed("pe32", 0x58, &0x10bu16.to_le_bytes());
    changed("driver", 0x58 + 68, &11u16.to_le_bytes());
    changed("long", 0, b"MZ");
    let long = "x".repeat(1961);
    for (arguments, said) in [
        ("--kernel missing", "cannot read missing"),
        ("--kernel empty", "empty is empty"),
        ("--kernel elf", "not vmlinux"),
        ("--kernel gzip", "unpack it first"),
        ("--kernel text", "expected it to begin with MZ"),
        ("--kernel mz", "ends within its headers"),
        ("--kernel cut", "the file is cut off"),
        ("--kernel no-pe", "no PE header stands at byte 64"),
        ("--kernel far-pe", "ends within its headers"),
        ("--kernel pe32", "no 64-bit EFI program"),
        ("--kernel driver", "subsystem 11, expected 10"),
        ("--kernel boot.efi", "goes with --efi"),
        ("--efi own-cmdline.efi", "a command line of its own"),
        ("--kernel vmlinuz --initrd empty", "empty is empty"),
        ("--kernel vmlinuz --cmdline root=/dev/sda1", "sets root, which the loader adds"),
        ("--kernel vmlinuz --cmdline quiet\troot=/dev/sda1", "expected printable ASCII"),
        ("--kernel vmlinuz --cmdline \"root=LABEL=x\"", "sets root"),
        ("--kernel vmlinuz --cmdline flipside.slot=A", "sets flipside.slot"),
        ("--kernel vmlinuz --cmdline flipside.trying", "sets flipside.trying"),
        ("--kernel vmlinuz --cmdline flipside.trying=no", "sets flipside.trying"),
        ("--kernel vmlinuz --cmdline größe=1", "expected printable ASCII"),
        ("--kernel vmlinuz --cmdline-file two-lines", "it has 2 lines: expected one"),
        (&format!("--kernel vmlinuz --cmdline {long}"), "it has 1961 bytes: at most 1960"),
        ("--kernel vmlinuz --size 0", "not a whole number of MiB"),
        ("--kernel vmlinuz --size 1500K", "not a whole number of MiB"),
        ("--kernel vmlinuz --out vmlinuz", "exists: --force"),
    ] {
        let out = if arguments.contains("--out") { "" } else { " --out boot.img" };
        let text = folder.refused(&format!("boot-image build {arguments}{out}"));
        assert!(text.contains(said), "{arguments}: {text}");
        assert!(!folder.path("boot.img").exists(), "{arguments}");
    }
    folder.write("large", &[&kernel()[..], &vec![7; 5 << 20]].concat());
    let text = folder.refused("boot-image build --kernel large --out boot.img --size 4M");
    assert!(text.contains("a FAT volume of 4194304 bytes holds"), "{text}");
    for usage in ["", " --kernel vmlinuz --efi boot.efi", " --efi boot.efi --initrd initrd"] {
        folder.tool(&format!("boot-image build --out boot.img{usage}")).assert().code(2);
    }
    // As long as it may be, and no panic=: said, and done.
    let said = folder
        .tool(&format!("boot-image build --kernel vmlinuz --cmdline {} --out boot.img", &long[1..]))
        .assert()
        .success();
    assert!(String::from_utf8_lossy(&said.get_output().stderr).contains("no panic="));
}

fn partition(shown: &Value, name: &str, disk: &Path) -> Vec<u8> {
    let part = shown["partitions"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap();
    let mut bytes = vec![0; usize::try_from(part["bytes"].as_u64().unwrap()).unwrap()];
    File::open(disk).unwrap().read_exact_at(&mut bytes, part["offset"].as_u64().unwrap()).unwrap();
    bytes
}

#[test]
fn a_first_disk_has_all_that_a_machine_starts_from() {
    let folder = Folder::new();
    folder.write("root", &vec![3; 100_000]);
    folder.write("state", &vec![5; 300_000]);
    folder.write("cmdline", b"panic=10");
    for (sector, esp) in [("512", 36), ("4096", 4)] {
        folder.json(&format!("{BUILD} --force --sector-size {sector}"));
        folder.json(&format!(
            "disk create disk-{sector} --sector-size {sector} --esp-size {esp}M --boot-size 8M --slot-size 1M \
             --state-size 1M --boot-select boot.efi --boot boot.img --root root --state state"
        ));
        let disk = folder.path(&format!("disk-{sector}"));
        let shown = folder.json(&format!("disk show disk-{sector}"));
        let system = partition(&shown, "ESP", &disk);
        assert_eq!(system.len(), esp << 20);
        assert_eq!(file_in(&system, "EFI/BOOT/BOOTX64.EFI").unwrap(), folder.read("boot.efi"));
        assert_eq!(u16::from_le_bytes([system[11], system[12]]).to_string(), sector);
        assert!(partition(&shown, "STATE", &disk).starts_with(&folder.read("state")));
        assert!(partition(&shown, "BOOT-A", &disk).starts_with(&folder.read("boot.img")));
        assert!(partition(&shown, "BOOT-B", &disk).iter().all(|byte| *byte == 0));

        let booted = folder.json(&format!("disk boot disk-{sector}"));
        assert_eq!((&booted["slot"], &booted["start_problem"]), (&"A".into(), &Value::Null));
        let start = &booted["start"];
        assert_eq!((&start["partition"], &start["program"]), (&"BOOT-A".into(), &"\\vmlinuz".into()));
        assert_eq!(start["initrd_bytes"], 70_000);
        let root = shown["partitions"][2]["unique_guid"].as_str().unwrap();
        assert_eq!(start["cmdline"], format!("panic=10 root=PARTUUID={root} flipside.slot=A"));
    }
    // A volume that somebody damaged, and none at all.
    let shown = folder.json("disk show disk-512");
    let boot = shown["partitions"][1]["offset"].as_u64().unwrap();
    let disk = File::options().write(true).open(folder.path("disk-512")).unwrap();
    disk.write_all_at(&[0x55; 512], boot).unwrap();
    let booted = folder.json("disk boot disk-512");
    let problem = booted["start_problem"].as_str().unwrap();
    assert!(booted["start"].is_null() && problem.contains("BOOT-A: it holds no FAT volume"), "{problem}");
    disk.write_all_at(&vec![0; 8 << 20], boot).unwrap();
    let booted = folder.json("disk boot disk-512");
    assert!(booted["start"].is_null() && booted["start_problem"].is_null(), "{booted}");
}

#[test]
fn a_disk_that_could_not_boot_is_not_made() {
    let folder = Folder::new();
    folder.write("state", &vec![5; 3 << 20]);
    let mut arm = unified(b".text");
    arm[0x44..0x46].copy_from_slice(&0xaa64u16.to_le_bytes());
    folder.write("arm.efi", &arm);
    for (arguments, said) in [
        ("--slot-size 0", "--slot-size is 0: a partition has at least 1M"),
        ("--esp-size 0", "--esp-size is 0"),
        ("--boot-size 0M", "--boot-size is 0"),
        ("--state-size 0", "--state-size is 0"),
        ("--boot-select initrd", "initrd is no loader: it is no EFI program"),
        ("--boot-select arm.efi", "is a program for arm64: expected one for x86-64"),
        ("--boot-select missing", "cannot read missing"),
        ("--boot-select boot.efi --esp-size 16777216T", "too large"),
        ("--state state --state-size 2M", "the partition STATE holds 2097152"),
        ("--state missing", "cannot read missing"),
    ] {
        let text = folder.refused(&format!("disk create disk {arguments}"));
        assert!(text.contains(said), "{arguments}: {text}");
        assert!(!folder.path("disk").exists(), "{arguments}");
    }
}
