//! A worker's finding about a socket before it is probed, and its form in the shared memory.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use ka_core::Status;
use socket2::SockRef;

use crate::diag::State;
use crate::ends::ends;
use crate::error::Error;
use crate::netns;
use crate::process::HeldSocket;
use crate::record::{Reader, Writer};
use crate::sys;
use crate::worker::{Record, Reply};

/// A worker's finding about a socket.
pub(super) enum Examination {
    /// The socket is not TCP, has another port, or has never been connected.
    NotSelected,
    /// The socket could not be duplicated or read. The number is the errno.
    Refused(i32),
    /// The socket is connected, begins to connect, or was connected.
    Connection(Facts),
}

/// The facts about a connection.
pub(super) struct Facts {
    pub(super) cookie: u64,
    pub(super) local: Option<SocketAddr>,
    pub(super) peer: Option<SocketAddr>,
    /// The user who created the socket.
    pub(super) user: u32,
    pub(super) is_mptcp: bool,
    /// True if ka must end silent connections, but may not end this one. The worker sends the reason as text.
    pub(super) has_no_right: bool,
    status: Status,
}

impl Facts {
    /// Returns the reason why the connection cannot be probed. `None` if it can.
    pub(super) fn obstacle(&self) -> Option<Error> {
        match u8::try_from(self.status.state).ok().and_then(State::numbered)? {
            State::CloseWait => Some(Error::LeftOpen),
            State::SynSent | State::SynRecv => Some(Error::NotEstablished),
            _ => None,
        }
    }
}

/// Reads the state of a socket, in a worker. If `destroys`, also checks whether ka may end the connection.
pub(super) fn examine(target: &HeldSocket, port: Option<u16>, destroys: bool, reply: &Reply<'_>) {
    let refused = |error: std::io::Error| Examination::Refused(error.raw_os_error().unwrap_or(libc::EIO));
    let socket = match target.table.duplicate(target.fd) {
        Ok(socket) => socket,
        Err(error) => return reply.answer(refused(error).to_record()),
    };
    let found = look(socket.as_fd(), target.inode, port, destroys, reply);
    // Closing the duplicate may block, so the answer comes first.
    reply.answer(found.unwrap_or_else(refused).to_record());
}

fn look(
    socket: BorrowedFd<'_>,
    inode: u32,
    port: Option<u16>,
    destroys: bool,
    reply: &Reply<'_>,
) -> std::io::Result<Examination> {
    let own = crate::socket(&socket);
    if sys::inode(socket)? != u64::from(inode) || !own.is_tcp().unwrap_or(false) {
        return Ok(Examination::NotSelected);
    }
    let Ok(status) = own.status() else { return Ok(Examination::NotSelected) };
    let state = u8::try_from(status.state).ok().and_then(State::numbered);
    // A closed socket that was connected has a round-trip time.
    if matches!(state, None | Some(State::Listen)) || state == Some(State::Close) && status.rtt_us == 0 {
        return Ok(Examination::NotSelected);
    }
    let (local, peer) = ends(socket);
    let has_port = |end: Option<SocketAddr>| end.is_some_and(|end| Some(end.port()) == port);
    if port.is_some() && !has_port(local) && !has_port(peer) {
        return Ok(Examination::NotSelected);
    }
    let facts = SockRef::from(&socket);
    let is_mptcp = facts.protocol()?.is_some_and(|protocol| i32::from(protocol) == libc::IPPROTO_MPTCP);
    let right = if destroys { netns::enter_that_of(socket) } else { Ok(()) };
    if let Err(error) = &right {
        reply.send(&error.to_string());
    }
    Ok(Examination::Connection(Facts {
        // Linux before 4.12 does not report it. Then no connection has this cookie.
        cookie: facts.cookie().unwrap_or(0),
        local,
        peer,
        user: sys::owner(socket)?,
        is_mptcp,
        has_no_right: right.is_err(),
        status,
    }))
}

// The values of the first half of a record's first word. Flags follow the last value.
const NOT_SELECTED: u32 = 0;
const REFUSED: u32 = 1;
const CONNECTION: u32 = 2;
const IS_MPTCP: u32 = 4;
const HAS_NO_RIGHT: u32 = 8;

impl Examination {
    fn to_record(&self) -> Record {
        match self {
            Self::NotSelected => Writer::new().pair(NOT_SELECTED, 0),
            Self::Refused(errno) => Writer::new().pair(REFUSED, errno.cast_unsigned()),
            Self::Connection(facts) => {
                let is_mptcp = if facts.is_mptcp { IS_MPTCP } else { 0 };
                let has_no_right = if facts.has_no_right { HAS_NO_RIGHT } else { 0 };
                Writer::new()
                    .pair(CONNECTION | is_mptcp | has_no_right, facts.user)
                    .word(facts.cookie)
                    .address(facts.local)
                    .address(facts.peer)
                    .status(&facts.status)
            }
        }
        .finish()
    }

    pub(super) fn from_record(record: &Record) -> Self {
        let mut record = Reader::new(record);
        let (kind, rest) = record.pair();
        match kind & 3 {
            NOT_SELECTED => Self::NotSelected,
            // The fields are read in the order in which they were written.
            CONNECTION => Self::Connection(Facts {
                cookie: record.word(),
                local: record.address(),
                peer: record.address(),
                user: rest,
                is_mptcp: kind & IS_MPTCP != 0,
                has_no_right: kind & HAS_NO_RIGHT != 0,
                status: record.status(),
            }),
            _ => Self::Refused(rest.cast_signed()),
        }
    }
}
