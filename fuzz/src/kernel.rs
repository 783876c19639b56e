//! Makes calls as C does, and reads a descriptor's settings from the kernel by getsockopt(2), without ka.

use std::ffi::c_void;
use std::ptr;

use libc::c_int;

use crate::policy::{KEEP, Policy};

/// The `errno` before a call, which no call sets. A successful call must leave it unchanged.
const UNTOUCHED: c_int = 0x5a5a;

fn errno() -> *mut c_int {
    // SAFETY: the call takes no argument. This thread's `errno` lives as long as the thread.
    unsafe { libc::__errno_location() }
}

/// Makes a call. Returns its result, and `errno` if the call has set it.
pub fn call_raw<T>(call: impl FnOnce() -> T) -> (T, Option<c_int>) {
    // SAFETY: `errno` belongs to this thread.
    unsafe { *errno() = UNTOUCHED };
    let answer = call();
    // SAFETY: as above.
    let errno = unsafe { *errno() };
    (answer, (errno != UNTOUCHED).then_some(errno))
}

/// Makes a call that must either return -1 and set `errno`, or do neither.
pub fn call(call: impl FnOnce() -> c_int) -> Result<c_int, c_int> {
    match call_raw(call) {
        (-1, Some(errno)) => Err(errno),
        (answer @ 0.., None) => Ok(answer),
        (answer, errno) => panic!("result {answer} with errno {errno:?}"),
    }
}

/// Returns a struct of the API: its size, and the words after it.
pub fn words(size: u32, words: &[i32]) -> Vec<u8> {
    size.to_ne_bytes().into_iter().chain(words.iter().flat_map(|word| word.to_ne_bytes())).collect()
}

/// Calls getsockopt(2) for an int.
pub fn option(fd: c_int, level: c_int, name: c_int) -> Result<c_int, c_int> {
    let (mut value, mut size) = (0, 4);
    // SAFETY: the kernel writes at most four bytes to an int.
    let answer =
        unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast::<c_void>(), &raw mut size) };
    // SAFETY: `errno` belongs to this thread.
    if answer == 0 { Ok(value) } else { Err(unsafe { *errno() }) }
}

/// Calls setsockopt(2) for an int.
pub fn set_option(fd: c_int, level: c_int, name: c_int, value: c_int) -> Result<(), c_int> {
    // SAFETY: the kernel reads an int.
    let answer = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast::<c_void>(), 4) };
    // SAFETY: `errno` belongs to this thread.
    if answer == 0 { Ok(()) } else { Err(unsafe { *errno() }) }
}

/// `TCP_RTO_MAX_MS` of linux/tcp.h
pub const RTO_MAX: c_int = 44;

/// Returns whether this is a socket of Multipath TCP, whose `TCP_RTO_MAX_MS` no program can set.
pub fn is_mptcp(fd: c_int) -> bool {
    option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_MPTCP)
}

/// Returns the `TCP_RTO_MAX_MS` of a TCP socket that has `before`, after it has got `wanted`. The kernel rounds up to
/// its tick, which is at most 10 ms. ka does not write a value that the socket has within a tick.
pub fn rto_max_after(before: c_int, wanted: c_int) -> c_int {
    if (wanted..=wanted.saturating_add(9)).contains(&before) { before } else { rounded_rto_max(wanted) }
}

/// Returns the value that the kernel reports after this one has been set.
pub fn rounded_rto_max(wanted: c_int) -> c_int {
    // SAFETY: the calls take no pointer.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    set_option(fd, libc::IPPROTO_TCP, RTO_MAX, wanted).unwrap();
    let value = option(fd, libc::IPPROTO_TCP, RTO_MAX).unwrap();
    // SAFETY: as above; the descriptor is this function's own.
    unsafe { libc::close(fd) };
    value
}

/// Returns a sysctl of IPv4 in this network namespace, if the kernel has it.
pub fn sysctl(name: &str) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?.trim().parse().ok()
}

/// Returns net.ipv4.tcp_retries2.
pub fn retries() -> u8 {
    sysctl("tcp_retries2").unwrap().try_into().unwrap()
}

/// Returns the settings of a TCP socket from the kernel, as `ka_query` returns them.
pub fn policy(fd: c_int) -> Policy {
    let tcp = |name| option(fd, libc::IPPROTO_TCP, name);
    Policy {
        enabled: option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE).unwrap(),
        idle: tcp(libc::TCP_KEEPIDLE).unwrap(),
        intvl: tcp(libc::TCP_KEEPINTVL).unwrap(),
        cnt: tcp(libc::TCP_KEEPCNT).unwrap(),
        user_timeout: tcp(libc::TCP_USER_TIMEOUT).unwrap_or(KEEP),
        rto_max: tcp(RTO_MAX).unwrap_or(KEEP),
    }
}

/// Returns each option of any descriptor, or its errno, to find changes.
pub fn everything(fd: c_int) -> [Result<c_int, c_int>; 6] {
    let tcp = |name| option(fd, libc::IPPROTO_TCP, name);
    [
        option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        tcp(libc::TCP_KEEPIDLE),
        tcp(libc::TCP_KEEPINTVL),
        tcp(libc::TCP_KEEPCNT),
        tcp(libc::TCP_USER_TIMEOUT),
        tcp(RTO_MAX),
    ]
}

/// Returns the errno for a descriptor according to ka.h, or `None` for a TCP or Multipath TCP socket.
pub fn refusal(fd: c_int) -> Option<c_int> {
    // SAFETY: the call takes no pointer.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 || flags & libc::O_PATH != 0 {
        return Some(libc::EBADF);
    }
    let socket = |name| option(fd, libc::SOL_SOCKET, name);
    match (socket(libc::SO_DOMAIN), socket(libc::SO_TYPE), socket(libc::SO_PROTOCOL)) {
        (
            Ok(libc::AF_INET | libc::AF_INET6),
            Ok(libc::SOCK_STREAM),
            Ok(libc::IPPROTO_TCP | libc::IPPROTO_MPTCP),
        ) => None,
        (Err(errno), ..) => Some(errno),
        _ => Some(libc::ENOPROTOOPT),
    }
}

/// Returns the current `struct tcp_info`.
pub fn info(fd: c_int) -> Option<libc::tcp_info> {
    // SAFETY: all fields are numbers, which may be zero.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap();
    let name = libc::TCP_INFO;
    // SAFETY: the kernel writes at most the size of a `tcp_info`.
    let answer =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, name, (&raw mut info).cast(), &raw mut size) };
    (answer == 0).then_some(info)
}

/// Returns the sysctls of this network namespace.
pub fn defaults() -> Policy {
    let sysctl = |name: &str| -> i32 {
        let path = format!("/proc/sys/net/ipv4/tcp_keepalive_{name}");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    };
    Policy {
        enabled: 0,
        idle: sysctl("time"),
        intvl: sysctl("intvl"),
        cnt: sysctl("probes"),
        user_timeout: 0,
        rto_max: self::sysctl("tcp_rto_max_ms").unwrap_or(KEEP),
    }
}

/// An address that cannot be read.
pub const NULL: *mut c_void = ptr::null_mut();
