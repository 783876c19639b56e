//! Tests the KA_ variables: the values of each, and the order of the sources.

use ka_core::{Config, RtoMax, Timer, UserTimeout};
use ka_policy::{Action, Mode, Rule, Rules, Source, Variable, Variables, skips};

fn config(idle: i32, intvl: i32, cnt: i32) -> Config {
    Config::new(idle, intvl, cnt).unwrap()
}

fn values<'a>(entries: &[(&'a str, &'a str)]) -> Source<'a> {
    let mut values = Source::default();
    for (name, value) in entries {
        assert!(values.keep(name.as_bytes(), value.as_bytes()), "{name}");
    }
    values
}

#[test]
fn the_strongest_source_with_a_valid_value_wins() {
    let environment = values(&[("KA_IDLE", "x"), ("KA_CNT", "3"), ("KA_MODE", "floor")]);
    let mut file = Source::default();
    let mut unknown = Vec::new();
    let text = b"# a comment\n\n KA_POLICY=\"280,30,5\"\nKA_IDLE=99\nKA_CNT=9\nPATH=/bin\nnonsense\n";
    file.keep_lines(text, |line| unknown.push(String::from_utf8_lossy(line).into_owned()));
    assert_eq!(unknown, ["PATH=/bin", "nonsense"]);
    let mut variables = Variables::default();
    let mut wrong = Vec::new();
    variables.take_all(&[environment, file], |variable, value, right| wrong.push((variable, value, right)));
    assert_eq!((variables.config, variables.mode), (config(99, 30, 3), Mode::Floor));
    let right = "must be a time, as 60, 60s or 5m";
    assert_eq!(wrong, [(Variable::Idle, &b"x"[..], right)]);
    assert_eq!(Variables::default().config, config(60, 10, 6));
    assert!(!Source::default().keep(b"KA_NO_SUCH", b""));
}

#[test]
fn names_of_programs_are_patterns() {
    assert!(skips(b"chrome, python3*", [b"x", b"python3.11"]));
    assert!(!skips(b"chrome,,", [b"", b"chromedriver"]));
    assert!(!skips(b"", [b"", b""]));
}

/// Returns the default policy with this longest time between two retransmissions.
fn rto_max(milliseconds: i32) -> Config {
    config(60, 10, 6).with_rto_max(RtoMax::Milliseconds(milliseconds)).unwrap()
}

/// Returns the settings with one value, or the description of a valid value.
fn taken(variable: Variable, value: &str) -> Result<Variables<'_>, &'static str> {
    let mut variables = Variables::default();
    variables.take(variable, value.as_bytes()).map(|()| variables)
}

#[test]
fn each_variable_sets_its_own_setting() {
    let auto = taken(Variable::UserTimeout, "auto").unwrap().config;
    assert_eq!(auto.user_timeout(), UserTimeout::Auto);
    let timeout = taken(Variable::UserTimeout, "4000").unwrap().config;
    assert_eq!(timeout.user_timeout(), UserTimeout::Milliseconds(4000));
    assert!(taken(Variable::UserTimeout, "automatic").is_err());
    for (variable, value, policy) in [
        (Variable::Idle, "5m", config(300, 10, 6)),
        (Variable::Intvl, " 1m ", config(60, 60, 6)),
        (Variable::Policy, " 5m : 30 : 5 ", config(300, 30, 5)),
        (Variable::Policy, "idle=5m, intvl=30s", config(300, 30, 6)),
        (
            Variable::Policy,
            "user_timeout=30ms",
            config(60, 10, 6).with_user_timeout(UserTimeout::Milliseconds(30)).unwrap(),
        ),
        (
            Variable::UserTimeout,
            "30s",
            config(60, 10, 6).with_user_timeout(UserTimeout::Milliseconds(30_000)).unwrap(),
        ),
        (
            Variable::UserTimeout,
            "none",
            config(60, 10, 6).with_user_timeout(UserTimeout::Milliseconds(0)).unwrap(),
        ),
        (Variable::RtoMax, "2000", rto_max(2000)),
        (Variable::RtoMax, " 2s ", rto_max(2000)),
        (Variable::RtoMax, "2m", rto_max(120_000)),
        (Variable::RtoMax, "auto", config(60, 10, 6).with_rto_max(RtoMax::Auto).unwrap()),
        (Variable::Policy, "rto_max=1500ms", rto_max(1500)),
    ] {
        assert_eq!(taken(variable, value).unwrap().config, policy, "{value}");
    }
    let unit = "below 1000 it needs a unit, as 30ms or 30s";
    for (variable, value, right) in [
        (Variable::UserTimeout, "30", unit),
        (Variable::Policy, "idle=30,user_timeout=30", unit),
        (Variable::RtoMax, "2", "rto_max must be 1000..120000 ms"),
        (Variable::RtoMax, "0", "rto_max must be 1000..120000 ms"),
        (Variable::RtoMax, "none", "must be a time, as 2s, or auto"),
        (Variable::RtoMax, "", "must be a time, as 2s, or auto"),
        (Variable::Cnt, "6s", "must be a number without a unit, as 6"),
        (Variable::Idle, "1500ms", "must be whole seconds"),
        (Variable::Intvl, "72h", "intvl must be 1..32767 s"),
    ] {
        assert_eq!(taken(variable, value).unwrap_err(), right, "{value}");
    }
    for (policy, variable) in [
        ("user_timeout=9ms", Variable::UserTimeout),
        ("rto_max=2s", Variable::RtoMax),
        ("rto_max=auto", Variable::RtoMax),
    ] {
        let mut variables = taken(Variable::Policy, policy).unwrap();
        variables.take(variable, b"keep").unwrap();
        assert_eq!(variables.config, config(60, 10, 6), "{policy}");
    }
    assert!(taken(Variable::Idle, "keep").is_err());
    assert_eq!(taken(Variable::Rules, "x").unwrap().rules, b"x");
    assert_eq!(taken(Variable::Skip, "x").unwrap().skip, b"x");
    assert_eq!(taken(Variable::Mode, "often").unwrap_err(), "must be force, floor or default");
    assert_eq!(taken(Variable::Policy, "keep,idle=3").unwrap_err(), "must turn keepalive on, or be off");
    let too_long = "user_timeout=auto is more than 2147483647 ms";
    assert_eq!(
        taken(Variable::Policy, "32767,32767,127")
            .and_then(|mut variables| { variables.take(Variable::UserTimeout, b"auto").map(|()| variables) })
            .unwrap_err(),
        too_long
    );
    // A rejected value changes nothing.
    let mut variables = taken(Variable::Policy, "idle=32767,intvl=32767,cnt=1,user_timeout=auto").unwrap();
    let before = variables.config;
    assert_eq!(variables.take(Variable::Cnt, b"127"), Err(too_long));
    assert_eq!(variables.config, before);
}

#[test]
fn a_log_must_be_an_absolute_path_that_is_not_too_long() {
    let right = "must be an absolute path of at most 1023 bytes";
    let longest = format!("/{}", "x".repeat(1022));
    for path in ["/", "/var/log/ka", &longest] {
        assert_eq!(taken(Variable::Log, path).unwrap().log, path.as_bytes());
    }
    for path in ["", "ka.log", "./ka", &format!("{longest}x"), &"x".repeat(1023)] {
        assert_eq!(taken(Variable::Log, path).unwrap_err(), right);
    }
}

#[test]
fn only_the_value_1_of_ka_quiet_is_quiet() {
    assert!(values(&[("KA_QUIET", "1")]).is_quiet());
    assert!(!values(&[("KA_QUIET", "0")]).is_quiet() && !Source::default().is_quiet());
    let all = [
        "POLICY",
        "IDLE",
        "INTVL",
        "CNT",
        "USER_TIMEOUT",
        "RTO_MAX",
        "MODE",
        "RULES",
        "SKIP",
        "LOG",
        "QUIET",
    ];
    for (place, name) in all.iter().enumerate() {
        let name = format!("KA_{name}");
        let mut values = Source::default();
        assert!(values.keep(name.as_bytes(), b"value"));
        let variable = Variable::IN_ORDER.get(place).copied().unwrap_or(Variable::Quiet);
        assert_eq!((variable.name(), values.get(variable)), (name.as_bytes(), Some(&b"value"[..])));
    }
}

/// The policy for sockets has a number. The variables keep `auto`, which later values of idle, intvl and cnt change.
#[test]
fn an_automatic_rto_max_is_computed_from_the_final_values() {
    let mut variables = taken(Variable::RtoMax, "auto").unwrap();
    variables.take(Variable::Idle, b"14").unwrap();
    variables.take(Variable::Rules, b"lport=1 idle=5").unwrap();
    for retries in [3, 15] {
        let mut room = [Rule::SKIP; Rules::MAX];
        let policy = variables.policy(&mut room, || retries, |rule, error| panic!("{error}: {rule:?}"));
        let resolved = |idle| {
            let auto = config(idle, 10, 6).with_rto_max(RtoMax::Auto).unwrap();
            auto.resolved(retries)
        };
        assert_eq!(policy.config, resolved(14));
        assert_ne!(policy.config.timer(Timer::RtoMax), None);
        let action = policy.rules.iter().next().map(Rule::action);
        assert_eq!(action, Some(Action::Apply(resolved(5))));
    }
    // tcp_retries2 is read only if there is an automatic value.
    let mut room = [Rule::SKIP; Rules::MAX];
    let not_read = || -> u8 { panic!("tcp_retries2 is not needed") };
    let variables = taken(Variable::RtoMax, "2s").unwrap();
    assert_eq!(variables.policy(&mut room, not_read, |_, _| {}).config, rto_max(2000));
}

#[test]
fn each_timer_has_a_variable() {
    for timer in Timer::ALL {
        let name = format!("KA_{}", timer.name().to_uppercase());
        let variable = Variable::IN_ORDER.into_iter().find(|variable| variable.name() == name.as_bytes());
        let value = timer.range().end().to_string();
        let config = taken(variable.expect(&name), &value).unwrap().config;
        assert_eq!(config.timer(timer), Some(*timer.range().end()), "{name}");
    }
}
