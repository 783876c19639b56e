//! ka_probe: checks whether the peer of a connection is alive.

#![expect(unsafe_code, reason = "C calls this function")]

use core::time::Duration;

use ka_core::Socket;
use libc::c_int;

use crate::errno::{EINVAL, answer};

/// Check whether the peer of a connection is alive.
///
/// The kernel sends one keepalive probe, and the function waits for the answer. Keepalive may be on or off. No data is
/// sent, and the peer's program does not notice the probe. For example, a connection pool checks a connection before it
/// hands the connection out. If a firewall has silently dropped the connection, only the missing answer shows this.
///
///   fd          a connected TCP or MPTCP socket. An MPTCP socket sends a probe on each subflow, and an answer on any
///               of them counts. Before Linux 5.16, the answer on the first subflow counts.
///   timeout_ms  the longest wait for the answer, in milliseconds, 0..INT_MAX. Use at least 100 more than the longest
///               round trip. The kernel sends the probe at one of its next two ticks, which are 1 to 10 ms apart. If
///               another thread is using the socket, the kernel sends it 50 ms later. With 0, nothing is sent, and the
///               function only checks whether a segment has arrived within the last second.
///
/// Returns 1 if a segment has arrived from the peer since the call began, or within the last second before the call. If
/// it arrived before the call, nothing is sent, and the call takes microseconds. The peer's kernel has sent the
/// segment. So 1 does not mean that the peer's program works: the kernel also answers for a frozen process, and a proxy
/// or a load balancer answers for itself. The peer may also have closed its side of the connection. In this case,
/// recv(2) with MSG_PEEK | MSG_DONTWAIT returns 0 after all data has been read.
///
/// Returns 0 if nothing has arrived in time. Data that the peer has not acknowledged, or that waits for the peer's
/// window, suspends probes, so no probe is sent. The acknowledgement of the data is then the answer. If the peer keeps
/// its window closed, the kernel sends window probes at growing intervals of up to two minutes. So while the window is
/// closed, 0 does not mean that the peer is dead. ka_get_status reports data in flight.
///
/// An unanswered probe stays in the kernel's count of unanswered probes until a segment arrives from the peer. If
/// keepalive is on and the peer stays silent, each unanswered probe can make the connection end earlier, by up to
/// intvl, but not before idle has expired. With a cnt of 1, or a user_timeout of at most idle, the connection ends when
/// idle has expired.
///
/// Returns -1 with errno:
///   EINVAL       timeout_ms is negative.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   ENOTCONN     fd is a listener, or is not connected, or its connection has ended and no error is pending.
///   ETIMEDOUT, ECONNRESET, EPIPE
///                the connection has ended with an error, which stays pending. The kernel cannot report the error
///                without clearing it, so errno is derived from the state of the socket. It can differ from the exact
///                error, which getsockopt(2) with SO_ERROR returns. For example, ka_probe sets ECONNRESET instead of
///                ECONNABORTED.
///   EPERM        a policy in mode force or floor holds the settings of the socket: ka run --via seccomp, ka cgroup.
///                The shim (ka run with LD_PRELOAD) does not prevent the probe.
///   ERANGE       idle follows the sysctl net.ipv4.tcp_keepalive_time, whose value cannot be set on a socket, so
///                idle could not be put back. Call ka_enable or ka_apply first.
///   EMFILE       the process has no free descriptor.
///   EOPNOTSUPP   this kernel does not have an option that is needed for this socket.
///   others       the error of a security policy.
/// After a failure, the settings are as they were before the call.
///
/// While the probe leaves, which takes two ticks of the kernel and at most 200 ms, keepalive is on, idle is 1 s, and
/// user_timeout is 2147483646 ms (cnt is KA_CNT_MAX on MPTCP). Then the settings are put back, also after a timeout or
/// an error. If idle followed its sysctl, it is fixed at the sysctl's value afterwards, and on MPTCP so is cnt. If
/// another thread changes the settings meanwhile, its change can be lost. If the process is killed meanwhile, and
/// another process has the socket too, the settings are not put back.
///
/// The call blocks for at most timeout_ms. Signal handlers run, but a signal does not end the wait.
///
/// The function uses a duplicate of fd (close-on-exec) while it runs. So if another thread closes fd, the connection
/// is closed when the function returns. A child that is forked meanwhile has the duplicate until it execs or exits.
///
/// Thread-safe, async-signal-safe, fork-safe. If several threads probe one socket, one sends the probe, and all wait
/// for the answer. A signal handler that has interrupted ka_probe can get 0 for a peer that is alive, because it cannot
/// send a probe while the interrupted call sends one.
/// Since 0.2.0.
#[unsafe(no_mangle)]
pub extern "C" fn ka_probe(fd: c_int, timeout_ms: c_int) -> c_int {
    answer(|| {
        let timeout = Duration::from_millis(timeout_ms.try_into().map_err(|_| EINVAL)?);
        Ok(Socket::new(fd).probe(timeout)?.is_some().into())
    })
}
