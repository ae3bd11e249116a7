use super::*;
use crate::id::{Group, NodeId};
use crate::status::StateName;
use crate::version::Version;
use crate::wire::EventKind;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn start() -> Timestamp {
    "2026-11-30T00:00:00Z".parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn node(number: u32) -> NodeId {
    format!("{number:032x}").parse().unwrap()
}

fn policy(text: &str) -> RolloutPolicy {
    let file = RolloutFile::parse("t.toml", &format!("[channel.stable]\n{text}")).unwrap();
    file.channels.into_values().next().unwrap()
}

fn rollout(text: &str) -> Rollout {
    Rollout::begin("stable".parse().unwrap(), "1.1.0".parse().unwrap(), policy(text), None, start())
}

const WAVES: &str =
    "waves = [{ share = \"1%\", hold = \"1h\" }, { share = \"10%\", hold = \"2h\" }, { share = \"100%\" }]";

fn confirmed(granted: u32, confirmed: u32) -> Counts {
    let ended = Ended { granted, confirmed, ..Ended::default() };
    Counts { stage: ended, since: ended, ..Counts::default() }
}

fn asked<'a>(
    node: &'a NodeId,
    group: &'a Group,
    version: &'a Version,
    grant: Option<&'a Grant>,
) -> Asked<'a> {
    Asked { node, group, version, grant, quarantined: None }
}

fn reasons(
    rollout: &Rollout,
    number: u32,
    group: &str,
    counts: &Counts,
    own: Used,
    now: Timestamp,
) -> Vec<Reason> {
    let (node, group) = (node(number), group.parse().unwrap());
    decide(rollout, &asked(&node, &group, &rollout.version, None), counts, &own, now)
        .err()
        .unwrap_or_default()
}

fn said(reasons: &[Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn shares_are_read_and_printed() {
    for (text, printed) in
        [("1%", "1%"), ("0.25%", "0.25%"), ("0.5%", "0.5%"), ("100.00%", "100%"), ("0%", "0%")]
    {
        assert_eq!(text.parse::<Share>().unwrap().to_string(), printed);
    }
    for bad in ["", "%", "1", "101%", "100.01%", "1.%", ".5%", "1.234%", "-1%", "1 %", "١%", "1e1%"] {
        assert!(bad.parse::<Share>().is_err(), "{bad:?}");
    }
    assert_eq!(Share::of(1, 3).to_string(), "33.33%");
    assert_eq!(Share::of(0, 0), Share::ALL);
    assert!(!Share::NONE.covers(0));
    assert!(Share::ALL.covers(u64::MAX));
    assert!(Share::percent(90).is_reached_by(9, 10) && !Share::percent(90).is_reached_by(89, 100));
}

#[test]
fn places_are_fixed_spread_evenly_and_other_ones_in_the_next_release() {
    let (one, next): (Version, Version) = ("1.1.0".parse().unwrap(), "1.2.0".parse().unwrap());
    // Another implementation would find the same: printf 'flipside rollout\n1.1.0\n%s\n' NODE | sha256sum
    assert_eq!(place(&one, &node(1)), 0xe356_6800_ac23_afba);
    let in_share = |version: &Version, percent| {
        (0..20_000).filter(|n| Share::percent(percent).covers(place(version, &node(*n)))).collect::<Vec<_>>()
    };
    for percent in [1, 10, 50] {
        let found = in_share(&one, percent).len();
        let expected = usize::try_from(percent * 200).unwrap();
        assert!(found.abs_diff(expected) < expected / 5 + 20, "{percent} %: {found}");
    }
    let both = in_share(&one, 10).iter().filter(|n| in_share(&next, 10).contains(n)).count();
    assert!(both < 400, "{both} of 2000 are first both times");
}

#[test]
fn waves_open_one_by_one_with_time_and_proof() {
    let begun = rollout(WAVES);
    assert_eq!(begun.share(), Share::percent(1));
    assert_eq!(advance(&begun, &confirmed(10, 10), after(3599)), None, "the hold is not over");
    assert_eq!(advance(&begun, &confirmed(10, 8), after(3600)), None, "80 % are not 90 %");
    let next = advance(&begun, &confirmed(10, 9), after(3600)).unwrap();
    assert_eq!((next.stage, next.stage_at, next.share()), (1, after(3600), Share::percent(10)));
    assert_eq!(advance(&next, &confirmed(10, 10), after(7200)), None);
    let last = advance(&next, &confirmed(10, 10), after(10_800)).unwrap();
    assert!(last.is_last_stage());
    assert_eq!(advance(&last, &confirmed(10, 10), after(1_000_000)), None);
}

#[test]
fn a_wave_in_which_nobody_confirmed_opens_the_next_one_only_if_nobody_is_in_it() {
    let begun = rollout(WAVES);
    let nothing = Counts::default();
    assert!(!wants_waiting(&begun, &nothing, after(3599)));
    assert!(wants_waiting(&begun, &nothing, after(3600)));
    assert_eq!(advance(&begun, &nothing, after(3600)), None, "nobody has looked for those who wait");
    assert_eq!(advance(&begun, &Counts { waiting: Some(true), ..nothing }, after(9999)), None);
    assert!(advance(&begun, &Counts { waiting: Some(false), ..nothing }, after(3600)).is_some());
}

#[test]
fn the_stage_that_is_open_reaches_the_canary_group_and_the_first_places() {
    let reached = |rollout: &Rollout, group: &str| {
        [0, u64::MAX / 2, u64::MAX].map(|place| rollout.reaches(&group.parse().unwrap(), place))
    };
    let waves = "waves = [{ share = \"40%\" }, { share = \"60%\" }, { share = \"100%\" }]\n";
    let mut open = rollout(&format!("{waves}[channel.stable.canary]\ngroup = \"canary\"\n"));
    for expected in [[false; 3], [true, false, false], [true, true, false], [true; 3]] {
        assert_eq!(reached(&open, "web"), expected, "stage {}", open.stage);
        assert_eq!(reached(&open, "canary"), [true; 3], "stage {}", open.stage);
        open.stage += 1;
    }
    assert_eq!(reached(&rollout(""), "web"), [true; 3]);
}

#[test]
fn canaries_go_alone_until_one_has_confirmed() {
    let begun = rollout(&format!("{WAVES}\n[channel.stable.canary]\ngroup = \"canary\"\nhold = \"30m\"\n"));
    let none = Counts::default();
    assert_eq!(reasons(&begun, 1, "canary", &none, Used::default(), start()), []);
    let others = reasons(&begun, 1, "web", &none, Used::default(), start());
    assert_eq!(said(&others), "the group canary goes first");
    assert_eq!(
        advance(&begun, &Counts { waiting: Some(false), ..none }, after(99_999)),
        None,
        "an empty group proves nothing"
    );
    let failed = Ended { granted: 3, confirmed: 1, failed: 1, silent: 0 };
    let halted =
        advance(&begun, &Counts { stage: failed, since: failed, ..none }, start()).unwrap().halted.unwrap();
    assert_eq!(halted.why, "1 of 3 nodes of the canary group canary failed");
    let wave = advance(&begun, &confirmed(2, 2), after(1800)).unwrap();
    assert_eq!(wave.share(), Share::percent(1));
    assert_eq!(reasons(&wave, 1, "canary", &none, Used::default(), after(1800)), [], "canaries go on");
    let late = (0..100).map(|n| reasons(&wave, n, "web", &none, Used::default(), after(1800)));
    let late: Vec<_> = late.filter(|reasons| !reasons.is_empty()).collect();
    assert!(late.len() > 90);
    assert!(
        said(&late[0]).starts_with("wave 1 of 3 reaches 1% of the nodes, and this one stands at "),
        "{late:?}"
    );
}

#[test]
fn approval_stands_for_time_and_proof_but_not_for_a_pause() {
    let text = "waves = [{ share = \"1%\", hold = \"0s\", approve = true }, { share = \"100%\" }]";
    let begun = rollout(text);
    assert_eq!(advance(&begun, &confirmed(10, 10), after(100)), None);
    let approved = Rollout { approved: true, ..begun.clone() };
    let next = advance(&approved, &Counts::default(), after(1)).unwrap();
    assert!(next.is_last_stage() && !next.approved);
    let stop = Stop { at: start(), by: "eva".to_owned(), why: "look\nat it".to_owned() };
    let paused = Rollout { paused: Some(stop), ..approved };
    assert_eq!(advance(&paused, &confirmed(10, 10), after(1)), None);
    let told = said(&reasons(&paused, 1, "web", &Counts::default(), Used::default(), start()));
    assert!(
        told.starts_with("the rollout is paused by eva since 2026-11-30T00:00:00Z: look at it; wave 1"),
        "{told}"
    );
}

#[test]
fn failures_and_silence_halt_by_rate_and_by_number() {
    let begun = rollout("");
    let of = |confirmed, failed, silent| Counts {
        since: Ended { granted: 1000, confirmed, failed, silent },
        ..Counts::default()
    };
    assert_eq!(advance(&begun, &of(0, 2, 0), start()), None, "two are too few to tell");
    let halted = advance(&begun, &of(5, 1, 2), start()).unwrap().halted.unwrap();
    assert_eq!(halted.why, "3 of 8 nodes failed, 2 of them by falling silent in the reboot");
    assert_eq!(advance(&begun, &of(28, 3, 0), start()), None, "3 of 31 are below a tenth");
    assert!(advance(&begun, &of(27, 3, 0), start()).is_some());
    let strict = rollout("[channel.stable.halt]\nfailures = 1\nfailure_rate = \"100%\"");
    assert!(advance(&strict, &of(1000, 0, 1), start()).is_some());
    let halted = Rollout { halted: Some(halted), ..begun };
    assert_eq!(advance(&halted, &of(0, 9, 9), start()), None);
    let told = said(&reasons(&halted, 1, "web", &Counts::default(), Used::default(), start()));
    assert!(told.starts_with("the rollout is halted since 2026-11-30T00:00:00Z: 3 of 8"), "{told}");
}

#[test]
fn limits_windows_and_freezes_are_all_told() {
    let text = "in_flight = 2\nrate = { max = 3, per = \"1h\" }\nwindows = [{ start = \"03:00\", length = \"1h\" }]\n\
                freezes = [{ from = \"2026-11-30\", to = \"2026-12-01\", why = \"audit\" }]\n\
                [channel.stable.groups.db]\nin_flight = 0\n";
    let full = Used { in_flight: 2, recent: 3, makes_room: Some(start()) };
    let counts = Counts { used: full, ..Counts::default() };
    let told = reasons(&rollout(text), 1, "db", &counts, full, after(60));
    assert_eq!(
        told.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "frozen until 2026-12-02T00:00:00Z: audit",
            "outside the windows; the next opens at 2026-12-02T03:00:00Z",
            "2 nodes are under way, and 2 may be",
            "3 nodes were let go in 3600 s, as many as may be; the next may go at 2026-11-30T01:00:00Z",
            "group db: in_flight is 0: nobody is let go",
        ]
    );
    assert_eq!(
        reasons(&rollout(text), 1, "web", &Counts::default(), Used::default(), after(2 * 86_400 + 3 * 3600)),
        []
    );
}

/// Finding 11 of a user: a time that a reason names is one at which it is over.
#[test]
fn the_times_in_reasons_are_true() {
    // Saturdays of December 2026: 5, 12, 19.
    let text = "windows = [{ days = [\"sat\"], start = \"21:00\", length = \"8h\" }]\n\
                freezes = [{ from = \"2026-12-04\", to = \"2026-12-11\" }, { from = \"2026-12-01\", to = \"2026-12-03\", why = \"audit\" }]\n\
                rate = { max = 1, per = \"1m\" }\n";
    let rolled = rollout(text);
    let told = |now: &str, used| {
        let counts = Counts { used, ..Counts::default() };
        said(&reasons(&rolled, 1, "web", &counts, Used::default(), now.parse().unwrap()))
    };
    let windows = "outside the windows; the next opens at 2026-12-12T21:00:00Z";
    assert_eq!(
        told("2026-12-01T00:00:00Z", Used::default()),
        format!("frozen until 2026-12-12T00:00:00Z: audit; {windows}"),
        "freezes that touch are one"
    );
    assert_eq!(told("2026-11-30T00:00:00Z", Used::default()), windows, "the next one is frozen");
    let three = Used { in_flight: 3, recent: 3, makes_room: Some("2026-12-12T21:00:20Z".parse().unwrap()) };
    assert_eq!(
        told("2026-12-12T21:00:30Z", three),
        "3 nodes were let go in 60 s, and 1 may be; the next may go at 2026-12-12T21:01:20Z"
    );
    // The freeze ends within a window that opened before.
    let cut = rollout(
        "windows = [{ days = [\"fri\"], start = \"21:00\", length = \"8h\" }]\n\
                       freezes = [{ from = \"2026-12-04\", to = \"2026-12-04\" }]\n",
    );
    let told = reasons(&cut, 1, "web", &Counts::default(), Used::default(), start());
    assert_eq!(said(&told), "outside the windows; the next opens at 2026-12-05T00:00:00Z");
    let never = rollout(
        "windows = [{ start = \"21:00\", length = \"2h\" }]\n\
                         freezes = [{ from = \"2026-11-01\", to = \"9999-12-31\" }]\n",
    );
    let told = reasons(&never, 1, "web", &Counts::default(), Used::default(), start());
    assert_eq!(said(&told), "frozen; no window ever opens");
}

#[test]
fn what_holds_all_is_told_of_the_rollout_as_of_each_node() {
    let text = "in_flight = 0\nwindows = [{ start = \"03:00\", length = \"1h\" }]\n\
                freezes = [{ from = \"2026-11-30\", to = \"2026-12-01\" }]\nrate = { max = 3, per = \"1h\" }\n\
                [channel.stable.canary]\ngroup = \"canary\"\n[channel.stable.groups.db]\nin_flight = 0\n";
    let stop = |why: &str| Stop { at: start(), by: "eva".to_owned(), why: why.to_owned() };
    let held = Rollout {
        halted: Some(stop("3 failed")),
        paused: Some(stop("looking")),
        paused_groups: [("db".parse().unwrap(), stop("tables"))].into(),
        ..rollout(text)
    };
    let used = Used { in_flight: 0, recent: 3, makes_room: Some(start()) };
    let all = holds_all(&held, &used, after(60));
    assert_eq!(
        all.iter().map(|reason| reason.to_string().chars().take(34).collect::<String>()).collect::<Vec<_>>(),
        [
            "the rollout is halted since 2026-1",
            "the rollout is paused by eva since",
            "frozen until 2026-12-02T00:00:00Z",
            "outside the windows; the next open",
            "in_flight is 0: nobody is let go",
            "3 nodes were let go in 3600 s, as ",
        ]
    );
    for (group, others) in [("web", 1), ("db", 3), ("canary", 0)] {
        let told = reasons(&held, 1, group, &Counts { used, ..Counts::default() }, used, after(60));
        assert!(all.iter().all(|reason| told.contains(reason)), "{group}: {told:?}");
        assert_eq!(told.len(), all.len() + others, "{group}: {told:?}");
    }
    assert_eq!(
        holds_all(&rollout(WAVES), &used, start()),
        [],
        "a stage that is not open holds not everybody"
    );
}

#[test]
fn a_stage_that_can_prove_nothing_any_more_says_that_only_an_approval_opens_the_next_one() {
    let canary = "[channel.stable.canary]\ngroup = \"canary\"\nhold = \"0s\"\n";
    let waits = |rollout: &Rollout, granted, confirmed, failed, waiting| {
        let stage = Ended { granted, confirmed, failed, silent: 0 };
        let counts = Counts { stage, waiting, ..Counts::default() };
        (is_stuck(rollout, &counts), next_stage(rollout, &counts, after(1)).join("; "))
    };
    let nobody = "an operator's approval, as no node is left in this stage that could confirm the release (each failed or has it \
                  in quarantine, or there is none): updatectl rollout approve stable --why TEXT";
    let begun = rollout(canary);
    assert_eq!(waits(&begun, 0, 0, 0, Some(false)), (true, nobody.to_owned()));
    assert_eq!(
        waits(&begun, 0, 0, 0, Some(true)),
        (true, "a first node of this stage that confirms the release".to_owned())
    );
    assert!(waits(&begun, 2, 0, 1, None).0, "one of two is not all");
    let all_failed = waits(&begun, 2, 0, 2, Some(false)).1;
    assert!(
        all_failed.starts_with(nobody) && all_failed.ends_with("0 of 2 let go in this stage, and 100% must")
    );
    assert!(!waits(&begun, 1, 0, 0, Some(false)).0, "one is under way");
    let approved = Rollout { approved: true, ..begun };
    assert_eq!(waits(&approved, 0, 0, 0, Some(false)).1, "");
    let wave = rollout("waves = [{ share = \"1%\", hold = \"0s\" }, { share = \"100%\" }]");
    assert!(waits(&wave, 10, 5, 5, Some(false)).1.starts_with(nobody), "90% must");
    assert!(!waits(&wave, 10, 5, 1, Some(false)).0, "four are under way");
    assert_eq!(waits(&wave, 0, 0, 0, Some(false)), (false, String::new()), "nobody is in it: it opens");
}

#[test]
fn a_halted_rollout_names_the_whole_command() {
    let stop = Stop { at: start(), by: "server".to_owned(), why: "w".to_owned() };
    let halted = Rollout { halted: Some(stop), ..rollout(WAVES) };
    let waits = next_stage(&halted, &confirmed(1, 1), after(3600));
    assert_eq!(waits, ["an operator: updatectl rollout resume stable --why TEXT"]);
}

#[test]
fn phases_are_asked_for_as_a_list() {
    assert_eq!(Phases::default().iter().count(), 8);
    assert_eq!(Phases::failures().to_string(), "failed,rolled-back,silent");
    let some: Phases = "silent,failed".parse().unwrap();
    assert_eq!(some.iter().collect::<Vec<_>>(), [GrantPhase::Failed, GrantPhase::Silent]);
    for bad in ["", "failed,", "Failed", "done"] {
        assert!(bad.parse::<Phases>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_node_that_came_back_is_let_go_again_only_if_its_quarantine_was_cleared() {
    let rollout = rollout("");
    let (node, group) = (node(1), "web".parse().unwrap());
    let grant = Grant {
        version: rollout.version.clone(),
        granted_at: start(),
        phase: GrantPhase::RolledBack,
        phase_at: start(),
    };
    let ask = |quarantined, grant| {
        let asked = Asked { quarantined, ..asked(&node, &group, &rollout.version, grant) };
        said(
            &decide(&rollout, &asked, &Counts::default(), &Used::default(), start())
                .err()
                .unwrap_or_default(),
        )
    };
    let came_back = "this node came back from 1.1.0 at 2026-11-30T00:00:00Z and is not let go to it again";
    assert_eq!(ask(None, Some(&grant)), came_back);
    assert_eq!(ask(Some(true), Some(&grant)), came_back);
    assert_eq!(ask(Some(false), Some(&grant)), "");
    assert_eq!(
        ask(Some(true), None),
        "1.1.0 is quarantined on this node; updatectl quarantine clear there allows it again"
    );
}

#[test]
fn a_new_policy_opens_nothing_that_was_closed() {
    let begun = rollout(WAVES);
    let second = advance(&begun, &confirmed(1, 1), after(3600)).unwrap();
    assert_eq!(second.share(), Share::percent(10));
    let shares = |rollout: &Rollout, text: &str| rollout.with_policy(policy(text), after(4000)).share();
    assert_eq!(
        shares(&second, "waves = [{ share = \"5%\" }, { share = \"20%\" }, { share = \"100%\" }]"),
        Share::percent(5)
    );
    let larger = "waves = [{ share = \"20%\" }, { share = \"100%\" }]";
    assert_eq!(shares(&second, larger), Share::percent(10), "the one that is open stays");
    assert_eq!(shares(&second, "in_flight = 500"), Share::percent(10), "as it does before all at once");
    let kept = second.with_policy(policy(larger), after(4000));
    assert_eq!((kept.stages(), kept.stage_at), (3, after(3600)), "its hold goes on");
    assert_eq!(advance(&kept, &confirmed(1, 1), after(10_800)).unwrap().share(), Share::percent(20));
    let again = kept.with_policy(policy(larger), after(5000));
    assert_eq!((again.stages(), again.share()), (3, Share::percent(10)), "and is kept once");
    let canary = rollout("[channel.stable.canary]\ngroup = \"c\"\napprove = true");
    let without = canary.with_policy(policy(""), after(4000));
    assert_eq!(without.share(), Share::NONE, "the canary group goes on alone");
    assert!(advance(&without, &confirmed(1, 1), after(9000)).is_none(), "and still wants its approval");
    assert_eq!(shares(&rollout(""), WAVES), Share::ALL, "all could go already");
    assert_eq!(shares(&rollout(""), "[channel.stable.canary]\ngroup = \"c\""), Share::ALL);
    let same = second.with_policy(RolloutPolicy { silent_after_s: 99, ..second.policy.clone() }, after(4000));
    assert_eq!((same.stage, same.stage_at), (1, after(3600)), "the hold goes on");
}

fn stages() -> impl Strategy<Value = RolloutPolicy> {
    let waves = prop::collection::btree_set(1_u32..=100, 0..4);
    (waves, prop::option::of("[ab]"), any::<bool>()).prop_map(|(shares, canary, approve)| {
        let wave = |share| Wave { share: Share::percent(share), approve, ..Wave::DEFAULT };
        let confirmed = Share::percent(50);
        let canary =
            canary.map(|name| Canary { group: name.parse().unwrap(), hold_s: 60, confirmed, approve });
        RolloutPolicy { waves: shares.into_iter().map(wave).collect(), canary, ..RolloutPolicy::default() }
    })
}

proptest! {
    /// Whatever an operator sets one after the other: no node may go that could not before, but for a canary group that is named.
    #[test]
    fn no_policy_opens_what_was_closed(first in stages(), stage in 0_u32..5, others in prop::collection::vec(stages(), 1..4)) {
        let begun = Rollout { policy: first, ..rollout("") };
        let mut rollout = Rollout { stage: stage.min(begun.stages() - 1), ..begun };
        for (number, policy) in others.into_iter().enumerate() {
            let next = rollout.with_policy(policy, after(100 * i64::try_from(number).unwrap()));
            prop_assert!(next.stage < next.stages());
            let named = next.policy.canary.as_ref().map(|canary| canary.group.clone());
            for group in ["a", "b", "c"].map(|name| name.parse::<Group>().unwrap()) {
                for place in (0..=100).map(|percent| u64::MAX / 100 * percent) {
                    let opened = next.reaches(&group, place) && !rollout.reaches(&group, place);
                    prop_assert!(!opened || named.as_ref() == Some(&group), "{:?} opens {} to {}", next, place, group);
                }
            }
            rollout = next;
        }
    }
}

#[test]
fn events_make_of_grants_what_operators_expect() {
    use EventKind as E;
    use GrantPhase as P;
    let run =
        |events: &[E]| events.iter().fold(P::Granted, |phase, event| phase.after(*event).unwrap_or(phase));
    assert_eq!(run(&[E::DownloadStarted, E::Staged, E::Activated]), P::Activated);
    assert_eq!(run(&[E::Activated, E::Rebooting, E::Confirmed, E::Failed]), P::Confirmed);
    assert_eq!(run(&[E::Rebooting, E::RolledBack, E::Refused]), P::RolledBack);
    assert_eq!(run(&[E::Failed]), P::Failed);
    assert_eq!(run(&[E::HookFailed]), P::Granted);
    assert_eq!(P::Silent.after(E::RolledBack), Some(P::RolledBack));
    assert_eq!(P::Silent.after(E::Confirmed), Some(P::Confirmed));
    assert_eq!(P::Lost.after(E::Rebooting), Some(P::Rebooting), "it goes on by itself");
    assert_eq!(P::Silent.after(E::Rebooting), None);
}

#[test]
fn silence_counts_from_the_last_word() {
    let policy = policy("silent_after = \"30m\"");
    let (old, new): (Version, Version) = ("1.0.0".parse().unwrap(), "1.1.0".parse().unwrap());
    let grant = |phase| Grant { version: new.clone(), granted_at: start(), phase, phase_at: after(60) };
    let heard =
        |version, state, at| Heard { follows: true, told_to_wait: false, version, state, at: after(at) };
    let rebooting = grant(GrantPhase::Rebooting);
    assert_eq!(rebooting.seen(None, &policy, start(), after(1859)), None);
    assert_eq!(rebooting.seen(None, &policy, start(), after(1860)), Some(GrantPhase::Silent));
    let back = heard(&old, StateName::Idle, 1000);
    assert_eq!(rebooting.seen(Some(&back), &policy, start(), after(1860)), None, "it speaks");
    assert_eq!(rebooting.seen(Some(&back), &policy, start(), after(2800)), Some(GrantPhase::Silent));
    let runs = heard(&new, StateName::Idle, 1000);
    assert_eq!(
        grant(GrantPhase::Silent).seen(Some(&runs), &policy, start(), after(9999)),
        Some(GrantPhase::Confirmed)
    );
    let not_yet = heard(&new, StateName::Confirming, 1000);
    assert_eq!(rebooting.seen(Some(&not_yet), &policy, start(), after(1001)), None);
    assert_eq!(grant(GrantPhase::RolledBack).seen(Some(&runs), &policy, start(), after(9999)), None);
    assert_eq!(
        grant(GrantPhase::Granted).seen(None, &policy, start(), after(86_460)),
        Some(GrantPhase::Lost)
    );
    assert_eq!(
        grant(GrantPhase::Activated).seen(None, &policy, start(), after(86_460)),
        Some(GrantPhase::Silent)
    );
    // What it does not take up is a failure, unless it was told to wait; what was undone there is none.
    let idle = heard(&old, StateName::Idle, 2000);
    let seen = |phase, heard: &Heard<'_>| grant(phase).seen(Some(heard), &policy, start(), after(2001));
    assert_eq!(seen(GrantPhase::Granted, &idle), Some(GrantPhase::Failed));
    let waits = Heard { told_to_wait: true, ..idle.clone() };
    assert_eq!(seen(GrantPhase::Granted, &waits), Some(GrantPhase::Lost));
    assert_eq!(seen(GrantPhase::Activated, &idle), Some(GrantPhase::Lost), "its place is free");
    assert_eq!(seen(GrantPhase::Activated, &heard(&old, StateName::Waiting, 2000)), None);
    assert_eq!(seen(GrantPhase::Activated, &heard(&old, StateName::Idle, 900)), None, "it may be older");
    let before = heard(&new, StateName::Idle, -5);
    assert_eq!(
        grant(GrantPhase::Granted).seen(Some(&before), &policy, start(), after(61)),
        None,
        "said before the grant"
    );
}

/// A fleet as a server would keep it, for the property below.
struct Fleet {
    rollout: Rollout,
    grants: BTreeMap<u32, (Grant, u32)>,
    groups: Vec<Group>,
    now: Timestamp,
}

impl Fleet {
    fn group(&self, number: u32) -> &Group {
        &self.groups[usize::try_from(number).unwrap() % self.groups.len()]
    }

    fn used(&self, of: Option<&Group>) -> Used {
        let limits =
            of.map_or(Some(&self.rollout.policy.limits), |group| self.rollout.policy.groups.get(group));
        let per = limits.and_then(|limits| limits.rate).map_or(0, |rate| rate.per_s);
        let since = self.now - SignedDuration::from_secs(per.into());
        let mine = self.grants.iter().filter(|(n, _)| of.is_none_or(|group| self.group(**n) == group));
        let mine: Vec<&Grant> = mine.map(|(_, (grant, _))| grant).collect();
        let recent = mine.iter().filter(|grant| grant.granted_at > since);
        Used {
            in_flight: mine.iter().filter(|grant| grant.phase.is_open()).count().try_into().unwrap(),
            recent: recent.clone().count().try_into().unwrap(),
            makes_room: None,
        }
    }

    fn ended(&self, of: impl Fn(&Grant, u32) -> bool) -> Ended {
        let mut ended = Ended::default();
        for (grant, _) in self.grants.values().filter(|(grant, stage)| of(grant, *stage)) {
            ended.granted += 1;
            match grant.phase {
                GrantPhase::Confirmed => ended.confirmed += 1,
                GrantPhase::Failed | GrantPhase::RolledBack => ended.failed += 1,
                GrantPhase::Silent => ended.silent += 1,
                _ => {}
            }
        }
        ended
    }

    fn counts(&self) -> Counts {
        Counts {
            used: self.used(None),
            stage: self.ended(|_, stage| stage == self.rollout.stage),
            since: self.ended(|_, _| true),
            waiting: None,
        }
    }

    fn ask(&mut self, number: u32) -> bool {
        let (node, group) = (node(number), self.group(number).clone());
        let known = self.grants.get(&number).map(|(grant, _)| grant.clone());
        if known.as_ref().is_some_and(|grant| grant.phase.is_open() || grant.phase == GrantPhase::Confirmed) {
            return false;
        }
        let asked = asked(&node, &group, &self.rollout.version, known.as_ref());
        if decide(&self.rollout, &asked, &self.counts(), &self.used(Some(&group)), self.now).is_err() {
            return false;
        }
        let version = self.rollout.version.clone();
        let grant = Grant { version, granted_at: self.now, phase: GrantPhase::Granted, phase_at: self.now };
        self.grants.insert(number, (grant, self.rollout.stage));
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever nodes ask and report: no limit is exceeded, nobody goes out of turn, and after a halt nobody goes.
    #[test]
    fn no_limit_is_ever_exceeded(
        in_flight in 1_u32..6, rate in 1_u32..6, own in 1_u32..3,
        acts in proptest::collection::vec((0_u32..60, 0_u8..12, 0_i64..2000), 1..250),
    ) {
        let text = format!(
            "in_flight = {in_flight}\nrate = {{ max = {rate}, per = \"30m\" }}\n\
             waves = [{{ share = \"20%\", hold = \"30m\", confirmed = \"50%\" }}, {{ share = \"100%\" }}]\n\
             [channel.stable.halt]\nfailures = 6\nfailure_rate = \"60%\"\n\
             [channel.stable.groups.db]\nin_flight = {own}\n"
        );
        let groups = ["web", "db", "cache"].map(|name| name.parse().unwrap()).to_vec();
        let mut fleet = Fleet { rollout: rollout(&text), grants: BTreeMap::new(), groups, now: start() };
        for (number, act, seconds) in acts {
            fleet.now += SignedDuration::from_secs(seconds / 4);
            let counts = fleet.counts();
            if let Some(next) = advance(&fleet.rollout, &counts, fleet.now) {
                prop_assert!(next.stage <= fleet.rollout.stage + 1);
                fleet.rollout = next;
            }
            let halted = fleet.rollout.halted.is_some();
            let failures = fleet.counts().since.failures();
            prop_assert!(halted || failures < 6, "{failures} failures and no halt");
            if act < 7 {
                let went = fleet.ask(number);
                prop_assert!(!went || !halted);
                prop_assert!(!went || fleet.rollout.share().covers(place(&fleet.rollout.version, &node(number))));
            } else if let Some((grant, _)) = fleet.grants.get_mut(&number) {
                let event = [EventKind::Activated, EventKind::Rebooting, EventKind::Confirmed, EventKind::RolledBack, EventKind::Failed];
                if let Some(phase) = grant.phase.after(event[usize::from(act - 7)]) {
                    (grant.phase, grant.phase_at) = (phase, fleet.now);
                }
            }
            let db: Group = "db".parse().unwrap();
            prop_assert!(fleet.used(None).in_flight <= in_flight);
            prop_assert!(fleet.used(Some(&db)).in_flight <= own);
            prop_assert!(fleet.used(None).recent <= rate);
        }
    }
}
