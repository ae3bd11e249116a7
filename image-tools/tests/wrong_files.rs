//! Files that no machine boots, or that the command itself reads, and disks of which a slot cannot be started: each is
//! said before anything is written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod folder;

use folder::{Folder, initrd, kernel, unified};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

const BUILD: &str = "boot-image build --kernel vmlinuz --initrd initrd --cmdline panic=10";
const CREATE: &str = "disk create disk --boot-size 8M --esp-size 4M --slot-size 1M --state-size 1M";
const RELEASE: &str = "release build --version 1.0.0 --root root --level 1 --out release";

/// Bytes in a cluster of [`volume`].
const CLUSTER: usize = 512;

/// A FAT volume with these files.
fn volume(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(vec![0; 1 << 20]);
    fatfs::format_volume(&mut bytes, fatfs::FormatVolumeOptions::new()).unwrap();
    let system = fatfs::FileSystem::new(&mut bytes, fatfs::FsOptions::new()).unwrap();
    for (name, content) in files {
        system.root_dir().create_file(name).unwrap().write_all(content).unwrap();
    }
    system.unmount().unwrap();
    bytes.into_inner()
}

/// A volume whose file `name` goes on, says the root folder, where its only cluster ends.
fn cut(name: &str, files: &[(&str, &[u8])], len: u32) -> Vec<u8> {
    let mut bytes = volume(files);
    let entry = format!("{:<11}", name.to_uppercase());
    let at = bytes.windows(11).position(|window| window == entry.as_bytes()).unwrap();
    bytes[at + 28..at + 32].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// A folder with boot images, good and bad, and a root that the tools know.
fn images() -> Folder {
    let folder = Folder::new();
    let mut root = vec![0; 1 << 20];
    root[..4].copy_from_slice(b"hsqs");
    folder.write("root", &root);
    for sector in ["512", "4096"] {
        folder.json(&format!("{BUILD} --sector-size {sector} --out boot-{sector}"));
    }
    folder.write("empty", b"");
    folder.write("zeros", &[0; 70_000]);
    folder.write("text", b"console=ttyS0\n");
    folder.write("cut", &folder.read("boot-512")[..1 << 20]);
    folder.write("no-kernel", &volume(&[("cmdline", b"quiet")]));
    folder.write("cut-kernel", &volume(&[("vmlinuz", &kernel()[..2000])]));
    folder.write("two-lines", &volume(&[("vmlinuz", &kernel()), ("cmdline", b"quiet\nro")]));
    folder.write(
        "cut-initrd",
        &cut("initrd", &[("vmlinuz", &kernel()), ("initrd", &initrd()[..9])], 5_000_000),
    );
    folder.write("cut-cmdline", &cut("cmdline", &[("vmlinuz", &kernel()), ("cmdline", b"ro")], 60_000));
    folder
        .write("long-cmdline", &cut("cmdline", &[("vmlinuz", &kernel()), ("cmdline", b"ro")], 4_000_000_000));
    folder.write("empty-initrd", &volume(&[("vmlinuz", &kernel()), ("initrd", b"")]));
    folder
}

#[test]
fn a_boot_image_that_nothing_boots_goes_into_no_disk_and_no_release() {
    let folder = images();
    let cases = [
        ("text", "text is no boot image: expected a FAT volume with \\vmlinuz or \\boot.efi, found text"),
        ("empty", "found an empty file"),
        ("zeros", "found nothing but zeros"),
        ("vmlinuz", "found a Linux kernel; make one with `image-tools boot-image build`"),
        ("initrd", "found a cpio archive"),
        ("root", "found squashfs"),
        ("cut", "is cut off: its volume has 4194304 bytes, the file 1048576"),
        ("no-kernel", "the loader would not start from the boot image no-kernel: \\vmlinuz: not found"),
        ("cut-kernel", "\\vmlinuz: the file is cut off"),
        ("two-lines", "\\cmdline: more than one line"),
        ("empty-initrd", "\\initrd: empty"),
        ("cut-initrd", &format!("\\initrd: cut off: {CLUSTER} of 5000000 bytes")),
        ("cut-cmdline", &format!("\\cmdline: cut off: {CLUSTER} of 60000 bytes")),
        ("long-cmdline", "\\cmdline: longer than 65536 bytes"),
        ("missing", "cannot read missing"),
    ];
    for (image, said) in cases {
        for command in [CREATE.to_owned(), format!("{RELEASE} --arch x86-64")] {
            let text = folder.refused(&format!("{command} --boot {image}"));
            assert!(text.contains(said), "{command} {image}: {text}");
            assert!(!folder.path("disk").exists() && !folder.path("release").exists(), "{image}");
        }
    }
    // For those who want it so.
    folder.json(&format!("{CREATE} --boot text --unchecked-boot"));
    folder.json(&format!("{RELEASE} --arch x86-64 --boot text --unchecked-boot"));
    folder.tool(&format!("{CREATE} --unchecked-boot --force")).assert().code(2);
}

#[test]
fn a_boot_image_fits_the_disk_and_the_architecture() {
    let folder = images();
    // Some firmware starts the kernel from larger sectors all the same.
    for (sector, boot, warned) in [
        ("512", "boot-512", false),
        ("512", "boot-4096", false),
        ("4096", "boot-4096", false),
        ("4096", "boot-512", true),
    ] {
        let said =
            folder.tool(&format!("{CREATE} --force --sector-size {sector} --boot {boot}")).assert().success();
        let text = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
        let warning =
            "boot-512 is made for sectors of 512 bytes, the disk has 4096: some firmware, and Linux's vfat";
        assert_eq!(text.contains(warning), warned, "{sector} {boot}: {text}");
        assert_eq!(folder.json("disk boot disk")["start"]["partition"], "BOOT-A");
    }
    let text = folder.refused(&format!("{RELEASE} --arch arm64 --boot boot-512"));
    assert!(text.contains("it is for x86-64, expected arm64"), "{text}");
    for arch in ["amd64", "anything"] {
        folder.json(&format!("{RELEASE} --force --arch {arch} --boot boot-512"));
    }
}

#[test]
fn a_root_that_is_not_known_is_taken_with_a_warning_and_an_empty_one_is_not() {
    let folder = images();
    for command in [CREATE.to_owned(), format!("{} --arch x86-64", RELEASE.replace("--root root ", ""))] {
        for (root, found) in [("text", "found text"), ("vmlinuz", "found a Linux kernel"), ("root", "")] {
            let said = folder.tool(&format!("{command} --force --root {root}")).assert().success();
            let text = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
            let warned = text.contains("holds no file system that is known here");
            assert!(warned != found.is_empty() && text.contains(found), "{root}: {text}");
        }
        let text = folder.refused(&format!("{command} --force --root empty"));
        assert!(text.contains("empty is empty"), "{text}");
    }
    let said = folder.tool(&format!("{CREATE} --force --state text")).assert().success();
    assert!(String::from_utf8_lossy(&said.get_output().stderr).contains("found text"));
}

#[test]
fn force_does_not_reach_what_goes_in() {
    let folder = images();
    folder.json(&format!("{RELEASE} --arch x86-64"));
    let release = std::fs::read_dir(folder.path("release")).unwrap();
    let mut names = release.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let payload = format!("release/{}", names.find(|name| name.ends_with(".payload")).unwrap());
    std::os::unix::fs::symlink("vmlinuz", folder.path("soft")).unwrap();
    std::fs::hard_link(folder.path("vmlinuz"), folder.path("hard")).unwrap();
    folder.write("line", b"panic=10");
    let release = RELEASE.replace("--root root ", "--arch x86-64 --force ");
    for (command, input) in [
        ("boot-image build --force --kernel vmlinuz --out vmlinuz", "vmlinuz"),
        ("boot-image build --force --kernel vmlinuz --out ./soft", "vmlinuz"),
        ("boot-image build --force --kernel soft --out hard", "vmlinuz"),
        ("boot-image build --force --kernel vmlinuz --initrd initrd --out initrd", "initrd"),
        ("boot-image build --force --efi boot.efi --out boot.efi", "boot.efi"),
        ("boot-image build --force --kernel vmlinuz --cmdline-file line --out line", "line"),
        ("disk create root --force --root root", "root"),
        ("disk create boot-512 --force --boot boot-512", "boot-512"),
        ("disk create loader.efi --force --boot-select loader.efi", "loader.efi"),
        ("disk create root --force --state root", "root"),
        (&format!("{release} --root release/manifest.json"), "release/manifest.json"),
        (&format!("{release} --root {payload}"), &payload),
        (&format!("payload apply --release release --out-root {payload}"), &payload),
        ("payload apply --release release --out-root release/manifest.json", "release/manifest.json"),
    ] {
        let before = folder.read(input);
        let text = folder.refused(command);
        assert!(text.contains(" as well, which writing it would destroy"), "{command}: {text}");
        assert!(folder.read(input) == before, "{command}");
    }
    assert!(folder.path("soft").is_symlink());
}

/// Writes at the start of a partition.
fn overwrite(folder: &Folder, name: &str, bytes: &[u8]) {
    let shown = folder.json("disk show disk");
    let part = shown["partitions"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap();
    let disk = File::options().write(true).open(folder.path("disk")).unwrap();
    disk.write_all_at(bytes, part["offset"].as_u64().unwrap()).unwrap();
}

#[test]
fn a_slot_that_cannot_be_started_is_left_out_and_the_next_one_tried() {
    let folder = images();
    folder.json(&format!("{CREATE} --boot boot-512"));
    overwrite(&folder, "BOOT-B", b"garbage");
    folder.json("disk set disk --slot B --priority 2 --tries 3");
    let said = folder.tool("disk boot disk").assert().success();
    let text = String::from_utf8_lossy(&said.get_output().stdout).into_owned();
    assert!(text.starts_with("left out: B: BOOT-B: it holds no FAT volume"), "{text}");
    assert!(text.contains("slot A: priority 1") && text.contains("starts BOOT-A: \\vmlinuz"), "{text}");
    // Its try is spent all the same, as the loader spends it.
    let booted = folder.json("disk boot disk");
    assert_eq!((&booted["slot"], &booted["left_out"][0]["slot"]), (&json!("A"), &json!("B")));
    assert!(booted["left_out"][0]["reason"].as_str().unwrap().starts_with("BOOT-B: it holds no FAT"));
    assert_eq!(booted["messages"][0], "chosen: B tries_left=1");
    assert_eq!(folder.json("disk show disk")["slots"][1]["tries_left"], 1);
    // Without any try left it is not even looked at.
    folder.json("disk boot disk");
    assert_eq!(folder.json("disk boot disk")["left_out"], json!([]));

    overwrite(&folder, "BOOT-A", &[0x55; 512]);
    let said = folder.tool("disk boot disk --json").assert().failure().code(1);
    let document: Value = serde_json::from_slice(&said.get_output().stdout).unwrap();
    assert_eq!((&document["slot"], &document["left_out"][0]["slot"]), (&Value::Null, &json!("A")));
    let error = document["error"].as_str().unwrap();
    assert!(error.contains("no slot can be booted: A: BOOT-A: it holds no FAT volume"), "{error}");
    assert!(error.contains("B: priority=2 tries_left=0"), "{error}");
    let stderr = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
    assert_eq!(stderr, format!("image-tools: {error}\n"));
    // A BOOT partition without anything is left out as well, as long as the other one holds something.
    overwrite(&folder, "BOOT-A", &vec![0; 8 << 20]);
    let said = folder.tool("disk boot disk").assert().failure().code(1);
    // What the loader says, for people too.
    let text = String::from_utf8_lossy(&said.get_output().stdout).into_owned();
    assert!(text.starts_with("chosen: A tries_left=0\nleft out: A: BOOT-A: it holds no FAT"), "{text}");
    let text = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
    assert!(text.contains("A: BOOT-A: it holds no FAT"), "{text}");
    overwrite(&folder, "BOOT-B", &vec![0; 8 << 20]);
    let booted = folder.json("disk boot disk");
    assert_eq!((&booted["slot"], &booted["start"]), (&json!("A"), &Value::Null));
}

/// The loader tells its started system of the boot in a variable: by that name it is known.
fn boot_select() -> Vec<u8> {
    let name = "FlipsideBoot".encode_utf16().flat_map(u16::to_le_bytes);
    [unified(b".text"), name.collect()].concat()
}

#[test]
fn a_disk_with_boot_select_starts_from_boot_images_or_not_at_all() {
    let folder = images();
    folder.write("boot-select.efi", &boot_select());
    let text = folder.refused(&format!("{CREATE} --boot-select boot-select.efi --root root"));
    assert!(text.contains("the disk would not boot") && text.contains("give one with --boot"), "{text}");
    assert!(!folder.path("disk").exists());
    folder.json(&format!("{CREATE} --boot-select boot-select.efi --root root --boot boot-512"));
    assert_eq!(folder.json("disk boot disk")["start"]["partition"], "BOOT-A");
    overwrite(&folder, "BOOT-A", &vec![0; 8 << 20]);
    let said = folder.tool("disk boot disk --json").assert().failure().code(1);
    let document: Value = serde_json::from_slice(&said.get_output().stdout).unwrap();
    let error = document["error"].as_str().unwrap();
    assert!(error.contains("no slot can be booted: A: BOOT-A: it holds no FAT volume"), "{error}");

    // Another loader may find its kernels elsewhere: whether it starts is not known here.
    let said =
        folder.tool(&format!("{CREATE} --force --boot-select loader.efi --root root")).assert().success();
    let text = String::from_utf8_lossy(&said.get_output().stdout).into_owned();
    assert!(text.ends_with("slot A is chosen, without a boot image\n"), "{text}");
    let booted = folder.json("disk boot disk");
    assert_eq!((&booted["slot"], &booted["start"]), (&json!("A"), &Value::Null));
}

#[test]
fn a_cut_file_is_left_out_as_the_loader_leaves_it_out() {
    let folder = images();
    folder.json(&format!("{CREATE} --boot cut-initrd --unchecked-boot"));
    let said = folder.tool("disk boot disk --json").assert().failure().code(1);
    let document: Value = serde_json::from_slice(&said.get_output().stdout).unwrap();
    let reason = document["left_out"][0]["reason"].as_str().unwrap();
    assert_eq!(reason, format!("\\initrd: cut off: {CLUSTER} of 5000000 bytes"));
}

#[test]
fn a_command_that_fails_says_so_as_a_document_too() {
    let folder = images();
    folder.json(&format!("{CREATE} --root root"));
    for (arguments, code, said) in [
        (
            "disk show text",
            1,
            "text is no disk with a GPT: expected one as `image-tools disk create` makes it, found text",
        ),
        ("disk show zeros", 1, "zeros is no disk with a GPT"),
        ("disk boot text", 1, "text is no disk with a GPT"),
        ("disk show missing", 1, "cannot open the disk missing: No such file or directory (os error 2)"),
        ("disk show .", 1, ". is neither a block device nor a regular file"),
        (
            "disk verify disk --slot A --release missing",
            1,
            "cannot read missing, expected a release's folder",
        ),
        ("disk verify disk --slot A --release text", 1, "text is no manifest, expected a release's folder"),
        ("disk create new --slot-size 0", 1, "--slot-size is 0: a partition has at least 1M"),
        ("disk create new --slot-size 1.5G", 2, "expected a whole number of bytes"),
        ("boot-image build --kernel text --out new", 1, "text cannot be booted"),
        ("release inspect missing", 1, "cannot read missing/manifest.json"),
        ("keys init --dir new --online missing", 1, "missing"),
        ("disk show", 2, "required arguments were not provided: <DISK>"),
        ("nonsense", 2, "unrecognized subcommand 'nonsense'"),
    ] {
        let output = folder.tool(arguments).arg("--json").assert().code(code).get_output().clone();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(stdout.lines().count(), 1, "{arguments}: {stdout}");
        let document: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(document["schema"], 1);
        let error = document["error"].as_str().unwrap();
        assert!(error.contains(said), "{arguments}: {error}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        if code == 1 {
            assert_eq!(stderr, format!("image-tools: {error}\n"));
        } else {
            assert!(stderr.starts_with("error: "), "{stderr}");
        }
        // Without it nothing is on stdout.
        assert!(folder.tool(arguments).assert().code(code).get_output().stdout.is_empty());
    }
    // A name, not an option.
    let said = folder.tool("disk show -- disk --json").assert().code(2);
    assert!(said.get_output().stdout.is_empty());
    // What was found out is not lost.
    folder.json(&format!("{RELEASE} --arch x86-64"));
    folder.json("disk verify disk --slot A --release release");
    let said = folder.tool("disk verify disk --slot B --release release --json").assert().code(1);
    let document: Value = serde_json::from_slice(&said.get_output().stdout).unwrap();
    assert_eq!((&document["equal"], &document["partitions"][0]["role"]), (&json!(false), &json!("root")));
    assert!(document["error"].as_str().unwrap().contains("does not hold release 1.0.0: root differ"));
}

/// Renaming over a device node would destroy the node and report success. Nodes of one's own need root.
#[test]
fn an_output_replaces_nothing_but_a_regular_file() {
    let folder = images();
    let mut outputs = vec![("null", "a character device"), ("folder", "a folder"), ("pipe", "a pipe")];
    std::os::unix::fs::symlink("/dev/null", folder.path("null")).unwrap();
    std::fs::create_dir(folder.path("folder")).unwrap();
    for (name, kind, number, found) in [
        ("pipe", "p", &[][..], ""),
        ("chr", "c", &["1", "3"], "a character device"),
        ("blk", "b", &["7", "250"], "a block device"),
    ] {
        let mut mknod = std::process::Command::new("mknod");
        let made = mknod.arg(folder.path(name)).arg(kind).args(number).output().unwrap().status.success();
        if made && !found.is_empty() {
            outputs.push((name, found));
        }
    }
    for (out, found) in outputs {
        let kind = folder.path(out).symlink_metadata().unwrap().file_type();
        let text = folder.refused(&format!("{BUILD} --out {out} --force"));
        assert_eq!(
            text,
            format!(
                "image-tools: cannot write {out}: found {found}: expected a regular file, or nothing there\n"
            )
        );
        assert_eq!(folder.path(out).symlink_metadata().unwrap().file_type(), kind, "{out}");
        // A release's manifest goes by the same rule.
        let release = folder.path(&format!("release-{out}"));
        std::fs::create_dir(&release).unwrap();
        std::os::unix::fs::symlink(folder.path(out), release.join("manifest.json")).unwrap();
        let command = RELEASE.replace("--out release", &format!("--out release-{out} --force"));
        let text = folder.refused(&format!("{command} --arch x86-64"));
        assert!(text.contains(&format!("manifest.json: found {found}: expected")), "{text}");
    }
    let text = folder.refused(&format!("{BUILD} --out missing/boot.img"));
    assert_eq!(
        text,
        "image-tools: cannot write missing/boot.img: there is no folder missing: make it first\n"
    );
    let text = folder.refused(&CREATE.replace("create disk", "create missing/disk"));
    assert_eq!(text, "image-tools: cannot write missing/disk: there is no folder missing: make it first\n");

    folder.write("old", b"old");
    std::os::unix::fs::symlink("old", folder.path("link")).unwrap();
    folder.json(&format!("{BUILD} --out link --force"));
    assert!(folder.path("link").is_symlink() && folder.read("old") == folder.read("boot-512"));
}

#[test]
fn an_output_that_nobody_reads_is_one_line_and_no_panic() {
    let folder = images();
    folder.json(CREATE);
    for arguments in ["disk show disk", "disk show disk --json", "disk set disk --slot A --tries 0"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("image-tools"));
        let said =
            command.args(arguments.split(' ')).current_dir(folder.path(".")).stdout(writer).output().unwrap();
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{text}");
        assert!(
            text.starts_with("image-tools: cannot write to stdout: ") && text.lines().count() == 1,
            "{text}"
        );
    }
}

#[test]
fn nothing_to_set_is_wrong_usage() {
    let folder = images();
    folder.json(CREATE);
    folder.tool("disk set disk --slot B").assert().code(2);
    folder.json("disk set disk --slot B --priority 1 --tries 2");
}
