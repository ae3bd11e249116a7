//! Steps 5 to 8 on real files: what is written reads back, whatever the alignment and the way it takes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows tests by their attribute, and these functions only serve them"
)]

use disk::{Access, AlignedBuf, DiskFile, Medium, OpenError, ReadBack};
use proptest::prelude::*;
use std::fs::File;
use std::path::{Path, PathBuf};

const LEN: usize = 256 << 10;

/// Folders on file systems of different kinds: one on a disk, and one in memory where there is one.
fn folders() -> Vec<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let mut folders = vec![tempfile::tempdir().unwrap()];
    if memory.is_dir() {
        folders.extend(tempfile::tempdir_in(memory));
    }
    folders
}

fn file(folder: &tempfile::TempDir, len: usize) -> PathBuf {
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(len as u64).unwrap();
    path
}

#[derive(Clone, Debug)]
enum Action {
    Write { at: usize, len: usize, skew: usize, value: u8 },
    Zero { at: usize, len: usize },
    Read { at: usize, len: usize, back: bool },
}

/// Places and lengths that lie on pages, beside them, and anywhere.
fn range() -> impl Strategy<Value = (usize, usize)> {
    let number = |most: usize| {
        prop_oneof![0..most, (0..most / 4096).prop_map(|n| n * 4096), (0..most / 512).prop_map(|n| n * 512)]
    };
    (number(LEN), number(100_000)).prop_map(|(at, len)| (at, len.min(LEN - at)))
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (range(), 0_usize..4, 1_u8..).prop_map(|((at, len), skew, value)| Action::Write {
            at,
            len,
            skew,
            value
        }),
        range().prop_map(|(at, len)| Action::Zero { at, len }),
        (range(), any::<bool>()).prop_map(|((at, len), back)| Action::Read { at, len, back }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_disk_file_is_its_bytes(actions in proptest::collection::vec(action(), 1..24)) {
        for folder in folders() {
            let path = file(&folder, LEN);
            let disk = DiskFile::open(&path, Access::Write).unwrap();
            let mut model = vec![0; LEN];
            for action in &actions {
                match *action {
                    Action::Write { at, len, skew, value } => {
                        // Aligned memory, and memory that is not.
                        let mut buf = AlignedBuf::zeroed(len + skew);
                        buf.iter_mut().enumerate().for_each(|(i, b)| *b = value ^ i.to_le_bytes()[0]);
                        disk.write_at(at as u64, &buf[skew..]).unwrap();
                        model[at..at + len].copy_from_slice(&buf[skew..]);
                    }
                    Action::Zero { at, len } => {
                        disk.write_zeroes(at as u64, len as u64).unwrap();
                        model[at..at + len].fill(0);
                    }
                    Action::Read { at, len, back } => {
                        let mut buf = vec![0xee; len];
                        if back {
                            disk.flush().unwrap();
                            disk.read_back(at as u64, &mut buf).unwrap();
                        } else {
                            disk.read_at(at as u64, &mut buf).unwrap();
                        }
                        prop_assert!(buf == model[at..at + len], "{:?}", action);
                    }
                }
            }
            disk.flush().unwrap();
            let mut back = vec![0; LEN];
            disk.read_back(0, &mut back).unwrap();
            prop_assert!(back == model);
            prop_assert!(std::fs::read(&path).unwrap() == model);
        }
    }
}

#[test]
fn threads_write_side_by_side() {
    for folder in folders() {
        let disk = DiskFile::open(&file(&folder, LEN), Access::Write).unwrap();
        // Borders that lie on no page, so that neighbours share one.
        let borders: Vec<usize> = (0..=8).map(|i| (i * 30_011).min(LEN)).collect();
        std::thread::scope(|scope| {
            for (value, range) in (1_u8..).zip(borders.windows(2)) {
                let disk = &disk;
                scope.spawn(move || {
                    disk.write_at(range[0] as u64, &vec![value; range[1] - range[0]]).unwrap();
                });
            }
        });
        disk.flush().unwrap();
        let mut found = vec![0; borders[8]];
        disk.read_back(0, &mut found).unwrap();
        for (value, range) in (1_u8..).zip(borders.windows(2)) {
            assert!(found[range[0]..range[1]].iter().all(|b| *b == value), "{range:?}");
        }
    }
}

#[test]
fn how_it_was_read_back_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, 8192);
    let disk = DiskFile::open(&path, Access::Read).unwrap();
    assert!(!disk.is_block_device());
    let direct = rustix::fs::open(
        &path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECT,
        rustix::fs::Mode::empty(),
    );
    let expected = if direct.is_ok() { ReadBack::Direct } else { ReadBack::CacheDropped };
    assert_eq!(disk.read_back(1, &mut [0; 100]).unwrap(), expected);
}

#[test]
fn nothing_outside_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, 10_000);
    let disk = DiskFile::open(&path, Access::Write).unwrap();
    for (at, len) in [(10_000, 1), (0, 10_001), (9_999, 2), (u64::MAX, 1), (u64::MAX - 5, 10)] {
        let mut buf = vec![1; usize::try_from(len).unwrap()];
        assert!(disk.write_at(at, &buf).is_err());
        assert!(disk.read_at(at, &mut buf).is_err());
        assert!(disk.read_back(at, &mut buf).is_err());
        assert!(disk.write_zeroes(at, len).is_err());
    }
    assert_eq!(std::fs::read(&path).unwrap(), [0; 10_000]);
    // The end of a file that is not a whole number of pages.
    disk.write_at(8_000, &[5; 2_000]).unwrap();
    let mut tail = [0; 2_000];
    disk.read_back(8_000, &mut tail).unwrap();
    assert_eq!(tail, [5; 2_000]);
}

#[test]
fn one_writer_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, 8192);
    let writer = DiskFile::open(&path, Access::Write).unwrap();
    assert!(matches!(DiskFile::open(&path, Access::Write), Err(OpenError::Locked(_))));
    let reader = DiskFile::open(&path, Access::Read).unwrap();
    assert!(reader.write_at(0, &[1]).is_err(), "opened for reading");
    assert!(reader.write_at(0, &[1; 4096]).is_err(), "opened for reading");
    drop(writer);
    DiskFile::open(&path, Access::Write).unwrap();
}

#[test]
fn only_disks_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(DiskFile::open(folder.path(), Access::Read), Err(OpenError::NotADisk(_))));
    assert!(matches!(DiskFile::open(Path::new("/dev/null"), Access::Write), Err(OpenError::NotADisk(_))));
    let missing = folder.path().join("missing");
    assert!(matches!(DiskFile::open(&missing, Access::Write), Err(OpenError::Io { .. })));
    assert!(!missing.exists(), "nothing is created");
}
