//! Tests rules and globs against independent reference implementations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ka_core::{Config, RtoMax, Timer, UserTimeout};
use ka_policy::{Action, Cidr, Endpoint, Mode, Policy, Rule, RuleBuffer, Rules, glob};
use proptest::prelude::*;

fn base() -> Config {
    Config::new(60, 10, 6).unwrap()
}

/// Returns the bits of an address that std has parsed.
fn bits_of(address: IpAddr) -> u128 {
    Endpoint::from(SocketAddr::new(address, 0)).address
}

fn rule(text: &str) -> Rule {
    Rule::parse(text.as_bytes(), &base()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[expect(clippy::unnecessary_wraps, reason = "as Rule::matches takes it")]
fn peer(text: &str) -> Option<Endpoint> {
    Some(text.parse::<SocketAddr>().unwrap().into())
}

fn rule_without_lport() -> Rule {
    rule("peer=10.0.0.0/8 rport=8000-8999 skip")
}

#[test]
fn all_conditions_of_a_rule_must_hold() {
    let both = rule("  peer=10.0.0.0/8\trport=8000-8999   lport=22 skip ");
    assert!(both.matches(peer("10.255.0.1:8500"), 22));
    assert!(!both.matches(peer("11.0.0.1:8500"), 22));
    assert!(!both.matches(peer("10.0.0.1:9000"), 22));
    assert!(!both.matches(peer("10.0.0.1:8500"), 23));
    assert!(!both.matches(None, 22), "an unknown peer meets no condition");
    assert!(
        both.looks_at_peer() && rule("rport=1 skip").looks_at_peer() && !rule("lport=1 skip").looks_at_peer()
    );
    let colons = rule("peer=fe80:: skip");
    assert!(colons.matches(peer("[fe80::]:1"), 0), "a blank after a colon ends the address");
    assert!(rule("idle=30").matches(None, 0), "a rule without conditions matches every connection");
    assert!(rule("lport=22 skip").looks_at_local_port() && !rule_without_lport().looks_at_local_port());
    let known = peer("10.0.0.1:8500");
    assert!(rule("peer=10.0.0.0/8 skip").matches(known, 9) && rule("rport=8500 skip").matches(known, 9));
    assert!(
        rule("lport=9 skip").matches(known, 9) && rule("skip").matches(known, 9),
        "a part without a condition does not matter"
    );
    assert!(rule("lport=1-65535 skip").matches(None, 1) && !rule("lport=1-65535 skip").matches(None, 0));
}

#[test]
fn an_action_takes_missing_values_from_the_base_policy() {
    let auto = base().with_user_timeout(UserTimeout::Auto).unwrap();
    for (text, base, config) in [
        ("idle=30", base(), Config::new(30, 10, 6)),
        ("30,5,3", base(), Config::new(30, 5, 3)),
        ("30s, 5, 3", base(), Config::new(30, 5, 3)),
        ("30 :5: 3", base(), Config::new(30, 5, 3)),
        ("idle=5m ,\n intvl=30s , cnt=3", base(), Config::new(300, 30, 3)),
        ("on", base(), Ok(base())),
        ("cnt=2", auto, Config::new(60, 10, 2).unwrap().with_user_timeout(UserTimeout::Auto)),
        ("user_timeout=0", auto, base().with_user_timeout(UserTimeout::Milliseconds(0))),
        ("rto_max=2s", base(), base().with_rto_max(RtoMax::Milliseconds(2000))),
        ("rto_max=auto", auto, auto.with_rto_max(RtoMax::Auto)),
    ] {
        let rule = Rule::parse(text.as_bytes(), &base).unwrap();
        assert_eq!(rule.action(), Action::Apply(config.unwrap()), "{text}");
    }
    assert_eq!(rule("skip").action(), Action::Skip);
    assert_eq!(rule("rport=1 off").action(), Action::Skip);
}

#[test]
fn errors_of_malformed_rules_describe_valid_words() {
    for (text, message) in [
        ("rport=22", "\"rport=22\": must end with skip or a policy, as 60,10,6"),
        ("", "\"\": must end with skip or a policy, as 60,10,6"),
        ("rport=0 skip", "\"rport=0\": must be a port or a range, 1..65535, as 22 or 8000-8999"),
        ("lport=65536 skip", "\"lport=65536\": must be a port or a range, 1..65535, as 22 or 8000-8999"),
        ("lport=9-8 skip", "\"lport=9-8\": must be a port or a range, 1..65535, as 22 or 8000-8999"),
        ("rport=ssh skip", "\"rport=ssh\": must be a port or a range, 1..65535, as 22 or 8000-8999"),
        (
            "peer=10.0.0.0/33 skip",
            "\"peer=10.0.0.0/33\": peer must be an address or a network, as 10.0.0.0/8",
        ),
        ("peer=host skip", "\"peer=host\": peer must be an address or a network, as 10.0.0.0/8"),
        ("peer=::1 peer=::2 skip", "\"peer=::2\": is given twice"),
        ("skip rport=22", "\"rport=22\": the action must be last"),
        ("rport=22 idle=0", "\"idle=0\": idle must be 1..32767 s"),
        ("rport=22 idle=5, intvl=0", "\"idle=5, intvl=0\": intvl must be 1..32767 s"),
        ("idle=30, cnt=3 rport=22", "\"rport=22\": the action must be last"),
        ("60 10 6", "\"60\": numbers without names must be three: idle,intvl,cnt"),
        ("user_timeout=30", "\"user_timeout=30\": below 1000 it needs a unit, as 30ms or 30s"),
        ("rto_max=2", "\"rto_max=2\": rto_max must be 1000..120000 ms"),
        ("rto_max=none", "\"rto_max=none\": must be a time, as 2s, or auto"),
        ("rport=22 keep", "\"keep\": keep is not an action, use skip"),
        (
            "port=22 skip",
            "\"port=22\": must be idle=, intvl=, cnt=, user_timeout= or rto_max= with a value, or on, off or keep",
        ),
    ] {
        assert_eq!(Rule::parse(text.as_bytes(), &base()).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn addresses_match_by_their_prefix() {
    for (cidr, inside, outside) in [
        ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
        ("0.0.0.0/0", "255.255.255.255", "::1"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.0"),
        ("192.0.2.99/24", "192.0.2.1", "192.0.3.1"),
        ("::1", "::1", "::2"),
        ("::/0", "2001:db8::1", "192.0.2.1"),
        ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
        // An IPv4-mapped IPv6 address equals the IPv4 address.
        ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
        ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
        ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ("::/0", "::1", "::ffff:10.0.0.1"),
    ] {
        let cidr = Cidr::parse(cidr.as_bytes()).unwrap();
        assert!(cidr.contains(bits_of(inside.parse().unwrap())), "{inside} is in {cidr:?}");
        assert!(!cidr.contains(bits_of(outside.parse().unwrap())), "{outside} is not in {cidr:?}");
    }
    for wrong in [
        "",
        "/",
        "10.0.0.0/",
        "10.0.0.0/08",
        "10.0.0/8",
        "::1/129",
        "10.0.0.1/8/8",
        "[::1]",
        "010.0.0.1",
        "::1%lo",
        "1.2.3.4:1:2:3:4:5:6",
        "::1.2.3.4:5",
        // RFC 4291: an IPv4 address may only replace the last groups.
        "1.2.3.4::",
        "1:1.2.3.4::1",
    ] {
        assert_eq!(Cidr::parse(wrong.as_bytes()), None, "{wrong}");
    }
}

/// Returns whether two addresses have the same prefix, compared bit by bit.
fn have_same_prefix(a: &[u8], b: &[u8], bits: u32) -> bool {
    let bits = bits as usize;
    let bit = |bytes: &[u8], n: usize| bytes[n / 8] >> (7 - n % 8) & 1;
    (0..bits).all(|n| bit(a, n) == bit(b, n))
}

proptest! {
    #[test]
    fn ipv4_prefixes_agree_with_a_comparison_of_bits(a: [u8; 4], flips: u32, bits in 0_u32..=32) {
        let b = (u32::from_be_bytes(a) ^ flips.checked_shr(bits.saturating_sub(3)).unwrap_or(0)).to_be_bytes();
        let cidr = Cidr::parse(format!("{}/{bits}", Ipv4Addr::from(a)).as_bytes()).unwrap();
        prop_assert_eq!(cidr.contains(bits_of(IpAddr::from(b))), have_same_prefix(&a, &b, bits));
        prop_assert_eq!(cidr.contains(bits_of(Ipv4Addr::from(b).to_ipv6_mapped().into())), have_same_prefix(&a, &b, bits));
    }

    #[test]
    fn ipv6_prefixes_agree_with_a_comparison_of_bits(a: [u8; 16], flips: u128, bits in 0_u32..=128) {
        let b = (u128::from_be_bytes(a) ^ flips.checked_shr(bits.saturating_sub(3)).unwrap_or(0)).to_be_bytes();
        let (from, to) = (Ipv6Addr::from(a), Ipv6Addr::from(b));
        prop_assume!(from.to_ipv4_mapped().is_none() && to.to_ipv4_mapped().is_none());
        let cidr = Cidr::parse(format!("{from}/{bits}").as_bytes()).unwrap();
        prop_assert_eq!(cidr.contains(bits_of(to.into())), have_same_prefix(&a, &b, bits));
    }

    #[test]
    fn addresses_are_read_as_std_reads_them(text in "[0-9a-f:.]{0,20}|([0-9a-f]{0,5}:){0,8}:?([0-9a-f]{1,4}:?){0,8}|([0-9]{1,3}\\.){3}[0-9]{1,3}") {
        prop_assume!(!text.contains('/'));
        let ours = Cidr::parse(text.as_bytes());
        prop_assert_eq!(ours.is_some(), text.parse::<IpAddr>().is_ok(), "{}", text);
        if let (Some(ours), Ok(address)) = (ours, text.parse::<IpAddr>()) {
            prop_assert!(ours.contains(bits_of(address)), "{}", text);
        }
    }

    #[test]
    fn formatted_ipv6_addresses_are_read_back(bytes: [u8; 16], mask: u8) {
        let mut bytes = bytes;
        // Sets some groups to zero, so that the text may have a double colon.
        (0..8).filter(|group| mask >> group & 1 == 1).for_each(|group| bytes[2 * group..2 * group + 2].fill(0));
        let address = Ipv6Addr::from(bytes);
        let cidr = Cidr::parse(address.to_string().as_bytes()).unwrap();
        prop_assert!(cidr.contains(bits_of(address.into())));
        let mut other = bytes;
        other[15] ^= 1;
        prop_assert!(!cidr.contains(bits_of(Ipv6Addr::from(other).into())));
    }

    #[test]
    fn globs_agree_with_a_recursive_matcher(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
        fn reference(pattern: &[u8], name: &[u8]) -> bool {
            match (pattern, name) {
                ([], []) => true,
                ([b'*', rest @ ..], _) => (0..=name.len()).any(|n| reference(rest, &name[n..])),
                ([b'?', rest @ ..], [_, tail @ ..]) => reference(rest, tail),
                ([a, rest @ ..], [b, tail @ ..]) => a == b && reference(rest, tail),
                _ => false,
            }
        }
        prop_assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), reference(pattern.as_bytes(), name.as_bytes()));
    }

    #[test]
    fn arbitrary_bytes_as_a_rule_do_not_panic(text in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Err(error) = Rule::parse(&text, &base()) {
            prop_assert!(error.to_string().is_ascii());
        }
    }
}

#[test]
fn skip_has_no_value() {
    let error = Rule::parse(b"skip=1", &base()).unwrap_err();
    assert_eq!(error.word, b"skip=1");
}

/// Reads a list of rules. Returns it, and the wrong rules with the reason.
fn list<'r>(text: &str, room: &'r mut RuleBuffer) -> (Rules<'r>, Vec<(String, String)>) {
    let mut wrong = Vec::new();
    let rules = Rules::parse(
        text.as_bytes(),
        &base(),
        || 15,
        room,
        |rule, error| {
            wrong.push((rule.escape_ascii().to_string(), error.message.to_owned()));
        },
    );
    (rules, wrong)
}

#[test]
fn the_first_rule_that_matches_decides_and_wrong_rules_are_left_out() {
    let mut room = [Rule::SKIP; Rules::MAX];
    let text = "; rport=22 skip ;nonsense; lport=1 idle=30;; rport=22 on";
    let (rules, wrong) = list(text, &mut room);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert_eq!(wrong[0].0, "nonsense");
    let idle = Action::Apply(base().with_idle(Some(30)).unwrap());
    assert_eq!(
        rules.iter().map(Rule::action).collect::<Vec<_>>(),
        [Action::Skip, idle, Action::Apply(base())]
    );
    assert_eq!(rules.first_match(peer("192.0.2.1:22"), 1).map(Rule::action), Some(Action::Skip));
    assert_eq!(rules.first_match(peer("192.0.2.1:23"), 1).map(Rule::action), Some(idle));
    assert_eq!(rules.first_match(None, 2), None);
    assert!(rules.look_at_peer() && rules.look_at_local_port() && !rules.is_empty());
    let (rules, _) = list("lport=1 skip", &mut room);
    assert!(!rules.look_at_peer() && rules.look_at_local_port());
    let (rules, _) = list("peer=::1 skip; on", &mut room);
    assert!(rules.look_at_peer() && !rules.look_at_local_port());
    let (rules, _) = list(" ; ;", &mut room);
    assert!(rules.is_empty() && Rules::NONE.is_empty());
}

/// An automatic `rto_max` is computed from the values of its own rule, with those of the base policy that the rule does
/// not name.
#[test]
fn an_automatic_rto_max_is_computed_for_each_rule() {
    let auto = |config: Config| config.with_rto_max(RtoMax::Auto).unwrap();
    let rto_max = |rule: &Rule| match rule.action() {
        Action::Apply(config) => config.timer(Timer::RtoMax),
        Action::Skip => None,
    };
    let text = "lport=1 rto_max=auto; lport=2 idle=5,rto_max=auto; lport=3 30,5,3; lport=4 rto_max=3s; lport=5 skip; \
                lport=6 idle=4; lport=7 7200,75,9";
    let read = |base: Config, retries: u8| {
        let mut room = [Rule::SKIP; Rules::MAX];
        let rules = Rules::parse(
            text.as_bytes(),
            &base,
            || retries,
            &mut room,
            |rule, error| panic!("{}: {error}", rule.escape_ascii()),
        );
        rules.iter().map(rto_max).collect::<Vec<_>>()
    };
    let resolved = |idle, intvl, cnt, retries| {
        auto(Config::new(idle, intvl, cnt).unwrap()).resolved(retries).timer(Timer::RtoMax)
    };
    for retries in [3, 15] {
        let (whole, shorter) = (resolved(60, 10, 6, retries), resolved(5, 10, 6, retries));
        assert_eq!(read(base(), retries), [whole, shorter, None, Some(3000), None, None, None]);
        // The rules that do not name it inherit that of the base policy.
        assert_eq!(
            read(auto(base()), retries),
            [
                whole,
                shorter,
                resolved(30, 5, 3, retries),
                Some(3000),
                None,
                resolved(4, 10, 6, retries),
                resolved(7200, 75, 9, retries),
            ]
        );
        assert!(shorter < whole || retries == 3, "{shorter:?} {whole:?}");
    }
    // tcp_retries2 is read only if there is an automatic value.
    let mut room = [Rule::SKIP; Rules::MAX];
    let not_read = || -> u8 { panic!("tcp_retries2 is not needed") };
    let rules = Rules::parse(
        b"lport=1 rto_max=2s; lport=2 user_timeout=auto",
        &base(),
        not_read,
        &mut room,
        |_, _| {},
    );
    assert_eq!(rules.iter().count(), 2);
}

#[test]
fn a_policy_names_a_value_if_it_or_a_rule_sets_it() {
    let names = |config: Config, rules: &str| {
        let mut room = [Rule::SKIP; Rules::MAX];
        let rules = Rules::parse(rules.as_bytes(), &base(), || 15, &mut room, |_, _| {});
        Policy { config, mode: Mode::Force, rules }.names(Timer::RtoMax)
    };
    let named = base().with_rto_max(RtoMax::Milliseconds(2000)).unwrap();
    assert!(
        names(named, "")
            && names(named, "lport=1 skip")
            && names(base().with_rto_max(RtoMax::Auto).unwrap(), "")
    );
    assert!(names(base(), "lport=1 skip; lport=2 rto_max=2s") && names(base(), "rto_max=auto"));
    assert!(!names(base(), "") && !names(base(), "lport=1 skip; lport=2 user_timeout=2s"));
}

#[test]
fn a_list_has_at_most_64_rules() {
    let mut room = [Rule::SKIP; Rules::MAX];
    let (rules, wrong) = list(&"on;".repeat(66), &mut room);
    assert_eq!(rules.iter().count(), 64);
    let message = ("on".to_owned(), "at most 64 rules".to_owned());
    assert_eq!(wrong, [message.clone(), message]);
}
