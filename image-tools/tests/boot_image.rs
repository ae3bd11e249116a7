//! Boot images and first disks, by the commands: what is built, what is refused, and what the loader would find.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod folder;

use folder::{Folder, kernel, unified};
use serde_json::Value;
use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

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
    changed("riscv.efi", 0x44, &0x5064u16.to_le_bytes());
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
        ("--efi vmlinuz", "it is a bare Linux kernel: give it with --kernel"),
        ("--efi loader.efi", "an EFI program without a kernel: expected the section .linux"),
        ("--efi text", "expected it to begin with MZ"),
        ("--efi riscv.efi", "it is for the PE machine type 0x5064, expected x86-64 or arm64"),
        ("--kernel riscv.efi", "it is for the PE machine type 0x5064, expected x86-64 or arm64"),
        ("--kernel vmlinuz --initrd empty", "empty is empty"),
        ("--kernel vmlinuz --initrd text", "text is no initrd: expected a cpio archive"),
        ("--kernel vmlinuz --initrd vmlinuz", "or lzo, found a Linux kernel"),
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
        ("--kernel vmlinuz --out initrd", "exists: --force"),
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

#[test]
fn a_kernel_that_unpacks_itself_is_one() {
    let folder = Folder::new();
    for (machine, accepted) in [(0xaa64u16, true), (0x8664, false)] {
        let mut zboot = unified(b".text");
        zboot[4..8].copy_from_slice(b"zimg");
        zboot[0x44..0x46].copy_from_slice(&machine.to_le_bytes());
        folder.write("zboot", &zboot);
        let build = "boot-image build --force --kernel zboot --cmdline panic=10 --out boot.img";
        if accepted {
            assert_eq!(folder.json(build)["arch"], "arm64");
        } else {
            let text = folder.refused(build);
            assert!(text.contains("no Linux kernel: the header of one was expected"), "{text}");
        }
    }
}

#[test]
fn an_initrd_that_no_kernel_unpacks_is_refused() {
    let folder = Folder::new();
    for (mark, found) in [(&b"070707"[..], "odc"), (&[0xc7, 0x71], "bin")] {
        folder.write("initrd", &[mark, &[b'0'; 600]].concat());
        let text = folder
            .refused("boot-image build --kernel vmlinuz --initrd initrd --cmdline panic=1 --out boot.img");
        assert!(text.contains("expected a cpio archive (cpio -H newc), plain or compressed"), "{text}");
        assert!(text.ends_with(&format!("found a cpio archive in the format {found}\n")), "{text}");
    }
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
             --state-size 1M --boot-select loader.efi --boot boot.img --root root --state state"
        ));
        let disk = folder.path(&format!("disk-{sector}"));
        let shown = folder.json(&format!("disk show disk-{sector}"));
        let system = partition(&shown, "ESP", &disk);
        assert_eq!(system.len(), esp << 20);
        assert_eq!(file_in(&system, "EFI/BOOT/BOOTX64.EFI").unwrap(), folder.read("loader.efi"));
        assert_eq!(u16::from_le_bytes([system[11], system[12]]).to_string(), sector);
        assert!(partition(&shown, "STATE", &disk).starts_with(&folder.read("state")));
        assert!(partition(&shown, "BOOT-A", &disk).starts_with(&folder.read("boot.img")));
        assert!(partition(&shown, "BOOT-B", &disk).iter().all(|byte| *byte == 0));

        let booted = folder.json(&format!("disk boot disk-{sector}"));
        assert_eq!((&booted["slot"], &booted["left_out"]), (&"A".into(), &serde_json::json!([])));
        let start = &booted["start"];
        assert_eq!((&start["partition"], &start["program"]), (&"BOOT-A".into(), &"\\vmlinuz".into()));
        assert_eq!(start["initrd_bytes"], 70_000);
        let root = shown["partitions"][2]["unique_guid"].as_str().unwrap();
        assert_eq!(start["cmdline"], format!("panic=10 root=PARTUUID={root} flipside.slot=A"));
    }
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
        ("--boot-select vmlinuz", "vmlinuz is no loader: it is a Linux kernel, which would start no slot"),
        ("--boot-select boot.efi", "boot.efi is no loader: it is a Linux kernel"),
        ("--boot-select arm.efi", "it is for arm64, expected x86-64"),
        ("--boot-select missing", "cannot read missing"),
        ("--boot-select loader.efi --esp-size 16777215T", "too large"),
        ("--state state --state-size 2M", "the partition STATE holds 2097152"),
        ("--state missing", "cannot read missing"),
    ] {
        let text = folder.refused(&format!("disk create disk {arguments}"));
        assert!(text.contains(said), "{arguments}: {text}");
        assert!(!folder.path("disk").exists(), "{arguments}");
    }
}
