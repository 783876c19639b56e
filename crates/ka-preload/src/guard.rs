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
pub(crate) enum Answer {
    /// Make it as it is.
    Make,
    /// Make it, and see to the socket afterwards: the kernel may have taken a value that it should not have.
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
#[inline(never)]
pub(crate) unsafe fn judge(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    size: socklen_t,
) -> Answer {
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
    if settings.mode == Mode::Default || length < size_of::<c_int>() as c_int || !sockets::is_tcp(fd) {
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
    if !matches!(answer, Answer::Make) && settings.log.as_c_str().is_some() {
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

/// After a call that the kernel was expected to refuse.
#[cold]
pub(crate) fn mend(fd: c_int) {
    if let Some(settings) = active() {
        sockets::arrived(settings, fd);
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
