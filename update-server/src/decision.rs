//! Step 4, channel: whether a node should update, and to what. Pure: channels and releases in, an answer out.
//!
//! The answer says when, never what: the node installs nothing that its own channel's signed file does not list, so
//! [`listed`], which says what that file lists, follows the same barriers as [`decide`].

use protocol::id::{Arch, Channel};
use protocol::version::Version;
use protocol::wire::{Decision, SCHEMA, UpdateAnswer};
use std::collections::{BTreeMap, BTreeSet};

/// What matters of a release for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its version.
    pub version: Version,
    /// Its architecture.
    pub arch: Arch,
    /// Nodes below this version must pass through another release first.
    pub min_source: Option<Version>,
    /// From which confirmed version a node may go back to it.
    pub allow_downgrade_from: Option<Version>,
    /// Why no release leads on from it, if it is a dead end.
    pub dead_end: Option<String>,
}

/// What is published.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// All releases.
    pub releases: Vec<Candidate>,
    /// The version each channel points at.
    pub channels: BTreeMap<Channel, Version>,
    /// The channels whose nodes go to their release although it is a dead end.
    pub to_dead_ends: BTreeSet<Channel>,
}

impl Published {
    fn find(&self, version: &Version, arch: &Arch) -> Option<&Candidate> {
        self.releases.iter().find(|r| r.version == *version && r.arch == *arch)
    }

    /// Why a release is a dead end, if it is.
    #[must_use]
    pub fn dead_end(&self, version: &Version, arch: &Arch) -> Option<&str> {
        self.find(version, arch)?.dead_end.as_deref()
    }

    /// Why nobody of a channel goes to its release, where that is a dead end and nobody has insisted on it.
    fn closed<'a>(&self, channel: &Channel, target: &'a Candidate) -> Option<&'a str> {
        target.dead_end.as_deref().filter(|_| !self.to_dead_ends.contains(channel))
    }

    /// The release to pass through before `target` by a node below its barrier: the oldest one that the barrier
    /// allows and that is no dead end.
    fn step_before(&self, target: &Candidate) -> Option<&Candidate> {
        let barrier = target.min_source.as_ref()?;
        self.releases
            .iter()
            .filter(|r| r.arch == target.arch && r.dead_end.is_none())
            .filter(|r| !r.version.is_older_than(barrier) && r.version.is_older_than(&target.version))
            .min_by(|a, b| a.version.cmp(&b.version))
    }

    /// `target` and the releases to pass through on the way to it, last one first. It ends, because every step is
    /// older than the one before.
    fn path<'a>(&'a self, target: &'a Candidate) -> impl Iterator<Item = &'a Candidate> {
        std::iter::successors(Some(target), |step| self.step_before(step))
    }
}

/// The versions that a channel's file lists: the one that it points at, and those that barriers on the way to it make
/// necessary; none of a dead end that nobody insisted on. Oldest first.
#[must_use]
pub fn listed(published: &Published, channel: &Channel) -> Vec<Version> {
    let Some(version) = published.channels.get(channel) else { return Vec::new() };
    let mut versions: Vec<Version> = published
        .releases
        .iter()
        .filter(|r| r.version == *version && published.closed(channel, r).is_none())
        .flat_map(|target| published.path(target))
        .map(|r| r.version.clone())
        .collect();
    versions.sort();
    versions.dedup();
    versions
}

/// Answers a node of `channel` and `arch` that runs `running`.
#[must_use]
pub fn decide(published: &Published, channel: &Channel, arch: &Arch, running: &Version) -> UpdateAnswer {
    let none = |reason: String| UpdateAnswer {
        schema: SCHEMA,
        decision: Decision::None,
        version: None,
        reason,
        retry_after_s: None,
    };
    let update = |version: &Version, reason: String| UpdateAnswer {
        schema: SCHEMA,
        decision: Decision::Update,
        version: Some(version.clone()),
        reason,
        retry_after_s: None,
    };
    if let Some(why) = published.dead_end(running, arch) {
        return none(format!(
            "the node runs {running}, a dead end ({why}): no release leads on from it, and it is offered nothing; install \
             the node anew, or go back to its other slot with updatectl rollback"
        ));
    }
    let Some(version) = published.channels.get(channel) else {
        return none(format!("the channel {channel} points at no release"));
    };
    let Some(target) = published.find(version, arch) else {
        return none(format!("the channel {channel} points at {version}, which does not exist for {arch}"));
    };
    if let Some(why) = published.closed(channel, target) {
        return none(format!(
            "the channel {channel} points at {version}, a dead end ({why}): no node is sent there; point the channel at \
             another release, or insist on this one with --to-dead-end"
        ));
    }
    if version.is_older_than(running) {
        return match &target.allow_downgrade_from {
            Some(newest) if !newest.is_older_than(running) => {
                update(version, format!("the channel {channel} goes back to {version}"))
            }
            _ => none(format!(
                "the node runs {running}, which is newer than {version} of the channel {channel}; {version} does \
                 not allow a downgrade from it"
            )),
        };
    }
    if !running.is_older_than(version) {
        return none(format!("the node runs {running}, the release of the channel {channel}"));
    }
    let allowed = |r: &Candidate| r.min_source.as_ref().is_none_or(|min| !running.is_older_than(min));
    match published.path(target).find(|r| allowed(r)) {
        Some(step) if step.version == *version => {
            update(version, format!("the channel {channel} points at {version}"))
        }
        Some(step) if running.is_older_than(&step.version) => {
            update(&step.version, format!("on the way to {version} of the channel {channel}"))
        }
        _ => none(format!(
            "the channel {channel} points at {version}, but no release leads there from {running}: one between \
             them must be pushed first"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str, min: Option<&str>, back: Option<&str>) -> Candidate {
        Candidate {
            version: text.parse().unwrap(),
            arch: "x86-64".parse().unwrap(),
            min_source: min.map(|v| v.parse().unwrap()),
            allow_downgrade_from: back.map(|v| v.parse().unwrap()),
            dead_end: None,
        }
    }

    fn dead_end(text: &str, min: Option<&str>) -> Candidate {
        Candidate { dead_end: Some("it cannot write".to_owned()), ..release(text, min, None) }
    }

    fn names(published: &Published) -> Vec<String> {
        listed(published, &"alpha".parse().unwrap()).iter().map(ToString::to_string).collect()
    }

    fn published(releases: Vec<Candidate>, version: &str) -> Published {
        let channels = [("alpha".parse().unwrap(), version.parse().unwrap())].into();
        Published { releases, channels, ..Published::default() }
    }

    fn answer(published: &Published, running: &str) -> (Decision, Option<String>) {
        let alpha = "alpha".parse().unwrap();
        let arch = "x86-64".parse().unwrap();
        let answer = decide(published, &alpha, &arch, &running.parse().unwrap());
        assert!(!answer.reason.is_empty());
        (answer.decision, answer.version.map(|v| v.to_string()))
    }

    fn to(version: &str) -> (Decision, Option<String>) {
        (Decision::Update, Some(version.to_owned()))
    }

    const NONE: (Decision, Option<String>) = (Decision::None, None);

    #[test]
    fn newer_is_offered_and_the_same_is_not() {
        let p = published(vec![release("1.1.0", None, None), release("1.2.0", None, None)], "1.1.0");
        assert_eq!(answer(&p, "1.0.0"), to("1.1.0"));
        assert_eq!(answer(&p, "1.1.0"), NONE);
        assert_eq!(answer(&p, "1.1"), NONE, "ranks alike");
        assert_eq!(answer(&p, "1.2.0"), NONE, "a downgrade that nobody allowed");
    }

    #[test]
    fn other_channels_and_architectures_get_nothing() {
        let p = published(vec![release("1.1.0", None, None)], "1.1.0");
        let (alpha, beta) = ("alpha".parse().unwrap(), "beta".parse().unwrap());
        let (x86, arm) = ("x86-64".parse().unwrap(), "arm64".parse().unwrap());
        let running = "1.0.0".parse().unwrap();
        assert_eq!(decide(&p, &alpha, &x86, &running).decision, Decision::Update);
        assert_eq!(decide(&p, &beta, &x86, &running).decision, Decision::None);
        assert_eq!(decide(&p, &alpha, &arm, &running).decision, Decision::None);
    }

    #[test]
    fn a_downgrade_needs_leave_up_to_the_running_version() {
        let p = published(vec![release("1.1.0", None, Some("1.2.0"))], "1.1.0");
        assert_eq!(answer(&p, "1.2.0"), to("1.1.0"));
        assert_eq!(answer(&p, "1.1.5"), to("1.1.0"));
        assert_eq!(answer(&p, "1.2.1"), NONE);
    }

    #[test]
    fn barriers_are_passed_through_one_by_one() {
        let p = published(
            vec![
                release("3.0", Some("2.0"), None),
                release("2.5", None, None),
                release("2.0", Some("1.0"), None),
                release("1.0", None, None),
            ],
            "3.0",
        );
        assert_eq!(answer(&p, "0.9"), to("1.0"));
        assert_eq!(answer(&p, "1.0"), to("2.0"));
        assert_eq!(answer(&p, "1.7"), to("2.0"));
        assert_eq!(answer(&p, "2.0"), to("3.0"));
        assert_eq!(answer(&p, "2.5"), to("3.0"));
        assert_eq!(names(&p), ["1.0", "2.0", "3.0"], "what is offered is listed, and nothing else");
    }

    #[test]
    fn a_barrier_without_a_way_through_is_said() {
        let p = published(vec![release("3.0", Some("2.0"), None)], "3.0");
        assert_eq!(answer(&p, "1.0"), NONE);
        assert_eq!(answer(&p, "2.0"), to("3.0"));
    }

    #[test]
    fn a_node_on_a_dead_end_is_told_so_and_offered_nothing() {
        let p = published(
            vec![release("1.3", None, None), dead_end("1.2", None), release("1.0", None, Some("2"))],
            "1.3",
        );
        assert_eq!(answer(&p, "1.2"), NONE);
        let (alpha, beta) = ("alpha".parse().unwrap(), "beta".parse().unwrap());
        let (x86, arm) = ("x86-64".parse().unwrap(), "arm64".parse().unwrap());
        let running = "1.2".parse().unwrap();
        for channel in [&alpha, &beta] {
            let reason = decide(&p, channel, &x86, &running).reason;
            assert!(
                reason.starts_with("the node runs 1.2, a dead end (it cannot write): no release"),
                "{reason}"
            );
            assert!(
                reason.contains("install the node anew") && reason.contains("updatectl rollback"),
                "{reason}"
            );
        }
        assert!(!decide(&p, &alpha, &arm, &running).reason.contains("dead end"), "another architecture");
        assert_eq!(answer(&p, "1.2.0"), to("1.3"), "a release is known by its text");
        assert_eq!(answer(&published(p.releases.clone(), "1.0"), "1.2"), NONE, "not even a way back");
        assert_eq!(answer(&published(p.releases, "1.2"), "1.2"), NONE);
    }

    #[test]
    fn no_way_leads_through_a_dead_end() {
        let steps = vec![
            release("3.0", Some("2.0"), None),
            release("2.2", None, None),
            dead_end("2.0", None),
            release("1.0", None, None),
        ];
        let p = published(steps.clone(), "3.0");
        assert_eq!(answer(&p, "1.0"), to("2.2"), "round the dead end");
        assert_eq!(names(&p), ["2.2", "3.0"]);
        let p = published(steps.into_iter().filter(|r| r.version.as_str() != "2.2").collect(), "3.0");
        assert_eq!(answer(&p, "1.0"), NONE);
        assert_eq!(names(&p), ["3.0"]);
    }

    #[test]
    fn a_channel_leads_to_a_dead_end_only_where_that_was_insisted_on() {
        let releases =
            vec![dead_end("1.2", Some("1.1")), release("1.1", None, None), release("1.0", None, None)];
        let mut p = published(releases, "1.2");
        let alpha = "alpha".parse().unwrap();
        for running in ["1.0", "1.1", "1.3"] {
            assert_eq!(answer(&p, running), NONE);
        }
        let reason = decide(&p, &alpha, &"x86-64".parse().unwrap(), &"1.1".parse().unwrap()).reason;
        assert!(
            reason.starts_with("the channel alpha points at 1.2, a dead end (it cannot write): no"),
            "{reason}"
        );
        assert_eq!(names(&p), [""; 0], "what has not booted yet is undone");
        p.to_dead_ends.insert(alpha);
        assert_eq!(answer(&p, "1.0"), to("1.1"));
        assert_eq!(answer(&p, "1.1"), to("1.2"));
        assert_eq!(answer(&p, "1.2"), NONE);
        assert_eq!(names(&p), ["1.1", "1.2"]);
    }

    proptest::proptest! {
        /// Whatever is offered is in the channel's signed file, or the node would refuse it; no way leads to or through a
        /// dead end that nobody insisted on, and none leads on from one.
        #[test]
        fn what_is_offered_is_listed(
            specs in proptest::collection::vec((0u8..6, 0u8..6, 0u8..6, proptest::bool::weighted(0.3)), 1..8),
            channel in 0u8..6, running in 0u8..7, insisted in proptest::bool::ANY,
        ) {
            let some = |n: u8| (n > 0).then(|| format!("{n}"));
            let mut releases: Vec<Candidate> = specs
                .iter()
                .map(|(v, min, back, dead)| Candidate {
                    dead_end: dead.then(|| "it cannot write".to_owned()),
                    ..release(&v.to_string(), some(*min).as_deref(), some(*back).as_deref())
                })
                .collect();
            releases.sort_by(|a, b| a.version.cmp(&b.version));
            releases.dedup_by(|a, b| a.version == b.version);
            let mut p = published(releases, &channel.to_string());
            let (alpha, arch) = ("alpha".parse().unwrap(), "x86-64".parse().unwrap());
            let running: Version = running.to_string().parse().unwrap();
            if insisted {
                p.to_dead_ends.insert("alpha".parse().unwrap());
            }
            // What is listed is all that a node takes, so no dead end may be in it but the one that was insisted on.
            for version in listed(&p, &alpha) {
                let may_be = insisted && version == p.channels[&alpha];
                proptest::prop_assert!(may_be || p.dead_end(&version, &arch).is_none());
            }
            if let Some(offered) = decide(&p, &alpha, &arch, &running).version {
                proptest::prop_assert!(p.dead_end(&running, &arch).is_none(), "it is offered something on a dead end");
                proptest::prop_assert!(listed(&p, &alpha).contains(&offered));
                let target = p.find(&offered, &arch).unwrap();
                let back = offered.is_older_than(&running);
                proptest::prop_assert!(offered != running);
                proptest::prop_assert!(
                    back || target.min_source.as_ref().is_none_or(|min| !running.is_older_than(min))
                );
            }
        }
    }
}
