//! What is installed, from what, and what goes wrong meanwhile.

use super::*;
use proptest::prelude::*;

/// Images that are awkward in some way, and what the slots may hold before.
fn image(kind: u8, len: usize, seed: u64) -> Vec<u8> {
    let block = text(5000, seed);
    match kind {
        0 => noise(len, seed),
        1 => vec![0; len],
        2 => text(len, seed),
        // Repeats near and far, and one that a whole segment apart.
        3 => block.iter().copied().cycle().take(len).collect(),
        // Data and holes of all lengths.
        4 => {
            let mut image = Vec::new();
            while image.len() < len {
                image.extend(text(7000, seed + image.len() as u64));
                image.resize(image.len() + 30_000 + image.len() % 90_000, 0);
            }
            image.truncate(len);
            image
        }
        _ => vec![b'x'; len],
    }
}

fn change(mut bytes: Vec<u8>, how: u8, seed: u64) -> Vec<u8> {
    let middle = bytes.len() / 2;
    match how {
        0 => {}
        1 => bytes.insert(0, 1),
        2 => bytes.truncate(middle + 1),
        3 => bytes.extend(noise(10_000, seed + 1)),
        4 => {
            bytes.splice(middle..middle, noise(100, seed));
        }
        5 => bytes.rotate_left(middle),
        _ => bytes.clear(),
    }
    bytes
}

fn sized(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0xa5);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    /// Whatever is installed over whatever, with whatever beside it: the image stands there, nothing behind it was
    /// touched, and a second time there is nothing to do.
    #[test]
    fn any_image_over_any_content(
        (kind, len, seed) in (0_u8..6, prop_oneof![1_usize..5, 4000..4200_usize, 60_000..300_000_usize], 0_u64..100),
        boot_len in prop_oneof![Just(0_usize), 1..30_000_usize],
        (target_how, other_how) in (0_u8..8, 0_u8..8),
        (behind, workers) in (0_usize..6000, 1_usize..4),
        shape in prop_oneof![
            Just(SMALL),
            Just(Shape { cutting: Cutting::Fixed { len: 512 }, segment_len: 1, prefix_window: 0 }),
            Just(Shape { cutting: Cutting::content(4096), segment_len: 1 << 17, prefix_window: 1 << 17 }),
        ],
    ) {
        let root = image(kind, len, seed);
        let boot = [&root[..root.len() / 3], &text(boot_len, seed)[..]].concat();
        let images: Vec<&[u8]> = if boot_len == 0 { vec![&root] } else { vec![&root, &boot] };
        let (file, index) = payload(&images, shape);
        let before: Vec<Vec<u8>> = images
            .iter()
            .map(|image| sized(change(image.to_vec(), target_how, seed), image.len() + behind))
            .collect();
        let targets: Vec<_> = before.iter().map(|b| Memory::new(b.clone())).collect();
        let others = [Memory::new(change(root.clone(), other_how, seed))];
        let case = Case { file: &file, index: &index, targets: &targets, others: &others, workers };

        let report = case.install(Fault::None).unwrap();
        prop_assert!(case.holds(&images));
        for ((target, before), image) in targets.iter().zip(&before).zip(&images) {
            prop_assert_eq!(&target.bytes()[image.len()..], &before[image.len()..]);
        }
        prop_assert_eq!(report.bytes_total, index.image_bytes());
        if report.rounds == 1 {
            prop_assert!(report.bytes_downloaded < file.len() as u64);
            // Zeroes that were there are not written again, though their chunk was not whole.
            let todo = report.bytes_total - report.bytes_in_place;
            prop_assert!(report.bytes_written + report.bytes_zeroed <= todo);
            if targets.iter().zip(&before).all(|(_, before)| !before.contains(&0)) {
                prop_assert_eq!(report.bytes_written + report.bytes_zeroed, todo);
            }
        }
        if target_how == 0 {
            prop_assert_eq!((report.bytes_downloaded, report.bytes_written, report.bytes_zeroed), (0, 0, 0));
        }
        targets.iter().for_each(|t| drop(t.take_writes()));
        let again = case.install(Fault::None).unwrap();
        prop_assert_eq!((again.bytes_downloaded, again.bytes_written, again.bytes_zeroed), (0, 0, 0));
        prop_assert!(targets.iter().all(|t| t.take_writes().is_empty()));
    }

    /// Broken off at any byte, the next try fetches nothing that stands there already.
    #[test]
    fn an_interrupted_installation_resumes(seed in 0_u64..50, at in 0.0..1.0_f64, workers in 1_usize..4) {
        let root = [text(150_000, seed), vec![0; 70_000], noise(90_000, seed + 1)].concat();
        let (file, index) = payload(&[&root], SMALL);
        let targets = [Memory::new(noise(root.len() + 1000, seed + 2))];
        let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers };
        let whole = Plan::new(&index, &SeedMap::none(&index), 0).bytes_to_fetch();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a share of a small number")]
        let broken = (whole as f64 * at) as u64;
        let error = case.install(Fault::BreakAfter(broken)).unwrap_err();
        prop_assert!(matches!(error, InstallError::Source(SourceError::Failed(_))), "{error:?}");
        // What must be fetched still, counted by looking at every chunk.
        let mut rest = 0;
        let mut start = 0;
        let now = targets[0].bytes();
        for chunk in &index.partitions[0].chunks {
            let end = start + chunk.len as usize;
            if let Content::Stored(stored) = chunk.content
                && now[start..end] != root[start..end]
            {
                rest += u64::from(stored.len);
            }
            start = end;
        }
        let report = case.install(Fault::None).unwrap();
        prop_assert!(case.holds(&[&root]));
        prop_assert_eq!(report.bytes_downloaded, rest);
        // At most the segments under way are lost: one for each worker and as many in the queue, and one collected.
        let lost = (2 * workers as u64 + 1) * u64::from(SMALL.segment_len + SMALL.cutting.max_len());
        prop_assert!(rest <= whole - broken + lost, "{} of {}, broken off at {}", rest, whole, broken);
    }

    /// A bit that is wrong in the payload is found before a byte of its chunk is written.
    #[test]
    fn wrong_bytes_are_never_written(seed in 0_u64..50, at: prop::sample::Index, workers in 1_usize..3) {
        let root = [text(60_000, seed), noise(30_000, seed + 1)].concat();
        let (file, index) = payload(&[&root], SMALL);
        let (header, _) = Index::parse_head(&file[..usize::try_from(
            protocol::payload::Header::parse(&file).unwrap().head_len()).unwrap()]).unwrap();
        let place = header.head_len() + at.index(usize::try_from(header.data_len).unwrap()) as u64;
        let targets = [Memory::new(vec![0xee; root.len()])];
        let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers };
        let mut start = 0;
        let mut damaged = 0..0;
        for (number, chunk) in index.partitions[0].chunks.iter().enumerate() {
            let Content::Stored(stored) = chunk.content else { panic!("{chunk:?}") };
            if (stored.offset..stored.offset + u64::from(stored.len)).contains(&place) {
                damaged = start..start + u64::from(chunk.len);
                match case.install(Fault::Flip(place)) {
                    Err(InstallError::Content { chunk, offset, .. }) => {
                        prop_assert_eq!((chunk, offset), (number, start));
                    }
                    // A bit of a zstd frame that does not matter: then the bytes are right.
                    other => {
                        other.unwrap();
                        prop_assert!(case.holds(&[&root]));
                        return Ok(());
                    }
                }
            }
            start += u64::from(chunk.len);
        }
        prop_assert!(!damaged.is_empty());
        for write in targets[0].take_writes() {
            prop_assert!(write.end <= damaged.start || write.start >= damaged.end, "{:?} {:?}", write, damaged);
        }
        // With the right bytes it goes on from there.
        case.install(Fault::None).unwrap();
        prop_assert!(case.holds(&[&root]));
    }
}

/// The target's old content is the new image in another order: using it destroys it.
#[test]
fn seeds_that_are_overwritten_before_use_are_fetched() {
    let root = [text(100_000, 1), noise(100_000, 2), text(100_000, 3)].concat();
    let (file, index) = payload(&[&root], SMALL);
    let mut moved = root.clone();
    moved.rotate_right(20_000);
    for workers in 1..4 {
        let targets = [Memory::new(moved.clone())];
        let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers };
        let report = case.install(Fault::None).unwrap();
        assert!(case.holds(&[&root]));
        assert!(report.rounds > 1 && report.chunks_stale > 0, "{report:?}");
        assert!(report.bytes_downloaded > 0 && report.bytes_downloaded < file.len() as u64, "{report:?}");
    }
    // With the same content in a slot that stays, nothing is fetched but what the cut at the end of the slot changed.
    let (targets, others) = ([Memory::new(moved.clone())], [Memory::new(root.clone())]);
    let case = Case { file: &file, index: &index, targets: &targets, others: &others, workers: 2 };
    let report = case.install(Fault::None).unwrap();
    assert!(case.holds(&[&root]));
    assert_eq!((report.rounds, report.bytes_downloaded), (1, 0));
}

/// What was found by a scan may be gone when it is read, for any reason.
#[test]
fn a_seed_that_changed_after_the_scan_is_fetched() {
    let root = text(200_000, 7);
    let (file, index) = payload(&[&root], SMALL);
    let (targets, others) = ([Memory::new(vec![0; root.len()])], [Memory::new(root.clone())]);
    let case = Case { file: &file, index: &index, targets: &targets, others: &others, workers: 2 };
    let seeds = case.seeds();
    others[0].bytes.lock().unwrap()[50_000..150_000].fill(9);
    let report = case.install_with(&seeds, &mut Source::new(&file)).unwrap();
    assert!(case.holds(&[&root]));
    assert!(report.bytes_downloaded > 0 && report.rounds == 2, "{report:?}");

    // The same for what stood in its place, if it is needed as prefix.
    let targets = [Memory::new(root.clone())];
    targets[0].bytes.lock().unwrap()[150_000..].fill(3);
    let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers: 2 };
    let seeds = case.seeds();
    assert!(Plan::new(&index, &seeds, 0).bytes_to_fetch() > 0);
    targets[0].bytes.lock().unwrap()[149_000..150_000].fill(4);
    case.install_with(&seeds, &mut Source::new(&file)).unwrap();
    assert!(targets[0].bytes()[149_500..] == root[149_500..]);
}

/// A chunk that repeats one of another partition, or of a segment that another worker has, waits for it.
#[test]
fn repeats_reach_over_segments_and_partitions() {
    let part = text(40_000, 5);
    let root = [&part[..], &noise(30_000, 6), &part].concat();
    let boot = [&noise(1000, 8)[..], &part].concat();
    let (file, index) = payload(&[&root, &boot], SMALL);
    let repeats = |p: usize| {
        let chunks = &index.partitions[p].chunks;
        chunks.iter().filter(|c| matches!(c.content, Content::Repeat { .. })).count()
    };
    assert!(repeats(0) > 10 && repeats(1) > 10);
    for workers in 1..5 {
        let targets = [Memory::new(noise(root.len(), 1)), Memory::new(noise(boot.len(), 2))];
        let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers };
        let report = case.install(Fault::None).unwrap();
        assert!(case.holds(&[&root, &boot]));
        assert_eq!(report.bytes_downloaded, Plan::new(&index, &SeedMap::none(&index), 0).bytes_to_fetch());
        assert!(report.bytes_downloaded < 90_000, "{report:?}");
    }
}

#[test]
fn a_source_that_does_not_keep_to_what_was_asked_is_an_error() {
    let root = text(100_000, 9);
    let (file, index) = payload(&[&root], SMALL);
    let data = file.len() as u64 - 20_000;
    for fault in [Fault::EndAfter(0), Fault::EndAfter(10_000), Fault::Skip(data), Fault::BreakAfter(0)] {
        let targets = [Memory::new(vec![1; root.len()])];
        let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers: 2 };
        let error = case.install(fault).unwrap_err();
        let InstallError::Source(source) = error else { panic!("{fault:?}: {error:?}") };
        let broken = matches!(fault, Fault::BreakAfter(_));
        assert_eq!(matches!(source, SourceError::Failed(_)), broken, "{fault:?}: {source:?}");
        assert_eq!(matches!(source, SourceError::Order { .. }), !broken, "{fault:?}: {source:?}");
        case.install(Fault::None).unwrap();
        assert!(case.holds(&[&root]));
    }
}

#[test]
fn a_full_or_failing_disk_ends_it() {
    let root = text(300_000, 10);
    let (file, index) = payload(&[&root], SMALL);
    for left in [0, 1, 5] {
        let targets = [Memory::new(vec![1; root.len()])];
        targets[0].writes_left.store(left, Ordering::SeqCst);
        let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers: 2 };
        let error = case.install(Fault::None).unwrap_err();
        assert!(matches!(error, InstallError::Disk { what: "write", .. }), "{error:?}");
    }
    let targets = [Memory::new(vec![1; root.len() - 1])];
    let case = Case { file: &file, index: &index, targets: &targets, others: &[], workers: 2 };
    assert!(matches!(case.install(Fault::None).unwrap_err(), InstallError::TooSmall { .. }));
    let case = Case { targets: &[], ..case };
    let error = case.install_with(&SeedMap::none(&index), &mut Source::new(&file)).unwrap_err();
    assert!(matches!(error, InstallError::NoTarget(_)));
}

/// Ranges that are near to each other are fetched as one, and what lies between is thrown away.
#[test]
fn gaps_are_fetched_if_they_are_short() {
    let root = noise(200_000, 11);
    let (file, index) = payload(&[&root], SMALL);
    let mut old = root.clone();
    for at in (10_000..200_000).step_by(20_000) {
        old[at] ^= 1;
    }
    let (targets, others) = ([Memory::new(vec![0; root.len()])], [Memory::new(old)]);
    let case = Case { file: &file, index: &index, targets: &targets, others: &others, workers: 2 };
    let seeds = case.seeds();
    let plans = [0, 19_000, u64::MAX].map(|gap| Plan::new(&index, &seeds, gap));
    assert_eq!(plans[2].fetch.len(), 1);
    assert!(plans[0].fetch.len() >= plans[1].fetch.len() && plans[0].fetch.len() >= 5);
    assert!(plans[0].bytes_to_fetch() < plans[2].bytes_to_fetch() / 4);
    for plan in plans {
        targets[0].bytes.lock().unwrap().fill(0);
        let fetched = plan.bytes_to_fetch();
        let mut source = Source { piece: 333, ..Source::new(&file) };
        let windows = [window(&targets[0])];
        let settings = Settings { workers: 2, gap: 0 };
        let report = install(&index, plan, &windows, &seeds, &mut source, &|_| {}, settings).unwrap();
        assert_eq!((report.bytes_downloaded, source.given), (fetched, fetched));
        assert!(case.holds(&[&root]));
    }
}

/// Places lie where the bytes are, whatever holes and however many reads are before them; a window that cannot be
/// read to its end helps as far as it goes.
#[test]
fn the_scan_leaves_the_page_cache_alone() {
    let root = text(200_000, 3);
    let (file, index) = payload(&[&root], SMALL);
    // The target holds parts of the image, so that neighbours are compared as well.
    let target = Memory::new([&root[..70_000], &noise(9000, 1), &root[79_000..]].concat());
    let other = Memory::new(root);
    let (targets, others) = ([target], [other]);
    let case = Case { file: &file, index: &index, targets: &targets, others: &others, workers: 1 };
    let seeds = case.seeds();
    let all = 0..index.partitions[0].chunks.len();
    assert!(all.clone().any(|i| seeds.is_in_place(i)) && !all.clone().all(|i| seeds.is_in_place(i)));
    assert!(index.partitions[0].chunks.iter().all(|c| seeds.place(&c.sha256().unwrap()).is_some()));
    for memory in targets.iter().chain(&others) {
        assert_eq!(memory.cached.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn every_place_that_a_scan_finds_holds_what_it_says() {
    let old =
        [text(1_500_000, 1), vec![0; 3_000_001], noise(900_000, 2), vec![0; 70_000], text(999, 3)].concat();
    let new = [noise(5000, 4), old.clone()].concat();
    let (file, index) = payload(&[&new], SMALL);
    let find = |readable: u64| {
        let (targets, others) = ([Memory::new(vec![7; new.len()])], [Memory::new(old.clone())]);
        others[0].readable.store(readable, Ordering::SeqCst);
        let case = Case { file: &file, index: &index, targets: &targets, others: &others, workers: 2 };
        let seeds = case.seeds();
        let mut known = 0;
        for chunk in &index.partitions[0].chunks {
            let Some(sha256) = chunk.sha256() else { continue };
            let Some(place) = seeds.place(&sha256) else { continue };
            assert_eq!(place.window, 0);
            let at = usize::try_from(place.offset).unwrap();
            assert_eq!(Sha256::of(&old[at..at + chunk.len as usize]), sha256);
            known += u64::from(chunk.len);
        }
        // A seed that can no longer be read is fetched.
        others[0].readable.store(1_000_000, Ordering::SeqCst);
        case.install_with(&seeds, &mut Source::new(&file)).unwrap();
        assert!(case.holds(&[&new]));
        known
    };
    let whole = find(u64::MAX);
    assert!(whole > 2_300_000, "{whole}");
    let part = find(2 << 20);
    assert!(part > 1_000_000 && part < whole - 800_000, "{part} of {whole}");
    assert_eq!(find(0), 0);
}
