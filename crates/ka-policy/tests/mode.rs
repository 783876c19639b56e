//! Tests the modes: the verdicts on calls of a program, and the values that are set on a socket.

use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use ka_core::{Config, SockOpt, Socket, Timer, UserTimeout};
use ka_policy::{Mode, Verdict, due, give, judge, user_timeout_limit};
use socket2::SockRef;

fn config(idle: i32, intvl: i32, cnt: i32) -> Config {
    Config::new(idle, intvl, cnt).unwrap()
}

/// Values around each limit of each option.
const VALUES: [i32; 17] =
    [i32::MIN, -1, 0, 1, 2, 5, 6, 7, 59, 60, 61, 127, 128, 32767, 32768, 120_001, i32::MAX];

#[test]
fn every_mode_passes_or_rejects_the_same_values_as_the_kernel() {
    let policy = config(60, 10, 6);
    for option in SockOpt::ALL {
        for value in VALUES {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (level, name) = option.level_and_name();
            let is_rejected = set(&listener, level, name, value).is_err();
            assert_eq!(judge(Mode::Default, &policy, option, value), Verdict::Pass);
            for mode in [Mode::Force, Mode::Floor] {
                let verdict = judge(mode, &policy, option, value);
                assert_eq!(verdict == Verdict::Reject, is_rejected, "{mode:?} {option} {value}");
            }
        }
    }
}

fn set(listener: &TcpListener, level: i32, name: i32, value: i32) -> std::io::Result<()> {
    let pointer = (&raw const value).cast();
    // SAFETY: the kernel reads 4 bytes of `value`.
    let result = unsafe { libc::setsockopt(listener.as_raw_fd(), level, name, pointer, 4) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn force_ignores_values_of_the_program() {
    let policy = config(60, 10, 6);
    let verdict = |option, value| judge(Mode::Force, &policy, option, value);
    assert_eq!(verdict(SockOpt::KeepAlive, 0), Verdict::Ignore);
    assert_eq!(verdict(SockOpt::KeepAlive, 1), Verdict::Pass);
    for (timer, value) in [(Timer::Idle, 600), (Timer::Idle, 60), (Timer::Intvl, 1), (Timer::Cnt, 127)] {
        assert_eq!(verdict(SockOpt::Timer(timer), value), Verdict::Ignore);
    }
    // The program may set a value that the policy does not name.
    let open = policy.without(Timer::Idle);
    assert_eq!(judge(Mode::Force, &open, SockOpt::Timer(Timer::Idle), 600), Verdict::Pass);
    let off = Config::KEEP.with_enabled(Some(false));
    assert_eq!(judge(Mode::Force, &off, SockOpt::KeepAlive, 0), Verdict::Pass);
    assert_eq!(verdict(SockOpt::Info, 0), Verdict::Pass);
}

#[test]
fn floor_allows_stricter_values() {
    let policy = config(60, 10, 6);
    let verdict = |option, value| judge(Mode::Floor, &policy, option, value);
    assert_eq!(verdict(SockOpt::KeepAlive, 0), Verdict::Ignore);
    assert_eq!(verdict(SockOpt::KeepAlive, 1), Verdict::Pass);
    for (timer, bound) in [(Timer::Idle, 60), (Timer::Intvl, 10), (Timer::Cnt, 6)] {
        assert_eq!(verdict(SockOpt::Timer(timer), bound - 1), Verdict::Pass);
        assert_eq!(verdict(SockOpt::Timer(timer), bound), Verdict::Pass);
        assert_eq!(verdict(SockOpt::Timer(timer), bound + 1), Verdict::Clamp(bound));
    }
}

#[test]
fn a_user_timeout_above_the_detection_time_is_clamped() {
    let policy = config(60, 10, 6);
    let timeout = SockOpt::Timer(Timer::UserTimeout);
    for mode in [Mode::Force, Mode::Floor] {
        assert_eq!(judge(mode, &policy, timeout, 0), Verdict::Pass);
        assert_eq!(judge(mode, &policy, timeout, 120_000), Verdict::Pass);
        assert_eq!(judge(mode, &policy, timeout, 120_001), Verdict::Clamp(120_000));
        for named in [UserTimeout::Milliseconds(9000), UserTimeout::Auto] {
            let policy = policy.with_user_timeout(named).unwrap();
            assert_eq!(judge(mode, &policy, timeout, 1), Verdict::Ignore);
        }
    }
    assert_eq!(user_timeout_limit(&policy.without(Timer::Cnt)), i32::MAX);
    assert_eq!(user_timeout_limit(&config(32767, 32767, 127)), i32::MAX);
}

#[test]
fn the_mode_decides_the_values_that_are_set() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket2 = SockRef::from(&listener);
    let socket = Socket::new(listener.as_raw_fd());
    let policy = config(60, 10, 6);
    socket.apply(&config(30, 20, 3)).unwrap();
    assert_eq!(due(socket, &policy, Mode::Force, true), Some(policy));
    assert_eq!(due(socket, &policy, Mode::Floor, true), Some(config(30, 10, 3)));
    assert_eq!(due(socket, &policy, Mode::Default, true), None);
    assert_eq!(due(socket, &policy, Mode::Default, false), Some(policy));
    // A user timeout that exceeds the detection time of the policy is shortened.
    socket2.set_tcp_user_timeout(Some(Duration::from_secs(900))).unwrap();
    assert_eq!(user_timeout_limit(&policy), 120_000);
    let due_now = due(socket, &policy, Mode::Force, true).unwrap();
    assert_eq!(give(socket, due_now, false), (due_now, Ok(())));
    assert_eq!(socket2.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
    // A user timeout that equals the detection time is not written.
    assert_eq!(due(socket, &policy, Mode::Force, true), Some(policy));
}

#[test]
fn modes_are_found_by_their_names() {
    for mode in Mode::ALL {
        assert_eq!(Mode::named(mode.name().as_bytes()), Some(mode));
    }
    assert_eq!(Mode::ALL.map(Mode::name), ["force", "floor", "default"]);
    assert_eq!(Mode::named(b"Floor"), None);
}

/// A policy that does not turn keepalive on changes a socket only in the force mode.
#[test]
fn only_force_turns_keepalive_off() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = Socket::new(listener.as_raw_fd());
    for policy in [Config::KEEP.with_enabled(Some(false)), config(30, 10, 6).with_enabled(None)] {
        for was_on in [false, true] {
            assert_eq!(due(socket, &policy, Mode::Force, was_on), Some(policy));
            assert_eq!(due(socket, &policy, Mode::Floor, was_on), None);
            assert_eq!(due(socket, &policy, Mode::Default, was_on), None);
        }
    }
}

/// With the values in force on the socket, an automatic user timeout would be too long.
#[test]
fn a_user_timeout_that_a_socket_cannot_have_is_left_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket2 = SockRef::from(&listener);
    Socket::new(listener.as_raw_fd()).apply(&Config::new(32767, 32767, 127).unwrap()).unwrap();
    socket2.set_keepalive(false).unwrap();
    let whole = Config::new(60, 10, 5).unwrap().with_user_timeout(UserTimeout::Auto).unwrap();
    let open = whole.without(Timer::Intvl).without(Timer::Cnt);
    let (given, result) = give(Socket::new(listener.as_raw_fd()), open, false);
    assert_eq!((given, result), (open.without(Timer::UserTimeout), Ok(())));
    assert_eq!((given.idle(), given.intvl(), given.cnt()), (Some(60), None, None));
    assert!(socket2.keepalive().unwrap());
    assert_eq!(socket2.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket2.tcp_user_timeout().unwrap(), None);
}
