//! Finds the TCP sockets of one process that have keepalive off.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;

use ka_core::SockOpt;
use socket2::SockRef;

use crate::ends::ends;
use crate::error::{Error, Result};
use crate::process::{HeldSocket, Process};
use crate::record::{Reader, Writer};
use crate::worker::{self, JobResult, Reply, Workers};

/// The TCP sockets of a process.
#[derive(Debug, Default)]
pub struct Survey {
    /// The number of TCP sockets.
    pub tcp: usize,
    /// The TCP sockets that have keepalive off.
    pub off: Vec<OffSocket>,
    /// True if the process has an io_uring.
    pub has_ring: bool,
    /// The reasons why sockets were left out.
    pub left_out: Vec<Arc<Error>>,
}

/// A TCP socket that has keepalive off.
#[derive(Clone, Copy, Debug)]
pub struct OffSocket {
    /// The lowest descriptor of the socket in the process.
    pub fd: i32,
    /// True if the socket listens.
    pub is_listener: bool,
    /// The local address. `None` if unknown.
    pub local: Option<SocketAddr>,
    /// The peer's address. `None` if unknown, or if the socket is not connected.
    pub peer: Option<SocketAddr>,
}

// The flags in the first half of the first word that a worker answers about a socket.
/// It is a TCP socket.
const TCP: u32 = 1;
/// Keepalive is off. The two addresses of the socket follow.
const OFF: u32 = 2;
/// The socket listens.
const LISTENS: u32 = 4;
/// The kernel refused the call, with the errno in the second half.
const REFUSED: u32 = 8;

/// Reads whether keepalive is on, for each TCP socket of a process.
///
/// # Errors
/// ka may not examine the process or one of its sockets, or a socket would lose its class ([`crate::class`]).
pub fn survey(process: &Process, workers: &mut Workers) -> Result<Survey> {
    let mut found = Survey::default();
    let mut inodes = HashSet::new();
    let mut targets = Vec::new();
    let mut refused = None;
    process.each_table(|table| match table {
        Ok((table, sockets)) => {
            found.has_ring |= table.has_ring();
            let new = sockets.into_iter().filter(|(_, inode)| inodes.insert(*inode));
            targets.extend(new.map(|(fd, inode)| HeldSocket { table: table.clone(), fd, inode }));
        }
        Err(error @ Error::OverBudget) => found.left_out.push(error.into()),
        Err(error) => refused = Some(error),
    })?;
    if let Some(error) = refused {
        return Err(error);
    }
    let answers = workers.ask(&targets, None, None, |_, target, reply| examine(target, reply));
    for (place, (target, answer)) in targets.iter().zip(answers.each).enumerate() {
        let blocked = || Error::socket(target.fd, Error::SocketBlocked);
        let left_out = match answer {
            JobResult::Given(record) => {
                let mut record = Reader::new(&record);
                let (kind, errno) = record.pair();
                if kind & REFUSED != 0 {
                    return Err(std::io::Error::from_raw_os_error(errno.cast_signed()).into());
                }
                found.tcp += usize::from(kind & TCP != 0);
                if kind & OFF != 0 {
                    found.off.push(OffSocket {
                        fd: target.fd,
                        is_listener: kind & LISTENS != 0,
                        local: record.address(),
                        peer: record.address(),
                    });
                }
                if !answers.cut_short.contains(&place) {
                    continue;
                }
                blocked()
            }
            JobResult::Failed(error) => Error::socket(target.fd, error),
            JobResult::Blocked => blocked(),
            JobResult::Classed(error) => return Err(Error::Worker(error.to_string())),
            JobResult::Excluded(user) => worker::excluded(user),
            JobResult::NotAsked => continue,
        };
        // All sockets of an excluded user have the same error, which is reported once.
        let is_new = |other: &Arc<Error>| other.to_string() != left_out.to_string();
        if found.left_out.iter().all(is_new) {
            found.left_out.push(left_out.into());
        }
    }
    // If the process has no sockets, no earlier call has tested whether ka may duplicate its descriptors.
    if inodes.is_empty() {
        process.check_access()?;
    }
    Ok(found)
}

/// Reads whether a socket's keepalive is on, in a worker.
fn examine(target: &HeldSocket, reply: &Reply<'_>) {
    let answer = |kind, errno: i32| reply.answer(Writer::new().pair(kind, errno.cast_unsigned()).finish());
    let socket = match target.table.duplicate(target.fd) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return answer(0, 0),
        Err(error) => return answer(REFUSED, error.raw_os_error().unwrap_or(libc::EIO)),
        Ok(socket) => socket,
    };
    match ka_core::Socket::new(socket.as_raw_fd()).is_enabled() {
        Ok(true) => answer(TCP, 0),
        Ok(false) => {
            let is_listener = SockRef::from(&socket).is_listener().unwrap_or(false);
            let kind = if is_listener { TCP | OFF | LISTENS } else { TCP | OFF };
            // Reading the addresses takes the socket's lock. If that blocks, this answer remains.
            answer(kind, 0);
            let (local, peer) = ends(socket.as_fd());
            reply.answer(Writer::new().pair(kind, 0).address(local).address(peer).finish());
        }
        Err(ka_core::Error::System { option: SockOpt::Protocol, .. } | ka_core::Error::NotTcp) => {
            answer(0, 0);
        }
        Err(error) => answer(REFUSED, error.errno().0),
    }
}
