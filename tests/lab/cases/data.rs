//! Data in flight on a path that is cut. The kernel then sends no probes: retransmission decides when the connection
//! ends. Each case compares rto_max (`TCP_RTO_MAX_MS`), which limits the time between two retransmissions, with a user
//! timeout or with neither.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use ka_test::child::preloaded;
use ka_test::kernel::has_mptcp;
use ka_test::libka::{AUTO, KEEP, RawConfig, apply, config, times, with_rto_max};
use ka_test::socket::{
    RTO_MAX, fresh, has_rto_max, is_rounded_rto_max, option, set_option, socket, try_set_option,
};
use socket2::{SockRef, Socket};

use crate::endpoint::{Policy, Program, ending, fill, is_open, late, run_script, settle, talks};
use crate::network::{Family, Network};
use crate::story::{Case, Story, now, sleep};
use crate::wire::Kind;

const FAMILY: Family = Family::V4;
/// The kernel's `TCP_RTO_MAX_SEC`, in milliseconds: the value of a new socket, and the largest one.
const LONGEST: i32 = 120_000;
/// Keepalive alone finds a dead peer after 13 s.
const POLICY: Policy = Policy::new(3, 2, 5);
/// The observation of connections that must stay alive, in seconds.
const LONG: f64 = 46.0;
/// The user timeout, in milliseconds.
const USER_TIMEOUT: i32 = 14_000;
/// The delay that a busy machine may add, in seconds.
const BUSY: f64 = 3.0;

pub fn cases() -> Vec<Case> {
    let case = |name: &str, should: &str, run: fn(&mut Story)| {
        Case::new(format!("data::{name}"), should, move |story| {
            if has_rto_max() {
                run(story);
            } else {
                story.saw("skipped: the kernel has no TCP_RTO_MAX_MS");
            }
        })
    };
    vec![
        case(
            "rto_max_ends_a_connection_whose_data_stays_unacknowledged",
            "rto_max 1000, by libka or the shim: dead after 15 s; 2000: after 27 s; user timeout of 14 s: after 14 s; \
             keepalive alone: alive after 45 s",
            in_flight,
        ),
        case(
            "a_limit_set_on_a_hanging_connection_ends_it_when_the_next_retransmission_is_due",
            "rto_max 1000 or a user timeout of 14 s after 17 s: ETIMEDOUT when the next retransmission is due; untouched: \
             alive",
            hanging,
        ),
        case(
            "rto_max_spares_a_healthy_peer_with_a_closed_window_and_a_user_timeout_does_not",
            "rto_max 1000: alive after 45 s, and continues; user timeout of 14 s: ETIMEDOUT after 14 s",
            closed_window,
        ),
        case(
            "rto_max_does_not_change_when_an_idle_connection_ends",
            "3/2/5 with rto_max 1000 and without: ETIMEDOUT after 13 s",
            idle,
        ),
        case("ka_data_time_is_right::3_retransmissions", "dead within its times", |story| compare(story, 3)),
        case("ka_data_time_is_right::5_retransmissions", "dead within its times", |story| compare(story, 5)),
        case("ka_data_time_is_right::8_retransmissions", "dead within its times", |story| compare(story, 8)),
        case(
            "the_kernel_checks_inherits_and_rounds_rto_max",
            "120000 by default; 1000 to 120000 ms; inherited; rounded up to a tick",
            facts,
        ),
    ]
}

/// Returns the kernel's value of a socket, or the errno.
fn rto_max(socket: i32) -> Result<i32, i32> {
    option(socket, libc::IPPROTO_TCP, RTO_MAX)
}

/// Sets the option without libka. Returns the errno if the kernel rejects it.
fn set_rto_max(socket: i32, value: i32) -> Result<(), i32> {
    try_set_option(socket, libc::IPPROTO_TCP, RTO_MAX, value)
}

fn policy(user_timeout: i32, rto_max: i32) -> RawConfig {
    with_rto_max(config(1, POLICY.idle, POLICY.intvl, POLICY.cnt, user_timeout), rto_max)
}

/// Makes a connection with a policy, which libka applies.
fn with_policy(network: &Network, listener: &TcpListener, config: &RawConfig) -> (TcpStream, TcpStream) {
    let (client, server) = network.pair(listener, FAMILY);
    settle(&client, &server);
    // KA_AUTO reads the sysctls of the thread's network namespace.
    network.client.within(|| apply(client.as_raw_fd(), config)).unwrap();
    (client, server)
}

/// Returns the milliseconds of ka_data_time for a policy on the client: the typical time and the worst one.
fn data_time(network: &Network, config: &RawConfig) -> [u64; 2] {
    network.client.within(|| times(config, |ka| ka.ka_data_time)).unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "the times are minutes")]
fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

fn send(mut socket: &TcpStream) {
    socket.write_all(b"!").unwrap();
}

/// Returns when a connection may end, in seconds, for the times of ka_data_time.
fn limits([typical, worst]: [u64; 2]) -> (f64, f64) {
    (seconds(typical), seconds(worst) + BUSY)
}

/// Cuts the path to the server without a trace: no error comes back.
fn cut(network: &Network) {
    network.drop_packets(r#"iifname "client""#);
}

/// Checks that a connection has ended with ETIMEDOUT, at least `least` and at most `most` seconds after `since`.
fn dead(story: &mut Story, label: &str, end: Option<(f64, String)>, since: f64, (least, most): (f64, f64)) {
    let (time, how) = end.unwrap_or_else(|| panic!("{label}: still alive"));
    let after = time - since;
    story.seconds.push(after);
    story.saw(format!("{label}: {how} after {after:.1} s"));
    assert_eq!(how, "ETIMEDOUT", "{label}");
    assert!(after >= least && after <= most, "{label}: after {after:.2} s, not {least:.2} to {most:.2} s");
}

/// Starts a client under the shim. It prints its rto_max, and sends data when it reads a line.
fn sending_client(network: &Network, rto_max: &str) -> Program {
    const SCRIPT: &str = "
import errno, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('connected', connection.getsockopt(socket.IPPROTO_TCP, 44), flush=True)
sys.stdin.readline()
connection.sendall(b'!')
try:
    connection.recv(1)
    print('closed')
except OSError as error:
    print(errno.errorcode[error.errno])
";
    let Policy { idle, intvl, cnt } = POLICY;
    let mut command = preloaded("python3");
    command.env("KA_POLICY", format!("{idle},{intvl},{cnt}")).env("KA_RTO_MAX", rto_max);
    run_script(network, FAMILY, command, SCRIPT)
}

fn in_flight(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let policies = [policy(KEEP, 1000), policy(KEEP, 2000), policy(USER_TIMEOUT, KEEP), policy(KEEP, KEEP)];
    let pairs = policies.each_ref().map(|policy| with_policy(&network, &listener, policy));
    let values = pairs.each_ref().map(|(client, _)| rto_max(client.as_raw_fd()));
    assert_eq!(values, [Ok(1000), Ok(2000), Ok(LONGEST), Ok(LONGEST)]);
    let mut preloaded = sending_client(&network, "1s");
    assert!(preloaded.line(&["connected 1000"], 20.0).is_some(), "the shim has not set rto_max");
    let _server = listener.accept().unwrap();

    let bounds = policies.each_ref().map(|policy| data_time(&network, policy));
    // The formula with the kernel's 15 retransmissions: 200 ms, doubled up to rto_max.
    assert_eq!(bounds.map(|[typical, _]| typical), [14_400, 27_000, 14_000, 924_600], "ka_data_time");
    cut(&network);
    let lost = story.mark("packets to the server dropped, data sent");
    preloaded.tell("send");
    for (client, _) in &pairs {
        send(client);
    }
    let waited = |connection: &TcpStream| ending(connection, LONG);
    let timeout = f64::from(USER_TIMEOUT) / 1000.0;
    dead(story, "user timeout", waited(&pairs[2].0), lost, (timeout, timeout + late(timeout) + BUSY));
    dead(story, "rto_max 1000", waited(&pairs[0].0), lost, limits(bounds[0]));
    // The program's lines have the times at which they were printed.
    dead(story, "shim, rto_max 1000", preloaded.ending(LONG), lost, limits(bounds[0]));
    dead(story, "rto_max 2000", waited(&pairs[1].0), lost, limits(bounds[1]));
    sleep(lost + LONG - now());
    assert!(is_open(&pairs[3].0), "keepalive alone: the connection has ended");
    story.saw(format!("keepalive alone: alive after {LONG} s"));
    let labels = ["rto_max 1000", "rto_max 2000", "user timeout", "keepalive alone", "shim, rto_max 1000"];
    for (flow, label) in story.flows(&labels).iter().zip(labels) {
        assert!(flow.probes().iter().all(|time| *time < lost), "{label}: a probe while data was in flight");
    }
}

/// A running retransmission timer keeps its time. When it fires, the kernel compares the time with the new limit.
fn hanging(story: &mut Story) {
    const HANGS: f64 = 17.0;
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let labels = ["rto_max 1000", "user timeout", "untouched"];
    let pairs = labels.map(|_| with_policy(&network, &listener, &policy(KEEP, KEEP)));
    let clients = pairs.each_ref().map(|(client, _)| client);
    cut(&network);
    let lost = story.mark("packets to the server dropped, data sent");
    for client in clients {
        send(client);
    }
    sleep(lost + HANGS - now());
    let set = story.mark("rto_max and user timeout set");
    for (client, config) in clients.into_iter().zip([policy(KEEP, 1000), policy(USER_TIMEOUT, KEEP)]) {
        assert!(is_open(client), "a connection has ended before its limit was set");
        apply(client.as_raw_fd(), &config).unwrap();
    }
    let mut ends = vec![];
    for (label, client) in labels.into_iter().zip(clients).take(2) {
        let end = ending(client, LONG);
        ends.extend(end.as_ref().map(|(time, _)| *time));
        dead(story, label, end, set, (0.0, LONG));
    }
    assert!(is_open(clients[2]), "{}: the connection has ended", labels[2]);
    for ((flow, end), label) in story.flows(&labels).into_iter().zip(ends).zip(labels) {
        let data = flow.packets.iter().filter(|packet| packet.from_client && packet.kind == Kind::Data);
        let sent: Vec<f64> = data.map(|packet| packet.time).collect();
        let [.., before, last] = sent[..] else { panic!("{label}: no retransmission") };
        assert!(last < set, "{label}: a retransmission after the limit was set");
        // The time between two retransmissions doubles. The kernel's timer is up to an eighth late.
        let (interval, after) = (last - before, end - last);
        story.saw(format!(
            "{label}: {after:.1} s after a retransmission, the interval before was {interval:.1} s"
        ));
        assert!(
            after > 1.7 * interval && after < 2.3 * interval + BUSY,
            "{label}: not when the next one is due"
        );
    }
}

fn closed_window(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    story.watch(&network.client);
    let (with, mut server) = with_policy(&network, &listener, &policy(KEEP, 1000));
    let (timed, _timed_server) = with_policy(&network, &listener, &policy(USER_TIMEOUT, KEEP));
    for socket in [&with, &timed] {
        SockRef::from(socket).set_send_buffer_size(4096).unwrap();
    }
    let full = story.mark("the server reads nothing");
    fill(&timed);
    let written = fill(&with);
    // The user timeout starts at the first window probe, after the window was filled (tcp_probe_timer).
    let timeout = f64::from(USER_TIMEOUT) / 1000.0;
    dead(story, "user timeout", ending(&timed, LONG), full, (timeout, timeout + 2.0 * late(timeout) + BUSY));
    sleep(full + LONG - now());
    assert!(is_open(&with), "rto_max 1000: the connection has ended");
    story.saw(format!("rto_max 1000: alive after {LONG} s"));
    story.mark("the server reads");
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut all = vec![0; written];
    server.read_exact(&mut all).expect("the data that was written before the window closed");
    with.set_write_timeout(None).unwrap();
    assert!(talks(&with, &server, 5.0), "rto_max 1000: the connection does not continue");
    let flow = story.flows(&["rto_max 1000", "user timeout"]).remove(0);
    let probes: Vec<f64> = flow.probes().into_iter().filter(|time| *time > full + 10.0).collect();
    let longest = probes.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    story.saw(format!("rto_max 1000: a window probe at least each {longest:.1} s"));
    assert!(probes.len() > 9 && longest < 1.0 + late(1.0) + BUSY, "window probes each {longest:.2} s");
}

fn idle(story: &mut Story) {
    let network = Network::routed();
    let listener = network.listen();
    story.watch(&network.client);
    let labels = ["rto_max 1000", "without"];
    let pairs = [1000, KEEP].map(|value| with_policy(&network, &listener, &policy(KEEP, value)));
    let values = pairs.each_ref().map(|(client, _)| rto_max(client.as_raw_fd()));
    assert_eq!(values, [Ok(1000), Ok(LONGEST)]);
    cut(&network);
    let lost = story.mark("packets to the server dropped");
    let most = POLICY.seconds();
    for (label, (client, _)) in labels.into_iter().zip(&pairs) {
        // The idle time started at the handshake, shortly before the packets were lost.
        dead(story, label, ending(client, LONG), lost, (most - 1.0, most + late(most) + BUSY));
    }
    let counts: Vec<usize> = story.flows(&labels).iter().map(|flow| flow.probes().len()).collect();
    assert_eq!(counts, [5, 5], "probes");
}

/// Compares ka_data_time with the kernel, for a number of retransmissions.
fn compare(story: &mut Story, retries: u64) {
    let network = Network::routed();
    network.client.sysctl("ipv4/tcp_retries2", retries);
    let listener = network.listen();
    story.watch(&network.client);
    let values = [1000, 2000, AUTO];
    let pairs = values.map(|value| with_policy(&network, &listener, &policy(KEEP, value)));
    let set = pairs.each_ref().map(|(client, _)| rto_max(client.as_raw_fd()).unwrap());
    assert_eq!(set[..2], values[..2], "the kernel's rto_max");
    let bounds = values.map(|value| data_time(&network, &policy(KEEP, value)));
    // The kernel has rounded KA_AUTO up to its tick, by less than 10 ms. A value that is still larger is too slow.
    let longer = (set[2] + 10).min(LONGEST);
    let [next, _] = data_time(&network, &policy(KEEP, longer));
    let probes = 1000 * u64::try_from(POLICY.idle + POLICY.intvl * POLICY.cnt).unwrap();
    assert!(bounds[2][0] <= probes, "KA_AUTO is slower than the probes: {:?}", bounds[2]);
    assert!(longer == LONGEST || next > probes, "KA_AUTO is not the largest: {}", set[2]);
    cut(&network);
    let lost = story.mark("packets to the server dropped, data sent");
    for (client, _) in &pairs {
        send(client);
    }
    for ((value, (client, _)), times) in set.into_iter().zip(&pairs).zip(bounds) {
        let label = format!("rto_max {value}, {} to {} ms", times[0], times[1]);
        let limits = limits(times);
        dead(story, &label, ending(client, limits.1 + 10.0), lost, limits);
    }
}

/// Measures the rules of the option that docs/linux.md states.
fn facts(story: &mut Story) {
    let network = Network::routed();
    network.client.within(|| {
        let socket_tcp = fresh();
        let fd = socket_tcp.as_raw_fd();
        assert_eq!(rto_max(fd), Ok(LONGEST), "by default");
        for value in [i32::MIN, -1, 0, 1, 999, LONGEST + 1, i32::MAX] {
            assert_eq!(set_rto_max(fd, value), Err(libc::EINVAL), "{value}");
            assert_eq!(rto_max(fd), Ok(LONGEST), "after {value} was rejected");
        }
        for value in [1000, LONGEST] {
            assert_eq!((set_rto_max(fd, value), rto_max(fd)), (Ok(()), Ok(value)), "{value}");
        }
        for value in 1001..=1010 {
            set_rto_max(fd, value).unwrap();
            let rounded = rto_max(fd).unwrap();
            assert!(is_rounded_rto_max(rounded, value), "{value} was rounded to {rounded}");
            if value == 1001 {
                story.saw(format!("{value} becomes {rounded}"));
            }
        }
    });
    let sysctl = "/proc/sys/net/ipv4/tcp_rto_max_ms";
    network.client.within(|| {
        assert_eq!(fs::read_to_string(sysctl).unwrap().trim(), LONGEST.to_string());
        for value in ["999", "120001"] {
            let error = fs::write(sysctl, value).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{value} to the sysctl");
        }
        let before = fresh();
        fs::write(sysctl, "5000").unwrap();
        // Unlike the timers of keepalive, a socket keeps the value that the sysctl had when it was made.
        let values = [rto_max(before.as_raw_fd()), rto_max(fresh().as_raw_fd())];
        assert_eq!(values, [Ok(LONGEST), Ok(5000)], "sockets from before and after the sysctl was written");
    });
    let listener = network.listen();
    set_option(listener.as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX, 3000);
    let (_client, server) = network.pair(&listener, FAMILY);
    assert_eq!(rto_max(server.as_raw_fd()), Ok(3000), "of an accepted connection");
    if has_mptcp() {
        network.client.within(|| {
            let multipath = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
            let fd = multipath.as_raw_fd();
            assert_eq!(set_rto_max(fd, 3000), Err(libc::ENOPROTOOPT), "setting it on Multipath TCP");
            assert_eq!(rto_max(fd), Err(libc::EOPNOTSUPP), "reading it on Multipath TCP");
            // The server has only TCP, so the connection falls back to TCP.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let connection = Socket::from(multipath);
            connection.connect(&listener.local_addr().unwrap().into()).unwrap();
            assert_eq!(set_rto_max(fd, 3000), Err(libc::ENOPROTOOPT), "setting it after the fallback");
            // Its TCP socket was made after the sysctl was written.
            assert_eq!(rto_max(fd), Ok(5000), "reading it after the fallback");
        });
    }
}
