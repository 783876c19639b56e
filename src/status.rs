//! What a connection is doing.

#![expect(unsafe_code, reason = "it is what C calls")]

use ka_core::Socket;
use libc::c_int;

use crate::errno::answer;
use crate::words;

/// What a connection is doing. TCP_INFO of tcp(7)
///
/// It may grow at its end, as ka_config. A listener, and a socket that never connected, has no times worth reading.
/// Of an MPTCP socket it is what the first of its connections is doing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_status {
    /// sizeof (struct ka_status): KA_STATUS_INIT sets it.
    pub size: u32,
    /// TCP_ESTABLISHED (1) to TCP_CLOSING (11) of netinet/tcp.h.
    pub state: u32,
    /// Keepalive probes, or probes of a closed window, that nothing has answered yet.
    pub probes: u32,
    /// How often the oldest data in flight was sent again without an answer.
    pub retransmits: u32,
    /// Segments in flight; while there are any, no keepalive probe is sent. 0 for a listener.
    pub unacked: u32,
    /// ms since the last acknowledgement came, of data or of a probe.
    pub last_ack_ms: u32,
    /// ms since data last came.
    pub last_recv_ms: u32,
    /// ms since data was last sent; probes do not count.
    pub last_send_ms: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
}

/// Gets what a connection is doing: is a probe unanswered, is data in flight, when did the peer last speak?
///
///   fd      a TCP or MPTCP socket in any state.
///   status  where to put it; its size must be set (KA_STATUS_INIT).
///
/// Returns 0, or -1 with errno:
///   EINVAL       status is NULL, or its size is not a multiple of 4 from 8 up.
///   EOPNOTSUPP   this kernel does not tell it for this socket.
///   EBADF, ENOTSOCK, ENOPROTOOPT, as ka_enable.
/// After a failure *status is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_get_status(fd: c_int, status: *mut ka_status) -> c_int {
    answer(|| {
        // SAFETY: C vouches for the pointer.
        let count = unsafe { words::count(status) }?;
        let now = Socket::new(fd).status()?;
        let words: [i32; size_of::<ka_status>() / size_of::<u32>()] = [
            0, // The size stays the caller's: the first word is not written.
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
        // SAFETY: C vouches for as many words as the size gives.
        unsafe { words::write(status, count, words) };
        Ok(0)
    })
}
