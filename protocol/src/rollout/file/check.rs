//! Step 4, channel: what a rollout policy may not say, whoever sends it and in whichever form.

use crate::policy_file::{Problem, problem, window_problems};
use crate::rollout::policy::{Limits, RolloutPolicy};
use crate::rollout::share::Share;

/// The least time that a node in its reboot has before it counts as silent, in seconds.
const SILENT_LEAST_S: u32 = 60;

impl RolloutPolicy {
    /// Everything that is wrong with it; nothing if it may be set.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.wave_problems();
        problems.extend(limits_problems("", &self.limits));
        for (name, limits) in &self.groups {
            problems.extend(limits_problems(&format!("groups.{name}."), limits));
        }
        for (at, freeze) in self.freezes.iter().enumerate().filter(|(_, freeze)| freeze.to < freeze.from) {
            let message = format!("expected a day not before from ({}), found {}", freeze.from, freeze.to);
            problems.push(problem(format!("freezes.{at}.to"), message));
        }
        if self.time_zone().is_none() {
            let found: String = self.time_zone.chars().take(80).collect();
            let message =
                format!("expected UTC or an IANA time zone, as in \"Europe/Berlin\", found {found:?}");
            problems.push(problem("time_zone", message));
        }
        if self.halt.failures == Some(0) {
            problems.push(problem(
                "halt.failures",
                "expected at least 1, found 0: it would halt before it begins",
            ));
        }
        if self.halt.failure_rate == Share::NONE {
            let message = "expected more than \"0%\"; to halt at the first failure set halt.failures = 1";
            problems.push(problem("halt.failure_rate", message));
        }
        if self.silent_after_s < SILENT_LEAST_S {
            let message = format!("expected at least {SILENT_LEAST_S}s, found {}s", self.silent_after_s);
            problems.push(problem("silent_after", message));
        }
        if self.lost_after_s < self.silent_after_s {
            let message = format!(
                "expected at least silent_after ({}s), found {}s",
                self.silent_after_s, self.lost_after_s
            );
            problems.push(problem("lost_after", message));
        }
        problems
    }

    fn wave_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (at, wave) in self.waves.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|before| self.waves.get(before));
            let before = before.map_or(Share::NONE, |before| before.share);
            if wave.share <= before {
                let message = format!(
                    "expected a share above {before}, found {}: each wave reaches further",
                    wave.share
                );
                problems.push(problem(format!("waves.{at}.share"), message));
            }
        }
        if let Some((at, last)) =
            self.waves.iter().enumerate().next_back().filter(|(_, last)| last.share != Share::ALL)
        {
            let message = format!(
                "expected \"100%\" in the last wave, found \"{}\": the others would never be let go; to stop before it, \
                 add a wave of \"100%\" and set approve = true in this one",
                last.share
            );
            problems.push(problem(format!("waves.{at}.share"), message));
        }
        problems
    }
}

fn limits_problems(path: &str, limits: &Limits) -> Vec<Problem> {
    let mut problems = window_problems(&format!("{path}windows"), &limits.windows);
    if let Some(rate) = limits.rate {
        if rate.max == 0 {
            let message =
                "expected at least 1, found 0; to let nobody go, set in_flight = 0 or pause the rollout";
            problems.push(problem(format!("{path}rate.max"), message));
        }
        if rate.per_s == 0 {
            problems.push(problem(format!("{path}rate.per"), "expected at least 1s, found 0s"));
        }
    }
    problems
}
