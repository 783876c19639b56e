//! setsockopt(2): the mode decides about the program's calls.
//!
//! A call that the kernel would reject must fail with the kernel's own error. So a call with a wrong argument is passed
//! on unchanged: a descriptor that is not TCP, a length below that of an int, an address that cannot be read, a value
//! out of range. For other calls [`ka_policy::judge`] decides.

#![expect(unsafe_code, reason = "it reads a value of the program's")]

use core::ffi::c_void;

use ka_core::{SockOpt, Timer};
use ka_policy::{Action, Mode, Verdict};
use libc::{c_int, socklen_t};

use crate::log;
use crate::raw;
use crate::shim::{Shim, active};
use crate::sockets::{self, decide_now};

/// What the hook does with a call.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
pub enum Answer {
    /// Make it unchanged.
    Make,
    /// Make it unchanged. If it succeeds, call [`mend`].
    MakeAndMend,
    /// Do not make it, and report success.
    Succeed,
    /// Make it with this value.
    MakeWith(c_int),
}

/// Decides about the program's `setsockopt(fd, level, name, value, size)`.
///
/// # Safety
/// None of the arguments need be right.
pub unsafe fn judge(fd: c_int, level: c_int, name: c_int, value: *const c_void, size: socklen_t) -> Answer {
    sockets::before_use(fd);
    match (active(), SockOpt::of(level, name)) {
        // SAFETY: none of the arguments need be right.
        (Some(shim), Some(option)) => unsafe { judge_keepalive(shim, fd, option, value, size) },
        _ => Answer::Make,
    }
}

#[cold]
unsafe fn judge_keepalive(
    shim: &Shim,
    fd: c_int,
    option: SockOpt,
    value: *const c_void,
    size: socklen_t,
) -> Answer {
    let length = size.cast_signed();
    if shim.policy.mode == Mode::Default {
        return if sockets::waits(fd) { Answer::MakeAndMend } else { Answer::Make };
    }
    if length < size_of::<c_int>() as c_int || !sockets::is_tcp(fd) {
        return Answer::Make;
    }
    let config = match decide_now(shim, fd) {
        Some(Action::Apply(config)) => {
            // The socket must have the policy before a call on it is ignored.
            if !sockets::is_held(fd) {
                sockets::arrived(shim, fd);
            }
            config
        }
        // It got the policy when it connected, and has no peer yet by which a rule could decide.
        _ if sockets::is_held(fd) => shim.policy.config,
        // A rule leaves it alone, or connect or listen will decide.
        _ => return Answer::Make,
    };
    if !raw::is_readable_int(fd, value) {
        return Answer::Make;
    }
    // SAFETY: the kernel has just read an int there.
    let wanted = unsafe { value.cast::<c_int>().read_unaligned() };
    let answer = match shim.policy.judge(&config, option, wanted) {
        Verdict::Pass => return Answer::Make,
        Verdict::Reject => return Answer::MakeAndMend,
        Verdict::Ignore if lacks(fd, option) => return Answer::Make,
        Verdict::Ignore => Answer::Succeed,
        Verdict::Clamp(limit) => Answer::MakeWith(limit),
    };
    if shim.log.is_some() {
        log::denied(shim, fd, option.name_bytes(), wanted);
    }
    answer
}

/// Returns whether a TCP socket does not have an option: the user timeout of Multipath TCP. The kernel then rejects the
/// call.
fn lacks(fd: c_int, option: SockOpt) -> bool {
    option == SockOpt::Timer(Timer::UserTimeout)
        && ka_core::Socket::with_kernel(fd, raw::Raw).timer(Timer::UserTimeout).is_err()
}

/// Called after a call has succeeded. Either the kernel has accepted a value that is out of range (Multipath TCP), and the
/// policy is applied again. Or the program has set an option that the shim must remember until rules decide.
#[cold]
#[inline(never)]
pub fn mend(fd: c_int, level: c_int, name: c_int) {
    match (active(), SockOpt::of(level, name)) {
        (Some(shim), Some(option)) if shim.policy.mode == Mode::Default => sockets::heed(fd, option),
        (Some(shim), _) => sockets::arrived(shim, fd),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use core::ffi::c_void;

    use ka_core::{Config, SockOpt, Timer, UserTimeout};
    use ka_policy::Mode;
    use libc::c_int;
    use socket2::{Domain, Protocol, Socket, Type};
    use std::os::fd::AsRawFd as _;

    use super::{Answer, judge_keepalive};
    use crate::shim::tests::{POLICY, shim};
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
        let told = shim(mode, base, "");
        sockets::arrived(&told, socket.as_raw_fd());
        let value = (&raw const wanted).cast::<c_void>();
        // SAFETY: none of the arguments need be right, and these are.
        unsafe { judge_keepalive(&told, socket.as_raw_fd(), option, value, 4) }
    }

    #[test]
    fn force_grants_what_it_does_not_do() {
        let socket = tcp();
        let force = |option, wanted| judged(Mode::Force, POLICY, &socket, option, wanted);
        assert_eq!(force(SockOpt::KeepAlive, 0), Answer::Succeed);
        assert_eq!(force(SockOpt::KeepAlive, 1), Answer::Make);
        for (which, wanted) in [(Timer::Idle, 600), (Timer::Intvl, 1), (Timer::Cnt, 127)] {
            assert_eq!(force(timer(which), wanted), Answer::Succeed);
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
        assert_eq!(floor(SockOpt::KeepAlive, 0), Answer::Succeed);
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
            assert_eq!(judged(mode, named, &socket, timer(Timer::UserTimeout), 1), Answer::Succeed);
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
        let told = shim(Mode::Force, POLICY, "");
        let wanted: c_int = 0;
        let good = (&raw const wanted).cast::<c_void>();
        let judge = |fd, value, size: c_int| {
            // SAFETY: none of the arguments need be right.
            unsafe { judge_keepalive(&told, fd, SockOpt::KeepAlive, value, size.cast_unsigned()) }
        };
        let fd = socket.as_raw_fd();
        assert_eq!(judge(fd, good, 4), Answer::Succeed);
        assert_eq!(judge(fd, good, 5), Answer::Succeed);
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
        let told = shim(Mode::Force, POLICY, "");
        let wanted: c_int = 0;
        // SAFETY: none of the arguments need be right.
        let answer = unsafe {
            judge_keepalive(&told, socket.as_raw_fd(), SockOpt::KeepAlive, (&raw const wanted).cast(), 4)
        };
        assert_eq!(answer, Answer::Succeed);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
    }

    #[test]
    fn where_a_rule_waits_for_the_peer_the_program_has_its_way() {
        let socket = tcp();
        let told = shim(Mode::Force, POLICY, "rport=1-65535 skip");
        let wanted: c_int = 0;
        // SAFETY: none of the arguments need be right.
        let judge = || unsafe {
            judge_keepalive(&told, socket.as_raw_fd(), SockOpt::KeepAlive, (&raw const wanted).cast(), 4)
        };
        assert_eq!(judge(), Answer::Make);
        // But not where it was given one when it began to connect.
        sockets::arrived(&shim(Mode::Force, POLICY, ""), socket.as_raw_fd());
        assert_eq!(judge(), Answer::Succeed);
    }
}
