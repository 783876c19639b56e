//! Tests ka_probe on real connections. nftables drops and counts the packets, and getsockopt(2) reads the settings.

use std::collections::HashSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::iter;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::artifact::release;
use ka_test::child::{preloaded, remove_ka_variables, stdout};
use ka_test::compiler::{LINKS, Linkage, program};
use ka_test::kernel::{has_mptcp, sysctl};
use ka_test::libka::{call, enable, libka};
use ka_test::namespace::in_own_network_namespace;
use ka_test::socket::{fresh, keepalive_options, option, set_option};
use ka_test::wait::eventually;
use libc::{
    EBADF, ECONNRESET, EMFILE, ENOPROTOOPT, ENOTCONN, ENOTSOCK, EPERM, EPIPE, ERANGE, ETIMEDOUT, c_int,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// A timeout that is long enough for an answer on a busy machine.
const LONG: c_int = 10_000;

fn probe(fd: RawFd, timeout_ms: c_int) -> Result<c_int, c_int> {
    // SAFETY: the call takes no pointer.
    call(|ka| unsafe { (ka.ka_probe)(fd, timeout_ms) })
}

/// Both ends of a connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new() -> Self {
        Self::of(&TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn of(listener: &TcpListener) -> Self {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Self { client, server: listener.accept().unwrap().0 }
    }

    fn fd(&self) -> RawFd {
        self.client.as_raw_fd()
    }

    /// Returns whether the client's end is in the state CLOSE.
    fn has_ended(&self) -> bool {
        option(self.fd(), libc::IPPROTO_TCP, libc::TCP_INFO).unwrap() & 0xff == 7
    }
}

/// Waits until connections are idle for so long that the kernel can send a probe.
fn idle() {
    thread::sleep(Duration::from_millis(1200));
}

/// Connections with different settings, each with its name.
fn various() -> Vec<(&'static str, Pair)> {
    let make = |name, on, values: [Option<c_int>; 4]| {
        let pair = Pair::new();
        set_option(pair.fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, on);
        let names = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT, libc::TCP_USER_TIMEOUT];
        for (option, value) in names.into_iter().zip(values) {
            if let Some(value) = value {
                set_option(pair.fd(), libc::IPPROTO_TCP, option, value);
            }
        }
        (name, pair)
    };
    vec![
        make("off", 0, [None; 4]),
        make("off, with timers", 0, [Some(61), Some(11), Some(6), Some(77_000)]),
        make("on", 1, [Some(62), Some(12), Some(7), None]),
        make("on, following the sysctls", 1, [None; 4]),
        make("on, with a user timeout", 1, [Some(63), Some(13), Some(8), Some(50_000)]),
        make("on, with a count of 1", 1, [Some(64), Some(14), Some(1), None]),
    ]
}

/// Loads rules of nftables in this network namespace, instead of those before.
fn rules(chain: &str) {
    let rules = format!(
        "table inet probe\ndelete table inet probe\ntable inet probe {{\n counter sent {{}}\n counter received {{}}\n \
         chain input {{ type filter hook input priority 0; {chain} }}\n}}\n"
    );
    let mut nft = Command::new("nft")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is not installed (apt-get install nftables)");
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// Drops all TCP packets.
fn cut() {
    rules("meta l4proto tcp counter name sent drop;");
}

/// Returns the packets of a counter.
fn packets(counter: &str) -> u32 {
    let mut nft = Command::new("nft");
    nft.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["list", "counter", "inet", "probe", counter]);
    let printed = stdout(&mut nft);
    let (_, rest) = printed.split_once("packets ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_live_peer_answers_one_probe_and_the_settings_stay() {
    if !in_own_network_namespace("a_live_peer_answers_one_probe_and_the_settings_stay") {
        return;
    }
    let pairs = various();
    idle();
    for (name, pair) in &pairs {
        let before = keepalive_options(pair.fd());
        let port = pair.server.local_addr().unwrap().port();
        rules(&format!("tcp dport {port} counter name sent; tcp sport {port} counter name received;"));
        let traffic = || (packets("sent"), packets("received"));
        assert_eq!(probe(pair.fd(), 0), Ok(0), "{name}: a timeout of 0 sends no probe");
        assert_eq!(traffic(), (0, 0), "{name}: a timeout of 0 sends nothing");
        assert_eq!(probe(pair.fd(), LONG), Ok(1), "{name}");
        assert_eq!(traffic(), (1, 1), "{name}: a probe and its answer");
        assert_eq!(keepalive_options(pair.fd()), before, "{name}");
        // If this process was not scheduled for a second, these calls send a probe.
        let began = Instant::now();
        assert_eq!((probe(pair.fd(), LONG), probe(pair.fd(), 0)), (Ok(1), Ok(1)), "{name}");
        if began.elapsed() < Duration::from_millis(500) {
            assert_eq!(traffic(), (1, 1), "{name}: a segment arrived within the last second");
        }
        assert_eq!(keepalive_options(pair.fd()), before, "{name}");
    }
}

#[test]
fn a_silent_peer_is_reported_in_time_and_the_settings_stay() {
    if !in_own_network_namespace("a_silent_peer_is_reported_in_time_and_the_settings_stay") {
        return;
    }
    let pairs = various();
    idle();
    for (name, pair) in &pairs {
        cut();
        let before = keepalive_options(pair.fd());
        for timeout_ms in [1, 300, 301] {
            let began = Instant::now();
            assert_eq!(probe(pair.fd(), timeout_ms), Ok(0), "{name}");
            let took = began.elapsed();
            let expected = Duration::from_millis(timeout_ms.try_into().unwrap());
            assert!((expected..expected + Duration::from_secs(2)).contains(&took), "{name}: {took:?}");
            assert_eq!(keepalive_options(pair.fd()), before, "{name}");
        }
        // The first call may have ended before the kernel sent its probe.
        assert!((2..=3).contains(&packets("sent")), "{name}: {} probes", packets("sent"));
    }
}

/// A pool drops such a connection, and the kernel must end it too: earlier, because it counts the probe.
#[test]
fn an_unanswered_probe_lets_keepalive_end_the_connection_earlier() {
    if !in_own_network_namespace("an_unanswered_probe_lets_keepalive_end_the_connection_earlier") {
        return;
    }
    for (cnt, user_timeout) in [(1, 0), (2, 0), (3, 2000)] {
        let began = Instant::now();
        let (probed, other) = (Pair::new(), Pair::new());
        for pair in [&probed, &other] {
            enable(pair.fd(), 3, 2, cnt).unwrap();
            set_option(pair.fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, user_timeout);
        }
        idle();
        cut();
        assert_eq!(probe(probed.fd(), 200), Ok(0));
        let ended = |pair: &Pair| {
            eventually("the connection ends", || pair.has_ended());
            began.elapsed()
        };
        let (early, late) = (ended(&probed), ended(&other));
        assert!(early >= Duration::from_secs(3), "cnt {cnt}: not before the idle time, but after {early:?}");
        assert!(late > early + Duration::from_secs(1), "cnt {cnt}: {early:?} and {late:?}");
        assert!(matches!(probe(probed.fd(), LONG), Err(ETIMEDOUT | ECONNRESET)));
        assert_eq!(probed.client.take_error().unwrap().unwrap().raw_os_error(), Some(ETIMEDOUT));
        rules("");
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Probes a connection that has ended, twice. Then SO_ERROR returns the error once.
fn assert_ended(pair: &Pair, errno: c_int) {
    let before = keepalive_options(pair.fd());
    assert_eq!([0, LONG].map(|timeout_ms| probe(pair.fd(), timeout_ms)), [Err(errno); 2]);
    assert_eq!(keepalive_options(pair.fd()), before);
    assert_eq!(pair.client.take_error().unwrap().unwrap().raw_os_error(), Some(errno));
    assert_eq!(probe(pair.fd(), LONG), Err(ENOTCONN), "no error is pending any more");
}

#[test]
fn the_error_of_a_dead_connection_stays_pending() {
    if !in_own_network_namespace("the_error_of_a_dead_connection_stays_pending") {
        return;
    }
    // The peer has sent a reset.
    let Pair { client, server } = Pair::new();
    reset(server);
    let server = client.try_clone().unwrap();
    let pair = Pair { client, server };
    eventually("the connection is reset", || pair.has_ended());
    assert_ended(&pair, ECONNRESET);

    // Keepalive has ended the connection.
    let pair = Pair::new();
    enable(pair.fd(), 1, 1, 2).unwrap();
    cut();
    eventually("the connection times out", || pair.has_ended());
    assert_ended(&pair, ETIMEDOUT);
}

/// The peer has lost the connection, as after a restart. It answers the probe with a reset.
#[test]
fn a_reset_in_answer_to_the_probe_is_reported_and_the_settings_stay() {
    if !in_own_network_namespace("a_reset_in_answer_to_the_probe_is_reported_and_the_settings_stay") {
        return;
    }
    let pairs = various();
    idle();
    for (name, Pair { client, server }) in pairs {
        let fd = client.as_raw_fd();
        let before = keepalive_options(fd);
        cut();
        reset(server);
        rules("");
        assert_eq!(probe(fd, LONG), Err(ECONNRESET), "{name}");
        assert_eq!(keepalive_options(fd), before, "{name}");
        assert_eq!(client.take_error().unwrap().unwrap().raw_os_error(), Some(ECONNRESET), "{name}");
    }
    // If the peer had closed its side before, the kernel reports EPIPE.
    let Pair { client, server } = Pair::new();
    server.shutdown(Shutdown::Write).unwrap();
    idle();
    cut();
    reset(server);
    rules("");
    assert_eq!(probe(client.as_raw_fd(), LONG), Err(EPIPE));
    assert_eq!(client.take_error().unwrap().unwrap().raw_os_error(), Some(EPIPE));
}

#[test]
fn an_acknowledgement_of_data_in_flight_is_an_answer() {
    if !in_own_network_namespace("an_acknowledgement_of_data_in_flight_is_an_answer") {
        return;
    }
    let mut pair = Pair::new();
    enable(pair.fd(), 60, 10, 5).unwrap();
    let before = keepalive_options(pair.fd());
    idle();
    cut();
    pair.client.write_all(b"data").unwrap();
    assert_eq!(probe(pair.fd(), 300), Ok(0));
    rules("");
    assert_eq!(probe(pair.fd(), LONG), Ok(1), "the acknowledgement of the retransmitted data");
    assert_eq!(keepalive_options(pair.fd()), before);
}

/// Makes a call while another thread sends signals to this thread. Returns the result, and the number of signals that
/// this thread has handled.
fn interrupted<T>(make: impl FnOnce() -> T) -> (T, u32) {
    static HANDLED: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count(_: c_int) {
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler only adds to an atomic, and lives as long as the program. The struct lives until the call
    // returns.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
    }
    HANDLED.store(0, Ordering::Relaxed);
    // SAFETY: the call takes no pointer.
    let this = unsafe { libc::pthread_self() };
    let is_over = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // A signal to the process would mostly go to its main thread.
                // SAFETY: `this` runs until the scope has ended.
                assert_eq!(unsafe { libc::pthread_kill(this, libc::SIGALRM) }, 0);
                thread::sleep(Duration::from_micros(200));
            }
        });
        let result = make();
        is_over.store(true, Ordering::Relaxed);
        result
    });
    (result, HANDLED.load(Ordering::Relaxed))
}

#[test]
fn signals_do_not_end_the_wait() {
    if !in_own_network_namespace("signals_do_not_end_the_wait") {
        return;
    }
    let (live, silent) = (Pair::new(), Pair::new());
    let before = keepalive_options(live.fd());
    idle();
    assert_eq!(interrupted(|| probe(live.fd(), LONG)).0, Ok(1));
    cut();
    let began = Instant::now();
    let (answer, signals) = interrupted(|| probe(silent.fd(), 500));
    let took = began.elapsed();
    assert_eq!(answer, Ok(0));
    assert!((Duration::from_millis(500)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert!(signals >= 10, "only {signals} signals have interrupted the call");
    assert_eq!([live, silent].map(|pair| keepalive_options(pair.fd())), [before; 2]);
}

/// Closes a descriptor of a probe that is running, and returns a new socket with the same number.
fn replace(fd: OwnedFd) -> OwnedFd {
    let number = fd.as_raw_fd();
    let other = fresh();
    // SAFETY: dup3 takes no pointer. It closes `fd` and gives its number to the other socket in one step.
    assert_eq!(unsafe { libc::dup3(other.as_raw_fd(), fd.into_raw_fd(), libc::O_CLOEXEC) }, number);
    // SAFETY: the number belongs to the duplicate of `other`, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

#[test]
fn a_descriptor_that_another_thread_closes_is_not_touched_any_more() {
    if !in_own_network_namespace("a_descriptor_that_another_thread_closes_is_not_touched_any_more") {
        return;
    }
    let pairs: Vec<_> = (0..20).map(|_| Pair::new()).collect();
    let unused = keepalive_options(fresh().as_raw_fd());
    idle();
    for (n, Pair { client, mut server }) in pairs.into_iter().enumerate() {
        let fd = client.as_raw_fd();
        let prober = thread::spawn(move || probe(fd, LONG));
        // The kernel needs a few milliseconds to send the probe.
        thread::sleep(Duration::from_micros(200 * u64::try_from(n).unwrap()));
        let other = replace(client.into());
        let result = prober.join().unwrap();
        // The call may not have begun before the number belonged to the other socket.
        assert!(matches!(result, Ok(1) | Err(ENOTCONN)), "{result:?}");
        assert_eq!(keepalive_options(other.as_raw_fd()), unused);
        assert_eq!(server.read(&mut [0]).unwrap(), 0, "the connection is closed");
    }

    // The connection of a silent peer is open until the call returns.
    let Pair { client, server } = Pair::new();
    let fd = client.as_raw_fd();
    idle();
    rules(&format!("tcp sport {} drop;", server.local_addr().unwrap().port()));
    let prober = thread::spawn(move || probe(fd, 1500));
    thread::sleep(Duration::from_millis(500));
    let other = replace(client.into());
    server.set_nonblocking(true).unwrap();
    let is_open = || (&server).read(&mut [0]).is_err();
    assert!(is_open() || prober.is_finished());
    assert_eq!(prober.join().unwrap(), Ok(0));
    eventually("the connection is closed", || !is_open());
    assert_eq!(keepalive_options(other.as_raw_fd()), unused);
}

#[test]
fn the_duplicate_is_closed_on_exec() {
    if !in_own_network_namespace("the_duplicate_is_closed_on_exec") {
        return;
    }
    let pair = Pair::new();
    let fd = pair.fd();
    idle();
    cut();
    let socket = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let prober = thread::spawn(move || probe(fd, 2000));
    let mut flags = None;
    while !prober.is_finished() {
        for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let is_other = entry.file_name().to_str().unwrap() != fd.to_string();
            if is_other && fs::read_link(entry.path()).is_ok_and(|target| target == socket) {
                let info = fs::read_to_string(entry.path().to_str().unwrap().replace("/fd/", "/fdinfo/"));
                let info = info.unwrap_or_default();
                let octal = info.lines().find_map(|line| line.strip_prefix("flags:"));
                flags = octal.map(|octal| i32::from_str_radix(octal.trim(), 8).unwrap()).or(flags);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(prober.join().unwrap(), Ok(0));
    assert_eq!(flags.expect("a duplicate") & libc::O_CLOEXEC, libc::O_CLOEXEC);
}

#[test]
fn threads_can_probe_one_socket_and_many_sockets() {
    if !in_own_network_namespace("threads_can_probe_one_socket_and_many_sockets") {
        return;
    }
    let pairs: Vec<_> = (0..32).map(|_| Pair::new()).collect();
    for (n, pair) in pairs.iter().enumerate() {
        enable(pair.fd(), 60 + c_int::try_from(n).unwrap(), 10, 5).unwrap();
    }
    let before: Vec<_> = pairs.iter().map(|pair| keepalive_options(pair.fd())).collect();
    for (threads, sockets) in [(8, 1), (32, 32)] {
        idle();
        let results: Vec<_> = thread::scope(|scope| {
            let start = |n: usize| {
                let fd = pairs[n % sockets].fd();
                scope.spawn(move || probe(fd, LONG))
            };
            let started: Vec<_> = (0..threads).map(start).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results, vec![Ok(1); threads]);
        let after: Vec<_> = pairs.iter().map(|pair| keepalive_options(pair.fd())).collect();
        assert_eq!(after, before, "{threads} threads");
    }
}

/// A forked child has a copy of the locks that threads of its parent hold.
#[test]
fn a_child_that_was_forked_during_probes_can_probe() {
    if !in_own_network_namespace("a_child_that_was_forked_during_probes_can_probe") {
        return;
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let probed: Vec<_> = (0..16).map(|_| Pair::of(&silent)).collect();
    // A process has 64 locks, and the cookie of a socket chooses one. So the children need the locks that are held.
    let lock = |pair: &Pair| SockRef::from(&pair.client).cookie().unwrap() % 64;
    let held: HashSet<_> = probed.iter().map(lock).collect();
    let live: Vec<_> =
        iter::repeat_with(Pair::new).filter(|pair| held.contains(&lock(pair))).take(16).collect();
    let before = keepalive_options(live[0].fd());
    idle();
    rules(&format!("tcp dport {} drop;", silent.local_addr().unwrap().port()));
    let is_over = AtomicBool::new(false);
    let _ = libka();
    thread::scope(|scope| {
        for pair in &probed {
            // A call holds the lock until the kernel sends the probe, at one of its next two ticks. So these calls hold
            // it for most of their time.
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let result = probe(pair.fd(), 1);
                    assert_eq!(result, Ok(0));
                }
            });
        }
        let children: Vec<_> = live
            .iter()
            .map(|pair| {
                thread::sleep(Duration::from_millis(7));
                let fd = pair.fd();
                // SAFETY: the child makes only async-signal-safe calls.
                match unsafe { libc::fork() } {
                    // SAFETY: the call takes no pointer, and _exit(2) ends the child.
                    0 => unsafe { libc::_exit((libka().ka_probe)(fd, LONG)) },
                    child => child,
                }
            })
            .collect();
        let statuses: Vec<_> = children
            .into_iter()
            .map(|child| {
                let mut status = 0;
                // SAFETY: `status` lives until the call returns.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                libc::WEXITSTATUS(status)
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(statuses, vec![1; live.len()]);
    });
    for pair in live.iter().chain(&probed) {
        assert_eq!(keepalive_options(pair.fd()), before);
    }
}

#[test]
fn multipath_tcp_is_probed_and_its_settings_stay() {
    if !in_own_network_namespace("multipath_tcp_is_probed_and_its_settings_stay") || !has_mptcp() {
        return;
    }
    let socket =
        || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(libc::IPPROTO_MPTCP))).unwrap();
    let listener = socket();
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    listener.listen(8).unwrap();
    let pairs = [false, true].map(|on| {
        let client = socket();
        client.connect(&listener.local_addr().unwrap()).unwrap();
        if on {
            enable(client.as_raw_fd(), 60, 10, 5).unwrap();
        }
        (client, listener.accept().unwrap().0)
    });
    idle();
    let all = || pairs.each_ref().map(|(client, _)| keepalive_options(client.as_raw_fd()));
    let before = all();
    let probes = |timeout_ms| pairs.each_ref().map(|(client, _)| probe(client.as_raw_fd(), timeout_ms));
    assert_eq!(probes(LONG), [Ok(1); 2]);
    assert_eq!(all(), before);
    idle();
    cut();
    assert_eq!(probes(300), [Ok(0); 2]);
    assert_eq!(all(), before);
}

#[test]
fn only_the_idle_time_stops_following_its_sysctl() {
    if !in_own_network_namespace("only_the_idle_time_stops_following_its_sysctl") {
        return;
    }
    let follow = |seconds: &str| {
        for name in ["tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes"] {
            sysctl(name, seconds);
        }
    };
    let timers = |pair: &Pair| keepalive_options(pair.fd())[1..4].to_vec();
    let [probed, looked_at] = [Pair::new(), Pair::new()];
    follow("50");
    assert_eq!(probe(looked_at.fd(), LONG), Ok(1));
    idle();
    assert_eq!(probe(looked_at.fd(), 0), Ok(0));
    assert_eq!(probe(probed.fd(), LONG), Ok(1));
    assert_eq!([&probed, &looked_at].map(timers), [const { [Ok(50); 3] }; 2].map(|timers| timers.to_vec()));
    follow("60");
    assert_eq!(timers(&probed), [Ok(50), Ok(60), Ok(60)]);
    assert_eq!(timers(&looked_at), [Ok(60); 3], "nothing was sent, so nothing was set");

    // A value that cannot be set on a socket could not be put back.
    sysctl("tcp_keepalive_time", "86400");
    idle();
    let before = keepalive_options(looked_at.fd());
    assert_eq!(probe(looked_at.fd(), LONG), Err(ERANGE));
    assert_eq!(keepalive_options(looked_at.fd()), before);
    enable(looked_at.fd(), 60, 10, 5).unwrap();
    assert_eq!(probe(looked_at.fd(), LONG), Ok(1));
}

#[test]
fn without_a_free_descriptor_only_a_recent_segment_is_found() {
    if !in_own_network_namespace("without_a_free_descriptor_only_a_recent_segment_is_found") {
        return;
    }
    // The first call opens files, and may take long.
    let _ = libka();
    let pair = Pair::new();
    let before = keepalive_options(pair.fd());
    let limit = |descriptors| {
        let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: 1024 };
        // SAFETY: `limit` lives until the call returns.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    };
    let (unconnected, datagrams, file) =
        (fresh(), UdpSocket::bind("127.0.0.1:0").unwrap(), fs::File::open("/dev/null").unwrap());
    limit(3);
    let looked = probe(pair.fd(), LONG);
    idle();
    let results = [probe(pair.fd(), 0), probe(pair.fd(), LONG)];
    // The error of a descriptor that cannot be probed comes first.
    let others = [unconnected.as_raw_fd(), datagrams.as_raw_fd(), file.as_raw_fd(), -1];
    let others = others.map(|fd| probe(fd, LONG));
    limit(1024);
    assert_eq!(others, [ENOTCONN, ENOPROTOOPT, ENOTSOCK, EBADF].map(Err));
    assert_eq!((looked, results), (Ok(1), [Ok(0), Err(EMFILE)]));
    assert_eq!(keepalive_options(pair.fd()), before);
    assert_eq!(probe(pair.fd(), LONG), Ok(1));
}

/// The shim would ignore the writes of a program. ka_probe does not call the functions that the shim hooks.
#[test]
fn the_shim_does_not_prevent_a_probe() {
    for link in LINKS {
        for mode in ["force", "floor", "default"] {
            let mut command = preloaded(program("probe", link));
            command.env("KA_MODE", mode).env("KA_POLICY", "60,10,6");
            let printed = stdout(&mut command);
            assert_eq!(printed, "1 60 10 6 0\n1 0\n1 60 10 6 0\n", "{mode}");
        }
    }
}

#[test]
fn a_supervisor_that_holds_the_settings_is_reported() {
    for (mode, idle, expected) in
        [("force", "60", format!("-1 {EPERM}")), ("default", "60", "1 0".to_owned())]
    {
        let mut command = Command::new(release().join("ka"));
        remove_ka_variables(&mut command);
        command.args(["run", "--via", "seccomp", "--mode", mode, "-d", idle, "-i", "10", "-c", "6"]);
        let printed = stdout(command.arg(program("probe", Linkage::Static)));
        assert_eq!(printed, format!("1 60 10 6 0\n{expected}\n1 60 10 6 0\n"), "{mode}");
    }
}
