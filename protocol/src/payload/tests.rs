//! The payload format: what is written can be read, what is damaged is refused in bounded memory, and the worked
//! example of `docs/payload-format.md` is true.

use super::frame::{Decoder, Encoder, prefix};
use super::*;
use proptest::prelude::*;

fn role(text: &str) -> PartitionRole {
    text.parse().unwrap()
}

fn digest(seed: u64) -> Sha256 {
    Sha256::of(&seed.to_le_bytes())
}

/// An index as the builder would make it, but with chunks of any kind and length in any order.
fn index(kinds: &[Vec<(u8, u32)>], cutting: Cutting) -> Index {
    let mut number = 0_u32;
    let mut offset = 0;
    let mut stored: Vec<(u32, u32, Sha256)> = Vec::new();
    let names = ["root", "boot", "verity"];
    let partitions = kinds.iter().zip(names).map(|(kinds, name)| {
        let mut chunks = Vec::new();
        for (kind, len) in kinds {
            let mut len = (*len % cutting.max_len()).max(2);
            let sha256 = digest(number.into());
            let content = match kind % 4 {
                0 => Content::Zero,
                1 if !stored.is_empty() => {
                    let (of, same, sha256) = stored[len as usize % stored.len()];
                    len = same;
                    Content::Repeat { of, sha256 }
                }
                kind => {
                    stored.push((number, len, sha256));
                    let (encoding, stored_len) =
                        if kind == 2 { (Encoding::Zstd, len / 2) } else { (Encoding::Raw, len) };
                    offset += u64::from(stored_len);
                    Content::Stored(Stored {
                        sha256,
                        offset: offset - u64::from(stored_len),
                        len: stored_len,
                        encoding,
                    })
                }
            };
            chunks.push(Chunk { len, content });
            number += 1;
        }
        // Zeros at the end, so that an image of many short chunks is long enough for their number.
        let len = cutting.max_len() * u32::try_from(kinds.len()).unwrap();
        chunks.push(Chunk { len, content: Content::Zero });
        number += 1;
        let size = chunks.iter().map(|c| u64::from(c.len)).sum();
        Partition { role: role(name), size, sha256: digest(size), chunks }
    });
    let partitions = partitions.collect();
    Index { cutting, segment_len: 1 << 16, prefix_window: 1 << 14, partitions }
}

/// Offsets count from the start of the file, which is known once the head is written.
fn shifted(index: &Index, by: u64) -> Index {
    let mut index = index.clone();
    for chunk in index.partitions.iter_mut().flat_map(|p| &mut p.chunks) {
        if let Content::Stored(stored) = &mut chunk.content {
            stored.offset += by;
        }
    }
    index
}

fn some_index() -> Index {
    let kinds =
        vec![vec![(0, 70_000), (2, 9000), (3, 500), (1, 1), (2, 20_000)], vec![(2, 64), (1, 7), (0, 4096)]];
    index(&kinds, Cutting::DEFAULT)
}

fn any_index() -> impl Strategy<Value = Index> {
    let chunks = proptest::collection::vec((any::<u8>(), any::<u32>()), 1..40);
    (proptest::collection::vec(chunks, 1..=3), any::<bool>()).prop_map(|(kinds, fixed)| {
        index(&kinds, if fixed { Cutting::Fixed { len: 4096 } } else { Cutting::content(16 << 10) })
    })
}

/// A head around raw index bytes, right in all lengths but `data_len`.
fn head_around(raw: &[u8], data_len: u64) -> Vec<u8> {
    let stored = zstd::bulk::compress(raw, 1).unwrap();
    let header = Header { index_stored_len: stored.len() as u64, index_len: raw.len() as u64, data_len };
    [&header.to_bytes()[..], &stored].concat()
}

fn data_len(index: &Index) -> u64 {
    Index::parse_head(&index.encode_head().unwrap()).unwrap().0.data_len
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_can_be_read(index in any_index()) {
        let head = index.encode_head().unwrap();
        let (header, read) = Index::parse_head(&head).unwrap();
        prop_assert_eq!(header.head_len(), head.len() as u64);
        prop_assert_eq!(&read, &shifted(&index, header.head_len()));
        prop_assert_eq!(read.encode(), index.encode());
        // Segments cover every partition, in order, and none but a zero segment is long.
        let mut at = vec![(0, 0); index.partitions.len()];
        for segment in read.segments() {
            prop_assert_eq!(at[segment.partition], (segment.chunks.start, segment.offset));
            at[segment.partition] = (segment.chunks.end, segment.offset + segment.len);
            prop_assert!(segment.zero || segment.len < u64::from(index.segment_len + index.cutting.max_len()));
        }
        for (at, partition) in at.iter().zip(&index.partitions) {
            prop_assert_eq!(*at, (partition.chunks.len(), partition.size));
        }
    }

    /// Damage to the index itself, behind zstd's back: refused or read as something else that is consistent.
    #[test]
    fn a_damaged_index_never_panics(index in any_index(), at: prop::sample::Index, byte: u8, cut: bool) {
        let mut raw = index.encode();
        let at = at.index(raw.len());
        if cut { raw.truncate(at) } else { raw[at] = byte }
        if let Ok((header, read)) = Index::parse_head(&head_around(&raw, data_len(&index))) {
            prop_assert!(!cut);
            prop_assert_eq!(read.encode(), raw);
            prop_assert_eq!(header.data_len, data_len(&index));
            for partition in &read.partitions {
                prop_assert_eq!(partition.size, partition.chunks.iter().map(|c| u64::from(c.len)).sum::<u64>());
            }
            let _ = read.segments();
        }
    }

    #[test]
    fn frames_round_trip(
        preceding in proptest::collection::vec(any::<u8>(), 0..300),
        chunk in proptest::collection::vec(0_u8..3, 1..5000),
        window in 0_u32..400,
        like_dictionary: bool,
    ) {
        let mut segment = preceding;
        if like_dictionary {
            // What a formatted dictionary begins with: must not be taken for one.
            segment.splice(..0, [0x37, 0xa4, 0x30, 0xec]);
        }
        let at = segment.len();
        segment.extend_from_slice(&chunk);
        if let Some(stored) = Encoder::new(&segment, window, 3).unwrap().encode(at, chunk.len()).unwrap() {
            prop_assert!(stored.len() < chunk.len());
            let mut out = vec![0; chunk.len()];
            let mut decoder = Decoder::new().unwrap();
            decoder.decode(&segment[at.saturating_sub(window as usize)..at], &stored, &mut out).unwrap();
            prop_assert_eq!(&out, &chunk);
            // Neither too long nor too short.
            prop_assert!(decoder.decode(&[], &stored, &mut vec![0; chunk.len() + 1]).is_err());
            prop_assert!(decoder.decode(&[], &stored, &mut out[1..]).is_err());
            // A decoder that failed works again.
            decoder.decode(&segment[at.saturating_sub(window as usize)..at], &stored, &mut out).unwrap();
        }
    }
}

#[test]
fn every_truncation_and_bit_flip_of_a_head_is_refused_or_harmless() {
    let head = some_index().encode_head().unwrap();
    for len in 0..head.len() {
        assert!(Index::parse_head(&head[..len]).is_err(), "cut to {len}");
    }
    assert!(Index::parse_head(&[&head[..], &[0]].concat()).is_err());
    for bit in 0..head.len() * 8 {
        let mut damaged = head.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        // A flip in the header is always seen. One in the compressed index may give other digests; those are covered
        // by the digest of the head.
        let result = Index::parse_head(&damaged);
        assert!(bit >= HEADER_LEN * 8 || result.is_err(), "bit {bit}");
    }
}

#[test]
fn lengths_are_not_believed() {
    let index = some_index();
    let good = Index::parse_head(&index.encode_head().unwrap()).unwrap().0;
    let stored = &index.encode_head().unwrap()[HEADER_LEN..];
    let parse = |header: Header| Index::parse_head(&[&header.to_bytes()[..], stored].concat());
    assert!(parse(good).is_ok());
    // A length within the limits that is not there: no memory is taken for it, so this is quick.
    for index_len in [0, good.index_len - 1, good.index_len + 1, INDEX_MAX] {
        assert!(
            matches!(parse(Header { index_len, ..good }), Err(FormatError::Decompress { .. })),
            "{index_len}"
        );
    }
    for header in [
        Header { index_len: INDEX_MAX + 1, ..good },
        Header { index_stored_len: HEAD_MAX, ..good },
        Header { index_stored_len: u64::MAX, ..good },
        Header { data_len: u64::MAX, ..good },
    ] {
        assert!(matches!(parse(header), Err(FormatError::Limit { .. })), "{header:?}");
    }
    assert!(matches!(parse(Header { data_len: good.data_len + 1, ..good }), Err(FormatError::Length { .. })));
    // The header itself.
    let mut bytes = good.to_bytes();
    bytes[0] ^= 1;
    assert!(matches!(Header::parse(&bytes), Err(FormatError::Magic { .. })));
    for at in [8, 12] {
        let mut bytes = good.to_bytes();
        bytes[at] ^= 2;
        assert!(matches!(Header::parse(&bytes), Err(FormatError::Version { .. })));
    }
    for at in 40..64 {
        let mut bytes = good.to_bytes();
        bytes[at] = 1;
        assert!(matches!(Header::parse(&bytes), Err(FormatError::Index(_))), "{at}");
    }
}

/// Each rule of the format is broken once.
#[test]
fn a_contradicting_index_is_refused() {
    type Spoil = fn(&mut Index);
    let cases: &[(&str, Spoil)] = &[
        ("cutting", |i| i.cutting = Cutting::Fixed { len: 3 }),
        ("segment too long", |i| i.segment_len = SEGMENT_MAX + 1),
        ("segment of nothing", |i| (i.segment_len, i.prefix_window) = (0, 0)),
        ("prefix longer than a segment", |i| i.prefix_window = i.segment_len + 1),
        ("a role twice", |i| i.partitions[1].role = role("root")),
        ("size", |i| i.partitions[0].size += 1),
        ("no bytes", |i| i.partitions[0].chunks[1].len = 0),
        ("too long a chunk", |i| i.partitions[0].chunks[2].len = i.cutting.max_len() + 2),
        ("too long a zero chunk", |i| i.partitions[0].chunks[0].len = u32::MAX),
        ("an empty partition", |i| (i.partitions[1].chunks, i.partitions[1].size) = (Vec::new(), 0)),
        ("repeat of a zero chunk", |i| repeat_of(i, 0)),
        ("repeat of a repeat", |i| repeat_of(i, 3)),
        ("repeat of another length", |i| repeat_of(i, 4)),
        ("repeat of what is not there", |i| repeat_of(i, u32::MAX)),
        ("zstd that is not shorter", |i| stored_len(i, 9000)),
        ("zstd of nothing", |i| stored_len(i, 0)),
    ];
    let good = some_index();
    assert!(Index::parse_head(&head_around(&good.encode(), data_len(&good))).is_ok());
    for (what, spoil) in cases {
        let mut bad = good.clone();
        spoil(&mut bad);
        let head = bad.encode_head().unwrap();
        assert!(Index::parse_head(&head).is_err(), "{what}");
    }
    let with_tail = [&good.encode()[..], &[0]].concat();
    assert!(Index::parse_head(&head_around(&with_tail, data_len(&good))).is_err(), "bytes behind the end");
}

/// Zero chunks of one byte compress to nearly nothing, and each would take as much memory as any other chunk.
#[test]
fn more_chunks_than_an_image_is_cut_into_are_refused() {
    let zeroes = |cutting: Cutting, count: u32, size: u64| {
        let mut chunks = vec![Chunk { len: 1, content: Content::Zero }; count as usize];
        chunks[0].len = u32::try_from(size).unwrap() - (count - 1);
        let partition = Partition { role: role("root"), size, sha256: digest(0), chunks };
        Index { cutting, segment_len: 1 << 16, prefix_window: 0, partitions: vec![partition] }
    };
    let size = (4 << 20) + 5;
    for (cutting, most) in [
        (Cutting::DEFAULT, (4 << 20) / 4096 + 128 + 4),
        (Cutting::Fixed { len: 512 }, (4 << 20) / 512 + 128 + 4),
    ] {
        Index::parse_head(&zeroes(cutting, most, size).encode_head().unwrap()).unwrap();
        let refused = Index::parse_head(&zeroes(cutting, most + 1, size).encode_head().unwrap()).unwrap_err();
        let FormatError::Limit { limit, found, .. } = refused else { panic!("{refused}") };
        assert_eq!((limit, found), (most.into(), u64::from(most) + 1));
    }
    // The bomb: few bytes, many chunks, all lengths right.
    let bomb = zeroes(Cutting::DEFAULT, 4 << 20, 4 << 20).encode_head().unwrap();
    assert!(bomb.len() < 8 << 10, "{} bytes", bomb.len());
    assert!(matches!(Index::parse_head(&bomb), Err(FormatError::Limit { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// The limit is above what the cutter makes of any image, short regions between short runs of zeros above all.
    #[test]
    fn no_image_is_cut_into_too_many_chunks(
        regions in proptest::collection::vec((1_usize..9000, 16_usize..18), 0..12),
        tail in 0_usize..300,
        fixed: bool,
    ) {
        let cutting = if fixed { Cutting::Fixed { len: 4096 } } else { Cutting::DEFAULT };
        let mut image = Vec::new();
        for (data, zero_blocks) in regions {
            image.resize(image.len() + data, 7);
            image.resize(image.len().next_multiple_of(4096) + zero_blocks * 4096, 0);
        }
        image.resize(image.len() + tail, 7);
        let mut count = 0;
        let mut chunker = crate::chunker::Chunker::new(cutting);
        chunker.push(&image, &mut |_| count += 1);
        chunker.finish(&mut |_| count += 1);
        prop_assert!(count <= super::decode::max_chunks(cutting, image.len() as u64));
    }
}

fn repeat_of(index: &mut Index, chunk: u32) {
    // The second partition's second chunk, number 7, repeats an earlier one.
    match &mut index.partitions[1].chunks[1].content {
        Content::Repeat { of, .. } => *of = chunk,
        other => panic!("{other:?}"),
    }
}

fn stored_len(index: &mut Index, len: u32) {
    match &mut index.partitions[0].chunks[1].content {
        Content::Stored(stored) => stored.len = len,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_prefix_is_never_a_formatted_dictionary() {
    assert_eq!(prefix(&[0x37, 0xa4, 0x30, 0xec, 5]), &[0xa4, 0x30, 0xec, 5]);
    assert_eq!(prefix(&[0x37, 0xa4, 0x30]), &[0x37, 0xa4, 0x30]);
    assert_eq!(prefix(&[]), &[] as &[u8]);
}

/// The worked example: what the document shows in hexadecimal is a payload, and holds what the document says.
#[test]
fn the_documented_example_is_true() {
    let text = include_str!("../../../docs/payload-format.md");
    let hex = |name: &str| -> Vec<u8> {
        let block = text.split(&format!("```hex {name}\n")).nth(1).unwrap().split("```").next().unwrap();
        // What stands behind two blanks and a bar explains.
        let digits: String =
            block.lines().map(|line| line.split('|').next().unwrap().replace(' ', "")).collect();
        hex::decode(digits).unwrap()
    };
    let (file, raw) = (hex("file"), hex("index"));
    let head_len = usize::try_from(Header::parse(&file).unwrap().head_len()).unwrap();
    let (header, index) = Index::parse_head(&file[..head_len]).unwrap();
    assert_eq!(header.file_len(), file.len() as u64);
    assert_eq!(index.encode(), raw);
    let image = example_image();
    let mut decoded = Vec::new();
    let mut decoder = Decoder::new().unwrap();
    let mut starts = Vec::new();
    for segment in index.segments() {
        let start = decoded.len();
        for chunk in &index.partitions[segment.partition].chunks[segment.chunks.clone()] {
            let (at, end) = (decoded.len(), decoded.len() + chunk.len as usize);
            starts.push(at);
            decoded.resize(end, 0);
            match chunk.content {
                Content::Zero => {}
                Content::Repeat { of, .. } => {
                    let of = starts[of as usize];
                    decoded.copy_within(of..of + (end - at), at);
                }
                Content::Stored(stored) => {
                    let from = usize::try_from(stored.offset).unwrap();
                    let bytes = &file[from..from + stored.len as usize];
                    let (before, out) = decoded.split_at_mut(at);
                    match stored.encoding {
                        Encoding::Raw => out.copy_from_slice(bytes),
                        Encoding::Zstd => {
                            let prefix = index.prefix_len(at - start);
                            decoder.decode(&before[at - prefix..], bytes, out).unwrap();
                        }
                    }
                }
            }
            assert_eq!(chunk.sha256(), (chunk.content != Content::Zero).then(|| Sha256::of(&decoded[at..])));
        }
    }
    assert!(decoded == image);
    assert_eq!(index.partitions[0].sha256, Sha256::of(&image));
}

/// As the document describes it.
fn example_image() -> Vec<u8> {
    let mut image = b"flipside".repeat(32);
    image.resize(4096 + (64 << 10), 0);
    image.extend_from_slice(&b"flipside".repeat(32)[..200]);
    image
}
