//! Descriptors of every kind: TCP in each state that a program can reach, Multipath TCP, and descriptors that are not
//! TCP.
//!
//! A descriptor is made once and used again, after its options were reset. If its connection has ended meanwhile, it is
//! made again. (Connections in SYN-RECV and TIME-WAIT have no descriptor.)

use std::ffi::{CStr, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use libc::c_int;

use crate::kernel::{info, set_option};

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// A descriptor, and other descriptors that must stay open, such as its peer.
struct OpenSocket {
    fd: RawFd,
    #[expect(dead_code, reason = "kept open, and never read")]
    held: Vec<OwnedFd>,
}

type Make = fn() -> io::Result<OpenSocket>;

/// A kind of descriptor.
struct Kind {
    name: &'static str,
    make: Make,
    /// The state of a TCP socket of this kind.
    state: Option<u8>,
    made: Option<OpenSocket>,
    /// True if the descriptor was used since `begin`.
    is_used: bool,
}

/// One descriptor of each kind that this machine supports.
pub struct Sockets(Vec<Kind>);

impl Sockets {
    /// Makes one descriptor of each kind. Prints the kinds that this machine does not support.
    pub fn new() -> Self {
        let mut kinds = Vec::new();
        for (name, make, state) in ALL {
            match make() {
                Ok(made) => kinds.push(Kind { name, make, state, made: Some(made), is_used: false }),
                Err(error) if state.is_none() || name.starts_with("mptcp") => {
                    eprintln!("sockets: no {name} here: {error}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        Self(kinds)
    }

    /// Marks all descriptors as unused.
    pub fn begin(&mut self) {
        self.0.iter_mut().for_each(|kind| kind.is_used = false);
    }

    /// Returns a descriptor by number, which may be any number, and its name. At its first use, its options are reset.
    pub fn get(&mut self, number: u8) -> (RawFd, &'static str) {
        let count = self.0.len();
        let kind = &mut self.0[usize::from(number) % count];
        let is_in_state = |made: &OpenSocket| {
            kind.state.is_none_or(|state| info(made.fd).is_some_and(|info| info.tcpi_state == state))
        };
        if !kind.is_used {
            let is_fresh = kind.name.ends_with("fresh");
            if is_fresh || !kind.made.as_ref().is_some_and(is_in_state) {
                // Close the old one first, because a kind may need a certain descriptor number.
                kind.made = None;
                kind.made = Some((kind.make)().unwrap_or_else(|error| panic!("{}: {error}", kind.name)));
            } else if let (Some(made), Some(_)) = (&kind.made, kind.state) {
                reset(made.fd);
            }
            kind.is_used = true;
        }
        (kind.made.as_ref().map_or(-1, |made| made.fd), kind.name)
    }
}

impl Default for Sockets {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets the options of a new connection, with the default sysctls.
fn reset(fd: c_int) {
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 0);
    for (name, value) in [
        (libc::TCP_KEEPINTVL, 75),
        (libc::TCP_KEEPCNT, 9),
        (libc::TCP_KEEPIDLE, 7200),
        (libc::TCP_USER_TIMEOUT, 0),
        (crate::kernel::RTO_MAX, 120_000),
    ] {
        let _ = set_option(fd, libc::IPPROTO_TCP, name, value);
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "these calls take no pointer, or a C string")]
const ALL: [(&str, Make, Option<u8>); 47] = [
    ("tcp4 fresh", || tcp(libc::AF_INET).map(without_peer), Some(CLOSE)),
    ("tcp6 fresh", || tcp(libc::AF_INET6).map(without_peer), Some(CLOSE)),
    ("tcp4 bound", || bound(libc::AF_INET, libc::IPPROTO_TCP).map(without_peer), Some(CLOSE)),
    ("tcp4 listener", || listener(libc::AF_INET, libc::IPPROTO_TCP).map(without_peer), Some(LISTEN)),
    ("tcp4 listener, one waits", awaited, Some(LISTEN)),
    ("tcp6 listener", || listener(libc::AF_INET6, libc::IPPROTO_TCP).map(without_peer), Some(LISTEN)),
    ("tcp4 client", || pair(libc::AF_INET).map(|(one, other)| with(one, other)), Some(ESTABLISHED)),
    ("tcp4 accepted", || pair(libc::AF_INET).map(|(one, other)| with(other, one)), Some(ESTABLISHED)),
    ("tcp6 client", || pair(libc::AF_INET6).map(|(one, other)| with(one, other)), Some(ESTABLISHED)),
    ("tcp6 accepted", || pair(libc::AF_INET6).map(|(one, other)| with(other, one)), Some(ESTABLISHED)),
    ("tcp4 unread data", unread, Some(ESTABLISHED)),
    ("tcp4 syn-sent", syn_sent, Some(SYN_SENT)),
    ("tcp4 fin-wait-1", fin_wait_1, Some(FIN_WAIT_1)),
    ("tcp4 fin-wait-2", fin_wait_2, Some(FIN_WAIT_2)),
    ("tcp4 close-wait", close_wait, Some(CLOSE_WAIT)),
    ("tcp4 last-ack", last_ack, Some(LAST_ACK)),
    ("tcp4 closing", closing, Some(CLOSING)),
    ("tcp4 ended", ended, Some(CLOSE)),
    ("tcp4 reset", was_reset, Some(CLOSE)),
    (
        "mptcp4 fresh",
        || socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).map(without_peer),
        None,
    ),
    (
        "mptcp6 fresh",
        || socket(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).map(without_peer),
        None,
    ),
    ("mptcp4 listener", || listener(libc::AF_INET, libc::IPPROTO_MPTCP).map(without_peer), Some(LISTEN)),
    ("mptcp4 client", || mptcp_pair(true).map(|(one, other)| with(one, other)), Some(ESTABLISHED)),
    ("mptcp4 accepted", || mptcp_pair(true).map(|(one, other)| with(other, one)), Some(ESTABLISHED)),
    ("mptcp4 fallen back", || mptcp_pair(false).map(|(one, other)| with(one, other)), Some(ESTABLISHED)),
    ("udp4", || socket(libc::AF_INET, libc::SOCK_DGRAM, 0).map(without_peer), None),
    ("udp6", || socket(libc::AF_INET6, libc::SOCK_DGRAM, 0).map(without_peer), None),
    ("unix stream", || socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).map(without_peer), None),
    ("unix datagram", || socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map(without_peer), None),
    ("unix seqpacket", || socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).map(without_peer), None),
    ("raw icmp", || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).map(without_peer), None),
    ("raw tcp", || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP).map(without_peer), None),
    ("packet", || socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(without_peer), None),
    (
        "netlink route",
        || socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).map(without_peer),
        None,
    ),
    // Its protocol number is that of TCP.
    ("netlink xfrm", || socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM).map(without_peer), None),
    ("vsock", || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).map(without_peer), None),
    ("pipe, read end", || pipe().map(|(read, write)| with(read, write)), None),
    ("pipe, write end", || pipe().map(|(read, write)| with(write, read)), None),
    ("eventfd", || owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }).map(without_peer), None),
    ("epoll", || owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(without_peer), None),
    (
        "file",
        || owned(unsafe { libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC) }).map(without_peer),
        None,
    ),
    ("device", || open(c"/dev/null", libc::O_RDWR).map(without_peer), None),
    ("folder", || open(c"/", libc::O_RDONLY | libc::O_DIRECTORY).map(without_peer), None),
    ("O_PATH", || open(c"/", libc::O_PATH).map(without_peer), None),
    ("closed", || Ok(OpenSocket { fd: 0x000f_fff0, held: Vec::new() }), None),
    ("negative", || Ok(OpenSocket { fd: -1, held: Vec::new() }), None),
    ("least", || Ok(OpenSocket { fd: c_int::MIN, held: Vec::new() }), None),
];

fn without_peer(fd: OwnedFd) -> OpenSocket {
    OpenSocket { fd: fd.as_raw_fd(), held: vec![fd] }
}

fn with(fd: OwnedFd, other: OwnedFd) -> OpenSocket {
    OpenSocket { fd: fd.as_raw_fd(), held: vec![fd, other] }
}

fn check(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn owned(answer: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is new, and nothing else owns it.
    check(answer).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open(path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the path is a C string.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// Makes a non-blocking socket.
fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer.
    owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) })
}

pub fn tcp(family: c_int) -> io::Result<OwnedFd> {
    socket(family, libc::SOCK_STREAM, libc::IPPROTO_TCP)
}

/// Returns the loopback address with a port, for the kernel.
pub fn loopback(family: c_int, port: u16) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all fields are numbers, which may be zero.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let pointer = &raw mut address;
    let size = if family == libc::AF_INET {
        // SAFETY: a sockaddr_storage is large enough and aligned for a sockaddr_in.
        let v4 = unsafe { &mut *pointer.cast::<libc::sockaddr_in>() };
        v4.sin_family = 2;
        v4.sin_port = port.to_be();
        v4.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        size_of::<libc::sockaddr_in>()
    } else {
        // SAFETY: as above, for a sockaddr_in6.
        let v6 = unsafe { &mut *pointer.cast::<libc::sockaddr_in6>() };
        v6.sin6_family = 10;
        v6.sin6_port = port.to_be();
        v6.sin6_addr.s6_addr[15] = 1;
        size_of::<libc::sockaddr_in6>()
    };
    (address, libc::socklen_t::try_from(size).unwrap())
}

fn bound(family: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    let fd = socket(family, libc::SOCK_STREAM, protocol)?;
    let (address, size) = loopback(family, 0);
    // SAFETY: the size is that of the address.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size) })?;
    Ok(fd)
}

fn listener(family: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    let fd = bound(family, protocol)?;
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::listen(fd.as_raw_fd(), 0) })?;
    Ok(fd)
}

/// Makes a listener with a connection in its queue.
fn awaited() -> io::Result<OpenSocket> {
    let (listener, client) = (listener(libc::AF_INET, libc::IPPROTO_TCP)?, tcp(libc::AF_INET)?);
    connect(&client, &listener)?;
    Ok(with(listener, client))
}

/// Connects to a listener without blocking.
fn connect(client: &OwnedFd, listener: &OwnedFd) -> io::Result<()> {
    // SAFETY: all fields are numbers, which may be zero.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the size is that of the address, and the kernel accesses no more.
    let answer = unsafe {
        check(libc::getsockname(listener.as_raw_fd(), (&raw mut address).cast(), &raw mut size))?;
        libc::connect(client.as_raw_fd(), (&raw const address).cast(), size)
    };
    match check(answer) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Accepts a connection. Waits up to a second.
fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let mut entry = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the array has one entry, and the null pointers mean that no address is wanted.
    unsafe {
        check(libc::poll(&raw mut entry, 1, 1000))?;
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        owned(libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags))
    }
}

fn join(client: OwnedFd, listener: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    connect(&client, listener)?;
    let accepted = accept(listener)?;
    Ok((client, accepted))
}

/// Makes a connection. Returns both ends.
fn pair(family: c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    join(tcp(family)?, &listener(family, libc::IPPROTO_TCP)?)
}

/// Makes a Multipath TCP connection. Returns both ends. If `both` is false, the other end is TCP, and the connection
/// falls back to TCP.
fn mptcp_pair(both: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let protocol = if both { libc::IPPROTO_MPTCP } else { libc::IPPROTO_TCP };
    let client = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    let (client, accepted) = join(client, &listener(libc::AF_INET, protocol)?)?;
    // The kernel decides about Multipath TCP when the first data arrives.
    // SAFETY: each buffer has one byte.
    unsafe {
        check_size(libc::send(accepted.as_raw_fd(), c"x".as_ptr().cast(), 1, 0))?;
        let mut entry = libc::pollfd { fd: client.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        check(libc::poll(&raw mut entry, 1, 1000))?;
        let mut byte = 0_u8;
        check_size(libc::recv(client.as_raw_fd(), (&raw mut byte).cast::<c_void>(), 1, 0))?;
    }
    Ok((client, accepted))
}

fn check_size(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Sends until the other end's window is closed and the send buffer is full.
fn fill(fd: &OwnedFd) -> io::Result<()> {
    let data = [0_u8; 65536];
    loop {
        // SAFETY: the size is that of the buffer.
        let sent =
            unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
        match check_size(sent) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn shut(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(|_| ())
}

fn unread() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    fill(&client)?;
    Ok(with(client, accepted))
}

/// Connects to a listener whose queue is full, so the kernel does not answer.
fn syn_sent() -> io::Result<OpenSocket> {
    let listener = listener(libc::AF_INET, libc::IPPROTO_TCP)?;
    let mut held = Vec::new();
    for _ in 0..16 {
        let client = tcp(libc::AF_INET)?;
        connect(&client, &listener)?;
        let fd = client.as_raw_fd();
        held.push(client);
        if info(fd).is_some_and(|info| info.tcpi_state == SYN_SENT) {
            held.push(listener);
            return Ok(OpenSocket { fd, held });
        }
    }
    Err(io::Error::other("no connection stayed in SYN-SENT"))
}

fn fin_wait_1() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    fill(&client)?;
    shut(&client)?;
    Ok(with(client, accepted))
}

fn fin_wait_2() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    shut(&client)?;
    Ok(with(client, accepted))
}

fn close_wait() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    shut(&client)?;
    Ok(with(accepted, client))
}

fn last_ack() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    shut(&client)?;
    fill(&accepted)?;
    shut(&accepted)?;
    Ok(with(accepted, client))
}

fn closing() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    fill(&client)?;
    shut(&client)?;
    shut(&accepted)?;
    Ok(with(client, accepted))
}

fn ended() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    shut(&client)?;
    shut(&accepted)?;
    // The end that was closed first would be in TIME-WAIT. This end was closed last.
    Ok(with(accepted, client))
}

fn was_reset() -> io::Result<OpenSocket> {
    let (client, accepted) = pair(libc::AF_INET)?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = libc::socklen_t::try_from(size_of::<libc::linger>()).unwrap();
    let fd = accepted.as_raw_fd();
    // SAFETY: the pointer is to a `linger`, and the size is its size.
    check(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size)
    })?;
    drop(accepted);
    Ok(without_peer(client))
}
