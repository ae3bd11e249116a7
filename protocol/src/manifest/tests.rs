//! Documents that are signed must still make sense; those that do not are refused with a line that says why.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn version(text: &str) -> Version {
    text.parse().unwrap()
}

fn arch() -> Arch {
    "x86-64".parse().unwrap()
}

/// A manifest with all that one can hold.
fn manifest() -> Manifest {
    Manifest {
        schema: SCHEMA,
        os: "debian".to_owned(),
        version: version("1.1.0"),
        arch: arch(),
        partitions: vec![
            PartitionImage { role: PartitionRole::boot(), size: 64 << 20, sha256: Sha256::of(b"boot") },
            PartitionImage { role: PartitionRole::root(), size: 1 << 30, sha256: Sha256::of(b"root") },
        ],
        payloads: vec![
            PayloadFile {
                size: 400 << 20,
                sha256: Sha256::of(b"full"),
                head_size: 1 << 20,
                head_sha256: Sha256::of(b"full head"),
                source_sha256: None,
            },
            PayloadFile {
                size: 20 << 20,
                sha256: Sha256::of(b"delta"),
                head_size: 1 << 16,
                head_sha256: Sha256::of(b"delta head"),
                source_sha256: Some(Sha256::of(b"old root")),
            },
        ],
        min_source_version: Some(version("1.0.0")),
        notes: "Security fixes.".to_owned(),
    }
}

fn parse(value: &Value) -> Result<Manifest, DocumentError> {
    Manifest::parse(value.to_string().as_bytes(), &version("1.1.0"), &arch())
}

/// The error's line, or its source's where the parser speaks.
fn why(error: &DocumentError) -> String {
    match error {
        DocumentError::Json { what, source } => format!("{what}: {source}"),
        other => other.to_string(),
    }
}

#[test]
fn manifest_as_it_is_written() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&manifest()).unwrap(), @r#"
    {
      "schema": 1,
      "os": "debian",
      "version": "1.1.0",
      "arch": "x86-64",
      "partitions": [
        {
          "role": "boot",
          "size": 67108864,
          "sha256": "4509beb0ab401d71fa4a5cd94a55c9a74f13332776ae4019c5bfc4c2005157ff"
        },
        {
          "role": "root",
          "size": 1073741824,
          "sha256": "4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2"
        }
      ],
      "payloads": [
        {
          "size": 419430400,
          "sha256": "a18b869b2e81c0c529552a3c4fa5c92ed08b98a4e146aed778d71d27517f83ac",
          "head_size": 1048576,
          "head_sha256": "ccb58f351d116a621359d355b757e49964296c949d8bb77c2cdfef55c9f7dd99"
        },
        {
          "size": 20971520,
          "sha256": "4f4a9410ffcdf895c4adb880659e9b5c0dd1f23a30790684340b3eaacb045398",
          "head_size": 65536,
          "head_sha256": "3ae4e33119411cc4c648de084da6555ebab310bcd00756211b31a5d8dc03e47c",
          "source_sha256": "0d030ed1c5eae002028b3ab77d79d0f52437495aab58df9373a19732402b0da9"
        }
      ],
      "min_source_version": "1.0.0",
      "notes": "Security fixes."
    }
    "#);
}

#[test]
fn channel_file_as_it_is_written() {
    let file = ChannelFile {
        schema: SCHEMA,
        channel: "alpha".parse().unwrap(),
        versions: vec![version("1.1.0"), version("2.0.0-rc.1")],
    };
    insta::assert_snapshot!(serde_json::to_string_pretty(&file).unwrap(), @r#"
    {
      "schema": 1,
      "channel": "alpha",
      "versions": [
        "1.1.0",
        "2.0.0-rc.1"
      ]
    }
    "#);
}

#[test]
fn target_custom_as_it_is_written() {
    let mut custom = TargetCustom { allow_downgrade_from: Some(version("1.1.0")), dead_end: None };
    assert_eq!(serde_json::to_value(&custom).unwrap(), json!({ "allow_downgrade_from": "1.1.0" }));
    custom =
        TargetCustom { allow_downgrade_from: None, dead_end: Some("its updater cannot write".to_owned()) };
    assert_eq!(serde_json::to_value(&custom).unwrap(), json!({ "dead_end": "its updater cannot write" }));
    assert_eq!(serde_json::to_value(TargetCustom::default()).unwrap(), json!({}));
}

#[test]
fn what_is_written_is_read() {
    let bytes = serde_json::to_vec(&manifest()).unwrap();
    assert_eq!(Manifest::parse(&bytes, &version("1.1.0"), &arch()).unwrap(), manifest());
}

#[test]
fn paths_are_those_of_the_design() {
    assert_eq!(Manifest::target_path(&version("1.1.0"), &arch()), "releases/1.1.0/x86-64/manifest.json");
    assert_eq!(ChannelFile::target_path(&"alpha".parse().unwrap()), "channels/alpha.json");
}

#[test]
fn optional_fields_may_be_absent() {
    let mut value = serde_json::to_value(manifest()).unwrap();
    let fields = value.as_object_mut().unwrap();
    fields.remove("min_source_version");
    fields.remove("notes");
    let parsed = parse(&value).unwrap();
    assert_eq!((parsed.min_source_version, parsed.notes.as_str()), (None, ""));
}

/// One change to a good manifest, and the words that the refusal must hold.
type Wrong = (&'static str, fn(&mut Value), &'static str);

const WRONG: [Wrong; 15] = [
    ("another version", |m| m["version"] = "1.2.0".into(), "is for 1.2.0: expected 1.1.0"),
    ("another architecture", |m| m["arch"] = "arm64".into(), "is for arm64: expected x86-64"),
    ("a newer schema", |m| m["schema"] = 2.into(), "has schema 2: expected 1; a newer engine is needed"),
    ("no schema", |m| drop(m.as_object_mut().unwrap().remove("schema")), "missing field `schema`"),
    ("a field from nowhere", |m| m["pre_install"] = "rm -rf /".into(), "unknown field `pre_install`"),
    ("such a field in a partition", |m| m["partitions"][0]["x"] = 1.into(), "unknown field `x`"),
    ("such a field in a payload", |m| m["payloads"][0]["url"] = "http://".into(), "unknown field `url`"),
    ("no partition", |m| m["partitions"] = json!([]), "it names no partition"),
    (
        "no root partition",
        |m| drop(m["partitions"].as_array_mut().unwrap().pop()),
        "it names no root partition",
    ),
    ("one partition twice", |m| m["partitions"][0]["role"] = "root".into(), "names the partition root twice"),
    ("an empty image", |m| m["partitions"][0]["size"] = 0.into(), "the image of the partition boot is empty"),
    ("no payload", |m| m["payloads"] = json!([]), "it names no full payload"),
    ("only a delta", |m| drop(m["payloads"].as_array_mut().unwrap().remove(0)), "it names no full payload"),
    ("a head longer than its file", |m| m["payloads"][1]["size"] = 1000.into(), "is 65536 bytes long"),
    ("a digest in capitals", |m| m["payloads"][0]["sha256"] = "AB".repeat(32).into(), "not a sha256 digest"),
];

#[test]
fn manifests_that_make_no_sense() {
    for (name, change, expected) in WRONG {
        let mut value = serde_json::to_value(manifest()).unwrap();
        change(&mut value);
        let found = why(&parse(&value).unwrap_err());
        assert!(found.contains(expected), "{name}: {found}");
        assert!(found.contains("the manifest of 1.1.0 for x86-64"), "{name}: {found}");
    }
}

#[test]
fn a_head_may_not_be_longer_than_any_head() {
    let mut value = serde_json::to_value(manifest()).unwrap();
    value["payloads"][0]["size"] = (u64::from(u32::MAX) << 8).into();
    value["payloads"][0]["head_size"] = HEAD_MAX.into();
    parse(&value).unwrap();
    value["payloads"][0]["head_size"] = (HEAD_MAX + 1).into();
    assert!(matches!(parse(&value), Err(DocumentError::Invalid { .. })));
}

#[test]
fn a_schema_that_is_not_known_is_said_before_anything_else() {
    let error = parse(&json!({ "schema": 9, "everything": "else is new" })).unwrap_err();
    assert!(matches!(error, DocumentError::Schema { found: 9, .. }), "{error}");
}

#[test]
fn what_is_no_document() {
    for garbage in ["", "null", "[]", "{}", "{\"schema\":\"1\"}", "<html>", "{\"schema\":1}"] {
        let error = Manifest::parse(garbage.as_bytes(), &version("1.1.0"), &arch()).unwrap_err();
        assert!(matches!(error, DocumentError::Json { .. }), "{garbage}: {error}");
        let error = ChannelFile::parse(garbage.as_bytes(), &"alpha".parse().unwrap()).unwrap_err();
        assert!(matches!(error, DocumentError::Json { .. }), "{garbage}: {error}");
    }
}

#[test]
fn channel_files_that_make_no_sense() {
    let alpha = "alpha".parse().unwrap();
    let good = json!({ "schema": 1, "channel": "alpha", "versions": ["1.1.0"] });
    assert!(ChannelFile::parse(good.to_string().as_bytes(), &alpha).is_ok());
    let wrong: [(&str, Value, &str); 4] = [
        ("channel", "beta".into(), "is for beta: expected alpha"),
        ("schema", 3.into(), "has schema 3"),
        ("versions", json!(["1.1.0", "latest"]), "not a version"),
        ("rollout", 50.into(), "unknown field `rollout`"),
    ];
    for (field, value, expected) in wrong {
        let mut file = good.clone();
        file[field] = value;
        let found = why(&ChannelFile::parse(file.to_string().as_bytes(), &alpha).unwrap_err());
        assert!(found.contains(expected), "{field}: {found}");
    }
}

#[test]
fn the_same_images_are_the_same_release() {
    let first = manifest();
    let mut renamed = first.clone();
    renamed.version = version("9.9.9");
    renamed.notes.clear();
    renamed.payloads.remove(1);
    renamed.partitions.reverse();
    assert_eq!(first.release_digest(), renamed.release_digest(), "whatever the order of its partitions");
    let mut other = first.clone();
    other.partitions[0].sha256 = Sha256::of(b"another boot");
    assert_ne!(first.release_digest(), other.release_digest());
    let mut swapped = first.clone();
    swapped.partitions[0].role = PartitionRole::root();
    swapped.partitions[1].role = PartitionRole::boot();
    assert_ne!(first.release_digest(), swapped.release_digest());
}

#[test]
fn the_full_payload_is_the_one_without_a_source() {
    let mut manifest = manifest();
    manifest.payloads.reverse();
    assert_eq!(manifest.full_payload().unwrap().sha256, Sha256::of(b"full"));
    assert_eq!(manifest.partition(&PartitionRole::root()).unwrap().size, 1 << 30);
}

proptest! {
    /// Whatever bytes a captured server finds, parsing ends in an answer.
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Manifest::parse(&bytes, &version("1.1.0"), &arch());
        let _ = ChannelFile::parse(&bytes, &"alpha".parse().unwrap());
    }

    /// Nor do bytes that are nearly a manifest.
    #[test]
    fn no_damage_makes_it_panic(at in 0usize..2000, byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&manifest()).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(parsed) = Manifest::parse(&bytes, &version("1.1.0"), &arch()) {
            prop_assert_eq!(parsed.version, version("1.1.0"));
            prop_assert_eq!(parsed.arch, arch());
        }
    }
}

#[test]
fn the_reason_of_a_dead_end_is_a_line_of_bounded_length() {
    assert_eq!(check_dead_end("its updater cannot write"), Ok(()));
    assert_eq!(check_dead_end(&"x".repeat(DEAD_END_MAX)), Ok(()));
    for wrong in ["", "  ", "two\nlines", "\u{1b}[2J", &"x".repeat(DEAD_END_MAX + 1)] {
        assert!(check_dead_end(wrong).is_err(), "{wrong:?}");
    }
}
