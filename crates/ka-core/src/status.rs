//! The state of a connection, as `TCP_INFO` reports it.

use core::mem::offset_of;

use libc::tcp_info;

/// The state of a connection. tcp(7), `struct tcp_info` of <linux/tcp.h>
///
/// The times are meaningless for a listener and for a socket that never connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The TCP state: `TCP_ESTABLISHED` (1) … `TCP_CLOSING` (11) of <netinet/tcp.h>.
    pub state: u32,
    /// The count of unanswered keepalive or zero-window probes.
    pub probes: u32,
    /// The count of unanswered retransmissions of the oldest data in flight.
    pub retransmits: u32,
    /// The count of segments in flight. While it is not 0, the kernel sends no keepalive probe. 0 for a listener.
    pub unacked: u32,
    /// The time in milliseconds since the last acknowledgement of data or of a probe was received.
    pub last_ack_ms: u32,
    /// The time in milliseconds since data was last received.
    pub last_recv_ms: u32,
    /// The time in milliseconds since data was last sent. Probes are not data.
    pub last_send_ms: u32,
    /// The smoothed round-trip time in microseconds.
    pub rtt_us: u32,
}

impl Status {
    /// The size in bytes of the part of `struct tcp_info` that is read. New kernels add fields at its end.
    pub(crate) const INFO_SIZE: usize = offset_of!(tcp_info, tcpi_rttvar);

    /// Returns the time in milliseconds since the last segment of the peer was received.
    #[must_use]
    pub fn silent_ms(&self) -> u32 {
        self.last_ack_ms.min(self.last_recv_ms)
    }

    /// Returns whether the connection is established and has not ended. One or both sides may have closed it.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        matches!(
            self.state,
            TCP_ESTABLISHED | TCP_FIN_WAIT1 | TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING
        )
    }

    /// Reads `struct tcp_info`, as getsockopt(2) or sock_diag(7) reports it. Returns `None` if it is too short.
    #[must_use]
    pub fn from_info(info: &[u8]) -> Option<Self> {
        let byte = |offset: usize| info.get(offset).map(|byte| u32::from(*byte));
        let word = |offset: usize| {
            let bytes = info.get(offset..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        let state = byte(offset_of!(tcp_info, tcpi_state))?;
        // For a listener, this field is the length of the accept queue.
        let unacked = if state == TCP_LISTEN { 0 } else { word(offset_of!(tcp_info, tcpi_unacked))? };
        Some(Self {
            state,
            probes: byte(offset_of!(tcp_info, tcpi_probes))?,
            retransmits: byte(offset_of!(tcp_info, tcpi_retransmits))?,
            unacked,
            last_ack_ms: word(offset_of!(tcp_info, tcpi_last_ack_recv))?,
            last_recv_ms: word(offset_of!(tcp_info, tcpi_last_data_recv))?,
            last_send_ms: word(offset_of!(tcp_info, tcpi_last_data_sent))?,
            rtt_us: word(offset_of!(tcp_info, tcpi_rtt))?,
        })
    }
}

// States of include/net/tcp_states.h. The libc crate lacks them on some targets.
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
pub(crate) const TCP_CLOSE: u32 = 7;
pub(crate) const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_LISTEN: u32 = 10;
const TCP_CLOSING: u32 = 11;
