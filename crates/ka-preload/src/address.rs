//! Socket addresses, as the kernel and the program write them.

#![expect(unsafe_code, reason = "socket addresses are bytes of one type or another")]

use core::mem::{offset_of, zeroed};

use ka_core::Endpoint;
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
