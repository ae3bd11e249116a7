use super::*;
use crate::id::Group;
use crate::window::Window;
use jiff::civil::{Time, Weekday, date};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn parse(text: &str) -> Result<RolloutFile, String> {
    RolloutFile::parse("r.toml", text).map_err(|errors| errors.to_string())
}

fn stable(text: &str) -> RolloutPolicy {
    parse(text).unwrap().channels.remove(&"stable".parse::<Channel>().unwrap()).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    assert_eq!(stable("[channel.stable]"), RolloutPolicy::default());
    let wave = stable("[channel.stable]\nwaves = [{ share = \"100%\" }]").waves[0];
    assert_eq!(wave, Wave::DEFAULT);
    let gate = stable("[channel.stable.promotion]").promotion;
    for key in ROLLOUT_KEYS {
        let (Some(default), Some(path)) = (key.default, key.path.strip_prefix("channel.NAME.")) else {
            continue;
        };
        match path.split('.').collect::<Vec<_>>()[..] {
            [name] => assert_eq!(
                stable(&format!("[channel.stable]\n{name} = {default}\n")),
                RolloutPolicy::default()
            ),
            ["halt", name] => {
                assert_eq!(
                    stable(&format!("[channel.stable.halt]\n{name} = {default}\n")),
                    RolloutPolicy::default()
                );
            }
            ["waves", name] => {
                let text = format!("[channel.stable]\nwaves = [{{ share = \"100%\", {name} = {default} }}]");
                assert_eq!(stable(&text).waves, [wave]);
            }
            ["promotion", name] => {
                assert_eq!(
                    stable(&format!("[channel.stable.promotion]\n{name} = {default}\n")).promotion,
                    gate
                );
            }
            ["canary", name] => {
                let text = format!("[channel.stable.canary]\ngroup = \"c\"\n{name} = {default}\n");
                assert_eq!(stable(&text), stable("[channel.stable.canary]\ngroup = \"c\""));
            }
            _ => {}
        }
    }
}

const WHOLE: &str = r#"
[channel.stable]
in_flight = 200
rate = { max = 500, per = "1h" }
windows = [{ days = ["sat", "sun"], start = "22:00", end = "06:00" }]
time_zone = "Europe/Berlin"
silent_after = "45m"
lost_after = "2d"
freezes = [{ from = "2026-12-20", to = 2027-01-03, why = "holidays" }]
waves = [
    { share = "0.25%", hold = "4h", confirmed = "100%", approve = true },
    { share = "100%" },
]
[channel.stable.canary]
group = "canary"
hold = "2h"
confirmed = "80%"
approve = true
[channel.stable.halt]
failures = 5
failure_rate = "2.5%"
least_failures = 2
[channel.stable.promotion]
soak = "48h"
healthy = "98%"
nodes = 10
[channel.stable.groups.db]
in_flight = 1
rate = { max = 2, per = "1d" }
windows = [{ start = "03:00", length = "1h" }]
"#;

#[test]
fn every_key_is_read() {
    let window = Window { days: Vec::new(), start: Time::constant(3, 0, 0, 0), length_s: 3600 };
    let weekend = vec![Weekday::Saturday, Weekday::Sunday];
    let expected = RolloutPolicy {
        canary: Some(Canary {
            group: "canary".parse().unwrap(),
            hold_s: 7200,
            confirmed: Share::percent(80),
            approve: true,
        }),
        waves: vec![
            Wave { share: "0.25%".parse().unwrap(), hold_s: 14_400, confirmed: Share::ALL, approve: true },
            Wave::DEFAULT,
        ],
        limits: Limits {
            in_flight: Some(200),
            rate: Some(Rate { max: 500, per_s: 3600 }),
            windows: vec![Window { days: weekend, start: Time::constant(22, 0, 0, 0), length_s: 8 * 3600 }],
        },
        freezes: vec![Freeze { from: date(2026, 12, 20), to: date(2027, 1, 3), why: "holidays".to_owned() }],
        time_zone: "Europe/Berlin".to_owned(),
        halt: Halt { failures: Some(5), failure_rate: "2.5%".parse().unwrap(), least_failures: 2 },
        silent_after_s: 2700,
        lost_after_s: 172_800,
        promotion: Some(Gate { soak_s: 172_800, healthy: Share::percent(98), nodes: 10 }),
        groups: [(
            "db".parse::<Group>().unwrap(),
            Limits { in_flight: Some(1), rate: Some(Rate { max: 2, per_s: 86_400 }), windows: vec![window] },
        )]
        .into(),
    };
    assert_eq!(stable(WHOLE), expected);
    for key in
        ROLLOUT_KEYS.iter().filter(|key| !key.path.contains("GROUP.windows") && !key.path.ends_with("length"))
    {
        let name = key.path.rsplit('.').next().unwrap();
        assert!(WHOLE.contains(name), "{} is not in the text of this test", key.path);
    }
}

#[test]
fn errors_say_where_what_is_allowed_and_what_was_found() {
    let cases = [
        ("", "r.toml:1:1: expected a table [channel.NAME], found none"),
        ("[group.web]", "r.toml:1:2: group: no such table; known is [channel.NAME]"),
        ("[channel.stable]\nwave = 1", "channel.stable.wave: no such key; known here: waves, canary"),
        ("[channel.stable]\nwaves = [{ share = \"1\" }]", "found \"1\""),
        (
            "[channel.stable]\nwaves = [{ share = \"50%\" }]",
            "expected \"100%\" in the last wave, found \"50%\"",
        ),
        (
            "[channel.stable]\nwaves = [{ share = \"5%\" }, { share = \"5%\" }, { share = \"100%\" }]",
            "r.toml:2:38: channel.stable.waves.1.share: expected a share above 5%, found 5%",
        ),
        ("[channel.stable]\nwaves = [{ hold = \"1h\" }]", "expected the key share, found none"),
        ("[channel.stable]\nwaves = [{ share = \"100%\", approve = 1 }]", "expected true or false, found 1"),
        ("[channel.stable]\nrate = { max = 1 }", "expected the key per, found none"),
        ("[channel.stable]\nrate = { max = 0, per = \"1h\" }", "rate.max: expected at least 1, found 0"),
        (
            "[channel.stable.groups.db]\nrate = { max = 1, per = \"0s\" }",
            "groups.db.rate.per: expected at least 1s",
        ),
        (
            "[channel.stable]\nfreezes = [{ from = \"2026-12-20\", to = \"2026-12-19\" }]",
            "expected a day not before",
        ),
        ("[channel.stable]\nfreezes = [{ from = \"20.12.\", to = \"2026-12-19\" }]", "expected a date as in"),
        ("[channel.stable]\ntime_zone = \"Mars\"", "found \"Mars\""),
        ("[channel.stable]\nlost_after = \"10m\"", "expected at least silent_after (5400s), found 600s"),
        ("[channel.stable.halt]\nfailure_rate = \"0%\"", "expected more than \"0%\""),
        ("[channel.stable.halt]\nfailures = 0", "expected at least 1, found 0"),
        ("[channel.stable.canary]\nhold = \"1h\"", "expected the key group, found none"),
        ("[channel.stable.canary]\ngroup = \"a b\"", "expected the name of a group, found \"a b\""),
    ];
    for (text, expected) in cases {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}\n{error}\nexpected: {expected}");
    }
}

#[test]
fn the_documentation_has_the_same_table() {
    let docs = std::fs::read_to_string(repository().join("docs/rollouts.md")).unwrap();
    for key in ROLLOUT_KEYS {
        let default = key.default.map_or_else(String::new, |default| format!("`{default}`"));
        let row = format!("| `{}` | {default} | {} |", key.path, key.doc);
        assert!(docs.contains(&row), "docs/rollouts.md lacks this row:\n{row}");
    }
}

#[test]
fn examples_are_read() {
    let mut read = 0;
    for entry in std::fs::read_dir(repository().join("dist/rollout-policies")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let file = RolloutFile::parse(&path.display().to_string(), &text).unwrap();
        assert_eq!(parse(&file.to_string()).unwrap(), file);
        read += 1;
    }
    assert!(read >= 3);
}

fn share() -> impl Strategy<Value = Share> {
    (0_u32..=10_000).prop_map(|parts| format!("{}.{:02}%", parts / 100, parts % 100).parse().unwrap())
}

fn limits() -> impl Strategy<Value = Limits> {
    let window = (0_i8..24, 1_u32..200_000).prop_map(|(hour, length_s)| Window {
        days: Vec::new(),
        start: Time::constant(hour, 0, 0, 0),
        length_s,
    });
    let rate = (1_u32..9, 1_u32..100_000).prop_map(|(max, per_s)| Rate { max, per_s });
    (proptest::option::of(0_u32..9), proptest::option::of(rate), proptest::collection::vec(window, 0..2))
        .prop_map(|(in_flight, rate, windows)| Limits { in_flight, rate, windows })
}

fn policies() -> impl Strategy<Value = RolloutPolicy> {
    let waves = proptest::collection::btree_set(1_u32..10_000, 0..4).prop_flat_map(|shares| {
        let len = if shares.is_empty() { 0 } else { shares.len() + 1 };
        let shares: Vec<u32> = shares.into_iter().chain([10_000]).collect();
        proptest::collection::vec((0_u32..100_000, share(), any::<bool>()), len).prop_map(move |rest| {
            let waves = shares.iter().zip(rest);
            let share = |parts: u32| format!("{}.{:02}%", parts / 100, parts % 100).parse().unwrap();
            waves
                .map(|(parts, (hold_s, confirmed, approve))| Wave {
                    share: share(*parts),
                    hold_s,
                    confirmed,
                    approve,
                })
                .collect::<Vec<_>>()
        })
    });
    let canary = (0_u32..9999, share(), any::<bool>()).prop_map(|(hold_s, confirmed, approve)| Canary {
        group: "c".parse().unwrap(),
        hold_s,
        confirmed,
        approve,
    });
    let freeze = (0_i8..27, "[a-z\"\\\\ ]{0,6}").prop_map(|(day, why)| Freeze {
        from: date(2026, 12, 1 + day),
        to: date(2026, 12, 1 + day),
        why,
    });
    let gate =
        (0_u32..9999, share(), 0_u32..9).prop_map(|(soak_s, healthy, nodes)| Gate { soak_s, healthy, nodes });
    let halt = (proptest::option::of(1_u32..9), 1_u32..100, 0_u32..9).prop_map(
        |(failures, percent, least_failures)| Halt {
            failures,
            failure_rate: Share::percent(percent),
            least_failures,
        },
    );
    (
        (proptest::option::of(canary), waves, limits(), proptest::collection::vec(freeze, 0..2)),
        (
            halt,
            60_u32..9999,
            proptest::option::of(gate),
            proptest::collection::btree_map("[a-z]{1,3}", limits(), 0..3),
        ),
    )
        .prop_map(|((canary, waves, limits, freezes), (halt, silent_after_s, promotion, groups))| {
            RolloutPolicy {
                canary,
                waves,
                limits,
                freezes,
                time_zone: "Europe/Berlin".to_owned(),
                halt,
                silent_after_s,
                lost_after_s: silent_after_s * 2,
                promotion,
                groups: groups.into_iter().map(|(name, limits)| (name.parse().unwrap(), limits)).collect(),
            }
        })
}

proptest! {
    /// What is printed is read as the same, and what is kept as JSON too.
    #[test]
    fn a_policy_reads_back_as_itself(policy in policies()) {
        prop_assert!(policy.problems().is_empty(), "{:?}", policy.problems());
        let file = RolloutFile { channels: [("stable".parse().unwrap(), policy.clone())].into() };
        prop_assert_eq!(parse(&file.to_string()).unwrap(), file.clone());
        prop_assert!(file.difference(&file).is_empty());
        let json = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(serde_json::from_str::<RolloutPolicy>(&json).unwrap(), policy);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
        drop(parse(&text));
        drop(parse(&format!("[channel.stable]\n{text}")));
    }
}
