use super::*;
use crate::rollout::RolloutFile;

fn start() -> Timestamp {
    "2026-11-30T00:00:00Z".parse().unwrap()
}

fn assumed() -> Assumed {
    Assumed {
        failing: Share::NONE,
        silent: Share::NONE,
        seed: 1,
        poll_interval_s: 2700,
        update_takes_s: 900,
        approve_after_s: None,
        span_s: 30 * 86_400,
    }
}

/// A tenth of the nodes are canaries.
fn run(policy: &str, nodes: u32, assumed: &Assumed) -> Simulated {
    let file = RolloutFile::parse("t.toml", &format!("[channel.stable]\n{policy}")).unwrap();
    let policy = file.channels.into_values().next().unwrap();
    let rollout = Rollout::begin("stable".parse().unwrap(), "1.1.0".parse().unwrap(), policy, None, start());
    let group = |number: u32| if number.is_multiple_of(10) { "canary" } else { "web" };
    let node = |number: u32| (format!("{number:032x}").parse().unwrap(), group(number).parse().unwrap());
    simulate(rollout, (0..nodes).map(node).collect(), assumed)
}

fn held(simulated: &Simulated) -> Vec<&str> {
    simulated.points.iter().filter_map(|point| point.held_by.as_deref()).collect()
}

#[test]
fn an_approval_is_waited_for_and_may_be_assumed() {
    let policy = "[channel.stable.canary]\ngroup = \"canary\"\nhold = \"1h\"\napprove = true\n";
    let waits = run(policy, 50, &assumed());
    let line = "stage 1 of 2 waits for an operator's approval";
    assert_eq!(held(&waits).last(), Some(&line), "{:?}", held(&waits));
    assert!(held(&waits).iter().any(|held| held.starts_with("stage 1 of 2 waits for its hold, until ")));
    assert!(waits.points.len() < 15, "thirty days of nothing are no rows: {:?}", waits.points);
    assert_eq!((waits.done_at, &*waits.events[0].1), (None, line));
    let since = waits.waits_for_approval.unwrap();
    assert_eq!(since, waits.events[0].0);

    let goes_on = run(policy, 50, &Assumed { approve_after_s: Some(7200), ..assumed() });
    assert_eq!((goes_on.events[0].0, &*goes_on.events[0].1), (since, line));
    let told: Vec<&str> = goes_on.events.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(told[1..], ["an operator approves that stage 2 follows", "stage 2 of 2 opens: 100%"]);
    assert_eq!(goes_on.events[1].0, since + SignedDuration::from_secs(7200));
    assert!(goes_on.done_at.is_some() && goes_on.waits_for_approval.is_none());
}

#[test]
fn what_too_few_have_confirmed_is_told_with_its_figures() {
    let policy = "waves = [{ share = \"20%\", hold = \"1h\", confirmed = \"90%\" }, { share = \"100%\" }]\n\
                  [channel.stable.halt]\nfailure_rate = \"100%\"\n";
    let simulated = run(policy, 50, &Assumed { failing: Share::percent(30), ..assumed() });
    let last = simulated.points.last().unwrap();
    let (granted, confirmed) = (last.ended.granted, last.ended.confirmed);
    assert!(confirmed > 0 && confirmed < granted, "{last:?}");
    let expected = format!(
        "stage 1 of 2 waits for confirmations: {confirmed} of {granted} let go in this stage, and 90% must"
    );
    assert_eq!(last.held_by.as_deref(), Some(&*expected));
}

#[test]
fn all_limits_that_hold_are_told() {
    let windows = "in_flight = 0\nwindows = [{ start = \"21:00\", length = \"2h\" }]\n\
                   freezes = [{ from = \"2026-12-02\", to = \"2026-12-03\" }]\n";
    let simulated = run(windows, 20, &Assumed { span_s: 5 * 86_400, ..assumed() });
    assert_eq!(
        held(&simulated)[..4],
        [
            "in_flight is 0; outside the windows",
            "in_flight is 0",
            "frozen; in_flight is 0; outside the windows",
            "frozen; in_flight is 0"
        ]
    );
    assert_eq!(simulated.points.len(), 5, "what was told before is no news: {:?}", simulated.points);
}

#[test]
fn rows_are_where_something_happens() {
    let policy = "waves = [{ share = \"5%\", hold = \"48h\" }, { share = \"100%\" }]\nrate = { max = 60, per = \"1h\" }\n";
    let simulated = run(policy, 600, &assumed());
    assert!(simulated.done_at.is_some());
    let of = |stage| simulated.points.iter().filter(|point| point.stage == stage).count();
    assert!((2..=8).contains(&of(0)), "two days of holding: {:?}", simulated.points);
    assert!((15..=40).contains(&of(1)), "the last stage is where nodes go: {:?}", simulated.points);
    let done = simulated.points.last().unwrap();
    assert_eq!((done.ended.confirmed, &done.held_by), (600, &None));
}
