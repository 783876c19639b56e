//! setsockopt: what a mode lets the program do to its keepalive.
//!
//! A call that the kernel would refuse must get the kernel's own refusal, so whatever looks wrong here is handed on
//! as it came: a descriptor that is no TCP socket, a length below an int's, an address that cannot be read, a value
//! out of range. Only a call that the kernel would have granted is answered without it, or made with another value.

#![expect(unsafe_code, reason = "it reads a value of the program's")]

use core::ffi::c_void;

use ka_core::{Action, Config, Mode, SockOpt, Timer, UserTimeout};
use libc::{c_int, socklen_t};

use crate::log;
use crate::raw;
use crate::settings::{Settings, active};
use crate::sockets::{self, decide_now};

/// What to do with a call.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
pub(crate) enum Answer {
    /// Make it as it is.
    Make,
    /// Make it, and see to the socket if it succeeds: the kernel may have taken a value that it should not have; or
    /// the program's word is to be remembered until rules decide.
    MakeAndMend,
    /// Do not make it: it has succeeded.
    Granted,
    /// Make it with this value.
    MakeWith(c_int),
}

/// The option that a call is about, if it is one of keepalive's.
#[inline]
const fn option(level: c_int, name: c_int) -> Option<SockOpt> {
    Some(match (level, name) {
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE) => SockOpt::KeepAlive,
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => SockOpt::Timer(Timer::Idle),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => SockOpt::Timer(Timer::Intvl),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => SockOpt::Timer(Timer::Cnt),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => SockOpt::Timer(Timer::UserTimeout),
        _ => return None,
    })
}

/// What to do with the program's `setsockopt(fd, level, name, value, size)`.
///
/// # Safety
/// None of the arguments need be right.
pub(crate) unsafe fn judge(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    size: socklen_t,
) -> Answer {
    sockets::before_use(fd);
    match (active(), option(level, name)) {
        // SAFETY: none of the arguments need be right.
        (Some(settings), Some(option)) => unsafe { judge_keepalive(settings, fd, option, value, size) },
        _ => Answer::Make,
    }
}

#[cold]
unsafe fn judge_keepalive(
    settings: &Settings,
    fd: c_int,
    option: SockOpt,
    value: *const c_void,
    size: socklen_t,
) -> Answer {
    let length = size.cast_signed();
    if settings.mode == Mode::Default {
        return if sockets::waits(fd) { Answer::MakeAndMend } else { Answer::Make };
    }
    if length < size_of::<c_int>() as c_int || !sockets::is_tcp(fd) {
        return Answer::Make;
    }
    let policy = match decide_now(settings, fd) {
        Some(Action::Apply(policy)) => {
            // What is granted without the kernel must be there.
            if !sockets::is_held(fd) {
                sockets::arrived(settings, fd);
            }
            policy
        }
        // It was given one when it connected: that holds while it has no peer to be asked for yet.
        _ if sockets::is_held(fd) => settings.base,
        // A rule leaves it alone, or connect or listen will decide.
        _ => return Answer::Make,
    };
    if !raw::is_readable_int(fd, value) {
        return Answer::Make;
    }
    // SAFETY: the kernel has just read an int there.
    let wanted = unsafe { value.cast::<c_int>().read_unaligned() };
    let answer = match option {
        SockOpt::Timer(timer) if !timer.accepts(wanted) => return Answer::MakeAndMend,
        SockOpt::Timer(Timer::UserTimeout) => user_timeout(fd, &policy, wanted),
        SockOpt::Timer(timer) if settings.mode == Mode::Floor => match policy.timer(timer) {
            Some(bound) if wanted > bound => Answer::MakeWith(bound),
            _ => Answer::Make,
        },
        SockOpt::KeepAlive if settings.mode == Mode::Floor && wanted != 0 => Answer::Make,
        _ => Answer::Granted,
    };
    if !matches!(answer, Answer::Make) && settings.log.is_some() {
        log::denied(settings, fd, name(option), wanted);
    }
    answer
}

/// A user timeout that the policy names stays; another may be as long as the policy's own detection takes.
fn user_timeout(fd: c_int, policy: &Config, wanted: c_int) -> Answer {
    if policy.user_timeout() != UserTimeout::Keep {
        // Multipath TCP has none, and says so.
        let has_one = ka_core::Socket::with_kernel(fd, raw::Raw).timer(Timer::UserTimeout).is_ok();
        return if has_one { Answer::Granted } else { Answer::Make };
    }
    let latest = policy.latest_user_timeout();
    if wanted > latest { Answer::MakeWith(latest) } else { Answer::Make }
}

/// After a call that has succeeded: one that the kernel was expected to refuse, or the program's word.
#[cold]
#[inline(never)]
pub(crate) fn mend(fd: c_int, level: c_int, name: c_int) {
    match (active(), option(level, name)) {
        (Some(settings), Some(option)) if settings.mode == Mode::Default => sockets::heed(fd, option),
        (Some(settings), _) => sockets::arrived(settings, fd),
        _ => {}
    }
}

const fn name(option: SockOpt) -> &'static [u8] {
    match option {
        SockOpt::Timer(Timer::Idle) => b"TCP_KEEPIDLE",
        SockOpt::Timer(Timer::Intvl) => b"TCP_KEEPINTVL",
        SockOpt::Timer(Timer::Cnt) => b"TCP_KEEPCNT",
        SockOpt::Timer(Timer::UserTimeout) => b"TCP_USER_TIMEOUT",
        _ => b"SO_KEEPALIVE",
    }
}

#[cfg(test)]
mod tests {
    use core::ffi::c_void;

    use ka_core::{Config, Mode, SockOpt, Timer, UserTimeout};
    use libc::c_int;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::os::fd::AsRawFd as _;

    use super::{Answer, judge_keepalive, name, option};
    use crate::settings::tests::{POLICY, settings};
    use crate::sockets;

    const MPTCP: c_int = 262;

    fn tcp() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    fn timer(timer: Timer) -> SockOpt {
        SockOpt::Timer(timer)
    }

    /// What a mode makes of a program's wish, on a socket that has been seen to.
    fn judged(mode: Mode, base: Config, socket: &Socket, option: SockOpt, wanted: c_int) -> Answer {
        let told = settings(mode, base, "");
        sockets::arrived(&told, socket.as_raw_fd());
        let value = (&raw const wanted).cast::<c_void>();
        // SAFETY: none of the arguments need be right, and these are.
        unsafe { judge_keepalive(&told, socket.as_raw_fd(), option, value, 4) }
    }

    #[test]
    fn the_options_of_keepalive_and_no_others() {
        for each in [SockOpt::KeepAlive]
            .into_iter()
            .chain([Timer::Idle, Timer::Intvl, Timer::Cnt, Timer::UserTimeout].map(SockOpt::Timer))
        {
            let (level, number) = each.level_and_name();
            assert_eq!(option(level, number), Some(each));
            assert_eq!(name(each), each.to_string().as_bytes());
        }
        assert_eq!(option(libc::SOL_SOCKET, libc::TCP_KEEPIDLE), None);
        assert_eq!(option(libc::IPPROTO_TCP, libc::TCP_NODELAY), None);
        assert_eq!(option(libc::IPPROTO_IP, libc::SO_KEEPALIVE), None);
    }

    #[test]
    fn force_grants_what_it_does_not_do() {
        let socket = tcp();
        let force = |option, wanted| judged(Mode::Force, POLICY, &socket, option, wanted);
        for wanted in [0, 1] {
            assert_eq!(force(SockOpt::KeepAlive, wanted), Answer::Granted);
        }
        for (which, wanted) in [(Timer::Idle, 600), (Timer::Intvl, 1), (Timer::Cnt, 127)] {
            assert_eq!(force(timer(which), wanted), Answer::Granted);
        }
        for (which, wanted) in
            [(Timer::Idle, 0), (Timer::Intvl, 32768), (Timer::Cnt, 128), (Timer::UserTimeout, -1)]
        {
            assert_eq!(force(timer(which), wanted), Answer::MakeAndMend);
        }
    }

    #[test]
    fn floor_lets_it_be_stricter() {
        let socket = tcp();
        let floor = |option, wanted| judged(Mode::Floor, POLICY, &socket, option, wanted);
        assert_eq!(floor(SockOpt::KeepAlive, 0), Answer::Granted);
        assert_eq!(floor(SockOpt::KeepAlive, 1), Answer::Make);
        for (which, bound) in [(Timer::Idle, 60), (Timer::Intvl, 10), (Timer::Cnt, 6)] {
            assert_eq!(floor(timer(which), bound - 1), Answer::Make);
            assert_eq!(floor(timer(which), bound), Answer::Make);
            assert_eq!(floor(timer(which), bound + 1), Answer::MakeWith(bound));
        }
    }

    #[test]
    fn a_user_timeout_is_at_most_what_the_policy_takes() {
        let socket = tcp();
        for mode in [Mode::Force, Mode::Floor] {
            let wish = |wanted| judged(mode, POLICY, &socket, timer(Timer::UserTimeout), wanted);
            assert_eq!(wish(0), Answer::Make);
            assert_eq!(wish(120_000), Answer::Make);
            assert_eq!(wish(120_001), Answer::MakeWith(120_000));
            let named = POLICY.with_user_timeout(UserTimeout::Milliseconds(9000)).unwrap();
            assert_eq!(judged(mode, named, &socket, timer(Timer::UserTimeout), 1), Answer::Granted);
        }
        // Multipath TCP has none, and the kernel says so.
        let Ok(multipath) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP))) else {
            return;
        };
        let named = POLICY.with_user_timeout(UserTimeout::Auto).unwrap();
        assert_eq!(judged(Mode::Force, named, &multipath, timer(Timer::UserTimeout), 1), Answer::Make);
    }

    #[test]
    fn what_the_kernel_refuses_is_the_kernel_s() {
        let socket = tcp();
        let told = settings(Mode::Force, POLICY, "");
        let wanted: c_int = 0;
        let good = (&raw const wanted).cast::<c_void>();
        let judge = |fd, value, size: c_int| {
            // SAFETY: none of the arguments need be right.
            unsafe { judge_keepalive(&told, fd, SockOpt::KeepAlive, value, size.cast_unsigned()) }
        };
        let fd = socket.as_raw_fd();
        assert_eq!(judge(fd, good, 4), Answer::Granted);
        assert_eq!(judge(fd, good, 5), Answer::Granted);
        for (fd, value, size) in [
            (fd, good, 3),
            (fd, good, 0),
            (fd, good, -1),
            (fd, std::ptr::null(), 4),
            (fd, 8 as *const c_void, 4),
            (-1, good, 4),
            (Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().as_raw_fd(), good, 4),
        ] {
            assert_eq!(judge(fd, value, size), Answer::Make, "{fd} {value:?} {size}");
        }
        assert_eq!(judged(Mode::Default, POLICY, &socket, SockOpt::KeepAlive, 0), Answer::Make);
    }

    #[test]
    fn what_is_granted_is_there() {
        // Made by nobody who was seen: it has the policy when it is told that it has.
        let socket = tcp();
        let told = settings(Mode::Force, POLICY, "");
        let wanted: c_int = 1;
        // SAFETY: none of the arguments need be right.
        let answer = unsafe {
            judge_keepalive(&told, socket.as_raw_fd(), SockOpt::KeepAlive, (&raw const wanted).cast(), 4)
        };
        assert_eq!(answer, Answer::Granted);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
    }

    #[test]
    fn where_a_rule_waits_for_the_peer_the_program_has_its_way() {
        let socket = tcp();
        let told = settings(Mode::Force, POLICY, "rport=1-65535 skip");
        let wanted: c_int = 0;
        // SAFETY: none of the arguments need be right.
        let judge = || unsafe {
            judge_keepalive(&told, socket.as_raw_fd(), SockOpt::KeepAlive, (&raw const wanted).cast(), 4)
        };
        assert_eq!(judge(), Answer::Make);
        // But not where it was given one when it began to connect.
        sockets::arrived(&settings(Mode::Force, POLICY, ""), socket.as_raw_fd());
        assert_eq!(judge(), Answer::Granted);
    }
}
