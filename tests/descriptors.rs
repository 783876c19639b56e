//! Tests every call on every kind of descriptor: the result is the documented one, and rejected sockets stay unchanged.

use std::fs::File;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use std::{io, thread};

use ka_test::kernel::{has_ipv6, has_mptcp};
use ka_test::libka::{
    AUTO, CONFIG_INIT, Getter, KEEP, NONE, OFF, ON, STATUS_INIT, apply, call, config, enable, get, query,
    with_rto_max,
};
use ka_test::log::skip;
use ka_test::socket::{CLOSED, fresh, has_rto_max, keepalive_options, option, rto_max, set_option, socket};
use libc::{EBADF, ECONNRESET, ENOPROTOOPT, ENOTCONN, ENOTSOCK, EOPNOTSUPP, c_int};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use Needs::{Keepalive, RtoMax, SetRtoMax, UserTimeout};

/// The kind of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Tcp,
    Mptcp,
    Refused(c_int),
}

/// The name of the MPTCP socket whose peer has only TCP. The kernel reports its `TCP_RTO_MAX_MS`, but rejects every
/// write.
const FALLEN_BACK: &str = "MPTCP, fallen back to TCP";

/// A descriptor, and other descriptors that must stay open, such as its peer.
struct Case {
    name: &'static str,
    fd: RawFd,
    is: Is,
    _keep: Vec<OwnedFd>,
}

fn case(name: &'static str, is: Is, fd: impl Into<OwnedFd>, keep: Vec<OwnedFd>) -> Case {
    let fd = fd.into();
    let number = fd.as_raw_fd();
    let mut keep = keep;
    keep.push(fd);
    Case { name, fd: number, is, _keep: keep }
}

fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Returns a connection whose peer has sent a reset.
fn reset(listener: &TcpListener) -> TcpStream {
    let (client, server) = pair(listener);
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    while option(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO).is_ok_and(|info| info & 0xff == 1) {
        thread::sleep(Duration::from_millis(1));
    }
    client
}

/// Returns a connection in SYN-SENT. The listener's queue is full, so the kernel does not answer.
fn syn_sent() -> Case {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut keep: Vec<OwnedFd> = vec![listener.into()];
    for _ in 0..8 {
        let client = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let _ = client.connect(&address);
        thread::sleep(Duration::from_millis(20));
        let syn_sent = 2;
        if option(client.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO).unwrap() & 0xff == syn_sent {
            return case("SYN-SENT", Is::Tcp, client, keep);
        }
        keep.push(client.into());
    }
    panic!("no connection stayed in SYN-SENT");
}

fn open_path(path: &str) -> OwnedFd {
    File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap().into()
}

fn own(fd: c_int) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    const INET: c_int = libc::AF_INET;
    const STREAM: c_int = libc::SOCK_STREAM;
    let four = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client4, accepted4) = pair(&four);
    let (shut, shut_peer) = pair(&four);
    shut.shutdown(Shutdown::Both).unwrap();
    let (finished, finished_peer) = pair(&four);
    drop(finished_peer);
    let (pipe, pipe_end) = io::pipe().unwrap();
    let (unix, unix_peer) = std::os::unix::net::UnixStream::pair().unwrap();
    // SAFETY: the calls take no pointers.
    let (event, epoll, timer) = unsafe {
        (
            own(libc::eventfd(0, 0)),
            own(libc::epoll_create1(0)),
            own(libc::timerfd_create(libc::CLOCK_MONOTONIC, 0)),
        )
    };

    let mut cases = vec![
        case("TCP, fresh", Is::Tcp, fresh(), vec![]),
        case("TCP, non-blocking", Is::Tcp, socket(INET, STREAM | libc::SOCK_NONBLOCK, 0).unwrap(), vec![]),
        case("accepted", Is::Tcp, accepted4, vec![client4.try_clone().unwrap().into()]),
        case("connected", Is::Tcp, client4, vec![]),
        syn_sent(),
        case("reset", Is::Tcp, reset(&four), vec![]),
        case("shut down", Is::Tcp, shut, vec![shut_peer.into()]),
        case("closed by the peer", Is::Tcp, finished, vec![]),
        case("listener", Is::Tcp, four, vec![]),
        case("UDP", Is::Refused(ENOPROTOOPT), socket(INET, libc::SOCK_DGRAM, 0).unwrap(), vec![]),
        case("unix stream", Is::Refused(ENOPROTOOPT), unix, vec![unix_peer.into()]),
        case(
            "unix datagram",
            Is::Refused(ENOPROTOOPT),
            socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap(),
            vec![],
        ),
        case(
            "netlink",
            Is::Refused(ENOPROTOOPT),
            socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).unwrap(),
            vec![],
        ),
        case("pipe", Is::Refused(ENOTSOCK), pipe, vec![]),
        case("pipe's other end", Is::Refused(ENOTSOCK), pipe_end, vec![]),
        case("file", Is::Refused(ENOTSOCK), File::open("/proc/self/exe").unwrap(), vec![]),
        case("eventfd", Is::Refused(ENOTSOCK), event, vec![]),
        case("epoll", Is::Refused(ENOTSOCK), epoll, vec![]),
        case("timerfd", Is::Refused(ENOTSOCK), timer, vec![]),
        case("O_PATH", Is::Refused(EBADF), open_path("/"), vec![]),
        Case { name: "closed", fd: CLOSED, is: Is::Refused(EBADF), _keep: vec![] },
        Case { name: "-1", fd: -1, is: Is::Refused(EBADF), _keep: vec![] },
        Case { name: "INT_MIN", fd: c_int::MIN, is: Is::Refused(EBADF), _keep: vec![] },
        Case { name: "INT_MAX", fd: c_int::MAX, is: Is::Refused(EBADF), _keep: vec![] },
    ];
    if has_ipv6() {
        let six = TcpListener::bind("[::1]:0").unwrap();
        let (client, accepted) = pair(&six);
        let udp = socket(libc::AF_INET6, libc::SOCK_DGRAM, 0).unwrap();
        cases.extend([
            case("TCP over IPv6, fresh", Is::Tcp, socket(libc::AF_INET6, STREAM, 0).unwrap(), vec![]),
            case("accepted over IPv6", Is::Tcp, accepted, vec![client.try_clone().unwrap().into()]),
            case("connected over IPv6", Is::Tcp, client, vec![]),
            case("listener over IPv6", Is::Tcp, six, vec![]),
            case("UDP over IPv6", Is::Refused(ENOPROTOOPT), udp, vec![]),
        ]);
    }
    if has_mptcp() {
        let mptcp =
            || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP))).unwrap();
        let any = "127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into();
        let listener = mptcp();
        listener.bind(&any).unwrap();
        listener.listen(8).unwrap();
        let client = mptcp();
        client.connect(&listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        // If the peer has only TCP, the connection falls back to TCP. Then the kernel supports a user timeout.
        let plain = TcpListener::bind("127.0.0.1:0").unwrap();
        let fallen_back = mptcp();
        fallen_back.connect(&plain.local_addr().unwrap().into()).unwrap();
        let its_peer = plain.accept().unwrap().0;
        cases.extend([
            case("MPTCP, fresh", Is::Mptcp, mptcp(), vec![]),
            case("MPTCP, connected", Is::Mptcp, client, vec![]),
            case("MPTCP, accepted", Is::Mptcp, accepted, vec![]),
            case("MPTCP, listener", Is::Mptcp, listener, vec![]),
            case(FALLEN_BACK, Is::Tcp, fallen_back, vec![its_peer.into()]),
        ]);
        if has_ipv6() {
            let six = socket(libc::AF_INET6, STREAM, libc::IPPROTO_MPTCP).unwrap();
            cases.push(case("MPTCP over IPv6", Is::Mptcp, six, vec![]));
        }
    }
    // These sockets need a privilege, or a part of the kernel that may be missing here. A raw socket of protocol TCP
    // and a netlink socket for IPsec (NETLINK_XFRM) have 6 in SO_PROTOCOL, but they are not TCP sockets.
    for (name, domain, kind, protocol) in [
        ("raw ICMP", INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("raw TCP", INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        ("netlink 6", libc::AF_NETLINK, libc::SOCK_RAW, 6),
        ("vsock", libc::AF_VSOCK, STREAM, 0),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("SCTP", INET, STREAM, libc::IPPROTO_SCTP),
        ("UDP-Lite", INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        ("ping", INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
    ] {
        match socket(domain, kind, protocol) {
            Ok(fd) => cases.push(case(name, Is::Refused(ENOPROTOOPT), fd, vec![])),
            Err(error) => skip(&format!("no {name} socket here: {error}")),
        }
    }
    cases
}

/// A part of the kernel that not every socket has.
#[derive(Clone, Copy)]
enum Needs {
    Keepalive,
    /// MPTCP does not have it.
    UserTimeout,
    /// MPTCP and kernels before Linux 6.15 do not have it.
    RtoMax,
    /// A connection of MPTCP that has fallen back to TCP does not have it either.
    SetRtoMax,
}

/// A call that takes a descriptor.
struct Call {
    name: &'static str,
    run: fn(RawFd) -> Result<c_int, c_int>,
    /// The part of the kernel that the call needs, besides keepalive.
    needs: Needs,
}

fn read(fd: RawFd, getter: Getter) -> Result<c_int, c_int> {
    get(fd, getter).map(|_value| 0)
}

const CALLS: &[Call] = &[
    Call { name: "ka_enable", run: |fd| enable(fd, 60, 10, 5), needs: Keepalive },
    Call { name: "ka_enable with KA_KEEP", run: |fd| enable(fd, KEEP, KEEP, KEEP), needs: Keepalive },
    // SAFETY: the call takes no pointer.
    Call { name: "ka_disable", run: |fd| call(|ka| unsafe { (ka.ka_disable)(fd) }), needs: Keepalive },
    Call {
        name: "ka_is_enabled",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_is_enabled)(fd) }).map(|_on_or_off| 0),
        needs: Keepalive,
    },
    Call { name: "ka_get_idle", run: |fd| read(fd, |ka| ka.ka_get_idle), needs: Keepalive },
    Call { name: "ka_get_intvl", run: |fd| read(fd, |ka| ka.ka_get_intvl), needs: Keepalive },
    Call { name: "ka_get_cnt", run: |fd| read(fd, |ka| ka.ka_get_cnt), needs: Keepalive },
    Call { name: "ka_get_user_timeout", run: |fd| read(fd, |ka| ka.ka_get_user_timeout), needs: UserTimeout },
    Call {
        name: "ka_set_user_timeout",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, 1000) }),
        needs: UserTimeout,
    },
    Call {
        name: "ka_set_user_timeout to 0",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, 0) }),
        needs: UserTimeout,
    },
    Call {
        name: "ka_set_user_timeout to KA_NONE",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, NONE) }),
        needs: UserTimeout,
    },
    Call {
        name: "ka_apply of KA_NONE",
        run: |fd| apply(fd, &config(KEEP, KEEP, KEEP, KEEP, NONE)),
        needs: UserTimeout,
    },
    Call { name: "ka_apply of zeros", run: |fd| apply(fd, &[28, 0, 0, 0, 0, 0, 0]), needs: Keepalive },
    Call {
        name: "ka_set_user_timeout to KA_AUTO",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, AUTO) }),
        needs: UserTimeout,
    },
    Call {
        name: "ka_set_user_timeout to KA_KEEP",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_user_timeout)(fd, KEEP) }),
        needs: Keepalive,
    },
    Call { name: "ka_apply of nothing", run: |fd| apply(fd, &CONFIG_INIT), needs: Keepalive },
    Call { name: "ka_apply on", run: |fd| apply(fd, &config(ON, KEEP, KEEP, KEEP, KEEP)), needs: Keepalive },
    Call {
        name: "ka_apply off",
        run: |fd| apply(fd, &config(OFF, KEEP, KEEP, KEEP, KEEP)),
        needs: Keepalive,
    },
    Call {
        name: "ka_apply of idle",
        run: |fd| apply(fd, &config(KEEP, 60, KEEP, KEEP, KEEP)),
        needs: Keepalive,
    },
    Call {
        name: "ka_apply of cnt, off",
        run: |fd| apply(fd, &config(OFF, KEEP, KEEP, 5, KEEP)),
        needs: Keepalive,
    },
    Call {
        name: "ka_apply of all",
        run: |fd| apply(fd, &config(ON, 60, 10, 5, 110_000)),
        needs: UserTimeout,
    },
    Call {
        name: "ka_apply of KA_AUTO",
        run: |fd| apply(fd, &config(ON, 60, 10, 5, AUTO)),
        needs: UserTimeout,
    },
    Call { name: "ka_get_rto_max", run: |fd| read(fd, |ka| ka.ka_get_rto_max), needs: RtoMax },
    Call {
        name: "ka_set_rto_max",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_rto_max)(fd, 2000) }),
        needs: SetRtoMax,
    },
    Call {
        name: "ka_set_rto_max to KA_AUTO",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_rto_max)(fd, AUTO) }),
        needs: SetRtoMax,
    },
    Call {
        name: "ka_set_rto_max to KA_KEEP",
        // SAFETY: the call takes no pointer.
        run: |fd| call(|ka| unsafe { (ka.ka_set_rto_max)(fd, KEEP) }),
        needs: Keepalive,
    },
    Call {
        name: "ka_apply of all with rto_max",
        run: |fd| apply(fd, &with_rto_max(config(ON, 60, 10, 5, KEEP), 3000)),
        needs: SetRtoMax,
    },
    Call {
        name: "ka_apply off with rto_max",
        run: |fd| apply(fd, &with_rto_max(config(OFF, KEEP, KEEP, KEEP, KEEP), AUTO)),
        needs: SetRtoMax,
    },
    Call { name: "ka_query", run: |fd| query(fd).map(|_config| 0), needs: Keepalive },
    Call {
        name: "ka_get_status",
        run: |fd| {
            let mut status = STATUS_INIT;
            // SAFETY: the status has its size.
            let result = call(|ka| unsafe { (ka.ka_get_status)(fd, &raw mut status) });
            assert_eq!(result.is_ok(), status != STATUS_INIT, "outputs are written on success only");
            result
        },
        needs: Keepalive,
    },
];

#[test]
fn every_call_returns_the_documented_result_for_every_descriptor() {
    let has_rto_max = has_rto_max();
    for case in cases() {
        for on in [0, 1] {
            // SO_KEEPALIVE can be on for sockets that are not TCP. The library must reject them all the same.
            if !matches!(case.is, Is::Refused(EBADF | ENOTSOCK)) {
                set_option(case.fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, on);
            }
            for Call { name, run, needs } in CALLS {
                let expected = match (case.is, needs) {
                    (Is::Refused(errno), _) => Err(errno),
                    (Is::Mptcp, UserTimeout | RtoMax | SetRtoMax) => Err(EOPNOTSUPP),
                    (Is::Tcp, RtoMax | SetRtoMax) if !has_rto_max => Err(EOPNOTSUPP),
                    (Is::Tcp, SetRtoMax) if case.name == FALLEN_BACK => Err(EOPNOTSUPP),
                    _ => Ok(0),
                };
                let before = keepalive_options(case.fd);
                assert_eq!(run(case.fd), expected, "{name} on {}, SO_KEEPALIVE {on}", case.name);
                if expected.is_err() {
                    assert_eq!(keepalive_options(case.fd), before, "{name} on {} changed it", case.name);
                }
            }
        }
    }
}

#[test]
fn ka_probe_returns_the_documented_result_for_every_descriptor() {
    let connections = ["accepted", "connected", "shut down", "closed by the peer", FALLEN_BACK];
    for Case { name, fd, is, .. } in cases() {
        let expected = match is {
            Is::Refused(errno) => Err(errno),
            _ if connections.iter().any(|part| name.contains(part)) => Ok(1),
            _ if name == "reset" => Err(ECONNRESET),
            _ => Err(ENOTCONN),
        };
        let before = keepalive_options(fd);
        // SAFETY: the call takes no pointer.
        let result = call(|ka| unsafe { (ka.ka_probe)(fd, 5000) });
        assert_eq!(result, expected, "{name}");
        assert_eq!(keepalive_options(fd), before, "{name}");
    }
}

#[test]
fn every_call_works_in_every_tcp_state() {
    for case in cases() {
        if !matches!(case.is, Is::Tcp | Is::Mptcp) {
            continue;
        }
        let (fd, name) = (case.fd, case.name);
        let [.., user_timeout, rto_max] = keepalive_options(fd);
        enable(fd, 61, 11, 6).unwrap();
        assert_eq!(
            keepalive_options(fd),
            [Ok(1), Ok(61), Ok(11), Ok(6), user_timeout, rto_max],
            "ka_enable on {name}"
        );
        // SAFETY: the call takes no pointer.
        assert_eq!(call(|ka| unsafe { (ka.ka_is_enabled)(fd) }), Ok(1), "{name}");
        enable(fd, KEEP, 12, KEEP).unwrap();
        assert_eq!(
            keepalive_options(fd),
            [Ok(1), Ok(61), Ok(12), Ok(6), user_timeout, rto_max],
            "ka_enable with KA_KEEP on {name}"
        );
        // SAFETY: the call takes no pointer.
        call(|ka| unsafe { (ka.ka_disable)(fd) }).unwrap();
        assert_eq!(
            keepalive_options(fd),
            [Ok(0), Ok(61), Ok(12), Ok(6), user_timeout, rto_max],
            "ka_disable on {name}"
        );
        // SAFETY: the call takes no pointer.
        assert_eq!(call(|ka| unsafe { (ka.ka_is_enabled)(fd) }), Ok(0), "{name}");
        let user_timeout = match user_timeout {
            Ok(0) => NONE,
            Ok(milliseconds) => milliseconds,
            // The kernel cannot report it for MPTCP.
            Err(_) => KEEP,
        };
        let expected = with_rto_max(config(OFF, 61, 12, 6, user_timeout), rto_max.unwrap_or(KEEP));
        assert_eq!(query(fd), Ok(expected), "ka_query on {name}");
        let getters: [(Getter, c_int); 3] =
            [(|ka| ka.ka_get_idle, 61), (|ka| ka.ka_get_intvl, 12), (|ka| ka.ka_get_cnt, 6)];
        for (getter, value) in getters {
            assert_eq!(get(fd, getter), Ok(value), "a getter on {name}");
        }
        if case.is == Is::Tcp {
            apply(fd, &config(ON, 5, 2, 3, AUTO)).unwrap();
            let expected = [Ok(1), Ok(5), Ok(2), Ok(3), Ok(11_000), rto_max];
            assert_eq!(keepalive_options(fd), expected, "ka_apply on {name}");
            if name == FALLEN_BACK {
                // It has a value that cannot be set. What ka_query returns can be applied, with keepalive on and off.
                assert_eq!(apply(fd, &with_rto_max(CONFIG_INIT, 2000)), Err(EOPNOTSUPP));
                for keepalive in [ON, OFF, KEEP] {
                    apply(fd, &config(keepalive, KEEP, KEEP, KEEP, KEEP)).unwrap();
                    let before = keepalive_options(fd);
                    assert_eq!(apply(fd, &query(fd).unwrap()), Ok(0));
                    assert_eq!(keepalive_options(fd), before);
                }
            } else if has_rto_max() {
                apply(fd, &with_rto_max(CONFIG_INIT, 2000)).unwrap();
                let expected = [Ok(1), Ok(5), Ok(2), Ok(3), Ok(11_000), Ok(2000)];
                assert_eq!(keepalive_options(fd), expected, "ka_apply of rto_max on {name}");
                assert_eq!(get(fd, |ka| ka.ka_get_rto_max), Ok(2000), "{name}");
            }
        }
    }
}

/// 61 is in range; 40000 and 300 are above the maximum.
#[test]
fn lenient_calls_turn_keepalive_on_for_tcp_and_leave_other_sockets_alone() {
    // SAFETY: the call takes no pointer.
    let lenient = |fd, idle, intvl, cnt| call(|ka| unsafe { (ka.ka_enable_lenient)(fd, idle, intvl, cnt) });
    for case in cases() {
        let (fd, name) = (case.fd, case.name);
        for on in [0, 1] {
            if !matches!(case.is, Is::Refused(EBADF | ENOTSOCK)) {
                set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, on);
            }
            let before = keepalive_options(fd);
            let (clamped, kept) = (lenient(fd, 61, 40_000, 300), lenient(fd, 0, -1, c_int::MIN));
            let after = keepalive_options(fd);
            match case.is {
                Is::Tcp | Is::Mptcp => {
                    assert_eq!((clamped, kept), (Ok(2 + 4), Ok(0)), "{name}");
                    assert_eq!(after, [Ok(1), Ok(61), Ok(32767), Ok(127), before[4], before[5]], "{name}");
                }
                Is::Refused(ENOPROTOOPT) => {
                    assert_eq!((clamped, kept), (Ok(8), Ok(8)), "{name}");
                    assert_eq!(after, before, "{name} was changed");
                }
                Is::Refused(errno) => {
                    assert_eq!((clamped, kept), (Err(errno), Err(errno)), "{name}");
                }
            }
        }
    }
}

#[test]
fn accepted_sockets_inherit_from_the_listener() {
    for (domain, address) in [(Domain::IPV4, "127.0.0.1:0"), (Domain::IPV6, "[::1]:0")] {
        for protocol in [Protocol::TCP, Protocol::from(libc::IPPROTO_MPTCP)] {
            let mptcp = protocol != Protocol::TCP;
            if (domain == Domain::IPV6 && !has_ipv6()) || (mptcp && !has_mptcp()) {
                continue;
            }
            let listener = Socket::new(domain, Type::STREAM, Some(protocol)).unwrap();
            listener.bind(&address.parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
            listener.listen(8).unwrap();
            enable(listener.as_raw_fd(), 62, 13, 4).unwrap();
            let is_set = !mptcp && has_rto_max();
            if is_set {
                apply(listener.as_raw_fd(), &with_rto_max(CONFIG_INIT, 3000)).unwrap();
            }
            let client = Socket::new(domain, Type::STREAM, Some(protocol)).unwrap();
            client.connect(&listener.local_addr().unwrap()).unwrap();
            let accepted = listener.accept().unwrap().0;
            assert_eq!(
                keepalive_options(accepted.as_raw_fd())[..4],
                [Ok(1), Ok(62), Ok(13), Ok(4)],
                "{domain:?} {protocol:?}"
            );
            assert_eq!(rto_max(accepted.as_raw_fd()) == 3000, is_set, "{domain:?} {protocol:?}");
        }
    }
}

#[test]
fn duplicated_descriptors_share_the_settings() {
    let socket = fresh();
    let duplicate = socket.try_clone().unwrap();
    enable(socket.as_raw_fd(), 63, 14, 3).unwrap();
    assert_eq!(keepalive_options(duplicate.as_raw_fd())[..4], [Ok(1), Ok(63), Ok(14), Ok(3)]);
    let number = duplicate.into_raw_fd();
    // SAFETY: the call takes no pointer, and into_raw_fd has given up ownership of the descriptor.
    unsafe {
        call(|ka| (ka.ka_disable)(number)).unwrap();
        libc::close(number);
    }
    assert_eq!(keepalive_options(socket.as_raw_fd())[0], Ok(0));
}
