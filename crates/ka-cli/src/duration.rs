//! Parses times on the command line, and formats times in words. The syntax is that of the times in a policy: `30s`,
//! `5m`, `1500ms`, or a number of seconds.

use ka_core::bytes::trim;
use ka_core::{ParseError, Quantity, Reason, RtoMax, Timer, UserTimeout};

/// Parses a time into milliseconds. A number without a unit is seconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    let Some(Quantity { number, unit }) = Quantity::parse(trim(text.as_bytes())) else {
        return Err(Reason::NotAValue(Timer::Idle).message().to_owned());
    };
    Ok(number.saturating_mul(if unit == 0 { 1000 } else { unit }))
}

/// Checks the range of a time that is not a socket option.
fn in_range(value: u64, unit: &str, milliseconds: u64) -> Result<u32, String> {
    u32::try_from(value).ok().filter(|value| *value > 0).ok_or_else(|| {
        let most = words(u64::from(u32::MAX).saturating_mul(milliseconds));
        format!("must be 1..{} {unit} (at most {most})", u32::MAX)
    })
}

/// Returns an error message that describes a valid value.
fn advice(text: &str, reason: Reason) -> String {
    ParseError { item: trim(text.as_bytes()), reason }.advice().to_string()
}

/// Parses the value of a socket option, in the option's unit.
fn timer(timer: Timer, text: &str) -> Result<i32, String> {
    timer.parse_typed(text.as_bytes()).map_err(|reason| advice(text, reason))
}

pub(crate) fn idle(text: &str) -> Result<i32, String> {
    timer(Timer::Idle, text)
}

pub(crate) fn intvl(text: &str) -> Result<i32, String> {
    timer(Timer::Intvl, text)
}

pub(crate) fn cnt(text: &str) -> Result<i32, String> {
    timer(Timer::Cnt, text)
}

pub(crate) fn user_timeout(text: &str) -> Result<UserTimeout, String> {
    UserTimeout::parse_typed(text.as_bytes()).map_err(|reason| advice(text, reason))
}

pub(crate) fn rto_max(text: &str) -> Result<RtoMax, String> {
    RtoMax::parse_typed(text.as_bytes()).map_err(|reason| advice(text, reason))
}

/// Parses a time that is not a socket option, into whole seconds.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let milliseconds = milliseconds(text)?;
    let seconds = in_range(milliseconds.div_ceil(1000), "s", 1000)?;
    if milliseconds.is_multiple_of(1000) { Ok(seconds) } else { Err(advice(text, Reason::NotWhole)) }
}

/// Parses a time that is not a socket option, into milliseconds.
pub(crate) fn fine_seconds(text: &str) -> Result<u32, String> {
    in_range(milliseconds(text)?, "ms", 1)
}

/// Formats a time in words: `2 h 11 min 15 s`. Milliseconds are dropped from times of 1 s or more.
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
    use ka_core::UserTimeout;

    use super::{cnt, fine_seconds, idle, intvl, seconds, user_timeout, words};

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        assert_eq!(idle("60"), Ok(60));
        assert_eq!(idle("60s"), Ok(60));
        assert_eq!(idle(" 5m "), Ok(300));
        assert_eq!(idle("9h"), Ok(32_400));
        assert_eq!(idle("2000ms"), Ok(2));
        assert_eq!(cnt("6"), Ok(6));
        assert_eq!(seconds("350"), Ok(350));
        assert_eq!(seconds("2d"), Ok(172_800));
        assert_eq!(fine_seconds("30"), Ok(30_000));
        assert_eq!(fine_seconds("2500ms"), Ok(2500));
        assert_eq!(fine_seconds("1h"), Ok(3_600_000));
    }

    #[test]
    fn a_user_timeout_below_1000_needs_a_unit() {
        let right = |text: &str| user_timeout(text).unwrap();
        for (text, milliseconds) in
            [("1500", 1500), ("1000", 1000), ("30ms", 30), ("30s", 30_000), ("0", 0), ("none", 0), ("0s", 0)]
        {
            assert_eq!(right(text), UserTimeout::Milliseconds(milliseconds), "{text}");
        }
        assert_eq!(right("24d"), UserTimeout::Milliseconds(2_073_600_000));
        assert_eq!(right("2147483647"), UserTimeout::Milliseconds(i32::MAX));
        assert_eq!(right("auto"), UserTimeout::Auto);
        for number in [1, 30, 999] {
            let advice = format!("write {number}ms or {number}s");
            assert_eq!(user_timeout(&number.to_string()), Err(advice));
        }
    }

    #[test]
    fn messages_about_wrong_times_describe_valid_ones() {
        let range = || Err("idle must be 1..32767 s (at most 9h 6m 7s)".to_owned());
        for text in
            ["0", "0ms", "32768", "72h", "32768001ms", "99999999999999999999m", "99999999999999999999ms"]
        {
            assert_eq!(idle(text), range(), "{text}");
        }
        let whole = |below: &str| Err(format!("must be whole seconds, as {below}"));
        assert_eq!(intvl("1500ms"), whole("1s"));
        assert_eq!(intvl("500ms"), whole("1s"));
        assert_eq!(intvl("32767001ms"), whole("32767s"));
        assert_eq!(seconds("350500ms"), Err("must be whole seconds, as 350s".to_owned()));
        assert_eq!(seconds("99999001ms"), Err("must be whole seconds, as 99999s".to_owned()));
        for text in ["2147483648", "25d"] {
            let right = "user_timeout must be 0..2147483647 ms (at most 24d 20h 31m 23s)";
            assert_eq!(user_timeout(text), Err(right.to_owned()), "{text}");
        }
        assert_eq!(cnt("128"), Err("cnt must be 1..127 probes".to_owned()));
        for text in ["6s", "0x6", "", "six"] {
            assert_eq!(cnt(text), Err("must be a number without a unit, as 6".to_owned()), "{text}");
        }
        let right = "must be 1..4294967295 s (at most 49710 d 6 h 28 min 15 s)";
        assert_eq!(seconds("0"), Err(right.to_owned()));
        assert_eq!(seconds("49711d"), Err(right.to_owned()));
        let right = "must be 1..4294967295 ms (at most 49 d 17 h 2 min 47 s)";
        assert_eq!(fine_seconds("50d"), Err(right.to_owned()));
        for text in ["", "s", "1w", "1.5s", "-1", "+1", "1 s", "0x10", "1S", "01", "\u{661}"] {
            assert_eq!(idle(text).unwrap_err(), "must be a time, as 60, 60s or 5m", "{text}");
            assert_eq!(fine_seconds(text).unwrap_err(), "must be a time, as 60, 60s or 5m", "{text}");
            let right = "must be a time, as 30s, or auto or none";
            assert_eq!(user_timeout(text).unwrap_err(), right, "{text}");
        }
    }

    #[test]
    fn times_are_formatted_in_words() {
        assert_eq!(words(7_875_000), "2 h 11 min 15 s");
        assert_eq!(words(86_400_000), "1 d");
        assert_eq!(words(0), "0 s");
        assert_eq!(words(250), "250 ms");
        assert_eq!(words(61_700), "1 min 1 s");
    }
}
