//! A policy as text: what is read, what is refused and with what, and that what is written is read back.

use ka_core::{Config, Text, UserTimeout, parse};
use libc::{EINVAL, ERANGE};
use proptest::prelude::*;

fn errno(text: &str) -> i32 {
    parse(text.as_bytes()).map_or_else(|error| error.errno().0, |_| 0)
}

#[test]
fn both_forms_are_read() {
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
    ] {
        assert_eq!(parse(text.as_bytes()), Ok(config), "{text}");
    }
}

#[test]
fn another_form_is_einval() {
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
        " idle=60",
        "idle=60 ",
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
        "idle=60\n",
        "idle=60\0",
        "idle==60",
        "idle:60",
        "auto",
        "6O,10,5",
        "60,10,5s",
        "idle=32767,intvl=32767,cnt=127,user_timeout=auto",
    ] {
        assert_eq!(errno(text), EINVAL, "{text:?}");
    }
    assert_eq!(parse(b"idle=\xff").unwrap_err().errno().0, EINVAL);
}

#[test]
fn a_number_out_of_range_is_erange_unless_the_form_is_wrong_too() {
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
    ] {
        assert_eq!(errno(text), ERANGE, "{text:?}");
    }
    for text in ["0,10", "0,10,5,1", "idle=0,idle=0", "idle=0,intvl=x", "cnt=999,", "idle=0,on,off"] {
        assert_eq!(errno(text), EINVAL, "{text:?}");
    }
}

#[test]
fn the_text_is_the_shortest_that_says_it() {
    for text in
        ["on", "off", "keep", "idle=60,intvl=10,cnt=5", "off,idle=60", "keep,cnt=127", "user_timeout=auto"]
    {
        assert_eq!(&*Text::from(&parse(text.as_bytes()).unwrap()), text);
    }
}

#[test]
fn errors_say_what_was_wrong_and_what_would_be_right() {
    for (text, message) in [
        ("idle=60,intvl=0", "\"intvl=0\": intvl must be 1..32767 s"),
        ("60,10", "\"60,10\": numbers without names must be three: idle,intvl,cnt"),
        ("60,10,5,3", "\"3\": numbers without names must be three: idle,intvl,cnt"),
        ("idle=5s", "\"idle=5s\": must be a number in decimal digits, without leading zeros"),
        ("on,off", "\"off\": says again what was said before"),
        (
            "time=5",
            "\"time=5\": must be idle=, intvl=, cnt= or user_timeout= with a number, or on, off or keep",
        ),
        ("a\nb", "\"a\\nb\": must be idle=, intvl=, cnt= or user_timeout= with a number, or on, off or keep"),
    ] {
        let error = parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(format!("{error:?}"), format!("ParseError({message})"));
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let seconds = || proptest::option::of(1..=32767);
    let user_timeout = prop_oneof![
        Just(UserTimeout::Keep),
        Just(UserTimeout::Auto),
        (0..=i32::MAX).prop_map(UserTimeout::Milliseconds)
    ];
    (proptest::option::of(any::<bool>()), seconds(), seconds(), proptest::option::of(1..=127), user_timeout)
        .prop_filter_map(
            "an automatic user timeout that fits",
            |(enabled, idle, intvl, cnt, user_timeout)| {
                let config =
                    Config::KEEP.with_enabled(enabled).with_idle(idle).ok()?.with_intvl(intvl).ok()?;
                config.with_cnt(cnt).ok()?.with_user_timeout(user_timeout).ok()
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(config in configs()) {
        let text = Text::from(&config);
        prop_assert!(text.len() <= 59, "{}", &*text);
        prop_assert_eq!(parse(text.as_bytes()), Ok(config));
    }

    #[test]
    fn what_is_read_is_written_back_to_the_same(
        text in "((idle|intvl|cnt|user_timeout)=[0-9]{1,6}|on|off|keep|[0-9]{1,6}|user_timeout=auto)(,((idle|intvl|cnt)=[0-9]{1,3}|on|off|[0-9]{1,3})){0,4}"
    ) {
        if let Ok(config) = parse(text.as_bytes()) {
            let text = Text::from(&config);
            prop_assert_eq!(parse(text.as_bytes()), Ok(config));
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Err(error) = parse(&bytes) {
            prop_assert!(error.to_string().is_ascii());
            prop_assert!(matches!(error.errno().0, EINVAL | ERANGE));
        }
    }
}
