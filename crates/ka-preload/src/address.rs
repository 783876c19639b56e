//! Socket addresses, as the kernel and the program write them.

#![expect(unsafe_code, reason = "socket addresses are bytes of one type or another")]

use core::mem::{offset_of, zeroed};

use ka_policy::Endpoint;
use libc::{c_int, c_long, sa_family_t, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t};

use crate::raw;

/// The other end of a connection; none of a listener, or while a connection is being made.
pub(crate) fn peer(fd: c_int) -> Option<Endpoint> {
    named(libc::SYS_getpeername, fd)
}

/// The local port, 0 while there is none.
pub(crate) fn local_port(fd: c_int) -> u16 {
    named(libc::SYS_getsockname, fd).map_or(0, |address| address.port)
}

fn named(number: c_long, fd: c_int) -> Option<Endpoint> {
    // SAFETY: bytes, for which zeros are values.
    let mut address: sockaddr_storage = unsafe { zeroed() };
    raw::name(number, fd, &mut address).ok()?;
    // SAFETY: any bytes will do, and these are initialized.
    let bytes: [u8; size_of::<sockaddr_storage>()] = unsafe { core::mem::transmute(address) };
    parse(&bytes)
}

/// The address that the program gave with a call, if it can be read and is one of IP.
pub(crate) fn given(address: *const sockaddr, size: socklen_t) -> Option<Endpoint> {
    let mut bytes = [0; size_of::<sockaddr_in6>()];
    let size = usize::try_from(size).ok()?.min(bytes.len());
    let bytes = bytes.get_mut(..size)?;
    if !raw::read_memory(address.cast(), bytes) {
        return None;
    }
    let mut to = parse(bytes)?;
    // The kernel takes the address that means any for the loopback's.
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

    fn told(address: SocketAddr, size: u32) -> Option<Endpoint> {
        given(SockAddr::from(address).as_ptr().cast(), size)
    }

    #[test]
    fn the_program_s_address_is_read_as_the_kernel_would() {
        let v4 = SocketAddr::from(([192, 0, 2, 1], 443));
        let v6 = SocketAddr::from(("2001:db8::1".parse::<Ipv6Addr>().unwrap(), 443));
        assert_eq!(told(v4, 16), Some(v4.into()));
        assert_eq!(told(v6, 28), Some(v6.into()));
        // Larger than it need be, as sockaddr_storage.
        assert_eq!(given(SockAddr::from(v6).as_ptr().cast(), 128), Some(v6.into()));
        assert_eq!(told(v4, 7), None, "cut off");
        assert_eq!(told(v6, 20), None, "cut off");
        assert_eq!(told(v4, 0), None);
        assert_eq!(given(std::ptr::null(), 16), None);
        assert_eq!(given(8 as *const _, 16), None);
        // What means any is this machine.
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80));
        assert_eq!(told(any, 16), Some(SocketAddr::from(([127, 0, 0, 1], 80)).into()));
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80));
        assert_eq!(told(any, 28), Some(SocketAddr::from((Ipv6Addr::LOCALHOST, 80)).into()));
        let unix = SockAddr::unix("/x").unwrap();
        assert_eq!(given(unix.as_ptr().cast(), unix.len()), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn both_ends_are_the_kernel_s_word() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(peer(stream.as_raw_fd()), Some(stream.peer_addr().unwrap().into()));
        assert_eq!(local_port(stream.as_raw_fd()), stream.local_addr().unwrap().port());
        assert_eq!(peer(listener.as_raw_fd()), None);
        assert_eq!(local_port(listener.as_raw_fd()), listener.local_addr().unwrap().port());
        assert_eq!((peer(-1), local_port(-1)), (None, 0));
    }
}
