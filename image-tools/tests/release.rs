//! Releases built from images made here: the same bytes whatever the threads, installed and verified, and refused
//! when damaged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use assert_cmd::Command;
use image_tools::apply::install_to_file;
use image_tools::build::{BuildError, ImageInput, Settings, build};
use image_tools::release::{Details, Release, build_release};
use protocol::id::PartitionRole;
use protocol::payload::{Content, Index};
use std::fs;
use std::path::{Path, PathBuf};

/// Fast, and with segments small enough that a small image has many.
fn settings() -> Settings {
    Settings { level: 1, segment_len: 256 << 10, prefix_window: 64 << 10, threads: 2, ..Settings::default() }
}

/// Text that compresses, noise that does not, a hole, and the text once more.
fn image(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut noise = |len: usize, mask: u8| -> Vec<u8> {
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3] & mask
            })
            .collect()
    };
    let text = noise(1_500_000, 0x0f);
    let mut image = text.clone();
    image.extend(noise(700_000, 0xff));
    image.resize(image.len() + 3_000_000, 0);
    image.extend(&text[..1_000_000]);
    image
}

fn input(dir: &Path, role: &str, bytes: &[u8]) -> ImageInput {
    let path = dir.join(format!("{role}.img"));
    fs::write(&path, bytes).unwrap();
    ImageInput { role: role.parse().unwrap(), path }
}

fn details(version: &str) -> Details {
    Details {
        os: "debian".to_owned(),
        version: version.parse().unwrap(),
        arch: "x86-64".parse().unwrap(),
        min_source_version: None,
        notes: String::new(),
    }
}

fn outputs(dir: &Path) -> impl Fn(&PartitionRole) -> Option<PathBuf> {
    let dir = dir.to_owned();
    move |role| Some(dir.join(format!("{role}.out")))
}

#[test]
fn the_same_bytes_whatever_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let images = [input(dir.path(), "root", &image(1)), input(dir.path(), "boot", &image(2)[..800_000])];
    let build_with = |threads| {
        let out = dir.path().join(format!("out-{threads}"));
        fs::create_dir(&out).unwrap();
        let built = build(&images, &out, Settings { threads, ..settings() }, &|_| {}).unwrap();
        assert_eq!(built.path, out.join(format!("{}.payload", built.file.sha256)));
        // Nothing else is left in the folder.
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        (fs::read(&built.path).unwrap(), built.file, built.index)
    };
    let (bytes, file, index) = build_with(1);
    for threads in [2, 5] {
        let (other, ..) = build_with(threads);
        assert!(other == bytes, "{threads} threads give another file");
    }
    assert_eq!(file.size, bytes.len() as u64);
    let head = &bytes[..usize::try_from(file.head_size).unwrap()];
    assert_eq!(protocol::digest::Sha256::of(head), file.head_sha256);
    assert_eq!(Index::parse_head(head).unwrap().1, index);
    // The text of the root image stands in it twice and in no other form: it is stored once.
    let repeats = index.partitions[0].chunks.iter().filter(|c| matches!(c.content, Content::Repeat { .. }));
    assert!(repeats.map(|c| u64::from(c.len)).sum::<u64>() > 900_000);
    assert!(file.size < 2_200_000, "{}", file.size);
}

#[test]
fn a_release_installs_verifies_and_updates_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let first = image(3);
    let mut second = first.clone();
    second[2_000_000..2_000_100].fill(0x55);
    let releases: Vec<Release> = [&first, &second]
        .iter()
        .zip(["1.0.0", "1.1.0"])
        .map(|(bytes, version)| {
            let images = [input(dir.path(), "root", bytes), input(dir.path(), "boot", &bytes[..5000])];
            let out = dir.path().join(version);
            build_release(&images, &out, details(version), settings(), false, &|_| {}).unwrap()
        })
        .collect();
    for release in &releases {
        release.verify(&|_| {}).unwrap();
        assert_eq!(fs::read_dir(&release.dir).unwrap().count(), 2, "verifying leaves nothing behind");
    }
    let out = outputs(dir.path());
    install_to_file(&releases[0], &out, &|_| {}).unwrap();
    assert!(fs::read(dir.path().join("root.out")).unwrap() == first);
    assert!(fs::read(dir.path().join("boot.out")).unwrap() == first[..5000]);
    // The second fetches and writes the chunk that changed, and no more.
    let report = install_to_file(&releases[1], &out, &|_| {}).unwrap();
    assert!(fs::read(dir.path().join("root.out")).unwrap() == second);
    assert!(report.bytes_written > 0 && report.bytes_written < 200_000, "{report:?}");
    assert!(report.bytes_downloaded < 200_000, "{report:?}");
    let report = install_to_file(&releases[1], &out, &|_| {}).unwrap();
    assert_eq!((report.bytes_downloaded, report.bytes_written, report.bytes_zeroed), (0, 0, 0));
}

#[test]
fn a_damaged_release_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let images = [input(dir.path(), "root", &image(4))];
    let out = dir.path().join("rel");
    let release = build_release(&images, &out, details("1.0.0"), settings(), false, &|_| {}).unwrap();
    let path = release.payload_path();
    let good = fs::read(&path).unwrap();
    let manifest = fs::read_to_string(out.join("manifest.json")).unwrap();
    assert!(manifest.ends_with("}\n"));
    let spoil = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, bad).unwrap();
    };
    let head = usize::try_from(release.payload.head_size).unwrap();
    for (at, what) in [(0, "head"), (head - 1, "head"), (head, "payload"), (good.len() - 1, "payload")] {
        spoil(at);
        let error = match Release::load(&out) {
            Ok(release) => release.verify(&|_| {}).unwrap_err(),
            Err(error) => error,
        };
        let error = format!("{error:#}");
        assert!(error.contains("sha256") && error.contains(what), "{error}");
        // An installation sees it as well, before the damaged chunk is written.
        if at >= head {
            let error = install_to_file(&Release::load(&out).unwrap(), &outputs(dir.path()), &|_| {});
            assert!(format!("{:#}", error.unwrap_err()).contains("is not what the index says"));
        }
    }
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(format!("{:#}", Release::load(&out).unwrap_err()).contains("bytes: expected"));
    fs::write(&path, &good).unwrap();
    let digest = release.manifest.partitions[0].sha256.to_string();
    fs::write(out.join("manifest.json"), manifest.replace(&digest, &"0".repeat(64))).unwrap();
    assert!(format!("{:#}", Release::load(&out).unwrap_err()).contains("different images"));
}

#[test]
fn what_cannot_be_built_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let empty = [input(dir.path(), "root", &[])];
    assert!(matches!(build(&empty, &out, settings(), &|_| {}), Err(BuildError::Empty(_))));
    let missing = [ImageInput { role: PartitionRole::root(), path: dir.path().join("none") }];
    assert!(matches!(build(&missing, &out, settings(), &|_| {}), Err(BuildError::Image { .. })));
    let twice = [input(dir.path(), "root", &image(5)), input(dir.path(), "root", &image(5))];
    assert!(matches!(build(&twice, &out, settings(), &|_| {}), Err(BuildError::Format(_))));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
}

fn image_tools() -> Command {
    Command::cargo_bin("image-tools").unwrap()
}

fn stdout_json(command: &mut Command) -> serde_json::Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

#[test]
fn the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let root = image(6);
    let images = [input(dir.path(), "root", &root), input(dir.path(), "boot", &root[..9000])];
    let rel = dir.path().join("rel-1.1.0");
    let build = || {
        let mut command = image_tools();
        command.args([
            "release",
            "build",
            "--version",
            "1.1.0",
            "--arch",
            "x86-64",
            "--level",
            "1",
            "--json",
        ]);
        command.arg("--root").arg(&images[0].path).arg("--boot").arg(&images[1].path).arg("--out").arg(&rel);
        // What is in the images does not matter to this.
        command.args(["--unchecked-boot", "--log", "error"]);
        command
    };
    let built = stdout_json(&mut build());
    assert_eq!(built["schema"], 1);
    assert_eq!(built["bytes_image"], root.len() + 9000);
    assert_eq!(built["manifest"]["partitions"][1]["role"], "boot");
    assert_eq!(stdout_json(image_tools().args(["release", "inspect", "--json"]).arg(&rel)), built);
    assert_eq!(stdout_json(image_tools().args(["--json", "release", "verify"]).arg(&rel))["verified"], true);
    // Not by accident over another release; by intent, with the same result.
    let refused = build().assert().failure().code(1).get_output().stderr.clone();
    let refused = String::from_utf8(refused).unwrap();
    assert!(refused.starts_with("image-tools: ") && refused.contains("--force"), "{refused}");
    assert_eq!(refused.lines().count(), 1);
    assert_eq!(stdout_json(build().arg("--force")), built);

    let out = dir.path().join("out.img");
    let mut apply = image_tools();
    apply.args(["payload", "apply", "--release"]).arg(&rel).arg("--out-root").arg(&out);
    let error = String::from_utf8(apply.assert().failure().code(1).get_output().stderr.clone()).unwrap();
    assert!(error.contains("--out-boot"), "{error}");
    apply.arg("--out-boot").arg(dir.path().join("boot.out")).arg("--json");
    assert_eq!(stdout_json(&mut apply)["bytes_total"], root.len() + 9000);
    assert!(fs::read(&out).unwrap() == root);
    image_tools().args(["release", "build", "--version", "1"]).assert().failure().code(2);
}

#[test]
fn a_release_goes_into_the_slot_that_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (image(7), image(8));
    let old_input = input(dir.path(), "old", &old);
    let disk = dir.path().join("disk.img");
    let mut create = image_tools();
    create.args(["disk", "create"]).arg(&disk).args(["--slot-size", "8M", "--root"]).arg(&old_input.path);
    create.assert().success();
    let images = [input(dir.path(), "root", &new)];
    let rel = dir.path().join("rel");
    build_release(&images, &rel, details("1.1.0"), settings(), false, &|_| {}).unwrap();
    let apply = |slot: &str| {
        let mut command = image_tools();
        command.args(["payload", "apply", "--json", "--activate", "--slot", slot, "--release"]).arg(&rel);
        command.arg("--disk").arg(&disk);
        command
    };
    // Slot A is the only one that boots: it is not overwritten.
    apply("A").assert().failure().code(1);
    let report = stdout_json(&mut apply("B"));
    assert_eq!(report["bytes_total"], new.len());
    let shown = stdout_json(image_tools().args(["disk", "show", "--json"]).arg(&disk));
    assert_eq!(shown["next_boot"], "B");
    let partitions = shown["partitions"].as_array().unwrap();
    for (name, bytes) in [("ROOT-A", &old), ("ROOT-B", &new)] {
        let partition = partitions.iter().find(|p| p["name"] == name).unwrap();
        let at = usize::try_from(partition["offset"].as_u64().unwrap()).unwrap();
        assert!(fs::read(&disk).unwrap()[at..].starts_with(bytes), "{name}");
    }
}
