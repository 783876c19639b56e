//! Keepalive of a socket, call by call.

#![expect(unsafe_code, reason = "it is what C calls")]

use ka_core::{Config, Errno, Socket, Timer};
use libc::c_int;

use crate::config::{KA_KEEP, ka_config, named, user_timeout};
use crate::errno::{EINVAL, answer};

/// Turns keepalive on: where setsockopt(2) stood four times.
///
///   fd     a TCP or MPTCP socket in any state. What a listener accepts inherits what it has at the
///          handshake, so a server sets its listener and pays nothing per connection.
///   idle   s, 1..KA_IDLE_MAX: how long the connection is idle before the first probe: since data or an
///          acknowledgement last came in. What is sent counts through its acknowledgement. TCP_KEEPIDLE
///   intvl  s, 1..KA_INTVL_MAX: from one unanswered probe to the next. Let it be no longer than idle: else it is
///          also the time from an answered probe to the next. TCP_KEEPINTVL
///   cnt    probes, 1..KA_CNT_MAX: so many without an answer end the connection. TCP_KEEPCNT
///
/// Each may be KA_KEEP: it stays as it is, which for a fresh socket is the sysctl net.ipv4.tcp_keepalive_*.
/// A dead peer is found after idle + intvl * cnt seconds, or up to an eighth later (ka_detect_time): then the
/// socket is readable and read(2) fails with ETIMEDOUT, or with EHOSTUNREACH or ENETUNREACH where data was in
/// flight and the network said so (what it says of a probe, the kernel ignores). A peer that restarted answers the
/// first probe with a reset: ECONNRESET.
///
/// On a socket that has keepalive off, this makes 5 system calls and turns it on last, so that nothing is
/// probed early. On one that has it on, it writes only what differs: calling it again and again is harmless.
///
/// Returns 0, or -1 with errno:
///   EINVAL       a value out of its range.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but not TCP: UDP, unix, raw, netlink, vsock.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
///   What a security policy answers, as EPERM.
/// After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
/// one that followed a sysctl stays at that value, or keeps the new one where the sysctl's cannot be set. If it was
/// off, the timers, dormant then, may have changed.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_enable(fd: c_int, idle: c_int, intvl: c_int, cnt: c_int) -> c_int {
    answer(|| {
        let config = Config::KEEP
            .with_enabled(Some(true))
            .with_idle(named(idle))?
            .with_intvl(named(intvl))?
            .with_cnt(named(cnt))?;
        apply(fd, &config)
    })
}

/// Turns keepalive off. The timers keep their values, so that ka_enable with KA_KEEP brings them back.
///
///   fd     a TCP or MPTCP socket in any state.
///
/// Returns 0, also where it was off, or -1 with errno: EBADF, ENOTSOCK, ENOPROTOOPT or a security policy's, as
/// ka_enable. After a failure the socket is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_disable(fd: c_int) -> c_int {
    answer(|| apply(fd, &Config::KEEP.with_enabled(Some(false))))
}

/// Says whether keepalive is on.
///
///   fd     a TCP or MPTCP socket in any state.
///
/// Returns 1 or 0, or -1 with errno: EBADF, ENOTSOCK or ENOPROTOOPT, as ka_enable. (getsockopt(2) with
/// SO_KEEPALIVE succeeds on UDP and unix sockets too; this does not.)
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_is_enabled(fd: c_int) -> c_int {
    answer(|| Ok(Socket::new(fd).is_enabled()?.into()))
}

/// Gets how long the connection is idle before the first probe, whether keepalive is on or off.
///
///   fd       a TCP or MPTCP socket in any state.
///   seconds  where to put it: what is in force, the sysctl net.ipv4.tcp_keepalive_time where nothing was set.
///            A sysctl may hold what could not be set on a socket, as 86400, 0 or -1.
///
/// Returns 0, or -1 with errno: EINVAL (seconds is NULL), EBADF, ENOTSOCK, ENOPROTOOPT or EOPNOTSUPP, as
/// ka_enable. After a failure *seconds is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_idle(fd: c_int, seconds: *mut c_int) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { get(fd, Timer::Idle, seconds) }
}

/// Gets the time from one unanswered probe to the next, whether keepalive is on or off.
///
///   fd       a TCP or MPTCP socket in any state.
///   seconds  where to put it: what is in force, the sysctl net.ipv4.tcp_keepalive_intvl where nothing was set.
///
/// Returns 0, or -1 with errno, as ka_get_idle. After a failure *seconds is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_intvl(fd: c_int, seconds: *mut c_int) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { get(fd, Timer::Intvl, seconds) }
}

/// Gets how many probes without an answer end the connection, whether keepalive is on or off.
///
///   fd      a TCP or MPTCP socket in any state.
///   probes  where to put it: what is in force, the sysctl net.ipv4.tcp_keepalive_probes where nothing was set.
///
/// Returns 0, or -1 with errno, as ka_get_idle. After a failure *probes is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_cnt(fd: c_int, probes: *mut c_int) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { get(fd, Timer::Cnt, probes) }
}

/// Gets the user timeout: how long sent data, or keepalive probes, may stay unacknowledged. TCP_USER_TIMEOUT
///
///   fd            a TCP socket in any state.
///   milliseconds  where to put it; 0 is the kernel's own rule (net.ipv4.tcp_retries2 for data, cnt for probes).
///
/// Returns 0, or -1 with errno:
///   EINVAL       milliseconds is NULL.
///   EOPNOTSUPP   an MPTCP socket, unless it has fallen back to TCP: the kernel cannot say.
///   EBADF, ENOTSOCK, ENOPROTOOPT, as ka_enable.
/// After a failure *milliseconds is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_user_timeout(fd: c_int, milliseconds: *mut c_int) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { get(fd, Timer::UserTimeout, milliseconds) }
}

/// Sets the user timeout: how long sent data, or keepalive probes, may stay unacknowledged. RFC 5482
///
/// Unacknowledged data suspends keepalive, so a peer that dies while data is on its way is found only by
/// retransmission, after a quarter of an hour, or by this. Two things to know first: on an idle connection it
/// takes the place of cnt (probes end the connection at the first one that is due when the time is over), and
/// it ends a connection to a healthy peer that keeps its window closed for so long.
///
///   fd            a TCP socket in any state.
///   milliseconds  0..2147483647; 0 is the kernel's own rule; KA_AUTO is 1000 * (idle + intvl * cnt) of the
///                 values in force, so that a busy connection ends when an idle one would; KA_KEEP changes nothing.
///
/// Returns 0, or -1 with errno:
///   EINVAL       milliseconds out of range, or KA_AUTO where that would be more than 2147483647 or less than 1.
///   EOPNOTSUPP   an MPTCP socket, unless it has fallen back to TCP, whatever milliseconds is but KA_KEEP.
///   EBADF, ENOTSOCK, ENOPROTOOPT or a security policy's, as ka_enable.
/// After a failure the socket is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_set_user_timeout(fd: c_int, milliseconds: c_int) -> c_int {
    answer(|| apply(fd, &Config::KEEP.with_user_timeout(user_timeout(milliseconds))?))
}

/// Sets what the config names, and leaves the rest: ka_enable, with all there is to say.
///
///   fd      a TCP or MPTCP socket in any state.
///   config  what to set; each value may be KA_KEEP. Begin with KA_CONFIG_INIT.
///
/// It was off, and enabled is 1: the timers are written, then keepalive is turned on. It was on: what is named
/// is compared and only what differs is written; where intvl or cnt changed, idle is written after them, since
/// only that re-arms the running timer. Where idle is KA_KEEP, that is the value in force, which from then on no
/// longer follows the sysctl. enabled is 0: keepalive goes off first, then the timers are written.
///
/// Returns 0, or -1 with errno; arguments are checked before the descriptor, and the descriptor before what
/// depends on its state:
///   EINVAL       config is NULL; its size is not a multiple of 4 from 8 up; a value is out of its range (zero in
///                idle, intvl and cnt is what a config made without KA_CONFIG_INIT has); KA_AUTO would be
///                more than 2147483647 or less than 1.
///   E2BIG        config is larger than this version's and asks in its tail for something: a word that is
///                not KA_KEEP. Or its size is beyond 4096.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but not TCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket: any user_timeout, 0 too, on an MPTCP
///                socket that has not fallen back to TCP.
///   What a security policy answers, as EPERM.
/// After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
/// one that followed a sysctl stays at that value, or keeps the new one where the sysctl's cannot be set. If it was
/// off, idle, intvl and cnt, dormant then, may have changed; user_timeout, which rules data whether keepalive is on or
/// off, has not.
///
/// Thread-safe, async-signal-safe, fork-safe. Two threads that set different things on one socket at once leave
/// a mixture.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_apply(fd: c_int, config: *const ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    answer(|| apply(fd, &unsafe { ka_config::read(config) }?))
}

/// Gets all that is in force for keepalive.
///
///   fd      a TCP or MPTCP socket in any state.
///   config  where to put it; its size must be set (KA_CONFIG_INIT). enabled is 1 or 0; the timers are what is
///           in force, the sysctls where nothing was set; user_timeout is KA_KEEP where the kernel has
///           none to tell, as on MPTCP that has not fallen back to TCP.
///
/// Given to ka_apply, the result sets the same again. But a sysctl may hold what could not be set on a socket:
/// 86400 is then EINVAL there, and -1, which is KA_KEEP, leaves the sysctl in force.
///
/// Returns 0, or -1 with errno: EINVAL (config is NULL, or its size is not a multiple of 4 from 8 up), EBADF,
/// ENOTSOCK, ENOPROTOOPT or EOPNOTSUPP, as ka_apply. After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_query(fd: c_int, config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe {
        ka_config::fill(config, || {
            let settings = Socket::new(fd).settings()?;
            Ok([
                settings.enabled.into(),
                settings.idle,
                settings.intvl,
                settings.cnt,
                settings.user_timeout.unwrap_or(KA_KEEP),
            ])
        })
    }
}

fn apply(fd: c_int, config: &Config) -> Result<c_int, Errno> {
    Socket::new(fd).apply(config)?;
    Ok(0)
}

/// # Safety
/// NULL, or `value` can be written.
unsafe fn get(fd: c_int, timer: Timer, value: *mut c_int) -> c_int {
    answer(|| {
        if value.is_null() {
            return Err(EINVAL);
        }
        let found = Socket::new(fd).timer(timer)?;
        // SAFETY: the caller vouches for the pointer; C may have put it anywhere.
        unsafe { value.write_unaligned(found) };
        Ok(0)
    })
}
