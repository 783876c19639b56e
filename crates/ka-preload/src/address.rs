//! Socket addresses, as the kernel and the program write them.

#![expect(unsafe_code, reason = "socket addresses are bytes whose type depends on their family")]

use core::mem::{offset_of, zeroed};

use ka_policy::Endpoint;
use libc::{c_int, c_long, sa_family_t, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::raw;

/// Returns the peer of a connection. `None` for a listener, and for a socket whose handshake is not complete.
pub(crate) fn peer(fd: c_int) -> Option<Endpoint> {
    named(libc::SYS_getpeername, fd)
}

/// Returns the local port, or 0 if the socket is not bound.
pub(crate) fn local_port(fd: c_int) -> u16 {
    named(libc::SYS_getsockname, fd).map_or(0, |address| address.port)
}

fn named(number: c_long, fd: c_int) -> Option<Endpoint> {
    // SAFETY: the type consists of integers, for which zero is a valid value.
    let mut address: sockaddr_storage = unsafe { zeroed() };
    raw::name(number, fd, &mut address).ok()?;
    // SAFETY: an array of bytes may have any value, and these bytes are initialized.
    let bytes: [u8; size_of::<sockaddr_storage>()] = unsafe { core::mem::transmute(address) };
    parse(&bytes)
}

/// Returns the address that the program has passed to a call, if it is readable and is an IP address.
pub(crate) fn given(address: *const sockaddr, size: socklen_t) -> Option<Endpoint> {
    let mut bytes = [0; size_of::<sockaddr_in6>()];
    let size = usize::try_from(size).ok()?.min(bytes.len());
    let bytes = bytes.get_mut(..size)?;
    if !raw::read_memory(address.cast(), bytes) {
        return None;
    }
    let mut to = parse(bytes)?;
    // The kernel connects the unspecified address to the loopback address.
    match to.address {
        0 => to.address = 1,
        ANY_IPV4 => to.address = ANY_IPV4 | 0x7f00_0001,
        _ => {}
    }
    Some(to)
}

const ANY_IPV4: u128 = 0xffff_0000_0000;

fn parse(bytes: &[u8]) -> Option<Endpoint> {
    let family = sa_family_t::from_ne_bytes(*bytes.first_chunk()?);
    let port = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    match c_int::from(family) {
        libc::AF_INET => {
            let octets = *bytes.get(offset_of!(sockaddr_in, sin_addr)..)?.first_chunk()?;
            Some(Endpoint::v4(octets, port(offset_of!(sockaddr_in, sin_port))?))
        }
        libc::AF_INET6 => {
            let octets = *bytes.get(offset_of!(sockaddr_in6, sin6_addr)..)?.first_chunk()?;
            Some(Endpoint::v6(octets, port(offset_of!(sockaddr_in6, sin6_port))?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use ka_policy::Endpoint;
    use socket2::SockAddr;

    use super::{given, local_port, parse, peer};

    fn passed(address: SocketAddr, size: u32) -> Option<Endpoint> {
        given(SockAddr::from(address).as_ptr().cast(), size)
    }

    #[test]
    fn a_passed_address_is_read_as_the_kernel_reads_it() {
        let v4 = SocketAddr::from(([192, 0, 2, 1], 443));
        let v6 = SocketAddr::from(("2001:db8::1".parse::<Ipv6Addr>().unwrap(), 443));
        assert_eq!(passed(v4, 16), Some(v4.into()));
        assert_eq!(passed(v6, 28), Some(v6.into()));
        // The size may be larger than the address, as with sockaddr_storage.
        assert_eq!(given(SockAddr::from(v6).as_ptr().cast(), 128), Some(v6.into()));
        assert_eq!(passed(v4, 7), None, "the address is truncated");
        assert_eq!(passed(v6, 20), None, "the address is truncated");
        assert_eq!(passed(v4, 0), None);
        assert_eq!(given(std::ptr::null(), 16), None);
        assert_eq!(given(8 as *const _, 16), None);
        // The unspecified address connects to this machine.
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80));
        assert_eq!(passed(any, 16), Some(SocketAddr::from(([127, 0, 0, 1], 80)).into()));
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80));
        assert_eq!(passed(any, 28), Some(SocketAddr::from((Ipv6Addr::LOCALHOST, 80)).into()));
        let unix = SockAddr::unix("/x").unwrap();
        assert_eq!(given(unix.as_ptr().cast(), unix.len()), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn peer_and_local_port_are_those_of_the_kernel() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(peer(stream.as_raw_fd()), Some(stream.peer_addr().unwrap().into()));
        assert_eq!(local_port(stream.as_raw_fd()), stream.local_addr().unwrap().port());
        assert_eq!(peer(listener.as_raw_fd()), None);
        assert_eq!(local_port(listener.as_raw_fd()), listener.local_addr().unwrap().port());
        assert_eq!((peer(-1), local_port(-1)), (None, 0));
    }
}
