//! setsockopt(2): the mode decides about the program's calls.
//!
//! A call that the kernel would reject must fail with the kernel's own error. So a call with a wrong argument is passed
//! on unchanged: a descriptor that is not TCP, a length below that of an int, an address that cannot be read, a value
//! out of range. For other calls [`ka_policy::judge`] decides.

#![expect(unsafe_code, reason = "it reads a value in the memory of the program")]

use core::ffi::c_void;

use ka_core::{SockOpt, Timer};
use ka_policy::{Action, Mode, Verdict};
use libc::{c_int, socklen_t};

use crate::log;
use crate::raw;
use crate::shim::{Shim, active};
use crate::sockets::{self, decide_now};

/// The action of the hook for a call of setsockopt(2).
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
pub enum Decision {
    /// Make the call unchanged.
    Make,
    /// Make the call unchanged. If it succeeds, call [`follow_up`].
    MakeAndFollowUp,
    /// Do not make the call, and report success.
    Succeed,
    /// Make the call with this value.
    MakeWith(c_int),
}

/// Decides about the program's `setsockopt(fd, level, name, value, size)`.
///
/// # Safety
/// The arguments may have any value.
pub unsafe fn judge(fd: c_int, level: c_int, name: c_int, value: *const c_void, size: socklen_t) -> Decision {
    sockets::before_use(fd);
    match (active(), SockOpt::of(level, name)) {
        // SAFETY: the arguments may have any value.
        (Some(shim), Some(option)) => unsafe { judge_keepalive(shim, fd, option, value, size) },
        _ => Decision::Make,
    }
}

#[cold]
unsafe fn judge_keepalive(
    shim: &Shim,
    fd: c_int,
    option: SockOpt,
    value: *const c_void,
    size: socklen_t,
) -> Decision {
    let length = size.cast_signed();
    if shim.policy.mode == Mode::Default {
        return if sockets::awaits_rules(fd) { Decision::MakeAndFollowUp } else { Decision::Make };
    }
    if length < size_of::<c_int>() as c_int || !sockets::is_tcp(fd) {
        return Decision::Make;
    }
    let config = match decide_now(shim, fd) {
        Some(Action::Apply(config)) => {
            // The socket must have the policy before a call on it is ignored.
            if !sockets::is_set_and_on(fd) {
                sockets::arrived(shim, fd);
            }
            config
        }
        // The socket got the policy when it connected. It has no peer yet by which a rule could decide.
        _ if sockets::is_set_and_on(fd) => shim.policy.config,
        // A rule leaves the socket alone, or connect or listen will decide.
        _ => return Decision::Make,
    };
    if !raw::is_readable_int(fd, value) {
        return Decision::Make;
    }
    // SAFETY: the kernel has just read an int there.
    let wanted = unsafe { value.cast::<c_int>().read_unaligned() };
    let answer = match shim.policy.judge(&config, option, wanted) {
        Verdict::Pass => return Decision::Make,
        Verdict::Reject => return Decision::MakeAndFollowUp,
        Verdict::Ignore if lacks(fd, option) => return Decision::Make,
        Verdict::Ignore => Decision::Succeed,
        Verdict::Clamp(limit) => Decision::MakeWith(limit),
    };
    if shim.log.is_some() {
        log::denied(shim, fd, option.name_bytes(), wanted);
    }
    answer
}

/// Returns whether a TCP socket lacks an option, so that the kernel rejects a call that would otherwise be ignored.
/// Multipath TCP lacks the user timeout. `TCP_RTO_MAX_MS` is missing more often, but calls that set it are not ignored.
fn lacks(fd: c_int, option: SockOpt) -> bool {
    option == SockOpt::Timer(Timer::UserTimeout)
        && ka_core::Socket::with_kernel(fd, raw::Raw).timer(Timer::UserTimeout).is_err()
}

/// Acts on a successful call of [`Decision::MakeAndFollowUp`]. In the default mode, the program has set an option,
/// which the shim records until the rules decide. In other modes, the kernel may have accepted a value out of range
/// (Multipath TCP), so the policy is applied again.
#[cold]
#[inline(never)]
pub fn follow_up(fd: c_int, level: c_int, name: c_int) {
    match (active(), SockOpt::of(level, name)) {
        (Some(shim), Some(option)) if shim.policy.mode == Mode::Default => sockets::record_option(fd, option),
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

    use super::{Decision, judge_keepalive};
    use crate::shim::tests::{POLICY, shim_with};
    use crate::sockets;

    fn tcp() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()
    }

    fn timer(timer: Timer) -> SockOpt {
        SockOpt::Timer(timer)
    }

    /// Returns the answer of a mode to a call of the program on a socket that has the policy.
    fn judged(mode: Mode, base: Config, socket: &Socket, option: SockOpt, wanted: c_int) -> Decision {
        let shim = shim_with(mode, base, "");
        sockets::arrived(&shim, socket.as_raw_fd());
        let value = (&raw const wanted).cast::<c_void>();
        // SAFETY: the arguments may have any value.
        unsafe { judge_keepalive(&shim, socket.as_raw_fd(), option, value, 4) }
    }

    #[test]
    fn force_reports_success_for_calls_that_it_ignores() {
        let socket = tcp();
        let force = |option, wanted| judged(Mode::Force, POLICY, &socket, option, wanted);
        assert_eq!(force(SockOpt::KeepAlive, 0), Decision::Succeed);
        assert_eq!(force(SockOpt::KeepAlive, 1), Decision::Make);
        for (which, wanted) in [(Timer::Idle, 600), (Timer::Intvl, 1), (Timer::Cnt, 127)] {
            assert_eq!(force(timer(which), wanted), Decision::Succeed);
        }
        for (which, wanted) in
            [(Timer::Idle, 0), (Timer::Intvl, 32768), (Timer::Cnt, 128), (Timer::UserTimeout, -1)]
        {
            assert_eq!(force(timer(which), wanted), Decision::MakeAndFollowUp);
        }
    }

    #[test]
    fn floor_allows_stricter_values_and_clamps_others() {
        let socket = tcp();
        let floor = |option, wanted| judged(Mode::Floor, POLICY, &socket, option, wanted);
        assert_eq!(floor(SockOpt::KeepAlive, 0), Decision::Succeed);
        assert_eq!(floor(SockOpt::KeepAlive, 1), Decision::Make);
        for (which, bound) in [(Timer::Idle, 60), (Timer::Intvl, 10), (Timer::Cnt, 6)] {
            assert_eq!(floor(timer(which), bound - 1), Decision::Make);
            assert_eq!(floor(timer(which), bound), Decision::Make);
            assert_eq!(floor(timer(which), bound + 1), Decision::MakeWith(bound));
        }
    }

    #[test]
    fn a_long_user_timeout_is_clamped_to_the_detection_time() {
        let socket = tcp();
        for mode in [Mode::Force, Mode::Floor] {
            let wish = |wanted| judged(mode, POLICY, &socket, timer(Timer::UserTimeout), wanted);
            assert_eq!(wish(0), Decision::Make);
            assert_eq!(wish(120_000), Decision::Make);
            assert_eq!(wish(120_001), Decision::MakeWith(120_000));
            let named = POLICY.with_user_timeout(UserTimeout::Milliseconds(9000)).unwrap();
            assert_eq!(judged(mode, named, &socket, timer(Timer::UserTimeout), 1), Decision::Succeed);
        }
        // Multipath TCP has no user timeout, so the kernel rejects the call.
        let Ok(multipath) =
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP)))
        else {
            return;
        };
        let named = POLICY.with_user_timeout(UserTimeout::Auto).unwrap();
        assert_eq!(judged(Mode::Force, named, &multipath, timer(Timer::UserTimeout), 1), Decision::Make);
    }

    #[test]
    fn invalid_calls_are_passed_to_the_kernel() {
        let socket = tcp();
        let shim = shim_with(Mode::Force, POLICY, "");
        let wanted: c_int = 0;
        let good = (&raw const wanted).cast::<c_void>();
        let judge = |fd, value, size: c_int| {
            // SAFETY: the arguments may have any value.
            unsafe { judge_keepalive(&shim, fd, SockOpt::KeepAlive, value, size.cast_unsigned()) }
        };
        let fd = socket.as_raw_fd();
        assert_eq!(judge(fd, good, 4), Decision::Succeed);
        assert_eq!(judge(fd, good, 5), Decision::Succeed);
        for (fd, value, size) in [
            (fd, good, 3),
            (fd, good, 0),
            (fd, good, -1),
            (fd, std::ptr::null(), 4),
            (fd, 8 as *const c_void, 4),
            (-1, good, 4),
            (Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().as_raw_fd(), good, 4),
        ] {
            assert_eq!(judge(fd, value, size), Decision::Make, "{fd} {value:?} {size}");
        }
        assert_eq!(judged(Mode::Default, POLICY, &socket, SockOpt::KeepAlive, 0), Decision::Make);
    }

    #[test]
    fn an_ignored_call_sets_the_policy_first() {
        // No hook has seen this socket. It must have the policy before the call is ignored.
        let socket = tcp();
        let shim = shim_with(Mode::Force, POLICY, "");
        let wanted: c_int = 0;
        // SAFETY: the arguments may have any value.
        let answer = unsafe {
            judge_keepalive(&shim, socket.as_raw_fd(), SockOpt::KeepAlive, (&raw const wanted).cast(), 4)
        };
        assert_eq!(answer, Decision::Succeed);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
    }

    #[test]
    fn calls_pass_until_a_rule_can_decide_by_the_peer() {
        let socket = tcp();
        let shim = shim_with(Mode::Force, POLICY, "rport=1-65535 skip");
        let wanted: c_int = 0;
        // SAFETY: the arguments may have any value.
        let judge = || unsafe {
            judge_keepalive(&shim, socket.as_raw_fd(), SockOpt::KeepAlive, (&raw const wanted).cast(), 4)
        };
        assert_eq!(judge(), Decision::Make);
        // After the socket has got a policy at the start of connect, the policy is enforced.
        sockets::arrived(&shim_with(Mode::Force, POLICY, ""), socket.as_raw_fd());
        assert_eq!(judge(), Decision::Succeed);
    }
}
