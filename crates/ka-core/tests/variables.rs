//! The KA_ variables and the modes: what is ordered, and what of it is due on a socket.

use std::os::fd::AsRawFd as _;

use ka_core::{Config, Mode, Orders, Socket, UserTimeout, Values, Variable, skips};

fn config(idle: i32, intvl: i32, cnt: i32) -> Config {
    Config::new(idle, intvl, cnt).unwrap()
}

fn values<'a>(entries: &[(&'a str, &'a str)]) -> Values<'a> {
    let mut values = Values::default();
    for (name, value) in entries {
        assert!(values.keep(name.as_bytes(), value.as_bytes()), "{name}");
    }
    values
}

#[test]
fn the_first_source_with_a_right_value_holds() {
    let environment = values(&[("KA_IDLE", "x"), ("KA_CNT", "3"), ("KA_MODE", "floor")]);
    let mut file = Values::default();
    let mut unknown = Vec::new();
    let text = b"# a comment\n\n KA_POLICY=\"280,30,5\"\nKA_IDLE=99\nKA_CNT=9\nPATH=/bin\nnonsense\n";
    file.keep_lines(text, |line| unknown.push(String::from_utf8_lossy(line).into_owned()));
    assert_eq!(unknown, ["PATH=/bin", "nonsense"]);
    let mut orders = Orders::default();
    let mut wrong = Vec::new();
    orders.take_all(&[environment, file], |variable, value, right| wrong.push((variable, value, right)));
    assert_eq!((orders.policy, orders.mode), (config(99, 30, 3), Mode::Floor));
    let right = "must be a time, as 60, 60s or 5m";
    assert_eq!(wrong, [(Variable::Idle, &b"x"[..], right)]);
    assert_eq!(Orders::default().policy, config(60, 10, 6));
    assert!(!Values::default().keep(b"KA_NO_SUCH", b""));
}

#[test]
fn names_of_programs_are_patterns() {
    assert!(skips(b"chrome, python3*", [b"x", b"python3.11"]));
    assert!(!skips(b"chrome,,", [b"", b"chromedriver"]));
    assert!(!skips(b"", [b"", b""]));
}

#[test]
fn what_is_due_depends_on_the_mode() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let oracle = socket2::SockRef::from(&listener);
    let socket = Socket::new(listener.as_raw_fd());
    let policy = config(60, 10, 6);
    socket.apply(&config(30, 20, 3)).unwrap();
    assert_eq!(socket.due(&policy, Mode::Force, true), Some(policy));
    assert_eq!(socket.due(&policy, Mode::Floor, true), Some(config(30, 10, 3)));
    assert_eq!(socket.due(&policy, Mode::Default, true), None);
    assert_eq!(socket.due(&policy, Mode::Default, false), Some(policy));
    // A user timeout may be as long as the policy needs, and no longer.
    oracle.set_tcp_user_timeout(Some(std::time::Duration::from_secs(900))).unwrap();
    assert_eq!(policy.latest_user_timeout(), 120_000);
    let due = socket.due(&policy, Mode::Force, true).unwrap();
    assert_eq!(socket.give(due, false), (due, Ok(())));
    assert_eq!(oracle.tcp_user_timeout().unwrap(), Some(std::time::Duration::from_secs(120)));
    // One that is just as long stays unwritten.
    assert_eq!(socket.due(&policy, Mode::Force, true), Some(policy));
    for (name, mode) in [("force", Mode::Force), ("floor", Mode::Floor), ("default", Mode::Default)] {
        assert_eq!(Mode::named(name.as_bytes()), Some(mode));
    }
    assert_eq!(Mode::named(b"Floor"), None);
}

/// What a value does, or what would be right.
fn taken(variable: Variable, value: &str) -> Result<Orders<'_>, &'static str> {
    let mut orders = Orders::default();
    orders.take(variable, value.as_bytes()).map(|()| orders)
}

#[test]
fn each_variable_says_its_own() {
    let auto = taken(Variable::UserTimeout, "auto").unwrap().policy;
    assert_eq!(auto.user_timeout(), UserTimeout::Auto);
    let timeout = taken(Variable::UserTimeout, "4000").unwrap().policy;
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
    ] {
        assert_eq!(taken(variable, value).unwrap().policy, policy, "{value}");
    }
    let unit = "below 1000 it needs a unit, as 30ms or 30s";
    for (variable, value, right) in [
        (Variable::UserTimeout, "30", unit),
        (Variable::Policy, "idle=30,user_timeout=30", unit),
        (Variable::Cnt, "6s", "must be a number without a unit, as 6"),
        (Variable::Idle, "1500ms", "must be whole seconds"),
        (Variable::Intvl, "72h", "intvl must be 1..32767 s"),
    ] {
        assert_eq!(taken(variable, value).unwrap_err(), right, "{value}");
    }
    let named = taken(Variable::Policy, "user_timeout=9ms");
    let kept = named.and_then(|mut orders| orders.take(Variable::UserTimeout, b"keep").map(|()| orders));
    assert_eq!(kept.unwrap().policy, config(60, 10, 6));
    assert_eq!(taken(Variable::Rules, "x").unwrap().rules, b"x");
    assert_eq!(taken(Variable::Skip, "x").unwrap().skip, b"x");
    assert_eq!(taken(Variable::Mode, "often").unwrap_err(), "must be force, floor or default");
    assert_eq!(taken(Variable::Policy, "keep,idle=3").unwrap_err(), "must turn keepalive on, or be off");
    let too_long = "user_timeout=auto is more than 2147483647 ms";
    assert_eq!(
        taken(Variable::Policy, "32767,32767,127")
            .and_then(|mut orders| { orders.take(Variable::UserTimeout, b"auto").map(|()| orders) })
            .unwrap_err(),
        too_long
    );
    // A rejected value changes nothing.
    let mut orders = taken(Variable::Policy, "idle=32767,intvl=32767,cnt=1,user_timeout=auto").unwrap();
    let before = orders.policy;
    assert_eq!(orders.take(Variable::Cnt, b"127"), Err(too_long));
    assert_eq!(orders.policy, before);
}

#[test]
fn a_log_is_a_whole_path_that_fits() {
    let right = "must be a path from / on, of at most 1023 bytes";
    let longest = format!("/{}", "x".repeat(1022));
    for path in ["/", "/var/log/ka", &longest] {
        assert_eq!(taken(Variable::Log, path).unwrap().log, path.as_bytes());
    }
    for path in ["", "ka.log", "./ka", &format!("{longest}x"), &"x".repeat(1023)] {
        assert_eq!(taken(Variable::Log, path).unwrap_err(), right);
    }
}

#[test]
fn it_is_quiet_only_where_that_is_said() {
    assert!(values(&[("KA_QUIET", "1")]).is_quiet());
    assert!(!values(&[("KA_QUIET", "0")]).is_quiet() && !Values::default().is_quiet());
    let all = ["POLICY", "IDLE", "INTVL", "CNT", "USER_TIMEOUT", "MODE", "RULES", "SKIP", "LOG", "QUIET"];
    for (place, name) in all.iter().enumerate() {
        let name = format!("KA_{name}");
        let mut values = Values::default();
        assert!(values.keep(name.as_bytes(), b"value"));
        let variable = Variable::IN_ORDER.get(place).copied().unwrap_or(Variable::Quiet);
        assert_eq!((variable.name(), values.get(variable)), (name.as_bytes(), Some(&b"value"[..])));
    }
}
