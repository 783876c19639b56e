//! The kernel's list of the TCP sockets in this network namespace. sock_diag(7)
//!
//! The list does not contain SO_KEEPALIVE, but it contains the timer that is armed (net/ipv4/inet_diag.c,
//! `inet_sk_diag_fill`):
//!
//! - Timer 2 is the keepalive timer, so keepalive is on.
//! - If the retransmission timer (1) or the zero-window probe timer (4) is armed, the kernel reports this timer
//!   instead. Then keepalive may be on or off.
//! - If an established connection has no timer, keepalive is off, because the kernel arms the keepalive timer whenever
//!   keepalive is on. In other states, a missing timer proves nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use ka_core::Status;
use netlink_packet_core::{
    DecodeError, ErrorBuffer, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
    Parseable as _,
};
use netlink_packet_sock_diag::constants::INET_DIAG_INFO;
pub use netlink_packet_sock_diag::inet::Timer;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

use crate::{Error, Result};

/// A state of a TCP socket, by its number in <netinet/tcp.h>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the states are those of tcp(7) and RFC 9293")]
pub enum State {
    Established = 1,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Established,
        Self::SynSent,
        Self::SynRecv,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
    ];

    /// Returns the states in which a socket has options.
    pub fn with_options() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|state| !matches!(state, Self::TimeWait | Self::SynRecv))
    }

    /// Returns the state with this number.
    pub(crate) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == number)
    }

    /// Returns the name as in ss(8).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn-sent",
            Self::SynRecv => "syn-recv",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::TimeWait => "time-wait",
            Self::Close => "close",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
        }
    }

    /// Returns whether a connection was established and has not ended. One or both sides may have closed it.
    pub(crate) const fn is_connected(self) -> bool {
        !matches!(self, Self::SynSent | Self::SynRecv | Self::TimeWait | Self::Close | Self::Listen)
    }

    /// Returns whether the keepalive timer runs in this state if keepalive is on.
    const fn runs_keepalive(self) -> bool {
        matches!(self, Self::Established | Self::CloseWait)
    }
}

/// A TCP socket, as the kernel lists it.
#[derive(Debug)]
pub struct DiagSocket {
    /// The local address.
    pub local: SocketAddr,
    /// The peer's address. `None` if the socket has no peer, such as a listener.
    pub peer: Option<SocketAddr>,
    /// The state.
    pub state: State,
    /// The timer that is armed, if any.
    pub timer: Option<Timer>,
    /// The socket cookie: a number that the kernel gives to no other socket until the machine restarts. BPF programs
    /// get it from `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// The inode. 0 if no process has a descriptor of the socket.
    pub inode: u32,
    /// The ID of the cgroup in which the socket was created. 0 before Linux 5.7, or without cgroups of version 2.
    pub cgroup: u64,
    /// The status of the connection. `None` if the caller did not request it, or the socket has none.
    pub status: Option<Status>,
}

impl DiagSocket {
    /// Returns whether keepalive is on. `None` if the timer proves neither.
    pub fn keepalive(&self) -> Option<bool> {
        match self.timer {
            // After close(2), the kernel uses the same timer to limit its wait for the peer's FIN (FIN_WAIT2).
            Some(Timer::KeepAlive(_)) => self.state.runs_keepalive().then_some(true),
            None if self.state.runs_keepalive() => Some(false),
            _ => None,
        }
    }

    /// Returns whether the local or the peer port is this one.
    pub fn has_port(&self, port: u16) -> bool {
        self.local.port() == port || self.peer.is_some_and(|peer| peer.port() == port)
    }

    /// Returns whether data is unacknowledged, or waits until the peer opens its window. Until then, the kernel sends
    /// no keepalive probes.
    pub fn is_suspended(&self) -> bool {
        self.state.runs_keepalive()
            && (matches!(self.timer, Some(Timer::Retransmit(..) | Timer::Probe(_)))
                || self.status.is_some_and(|status| status.unacked > 0))
    }
}

/// Lists all IPv4 and IPv6 sockets in these states. Each subflow of a Multipath TCP connection has its own entry.
///
/// If `with_status`, the call may block forever: the kernel takes each socket's lock to report the connection's status,
/// and another program may hold that lock.
///
/// # Errors
///
/// [`Error::NoSocketList`] if the kernel has neither the list nor a module for it. Otherwise the error of the kernel.
pub(crate) fn dump(states: &[State], with_status: bool) -> Result<Vec<DiagSocket>> {
    Lister::open()?.dump(states, with_status)
}

/// A netlink socket that lists the TCP sockets of the network namespace in which it was opened.
pub(crate) struct Lister(Socket);

impl Lister {
    /// Opens a netlink socket in the calling thread's network namespace, which then exists as long as this socket.
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Does the same as [`dump`], for the namespace of this socket. After an error, do not use the socket again.
    pub(crate) fn dump(&self, states: &[State], with_status: bool) -> Result<Vec<DiagSocket>> {
        let wanted = states.iter().fold(0, |set, state| set | 1_u32 << *state as u32);
        let mut entries = Vec::new();
        for (family, socket_id) in [(libc::AF_INET, SocketId::new_v4()), (libc::AF_INET6, SocketId::new_v6())]
        {
            let request = InetRequest {
                family: byte(family),
                protocol: byte(libc::IPPROTO_TCP),
                extensions: if with_status { ExtensionFlags::INFO } else { ExtensionFlags::empty() },
                states: StateFlags::from_bits_retain(wanted),
                socket_id,
            };
            match dump_family(&self.0, request, &mut entries) {
                // ENOENT means that the kernel does not list this family. If it does not list IPv4, it lists no TCP
                // sockets at all. If it does not list IPv6, the kernel was built without IPv6 and has no such sockets.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && family == libc::AF_INET => {
                    return Err(Error::NoSocketList);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(entries)
    }
}

/// A connection, as the kernel finds it. The cookie distinguishes it from a later connection with the same addresses.
pub(crate) struct ConnectionId {
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// The index of the interface that the socket is bound to, or 0.
    pub(crate) interface: u32,
    pub(crate) cookie: u64,
}

/// Ends a connection of the calling thread's network namespace. Its owner gets ECONNABORTED, and the peer a reset.
/// `SOCK_DESTROY`
///
/// The call may block forever: the kernel takes the socket's lock, and another program may hold that lock.
///
/// # Errors
///
/// ENOENT: there is no such connection. EPERM: CAP_NET_ADMIN is missing. EOPNOTSUPP: see [`check_destroy`].
pub(crate) fn destroy(id: &ConnectionId) -> io::Result<()> {
    let ConnectionId { local, peer, interface, cookie } = id;
    let words = [(cookie & 0xffff_ffff) as u32, (cookie >> 32) as u32].map(u32::to_ne_bytes);
    let mut bytes = [0; 8];
    for (slot, byte) in bytes.iter_mut().zip(words.into_iter().flatten()) {
        *slot = byte;
    }
    let request = InetRequest {
        family: byte(if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }),
        protocol: byte(libc::IPPROTO_TCP),
        extensions: ExtensionFlags::empty(),
        states: StateFlags::empty(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: peer.port(),
            source_address: local.ip(),
            destination_address: peer.ip(),
            interface_id: *interface,
            cookie: bytes,
        },
    };
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    send(&socket, NLM_F_REQUEST | NLM_F_ACK, NetlinkPayload::InnerMessage(message))?;
    let mut buffer = Vec::with_capacity(4096);
    socket.recv(&mut buffer, 0)?;
    match read(&buffer, &mut Vec::new()) {
        // The errno 0 acknowledges the request.
        Err(error) if error.raw_os_error() == Some(0) => Ok(()),
        other => other.map(drop),
    }
}

/// Checks whether this kernel can end connections, by a request for a connection that cannot exist.
///
/// # Errors
///
/// [`Error::NoSocketDestroy`], [`Error::NoSocketList`], or the error of the kernel.
pub(crate) fn check_destroy() -> Result<()> {
    // Without the kernel's module, the request below would fail with ENOENT too.
    dump(&[State::SynSent], false)?;
    let nowhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let id = ConnectionId { local: nowhere, peer: nowhere, interface: 0, cookie: 0 };
    match destroy(&id).map_err(|error| error.raw_os_error()) {
        Err(Some(libc::EOPNOTSUPP)) => Err(Error::NoSocketDestroy),
        Err(Some(libc::ENOENT)) | Ok(()) => Ok(()),
        Err(errno) => Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO)).into()),
    }
}

/// The attribute with the ID of a socket's cgroup, from <linux/inet_diag.h>.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Converts a family or a protocol, whose numbers (2, 10 and 6) fit in a byte.
fn byte(number: libc::c_int) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn dump_family(socket: &Socket, request: InetRequest, entries: &mut Vec<DiagSocket>) -> io::Result<()> {
    send(socket, NLM_F_REQUEST | NLM_F_DUMP, SockDiagMessage::InetRequest(request).into())?;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        if read(&buffer, entries)? {
            return Ok(());
        }
    }
}

/// Sends a request with these flags.
fn send<M: NetlinkSerializable>(socket: &Socket, flags: u16, payload: NetlinkPayload<M>) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.header.length as usize];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// A socket that the kernel has destroyed.
#[derive(Debug)]
pub struct DestroyedSocket {
    /// The socket. Its inode is 0, and it has no timer.
    pub socket: DiagSocket,
    /// The data of its connection.
    pub transfer: Transfer,
}

/// The data of a connection, in bytes. `struct tcp_info`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The sequence numbers that the peer has acknowledged: data, the SYN if this end has connected, and the FIN if
    /// this end has sent one.
    pub acknowledged: u64,
    /// Data that was sent, each byte once.
    pub sent: u64,
    /// Data that was not sent.
    pub unsent: u64,
}

impl Transfer {
    /// Reads `struct tcp_info`. Returns `None` before Linux 4.19, which lacks some fields.
    fn from_info(info: &[u8]) -> Option<Self> {
        /// The offsets of `tcpi_bytes_acked`, `tcpi_notsent_bytes`, `tcpi_bytes_sent` and `tcpi_bytes_retrans`.
        const ACKED: usize = 120;
        const NOT_SENT: usize = 144;
        const SENT: usize = 200;
        const RETRANSMITTED: usize = 208;
        let double = |place: usize| Some(u64::from_ne_bytes(*info.get(place..)?.first_chunk()?));
        let not_sent = u32::from_ne_bytes(*info.get(NOT_SENT..)?.first_chunk()?);
        Some(Self {
            acknowledged: double(ACKED)?,
            sent: double(SENT)?.saturating_sub(double(RETRANSMITTED)?),
            unsent: not_sent.into(),
        })
    }

    /// Returns whether the peer has acknowledged all data and a FIN. `is_accepted` says whether the peer has connected.
    pub fn has_acknowledged_fin(&self, is_accepted: bool) -> bool {
        let syn = u64::from(!is_accepted);
        self.unsent == 0 && self.acknowledged > self.sent.saturating_add(syn)
    }

    /// Returns whether data is not acknowledged.
    pub fn has_data(&self, is_accepted: bool) -> bool {
        let syn = u64::from(!is_accepted);
        self.unsent > 0 || self.acknowledged < self.sent.saturating_add(syn)
    }
}

/// Parses one buffer of netlink messages of the group of destroyed sockets, and appends the sockets.
pub fn read_destroyed(messages: &[u8], sockets: &mut Vec<DestroyedSocket>) {
    let mut rest = messages;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let payload = message.payload();
        if let Some(socket) = entry(payload) {
            let transfer = transfer(payload).unwrap_or_default();
            sockets.push(DestroyedSocket { socket, transfer });
        }
        let length = (message.length() as usize).next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// Parses the data of a connection, from the attributes that follow a `struct inet_diag_msg`.
fn transfer(payload: &[u8]) -> Option<Transfer> {
    let mut attributes = NlasIterator::new(payload.get(HEADER..)?).flatten();
    let info = attributes.find(|attribute| attribute.kind() == INET_DIAG_INFO)?;
    Transfer::from_info(info.value())
}

/// Parses one buffer of netlink messages and appends the sockets. Returns true after the last message of the list.
///
/// # Errors
///
/// The errno that the messages contain if the kernel could not finish the list, or [`io::ErrorKind::InvalidData`].
pub fn read(messages: &[u8], entries: &mut Vec<DiagSocket>) -> io::Result<bool> {
    let mut rest = messages;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(invalid)?;
        match message.message_type() {
            NLMSG_DONE => return outcome(message.payload()).map(|()| true),
            NLMSG_ERROR => {
                let payload = message.payload();
                let error = ErrorBuffer::new_checked(&payload).map_err(invalid)?;
                let errno = ErrorMessage::parse(&error).map_err(invalid)?.raw_code().wrapping_neg();
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => entries.extend(entry(message.payload())),
        }
        // Each message starts at a multiple of 4. NLMSG_ALIGN of <linux/netlink.h>
        let length = (message.length() as usize).next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn invalid(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Reads whether the kernel finished the list, from the last message. It starts with a negative errno, or 0.
fn outcome(end: &[u8]) -> io::Result<()> {
    match end.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(errno) if errno < 0 => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Ok(()),
    }
}

/// The size of `struct inet_diag_msg`.
const HEADER: usize = 72;

/// Parses a `struct inet_diag_msg` and two of the attributes that follow it.
fn entry(payload: &[u8]) -> Option<DiagSocket> {
    let header = InetResponseHeader::parse(payload).ok()?;
    let id = header.socket_id;
    let (mut status, mut cgroup) = (None, 0);
    for attribute in NlasIterator::new(payload.get(HEADER..)?).flatten() {
        match attribute.kind() {
            INET_DIAG_INFO => status = status.or(Status::from_info(attribute.value())),
            INET_DIAG_CGROUP_ID => {
                cgroup = attribute.value().first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            }
            _ => {}
        }
    }
    Some(DiagSocket {
        local: address(id.source_address, id.source_port, id.interface_id),
        peer: (id.destination_port != 0)
            .then(|| address(id.destination_address, id.destination_port, id.interface_id)),
        state: State::numbered(header.state)?,
        timer: header.timer,
        cookie: cookie(id.cookie),
        inode: header.inode,
        cgroup,
        status,
    })
}

/// Reads a cookie: two words in native byte order, the lower one first. net/core/sock_diag.c, `sock_diag_save_cookie`
fn cookie(bytes: [u8; 8]) -> u64 {
    let mut words = bytes.chunks_exact(4).filter_map(<[u8]>::first_chunk).copied().map(u32::from_ne_bytes);
    let mut word = || u64::from(words.next().unwrap_or(0));
    word() | word() << 32
}

/// Returns a socket address. A link-local address needs its interface.
pub(crate) fn address(address: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, port, 0, interface).into(),
        _ => SocketAddr::new(address, port),
    }
}
