//! Compares ka_get_status with the kernel's `TCP_INFO`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use ka_test::child::succeed;
use ka_test::libka::{RawStatus, STATUS_INIT, call, enable};
use ka_test::namespace::in_own_network_namespace;

fn status(fd: RawFd) -> RawStatus {
    let mut status = STATUS_INIT;
    // SAFETY: the status has its size.
    call(|ka| unsafe { (ka.ka_get_status)(fd, &raw mut status) }).unwrap();
    status
}

fn info(fd: RawFd) -> libc::tcp_info {
    // SAFETY: all fields are numbers, which may be zero, and the kernel writes at most `size` bytes.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap();
        assert_eq!(
            libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut size),
            0
        );
        info
    }
}

/// Checks each field against the kernel's field of that name. The kernel reports each time before and after the call,
/// and the time of ka_get_status must be between them.
fn assert_agrees(fd: RawFd) {
    let (kernel, status, later) = (info(fd), status(fd), info(fd));
    let [size, state, probes, retransmits, unacked, ack, recv, send, rtt] = status;
    assert_eq!(size, 36);
    let same = [u32::from(kernel.tcpi_state), kernel.tcpi_probes.into(), kernel.tcpi_retransmits.into()];
    assert_eq!([state, probes, retransmits], same);
    assert_eq!((unacked, rtt), (kernel.tcpi_unacked, kernel.tcpi_rtt));
    for (ours, before, after) in [
        (ack, kernel.tcpi_last_ack_recv, later.tcpi_last_ack_recv),
        (recv, kernel.tcpi_last_data_recv, later.tcpi_last_data_recv),
        (send, kernel.tcpi_last_data_sent, later.tcpi_last_data_sent),
    ] {
        assert!((before..=after).contains(&ours), "{ours} ms, but the kernel reports {before} to {after} ms");
    }
}

#[test]
fn fields_of_the_status_equal_the_kernel_s_tcp_info() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    // Make the three times differ: received, sent, acknowledged.
    server.write_all(b"to the client").unwrap();
    thread::sleep(Duration::from_millis(400));
    client.write_all(b"to the server").unwrap();
    thread::sleep(Duration::from_millis(400));
    assert_agrees(client.as_raw_fd());
    let [_, state, _, _, _, _, recv, send, rtt] = status(client.as_raw_fd());
    assert_eq!(state, 1);
    assert!(recv >= send + 300 && send >= 300 && rtt > 0, "received {recv} ms ago, sent {send} ms ago");
}

#[test]
fn the_queue_of_a_listener_is_not_reported_as_in_flight() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _queued = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(
        info(listener.as_raw_fd()).tcpi_unacked,
        1,
        "the kernel reports the queue's length in this field"
    );
    let [_, state, _, _, unacked, ..] = status(listener.as_raw_fd());
    assert_eq!((state, unacked), (10, 0));
}

/// The test takes the loopback of its own network down, so the peer does not answer any more.
#[test]
fn a_dead_peer_is_visible_in_probes_and_retransmits() {
    if !in_own_network_namespace("a_dead_peer_is_visible_in_probes_and_retransmits") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (idle, mut busy, probed) = (connect(), connect(), connect());
    enable(idle.as_raw_fd(), 1, 1, 100).unwrap();
    enable(probed.as_raw_fd(), 1, 1, 100).unwrap();
    thread::sleep(Duration::from_millis(1500));
    // Probes were answered meanwhile. An answer counts as an acknowledgement, but a probe does not count as sent data.
    let [_, _, probes, _, _, ack, _, send, _] = status(probed.as_raw_fd());
    assert!(probes == 0 && ack < 1000 && send >= 1400, "acknowledged {ack} ms ago, sent {send} ms ago");

    succeed(Command::new("ip").args(["link", "set", "lo", "down"]));
    busy.write_all(b"into the void").unwrap();
    thread::sleep(Duration::from_millis(3500));
    assert_agrees(idle.as_raw_fd());
    assert_agrees(busy.as_raw_fd());
    let [_, _, probes, retransmits, unacked, ..] = status(idle.as_raw_fd());
    assert!(probes >= 2 && retransmits == 0 && unacked == 0, "{probes} probes");
    let [_, _, probes, retransmits, unacked, ..] = status(busy.as_raw_fd());
    assert!(
        retransmits >= 1 && unacked == 1 && probes == 0,
        "{retransmits} retransmits, {unacked} in flight"
    );
}
