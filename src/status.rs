//! ka_get_status: the state of a connection.

#![expect(unsafe_code, reason = "C calls these functions")]

use ka_core::Socket;
use libc::c_int;

use crate::errno::answer;
use crate::words;

/// The state of a connection: a part of TCP_INFO, tcp(7).
///
/// A later version may add fields at the end, as in ka_config. For an MPTCP socket this is the state of the first
/// subflow. The times of a listener, and of a socket that has never connected, have no meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_status {
    /// sizeof(struct ka_status). KA_STATUS_INIT sets it.
    pub size: u32,
    /// TCP_ESTABLISHED (1) to TCP_CLOSING (11) of netinet/tcp.h.
    pub state: u32,
    /// Unanswered keepalive probes, or unanswered probes of a closed window.
    pub probes: u32,
    /// The number of times in a row that the oldest data in flight has been retransmitted without an acknowledgement.
    pub retransmits: u32,
    /// Segments in flight. While there are any, the kernel sends no keepalive probe. 0 for a listener.
    pub unacked: u32,
    /// Time since the last acknowledgement was received, of data or of a probe, in milliseconds.
    pub last_ack_ms: u32,
    /// Time since data was last received, in milliseconds.
    pub last_recv_ms: u32,
    /// Time since data was last sent, in milliseconds. Probes are not data.
    pub last_send_ms: u32,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
}

/// Get the state of a connection: unanswered probes, data in flight, and when the peer last sent something.
///
///   fd      a TCP or MPTCP socket in any state.
///   status  receives the state. Its size must be set (KA_STATUS_INIT).
///
/// Returns 0, or -1 with errno:
///   EINVAL       status is NULL, or its size is below 8 or not a multiple of 4.
///   EBADF        fd is not open, or was opened with O_PATH.
///   ENOTSOCK     fd is not a socket.
///   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
///   EOPNOTSUPP   this kernel does not report the state of this socket.
/// After a failure *status is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_status(fd: c_int, status: *mut ka_status) -> c_int {
    answer(|| {
        // SAFETY: the C caller passes NULL, or a status with as many bytes as its size states.
        let count = unsafe { words::count(status) }?;
        let now = Socket::new(fd).status()?;
        let words: [i32; size_of::<ka_status>() / size_of::<u32>()] = [
            0, // `words::write` skips the first word, because the size belongs to the caller.
            now.state,
            now.probes,
            now.retransmits,
            now.unacked,
            now.last_ack_ms,
            now.last_recv_ms,
            now.last_send_ms,
            now.rtt_us,
        ]
        .map(|word| i32::from_ne_bytes(word.to_ne_bytes()));
        // SAFETY: the status has as many words as its size states.
        unsafe { words::write(status, count, words) };
        Ok(0)
    })
}
