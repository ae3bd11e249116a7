use super::*;
use boot_select::Files as _;
use disk::{Access, DiskFile};
use proptest::prelude::*;
use std::sync::Arc;

/// Bytes that differ from sector to sector.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

fn volume(mib: u64, sector_size: u32, preference: Preference) -> Volume {
    Volume { size: mib << 20, sector_size, label: *b"TEST       ", preference }
}

/// What was written, and the image.
fn make(volume: &Volume, files: &[FatFile]) -> anyhow::Result<(Made, tempfile::NamedTempFile)> {
    let file = tempfile::NamedTempFile::new()?;
    let made = write(file.as_file(), volume, files)?;
    Ok((made, file))
}

/// `fsck.vfat` finds nothing; a machine that runs all tests has it.
fn check(path: &Path) {
    let said = ["fsck.vfat", "/sbin/fsck.vfat"]
        .into_iter()
        .find_map(|program| std::process::Command::new(program).arg("-n").arg(path).output().ok());
    match said {
        Some(said) => {
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            // One line with its own version, one with the count of files.
            assert!(said.status.success() && text.lines().count() == 2, "{text}");
        }
        None => assert!(
            std::env::var_os("FLIPSIDE_TESTS_COMPLETE").is_none_or(|value| value != "yes"),
            "fsck.vfat is not installed"
        ),
    }
}

#[test]
fn the_size_decides_between_the_kinds() {
    let file = || FatFile { path: "EFI/BOOT/BOOTX64.EFI", bytes: bytes(1, 300_000) };
    for (mib, sector, preference, kind) in [
        (1, 512, Preference::Fat32, "FAT12"),
        (4, 512, Preference::LargeClusters, "FAT16"),
        (32, 512, Preference::Fat32, "FAT16"),
        (33, 512, Preference::Fat32, "FAT32"),
        (64, 512, Preference::LargeClusters, "FAT16"),
        (256, 512, Preference::LargeClusters, "FAT16"),
        (300, 512, Preference::LargeClusters, "FAT32"),
        (4, 4096, Preference::LargeClusters, "FAT12"),
        (64, 4096, Preference::Fat32, "FAT16"),
        (300, 4096, Preference::Fat32, "FAT32"),
    ] {
        let (made, image) = make(&volume(mib, sector, preference), &[file()]).unwrap();
        assert_eq!(made.kind, kind, "{mib} MiB, sectors of {sector}, {preference:?}");
        check(image.path());
        let mut boot_sector = [0; 13];
        image.as_file().read_exact_at(&mut boot_sector, 0).unwrap();
        assert_eq!(u32::from(u16::from_le_bytes([boot_sector[11], boot_sector[12]])), sector);
        assert_eq!(image.as_file().metadata().unwrap().len(), mib << 20);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let file = |len| [FatFile { path: "vmlinuz", bytes: bytes(1, len) }];
    let refused = make(&volume(4, 512, Preference::LargeClusters), &file(4 << 20)).unwrap_err();
    assert!(refused.to_string().contains("give it a larger size"), "{refused}");
    let free = 4 << 20 >> 10;
    assert!(make(&volume(4, 512, Preference::LargeClusters), &file((free - 60) << 10)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the lengths: each file is found again, in one piece, the same files make the same volume, and the
    /// length chosen by default is enough.
    #[test]
    fn files_are_found_again_in_one_piece(
        lengths in prop::collection::vec(1usize..3_000_000, 3),
        seed in 1u64..1 << 40,
        large_sectors: bool,
    ) {
        let names = ["cmdline", "vmlinuz", "initrd"];
        let files: Vec<FatFile> = names
            .into_iter()
            .zip(&lengths)
            .zip(seed..)
            .map(|((path, len), seed)| FatFile { path, bytes: bytes(seed * 2, *len) })
            .collect();
        let sector_size = if large_sectors { 4096 } else { 512 };
        let volume =
            Volume { size: default_size(&files), ..volume(1, sector_size, Preference::LargeClusters) };
        let (made, image) = make(&volume, &files).unwrap();
        let (again, second) = make(&volume, &files).unwrap();
        let whole = std::fs::read(image.path()).unwrap();
        prop_assert_eq!(made.volume_id, again.volume_id);
        prop_assert!(whole == std::fs::read(second.path()).unwrap());
        check(image.path());

        let medium = Arc::new(DiskFile::open(image.path(), Access::Read).unwrap());
        let mut reader = Reader::open(SlotWindow::read_only(medium, 0, volume.size).unwrap()).unwrap();
        prop_assert!(reader.read("\\boot.efi", u64::MAX).unwrap().is_none());
        let mut place = 0;
        for file in &files {
            let found = reader.read(file.path, u64::MAX).unwrap();
            prop_assert!(found.as_ref() == Some(&file.bytes), "{}", file.path);
            let head = &file.bytes[..file.bytes.len().min(512)];
            let at = (place..whole.len()).step_by(512).find(|at| whole[*at..].starts_with(head)).unwrap();
            prop_assert!(whole[at..].starts_with(&file.bytes), "{} lies in pieces", file.path);
            place = at + file.bytes.len();
            place = place.next_multiple_of(512);
        }
    }
}
