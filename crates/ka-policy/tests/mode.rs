//! Tests the modes: the verdicts on calls of a program, and the values that are set on a socket.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ka_core::{Config, Errno, Error, Kernel, Libc, RtoMax, SockOpt, Socket, Timer, UserTimeout};
use ka_policy::{Mode, Verdict, due, give, judge, user_timeout_limit};
use socket2::SockRef;

fn config(idle: i32, intvl: i32, cnt: i32) -> Config {
    Config::new(idle, intvl, cnt).unwrap()
}

/// Values around each limit of each option.
const VALUES: [i32; 20] = [
    i32::MIN,
    -1,
    0,
    1,
    2,
    5,
    6,
    7,
    59,
    60,
    61,
    127,
    128,
    999,
    1000,
    32767,
    32768,
    120_000,
    120_001,
    i32::MAX,
];

#[test]
fn every_mode_passes_or_rejects_the_same_values_as_the_kernel() {
    let policy = config(60, 10, 6);
    for option in SockOpt::ALL {
        if option == SockOpt::Timer(Timer::RtoMax) && lacks_rto_max() {
            continue;
        }
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

/// `TCP_RTO_MAX_MS` of linux/tcp.h
const RTO_MAX: i32 = 44;

/// Returns the longest time between two retransmissions, read by getsockopt(2), or the errno.
fn rto_max(socket: &impl AsRawFd) -> Result<i32, i32> {
    let (mut value, mut size) = (0_i32, 4);
    let pointer = (&raw mut value).cast();
    // SAFETY: `value` has `size` bytes.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX, pointer, &raw mut size) }
    {
        0 => Ok(value),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// Returns whether the kernel is older than Linux 6.15. If it is, a message says that the test is skipped.
fn lacks_rto_max() -> bool {
    let lacks = rto_max(&TcpListener::bind("127.0.0.1:0").unwrap()).is_err();
    if lacks {
        eprintln!("skipped: this kernel lacks TCP_RTO_MAX_MS");
    }
    lacks
}

fn with_rto_max(config: Config, milliseconds: i32) -> Config {
    config.with_rto_max(RtoMax::Milliseconds(milliseconds)).unwrap()
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

/// A shorter time detects a dead peer earlier, so the program may set it in every mode.
#[test]
fn a_program_may_lower_rto_max_but_not_raise_it() {
    let policy = with_rto_max(config(60, 10, 6), 3000);
    let option = SockOpt::Timer(Timer::RtoMax);
    for mode in [Mode::Force, Mode::Floor] {
        for (value, verdict) in [
            (999, Verdict::Reject),
            (1000, Verdict::Pass),
            (2999, Verdict::Pass),
            (3000, Verdict::Pass),
            (3001, Verdict::Clamp(3000)),
            (120_000, Verdict::Clamp(3000)),
            (120_001, Verdict::Reject),
        ] {
            assert_eq!(judge(mode, &policy, option, value), verdict, "{mode:?} {value}");
            assert_eq!(judge(Mode::Default, &policy, option, value), Verdict::Pass);
        }
        // The program may set a value that the policy does not name.
        assert_eq!(judge(mode, &config(60, 10, 6), option, 120_000), Verdict::Pass);
        assert_eq!(judge(mode, &config(60, 10, 6), option, 999), Verdict::Reject);
    }
}

#[test]
fn a_lower_rto_max_of_the_socket_stays() {
    if lacks_rto_max() {
        return;
    }
    let policy = with_rto_max(config(60, 10, 6), 3000);
    for (own, given) in [(1000, 1000), (2999, 2999), (3000, 3000), (3020, 3000), (120_000, 3000)] {
        for mode in [Mode::Force, Mode::Floor] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = Socket::new(listener.as_raw_fd());
            set(&listener, libc::IPPROTO_TCP, RTO_MAX, own).unwrap();
            // The kernel rounds the value up to a multiple of its tick.
            let own = rto_max(&listener).unwrap();
            let given = given.max(own.min(3000));
            let due = due(socket, &policy, mode, true).unwrap();
            assert_eq!(due.timer(Timer::RtoMax), Some(given), "{mode:?} {own}");
            assert_eq!(give(socket, due, false), (due, Ok(())));
            assert_eq!(rto_max(&listener), Ok(given), "{mode:?} {own}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set(&listener, libc::IPPROTO_TCP, RTO_MAX, own).unwrap();
        let socket = Socket::new(listener.as_raw_fd());
        assert_eq!(due(socket, &policy, Mode::Default, true), None);
        assert_eq!(due(socket, &policy, Mode::Default, false), Some(policy));
    }
    // A policy that does not name it leaves it alone.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set(&listener, libc::IPPROTO_TCP, RTO_MAX, 5000).unwrap();
    let socket = Socket::new(listener.as_raw_fd());
    for mode in [Mode::Force, Mode::Floor] {
        let due = due(socket, &config(60, 10, 6), mode, false).unwrap();
        assert_eq!(due.rto_max(), RtoMax::Keep);
        give(socket, due, false).1.unwrap();
        assert_eq!(rto_max(&listener), Ok(5000));
    }
}

/// A kernel that lacks the options of these timers for a socket.
#[derive(Clone, Copy)]
struct Lacking<'a>(&'a [Timer]);

impl Lacking<'_> {
    fn check(&self, option: SockOpt) -> Result<(), Errno> {
        let lacks = matches!(option, SockOpt::Timer(timer) if self.0.contains(&timer));
        if lacks { Err(Errno(libc::ENOPROTOOPT)) } else { Ok(()) }
    }
}

impl Kernel for Lacking<'_> {
    fn get(&self, fd: i32, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        self.check(option).and_then(|()| Libc.get(fd, option, value))
    }

    fn set(&self, fd: i32, option: SockOpt, value: i32) -> Result<(), Errno> {
        self.check(option).and_then(|()| Libc.set(fd, option, value))
    }
}

/// A Multipath TCP socket has neither of the two values. Before Linux 6.15, TCP lacks `TCP_RTO_MAX_MS`.
#[test]
fn values_that_a_socket_lacks_are_left_out() {
    let whole =
        with_rto_max(config(60, 10, 6).with_user_timeout(UserTimeout::Milliseconds(9000)).unwrap(), 2000);
    let automatic = whole.with_user_timeout(UserTimeout::Auto).unwrap().with_rto_max(RtoMax::Auto).unwrap();
    for (policy, fresh) in [(whole, true), (whole, false), (automatic, true), (automatic, false)] {
        for lacking in [&[Timer::RtoMax][..], &[Timer::UserTimeout, Timer::RtoMax]] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = Socket::with_kernel(listener.as_raw_fd(), Lacking(lacking));
            let rest = lacking.iter().fold(policy, |policy, timer| policy.without(*timer));
            assert_eq!(give(socket, policy, fresh), (rest, Ok::<(), Error>(())));
            assert!(SockRef::from(&listener).keepalive().unwrap());
            assert_eq!(SockRef::from(&listener).tcp_keepalive_retries().unwrap(), 6);
            let has_timeout = SockRef::from(&listener).tcp_user_timeout().unwrap().is_some();
            assert_eq!(has_timeout, lacking.len() == 1);
        }
    }
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
