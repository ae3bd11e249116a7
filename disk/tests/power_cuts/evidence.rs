//! Steps 7 and 8: what is refused on the way from a target slot to an activated one.

use crate::tiny::{Release, bits, image, open, resize, update};
use disk::testing::{NotMounted, RecordingMedium};
use disk::{
    Disk, DiskError, FitError, MountTable, PartitionView, SlotLayout, SlotWindow, TargetSlot, VerifyError,
};
use protocol::id::PartitionRole;
use protocol::slot::{Attributes, Slot};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;

fn disk(a: Attributes, b: Attributes) -> (Arc<RecordingMedium>, Disk) {
    open(image(512, (&Release::new(1), a), (&Release::new(2), b)), 512)
}

/// A running slot A that is confirmed, and an older release in B.
fn usual() -> (Arc<RecordingMedium>, Disk) {
    disk(bits(2, 0, true), bits(1, 0, true))
}

fn target(disk: &Disk) -> TargetSlot {
    TargetSlot::new(disk, Slot::B, Slot::A, &NotMounted).unwrap()
}

struct Mounted(&'static str);

impl MountTable for Mounted {
    fn is_in_use(&self, _disk: &Path, partition: &PartitionView) -> io::Result<Option<String>> {
        match self.0 {
            "unknown" => Err(io::Error::other("no /proc here")),
            name => Ok((partition.name == name).then(|| "mounted at /mnt".to_owned())),
        }
    }
}

#[test]
fn the_running_slot_and_mounted_ones_are_no_targets() {
    let (medium, disk) = usual();
    assert!(matches!(
        TargetSlot::new(&disk, Slot::A, Slot::A, &NotMounted),
        Err(DiskError::Running(Slot::A))
    ));
    for name in ["ROOT-B", "BOOT-B"] {
        let refused = TargetSlot::new(&disk, Slot::B, Slot::A, &Mounted(name)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("the partition {name} of slot B is in use (mounted at /mnt): unmount it first")
        );
    }
    // What is mounted of the running slot does not matter, and what cannot be found out does.
    assert!(TargetSlot::new(&disk, Slot::B, Slot::A, &Mounted("ROOT-A")).is_ok());
    assert!(matches!(
        TargetSlot::new(&disk, Slot::B, Slot::A, &Mounted("unknown")),
        Err(DiskError::Mounts { .. })
    ));
    assert!(medium.take_recording().log.is_empty());
}

#[test]
fn a_fallback_that_was_not_confirmed_is_never_given_up() {
    for running in [bits(0, 0, true), bits(2, 3, false), bits(0, 0, false)] {
        let (medium, mut disk) = disk(running, bits(1, 0, true));
        let target = target(&disk);
        assert!(matches!(disk.invalidate(target), Err(DiskError::NoFallback { running: Slot::A, .. })));
        assert!(medium.take_recording().log.is_empty());
    }
}

#[test]
fn the_last_bootable_slot_is_not_condemned() {
    let (medium, mut disk) = disk(bits(1, 0, true), bits(0, 0, false));
    assert!(matches!(disk.condemn(Slot::A), Err(DiskError::LastBootable(Slot::A))));
    assert!(matches!(disk.deactivate(Slot::A, Slot::B), Err(DiskError::LastBootable(Slot::A))));
    assert!(matches!(disk.deactivate(Slot::A, Slot::A), Err(DiskError::Running(Slot::A))));
    // The other one is condemned already: nothing to do.
    disk.condemn(Slot::B).unwrap();
    assert!(medium.take_recording().log.is_empty());
}

#[test]
fn only_a_slot_that_reads_back_right_is_staged() {
    let new = Release::new(3);
    let (_, mut disk) = usual();
    let target_again = |disk: &mut Disk| {
        let target = target(disk);
        disk.invalidate(target).unwrap()
    };
    let slot = target_again(&mut disk);
    new.write_to(&slot).unwrap();
    let window = slot.window(&PartitionRole::root()).unwrap();
    let mut byte = [0];
    window.read_at(5000, &mut byte).unwrap();
    window.write_at(5000, &[byte[0] ^ 1]).unwrap();
    let Err(VerifyError::Mismatch { role, expected, found }) = slot.verify(&new.images(), &|_| ()) else {
        panic!("staged a wrong slot")
    };
    assert_eq!((role, expected), (PartitionRole::root(), new.images()[0].sha256));
    assert_ne!(found, expected);

    let slot = target_again(&mut disk);
    let boot_only = &new.images()[1..];
    assert!(matches!(slot.verify(boot_only, &|_| ()), Err(VerifyError::NoRoot)));
    let mut images = new.images();
    images[0].size = 1 << 40;
    assert!(matches!(target_again(&mut disk).verify(&images, &|_| ()), Err(VerifyError::TooLong { .. })));
    images[0].size = 1;
    images[1].role = "data".parse().unwrap();
    images.swap(0, 1);
    assert!(matches!(target_again(&mut disk).verify(&images, &|_| ()), Err(VerifyError::NoSuchPartition(_))));

    let slot = target_again(&mut disk);
    slot.window(&PartitionRole::root()).unwrap().write_at(5000, &byte).unwrap();
    let told = RefCell::new(Vec::new());
    let staged = slot.verify(&new.images(), &|bytes| told.borrow_mut().push(bytes)).unwrap();
    assert_eq!(staged.read_back(), disk::ReadBack::Direct);
    assert_eq!(told.into_inner().last(), Some(&new.images().iter().map(|i| i.size).sum()));
}

#[test]
fn a_slot_holds_nothing_that_is_not_of_its_release() {
    let new = Release::new(3).without_boot();
    let (medium, mut disk) = usual();
    let target_again = |disk: &mut Disk| {
        let target = target(disk);
        disk.invalidate(target).unwrap()
    };
    let slot = target_again(&mut disk);
    new.write_to(&slot).unwrap();
    let refused = slot.verify(&new.images(), &|_| ()).unwrap_err();
    assert!(matches!(&refused, VerifyError::NotEmpty(role) if *role == PartitionRole::boot()), "{refused}");
    // A single byte at the end of what is looked at is something as well.
    let slot = target_again(&mut disk);
    slot.clear_unfilled(&new.images()).unwrap();
    let boot = slot.window(&PartitionRole::boot()).unwrap();
    boot.write_at(boot.len() - 1, &[1]).unwrap();
    assert!(matches!(slot.verify(&new.images(), &|_| ()), Err(VerifyError::NotEmpty(_))));

    let slot = target_again(&mut disk);
    slot.clear_unfilled(&new.images()).unwrap();
    let _ = medium.take_recording();
    slot.clear_unfilled(&new.images()).unwrap();
    assert!(medium.take_recording().log.is_empty(), "what is empty is not written again");
    assert!(new.is_on(&disk, Slot::B), "the root image is still there");
    let staged = slot.verify(&new.images(), &|_| ()).unwrap();
    disk.activate(staged, new.digest(), Slot::A, 3).unwrap();
}

#[test]
fn a_release_fits_where_each_partition_has_its_image_or_needs_none() {
    let (medium, disk) = usual();
    let images = Release::new(3).images();
    disk.check_fit(&images, Slot::B, Slot::A).unwrap();
    let refused = disk.check_fit(&images[..1], Slot::B, Slot::A).unwrap_err();
    assert!(matches!(&refused, FitError::Missing { role, name }
        if *role == PartitionRole::boot() && name == "BOOT-A"));
    assert!(refused.to_string().contains("no image for the partition boot"), "{refused}");
    let changed = |change: &dyn Fn(&mut protocol::manifest::PartitionImage)| {
        let mut images = images.clone();
        change(&mut images[1]);
        disk.check_fit(&images, Slot::B, Slot::A)
    };
    let len = disk.partition(Slot::B, &PartitionRole::boot()).unwrap().len;
    changed(&|image| image.size = len).unwrap();
    let refused = changed(&|image| image.size = len + 1).unwrap_err();
    assert!(matches!(&refused, FitError::TooLong { name, .. } if name == "BOOT-B"), "{refused}");
    let refused = changed(&|image| image.role = "data".parse().unwrap()).unwrap_err();
    assert!(matches!(refused, FitError::NoSuchPartition(_)), "{refused}");
    assert!(medium.take_recording().log.is_empty());

    // Slots that start from the root partition alone: what stands in the other slot's boot partition does not matter.
    let none = Release::new(1).without_boot();
    let (_, disk) = open(image(512, (&none, bits(2, 0, true)), (&Release::new(2), bits(1, 0, true))), 512);
    disk.check_fit(&images[..1], Slot::B, Slot::A).unwrap();
    disk.check_fit(&images, Slot::B, Slot::A).unwrap();
    // A layout without the role leaves its partitions alone.
    let mut layout = SlotLayout::default();
    layout.roles.retain(|role| role.role == PartitionRole::root());
    let disk = Disk::open(medium, &layout).unwrap();
    disk.check_fit(&images[..1], Slot::B, Slot::A).unwrap();
    assert!(matches!(disk.check_fit(&images, Slot::B, Slot::A), Err(FitError::NoSuchPartition(_))));
}

#[test]
fn evidence_is_for_one_disk_one_running_slot_and_one_release() {
    let wanted = Release::new(3).digest();
    let (_, mut disk) = usual();
    let (_, mut other) = usual();
    let target = target(&other);
    assert!(matches!(disk.invalidate(target), Err(DiskError::ForeignEvidence(Slot::B))));
    let stage = |disk: &mut Disk| {
        let target = crate::evidence::target(disk);
        let slot = disk.invalidate(target).unwrap();
        let release = Release::new(3);
        release.write_to(&slot).unwrap();
        slot.verify(&release.images(), &|_| ()).unwrap()
    };
    let staged = stage(&mut other);
    assert!(matches!(disk.activate(staged, wanted, Slot::A, 3), Err(DiskError::ForeignEvidence(Slot::B))));
    let staged = stage(&mut disk);
    assert!(matches!(disk.activate(staged, wanted, Slot::B, 3), Err(DiskError::Running(Slot::B))));
    let staged = stage(&mut disk);
    let before = disk.attributes(Slot::B);
    assert!(matches!(
        disk.activate(staged, Release::new(4).digest(), Slot::A, 3),
        Err(DiskError::OtherRelease { slot: Slot::B, found, .. }) if found == wanted
    ));
    assert_eq!(disk.attributes(Slot::B), before);
    let staged = stage(&mut disk);
    disk.activate(staged, wanted, Slot::A, 3).unwrap();
    let kept = 1 << 60 | 4;
    assert_eq!(disk.attributes(Slot::B).bits(), bits(2, 3, false).bits() | kept);
    assert_eq!(disk.attributes(Slot::A).bits(), bits(1, 0, true).bits() | kept);
}

#[test]
fn nothing_is_written_through_a_window_that_was_kept() {
    let (medium, mut disk) = usual();
    let new = Release::new(3);
    let target_again = |disk: &mut Disk| {
        let target = target(disk);
        let slot = disk.invalidate(target).unwrap();
        let window = slot.window(&PartitionRole::root()).unwrap();
        (slot, window)
    };
    let refuses = |window: &SlotWindow| {
        let _ = medium.take_recording();
        for result in [window.write_at(0, &[1]), window.write_zeroes(0, 1)] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("invalidate it again"), "{error}");
        }
        assert!(!window.is_writable() && medium.take_recording().log.is_empty());
    };
    let (slot, given_up) = target_again(&mut disk);
    given_up.write_at(0, &[1]).unwrap();
    drop(slot);
    refuses(&given_up);
    let (slot, failed) = target_again(&mut disk);
    slot.verify(&new.images(), &|_| ()).unwrap_err();
    refuses(&failed);
    let (slot, kept) = target_again(&mut disk);
    new.write_to(&slot).unwrap();
    let during = kept.clone();
    let staged = slot.verify(&new.images(), &|_| refuses(&during)).unwrap();
    refuses(&kept);
    // A new right does not bring back an old one.
    refuses(&given_up);
    disk.activate(staged, new.digest(), Slot::A, 3).unwrap();
    assert!(new.is_on(&disk, Slot::B));
}

#[test]
fn windows_cannot_be_left_and_only_a_target_is_written() {
    let (medium, mut disk) = usual();
    let active = disk.open_slot(&PartitionRole::root(), Slot::A).unwrap();
    assert_eq!(active.write_at(0, &[1]).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(active.write_zeroes(0, 1).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let target = target(&disk);
    let slot = disk.invalidate(target).unwrap();
    let _ = medium.take_recording();
    let window = slot.window(&PartitionRole::boot()).unwrap();
    let len = window.len();
    for (at, count) in [(len, 1), (len - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 5)] {
        assert!(window.write_at(at, &vec![1; count]).is_err());
        assert!(window.write_zeroes(at, count as u64).is_err());
        assert!(window.read_at(at, &mut vec![1; count]).is_err());
        assert!(window.read_back(at, &mut vec![1; count]).is_err());
    }
    assert!(medium.take_recording().log.is_empty());
    assert!(slot.window(&"data".parse().unwrap()).is_none());
}

#[test]
fn going_back_by_hand() {
    let (_, mut disk) = disk(bits(1, 0, true), bits(2, 0, true));
    disk.revert(Slot::A, Slot::B, 2).unwrap();
    assert_eq!(disk.select().unwrap().0, Slot::A);
    disk.restore(Slot::A, Slot::B).unwrap();
    assert_eq!(disk.select().unwrap().0, Slot::B);
    assert!(disk.attributes(Slot::A).successful());
    // From a slot that is not confirmed: the one that is gone back to stays successful, so it boots in any case.
    let (medium, mut disk) = self::disk(bits(1, 0, true), bits(2, 1, false));
    disk.revert(Slot::A, Slot::B, 1).unwrap();
    for _ in 0..5 {
        assert_eq!(disk::testing::boot(medium.clone()), Ok(Slot::A));
    }
    // Not to a slot that holds nothing.
    let (_, mut disk) = self::disk(bits(1, 0, true), bits(0, 0, false));
    assert!(matches!(disk.revert(Slot::B, Slot::A, 2), Err(DiskError::NotConfirmed { slot: Slot::B, .. })));
    assert!(matches!(disk.restore(Slot::B, Slot::A), Err(DiskError::NotConfirmed { slot: Slot::B, .. })));
}

#[test]
fn tries_run_out_and_the_fallback_boots() {
    let (medium, mut disk) = usual();
    update(&mut disk, &Release::new(3), Slot::A).unwrap();
    for _ in 0..3 {
        assert_eq!(disk::testing::boot(medium.clone()), Ok(Slot::B));
    }
    assert_eq!(disk::testing::boot(medium.clone()), Ok(Slot::A));
    disk.condemn(Slot::B).unwrap();
    assert_eq!(disk::testing::boot(medium.clone()), Ok(Slot::A));
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let (medium, _) = usual();
    let open = |change: &dyn Fn(&mut SlotLayout)| {
        let mut layout = SlotLayout::default();
        change(&mut layout);
        Disk::open(medium.clone(), &layout).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(
        open(&|layout| layout.roles[1].a = "USR-A".to_owned()),
        "the disk has no partition named USR-A, which the slot layout asks for"
    );
    assert!(open(&|layout| layout.roles[1].a = "ROOT-B".to_owned()).contains("ROOT-B twice"));
    assert!(open(&|layout| layout.roles.truncate(1)).contains("no root partition"));
    assert!(open(&|layout| layout.root_type = "x".to_owned()).contains("not a GUID"));
    assert!(
        open(&|layout| layout.root_type = "0fc63daf-8483-4772-8e79-3d69d8477de4".to_owned())
            .contains("ROOT-A has the GPT type 5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6: expected 0fc63daf")
    );
}

/// What is written at the ends of a partition goes out in whole pages, which must be the partition's own.
#[test]
fn slots_that_share_a_page_with_others_are_refused() {
    let sound = image(512, (&Release::new(1), bits(2, 0, true)), (&Release::new(2), bits(1, 0, true)));
    for (name, first, last, found) in [
        ("ROOT-A", 1, 0, "15872 bytes at byte 37376"),
        ("BOOT-B", 0, -1, "7680 bytes at byte 53248"),
        ("ROOT-B", 1, -7, "12288 bytes at byte 61952"),
    ] {
        let mut image = sound.clone();
        resize(&mut image, name, first, last);
        let medium = Arc::new(RecordingMedium::new(image, 512));
        let refused = Disk::open(medium, &SlotLayout::default()).unwrap_err();
        assert!(matches!(refused, DiskError::Misaligned { .. }));
        let start = format!("the partition {name} has {found}: expected multiples of 4096, ");
        assert!(refused.to_string().starts_with(&start), "{refused}");
    }
    // Other partitions may lie as they like.
    let mut image = sound;
    resize(&mut image, "STATE", 1, -1);
    assert!(Disk::open(Arc::new(RecordingMedium::new(image, 512)), &SlotLayout::default()).is_ok());
}
