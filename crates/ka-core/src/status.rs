//! What a connection is doing, as `TCP_INFO` tells it.

use core::mem::offset_of;

use libc::tcp_info;

/// What a connection is doing. tcp(7), `struct tcp_info` of <linux/tcp.h>
///
/// A listener and a socket that never connected have no times worth reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// `TCP_ESTABLISHED` (1) … `TCP_CLOSING` (11) of <netinet/tcp.h>.
    pub state: u32,
    /// Keepalive probes (or probes of a closed window) that nothing has answered yet.
    pub probes: u32,
    /// How often the oldest data in flight was sent again without an answer.
    pub retransmits: u32,
    /// Segments in flight. While there are any, no keepalive probe is sent. 0 for a listener.
    pub unacked: u32,
    /// Milliseconds since the last acknowledgement came, of data or of a probe.
    pub last_ack_ms: u32,
    /// Milliseconds since data last came.
    pub last_recv_ms: u32,
    /// Milliseconds since data was last sent; probes do not count.
    pub last_send_ms: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
}

impl Status {
    /// As much of `struct tcp_info` as is read: it grows at its end with each kernel.
    pub(crate) const INFO_SIZE: usize = offset_of!(tcp_info, tcpi_rttvar);

    /// Reads `struct tcp_info`, as getsockopt(2) or sock_diag(7) gives it; `None` where it is shorter than what there is
    /// to read.
    #[must_use]
    pub fn from_info(info: &[u8]) -> Option<Self> {
        let byte = |offset: usize| info.get(offset).map(|byte| u32::from(*byte));
        let word = |offset: usize| {
            let bytes = info.get(offset..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        let state = byte(offset_of!(tcp_info, tcpi_state))?;
        // A listener has the length of its accept queue in this field.
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

/// include/net/tcp_states.h; <netinet/tcp.h> has it, the libc crate does not on every target.
const TCP_LISTEN: u32 = 10;
