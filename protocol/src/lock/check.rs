//! Step 9, permit: what a policy may not say, whoever sends it and in whichever form.

use super::policy::{Cap, Caps, Limit, Policy};
use crate::id::Group;
use crate::policy_file::{Problem, problem, repeated, window_problems};

/// The least time that a holder has to make ready, in seconds.
const GRANTED_LEAST_S: u32 = 60;
/// With fewer voting members than this no member can go down and leave a majority.
const MEMBERS_LEAST: u32 = 3;

impl Policy {
    /// Everything that is wrong with it; nothing if it may be set.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(limit("max", self.max));
        if self.size == Some(0) {
            problems.push(problem("size", "expected the number of nodes in the group, at least 1, found 0"));
        }
        if let Some(zones) = &self.zones {
            problems.extend(limit("zones.max", zones.max));
            problems.extend(
                zones.limits.iter().filter_map(|(zone, max)| limit(&format!("zones.limits.{zone}"), *max)),
            );
            problems.extend(zones.sizes.iter().filter(|(_, size)| **size == 0).map(|(zone, _)| {
                let message = "expected the number of nodes in the zone, at least 1, found 0";
                problem(format!("zones.sizes.{zone}"), message)
            }));
        }
        problems.extend(self.windows_problems());
        problems.extend(self.times_problems());
        if let Some(members) = self.quorum.and_then(|quorum| quorum.members).filter(|n| *n < MEMBERS_LEAST) {
            let message = format!(
                "expected at least {MEMBERS_LEAST} voting members, found {members}: with fewer, no member could ever reboot"
            );
            problems.push(problem("quorum.members", message));
        }
        problems.extend(repeated(&self.canaries).map(|at| {
            problem(
                format!("canaries.{at}"),
                format!("found {} twice; name each node once", self.canaries[at]),
            )
        }));
        problems
    }

    fn windows_problems(&self) -> Vec<Problem> {
        let mut problems = window_problems("windows", &self.windows);
        for (at, window) in self.windows.iter().enumerate() {
            let key = format!("windows.{at}");
            if window.length_s <= self.reboot_takes_s {
                let message = format!(
                    "expected a window longer than reboot_takes ({}s), found {}s: no reboot could ever begin in it",
                    self.reboot_takes_s, window.length_s
                );
                problems.push(problem(&key, message));
            }
        }
        if self.time_zone().is_none() {
            let message = format!(
                "expected UTC or an IANA time zone, as in \"Europe/Berlin\", found {:?}",
                self.time_zone.chars().take(80).collect::<String>()
            );
            problems.push(problem("time_zone", message));
        }
        problems
    }

    fn times_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.reboot_takes_s == 0 {
            problems.push(problem("reboot_takes", "expected how long a reboot takes, at least 1s, found 0s"));
        }
        if self.granted_max_s < GRANTED_LEAST_S {
            let message = format!("expected at least {GRANTED_LEAST_S}s, found {}s", self.granted_max_s);
            problems.push(problem("granted_max", message));
        }
        if self.rebooting_max_s < self.reboot_takes_s.max(1) {
            let message = format!(
                "expected at least reboot_takes ({}s), found {}s: every node would be stuck while it reboots",
                self.reboot_takes_s, self.rebooting_max_s
            );
            problems.push(problem("rebooting_max", message));
        }
        problems
    }
}

impl Cap {
    /// Everything that is wrong with it; nothing if it may be set.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = repeated(&self.groups)
            .map(|at| {
                problem(
                    format!("groups.{at}"),
                    format!("found {} twice; name each group once", self.groups[at]),
                )
            })
            .collect();
        if self.groups.is_empty() {
            problems.push(problem("groups", "expected at least one group, found none"));
        }
        problems
    }
}

impl Caps {
    /// Everything that is wrong with them, by keys that begin with the cap's name; nothing if they may be set.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, cap) in &self.caps {
            let key = name.escape_debug().to_string();
            problems.extend(cap_name(name).map(|message| problem(&key, message)));
            problems.extend(
                cap.problems()
                    .into_iter()
                    .map(|inner| problem(format!("{key}.{}", inner.key), inner.message)),
            );
        }
        problems
    }
}

/// What is wrong with the name of a cap. It goes by the rules for groups.
pub(super) fn cap_name(name: &str) -> Option<String> {
    name.parse::<Group>()
        .err()
        .map(|error| error.to_string().replacen("valid group", "valid name of a cap", 1))
}

fn limit(key: &str, limit: Limit) -> Option<Problem> {
    match limit {
        Limit::Count(_) | Limit::Percent(1..=100) => None,
        Limit::Percent(0) => {
            Some(problem(key, "expected \"1%\" to \"100%\", found \"0%\"; to pause, write the number 0"))
        }
        Limit::Percent(more) => Some(problem(key, format!("expected \"1%\" to \"100%\", found \"{more}%\""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_policy_that_came_as_json_obeys_the_same_rules() {
        assert_eq!(Policy::default().problems(), []);
        let mut json = serde_json::to_value(Policy::default()).unwrap();
        json["max"] = serde_json::json!({ "percent": 250 });
        json["windows"] = serde_json::json!([{ "start": "22:00:00", "length_s": 600 }]);
        let policy: Policy = serde_json::from_value(json).unwrap();
        let window = "windows.0: expected a window longer than reboot_takes (600s), found 600s: no reboot could ever begin in it";
        assert_eq!(texts(&policy.problems()), ["max: expected \"1%\" to \"100%\", found \"250%\"", window]);
    }

    #[test]
    fn caps_that_came_as_json_obey_the_same_rules() {
        let json = r#"{"caps": {"dc": {"groups": ["web"], "max": 0}, "a\nb": {"groups": [], "max": 1}}}"#;
        let found = texts(&serde_json::from_str::<Caps>(json).unwrap().problems());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("not a valid name of a cap: expected up to 64 letters"), "{found:?}");
        assert_eq!(found[1], "a\\nb.groups: expected at least one group, found none");
    }
}
