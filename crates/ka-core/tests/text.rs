//! Tests the text of a policy: valid and invalid texts, their errors, and that written text is read back.

use ka_core::{Config, Reason, RtoMax, Text, Timer, UserTimeout, parse, parse_typed};
use libc::{EINVAL, ERANGE};
use proptest::prelude::*;

fn errno(text: &str) -> i32 {
    parse(text.as_bytes()).map_or_else(|error| error.errno().0, |_| 0)
}

fn rto_max(config: Config, rto_max: RtoMax) -> Config {
    config.with_rto_max(rto_max).unwrap()
}

#[test]
fn positional_and_named_forms_are_parsed() {
    let policy = Config::new(60, 10, 5).unwrap();
    for (text, config) in [
        ("60,10,5", policy),
        ("idle=60,intvl=10,cnt=5", policy),
        ("cnt=5,on,intvl=10,idle=60", policy),
        ("off,idle=60,intvl=10,cnt=5", policy.with_enabled(Some(false))),
        ("idle=60,intvl=10,cnt=5,keep", policy.with_enabled(None)),
        ("on", Config::KEEP.with_enabled(Some(true))),
        ("off", Config::KEEP.with_enabled(Some(false))),
        ("keep", Config::KEEP),
        ("32767,32767,127", Config::new(32767, 32767, 127).unwrap()),
        ("idle=60,intvl=10,cnt=5,user_timeout=auto", policy.with_user_timeout(UserTimeout::Auto).unwrap()),
        (
            "keep,user_timeout=2147483647",
            Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(i32::MAX)).unwrap(),
        ),
        ("keep,user_timeout=0", Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(0)).unwrap()),
        ("keep,user_timeout=none", Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(0)).unwrap()),
        ("60:10:5", policy),
        ("60, 10, 5", policy),
        (" 60 :\t10 : 5\n", policy),
        ("1m,10s,5", policy),
        ("60000ms:10:5", policy),
        ("idle=1m, intvl=10s, cnt=5", policy),
        ("\tidle=60 ,intvl=10 , cnt=5\n", policy),
        ("9h,9h,127", Config::new(32400, 32400, 127).unwrap()),
        (
            "keep,user_timeout=24d",
            Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(2_073_600_000)).unwrap(),
        ),
        ("keep,user_timeout=30s", Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(30_000)).unwrap()),
        (
            "keep,user_timeout=1500ms",
            Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(1500)).unwrap(),
        ),
        ("keep,user_timeout=0s", Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(0)).unwrap()),
        ("keep,rto_max=1000", rto_max(Config::KEEP, RtoMax::Milliseconds(1000))),
        ("keep,rto_max=1s", rto_max(Config::KEEP, RtoMax::Milliseconds(1000))),
        ("keep,rto_max=2500ms", rto_max(Config::KEEP, RtoMax::Milliseconds(2500))),
        ("keep, rto_max=2m", rto_max(Config::KEEP, RtoMax::Milliseconds(120_000))),
        ("keep,rto_max=120000", rto_max(Config::KEEP, RtoMax::Milliseconds(120_000))),
        ("keep,rto_max=auto", rto_max(Config::KEEP, RtoMax::Auto)),
        ("rto_max=2000,idle=60,intvl=10,cnt=5", rto_max(policy, RtoMax::Milliseconds(2000))),
        // The value is computed when the policy is applied, so it may name no other value, or the largest ones.
        (
            "idle=32767,intvl=32767,cnt=127,rto_max=auto",
            rto_max(Config::new(32767, 32767, 127).unwrap(), RtoMax::Auto),
        ),
    ] {
        assert_eq!(parse(text.as_bytes()), Ok(config), "{text}");
    }
}

#[test]
fn a_malformed_text_is_einval() {
    for text in [
        "",
        ",",
        "60",
        "60,10",
        "60,10,5,",
        ",60,10,5",
        "60,10,5,1",
        "60,10,",
        "60,,5",
        "60,10,5,on",
        "on,60,10,5",
        "idle",
        "idle=",
        "idle=60,",
        "idle=x",
        "idle=-1",
        "idle=+1",
        "idle= 60",
        "idle=0x10",
        "idle=060",
        "060,10,5",
        "00,1,1",
        "idle=00",
        "idle=60,idle=60",
        "on,off",
        "on,on",
        "keep,off",
        "Idle=60",
        "ON",
        "idle=auto",
        "user_timeout=",
        "user_timeout=AUTO",
        "user_timeout=auto,user_timeout=auto",
        "ttl=60",
        "idle=60\0",
        "idle==60",
        "idle:60",
        "auto",
        "6O,10,5",
        "60,10,5s",
        " ",
        "60 10 5",
        "60;10;5",
        "60:10,5",
        "60,10:5",
        "60:10",
        "60:10:5:",
        "60, ,5",
        "idle=60:intvl=10",
        "idle =60",
        "idle=5 m",
        "idle=5M",
        "idle=5w",
        "idle=5sec",
        "idle=s",
        "idle=1.5s",
        "idle=01s",
        "idle=1500ms",
        "500ms,10,5",
        "cnt=5ms",
        "cnt=none",
        "idle=none",
        "user_timeout=NONE",
        "rto_max=",
        "rto_max=none",
        "rto_max=keep",
        "rto_max=AUTO",
        "rto_max=-1",
        "rto_max=02000",
        "rto_max=1.5s",
        "rto_max=2000,rto_max=2000",
        "rto_max=auto,rto_max=2000",
        "rtomax=2000",
        "rto_max",
        "60,10,5,rto_max=2000",
        "none",
        "idle=32767,intvl=32767,cnt=127,user_timeout=auto",
    ] {
        assert_eq!(errno(text), EINVAL, "{text:?}");
    }
    assert_eq!(parse(b"idle=\xff").unwrap_err().errno().0, EINVAL);
}

#[test]
fn a_number_out_of_range_in_a_well_formed_text_is_erange() {
    for text in [
        "0,10,5",
        "60,0,5",
        "60,10,0",
        "32768,10,5",
        "60,32768,5",
        "60,10,128",
        "idle=0",
        "idle=32768",
        "intvl=0",
        "cnt=0",
        "cnt=128",
        "user_timeout=2147483648",
        "user_timeout=99999999999999999999999999999999",
        "idle=4294967297",
        "idle=18446744073709551617",
        "idle=0,intvl=99999,cnt=5",
        "72h,10,5",
        "idle=0s",
        "idle=0ms",
        "intvl=547m",
        "user_timeout=25d",
        "rto_max=0",
        "rto_max=1",
        "rto_max=999",
        "rto_max=999ms",
        "rto_max=120001",
        "rto_max=121s",
        "rto_max=3m",
        "rto_max=4294969296",
        "rto_max=18446744073709553616",
        "idle=18446744073709551617ms",
        "idle=213503982334602d",
        "idle=32768001ms",
    ] {
        assert_eq!(errno(text), ERANGE, "{text:?}");
    }
    for text in ["0,10", "0,10,5,1", "idle=0,idle=0", "idle=0,intvl=x", "cnt=999,", "idle=0,on,off"] {
        assert_eq!(errno(text), EINVAL, "{text:?}");
    }
}

#[test]
fn a_policy_is_written_as_its_shortest_text() {
    for text in [
        "on",
        "off",
        "keep",
        "idle=60,intvl=10,cnt=5",
        "off,idle=60",
        "keep,cnt=127",
        "user_timeout=auto",
        "rto_max=auto",
        "keep,rto_max=2000",
        "idle=60,intvl=10,cnt=5,user_timeout=auto,rto_max=1000",
        "keep,idle=32767,intvl=32767,cnt=127,user_timeout=2147483647,rto_max=120000",
    ] {
        assert_eq!(&*Text::from(&parse(text.as_bytes()).unwrap()), text);
    }
}

#[test]
fn parse_typed_requires_a_unit_for_user_timeouts_below_1000() {
    let timeout = |value| Config::KEEP.with_user_timeout(UserTimeout::Milliseconds(value)).unwrap();
    for value in [1, 30, 999] {
        let canonical = format!("keep,user_timeout={value}");
        assert_eq!(&*Text::from(&timeout(value)), canonical);
        assert_eq!(parse(canonical.as_bytes()), Ok(timeout(value)), "ka_format writes this text");
        let error = parse_typed(canonical.as_bytes()).unwrap_err();
        assert_eq!((error.reason, error.errno().0), (Reason::NoUnit, EINVAL));
        assert_eq!(error.to_string(), format!("\"user_timeout={value}\": write {value}ms or {value}s"));
        let typed = Text::typed(&timeout(value));
        assert_eq!(&*typed, format!("{canonical}ms"));
        assert_eq!(parse_typed(typed.as_bytes()), Ok(timeout(value)));
    }
    for value in [0, 1000, i32::MAX] {
        let typed = Text::typed(&timeout(value));
        assert_eq!(typed, Text::from(&timeout(value)));
        assert_eq!(parse_typed(typed.as_bytes()), Ok(timeout(value)));
    }
    assert_eq!(parse_typed(b"1,1,1").ok(), Config::new(1, 1, 1).ok());
    // The unit belongs to the user timeout, even if another item follows.
    let both = rto_max(timeout(30), RtoMax::Milliseconds(1000));
    assert_eq!(&*Text::from(&both), "keep,user_timeout=30,rto_max=1000");
    assert_eq!(&*Text::typed(&both), "keep,user_timeout=30ms,rto_max=1000");
    // A bare rto_max is always 1000 or more, so it cannot be mistaken for seconds.
    assert_eq!(parse_typed(b"keep,rto_max=2").unwrap_err().reason, Reason::OutOfRange(Timer::RtoMax));
}

#[test]
fn single_values_are_parsed_like_policy_items() {
    assert_eq!(Timer::Idle.parse_typed(b" 5m "), Ok(300));
    assert_eq!(Timer::Cnt.parse_typed(b"5m"), Err(Reason::NotAValue(Timer::Cnt)));
    assert_eq!(Timer::Intvl.parse_typed(b"auto"), Err(Reason::NotAValue(Timer::Intvl)));
    assert_eq!(UserTimeout::parse_typed(b" auto "), Ok(UserTimeout::Auto));
    assert_eq!(UserTimeout::parse_typed(b"none"), Ok(UserTimeout::Milliseconds(0)));
    assert_eq!(UserTimeout::parse_typed(b"30"), Err(Reason::NoUnit));
    assert_eq!(RtoMax::parse_typed(b" auto "), Ok(RtoMax::Auto));
    assert_eq!(RtoMax::parse_typed(b" 2s\n"), Ok(RtoMax::Milliseconds(2000)));
    assert_eq!(RtoMax::parse_typed(b"2"), Err(Reason::OutOfRange(Timer::RtoMax)));
    assert_eq!(RtoMax::parse_typed(b"none"), Err(Reason::NotAValue(Timer::RtoMax)));
}

#[test]
fn errors_name_the_wrong_item_and_describe_a_valid_one() {
    for (text, message) in [
        ("idle=60,intvl=0", "\"intvl=0\": intvl must be 1..32767 s (at most 9h 6m 7s)"),
        ("idle=72h", "\"idle=72h\": idle must be 1..32767 s (at most 9h 6m 7s)"),
        (
            "user_timeout=25d",
            "\"user_timeout=25d\": user_timeout must be 0..2147483647 ms (at most 24d 20h 31m 23s)",
        ),
        ("60,10,128", "\"128\": cnt must be 1..127 probes"),
        ("60,10", "\"60,10\": numbers without names must be three: idle,intvl,cnt"),
        ("60,10,5,3", "\"3\": numbers without names must be three: idle,intvl,cnt"),
        ("60:10:5: 3", "\"3\": numbers without names must be three: idle,intvl,cnt"),
        ("idle=5w", "\"idle=5w\": must be a time, as 60, 60s or 5m"),
        ("cnt=5s", "\"cnt=5s\": must be a number without a unit, as 6"),
        ("user_timeout=x", "\"user_timeout=x\": must be a time, as 30s, or auto or none"),
        ("rto_max=none", "\"rto_max=none\": must be a time, as 2s, or auto"),
        ("rto_max=0", "\"rto_max=0\": rto_max must be 1000..120000 ms"),
        ("rto_max=3m", "\"rto_max=3m\": rto_max must be 1000..120000 ms"),
        ("idle=1500ms", "\"idle=1500ms\": must be whole seconds, as 1s"),
        ("60, 500ms, 5", "\"500ms\": must be whole seconds, as 1s"),
        ("intvl=32767001ms", "\"intvl=32767001ms\": must be whole seconds, as 32767s"),
        ("on,off", "\"off\": is given twice"),
        (
            "time=5",
            "\"time=5\": must be idle=, intvl=, cnt=, user_timeout= or rto_max= with a value, or on, off or keep",
        ),
        (
            "a\nb",
            "\"a\\nb\": must be idle=, intvl=, cnt=, user_timeout= or rto_max= with a value, or on, off or keep",
        ),
    ] {
        let error = parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(format!("{error:?}"), format!("ParseError({message})"));
    }
}

#[test]
fn messages_name_the_ranges_of_the_timers() {
    for timer in Timer::ALL {
        let message = timer.parse_typed(b"99999999999").unwrap_err().message();
        let (range, name, unit) = (timer.range(), timer.name(), timer.unit());
        assert_eq!(message, format!("{name} must be {}..{} {unit}", range.start(), range.end()));
    }
}

#[test]
fn messages_name_the_largest_valid_times() {
    for (timer, most) in
        [(Timer::Idle, "9h 6m 7s"), (Timer::Intvl, "9h 6m 7s"), (Timer::UserTimeout, "24d 20h 31m 23s")]
    {
        let text = format!("{}=60d", timer.name());
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(error.to_string().ends_with(&format!(" (at most {most})")), "{error}");
        let seconds: i32 = most
            .split(' ')
            .map(|part| {
                let (number, unit) = part.split_at(part.len() - 1);
                let scale = match unit {
                    "d" => 86400,
                    "h" => 3600,
                    "m" => 60,
                    _ => 1,
                };
                number.parse::<i32>().unwrap() * scale
            })
            .sum();
        let scale = if timer.unit() == "ms" { 1000 } else { 1 };
        assert_eq!(seconds, timer.range().end() / scale);
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let seconds = || proptest::option::of(1..=32767);
    let user_timeout = prop_oneof![
        Just(UserTimeout::Keep),
        Just(UserTimeout::Auto),
        (0..=i32::MAX).prop_map(UserTimeout::Milliseconds)
    ];
    let rto_max =
        prop_oneof![Just(RtoMax::Keep), Just(RtoMax::Auto), (1000..=120_000).prop_map(RtoMax::Milliseconds)];
    let enabled = proptest::option::of(any::<bool>());
    (enabled, seconds(), seconds(), proptest::option::of(1..=127), user_timeout, rto_max).prop_filter_map(
        "an automatic user timeout that is not too long",
        |(enabled, idle, intvl, cnt, user_timeout, rto_max)| {
            let config = Config::KEEP.with_enabled(enabled).with_idle(idle).ok()?.with_intvl(intvl).ok()?;
            config.with_cnt(cnt).ok()?.with_user_timeout(user_timeout).ok()?.with_rto_max(rto_max).ok()
        },
    )
}

proptest! {
    #[test]
    fn written_text_is_read_back_to_the_same_policy(config in configs()) {
        let text = Text::from(&config);
        prop_assert!(text.len() <= 74, "{}", &*text);
        prop_assert_eq!(parse(text.as_bytes()), Ok(config));
        let typed = Text::typed(&config);
        prop_assert_eq!(parse_typed(typed.as_bytes()), Ok(config));
    }

    #[test]
    fn blanks_and_separators_do_not_change_the_policy(
        numbers: [u16; 3],
        blanks in proptest::collection::vec("[ \t]{0,2}", 6),
        colon: bool,
    ) {
        let [idle, intvl, cnt] = numbers;
        let separator = if colon { ":" } else { "," };
        let spaced: Vec<_> = numbers
            .iter()
            .zip(blanks.chunks(2))
            .map(|(number, blanks)| format!("{}{number}{}", blanks[0], blanks[1]))
            .collect();
        let spaced = spaced.join(separator);
        let plain = parse(format!("{idle},{intvl},{cnt}").as_bytes()).map_err(|error| error.errno());
        prop_assert_eq!(parse(spaced.as_bytes()).map_err(|error| error.errno()), plain);
    }

    #[test]
    fn a_unit_scales_the_number(number in 0_i64..100_000_000, unit in 0_usize..5) {
        let (name, scale) = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)][unit];
        let total = number * scale;
        let read = |timer: Timer| timer.parse_typed(format!("{number}{name}").as_bytes());
        let most = i64::from(i32::MAX);
        let timeout = if total <= most { Ok(total) } else { Err(Reason::OutOfRange(Timer::UserTimeout)) };
        prop_assert_eq!(read(Timer::UserTimeout).map(i64::from), timeout);
        let idle = match total {
            total if total / 1000 > 32767 => Err(Reason::OutOfRange(Timer::Idle)),
            total if total % 1000 != 0 => Err(Reason::NotWhole),
            0 => Err(Reason::OutOfRange(Timer::Idle)),
            total => Ok(total / 1000),
        };
        prop_assert_eq!(read(Timer::Idle).map(i64::from), idle);
    }

    #[test]
    fn any_valid_text_is_written_and_read_back_to_the_same_policy(
        text in " ?((idle|intvl|cnt|user_timeout|rto_max)=[0-9]{1,6}(ms|s|m|h|d)?|on|off|keep|[0-9]{1,6}m?|user_timeout=(auto|none)|rto_max=auto)([,:] ?((idle|intvl|cnt)=[0-9]{1,3}s?|on|off|[0-9]{1,3})){0,4}"
    ) {
        if let Ok(config) = parse(text.as_bytes()) {
            let text = Text::from(&config);
            prop_assert_eq!(parse(text.as_bytes()), Ok(config));
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Err(error) = parse(&bytes) {
            prop_assert!(error.to_string().is_ascii());
            prop_assert!(matches!(error.errno().0, EINVAL | ERANGE));
        }
    }
}

#[test]
fn every_byte_of_a_wrong_item_is_escaped_as_in_rust() {
    for byte in 0..=255_u8 {
        let text = [b'x', byte, b'x'];
        let error = parse(&text).unwrap_err();
        if error.item == text {
            assert!(error.to_string().starts_with(&format!("\"{}\": ", text.escape_ascii())), "{error}");
        }
    }
}
