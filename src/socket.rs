//! Functions that set and get the keepalive of a socket.

#![expect(unsafe_code, reason = "C calls these functions")]

use ka_core::{Config, Errno, Error, Socket, Timer};
use libc::c_int;

use crate::config::{in_force, ka_config, named, to_rto_max, to_user_timeout};
use crate::errno::{EINVAL, answer};

/// Turn keepalive on with these timers.
///
/// If a value is out of range, the call fails with EINVAL and changes nothing. A server that needs keepalive even if
/// a timer cannot be set calls ka_enable_lenient instead.
///
///   fd     a TCP or MPTCP socket in any state. Connections inherit the settings that their listener has at the time
///          of the handshake. So a server sets its listener once, and does not call this for each connection.
///   idle   seconds, 1..KA_IDLE_MAX: how long the connection is idle before the first probe. Received data and
///          received acknowledgements restart this time. Sending does not restart it, but the acknowledgement of
///          the sent data does. TCP_KEEPIDLE
///   intvl  seconds, 1..KA_INTVL_MAX: the time from an unanswered probe to the next. Use a value that is not longer
///          than idle. A longer intvl is also the time from an answered probe to the next, and detection can take
///          intvl - idle seconds longer. TCP_KEEPINTVL
///   cnt    probes, 1..KA_CNT_MAX: the kernel ends the connection after this many unanswered probes. TCP_KEEPCNT
///
/// KA_KEEP leaves a timer unchanged. On a new socket each timer follows its sysctl: net.ipv4.tcp_keepalive_time
/// (7200 s by default), tcp_keepalive_intvl (75 s) and tcp_keepalive_probes (9). For example, after
/// ka_enable(fd, 30, KA_KEEP, KA_KEEP) a new socket has an interval of 75 s, which is longer than its idle time.
///
/// A dead peer is detected idle + intvl * cnt seconds after its last packet, or up to about an eighth later.
/// ka_detect_time calculates both times. The socket then becomes readable, and read(2) fails with one of these errors:
///   ETIMEDOUT    nothing has answered.
///   EHOSTUNREACH, ENETUNREACH
///                data was in flight, and the network reported this error. The kernel ignores such reports for probes.
///   ECONNRESET   the peer has restarted, and has answered a probe with a reset.
/// While sent data is unacknowledged, the kernel sends no probes: see ka_set_rto_max.
///
/// If keepalive is off, this function sets the timers first and turns keepalive on last, so that no probe is sent
/// early. This takes 5 system calls with all three values given, and 4 if all are KA_KEEP. If keepalive is on, the
/// function writes only values that differ, so it may be called repeatedly, at any rate.
///
/// Returns 0, or -1 with errno:
///   EINVAL       a value is out of its range. 0 is out of range.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP: UDP, unix, raw, netlink, vsock.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
///   others       the error of a security policy, for example EPERM.
/// After a failure keepalive is on or off as before the call. If it is on, the timers have their old values, with one
/// exception: a timer that followed its sysctl can be left fixed at the sysctl's value, or at your new value if the
/// sysctl's value cannot be set on a socket. If it is off, the timers may have changed. This has no effect until
/// keepalive is turned on.
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

/// Bit in the result of ka_enable_lenient: the idle time is not as requested.
pub const KA_MISSED_IDLE: c_int = 1;

/// Bit in the result of ka_enable_lenient: the interval is not as requested.
pub const KA_MISSED_INTVL: c_int = 2;

/// Bit in the result of ka_enable_lenient: the count is not as requested.
pub const KA_MISSED_CNT: c_int = 4;

/// Bit in the result of ka_enable_lenient: the socket is neither TCP nor MPTCP.
pub const KA_MISSED_TCP: c_int = 8;

/// Turn keepalive on even if a timer cannot be set, and report the timers that are not as requested.
///
/// This function replaces setsockopt(2) calls whose results a server ignores. A bad value or an old kernel then costs
/// the server a timer, but not keepalive, and the server can log which timer. A server that prefers to stop on a
/// mistake calls ka_enable.
///
///   fd     any socket. A socket that is neither TCP nor MPTCP is left unchanged.
///   idle   seconds, up to KA_IDLE_MAX. TCP_KEEPIDLE
///   intvl  seconds, up to KA_INTVL_MAX. TCP_KEEPINTVL
///   cnt    probes, up to KA_CNT_MAX. TCP_KEEPCNT
///
/// A value below 1 leaves the timer unchanged. On a new socket such a timer follows its sysctl. A value above the
/// maximum sets the maximum. Keepalive is turned on last.
///
/// Returns 0 if every timer is as requested. Otherwise returns the sum of these bits:
///   KA_MISSED_IDLE, KA_MISSED_INTVL, KA_MISSED_CNT
///                keepalive is on, but this value was above the maximum, or the kernel rejected it.
///   KA_MISSED_TCP
///                the socket is neither TCP nor MPTCP (UDP, unix, raw, netlink, vsock).
/// Or returns -1 with errno:
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   others       the error of SO_KEEPALIVE, for example EPERM from a security policy.
/// After a failure keepalive is on or off as before the call. The timers may have changed.
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

/// Turn keepalive off. The timers keep their values, and ka_enable with KA_KEEP uses them again.
///
///   fd     a TCP or MPTCP socket in any state.
///
/// Returns 0, even if keepalive was off already, or -1 with errno:
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   others       the error of a security policy, for example EPERM.
/// After a failure the socket is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_disable(fd: c_int) -> c_int {
    answer(|| apply(fd, &Config::KEEP.with_enabled(Some(false))))
}

/// Test whether keepalive is on.
///
/// Unlike getsockopt(2) with SO_KEEPALIVE, this function fails on UDP and unix sockets.
///
///   fd     a TCP or MPTCP socket in any state.
///
/// Returns 1 if keepalive is on, 0 if it is off, or -1 with errno:
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_is_enabled(fd: c_int) -> c_int {
    answer(|| Ok(Socket::new(fd).is_enabled()?.into()))
}

/// Get the idle time before the first probe. Keepalive may be on or off.
///
///   fd       a TCP or MPTCP socket in any state.
///   seconds  receives the value in force. If it has not been set on this socket, this is the value of the sysctl
///            net.ipv4.tcp_keepalive_time. A sysctl may hold a value that cannot be set on a socket, for example
///            86400, 0 or -1.
///
/// Returns 0, or -1 with errno:
///   EINVAL       seconds is NULL.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
/// After a failure *seconds is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_idle(fd: c_int, seconds: *mut c_int) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer to an int.
    unsafe { get(fd, Timer::Idle, seconds) }
}

/// Get the time from one unanswered probe to the next. Keepalive may be on or off.
///
///   fd       a TCP or MPTCP socket in any state.
///   seconds  receives the value in force. If it has not been set on this socket, this is the value of the sysctl
///            net.ipv4.tcp_keepalive_intvl.
///
/// Returns 0, or -1 with errno:
///   EINVAL       seconds is NULL.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
/// After a failure *seconds is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_intvl(fd: c_int, seconds: *mut c_int) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer to an int.
    unsafe { get(fd, Timer::Intvl, seconds) }
}

/// Get the number of unanswered probes that end the connection. Keepalive may be on or off.
///
///   fd      a TCP or MPTCP socket in any state.
///   probes  receives the value in force. If it has not been set on this socket, this is the value of the sysctl
///           net.ipv4.tcp_keepalive_probes.
///
/// Returns 0, or -1 with errno:
///   EINVAL       probes is NULL.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
/// After a failure *probes is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_cnt(fd: c_int, probes: *mut c_int) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer to an int.
    unsafe { get(fd, Timer::Cnt, probes) }
}

/// Get the user timeout: how long sent data or keepalive probes may stay unacknowledged. TCP_USER_TIMEOUT
///
///   fd            a TCP socket in any state.
///   milliseconds  receives the time. 0 means that there is no user timeout, and the kernel's own limits apply:
///                 net.ipv4.tcp_retries2 for data, cnt for probes.
///
/// Returns 0, or -1 with errno:
///   EINVAL       milliseconds is NULL.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   fd is an MPTCP socket that has not fallen back to TCP: the kernel cannot report the value.
/// After a failure *milliseconds is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_user_timeout(fd: c_int, milliseconds: *mut c_int) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer to an int.
    unsafe { get(fd, Timer::UserTimeout, milliseconds) }
}

/// Set the user timeout: how long sent data or keepalive probes may stay unacknowledged. TCP_USER_TIMEOUT, RFC 5482
///
/// While sent data is unacknowledged, the kernel sends no keepalive probes. If the peer dies during that time, the
/// kernel detects it only when it stops retransmitting (after about 15 minutes) or when the user timeout expires.
/// ka_set_rto_max shortens the retransmissions instead. A user timeout also has two other effects, which rto_max does
/// not have:
///   - On an idle connection it replaces cnt: the connection ends at the first probe time that is at or after the
///     timeout.
///   - It ends a connection to a healthy peer that keeps its window closed for that long.
///
///   fd            a TCP socket in any state.
///   milliseconds  one of these:
///                 1..2147483647  the user timeout.
///                 0 or KA_NONE   removes the user timeout.
///                 KA_AUTO        sets 1000 * (idle + intvl * cnt), computed from the values in force when the call is
///                                made. Later changes do not update it. A busy connection to a dead peer then ends
///                                after the same time as an idle one.
///                 KA_KEEP        changes nothing.
///
/// Returns 0, or -1 with errno:
///   EINVAL       milliseconds is out of range, or the value of KA_AUTO would not be in 1..2147483647.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   fd is an MPTCP socket that has not fallen back to TCP, and milliseconds is not KA_KEEP.
///   others       the error of a security policy, for example EPERM.
/// After a failure the socket is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_set_user_timeout(fd: c_int, milliseconds: c_int) -> c_int {
    answer(|| apply(fd, &Config::KEEP.with_user_timeout(to_user_timeout(milliseconds))?))
}

/// Get the longest time between two retransmissions of unacknowledged data. TCP_RTO_MAX_MS
///
///   fd            a TCP socket in any state.
///   milliseconds  receives the value in force. If it has not been set on this socket, this is the value that the sysctl
///                 net.ipv4.tcp_rto_max_ms had when the socket was created, 120000 by default.
///
/// Returns 0, or -1 with errno:
///   EINVAL       milliseconds is NULL.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   the kernel is older than Linux 6.15, or fd is an MPTCP socket that has not fallen back to TCP.
/// After a failure *milliseconds is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.2.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_rto_max(fd: c_int, milliseconds: *mut c_int) -> c_int {
    // SAFETY: the C caller passes NULL or a pointer to an int.
    unsafe { get(fd, Timer::RtoMax, milliseconds) }
}

/// Set the longest time between two retransmissions of unacknowledged data. TCP_RTO_MAX_MS
///
/// While sent data is unacknowledged, the kernel sends no keepalive probes. If the peer dies during that time, the
/// kernel retransmits the data, and doubles the time between two retransmissions up to rto_max. It ends the connection
/// after the time that net.ipv4.tcp_retries2 retransmissions take. With the defaults (120000 ms, 15) this is about 15
/// minutes; with an rto_max of 2000 it is 27 s. ka_data_time calculates this time. If data is already unacknowledged, a
/// new rto_max takes effect when the next retransmission is due.
///
/// Unlike a user timeout, rto_max has no effect on an idle connection, and does not end a connection to a healthy peer
/// that keeps its window closed. While the window is closed, the kernel sends window probes more often. On a path that
/// loses most packets, the connection ends earlier than without rto_max.
///
///   fd            a TCP socket in any state. Accepted sockets inherit the value of their listener.
///   milliseconds  one of these:
///                 KA_RTO_MAX_MIN..KA_RTO_MAX_MAX
///                          the longest time. The kernel rounds it up to a multiple of its tick, at most 10 ms.
///                 KA_AUTO  sets the largest value with which the typical time of ka_data_time is at most
///                          1000 * (idle + intvl * cnt), or KA_RTO_MAX_MIN if no value is small enough. It is computed
///                          from the values in force and net.ipv4.tcp_retries2 when the call is made (15 if the sysctl
///                          cannot be read). Later changes do not update it.
///                 KA_KEEP  changes nothing.
///
/// Returns 0, or -1 with errno:
///   EINVAL       milliseconds is out of range. 0 and KA_NONE are out of range.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   the kernel is older than Linux 6.15, or fd is an MPTCP socket, even one that has fallen back to TCP;
///                and milliseconds is not KA_KEEP.
///   others       the error of a security policy, for example EPERM.
/// After a failure the socket is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe. KA_AUTO uses a descriptor (close-on-exec) while the function runs.
/// Since 0.2.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_set_rto_max(fd: c_int, milliseconds: c_int) -> c_int {
    answer(|| apply(fd, &Config::KEEP.with_rto_max(to_rto_max(milliseconds))?))
}

/// Apply a policy: set every field of config that is neither KA_KEEP nor 0.
///
///   fd      a TCP or MPTCP socket in any state.
///   config  the policy. Create it with KA_CONFIG_INIT or KA_CONFIG.
///
/// The order of the writes depends on the state of the socket:
///   - If keepalive is off and the policy turns it on, the timers are set first. So no probe is sent early.
///   - If keepalive is on, only values that differ are written. If intvl or cnt changes, idle is written after them,
///     because only a write of idle re-arms the running timer. If idle is KA_KEEP, the value in force is written, and
///     idle no longer follows its sysctl. If that value cannot be set on a socket, it is not written.
///   - If keepalive is on and the policy turns it off, it goes off before the timers are set.
///
/// Returns 0, or -1 with errno. Arguments are checked first, then the descriptor, then KA_AUTO:
///   EINVAL       config is NULL; its size is below 8 or not a multiple of 4; a value is out of its range; the value
///                of KA_AUTO would not be in 1..2147483647.
///   E2BIG        config is larger than this library's struct, and an extra field is neither 0 nor KA_KEEP; or its
///                size is more than 4096.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket. An MPTCP socket that has not fallen back to
///                TCP accepts no user_timeout, not even KA_NONE. An MPTCP socket accepts no rto_max, except the value
///                that ka_query returns for it. No socket accepts rto_max before Linux 6.15.
///   others       the error of a security policy, for example EPERM.
/// After a failure keepalive is on or off as before the call. user_timeout and rto_max, which govern sent data even if
/// keepalive is off, have their old values. If keepalive is on, idle, intvl and cnt also have their old values, with
/// one exception: a timer that followed its sysctl can be left fixed at the sysctl's value, or at your new value if the
/// sysctl's value cannot be set on a socket. If keepalive is off, idle, intvl and cnt may have changed. This has no
/// effect until keepalive is turned on.
///
/// Thread-safe, async-signal-safe, fork-safe. If two threads apply different policies to one socket at the same time,
/// the socket can be left with a mixture of them. An rto_max of KA_AUTO uses a descriptor (close-on-exec) while the
/// function runs.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_apply(fd: c_int, config: *const ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states.
    answer(|| apply(fd, &unsafe { ka_config::read(config) }?))
}

/// Get the keepalive settings that are in force.
///
///   fd      a TCP or MPTCP socket in any state.
///   config  receives the settings. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON or KA_OFF. A timer that
///           has not been set on this socket has the value of its sysctl. user_timeout is KA_NONE if there is none,
///           and KA_KEEP if the kernel cannot report it (MPTCP that has not fallen back to TCP). rto_max is KA_KEEP on
///           such an MPTCP socket, before Linux 6.15, and if a security policy forbids reading it.
///
/// ka_apply accepts the result and sets the same values again, unless a sysctl holds a value that cannot be set on a
/// socket. A sysctl of 0 or -1 is reported as KA_KEEP. ka_apply rejects other such values, for example 86400, with
/// EINVAL.
///
/// Returns 0, or -1 with errno:
///   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   this kernel does not have the option for this socket.
/// After a failure *config is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_query(fd: c_int, config: *mut ka_config) -> c_int {
    // SAFETY: the C caller passes NULL, or a config with as many bytes as its size states.
    unsafe { ka_config::fill(config, || Ok(in_force(&Socket::new(fd).settings()?))) }
}

fn apply(fd: c_int, config: &Config) -> Result<c_int, Errno> {
    Socket::new(fd).apply(config)?;
    Ok(0)
}

/// # Safety
/// `value` is NULL, or an int that can be written.
unsafe fn get(fd: c_int, timer: Timer, value: *mut c_int) -> c_int {
    answer(|| {
        if value.is_null() {
            return Err(EINVAL);
        }
        let found = Socket::new(fd).timer(timer)?;
        // SAFETY: `value` is not NULL, so it can be written. C does not guarantee its alignment.
        unsafe { value.write_unaligned(found) };
        Ok(0)
    })
}
