//! Times as they are typed: `30s`, `5m`, `1500ms`, or a bare number in the unit of what is asked for.

use std::fmt;

use ka_core::Timer;

/// What a bare number counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    const fn milliseconds(self) -> u64 {
        match self {
            Self::Seconds => 1000,
            Self::Milliseconds => 1,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
        })
    }
}

/// Reads a time and gives it in the unit that is asked for, within a range of it.
fn parse(text: &str, unit: Unit, least: u32, most: u32) -> Result<u32, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(digits).unwrap_or((text, ""));
    let scale = match suffix {
        "" => unit.milliseconds(),
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return Err(format!("a time is a number with s, ms or m behind it, as {}", example(unit))),
    };
    if number.is_empty() {
        return Err(format!("a time is a number, as {}", example(unit)));
    }
    let range = format!("it must be {least}..{most} {unit}");
    let Some(milliseconds) = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)) else {
        return Err(range);
    };
    if milliseconds % unit.milliseconds() != 0 {
        let below = milliseconds / unit.milliseconds();
        let is_right = |value: &u64| u32::try_from(*value).is_ok_and(|value| (least..=most).contains(&value));
        let neighbours = [below, below.saturating_add(1)].into_iter().filter(is_right);
        let neighbours: Vec<_> = neighbours.map(|value| format!("{value}{unit}")).collect();
        if neighbours.is_empty() {
            return Err(range);
        }
        return Err(format!("it must be whole seconds, as {}", neighbours.join(" or ")));
    }
    u32::try_from(milliseconds / unit.milliseconds())
        .ok()
        .filter(|value| (least..=most).contains(value))
        .ok_or(range)
}

const fn example(unit: Unit) -> &'static str {
    match unit {
        Unit::Seconds => "30s, 5m or 30 (seconds)",
        Unit::Milliseconds => "1500ms, 30s or 1500 (milliseconds)",
    }
}

/// A time for a socket option, in that option's unit and range.
fn timer(timer: Timer, unit: Unit, text: &str) -> Result<i32, String> {
    let bound = |value: &i32| value.unsigned_abs();
    let value = parse(text, unit, bound(timer.range().start()), bound(timer.range().end()))?;
    i32::try_from(value).map_err(|error| error.to_string())
}

pub(crate) fn idle(text: &str) -> Result<i32, String> {
    timer(Timer::Idle, Unit::Seconds, text)
}

pub(crate) fn intvl(text: &str) -> Result<i32, String> {
    timer(Timer::Intvl, Unit::Seconds, text)
}

pub(crate) fn user_timeout(text: &str) -> Result<i32, String> {
    timer(Timer::UserTimeout, Unit::Milliseconds, text)
}

/// Any time, in whole seconds.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    parse(text, Unit::Seconds, 1, u32::MAX)
}

/// Any time that is typed in seconds, to the millisecond.
pub(crate) fn fine_seconds(text: &str) -> Result<u32, String> {
    let bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let milliseconds = if bare { format!("{text}s") } else { text.to_owned() };
    parse(&milliseconds, Unit::Milliseconds, 1, u32::MAX)
        .map_err(|right| right.replace(example(Unit::Milliseconds), "30s, 1500ms or 30 (seconds)"))
}

/// A time in words, for people: `2 h 11 min 15 s`.
pub(crate) fn words(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let mut parts = Vec::new();
    for (count, unit) in
        [(seconds / 86400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")]
    {
        if count > 0 {
            parts.push(format!("{count} {unit}"));
        }
    }
    match (milliseconds % 1000, parts.is_empty()) {
        (0, true) => "0 s".to_owned(),
        (rest, true) => format!("{rest} ms"),
        _ => parts.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::{fine_seconds, idle, intvl, seconds, user_timeout, words};

    #[test]
    fn a_time_has_a_unit_or_the_flag_s_own() {
        assert_eq!(idle("60"), Ok(60));
        assert_eq!(idle("60s"), Ok(60));
        assert_eq!(idle("5m"), Ok(300));
        assert_eq!(idle("2000ms"), Ok(2));
        assert_eq!(user_timeout("1500"), Ok(1500));
        assert_eq!(user_timeout("1500ms"), Ok(1500));
        assert_eq!(user_timeout("30s"), Ok(30_000));
        assert_eq!(user_timeout("0"), Ok(0));
        assert_eq!(user_timeout("2147483647"), Ok(i32::MAX));
        assert_eq!(seconds("350"), Ok(350));
        assert_eq!(fine_seconds("30"), Ok(30_000));
        assert_eq!(fine_seconds("2500ms"), Ok(2500));
    }

    #[test]
    fn a_wrong_time_is_told_what_is_right() {
        assert_eq!(idle("0"), Err("it must be 1..32767 s".to_owned()));
        assert_eq!(idle("32768"), Err("it must be 1..32767 s".to_owned()));
        assert_eq!(idle("99999999999999999999m"), Err("it must be 1..32767 s".to_owned()));
        assert_eq!(intvl("1500ms"), Err("it must be whole seconds, as 1s or 2s".to_owned()));
        assert_eq!(intvl("500ms"), Err("it must be whole seconds, as 1s".to_owned()));
        assert_eq!(intvl("32767001ms"), Err("it must be whole seconds, as 32767s".to_owned()));
        assert_eq!(intvl("99999001ms"), Err("it must be 1..32767 s".to_owned()));
        assert_eq!(user_timeout("2147483648"), Err("it must be 0..2147483647 ms".to_owned()));
        for text in ["", "s", "1h", "1.5s", "-1", "+1", " 1", "1 s", "0x10", "1S", "\u{661}"] {
            assert!(idle(text).unwrap_err().starts_with("a time is a number"), "{text}");
            assert!(fine_seconds(text).unwrap_err().starts_with("a time is a number"), "{text}");
        }
    }

    #[test]
    fn times_are_told_in_words() {
        assert_eq!(words(7_875_000), "2 h 11 min 15 s");
        assert_eq!(words(86_400_000), "1 d");
        assert_eq!(words(0), "0 s");
        assert_eq!(words(250), "250 ms");
        assert_eq!(words(61_700), "1 min 1 s");
    }
}
