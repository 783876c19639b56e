//! The kernel's reports of destroyed sockets, which are a source of the ends of connections without eBPF. sock_diag(7),
//! `SKNLGRP_INET_TCP_DESTROY`
//!
//! The kernel reports a socket when it frees it: when the last descriptor is closed and no timer is left. The report
//! has the addresses, the cookie and `struct tcp_info` as it was, but neither the error nor the inode nor the settings.
//! So the owner and the settings come from an earlier list, and the cause is derived:
//!
//! - If as many probes or retransmissions were unanswered as the settings allow, and enough time has passed, the
//!   connection timed out ([`Settings::timeout`]). An error of the network, such as an unreachable peer, is unknown.
//! - If the peer had acknowledged a FIN, the program had closed the connection ([`Transfer::has_acknowledged_fin`]).
//! - Otherwise the connection ended by a reset, by `SOCK_DESTROY`, or because the program closed it with data unread.
//!   `TcpExt TCPAbortOnClose` counts the last case, and `Tcp EstabResets` counts all that end an open connection. A
//!   program that closes with `SO_LINGER` 0 leaves a report without a peer, which is ignored.
//!
//! If the counters do not decide, the end is counted as unclear.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use ka_core::{Settings, Status, Timeout};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::counters::CounterFile;
use super::death::Cause;
use crate::diag::{DestroyedSocket, Transfer, read_destroyed};
use crate::{Result, sys};

/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` of <linux/sock_diag.h>
const GROUPS: [u32; 2] = [1, 3];

/// The size of the receive buffer in bytes. The kernel doubles it.
const BUFFER_SIZE: i32 = 8 << 20;

/// A netlink socket that receives the reports of one network namespace.
pub(super) struct DestroyedGroup {
    socket: Socket,
    /// The number of dropped messages when it was read last.
    dropped: u32,
    counters: Counters,
    /// The number of ends of open connections without an explanation yet.
    resets: u64,
    /// The number of aborts with unread data without an explanation yet.
    aborts: u64,
}

/// The counters of a network namespace.
struct Counters {
    snmp: CounterFile,
    netstat: CounterFile,
    resets: u64,
    aborts: u64,
}

impl Counters {
    /// Opens the counters of the calling thread's network namespace.
    fn open() -> io::Result<Self> {
        let (snmp, netstat) = (CounterFile::open("snmp")?, CounterFile::open("netstat")?);
        let mut counters = Self { snmp, netstat, resets: 0, aborts: 0 };
        counters.changes();
        Ok(counters)
    }

    /// Returns the growth of each counter since the last call.
    fn changes(&mut self) -> (u64, u64) {
        let resets = self.snmp.read("Tcp:", "EstabResets").unwrap_or(self.resets);
        let aborts = self.netstat.read("TcpExt:", "TCPAbortOnClose").unwrap_or(self.aborts);
        let changes = (resets.saturating_sub(self.resets), aborts.saturating_sub(self.aborts));
        (self.resets, self.aborts) = (resets, aborts);
        changes
    }
}

/// The end of a destroyed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The connection timed out.
    Died(Cause),
    /// The program has closed the connection, or the connection was never established.
    Normal,
    /// The connection ended without a FIN.
    WithoutFin,
}

/// Returns the end of a connection. `settings` are `None` if unknown.
pub(super) fn ending(
    status: &Status,
    transfer: &Transfer,
    settings: Option<&Settings>,
    retries: u8,
    is_accepted: bool,
) -> Ending {
    if status.rtt_us == 0 {
        return Ending::Normal;
    }
    if transfer.has_acknowledged_fin(is_accepted) {
        return Ending::Normal;
    }
    match settings.and_then(|settings| timeout(settings, status, retries)) {
        Some(cause) => Ending::Died(cause),
        None if transfer.has_data(is_accepted) && status.probes >= retries.into() => {
            Ending::Died(Cause::Retransmission)
        }
        None => Ending::WithoutFin,
    }
}

/// Returns the cause if a connection timed out. `None` if it ended in another way.
pub(super) fn timeout(settings: &Settings, status: &Status, retries: u8) -> Option<Cause> {
    // Without keepalive, probes are those of a closed window, or of data that this machine's firewall drops.
    let is_probed = !settings.enabled && status.probes >= retries.into();
    let rule = settings.timeout(status, retries).or(is_probed.then_some(Timeout::Retransmission));
    rule.map(Cause::from)
}

impl DestroyedGroup {
    /// Joins the groups of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// The error of the kernel. Linux 6.18 requires no capability.
    pub(super) fn join() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        // The kernel sends nothing to a socket without an address.
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        sys::set_receive_buffer(socket.as_fd(), BUFFER_SIZE)?;
        Ok(Self { socket, dropped: 0, counters: Counters::open()?, resets: 0, aborts: 0 })
    }

    /// Returns the sockets that were destroyed since the last call, and the number of dropped reports.
    pub(super) fn take(&mut self) -> (Vec<DestroyedSocket>, usize) {
        let mut sockets = Vec::new();
        let mut buffer = Vec::with_capacity(1 << 14);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => read_destroyed(&buffer, &mut sockets),
                // The kernel has dropped messages. They are counted below.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let dropped = sys::dropped_messages(self.as_fd()).unwrap_or(self.dropped);
        let before = std::mem::replace(&mut self.dropped, dropped);
        let (resets, aborts) = self.counters.changes();
        self.resets += resets;
        self.aborts = if aborts == 0 && sockets.is_empty() { 0 } else { self.aborts + aborts };
        (sockets, dropped.wrapping_sub(before) as usize)
    }

    /// Records the number of ends of open connections that have another explanation than a reset.
    pub(super) fn explain(&mut self, count: usize) {
        self.resets = self.resets.saturating_sub(count as u64);
    }

    /// Decides by the counters how many of `count` connections that ended without a FIN were reset.
    pub(super) fn without_fin(&mut self, count: usize) -> WithoutFin {
        let candidates = count as u64;
        let aborted = self.aborts.min(candidates);
        self.aborts -= aborted;
        self.resets = self.resets.saturating_sub(aborted);
        let reset = self.resets.min(candidates - aborted);
        self.resets -= reset;
        if reset == candidates {
            WithoutFin::Reset
        } else {
            WithoutFin::Unclear(usize::try_from(reset).unwrap_or(usize::MAX))
        }
    }
}

/// The number of resets among connections that ended without a FIN.
pub(super) enum WithoutFin {
    /// All connections were reset.
    Reset,
    /// This number of connections were reset, but it is unknown which ones.
    Unclear(usize),
}

impl AsFd for DestroyedGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
