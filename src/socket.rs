//! Keepalive of a socket, call by call.

#![expect(unsafe_code, reason = "it is what C calls")]

use ka_core::{Config, Errno, Error, Socket, Timer};
use libc::c_int;

use crate::config::{in_force, ka_config, named, user_timeout};
use crate::errno::{EINVAL, answer};

/// Turns keepalive on with these timers.
///
/// A wrong value is an error, and keepalive stays off. A server that must have keepalive whatever the timers are
/// calls ka_enable_lenient.
///
///   fd     a TCP or MPTCP socket in any state. An accepted connection inherits the settings that its listener has at
///          the handshake. So a server sets its listener, and makes no call for each connection.
///   idle   s, 1..KA_IDLE_MAX: how long the connection is idle before the first probe. A connection is idle while no
///          data and no acknowledgement comes in. Sent data counts when it is acknowledged. TCP_KEEPIDLE
///   intvl  s, 1..KA_INTVL_MAX: the time from an unanswered probe to the next. If it is longer than idle, it is also
///          the time from an answered probe to the next. TCP_KEEPINTVL
///   cnt    probes, 1..KA_CNT_MAX: the connection ends when this many are unanswered. TCP_KEEPCNT
///
/// Each may be KA_KEEP: it stays as it is. A new socket has the values of the sysctls net.ipv4.tcp_keepalive_*:
/// 7200 s, 75 s and 9 probes by default. So ka_enable(fd, 30, KA_KEEP, KA_KEEP) has an interval of 75 s, which is
/// longer than its idle time.
///
/// A dead peer is found after idle + intvl * cnt seconds, or up to an eighth later (ka_detect_time). The socket is
/// then readable, and read(2) fails with ETIMEDOUT. If data was in flight and the network reported an error,
/// read(2) fails with EHOSTUNREACH or ENETUNREACH. The kernel ignores such reports about probes. A peer that has
/// restarted answers the first probe with a reset: ECONNRESET.
///
/// If keepalive is off, this makes 5 system calls and turns it on last, so no probe leaves early. If it is on, this
/// writes only values that differ. So calls may be repeated at any rate.
///
/// Returns 0, or -1 with errno:
///   EINVAL       a value is out of its range. 0 is.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but not TCP: UDP, unix, raw, netlink, vsock.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
///   The error of a security policy, for example EPERM.
/// After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
/// a timer that followed a sysctl stays at that value, or keeps the new one if the sysctl's value cannot be set. If
/// it was off, the timers, which are dormant then, may have changed.
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

/// The bit of ka_enable_lenient for an idle time that is not as asked.
pub const KA_MISSED_IDLE: c_int = 1;

/// The bit of ka_enable_lenient for an interval that is not as asked.
pub const KA_MISSED_INTVL: c_int = 2;

/// The bit of ka_enable_lenient for a count that is not as asked.
pub const KA_MISSED_CNT: c_int = 4;

/// The bit of ka_enable_lenient for a socket that is not TCP.
pub const KA_MISSED_TCP: c_int = 8;

/// Turns keepalive on as hand-written calls of setsockopt(2) do: whatever becomes of the timers.
///
/// This is the function for a server that has made these calls so far. A bad value or an old kernel costs it a
/// timer, but not keepalive, and it can log the result. A server that would rather stop on a mistake calls
/// ka_enable.
///
///   fd     any socket. A socket that is not TCP is left unchanged.
///   idle   s. Below 1: stays as it is. Above KA_IDLE_MAX: KA_IDLE_MAX. TCP_KEEPIDLE
///   intvl  s. Below 1: stays as it is. Above KA_INTVL_MAX: KA_INTVL_MAX. TCP_KEEPINTVL
///   cnt    probes. Below 1: stays as it is. Above KA_CNT_MAX: KA_CNT_MAX. TCP_KEEPCNT
///
/// A timer that stays as it is has the value of its sysctl on a new socket.
///
/// Returns 0 if all is as asked. Otherwise returns the sum of these bits, with keepalive on except for KA_MISSED_TCP:
///   KA_MISSED_IDLE, KA_MISSED_INTVL, KA_MISSED_CNT
///                the value was above the maximum, or the kernel refused it.
///   KA_MISSED_TCP
///                the socket is not TCP (UDP, unix, raw, netlink, vsock).
/// Or returns -1 with errno:
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   The error of SO_KEEPALIVE, for example EPERM by a security policy.
/// After a failure keepalive is on or off as it was. The timers may have changed.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_enable_lenient(fd: c_int, idle: c_int, intvl: c_int, cnt: c_int) -> c_int {
    const BITS: [(Timer, c_int); 3] =
        [(Timer::Idle, KA_MISSED_IDLE), (Timer::Intvl, KA_MISSED_INTVL), (Timer::Cnt, KA_MISSED_CNT)];
    answer(|| {
        let mut config = Config::KEEP.with_enabled(Some(true));
        let mut missed = 0;
        for ((timer, bit), value) in BITS.into_iter().zip([idle, intvl, cnt]) {
            if value >= 1 {
                let most = *timer.range().end();
                config = config.with_timer(timer, Some(value.min(most)))?;
                missed |= if value > most { bit } else { 0 };
            }
        }
        let applied = match Socket::new(fd).apply_lenient(config) {
            Err(Error::NotTcp) => return Ok(KA_MISSED_TCP),
            applied => applied?,
        };
        for (timer, bit) in BITS {
            missed |= if config.names(timer) && !applied.names(timer) { bit } else { 0 };
        }
        Ok(missed)
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
///   milliseconds  receives the time. 0: there is no user timeout, and the kernel's own rules apply
///                 (net.ipv4.tcp_retries2 for data, cnt for probes).
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
///   milliseconds  1..2147483647. 0 or KA_NONE: no user timeout. KA_AUTO: 1000 * (idle + intvl * cnt) of the values
///                 in force, so a busy connection ends when an idle one would. KA_KEEP: nothing is changed.
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

/// Applies a policy: sets each value that the config names.
///
///   fd      a TCP or MPTCP socket in any state.
///   config  the policy. A field that is KA_KEEP or 0 stays as it is. Make it with KA_CONFIG_INIT or KA_CONFIG.
///
/// If keepalive is off and the config turns it on, the timers are written first. If keepalive is on, only values that
/// differ are written. If intvl or cnt changes, idle is written after them, because only idle re-arms the running
/// timer. If idle is KA_KEEP, it is written with the value in force, and no longer follows its sysctl. If the
/// config turns keepalive off, keepalive goes off before the timers are written.
///
/// Returns 0, or -1 with errno; arguments are checked before the descriptor, and the descriptor before what
/// depends on its state:
///   EINVAL       config is NULL; its size is not a multiple of 4 from 8 up; a value is out of its range; KA_AUTO
///                would be more than 2147483647 or less than 1.
///   E2BIG        config is larger than this version's, and a word in its tail is neither 0 nor KA_KEEP. Or its
///                size is more than 4096.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but not TCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket: any user_timeout, 0 too, on an MPTCP
///                socket that has not fallen back to TCP.
///   What a security policy answers, as EPERM.
/// After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
/// one that followed a sysctl stays at that value, or keeps the new one where the sysctl's cannot be set. If it was
/// off, idle, intvl and cnt, dormant then, may have changed; user_timeout, which rules data whether keepalive is on
/// or off, has not.
///
/// Thread-safe, async-signal-safe, fork-safe. Two threads that set different things on one socket at once leave
/// a mixture.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_apply(fd: c_int, config: *const ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    answer(|| apply(fd, &unsafe { ka_config::read(config) }?))
}

/// Gets the keepalive settings that are in force.
///
///   fd      a TCP or MPTCP socket in any state.
///   config  receives the settings. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON or KA_OFF.
///           user_timeout is KA_NONE if there is none, and KA_KEEP if the kernel cannot report it (MPTCP that has
///           not fallen back to TCP). A timer that no program has set has the value of its sysctl.
///
/// ka_apply accepts the result and sets the same again, with one exception: a sysctl may hold a value that no
/// program can set on a socket. ka_apply then fails with EINVAL for 86400. For 0 and -1 the timer is KA_KEEP here.
///
/// Returns 0, or -1 with errno: EINVAL (config is NULL, or its size is not a multiple of 4 from 8 up), EBADF,
/// ENOTSOCK, ENOPROTOOPT or EOPNOTSUPP, as ka_apply. After a failure *config is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_query(fd: c_int, config: *mut ka_config) -> c_int {
    // SAFETY: C vouches for the pointer.
    unsafe { ka_config::fill(config, || Ok(in_force(&Socket::new(fd).settings()?))) }
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
