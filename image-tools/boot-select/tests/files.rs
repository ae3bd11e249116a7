//! What is checked of a slot's files before its kernel gets the machine.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use boot_select::{SlotPartitions, cmdline, kernel};
use proptest::prelude::*;
use protocol::gpt::{Entry, Guid};
use protocol::slot::{Attributes, Slot};

const PE: usize = 0x80;

/// A PE file with two sections, 1024 bytes long, the last of which end the file.
fn program() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c..0x40].copy_from_slice(&0x80_u32.to_le_bytes());
    image[PE..PE + 4].copy_from_slice(b"PE\0\0");
    image[PE + 4..PE + 6].copy_from_slice(&kernel::MACHINE.to_le_bytes());
    image[PE + 6..PE + 8].copy_from_slice(&2_u16.to_le_bytes());
    image[PE + 20..PE + 22].copy_from_slice(&112_u16.to_le_bytes());
    let table = PE + 24 + 112;
    for (section, (len, start)) in [(256_u32, 512_u32), (256, 768)].into_iter().enumerate() {
        let at = table + section * 40;
        image[at + 16..at + 20].copy_from_slice(&len.to_le_bytes());
        image[at + 20..at + 24].copy_from_slice(&start.to_le_bytes());
    }
    image
}

#[test]
fn a_whole_program_passes_and_every_cut_one_does_not() {
    let whole = program();
    assert_eq!(kernel::check(&whole, &[kernel::MACHINE]), Ok(()));
    for len in 0..whole.len() {
        assert!(kernel::check(&whole[..len], &[kernel::MACHINE]).is_err(), "{len}");
    }
    // What follows the sections, such as a signature, does not matter.
    assert_eq!(kernel::check(&[whole, vec![1; 99]].concat(), &[kernel::MACHINE]), Ok(()));
}

#[test]
fn what_is_no_program_for_this_machine_is_refused() {
    let refused = |at: usize, bytes: &[u8]| {
        let mut image = program();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        kernel::check(&image, &[kernel::MACHINE]).unwrap_err()
    };
    assert!(refused(0, b"\x7fELF").contains("does not begin with MZ"));
    assert!(refused(PE, b"NE").contains("no PE header"));
    assert!(refused(PE + 4, &0x14c_u16.to_le_bytes()).contains("0x014c"));
    assert!(refused(PE + 6, &[0, 0]).contains("no sections"));
    assert!(refused(PE + 6, &[0xff, 0xff]).contains("cut off"));
    assert!(refused(0x3c, &[0xff; 4]).contains("cut off"));
    assert!(refused(PE + 24 + 112 + 20, &[0xff; 4]).contains("cut off"));
    assert!(kernel::check(&[], &[kernel::MACHINE]).is_err());
}

/// A slot that was activated, or one that is confirmed.
fn slot(confirmed: bool) -> SlotPartitions {
    let tried = Attributes::default().activated(3).with_tries_left(2);
    let root = Entry {
        number: 3,
        type_guid: boot_select::ROOT_TYPE,
        unique_guid: "0A1B2C3D-4E5F-6071-8293-A4B5C6D7E8F9".parse::<Guid>().unwrap(),
        first_lba: 1,
        last_lba: 2,
        attributes: if confirmed { tried.confirmed() } else { tried },
        name: "ROOT-B".to_owned(),
    };
    SlotPartitions { slot: Slot::B, root, boot: Err(String::new()), by_backup: false }
}

const ADDED: &str = "root=PARTUUID=0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9 flipside.slot=B";
const TRIED: &str = "root=PARTUUID=0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9 flipside.slot=B flipside.trying";

#[test]
fn the_command_line_ends_with_root_and_slot() {
    assert_eq!(cmdline::compose(b"", &slot(true)).unwrap(), ADDED);
    assert_eq!(cmdline::compose(b"  \n", &slot(true)).unwrap(), ADDED);
    let line = cmdline::compose(b" quiet console=ttyS0,115200 \r\n", &slot(true)).unwrap();
    assert_eq!(line, format!("quiet console=ttyS0,115200 {ADDED}"));
    let options = cmdline::load_options(&line);
    assert_eq!(options.last(), Some(&0));
    assert_eq!(String::from_utf16(&options[..options.len() - 1]).unwrap(), line);
}

#[test]
fn a_command_line_that_would_arrive_as_another_one_is_refused() {
    for (file, expected) in [
        (b"quiet\nsingle".as_slice(), "more than one line"),
        (b"quiet\0single", "'\\0'"),
        ("größe=1".as_bytes(), "'ö'"),
        (b"\xff\xfe", "not text"),
    ] {
        let refused = cmdline::compose(file, &slot(true)).unwrap_err();
        assert!(refused.starts_with("\\cmdline: ") && refused.contains(expected), "{refused}");
    }
    for (confirmed, added) in [(true, ADDED), (false, TRIED)] {
        let room = cmdline::MAX_BYTES - added.len() - 1;
        let slot = slot(confirmed);
        assert_eq!(cmdline::compose(&vec![b'x'; room], &slot).unwrap().len(), cmdline::MAX_BYTES);
        assert!(cmdline::compose(&vec![b'x'; room + 1], &slot).unwrap_err().contains("2048 bytes"));
    }
}

#[test]
fn a_kernel_is_told_to_believe_the_backup_table_only_where_it_must() {
    let by_backup = |confirmed| SlotPartitions { by_backup: true, ..slot(confirmed) };
    assert_eq!(cmdline::compose(b"quiet", &by_backup(true)).unwrap(), format!("quiet {ADDED} gpt"));
    assert_eq!(cmdline::compose(b"quiet", &by_backup(false)).unwrap(), format!("quiet {TRIED} gpt"));
}

#[test]
fn a_slot_that_is_not_successful_says_so_and_no_other_does() {
    assert_eq!(cmdline::compose(b"quiet", &slot(false)).unwrap(), format!("quiet {TRIED}"));
    // Tries do not matter: what they are left of a confirmed slot, and the last one of a slot that is tried.
    for (attributes, expected) in [
        (Attributes::default().activated(3).with_tries_left(0), TRIED),
        (Attributes::default().activated(3).confirmed().with_tries_left(1), ADDED),
        (Attributes::default().confirmed().fallback(), ADDED),
    ] {
        let mut slot = slot(true);
        slot.root.attributes = attributes;
        assert_eq!(cmdline::compose(b"", &slot).unwrap(), expected, "{attributes:?}");
    }
}

proptest! {
    #[test]
    fn bytes_at_random_are_refused_and_do_no_harm(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
        place in 0_u32..700,
    ) {
        prop_assert!(kernel::check(&bytes, &[kernel::MACHINE]).is_err() || bytes.starts_with(b"MZ"));
        if bytes.len() > 0x40 {
            bytes[..2].copy_from_slice(b"MZ");
            bytes[0x3c..0x40].copy_from_slice(&place.to_le_bytes());
        }
        let _ = kernel::check(&bytes, &[kernel::MACHINE]);
        if let Ok(line) = cmdline::compose(&bytes, &slot(true)) {
            prop_assert!(line.ends_with(ADDED) && line.len() <= cmdline::MAX_BYTES);
        }
    }
}
