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

    /// Combines the states of two subflows of a connection.
    pub(crate) fn merge(self, other: Self) -> Self {
        let (first, second) = if self.is_connected() { (self, other) } else { (other, self) };
        if !second.is_connected() {
            return first;
        }
        Self {
            state: first.state,
            probes: first.probes.saturating_add(second.probes),
            retransmits: first.retransmits.max(second.retransmits),
            // A subflow without data in flight can send a probe.
            unacked: first.unacked.min(second.unacked),
            last_ack_ms: first.last_ack_ms.min(second.last_ack_ms),
            last_recv_ms: first.last_recv_ms.min(second.last_recv_ms),
            last_send_ms: first.last_send_ms.min(second.last_send_ms),
            rtt_us: first.rtt_us.min(second.rtt_us),
        }
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

/// The argument of `MPTCP_TCPINFO`: `struct mptcp_subflow_data` of include/uapi/linux/mptcp.h, then the beginning of
/// `struct tcp_info` for each subflow.
pub(crate) struct Subflows(pub(crate) [u8; Self::SIZE]);

impl Subflows {
    /// The four words: the size of this header, the number of subflows, and the size of `struct tcp_info` in the kernel
    /// and here.
    const HEADER: usize = 16;
    /// The maximum number of subflows that are read. The kernel has at most 8 beside the first one, so it can have one
    /// more, which is ignored.
    const MOST: usize = 8;
    const SIZE: usize = Self::HEADER + Self::MOST * Status::INFO_SIZE;

    /// Returns the status of each subflow in the first `size` bytes.
    pub(crate) fn statuses(&self, size: usize) -> impl Iterator<Item = Status> {
        let infos = self.0.get(Self::HEADER..size).unwrap_or_default();
        infos.chunks_exact(Status::INFO_SIZE).filter_map(Status::from_info)
    }
}

impl Default for Subflows {
    fn default() -> Self {
        let mut bytes = [0; Self::SIZE];
        let words = [Self::HEADER, 0, 0, Status::INFO_SIZE]
            .map(|word| u32::try_from(word).unwrap_or(0).to_ne_bytes());
        for (to, from) in bytes.chunks_exact_mut(size_of::<u32>()).zip(words) {
            to.copy_from_slice(&from);
        }
        Self(bytes)
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
