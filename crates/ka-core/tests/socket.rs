//! Tests the typed API on real sockets. socket2 reads the results.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ka_core::{Config, Error, Retransmission, RtoMax, Socket, Status, Timer, UserTimeout, defaults};
use socket2::{Domain, Protocol, SockRef, Type};

#[test]
fn a_policy_reaches_the_kernel() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = Socket::new(listener.as_raw_fd());
    let config = Config::new(60, 10, 5).unwrap().with_user_timeout(UserTimeout::Auto).unwrap();
    socket.apply(&config).unwrap();

    let socket2 = SockRef::from(&listener);
    assert!(socket2.keepalive().unwrap());
    assert_eq!(socket2.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket2.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    assert_eq!(socket2.tcp_keepalive_retries().unwrap(), 5);
    assert_eq!(socket2.tcp_user_timeout().unwrap(), Some(Duration::from_secs(110)));
}

/// Reads `TCP_RTO_MAX_MS` (44) by getsockopt(2), or returns its errno.
fn rto_max(socket: &impl AsRawFd) -> Result<i32, i32> {
    let (mut value, mut size) = (0_i32, 4);
    let pointer = (&raw mut value).cast();
    // SAFETY: `value` has `size` bytes.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, 44, pointer, &raw mut size) } {
        0 => Ok(value),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
    }
}

#[test]
fn the_longest_time_between_retransmissions_reaches_the_kernel() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = Socket::new(listener.as_raw_fd());
    let policy = Config::new(60, 10, 5).unwrap();
    let two_seconds = policy.with_rto_max(RtoMax::Milliseconds(2000)).unwrap();
    if rto_max(&listener).is_err() {
        println!("skipped: this kernel lacks TCP_RTO_MAX_MS");
        assert_eq!(
            socket.apply(&two_seconds),
            Err(Error::Unsupported(ka_core::SockOpt::Timer(Timer::RtoMax)))
        );
        assert!(!socket.is_enabled().unwrap());
        return;
    }
    let before = rto_max(&listener).unwrap();
    socket.apply(&policy).unwrap();
    assert_eq!(rto_max(&listener), Ok(before), "a policy that does not name it leaves it alone");
    socket.apply(&two_seconds).unwrap();
    assert_eq!((rto_max(&listener), socket.settings().unwrap().rto_max), (Ok(2000), Some(2000)));
    // An accepted socket inherits it.
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!((rto_max(&accepted), rto_max(&client)), (Ok(2000), Ok(before)));
    socket.apply(&policy.with_rto_max(RtoMax::Auto).unwrap()).unwrap();
    let auto = policy.with_rto_max(RtoMax::Auto).unwrap().resolved(Retransmission::read().retries);
    let auto = auto.timer(Timer::RtoMax).unwrap();
    // The kernel rounds it up to a multiple of its tick, which is at most 10 ms.
    assert!((auto..auto + 10).contains(&rto_max(&listener).unwrap()), "{auto}");
}

#[test]
fn settings_of_another_library_are_read_and_can_be_set() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket2 = SockRef::from(&listener);
    socket2.set_keepalive(true).unwrap();
    socket2.set_tcp_user_timeout(Some(Duration::from_millis(1234))).unwrap();
    let socket = Socket::new(listener.as_raw_fd());
    let settings = socket.settings().unwrap();
    assert!(settings.enabled && socket.is_enabled().unwrap());
    assert_eq!(settings.user_timeout, Some(1234));
    assert_eq!(settings.idle, defaults().unwrap().idle);
    assert_eq!(socket.timer(Timer::UserTimeout), Ok(1234));

    // The settings that were read can be set on another socket.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    Socket::new(other.as_raw_fd()).apply(&Config::try_from(settings).unwrap()).unwrap();
    assert_eq!(SockRef::from(&other).tcp_user_timeout().unwrap(), Some(Duration::from_millis(1234)));
}

#[test]
fn the_status_of_a_listener_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let status = Socket::new(listener.as_raw_fd()).status().unwrap();
    assert_eq!((status.state, status.unacked, status.probes), (10, 0, 0));
}

#[test]
fn error_messages_name_the_option_or_the_value() {
    let udp = socket2::Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    let error = Socket::new(udp.as_raw_fd()).apply(&Config::new(60, 10, 5).unwrap()).unwrap_err();
    assert_eq!((error, error.to_string().as_str()), (Error::NotTcp, "the socket is neither TCP nor MPTCP"));

    let error = Socket::new(-1).is_enabled().unwrap_err();
    assert_eq!(error.to_string(), format!("SO_PROTOCOL: the kernel answered errno {}", libc::EBADF));

    let error = Config::new(60, 10, 128).unwrap_err();
    assert_eq!(error.to_string(), "cnt is 128 probes: it must be 1..127 probes");

    let error = Config::new(32767, 32767, 127).unwrap().with_user_timeout(UserTimeout::Auto).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an automatic user timeout would be 4194176000 ms: it must be 1..2147483647 ms"
    );
}

/// Returns a `TCP_INFO` in which only the state and the number of unacknowledged segments are set.
fn info(state: u8, unacked: u32) -> Vec<u8> {
    let mut info = vec![0; size_of::<libc::tcp_info>()];
    info[std::mem::offset_of!(libc::tcp_info, tcpi_state)] = state;
    let at = std::mem::offset_of!(libc::tcp_info, tcpi_unacked);
    info[at..at + 4].copy_from_slice(&unacked.to_ne_bytes());
    info
}

#[test]
fn the_accept_queue_of_a_listener_is_not_unacknowledged_data() {
    const ESTABLISHED: u8 = 1;
    const LISTEN: u8 = 10;
    assert_eq!(Status::from_info(&info(ESTABLISHED, 7)).unwrap().unacked, 7);
    assert_eq!(Status::from_info(&info(LISTEN, 7)).unwrap().unacked, 0);
}

#[test]
fn set_errno_sets_the_errno_of_this_thread() {
    ka_core::sys::set_errno(ka_core::Errno(libc::ESTALE));
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ESTALE));
}
