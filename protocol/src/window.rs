//! Steps 9 and 10, permit and reboot: the times in which a reboot may begin.

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use serde::{Deserialize, Serialize};

/// Days that are looked ahead for the next opening. A zone's change of its clock may swallow one day's start, so a
/// weekly window is looked for in two weeks.
const HORIZON_DAYS: i32 = 15;

/// A time in which a reboot may begin, by a time zone given beside it. The end is exclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Window {
    /// The days on which it opens; none means every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "days")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<crate::openapi::Day>))]
    pub days: Vec<Weekday>,
    /// When it opens.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub start: Time,
    /// How long it stays open, in seconds; it may pass midnight. Where the clock changes meanwhile it closes when this
    /// time has passed or when the clock shows the end, whichever comes first: never later than either reading.
    pub length_s: u32,
}

/// Where a time stands to the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// In one, with enough of it left.
    Open,
    /// The next one opens then.
    At(Timestamp),
    /// None opens.
    Never,
}

/// Where `now` stands to the windows of a time zone, if the last `reserve_s` seconds of each are too late to begin.
/// Without windows none opens.
#[must_use]
pub fn opening(windows: &[Window], zone: &TimeZone, now: Timestamp, reserve_s: u32) -> Opening {
    let mut next: Option<Timestamp> = None;
    for window in windows {
        match window.opening(zone, now, reserve_s) {
            Opening::Open => return Opening::Open,
            Opening::At(at) => next = Some(next.map_or(at, |known| known.min(at))),
            Opening::Never => {}
        }
    }
    next.map_or(Opening::Never, Opening::At)
}

impl Window {
    fn opening(&self, zone: &TimeZone, now: Timestamp, reserve_s: u32) -> Opening {
        if self.length_s <= reserve_s {
            return Opening::Never;
        }
        let today = now.to_zoned(zone.clone()).date();
        // A window may have opened on an earlier day and still be open.
        let before = i32::try_from(self.length_s / 86_400 + 1).unwrap_or(HORIZON_DAYS);
        for offset in -before..=HORIZON_DAYS {
            let Ok(date) = today.checked_add(Span::new().days(offset)) else { continue };
            if !self.days.is_empty() && !self.days.contains(&date.weekday()) {
                continue;
            }
            let Some((opens, last)) = self.on(date, zone, reserve_s) else { continue };
            if now < opens && opens < last {
                return Opening::At(opens);
            }
            if opens <= now && now < last {
                return Opening::Open;
            }
        }
        Opening::Never
    }

    /// When it opens on a date, and from when on it is too late to begin.
    fn on(&self, date: Date, zone: &TimeZone, reserve_s: u32) -> Option<(Timestamp, Timestamp)> {
        let length = SignedDuration::from_secs(self.length_s.into());
        let start = date.to_datetime(self.start);
        let end = start.checked_add(length).ok()?.to_zoned(zone.clone()).ok()?;
        let opens = start.to_zoned(zone.clone()).ok()?.timestamp();
        let closes = end.timestamp().min(opens.checked_add(length).ok()?);
        Some((opens, closes.checked_sub(SignedDuration::from_secs(reserve_s.into())).ok()?))
    }
}

/// The days' names as files and wire have them, from Monday on.
pub(crate) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A day's name, as in [`DAYS`].
pub(crate) fn day_name(day: Weekday) -> &'static str {
    DAYS[usize::from(day.to_monday_zero_offset().unsigned_abs())]
}

/// The day of a name in [`DAYS`].
pub(crate) fn day_named(name: &str) -> Option<Weekday> {
    let at = DAYS.iter().position(|known| *known == name)?;
    Weekday::from_monday_zero_offset(i8::try_from(at).ok()?).ok()
}

/// Days as `mon` to `sun`.
mod days {
    use super::{DAYS, Weekday, day_name, day_named};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(days: &[Weekday], serializer: S) -> Result<S::Ok, S::Error> {
        let names: Vec<_> = days.iter().map(|day| day_name(*day)).collect();
        names.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Weekday>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let day = |name: &String| {
            day_named(name).ok_or_else(|| {
                serde::de::Error::custom(format!("not a day: expected {DAYS:?}, found {name:?}"))
            })
        };
        names.iter().map(day).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::time;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn utc(windows: &[Window], now: Timestamp) -> Opening {
        opening(windows, &TimeZone::UTC, now, 0)
    }

    #[test]
    fn a_window_opens_closes_and_passes_midnight() {
        // 2026-11-23 is a Monday.
        let night = [Window { days: vec![Weekday::Monday], start: time(22, 0, 0, 0), length_s: 4 * 3600 }];
        assert_eq!(utc(&night, at("2026-11-23T21:59:59Z")), Opening::At(at("2026-11-23T22:00:00Z")));
        assert_eq!(utc(&night, at("2026-11-23T22:00:00Z")), Opening::Open);
        assert_eq!(utc(&night, at("2026-11-24T01:59:59Z")), Opening::Open);
        assert_eq!(utc(&night, at("2026-11-24T02:00:00Z")), Opening::At(at("2026-11-30T22:00:00Z")));
    }

    #[test]
    fn the_latest_safe_start_counts_and_a_window_too_short_for_it_never_opens() {
        let night = [Window { days: vec![Weekday::Monday], start: time(22, 0, 0, 0), length_s: 4 * 3600 }];
        let reserved = |now| opening(&night, &TimeZone::UTC, at(now), 600);
        assert_eq!(reserved("2026-11-24T01:49:59Z"), Opening::Open);
        assert_eq!(reserved("2026-11-24T01:50:00Z"), Opening::At(at("2026-11-30T22:00:00Z")));
        assert_eq!(opening(&night, &TimeZone::UTC, at("2026-11-23T22:00:00Z"), 4 * 3600), Opening::Never);
    }

    #[test]
    fn no_window_never_opens_and_the_earliest_of_several_counts() {
        assert_eq!(utc(&[], at("2026-11-23T00:00:00Z")), Opening::Never);
        let windows =
            [5, 3].map(|hour| Window { days: Vec::new(), start: time(hour, 0, 0, 0), length_s: 60 });
        assert_eq!(utc(&windows, at("2026-11-23T04:00:00Z")), Opening::At(at("2026-11-23T05:00:00Z")));
    }

    #[test]
    fn windows_follow_their_zone() {
        let window = Window { days: Vec::new(), start: time(2, 0, 0, 0), length_s: 3600 };
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(opening(&[window], &zone, at("2026-11-23T00:30:00Z"), 0), Opening::Open);
    }

    #[test]
    fn a_window_in_the_hour_that_the_clock_leaves_out_is_swallowed() {
        let window = [Window { days: Vec::new(), start: time(2, 0, 0, 0), length_s: 3600 }];
        let berlin = jiff::tz::TimeZoneDatabase::bundled().get("Europe/Berlin").unwrap();
        // On 2026-03-29 the clock goes from 02:00 to 03:00 at 01:00Z.
        let next = Opening::At(at("2026-03-30T00:00:00Z"));
        assert_eq!(opening(&window, &berlin, at("2026-03-29T00:59:59Z"), 0), next);
        assert_eq!(opening(&window, &berlin, at("2026-03-29T01:00:00Z"), 0), next);
    }

    #[test]
    fn days_are_written_by_name() {
        let window = Window {
            days: Weekday::Monday.cycle_forward().take(7).collect(),
            start: time(1, 30, 0, 0),
            length_s: 60,
        };
        let text = serde_json::to_string(&window).unwrap();
        assert_eq!(
            text,
            r#"{"days":["mon","tue","wed","thu","fri","sat","sun"],"start":"01:30:00","length_s":60}"#
        );
        assert_eq!(serde_json::from_str::<Window>(&text).unwrap(), window);
        let error = serde_json::from_str::<Window>(&text.replace("mon", "Mon")).unwrap_err().to_string();
        assert!(error.contains("found \"Mon\""), "{error}");
    }

    proptest! {
        #[test]
        fn an_opening_that_is_announced_is_open(
            seconds in 0_i64..4_000_000_000, hour in 0_i8..24, length in 1_u32..200_000, reserve in 0_u32..1000,
        ) {
            let window = [Window { days: vec![Weekday::Friday], start: time(hour, 0, 0, 0), length_s: length }];
            let now = Timestamp::from_second(seconds).unwrap();
            match opening(&window, &TimeZone::UTC, now, reserve) {
                Opening::Open => {}
                Opening::At(then) => {
                    prop_assert!(then > now);
                    prop_assert_eq!(opening(&window, &TimeZone::UTC, then, reserve), Opening::Open);
                }
                Opening::Never => prop_assert!(length <= reserve, "a weekly window never opens"),
            }
        }
    }
}
