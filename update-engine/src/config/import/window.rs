//! Times in which a machine may reboot, as locksmith and Zincati write them.

use toml::{Table, Value};

/// The longest window that both sides know: a week.
const WEEK_S: u64 = 604_800;

/// A window as the setting `reboot.windows` has it.
fn window(days: &[&str], start: &str, length_s: u64) -> Result<Value, String> {
    if !(60..=WEEK_S).contains(&length_s) {
        return Err(format!("expected a length from a minute to a week, found {length_s} s"));
    }
    let mut table = Table::new();
    if !days.is_empty() {
        table.insert("days".into(), days.iter().map(|day| Value::from(*day)).collect::<Vec<_>>().into());
    }
    table.insert("start".into(), start.into());
    table.insert("length_s".into(), i64::try_from(length_s).unwrap_or(i64::MAX).into());
    Ok(table.into())
}

/// What is wrong with each half of a window.
#[derive(Debug, Default)]
pub(super) struct Halves {
    pub(super) start: Option<String>,
    pub(super) length: Option<String>,
}

/// Locksmith's: `14:00` or `Thu 23:00`, and a length as Go writes durations.
pub(super) fn locksmith(start: &str, length: &str) -> Result<Value, Halves> {
    let (days, time) = match start.trim().split_once(char::is_whitespace) {
        Some((name, time)) => (day(name).map(|day| vec![day]), time),
        None => (Ok(Vec::new()), start),
    };
    let begin = days.and_then(|days| time_of_day(time).map(|time| (days, time)));
    let daily = begin.as_ref().is_ok_and(|(days, _)| days.is_empty());
    let long = go_seconds(length).and_then(|length_s| match length_s {
        86_400.. if daily => Err(format!("expected a daily window shorter than a day, found {length:?}")),
        60..=WEEK_S => Ok(length_s),
        _ => Err(format!("expected a length from a minute to a week, found {length:?}")),
    });
    match (begin, long) {
        (Ok((days, time)), Ok(length_s)) => {
            window(&days, &time, length_s).map_err(|problem| Halves { start: None, length: Some(problem) })
        }
        (begin, long) => Err(Halves { start: begin.err(), length: long.err() }),
    }
}

/// Zincati's: names of days, `23:30`, minutes.
pub(super) fn zincati(days: &[String], start: &str, minutes: &str) -> Result<Value, String> {
    let mut names = Vec::new();
    for name in days {
        let name = day(name)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err("expected days with at least one day, found none".to_owned());
    }
    let minutes: u64 =
        minutes.parse().map_err(|_| format!("expected length_minutes as a number, found {minutes:?}"))?;
    window(&names, &time_of_day(start)?, minutes.saturating_mul(60))
}

fn day(name: &str) -> Result<&'static str, String> {
    const DAYS: [(&str, &str); 7] = [
        ("mon", "monday"),
        ("tue", "tuesday"),
        ("wed", "wednesday"),
        ("thu", "thursday"),
        ("fri", "friday"),
        ("sat", "saturday"),
        ("sun", "sunday"),
    ];
    let lower = name.to_ascii_lowercase();
    DAYS.iter()
        .find(|(short, long)| lower == *short || lower == *long)
        .map(|(short, _)| *short)
        .ok_or_else(|| format!("expected a day like Thu, found {name:?}"))
}

/// `4:05` is `04:05` there; what follows the minutes was ignored there and is an error here.
fn time_of_day(text: &str) -> Result<String, String> {
    let error = || format!("expected a time like 02:00, found {:?}", text.trim());
    let (hours, minutes) = text.trim().split_once(':').ok_or_else(error)?;
    let number = |part: &str, below: u8| {
        let digits = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u8>().ok().filter(|number| digits && *number < below)
    };
    match (number(hours, 24), number(minutes, 60)) {
        (Some(hours), Some(minutes)) => Ok(format!("{hours:02}:{minutes:02}")),
        _ => Err(error()),
    }
}

/// `1h30m`, in seconds. Parts of a second are left away: no window is that short.
fn go_seconds(text: &str) -> Result<u64, String> {
    let error = || format!("expected a length like 1h30m, found {text:?}");
    let mut rest = text.trim();
    let mut seconds = 0.0_f64;
    if rest == "0" || rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(error()),
            };
        rest = &rest[unit..];
    }
    // The whole seconds, exactly: far below what a duration can hold.
    std::time::Duration::try_from_secs_f64(seconds).map(|length| length.as_secs()).map_err(|_| error())
}
