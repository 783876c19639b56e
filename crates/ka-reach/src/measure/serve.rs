//! The server of `ka measure --serve` keeps all connections and sends nothing. If a client measures the direction from
//! the server, the server probes the connections of this client.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ka_core::{Config, Timer};
use socket2::{Domain, Protocol, Socket, Type};

use super::connection::{IdleConnection, discard};
use super::protocol::{LineBuffer, Opening, TICK, result_line, session_line};
use super::trial::TrialResult;
use crate::error::{Error, Result};
use crate::reason::socket_reason;
use crate::sys;

/// An event of a running server.
#[derive(Clone, Copy, Debug)]
pub enum ServeNotice<'a> {
    /// The server has closed a connection of this peer, because a newer connection needed its place.
    Replaced(SocketAddr),
    /// A connection of this peer cannot be used for a trial.
    Unusable(SocketAddr, &'a str),
    /// The number of connections has changed.
    Connections(usize),
}

/// The maximum number of connections that the server keeps.
const MOST_CONNECTIONS: usize = 1000;
/// The number of descriptors that the server needs besides those of the connections.
const OWN_DESCRIPTORS: usize = 16;
/// The maximum number of connections that the server accepts in one round. A client that connects again and again must
/// not keep the server from all other work.
const MOST_ACCEPTED: usize = 64;
/// The time between two messages on a control connection, and the longest silence of a client on it.
const BEAT: Duration = Duration::from_secs(1);
const LOST: Duration = Duration::from_secs(60);
/// The time between two notices of the number of connections.
const COUNT: Duration = Duration::from_secs(1);
/// The longest wait of the loop.
const REST: Duration = Duration::from_millis(500);

/// Makes the listeners. Without an address, they accept IPv4 and IPv6 connections to all addresses. The connections
/// inherit keepalive.
///
/// # Errors
/// The error of setsockopt(2), bind(2) or listen(2).
pub fn listen(address: Option<IpAddr>, port: u16) -> Result<Vec<TcpListener>> {
    let listener = |address: SocketAddr| -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let set = keepalive_policy().and_then(|policy| crate::socket(&socket).apply(&policy));
        set.map_err(|error| io::Error::other(socket_reason(&error)))?;
        socket.bind(&address.into())?;
        socket.listen(128)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    let named = |address: SocketAddr| listener(address).map_err(|error| Error::io(address, error));
    if let Some(address) = address {
        return Ok(vec![named(SocketAddr::new(address, port))?]);
    }
    let first = named(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
    let port = first.local_addr()?.port();
    // A machine may have no IPv6.
    let second = match listener(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        Ok(second) => Some(second),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => None,
        Err(error) => return Err(Error::io(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), error)),
    };
    Ok(std::iter::once(first).chain(second).collect())
}

/// Returns the keepalive policy of the connections. A client may vanish without a FIN. The idle time is the longest
/// that the kernel accepts, and exceeds the longest idle time that `ka measure` tries (9 h). An earlier probe of the
/// server would end the idle time of a trial.
fn keepalive_policy() -> std::result::Result<Config, ka_core::Error> {
    Config::new(*Timer::Idle.range().end(), 10, 6)
}

/// Returns the number of connections that the server keeps: 1000, or fewer if the limit of descriptors is lower.
pub fn capacity() -> usize {
    MOST_CONNECTIONS.min(sys::raise_descriptor_limit().saturating_sub(OWN_DESCRIPTORS))
}

/// Keeps connections until `termination` becomes readable. If a connection arrives while [`capacity`] connections
/// are open, closes the oldest connection of the address that has the most.
///
/// # Errors
/// The error of a system call.
pub fn serve(
    listeners: &[TcpListener],
    termination: BorrowedFd<'_>,
    notify: &mut dyn FnMut(ServeNotice<'_>),
) -> Result<()> {
    let most = capacity();
    let begin = Instant::now();
    let mut guests: Vec<Guest> = Vec::new();
    let keys = RandomState::new();
    let mut sessions = 0_u64;
    let (mut noticed, mut next_notice) = (0, Duration::ZERO);
    loop {
        let now = begin.elapsed();
        for listener in listeners {
            accept(listener, &mut guests, most, now, notify);
        }
        let mut reports: HashMap<u64, String> = HashMap::new();
        let known: Vec<u64> = guests.iter().filter_map(Guest::session).collect();
        guests.retain_mut(|guest| {
            let next_key = || {
                sessions = sessions.wrapping_add(1);
                keys.hash_one(sessions)
            };
            guest.step(now, &known, next_key, &mut reports, notify)
        });
        guests.retain_mut(|guest| {
            guest.session().and_then(|key| reports.get(&key)).is_none_or(|text| guest.send(text))
        });
        if guests.len() != noticed && now >= next_notice {
            (noticed, next_notice) = (guests.len(), now + COUNT);
            notify(ServeNotice::Connections(noticed));
        }
        let rest = guests.iter().map(|guest| guest.rest(begin.elapsed())).min().unwrap_or(REST);
        let mut fds = vec![termination];
        fds.extend(listeners.iter().map(AsFd::as_fd));
        fds.extend(guests.iter().map(|guest| guest.role.as_fd()));
        if sys::poll(&fds, rest.min(REST))?.first() == Some(&true) {
            return Ok(());
        }
    }
}

/// Accepts waiting connections.
fn accept(
    listener: &TcpListener,
    guests: &mut Vec<Guest>,
    most: usize,
    now: Duration,
    notify: &mut dyn FnMut(ServeNotice<'_>),
) {
    // An error concerns one connection, or a resource that is available again later.
    for _ in 0..MOST_ACCEPTED {
        let Ok((stream, peer)) = listener.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            continue;
        }
        if guests.len() >= most
            && let Some(place) = to_replace(guests)
        {
            let replaced = guests.remove(place);
            notify(ServeNotice::Replaced(replaced.peer));
        }
        guests.push(Guest { peer, since: now, role: Role::New(stream, LineBuffer::default()) });
    }
}

/// Chooses the connection to close for a newer one: the oldest connection of the addresses that have the most. It
/// chooses a connection of a measurement from the server only if these addresses have no other connection.
fn to_replace(guests: &[Guest]) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for guest in guests {
        *counts.entry(network(guest.peer.ip())).or_default() += 1;
    }
    let first = guests.iter().enumerate().min_by_key(|(_, guest)| {
        let count = counts.get(&network(guest.peer.ip()));
        (Reverse(count), guest.is_of_measurement(), guest.since)
    });
    first.map(|(place, _)| place)
}

/// Returns the part of an address that identifies a client. A host with IPv6 has all addresses of its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::from([a, b, c, d, 0, 0, 0, 0]).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A connection to the server.
struct Guest {
    peer: SocketAddr,
    since: Duration,
    role: Role,
}

enum Role {
    /// The connection may still send a first line of the protocol.
    New(TcpStream, LineBuffer),
    /// The connection is only kept.
    Kept(TcpStream),
    /// The control connection of a measurement.
    Control { stream: TcpStream, key: u64, sent: Duration, heard: Duration },
    /// A connection to probe.
    Trial { connection: Box<IdleConnection>, key: u64, id: u64 },
}

impl AsFd for Role {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::New(stream, _) | Self::Kept(stream) | Self::Control { stream, .. } => stream.as_fd(),
            Self::Trial { connection, .. } => connection.as_fd(),
        }
    }
}

impl Guest {
    /// Returns whether the connection belongs to a measurement from the server.
    fn is_of_measurement(&self) -> bool {
        matches!(self.role, Role::Control { .. } | Role::Trial { .. })
    }

    /// Returns the key of the measurement that this connection controls.
    fn session(&self) -> Option<u64> {
        if let Role::Control { key, .. } = self.role { Some(key) } else { None }
    }

    /// Reads, sends messages that are due, and steps the trial. Adds the lines for each measurement to `reports`.
    /// Returns whether the connection stays.
    fn step(
        &mut self,
        now: Duration,
        known: &[u64],
        next_key: impl FnMut() -> u64,
        reports: &mut HashMap<u64, String>,
        notify: &mut dyn FnMut(ServeNotice<'_>),
    ) -> bool {
        match &mut self.role {
            Role::New(stream, lines) => match read_line(stream, lines) {
                FirstLine::Ended => return false,
                FirstLine::Unfinished => {}
                FirstLine::Foreign => return self.keep(),
                FirstLine::Line(line) => return self.greet(&line, now, known, next_key, notify),
            },
            Role::Kept(stream) => return discard(stream).is_none(),
            Role::Control { stream, sent, heard, .. } => {
                match read_some(stream) {
                    None => return false,
                    Some(true) => *heard = now,
                    Some(false) => {}
                }
                if now >= *sent + BEAT {
                    *sent = now;
                    return stream.write_all(TICK.as_bytes()).is_ok();
                }
                return now.saturating_sub(*heard) < LOST;
            }
            Role::Trial { connection, key, id } => match connection.step(now) {
                Ok(None) => {}
                Ok(Some(sample)) => {
                    reports.entry(*key).or_default().push_str(&result_line(*id, &sample));
                    if sample.result == TrialResult::Silent {
                        connection.abort();
                    }
                    return false;
                }
                Err(error) => {
                    notify(ServeNotice::Unusable(self.peer, &error.to_string()));
                    return false;
                }
            },
        }
        true
    }

    /// From now on, only keeps the connection, and discards its data.
    fn keep(&mut self) -> bool {
        match &self.role {
            Role::New(stream, _) => stream.try_clone().is_ok_and(|stream| {
                self.role = Role::Kept(stream);
                true
            }),
            _ => true,
        }
    }

    /// Answers a first line of the protocol.
    fn greet(
        &mut self,
        line: &str,
        now: Duration,
        known: &[u64],
        mut next_key: impl FnMut() -> u64,
        notify: &mut dyn FnMut(ServeNotice<'_>),
    ) -> bool {
        let Role::New(stream, _) = &mut self.role else { return true };
        let Ok(mut stream) = stream.try_clone() else { return false };
        match Opening::parse(line) {
            Ok(Opening::Control) => {
                let key = next_key();
                let is_sent = stream.write_all(session_line(key).as_bytes()).is_ok();
                self.role = Role::Control { stream, key, sent: now, heard: now };
                is_sent
            }
            // Its control connection has ended, or never existed.
            Ok(Opening::Trial { key, .. }) if !known.contains(&key) => false,
            Ok(Opening::Trial { key, id, rung }) => match IdleConnection::begin(stream, rung, &[], now) {
                Ok(connection) => {
                    self.role = Role::Trial { connection: Box::new(connection), key, id };
                    true
                }
                Err(error) => {
                    notify(ServeNotice::Unusable(self.peer, &error.to_string()));
                    false
                }
            },
            Err(answer) => stream.write_all(answer.as_bytes()).is_ok() && self.keep(),
        }
    }

    /// Sends text on a control connection. Returns whether the connection stays.
    fn send(&mut self, text: &str) -> bool {
        match &mut self.role {
            Role::Control { stream, .. } => stream.write_all(text.as_bytes()).is_ok(),
            _ => true,
        }
    }

    /// Returns the longest wait before the next step.
    fn rest(&self, now: Duration) -> Duration {
        match &self.role {
            Role::Trial { connection, .. } => connection.rest(now),
            _ => REST,
        }
    }
}

/// The first line of a new connection.
enum FirstLine {
    /// A line that begins with the magic word.
    Line(String),
    /// No data yet, or the beginning of such a line.
    Unfinished,
    /// Other data.
    Foreign,
    /// The connection has ended.
    Ended,
}

/// Reads the first line of a connection.
fn read_line(stream: &mut TcpStream, lines: &mut LineBuffer) -> FirstLine {
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return FirstLine::Ended,
            Ok(size) => lines.push(buffer.get(..size).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return FirstLine::Unfinished,
            Err(_) => return FirstLine::Ended,
        }
        if !lines.may_be_magic() {
            return FirstLine::Foreign;
        }
        match lines.line() {
            Ok(None) => {}
            Ok(Some(line)) => return FirstLine::Line(line),
            Err(()) => return FirstLine::Foreign,
        }
    }
}

/// Reads and discards data. Returns whether data had arrived, or `None` if the connection has ended.
fn read_some(stream: &mut TcpStream) -> Option<bool> {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => None,
        Ok(_) => Some(true),
        Err(error) => {
            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted).then_some(false)
        }
    }
}
