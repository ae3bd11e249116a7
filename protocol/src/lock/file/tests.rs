use super::*;
use crate::lock::document::{ClientId, Zone};
use crate::lock::policy::Limit;
use crate::window::Window;
use jiff::civil::{Time, Weekday};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn parse(text: &str) -> Result<PolicyFile, String> {
    PolicyFile::parse("p.toml", text).map_err(|errors| errors.to_string())
}

fn group(text: &str) -> Policy {
    parse(text).unwrap().groups.remove(&"web".parse::<Group>().unwrap()).unwrap()
}

fn errors(text: &str) -> String {
    parse(text).unwrap_err()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    assert_eq!(group("[group.web]"), Policy::default());
    for key in KEYS.iter().filter(|key| key.path.matches('.').count() == 2) {
        let Some((name, default)) = key.path.strip_prefix("group.NAME.").zip(key.default) else { continue };
        assert_eq!(group(&format!("[group.web]\n{name} = {default}\n")), Policy::default(), "{name}");
    }
}

#[test]
fn every_key_is_read() {
    let text = r#"
[group.web]
max = "10%"
size = 300
zones = { max = 1, limits = { rack-7 = "50%" }, sizes = { rack-7 = 40 } }
windows = [{ days = ["sat", "sun"], start = "22:00", end = "06:00" }, { start = 01:30:00, length = "1h30m" }]
time_zone = "Europe/Berlin"
reboot_takes = "90s"
granted_max = "2h"
rebooting_max = "1d"
on_stuck = "hold"
on_failed = "release"
quorum = { members = 5 }
canaries = ["n1", "n2"]
priorities = { n3 = -10 }
[cap.dc]
groups = ["web", "db"]
max = 2
"#;
    let zone: Zone = "rack-7".parse().unwrap();
    let weekend = vec![Weekday::Saturday, Weekday::Sunday];
    let expected = Policy {
        max: Limit::Percent(10),
        size: Some(300),
        zones: Some(Zones {
            max: Limit::Count(1),
            limits: BTreeMap::from([(zone.clone(), Limit::Percent(50))]),
            sizes: BTreeMap::from([(zone, 40)]),
        }),
        windows: vec![
            Window { days: weekend, start: Time::constant(22, 0, 0, 0), length_s: 8 * 3600 },
            Window { days: Vec::new(), start: Time::constant(1, 30, 0, 0), length_s: 5400 },
        ],
        time_zone: "Europe/Berlin".to_owned(),
        reboot_takes_s: 90,
        granted_max_s: 7200,
        rebooting_max_s: 86_400,
        on_stuck: OnTrouble::Hold,
        on_failed: OnTrouble::Release,
        quorum: Some(Quorum { members: Some(5) }),
        canaries: vec!["n1".parse().unwrap(), "n2".parse().unwrap()],
        priorities: BTreeMap::from([("n3".parse().unwrap(), -10)]),
    };
    let file = parse(text).unwrap();
    assert_eq!(file.groups.into_values().collect::<Vec<_>>(), [expected]);
    let cap = Cap { groups: vec!["web".parse().unwrap(), "db".parse().unwrap()], max: 2 };
    assert_eq!(file.caps.caps, BTreeMap::from([("dc".to_owned(), cap)]));
    for key in KEYS {
        let name = key.path.rsplit('.').next().unwrap();
        assert!(
            text.contains(&format!("{name} = ")) || text.contains(&format!("{name}]")),
            "{name} is not read here"
        );
    }
}

#[test]
fn all_errors_are_told_with_line_and_column_and_what_is_allowed() {
    let text = r#"# a comment
[group.web]
max = "0.5%"
size = -1
windos = []
windows = [{ days = ["Sat"], start = "9:00", end = "10:00" }, { start = "09:00" }]
zones = { limits = { r1 = true } }
reboot_takes = 600
on_stuck = "wait"
canaries = ["a b"]
priorities = { n1 = 3000000000 }
[group."a b"]
[cap.dc]
groups = "web"
[extra]
"#;
    insta::assert_snapshot!(errors(text));
}

#[test]
fn what_does_not_fit_together_is_told_at_its_place() {
    let text = r#"
[group.web]
max = "0%"
size = 0
zones = { max = "101%", limits = { r1 = "0%" }, sizes = { r1 = 0 } }
reboot_takes = "30m"
granted_max = "5s"
rebooting_max = "20m"
windows = [
    { days = ["sat"], start = "22:00", end = "22:20" },
    { days = ["sat"], start = "22:00", length = "20m" },
    { days = ["sun", "sun"], start = "22:00", length = "8d" },
]
time_zone = "Mars/Olympus"
quorum = { members = 2 }
canaries = ["n1", "n2", "n1"]
[cap.dc]
groups = ["web", "db", "web"]
max = 1
[cap.none]
groups = []
max = 1
"#;
    insta::assert_snapshot!(errors(text));
}

#[test]
fn every_day_is_the_same_as_all_seven_days() {
    let text = "[group.web]\nwindows = [{ start = \"01:00\", length = \"1h\" }, \
        { days = [\"sun\", \"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\"], start = \"01:00\", end = \"02:00\" }]";
    assert!(errors(text).contains("group.web.windows.1: found the same window twice"), "{}", errors(text));
}

#[test]
fn windows_need_one_end() {
    let of = |window: &str| errors(&format!("[group.web]\nwindows = [{{ start = \"01:00\"{window} }}]"));
    assert!(of("").ends_with("expected either end or length, found neither"), "{}", of(""));
    let both = of(", end = \"02:00\", length = \"1h\"");
    assert!(both.ends_with("expected either end or length, found both"), "{both}");
    let same = of(", end = \"01:00\"");
    assert!(same.contains("write length = \"24h\""), "{same}");
    let no_day = of(", end = \"02:00\", days = []");
    assert!(no_day.contains("leave the key out for every day"), "{no_day}");
}

#[test]
fn an_error_is_one_line_whatever_the_names_hold() {
    let text = errors("[group.\"a\\nb\"]\n");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("p.toml:1:8: group.a b: not a valid group"), "{text}");
}

#[test]
fn broken_toml_is_told_by_line() {
    let text = errors("[group.web]\nmax = 1\nmax = 2\n[group.web]\nsize = \n");
    assert!(text.starts_with("p.toml:3:1: not TOML: "), "{text}");
    assert!(text.lines().count() >= 2 && text.contains("p.toml:5:"), "{text}");
}

#[test]
fn a_file_that_sets_nothing_is_an_error() {
    assert_eq!(errors("# nothing\n"), "p.toml:1:1: expected a table [group.NAME] or [cap.NAME], found none");
    assert!(errors("group = 3\n").contains("group: expected a table, found 3"));
}

#[test]
fn durations_and_times_of_day() {
    let takes = |text: &str| parse(&format!("[group.web]\nrebooting_max = {text:?}")).map(|_| ());
    for good in ["600s", "10m", "1h30m", "1d", "1d1h1m1s"] {
        assert_eq!(takes(good), Ok(()), "{good}");
    }
    for bad in ["", "10", "m", "10 m", "1m1h", "-5m", "+5m", "1h1h", "99999999d", "1.5h", "5mm"] {
        let error = takes(bad).unwrap_err();
        assert!(error.contains("expected a duration as in"), "{bad}: {error}");
    }
    let opens =
        |text: &str| parse(&format!("[group.web]\nwindows = [{{ start = {text:?}, length = \"1h\" }}]"));
    assert!(opens("00:00").is_ok() && opens("23:59").is_ok() && opens("12:00:30").is_ok());
    for bad in ["24:00", "9:00", "12:60", "12", "12:00foo", "noon", "12:00Z", "1200"] {
        assert!(opens(bad).unwrap_err().contains("expected a time of day"), "{bad}");
    }
}

#[test]
fn a_policy_is_printed_as_operators_write_it() {
    let text =
        std::fs::read_to_string(repository().join("dist/lock-policies/ten-percent-per-zone-at-night.toml"));
    insta::assert_snapshot!(parse(&text.unwrap()).unwrap());
}

#[test]
fn the_examples_are_valid_and_say_what_their_names_say() {
    let example = |name: &str| {
        let path = repository().join(format!("dist/lock-policies/{name}.toml"));
        PolicyFile::parse(name, &std::fs::read_to_string(path).unwrap()).unwrap_or_else(|e| panic!("{e}"))
    };
    let only = |name: &str| example(name).groups.into_values().next().unwrap();
    assert_eq!(only("one-at-a-time"), Policy::default());
    let night = only("ten-percent-per-zone-at-night");
    assert_eq!(night.zones.unwrap().max, Limit::Percent(10));
    assert_eq!(night.windows.len(), 2);
    assert_eq!(only("etcd-members").quorum, Some(Quorum { members: Some(3) }));
    assert_eq!(only("canary-first").canaries.len(), 2);
    assert_eq!(example("cap-over-two-groups").caps.caps["front"].groups.len(), 2);
    let files = std::fs::read_dir(repository().join("dist/lock-policies")).unwrap().count();
    assert_eq!(files, 5, "an example is not tested here");
}

#[test]
fn the_documentation_has_every_key_and_every_example() {
    let text = std::fs::read_to_string(repository().join("docs/lock-policy.md")).unwrap();
    for key in KEYS {
        let default = key.default.map_or(String::new(), |default| format!("`{default}`"));
        let row = format!("| `{}` | {default} | {} |", key.path, key.doc);
        assert!(text.contains(&row), "docs/lock-policy.md lacks this row:\n{row}");
    }
    for file in std::fs::read_dir(repository().join("dist/lock-policies")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(text.contains(&name), "docs/lock-policy.md does not name {name}");
    }
}

fn limits() -> impl Strategy<Value = Limit> {
    prop_oneof![any::<u32>().prop_map(Limit::Count), (1_u8..=100).prop_map(Limit::Percent)]
}

fn windows() -> impl Strategy<Value = Vec<Window>> {
    let days = prop::sample::subsequence((0..7).collect::<Vec<i8>>(), 0..7);
    let start =
        (0_i8..24, 0_i8..60, prop_oneof![Just(0_i8), 0_i8..60], prop_oneof![Just(0_i32), 0..1_000_000_000]);
    let length = prop_oneof![601_u32..86_400, 86_400_u32..=604_800, Just(86_400)];
    let window = (days, start, length).prop_map(|(days, (h, m, s, n), length_s)| Window {
        days: days.into_iter().map(|day| Weekday::from_monday_zero_offset(day).unwrap()).collect(),
        start: Time::new(h, m, s, n).unwrap(),
        length_s,
    });
    prop::collection::vec(window, 0..4)
}

fn troubles() -> impl Strategy<Value = OnTrouble> {
    prop::sample::select(vec![OnTrouble::Halt, OnTrouble::Hold, OnTrouble::Release])
}

prop_compose! {
    fn policies()(
        max in limits(), size in prop::option::of(1_u32..),
        zones in prop::option::of((
            limits(),
            prop::collection::btree_map("[!-~]{1,64}", limits(), 0..3),
            prop::collection::btree_map("[!-~]{1,64}", 1_u32.., 0..3),
        )),
        windows in windows(),
        time_zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"]),
        times in (1_u32..=600, 60_u32.., 600_u32..),
        trouble in (troubles(), troubles()),
        quorum in prop::option::of(prop::option::of(3_u32..)),
        canaries in prop::collection::btree_set("[!-~]{1,256}", 0..6),
        priorities in prop::collection::btree_map("[!-~]{1,256}", any::<i32>(), 0..4),
    ) -> Policy {
        let zone = |name: String| name.parse::<Zone>().unwrap();
        let node = |name: String| name.parse::<ClientId>().unwrap();
        Policy {
            max,
            size,
            zones: zones.map(|(max, limits, sizes)| Zones {
                max,
                limits: limits.into_iter().map(|(name, max)| (zone(name), max)).collect(),
                sizes: sizes.into_iter().map(|(name, size)| (zone(name), size)).collect(),
            }),
            windows,
            time_zone: time_zone.to_owned(),
            reboot_takes_s: times.0,
            granted_max_s: times.1,
            rebooting_max_s: times.2,
            on_stuck: trouble.0,
            on_failed: trouble.1,
            quorum: quorum.map(|members| Quorum { members }),
            canaries: canaries.into_iter().map(node).collect(),
            priorities: priorities.into_iter().map(|(name, priority)| (node(name), priority)).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_printed_reads_back_as_itself(
        groups in prop::collection::btree_map("[a-z0-9][a-zA-Z0-9._-]{0,20}", policies(), 0..3),
        caps in prop::collection::btree_map(
            "[a-z0-9][a-zA-Z0-9._-]{0,20}",
            (prop::collection::btree_set("[a-z0-9][a-zA-Z0-9._-]{0,20}", 1..12), any::<u32>()),
            1..3,
        ),
    ) {
        let cap = |(groups, max): (std::collections::BTreeSet<String>, u32)| {
            Cap { groups: groups.iter().map(|name| name.parse().unwrap()).collect(), max }
        };
        let file = PolicyFile {
            groups: groups.into_iter().map(|(name, policy)| (name.parse().unwrap(), policy)).collect(),
            caps: Caps { caps: caps.into_iter().map(|(name, known)| (name, cap(known))).collect() },
        };
        prop_assume!(file.groups.values().all(|policy| policy.problems().is_empty()));
        let text = file.to_string();
        let read = PolicyFile::parse("p.toml", &text);
        prop_assert_eq!(read.as_ref(), Ok(&file), "{}", text);
        prop_assert_eq!(read.unwrap().to_string(), text);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\[group\\.[a-z]{1,3}\\]\n|[a-z_]{1,12} = |\\PC{0,10}|[\\[\\]{}\"=,.\n0-9]){0,40}") {
        if let Err(errors) = PolicyFile::parse("p.toml", &text) {
            prop_assert!(!errors.0.is_empty());
            let last = text.matches('\n').count() + 1;
            prop_assert!(errors.0.iter().all(|error| (1..=last).contains(&error.line) && error.column >= 1));
        }
    }
}
